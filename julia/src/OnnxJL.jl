"""
    OnnxJL

ONNX networks as Flux layers, for pruning experiments.

[`FluxGraph`](@ref) is the network; [`load`](@ref) reads one (through PythonCall), or it is made of
a model of Flux layers; [`groups`](@ref) says what of it can go, [`prune`](@ref) makes it smaller and
[`save`](@ref) writes it. `Chain(graph)` is plain Flux again.
"""
module OnnxJL

export FluxGraph, Network, Node, UnsupportedOperator, network, groups, blocks, prune, removeblocks
export gradients, mask!

include("network.jl")
include("operators.jl")
using .Operators: Operators, UnsupportedOperator
include("binding.jl")
include("layers.jl")
include("program.jl")
include("graph.jl")
include("device.jl")
include("gradient.jl")
include("losses.jl")
include("masks.jl")
include("training.jl")
include("regularization.jl")
include("import.jl")
include("layers/control.jl")
include("export.jl")
include("chain.jl")
include("tracing.jl")
include("plan.jl")
include("show.jl")
include("registry.jl")
include("python.jl")
include("workload.jl")

end
