# Pooling over sliding windows and over whole pictures, and max unpooling.

"""
    Windows

Sliding windows over `spatial` dimensions, filled up to three with ones. `pads` are the node's,
`(low, high)`; a window may reach beyond `high` where the output size was rounded up. `rows` are the
first and last outputs of a row, from 0, that have each tap of the kernel's first dimension inside.
"""
struct Windows
    spatial::Int
    input::NTuple{3,Int}
    output::NTuple{3,Int}
    kernel::NTuple{3,Int}
    stride::NTuple{3,Int}
    dilation::NTuple{3,Int}
    pads::NTuple{3,Tuple{Int,Int}}
    rows::Vector{Tuple{Int,Int}}
end

function slidingwindows(x; auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    n = ndims(x) - 2
    1 <= n <= 3 || unsupported("pooling over ", n, " spatial dimensions")
    kernel = spatialvalues(kernel_shape, n, 1)
    stride = spatialvalues(strides, n, 1)
    dilation = spatialvalues(dilations, n, 1)
    input = size(x)[1:n]
    extent = dilation .* (kernel .- 1) .+ 1
    # Negative pads by ONNX's formula, which runtimes disagree about unless only the end has one.
    total = (cld.(input, stride) .- 1) .* stride .+ extent .- input
    startswith(auto_pad, "SAME") && any(<(auto_pad == "SAME_UPPER" ? -1 : 0), total) &&
        unsupported(auto_pad, " where the stride exceeds the kernel")
    both = spatialpads(auto_pad, pads, input, extent, stride)
    output = ntuple(n) do i
        room = input[i] + sum(both[i]) - extent[i]
        # Automatic padding has its own rule, whatever ceil_mode.
        rounded = ceil_mode == 0 || !(auto_pad in ("NOTSET", ""))
        count = (rounded ? fld(room, stride[i]) : cld(room, stride[i])) + 1
        startsinpadding = !rounded && (count - 1) * stride[i] >= input[i] + both[i][1]
        return max(count - startsinpadding, 0)
    end
    three(values, filler) = ntuple(i -> i <= n ? values[i] : filler, 3)
    rows = map(1:kernel[1]) do k
        shift = (k - 1) * dilation[1] - both[1][1]
        (max(0, cld(-shift, stride[1])), min(output[1] - 1, fld(input[1] - 1 - shift, stride[1])))
    end
    return Windows(n, three(input, 1), three(output, 1), three(kernel, 1), three(stride, 1),
                   three(dilation, 1), three(both, (0, 0)), rows)
end

@non_differentiable slidingwindows(::Any...)

outputsize(x, w::Windows) = (w.output[1:(w.spatial)]..., size(x)[(w.spatial + 1):end]...)
inputplanes(x, w::Windows) = reshape(x, prod(w.input), :)
outputplanes(y, w::Windows) = reshape(y, prod(w.output), :)

"""
    eachwindowrow(f, w::Windows)

Call `f(output, input, count)` for each row of outputs and each tap of the kernel, in the order of
the inputs: outputs `output .+ (0:count-1)` see inputs `input .+ (0:count-1) .* stride`, as linear
indices of a plane.
"""
@inline function eachwindowrow(f, w::Windows)
    n1, n2, n3 = w.input
    m1, m2, m3 = w.output
    low = map(first, w.pads)
    for o3 in 1:m3, o2 in 1:m2, k3 in 1:w.kernel[3]
        i3 = (o3 - 1) * w.stride[3] + (k3 - 1) * w.dilation[3] - low[3]
        0 <= i3 < n3 || continue
        for k2 in 1:w.kernel[2]
            i2 = (o2 - 1) * w.stride[2] + (k2 - 1) * w.dilation[2] - low[2]
            0 <= i2 < n2 || continue
            for k1 in 1:w.kernel[1]
                from, to = w.rows[k1]
                from <= to || continue
                i1 = from * w.stride[1] + (k1 - 1) * w.dilation[1] - low[1]
                f(1 + from + m1 * (o2 - 1 + m2 * (o3 - 1)), 1 + i1 + n1 * (i2 + n2 * i3),
                  to - from + 1)
            end
        end
    end
end

"""
    eachpair(f, output, input, count, stride)

Call `f(o, i)` for the `count` outputs and inputs of a row; those of stride 1 together.
"""
@inline function eachpair(f, output, input, count, stride)
    if stride == 1
        @simd ivdep for j in 0:(count - 1)
            f(output + j, input + j)
        end
    else
        for j in 0:(count - 1)
            f(output + j, input + stride * j)
        end
    end
end

isgreater(v, m) = (v > m) | (v != v)

"""
    maxwindows(x, w::Windows)

The largest value of each window, a NaN if there is one. Padding counts as `-Inf`.
"""
maxwindows(x::Array, w::Windows) = reducewindows(larger, typemin(eltype(x)), x, w)

larger(m, v) = ifelse(isgreater(v, m), v, m)

"""
    reducewindows(op, init, x, w::Windows)

Each window reduced by `op`: rows of inputs to a line, with `init` in the padding, and then the 
line.
"""
function reducewindows(op, init, x, w::Windows)
    y = similar(x, outputsize(x, w))
    xs, ys = inputplanes(x, w), outputplanes(y, w)
    inthreads(axes(xs, 2)) do plane
        line = fill(init, linelength(w))
        for output in 1:(w.output[2] * w.output[3])
            fill!(line, init)
            eachinputrow(w, output) do from, to, count
                reducerow!(op, line, xs, from, to, count, plane)
            end
            reduceline!(op, ys, line, w, output, plane)
        end
    end
    return y
end

function reducerow!(op, line, xs, from, to, count, plane)
    @inbounds @simd ivdep for j in 1:count
        line[to + j] = op(line[to + j], xs[from + j, plane])
    end
end

function reduceline!(op, ys, line, w, output, plane)
    stride, dilation, taps = w.stride[1], w.dilation[1], w.kernel[1] - 1
    start = (output - 1) * w.output[1]
    @inbounds for o in 1:w.output[1]
        i = 1 + (o - 1) * stride
        value = line[i]
        for k in 1:taps
            value = op(value, line[i + k * dilation])
        end
        ys[start + o, plane] = value
    end
end

"""
    eachinputrow(f, w::Windows, output)

Call `f(from, to, count)` for the rows of inputs that a row of outputs sees: inputs
`from .+ (1:count)` of the plane are `to .+ (1:count)` of the line.
"""
@inline function eachinputrow(f, w::Windows, output)
    n1, n2, n3 = w.input
    low = map(first, w.pads)
    count = min(n1, linelength(w) - low[1])
    count > 0 || return
    o3, o2 = fldmod(output - 1, w.output[2])
    for k3 in 0:(w.kernel[3] - 1), k2 in 0:(w.kernel[2] - 1)
        i3 = o3 * w.stride[3] + k3 * w.dilation[3] - low[3]
        i2 = o2 * w.stride[2] + k2 * w.dilation[2] - low[2]
        0 <= i3 < n3 && 0 <= i2 < n2 && f(n1 * (i2 + n2 * i3), low[1], count)
    end
end

linelength(w::Windows) =
    max((w.output[1] - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1, 0)

maxwindows(x::AbstractArray, w::Windows) = NNlib.maxpool(x, pooldims(x, w))

function pooldims(x, w::Windows)
    n = w.spatial
    high = map((m, s, k, d, i, p) -> max((m - 1) * s + (k - 1) * d + 1 - i - p[1], 0),
               w.output, w.stride, w.kernel, w.dilation, w.input, w.pads)
    padding = flatpads(ntuple(i -> (w.pads[i][1], high[i]), n))
    return PoolDims(size(x), w.kernel[1:n]; stride=w.stride[1:n], padding,
                    dilation=w.dilation[1:n])
end

@non_differentiable pooldims(::Any...)

"""
    maxpositions(x, w::Windows)

Where each window has its (first) largest value, as a linear index of the plane; 0 for a window in
the padding.
"""
function maxpositions(x, w::Windows)
    positions = zeros(Int, outputsize(x, w))
    xs, at = inputplanes(x, w), outputplanes(positions, w)
    inthreads(axes(xs, 2)) do plane
        positionsplane!(at, xs, w, plane)
    end
    return positions
end

function positionsplane!(at, xs, w, plane)
    eachwindowrow(w) do output, input, count
        for j in 0:(count - 1)
            i, before = input + j * w.stride[1], at[output + j, plane]
            better = before == 0 || isgreater(xs[i, plane], xs[before, plane]) &&
                                    !isnan(xs[before, plane])
            at[output + j, plane] = better ? i : before
        end
    end
end

@non_differentiable maxpositions(::Any...)

function ChainRulesCore.rrule(::typeof(maxwindows), x::Array, w::Windows)
    y = maxwindows(x, w)
    maxwindows_pullback(dy) = (NoTangent(), maxwindowsgradient(unthunk(dy), y, x, w), NoTangent())
    return y, maxwindows_pullback
end

# The first of equal values takes the gradient: what is left for others is zero then.
function maxwindowsgradient(dy, y, x, w::Windows)
    dx, left = zero(x), copyto!(similar(y), dy)
    dxs, lefts, ys, xs = inputplanes(dx, w), outputplanes(left, w), outputplanes(y, w),
                         inputplanes(x, w)
    inthreads(axes(xs, 2)) do plane
        maxplanegradient!(dxs, lefts, ys, xs, w, plane)
    end
    return dx
end

function maxplanegradient!(dxs, lefts, ys, xs, w, plane)
    eachwindowrow(w) do output, input, count
        eachpair(output, input, count, w.stride[1]) do o, i
            @inbounds begin
                v, share = xs[i, plane], lefts[o, plane]
                chosen = (v == ys[o, plane]) | (v != v)
                dxs[i, plane] += ifelse(chosen, share, zero(share))
                lefts[o, plane] = ifelse(chosen, zero(share), share)
            end
        end
    end
end

"""
    sumwindows(x, w::Windows)

The sum of each window; `addwindows` is its adjoint.
"""
sumwindows(x::Array, w::Windows) = reducewindows(+, zero(eltype(x)), x, w)
sumwindows(x::AbstractArray, w::Windows) = NNlib.meanpool(x, pooldims(x, w)) .* prod(w.kernel)

function addwindows(dy, x, w::Windows)
    dx = zero(x)
    dxs, dys = inputplanes(dx, w), outputplanes(dy, w)
    inthreads(axes(dxs, 2)) do plane
        line = zeros(eltype(x), linelength(w))
        for output in 1:(w.output[2] * w.output[3])
            spreadline!(fill!(line, 0), dys, w, output, plane)
            eachinputrow(w, output) do from, to, count
                addrow!(dxs, line, from, to, count, plane)
            end
        end
    end
    return dx
end

function spreadline!(line, dys, w, output, plane)
    start = (output - 1) * w.output[1]
    @inbounds for o in 1:w.output[1], k in 0:(w.kernel[1] - 1)
        line[1 + (o - 1) * w.stride[1] + k * w.dilation[1]] += dys[start + o, plane]
    end
end

function addrow!(dxs, line, from, to, count, plane)
    @inbounds @simd ivdep for j in 1:count
        dxs[from + j, plane] += line[to + j]
    end
end

function ChainRulesCore.rrule(::typeof(sumwindows), x::Array, w::Windows)
    sumwindows_pullback(dy) = (NoTangent(), addwindows(unthunk(dy), x, w), NoTangent())
    return sumwindows(x, w), sumwindows_pullback
end

@operator function MaxPool(X; auto_pad="NOTSET", ceil_mode=0, dilations=nothing, kernel_shape,
                           pads=nothing, storage_order=0, strides=nothing, outputs=1)
    windows = slidingwindows(X; auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    y = maxwindows(X, windows)
    return outputs == 1 ? y : (y, maxindices(X, windows, storage_order))
end

"""
    maxindices(x, w::Windows, storage_order)

Indices from 0 into the whole `x`, in the order of its bytes, or with ONNX's first spatial
dimension the fastest if `storage_order` is 1.
"""
function maxindices(x, w::Windows, storage_order)
    positions = maxpositions(x, w)
    order = reshape(0:(prod(w.input) - 1), w.input)
    if storage_order == 1
        n = w.spatial
        sizes = w.input[1:n]
        order = permutedims(reshape(0:(prod(sizes) - 1), reverse(sizes)), n:-1:1)
    end
    planes = reshape(0:(size(outputplanes(positions, w), 2) - 1), ntuple(_ -> 1, w.spatial)...,
                     size(x)[(w.spatial + 1):end]...)
    index(position, plane) = position == 0 ? -1 : order[position] + plane * length(order)
    return index.(positions, planes)
end

@non_differentiable maxindices(::Any...)

@operator function AveragePool(X; auto_pad="NOTSET", ceil_mode=0, count_include_pad=0,
                               dilations=nothing, kernel_shape, pads=nothing, strides=nothing)
    windows = slidingwindows(X; auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    x = widefloat(X)
    counts = windowcounts(windows, count_include_pad != 0)
    return narrowto(X, sumwindows(x, windows) .* likearray(x, inv.(counts)))
end

"""
    windowcounts(w::Windows, padded)

How many elements each window has, with those in the node's own padding or without.
"""
function windowcounts(w::Windows, padded)
    counts = ntuple(3) do i
        low, high = padded ? w.pads[i] : (0, 0)
        taps = range(-w.pads[i][1]; step=w.dilation[i], length=w.kernel[i])
        starts = (0:(w.output[i] - 1)) .* w.stride[i]
        line = [count(t -> -low <= s + t < w.input[i] + high, taps) for s in starts]
        reshape(line, ntuple(j -> j == i ? length(line) : 1, 3))
    end
    return reshape(max.(.*(counts...), 1), w.output[1:(w.spatial)])
end

likearray(x, values) = copyto!(similar(x, size(values)), convert(Array{eltype(x)}, values))

@non_differentiable windowcounts(::Any...)
@non_differentiable likearray(::Any...)

lppower(x, p) = p == 1 ? abs.(x) : p == 2 ? abs2.(x) : abs.(x) .^ p

"""
    lproots(s, p)

`s .^ (1 / p)`, where a sum that is zero has no gradient.
"""
lproots(s, p) = p == 1 ? s : p == 2 ? sqrt.(s) : s .^ (one(eltype(s)) / p)

function ChainRulesCore.rrule(::typeof(lproots), s, p)
    y = lproots(s, p)
    slope(y, s) = iszero(s) ? zero(y) : y / (p * s)
    lproots_pullback(dy) = (NoTangent(), unthunk(dy) .* slope.(y, s), NoTangent())
    return y, lproots_pullback
end

@operator function LpPool(X; auto_pad="NOTSET", ceil_mode=0, dilations=nothing, kernel_shape,
                          p=2, pads=nothing, strides=nothing)
    windows = slidingwindows(X; auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    return narrowto(X, lproots(sumwindows(lppower(widefloat(X), p), windows), p))
end

spatialdims(x) = ntuple(identity, ndims(x) - 2)

@operator GlobalAveragePool(X) = narrowto(X, mean(widefloat(X); dims=spatialdims(X)))
@operator GlobalMaxPool(X) = maximum(X; dims=spatialdims(X))

@operator function GlobalLpPool(X; p=2)
    return narrowto(X, lproots(sum(lppower(widefloat(X), p); dims=spatialdims(X)), p))
end

@operator function MaxUnpool(X, I, output_shape=nothing; kernel_shape, pads=nothing,
                             strides=nothing)
    n = ndims(X) - 2
    stride = spatialvalues(strides, n, 1)
    both = spatialpads("NOTSET", pads, size(X)[1:n], size(X)[1:n], stride)
    unpooled = (size(X)[1:n] .- 1) .* stride .+ spatialvalues(kernel_shape, n, 1) .- sum.(both)
    y = unpool(X, I, (unpooled..., size(X)[(n + 1):end]...))
    return output_shape === nothing ? y : zeroextended(y, Tuple(reverse(Int.(output_shape))))
end

function unpool(x, indices, shape)
    y = fill!(similar(x, shape), 0)
    y[indices .+ 1] = x
    return y
end

function ChainRulesCore.rrule(::typeof(unpool), x, indices, shape)
    function unpool_pullback(dy)
        # Where an index occurs twice, the last one was kept.
        kept = zeros(Int, shape)
        kept[indices .+ 1] = reshape(1:length(x), size(x))
        mine = kept[indices .+ 1] .== reshape(1:length(x), size(x))
        return NoTangent(), unthunk(dy)[indices .+ 1] .* mine, NoTangent(), NoTangent()
    end
    return unpool(x, indices, shape), unpool_pullback
end

function zeroextended(y, shape)
    size(y) == shape && return y
    all(size(y) .<= shape) || unsupported("MaxUnpool to a shape smaller than the pads give")
    return NNlib.pad_zeros(y, flatpads(map((from, to) -> (0, to - from), size(y), shape)))
end
