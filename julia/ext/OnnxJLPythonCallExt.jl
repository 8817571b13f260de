module OnnxJLPythonCallExt

using OnnxJL: OnnxJL, Block, Edits, FluxGraph, Group, Member, Network, Node, Pass, PythonError,
    UnsupportedOperator, mover, oncpu
using PythonCall

# An array that Python holds has ONNX's dimensions reversed already: it is the transpose.

"A Julia array of its own, of an array of NumPy's in Fortran's order."
function ownarray(array)
    x = Py(array)  # An argument of a call is a PyArray already.
    pyconvert(Bool, x.dtype.hasobject) && return owntexts(x)
    view = PyArray(x; copy=false)
    own = Array{eltype(view)}(undef, size(view))
    # Byte by byte: what is mapped from a file need not be aligned.
    GC.@preserve view own unsafe_copyto!(
        Ptr{UInt8}(pointer(own)), Ptr{UInt8}(pointer(view)), sizeof(own)
    )
    return own
end

"A Julia array of its own of a NumPy array of Python's texts."
owntexts(x) = reshape(texts(x.ravel(order="F").tolist()), pyconvert(Tuple, x.shape))

"A Julia value of its own, of an array, a list of values or None."
function ownvalue(x)
    pyis(x, pybuiltins.None) && return nothing
    pyisinstance(x, pybuiltins.list) || return ownarray(x)
    return OnnxJL.Operators.TensorSequence([ownvalue(entry) for entry in x])
end

"The same bytes as a transposed NumPy array."
numpyarray(x::AbstractArray) = Py(convert(Array, x)).to_numpy()
numpyarray(x::AbstractArray{<:AbstractString}) =
    pyimport("numpy").array(pylist(vec(x)), dtype="O").reshape(size(x), order="F")

"A Julia value as Python has it: a NumPy array, a list of values or None."
pythonvalue(x::AbstractArray) = numpyarray(x)
pythonvalue(x::OnnxJL.Operators.TensorSequence) = pylist(map(pythonvalue, x))
pythonvalue(::Nothing) = pybuiltins.None

texts(x) = pyconvert(Vector{String}, x)

function OnnxJL.receive(
    nodes, tensors, inputs, outputs, opsets, trainable, graph, written=nothing
)
    network = Network(
        Node[Node(node) for node in Py(nodes)], arrays(Py(tensors)), texts(inputs), texts(outputs),
        pyconvert(Dict{String,Int}, opsets), Set(texts(trainable)),
    )
    origin = Origin(Py(graph))
    written === nothing && return FluxGraph(network; own=true, origin)
    return FluxGraph(network; own=true, origin, written.shared)
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
    y = graph(map(mover(graph) ∘ ownvalue, Py(inputs))...)
    return pylist(map(pythonvalue, y isa Tuple ? collect(Any, y) : Any[y]))
end

OnnxJL.forward(graph, inputs) = OnnxJL.startpass(graph, map(mover(graph) ∘ ownvalue, Py(inputs)))
OnnxJL.outputs(pass::Pass) = pylist(map(pythonvalue, collect(Any, pass.outputs)))
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
    y = graph(map(mover(graph) ∘ ownvalue, Py(inputs))...)
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

function OnnxJL.penaltyof(graph, groups, frozen)
    plain = map(Py(groups)) do group
        members, chosen = group
        described = [
            (pyconvert(String, tensor), pyconvert(Int, axis), ownarray(indices))
            for (tensor, axis, indices) in members
        ]
        described, ownarray(chosen)
    end
    return OnnxJL.penalty(graph, plain, pyconvert(Vector{Int}, frozen))
end

function OnnxJL.movedby(graph, direction, step)
    move = mover(graph) ∘ ownarray
    arrays = Dict(pyconvert(String, name) => move(x) for (name, x) in Py(direction).items())
    return OnnxJL.moved(graph, arrays, step)
end

OnnxJL.holdzeros!(graph::FluxGraph, names::PyList) =
    OnnxJL.holdzeros!(graph, Set(texts(Py(names))))

function OnnxJL.maskedcopy(graph::FluxGraph, weights::PyDict, origin::Py)
    given = Dict(pyconvert(String, name) => ownarray(x) for (name, x) in Py(weights).items())
    return OnnxJL.maskedcopy(graph, given, Origin(origin))
end

OnnxJL.namedarrays(arrays) = pydict(name => numpyarray(x) for (name, x) in arrays)

function OnnxJL.score(criterion, group, tensors, members)
    arrays = weightsandgradients(tensors)
    parts = map(Py(members)) do member
        tensor, axis, indices = member
        key = pyconvert(String, tensor)
        dim = OnnxJL.Operators.dimension(pyconvert(Int, axis), arrays[key].weight)
        Member(key, dim, arrays[key]..., permutedims(ownarray(indices) .+ 1))
    end
    return numpyarray(criterion(described(Py(group), parts)))
