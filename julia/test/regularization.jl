using OnnxJL: FluxGraph, Network, Node, penalize!, penalty, rule, snapshot, startstate, step!

"A Conv, and a Gemm on what it makes: 2 channels, of which each is a unit."
function coupled()
    weights(sizes...) = reshape(collect(range(-1.0f0, 1.5f0; length=prod(sizes))), sizes)
    tensors = Dict{String,AbstractArray}(
        "a.weight" => weights(3, 1, 2), "a.bias" => weights(2), "b.weight" => weights(2, 4),
    )
    nodes = [
        Node("a", "Conv", "", ["x", "a.weight", "a.bias"], ["h"], Dict{Symbol,Any}()),
        Node("m", "GlobalAveragePool", "", ["h"], ["i"]),
        Node("f", "Flatten", "", ["i"], ["j"], Dict{Symbol,Any}(:axis => 1)),
        Node("b", "Gemm", "", ["j", "b.weight"], ["y"], Dict{Symbol,Any}(:transB => 1)),
    ]
    return FluxGraph(Network(nodes, tensors, ["x"], ["y"], Dict("" => 17)))
end

const MEMBERS = [("a.weight", 0, [0 1]), ("a.bias", 0, [0 1]), ("b.weight", 1, [0 1])]

"The parts of a unit."
parts(graph, unit) =
    [graph["a"].weight[:, :, unit], graph["a"].bias[[unit]], graph["b"].weight[:, unit]]

lengthof(graph, unit) = sqrt(sum(x -> sum(abs2, x), parts(graph, unit)))

@testset "a step of the sum of norms takes as much from each unit's norm" begin
    graph = coupled()
    before = [lengthof(graph, unit) for unit in 1:2]
    directions = [parts(graph, unit) ./ before[unit] for unit in 1:2]
    penalize!(penalty(graph, [(MEMBERS, [true, true])]), 0.1; factor=0.5, norms=true)
    @test [lengthof(graph, unit) for unit in 1:2] ≈ before .- 0.05
    @test all(parts(graph, u) ./ lengthof(graph, u) ≈ directions[u] for u in 1:2)
end

@testset "a step of the squares shrinks the chosen units in proportion" begin
    graph, other = coupled(), coupled()
    penalize!(penalty(graph, [(MEMBERS, [false, true])]), 0.1; factor=0.5, norms=false)
    @test parts(graph, 1) == parts(other, 1)
    @test parts(graph, 2) ≈ 0.95 .* parts(other, 2)
end

@testset "units of two groups that share weights add up" begin
    graph, other = coupled(), coupled()
    both = [([("b.weight", 1, [0 1])], [true, true]), ([("b.weight", 0, [0 1 2 3])], trues(4))]
    penalize!(penalty(graph, both), 0.1; factor=0.5, norms=true)
    w = other["b"].weight
    expected = w .- 0.05f0 .* (w ./ sqrt.(sum(abs2, w; dims=1)) .+ w ./ sqrt.(sum(abs2, w; dims=2)))
    @test graph["b"].weight ≈ expected
end

@testset "a step goes to zero, and not beyond" begin
    graph = coupled()
    penalize!(penalty(graph, [(MEMBERS, [true, true])]), 1.0; factor=1e6, norms=true)
    @test all(iszero, reduce(vcat, vec.(parts(graph, 1))))
    penalize!(penalty(graph, [(MEMBERS, [true, true])]), 1.0; factor=1e6, norms=true)
    @test all(iszero, reduce(vcat, vec.(parts(graph, 2))))
end

@testset "what is frozen, or not trained, isn't penalized" begin
    graph, other = coupled(), coupled()
    wanted = [([MEMBERS; ("none", 0, [0 1])], [true, true])]
    penalize!(penalty(graph, wanted, [1]), 0.1; factor=0.5, norms=false)
    @test graph["a"].weight == other["a"].weight
    @test graph["b"].weight ≈ 0.95 .* other["b"].weight
end

@testset "it is taken at the weights that the gradient is of, and not along one that isn't finite" begin
    graph, other = coupled(), coupled()
    x = reshape(sin.(Float32.(1:10)), 5, 1, 2)
    slope(g) = only(Zygote.gradient(g -> sum(abs2, g(x)), g))
    state(g) = startstate(rule("sgd", 0.1, nothing), g)
    made = penalty(graph, [(MEMBERS, [true, true])])
    Δ = slope(graph)
    step!(state(graph), graph, Δ; rate=0.1, penalty=made, factor=0.5, norms=false)
    penalized = 0.05f0 .* other["b"].weight
    step!(state(other), other, slope(other); rate=0.1)
    @test graph["b"].weight ≈ other["b"].weight .- penalized
    before = snapshot(graph)
    Δ.layers[1].weight .= NaN32
    step!(state(graph), graph, Δ; rate=0.1, penalty=made, factor=0.5, norms=false)
    @test snapshot(graph) == before
end
