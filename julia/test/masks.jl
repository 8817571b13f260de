# Masks: what they set to zero, in which layout, and that it stays zero.

using Flux: Flux, fmap
using Optimisers: Optimisers
using OnnxJL: Edits, FluxGraph, Network, Node, RULES, addproducts!, holdzeros!, mask!, maskedcopy,
    network, prune, rule, startstate, step!

"A convolution, a product, a product with a free weight: all three forms that a tensor can have."
function layered()
    weights(sizes...) = reshape(1 .+ sin.(Float32.(1:prod(sizes))), sizes)
    tensors = Dict{String,AbstractArray}(
        "c.weight" => weights(2, 3, 2, 4), "f.weight" => weights(4, 3), "w" => weights(5, 3),
        "free" => weights(2, 5),
    )
    nodes = [
        Node("c", "Conv", "", ["x", "c.weight"], ["a"]),
        Node("p", "GlobalAveragePool", "", ["a"], ["g"]),
        Node("q", "Flatten", "", ["g"], ["h"]),
        Node("f", "Gemm", "", ["h", "f.weight"], ["i"], Dict{Symbol,Any}(:transB => 1)),
        Node("m", "MatMul", "", ["i", "w"], ["j"]),
        Node("n", "Gemm", "", ["j", "free"], ["y"], Dict{Symbol,Any}(:alpha => 0.5f0)),
    ]
    return FluxGraph(Network(nodes, tensors, ["x"], ["y"], Dict("" => 17)))
end

const PICTURES = reshape(cos.(Float32.(1:(4 * 5 * 2 * 6))), 4, 5, 2, 6)
slope(graph) = only(Flux.gradient(g -> sum(abs2, g(PICTURES)), graph))

"A mask of about half of a tensor's elements, with no symmetry."
masks(graph) = Dict(
    name => reshape([isodd(i * i ÷ 3) for i in eachindex(vec(x))], size(x))
    for (name, x) in network(graph).tensors
)

tensors(graph) = network(graph).tensors

@testset "a mask has the layout of the tensor" begin
    graph = layered()
    before = deepcopy(tensors(graph))
    given = masks(graph)
    @test mask!(graph, given...) === graph
    for (name, mask) in given
        @test tensors(graph)[name] == ifelse.(mask, before[name], 0)
        @test graph.masks[name] == mask
    end
    mask!(graph, "w" => .!given["w"])
    @test iszero(tensors(graph)["w"])
    @test graph.masks["w"] == .!given["w"]
end

@testset "masks that don't fit" begin
    graph = layered()
    before = deepcopy(tensors(graph))
    @test_throws "'f.weight' has the size (4, 3) in Julia's order, its mask (3, 4)" mask!(
        graph, "w" => falses(5, 3), "f.weight" => trues(3, 4)
    )
    @test_throws "no trainable tensor is called 'v'" mask!(graph, "v" => trues(3))
    @test tensors(graph) == before
    @test isempty(graph.masks)
end

@testset "$name leaves what is masked at zero" for name in keys(RULES)
    graph = layered()
    state = startstate(rule(name, 1e-2, 0.01), graph)
    # What the rule remembers of the time before wants to move them.
    for _ in 1:3
        step!(state, graph, slope(graph))
    end
    given = masks(graph)
    mask!(graph, given...)
    before = deepcopy(tensors(graph))
    for _ in 1:3
        step!(state, graph, slope(graph))
    end
    for (tensor, mask) in given
        @test all(iszero, tensors(graph)[tensor][.!mask])
        @test any(tensors(graph)[tensor][mask] .!= before[tensor][mask])
    end
end

@testset "a loop of one's own" begin
    graph = layered()
    given = masks(graph)
    mask!(graph, given...)
    state = Flux.setup(Optimisers.Momentum(1e-2), graph)
    Flux.update!(state, graph, slope(graph))
    @test any(!iszero, tensors(graph)["w"][.!given["w"]])
    mask!(graph)
    @test all(iszero, tensors(graph)["w"][.!given["w"]])
end

@testset "copies have masks of their own" begin
    graph = layered()
    mask!(graph, masks(graph)...)
    copied = fmap(x -> x isa AbstractArray ? copy(x) : x, graph)
    for other in (copied, Flux.f64(graph), deepcopy(graph))
        @test other.masks == graph.masks
        mask!(other, "w" => falses(5, 3))
        @test graph.masks["w"] == masks(graph)["w"]
    end
end

@testset "pruning cuts masks" begin
    graph = layered()
    given = masks(graph)
    mask!(graph, given...)
    kept = Dict("c.weight" => Dict(0 => [0, 2]), "f.weight" => Dict(1 => [0, 2]))
    small = prune(graph, Edits(; kept))
    @test small.masks["c.weight"] == given["c.weight"][:, :, :, [1, 3]]
    @test small.masks["f.weight"] == given["f.weight"][[1, 3], :]
    @test small.masks["w"] == given["w"]
    @test tensors(small)["c.weight"] == tensors(graph)["c.weight"][:, :, :, [1, 3]]
end

@testset "zeros that are there become masks" begin
    graph = layered()
    given = masks(graph)
    mask!(graph, given...)
    other = FluxGraph(network(graph))
    @test isempty(other.masks)
    @test holdzeros!(other, ["w", "c.weight"]) === other
    @test other.masks == Dict(name => given[name] for name in ("w", "c.weight"))
    copied = maskedcopy(layered(), Dict(name => tensors(graph)[name] for name in keys(given)), :it)
    @test copied.masks == given
    @test tensors(copied) == tensors(graph)
    @test copied.program.origin === :it
end

@testset "products of weights and gradients" begin
    graph = layered()
    Δ = OnnxJL.gradients(graph, slope(graph))
    sums = addproducts!(Dict(), graph, slope(graph))
    addproducts!(sums, graph, slope(graph))
    for (name, x) in tensors(graph)
        @test sums[name] ≈ 2 .* x .* Δ[name]
    end
end