end

function OnnxJL.scoreblock(criterion, block, tensors)
    arrays = weightsandgradients(tensors)
    measured = all(x -> x.gradient !== nothing, values(arrays))
    weights = Dict{String,AbstractArray}(name => x.weight for (name, x) in arrays)
    gradients = Dict{String,AbstractArray}(name => x.gradient for (name, x) in arrays if measured)
    found = criterion(described(Py(block), weights, measured ? gradients : nothing))
    found isa Real || throw(ArgumentError("expected one real number, came $(repr(found))"))
    return Float64(found)
end

weightsandgradients(tensors) = Dict(
    pyconvert(String, tensor) => (weight=ownarray(weight), gradient=optionalarray(gradient))
    for (tensor, (weight, gradient)) in Py(tensors).items()
)

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
    stand_ins = Dict(
        pyconvert(String, node) => pyconvert(Int, position)
        for (node, position) in plan.stand_ins.items()
    )
    return Edits(; kept, attributes, constants, removed_nodes=removed, stand_ins)
end

# What a Julia session asks of Python.

"The graph, as Python has it, that a network was made from."
struct Origin
    graph::Py
end

# Python counts who refers to its objects, and nothing changes this one.
Base.deepcopy_internal(origin::Origin, ::IdDict) = origin

"A module of the Python package onnxjl."
function python(name="")
    try
        return pyimport(isempty(name) ? "onnxjl" : "onnxjl.$name")
    catch e
        e isa PyException && pyisinstance(e, pybuiltins.ImportError) || rethrow()
        throw(PythonError("JuliaError", string(
            pystr(e.v), ", in ", pyimport("sys").executable, ": let JULIA_PYTHONCALL_EXE name the ",
            "Python that has onnxjl, and JULIA_CONDAPKG_BACKEND be Null, before Julia starts",
        )))
    end
end

"The result of `f`, with errors of onnxjl's as Julia's."
function translated(f)
    try
        return f()
    catch e
        e isa PyException || rethrow()
        errors = python("errors")
        pyisinstance(e, errors.OnnxjlError) || rethrow()
        text = string(pystr(e.v))
        pyisinstance(e, errors.UnsupportedOperator) && throw(UnsupportedOperator(text))
        throw(PythonError(string(pytype(e.v).__name__), text))
    end
end

"A network as Python has it."
function model(graph::FluxGraph)
    origin = graph.program.origin
    origin isa Origin || throw(ArgumentError(
        "this network was made in Julia, and has no ONNX graph that says what its inputs are: " *
        "make it with OnnxJL.load(model, size), or from a file"
    ))
    return python("flux").FluxModel(origin.graph, graph)
end

"A network of Python's as Julia has it."
network(model::Py) = pyconvert(FluxGraph, model.julia)

function OnnxJL.load(path; options...)
    translated() do
        network(python("flux").to_flux(given(path); givenoptions(options)...))
    end
end

OnnxJL.load(model, size::Tuple; input_name="input", options...) =
    OnnxJL.load(model, input_name => size; options...)

function OnnxJL.load(
    model, inputs::Pair{<:AbstractString,<:Tuple}...; output_name="output", device="cpu"
)
    shapes = pydict(name => pytuple(reverse(size)) for (name, size) in inputs)
    translated() do
        # As Julia's own object: an array or a function would else become one of Python's.
        network(python("flux").from_flux(pyjl(model); input_shape=shapes, output_name, device))
    end
end

function OnnxJL.save(graph::FluxGraph, path; options...)
    translated() do
        string(model(graph).save(given(path); givenoptions(options)...).check.text)
    end
end

function OnnxJL.plan(graph::FluxGraph)
    plan = model(graph).plan
    return pyis(plan, pybuiltins.None) ? nothing : pyconvert(String, plan.to_json())
end

function OnnxJL.groups(graph::FluxGraph; gradient=nothing, options...)
    translated() do
        found = python().groups(model(graph).to_graph(); givenoptions(options)...)
        tensors = OnnxJL.network(oncpu(graph)).tensors
        gradients = OnnxJL.gradients(graph, gradient)
        return Group[
            described(group, map(member -> Member(member, tensors, gradients), group.members))
            for group in found
        ]
    end
end

function OnnxJL.Member(member::Py, tensors, gradients)
    name = pyconvert(String, member.tensor)
    dim = OnnxJL.Operators.dimension(pyconvert(Int, member.axis), tensors[name])
    indices = pyconvert(Matrix{Int}, member.indices) .+ 1
    return Member(name, dim, tensors[name], get(gradients, name, nothing), indices)
end

"A group of Python's, with members of Julia's."
function described(group::Py, members)
    name, layers = pyconvert(String, group.name), texts(pylist(group.layers))
    return Group(
        name,
        isempty(layers) ? name : first(layers),
        layers,
        pyconvert(String, group.kind),
        pyconvert(Bool, group.exact),
        pyconvert(Float64, group.macs),
        pyconvert(Float64, group.params),
        members,
    )
