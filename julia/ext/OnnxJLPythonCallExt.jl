module OnnxJLPythonCallExt

using OnnxJL: OnnxJL, Edits, FluxGraph, Network, Node, Pass, UnsupportedOperator, mover, oncpu
using PythonCall

# An array that Python holds has ONNX's dimensions reversed already: it is the transpose.

"A Julia array of its own, of an array of NumPy's in Fortran's order."
function ownarray(x)
    view = PyArray(x; copy=false)
    own = Array{eltype(view)}(undef, size(view))
    # Byte by byte: what is mapped from a file need not be aligned.
    GC.@preserve view own unsafe_copyto!(
        Ptr{UInt8}(pointer(own)), Ptr{UInt8}(pointer(view)), sizeof(own)
    )
    return own
end

"The same bytes as a transposed NumPy array."
numpyarray(x::AbstractArray) = Py(convert(Array, x)).to_numpy()

texts(x) = pyconvert(Vector{String}, x)

function OnnxJL.receive(nodes, tensors, inputs, outputs, opsets, trainable, written=nothing)
    network = Network(
        Node[Node(node) for node in Py(nodes)], arrays(Py(tensors)), texts(inputs), texts(outputs),
        pyconvert(Dict{String,Int}, opsets), Set(texts(trainable)),
    )
    written === nothing && return FluxGraph(network; own=true)
    return FluxGraph(network; own=true, written.shared)
end

function OnnxJL.write(model, inputs, output)
    sizes = [
        pyconvert(String, name) => Tuple(reverse(pyconvert(Vector{Union{Int,Nothing}}, shape)))
        for (name, shape) in Py(inputs)
    ]
    return OnnxJL.written(oncpu(model), sizes...; output=pyconvert(String, output))
end

OnnxJL.deliver(written::OnnxJL.Written) = pytuple((
    delivered(written.network), pylist(map(lowercase ∘ string, written.types)),
    pylist(written.network.outputs), pydict(written.network.opsets),
    pydict(
        name => pylist(reverse(size)) for (name, size) in written.sizes if size !== nothing
    ),
))

"Arrays of their own, by name."
arrays(tensors) = Dict{String,AbstractArray}(
    pyconvert(String, name) => ownarray(x) for (name, x) in tensors
)

function OnnxJL.Node(node::Py)
    name, operator, domain, inputs, outputs, attributes = node
    found = Dict{Symbol,Any}(
        Symbol(pyconvert(String, k)) => value(attributes[k]) for k in attributes
    )
    return Node(
        pyconvert(String, name),
        pyconvert(String, operator),
        pyconvert(String, domain),
        texts(inputs),
        texts(outputs),
        found,
    )
end

"An attribute's value."
function value(x::Py)
    pyisinstance(x, pybuiltins.int) && return pyconvert(Int, x)
    pyisinstance(x, pybuiltins.float) && return pyconvert(Float32, x)
    pyisinstance(x, pybuiltins.str) && return pyconvert(String, x)
    pyisinstance(x, pybuiltins.tuple) && return graph(x...)
    pyisinstance(x, pybuiltins.list) || return ownarray(x)
    length(x) == 0 && return Int64[]
    kind = typeof(value(x[0]))
    return pyconvert(Vector{kind}, x)
end

"A graph that is an attribute. The whole network says the versions of operators."
function graph(nodes, tensors, inputs, outputs, trainable)
    return Network(
        Node[Node(node) for node in nodes], arrays(tensors), texts(inputs), texts(outputs),
        Dict{String,Int}(), Set(texts(trainable)),
    )
end

plain(x::Union{Integer,AbstractFloat,AbstractString}) = Py(x)
plain(x::AbstractVector) = pylist(map(plain, x))

plain(network::Network) = delivered(network)

OnnxJL.deliver(graph::FluxGraph) = delivered(OnnxJL.network(oncpu(graph)))

function delivered(network::Network)
    nodes = pylist(map(network.nodes) do node
        edited = pydict(string(k) => plain(node.attributes[k]) for k in node.edited)
        pytuple((
            node.name, node.operator, node.domain, pylist(node.inputs), pylist(node.outputs), edited
        ))
    end)
    tensors = pydict(name => numpyarray(x) for (name, x) in network.tensors)
    return pytuple((nodes, tensors))
end

