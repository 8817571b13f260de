# Losses of outputs and targets, averaged over a batch. Arrays have ONNX's dimensions reversed:
# classes are dimension `ndims - 1`, samples the last one.

using NNlib: logsoftmax, logsigmoid
using Statistics: mean

"Name → function `loss(output, target)`."
const LOSSES = Dict{String,Function}()

"""
    crossentropy(output, target)

`mean(-log(softmax(output))[target])` over samples and positions: `output` are logits, `target` is
the class of each (from 0), or a probability for every class.
"""
function crossentropy(output, target)
    d = classdimension(output)
    scores = logsoftmax(output; dims=d)
    return -sum(distribution(output, target, d) .* scores) / (length(output) ÷ size(output, d))
end

classdimension(x) = max(ndims(x) - 1, 1)

distribution(output, target::AbstractArray{<:AbstractFloat}, d) =
    (checksize(output, target); target)

function distribution(output, target::AbstractArray{<:Integer}, d)
    places = size(output)[setdiff(1:ndims(output), d)]
    length(target) == prod(places) || throw(DimensionMismatch(
        "there are $(length(target)) labels for outputs of $(prod(places)) positions"
    ))
    all(t -> 0 <= t < size(output, d), target) || throw(ArgumentError(
        "a label isn't one of the $(size(output, d)) classes, which count from 0"
    ))
    labels = reshape(target, ntuple(i -> i == d ? 1 : size(output, i), ndims(output)))
    classes = reshape(0:(size(output, d) - 1), ntuple(i -> i == d ? Colon() : 1, ndims(output)))
    return eltype(output).(labels .== classes)
end

ChainRulesCore.@non_differentiable distribution(::Any...)

function checksize(output, target)
    size(output) == size(target) || throw(DimensionMismatch(string(
        "the target's shape ", reverse(size(target)), " isn't the output's ", reverse(size(output))
    )))
end

ChainRulesCore.@non_differentiable checksize(::Any...)

"""
    mse(output, target)

`mean((output - target)²)`.
"""
mse(output, target) = (checksize(output, target); mean(abs2, output .- target))

"""
    mae(output, target)

`mean(|output - target|)`.
"""
mae(output, target) = (checksize(output, target); mean(abs, output .- target))

"""
    huber(output, target)

`mean(½d²)` where `d = |output - target|` is below 1, `d - ½` elsewhere.
"""
function huber(output, target)
    checksize(output, target)
    d = abs.(output .- target)
    return mean(ifelse.(d .< 1, d .^ 2 ./ 2, d .- oftype(zero(eltype(d)), 0.5)))
end

"""
    binarycrossentropy(output, target)

`mean(-t log σ(x) - (1 - t) log(1 - σ(x)))` of logits `x` and targets `t` in [0, 1].
"""
function binarycrossentropy(output, target)
    checksize(output, target)
    t = eltype(output).(target)
    return mean((1 .- t) .* output .- logsigmoid.(output))
end

merge!(LOSSES, Dict{String,Function}(
    "cross-entropy" => crossentropy,
    "mse" => mse,
    "mae" => mae,
    "huber" => huber,
    "binary-cross-entropy" => binarycrossentropy,
))

"""
    Pass(graph, inputs)

A forward pass that can be gone back: its outputs, and the way from their gradients to the graph's.
"""
struct Pass
    outputs::Tuple
    back::Any
end

"The pass of a graph on a list of inputs."
function startpass(graph, inputs)
    y, back = Zygote.pullback(g -> g(inputs...), graph)
    return Pass(y isa Tuple ? y : (y,), back)
end

"The gradient of the graph, from the gradients of the outputs."
backward(pass::Pass, Δ) =
    only(pass.back(length(pass.outputs) == 1 ? only(Δ) : Tuple(Δ)))

"""
    lossgradient(loss, pass, target) -> value, gradients

The value of `loss(outputs..., target)`, and its gradients with respect to the outputs.
"""
function lossgradient(loss, pass::Pass, target)
    value, back = Zygote.pullback((outputs...) -> loss(outputs..., target), pass.outputs...)
    return value, back(one(value))
end

"""
    distillation(output, teacher, temperature)

`T² mean(Σ p log(p / q))` over samples and positions, with `p = softmax(teacher / T)` and
`q = softmax(output / T)` over the classes. Source: Hinton, Vinyals and Dean 2015, section 2.
"""
function distillation(output, teacher, temperature)
    checksize(output, teacher)
    T, d = eltype(output)(temperature), classdimension(output)
    wanted = logsoftmax(teacher ./ T; dims=d)
    scores = logsoftmax(output ./ T; dims=d)
    places = length(output) ÷ size(output, d)
    return T^2 * sum(exp.(wanted) .* (wanted .- scores)) / places
end

"""
    distil(pass, value, Δ, teacher, temperature, weight) -> value, gradients

The mean of a loss (its `value`, and its gradients `Δ` with respect to the outputs) and of the
[`distillation`](@ref) of the first output, which has this `weight` of 1.
"""
function distil(pass::Pass, value, Δ, teacher, temperature, weight)
    y = first(pass.outputs)
    soft, back = Zygote.pullback(output -> distillation(output, teacher, temperature), y)
    w = eltype(y)(weight)
    hard = map(δ -> δ === nothing ? nothing : (1 - w) .* δ, Tuple(Δ))
    mixed = Zygote.accum(first(hard), w .* only(back(one(soft))))
    return (1 - weight) * value + weight * soft, (mixed, Base.tail(hard)...)
end
