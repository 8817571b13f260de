# The network as the Flux layer that it is: what Flux, Functors and Optimisers do with any layer.

using Flux: Flux, fmap
using Optimisers: Optimisers, Adam, Descent
using OnnxJL: FluxGraph, Network, Node, gradients, network

"A convolution, a normalization, a product with a free weight, and two outputs' sum; 2 × 4 images."
function convolutional()
    weights(sizes...) = reshape(sin.(Float32.(1:prod(sizes))), sizes)
    tensors = Dict{String,AbstractArray}(
        "c.weight" => weights(3, 3, 2, 4), "c.bias" => weights(4),
        "n.weight" => ones(Float32, 4), "n.bias" => zeros(Float32, 4),
        "n.mean" => zeros(Float32, 4), "n.var" => ones(Float32, 4),
        "scale" => weights(1, 1, 4),
        "f.weight" => weights(4, 3), "f.bias" => weights(3),
    )
    pads = Dict{Symbol,Any}(:pads => [1, 1, 1, 1])
    nodes = [
        Node("c", "Conv", "", ["x", "c.weight", "c.bias"], ["a"], pads),
        Node("n", "BatchNormalization", "", ["a", "n.weight", "n.bias", "n.mean", "n.var"], ["b"]),
        Node("r", "Relu", "", ["b"], ["d"]),
        Node("m", "Mul", "", ["d", "scale"], ["e"]),
        Node("p", "GlobalAveragePool", "", ["e"], ["g"]),
        Node("q", "Flatten", "", ["g"], ["h"]),
        Node("f", "Gemm", "", ["h", "f.weight", "f.bias"], ["y"], Dict{Symbol,Any}(:transB => 1)),
    ]
    return FluxGraph(Network(nodes, tensors, ["x"], ["y"], Dict("" => 17)))
end

const IMAGES = reshape(cos.(Float32.(1:(4 * 4 * 2 * 8))), 4, 4, 2, 8)
const CLASSES = Flux.onehotbatch(mod.(0:7, 3), 0:2)
crossentropy(model, x, y) = Flux.logitcrossentropy(model(x), y)

"The same network by hand, with the same arrays."
function byhand(graph)
    scale = only(graph.parameters)
    return Flux.Chain(
        graph["c"], graph["n"], x -> x .* scale, Flux.GlobalMeanPool(), Flux.flatten, graph["f"]
    )
end


@testset "the layers are Flux's, and what functions use is theirs too" begin
    graph = convolutional()
    @test graph["c"] isa Flux.Conv
    @test graph["n"] isa Flux.BatchNorm
    @test graph["f"] isa Flux.Dense
    @test length(Flux.trainables(graph)) == 7
    @test any(x -> x === only(graph.parameters), Flux.trainables(graph))
    @test graph(IMAGES) ≈ byhand(graph)(IMAGES)
end

@testset "Flux.gradient and withgradient" begin
    graph = convolutional()
    loss, (Δ,) = Flux.withgradient(m -> crossentropy(m, IMAGES, CLASSES), graph)
    @test loss == crossentropy(graph, IMAGES, CLASSES)
    expected, (Δc,) = Flux.withgradient(m -> crossentropy(m, IMAGES, CLASSES), byhand(graph))
    @test loss ≈ expected
    @test Δ.layers[1].weight ≈ Δc.layers[1].weight
    @test Δ.layers[2].γ ≈ Δc.layers[2].γ
    @test only(Δ.parameters) ≈ Δc.layers[3].scale
    @test last(Δ.layers).bias ≈ Δc.layers[6].bias
    @test Δ == only(Flux.gradient(m -> crossentropy(m, IMAGES, CLASSES), graph))
    # Of the inputs, too, and within a Chain.
    whole = Flux.Chain(graph, Flux.softmax)
    Δx, = Flux.gradient(x -> sum(abs2, whole(x)), IMAGES)
    @test Δx ≈ only(Flux.gradient(x -> sum(abs2, Flux.softmax(byhand(graph)(x))), IMAGES))
    Δm, = Flux.gradient(m -> sum(abs2, m(IMAGES)), whole)
    @test Set(keys(gradients(graph, Δm.layers[1]))) ==
          Set(["c.weight", "c.bias", "n.weight", "n.bias", "scale", "f.weight", "f.bias"])
end

@testset "Flux.setup and update!" begin
    graph, other = convolutional(), convolutional()
    state = Flux.setup(Descent(0.1), graph)
    Δ, = Flux.gradient(m -> crossentropy(m, IMAGES, CLASSES), graph)
    Flux.update!(state, graph, Δ)
    @test graph["c"].weight ≈ other["c"].weight .- 0.1f0 .* Δ.layers[1].weight
    @test only(graph.parameters) ≈ only(other.parameters) .- 0.1f0 .* only(Δ.parameters)
    @test graph["n"].μ == other["n"].μ
    # Without the bang, the network stays as it was.
    _, moved = Optimisers.update(Flux.setup(Descent(0.1), other), other, Δ)
    @test moved(IMAGES) ≈ graph(IMAGES)
    @test other["c"].weight == convolutional()["c"].weight
end

@testset "Optimisers.freeze! and thaw!" begin
    graph = convolutional()
    before = deepcopy(graph)
    state = Flux.setup(Adam(0.01), graph)
    Optimisers.freeze!(state.layers[1])
    Optimisers.freeze!(state.parameters)
    step!() = Flux.train!(crossentropy, graph, [(IMAGES, CLASSES)], state)
    step!()
    @test graph["c"].weight == before["c"].weight
    @test graph.parameters == before.parameters
    @test graph["f"].weight != before["f"].weight
    Optimisers.thaw!(state)
    step!()
    @test graph["c"].weight != before["c"].weight
    @test graph.parameters != before.parameters
