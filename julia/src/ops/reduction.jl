# Reductions, and running sums and products.

"""
    REDUCTIONS

ONNX's operator → the function of which `reduction` and `reductiongradient` have a method.
"""
const REDUCTIONS = (
    :ReduceSum => :sum,
    :ReduceMean => :average,
    :ReduceMax => :maximum,
    :ReduceMin => :minimum,
    :ReduceProd => :prod,
    :ReduceSumSquare => :squaresum,
    :ReduceL1 => :absolutesum,
    :ReduceL2 => :euclidean,
    :ReduceLogSum => :logsum,
    :ReduceLogSumExp => :logsumexp,
)

for (operator, f) in REDUCTIONS
    f in (:sum, :maximum, :minimum, :prod, :logsumexp) || @eval function $f end
    @eval @operator function $operator(
        data, along=nothing; axes=nothing, keepdims=1, noop_with_empty_axes=0
    )
        ndims(data) == 0 && return reshape(reduced($f, reshape(data, 1), [1], true), ())
        dims = reduceddims(data, along === nothing ? axes : along, noop_with_empty_axes != 0)
        return reduced($f, data, dims, keepdims != 0)
    end
end

function reduceddims(x, axes, keepall)
    axes === nothing || isempty(axes) || return [dimension(axis, x) for axis in vec(axes)]
    return keepall ? Int[] : collect(1:ndims(x))
end

ChainRulesCore.@non_differentiable reduceddims(::Any...)

"""
    reduced(f, x, dims, keep)

The reduction `f` of `x` over `dims`, which stay with size 1 if `keep`. It is computed in a type
that suffices, and given in the type of `x`.
"""
function reduced(f::F, x, dims, keep) where {F}
    y = converted(eltype(x), reduction(f, widened(f, x), dims))
    return keep ? y : withoutdims(y, dims)
end

function ChainRulesCore.rrule(::typeof(reduced), f::F, x, dims, keep) where {F}
    wide = widened(f, x)
    result = reduction(f, wide, dims)
    y = converted(eltype(x), result)
    kept = f === sum || f === average ? nothing : wide
    extent, type = size(x), eltype(x)
    function reduced_pullback(dy)
        type <: Integer && return ntuple(_ -> NoTangent(), 5)
        d = converted(eltype(result), reshape(unthunk(dy), size(result)))
        dx = converted(type, reductiongradient(f, d, kept, result, dims, extent))
        return (NoTangent(), NoTangent(), dx, NoTangent(), NoTangent())
    end
    return keep ? y : withoutdims(y, dims), reduced_pullback
end

withoutdims(y, dims) = reshape(y, Tuple(size(y, k) for k in 1:ndims(y) if !(k in dims)))

const ROOTED = Union{typeof(euclidean),typeof(logsum),typeof(logsumexp)}

widened(f, x) = x
widened(f, x::AbstractArray{Float16}) = Float32.(x)
widened(f::Union{typeof(maximum),typeof(minimum)}, x::AbstractArray{Float16}) = x
widened(f::ROOTED, x::AbstractArray{Float16}) = Float32.(x)
widened(f::ROOTED, x::AbstractArray{<:Integer}) = Float64.(x)

function expandedto(d, extent)
    y = similar(d, extent)
    y .= d
    return y
end

reduction(::typeof(sum), x, dims) = sum(x; dims)
reductiongradient(::typeof(sum), d, x, y, dims, extent) = expandedto(d, extent)

reduction(::typeof(average), x, dims) = sum(x; dims) ./ oftypeof(x, reducedlength(size(x), dims))
reduction(::typeof(average), x::AbstractArray{<:Integer}, dims) =
    div.(sum(x; dims), reducedlength(size(x), dims))
reductiongradient(::typeof(average), d, x, y, dims, extent) =
    expandedto(d ./ oftypeof(d, reducedlength(extent, dims)), extent)

reducedlength(extent, dims) = prod(k -> extent[k], dims; init=1)

reduction(f::Union{typeof(maximum),typeof(minimum)}, x, dims) =
    isempty(x) ? f(x; dims, init=emptyextreme(f, eltype(x))) : f(x; dims)

emptyextreme(::typeof(maximum), type) = typemin(type)
emptyextreme(::typeof(minimum), type) = typemax(type)

function reductiongradient(f::Union{typeof(maximum),typeof(minimum)}, d, x, y, dims, extent)
    share = oftypeof(x, 1) ./ sum(x .== y; dims)
    return ifelse.(x .== y, d .* share, zero(eltype(d)))
end

reduction(::typeof(prod), x, dims) = prod(x; dims)

function reductiongradient(::typeof(prod), d, x, y, dims, extent)
    zeros = sum(iszero, x; dims)
    others = prod(v -> ifelse(iszero(v), one(v), v), x; dims)
    return d .* productslope.(x, zeros, others)
end

productslope(x, zeros, others) =
    iszero(zeros) ? others / x : isone(zeros) && iszero(x) ? others : zero(others)

reduction(::typeof(squaresum), x, dims) = sum(abs2, x; dims)
reductiongradient(::typeof(squaresum), d, x, y, dims, extent) = d .* x .* 2

reduction(::typeof(absolutesum), x, dims) = sum(abs, x; dims)
reductiongradient(::typeof(absolutesum), d, x, y, dims, extent) = d .* sign.(x)

