# Convolutions with computed weights; a constant weight makes a layer of Flux instead.

"""
    spatialvalues(values, n, default)

An attribute of one value a spatial dimension, as a tuple in Julia's order of dimensions.
"""
function spatialvalues(values, n, default)
    (values === nothing || isempty(values)) && return ntuple(_ -> default, n)
    length(values) == n ||
        throw(DimensionMismatch("expected $n values, one a spatial dimension, got $values"))
    return ntuple(i -> Int(values[n + 1 - i]), n)
end

"""
    spatialpads(auto_pad, pads, input, extent, stride)

`(low, high)` padding of each spatial dimension in Julia's order, where `extent` is the size of a
kernel with its dilation.
"""
function spatialpads(auto_pad, pads, input, extent, stride)
    n = length(input)
    auto_pad in ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER") ||
        unsupported("auto_pad ", auto_pad)
    explicit = auto_pad in ("NOTSET", "") && pads !== nothing && !isempty(pads)
    explicit && length(pads) != 2n &&
        throw(DimensionMismatch("expected $(2n) pads for $n spatial dimensions, got $pads"))
    explicit && any(<(0), pads) && unsupported("negative pads ", pads)
    return ntuple(n) do i
        explicit && return (Int(pads[n + 1 - i]), Int(pads[2n + 1 - i]))
        startswith(auto_pad, "SAME") || return (0, 0)
        total = max((cld(input[i], stride[i]) - 1) * stride[i] + extent[i] - input[i], 0)
        return samepads(auto_pad, total)
    end
end

"""
    samepads(auto_pad, total)

`total` split into `(low, high)`; the odd one is high for SAME_UPPER, low otherwise.
"""
function samepads(auto_pad, total)
    half = total ÷ 2
    return auto_pad == "SAME_UPPER" ? (half, total - half) : (total - half, half)
end

flatpads(pads) = ntuple(k -> pads[(k + 1) ÷ 2][2 - k % 2], 2length(pads))

function checkspatial(x, w, kernel_shape)
    ndims(x) == ndims(w) || throw(DimensionMismatch("input has $(ndims(x)) dimensions, " *
                                                    "weight $(ndims(w))"))
    n = ndims(x) - 2
    1 <= n <= 3 || unsupported("convolution over ", n, " spatial dimensions")
    kernel = size(w)[1:n]
    spatialvalues(kernel_shape, n, 0) in (kernel, ntuple(_ -> 0, n)) ||
        throw(DimensionMismatch("kernel_shape is $kernel_shape, the weight's " *
                                "$(reverse(kernel))"))
    return n
end

function convolutiondims(x, w; auto_pad, dilations, group, kernel_shape, pads, strides)
    n = checkspatial(x, w, kernel_shape)
    stride = spatialvalues(strides, n, 1)
    dilation = spatialvalues(dilations, n, 1)
    extent = dilation .* (size(w)[1:n] .- 1) .+ 1
    padding = flatpads(spatialpads(auto_pad, pads, size(x)[1:n], extent, stride))
    return DenseConvDims(size(x), size(w); stride, dilation, padding, groups=Int(group),
                         flipkernel=true)
end

function transposedims(x, w; auto_pad, dilations, group, kernel_shape, output_padding,
                       output_shape, pads, strides)
    n = checkspatial(x, w, kernel_shape)
    stride = spatialvalues(strides, n, 1)
    dilation = spatialvalues(dilations, n, 1)
    extra = spatialvalues(output_padding, n, 0)
    extent = dilation .* (size(w)[1:n] .- 1) .+ 1
    full = stride .* (size(x)[1:n] .- 1) .+ extent .+ extra
    both = if output_shape === nothing || isempty(output_shape)
        transposepads(auto_pad, pads, full, size(x)[1:n] .* stride)
    else
        wanted = spatialvalues(output_shape[(end - n + 1):end], n, 0)
        ntuple(i -> shapedpads(auto_pad, full[i] - wanted[i]), n)
    end
    output = full .- sum.(both)
    padding = flatpads(map((p, e) -> (p[1], max(p[2] - e, 0)), both, extra))
    any(map((p, e, s) -> e - p[2] >= s, both, extra, stride)) &&
        unsupported("output_padding of a stride or more beyond the padding")
    channels = size(w, n + 1) * Int(group)
    return DenseConvDims((output..., channels, size(x, n + 2)), size(w); stride, dilation,
                         padding, groups=Int(group), flipkernel=true)
end

function transposepads(auto_pad, pads, full, output)
    startswith(auto_pad, "SAME") ||
        return spatialpads(auto_pad, pads, full, full, map(_ -> 1, full))
    return ntuple(length(full)) do i
        full[i] < output[i] && unsupported(auto_pad, " where the stride exceeds the kernel")
        samepads(auto_pad, full[i] - output[i])
    end
end

# ONNX's reference and onnxruntime agree on a shape larger by one only: the end gets a zero.
function shapedpads(auto_pad, total)
    total >= 0 && return samepads(auto_pad, total)
    total == -1 && auto_pad != "SAME_UPPER" && return (0, -1)
    return unsupported("output_shape beyond what the kernels reach")
