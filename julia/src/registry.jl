# What OnnxJL knows, as a list.

"""
    operators() -> rows

`(domain, operator, differentiable)` for every ONNX operator that is here, in order.
"""
function operators()
    rows = [
        (domain, operator, !(f in Operators.NONDIFFERENTIABLE))
        for ((domain, operator), f) in Operators.OPERATORS
    ]
    return sort!([rows; [("", name, true) for name in ("If", "Loop", "Scan", "SequenceMap")]])
end

"""
    kinds(graph) -> rows

`(domain, operator, kind)` for every layer of a graph: the operator of its first node, and the name
of its type, or `"function"`.
"""
kinds(graph::FluxGraph) = [
    (first(step.nodes).domain, first(step.nodes).operator, kind(layer))
    for (layer, step) in zip(graph.layers, graph.program.steps)
]

kind(::Call) = "function"
kind(layer) = string(
    parentmodule(typeof(layer)) === Flux ? "Flux." : "", nameof(typeof(layer))
)
