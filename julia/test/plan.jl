# Plans: what goes out of a network, by hand.

using OnnxJL: Edits, FluxGraph, Network, Node, network, prune

"A branch from `x` to the second node that makes `d`, and what reads it, with a graph of its own."
function residual()
    inner = Network(
        [Node("i", "Add", "", ["w9", "e"], ["o"])], Dict{String,AbstractArray}(), String[], ["o"],
        Dict("" => 17),
    )
    nodes = [
        Node("a", "Gemm", "", ["x", "w1"], ["a"]),
        Node("", "Constant", "", String[], ["k"]),
        Node("b", "Split", "", ["a", "sizes"], ["b1", "b2"]),
        Node("c", "Mul", "", ["b2", "k"], ["c"]),
        Node("d", "Add", "", ["c", "x"], ["d"]),
        Node("e", "Gemm", "", ["d", "w3"], ["e"]),
        Node("f", "If", "", ["e"], ["y"], Dict{Symbol,Any}(:then_branch => inner)),
    ]
    tensors = Dict{String,AbstractArray}(
        "w1" => rand(3, 3), "sizes" => [1, 2], "w9" => rand(3), "w3" => rand(2, 3),
    )
    return Network(nodes, tensors, ["x"], ["y"], Dict("" => 17))
end

@testset "a block goes with the tensors that only it uses" begin
    whole = residual()
    small = prune(whole, Edits(;
        removed_nodes=["a", "k", "b", "c", "d"],
        stand_ins=Dict("d" => 1),
        kept=Dict("w1" => Dict(0 => [0])),
    ))
    @test [node.name for node in small.nodes] == ["e", "f"]
    @test first(small.nodes).inputs == ["x", "w3"]
    @test Set(keys(small.tensors)) == Set(["w9", "w3"])
    @test small.trainable == Set(["w9", "w3"])
    @test length(whole.nodes) == 7 && length(whole.tensors) == 4
end

@testset "the first input stands in where nothing else is told" begin
    small = prune(residual(), Edits(; removed_nodes=["e"]))
    @test last(small.nodes).inputs == ["d"]
    @test Set(keys(small.tensors)) == Set(["w1", "sizes", "w9"])
    same = prune(residual(), Edits())
    @test length(same.nodes) == 7 && length(same.tensors) == 4
end

@testset "a network without its block is the rest" begin
    tensors = Dict{String,AbstractArray}("w1" => rand(3, 3), "w2" => rand(2, 3))
    graph = FluxGraph(Network(
        [
            Node("a", "MatMul", "", ["x", "w1"], ["a"]),
            Node("r", "Relu", "", ["a"], ["r"]),
            Node("d", "Add", "", ["r", "x"], ["d"]),
            Node("e", "MatMul", "", ["d", "w2"], ["y"]),
        ],
        tensors, ["x"], ["y"], Dict("" => 17),
    ))
    x = rand(3, 4)
    w1, w2 = tensors["w1"], tensors["w2"]
    @test graph(x) ≈ w2 * (max.(w1 * x, 0) + x)
    small = prune(graph, Edits(; removed_nodes=["a", "r", "d"], stand_ins=Dict("d" => 1)))
    @test small(x) ≈ w2 * x
    @test collect(keys(network(small).tensors)) == ["w2"]
end
