# Recurrent layers: RNN, GRU and LSTM.

"""
    scansteps(cell, state, inputs, parameters...)

States (features, batch, time) that `state = cell(state, inputs[:, :, t], t, parameters...)` goes
through.
"""
function scansteps(cell, state, inputs, parameters...)
    states = similar(inputs, size(state)..., size(inputs, 3))
    for t in axes(inputs, 3)
        state = cell(state, inputs[:, :, t], t, parameters...)
        states[:, :, t] = state
    end
    return states
end

function ChainRulesCore.rrule(config::RuleConfig{>:HasReverseMode}, ::typeof(scansteps), cell,
                              state, inputs, parameters...)
    states = similar(inputs, size(state)..., size(inputs, 3))
    pullbacks = Vector{Any}(undef, size(inputs, 3))
    for t in axes(inputs, 3)
        state, pullbacks[t] = rrule_via_ad(config, cell, state, inputs[:, :, t], t, parameters...)
        states[:, :, t] = state
    end
    function scansteps_pullback(dȳ)
        dy = unthunk(dȳ)
        dstate = zero(state)
        dinputs = zero(inputs)
        dparameters = map(_ -> ZeroTangent(), parameters)
        for t in reverse(axes(inputs, 3))
            _, dbefore, dinput, _, dthese... = pullbacks[t](dstate .+ dy[:, :, t])
            dstate = unthunk(dbefore)
            dinputs[:, :, t] = unthunk(dinput)
            dparameters = map((a, b) -> a + unthunk(b), dparameters, dthese)
        end
        return NoTangent(), NoTangent(), dstate, dinputs, dparameters...
    end
    return states, scansteps_pullback
end

# Names of activations: what they compute, and the default alpha and beta of those that have them.
const RECURRENT_ACTIVATIONS = Dict{String,Tuple{Function,Any,Any}}(
    "relu" => ((x, α, β) -> NNlib.relu.(x), missing, missing),
    "tanh" => ((x, α, β) -> tanh.(x), missing, missing),
    "sigmoid" => ((x, α, β) -> NNlib.sigmoid.(x), missing, missing),
    "affine" => ((x, α, β) -> α .* x .+ β, 1f0, 0f0),
    "leakyrelu" => ((x, α, β) -> ifelse.(x .>= 0, x, α .* x), 0.01f0, missing),
    "thresholdedrelu" => ((x, α, β) -> x .* (x .>= α), 1f0, missing),
    "scaledtanh" => ((x, α, β) -> α .* tanh.(β .* x), nothing, nothing),
    "hardsigmoid" => ((x, α, β) -> clamp.(α .* x .+ β, 0, 1), 0.2f0, 0.5f0),
    "elu" => ((x, α, β) -> ifelse.(x .>= 0, x, α .* (exp.(min.(x, 0)) .- 1)), 1f0, missing),
    "softsign" => ((x, α, β) -> x ./ (1 .+ abs.(x)), missing, missing),
    "softplus" => ((x, α, β) -> NNlib.softplus.(x), missing, missing))

"""
    recurrentactivations(T, names, alphas, betas, clips)

A function for each name. Those that have an alpha or a beta take the next one given, else the
default.
"""
function recurrentactivations(T, names, alphas, betas, clips)
    alphas, betas = collect(something(alphas, Float32[])), collect(something(betas, Float32[]))
    return map(names, clips) do name, clip
        haskey(RECURRENT_ACTIVATIONS, lowercase(name)) || unsupported("activation ", name)
        f, α, β = RECURRENT_ACTIVATIONS[lowercase(name)]
        α = activationvalue(T, name, alphas, α)
        β = activationvalue(T, name, betas, β)
        clip === nothing && return x -> f(x, α, β)
        bound = T(clip)
        return x -> f(clamp.(x, -bound, bound), α, β)
    end
end

function activationvalue(T, name, given, default)
    default === missing && return zero(T)
    isempty(given) || return T(popfirst!(given))
    default === nothing && unsupported("activation ", name, " without alpha and beta")
    return T(default)
end

@non_differentiable recurrentactivations(::Any...)

