# ResNet-50 as one writes it by hand in Flux: what the imported network is measured against.
#
#     julia benchmarks/handwritten.jl BATCH SIZE

using Flux, Statistics

"Two 1×1 convolutions around a 3×3 one, and the way past them."
function bottleneck(inputs, inside, outputs, stride)
    long = Chain(
        Conv((1, 1), inputs => inside; bias=false), BatchNorm(inside, relu),
        Conv((3, 3), inside => inside; stride, pad=1, bias=false), BatchNorm(inside, relu),
        Conv((1, 1), inside => outputs; bias=false), BatchNorm(outputs),
    )
    inputs == outputs && stride == 1 && return Chain(SkipConnection(long, +), x -> relu.(x))
    short = Chain(Conv((1, 1), inputs => outputs; stride, bias=false), BatchNorm(outputs))
    return Chain(Parallel(+, long, short), x -> relu.(x))
end

"ResNet-50, for images of any size."
function resnet50()
    layers = Any[
        Conv((7, 7), 3 => 64; stride=2, pad=3, bias=false), BatchNorm(64, relu),
        MaxPool((3, 3); stride=2, pad=1),
    ]
    inputs = 64
    for (stage, blocks) in enumerate((3, 4, 6, 3)), block in 1:blocks
        inside = 64 * 2^(stage - 1)
        stride = block == 1 && stage > 1 ? 2 : 1
        push!(layers, bottleneck(inputs, inside, 4inside, stride))
        inputs = 4inside
    end
    return Chain(layers..., GlobalMeanPool(), Flux.flatten, Dense(2048 => 1000))
end

"Seconds of the first call, and the median of five later ones."
function seconds(f)
    first = @elapsed f()
    return first, median([@elapsed(f()) for _ in 1:5])
end

function measure(batch, size)
    start = time()
    model = Flux.testmode!(resnet50())
    x = rand(Float32, size, size, 3, batch)
    y = Flux.onehotbatch(mod.(0:batch-1, 1000), 0:999)
    model(x)
    ready = time() - start
    forward = seconds(() -> model(x))
    Flux.trainmode!(model)
    gradient = seconds(() -> Flux.withgradient(m -> Flux.logitcrossentropy(m(x), y), model))
    _, (first,) = Flux.withgradient(m -> Flux.logitcrossentropy(m(x), y), model)
    state = Flux.setup(Adam(1.0f-4), model)
    update = seconds(() -> Flux.update!(state, model, first))
    println("""{"ready": $ready, "forward": $(collect(forward)), "gradient": \
$(collect(gradient)), "update": $(collect(update)), "peak": $(Sys.maxrss())}""")
end

"""
Median seconds of forward passes and of gradients of several models, taken in turn, so that what
else the machine does slows all alike.
"""
function turns(models, batch, size, count)
    x = rand(Float32, size, size, 3, batch)
    y = Flux.onehotbatch(mod.(0:batch-1, 1000), 0:999)
    gradient(model) = Flux.withgradient(m -> Flux.logitcrossentropy(m(x), y), model)
    forward = inturn([() -> Flux.testmode!(model)(x) for model in models], count)
    backward = inturn([() -> gradient(Flux.trainmode!(model)) for model in models], count)
    return forward, backward
end

function inturn(calls, count)
    foreach(call -> call(), calls)
    seconds = [@elapsed(call()) for call in calls, _ in 1:count]
    return vec(median(seconds; dims=2))
end

abspath(PROGRAM_FILE) == @__FILE__() && measure(parse.(Int, ARGS)...)
