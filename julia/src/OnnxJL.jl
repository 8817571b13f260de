"""
    OnnxJL

ONNX networks as Flux layers, for pruning experiments.

[`FluxGraph`](@ref) is the network; [`load`](@ref) reads one (through PythonCall), [`groups`](@ref)
says what of it can go, [`prune`](@ref) makes it smaller and [`save`](@ref) writes it.
"""
module OnnxJL

export FluxGraph, Network, Node, UnsupportedOperator, network, groups, prune, gradients

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
include("training.jl")
include("import.jl")
include("layers/control.jl")
include("export.jl")
include("plan.jl")
include("show.jl")
include("registry.jl")
include("python.jl")
include("workload.jl")

end