end

@non_differentiable convolutiondims(::Any...)
@non_differentiable transposedims(::Any...)

"""
    widefloat(x)
    narrowto(x, y)

Half precision as single precision, for sums; and `y` in the element type of `x`.
"""
widefloat(x) = x
widefloat(x::AbstractArray{Float16}) = Float32.(x)
narrowto(x, y) = eltype(x) === eltype(y) ? y : eltype(x).(y)

channelshape(b, n) = reshape(b, ntuple(i -> i == n - 1 ? length(b) : 1, n))

addchannelbias(y, ::Nothing) = y
addchannelbias(y, b) = NNlib.bias_act!(identity, y, channelshape(b, ndims(y)))

"""
    Conv(X, W, B; group, strides, dilations, pads, auto_pad)

Cross-correlation of `X` (spatial..., channels, batch) with `W`
(kernel..., channels ÷ group, outputs).
"""
function Conv end

@operator function Conv(X, W, B=nothing; auto_pad="NOTSET", dilations=nothing, group=1,
                        kernel_shape=nothing, pads=nothing, strides=nothing)
    dims = convolutiondims(X, W; auto_pad, dilations, group, kernel_shape, pads, strides)
    isempty(X) && return emptyconvolution(X, dims)
    y = NNlib.conv(widefloat(X), widefloat(W), dims)
    return narrowto(X, addchannelbias(y, widefloat(B)))
end

emptyconvolution(x, dims) = similar(x, NNlib.output_size(dims)..., NNlib.channels_out(dims), 0)

"""
    ConvTranspose(X, W, B; …)

The adjoint of the cross-correlation with `W` (kernel..., outputs ÷ group, channels).
"""
function ConvTranspose end

@operator function ConvTranspose(X, W, B=nothing; auto_pad="NOTSET", dilations=nothing, group=1,
                                 kernel_shape=nothing, output_padding=nothing,
                                 output_shape=nothing, pads=nothing, strides=nothing)
    dims = transposedims(X, W; auto_pad, dilations, group, kernel_shape, output_padding,
                         output_shape, pads, strides)
    isempty(X) && return similar(X, NNlib.input_size(dims)..., NNlib.channels_in(dims), 0)
    y = NNlib.∇conv_data(widefloat(X), widefloat(W), dims)
    return narrowto(X, addchannelbias(y, widefloat(B)))
end

"""
    integerconvolution(x, w, x_zero_point, w_zero_point; …)

`Int32` sums of products; double precision holds them exactly.
"""
function integerconvolution(x, w, x_zero_point, w_zero_point; keywords...)
    dims = convolutiondims(x, w; keywords...)
    isempty(x) && return emptyconvolution(zeros(Int32, size(x)), dims)
    y = NNlib.conv(centered(x, x_zero_point), centered(w, outputshape(w_zero_point, ndims(w))),
                   dims)
    return unsafe_trunc.(Int64, y) .% Int32
end

centered(x, ::Nothing) = Float64.(x)
centered(x, zero_point) = Float64.(x) .- Float64.(zero_point)

outputshape(::Nothing, n) = nothing
function outputshape(p, n)
    length(p) == 1 && return reshape(p, ())
    return reshape(p, ntuple(i -> i == n ? length(p) : 1, n))
end

@nondifferentiable function ConvInteger(x, w, x_zero_point=nothing, w_zero_point=nothing;
                                        auto_pad="NOTSET", dilations=nothing, group=1,
                                        kernel_shape=nothing, pads=nothing, strides=nothing)
    length(something(x_zero_point, 0)) == 1 || unsupported("x_zero_point by channel")
    return integerconvolution(x, w, x_zero_point === nothing ? nothing : only(x_zero_point),
                              w_zero_point; auto_pad, dilations, group, kernel_shape, pads,
                              strides)
end

"""
    DeformConv(X, W, offset, B, mask; …)

Convolution over two spatial dimensions whose taps are moved by `offset`, read between pixels
bilinearly with zeros outside, and weighted by `mask`. Source: Zhu et al. 2018, Deformable
ConvNets v2, eq. 1.
"""
function DeformConv end

@operator function DeformConv(X, W, offset, B=nothing, mask=nothing; dilations=nothing, group=1,
                              kernel_shape=nothing, offset_group=1, pads=nothing,
                              strides=nothing)
    ndims(X) == 4 || unsupported("DeformConv over ", ndims(X) - 2, " spatial dimensions")
    dims = convolutiondims(X, W; auto_pad="NOTSET", dilations, group, kernel_shape, pads,
                           strides)
    wide = widefloat(X)
    taps = deformedtaps(wide, widefloat(offset), dims, Int(offset_group))
    weighted = mask === nothing ? taps : taps .* tapmask(widefloat(mask), taps)
    y = tapproducts(weighted, widefloat(W), dims, size(X, 3), size(X, 4))
    return narrowto(X, addchannelbias(y, widefloat(B)))
