# Normalization over batches, instances, groups, layers and channels.

"""
    affine(x, a, b)

`x .* a .+ b`, where `a` and `b` broadcast to `x` and `b` may be `nothing`.
"""
affine(x, a, b) = x .* a .+ b
affine(x, a, ::Nothing) = x .* a

function ChainRulesCore.rrule(::typeof(affine), x, a, b)
    function affine_pullback(dȳ)
        dy = unthunk(dȳ)
        db = b === nothing ? NoTangent() : summedto(b, dy)
        return NoTangent(), summedto(x, dy .* a), summedto(a, dy .* x), db
    end
    return affine(x, a, b), affine_pullback
end

"""
    channelaffine(x, a, b)

`x * a + b` with one `a` and `b` for each channel of `x` (spatial..., channels, batch).
"""
channelaffine(x, a, b) = affine(x, channelshape(a, ndims(x)), channelshape(b, ndims(x)))

function channelaffine(x::Array{T}, a::Vector{T}, b::Vector{T}) where {T}
    size(x, ndims(x) - 1) == length(a) == length(b) ||
        throw(DimensionMismatch("$(length(a)) scales for input of size $(size(x))"))
    y = similar(x)
    xs, ys = channelplanes(x), channelplanes(y)
    inthreads(axes(xs, 2)) do k
        c = mod1(k, length(a))
        affineplane!(ys, xs, k, a[c], b[c])
    end
    return y
end

channelplanes(x) = reshape(x, prod(size(x)[1:(end - 2)]), size(x, ndims(x) - 1) * size(x, ndims(x)))

function affineplane!(ys, xs, k, a, b)
    @inbounds @simd for i in axes(xs, 1)
        ys[i, k] = muladd(xs[i, k], a, b)
    end
end

function ChainRulesCore.rrule(::typeof(channelaffine), x::Array{T}, a::Vector{T},
                              b::Vector{T}) where {T}
    function channelaffine_pullback(dȳ)
        dy = unthunk(dȳ)
        dx, da, db = similar(x), zero(a), zero(b)
        xs, dxs, dys = channelplanes(x), channelplanes(dx), channelplanes(dy)
        inthreads(eachindex(a)) do c
            for k in c:length(a):size(xs, 2)
                slope, shift = affineplanegradient!(dxs, dys, xs, k, a[c])
                da[c] += slope
                db[c] += shift
            end
        end
        return NoTangent(), dx, da, db
    end
    return channelaffine(x, a, b), channelaffine_pullback
end

function affineplanegradient!(dxs, dys, xs, k, a)
    slope = shift = zero(a)
    @inbounds @simd for i in axes(xs, 1)
        dy = dys[i, k]
        dxs[i, k] = dy * a
        slope += dy * xs[i, k]
        shift += dy
    end
    return slope, shift
end

"""
    summedto(x, y)

`y` summed over the dimensions that `x` was broadcast along.
"""
function summedto(x, y)
    size(x) == size(y) && return y
    dims = Tuple(i for i in 1:ndims(y) if size(x, i) == 1 && size(y, i) != 1)
    return reshape(isempty(dims) ? y : sum(y; dims), size(x))
end

"""
    standardize(x, dims, epsilon)

`(x - mean) / sqrt(variance + epsilon)` over `dims`, with the biased variance.
"""
standardize(x, dims, epsilon) = first(standardized(x, dims, epsilon))

function standardized(x, dims, epsilon)
    y = x .- mean(x; dims)
    scale = inv.(sqrt.(mean(abs2, y; dims) .+ eltype(x)(epsilon)))
    y .*= scale
    return y, scale
end

function standardized(x::Array, dims, epsilon)
    n = maximum(dims)
    # Other dimensions than leading ones: as above.
    isleading(dims) || return invoke(standardized, Tuple{Any,Any,Any}, x, dims, epsilon)
    y, scale = similar(x), similar(x, ntuple(i -> i <= n ? 1 : size(x, i), ndims(x)))
    xs, ys = leadingcolumns(x, n), leadingcolumns(y, n)
    inthreads(axes(xs, 2)) do k
        scale[k] = standardizecolumn!(ys, xs, k, eltype(x)(epsilon))
    end
    return y, scale
end

isleading(dims) = Tuple(dims) == ntuple(identity, length(dims))
leadingcolumns(x, n) = reshape(x, prod(size(x)[1:n]), prod(size(x)[(n + 1):end]))

