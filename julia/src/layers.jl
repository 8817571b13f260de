# What a layer of the graph is: Flux's own where its formula is the node's, else a `Call`.
#
# A family adds its Flux layers by methods of these functions (see `layers/`):
#
#   layer(::Val{operator}, node, source)   the layer for a node, or nothing
#   operator(layer)                        the ONNX operator that it stands for
#   fields(layer, nodes)                   where its parameters are
#   attributes(layer, node)                the ONNX attributes that its fields say
#   activation(layer)                      the name of the field of its activation function

using Flux: Flux, Scale
using NNlib

"""
    Call(f, keywords)

A function as a layer: ONNX operator `f` with its attributes as keywords.
"""
struct Call{F,A<:NamedTuple}
    f::F
    keywords::A
end

(call::Call)(inputs...) = call.f(inputs...; call.keywords...)

"Whether gradients go through a layer."
differentiable(layer) = true
differentiable(call::Call) = !(call.f in Operators.NONDIFFERENTIABLE)

const CONTEXT = (:opset, :outputs)  # Keywords that are no attributes.

"""
    Call(node, opset)

The layer for any node whose operator is known.

Throws `UnsupportedOperator` where it, or one of its attributes, isn't.
"""
function Call(node::Node, opset::Int)
    f = get(Operators.OPERATORS, (node.domain, node.operator), nothing)
    f === nothing && throw(UnsupportedOperator(string(
        place(node), ": OnnxJL has no such operator",
        isempty(node.domain) ? "" : " in domain '$(node.domain)'", " (opset $opset)",
    )))
    known = declared(f)
    for key in keys(node.attributes)
        key in known || throw(UnsupportedOperator(string(
            place(node), ": OnnxJL's ", node.operator, " has no attribute '", key,
            "' (opset ", opset, ")",
        )))
    end
    keywords = Dict{Symbol,Any}(node.attributes)
    :opset in known && (keywords[:opset] = opset)
    :outputs in known && (keywords[:outputs] = length(node.outputs))
    return Call(f, (; sort!(collect(keywords); by=first)...))
end

declared(f) = reduce(union!, Base.kwarg_decl(m) for m in methods(f); init=Symbol[])

"""
    Source

Where `layer` finds the parameters of a node.
"""
struct Source
    network::Network
    uses::Dict{String,Int}  # value -> how many inputs of nodes it is, and outputs of the graph
    bound::Dict{String,AbstractArray}  # arrays of tensors that several nodes use
    own::Bool  # whether layers may take the network's arrays
    shared::Dict{String,Tuple{Form,AbstractArray}}  # arrays that layers elsewhere hold
end

"The array that a layer holds for a tensor."
function bind(source::Source, name, form::Form)
    x = source.network.tensors[name]
    if haskey(source.shared, name)
        had, array = source.shared[name]
        had == form && isequal(unbind(had, array), x) && return array
    end
    return bind(form, x; source.own)
end

"The `i`-th input of a node where it is a constant, else nothing."
function constant(source::Source, node::Node, i::Int)
    length(node.inputs) >= i || return nothing
    return get(source.network.tensors, node.inputs[i], nothing)
end

"Whether a node has an `i`-th input."
given(node::Node, i::Int) = length(node.inputs) >= i && !isempty(node.inputs[i])

"""
    parameter(source, node, i, form=Plain)

The array that a layer of its own holds for the `i`-th input, or nothing where it can't: the input
is computed, others use the tensor in another form, or it is in half precision, in which Flux's
layers sum on a CPU, and ONNX's operators don't.
"""
function parameter(source::Source, node::Node, i::Int, form::Form=Plain)
    x = constant(source, node, i)
    x isa AbstractArray{<:Union{Float32,Float64}} || return nothing
    name = node.inputs[i]
    source.uses[name] == 1 && return bind(source, name, form)
    form == Plain || return nothing
    return get!(() -> bind(source, name, Plain), source.bound, name)
end

"""
    parameters(source, node, i => form...)

The arrays for several inputs, or nothing if one of them can't be had. An absent input is `false`.
"""
function parameters(source::Source, node::Node, wanted::Pair{Int,Form}...)
    found = Any[]
    for (i, form) in wanted
        x = given(node, i) ? parameter(source, node, i, form) : false
        x === nothing && return nothing
        push!(found, x)
    end
    return found
end

attribute(node::Node, name::Symbol, default) = get(node.attributes, name, default)

layer(::Val, node::Node, source::Source) = nothing
operator(layer) = nothing
operator(call::Call) = get(() -> string(nameof(call.f)), Operators.NAMES, call.f)
fields(layer, nodes) = Field[]
attributes(layer, node) = Dict{Symbol,Any}()
attributes(call::Call, node) =
    Dict{Symbol,Any}(k => v for (k, v) in pairs(call.keywords) if k ∉ CONTEXT)
activation(layer) = nothing

"""
    rebuild(layer; fields...)

The same kind of layer with other values for some of its fields.
"""
function rebuild(layer; changes...)
    T = typeof(layer)
    values = (get(changes, name, getfield(layer, name)) for name in fieldnames(T))
    return Base.typename(T).wrapper(values...)
end

"The same layer with another activation function, where it has a place for one."
withactivation(layer, f) = rebuild(layer; (; activation(layer) => f)...)

include("layers/activation.jl")
include("layers/convolution.jl")
include("layers/dense.jl")
include("layers/normalization.jl")
include("layers/pooling.jl")
