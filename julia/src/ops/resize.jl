# Operators that pad an array, or resample it along its dimensions.

@operator function Pad(
    data, padding=nothing, constant_value=nothing, along=nothing;
    pads=padding, mode="constant", value=0.0f0, axes=along,
)
    before, after = padwidths(ndims(data), pads, axes)
    mode == "constant" && return framed(data, before, after, something(constant_value, value))
    return mapped(paddingmaps(size(data), before, after, mode), data)
end

function padwidths(n, pads, onnxaxes)
    before, after = zeros(Int, n), zeros(Int, n)
    count = length(pads) ÷ 2
    for k in 1:count
        d = dimension(onnxaxes === nothing ? k - 1 : onnxaxes[k], n)
        before[d], after[d] = pads[k], pads[count + k]
    end
    return before, after
end

function paddingmaps(dims, before, after, mode)
    mode in ("reflect", "edge", "wrap") || unsupported("mode ", mode)
    padded = [d for d in eachindex(dims) if before[d] != 0 || after[d] != 0]
    return [
        Selection(d, dims[d], paddingindex(dims[d], before[d], after[d], mode)) for d in padded
    ]
end

function paddingindex(n, before, after, mode)
    mode != "edge" && before * after < 0 &&
        unsupported("mode ", mode, " that pads one end of an axis and crops the other")
    source = (1 - before):(n + after)
    mode == "edge" && return clamp.(source, 1, n)
    mode == "wrap" && return mod1.(source, n)
    n == 1 && return ones(Int, length(source))
    distance = mod.(source .- 1, 2n - 2)
    return min.(distance, 2n - 2 .- distance) .+ 1
end

"""
    framed(x, before, after, value)

`x` with `before` and `after` as many entries of `value` added at the ends of each dimension, or
taken away where negative.
"""
function framed(x, before, after, value)
    isempty(value) && return framed(x, before, after, 0)
    target, source = frameranges(size(x), before, after)
    y = similar(x, ntuple(d -> size(x, d) + before[d] + after[d], ndims(x)))
    fill!(y, convert(eltype(x), only(value)))
    view(y, target...) .= view(x, source...)
    return y
end

function ChainRulesCore.rrule(::typeof(framed), x, before, after, value)
    dims = size(x)
    constant(dy) = ntuple(_ -> NoTangent(), 5)
    function back(cotangent)
        dy = unthunk(cotangent)
        target, source = frameranges(dims, before, after)
        dx = fill!(similar(dy, dims), 0)
        view(dx, source...) .= view(dy, target...)
        dvalue = NoTangent()
        if value isa AbstractArray && length(value) == 1
            dvalue = fill!(similar(dy, size(value)), sum(dy) - sum(dx))
        end
        return NoTangent(), dx, NoTangent(), NoTangent(), dvalue
    end
    return framed(x, before, after, value), eltype(x) <: Integer ? constant : back
end

function frameranges(dims, before, after)
    first(d) = max(0, -before[d])
    count(d) = max(0, min(dims[d], dims[d] + after[d]) - first(d))
    target = ntuple(d -> (first(d) + before[d]) .+ (1:count(d)), length(dims))
    source = ntuple(d -> first(d) .+ (1:count(d)), length(dims))
    return target, source
end

"""
    Interpolation(dimension, length, index, weight)

`y[…, j, …] = Σₖ weight[k, j] x[…, index[k, j], …]`
"""
struct Interpolation <: AxisMap
    dimension::Int
    length::Int
    index::Matrix{Int}
    weight::Matrix{Float64}
end

function along(map::Interpolation, x::Array)
    x3 = folded(x, map.dimension)
    y3 = zeros(eltype(x), size(x3, 1), size(map.index, 2), size(x3, 3))
    gatherweighted!(y3, x3, map.index, eltype(x).(map.weight))
    return reshape(y3, resized(x, map.dimension, size(map.index, 2)))
end

function against(map::Interpolation, dy::Array)
    dy3 = folded(dy, map.dimension)
    dx3 = zeros(eltype(dy), size(dy3, 1), map.length, size(dy3, 3))
    scatterweighted!(dx3, dy3, map.index, eltype(dy).(map.weight))
    return reshape(dx3, resized(dy, map.dimension, map.length))
end

function gatherweighted!(y, x, index, weight)
    size(y, 1) == 1 && return gatherrows!(leadless(y), leadless(x), index, weight)
    for r in axes(y, 3), j in axes(y, 2), k in axes(index, 1)
        i, w = index[k, j], weight[k, j]
        iszero(w) && continue
        @inbounds @simd for l in axes(y, 1)
            y[l, j, r] += w * x[l, i, r]
        end
    end
end

function gatherrows!(y, x, index, weight)
    for r in axes(y, 2), j in axes(y, 1)
        total = zero(eltype(y))
        for k in axes(index, 1)
            w = weight[k, j]
            iszero(w) || (total += w * x[index[k, j], r])
        end
        y[j, r] = total
    end
