const REDUCED = (
    :ReduceSum => sum,
    :ReduceMean => x -> sum(x) / length(x),
    :ReduceMax => maximum,
    :ReduceMin => minimum,
    :ReduceProd => prod,
    :ReduceSumSquare => x -> sum(abs2, x),
    :ReduceL1 => x -> sum(abs, x),
    :ReduceL2 => x -> sqrt(sum(abs2, x)),
    :ReduceLogSum => x -> log(sum(x)),
    :ReduceLogSumExp => x -> log(sum(exp, x)),
)

@testset "$operator" for (operator, expected) in REDUCED
    f = getfield(Operators, operator)
    x = 1 .+ reshape(sin.(1.0:24), 4, 3, 2)
    @test only(f(x)) ≈ expected(x)
    @test size(f(x)) == (1, 1, 1)
    @test f(x; keepdims=0) isa Array{Float64,0}
    @test vec(f(x, [-1, 1])) ≈ [expected(x[:, :, k]) for k in 1:2]
    @test size(f(x; axes=[0])) == (4, 3, 1)
    @test f(x; axes=[2], keepdims=0) ≈ [expected(x[:, j, k]) for j in 1:3, k in 1:2]
    @test f(x, Int[]) ≈ f(x)
    @test f(x, Int[]; noop_with_empty_axes=1) ≈ map(v -> expected([v]), x)
    @test f(x; noop_with_empty_axes=1) ≈ map(v -> expected([v]), x)
    @test f(fill(2.0); keepdims=0) == fill(expected([2.0]))
    @test f(Float16.(x), [1]) isa Array{Float16,3}
    @test f(Int32[1 2; 3 4], [0]) isa Matrix{Int32}
    checkgradient(f, x)
    checkgradient(x -> f(x; axes=[-1, 0], keepdims=0), x)
    checkgradient(x -> f(x, [1]), x)
    checkgradient(f, fill(1.3))
end

@testset "special reductions" begin
    @test Operators.ReduceMean(Int32[1, 2, 5]) == Int32[2]
    @test Operators.ReduceMax([true false; false false], [0]) == [true; false;;]
    @test Operators.ReduceMax(zeros(Float32, 0, 2), [1]) == fill(-Inf32, 1, 2)
    @test Operators.ReduceMin(zeros(Int32, 0, 2), [1]) == fill(typemax(Int32), 1, 2)
    @test Operators.ReduceSum(zeros(Float32, 0, 2), [1]) == zeros(1, 2)
    @test Operators.ReduceSum(fill(Float16(1), 4096)) == Float16[4096]
    @test Operators.ReduceLogSumExp([1000.0, 1000.0]) ≈ [1000 + log(2)]
    @test Operators.ReduceLogSumExp([-Inf, -Inf]) == [-Inf]
    @test Zygote.gradient(x -> sum(Operators.ReduceL2(x)), [0.0, 0.0])[1] == [0, 0]
    @test Zygote.gradient(x -> sum(Operators.ReduceMax(x)), [2.0, 2.0, 1.0])[1] == [0.5, 0.5, 0]
    checkgradient(Operators.ReduceProd, [0.0, 2.0, 3.0])
    checkgradient(Operators.ReduceProd, [0.0, 0.0, 3.0])
    checkgradient(x -> Operators.ReduceL1(x), [-1.0, 2.0])
end

@testset "places" begin
    x = Float32[3 1; 3 5; 0 5]
    @test Operators.ArgMax(x; axis=1) == [0 1]
    @test Operators.ArgMax(x; axis=1, select_last_index=1) == [1 2]
    @test Operators.ArgMax(x; axis=-1, keepdims=0) == [0, 1]
    @test Operators.ArgMax(x) == reshape([0, 1, 1], 3, 1)
    @test Operators.ArgMin(x; axis=1) == [2 0]
    @test Operators.ArgMin([1, 0, 0]; keepdims=0) == fill(1)
    @test Operators.ArgMax([-0.0, 0.0]) == [0]
    @test Operators.ArgMax([1.0, NaN, 2.0, NaN]) == [1]
    @test Operators.ArgMax(UInt8[1, 2]) isa Vector{Int64}
end

@testset "running sums and products" begin
    x = [1.0 4; 2 5; 3 6]
    @test Operators.CumSum(x, fill(1)) == [1 4; 3 9; 6 15]
    @test Operators.CumSum(x, [0]) == [1 5; 2 7; 3 9]
    @test Operators.CumSum(x, fill(-1); exclusive=1) == [0 0; 1 4; 3 9]
    @test Operators.CumSum(x, fill(1); reverse=1) == [6 15; 5 11; 3 6]
    @test Operators.CumSum(x, fill(1); reverse=1, exclusive=1) == [5 11; 3 6; 0 0]
    @test Operators.CumSum(Int32[1, 2], fill(0)) isa Vector{Int32}
    @test Operators.CumProd(x, fill(1)) == [1 4; 2 20; 6 120]
    @test Operators.CumProd(x, fill(1); exclusive=1, reverse=1) == [6 30; 3 6; 1 1]
    y = reshape(sin.(1.0:12), 3, 2, 2)
    y[2, 1, 1] = 0
    for exclusive in 0:1, reverse in 0:1, axis in 0:2
        checkgradient(y -> Operators.CumSum(y, fill(axis); exclusive, reverse), y)
        checkgradient(y -> Operators.CumProd(y, fill(axis); exclusive, reverse), y)
    end
end
