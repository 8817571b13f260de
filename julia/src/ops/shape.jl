# Operators that change or report an array's shape, and those that make arrays of a given shape.

@operator function Reshape(data, shape; allowzero=0)
    return reshape(data, reshapedsize(size(data), shape, allowzero == 1))
end

function reshapedsize(dims, shape, allowzero)
    n = length(dims)
    lengths = Int[s == 0 && !allowzero ? dims[n - k + 1] : s for (k, s) in enumerate(shape)]
    free = findfirst(==(-1), lengths)
    if free !== nothing
        others = -prod(lengths)
        others > 0 || throw(ArgumentError("shape $shape leaves -1 undetermined for size $dims"))
        lengths[free] = prod(dims) ÷ others
    end
    return Tuple(reverse(lengths))
end

@operator function Flatten(input; axis=1)
    return reshape(input, flattenedsize(size(input), axis))
end

function flattenedsize(dims, axis)
    inner = length(dims) - (axis < 0 ? axis + length(dims) : axis)
    return prod(dims[1:inner]; init=1), prod(dims[(inner + 1):end]; init=1)
end

@operator function Squeeze(data, along=nothing; axes=along)
    return reshape(data, squeezedsize(size(data), axes))
end

function squeezedsize(dims, onnxaxes)
    onnxaxes === nothing && return Tuple(n for n in dims if n != 1)
    dropped = [dimension(axis, length(dims)) for axis in onnxaxes]
    all(d -> dims[d] == 1, dropped) ||
        throw(ArgumentError("axes $onnxaxes of an array of size $dims aren't all 1"))
    return Tuple(dims[d] for d in eachindex(dims) if !(d in dropped))
end

@operator function Unsqueeze(data, along=nothing; axes=along)
    return reshape(data, unsqueezedsize(size(data), axes))
end

function unsqueezedsize(dims, onnxaxes)
    n = length(dims) + length(onnxaxes)
    lengths = zeros(Int, n)
    lengths[[dimension(axis, n) for axis in onnxaxes]] .= -1
    lengths[lengths .== 0] = collect(dims)
    return Tuple(abs.(lengths))
end

@operator function Transpose(data; perm=nothing)
    order = permutation(ndims(data), perm)
    issorted(order) && return data
    return permutedims(data, order)
end

function permutation(n, perm)
    perm === nothing && return Tuple(n:-1:1)
    return Tuple(Int(n - axis) for axis in reverse(perm))
end

@nondifferentiable function Shape(data; start=0, var"end"=nothing)
    shape = Int[reverse(size(data))...]
    stop = something(var"end", length(shape))
    return shape[slicerange(length(shape), start, stop, 1)]
end

@nondifferentiable Size(data) = fill(length(data))

@operator function Concat(inputs...; axis)
    return concatenated(dimension(axis, first(inputs)), inputs...)
end

"""
    concatenated(d, xs...)

Arrays of one element type, one after another along dimension `d`.
"""
function concatenated(d, xs...)
    y = similar(first(xs), resized(first(xs), d, sum(x -> size(x, d), xs)))
    y3 = folded(y, d)
    stop = 0
    for x in xs
        start, stop = stop + 1, stop + size(x, d)
        y3[:, start:stop, :] = folded(x, d)
    end
    return y
end

function ChainRulesCore.rrule(::typeof(concatenated), d, xs...)
    lengths = map(x -> size(x, d), xs)
    constant(dy) = ntuple(_ -> NoTangent(), length(xs) + 2)
    back(dy) = (NoTangent(), NoTangent(), parts(unthunk(dy), d, lengths)...)
    return concatenated(d, xs...), eltype(first(xs)) <: Integer ? constant : back
end

@operator function Split(
    input, sizes=nothing; axis=0, split=sizes, num_outputs=nothing, outputs=1, opset=18
)
    d = dimension(axis, input)
    lengths = splitlengths(size(input, d), split, something(num_outputs, outputs), opset)
    return parts(input, d, lengths)
end

function splitlengths(n, split, count, opset)
    if split === nothing
        opset < 18 && n % count != 0 &&
            throw(ArgumentError("$n don't split into $count equal parts"))
        each = cld(n, count)
        return Int[clamp(n - (k - 1) * each, 0, each) for k in 1:count]
    end
    sum(split; init=0) == n || throw(ArgumentError("split $split doesn't add up to $n"))
    return Int.(split)
end

"""
    parts(x, d, lengths)

`x` cut along dimension `d` into arrays of `lengths`.
"""
function parts(x, d, lengths)
    x3 = folded(x, d)
    stops = cumsum([lengths...])
    part(k) = reshape(x3[:, (stops[k] - lengths[k] + 1):stops[k], :], resized(x, d, lengths[k]))
    return Tuple(part(k) for k in eachindex(lengths))
