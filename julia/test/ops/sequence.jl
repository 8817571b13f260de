# Sequences and optional values.

using OnnxJL: FluxGraph, Network, Node
using OnnxJL.Operators: TensorSequence

a, b, c = [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]
three = Operators.SequenceConstruct(a, b, c)

@testset "values" begin
    @test three isa TensorSequence && three == [a, b, c]
    @test Operators.SequenceEmpty(; dtype=1) == TensorSequence()
    @test Operators.SequenceLength(three) == fill(3)
    @test Operators.SequenceAt(three, fill(1)) == b
    @test Operators.SequenceAt(three, fill(-1)) == c
    @test_throws ArgumentError Operators.SequenceAt(three, fill(3))
    @test Operators.SequenceInsert(three, [9.0]) == [a, b, c, [9.0]]
    @test Operators.SequenceInsert(three, [9.0], fill(0)) == [[9.0], a, b, c]
    @test Operators.SequenceInsert(three, [9.0], fill(-1)) == [a, b, [9.0], c]
    @test Operators.SequenceInsert(three, [9.0], fill(3)) == [a, b, c, [9.0]]
    @test Operators.SequenceErase(three) == [a, b]
    @test Operators.SequenceErase(three, fill(-3)) == [b, c]
    @test three == [a, b, c]  # nothing changed it
end

@testset "joined and split" begin
    @test Operators.ConcatFromSequence(three; axis=0) == [a; b; c]
    @test Operators.ConcatFromSequence(three; axis=0, new_axis=1) == [a b c]
    @test Operators.ConcatFromSequence(three; axis=-1, new_axis=1) == permutedims([a b c])
    @test_throws Operators.UnsupportedOperator Operators.ConcatFromSequence(
        TensorSequence(); axis=0
    )
    x = reshape(collect(1.0:6.0), 2, 3)  # ONNX's 3 × 2
    @test Operators.SplitToSequence(x) == [x[:, [1]], x[:, [2]], x[:, [3]]]
    @test Operators.SplitToSequence(x; keepdims=0) == [x[:, 1], x[:, 2], x[:, 3]]
    @test Operators.SplitToSequence(x, fill(2)) == [x[:, 1:2], x[:, [3]]]
    @test Operators.SplitToSequence(x, [1, 2]; keepdims=0) == [x[:, [1]], x[:, 2:3]]
    @test Operators.SplitToSequence(x; axis=1) == [x[[1], :], x[[2], :]]
    @test_throws ArgumentError Operators.SplitToSequence(x, [1, 1])
end

@testset "optional values" begin
    @test Operators.Optional(a) === a
    @test Operators.Optional(; type="of a tensor") === nothing
    @test Operators.OptionalHasElement(a) == fill(true)
    @test Operators.OptionalHasElement(nothing) == Operators.OptionalHasElement() == fill(false)
    @test Operators.OptionalGetElement(a) === a
    @test_throws ArgumentError Operators.OptionalGetElement(nothing)
end

node(operator, inputs, outputs, attributes...) =
    Node("", operator, "", inputs, outputs, Dict{Symbol,Any}(attributes...))
tensors(pairs...) = Dict{String,AbstractArray}(pairs...)

@testset "gradients" begin
    x = numbers(2, 5)
    at(k) = tensors("k" => fill(k))
    graph(nodes, given, inputs=["x"]) =
        FluxGraph(Network(nodes, given, inputs, ["y"], Dict("" => 18)))
    split = node("SplitToSequence", ["x", "sizes"], ["s"])
    sizes = tensors("sizes" => [2, 2, 1])
    joined = node("ConcatFromSequence", ["t"], ["y"], :axis => 0)
    checkgradient(
        graph([split, node("SequenceAt", ["s", "k"], ["y"])], merge(sizes, at(1))), x
    )
    checkgradient(
        graph([split, node("SequenceErase", ["s", "k"], ["t"]), joined], merge(sizes, at(0))), x
    )
    inserted = graph(
        [split, node("SequenceInsert", ["s", "z", "k"], ["t"]), joined],
        merge(sizes, at(1)), ["x", "z"],
    )
    checkgradient(inserted, x, numbers(2, 3))
    stacked = node("ConcatFromSequence", ["s"], ["y"], :axis => 1, :new_axis => 1)
    checkgradient(
        graph([node("SplitToSequence", ["x"], ["s"], :keepdims => 0), stacked], tensors()), x
    )
    twice = node("SequenceConstruct", ["x", "z", "x"], ["t"])
    optional = [
        node("Optional", ["x"], ["o"]), node("OptionalGetElement", ["o"], ["p"]),
        node("SequenceConstruct", ["p", "z", "x"], ["t"]),
    ]
    checkgradient(graph([twice, joined], tensors(), ["x", "z"]), x, numbers(2, 1))
    checkgradient(graph([optional; joined], tensors(), ["x", "z"]), x, numbers(2, 1))
end

body(nodes, inputs, outputs; given=tensors()) =
    Network(nodes, given, inputs, outputs, Dict{String,Int}())

@testset "in control flow" begin
    # The sequence grows by w · x and takes its last entry along.
    growing = body(
        [
            node("SequenceAt", ["s", "end"], ["last"]),
            node("Mul", ["last", "w"], ["next"]),
            node("SequenceInsert", ["s", "next"], ["t"]),
            node("Identity", ["c"], ["more"]),
        ],
        ["i", "c", "s"], ["more", "t"]; given=tensors("w" => [2.0, 3.0], "end" => fill(-1)),
    )
    loop = FluxGraph(Network(
        [
            node("SequenceConstruct", ["x"], ["s"]),
            node("Loop", ["n", "", "s"], ["t"], :body => growing),
            node("ConcatFromSequence", ["t"], ["y"], :axis => 0),
        ],
        tensors("n" => fill(2)), ["x"], ["y"], Dict("" => 18),
    ))
    @test loop([1.0, 10.0]) == [1, 10, 2, 30, 4, 90]
    checkgradient(loop, [1.0, 10.0])
    tree = only(Zygote.gradient(g -> sum(g([1.0, 10.0])), loop))
    @test OnnxJL.gradients(loop, tree) == Dict("t.body.w" => [1 + 4, 10 + 60])

    mapped = FluxGraph(Network(
        [
            node("SplitToSequence", ["x", "two"], ["s"]),
            node("SequenceErase", ["s"], ["r"]),
            node(
                "SequenceMap", ["r", "s", "z"], ["p", "q"],
                :body => body(
                    [
                        node("Mul", ["r1", "z1"], ["rz"]),
                        node("Mul", ["rz", "w"], ["p1"]),
                        node("Add", ["s1", "x"], ["q1"]),
                    ],
                    ["r1", "s1", "z1"], ["p1", "q1"]; given=tensors("w" => [2.0, 3.0]),
                ),
            ),
            node("ConcatFromSequence", ["p"], ["y"], :axis => 0),
        ],
        tensors("two" => fill(1)), ["x", "z"], ["y"], Dict("" => 18),
    ))
    x, z = numbers(2, 3), [5.0, 7.0]
    @test mapped(x, z) == x[:, 1:2] .* z .* [2, 3]
    checkgradient(mapped, x, z)
    written = FluxGraph(OnnxJL.network(mapped))
    @test written(x, z) == mapped(x, z)
end
