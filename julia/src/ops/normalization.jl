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

function ChainRulesCore.rrule(::typeof(standardize), x, dims, epsilon)
    y, scale = standardized(x, dims, epsilon)
    function standardize_pullback(dȳ)
        dy = unthunk(dȳ)
        along, across = mean(dy; dims), mean(dy .* y; dims)
        return NoTangent(), (@. scale * (dy - along - y * across)), NoTangent(), NoTangent()
    end
    return y, standardize_pullback
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
    shaped(p) = channelshape(widefloat(p), ndims(input))
    return narrowto(input, affine(normalized, shaped(scale), shaped(B)))
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
        y = affine(normalized, channelshape(widefloat(scale), 3), channelshape(widefloat(bias), 3))
        return narrowto(X, reshape(y, size(X)))
    end
    shaped(p) = channelshape(widefloat(p), ndims(X))
    return narrowto(X, affine(reshape(normalized, size(X)), shaped(scale), shaped(bias)))
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
    return narrowto(input, x ./ nonzero.(norms))
end

nonzero(x) = ifelse(iszero(x), one(x), x)

@operator function MeanVarianceNormalization(X; axes=[0, 2, 3])
    dims = Tuple(dimension(axis, X) for axis in axes)
    x = widefloat(X)
    difference = x .- mean(x; dims)
    deviation = lproots(mean(abs2.(difference); dims), 2)
    return narrowto(X, difference ./ (deviation .+ eltype(x)(1e-9)))
end
