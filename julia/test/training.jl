using Flux: Flux
using Optimisers: Optimisers
using OnnxJL: FluxGraph, Network, Node, RULES, learningrate, pack, restore!, rule, snapshot,
    startstate, step!, trainingmode!, unpack!

"Two Gemms with a BatchNormalization between, of fixed weights; Julia's order of dimensions."
function trained()
    weights(sizes...) = reshape(collect(range(-1.0f0, 1.0f0; length=prod(sizes))), sizes)
    tensors = Dict{String,AbstractArray}(
        "a.weight" => weights(3, 4), "a.bias" => weights(4),
        "n.weight" => ones(Float32, 4), "n.bias" => zeros(Float32, 4),
        "n.mean" => zeros(Float32, 4), "n.var" => ones(Float32, 4),
        "b.weight" => weights(4, 2), "b.bias" => weights(2),
    )
    nodes = [
        Node("a", "Gemm", "", ["x", "a.weight", "a.bias"], ["h"], Dict{Symbol,Any}(:transB => 1)),
        Node("n", "BatchNormalization", "", ["h", "n.weight", "n.bias", "n.mean", "n.var"], ["z"]),
        Node("b", "Gemm", "", ["z", "b.weight", "b.bias"], ["y"], Dict{Symbol,Any}(:transB => 1)),
    ]
    return FluxGraph(Network(nodes, tensors, ["x"], ["y"], Dict("" => 17)))
end

const INPUT = reshape(sin.(Float32.(1:15)), 3, 5)
slope(graph) = only(Flux.gradient(g -> sum(abs2, g(INPUT)) / 10, graph))
value(graph) = sum(abs2, graph(INPUT))

@testset "$name makes the loss smaller, and goes on from what was packed" for name in keys(RULES)
    graph, other = trained(), trained()
    options = (; clipnorm=true, clipvalue=0.5, keepzeros=true)
    made() = rule(name, 1e-3, 0.01; options...)
    @test learningrate(made()) == 1e-3
    states = startstate(made(), graph), startstate(made(), other)
    before = value(graph)
    for _ in 1:3
        step!(states[1], graph, slope(graph); rate=1e-3, clipnorm=1.0)
    end
    @test value(graph) < before
    @test iszero(graph["n"].β)
    restore!(other, snapshot(graph))
    unpack!(states[2], deepcopy(pack(states[1])))
    step!(states[1], graph, slope(graph); rate=1e-3, clipnorm=1.0)
    step!(states[2], other, slope(other); rate=1e-3, clipnorm=1.0)
    @test snapshot(other) == snapshot(graph)
end

@testset "what is frozen stays, and doesn't count for the norm" begin
    graph = trained()
    before = snapshot(graph["a"])
    Δ = slope(graph)
    state = startstate(rule("sgd", 0.1, nothing), graph, [1, 2])
    expected = sqrt(sum(abs2, Δ.layers[3].weight) + sum(abs2, Δ.layers[3].bias))
    bias = graph["b"].bias .- 0.1f0 .* Δ.layers[3].bias
    @test step!(state, graph, Δ) ≈ expected
    @test snapshot(graph["a"]) == before
    @test graph["b"].bias ≈ bias
end

@testset "frozen layers stay in test mode" begin
    graph = trained()
    trainingmode!(graph, true)
    @test graph["n"].active
    trainingmode!(graph, true; frozen=[2])
    @test !graph["n"].active
end

@testset "no step along a gradient that isn't finite" begin
    graph = trained()
    before = snapshot(graph)
    state = startstate(rule("adam", 0.1, nothing), graph)
    Δ = slope(graph)
    Δ.layers[1].weight .= NaN32
    @test isnan(step!(state, graph, Δ))
    @test snapshot(graph) == before
end

@testset "rules of one's own" begin
    mixed = rule(Optimisers.MixedPrecision(Float64, Optimisers.AdamW(0.1)), 0.5, 0.25; clipvalue=1.0)
    @test mixed isa Optimisers.MixedPrecision{Float64}
    @test learningrate(mixed) == 0.5
    @test last(mixed.rule.opts).lambda == 0.25
    @test learningrate(Optimisers.AdaDelta()) === nothing
end

@testset "what belongs to something else" begin
    graph = trained()
    adam, sgd = (startstate(rule(name, 0.1, nothing), graph) for name in ("adam", "sgd"))
    @test_throws "another optimiser" unpack!(sgd, pack(adam))
    @test_throws "another optimiser" unpack!(adam, pack(sgd))
    @test_throws "another network" restore!(graph, snapshot(graph["a"]))
    @test_throws "another network" restore!(graph, map(x -> [x; x], map(vec, snapshot(graph))))
end
