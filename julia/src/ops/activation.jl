# Activation functions.

@operator Relu(X) = elementwise(relu, X)

derivative(::typeof(relu), x, y) = y > 0

@operator LeakyRelu(X; alpha=0.01f0) = elementwise(leaky, X, oftypeof(X, alpha))

leaky(x, alpha) = ifelse(x < 0, alpha * x, x)
derivative(::typeof(leaky), x, y, alpha) = ifelse(x < 0, alpha, one(x))

@operator PRelu(X, slope) = combine(leaky, X, slope)

leftslope(::typeof(leaky), d, x, slope) = ifelse(x < 0, d * slope, d)
rightslope(::typeof(leaky), d, x, slope) = ifelse(x < 0, d * x, zero(d))

@operator ThresholdedRelu(X; alpha=1.0f0) = elementwise(thresholded, X, oftypeof(X, alpha))

thresholded(x, alpha) = ifelse(x > alpha, x, zero(x))
derivative(::typeof(thresholded), x, y, alpha) = x > alpha

@operator Elu(X; alpha=1.0f0) = elementwise(exponentiallinear, X, oftypeof(X, alpha))

exponentiallinear(x, alpha) = x > 0 ? x : alpha * expm1(x)
derivative(::typeof(exponentiallinear), x, y, alpha) = ifelse(x > 0, one(x), y + alpha)

@operator Selu(X; alpha=1.67326319217681884765625f0, gamma=1.05070102214813232421875f0) =
    elementwise(scaledlinear, X, oftypeof(X, alpha), oftypeof(X, gamma))

scaledlinear(x, alpha, gamma) = gamma * exponentiallinear(x, alpha)
derivative(::typeof(scaledlinear), x, y, alpha, gamma) = ifelse(x > 0, gamma, y + alpha * gamma)

@operator Celu(X; alpha=1.0f0) = elementwise(continuouslinear, X, oftypeof(X, alpha))

continuouslinear(x, alpha) = x > 0 ? x : alpha * expm1(x / alpha)
derivative(::typeof(continuouslinear), x, y, alpha) = ifelse(x > 0, one(x), y / alpha + 1)

@operator Sigmoid(X) = elementwise(logistic, X)

@inline function logistic(x)
    t = exponential(-abs(x))
    return ifelse(x < 0, t, one(t)) / (1 + t)
end

derivative(::typeof(logistic), x, y) = y * (1 - y)

@operator Tanh(input) = elementwise(tanh_fast, input)

derivative(::typeof(tanh_fast), x, y) = 1 - y * y

differentiated(::Union{typeof(relu),typeof(logistic),typeof(tanh_fast)}, x, y) = y

@operator HardSigmoid(X; alpha=0.2f0, beta=0.5f0) =
    elementwise(hardlogistic, X, oftypeof(X, alpha), oftypeof(X, beta))

hardlogistic(x, alpha, beta) = clip(alpha * x + beta, zero(x), one(x))
derivative(::typeof(hardlogistic), x, y, alpha, beta) =
    ifelse((y > 0) & (y < 1), alpha, zero(alpha))

@operator HardSwish(X) = elementwise(hardgated, X)

hardgate(x) = clip(x * oftype(x, 1 / 6) + oftype(x, 0.5), zero(x), one(x))
hardgated(x) = x * hardgate(x)
derivative(::typeof(hardgated), x, y) =
    ifelse(x <= -3, zero(x), ifelse(x >= 3, one(x), x * oftype(x, 1 / 3) + oftype(x, 0.5)))

@operator Swish(X; alpha=1.0f0) = elementwise(gated, X, oftypeof(X, alpha))

@inline gated(x, alpha) = x * logistic(alpha * x)

@inline function derivative(::typeof(gated), x, y, alpha)
    gate = logistic(alpha * x)
    return gate + alpha * x * gate * (1 - gate)
end

@operator SwiGLU(A, B; alpha=1.0f0) = Mul(Swish(A; alpha), B)

@operator Mish(X) = elementwise(softgated, X)

@inline softgated(x) = x * softgate(x)