end

function scatterweighted!(x, y, index, weight)
    size(x, 1) == 1 && return scatterrows!(leadless(x), leadless(y), index, weight)
    for r in axes(y, 3), j in axes(y, 2), k in axes(index, 1)
        i, w = index[k, j], weight[k, j]
        @inbounds @simd for l in axes(y, 1)
            x[l, i, r] += w * y[l, j, r]
        end
    end
end

function scatterrows!(x, y, index, weight)
    for r in axes(y, 2), j in axes(y, 1), k in axes(index, 1)
        x[index[k, j], r] += weight[k, j] * y[j, r]
    end
end

# Half precision is too coarse for sums of weighted neighbours.
along(map::Interpolation, x::Array{Float16}) = Float16.(along(map, Float32.(x)))
against(map::Interpolation, dy::Array{Float16}) = Float16.(against(map, Float32.(dy)))

function along(map::Interpolation, x)
    y3 = NNlib.batched_mul(folded(x, map.dimension), weightmatrix(map, x))
    return reshape(y3, resized(x, map.dimension, size(map.index, 2)))
end

function against(map::Interpolation, dy)
    dx3 = NNlib.batched_mul(folded(dy, map.dimension), permutedims(weightmatrix(map, dy)))
    return reshape(dx3, resized(dy, map.dimension, map.length))
end

function weightmatrix(map, x)
    matrix = zeros(eltype(x), map.length, size(map.index, 2))
    for j in axes(map.index, 2), k in axes(map.index, 1)
        matrix[map.index[k, j], j] += map.weight[k, j]
    end
    return copyto!(similar(x, size(matrix)), matrix)
end

@operator function Resize(
    X, roi=nothing, scales=nothing, sizes=nothing;
    antialias=0, axes=nothing, coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75f0, exclude_outside=0, extrapolation_value=0.0f0,
    keep_aspect_ratio_policy="stretch", mode="nearest", nearest_mode="round_prefer_floor", opset=19,
)
    opset < 11 && return upsampled(X, roi, mode)
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    region = crop ? roi : nothing
    target = resizetarget(size(X), region, scales, sizes, axes, keep_aspect_ratio_policy)
    method = resizemethod(
        mode, nearest_mode, coordinate_transformation_mode, cubic_coeff_a, antialias,
        exclude_outside,
    )
    y = mapped(resizing(X, target, method), X)
    crop || return y
    return keptwhere(y, insidecrop(X, target, method), extrapolation_value)
end

@operator function Upsample(X, factors=nothing; scales=factors, mode="nearest")
    return upsampled(X, scales, mode)
end

function upsampled(x, scales, mode)
    kind = mode == "bilinear" ? "linear" : mode
    method = resizemethod(kind, "simple", "asymmetric", -0.75f0, 0, 0)
    target = resizetarget(size(x), nothing, scales, nothing, nothing, "stretch")
    return mapped(resizing(x, target, method), x)
end

function resizemethod(mode, nearest_mode, coordinates, a, antialias, exclude_outside)
    mode in ("nearest", "linear", "cubic") || unsupported("mode ", mode)
    nearest_mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple") ||
        unsupported("nearest_mode ", nearest_mode)
    coordinates in (
        "half_pixel", "asymmetric", "tf_half_pixel_for_nn", "half_pixel_symmetric",
        "pytorch_half_pixel", "align_corners", "tf_crop_and_resize",
    ) || unsupported("coordinate_transformation_mode ", coordinates)
    return (;
        mode, nearest_mode, coordinates, a=Float64(a), antialias=antialias == 1,
        exclude=exclude_outside == 1,
    )
end

"""
    resizetarget(dims, roi, scales, sizes, axes, policy)

For each dimension, in Julia's order: the length to reach, the scale, and the region of interest.
"""
function resizetarget(dims, roi, scales, sizes, onnxaxes, policy)
    onnxaxes = something(onnxaxes, 0:(length(dims) - 1))
    order = [dimension(axis, length(dims)) for axis in onnxaxes]
    absent(x) = x === nothing || isempty(x)
    reached = if absent(scales)
        policy in ("stretch", "not_larger", "not_smaller") || unsupported("policy ", policy)
        sizedlengths(dims[order], sizes, policy)
    else
        absent(roi) || all(i -> roi[i] == 0 && roi[end - i + 1] == 1, eachindex(order)) ||
            unsupported("scales together with a region of interest")
        [(floor(Int, Float32(s) * n), Float64(s)) for (s, n) in zip(scales, dims[order])]
    end
    target = [(; length=n, scale=1.0, start=0.0, stop=1.0) for n in dims]
    for (k, d) in enumerate(order)
        start, stop = absent(roi) ? (0.0, 1.0) : Float64.((roi[k], roi[end - length(order) + k]))
        target[d] = (; length=reached[k][1], scale=reached[k][2], start, stop)
    end
    return target
end

