# Compiled once, when the package is installed: what nearly every network needs.

using PrecompileTools: @compile_workload

"A small residual network."
function samplenetwork()
    conv(name, x, y) = Node(
        name, "Conv", "", [x, "$name.weight"], [y],
        Dict{Symbol,Any}(
            :kernel_shape => [3, 3], :pads => [1, 1, 1, 1], :strides => [1, 1],
            :dilations => [1, 1], :group => 1,
        ),
    )
    norm(name, x, y) = Node(
        name, "BatchNormalization", "",
        [x, "$name.weight", "$name.bias", "$name.mean", "$name.var"], [y],
        Dict{Symbol,Any}(:epsilon => 1.0f-5, :momentum => 0.9f0),
    )
    window = Dict{Symbol,Any}(:kernel_shape => [2, 2], :strides => [2, 2], :ceil_mode => 0)
    gemm = Dict{Symbol,Any}(:alpha => 1.0f0, :beta => 1.0f0, :transB => 1)
    nodes = [
        conv("first", "x", "a"),
        norm("bn", "a", "b"),
        Node("relu", "Relu", "", ["b"], ["c"]),
        Node("pool", "MaxPool", "", ["c"], ["d"], window),
        Node("conv", "Conv", "", ["d", "conv.weight", "conv.bias"], ["e"]),
        norm("bn2", "e", "f"),
        Node("add", "Add", "", ["f", "d"], ["g"]),
        Node("relu2", "Relu", "", ["g"], ["h"]),
        Node("mean", "GlobalAveragePool", "", ["h"], ["i"]),
        Node("flat", "Flatten", "", ["i"], ["j"], Dict{Symbol,Any}(:axis => 1)),
        Node("fc", "Gemm", "", ["j", "fc.weight", "fc.bias"], ["y"], gemm),
    ]
    tensors = Dict{String,AbstractArray}(
        "first.weight" => ones(Float32, 3, 3, 3, 4),
        "conv.weight" => ones(Float32, 1, 1, 4, 4),
        "conv.bias" => ones(Float32, 4),
        "fc.weight" => ones(Float32, 4, 2),
        "fc.bias" => ones(Float32, 2),
    )
    for name in ("bn", "bn2"), field in ("weight", "bias", "mean", "var")
        tensors["$name.$field"] = ones(Float32, 4)
    end
    return Network(nodes, tensors, ["x"], ["y"], Dict("" => 17))
end

function rehearse()
    graph = FluxGraph(samplenetwork())
    x = ones(Float32, 8, 8, 3, 2)
    graph(x)
    for testing in (true, false)
        Flux.testmode!(graph, testing)
        pass = startpass(graph, [x])
        _, Δ = lossgradient(crossentropy, pass, [0, 1])
        tree = backward(pass, Δ)
        gradients(graph, tree)
        if testing
            state = Flux.setup(Flux.Optimisers.AdamW(1.0f-3), graph)
            Flux.update!(state, graph, tree)
        end
    end
    kept = Dict("fc.weight" => Dict(0 => [0]), "fc.bias" => Dict(0 => [0]))
    network(prune(graph, Edits(; kept)))
    repr(MIME("text/plain"), graph)
    return nothing
end

# It takes a minute, which who changes the package may want to save: ONNXJL_WORKLOAD=no.
get(ENV, "ONNXJL_WORKLOAD", "yes") == "no" || @compile_workload rehearse()
