onnxorder(x) = permutedims(x, ndims(x):-1:1)

@testset "Reshape" begin
    x = reshape(1.0:24.0, 4, 3, 2)
    @test size(Operators.Reshape(x, [0, -1])) == (12, 2)
    @test size(Operators.Reshape(x, [4, 0, -1, 1])) == (1, 2, 3, 4)
    @test vec(Operators.Reshape(x, [-1])) == 1:24
    @test size(Operators.Reshape(zeros(3, 0), [3, 0]; allowzero=1)) == (0, 3)
    @test Operators.Reshape([2.0], Int[]) == fill(2.0)
    @test_throws ArgumentError Operators.Reshape(zeros(3, 0), [0, -1])
    checkgradient(x -> Operators.Reshape(x, [2, -1]), randn(3, 4))
end

@testset "Flatten" begin
    x = zeros(4, 3, 2)
    @test size(Operators.Flatten(x)) == (12, 2)
    @test size(Operators.Flatten(x; axis=0)) == (24, 1)
    @test size(Operators.Flatten(x; axis=3)) == (1, 24)
    @test size(Operators.Flatten(x; axis=-1)) == (4, 6)
    checkgradient(x -> Operators.Flatten(x), randn(2, 3, 2))
end

@testset "Squeeze and Unsqueeze" begin
    x = randn(1, 3, 1, 2)
    @test size(Operators.Squeeze(x)) == (3, 2)
    @test size(Operators.Squeeze(x; axes=[1])) == (1, 3, 2)
    @test size(Operators.Squeeze(x, [-1, 1])) == (3, 2)
    @test_throws ArgumentError Operators.Squeeze(x, [0])
    @test size(Operators.Unsqueeze(zeros(4, 3), [0, -1])) == (1, 4, 3, 1)
    @test size(Operators.Unsqueeze(zeros(4, 3); axes=[1])) == (4, 1, 3)
    @test size(Operators.Unsqueeze(fill(1.0), [0])) == (1,)
    checkgradient(x -> Operators.Squeeze(Operators.Unsqueeze(x, [1]), [1]), randn(2, 3))
end

@testset "Transpose" begin
    x = randn(2, 3, 4)
    @test Operators.Transpose(x) == permutedims(x, (3, 2, 1))
    @test Operators.Transpose(x; perm=[0, 2, 1]) == permutedims(x, (2, 1, 3))
    @test size(Operators.Transpose(x; perm=[1, 2, 0])) == (4, 2, 3)
    checkgradient(x -> Operators.Transpose(x; perm=[2, 0, 1]), x)
end

@testset "Shape and Size" begin
    x = zeros(Float32, 4, 3, 2)
    @test Operators.Shape(x) == [2, 3, 4]
    @test Operators.Shape(x; start=-2) == [3, 4]
    @test Operators.Shape(x; start=1, var"end"=-1) == [3]
    @test Operators.Shape(fill(1)) == Int[]
    @test Operators.Size(x) == fill(24)
end

@testset "Concat" begin
    a, b = randn(2, 3), randn(1, 3)
    @test Operators.Concat(a, b; axis=1) == vcat(a, b)
    @test Operators.Concat(a, a; axis=-2) == hcat(a, a)
    @test Operators.Concat([1], Int[], [2, 3]; axis=0) == [1, 2, 3]
    checkgradient((a, b) -> Operators.Concat(a, b, a; axis=-1), a, b)
end

@testset "Split" begin
    x = reshape(collect(1.0:12.0), 2, 6)
    @test Operators.Split(x; outputs=3, opset=13) == (x[:, 1:2], x[:, 3:4], x[:, 5:6])
    @test Operators.Split(x; axis=1, split=[1, 1], outputs=2) == (x[1:1, :], x[2:2, :])
    @test Operators.Split(x, [1, 0, 5]; outputs=3) == (x[:, 1:1], x[:, 1:0], x[:, 2:6])
    @test length.(Operators.Split(collect(1:7); num_outputs=3, outputs=3)) == (3, 3, 1)
    @test_throws ArgumentError Operators.Split(x; outputs=4, opset=13)
    @test_throws ArgumentError Operators.Split(x, [1, 2]; outputs=2)
    checkgradient(x -> Operators.Split(x, [1, 2, 3]; outputs=3)[2], x)
    checkgradient(x -> .*(Operators.Split(x; outputs=2)...), x)
end

