# From a network as data to layers.

"""
    FluxGraph(network; own=false, origin=nothing)

Build the layers of a network. With `own`, its arrays may become the layers' own, and change.
`origin` is kept for who writes the network to a file. `shared` names tensors that are already
arrays of layers, in a form: where these have the same values, they are taken.
"""
function FluxGraph(
    network::Network;
    own=false, origin=nothing, shared=Dict{String,Tuple{Form,AbstractArray}}(),
)
    source = Source(network, usecounts(network), Dict{String,AbstractArray}(), own, shared)
    builds = built(network, source)
    layers = Any[build.layer for build in builds]
    slots = Slots(network, builds)
    steps = program_steps(network, builds, slots)
    program = Program(
        steps,
        slots.values,
        [slots.of[name] for name in network.inputs],
        [slots.of[name] for name in network.outputs],
        slots.parameters,
        slots.constants,
        slots.data,
        innertensors(network, builds, slots),
        network.opsets,
        Dict(first(filter(!isempty, node.outputs)) => i for (i, node) in enumerate(network.nodes)),
        stepindex(steps),
        origin,
    )
    parameters = Any[held(source, slots.values[slot]) for slot in slots.parameters]
    constants = Any[network.tensors[slots.values[slot]] for slot in slots.constants]
    return FluxGraph(layers, parameters, constants, program)
end

"How often each value is an input of a node or an output of the graph."
function usecounts(network::Network)
    uses = Dict{String,Int}()
    count!(name) = isempty(name) || (uses[name] = get(uses, name, 0) + 1)
    foreach(count!, network.outputs)
    for node in network.nodes
        foreach(count!, node.inputs)
        foreach(count!, captured(node))
    end
    return uses
end

"A layer, the nodes that it stands for, and what their other inputs are."
struct Build
    layer::Any
    nodes::Vector{Node}
    inputs::Vector{String}
    f::Any  # its activation function
end

function built(network::Network, source::Source)
    consumers = Dict{String,Node}()
    for node in network.nodes, name in node.inputs
        consumers[name] = node  # read only where there is one
    end
    builds = Build[]
    merged = Set{String}()
    for node in network.nodes
        first(node.outputs) in merged && continue
        build = Build(node, network, source, consumers)
        for follower in build.nodes[2:end]
            push!(merged, first(follower.outputs))
        end
        push!(builds, build)
    end
    return builds
end

function Build(node::Node, network::Network, source::Source, consumers)
    made = isempty(node.domain) ? layer(Val(Symbol(node.operator)), node, source) : nothing
    if made === nothing
        return Build(functional(node, network), [node], allinputs(node), nothing)
    end
    nodes = [node]
    follower() = onlyfollower(last(nodes), source, consumers)
    next = follower()
    if made isa Dense && next !== nothing
        biased = addbias(made, node, next, source)
        if biased !== nothing
            made = biased
            push!(nodes, next)
            next = follower()
        end
    end
    f = nothing
    if activation(made) !== nothing
        f = identity
        found = next === nothing ? nothing : activationfunction(next, source)
        if found !== nothing
            f = found
            made = withactivation(made, f)
            push!(nodes, next)
        end
    end
    return Build(made, nodes, node.inputs[1:1], f)
end

"The only node that uses a node's only output, as its first input or as a term of a sum."
function onlyfollower(node::Node, source::Source, consumers)
    length(node.outputs) == 1 || return nothing
    name = only(node.outputs)
    get(source.uses, name, 0) == 1 && haskey(consumers, name) || return nothing
    return consumers[name]
end

"The layer of a node as a function, or as one that holds graphs."
function functional(node::Node, network::Network)
    isempty(node.domain) && return functional(Val(Symbol(node.operator)), node, network)
    return Call(node, version(network, node))
end

functional(::Val, node::Node, network::Network) = Call(node, version(network, node))

"The version of the operator set that a node's operator is of."
version(network::Network, node::Node) = get(network.opsets, node.domain, 1)

"A node's inputs, and then the values from outside that its graphs use."
function allinputs(node::Node)
    outer = captured(node)
    isempty(outer) && return node.inputs
    absent = node.operator == "Loop" ? max(0, 2 - length(node.inputs)) : 0
    return [node.inputs; fill("", absent); outer]
end