"""
    softgate(x)

`tanh(log(1 + exp(x)))`, as n / (n + 2) for n = exp(x) (exp(x) + 2), with the fraction extended by
exp(-2x) where `x` is positive.
"""
@inline function softgate(x)
    t = exponential(-abs(x))
    over = ifelse(x < 0, t * (t + 2), 1 + 2t)
    return over / (over + ifelse(x < 0, 2 * one(t), 2 * t * t))
end

@inline function derivative(::typeof(softgated), x, y)
    gate = softgate(x)
    return gate + x * (1 - gate * gate) * logistic(x)
end

@operator function Gelu(X; approximate="none")
    approximate == "tanh" && return elementwise(tanhgated, X)
    approximate == "none" || unsupported("approximate ", repr(approximate))
    return elementwise(gaussiangated, X)
end

@inline gaussiangate(x) = (1 + erf(x * oftype(x, sqrt(0.5)))) * oftype(x, 0.5)
@inline gaussiangated(x) = x * gaussiangate(x)
@inline derivative(::typeof(gaussiangated), x, y) =
    gaussiangate(x) + x * exponential(x * x * oftype(x, -0.5)) * oftype(x, 1 / sqrt(2pi))

@inline tanhgate(x) =
    tanh_fast(oftype(x, sqrt(2 / pi)) * (x + oftype(x, 0.044715) * x * x * x))
@inline tanhgated(x) = x * (1 + tanhgate(x)) * oftype(x, 0.5)

@inline function derivative(::typeof(tanhgated), x, y)
    gate = tanhgate(x)
    slope = oftype(x, sqrt(2 / pi)) * (1 + oftype(x, 3 * 0.044715) * x * x)
    return (1 + gate + x * (1 - gate * gate) * slope) * oftype(x, 0.5)
end

@operator Softplus(X) = elementwise(softplus, X)

derivative(::typeof(softplus), x, y) = logistic(x)

@operator Softsign(input) = elementwise(softsign, input)

derivative(::typeof(softsign), x, y) = inv((1 + abs(x))^2)

@operator function Shrink(input; bias=0.0f0, lambd=0.5f0)
    eltype(input) <: Integer && return array(cast.(eltype(input), shrunk.(input, lambd, bias)))
    return elementwise(shrunk, input, oftypeof(input, lambd), oftypeof(input, bias))
end

shrunk(x, lambd, bias) = ifelse(x < -lambd, x + bias, ifelse(x > lambd, x - bias, zero(x - bias)))
derivative(::typeof(shrunk), x, y, lambd, bias) = (x < -lambd) | (x > lambd)

# Softmax and its kin: until operator set 13 over all axes from `axis` on, then over `axis` alone.

@operator function Softmax(input; axis=nothing, opset=13)
    return alongaxis(eltype(input) == Float16 ? halfsoftmax : softmax, input, axis, opset)
end

@operator function LogSoftmax(input; axis=nothing, opset=13)
    return narrowto(input, alongaxis(logsoftmax, widefloat(input), axis, opset))
end

@nondifferentiable Hardmax(input; axis=nothing, opset=13) = alongaxis(hardmax, input, axis, opset)

function alongaxis(f::F, x, axis, opset) where {F}
    isempty(x) && return copy(x)
    opset < 13 || return f(x; dims=dimension(something(axis, -1), x))
    first = something(axis, 1)
    inner = ndims(x) - (first < 0 ? first + ndims(x) : first)
    return reshape(f(reshape(x, prod(size(x)[1:inner]), :); dims=1), size(x))
end

"""
    halfsoftmax(x; dims)

Softmax of half precision, rounded at every step, with sums in single precision. NNlib's maximum of
half precision is one that LLVM can't compile for processors with AVX-512, and stops the process.
"""
function halfsoftmax(x; dims)
    y = exp.(x .- maximum(x; dims))
    return y ./ narrowto(x, sum(widefloat(y); dims))
end

function ChainRulesCore.rrule(::typeof(halfsoftmax), x; dims)
    y = halfsoftmax(x; dims)
    function halfsoftmax_pullback(dy)
        weighted = unthunk(dy) .* y
        return NoTangent(), weighted .- y .* narrowto(y, sum(widefloat(weighted); dims))
    end
    return y, halfsoftmax_pullback
end

hardmax(x; dims) = onehot.(eltype(x), extremeindex(>, x, dims, false), indicesalong(x, dims))

onehot(::Type{T}, found, index) where {T} = T(found == index)