@testset "Expand and Tile" begin
    x = [1.0; 2.0;;]
    @test Operators.Expand(x, [2, 3, 1]) == repeat(x, 1, 3, 2)
    @test Operators.Expand(x, [1]) == x
    @test Operators.Expand(fill(3), [2]) == [3, 3]
    @test Operators.Tile([1, 2], [2]) == [1, 2, 1, 2]
    @test Operators.Tile(reshape(1:4, 2, 2), [2, 1]) == [1 3 1 3; 2 4 2 4]
    @test size(Operators.Tile(x, [0, 2])) == (4, 0)
    checkgradient(x -> Operators.Expand(x, [2, 3, 4]), randn(4, 1))
    checkgradient(x -> Operators.Expand(x, [3]), randn(3, 2))
    checkgradient(x -> Operators.Tile(x, [2, 3]), randn(2, 3))
    checkgradient(x -> Operators.Tile(x, [1, 10]), randn(2, 2))
end

@testset "Constants" begin
    @test Operators.ConstantOfShape([2, 3]) == zeros(Float32, 3, 2)
    @test Operators.ConstantOfShape(Int[]; value=[7]) == fill(7)
    @test Operators.Constant(; value_int=3) == fill(3)
    @test Operators.Constant(; value_floats=Float32[1, 2]) == [1, 2]
    @test Operators.Constant(; value=[1 2]) == [1 2]
    @test_throws UnsupportedOperator Operators.Constant(; value_string="a")
    @test Operators.Range(fill(3), fill(9), fill(3)) == [3, 6]
    @test Operators.Range(fill(10), fill(4), fill(-2)) == [10, 8, 6]
    @test Operators.Range(fill(1), fill(0), fill(1)) == Int[]
    @test Operators.Range(fill(0.0f0), fill(1.0f0), fill(0.4f0)) ≈ Float32[0, 0.4, 0.8]
    @test onnxorder(Operators.EyeLike(zeros(Float32, 3, 2); k=1)) == [0 1 0; 0 0 1]
    @test eltype(Operators.EyeLike(zeros(Float32, 2, 2); dtype=7)) == Int64
end

@testset "DepthToSpace and SpaceToDepth" begin
    x = reshape(collect(1.0:8.0), 1, 1, 8, 1)
    @test Operators.DepthToSpace(x; blocksize=2)[:, :, 1, 1] == [1 5; 3 7]
    @test Operators.DepthToSpace(x; blocksize=2, mode="CRD")[:, :, 1, 1] == [1 3; 2 4]
    @test Operators.SpaceToDepth(Operators.DepthToSpace(x; blocksize=2); blocksize=2) == x
    checkgradient(x -> Operators.DepthToSpace(x; blocksize=2), randn(2, 1, 4, 2))
    checkgradient(x -> Operators.SpaceToDepth(x; blocksize=2), randn(2, 4, 1, 2))
end

@testset "Trilu" begin
    x = fill(Inf, 3, 2)
    @test onnxorder(Operators.Trilu(x)) == [Inf Inf Inf; 0 Inf Inf]
    @test onnxorder(Operators.Trilu(x, fill(-1); upper=0)) == [0 0 0; Inf 0 0]
    checkgradient(x -> Operators.Trilu(x, fill(1)), randn(3, 3, 2))
end

@testset "CenterCropPad" begin
    @test Operators.CenterCropPad([1, 2, 3, 4, 5], [2]) == [2, 3]
    @test Operators.CenterCropPad([1, 2], [5]) == [0, 1, 2, 0, 0]
    @test size(Operators.CenterCropPad(zeros(5, 4, 3), [2]; axes=[-1])) == (2, 4, 3)
    checkgradient(x -> Operators.CenterCropPad(x, [2, 6]), randn(3, 5))
end

@testset "ReverseSequence" begin
    x = reshape(1:6, 2, 3)
    @test Operators.ReverseSequence(x, [3, 2]) == [5 3 1; 4 2 6]
    @test Operators.ReverseSequence(x, [1, 2, 2]; batch_axis=0, time_axis=1) == [1 4 6; 2 3 5]
    checkgradient(x -> Operators.ReverseSequence(x, [3, 2]), randn(2, 3))
end

@testset "a shape computed from a shape" begin
    function flattened(x)
        batch = Operators.Gather(Operators.Shape(x), [0])
        return Operators.Reshape(x, Operators.Concat(batch, [-1]; axis=0))
    end
    x = randn(2, 3, 4)
    @test size(flattened(x)) == (6, 4)
    checkgradient(flattened, x)
end
