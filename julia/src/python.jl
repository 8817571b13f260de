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
    receive(nodes, tensors, inputs, outputs, opsets, trainable) -> FluxGraph

Build a network of what Python hands over: nodes as tuples of plain values, and an iterator of the
tensors' names and arrays.
"""
function receive end

"""
    deliver(graph) -> (nodes, tensors)

A network as plain values for Python: what [`network`](@ref) says.
"""
function deliver end

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
explain(e::NodeError) = e.cause isa UnsupportedOperator ?
    ("unsupported", string(e.node, ": ", e.cause.reason)) : ("error", sprint(showerror, e))

"A network as Flux shows it."
text(graph) = repr(MIME("text/plain"), graph)
