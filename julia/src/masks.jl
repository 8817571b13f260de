# Masks: weights that are held at zero.

"""
    mask!(graph, name => mask, ...)
    mask!(graph)

Set weights to zero, and hold them there while the graph is trained. `name` is an ONNX tensor's, and
`mask` a `Bool` array of its size, with ONNX's dimensions reversed: `false` where the weight is zero.
It replaces the mask that the tensor has.

Without masks, put zeros back where the masks say so, as each step of a training does; in a loop of
one's own that is

    Flux.update!(state, graph, gradient)
    mask!(graph)
"""
function mask!(graph::FluxGraph, masks::Pair{<:AbstractString}...)
    given = Dict{String,Array{Bool}}(name => mask for (name, mask) in masks)
    known = Set{String}()
    eachtensor(graph) do name, x, form
        mask = get(given, name, nothing)
        mask === nothing && return
        expected = size(unbind(form, x))
        size(mask) == expected || throw(DimensionMismatch(string(
            "'", name, "' has the size ", expected, " in Julia's order, its mask ", size(mask)
        )))
        push!(known, name)
    end
    for name in keys(given)
        name in known || throw(ArgumentError("no trainable tensor is called '$name'"))
    end
    merge!(graph.masks, given)
    return mask!(graph)
end

function mask!(graph::FluxGraph)
    isempty(graph.masks) && return graph
    eachtensor(graph) do name, x, form
        mask = get(graph.masks, name, nothing)
        mask === nothing && return
        live = mover(x)(form == Plain ? mask : bind(form, mask))
        x .= ifelse.(live, x, zero(eltype(x)))
    end
    return graph
end

"""
    holdzeros!(graph, names)

Give the tensors of these names a mask: where they are zero now.
"""
function holdzeros!(graph::FluxGraph, names)
    eachtensor(graph) do name, x, form
        name in names && (graph.masks[name] = Array(unbind(form, x)) .!= 0)
    end
    return graph
end

"""
    maskedcopy(graph, weights, origin)

A copy with other weights by name, which are held at zero where they are zero. `origin` is what the
copy was made from, for who writes it to a file.
"""
function maskedcopy(graph::FluxGraph, weights::AbstractDict, origin)
    copied = deepcopy(graph)
    eachtensor(copied) do name, x, form
        haskey(weights, name) && copyto!(x, bind(form, weights[name]))
    end
    program = Program((
        field == :origin ? origin : getfield(copied.program, field) for field in fieldnames(Program)
    )...)
    result = FluxGraph(
        copied.layers, copied.parameters, copied.constants, program, copied.masks
    )
    return holdzeros!(result, keys(weights))
end

"""
    addproducts!(sums, graph, gradient)

Add each trainable tensor times its gradient to `sums`, a dictionary by the tensor's name.
"""
function addproducts!(sums, graph::FluxGraph, gradient)
    found = gradients(graph, gradient)
    eachtensor(graph) do name, x, form
        haskey(found, name) || return
        product = Array(Float64.(unbind(form, x)) .* Float64.(found[name]))
        sums[name] = haskey(sums, name) ? sums[name] .+ product : product
    end
    return sums
end
