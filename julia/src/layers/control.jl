# Control flow: layers that hold graphs. The values from outside that these use come as arguments
# after the node's own; gradients go through the graphs' one rule, step by step.

"""
    If(then_branch, else_branch)

    y = If(then_branch, else_branch)(condition, outer...)

ONNX's `If`: one graph or the other; both take the values from outside that either uses.
"""
struct If
    then_branch::FluxGraph
    else_branch::FluxGraph
end

"""
    Loop(body, states, rows)

    (states..., rows...) = Loop(body, s, r)(trip, condition, states..., outer...)

ONNX's `Loop`: `(condition, states..., row...) = body(i, condition, states..., outer...)` for
`i = 0, 1, …` while the condition holds, `trip` times at most; either may be `nothing`. `states` and
`rows` are their numbers. Each row's entries are stacked along a new last dimension.
"""
struct Loop
    body::FluxGraph
    states::Int
    rows::Int
end

"""
    Scan(body, states, inputs, outputs)

    (states..., rows...) = Scan(body, s, inputs, outputs)(states..., sequences..., outer...)

ONNX's `Scan`: `(states..., row...) = body(states..., slices..., outer...)` for the slices of each
sequence. `inputs` and `outputs` hold `(axis, backwards)` for each sequence and row, ONNX's axes.
"""
struct Scan
    body::FluxGraph
    states::Int
    inputs::Vector{Tuple{Int,Bool}}
    outputs::Vector{Tuple{Int,Bool}}
end

"""
    SequenceMap(body, inputs)

    sequences... = SequenceMap(body, n)(sequence, inputs..., outer...)

ONNX's `SequenceMap`: `(entry...) = body(entries..., outer...)` for each place of the sequence. Of
its `n` inputs those that are no sequences are the same each time.
"""
struct SequenceMap
    body::FluxGraph
    inputs::Int
end

Flux.@layer If
Flux.@layer Loop
Flux.@layer Scan
Flux.@layer SequenceMap

const Control = Union{If,Loop,Scan,SequenceMap}
const Repeated = Union{Loop,Scan}

"""
    graphs(layer)

The graphs that a layer holds, by the ONNX attribute that each is.
"""
graphs(layer) = ()
graphs(layer::If) = (then_branch=layer.then_branch, else_branch=layer.else_branch)
graphs(layer::Union{Repeated,SequenceMap}) = (body=layer.body,)

operator(::If) = "If"
operator(::Loop) = "Loop"
operator(::Scan) = "Scan"
operator(::SequenceMap) = "SequenceMap"

attributes(layer::Control, node) = Dict{Symbol,Any}(
    name => network(graph, node.attributes[name].inputs) for (name, graph) in pairs(graphs(layer))
)

"A graph within another as data: `inputs` are its own, without the values from outside."
function network(graph::FluxGraph, inputs)
    inner = network(graph)
    return Network(inner.nodes, inner.tensors, inputs, inner.outputs, inner.opsets, inner.trainable)
end

function functional(::Val{:If}, node::Node, network::Network)
    branch(name) = inner(node, name, network)
    return If(branch(:then_branch), branch(:else_branch))
end

function functional(::Val{:Loop}, node::Node, network::Network)
    body = node.attributes[:body]
    states = length(body.inputs) - 2
    return Loop(inner(node, :body, network), states, length(body.outputs) - 1 - states)
end

function functional(::Val{:Scan}, node::Node, network::Network)
    version(network, node) >= 9 || throw(UnsupportedOperator(string(
        place(node), ": the form before opset 9 (opset ", version(network, node), ")"
    )))
    body, count = node.attributes[:body], node.attributes[:num_scan_inputs]
    states = length(body.inputs) - count
    rows = length(body.outputs) - states
    values(name, n) = Vector{Int}(get(node.attributes, name, zeros(Int, n)))
    pairwise(axes, directions, n) = collect(zip(values(axes, n), values(directions, n) .== 1))
    return Scan(
        inner(node, :body, network),
        states,
        pairwise(:scan_input_axes, :scan_input_directions, count),
        pairwise(:scan_output_axes, :scan_output_directions, rows),
    )
end

functional(::Val{:SequenceMap}, node::Node, network::Network) =
    SequenceMap(inner(node, :body, network), length(node.attributes[:body].inputs))

"A graph of a node as layers: it takes the values from outside after its own inputs."
function inner(node::Node, name::Symbol, network::Network)
    body = node.attributes[name]
    inputs = [body.inputs; captured(node)]
    return FluxGraph(
        Network(body.nodes, body.tensors, inputs, body.outputs, network.opsets, body.trainable)
    )
