"""
    network(graph::FluxGraph) -> Network

The network as data: what its layers say now, with the names that it came with.
"""
function network(graph::FluxGraph)
    program = graph.program
    tensors = Dict{String,AbstractArray}(program.tensors)
    for (slots, arrays) in (
        program.parameters => graph.parameters, program.constants => graph.constants
    )
        for (slot, x) in zip(slots, arrays)
            tensors[program.values[slot]] = x
        end
    end
    for (slot, x) in program.data
        tensors[program.values[slot]] = x
    end
    ranked = Pair{Int,Node}[]
    for (layer, step) in zip(graph.layers, program.steps)
        rank = maximum(node -> program.order[first(filter(!isempty, node.outputs))], step.nodes)
        for node in nodes!(tensors, layer, step)
            # Nodes that are new come where the layer's last one was.
            push!(ranked, get(program.order, first(filter(!isempty, node.outputs)), rank) => node)
        end
    end
    ordered = [node for (_, node) in sort!(ranked; by=first, alg=MergeSort)]
    names(slots) = program.values[slots]
    trained = trainable(tensors)
    for slot in program.constants
        delete!(trained, program.values[slot])
    end
    return Network(
        ordered, tensors, names(program.inputs), names(program.outputs), program.opsets, trained
    )
end

"The nodes of a step; their tensors are put among `tensors`."
function nodes!(tensors, layer, step::Step)
    main = first(step.nodes)
    samekind(layer, main) || throw(ArgumentError(string(
        "layer '", step.name, "' was a ", main.operator, " and is now ", layer,
        ", which can't take its place in ONNX",
    )))
    found = copy(step.nodes)
    derived = attributes(layer, main)
    changed = filter(((name, value),) -> get(step.derived, name, nothing) != value, derived)
    # A MatMul has no attributes; what a Dense says is in its weight.
    found[1] = edit(main, changed)
    for field in fields(layer, step.nodes)
        setparameter!(found, tensors, layer, step, field)
    end
    step.f === nothing && return found
    f = getfield(layer, activation(layer))
    f === step.f && return found
    return withactivation!(found, tensors, layer, step, f)
end

samekind(call::Call, node::Node) = operator(call) == node.operator
samekind(layer, node::Node) = operator(layer) == node.operator || node.operator == "Gemm" &&
    layer isa Dense

function setparameter!(nodes, tensors, layer, step::Step, field::Field)
    x = follow(layer, field.path)
    k = findfirst(b -> b.field == field, step.bindings)
    if x isa AbstractArray
        name = k === nothing ? string(step.name, '.', field.suffix) : step.bindings[k].tensor
        tensors[name] = unbind(field.form, x)
        k === nothing && setinput!(nodes, step, field, name)
    elseif k !== nothing
        unset!(nodes, step, field)
    end
end

"Make a tensor an input of a node that had none there."
function setinput!(nodes, step::Step, field::Field, name)
    if field.node <= length(nodes) && nodes[field.node].operator != "MatMul" &&
            field.node == 1
        nodes[1] = withinput(nodes[1], field.position, name)
        return
    end
    # A MatMul with a bias is followed by a sum.
    product = nodes[1]
    y = only(product.outputs)
    inner = string(y, ".product")
    nodes[1] = withoutputs(product, [inner])
    insert!(nodes, 2, Node(string(nodename(product), ".bias"), "Add", "", [inner, name], [y]))
end

"Take a parameter away from a node."
function unset!(nodes, step::Step, field::Field)
    if field.node == 1
        nodes[1] = withinput(nodes[1], field.position, "")
        return
    end
    # The sum goes, and the product takes its place.
    nodes[1] = withoutputs(nodes[1], nodes[2].outputs)
    deleteat!(nodes, 2)
end

function withinput(node::Node, i, name)
    inputs = [node.inputs; fill("", max(0, i - length(node.inputs)))]
    inputs[i] = name
    while isempty(last(inputs))
        pop!(inputs)
    end
    return Node(
        node.name, node.operator, node.domain, inputs, node.outputs, node.attributes, node.edited
    )
end

"The node with other outputs. It is another one then, so all its attributes are told."
withoutputs(node::Node, outputs) = Node(
    node.name, node.operator, node.domain, node.inputs, outputs, node.attributes,
    outputs == node.outputs ? node.edited : Set(keys(node.attributes)),
)

"The nodes of a layer whose activation function was changed."
function withactivation!(nodes, tensors, layer, step::Step, f)
    y = only(last(step.nodes).outputs)
    if step.f !== identity
        pop!(nodes)
    end
    f === identity && return [nodes[1:(end - 1)]; withoutputs(last(nodes), [y])]
    inner = step.f === identity ? string(y, ".linear") : only(last(nodes).outputs)
    nodes[end] = withoutputs(last(nodes), [inner])
    path = [string(nodename(first(nodes)), ".activation")]
    writer = Writer(; number=numbertype(layer), path, step.opset)
    written = elementwise(f, Traced(writer, inner, nothing))
    finish!(writer, written, y)
    merge!(tensors, writer.tensors)
    return [nodes; writer.nodes]
end
