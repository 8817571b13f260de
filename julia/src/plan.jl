"""
    Edits(; kept, attributes, constants, removed_nodes, stand_ins)

What a plan does: for the tensors named in `kept`, the indices (from 0) that stay on each of ONNX's
axes (from 0); attributes of nodes, by the node's name or first output; new values of integer
constants; nodes that go, whose first input stands in for their output, or the one at the position
(from 0) that `stand_ins` tells. Tensors that only nodes that go use go with them.
"""
Base.@kwdef struct Edits
    kept::Dict{String,Dict{Int,Vector{Int}}} = Dict()
    attributes::Dict{String,Dict{Symbol,Any}} = Dict()
    constants::Dict{String,AbstractArray} = Dict()
    removed_nodes::Vector{String} = String[]
    stand_ins::Dict{String,Int} = Dict()
end

"""
    prune(graph::FluxGraph, edits::Edits) -> FluxGraph

The smaller network that a plan makes; `graph` stays as it is.

With PythonCall, and the Python package onnxjl, the edits can be found:

    prune(graph, plan)
    prune(graph, group => keep, ...; granularity="channel")
    prune(graph; macs=0.5, criterion="l2", options...)

A `plan` is JSON text, as [`plan`](@ref) gives it, the path of a file of it, or a plan of Python's.
`keep` are numbers of units from 1, or a `Bool` for each, of one of the [`groups`](@ref), or of the
group of that name. The options of the last are those of Python's `onnxjl.prune`, but that arrays
have Julia's order of dimensions; a `criterion` may be a function of a [`Group`](@ref),
or, with `granularity="block"`, of a [`Block`](@ref).
"""
function prune(graph::FluxGraph, edits::Edits; origin=pruned(graph.program.origin, graph, edits))
    small = FluxGraph(prune(network(graph), edits); own=true, origin)
    for (name, mask) in graph.masks
        small.masks[name] = kept(mask, name, get(edits.kept, name, Dict{Int,Vector{Int}}()))
    end
    for (layer, original) in paired(small, graph)
        copymode!(layer, original)
    end
    return small
end

function prune(network::Network, edits::Edits)
    # Those of a layer are its own: every array is a copy.
    tensors = Dict{String,AbstractArray}()
    for (name, x) in network.tensors
        haskey(edits.kept, name) || haskey(edits.constants, name) || (tensors[name] = copy(x))
    end
    for (name, axes) in edits.kept
        x = get(network.tensors, name, nothing)
        x === nothing && throw(ArgumentError("no initializer is called '$name'"))
        tensors[name] = kept(x, name, axes)
    end
    merge!(tensors, edits.constants)
    standins = Dict{String,String}()
    nodes = Node[]
    removed = Set(edits.removed_nodes)
    gone = Set{String}()
    for node in network.nodes
        node = rename(node, standins)
        if nodename(node) in removed
            union!(gone, node.inputs)
            position = get(edits.stand_ins, nodename(node), 0) + 1
            # What has no inputs can go where only others that go use it.
            checkbounds(Bool, node.inputs, position) &&
                (standins[first(node.outputs)] = node.inputs[position])
        else
            push!(nodes, edit(node, get(edits.attributes, nodename(node), Dict{Symbol,Any}())))
        end
    end
    used = reduce(union!, map(reads, nodes); init=Set([network.inputs; network.outputs]))
    foreach(name -> delete!(tensors, name), setdiff(gone, used))
    return Network(
        nodes,
        tensors,
        network.inputs,
        network.outputs,
        network.opsets,
        intersect(network.trainable, keys(tensors)),
    )
end

"The names of all that a node reads, within its graphs too."
reads(node::Node) =
    mapreduce(reads, union!, values(node.attributes); init=Set{String}(node.inputs))
reads(network::Network) =
    mapreduce(reads, union!, network.nodes; init=Set{String}(network.outputs))
reads(attribute) = Set{String}()

"What stays of the array of a tensor."
function kept(x, name, axes)
    keep = Any[Colon() for _ in 1:ndims(x)]
    for (axis, indices) in axes
        0 <= axis < ndims(x) && all(i -> 0 <= i < size(x, ndims(x) - axis), indices) ||
            throw(ArgumentError(string(
                "'", name, "' has shape ", reverse(size(x)), ": no such index on axis ", axis
            )))
        keep[ndims(x) - axis] = indices .+ 1
    end
    return x[keep...]
end

"What a pruned network was made from, where the whole one was made from `origin`."
pruned(origin::Nothing, graph, edits) = nothing

"Layers of the same name in two graphs."
paired(a::FluxGraph, b::FluxGraph) =
    ((a[name], b[name]) for name in keys(a) if haskey(b, name))

copymode!(layer, original) = layer
copymode!(layer::BatchNorm, original::BatchNorm) = (layer.active = original.active; layer)