"""
    recurrentdirections(run, X, sequence_lens, direction, layout, states...)

`run(x, direction, mask, initial...)` for each direction, where `x` is (input, batch, time) in the
order of the steps and gives states (features, batch, time) of which the first `hidden` rows are the
output. `mask` is (1, batch, time), true within a sequence, or `nothing`.
"""
function recurrentdirections(run, hidden, X, sequence_lens, direction, layout, initial)
    direction in ("forward", "reverse", "bidirectional") || unsupported("direction ", direction)
    x = layout == 1 ? permutedims(X, (1, 3, 2)) : X
    start = map(s -> layout == 1 && s !== nothing ? permutedims(s, (1, 3, 2)) : s, initial)
    mask = sequencemask(sequence_lens, size(x, 3))
    backward = direction == "bidirectional" ? (false, true) : (direction == "reverse",)
    results = map(ntuple(identity, length(backward)), backward) do d, back
        zeros0 = zerostate(x, hidden)
        state = reduce(vcat, map(s -> s === nothing ? zeros0 : s[:, :, d], start))
        ordered, orderedmask = timeorder(x, back), maskorder(mask, back)
        states = run(ordered, d, orderedmask, state)
        last = size(states, 3) == 0 ? state : states[:, :, end]
        output = orderedmask === nothing ? states[1:hidden, :, :] :
                 states[1:hidden, :, :] .* orderedmask
        return timeorder(output, back), last
    end
    y = cat(map(r -> reshape(r[1], hidden, size(x, 2), 1, size(x, 3)), results)...; dims=3)
    final = map(eachindex(initial)) do k
        rows = ((k - 1) * hidden + 1):(k * hidden)
        cat(map(r -> reshape(r[2][rows, :], hidden, size(x, 2), 1), results)...; dims=3)
    end
    layout == 1 || return y, final...
    return permutedims(y, (1, 3, 4, 2)), map(s -> permutedims(s, (1, 3, 2)), final)...
end

timeorder(x, back) = back ? reverse(x; dims=3) : x
maskorder(::Nothing, back) = nothing
maskorder(mask, back) = timeorder(mask, back)
zerostate(x, hidden) = fill!(similar(x, hidden, size(x, 2)), 0)

function sequencemask(lengths, steps)
    (lengths === nothing || all(==(steps), lengths)) && return nothing
    return reshape(0:(steps - 1), 1, 1, steps) .< reshape(lengths, 1, :, 1)
end

@non_differentiable maskorder(::Any...)
@non_differentiable zerostate(::Any...)
@non_differentiable sequencemask(::Any...)

# Where a sequence has ended, its state stays.
heldstate(::Nothing, t, after, before) = after
heldstate(mask, t, after, before) = ifelse.(mask[:, :, t], after, before)

"""
    inputgates(x, w, bias)

`w' * x .+ bias` for all steps at once: `w` (input, gates), `x` (input, batch, time).
"""
function inputgates(x, w, bias)
    gates = transpose(w) * reshape(x, size(x, 1), :)
    return reshape(bias === nothing ? gates : gates .+ bias, size(w, 2), size(x, 2), size(x, 3))
end

gate(gates, hidden, k) = gates[((k - 1) * hidden + 1):(k * hidden), :]

# Bias of the inputs, and of the state, of a direction.
inputbias(::Nothing, d) = nothing
inputbias(B, d) = B[1:(end ÷ 2), d]
statebias(::Nothing, d) = nothing
statebias(B, d) = B[(end ÷ 2 + 1):end, d]
bothbias(::Nothing, d) = nothing
bothbias(B, d) = inputbias(B, d) .+ statebias(B, d)

"""
    RNN(X, W, R, B, sequence_lens, initial_h; …)

`Hₜ = f(W Xₜ + R Hₜ₋₁ + Wb + Rb)`.
"""
function RNN end

@operator function RNN(X, W, R, B=nothing, sequence_lens=nothing, initial_h=nothing;
                       activation_alpha=nothing, activation_beta=nothing,
                       activations=["Tanh", "Tanh"], clip=nothing, direction="forward",
                       hidden_size=nothing, layout=0)
    hidden = size(R, 1)
    f = recurrentactivations(eltype(X), activations[1:size(W, 3)], activation_alpha,
                             activation_beta, fill(clip, size(W, 3)))
    run(x, d, mask, state) = begin
        gates = inputgates(x, W[:, :, d], bothbias(B, d))
        cell(h, g, t, r) = heldstate(mask, t, f[d](g .+ transpose(r) * h), h)
        scansteps(cell, state, gates, R[:, :, d])
    end
    return recurrentdirections(run, hidden, X, sequence_lens, direction, layout, (initial_h,))
end

"""
    GRU(X, W, R, B, sequence_lens, initial_h; …)

With gates z and r: `Hₜ = (1 - z) h + z Hₜ₋₁`, where `h = g(Wh Xₜ + Rh (r Hₜ₋₁) + Whb + Rhb)`, or
`g(Wh Xₜ + r (Rh Hₜ₋₁ + Rhb) + Whb)` if `linear_before_reset`.
"""
function GRU end

