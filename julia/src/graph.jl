"""
    FluxGraph(network::Network)

An ONNX network as a Flux layer. Its own layers are Flux's where their formula is the node's;
`graph["layer1.0.conv1"]` is one of them, by the prefix of its weight, or its node's or output's
name.

    y = graph(x)
    y, z = graph(a, b)    # several inputs and outputs

Arrays have ONNX's dimensions reversed: an ONNX N×C×H×W is a Julia W×H×C×N.

It is a functor: its children are its `layers`, the trainable arrays that functions use
(`parameters`), and other floating ones (`constants`). It starts in test mode. `masks` are those of
tensors that are held at zero in places; see [`mask!`](@ref).
"""
struct FluxGraph
    layers::Vector{Any}
    parameters::Vector{Any}
    constants::Vector{Any}
    program::Program
    masks::Dict{String,Array{Bool}}
end

FluxGraph(layers, parameters, constants, program) =
    FluxGraph(layers, parameters, constants, program, Dict{String,Array{Bool}}())

function Flux.Functors.functor(::Type{<:FluxGraph}, graph)
    children = (
        layers=graph.layers, parameters=graph.parameters, constants=graph.constants
    )
    again(c) =
        FluxGraph(c.layers, c.parameters, c.constants, graph.program, copy(graph.masks))
    return children, again
end

Flux.Optimisers.trainable(graph::FluxGraph) =
    (layers=graph.layers, parameters=graph.parameters)

# Optimisers would copy the vector of layers, and change those in it.
Flux.Optimisers.update(state, graph::FluxGraph, gradient, more...) =
    Flux.Optimisers.update!(deepcopy(state), deepcopy(graph), gradient, more...)

function Flux.testmode!(graph::FluxGraph, mode=true)
    foreach(layer -> Flux.testmode!(layer, mode), graph.layers)
    return graph
end

"Something went wrong at a node of the graph."
struct NodeError <: Exception
    node::String
    opset::Int
    shapes::String
    cause::Any
end

function Base.showerror(io::IO, e::NodeError)
    print(io, e.node, ": ")
    showerror(io, e.cause)
    isempty(e.shapes) || print(io, " (inputs in ONNX's order: ", e.shapes, ")")
end

NodeError(step::Step, inputs, cause) = NodeError(
    join((place(node) for node in step.nodes), ", "),
    step.opset,
    join(map(described, inputs), ", "),
    cause,
)

described(x::AbstractArray) = string(eltype(x), "[", join(reverse(size(x)), "×"), "]")
described(x) = string(typeof(x))
described(::Nothing) = "none"
described(x::Operators.TensorSequence) = string("[", join(map(described, x), ", "), "]")

function (graph::FluxGraph)(inputs...)
    values = start(graph, inputs)
    for (layer, step) in zip(graph.layers, graph.program.steps)
        arguments = map(slot -> read(values, slot), step.inputs)
        store!(values, step, located(() -> layer(arguments...), step, arguments))
        values[step.dead] .= nothing
    end
    return finish(graph, values)
end

"The result of `f`, whose errors tell the step."
function located(f, step::Step, inputs)
    try
        return f()
    catch cause
        cause isa Union{InterruptException,NodeError} && rethrow()
        throw(NodeError(step, inputs, cause))
    end
end

"The slots' values before the first step."
function start(graph::FluxGraph, inputs)
    program = graph.program
    length(inputs) == length(program.inputs) || throw(ArgumentError(string(
        "the network has ", length(program.inputs), " inputs (",
        join(program.values[program.inputs], ", "), "), not ", length(inputs),
    )))
    values = Vector{Any}(nothing, length(program.values))
    values[program.inputs] .= inputs
    values[program.parameters] .= graph.parameters
    values[program.constants] .= graph.constants
    for (slot, x) in program.data
        values[slot] = x
    end
    return values
end

read(values, slot) = slot == 0 ? nothing : values[slot]

store!(values, step, y) = values[first(step.outputs)] = y
function store!(values, step, y::Tuple)
    for (slot, part) in zip(step.outputs, y)
        slot == 0 || (values[slot] = part)
    end
end

function finish(graph::FluxGraph, values)
    outputs = graph.program.outputs
    return length(outputs) == 1 ? values[only(outputs)] : Tuple(values[outputs])
end

function position(graph::FluxGraph, name::AbstractString)
    i = get(graph.program.index, name, nothing)
    i === nothing && throw(KeyError(name))
    return i
end

Base.getindex(graph::FluxGraph, name::AbstractString) = graph.layers[position(graph, name)]
Base.setindex!(graph::FluxGraph, layer, name::AbstractString) =
    graph.layers[position(graph, name)] = layer
Base.haskey(graph::FluxGraph, name::AbstractString) = haskey(graph.program.index, name)
Base.keys(graph::FluxGraph) = [step.name for step in graph.program.steps]
Base.length(graph::FluxGraph) = length(graph.layers)
