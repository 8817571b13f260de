# One gradient rule for the whole graph: each layer's own, forward and then back. Compilation grows
# with the number of kinds of layers, not with their number.

using ChainRulesCore: ChainRulesCore, RuleConfig, HasReverseMode, AbstractZero, NoTangent, Tangent,
    ZeroTangent, unthunk
using Zygote: Zygote

apply(layer, inputs...) = layer(inputs...)

"Whether a gradient can reach a value."
isreal(x) = x isa AbstractArray{<:AbstractFloat}
isreal(x::Operators.TensorSequence) = any(isreal, x)

"Whether a layer may have parameters."
parametric(layer) = true
parametric(::Union{Call,MaxPool,MeanPool,GlobalMeanPool,GlobalMaxPool}) = false

"""
    pullback(layer, inputs)

A layer's output and the function from its gradient to those of the layer and of the inputs.
"""
pullback(layer, inputs) = Zygote.pullback(apply, layer, inputs...)

function pullback(call::Call, inputs)
    y, back = Zygote.pullback(call, inputs...)
    return y, Δ -> (nothing, something(back(Δ), ntuple(Returns(nothing), length(inputs)))...)
end

pullback(layer::Union{MaxPool,GlobalMaxPool}, inputs) = maxpullback(layer, only(inputs))

"""
    maxpullback(layer, x)

The same for pooling by maximum: the first of the largest values of a window takes its gradient, as
in PyTorch. NNlib's gives it to the first that is ≈ the largest, in Float32 often another.
"""
function maxpullback(layer, x::Array)
    y = layer(x)
    windows = Operators.slidingwindows(x; windowof(layer, x)...)
    return y, Δ -> (nothing, Operators.maxwindowsgradient(unthunk(Δ), y, x, windows))
end

maxpullback(layer, x) = Zygote.pullback(apply, layer, x)  # Not in the processor's memory.

"The attributes of ONNX's MaxPool that is the layer."
windowof(layer::MaxPool, x) = (; UNSTATED..., attributes(layer, nothing)...)
windowof(::GlobalMaxPool, x) =
    (; UNSTATED..., kernel_shape=byaxis(size(x)[1:(end - 2)]), pads=nothing, strides=nothing)

const UNSTATED = (auto_pad="NOTSET", ceil_mode=0, dilations=nothing)

"The same for a list of gradients, one for each output that the node names."
listed(back, y) = Δs -> back(only(Δs))
listed(back, y::Tuple) = Δs -> back(ntuple(i -> get(Δs, i, nothing), length(y)))

function ChainRulesCore.rrule(::RuleConfig{>:HasReverseMode}, graph::FluxGraph, inputs...)
    program = graph.program
    values = start(graph, inputs)
    active = falses(length(values))
    active[program.parameters] .= true
    active[program.inputs] .= isreal.(inputs)
    backs = Vector{Any}(nothing, length(graph.layers))
    for (i, (layer, step)) in enumerate(zip(graph.layers, program.steps))
        arguments = map(slot -> read(values, slot), step.inputs)
        reached = parametric(layer) || any(slot -> slot != 0 && active[slot], step.inputs)
        if reached && differentiable(layer)
            y, back = located(() -> pullback(layer, arguments), step, arguments)
            store!(values, step, y)
            backs[i] = listed(back, y)
            for slot in step.outputs
                slot == 0 || (active[slot] = isreal(values[slot]))
            end
        else
            store!(values, step, located(() -> layer(arguments...), step, arguments))
        end
        values[step.dead] .= nothing
    end
    return finish(graph, values), Δ -> walkback(graph, backs, active, unthunk(Δ))
end

"The gradients of the graph and of its inputs, from the outputs' and the layers' pullbacks."
function walkback(graph::FluxGraph, backs, active, Δ)
    program = graph.program
    gradients = Vector{Any}(nothing, length(program.values))
    several = length(program.outputs) > 1
    for (i, slot) in enumerate(program.outputs)
        add!(gradients, slot, several ? Δ[i] : Δ)
    end
    layers = Vector{Any}(nothing, length(graph.layers))
    for i in length(graph.layers):-1:1
        step, back = program.steps[i], backs[i]
        backs[i] = nothing
        found = map(slot -> read(gradients, slot), step.outputs)
        gradients[filter(!=(0), step.outputs)] .= nothing
        (back === nothing || all(isnothing, found)) && continue
        layers[i], arguments... = located(() -> back(found), step, found)
        for (slot, gradient) in zip(step.inputs, arguments)
            slot != 0 && active[slot] && add!(gradients, slot, gradient)
        end
    end
    tangent = Tangent{FluxGraph}(; layers, parameters=gradients[program.parameters])
    return tangent, map(slot -> something(gradients[slot], ZeroTangent()), program.inputs)...
