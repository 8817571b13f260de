# Quantization: integers that stand for (integer - zero point) * scale.

const QUANTIZED_CODES = Dict(2 => UInt8, 3 => Int8, 4 => UInt16, 5 => Int16)

"""
    quantizationshape(p, x, axis, block_size)

A scale or zero point in a shape that broadcasts to `x`: one value for all, one for each index along
`axis`, or one for each block along it.
"""
function quantizationshape(p, x, axis, block_size)
    if block_size > 0
        d = dimension(axis, x)
        blocks = cld.(axes(x, d), block_size)
        return p[ntuple(i -> i == d ? blocks : Colon(), ndims(x))...]
    end
    length(p) == 1 && return reshape(p, ntuple(_ -> 1, ndims(x)))
    d = dimension(axis, x)
    ndims(p) == 1 && length(p) == size(x, d) ||
        throw(DimensionMismatch("scale of size $(size(p)) for $(size(x, d)) along axis $axis"))
    return reshape(p, ntuple(i -> i == d ? length(p) : 1, ndims(x)))
end

"""
    saturated(T, value, zero_point)

`value` rounded to the nearest integer (half to even), moved by `zero_point` and clamped to `T`.
"""
function saturated(::Type{T}, value, zero_point) where {T}
    rounded = round(Float32(value)) + Float32(zero_point)
    isnan(rounded) && return T(zero_point)
    return unsafe_trunc(T, clamp(rounded, Float32(typemin(T)), Float32(typemax(T))))
end

@nondifferentiable function QuantizeLinear(x, y_scale, y_zero_point=nothing; axis=1,
                                           block_size=0, output_dtype=0, precision=0, saturate=1)
    T = quantizedtype(y_zero_point, output_dtype)
    haskey(FLOAT_CODES, precision) || precision == 0 ||
        unsupported("quantization in element type ", precision)
    P = precision == 0 ? eltype(y_scale) : FLOAT_CODES[precision]
    scale = quantizationshape(array(P.(y_scale)), x, axis, block_size)
    y_zero_point === nothing && return array(saturated.(T, P.(x) ./ scale, 0))
    zero_point = quantizationshape(y_zero_point, x, axis, block_size)
    return array(saturated.(T, P.(x) ./ scale, zero_point))
end

quantizedtype(::Nothing, code) = code == 0 ? UInt8 : quantizedtype(code)
function quantizedtype(zero_point, code)
    eltype(zero_point) in values(QUANTIZED_CODES) ||
        unsupported("quantization to ", eltype(zero_point))
    code == 0 || quantizedtype(code) === eltype(zero_point) ||
        throw(ArgumentError("output_dtype $code isn't the zero point's type"))
    return eltype(zero_point)
end
function quantizedtype(code)
    haskey(QUANTIZED_CODES, code) || unsupported("quantization to element type ", code)
    return QUANTIZED_CODES[code]
end

@operator function DequantizeLinear(x, x_scale, x_zero_point=nothing; axis=1, block_size=0,
                                    output_dtype=0)
    output_dtype == 0 || haskey(FLOAT_CODES, output_dtype) ||
        unsupported("dequantization to element type ", output_dtype)
    eltype(x) <: Integer || unsupported("dequantization of ", eltype(x))
    T = output_dtype == 0 ? eltype(x_scale) : FLOAT_CODES[output_dtype]
    scale = quantizationshape(x_scale, x, axis, block_size)
    y = dequantized(x, x_zero_point, axis, block_size) .* scale
    return array(narrowto(T[], y))
end

function dequantized(x, zero_point, axis, block_size)
    zero_point === nothing && return Float32.(x)
    return Float32.(Int32.(x) .- Int32.(quantizationshape(zero_point, x, axis, block_size)))
end

@non_differentiable dequantized(::Any...)

@nondifferentiable function DynamicQuantizeLinear(x)
    low, high = min(minimum(x; init=0f0), 0f0), max(maximum(x; init=0f0), 0f0)
    scale = (high == low ? 1f0 : high - low) / 255f0
    zero_point = saturated(UInt8, -low / scale, 0)
    return array(saturated.(UInt8, x ./ scale, zero_point)), fill(scale), fill(zero_point)
end

"""
    requantize(T, sums, scale, zero_point)

Sums of products of integers as integers of another scale.
"""
requantize(sums, scale, zero_point) =
    saturated.(eltype(zero_point), Float32.(sums) .* scale, zero_point)

@nondifferentiable function QLinearConv(x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale,
                                        y_zero_point, B=nothing; auto_pad="NOTSET",
                                        dilations=nothing, group=1, kernel_shape=nothing,
                                        pads=nothing, strides=nothing)
    sums = integerconvolution(x, w, only(x_zero_point), w_zero_point; auto_pad, dilations, group,
                              kernel_shape, pads, strides)
    biased = B === nothing ? sums : sums .+ channelshape(B, ndims(x))
    scale = Float32.(only(x_scale) .* vec(w_scale) ./ only(y_scale))
    shaped = length(scale) == 1 ? only(scale) : channelshape(scale, ndims(x))
    return requantize(biased, shaped, only(y_zero_point))
end

@nondifferentiable function QLinearMatMul(a, a_scale, a_zero_point, b, b_scale, b_zero_point,
                                          y_scale, y_zero_point)
    left = Float64.(a) .- Float64.(rowvalues(a_zero_point))
    right = Float64.(b) .- Float64.(b_zero_point)
    scale = Float32.(rowvalues(a_scale) .* b_scale ./ rowvalues(y_scale))
    return array(requantize(MatMul(left, right), scale, rowvalues(y_zero_point)))
end

# One value a row of a matrix: along the second of Julia's dimensions.
rowvalues(p) = ndims(p) == 1 && length(p) > 1 ? transpose(p) : length(p) == 1 ? only(p) : p
