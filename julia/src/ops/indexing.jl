# Operators that pick, place and order elements by index.

"""
    AxisMap

A linear map along one dimension of an array. `along(map, x)` applies it, `against(map, y)` its
transpose.
"""
abstract type AxisMap end

"""
    mapped(maps, x)

`x` after each of `maps` in turn.
"""
function mapped(maps, x)
    for map in maps
        x = along(map, x)
    end
    return x
end

function mappedback(maps, dy)
    for map in Iterators.reverse(maps)
        dy = against(map, dy)
    end
    return dy
end

function ChainRulesCore.rrule(::typeof(mapped), maps, x)
    back(dy) = (NoTangent(), NoTangent(), mappedback(maps, unthunk(dy)))
    constant(dy) = (NoTangent(), NoTangent(), NoTangent())
    return mapped(maps, x), eltype(x) <: Integer ? constant : back
end

"""
    folded(x, d)

`x` with the dimensions before `d` as the first, `d` as the second, and those after it as the third.
"""
function folded(x, d)
    before = prod(size(x, k) for k in 1:(d - 1); init=1)
    after = prod(size(x, k) for k in (d + 1):ndims(x); init=1)
    return reshape(x, before, size(x, d), after)
end

"""
    resized(x, d, n)

The size of `x` with `n` in dimension `d`.
"""
resized(x, d, n) = ntuple(k -> k == d ? n : size(x, k), ndims(x))

"""
    Selection(dimension, length, index)

`y[…, j, …] = x[…, index[j], …]`
"""
struct Selection <: AxisMap
    dimension::Int
    length::Int
    index::Vector{Int}
end

function along(map::Selection, x)
    y = folded(x, map.dimension)[:, map.index, :]
    return reshape(y, resized(x, map.dimension, length(map.index)))
end

function against(map::Selection, dy)
    dy3 = folded(dy, map.dimension)
    dx3 = fill!(similar(dy3, size(dy3, 1), map.length, size(dy3, 3)), 0)
    addat!(dx3, dy3, map.index)
    return reshape(dx3, resized(dy, map.dimension, map.length))
end

function addat!(x::Array, y, index)
    size(x, 1) == 1 && return addat!(leadless(x), leadless(y), index)
    for r in axes(y, 3), (j, i) in enumerate(index)
        @inbounds @simd for l in axes(y, 1)
            x[l, i, r] += y[l, j, r]
        end
    end
    return x
end

function addat!(x::Matrix, y, index)
    for r in axes(y, 2), (j, i) in enumerate(index)
        @inbounds x[i, r] += y[j, r]
    end
    return x
end

"""
    leadless(x)

A three-dimensional `x` without its first dimension, which is 1: a loop over it costs more than it
does.
"""
leadless(x) = reshape(x, size(x, 2), size(x, 3))

function addat!(x, y, index)
    positions = copyto!(similar(x, Int, length(index)), index)
    for r in axes(y, 3)
        NNlib.scatter!(+, view(x, :, :, r), view(y, :, :, r), positions)
    end
    return x
end

"""
    Opposite(map)

The transpose of a map.
"""
struct Opposite{M<:AxisMap} <: AxisMap
    map::M
end

along(opposite::Opposite, x) = against(opposite.map, x)
against(opposite::Opposite, dy) = along(opposite.map, dy)

"""
    selected(x, index)

The elements of `x` at the linear positions `index`, in an array of the size of `index`.
"""
function selected(x, index)
    y = mapped([Selection(1, length(x), vec(index))], vec(x))
    return reshape(y, size(index))
end

"""
    juliaindex(i, n)

Julia's position of ONNX's index `i` (from 0, or from the end where negative) among `n`.
"""
function juliaindex(i, n)
    -n <= i < n || throw(BoundsError(1:n, Int(i) + 1))
    return Int(i < 0 ? i + n : i) + 1
end

juliaindices(indices, n) = Int[juliaindex(i, n) for i in vec(collect(indices))]

@operator function Gather(data, indices; axis=0)
    d = dimension(axis, data)
    y = mapped([Selection(d, size(data, d), juliaindices(indices, size(data, d)))], data)
    return reshape(y, gatheredsize(data, indices, d))
