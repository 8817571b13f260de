# What needs Python, through PythonCall: methods are in the extension OnnxJLPythonCallExt.

"""
    load(path) -> FluxGraph

Read an ONNX file. Needs PythonCall, and the Python package onnxjl.
"""
function load end

"""
    save(graph, path)

Write a network to an ONNX file, checked. Needs PythonCall, and the Python package onnxjl.
"""
function save end

"""
    groups(graph)

What can be pruned together. Needs PythonCall, and the Python package onnxjl.
"""
function groups end

"""
    receive(nodes, tensors, inputs, outputs, opsets, trainable, written=nothing) -> FluxGraph

Build a network of what Python hands over: nodes as tuples of plain values, and an iterator of the
tensors' names and arrays. Those that are as they were `written` are the layers' of that model.
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
    namedgradients(graph, gradient)

The gradient of each trainable tensor, by name, as NumPy arrays.
"""
function namedgradients end

"""
    Member(tensor, dim, weight, gradient, indices)

One of the weights that a group's units are cut from, along its dimension `dim`; `indices` has a row
for each unit. `gradient` is `nothing` where no data were given.
"""
struct Member
    tensor::String
    dim::Int
    weight::AbstractArray
    gradient::Any
    indices::Matrix{Int}
end

"A unit's slice of a member, or of an array like its weight."
slice(member::Member, unit, x=member.weight) = selectdim(x, member.dim, member.indices[unit, :])

"""
    Group(name, members)

What a criterion written in Julia gets: `criterion(group) -> scores`, a number for each unit, larger
is more important. `length(group)` is the number of units, `slice(member, unit)` a unit's part.
"""
struct Group
    name::String
    members::Vector{Member}
end

Base.length(group::Group) = size(first(group.members).indices, 1)

"""
    score(criterion, name, tensors, members)

The scores that a function `criterion(group)` gives a group that Python describes.
"""
function score end

"The modules of files that were run: they stay, as what their functions refer to does."
const SPACES = Module[]

"""
    criterion(path, name)

The function `name` of a Julia file, which is run in a module of its own.
"""
function criterion(path, name)
    space = Module(gensym(name))  # A module of the same name would take it.
    push!(SPACES, space)
    Core.eval(space, :(using OnnxJL: OnnxJL, Group, Member, slice))
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