end

@testset "Flux.train! makes the loss smaller" begin
    graph = convolutional()
    before = crossentropy(graph, IMAGES, CLASSES)
    state = Flux.setup(Adam(0.01), graph)
    Flux.train!(crossentropy, graph, [(IMAGES, CLASSES) for _ in 1:20], state)
    @test crossentropy(graph, IMAGES, CLASSES) < 0.9f0 * before
    @test network(graph).tensors["c.weight"] == reverse(graph["c"].weight; dims=(1, 2))
end

@testset "$f" for (f, T, rtol) in
        ((Flux.f64, Float64, 1e-6), (Flux.f32, Float32, 0), (Flux.f16, Float16, 1e-2))
    graph = convolutional()
    changed = f(graph)
    @test changed isa FluxGraph
    @test all(x -> eltype(x) == T, Flux.trainables(changed))
    @test eltype(changed["n"].μ) == T
    y = changed(T.(IMAGES))
    @test eltype(y) == T
    @test isapprox(y, graph(IMAGES); rtol)
    @test eltype(graph["c"].weight) == Float32
    @test eltype(first(values(network(changed).tensors))) == T
    @test Flux.f32(changed)["c"].weight ≈ graph["c"].weight rtol = rtol
end

@testset "gpu and cpu, where no GPU is" begin
    graph = convolutional()
    Flux.MLDataDevices.functional(Flux.MLDataDevices.CUDADevice) ||
        @test Flux.gpu(graph)(IMAGES) == graph(IMAGES)
    @test Flux.cpu(graph)(IMAGES) == graph(IMAGES)
end

@testset "trainmode! and testmode!" begin
    graph = convolutional()
    y = graph(IMAGES)
    @test Flux.trainmode!(graph) === graph
    @test graph["n"].active
    a = graph["c"](IMAGES)
    μ = vec(sum(a; dims=(1, 2, 4))) ./ (4 * 4 * 8)
    @test !(graph(IMAGES) ≈ y)
    @test graph["n"].μ ≈ 0.1f0 .* μ
    Flux.testmode!(graph)
    @test !graph["n"].active
    kept = copy(graph["n"].μ)
    @test graph(IMAGES) == graph(IMAGES)
    @test graph["n"].μ == kept
    Flux.testmode!(graph, :auto)
    @test graph["n"].active === nothing
end

@testset "Flux.state and loadmodel!" begin
    graph, other = convolutional(), convolutional()
    Flux.train!(crossentropy, graph, [(IMAGES, CLASSES)], Flux.setup(Adam(0.1), graph))
    graph["n"].μ .= 0.5f0
    state = Flux.state(graph)
    @test other(IMAGES) != graph(IMAGES)
    Flux.loadmodel!(other, state)
    @test other(IMAGES) == graph(IMAGES)
    @test other["n"].μ == graph["n"].μ
    @test other["c"].weight !== graph["c"].weight
    Flux.loadmodel!(other, convolutional())
    @test other(IMAGES) == convolutional()(IMAGES)
end

@testset "copies have arrays of their own" begin
    graph = convolutional()
    y = graph(IMAGES)
    for made in (deepcopy(graph), fmap(x -> x isa Array ? copy(x) : x, graph))
        @test made(IMAGES) == y
        foreach(x -> x .= 0, Flux.trainables(made))
        @test graph(IMAGES) == y
    end
    @test fmap(x -> x isa Array ? 2x : x, graph)["f"].bias == 2 .* graph["f"].bias
end

@testset "Flux.destructure" begin
    graph = convolutional()
    flat, rebuild = Flux.destructure(graph)
    @test length(flat) == sum(length, Flux.trainables(graph))
    @test rebuild(flat)(IMAGES) == graph(IMAGES)
    @test rebuild(2 .* flat)["f"].weight == 2 .* graph["f"].weight
    Δ, = Flux.gradient(v -> crossentropy(rebuild(v), IMAGES, CLASSES), flat)
    tree, = Flux.gradient(m -> crossentropy(m, IMAGES, CLASSES), graph)
    @test sort(Δ) ≈ sort(reduce(vcat, map(vec, collect(values(gradients(graph, tree))))))
end

@testset "tied weights stay one array" begin
    w = reshape(sin.(Float32.(1:9)), 3, 3)
    nodes = [
        Node("a", "MatMul", "", ["x", "w"], ["h"]), Node("b", "MatMul", "", ["h", "w"], ["y"])
    ]
    tensors = Dict{String,AbstractArray}("w" => w)
    graph = FluxGraph(Network(nodes, tensors, ["x"], ["y"], Dict("" => 17)))
    x = reshape(cos.(Float32.(1:6)), 3, 2)
    @test length(Flux.trainables(graph)) == 1
    state = Flux.setup(Descent(0.1), graph)
    Δ, = Flux.gradient(m -> sum(abs2, m(x)), graph)
    Flux.update!(state, graph, Δ)
    expected, = Flux.gradient(w -> sum(abs2, w * (w * x)), w)
    @test graph["a"].weight === graph["b"].weight
    @test graph["a"].weight ≈ w .- 0.1f0 .* expected
    for made in (Flux.f64(graph), deepcopy(graph))
        @test made["a"].weight === made["b"].weight
    end
end