end

branch(condition) = only(condition) ? :then_branch : :else_branch

(layer::If)(condition, outer...) = getfield(layer, branch(condition))(outer...)

function ChainRulesCore.rrule(
    config::RuleConfig{>:HasReverseMode}, layer::If, condition, outer...
)
    name = branch(condition)
    y, back = ChainRulesCore.rrule(config, getfield(layer, name), outer...)
    function if_pullback(Δ)
        graph, inputs... = back(Δ)
        return Tangent{If}(; (name => graph,)...), NoTangent(), inputs...
    end
    return y, if_pullback
end

(layer::Repeated)(inputs...) = results(layer, passed(layer, inputs, parted)...)

"The outputs of a graph as a tuple."
parted(graph::FluxGraph, inputs) = tupled(graph(inputs...))
tupled(y::Tuple) = y
tupled(y) = (y,)

"""
    passed(layer, inputs, run) -> states, rows

The last states, and the rows of every step, where `run(body, inputs)` gives the body's outputs.
"""
function passed(layer::Loop, inputs, run)
    trip, condition = inputs[1:2]
    states, outer = parts(inputs[3:end], layer.states)
    limit = trip === nothing ? typemax(Int) : only(trip)
    rows = Any[]
    more = condition === nothing || only(condition)
    while more && length(rows) < limit
        found = run(layer.body, (fill(length(rows)), fill(true), states..., outer...))
        more = only(first(found))
        states, row = parts(found[2:end], layer.states)
        push!(rows, row)
    end
    return states, rows
end

function passed(layer::Scan, inputs, run)
    states, sequences, outer = parts(inputs, layer.states, length(layer.inputs))
    rows = Any[]
    lengths = [
        size(x, Operators.dimension(axis, x)) for (x, (axis, _)) in zip(sequences, layer.inputs)
    ]
    allequal(lengths) ||
        throw(DimensionMismatch("sequences of lengths $(join(lengths, ", ")) side by side"))
    for t in 1:first(lengths)
        slices = map((x, side) -> element(x, t, side), sequences, Tuple(layer.inputs))
        found = run(layer.body, (states..., slices..., outer...))
        states, row = parts(found, layer.states)
        push!(rows, row)
    end
    return states, rows
end

"A tuple cut into pieces of these lengths, and the rest."
parts(x::Tuple, n) = (x[1:n], x[(n + 1):end])
parts(x::Tuple, n, m) = (x[1:n], x[(n + 1):(n + m)], x[(n + m + 1):end])

"The `t`-th slice of an array."
function element(x, t, (axis, backwards))
    d = Operators.dimension(axis, x)
    return collect(selectdim(x, d, backwards ? size(x, d) - t + 1 : t))
end

element(::Nothing, t, side) = nothing

sides(layer::Loop) = ntuple(_ -> (0, false), layer.rows)
sides(layer::Scan) = Tuple(layer.outputs)

function results(layer::Repeated, states, rows)
    stacked = ntuple(length(sides(layer))) do k
        isempty(rows) && throw(UnsupportedOperator(
            "no step is taken, so what would be stacked has no known shape"
        ))
        joined([row[k] for row in rows], sides(layer)[k])
    end
    outputs = (states..., stacked...)
    return length(outputs) == 1 ? only(outputs) : outputs
end

"Arrays stacked along a new axis."
function joined(xs, (axis, backwards))
    d = Operators.dimension(axis, ndims(first(xs)) + 1)
    return stack(backwards ? reverse(xs) : xs; dims=d)
end

"How many of the body's inputs and outputs come before its states."
leading(::Loop) = (2, 1)
leading(::Scan) = (0, 0)

function ChainRulesCore.rrule(config::RuleConfig{>:HasReverseMode}, layer::Repeated, inputs...)
    backs = Any[]
    function run(graph, arguments)
        y, back = ChainRulesCore.rrule(config, graph, arguments...)
        push!(backs, back)
        return tupled(y)
    end
    states, rows = passed(layer, inputs, run)
    y = results(layer, states, rows)
    return y, Δ -> walkback(layer, inputs, backs, unthunk(Δ))
end