reduction(::typeof(euclidean), x, dims) = sqrt.(sum(abs2, x; dims))
reductiongradient(::typeof(euclidean), d, x, y, dims, extent) =
    ifelse.(iszero.(y), zero(eltype(y)), d .* x ./ y)

reduction(::typeof(logsum), x, dims) = logarithm.(sum(x; dims))
reductiongradient(::typeof(logsum), d, x, y, dims, extent) = expandedto(d ./ exp.(y), extent)

function reduction(::typeof(logsumexp), x, dims)
    top = reduction(maximum, x, dims)
    shift = ifelse.(isfinite.(top), top, zero(eltype(x)))
    return log.(sum(exp.(x .- shift); dims)) .+ shift
end

reductiongradient(::typeof(logsumexp), d, x, y, dims, extent) =
    d .* ifelse.(x .== typemin(eltype(x)), zero(eltype(x)), exp.(x .- y))

# The place of the greatest or least

@nondifferentiable ArgMax(data; axis=0, keepdims=1, select_last_index=0) =
    extremeplace(>, data, dimension(axis, data), keepdims != 0, select_last_index != 0)

@nondifferentiable ArgMin(data; axis=0, keepdims=1, select_last_index=0) =
    extremeplace(<, data, dimension(axis, data), keepdims != 0, select_last_index != 0)

function extremeplace(better::F, x, dim, keep, last) where {F}
    found = extremeindex(better, x, dim, last)
    return keep ? found : withoutdims(found, dim)
end

"""
    extremeindex(better, x, dim, last)

The indices, from 0, of the best elements along `dim`, the first or `last` of equal ones.
"""
function extremeindex(better::F, x, dim, last) where {F}
    slices = threedimensional(x, dim)
    found = zeros(Int64, size(slices, 1), size(slices, 3))
    best = slices[:, 1, :]
    for k in axes(slices, 3), j in 2:size(slices, 2), i in axes(slices, 1)
        value = slices[i, j, k]
        if better(value, best[i, k]) ||
            (last && value == best[i, k]) ||
            (isnan(value) && (last || !isnan(best[i, k])))
            best[i, k] = value
            found[i, k] = j - 1
        end
    end
    return reshape(found, ntuple(k -> k == dim ? 1 : size(x, k), ndims(x)))
end

"""
    threedimensional(x, dim)

`x` as an array of three dimensions, of which the second is `dim`.
"""
threedimensional(x, dim) = reshape(x, prod(size(x)[1:(dim - 1)]), size(x, dim), :)

indicesalong(x, dim) = reshape(0:(size(x, dim) - 1), ntuple(k -> k == dim ? size(x, k) : 1, dim))

# Running sums and products

@operator CumSum(x, axis; exclusive=0, reverse=0) =
    runningfold(+, x, dimension(first(axis), x), exclusive != 0, reverse != 0)

@operator CumProd(x, axis; exclusive=0, reverse=0) =
    runningfold(*, x, dimension(first(axis), x), exclusive != 0, reverse != 0)

"""
    runningfold(f, x, dim, exclusive, backwards)

The sums or products (`f` is `+` or `*`) of the elements along `dim` up to each one, or from it on
if `backwards`, without it if `exclusive`.
"""
function runningfold(f::F, x, dim, exclusive, backwards) where {F}
    slices = threedimensional(x, dim)
    y = similar(slices)
    steps = backwards ? reverse(axes(slices, 2)) : axes(slices, 2)
    state = fill(f === (+) ? zero(eltype(x)) : one(eltype(x)), size(slices, 1))
    for k in axes(slices, 3)
        fill!(state, f === (+) ? zero(eltype(x)) : one(eltype(x)))
        for j in steps, i in axes(slices, 1)
            before = state[i]
            state[i] = f(before, slices[i, j, k])
            y[i, j, k] = exclusive ? before : state[i]
        end
    end
    return reshape(y, size(x))
end

function ChainRulesCore.rrule(::typeof(runningfold), f::F, x, dim, exclusive, backwards) where {F}
    constants = ntuple(_ -> NoTangent(), 3)
    function running_pullback(dy)
        isconstant(x) && return (NoTangent(), NoTangent(), NoTangent(), constants...)
        dx = runninggradient(f, unthunk(dy), x, dim, exclusive, backwards)
        return (NoTangent(), NoTangent(), dx, constants...)
    end
    return runningfold(f, x, dim, exclusive, backwards), running_pullback
end

runninggradient(::typeof(+), dy, x, dim, exclusive, backwards) =
    runningfold(+, dy, dim, exclusive, !backwards)

"""
    runninggradient(*, dy, x, dim, exclusive, backwards)

The product before each element times the sum, over the later products, of gradient times what
else is in the product; no division, so that zeros are exact.
"""
function runninggradient(::typeof(*), dy, x, dim, exclusive, backwards)
    slices, gradients = threedimensional(x, dim), threedimensional(dy, dim)
    dx = threedimensional(runningfold(*, x, dim, true, backwards), dim)
    steps = backwards ? axes(slices, 2) : reverse(axes(slices, 2))
    for k in axes(slices, 3), i in axes(slices, 1)
        later = zero(eltype(dx))
        for j in steps
            included = exclusive ? later : later + gradients[i, j, k]
            dx[i, j, k] *= included
            later = exclusive ? gradients[i, j, k] + slices[i, j, k] * later :
                slices[i, j, k] * included
        end
    end
    return reshape(dx, size(x))
end