end

gatheredsize(x, indices, d) = (size(x)[1:(d - 1)]..., size(indices)..., size(x)[(d + 1):end]...)

@operator function GatherElements(data, indices; axis=0)
    return selected(data, elementpositions(data, dimension(axis, data), indices))
end

"""
    elementpositions(x, d, indices)

For each entry of `indices`, the linear position in `x` that has the entry's place in all dimensions
but `d`, and the entry there.
"""
function elementpositions(x, d, indices)
    linear = LinearIndices(x)
    n = size(x, d)
    place(I) = CartesianIndex(Base.setindex(Tuple(I), juliaindex(indices[I], n), d))
    return Int[linear[place(I)] for I in CartesianIndices(indices)]
end

@operator function GatherND(data, indices; batch_dims=0)
    index = blockpositions(data, indices, batch_dims)
    dims = blocksize(data, indices, batch_dims)
    blocks = reshape(data, blocklength(data, indices, batch_dims), :)
    return reshape(mapped([Selection(2, size(blocks, 2), index)], blocks), dims)
end

function blocksize(x, indices, batch)
    return (size(x)[1:(ndims(x) - batch - size(indices, 1))]..., size(indices)[2:end]...)
end

function blocklength(x, indices, batch)
    return prod(size(x)[1:(ndims(x) - batch - size(indices, 1))]; init=1)
end

"""
    blockpositions(x, indices, batch)

The positions of the blocks that the tuples `indices[:, …]` name, where `x` is a row of blocks: a
tuple holds one index for each of ONNX's axes from `batch` on.
"""
function blockpositions(x, indices, batch)
    count = size(indices, 1)
    lengths = [size(x, dimension(batch + k - 1, x)) for k in 1:count]
    steps = [prod(lengths[(k + 1):end]; init=1) for k in 1:count]
    tuples = reshape(indices, count, prod(size(indices)[2:end]; init=1))
    batches = prod(size(x)[(end - batch + 1):end]; init=1)
    each = size(tuples, 2) ÷ max(batches, 1)
    place(c, k) = (juliaindex(tuples[k, c], lengths[k]) - 1) * steps[k]
    offset(c) = (c - 1) ÷ each * prod(lengths; init=1)
    return Int[1 + offset(c) + sum(k -> place(c, k), 1:count; init=0) for c in axes(tuples, 2)]
end

@operator function ScatterElements(data, indices, updates; axis=0, reduction="none")
    index = vec(elementpositions(data, dimension(axis, data), indices))
    combine = combination(data, reduction)
    rows = (reshape(data, 1, length(data)), reshape(updates, 1, length(updates)))
    y = scattered(combine, rows[1], index, rows[2])
    return reshape(y, size(data))
end

@operator function Scatter(data, indices, updates; axis=0)
    return ScatterElements(data, indices, updates; axis)
end

@operator function ScatterND(data, indices, updates; reduction="none")
    index = blockpositions(data, indices, 0)
    inner = blocklength(data, indices, 0)
    blocks = reshape(data, inner, blockcount(data, indices))
    combine = combination(data, reduction)
    y = scattered(combine, blocks, index, reshape(updates, inner, length(index)))
    return reshape(y, size(data))
end

blockcount(x, indices) = prod(size(x)[(end - size(indices, 1) + 1):end]; init=1)

@operator function TensorScatter(past_cache, update, write_indices=nothing; axis=-2, mode="linear")
    mode in ("linear", "circular") || unsupported("mode ", mode)
    indices = cacheindices(past_cache, update, write_indices, dimension(axis, past_cache), mode)
    return ScatterElements(past_cache, indices, update; axis)
end

function cacheindices(cache, update, starts, d, mode)
    at(I) = (starts === nothing ? 0 : starts[I[ndims(cache)]]) + I[d] - 1
    indices = [at(I) for I in CartesianIndices(update)]
    return mode == "circular" ? mod.(indices, size(cache, d)) : indices
end

