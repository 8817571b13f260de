# Models written by hand as networks, and networks as plain Flux.

using Flux: Flux, BatchNorm, Chain, Conv, Dense, Dropout, GlobalMeanPool, LayerNorm, LSTM, MaxPool,
    Maxout, Parallel, SkipConnection, relu, swish
using OnnxJL: OnnxJL, FluxGraph, Network, Node, UnsupportedOperator, network

"A layer that says its nodes itself."
struct Doubled
    weight
end
Flux.@layer Doubled
(layer::Doubled)(x::AbstractArray) = 2 .* sort(layer.weight) .* x
OnnxJL.trace(layer::Doubled, x::OnnxJL.Traced) = OnnxJL.node(
    "Mul", (x, OnnxJL.tensor(x, "twice", 2 .* sort(layer.weight))), x.size
)

"A block of layers."
struct Block
    layers
    shift
end
Flux.@layer Block
(b::Block)(x) = relu.(b.layers[2](b.layers[1](x)) .+ b.shift) .+ x

residual() = Flux.testmode!(Chain(
    Conv((3, 3), 2 => 4, relu; pad=1),
    SkipConnection(Chain(Conv((3, 3), 4 => 4; pad=1), BatchNorm(4, swish)), +),
    Parallel(+, Conv((1, 1), 4 => 4), Chain(BatchNorm(4), Dropout(0.5))),
    x -> cat(x, x; dims=3),
    MaxPool((2, 2)), GlobalMeanPool(), Flux.flatten, Dense(8 => 3),
))

picture = sin.(reshape(1.0f0:256, 8, 8, 2, 2))

@testset "a model's layers and arrays" begin
    model = residual()
    graph = FluxGraph(model, (8, 8, 2, nothing))
    @test graph(picture) ≈ model(picture)
    @test graph["1"].weight === model[1].weight
    @test graph["2.2"].μ === model[2].layers[2].μ
    @test graph["8"].bias === model[8].bias
    found = network(graph)
    @test (found.inputs, found.outputs) == (["input"], ["output"])
    @test found.tensors["1.weight"] == reverse(model[1].weight; dims=(1, 2))
    @test Set(keys(found.tensors)) ⊇ ["1.bias", "2.1.weight", "3.1.weight", "3.2.1.running_var"]
end

@testset "a layer that is used twice stays one" begin
    dense = Dense(3 => 3)
    graph = FluxGraph(Chain(dense, relu, dense), (3, nothing))
    @test length(Flux.trainables(graph)) == 2
    @test graph["1"].weight === dense.weight
end

@testset "layers of one's own" begin
    block = Block([Dense(2 => 3), Dense(3 => 2)], [1.0f0, 2.0f0])
    model = Chain(a=Doubled([3.0f0, 1.0f0]), b=block)
    graph = FluxGraph(model, "x" => (2, nothing); output="y")
    x = Float32[1 2 3; 4 5 6]
    @test graph(x) ≈ model(x)
    @test Set(keys(network(graph).tensors)) == Set([
        "a.twice", "b.layers.1.weight", "b.layers.1.bias", "b.layers.2.weight",
        "b.layers.2.bias", "b.shift",
    ])
end

@testset "what ONNX has no form for" begin
    told(model, size) = try
        FluxGraph(model, size)
        ""
    catch e
        sprint(showerror, e)
    end
    @test occursin("layer 'b' (an anonymous function, chain.jl:", told(
        Chain(a=Dense(2 => 2), b=x -> sum(x; dims=1)), (2, nothing)
    ))
    @test occursin("layer '1.2' (Dense): ONNX has no operator for", told(
        Chain(Chain(Dense(2 => 2), Dense(2 => 2, x -> 3x))), (2, nothing)
    ))
    @test occursin("it needs the size of dimension 1, which isn't fixed", told(
        Chain(Flux.AdaptiveMeanPool((2, 2))), (nothing, 4, 1, 1)
    ))
    @test occursin("layer '1' (Dense): it wants 3 in dimension", told(Chain(Dense(3 => 2)), (2, 1)))
    @test_throws UnsupportedOperator FluxGraph(Chain(LSTM(2 => 2; return_state=true)), (2, 3))
end

@testset "a value may be several outputs, and an input one" begin
    dense = Dense(2 => 2)
    both = Chain(Parallel(tuple, dense, identity), Parallel(tuple, x -> x, identity))
    graph = FluxGraph(both, (2, 3))
    x = Float32[1 2 3; 4 5 6]
    @test graph(x) == (dense(x), x)
    twice = FluxGraph(Chain(dense, Parallel(tuple, identity, identity)), (2, 3))
    @test twice(x) == (dense(x), dense(x))
    @test network(twice).outputs == ["output_1", "output_2"]
end