end

function ChainRulesCore.rrule(::typeof(parts), x, d, lengths)
    dims = size(x)
    constant(dys) = ntuple(_ -> NoTangent(), 4)
    function back(dys)
        cotangents = [unthunk(dys[k]) for k in eachindex(lengths)]
        present = findfirst(dy -> dy isa AbstractArray, cotangents)
        present === nothing && return constant(dys)
        dx = fill!(similar(cotangents[present], dims), 0)
        dx3 = folded(dx, d)
        stops = cumsum([lengths...])
        for (k, dy) in enumerate(cotangents)
            dy isa AbstractArray || continue
            dx3[:, (stops[k] - lengths[k] + 1):stops[k], :] = folded(dy, d)
        end
        return NoTangent(), dx, NoTangent(), NoTangent()
    end
    return parts(x, d, lengths), eltype(x) <: Integer ? constant : back
end

@operator function Expand(input, shape)
    return expanded(input, expandedsize(size(input), shape))
end

expandedsize(dims, shape) = Base.Broadcast.broadcast_shape(dims, Tuple(Int.(reverse(shape))))

expanded(x, dims) = size(x) == dims ? x : similar(x, dims) .= x

function ChainRulesCore.rrule(::typeof(expanded), x, dims)
    from = size(x)
    constant(dy) = (NoTangent(), NoTangent(), NoTangent())
    function back(dy)
        grown = Tuple(d for d in eachindex(dims) if get(from, d, 1) != dims[d])
        dx = reshape(sum(unthunk(dy); dims=grown), from)
        return NoTangent(), dx, NoTangent()
    end
    return expanded(x, dims), eltype(x) <: Integer ? constant : back
end

"""
    Repetition(dimension, length, times, each)

Entries along a dimension `times` over: each entry in its place where `each`, else all of them in
turn.
"""
struct Repetition <: AxisMap
    dimension::Int
    length::Int
    times::Int
    each::Bool
end

function along(map::Repetition, x)
    y = similar(x, resized(x, map.dimension, map.times * map.length))
    y3 = repetitions(map, y)
    x3 = reshape(x, size(y3, 1), 1, size(y3, 3))
    for k in 1:(map.times)
        copyof(y3, k) .= copyof(x3, 1)
    end
    return y
end

function against(map::Repetition, dy)
    dy3 = repetitions(map, dy)
    dx = fill!(similar(dy, resized(dy, map.dimension, map.length)), 0)
    dx3 = reshape(dx, size(dy3, 1), 1, size(dy3, 3))
    for k in 1:(map.times)
        copyof(dx3, 1) .+= copyof(dy3, k)
    end
    return dx
end

"""
    repetitions(map, y)

The copies that make up `y`, along the second of three dimensions.
"""
function repetitions(map::Repetition, y)
    dims = resized(y, map.dimension, map.length)
    inner = prod(dims[k] for k in 1:(map.dimension - map.each); init=1)
    outer = prod(dims[k] for k in (map.dimension + 1 - map.each):length(dims); init=1)
    return reshape(y, inner, map.times, outer)
end

copyof(y3, k) = size(y3, 1) == 1 ? view(y3, 1, k, :) : view(y3, :, k, :)

@operator Tile(input, repeats) = mapped(tiling(size(input), repeats), input)

function tiling(dims, repeats)
    times = reverse(repeats)
    return [Repetition(d, dims[d], times[d], false) for d in eachindex(dims) if times[d] != 1]
end

@nondifferentiable function ConstantOfShape(input; value=zeros(Float32, 1))
    return fill(only(value), Tuple(Int.(reverse(input))))
end

@nondifferentiable function Constant(;
    value=nothing, value_float=nothing, value_floats=nothing, value_int=nothing,
    value_ints=nothing, value_string=nothing, value_strings=nothing, sparse_value=nothing,
)
    value === nothing || return value
    value_float === nothing || return fill(Float32(value_float))
    value_floats === nothing || return Vector{Float32}(value_floats)
    value_int === nothing || return fill(Int64(value_int))
    value_ints === nothing || return Vector{Int64}(value_ints)
    sparse_value === nothing || unsupported("a sparse constant")
    return unsupported("a constant of strings")
end

@nondifferentiable function Range(start, limit, delta)
    return rangeof(only(start), only(limit), only(delta))
end

function rangeof(start::Integer, limit, delta)
    n = max(cld(Int(limit) - Int(start), Int(delta)), 0)
    return [oftype(start, start + k * delta) for k in 0:(n - 1)]
end

