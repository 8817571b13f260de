@testset "values" begin
    x = [-2.0, -0.5, 0.0, 0.5, 3.0]
    @test Operators.Relu(x) == [0, 0, 0, 0.5, 3]
    @test Operators.Relu(Int32[-1, 2]) == Int32[0, 2]
    @test Operators.LeakyRelu(x; alpha=0.25f0) == [-0.5, -0.125, 0, 0.5, 3]
    @test Operators.PRelu([-1.0 -2.0; 3.0 -4.0], [0.5, 0.25]) == [-0.5 -1; 3 -1]
    @test Operators.ThresholdedRelu(x; alpha=0.5f0) == [0, 0, 0, 0, 3]
    @test Operators.Elu(x; alpha=2.0f0) ≈ [2(exp(-2) - 1), 2(exp(-0.5) - 1), 0, 0.5, 3]
    @test Operators.Selu(x; alpha=2.0f0, gamma=3.0f0) ≈ 3 .* Operators.Elu(x; alpha=2.0f0)
    @test Operators.Celu(x; alpha=2.0f0) ≈ [2(exp(-1) - 1), 2(exp(-0.25) - 1), 0, 0.5, 3]
    @test Operators.Sigmoid(x) ≈ @. 1 / (1 + exp(-x))
    @test Operators.HardSigmoid([-5.0, 0, 1, 5]; alpha=0.25f0) == [0, 0.5, 0.75, 1]
    @test Operators.HardSwish([-4.0, -3, 0, 1.5, 4]) ≈ [0, 0, 0, 1.125, 4]
    @test Operators.Swish(x; alpha=2.0f0) ≈ @. x / (1 + exp(-2x))
    @test Operators.Mish(x) ≈ @. x * tanh(log(1 + exp(x)))
    @test Operators.Tanh(x) ≈ tanh.(x)
    @test Operators.Gelu([0.0, 1.0, -1.0]) ≈ [0, 0.8413447460685429, -0.15865525393145707]
    @test Operators.Gelu([1.0]; approximate="tanh") ≈ [0.8411919906082768]
    @test Operators.Softplus(x) ≈ @. log(1 + exp(x))
    @test Operators.Softsign(x) ≈ [-2 / 3, -1 / 3, 0, 1 / 3, 0.75]
    @test Operators.Shrink(x; lambd=0.5f0, bias=0.25f0) == [-1.75, 0, 0, 0, 2.75]
    @test Operators.Shrink(Int8[-2, 0, 3]; lambd=1.5f0, bias=1.5f0) == Int8[0, 0, 1]
    @test_throws UnsupportedOperator Operators.Gelu(x; approximate="other")
end

@testset "extremes of $f in $type" for type in (Float16, Float32, Float64),
    f in (:Sigmoid, :Tanh, :Mish, :Gelu, :Swish, :Softplus)

    x = type[-60000, -100, -20, 20, 100, 60000]
    y = getfield(Operators, f)(x)
    positive = f in (:Sigmoid, :Tanh) ? type[1, 1, 1] : x[4:6]
    @test eltype(y) == type
    @test y[4:6] ≈ positive
    @test y[1:3] ≈ (f == :Tanh ? -positive : type[0, 0, 0]) atol = 1e-6
end

@testset "types and scalars" begin
    for f in (:Relu, :LeakyRelu, :Elu, :Selu, :Celu, :Sigmoid, :HardSigmoid, :HardSwish, :Swish)
        @test getfield(Operators, f)(fill(Float16(0.5))) isa Array{Float16,0}
    end
    for f in (:Mish, :Tanh, :Gelu, :Softplus, :Softsign, :Shrink, :ThresholdedRelu)
        @test getfield(Operators, f)(fill(0.5f0)) isa Array{Float32,0}
    end
end

@testset "softmax" begin
    x = reshape(collect(1.0:12), 3, 2, 2)
    y = Operators.Softmax(x; opset=13)
    @test vec(sum(y; dims=1)) ≈ ones(4)
    @test y[:, 1, 1] ≈ exp.(1:3) ./ sum(exp.(1:3))
    @test vec(sum(Operators.Softmax(x; axis=0, opset=13); dims=3)) ≈ ones(6)
    flattened = Operators.Softmax(x; opset=12)
    @test vec(sum(flattened; dims=(1, 2))) ≈ ones(2)
    @test Operators.Softmax(x; axis=-1, opset=11) ≈ y
    @test Operators.Softmax(x; axis=0, opset=11) ≈ reshape(exp.(1:12) ./ sum(exp.(1:12)), 3, 2, 2)
    @test Operators.LogSoftmax(x; opset=12) ≈ log.(flattened)
    @test Operators.LogSoftmax(x; axis=1, opset=13) ≈ log.(Operators.Softmax(x; axis=1, opset=13))
    @test size(Operators.Softmax(zeros(Float32, 0, 3); opset=13)) == (0, 3)
end

@testset "hardmax" begin
    x = Float32[3 1; 3 2; 0 2]
    @test Operators.Hardmax(x; opset=13) == Float32[1 0; 0 1; 0 0]
    @test Operators.Hardmax(x; axis=0, opset=13) == Float32[1 0; 1 0; 0 1]
    @test Operators.Hardmax(x; axis=0, opset=11) == Float32[1 0; 0 0; 0 0]
    @test Operators.Hardmax(x; opset=13) isa Matrix{Float32}
end

@testset "gradient of $f" for f in (
    :Relu, :LeakyRelu, :ThresholdedRelu, :Elu, :Selu, :Celu, :Sigmoid, :HardSigmoid, :HardSwish,
    :Swish, :Mish, :Tanh, :Gelu, :Softplus, :Softsign, :Shrink
)
    checkgradient(getfield(Operators, f), [-4.0 -1.3 -0.2 0.1; 0.7 1.6 2.9 5.0])
    checkgradient(getfield(Operators, f), fill(0.7))
end

@testset "other gradients" begin
    x = reshape(sin.(1.0:12), 3, 2, 2)
    checkgradient(x -> Operators.Elu(x; alpha=0.5f0), x)
    checkgradient(x -> Operators.Celu(x; alpha=0.5f0), x)
    checkgradient(x -> Operators.Swish(x; alpha=1.5f0), x)
    checkgradient(x -> Operators.Gelu(x; approximate="tanh"), 3x)
    checkgradient(Operators.PRelu, x, [0.1, 0.2, 0.3])
    checkgradient(Operators.PRelu, x, fill(0.3, 1, 2))
    for opset in (12, 13)
        checkgradient(x -> Operators.Softmax(x; opset), x)
        checkgradient(x -> Operators.LogSoftmax(x; axis=1, opset), x)
    end
    @test Zygote.gradient(x -> sum(Operators.Gelu(x)), Float16[0.5, 1])[1] isa Vector{Float16}
end

@testset "softmax of half precision" begin
    x = Float16[1 -2 3; 0.5 4 -1; 2 2 2]
    weights = Float16.(reshape(1:9, 3, 3))
    for f in (Operators.Softmax, Operators.LogSoftmax)
        y = f(x; axis=-1)
        @test eltype(y) == Float16
        @test y ≈ f(Float32.(x); axis=-1) rtol = 2e-3
        found = only(Zygote.gradient(x -> sum(weights .* f(x; axis=-1)), x))
        exact = only(Zygote.gradient(x -> sum(weights .* f(x; axis=-1)), Float32.(x)))
        @test found ≈ exact rtol = 1e-2
    end
end