end

add!(gradients, slot, Δ) = gradients[slot] = Zygote.accum(gradients[slot], Δ)
add!(gradients, slot, ::Union{Nothing,AbstractZero}) = nothing

"""
    gradients(graph, gradient)

The gradient of each trainable tensor by its ONNX name, with ONNX's dimensions reversed, from the
gradient of the graph that `Flux.gradient` gives.
"""
function gradients(graph::FluxGraph, gradient)
    found = Dict{String,AbstractArray}()
    gradient === nothing && return found
    function put(name, Δ)
        Δ isa AbstractArray || return
        found[name] = haskey(found, name) ? found[name] .+ Δ : Δ
    end
    for (slot, Δ) in zip(graph.program.parameters, something(gradient.parameters, ()))
        put(graph.program.values[slot], Δ)
    end
    steps = zip(graph.layers, graph.program.steps, something(gradient.layers, ()))
    for (layer, step, Δ) in steps, b in step.bindings
        haskey(Flux.Optimisers.trainable(layer), first(b.field.path)) || continue
        x = follow(Δ, b.field.path)
        x isa AbstractArray && put(b.tensor, unbind(b.field.form, x))
    end
    for (layer, step, Δ) in steps, (field, inner) in pairs(graphs(layer))
        for (name, x) in gradients(inner, follow(Δ, (field,)))
            put(innername(step, field, name), x)
        end
    end
    return found
end

"What a tensor of a graph within a layer is called."
innername(step::Step, field, name) = string(step.name, '.', field, '.', name)

"""
    eachtensor(f, graph)

Call `f(name, array, form)` once for each array of the graph that is a trainable tensor.
"""
function eachtensor(f, graph::FluxGraph)
    seen = Base.IdSet{Any}()
    visit(name, x, form) = x isa AbstractArray && !(x in seen) && (push!(seen, x); f(name, x, form))
    for (slot, x) in zip(graph.program.parameters, graph.parameters)
        visit(graph.program.values[slot], x, Plain)
    end
    for (layer, step) in zip(graph.layers, graph.program.steps), b in step.bindings
        haskey(Flux.Optimisers.trainable(layer), first(b.field.path)) || continue
        visit(b.tensor, follow(layer, b.field.path), b.field.form)
    end
    for (layer, step) in zip(graph.layers, graph.program.steps)
        for (field, inner) in pairs(graphs(layer))
            eachtensor((name, x, form) -> visit(innername(step, field, name), x, form), inner)
        end
    end
end

"A copy in Float64, which no cast rounds."
doubled(graph::FluxGraph) = widen!(Flux.f64(deepcopy(graph)))

function widen!(graph::FluxGraph)
    map!(widened, graph.layers, graph.layers)
    foreach(layer -> foreach(widen!, graphs(layer)), graph.layers)
    return graph
end

widened(layer) = layer
function widened(call::Call{typeof(Operators.Cast)})
    T = get(Operators.ELEMENTTYPES, call.keywords.to, Nothing)
    return T <: AbstractFloat ? Call(call.f, merge(call.keywords, (to=DOUBLE,))) : call
end

const DOUBLE = 11  # ONNX's element type.

"""
    moved(graph, direction, step)

A copy in Float64 whose trainable tensors are `step` times further along `direction`, a dictionary
of arrays by name.
"""
function moved(graph::FluxGraph, direction::AbstractDict, step)
    copied = doubled(graph)
    eachtensor(copied) do name, x, form
        haskey(direction, name) && (x .+= step .* bind(form, direction[name]))
    end
    return copied
end

"""
    positive(graph)

A copy in Float64 in which every trainable tensor is its absolute value, and the mean that a
normalization keeps is zero.

Source: Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving
synaptic flow, section 5.
"""
function positive(graph::FluxGraph)
    copied = doubled(graph)
    eachtensor((name, x, form) -> x .= abs.(x), copied)
    for layer in copied.layers
        layer isa BatchNorm && (layer.μ .= 0)
    end
    return copied
end
