# What needs Python, through PythonCall: methods are in the extension OnnxJLPythonCallExt.

"""
    load(path; device="cpu", options...) -> FluxGraph
    load(model, size; input_name="input", output_name="output") -> FluxGraph
    load(model, "a" => size, "b" => size, …; output_name="output") -> FluxGraph

Read an ONNX file, or take a model of Flux layers, whose arrays are shared, as
`FluxGraph(model, size)` does; this one can be saved. The options of a file are those of Python's
`onnxjl.load`. Needs PythonCall, and the Python package onnxjl.
"""
function load end

"""
    save(graph, path; force=false, check=true, inputs=nothing, external=nothing) -> outcome

Write a network that came from ONNX to a file: its weights are what the layers say now, in the
element types of the network that was loaded. Before it takes its name, it's compared with the
outputs of `graph`; the outcome is a sentence that says what was found. The options are those of
Python's `onnxjl.save`; `inputs` are arrays by name, in Julia's order of dimensions. Needs
PythonCall, and the Python package onnxjl.
"""
function save end

"""
    groups(graph; granularity="channel", allow_inexact=false, ignore=[], gradient=nothing)

What can be pruned together, as a vector of [`Group`](@ref). `gradient` is that of the graph, as
`Flux.gradient` gives it, for the members of the groups. The other options are those of Python's
`onnxjl.groups`. Needs PythonCall, and the Python package onnxjl.

    scores = [vec(sum(abs, m[g.layer].weight; dims=(1, 2, 3))) for g in groups(m)]
"""
function groups end

"""
    blocks(graph; ignore=[], gradient=nothing)

The residual branches that can go as a whole, as a vector of [`Block`](@ref). `gradient` is that of
the graph, as `Flux.gradient` gives it. [`removeblocks`](@ref) takes some out; `prune(graph;
granularity="block", …)` chooses them. Needs PythonCall, and the Python package onnxjl.
"""
function blocks end

"""
    removeblocks(graph, blocks...) -> FluxGraph

A copy without some [`blocks`](@ref), or those of these names; in names, `*` stands for anything. Where
the network computes `x + f(x)`, the copy has `x`. Needs PythonCall, and the Python package onnxjl.

    m2 = removeblocks(m, "layer2.1", "layer3.*")
"""
function removeblocks end

"""
    plan(graph) -> String

The plan that led to a pruned network, as JSON; `nothing` where it wasn't pruned. Needs PythonCall,
and the Python package onnxjl.
"""
function plan end

"""
    PythonError(kind, text)

An error of the Python package onnxjl, of the class `kind`.
"""
struct PythonError <: Exception
    kind::String
    text::String
end

Base.showerror(io::IO, e::PythonError) = print(io, "onnxjl.", e.kind, ": ", e.text)

function __init__()
    Base.Experimental.register_error_hint(MethodError) do io, e, _, _
        e.f in (load, save, groups, blocks, removeblocks, plan) && isempty(methods(e.f)) &&
            print(io, "\nIt needs PythonCall: `using PythonCall`.")
    end
end

"""
    receive(nodes, tensors, inputs, outputs, opsets, trainable, graph, written=nothing) -> FluxGraph

Build a network of what Python hands over: nodes as tuples of plain values, an iterator of the
tensors' names and arrays, and the graph that they are of. Tensors that are as they were `written`
are the layers' of that model.
"""
function receive end

"""
    deliver(graph) -> (nodes, tensors)

A network as plain values for Python: what [`network`](@ref) says.
"""
function deliver end

"""
    write(model, inputs, output) -> Written

A model of Flux layers as a network, for inputs as pairs of a name and a shape in ONNX's order.
"""
function write end

"""
    run(graph, inputs) -> outputs

Run a network on NumPy arrays.
"""
function run end

"""
    forward(graph, inputs) -> Pass

A forward pass on NumPy arrays, to go back.
"""
function forward end

"""
    infer(graph, inputs) -> Pass

A forward pass on NumPy arrays that can't be gone back.
"""
function infer end

"""
    outputs(pass)

The outputs of a pass, as NumPy arrays.
"""
function outputs end

"""
    measure(loss, pass, target) -> value, gradients

A loss (its name, or a Julia function), and its gradients with respect to the outputs.
"""
function measure end

"""
    penaltyof(graph, groups, frozen)

A [`penalty`](@ref) on groups that Python describes.
"""
function penaltyof end

"""
    movedby(graph, direction, step)

[`moved`](@ref) along NumPy arrays.
"""
function movedby end

"""
    lossvalue(loss, pass, target)

A loss (its name, or a Julia function).
"""
function lossvalue end

"""
    stepnames(graph)

What each layer can be called: its own name, and those of its nodes.
"""
function stepnames end

"""
    numpyarrays(arrays)

Julia arrays and numbers as NumPy arrays.
"""
function numpyarrays end

"""
    namedarrays(arrays)

A dictionary of Julia arrays by name as one of NumPy arrays.
"""
function namedarrays end

"""
    namedgradients(graph, gradient)

The gradient of each trainable tensor, by name, as NumPy arrays.
"""
function namedgradients end

