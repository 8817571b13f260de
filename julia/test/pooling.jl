using Flux: Flux, GlobalMaxPool, MaxPool
using OnnxJL: FluxGraph, Network, Node

"A graph of one pooling node."
function pooling(operator, attributes=Dict{Symbol,Any}())
    node = Node("p", operator, "", ["x"], ["y"], attributes)
    return FluxGraph(Network([node], Dict{String,AbstractArray}(), ["x"], ["y"], Dict("" => 17)))
end

"The gradient of the sum of the outputs with respect to the picture."
slopes(graph, x) = only(Flux.gradient(x -> sum(graph(x)), x))

@testset "the largest of values that are nearly equal takes the gradient" begin
    window = Float32[1 1.0000001; 1.0000002 1.0000001;;;;]
    largest = Float32[0 0; 1 0;;;;]
    two = Dict{Symbol,Any}(:kernel_shape => [2, 2], :strides => [2, 2])
    graph = pooling("MaxPool", two)
    @test only(graph.layers) isa MaxPool
    @test slopes(graph, window) == largest
    graph = pooling("GlobalMaxPool")
    @test only(graph.layers) isa GlobalMaxPool
    @test slopes(graph, window) == largest
end

@testset "the first of equal values takes the gradient, in ONNX's order" begin
    two = Dict{Symbol,Any}(:kernel_shape => [2, 2], :strides => [2, 2])
    for graph in (pooling("MaxPool", two), pooling("GlobalMaxPool"))
        @test slopes(graph, Float32[0 0; 0 0;;;;]) == Float32[1 0; 0 0;;;;]
        # Julia's first dimension is ONNX's last.
        @test slopes(graph, Float32[0 1; 1 0;;;;]) == Float32[0 0; 1 0;;;;]
    end
end

@testset "windows that overlap and reach into the padding" begin
    attributes = Dict{Symbol,Any}(
        :kernel_shape => [3, 2], :strides => [1, 2], :pads => [1, 0, 1, 1]
    )
    x = reshape(sin.(3 .* (1:210)), 7, 5, 3, 2)
    graph = pooling("MaxPool", attributes)
    @test only(graph.layers).k == (2, 3)
    checkgradient(graph, x; step=1e-7)
end
