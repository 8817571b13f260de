# Networks as a Flux user writes them, for the tests of `from_flux`.

module Chains

using Flux
using Flux: AdaptiveMaxPool, AdaptiveMeanPool, Bilinear, CrossCor, DepthwiseConv, PairwiseFusion,
    PixelShuffle, Scale

"A block of one's own, which OnnxJL knows nothing of."
struct Gated
    conv
    scale
end
Flux.@layer Gated
(g::Gated)(x) = relu.(g.conv(x) .* g.scale .+ x)

"Running statistics and scales that differ from their first values."
function stirred(model)
    for layer in Flux.modules(model)
        layer isa Union{BatchNorm,InstanceNorm,GroupNorm} || continue
        layer.γ === nothing || (layer.γ .= 0.5f0 .+ rand(Float32, layer.chs))
        layer.β === nothing || (layer.β .= randn(Float32, layer.chs))
        layer.μ === nothing || (layer.μ .= randn(Float32, layer.chs) ./ 4)
        layer.σ² === nothing || (layer.σ² .= 0.5f0 .+ rand(Float32, layer.chs))
    end
    return Flux.testmode!(model)
end

classifier() = Chain(
    Conv((3, 3), 1 => 4, relu; pad=(1, 2), bias=randn(Float32, 4)),
    BatchNorm(4, swish),
    MaxPool((2, 2)),
    SkipConnection(Chain(conv=Conv((3, 5), 4 => 4; pad=SamePad()), norm=BatchNorm(4, relu)), +),
    x -> cat(x, 2 .* x; dims=3),
    GlobalMeanPool(),
    Flux.flatten,
    Dropout(0.5),
    Dense(8 => 3, gelu),
    softmax,
)

signal() = Chain(
    Conv((3,), 2 => 4, gelu; stride=2),
    ConvTranspose((4,), 4 => 6, mish; stride=2, pad=1, outpad=1),
    DepthwiseConv((3,), 6 => 12),
    GroupNorm(12, 3, relu),
    LayerNorm((7, 12), tanh),
    MeanPool((2,); pad=1),
)

branches() = Chain(
    InstanceNorm(3),
    InstanceNorm(3, tanh; affine=true),
    InstanceNorm(3; affine=true, track_stats=true),
    Parallel(vcat, Flux.flatten, Chain(AdaptiveMeanPool((2, 3)), Flux.flatten)),
    Maxout(() -> Dense(90 => 4), 3),
    Scale(4, elu),
    LayerNorm(4; affine=false),
    PairwiseFusion(+, Dense(4 => 4), Dense(4 => 4)),
    Bilinear((4, 4) => 5, tanh),
    Parallel(tuple, Dense(5 => 2; bias=false), identity),
)

recurrent() = Chain(
    LSTM(3 => 5), Dense(5 => 4, sigmoid), GRU(4 => 6), RNN(6 => 2, relu),
    Flux.Recurrence(Flux.LSTMCell(2 => 3)),
)

words() = Chain(Flux.Embedding(9 => 4), GRU(4 => 3; bias=false), LayerNorm(3))

pictures() = Chain(
    Upsample(2),
    PixelShuffle(2),
    Upsample(:bilinear; scale=2),
    x -> 2 .* leakyrelu.(x, 0.2f0) .+ x .^ 2 .- 1,
    CrossCor((2, 2), 1 => 2, Base.Fix2(leakyrelu, 0.3f0)),
    AdaptiveMaxPool((3, 2)),
    Conv((1, 1), 2 => 2; groups=2),
    relu6,
)

"A transformer's encoder layer."
struct Encoder
    attention
    norm
    feedforward
    mask
end
Flux.@layer Encoder trainable=(attention, norm, feedforward)
function (e::Encoder)(x)
    y = x .+ first(e.attention(x; mask=e.mask))
    return y .+ e.feedforward(e.norm(y))
end

attention() = Chain(
    first=Encoder(
        Flux.MultiHeadAttention(6; nheads=2, bias=true), LayerNorm(6),
        Chain(Dense(6 => 8, gelu), Dense(8 => 6)), Flux.NNlib.make_causal_mask(ones(1, 5)),
    ),
    second=Flux.MultiHeadAttention(6 => (4, 8) => 3; nheads=4),
    output=first,
)

