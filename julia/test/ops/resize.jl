@testset "Pad" begin
    x = [1.0, 2.0, 3.0]
    padded(pads, mode) = Operators.Pad(x, pads; mode)
    @test padded([1, 2], "constant") == [0, 1, 2, 3, 0, 0]
    @test padded([2, 1], "reflect") == [3, 2, 1, 2, 3, 2]
    @test padded([1, 5], "reflect") == [2, 1, 2, 3, 2, 1, 2, 3, 2]
    @test padded([2, 1], "edge") == [1, 1, 1, 2, 3, 3]
    @test padded([2, 4], "wrap") == [2, 3, 1, 2, 3, 1, 2, 3, 1]
    @test padded([-1, 1], "constant") == [2, 3, 0]
    @test padded([-4, 5], "constant") == [0, 0, 0, 0]
    @test padded([-1, 1], "edge") == [2, 3, 3]
    @test_throws UnsupportedOperator padded([-1, 1], "reflect")
    @test Operators.Pad(x; pads=[0, 1], value=7.0f0) == [1, 2, 3, 7]
    @test Operators.Pad([1, 2], [1, 0], fill(9)) == [9, 1, 2]
    @test Operators.Pad([1 2], [1, 0], nothing, [-2]) == [0 1 2]
    @test eltype(Operators.Pad(Float16[1], [1, 0])) == Float16
    y = randn(3, 4)
    for mode in ("constant", "reflect", "edge", "wrap")
        checkgradient(y -> Operators.Pad(y, [1, 2, 3, 0]; mode), y)
    end
    checkgradient((y, v) -> Operators.Pad(y, [-1, 2, 0, 1], v), y, [0.5])
end

@testset "Resize" begin
    x = [1.0, 2.0]
    resized(mode; sizes=[4], options...) =
        Operators.Resize(x, nothing, nothing, sizes; mode, options...)
    @test resized("nearest") == [1, 1, 2, 2]
    @test resized("linear") == [1, 1.25, 1.75, 2]
    @test resized("linear"; coordinate_transformation_mode="align_corners") ≈ [1, 4 / 3, 5 / 3, 2]
    @test resized("linear"; coordinate_transformation_mode="asymmetric") == [1, 1.5, 2, 2]
    @test resized("nearest"; sizes=[3], nearest_mode="ceil",
        coordinate_transformation_mode="asymmetric") == [1, 2, 2]
    @test resized("linear"; sizes=[1], antialias=1) ≈ [1.5]
    @test sum(resized("cubic")) ≈ 6
    @test_throws UnsupportedOperator Operators.Resize([1, 2], nothing, [2.0f0]; mode="linear")
    @test Operators.Resize(x, [0.5f0, 1.5f0], nothing, [3]; mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0f0) ==
          [1.5, 2, 9]
    @test size(Operators.Resize(zeros(4, 6), nothing, nothing, [8, 8];
        keep_aspect_ratio_policy="not_larger")) == (5, 8)
    @test size(Operators.Resize(zeros(4, 6), nothing, [1.5f0]; axes=[-1])) == (6, 6)
    @test Operators.Resize(x, [2.0f0]; opset=10) == [1, 1, 2, 2]
    @test Operators.Resize([1, 2, 3, 4], [0.6f0]; opset=10) == [1, 3]
    @test eltype(Operators.Resize(Float16[1, 2], nothing, [2.0f0]; mode="linear")) == Float16
    @test Operators.Resize([Inf, 0.0, 1.0], nothing, [2.0f0]; mode="linear")[end] == 1
end

@testset "Resize's gradients" begin
    x = randn(3, 4, 2)
    resized(x; options...) = Operators.Resize(x, nothing, nothing, [2, 7, 5]; options...)
    for mode in ("nearest", "linear", "cubic")
        checkgradient(x -> resized(x; mode), x)
        checkgradient(x -> Operators.Resize(x, nothing, Float32[1, 2, 2]; mode), x)
    end
    smaller = [2, 2, 2]
    checkgradient(x) do x
        Operators.Resize(x, nothing, nothing, smaller; mode="cubic", antialias=1)
    end
    checkgradient(x) do x
        Operators.Resize(
            x, Float32[0, 0, -0.2, 1, 1, 0.9], nothing, [2, 4, 5]; mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=2.0f0,
        )
    end
end

@testset "an interpolation of arrays that aren't plain" begin
    pairs = Operators.Interpolation(1, 2, [1 1 2; 1 2 2], [0.5 0.5 0.5; 0.5 0.5 0.5])
    x = [1.0 2.0; 3.0 5.0]
    @test Operators.along(pairs, view(x, :, :)) ≈ Operators.along(pairs, x)
    y = randn(3, 2)
    @test Operators.against(pairs, view(y, :, :)) ≈ Operators.against(pairs, y)
end

@testset "Upsample" begin
    @test Operators.Upsample([1, 2], Float32[2]) == [1, 1, 2, 2]
    @test Operators.Upsample([1.0, 2.0]; scales=Float32[2], mode="linear") == [1, 1.5, 2, 2]
end
