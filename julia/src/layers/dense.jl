# Gemm and MatMul with a constant matrix, and what adds a bias to it.

using Flux: Dense

function layer(::Val{:Gemm}, node::Node, source::Source)
    plain = attribute(node, :alpha, 1) == 1 && attribute(node, :beta, 1) == 1 &&
        attribute(node, :transA, 0) == 0
    plain || return nothing
    return dense(source, node, 2 => weightform(node), 3 => Plain)
end

function layer(::Val{:MatMul}, node::Node, source::Source)
    weight = constant(source, node, 2)
    (weight === nothing || ndims(weight) != 2) && return nothing
    return dense(source, node, 2 => Plain)
end

function dense(source, node, wanted...)
    found = parameters(source, node, wanted...)
    found === nothing && return nothing
    weight, bias = length(found) == 1 ? (only(found), false) : found
    bias === false || size(bias) == (size(weight, 1),) || return nothing
    return Dense(weight, bias, identity)
end

"A matrix of ONNX's has its inputs in rows, unless `Gemm` transposes it."
weightform(node::Node) = attribute(node, :transB, 0) == 1 ? Transposed : Plain

"""
    addbias(layer, node, sum, source)

The layer of a `MatMul` with the bias that the node `sum` adds to its output, and the place of that
bias; or nothing where it adds something else.
"""
function addbias(layer::Dense, node::Node, sum::Node, source::Source)
    node.operator == "MatMul" && sum.operator == "Add" && layer.bias === false || return nothing
    i = sum.inputs[1] == only(node.outputs) ? 2 : 1
    bias = parameter(source, sum, i)
    (bias === nothing || size(bias) != (size(layer.weight, 1),)) && return nothing
    return rebuild(layer; bias)
end

operator(::Dense) = "MatMul"
activation(::Dense) = :σ

function fields(::Dense, nodes)
    weight = Field((:weight,), 1, 2, weightform(first(nodes)), "weight")
    first(nodes).operator == "Gemm" && return [weight, Field(:bias, 3)]
    i = length(nodes) > 1 && nodes[2].operator == "Add" &&
        nodes[2].inputs[2] == only(nodes[1].outputs) ? 1 : 2
    return [weight, Field((:bias,), 2, i, Plain, "bias")]
end