end

function OnnxJL.blocks(graph::FluxGraph; gradient=nothing, options...)
    translated() do
        found = python().blocks(model(graph).to_graph(); givenoptions(options)...)
        tensors = OnnxJL.network(oncpu(graph)).tensors
        gradients = OnnxJL.gradients(graph, gradient)
        return map(collect(found)) do block
            names = filter(name -> eltype(tensors[name]) <: AbstractFloat, texts(pylist(block.weights)))
            weights = Dict{String,AbstractArray}(name => tensors[name] for name in names)
            slopes = gradient === nothing ? nothing : Dict{String,AbstractArray}(
                name => get(() -> zero(weight), gradients, name) for (name, weight) in weights
            )
            described(block, weights, slopes)
        end
    end
end

"A block of Python's, with arrays of Julia's."
function described(block::Py, weights, gradients)
    projection = block.projection
    return Block(
        pyconvert(String, block.name),
        pyconvert(String, block.kind),
        texts(pylist(block.layers)),
        pyis(projection, pybuiltins.None) ? nothing : pyconvert(String, projection),
        pyconvert(Float64, block.macs),
        pyconvert(Float64, block.params),
        weights,
        gradients,
    )
end

function OnnxJL.removeblocks(graph::FluxGraph, blocks::Union{Block,AbstractString}...)
    names = pylist(blockname(block) for block in blocks)
    translated(() -> network(python().remove_blocks(model(graph), names)))
end

blockname(block::Block) = block.name
blockname(name::AbstractString) = name

OnnxJL.prune(graph::FluxGraph, edits::Edits, small::Py) =
    OnnxJL.prune(graph, edits; origin=Origin(small))

function OnnxJL.prune(graph::FluxGraph, plan::Union{AbstractString,Py})
    translated(() -> network(python("flux").pruned(model(graph), readplan(plan))))
end

readplan(plan::Py) = plan
readplan(plan::AbstractString) =
    startswith(lstrip(plan), '{') ? python().Plan.from_json(plan) : python().Plan.load(plan)

OnnxJL.prune(graph::FluxGraph, one::Pair, others::Pair...; options...) =
    OnnxJL.prune(graph, Pair[one, others...]; options...)

function OnnxJL.prune(
    graph::FluxGraph, kept::Union{AbstractVector{<:Pair},AbstractDict}; granularity=nothing
)
    kinds = unique(g.kind for (g, _) in kept if g isa Group && g.kind != "channel")
    length(kinds) > 1 && throw(ArgumentError(
        "units of the kinds $(join(kinds, " and ")) can't go at once: prune one after the other"
    ))
    level = something(granularity, get(kinds, 1, "channel"))
    numbers = pydict(groupname(group) => fromzero(keep) for (group, keep) in kept)
    translated() do
        network(python("prune").keep(model(graph), numbers; granularity=given(level)))
    end
end

groupname(group::Group) = group.name
groupname(name::AbstractString) = name

"Numbers of units as Python has them, from 0."
fromzero(keep::AbstractVector{Bool}) = given(keep)
fromzero(keep) = given(Int[unit - 1 for unit in keep])

function OnnxJL.prune(graph::FluxGraph; request...)
    translated() do
        network(python("prune").prune(model(graph); givenoptions(request)...))
    end
end

# What was pruned by edits that Julia made itself.
function OnnxJL.pruned(::Origin, graph, edits::Edits)
    kept = pydict(
        name => pydict(axis => given(indices) for (axis, indices) in axes)
        for (name, axes) in edits.kept
    )
    attributes = pydict(
        node => pydict(string(k) => plain(x) for (k, x) in values)
        for (node, values) in edits.attributes
    )
    constants = pydict(name => given(x) for (name, x) in edits.constants)
    translated() do
        whole = model(graph).to_graph()
        plan = python().Plan(;
            kept, attributes, constants, removed_nodes=pytuple(edits.removed_nodes),
            stand_ins=pydict(edits.stand_ins), source_graph=whole, engine="flux",
        )
        Origin(python().apply(whole, plan))
    end
end

givenoptions(options) = (name => given(x) for (name, x) in options)

"What Julia's user gives, as Python wants it; arrays in ONNX's order of dimensions."
given(x) = Base.isiterable(typeof(x)) ? Py(Iterators.map(given, x)) : Py(x)
given(x::Union{Py,Number,AbstractString,Function,Nothing}) = Py(x)
given(x::Symbol) = Py(string(x))
given(x::AbstractArray{<:Number}) = numpyarray(x).T
given(x::AbstractVector) = pylist(map(given, x))
given(x::Tuple) = pytuple(map(given, x))
given(x::Union{AbstractDict,NamedTuple}) = pydict(string(k) => given(v) for (k, v) in pairs(x))

end
