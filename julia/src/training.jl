# Training: a rule of Optimisers.jl for the whole graph, one step at a time, and what a step changes.

using Flux.Functors: Functors
using Optimisers: Optimisers, AbstractRule, AdamW, ClipGrad, Leaf, MixedPrecision, OptimiserChain,
    WeightDecay

"Name → rule of Optimisers.jl."
const RULES = Dict{String,Any}(
    "adabelief" => Optimisers.AdaBelief,
    "adagrad" => Optimisers.AdaGrad,
    "adam" => Optimisers.Adam,
    "adamax" => Optimisers.AdaMax,
    "adamw" => AdamW,
    "amsgrad" => Optimisers.AMSGrad,
    "lion" => Optimisers.Lion,
    "momentum" => Optimisers.Momentum,
    "nadam" => Optimisers.NAdam,
    "nesterov" => Optimisers.Nesterov,
    "oadam" => Optimisers.OAdam,
    "radam" => Optimisers.RAdam,
    "rmsprop" => Optimisers.RMSProp,
    "rprop" => Optimisers.Rprop,
    "sgd" => Optimisers.Descent,
)

"""
    rule(name_or_rule, rate, decay; clipnorm=false, clipvalue=nothing, keepzeros=false)

A rule with its learning rate (`nothing` leaves the rule's own) and weight decay: decoupled for
AdamW, else `decay * x` is added to the gradient. With `clipnorm`, [`step!`](@ref) can limit the
norm of the whole gradient; `clipvalue` limits each of its elements; with `keepzeros`, weights that
are zero stay zero.
"""
function rule(name, rate, decay; clipnorm=false, clipvalue=nothing, keepzeros=false)
    made = name isa AbstractString ? RULES[name]() : name
    rate === nothing || (made = Optimisers.adjust(made, Float64(rate)))
    decay === nothing || (made = decayed(made, Float64(decay)))
    return composed(made, clipnorm, clipvalue, keepzeros)
end

decayed(rule, decay) = iszero(decay) ? rule : OptimiserChain(WeightDecay(decay), rule)
decayed(rule::AdamW, decay) = Optimisers.adjust(rule; lambda=decay)
decayed(rule::MixedPrecision{T}, decay) where {T} = MixedPrecision(T, decayed(rule.rule, decay))

function composed(rule, clipnorm, clipvalue, keepzeros)
    parts = AbstractRule[rule]
    clipvalue === nothing || pushfirst!(parts, ClipGrad(Float64(clipvalue)))
    clipnorm && pushfirst!(parts, Factor(1.0))
    keepzeros && push!(parts, KeepZeros())
    return length(parts) == 1 ? rule : OptimiserChain(parts...)
end

composed(rule::MixedPrecision{T}, options...) where {T} =
    MixedPrecision(T, composed(rule.rule, options...))

"""
    learningrate(rule)

The learning rate of a rule, or nothing where it has none.
"""
learningrate(rule) = hasproperty(rule, :eta) ? Float64(rule.eta) : nothing
learningrate(rule::MixedPrecision) = learningrate(rule.rule)
learningrate(chain::OptimiserChain) = something(map(learningrate, chain.opts)..., Some(nothing))

"A rule that multiplies the gradient by a factor."
struct Factor{T<:Real} <: AbstractRule
    factor::T
end

Optimisers.init(::Factor, x::AbstractArray) = nothing
Optimisers.apply!(o::Factor, state, x::AbstractArray{T}, dx) where {T} = state, T(o.factor) .* dx

"A rule that leaves weights alone that were zero when training began."
struct KeepZeros <: AbstractRule end

Optimisers.init(::KeepZeros, x::AbstractArray) = map(!iszero, x)
Optimisers.apply!(::KeepZeros, mask, x::AbstractArray{T}, dx) where {T} =
    mask, ifelse.(mask, dx, zero(T))

"""
    startstate(rule, graph, frozen=())

The state of a rule for a graph, in which the layers of numbers `frozen` are frozen.
"""
function startstate(rule, graph::FluxGraph, frozen=())
    isempty(Flux.trainables(graph)) && throw(ArgumentError("the network has no trainable weight"))
    state = Optimisers.setup(rule, graph)
    for i in frozen
        Optimisers.freeze!(state.layers[i])
        for (slot, weight) in zip(graph.program.parameters, state.parameters)
            slot in graph.program.steps[i].inputs && Optimisers.freeze!(weight)
        end
    end
    return state
end

