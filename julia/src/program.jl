"""
    Step(name, nodes, inputs, outputs, bindings, derived, f, dead, opset)

What is known of one layer of the graph besides its parameters.

- `name`: what the layer is called; `nodes`: the ONNX nodes that it stands for, in their order.
- `inputs`, `outputs`: the slots of its arguments and results; 0 for an absent one.
- `bindings`: the tensors that its fields are; `derived`: the attributes that its fields said, and
  `f` its activation function, when it was built.
- `dead`: the slots that nothing after it reads; `opset`: the version of its operators' set.
"""
struct Step
    name::String
    nodes::Vector{Node}
    inputs::Vector{Int}
    outputs::Vector{Int}
    bindings::Vector{Binding}
    derived::Dict{Symbol,Any}
    f::Any
    dead::Vector{Int}
    opset::Int
end

"""
    Program

The structure of a [`FluxGraph`](@ref): everything but its arrays. Values live in numbered slots.

- `values`: the name of each slot's value.
- `inputs`, `outputs`: the slots of the graph's inputs and outputs.
- `parameters`, `constants`: the slots of the arrays that functions use: floating ones, that a
  functor visits. `data`: slots and arrays of the others, as shapes and indices.
- `tensors`: tensors that only nodes within a layer use, as the bounds of a `Clip`.
- `order`: the place of each node of the source, by the name of its first output.
- `index`: the number of the step of each name.
- `origin`: what the network was made from, for who writes it to a file; `nothing` if it was made in
  Julia.
"""
struct Program
    steps::Vector{Step}
    values::Vector{String}
    inputs::Vector{Int}
    outputs::Vector{Int}
    parameters::Vector{Int}
    constants::Vector{Int}
    data::Vector{Pair{Int,AbstractArray}}
    tensors::Dict{String,AbstractArray}
    opsets::Dict{String,Int}
    order::Dict{String,Int}
    index::Dict{String,Int}
    origin::Any
end

"""
    layernames(nodes, tensors)

A name for each node: the prefix of its weight where no other node uses a weight of that prefix
(`layer1.0.conv1.weight` → `layer1.0.conv1`), else the node's.
"""
function layernames(nodes, tensors)
    prefixes = map(nodes) do node
        name = mainweight(node, tensors)
        name !== nothing && contains(name, '.') ? first(rsplit(name, '.'; limit=2)) : nothing
    end
    count = Dict{Any,Int}()
    for prefix in prefixes
        count[prefix] = get(count, prefix, 0) + 1
    end
    return map(nodes, prefixes) do node, prefix
        prefix !== nothing && count[prefix] == 1 ? String(prefix) : nodename(node)
    end
end

"A node's largest initializer of two dimensions or more, or its first one."
function mainweight(node, tensors)
    names = filter(name -> haskey(tensors, name), node.inputs)
    wide = filter(name -> ndims(tensors[name]) >= 2, names)
    isempty(wide) && return isempty(names) ? nothing : first(names)
    return argmax(name -> length(tensors[name]), wide)
end
