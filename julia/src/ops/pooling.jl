# Pooling over sliding windows and over whole pictures, and max unpooling.

"""
    Windows

Sliding windows over `spatial` dimensions, filled up to three with ones. `pads` are the node's,
`(low, high)`; a window may reach beyond `high` where the output size was rounded up.
"""
struct Windows
    spatial::Int
    input::NTuple{3,Int}
    output::NTuple{3,Int}
    kernel::NTuple{3,Int}
    stride::NTuple{3,Int}
    dilation::NTuple{3,Int}
    pads::NTuple{3,Tuple{Int,Int}}
end

function slidingwindows(x; auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    n = ndims(x) - 2
    1 <= n <= 3 || unsupported("pooling over ", n, " spatial dimensions")
    kernel = spatialvalues(kernel_shape, n, 1)
    stride = spatialvalues(strides, n, 1)
    dilation = spatialvalues(dilations, n, 1)
    input = size(x)[1:n]
    extent = dilation .* (kernel .- 1) .+ 1
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
    return Windows(n, three(input, 1), three(output, 1), three(kernel, 1), three(stride, 1),
                   three(dilation, 1), three(both, (0, 0)))
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
                shift = (k1 - 1) * w.dilation[1] - low[1]
                from = max(0, cld(-shift, w.stride[1]))
                to = min(m1 - 1, fld(n1 - 1 - shift, w.stride[1]))
                from <= to || continue
                f(1 + from + m1 * (o2 - 1 + m2 * (o3 - 1)),
                  1 + from * w.stride[1] + shift + n1 * (i2 + n2 * i3), to - from + 1)
            end
        end
    end
end

isgreater(v, m) = (v > m) | (v != v)

"""
    maxwindows(x, w::Windows)

The largest value of each window, a NaN if there is one. Padding counts as `-Inf`.
"""
function maxwindows(x::Array{T}, w::Windows) where {T}
    y = fill(typemin(T), outputsize(x, w))
    xs, ys = inputplanes(x, w), outputplanes(y, w)
    Threads.@threads for plane in axes(xs, 2)
        maxplane!(ys, xs, w, plane)
    end
    return y
end

function maxplane!(ys, xs, w, plane)
    stride = w.stride[1]
    eachwindowrow(w) do output, input, count
        @inbounds @simd ivdep for j in 0:(count - 1)
            v, m = xs[input + j * stride, plane], ys[output + j, plane]
            ys[output + j, plane] = ifelse(isgreater(v, m), v, m)
        end
    end
end

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
    Threads.@threads for plane in axes(xs, 2)
        positionsplane!(at, xs, w, plane)
    end
    return positions
end

function positionsplane!(at, xs, w, plane)
    stride = w.stride[1]
    eachwindowrow(w) do output, input, count
        @inbounds for j in 0:(count - 1)
            i, before = input + j * stride, at[output + j, plane]
            better = before == 0 || isgreater(xs[i, plane], xs[before, plane]) &&
                                    !isnan(xs[before, plane])
            at[output + j, plane] = better ? i : before
        end
    end
end

@non_differentiable maxpositions(::Any...)

function ChainRulesCore.rrule(::typeof(maxwindows), x::Array, w::Windows)
    function maxwindows_pullback(dy)
        at = outputplanes(maxpositions(x, w), w)
        dx = zero(x)
        scatterplanes!(inputplanes(dx, w), outputplanes(unthunk(dy), w), at)
        return NoTangent(), dx, NoTangent()
    end
    return maxwindows(x, w), maxwindows_pullback
end

function scatterplanes!(dx, dy, at)
    Threads.@threads for plane in axes(at, 2)
        @inbounds for k in axes(at, 1)
            at[k, plane] > 0 && (dx[at[k, plane], plane] += dy[k, plane])
        end
    end
end

"""
    sumwindows(x, w::Windows)

The sum of each window; `addwindows` is its adjoint.
"""
function sumwindows(x::Array{T}, w::Windows) where {T}
    y = zeros(T, outputsize(x, w))
    xs, ys = inputplanes(x, w), outputplanes(y, w)
    Threads.@threads for plane in axes(xs, 2)
        sumplane!(ys, xs, w, plane)
    end
    return y
end

function sumplane!(ys, xs, w, plane)
    stride = w.stride[1]
    eachwindowrow(w) do output, input, count
        @inbounds @simd ivdep for j in 0:(count - 1)
            ys[output + j, plane] += xs[input + j * stride, plane]
        end
    end
end

sumwindows(x::AbstractArray, w::Windows) = NNlib.meanpool(x, pooldims(x, w)) .* prod(w.kernel)

function addwindows(dy, x, w::Windows)
    dx = zero(x)
    dxs, dys = inputplanes(dx, w), outputplanes(dy, w)
    Threads.@threads for plane in axes(dxs, 2)
        addplane!(dxs, dys, w, plane)
    end
    return dx
end

function addplane!(dxs, dys, w, plane)
    stride = w.stride[1]
    eachwindowrow(w) do output, input, count
        @inbounds @simd ivdep for j in 0:(count - 1)
            dxs[input + j * stride, plane] += dys[output + j, plane]
        end
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