"The values from outside that a node's graphs use, and those within these."
captured(node::Node) = unique!(String[
    name for graph in values(node.attributes) if graph isa Network for name in captured(graph)
])

function captured(graph::Network)
    known = Set([graph.inputs; collect(keys(graph.tensors))])
    outer = String[]
    note!(name) = isempty(name) || name in known || push!(outer, name)
    for node in graph.nodes
        foreach(note!, node.inputs)
        foreach(note!, captured(node))
        union!(known, node.outputs)
    end
    foreach(note!, graph.outputs)
    return unique!(outer)
end

# Inputs that no gradient goes to, though they are floating.
const FIXED_INPUTS = Dict("Resize" => 2:4, "Upsample" => 2:2, "Pad" => 3:3)

"The numbered places of values, as a network is read."
struct Slots
    values::Vector{String}
    of::Dict{String,Int}
    parameters::Vector{Int}
    constants::Vector{Int}
    data::Vector{Pair{Int,AbstractArray}}
end

function Slots(network::Network, builds)
    slots = Slots(String[], Dict{String,Int}(), Int[], Int[], Pair{Int,AbstractArray}[])
    trained = Set{String}()
    for build in builds, (i, name) in enumerate(build.inputs)
        i in get(FIXED_INPUTS, first(build.nodes).operator, 1:0) && continue
        differentiable(build.layer) && name in network.trainable && push!(trained, name)
    end
    foreach(name -> slot!(slots, name), network.inputs)
    used = [network.outputs; reduce(vcat, (build.inputs for build in builds); init=String[])]
    for name in used
        (haskey(slots.of, name) || !haskey(network.tensors, name)) && continue
        slot, x = slot!(slots, name), network.tensors[name]
        if name in trained
            push!(slots.parameters, slot)
        elseif eltype(x) <: AbstractFloat
            push!(slots.constants, slot)
        else
            push!(slots.data, slot => x)
        end
    end
    for build in builds, name in last(build.nodes).outputs
        isempty(name) || slot!(slots, name)
    end
    return slots
end

slot!(slots::Slots, name) = get!(slots.of, name) do
    push!(slots.values, name)
    length(slots.values)
end

"The array of a parameter: the same one that layers hold, where they share it."
held(source::Source, name) =
    get!(() -> bind(source, name, Plain), source.bound, name)

function program_steps(network::Network, builds, slots::Slots)
    names = layernames([first(build.nodes) for build in builds], network.tensors)
    steps = map(builds, names) do build, name
        places(list) = [isempty(x) ? 0 : slots.of[x] for x in list]
        found = [
            Binding(field, build.nodes[field.node].inputs[field.position])
            for field in fields(build.layer, build.nodes) if bound(build, field)
        ]
        derived = attributes(build.layer, first(build.nodes))
        outputs = places(last(build.nodes).outputs)
        inputs, opset = places(build.inputs), version(network, first(build.nodes))
        Step(name, build.nodes, inputs, outputs, found, derived, build.f, Int[], opset)
    end
    marklast!(steps, slots, network)
    return steps
end

bound(build::Build, field::Field) =
    field.node <= length(build.nodes) && given(build.nodes[field.node], field.position)

"Note at each step the slots that nothing after it reads."
function marklast!(steps, slots::Slots, network::Network)
    read = Set(slots.of[name] for name in network.outputs)
    for step in reverse(steps)
        for slot in [step.inputs; step.outputs]
            if slot != 0 && slot ∉ read
                push!(read, slot)
                push!(step.dead, slot)
            end
        end
    end
end

"The tensors that nodes within layers use, but no field is."
function innertensors(network::Network, builds, slots::Slots)
    found = Dict{String,AbstractArray}()
    for build in builds
        places = Set((f.node, f.position) for f in fields(build.layer, build.nodes))
        for (k, node) in enumerate(build.nodes), (i, name) in enumerate(node.inputs)
            (k, i) in places || haskey(slots.of, name) || !haskey(network.tensors, name) ||
                (found[name] = network.tensors[name])
        end
    end
    return found
end

function stepindex(steps)
    index = Dict{String,Int}()
    for names in (
        step -> filter(!isempty, reduce(vcat, (node.outputs for node in step.nodes))),
        step -> map(nodename, step.nodes),
        step -> [step.name],
    )
        for (i, step) in enumerate(steps), name in names(step)
            index[name] = i  # the names in later lists win
        end
    end
    return index
end
