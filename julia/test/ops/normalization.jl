using .Operators: BatchNormalization, InstanceNormalization, GroupNormalization,
                  LayerNormalization, RMSNormalization, LRN, LpNormalization,
                  MeanVarianceNormalization, UnsupportedOperator

isstandard(x; dims) = all(abs.(sum(x; dims)) .< 1e-9) &&
                      all(isapprox.(sum(abs2, x; dims) ./ prod(size(x, d) for d in dims), 1))

@testset "batch" begin
    x = reshape([1.0, 2, 3, 4], 1, 2, 2)
    scale, bias, μ, σ² = [2.0, 3], [0.5, 0], [1.0, 2], [4.0, 1]
    y = BatchNormalization(x, scale, bias, μ, σ²; epsilon=0f0)
    @test vec(y) ≈ [0.5, 0, 2.5, 6]
    trained = BatchNormalization(x, scale, bias, μ, σ²; epsilon=0f0, momentum=0.5f0,
                                 training_mode=1, outputs=3)
    @test vec(trained[1]) ≈ [-1.5, -3, 2.5, 3]
    @test trained[2] ≈ [1.5, 2.5] && trained[3] ≈ [2.5, 1]
    @test BatchNormalization([1.0, 2], [2.0], [1.0], [0.0], [1.0]; epsilon=0f0) == [3, 5]
    @test vec(BatchNormalization(x, scale', bias', μ', σ²'; epsilon=0f0, spatial=0, opset=7)) ≈
          vec(y)
    @test eltype(BatchNormalization(Float16.(x), scale, bias, μ, σ²)) === Float16
    @test_throws UnsupportedOperator BatchNormalization(x, scale, bias, μ, σ²; outputs=5,
                                                        opset=9)
end

@testset "instance, group and layer" begin
    x = numbers(5, 4, 3)
    @test isstandard(InstanceNormalization(x, ones(4), zeros(4); epsilon=0f0); dims=(1,))
    @test isstandard(GroupNormalization(x, ones(4), zeros(4); num_groups=1, epsilon=0f0);
                     dims=(1, 2))
    pergroup = GroupNormalization(x, [1.0, 2], [0.0, 1]; num_groups=2, opset=20)
    @test pergroup ≈ GroupNormalization(x, [1.0, 1, 2, 2], [0.0, 0, 1, 1]; num_groups=2)
    @test isstandard(LayerNormalization(x, ones(5); epsilon=0f0); dims=(1,))
    @test LayerNormalization(x, ones(5, 4); axis=1) == LayerNormalization(x, ones(5, 4); axis=-2)
    _, μ, inverse = LayerNormalization(reshape([1.0, 3], 2, 1), ones(2); epsilon=0f0, outputs=3)
    @test μ == fill(2f0, 1, 1) && inverse == fill(1f0, 1, 1)
    @test RMSNormalization([3.0, 4], [1.0, 2]; epsilon=0f0) ≈ [3, 8] ./ sqrt(12.5)
    @test isstandard(MeanVarianceNormalization(x; axes=[0, 2]); dims=(1, 3))
    @test MeanVarianceNormalization(ones(2, 2, 2, 1)) == zeros(2, 2, 2, 1)
end

@testset "over channels, and by a norm" begin
    x = reshape([1.0, 2, 3], 1, 3, 1)
    @test vec(LRN(x; size=3, alpha=3f0, beta=1f0, bias=0f0)) ≈ [1 / 5, 2 / 14, 3 / 13]
    @test vec(LRN(x; size=2, alpha=2f0, beta=1f0, bias=0f0)) ≈ [1 / 5, 2 / 13, 3 / 9]
    @test LpNormalization([3.0, -4]) ≈ [0.6, -0.8]
    @test LpNormalization([3.0, -1]; p=1) ≈ [0.75, -0.25]
    @test LpNormalization(zeros(2)) == zeros(2)
end

@testset "gradients" begin
    x, a, b = numbers(3, 4, 2), 1 .+ numbers(4), numbers(4)
    checkgradient((x, a, b, m, v) -> BatchNormalization(x, a, b, m, v), x, a, b, numbers(4),
                  2 .+ numbers(4))
    checkgradient((x, a, b) -> BatchNormalization(x, a, b, a, a; training_mode=1), x, a, b)
    checkgradient(InstanceNormalization, x, a, b)
    checkgradient((x, a, b) -> GroupNormalization(x, a, b; num_groups=2), x, a, b)
    checkgradient((x, a, b) -> GroupNormalization(x, a, b; num_groups=2, opset=18), x, a[1:2],
                  b[1:2])
    checkgradient((x, a, b) -> LayerNormalization(x, a, b; axis=1), x, numbers(3, 4),
                  numbers(3, 4))
    checkgradient((x, a) -> LayerNormalization(x, a), x, numbers(3))
    checkgradient(RMSNormalization, x, numbers(3))
    checkgradient(x -> LRN(x; size=3, alpha=0.5f0), x)
    checkgradient(LpNormalization, x)
    checkgradient(x -> LpNormalization(x; axis=0, p=1), x)
    checkgradient(x -> MeanVarianceNormalization(x; axes=[0, 2]), x)
    @test Zygote.gradient(x -> sum(LpNormalization(x)), zeros(2))[1] == ones(2)
end
