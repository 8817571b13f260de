# Pooling whose formula is Flux's.

using Flux: GlobalMaxPool, GlobalMeanPool, MaxPool, MeanPool

function pool(node::Node)
    k = node.attributes[:kernel_shape]
    N = length(k)
    form = window(node, N)
    plain = form !== nothing && all(==(1), form.dilation) && attribute(node, :ceil_mode, 0) == 0
    return plain ? (bydimension(k, N), form.pad, form.stride) : nothing
end

function layer(::Val{:MaxPool}, node::Node, source::Source)
    length(node.outputs) == 1 || return nothing
    found = pool(node)
    return found === nothing ? nothing : MaxPool(found...)
end

function layer(::Val{:AveragePool}, node::Node, source::Source)
    found = pool(node)
    found === nothing && return nothing
    # Flux counts the padding.
    counted = all(==(0), found[2]) || attribute(node, :count_include_pad, 0) == 1
    return counted ? MeanPool(found...) : nothing
end

layer(::Val{:GlobalAveragePool}, node::Node, source::Source) = GlobalMeanPool()
layer(::Val{:GlobalMaxPool}, node::Node, source::Source) = GlobalMaxPool()

operator(::MaxPool) = "MaxPool"
operator(::MeanPool) = "AveragePool"
operator(::GlobalMeanPool) = "GlobalAveragePool"
operator(::GlobalMaxPool) = "GlobalMaxPool"

function attributes(layer::Union{MaxPool,MeanPool}, node)
    N = length(layer.k)
    found = Dict{Symbol,Any}(
        :kernel_shape => byaxis(layer.k),
        :strides => byaxis(layer.stride),
        :pads => onnxpads(layer.pad, N),
    )
    layer isa MeanPool && any(!=(0), layer.pad) && (found[:count_include_pad] = 1)
    return found
end