function standardizecolumn!(ys, xs, k, epsilon)
    n = size(xs, 1)
    total = squares = zero(eltype(xs))
    @inbounds @simd for i in 1:n
        total += xs[i, k]
    end
    μ = total / n
    @inbounds @simd for i in 1:n
        squares += abs2(xs[i, k] - μ)
    end
    scale = inv(sqrt(squares / n + epsilon))
    @inbounds @simd for i in 1:n
        ys[i, k] = (xs[i, k] - μ) * scale
    end
    return scale
end

function ChainRulesCore.rrule(::typeof(standardize), x, dims, epsilon)
    y, scale = standardized(x, dims, epsilon)
    standardize_pullback(dy) =
        (NoTangent(), standardizedgradient(unthunk(dy), y, scale, dims), NoTangent(), NoTangent())
    return y, standardize_pullback
end

function standardizedgradient(dy, y, scale, dims)
    along, across = mean(dy; dims), mean(dy .* y; dims)
    return @. scale * (dy - along - y * across)
end

function standardizedgradient(dy::Array, y::Array, scale::Array, dims)
    isleading(dims) ||
        return invoke(standardizedgradient, Tuple{Any,Any,Any,Any}, dy, y, scale, dims)
    dx = similar(y)
    dxs, dys, ys = map(a -> leadingcolumns(a, maximum(dims)), (dx, dy, y))
    inthreads(axes(ys, 2)) do k
        columngradient!(dxs, dys, ys, k, scale[k])
    end
    return dx
end

function columngradient!(dxs, dys, ys, k, scale)
    n = size(ys, 1)
    along = across = zero(eltype(ys))
    @inbounds @simd for i in 1:n
        along += dys[i, k]
        across += dys[i, k] * ys[i, k]
    end
    along, across = along / n, across / n
    @inbounds @simd for i in 1:n
        dxs[i, k] = scale * (dys[i, k] - along - ys[i, k] * across)
    end
end

"""
    rootmeansquared(x, dims, epsilon)

`x / sqrt(mean(x²) + epsilon)` over `dims`.
"""
rootmeansquared(x, dims, epsilon) = x .* rootmeansquarescale(x, dims, epsilon)

rootmeansquarescale(x, dims, epsilon) =
    inv.(sqrt.(mean(abs2, x; dims) .+ eltype(x)(epsilon)))

function ChainRulesCore.rrule(::typeof(rootmeansquared), x, dims, epsilon)
    scale = rootmeansquarescale(x, dims, epsilon)
    y = x .* scale
    function rootmeansquared_pullback(dȳ)
        dy = unthunk(dȳ)
        across = mean(dy .* y; dims)
        return NoTangent(), (@. scale * (dy - y * across)), NoTangent(), NoTangent()
    end
    return y, rootmeansquared_pullback
end

"""
    BatchNormalization(X, scale, B, input_mean, input_var; epsilon)

`(X - mean) / sqrt(var + epsilon) * scale + B` for each channel, with the given statistics, or with
the batch's own if `training_mode` is 1.
"""
function BatchNormalization end

@operator function BatchNormalization(X, scale, B, input_mean, input_var; epsilon=1f-5,
                                      momentum=0.9f0, spatial=1, training_mode=0, outputs=1,
                                      opset=15)
    opset < 14 && outputs > 1 && unsupported("BatchNormalization in training before opset 14")
    shaped(p) = spatial == 0 ? reshape(p, size(X)[1:(end - 1)]..., 1) : batchshape(p, ndims(X))
    x = widefloat(X)
    if training_mode == 0
        a = widefloat(scale) ./ sqrt.(widefloat(input_var) .+ eltype(x)(epsilon))
        b = widefloat(B) .- widefloat(input_mean) .* a
        spatial == 1 && ndims(X) > 1 && return narrowto(X, channelaffine(x, a, b))
        return narrowto(X, affine(x, shaped(a), shaped(b)))
    end
    dims = Tuple(i for i in 1:ndims(X) if i != max(ndims(X) - 1, 1) || ndims(X) == 1)
    normalized = standardize(x, dims, epsilon)
    y = narrowto(X, affine(normalized, shaped(widefloat(scale)), shaped(widefloat(B))))
    outputs == 1 && return y
    μ = mean(x; dims)
    return y, running(input_mean, μ, momentum),
           running(input_var, mean(abs2.(x .- μ); dims), momentum)