"""
    Member(tensor, dim, weight, gradient, indices)

One of the weights that a group's units are cut from, along its dimension `dim`; `indices` has a row
for each unit. `gradient` is `nothing` where no data were given, and zero for what isn't trained.
"""
struct Member
    tensor::String
    dim::Int
    weight::AbstractArray
    gradient::Any
    indices::Matrix{Int}
end

"""
    slice(member, unit)
    slice(member, unit, array)

A unit's part of a member's weight, or of an array of that size, such as its gradient: a view with
the member's dimension as it is, and only the unit's indices of it.
"""
slice(member::Member, unit, x=member.weight) = selectdim(x, member.dim, member.indices[unit, :])

"""
    Group

Units that can go one by one, each from every member at once: what [`groups`](@ref) finds, and what
a criterion written in Julia gets, `criterion(group) -> scores`, a number for each unit, larger is
more important. `length(group)` is the number of units, `slice(member, unit)` a unit's part.

- `name`; `layer`: the layer that makes the units, as in `graph[group.layer]`; `layers`: all layers
  whose outputs shrink.
- `kind`: `"channel"`, `"head"` or `"head-dim"`.
- `exact`: whether the pruned network equals the one in which the units are masked.
- `macs`, `parameters`: what the removal of one unit saves.
- `members`: a vector of [`Member`](@ref).
"""
struct Group
    name::String
    layer::String
    layers::Vector{String}
    kind::String
    exact::Bool
    macs::Float64
    parameters::Float64
    members::Vector{Member}
end

Base.length(group::Group) = size(first(group.members).indices, 1)

Base.show(io::IO, group::Group) = print(
    io, "Group(", repr(group.name), ", ", length(group), " × ", group.kind,
    group.exact ? "" : ", inexact", ")",
)

function Base.show(io::IO, ::MIME"text/plain", group::Group)
    get(io, :compact, false) && return show(io, group)
    print(io, group, ": ", underscored(round(Int, group.macs)), " multiply–accumulates and ")
    print(io, underscored(round(Int, group.parameters)), " parameters each")
    for member in group.members
        print(io, "\n  ", member)
    end
end

Base.show(io::IO, member::Member) =
    print(io, member.tensor, ": ", summary(member.weight), ", dimension ", member.dim)

"""
    Block

A residual branch that can go as a whole: what [`blocks`](@ref) finds, and what a criterion of
blocks written in Julia gets, `criterion(block) -> score`, one number, larger is more important.

- `name`; `kind`: `"convolution"`, `"attention"` or `"mlp"`; `layers`: those with weights, as in
  `graph[first(block.layers)]`.
- `projection`: the layer on the way that skips the branch, or `nothing`.
- `macs`, `parameters`: what its removal saves.
- `weights`: those that only the branch uses, by name, as ONNX has them with their dimensions
  reversed; `gradients`: theirs, `nothing` where no data were given, and zero for what isn't trained.
"""
struct Block
    name::String
    kind::String
    layers::Vector{String}
    projection::Union{String,Nothing}
    macs::Float64
    parameters::Float64
    weights::Dict{String,AbstractArray}
    gradients::Union{Dict{String,AbstractArray},Nothing}
end

Base.show(io::IO, block::Block) = print(io, "Block(", repr(block.name), ", ", block.kind, ")")

function Base.show(io::IO, ::MIME"text/plain", block::Block)
    get(io, :compact, false) && return show(io, block)
    print(io, block, ": ", underscored(round(Int, block.macs)), " multiply–accumulates and ")
    print(io, underscored(round(Int, block.parameters)), " parameters")
    block.projection === nothing || print(io, ", skipped by ", block.projection)
    for layer in block.layers
        print(io, "\n  ", layer)
    end
end

"""
    score(criterion, group, tensors, members)

The scores that a function `criterion(group)` gives a group that Python describes.
"""
function score end

"""
    scoreblock(criterion, block, tensors)

The score that a function `criterion(block)` gives a block that Python describes.
"""
function scoreblock end

"The modules of files that were run: they stay, as what their functions refer to does."
const SPACES = Module[]

"""
    criterion(path, name)

The function `name` of a Julia file, which is run in a module of its own.
"""
function criterion(path, name)
    space = Module(gensym(name))  # A module of the same name would take it.
    push!(SPACES, space)
    Core.eval(space, :(using OnnxJL: OnnxJL, Block, Group, Member, slice))
    Core.eval(space, :(include(path) = Base.include($space, path)))
    Base.include(space, path)
    isdefined(space, Symbol(name)) || throw(ArgumentError("$path defines no function '$name'"))
    return getfield(space, Symbol(name))
end

"""
    edits(plan) -> Edits

A plan as Python has it.
"""
function edits end

"""
    explain(exception) -> (kind, text)

What Python tells its user of an error.
"""
explain(e) = ("error", sprint(showerror, e))
explain(e::UnsupportedOperator) = ("unsupported", e.reason)
function explain(e::NodeError)
    e.cause isa UnsupportedOperator || return ("error", sprint(showerror, e))
    return ("unsupported", string(e.node, ": ", e.cause.reason, " (opset ", e.opset, ")"))
end

"A network as Flux shows it."
text(graph) = repr(MIME("text/plain"), graph)

"The address of what Julia's runtime has for C, for a thread that leaves Julia."
gcsafeenter() = UInt(cglobal(:jl_gc_safe_enter))