@testset "a network as a part of another" begin
    part = FluxGraph(residual(), (8, 8, 2, nothing))
    model = Chain(features=part, head=Dense(3 => 2))
    graph = FluxGraph(model, (8, 8, 2, nothing))
    @test graph(picture) ≈ model.layers.head(part(picture))
    @test graph["features.1"].weight === part["1"].weight
    @test graph["head"].weight === model.layers.head.weight
end

@testset "layers that were changed are what is written" begin
    graph = FluxGraph(Chain(Dense(3 => 4), Dense(4 => 2, tanh)), (3, 5, nothing))
    x = sin.(reshape(1.0f0:30, 3, 5, 2))
    again() = FluxGraph(network(graph))
    operators() = [node.operator for node in network(graph).nodes]
    @test operators() == ["MatMul", "Add", "MatMul", "Add", "Tanh"]
    graph["2"] = Dense(4 => 2; bias=false)
    @test operators() == ["MatMul", "Add", "MatMul"]
    @test again()(x) ≈ graph(x)
    graph["1"] = Dense(3 => 6, relu; bias=false)
    graph["2"] = Dense(6 => 2)
    @test operators() == ["MatMul", "Relu", "MatMul", "Add"]
    @test again()(x) ≈ graph(x)
    graph["1"] = Dense(randn(Float32, 6, 3), randn(Float32, 6))
    @test again()(x) ≈ graph(x)
    # Whatever the function, and though the version of the operators is an old one.
    old = FluxGraph(Network(
        [Node("a", "Gemm", "", ["x", "a.weight"], ["y"])],
        Dict{String,AbstractArray}("a.weight" => ones(Float32, 4, 3)), ["x"], ["y"], Dict("" => 13),
    ))
    for f in (
        Flux.gelu_tanh, Flux.NNlib.gelu_erf, Flux.mish, Flux.hardswish, swish, Flux.selu,
        Flux.relu6, Flux.logσ, Base.Fix2(Flux.leakyrelu, 0.3f0),
    )
        old["a"] = Dense(sin.(reshape(1.0f0:12, 4, 3)), false, f)
        @test FluxGraph(network(old))(x[:, :, 1]) ≈ old(x[:, :, 1]) rtol = 1e-5
        @test "Gelu" ∉ [node.operator for node in network(old).nodes]
    end
    old["a"] = Dense(ones(Float32, 4, 3), false, x -> x + 1)
    @test_throws "ONNX has no operator for an anonymous function" network(old)
    old["a"] = MaxPool((2, 2))
    @test_throws "layer 'a' was a Gemm and is now MaxPool" network(old)
end

@testset "a network as a Chain" begin
    model = residual()
    graph = FluxGraph(model, (8, 8, 2, nothing))
    chain = Chain(graph)
    @test chain(picture) == graph(picture)
    @test all(splat(===), zip(Flux.trainables(chain), Flux.trainables(graph)))
    @test chain[1] === graph["1"]
    @test FluxGraph(chain, (8, 8, 2, nothing))(picture) ≈ model(picture)
    Δ = only(Zygote.gradient(m -> sum(abs2, m(picture)), chain))
    expected = only(Zygote.gradient(m -> sum(abs2, m(picture)), graph))
    @test Δ.layers[1].weight ≈ expected.layers[1].weight
end

@testset "what an operator needs of weights comes along" begin
    graph = FluxGraph(Chain(Flux.Scale(3), LSTM(3 => 2)), (3, 4, nothing))
    x = sin.(reshape(1.0f0:24, 3, 4, 2))
    chain = Chain(graph)
    @test chain(x) ≈ graph(x)
    @test length(Flux.trainables(chain)) == length(Flux.trainables(graph)) == 5
end

@testset "networks that are no Chain" begin
    graph(nodes, inputs, outputs) =
        FluxGraph(Network(nodes, Dict{String,AbstractArray}(), inputs, outputs, Dict("" => 17)))
    node(operator, inputs, output) = Node(output, operator, "", inputs, [output])
    # b is in two of the branches from x to d.
    crossed = graph(
        [
            node("Relu", ["x"], "a"), node("Tanh", ["x"], "b"), node("Mul", ["a", "b"], "c"),
            node("Sub", ["c", "b"], "d"),
        ],
        ["x"], ["d"],
    )
    @test_throws "node 'b' (Tanh) belongs to several branches" Chain(crossed)
    two = graph([node("Add", ["x", "y"], "z")], ["x", "y"], ["z"])
    @test two([1.0], [2.0]) == [3]
    @test_throws "the network has the inputs x, y" Chain(two)
    swapped = graph([node("Relu", ["x"], "a"), node("Sub", ["x", "a"], "d")], ["x"], ["d"])
    @test Chain(swapped)([-1.0, 2.0]) == [-1, 0]
end