@operator function GRU(X, W, R, B=nothing, sequence_lens=nothing, initial_h=nothing;
                       activation_alpha=nothing, activation_beta=nothing, activations=nothing,
                       clip=nothing, direction="forward", hidden_size=nothing, layout=0,
                       linear_before_reset=0)
    hidden = size(R, 1)
    names = something(activations, repeat(["Sigmoid", "Tanh"], size(W, 3)))
    functions = recurrentactivations(eltype(X), names, activation_alpha, activation_beta,
                                     fill(clip, length(names)))
    linear = linear_before_reset != 0
    run(x, d, mask, state) = begin
        f, g = functions[2d - 1], functions[2d]
        gates = inputgates(x, W[:, :, d], linear ? inputbias(B, d) : bothbias(B, d))
        cell = linear ? linearcell(hidden, f, g, mask) : resetcell(hidden, f, g, mask)
        bias = linear ? statebias(B, d) : nothing
        scansteps(cell, state, gates, R[:, :, d], bias)
    end
    return recurrentdirections(run, hidden, X, sequence_lens, direction, layout, (initial_h,))
end

function resetcell(hidden, f, g, mask)
    return function (h, gates, t, r, _)
        fromstate = transpose(r[:, 1:(2hidden)]) * h
        z = f(gate(gates, hidden, 1) .+ gate(fromstate, hidden, 1))
        reset = f(gate(gates, hidden, 2) .+ gate(fromstate, hidden, 2))
        new = g(gate(gates, hidden, 3) .+ transpose(r[:, (2hidden + 1):end]) * (reset .* h))
        return heldstate(mask, t, (1 .- z) .* new .+ z .* h, h)
    end
end

function linearcell(hidden, f, g, mask)
    return function (h, gates, t, r, bias)
        product = transpose(r) * h
        fromstate = bias === nothing ? product : product .+ bias
        z = f(gate(gates, hidden, 1) .+ gate(fromstate, hidden, 1))
        reset = f(gate(gates, hidden, 2) .+ gate(fromstate, hidden, 2))
        new = g(gate(gates, hidden, 3) .+ reset .* gate(fromstate, hidden, 3))
        return heldstate(mask, t, (1 .- z) .* new .+ z .* h, h)
    end
end

"""
    LSTM(X, W, R, B, sequence_lens, initial_h, initial_c, P; …)

With gates i, o and f: `Cₜ = f Cₜ₋₁ + i g(Wc Xₜ + Rc Hₜ₋₁ + Wcb + Rcb)` and `Hₜ = o h(Cₜ)`, where
`P` has the weights with which i and f see `Cₜ₋₁`, and o sees `Cₜ`.
"""
function LSTM end

@operator function LSTM(X, W, R, B=nothing, sequence_lens=nothing, initial_h=nothing,
                        initial_c=nothing, P=nothing; activation_alpha=nothing,
                        activation_beta=nothing, activations=nothing, clip=nothing,
                        direction="forward", hidden_size=nothing, input_forget=0, layout=0)
    hidden = size(R, 1)
    names = something(activations, repeat(["Sigmoid", "Tanh", "Tanh"], size(W, 3)))
    # The clip is for the gates: as in onnxruntime, h sees the whole Cₜ.
    functions = recurrentactivations(eltype(X), names, activation_alpha, activation_beta,
                                     repeat([clip, clip, nothing], size(W, 3)))
    run(x, d, mask, state) = begin
        gates = inputgates(x, W[:, :, d], bothbias(B, d))
        cell = memorycell(hidden, functions[(3d - 2):(3d)], input_forget != 0, mask)
        scansteps(cell, state, gates, R[:, :, d], P === nothing ? nothing : P[:, d])
    end
    return recurrentdirections(run, hidden, X, sequence_lens, direction, layout,
                               (initial_h, initial_c))
end

function memorycell(hidden, functions, coupled, mask)
    f, g, h = functions
    return function (state, input, t, r, p)
        before = gate(state, hidden, 2)
        gates = input .+ transpose(r) * gate(state, hidden, 1)
        i = f(gate(gates, hidden, 1) .+ peephole(p, hidden, 1, before))
        forget = coupled ? 1 .- i : f(gate(gates, hidden, 3) .+ peephole(p, hidden, 3, before))
        memory = forget .* before .+ i .* g(gate(gates, hidden, 4))
        o = f(gate(gates, hidden, 2) .+ peephole(p, hidden, 2, memory))
        return heldstate(mask, t, vcat(o .* h(memory), memory), state)
    end
end

peephole(::Nothing, hidden, k, memory) = false
peephole(p, hidden, k, memory) = p[((k - 1) * hidden + 1):(k * hidden)] .* memory