"""
    scattered(combine, x, index, updates)

`x` with `x[:, index[k]] = combine.(x[:, index[k]], updates[:, k])` for each `k` in turn.
"""
scattered(combine, x, index, updates) = first(scatteredsteps(combine, x, index, updates))

function scatteredsteps(combine, x, index, updates)
    y = copy(x)
    before = similar(updates)
    for (k, i) in enumerate(index), l in axes(y, 1)
        before[l, k] = y[l, i]
        y[l, i] = combine(y[l, i], updates[l, k])
    end
    return y, before
end

function ChainRulesCore.rrule(::typeof(scattered), combine, x, index, updates)
    y, before = scatteredsteps(combine, x, index, updates)
    constant(dy) = ntuple(_ -> NoTangent(), 5)
    function back(dy)
        dx = copyto!(similar(x), unthunk(dy))
        dupdates = similar(updates)
        for k in reverse(eachindex(index)), l in axes(dx, 1)
            i = index[k]
            dx[l, i], dupdates[l, k] = sharesof(combine, dx[l, i], before[l, k], updates[l, k])
        end
        return NoTangent(), NoTangent(), dx, NoTangent(), dupdates
    end
    return y, eltype(x) <: Integer ? constant : back
end

function combination(x, reduction)
    eltype(x) == Bool && reduction in ("add", "mul") && unsupported(reduction, " of booleans")
    reduction == "none" && return replaced
    reduction == "add" && return +
    reduction == "mul" && return *
    reduction == "max" && return max
    reduction == "min" && return min
    return unsupported("reduction ", reduction)
end

replaced(old, new) = new

# The shares of a cotangent for the old value and for the new one.
sharesof(::typeof(replaced), dy, old, new) = (zero(dy), dy)
sharesof(::typeof(+), dy, old, new) = (dy, dy)
sharesof(::typeof(*), dy, old, new) = (dy * new, dy * old)
sharesof(::typeof(max), dy, old, new) = new > old ? (zero(dy), dy) : (dy, zero(dy))
sharesof(::typeof(min), dy, old, new) = new < old ? (zero(dy), dy) : (dy, zero(dy))

@operator function Slice(
    data, first=nothing, last=nothing, along=nothing, steps=nothing;
    starts=first, ends=last, axes=along,
)
    return subarray(data, sliceranges(size(data), starts, ends, axes, steps))
end

function sliceranges(dims, starts, ends, onnxaxes, steps)
    ranges = [1:1:n for n in dims]
    for k in eachindex(starts)
        d = dimension(onnxaxes === nothing ? k - 1 : onnxaxes[k], length(dims))
        step = steps === nothing ? 1 : Int(steps[k])
        ranges[d] = slicerange(dims[d], Int(starts[k]), Int(ends[k]), step)
    end
    all(range -> step(range) == 1, ranges) || return Tuple(ranges)
    return ntuple(d -> first(ranges[d]):last(ranges[d]), length(dims))
end

function slicerange(n, start, stop, step)
    n == 0 && return 1:1:0
    start += start < 0 ? n : 0
    stop += stop < 0 ? n : 0
    step > 0 && return (clamp(start, 0, n) + 1):step:clamp(stop, 0, n)
    return (clamp(start, 0, n - 1) + 1):step:(clamp(stop, -1, n - 1) + 2)
end

"""
    subarray(x, ranges)

A copy of `x[ranges...]`.
"""
subarray(x, ranges) = array(x[ranges...])

function ChainRulesCore.rrule(::typeof(subarray), x, ranges)
    dims = size(x)
    constant(dy) = (NoTangent(), NoTangent(), NoTangent())
    function back(dy)
        dx = fill!(similar(unthunk(dy), dims), 0)
        dx[ranges...] = unthunk(dy)
        return NoTangent(), dx, NoTangent()
    end
    return subarray(x, ranges), eltype(x) <: Integer ? constant : back
end

@operator function TopK(X, K=nothing; k=nothing, axis=-1, largest=1, sorted=1)
    d = dimension(axis, X)
    count = k === nothing ? Int(only(K)) : k
    index = ranking(X, d, count, largest == 1)
    return selected(X, rankedpositions(X, d, index)), fromzero(index)
end

fromzero(index) = index .- 1

