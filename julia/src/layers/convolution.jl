# Conv and ConvTranspose with constant weights.

using Flux: Conv, ConvTranspose

"ONNX's pads, `[begins; ends]` by axis, as Flux's `(begin, end)` by dimension."
function fluxpad(pads, N)
    begins, ends = reverse(pads[1:N]), reverse(pads[(N + 1):end])
    return ntuple(i -> isodd(i) ? begins[(i + 1) ÷ 2] : ends[i ÷ 2], 2N)
end

"Flux's padding as ONNX's."
function onnxpads(pad, N)
    both = length(pad) == N ? ntuple(i -> pad[(i + 1) ÷ 2], 2N) : pad
    return Int64[reverse(both[1:2:end])...; reverse(both[2:2:end])...]
end

byaxis(x) = Int64[reverse(x)...]
bydimension(x, N) = ntuple(i -> Int(x[N + 1 - i]), N)

"Stride, padding and dilation as Flux has them, or nothing where they depend on the input's size."
function window(node::Node, N::Int)
    attribute(node, :auto_pad, "NOTSET") in ("NOTSET", "VALID") || return nothing
    pads = attribute(node, :pads, zeros(Int64, 2N))
    all(>=(0), pads) || return nothing
    return (
        stride=bydimension(attribute(node, :strides, ones(Int64, N)), N),
        pad=fluxpad(pads, N),
        dilation=bydimension(attribute(node, :dilations, ones(Int64, N)), N),
    )
end

function layer(::Val{:Conv}, node::Node, source::Source)
    found = parameters(source, node, 2 => Flipped, 3 => Plain)
    found === nothing && return nothing
    weight, bias = found
    form = window(node, ndims(weight) - 2)
    form === nothing && return nothing
    groups = Int(attribute(node, :group, 1))
    return Conv(identity, weight, bias, form.stride, form.pad, form.dilation, groups)
end

function layer(::Val{:ConvTranspose}, node::Node, source::Source)
    haskey(node.attributes, :output_shape) && return nothing
    found = parameters(source, node, 2 => Flipped, 3 => Plain)
    found === nothing && return nothing
    weight, bias = found
    N = ndims(weight) - 2
    form = window(node, N)
    form === nothing && return nothing
    outpad = bydimension(attribute(node, :output_padding, zeros(Int64, N)), N)
    groups = Int(attribute(node, :group, 1))
    return ConvTranspose(
        identity, weight, bias, form.stride, form.pad, outpad, form.dilation, groups
    )
end

operator(::Conv) = "Conv"
operator(::ConvTranspose) = "ConvTranspose"
activation(::Union{Conv,ConvTranspose}) = :σ
fields(::Union{Conv,ConvTranspose}, nodes) = [Field(:weight, 2, Flipped), Field(:bias, 3)]

function attributes(layer::Union{Conv,ConvTranspose}, node)
    N = ndims(layer.weight) - 2
    found = Dict{Symbol,Any}(
        :kernel_shape => byaxis(size(layer.weight)[1:N]),
        :strides => byaxis(layer.stride),
        :pads => onnxpads(layer.pad, N),
        :dilations => byaxis(layer.dilation),
        :group => layer.groups,
    )
    layer isa ConvTranspose && (found[:output_padding] = byaxis(layer.outpad))
    return found
end