own() = Chain(gated=Gated(Conv((1, 1), 2 => 2), rand(Float32, 1, 1, 2)), flat=Flux.flatten)

tied() = (layer = Dense(4 => 4, relu; bias=false); Chain(layer, layer, Dense(4 => 2)))

pair() = Parallel(+; a=Dense(2 => 3), b=Chain(Dense(4 => 3, relu6), Dense(3 => 3, selu)))

double() = f64(Chain(Dense(2 => 3, hardtanh), Dense(3 => 2)))

function activated(name)
    home = name in ("exp", "abs2") ? Base : Flux.NNlib
    return Dense(3 => 4, getproperty(home, Symbol(name)))
end

# What isn't to be had.
anonymous() = Chain(a=Dense(2 => 2), b=Chain(Dense(2 => 2), x -> sum(x; dims=1)))
activation() = Chain(Dense(2 => 2, x -> x + 1))
product() = Chain(a=Dense(2 => 2), b=Parallel((a, b) -> a * b, identity, Dense(2 => 2)))
stateful() = Chain(LSTM(2 => 2; return_state=true))
untracked() = Chain(BatchNorm(2; track_stats=false))
misfit() = Chain(a=Dense(2 => 2), b=Dense(3 => 3))

"One of a ResNet's blocks: two convolutions and what leads past them."
function block(from, to, stride=1)
    path = Chain(
        Conv((3, 3), from => to; pad=1, stride, bias=false), BatchNorm(to, relu),
        Conv((3, 3), to => to; pad=1, bias=false), BatchNorm(to),
    )
    stride == 1 && return Chain(SkipConnection(path, +), relu)
    past = Chain(Conv((1, 1), from => to; stride, bias=false), BatchNorm(to))
    return Chain(Parallel(+, path, past), relu)
end

resnet18() = Chain(
    Conv((7, 7), 3 => 64; pad=3, stride=2, bias=false), BatchNorm(64, relu),
    MaxPool((3, 3); pad=1, stride=2),
    block(64, 64), block(64, 64), block(64, 128, 2), block(128, 128),
    block(128, 256, 2), block(256, 256), block(256, 512, 2), block(512, 512),
    GlobalMeanPool(), Flux.flatten, Dense(512 => 1000),
)

"The features of VGG-11 with batch normalization, and a smaller classifier."
function vgg11(width=64)
    layers = Any[]
    from = 3
    for to in (64, :pool, 128, :pool, 256, 256, :pool, 512, 512, :pool, 512, 512, :pool)
        if to === :pool
            push!(layers, MaxPool((2, 2)))
        else
            push!(layers, Conv((3, 3), from => to; pad=1), BatchNorm(to, relu))
            from = to
        end
    end
    classifier = (
        Flux.flatten, Dense(512 => width, relu), Dropout(0.5), Dense(width => width, relu),
        Dropout(0.5), Dense(width => 10),
    )
    return Chain(layers..., classifier...)
end

"All arrays that a model has, trained or not, are those of another one from now on."
function take!(model, other)
    foreach((x, y) -> x .= y, Flux.trainables(model), Flux.trainables(other))
    norms(m) = filter(layer -> layer isa BatchNorm, collect(Any, Flux.modules(m)))
    for (a, b) in zip(norms(model), norms(other))
        a.μ .= b.μ
        a.σ² .= b.σ²
    end
    return Flux.testmode!(model)
end

"The sizes of the parameter arrays, in their order."
sizes(model) = [collect(size(x)) for x in Flux.trainables(model)]
same(a, b) = all(splat(isequal), zip(Flux.trainables(a), Flux.trainables(b)))
shared(a, b) = all(splat(===), zip(Flux.trainables(a), Flux.trainables(b)))

"A change in place."
scale!(graph, name, factor) = (graph[name].weight .*= factor; nothing)

# Layers to put into a network from Python, which has no pairs.
conv(kernel, from, to, f=identity; options...) = Conv(kernel, from => to, f; options...)
dense(from, to, f=identity; options...) = Dense(from => to, f; options...)
testing(layer) = Flux.testmode!(layer)

end
