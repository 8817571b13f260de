# Operators that hold graphs: values by hand, gradients by central differences.

using OnnxJL: Network, Node, FluxGraph, network

body(nodes, inputs, outputs; tensors=Dict{String,AbstractArray}()) =
    Network(nodes, tensors, inputs, outputs, Dict{String,Int}())
whole(nodes, inputs, outputs; tensors=Dict{String,AbstractArray}()) =
    FluxGraph(Network(nodes, tensors, inputs, outputs, Dict("" => 18)))
node(operator, inputs, outputs, attributes...) =
    Node("", operator, "", inputs, outputs, Dict{Symbol,Any}(attributes...))

scale = Dict{String,AbstractArray}("w" => [2.0, 3.0])

@testset "If" begin
    graph = whole(
        [node(
            "If", ["c"], ["y"],
            :then_branch => body([node("Mul", ["x", "w"], ["a"])], String[], ["a"]; tensors=scale),
            :else_branch => body([node("Mul", ["x", "x"], ["b"])], String[], ["b"]),
        )],
        ["c", "x"], ["y"],
    )
    @test graph(fill(true), [1.0, 2.0]) == [2, 6]
    @test graph(fill(false), [1.0, 2.0]) == [1, 4]
    checkgradient(x -> graph(fill(true), x), [1.0, 2.0])
    checkgradient(x -> graph(fill(false), x), [1.0, 2.0])
    tree = only(Zygote.gradient(g -> sum(g(fill(true), [5.0, 7.0])), graph))
    @test OnnxJL.gradients(graph, tree) == Dict("y.then_branch.w" => [5, 7])
    moved = OnnxJL.moved(graph, Dict("y.then_branch.w" => [1.0, 1.0]), 1)
    @test moved(fill(true), [1.0, 2.0]) == [3, 8]
    written = network(moved).nodes[1].attributes[:then_branch]
    @test written.inputs == String[]
    @test written.tensors["w"] == [3, 4]
    @test FluxGraph(network(moved))(fill(true), [1.0, 2.0]) == [3, 8]
end

@testset "A graph without inputs" begin
    @test whole([node("Identity", ["w"], ["y"])], String[], ["y"]; tensors=scale)() == [2, 3]
end

# s ← s · w + x, and the new s as a row, while s is below a limit.
step = body(
    [
        node("Mul", ["s", "w"], ["sw"]),
        node("Add", ["sw", "x"], ["t"]),
        node("ReduceMax", ["t"], ["m"], :keepdims => 0),
        node("Less", ["m", "limit"], ["more"]),
        node("Identity", ["t"], ["row"]),
    ],
    ["i", "c", "s"], ["more", "t", "row"]; tensors=scale,
)

@testset "Loop" begin
    graph = whole(
        [node("Loop", ["n", "", "s"], ["y", "rows"], :body => step)],
        ["n", "s", "x", "limit"], ["y", "rows"],
    )
    s, x = [1.0, 1.0], [0.5, -0.5]
    y, rows = graph(fill(3), s, x, fill(100.0))
    @test rows == [2.5 5.5 11.5; 2.5 7 20.5]
    @test y == [11.5, 20.5]
    @test size(graph(fill(3), s, x, fill(5.0))[2]) == (2, 2)  # the condition ends it
    @test_throws OnnxJL.NodeError graph(fill(0), s, x, fill(5.0))
    joined(s, x) = (out = graph(fill(3), s, x, fill(100.0)); vcat(out[1], vec(out[2])))
    checkgradient(joined, s, x)
    checkgradient((s, x) -> graph(fill(3), s, x, fill(100.0))[1], s, x)
    loss(g) = sum(first(g(fill(3), s, x, fill(100.0))))
    found = OnnxJL.gradients(graph, only(Zygote.gradient(loss, graph)))["y.body.w"]
    w = [2.0, 3.0]
    @test found ≈ 3 .* w .^ 2 .* s .+ x .* (2 .* w .+ 1)
end

@testset "Scan" begin
    cell = body(
        [
            node("Add", ["s", "e"], ["t"]),
            node("Mul", ["t", "z"], ["row"]),
        ],
        ["s", "e"], ["t", "row"],
    )
    scan(attributes...) = whole(
        [node("Scan", ["s", "x"], ["y", "rows"], :body => cell, :num_scan_inputs => 1,
              attributes...)],
        ["s", "x", "z"], ["y", "rows"],
    )
    s, x, z = [0.0, 10.0], [1.0 2 3; 4 5 6], [1.0, 2.0]
    y, rows = scan()(s, x, z)
    @test y == [6, 25]
    @test rows == [1 3 6; 28 38 50]
    backwards = scan(
        :scan_input_axes => [1], :scan_input_directions => [1],
        :scan_output_axes => [-1], :scan_output_directions => [1],
    )
    y, rows = backwards(s, permutedims(x), z)
    @test y == [6, 25]
    @test rows == [6 50; 5 42; 3 32][[1, 2, 3], :]
    for graph in (scan(), backwards)
        sequence = graph === backwards ? permutedims(x) : x
        checkgradient(s, sequence, z) do s, x, z
            y, rows = graph(s, x, z)
            vcat(y, vec(rows))
        end
    end
end

@testset "a loop in a branch" begin
    inner = body(
        [node("Loop", ["n", "", "x"], ["u"], :body => body(
            [node("Mul", ["v", "x"], ["t"]), node("Identity", ["c"], ["d"])],
            ["i", "c", "v"], ["d", "t"],
        ))],
        String[], ["u"],
    )
    graph = whole(
        [node("If", ["c"], ["y"], :then_branch => inner,
              :else_branch => body([node("Neg", ["x"], ["m"])], String[], ["m"]))],
        ["c", "n", "x"], ["y"],
    )
    @test graph(fill(true), fill(2), [2.0]) == [8]
    checkgradient(x -> graph(fill(true), fill(2), x), [2.0, 3.0])
end