function OnnxJL.run(graph, inputs)
    y = graph(map(mover(graph) ∘ ownarray, Py(inputs))...)
    return pylist(map(numpyarray, y isa Tuple ? collect(Any, y) : Any[y]))
end

OnnxJL.forward(graph, inputs) = OnnxJL.startpass(graph, map(mover(graph) ∘ ownarray, Py(inputs)))
OnnxJL.outputs(pass::Pass) = pylist(map(numpyarray, collect(Any, pass.outputs)))
OnnxJL.backward(pass::Pass, Δ::PyList) =
    OnnxJL.backward(pass, map(mover(first(pass.outputs)) ∘ ownarray, Py(Δ)))

OnnxJL.measure(loss, pass::Pass, target) =
    OnnxJL.lossgradient(lossfunction(loss), pass, wanted(target, pass))

OnnxJL.lossvalue(loss, pass::Pass, target) =
    lossfunction(loss)(pass.outputs..., wanted(target, pass))

lossfunction(loss) = loss isa AbstractString ? OnnxJL.LOSSES[loss] : loss

"A target as a Julia array; one of floats has the outputs' precision."
function wanted(target, pass::Pass)
    target === nothing && return nothing
    x = mover(first(pass.outputs))(ownarray(target))
    return x isa AbstractArray{<:AbstractFloat} ? eltype(first(pass.outputs)).(x) : x
end

function OnnxJL.distil(pass::Pass, value, Δ, teacher::PyArray, temperature, weight)
    move = mover(first(pass.outputs)) ∘ ownarray
    δ = Δ isa PyList ? map(move, Py(Δ)) : Δ
    return OnnxJL.distil(pass, value, δ, move(teacher), temperature, weight)
end

function OnnxJL.infer(graph, inputs)
    y = graph(map(mover(graph) ∘ ownarray, Py(inputs))...)
    return Pass(y isa Tuple ? y : (y,), nothing)
end

OnnxJL.stepnames(graph) = pylist(
    pylist([step.name; map(OnnxJL.nodename, step.nodes)]) for step in graph.program.steps
)

OnnxJL.numpyarrays(arrays) =
    pylist(numpyarray(x isa Number ? [x] : x) for x in arrays)

OnnxJL.restore!(graph, saved::PyList) = OnnxJL.restore!(graph, map(ownarray, Py(saved)))
OnnxJL.unpack!(state, packed::PyList) = OnnxJL.unpack!(state, map(ownarray, Py(packed)))

OnnxJL.namedgradients(graph, gradient) =
    pydict(name => numpyarray(x) for (name, x) in OnnxJL.gradients(graph, gradient))

function OnnxJL.movedby(graph, direction, step)
    move = mover(graph) ∘ ownarray
    arrays = Dict(pyconvert(String, name) => move(x) for (name, x) in Py(direction).items())
    return OnnxJL.moved(graph, arrays, step)
end

function OnnxJL.score(criterion, name, tensors, members)
    arrays = Dict(
        pyconvert(String, tensor) => (weight=ownarray(weight), gradient=optionalarray(gradient))
        for (tensor, (weight, gradient)) in Py(tensors).items()
    )
    parts = map(Py(members)) do member
        tensor, axis, indices = member
        key = pyconvert(String, tensor)
        dim = OnnxJL.Operators.dimension(pyconvert(Int, axis), arrays[key].weight)
        OnnxJL.Member(key, dim, arrays[key]..., permutedims(ownarray(indices) .+ 1))
    end
    return numpyarray(criterion(OnnxJL.Group(name, parts)))
end

optionalarray(x) = pyis(x, pybuiltins.None) ? nothing : ownarray(x)

function OnnxJL.edits(plan)
    plan = Py(plan)
    kept = Dict(
        pyconvert(String, name) => Dict(
            pyconvert(Int, axis) => pyconvert(Vector{Int}, axes[axis].tolist()) for axis in axes
        ) for (name, axes) in plan.kept.items()
    )
    attributes = Dict(
        pyconvert(String, node) => Dict{Symbol,Any}(
            Symbol(pyconvert(String, k)) => value(values[k]) for k in values
        ) for (node, values) in plan.attributes.items()
    )
    constants = Dict{String,AbstractArray}(
        pyconvert(String, name) => ownarray(x.T) for (name, x) in plan.constants.items()
    )
    removed = texts(pylist(plan.removed_nodes))
    return Edits(; kept, attributes, constants, removed_nodes=removed)
end

end