"The gradients of the layer and of its inputs, from the outputs' and the steps' pullbacks."
function walkback(layer::Repeated, inputs, backs, Δ)
    before, conditions = leading(layer)
    rows, sequences = length(sides(layer)), layer isa Scan ? layer.inputs : Tuple{Int,Bool}[]
    outputs = layer.states + rows
    Δs = ntuple(k -> gradientpart(outputs == 1 ? Δ : Δ[k]), outputs)
    Δstates, Δrows = parts(Δs, layer.states)
    outer = Vector{Any}(nothing, length(inputs) - before - layer.states - length(sequences))
    graph = nothing
    slices = [Any[] for _ in sequences]
    for t in length(backs):-1:1
        row = map((Δ, side) -> element(Δ, t, side), Δrows, sides(layer))
        Δbody = (ntuple(Returns(nothing), conditions)..., Δstates..., row...)
        found = backs[t](length(Δbody) == 1 ? only(Δbody) : Δbody)
        graph = accumulated(graph, first(found))
        Δstates, Δslices, Δouter = parts(
            map(gradientpart, found[(2 + before):end]), layer.states, length(sequences)
        )
        foreach((list, Δ) -> push!(list, Δ), slices, Δslices)
        foreach((k, Δ) -> add!(outer, k, Δ), eachindex(outer), Δouter)
        backs[t] = nothing
    end
    sequenced = inputs[(before + layer.states) .+ eachindex(slices)]
    Δsequences = map(unsliced, slices, sequences, sequenced)
    none(Δ) = something(Δ, ZeroTangent())
    tangent = graph === nothing ? ZeroTangent() : Tangent{typeof(layer)}(; body=graph)
    heads = ntuple(Returns(NoTangent()), before)
    return tangent, heads..., map(none, (Δstates..., Δsequences..., outer...))...
end

gradientpart(Δ) = unthunk(Δ)
gradientpart(::Union{Nothing,AbstractZero}) = nothing

"The gradient of a sequence from those of its slices, the last step's first."
function unsliced(Δs, (axis, backwards), x)
    all(isnothing, Δs) && return nothing
    d = Operators.dimension(axis, x)
    filled = [something(Δ, zero(element(x, 1, (axis, false)))) for Δ in Δs]
    return stack(backwards ? filled : reverse(filled); dims=d)
end

"The sum of two gradients of a graph."
accumulated(::Nothing, Δ) = Δ
accumulated(a, b) = Tangent{FluxGraph}(;
    layers=map(Zygote.accum, a.layers, b.layers),
    parameters=map(Zygote.accum, a.parameters, b.parameters),
)

(layer::SequenceMap)(inputs...) =
    sequences(layer, [parted(layer.body, entries(layer, inputs, k)) for k in eachindex(inputs[1])])

"What the body is given for the `k`-th place."
entries(layer::SequenceMap, inputs, k) =
    ntuple(i -> mapped(layer, inputs, i) ? inputs[i][k] : inputs[i], length(inputs))

mapped(layer::SequenceMap, inputs, i) =
    i <= layer.inputs && inputs[i] isa Operators.TensorSequence

function sequences(layer::SequenceMap, found)
    count = length(layer.body.program.outputs)
    y = ntuple(j -> Operators.TensorSequence([outputs[j] for outputs in found]), count)
    return count == 1 ? only(y) : y
end

function ChainRulesCore.rrule(config::RuleConfig{>:HasReverseMode}, layer::SequenceMap, inputs...)
    passes = [
        ChainRulesCore.rrule(config, layer.body, entries(layer, inputs, k)...)
        for k in eachindex(inputs[1])
    ]
    y = sequences(layer, [tupled(found) for (found, _) in passes])
    function sequencemap_pullback(Δ)
        Δs = map(gradientpart, y isa Tuple ? Tuple(unthunk(Δ)) : (Δ,))
        graph = nothing
        Δinputs = Any[
            mapped(layer, inputs, i) ? Any[ZeroTangent() for _ in x] : nothing
            for (i, x) in enumerate(inputs)
        ]
        for (k, (_, back)) in enumerate(passes)
            Δbody = map(Δ -> Δ === nothing ? nothing : gradientpart(Δ[k]), Δs)
            all(isnothing, Δbody) && continue
            tangent, found... = back(y isa Tuple ? Δbody : only(Δbody))
            graph = accumulated(graph, tangent)
            for (i, Δ) in enumerate(found)
                mapped(layer, inputs, i) ? Δinputs[i][k] = Δ : add!(Δinputs, i, Δ)
            end
        end
        tangent = graph === nothing ? ZeroTangent() : Tangent{SequenceMap}(; body=graph)
        return tangent, map(Δ -> something(Δ, ZeroTangent()), Δinputs)...
    end
    return y, sequencemap_pullback
end

function Base.show(io::IO, layer::Control)
    named = [string(name, "=", graph) for (name, graph) in pairs(graphs(layer))]
    print(io, operator(layer), "(", join(named, ", "), ")")
end