function rangeof(start, limit, delta)
    from, step = Float64(start), Float64(delta)
    n = max(ceil(Int, (Float64(limit) - from) / step), 0)
    return [oftype(start, from + k * step) for k in 0:(n - 1)]
end

@nondifferentiable function EyeLike(input; dtype=nothing, k=0)
    T = dtype === nothing ? eltype(input) : eyetype(dtype)
    return T[j - i == k for j in axes(input, 1), i in axes(input, 2)]
end

function eyetype(dtype)
    dtype == 1 && return Float32
    dtype == 2 && return UInt8
    dtype == 3 && return Int8
    dtype == 4 && return UInt16
    dtype == 5 && return Int16
    dtype == 6 && return Int32
    dtype == 7 && return Int64
    dtype == 9 && return Bool
    dtype == 10 && return Float16
    dtype == 11 && return Float64
    dtype == 12 && return UInt32
    dtype == 13 && return UInt64
    return unsupported("element type ", dtype)
end

@operator function DepthToSpace(input; blocksize, mode="DCR")
    W, H, C, N = size(input)
    b = blocksize
    mode in ("DCR", "CRD") || unsupported("mode ", mode)
    y = if mode == "DCR"
        permutedims(reshape(input, W, H, C ÷ b^2, b, b, N), (4, 1, 5, 2, 3, 6))
    else
        permutedims(reshape(input, W, H, b, b, C ÷ b^2, N), (3, 1, 4, 2, 5, 6))
    end
    return reshape(y, b * W, b * H, C ÷ b^2, N)
end

@operator function SpaceToDepth(input; blocksize, mode="DCR")
    W, H, C, N = size(input)
    b = blocksize
    mode in ("DCR", "CRD") || unsupported("mode ", mode)
    blocks = reshape(input, b, W ÷ b, b, H ÷ b, C, N)
    order = mode == "DCR" ? (2, 4, 5, 1, 3, 6) : (2, 4, 1, 3, 5, 6)
    return reshape(permutedims(blocks, order), W ÷ b, H ÷ b, C * b^2, N)
end

@operator function Trilu(input, k=nothing; upper=1)
    return keptwhere(input, triangularmask(size(input), k === nothing ? 0 : only(k), upper == 1), 0)
end

function triangularmask(dims, k, upper)
    return [upper ? j - i >= k : j - i <= k for j in 1:dims[1], i in 1:dims[2]]
end

"""
    keptwhere(x, keep, value)

`x` where `keep`, else `value`.
"""
keptwhere(x, keep, value) = array(ifelse.(keep, x, convert(eltype(x), value)))

function ChainRulesCore.rrule(::typeof(keptwhere), x, keep, value)
    constant(dy) = ntuple(_ -> NoTangent(), 4)
    back(dy) = (NoTangent(), keptwhere(unthunk(dy), keep, 0), NoTangent(), NoTangent())
    return keptwhere(x, keep, value), eltype(x) <: Integer ? constant : back
end

@operator function CenterCropPad(input_data, shape; axes=nothing)
    return framed(input_data, centering(size(input_data), shape, axes)..., 0)
end

function centering(dims, shape, onnxaxes)
    before, after = zeros(Int, length(dims)), zeros(Int, length(dims))
    for (k, n) in enumerate(shape)
        d = dimension(onnxaxes === nothing ? k - 1 : onnxaxes[k], length(dims))
        difference = abs(n - dims[d])
        before[d] = sign(n - dims[d]) * (difference ÷ 2)
        after[d] = sign(n - dims[d]) * (difference - difference ÷ 2)
    end
    return before, after
end

@operator function ReverseSequence(input, sequence_lens; batch_axis=1, time_axis=0)
    batch, time = dimension(batch_axis, input), dimension(time_axis, input)
    return selected(input, reversedpositions(input, sequence_lens, batch, time))
end

function reversedpositions(x, lengths, batch, time)
    linear = LinearIndices(x)
    function place(I)
        t, n = I[time], Int(lengths[I[batch]])
        return CartesianIndex(Base.setindex(Tuple(I), t <= n ? n - t + 1 : t, time))
    end
    return Int[linear[place(I)] for I in CartesianIndices(x)]
end

@non_differentiable reshapedsize(::Any...)
@non_differentiable flattenedsize(::Any...)
@non_differentiable squeezedsize(::Any...)
@non_differentiable unsqueezedsize(::Any...)
@non_differentiable permutation(::Any...)
@non_differentiable splitlengths(::Any...)
@non_differentiable expandedsize(::Any...)
@non_differentiable tiling(::Any...)
@non_differentiable triangularmask(::Any...)
@non_differentiable centering(::Any...)
@non_differentiable reversedpositions(::Any...)
