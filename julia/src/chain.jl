# From a FluxGraph to plain Flux: where its shape is series-parallel.

using Flux: Chain, Parallel, SkipConnection

"""
    Applied(layer, arguments, output)

A layer of a [`FluxGraph`](@ref) as one of a `Chain`: what is no value that flows through it is held
in `arguments`, where `missing` stands for each that is. Of several outputs, it gives one.
"""
struct Applied{L,A<:Tuple}
    layer::L
    arguments::A
    output::Int
end

Flux.@layer Applied

"An array that isn't trained."
struct Fixed{T}
    value::T
end

Flux.@layer Fixed trainable=()

function (a::Applied)(xs...)
    y = a.layer(filled(a.arguments, xs)...)
    return y isa Tuple ? y[a.output] : y
end

filled(::Tuple{}, xs) = ()
filled(arguments::Tuple{Missing,Vararg}, xs) =
    (first(xs), filled(Base.tail(arguments), Base.tail(xs))...)
filled(arguments::Tuple{Fixed,Vararg}, xs) =
    (first(arguments).value, filled(Base.tail(arguments), xs)...)
filled(arguments::Tuple, xs) = (first(arguments), filled(Base.tail(arguments), xs)...)

Base.show(io::IO, a::Applied) = print(io, a.layer)

"""
    Chain(graph::FluxGraph) -> Chain

The network as plain Flux: its own layers, in `Chain`s, `SkipConnection`s and `Parallel`s, and
operators that Flux has no layer for as functions. It shares all arrays with the graph.

Throws `ArgumentError`, with the node, for a graph that isn't series-parallel, has several inputs or
outputs, or computes something of its weights alone.
"""
function Flux.Chain(graph::FluxGraph)
    program = graph.program
    for (kind, slots) in (("inputs", program.inputs), ("outputs", program.outputs))
        length(slots) == 1 || throw(ArgumentError(string(
            "a Chain has one input and one output; the network has the ", kind, " ",
            join(program.values[slots], ", "),
        )))
    end
    flow = Flow(graph)
    layers = series(flow, only(program.outputs), only(program.inputs))
    return Chain(Tuple(layers))
end

"""
    Flow(graph)

What flows through a graph: the step that makes each slot's value, the values that flow into each
step, and each slot's dominator: the last value before it that all its paths go through. `used`
collects the steps that were placed.
"""
struct Flow
    graph::FluxGraph
    maker::Dict{Int,Int}
    inputs::Vector{Vector{Int}}
    dominator::Dict{Int,Int}
    depth::Dict{Int,Int}
    used::Set{Int}
end

function Flow(graph::FluxGraph)
    program = graph.program
    held = Set([program.parameters; program.constants; first.(program.data)])
    maker, dominator = Dict{Int,Int}(), Dict{Int,Int}()
    depth = Dict(slot => 0 for slot in program.inputs)
    inputs = Vector{Int}[]
    flow = Flow(graph, maker, inputs, dominator, depth, Set{Int}())
    for (i, step) in enumerate(program.steps)
        flowing = [slot for slot in step.inputs if slot != 0 && slot ∉ held]
        push!(inputs, flowing)
        for slot in step.outputs
            slot == 0 && continue
            maker[slot] = i
            before = isempty(flowing) ? 0 : reduce((a, b) -> common(flow, a, b), flowing)
            dominator[slot] = before
            depth[slot] = get(depth, before, -1) + 1
        end
    end
    return flow
end

"The last value that all paths to both values go through, or 0."
function common(flow::Flow, a, b)
    while a != b
        (a == 0 || b == 0) && return 0
        if flow.depth[a] >= flow.depth[b]
            a = get(flow.dominator, a, 0)
        else
            b = get(flow.dominator, b, 0)
        end
    end
    return a
end

"The layers from one value to another."
function series(flow::Flow, to, from)
    layers = Any[]
    while to != from
        i = get(flow.maker, to, 0)
        i == 0 && throw(ArgumentError(string(
            "'", flow.graph.program.values[to], "' isn't computed from the input"
        )))
        step = flow.graph.program.steps[i]
        before = flow.dominator[to]
        before == 0 && throw(ArgumentError(string(
            stepplace(step), " uses weights alone, so it is no part of a Chain"
        )))
        i in flow.used && throw(ArgumentError(string(
            stepplace(step), " belongs to several branches: the graph isn't series-parallel there"
        )))
        push!(flow.used, i)
        layer = function_of(flow, i, to)
        flowing = flow.inputs[i]
        pushfirst!(layers, length(flowing) == 1 ? layer : parallel(flow, layer, flowing, before))
        to = before
    end
    return layers
end

stepplace(step::Step) = join((place(node) for node in step.nodes), ", ")

"Branches from one value that a layer joins."
function parallel(flow::Flow, join, inputs, from)
    branches = [series(flow, input, from) for input in inputs]
    if length(branches) == 2 && isempty(last(branches)) && !isempty(first(branches))
        return SkipConnection(onelayer(first(branches)), join)
    elseif length(branches) == 2 && isempty(first(branches)) && !isempty(last(branches)) &&
            commutes(join)
        return SkipConnection(onelayer(last(branches)), join)
    end
    return Parallel(join, map(onelayer, branches)...)
end

onelayer(layers) = isempty(layers) ? identity : length(layers) == 1 ? only(layers) :
    Chain(Tuple(layers))

commutes(join) = join isa Base.BroadcastFunction

"A step as a layer of a Chain: Flux's own, a function, or the step's with what it holds."
function function_of(flow::Flow, i, slot)
    graph = flow.graph
    layer, step = graph.layers[i], graph.program.steps[i]
    held = [s for s in step.inputs if s != 0 && s ∉ flow.inputs[i]]
    plain = isempty(held) && layer isa Call ? plainfunction(layer) : layer
    isempty(held) && length(step.outputs) == 1 && !(0 in step.inputs) && return plain
    arguments = map(Tuple(step.inputs)) do s
        s == 0 ? nothing : s in flow.inputs[i] ? missing : heldarray(graph, s)
    end
    return Applied(layer, arguments, findfirst(==(slot), step.outputs))
end

"The array of a slot that no step makes."
function heldarray(graph::FluxGraph, slot)
    program = graph.program
    k = findfirst(==(slot), program.parameters)
    k === nothing || return graph.parameters[k]
    k = findfirst(==(slot), program.constants)
    k === nothing || return Fixed(graph.constants[k])
    return Fixed(last(program.data[findfirst(pair -> first(pair) == slot, program.data)]))
end

"An operator without weights as Julia and Flux write it, where they do."
function plainfunction(call::Call)
    name, said = operator(call), call.keywords
    name == "Flatten" && said == (axis=1,) && return Flux.flatten
    isempty(said) || return call
    haskey(PLAIN, name) && return Base.BroadcastFunction(PLAIN[name])
    return call
end

const PLAIN = Dict{String,Any}(
    "Relu" => NNlib.relu, "Sigmoid" => NNlib.sigmoid, "Tanh" => tanh,
    "HardSwish" => NNlib.hardswish, "Softplus" => NNlib.softplus, "Softsign" => NNlib.softsign,
    "Mish" => NNlib.mish, "Add" => +, "Mul" => *,
)
