using OnnxJL: FluxGraph, Network, Node, moved

@testset "no cast rounds what a copy in Float64 computes" begin
    nodes = [
        Node("up", "Cast", "", ["x"], ["a"], Dict{Symbol,Any}(:to => 1)),
        Node("whole", "Cast", "", ["x"], ["i"], Dict{Symbol,Any}(:to => 7)),
        Node("mul", "Mul", "", ["a", "w"], ["y"], Dict{Symbol,Any}()),
    ]
    tensors = Dict{String,AbstractArray}("w" => Float32[1, 1])
    graph = FluxGraph(Network(nodes, tensors, ["x"], ["y", "i"], Dict("" => 17)))
    y, i = moved(graph, Dict("w" => [1.0, 2.0]), 1e-12)([1 + 1e-12])
    @test y == [(1 + 1e-12) * (1 + 1e-12), (1 + 1e-12) * (1 + 2e-12)]
    @test i == Int64[1]
    @test eltype(first(graph(Float32[2]))) == Float32
end
