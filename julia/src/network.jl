"""
    Node(name, operator, domain, inputs, outputs, attributes)

A node of an ONNX graph as data. Absent inputs and outputs are `""`. An attribute is a number, a
`String`, a vector of these, an array with ONNX's dimensions reversed, or a [`Network`](@ref).
`edited` holds the attributes that differ from those that the node came with.
"""
struct Node
    name::String
    operator::String
    domain::String
    inputs::Vector{String}
    outputs::Vector{String}
    attributes::Dict{Symbol,Any}
    edited::Set{Symbol}
end

Node(name, operator, domain, inputs, outputs, attributes=Dict{Symbol,Any}()) =
    Node(name, operator, domain, inputs, outputs, attributes, Set{Symbol}())

"""
    edit(node, attributes) -> Node

The node with other values for some of its attributes.
"""
function edit(node::Node, attributes)
    isempty(attributes) && return node
    merged = merge(node.attributes, Dict{Symbol,Any}(attributes))
    edited = union(node.edited, keys(attributes))
    return Node(node.name, node.operator, node.domain, node.inputs, node.outputs, merged, edited)
end

"""
    rename(node, names) -> Node

The node with other inputs, where `names` has one for them.
"""
rename(node::Node, names) = Node(
    node.name,
    node.operator,
    node.domain,
    [get(names, x, x) for x in node.inputs],
    node.outputs,
    node.attributes,
    node.edited,
)

"What a node is called: its name, or its first output's where it has none."
nodename(node::Node) = isempty(node.name) ? first(filter(!isempty, node.outputs)) : node.name

"A node's name and operator, for messages."
place(node::Node) = string("node '", nodename(node), "' (", node.operator, ")")

"""
    Network(nodes, tensors, inputs, outputs, opsets; trainable)

An ONNX graph as data: its nodes in topological order, its initializers as arrays with ONNX's
dimensions reversed, the names of its inputs and outputs, and the version of each operator set.
`trainable` names the initializers that may be trained: by default the floating ones of more than
one element.
"""
struct Network
    nodes::Vector{Node}
    tensors::Dict{String,AbstractArray}
    inputs::Vector{String}
    outputs::Vector{String}
    opsets::Dict{String,Int}
    trainable::Set{String}
end

Network(nodes, tensors, inputs, outputs, opsets; trainable=trainable(tensors)) =
    Network(nodes, tensors, inputs, outputs, opsets, trainable)

trainable(tensors) =
    Set(name for (name, x) in tensors if eltype(x) <: AbstractFloat && length(x) > 1)