end

batchshape(p, n) = n == 1 ? reshape(p, 1) : channelshape(p, n)

function running(before, now, momentum)
    kept = eltype(now)(momentum)
    return narrowto(before, widefloat(before) .* kept .+ vec(now) .* (1 - kept))
end

@operator function InstanceNormalization(input, scale, B; epsilon=1f-5)
    normalized = standardize(widefloat(input), spatialdims(input), epsilon)
    return narrowto(input, channelaffine(normalized, widefloat(scale), widefloat(B)))
end

"""
    GroupNormalization(X, scale, bias; num_groups, epsilon)

Normalization over the channels of a group. `scale` and `bias` have one value a channel, or a group
before operator set 21.
"""
function GroupNormalization end

@operator function GroupNormalization(X, scale, bias; epsilon=1f-5, num_groups, stash_type=1,
                                      opset=21)
    stash_type == 1 || unsupported("stash_type ", stash_type)
    grouped = reshape(widefloat(X), :, Int(num_groups), size(X, ndims(X)))
    normalized = standardize(grouped, 1, epsilon)
    if opset < 21
        y = channelaffine(normalized, widefloat(scale), widefloat(bias))
        return narrowto(X, reshape(y, size(X)))
    end
    return narrowto(X, channelaffine(reshape(normalized, size(X)), widefloat(scale),
                                     widefloat(bias)))
end

lastdims(axis, x) = ntuple(identity, dimension(axis, x))

@operator function LayerNormalization(X, Scale, B=nothing; axis=-1, epsilon=1f-5, stash_type=1,
                                      outputs=1)
    stash_type == 1 || unsupported("stash_type ", stash_type)
    dims = lastdims(axis, X)
    x = widefloat(X)
    y = affine(narrowto(X, standardize(x, dims, epsilon)), Scale, B)
    outputs == 1 && return y
    μ = mean(x; dims)
    deviation = sqrt.(mean(abs2.(x .- μ); dims) .+ eltype(x)(epsilon))
    return y, Float32.(μ), Float32.(inv.(deviation))
end

@operator function RMSNormalization(X, scale; axis=-1, epsilon=1f-5, stash_type=1)
    stash_type == 1 || unsupported("stash_type ", stash_type)
    normalized = rootmeansquared(widefloat(X), lastdims(axis, X), epsilon)
    return affine(narrowto(X, normalized), scale, nothing)
end

"""
    LRN(X; size, alpha, beta, bias)

`X / (bias + alpha / size * squares)^beta` with the sum of squares over `size` channels around.
Source: Krizhevsky et al. 2012, section 3.3.
"""
function LRN end

@operator function LRN(X; alpha=1f-4, beta=0.75f0, bias=1f0, size)
    x = widefloat(X)
    T = eltype(x)
    channels, batch = Base.size(x)[(end - 1):end]
    flat = reshape(abs2.(x), :, channels, 1, batch)
    windows = slidingwindows(flat; auto_pad="NOTSET", ceil_mode=0, dilations=nothing,
                             kernel_shape=[size, 1], strides=nothing,
                             pads=[(size - 1) ÷ 2, 0, size ÷ 2, 0])
    squares = reshape(sumwindows(flat, windows), Base.size(x))
    return narrowto(X, x .* (T(bias) .+ T(alpha) / size .* squares) .^ -T(beta))
end

@operator function LpNormalization(input; axis=-1, p=2)
    p in (1, 2) || unsupported("LpNormalization of order ", p)
    x = widefloat(input)
    norms = lproots(sum(lppower(x, p); dims=dimension(axis, x)), p)
    return narrowto(input, x ./ nonzeros(norms))
end

# Constant to a gradient: equality of dual numbers would compare their slopes too.
nonzeros(x) = x .+ zeromask(x)
zeromask(x) = eltype(x).(iszero.(x))

@non_differentiable zeromask(::Any...)

@operator function MeanVarianceNormalization(X; axes=[0, 2, 3])
    dims = Tuple(dimension(axis, X) for axis in axes)
    x = widefloat(X)
    difference = x .- mean(x; dims)
    deviation = lproots(mean(abs2.(difference); dims), 2)
    return narrowto(X, difference ./ (deviation .+ eltype(x)(1e-9)))
end