"""
    ranking(x, d, count, largest)

The indices along dimension `d` of the `count` largest (or smallest) entries, best first, and the
lower index first where entries are equal.
"""
function ranking(x, d, count, largest)
    count <= size(x, d) || throw(ArgumentError("k=$count exceeds $(size(x, d)) elements"))
    x3 = folded(x, d)
    index = Array{Int}(undef, size(x3, 1), count, size(x3, 3))
    keys, order = similar(x, size(x, d)), collect(1:size(x, d))
    count > 0 && for r in axes(x3, 3), l in axes(x3, 1)
        map!(unsignedzero, keys, view(x3, l, :, r))
        index[l, :, r] = partialsortperm!(order, keys, 1:count; rev=largest)
    end
    return reshape(index, resized(x, d, count))
end

unsignedzero(x) = x + zero(x)
unsignedzero(x::Bool) = x

function rankedpositions(x, d, index)
    linear = LinearIndices(x)
    return Int[linear[Base.setindex(Tuple(I), index[I], d)...] for I in CartesianIndices(index)]
end

@operator function OneHot(indices, depth, values; axis=-1)
    d = dimension(axis, ndims(indices) + 1)
    return selected(values, hotness(indices, Int(trunc(only(depth))), d))
end

function hotness(indices, depth, d)
    n = ndims(indices) + 1
    hot = map(i -> (k = trunc(Int, i); k < 0 ? k + depth : k), indices)
    expanded = reshape(hot, ntuple(k -> k == d ? 1 : size(indices, k < d ? k : k - 1), n))
    classes = reshape(0:(depth - 1), ntuple(k -> k == d ? depth : 1, n))
    return 1 .+ (expanded .== classes)
end

@operator function Compress(input, condition; axis=nothing)
    axis === nothing && return Compress(vec(input), condition; axis=0)
    d = dimension(axis, input)
    return mapped([Selection(d, size(input, d), chosen(condition))], input)
end

chosen(condition) = findall(collect(Bool, condition))

@nondifferentiable function NonZero(X)
    places = findall(!iszero, X)
    n = ndims(X)
    return Int[places[c][n - axis] - 1 for c in eachindex(places), axis in 0:(n - 1)]
end

@operator function Unique(X; axis=nothing, sorted=1)
    axis === nothing && return Unique(vec(X); axis=0, sorted)
    d = dimension(axis, X)
    index, inverse, counts = occurrences(X, d, sorted == 1)
    y = mapped([Selection(d, size(X, d), index)], X)
    return y, fromzero(index), fromzero(inverse), counts
end

"""
    occurrences(x, d, inorder)

Where each distinct slice along `d` occurs first, the number in this list of each slice, and how
often each occurs; by value where `inorder`, else by first occurrence.
"""
function occurrences(x, d, inorder)
    slices = [map(unsignedzero, vec(selectdim(x, d, j))) for j in axes(x, d)]
    numbers = Dict{eltype(slices),Int}()
    index, inverse, counts = Int[], Int[], Int[]
    for (j, slice) in enumerate(slices)
        number = get!(numbers, slice, length(index) + 1)
        number > length(index) && (push!(index, j); push!(counts, 0))
        counts[number] += 1
        push!(inverse, number)
    end
    inorder || return index, inverse, counts
    order = sortperm(slices[index])
    return index[order], invperm(order)[inverse], counts[order]
end

@non_differentiable juliaindices(::Any...)
@non_differentiable gatheredsize(::Any...)
@non_differentiable elementpositions(::Any...)
@non_differentiable blocksize(::Any...)
@non_differentiable blocklength(::Any...)
@non_differentiable blockcount(::Any...)
@non_differentiable blockpositions(::Any...)
@non_differentiable cacheindices(::Any...)
@non_differentiable combination(::Any...)
@non_differentiable sliceranges(::Any...)
@non_differentiable fromzero(::Any...)
@non_differentiable ranking(::Any...)
@non_differentiable rankedpositions(::Any...)
@non_differentiable hotness(::Any...)
@non_differentiable chosen(::Any...)
@non_differentiable occurrences(::Any...)