end

# Taps are (channels of an offset group, kernel, output pixels, offset groups, batch).
tapmask(mask, taps) = reshape(permutedims(reshape(mask, size(taps, 3), size(taps, 2),
                                                  size(taps, 4), size(taps, 5)), (2, 1, 3, 4)),
                              1, size(taps)[2:5]...)

function deformedtaps(x, offset, dims, offset_group)
    width, height, channels, batch = size(x)
    columns, rows = deformedpositions(offset, dims, offset_group)
    pixels = permutedims(reshape(x, width * height, channels ÷ offset_group, offset_group, batch),
                         (2, 1, 3, 4))
    table = reshape(pixels, channels ÷ offset_group, :)
    left, top = floor.(columns), floor.(rows)
    right, below = columns .- left, rows .- top
    corner(c, r, weight) =
        NNlib.gather(table, cornerindices(c, r, width, height)) .*
        reshape(weight .* insidepicture(c, r, width, height), 1, size(weight)...)
    return corner(left, top, (1 .- right) .* (1 .- below)) .+
           corner(left .+ 1, top, right .* (1 .- below)) .+
           corner(left, top .+ 1, (1 .- right) .* below) .+
           corner(left .+ 1, top .+ 1, right .* below)
end

function deformedpositions(offset, dims, offset_group)
    kernel, output = NNlib.kernel_size(dims), NNlib.output_size(dims)
    pixels, taps = prod(output), prod(kernel)
    moved = reshape(offset, pixels, 2, taps, offset_group, size(offset, 4))
    columns, rows = tapgrid(eltype(offset), dims)
    return permutedims(moved[:, 2, :, :, :], (2, 1, 3, 4)) .+ columns,
           permutedims(moved[:, 1, :, :, :], (2, 1, 3, 4)) .+ rows
end

function tapgrid(T, dims)
    (kw, kh), (ow, oh) = NNlib.kernel_size(dims), NNlib.output_size(dims)
    (sw, sh), (dw, dh) = NNlib.stride(dims), NNlib.dilation(dims)
    pw, _, ph, _ = NNlib.padding(dims)
    columns = [T(o * sw - pw + k * dw) for k in 0:(kw - 1), _ in 1:kh, o in 0:(ow - 1), _ in 1:oh]
    rows = [T(o * sh - ph + k * dh) for _ in 1:kw, k in 0:(kh - 1), _ in 1:ow, o in 0:(oh - 1)]
    return reshape(columns, kw * kh, ow * oh), reshape(rows, kw * kh, ow * oh)
end

insidepicture(c, r, width, height) = @. (0 <= c < width) & (0 <= r < height)

function cornerindices(c, r, width, height)
    planes = reshape(0:(size(c, 3) * size(c, 4) - 1), 1, 1, size(c, 3), size(c, 4))
    pixel(c, r, plane) = 1 + Int(clamp(c, 0, width - 1)) +
                         width * (Int(clamp(r, 0, height - 1)) + height * plane)
    return pixel.(c, r, planes)
end

@non_differentiable tapgrid(::Any...)
@non_differentiable insidepicture(::Any...)
@non_differentiable cornerindices(::Any...)

function tapproducts(taps, w, dims, channels, batch)
    group = NNlib.groupcount(dims)
    inputs, outputs = channels ÷ group, NNlib.channels_out(dims) ÷ group
    kernel, pixels = size(taps, 2), size(taps, 3)
    # Channels next to one another whatever the offset group: (channels, kernel, pixels, batch).
    ordered = reshape(permutedims(taps, (2, 1, 4, 3, 5)), kernel * inputs, group, pixels, batch)
    columns = reshape(permutedims(ordered, (3, 1, 2, 4)), pixels, kernel * inputs, group * batch)
    weights = reshape(w, kernel * inputs, outputs, group)
    repeated = reshape(repeat(weights, 1, 1, 1, batch), kernel * inputs, outputs, group * batch)
    return reshape(NNlib.batched_mul(columns, repeated), NNlib.output_size(dims)...,
                   group * outputs, batch)
end

"""
    CausalConvWithState(input, weight, bias, past_state; activation="none")

A convolution of each channel along its length, each value with those before it; what came before
the first is `past_state`, or zero. Sizes are length × channels × batch.
"""
function CausalConvWithState end

@operator function CausalConvWithState(input, weight, bias=nothing, past_state=nothing;
        activation="none")
    activation in ("none", "silu", "swish") || unsupported("activation ", activation)
    past = past_state === nothing ? nopast(input, size(weight, 1) - 1) : past_state
    padded = concatenated(1, past, input)
    y = Conv(padded, weight, bias; group=size(input, 2))
    activation == "none" || (y = narrowto(y, NNlib.swish.(widefloat(y))))
    return y, padded[(size(input, 1) + 1):end, :, :]
end

nopast(x, n) = fill!(similar(x, n, size(x, 2), size(x, 3)), 0)

ChainRulesCore.@non_differentiable nopast(::Any...)
