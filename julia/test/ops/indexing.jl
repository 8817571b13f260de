@testset "Slice" begin
    x = reshape(collect(1.0:12.0), 4, 3)
    last, least = typemax(Int), typemin(Int)
    @test Operators.Slice(x, [1], [last], [0]) == x[:, 2:3]
    @test Operators.Slice(x; starts=[0, -2], ends=[2, 100]) == x[3:4, 1:2]
    @test Operators.Slice(x, [-1], [least], [1], [-2]) == x[[4, 2], :]
    @test Operators.Slice(x, [3], [1], [-1], [1]) == x[1:0, :]
    @test Operators.Slice(x, [-100], [100], [1], [3]) == x[[1, 4], :]
    @test Operators.Slice([5, 6, 7], [0], [1]) == [5]
    checkgradient(x -> Operators.Slice(x, [-1, 0], [least, 2], [1, 0], [-2, 1]), x)
    checkgradient(x -> Operators.Slice(x, [1], [3], [1]), x)
end

@testset "Gather" begin
    x = reshape(collect(1.0:6.0), 3, 2)
    @test Operators.Gather(x, fill(1)) == [4, 5, 6]
    @test Operators.Gather(x, [-1, 0, 0]; axis=1) == x[[3, 1, 1], :]
    @test size(Operators.Gather(x, zeros(Int, 5, 4, 1))) == (3, 5, 4, 1)
    @test Operators.Gather([4, 5], fill(1)) == fill(5)
    @test_throws BoundsError Operators.Gather(x, [2])
    indices = [1 0 1; 1 -1 0]
    checkgradient(x -> Operators.Gather(x, indices; axis=1), x)
    checkgradient(x -> Operators.Gather(x, fill(0)), x)
end

@testset "GatherElements and GatherND" begin
    x = [1.0 3.0; 2.0 4.0]
    @test Operators.GatherElements(x, [0 1; 0 0]; axis=1) == [1 4; 1 3]
    @test Operators.GatherElements(x, [1 -1]; axis=1) == [2 4]
    @test Operators.GatherND(x, [0 1; 0 1]) == [1, 4]
    @test Operators.GatherND(x, [1;;]) == [3; 4;;]
    @test Operators.GatherND(x, [1 0]; batch_dims=1) == [2, 3]
    elements, pairs, batched = [0 0 1; 0 2 2], [0 1 0; 1 1 1], [0 1; 1 1;;; 0 0; 1 1]
    checkgradient(x -> Operators.GatherElements(x, elements; axis=0), randn(2, 3))
    checkgradient(x -> Operators.GatherND(x, pairs), randn(2, 3, 2))
    checkgradient(x -> Operators.GatherND(x, batched; batch_dims=1), randn(2, 2, 2))
end

@testset "Scatter" begin
    x = [1.0, 2.0, 3.0]
    @test Operators.ScatterElements(x, [2, 0], [7.0, 8.0]) == [8, 2, 7]
    @test Operators.Scatter(x, [-1], [7.0]) == [1, 2, 7]
    sums(reduction) = Operators.ScatterElements(x, [1, 1], [4.0, 5.0]; reduction)
    @test sums("add") == [1, 11, 3]
    @test sums("mul") == [1, 40, 3]
    @test sums("max") == [1, 5, 3]
    @test sums("min") == [1, 2, 3]
    @test_throws UnsupportedOperator sums("mean")
    y = [1 3; 2 4]
    @test Operators.ScatterElements(y, [1 0], [7 8]; axis=1) == [1 8; 7 4]
    @test Operators.ScatterND(y, [1;;], [7; 8;;]) == [1 7; 2 8]
    @test Operators.ScatterND(y, [0; 1;;], [7]) == [1 3; 7 4]
    @test x == [1, 2, 3]
    repeated = [1 1; 1 0]
    for reduction in ("add", "mul", "max", "min")
        checkgradient(randn(3, 2), randn(2, 2)) do x, u
            Operators.ScatterElements(x, repeated, u; reduction)
        end
    end
end

@testset "Scatter's gradients" begin
    swapped, place, rows = [0 1; 1 0], [2; 0;;], [1 1]
    checkgradient((x, u) -> Operators.ScatterElements(x, swapped, u), randn(3, 2), randn(2, 2))
    checkgradient((x, u) -> Operators.ScatterND(x, place, u), randn(2, 3, 3), randn(2))
    checkgradient(randn(2, 3), randn(2, 2)) do x, u
        Operators.ScatterND(x, rows, u; reduction="mul")
    end
end

@testset "TensorScatter" begin
    past = zeros(1, 3, 2)
    update = ones(1, 2, 2)
    @test vec(Operators.TensorScatter(past, update, [1, 0])) == [0, 1, 1, 1, 1, 0]
    circular = Operators.TensorScatter(past, update, [2, 0]; mode="circular")
    @test vec(circular) == [1, 0, 1, 1, 1, 0]
end

@testset "OneHot" begin
    @test Operators.OneHot([0, -1, 5], fill(3), [2.0, 9.0]) == [9 2 2; 2 2 2; 2 9 2]
    @test size(Operators.OneHot(zeros(Int, 4, 2), [3], [0, 1]; axis=0)) == (4, 2, 3)
    @test size(Operators.OneHot(zeros(Int, 4, 2), [3], [0, 1]; axis=1)) == (4, 3, 2)
    checkgradient(values -> Operators.OneHot([0, 2], [3], values), [0.5, 2.0])
end

@testset "TopK" begin
    x = [3.0, 1.0, 3.0, 2.0]
    @test Operators.TopK(x, [2]) == ([3, 3], [0, 2])
    @test Operators.TopK(x, [2]; largest=0) == ([1, 2], [1, 3])
    @test Operators.TopK(x; k=1) == ([3], [0])
    @test Operators.TopK([-0.0, 0.0], [1])[2] == [0]
    @test Operators.TopK([1 2; 4 3], [1]; axis=0) == ([2; 4;;], [1; 0;;])
    @test size(Operators.TopK(x, [0])[1]) == (0,)
    checkgradient(x -> Operators.TopK(x, [2]; axis=0)[1], randn(3, 4))
end

@testset "NonZero, Compress and Unique" begin
    @test Operators.NonZero([1 0; 0 2]) == [0 0; 1 1]
    @test size(Operators.NonZero(fill(1.0))) == (1, 0)
    x = [1 3 5; 2 4 6]
    @test Operators.Compress(x, [false, true]; axis=0) == [3; 4;;]
    @test Operators.Compress(x, [true, false, true]) == [1, 3]
    @test Operators.Unique([2, 1, 1, 3]) == ([1, 2, 3], [1, 0, 3], [1, 0, 0, 2], [2, 1, 1])
    @test Operators.Unique([2, 1, 1, 3]; sorted=0) ==
          ([2, 1, 3], [0, 1, 3], [0, 1, 1, 2], [1, 2, 1])
    @test Operators.Unique([2 1 2; 0 0 0]; axis=0)[1] == [1 2; 0 0]
    checkgradient(x -> Operators.Compress(x, [true, false, true]; axis=1), randn(3, 2))
end
