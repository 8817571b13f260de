@testset "GridSample" begin
    x = reshape([1.0 3.0; 2.0 4.0], 2, 2, 1, 1)
    at(place; options...) = only(Operators.GridSample(x, reshape(place, 2, 1, 1, 1); options...))
    @test at([0.0, 0.0]) == 2.5
    @test at([-1.0, -1.0]) == 0.25
    @test at([-1.0, -1.0]; align_corners=1) == 1
    @test at([-9.0, 0.5]; padding_mode="border") == 3
    @test at([-1.5, -0.5]; padding_mode="reflection") == 1
    @test at([0.4, 0.4]; mode="nearest") == 4
    @test at([5.0, 0.0]) == 0
    @test_throws UnsupportedOperator at([0.0, 0.0]; mode="cubic", padding_mode="border")
    grid = [-0.93 0.31 0.77; 0.13 1.31 -1.19;;; 0.51 -0.39 0.23; -0.71 1.67 0.07]
    grid = reshape(grid, 2, 3, 1, 2)
    images = randn(4, 3, 2, 2)
    for padding_mode in ("zeros", "border", "reflection"), mode in ("linear", "cubic")
        padding_mode == "border" && mode == "cubic" && continue
        checkgradient((x, g) -> Operators.GridSample(x, g; mode, padding_mode), images, grid)
    end
    checkgradient(x -> Operators.GridSample(x, grid; mode="nearest", align_corners=1), images)
    volume = randn(3, 3, 2, 1, 1)
    places = reshape([0.13, -0.41, 0.29, -0.57, 0.63, 1.21], 3, 2, 1, 1, 1)
    checkgradient((x, g) -> Operators.GridSample(x, g), volume, places)
end

@testset "AffineGrid" begin
    identity = reshape([1.0 0; 0 1; 0 0], 3, 2, 1)
    grid = Operators.AffineGrid(identity, [1, 1, 2, 4])
    @test size(grid) == (2, 4, 2, 1)
    @test grid[:, 1, 1, 1] == [-0.75, -0.5]
    @test Operators.AffineGrid(identity, [1, 1, 2, 4]; align_corners=1)[:, 4, 2, 1] == [1, 1]
    checkgradient(theta -> Operators.AffineGrid(theta, [2, 1, 2, 3]), randn(3, 2, 2))
end

@testset "MaxRoiPool" begin
    x = reshape(1.0:64.0, 4, 4, 2, 2)
    whole = [0.0; 0.0; 0.0; 3.0; 3.0;;]
    @test Operators.MaxRoiPool(x, whole; pooled_shape=[1, 1]) == reshape([16.0, 32.0], 1, 1, 2, 1)
    @test vec(Operators.MaxRoiPool(x, whole; pooled_shape=[2, 2])[:, :, 1, 1]) == [6, 8, 14, 16]
    second = [1.0; 2.0; 0.0; 6.0; 2.0;;]
    @test vec(Operators.MaxRoiPool(x, second; pooled_shape=[1, 2], spatial_scale=0.5)[:, :, 1, 1]) ==
        [32 + 7, 32 + 8]
    outside = [0.0; 9.0; 9.0; 10.0; 10.0;;]
    @test all(iszero, Operators.MaxRoiPool(x, outside; pooled_shape=[2, 2]))
    regions = [0.0 1.0; 0.0 1.0; 1.0 0.0; 3.0 2.0; 2.0 3.0]
    checkgradient(x -> Operators.MaxRoiPool(x, regions; pooled_shape=[2, 3]), randn(4, 5, 2, 2))
end

@testset "RoiAlign" begin
    x = reshape(collect(0.0:15.0), 4, 4, 1, 1)
    region = [0.5; 0.5; 2.5; 2.5;;]
    @test only(Operators.RoiAlign(x, region, [0]; sampling_ratio=1)) == 5
    corner = Operators.RoiAlign(x, region, [0]; sampling_ratio=1, opset=10)
    @test only(corner) == 7.5
    regions = [0.5 1.0; 0.5 0; 3.1 4; 2.9 3]
    for mode in ("avg", "max")
        checkgradient(randn(4, 4, 2, 2)) do x
            Operators.RoiAlign(x, regions, [0, 1]; mode, output_width=2)
        end
    end
end

@testset "NonMaxSuppression" begin
    boxes = reshape([0 0 1 1; 0 0 1 0.9; 0 2 1 3.0]', 4, 3, 1)
    scores = reshape([0.5, 0.9, 0.3], 3, 1, 1)
    kept(limit, options...) = Operators.NonMaxSuppression(boxes, scores, [limit], options...)[3, :]
    @test kept(3, [0.5f0]) == [1, 2]
    @test kept(1, [0.5f0]) == [1]
    @test kept(3, [0.95f0]) == [1, 0, 2]
    @test kept(3, [0.5f0], [0.4f0]) == [1]
    @test size(Operators.NonMaxSuppression(boxes, scores)) == (3, 0)
end

@testset "Col2Im" begin
    blocks = reshape(collect(1.0:8.0), 2, 4, 1)  # 2 positions of 2×2 blocks in a row
    image = Operators.Col2Im(blocks, [2, 3], [2, 2])
    @test image[:, :, 1, 1] == [1 5; 2+3 6+7; 4 8]
    padded = Operators.Col2Im(ones(9, 4, 1), [2, 2], [2, 2]; pads=[1, 1, 1, 1])
    @test padded[:, :, 1, 1] == [4 4; 4 4]
    checkgradient(randn(4, 8, 2)) do x
        Operators.Col2Im(x, [3, 4], [2, 2]; strides=[2, 2], pads=[1, 0, 0, 0])
    end
end