function sizedlengths(lengths, sizes, policy)
    ratios = sizes ./ collect(lengths)
    policy == "stretch" && return collect(zip(Int.(sizes), ratios))
    scale = policy == "not_larger" ? minimum(ratios) : maximum(ratios)
    return [(floor(Int, scale * n + 0.5), scale) for n in lengths]
end

function resizing(x, target, method)
    maps = AxisMap[]
    for d in 1:ndims(x)
        n = size(x, d)
        whole = target[d].start == 0 && target[d].stop == 1
        target[d].scale == 1 && target[d].length == n && whole && continue
        source = sourcecoordinates(n, target[d], method)
        push!(maps, resampling(d, n, source, target[d].scale, method, eltype(x)))
    end
    return maps
end

"""
    sourcecoordinates(n, target, method)

Where in a dimension of length `n` (from 0) each entry of the resized one lies. The nearest entry is
looked for in single precision, as other runtimes do, so that ties fall alike.
"""
function sourcecoordinates(n, target, method)
    T = method.mode == "nearest" ? Float32 : Float64
    scale, start, stop = T(target.scale), T(target.start), T(target.stop)
    count = target.length
    return T[
        sourcecoordinate(T(x), n, count, scale, start, stop, method.coordinates) for
        x in 0:(count - 1)
    ]
end

function sourcecoordinate(x::T, n, count, scale::T, start::T, stop::T, mode) where {T}
    half = T(0.5)
    width = scale * n
    mode == "asymmetric" && return x / scale
    mode == "tf_half_pixel_for_nn" && return (x + half) / scale
    mode == "pytorch_half_pixel" && count == 1 && return zero(T)
    mode == "align_corners" && return width == 1 ? zero(T) : x * (n - 1) / (width - 1)
    if mode == "tf_crop_and_resize"
        count > 1 || return half * (start + stop) * (n - 1)
        return start * (n - 1) + x * ((stop - start) * (n - 1) / (count - 1))
    end
    offset = mode == "half_pixel_symmetric" ? n * half * (1 - count / width) : zero(T)
    return offset + ((x + half) / scale - half)
end

function insidecrop(x, target, method)
    n = ndims(x)
    function inside(d)
        source = sourcecoordinates(size(x, d), target[d], method)
        within = 0 .<= source .<= size(x, d) - 1
        return reshape(within, ntuple(k -> k == d ? length(source) : 1, n))
    end
    return reduce((a, b) -> a .& b, (inside(d) for d in 1:n))
end

function resampling(d, n, source, scale, method, T)
    method.mode == "nearest" && return nearestmap(d, n, source, scale, method.nearest_mode)
    T <: AbstractFloat || unsupported("mode ", method.mode, " for ", T)
    shrink = method.antialias ? min(scale, 1.0) : 1.0
    reach = ceil(Int, (method.mode == "linear" ? 1 : 2) / shrink)
    index = Matrix{Int}(undef, 2reach, length(source))
    weight = zeros(2reach, length(source))
    for (j, s) in enumerate(source)
        total = 0.0
        for k in 1:(2reach)
            i = ceil(Int, s) - 1 - reach + k
            index[k, j] = clamp(i + 1, 1, n)
            method.exclude && !(0 <= i < n) && continue
            distance = (i - s) * shrink
            weight[k, j] =
                method.mode == "linear" ? max(0.0, 1 - abs(distance)) :
                cubicweight(distance, method.a)
            total += weight[k, j]
        end
        (method.exclude || method.antialias) && total != 0 && (weight[:, j] ./= total)
    end
    return Interpolation(d, n, index, weight)
end

"""
    cubicweight(t, a)

Keys' cubic convolution kernel at distance `t`. Source: Keys 1981, eq. 4.
"""
function cubicweight(t, a)
    s = abs(t)
    s <= 1 && return (a + 2) * s^3 - (a + 3) * s^2 + 1
    s < 2 && return a * s^3 - 5a * s^2 + 8a * s - 4a
    return zero(s)
end

function nearestmap(d, n, source, scale, rounding)
    index = Int[clamp(nearestof(s, scale, rounding) + 1, 1, n) for s in source]
    times = n == 0 ? 0 : length(index) ÷ n
    index == repeat(1:n; inner=times) && return Repetition(d, n, times, true)
    return Selection(d, n, index)
end

function nearestof(x::T, scale, rounding) where {T}
    rounding == "round_prefer_floor" && return ceil(Int, x - T(0.5))
    rounding == "round_prefer_ceil" && return floor(Int, x + T(0.5))
    upward = rounding == "ceil" || rounding == "simple" && scale < 1
    return upward ? ceil(Int, x) : floor(Int, x)
end

@non_differentiable padwidths(::Any...)
@non_differentiable paddingmaps(::Any...)
@non_differentiable resizemethod(::Any...)
@non_differentiable resizetarget(::Any...)
@non_differentiable resizing(::Any...)
@non_differentiable insidecrop(::Any...)