"""
    step!(state, graph, gradient; rate=nothing, clipnorm=nothing, penalty=nothing, options...) -> norm

Change the weights as the rule says, with learning rate `rate`, and return the norm of the whole
gradient, frozen weights excepted. With `clipnorm`, a gradient of a larger norm is scaled down to
it. With a [`penalty`](@ref), its own step is taken at the same weights, see [`penalize!`](@ref) for
its options. Nothing changes where the norm isn't finite. What is masked ([`mask!`](@ref)) stays zero;
its gradient counts for the norm.
"""
function step!(
    state, graph::FluxGraph, gradient; rate=nothing, clipnorm=nothing, penalty=nothing, options...
)
    norm = gradientnorm(state, gradient)
    isfinite(norm) || return norm
    rate === nothing || Optimisers.adjust!(state, Float64(rate))
    clipnorm === nothing || Optimisers.adjust!(state; factor=min(1.0, clipnorm / (norm + 1e-6)))
    penalty === nothing || penalize!(penalty, rate; options...)
    Optimisers.update!(state, graph, gradient)
    mask!(graph)
    return norm
end

function gradientnorm(state, gradient)
    found = IdDict{Leaf,Any}()
    leafgradients!(found, state, gradient)
    return sqrt(sum(Δ -> sum(abs2 ∘ Float64, Δ), values(found); init=0.0))
end

"The gradient of each weight that isn't frozen; those of tied weights are summed."
function leafgradients!(found, state::Leaf, Δ)
    (state.frozen || !(Δ isa AbstractArray)) && return
    found[state] = Zygote.accum(get(found, state, nothing), Δ)
end

function leafgradients!(found, state, Δ)
    Δ isa Union{Nothing,AbstractZero} && return
    for k in keys(state)
        leafgradients!(found, state[k], part(Δ, k))
    end
end

part(Δ, k::Symbol) = getproperty(Δ, k)
part(Δ, k::Integer) = Δ[k]

"""
    trainingmode!(graph, active; frozen=())

Put the layers into training mode, but for those of numbers `frozen`, or all into test mode.
"""
function trainingmode!(graph::FluxGraph, active::Bool; frozen=())
    for (i, layer) in enumerate(graph.layers)
        Flux.testmode!(layer, !active || i in frozen)
    end
end

"Whether a layer uses its batch's statistics."
usesbatch(graph::FluxGraph) =
    any(layer -> layer isa BatchNorm && layer.active === true, graph.layers)

"""
    arrays(graph)

The floating arrays of a graph, each once, in an order of their own: what training can change.
"""
arrays(graph) = arrays!(AbstractArray[], Base.IdSet{Any}(), graph)

function arrays!(found, seen, x)
    if x isa AbstractArray{<:Number}
        x isa AbstractArray{<:AbstractFloat} && x ∉ seen && push!(found, x)
        push!(seen, x)
    else
        foreach(child -> arrays!(found, seen, child), Functors.children(x))
    end
    return found
end

"Copies of a graph's arrays."
snapshot(graph) = map(copy, arrays(graph))

"""
    restore!(graph, saved)

Put back the values of a [`snapshot`](@ref).
"""
function restore!(graph, saved)
    found = arrays(graph)
    length(found) == length(saved) || throw(DimensionMismatch("it belongs to another network"))
    foreach(overwrite!, found, saved)
    return graph
end

function overwrite!(x, saved)
    size(x) == size(saved) || throw(DimensionMismatch(string(
        "an array of shape ", reverse(size(saved)), " belongs to another network than one of shape ",
        reverse(size(x)),
    )))
    return copyto!(x, saved)
end

"""
    pack(state)

The arrays and numbers in the state of an optimiser, in an order of their own.
"""
pack(state) = reduce(vcat, (flatten(leaf.state) for leaf in leaves(state)); init=Any[])

flatten(x::Union{AbstractArray{<:Number},Number}) = Any[x]
flatten(x::Tuple) = reduce(vcat, map(flatten, x); init=Any[])
flatten(x) = Any[]

"""
    unpack!(state, packed)

Put back what [`pack`](@ref) gave for the state of the same rule and graph.
"""
function unpack!(state, packed)
    rest = Iterators.Stateful(packed)
    for leaf in leaves(state)
        leaf.state = refilled(leaf.state, rest)
    end
    isempty(rest) || throw(DimensionMismatch("it belongs to another optimiser"))
    return state
end

refilled(x::AbstractArray{<:Number}, rest) = overwrite!(x, next!(rest))
refilled(x::Number, rest) = oftype(x, only(next!(rest)))
refilled(x::Tuple, rest) = map(part -> refilled(part, rest), x)
refilled(x, rest) = x

function next!(rest)
    isempty(rest) && throw(DimensionMismatch("it belongs to another optimiser"))
    return popfirst!(rest)
end

"The leaves of an optimiser's state, each once."
leaves(state) = leaves!(Leaf[], Base.IdSet{Leaf}(), state)

function leaves!(found, seen, leaf::Leaf)
    leaf in seen || push!(found, leaf)
    push!(seen, leaf)
    return found
end

leaves!(found, seen, state) = (foreach(part -> leaves!(found, seen, part), state); found)
