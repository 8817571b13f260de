# Operators that draw random numbers: from Julia's own generator, or anew from a seed.
# No two engines draw the same numbers; with a seed each call draws the same ones again.

using Flux: Random

@nondifferentiable function RandomNormal(; shape, dtype=1, mean=0.0, scale=1.0, seed=nothing)
    return normal(generator(seed), eyetype(dtype), drawnsize(shape), mean, scale)
end

@nondifferentiable function RandomNormalLike(
    input; dtype=nothing, mean=0.0, scale=1.0, seed=nothing
)
    T = drawntype(input, dtype)
    return placedlike(input, normal(generator(seed), T, size(input), mean, scale))
end

@nondifferentiable function RandomUniform(; shape, dtype=1, low=0.0, high=1.0, seed=nothing)
    return uniform(generator(seed), eyetype(dtype), drawnsize(shape), low, high)
end

@nondifferentiable function RandomUniformLike(
    input; dtype=nothing, low=0.0, high=1.0, seed=nothing
)
    T = drawntype(input, dtype)
    return placedlike(input, uniform(generator(seed), T, size(input), low, high))
end

@nondifferentiable function Bernoulli(input; dtype=nothing, seed=nothing)
    drawn = placedlike(input, rand(generator(seed), eltype(input), size(input)))
    return convert.(drawntype(input, dtype), drawn .< input)
end

# The largest of log-probabilities to which Gumbel's noise is added is a sample.
@nondifferentiable function Multinomial(input; dtype=6, sample_size=1, seed=nothing)
    classes, batch = size(input)
    drawn = rand(generator(seed), eltype(input), (classes, sample_size, batch))
    noisy = reshape(input, classes, 1, batch) .- placedlike(input, log.(.-log.(drawn)))
    places = argmax(noisy; dims=1)
    return convert.(eyetype(dtype), getindex.(dropdims(places; dims=1), 1) .- 1)
end

generator(::Nothing) = Random.default_rng()
generator(seed) = Random.Xoshiro(reinterpret(UInt32, Float32(seed)))

drawnsize(shape) = Tuple(reverse(Int.(shape)))

drawntype(input, dtype) = dtype === nothing ? eltype(input) : eyetype(dtype)

"Put numbers where `input` is: on its device."
placedlike(input, drawn) = copyto!(similar(input, eltype(drawn), size(drawn)), drawn)

normal(rng, T, dims, mean, scale) = T(mean) .+ T(scale) .* randn(rng, T, dims)

uniform(rng, T, dims, low, high) = T(low) .+ (T(high) - T(low)) .* rand(rng, T, dims)
