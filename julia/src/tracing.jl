# From layers written by hand to a network as data: they are called with a `Traced` in place of an
# array, which writes down what is done to it.

"""
    Writer(; number=Float32, path=String[], taken=String[], opset=nothing)

A network as it is written: its nodes and tensors so far, and what layers hold as these. `number` is
the type of numbers in formulas, `path` the names of the layers around, `taken` names that are gone.
The version of the operators grows with what layers need, unless `opset` gives it.
"""
struct Writer
    nodes::Vector{Node}
    tensors::Dict{String,AbstractArray}
    shared::Dict{String,Tuple{Form,AbstractArray}}
    names::IdDict{Any,String}  # a layer's array -> its tensor
    taken::Set{String}
    path::Vector{String}
    owners::Vector{Any}  # the layers around
    types::Dict{String,DataType}  # of inputs
    sizes::Dict{String,Any}  # of what nodes give
    opset::Base.RefValue{Int}
    fixed::Bool  # whether the version must stay
    number::DataType
end

Writer(; number=Float32, path=String[], taken=String[], opset=nothing) = Writer(
    Node[], Dict{String,AbstractArray}(), Dict{String,Tuple{Form,AbstractArray}}(),
    IdDict{Any,String}(), Set{String}(taken), path, Any[], Dict{String,DataType}(),
    Dict{String,Any}(), Ref(something(opset, OPSET)), opset !== nothing, number,
)

"The version of ONNX's operators that is written, unless a layer needs a later one."
const OPSET = 17

"Whether the operators are of a version, or a later one, to which they are raised if they may be."
function atleast!(writer::Writer, version)
    writer.fixed || (writer.opset[] = max(writer.opset[], version))
    return writer.opset[] >= version
end

"""
    Traced

A value of a network that is being written, in place of an array. `size` has Julia's order, with
`nothing` for a dimension that isn't fixed; it is `nothing` where not even their number is known.
"""
struct Traced
    writer::Writer
    name::String
    size::Union{Nothing,Tuple}
end

"""
    Written

A network that was written, the arrays of layers that its tensors are, its inputs' types, and the
sizes of its values.
"""
struct Written
    network::Network
    shared::Dict{String,Tuple{Form,AbstractArray}}
    types::Vector{DataType}
    sizes::Dict{String,Any}
end

"""
    network(model, size; input="input", output="output") -> Network
    network(model, "a" => size, "b" => size, …; output="output") -> Network

A model of Flux layers as data: what ONNX says of it in test mode. `size` is an input's, in Julia's
order, `nothing` where a dimension may have any size: `(28, 28, 1, nothing)`.

Names follow the model: the weight of the second layer of a layer named `block` is
`block.2.weight`. Several outputs are called `output_1`, `output_2`, ….

Throws `UnsupportedOperator`, with the layer and its place, for what ONNX can't say or OnnxJL
doesn't know. See [`trace`](@ref) for layers of one's own.
"""
network(model, size::Tuple; input="input", output="output") = network(model, input => size; output)
network(model, input::Pair{<:AbstractString}, more::Pair{<:AbstractString}...; output="output") =
    written(model, input, more...; output).network

"""
    FluxGraph(model, size; input="input", output="output")
    FluxGraph(model, "a" => size, "b" => size, …; output="output")

A model of Flux layers as a `FluxGraph`, which can be pruned and saved; see [`network`](@ref). Its
arrays are the model's own, where ONNX has them in the same order.
"""
FluxGraph(model, size::Tuple; input="input", output="output") =
    FluxGraph(model, input => size; output)
FluxGraph(model, input::Pair{<:AbstractString}, more::Pair{<:AbstractString}...; output="output") =
    FluxGraph(written(model, input, more...; output))
FluxGraph(written::Written) = FluxGraph(written.network; written.shared)

function written(model, inputs::Pair{<:AbstractString}...; output="output")
    names = String[name for (name, _) in inputs]
    writer = Writer(; number=numbertype(model), taken=[names; output])
    xs = [Traced(writer, String(name), Tuple(size)) for (name, size) in inputs]
    y = enter(writer, nothing, model) do
        trace(model, xs...)
    end
    outputs = y isa Tuple ? y : (y,)
    all(out -> out isa Traced, outputs) || throw(UnsupportedOperator(string(
        "the model gives a ", typeof(y), ", not an array or a tuple of arrays"
    )))
    ends = length(outputs) == 1 ? [String(output)] : ["$(output)_$i" for i in eachindex(outputs)]
    for (y, name) in zip(outputs, ends)
        finish!(writer, y, name; again=count(==(y), outputs) > 1)
    end
    network = Network(
        writer.nodes, writer.tensors, names, ends, Dict("" => writer.opset[])
    )
    types = DataType[get(writer.types, name, writer.number) for name in names]
    return Written(network, writer.shared, types, writer.sizes)
end

"The type of a model's numbers."
function numbertype(model)
    arrays = filter(x -> eltype(x) <: AbstractFloat, Flux.trainables(model))
    return isempty(arrays) ? Float32 : eltype(first(arrays))
end

"Give a value the name of an output; `again` where it is several outputs."
function finish!(writer::Writer, x::Traced, name; again=false)
    writer.sizes[name] = x.size
    made = Node(name, "Identity", "", [x.name], [name])
    i = findfirst(node -> node.outputs == [x.name], writer.nodes)
    if again || i === nothing || any(node -> x.name in node.inputs, writer.nodes)
        push!(writer.nodes, made)
    else
        writer.nodes[i] = withoutputs(writer.nodes[i], [name])
    end
end

"""
    trace(layer, x...) -> Traced

Write down what a layer does. A layer of one's own needs no method where its call consists of other
layers, broadcasts, `+`, `-`, `cat`, `vcat`, `hcat`, `reshape`, `permutedims`, `softmax` and
`flatten`; else it gets one that says its ONNX nodes:

    OnnxJL.trace(layer::MyLayer, x) =
        OnnxJL.node("Mul", (x, OnnxJL.tensor(x, "weight", layer.weight)), x.size)

See [`node`](@ref) and [`tensor`](@ref).
"""
function trace(layer, xs::Traced...)
    # Of all functions of numbers, these take arrays too.
    f = layer isa Base.Fix2 ? layer.f : layer
    if length(xs) == 1 && (f === identity || f isa Function && parentmodule(f) === NNlib)
        rule = elementwiserule(layer)
        rule === nothing || return rule(only(xs))
    end
    try
        return layer(xs...)
    catch cause
        cause isa Union{InterruptException,UnsupportedOperator} && rethrow()
        throw(UnsupportedOperator(string(
            here(first(xs).writer, layer), ": ", reason(cause),
            "; write it with layers and broadcasts, or add a method of OnnxJL.trace"
        )))
    end
end

reason(cause) = first(split(sprint(showerror, cause), '\n'))
function reason(cause::MethodError)
    f = cause.f === Core.kwcall ? cause.args[2] : cause.f
    name = f isa Function ? nameof(f) : typeof(f)
    return string("it calls ", name, ", which has no ONNX form here")
end

"The layer around."
owner(writer::Writer) = isempty(writer.owners) ? nothing : last(writer.owners)

"A layer's place in the model, and what it is, for messages."
function here(writer::Writer, layer)
    kind = layer isa Function ? functionname(layer) : nameof(typeof(layer))
    isempty(writer.path) && return string("the model (", kind, ")")
    return string("layer '", join(writer.path, '.'), "' (", kind, ")")
end

functionname(f) = string(f)
function functionname(f::Function)
    name = string(nameof(f))
    startswith(name, '#') || return name
    method = first(methods(f))
    return string("an anonymous function, ", basename(string(method.file)), ":", method.line)
end

"""
    node(operator, inputs, size, attributes...; name=nothing) -> Traced

Write down an ONNX node: its inputs (`Traced`, arrays, numbers, or `nothing` for an absent one), the
size of its output in Julia's order as far as known, and its attributes as pairs. It is called as
the layer that it is written for, or `name` is added to that.
"""
function node(operator, inputs, size, attributes::Pair{Symbol}...; name=nothing)
    writer = first(x for x in inputs if x isa Traced).writer
    names = String[operand(writer, x) for x in inputs]
    while isempty(last(names))
        pop!(names)
    end
    y = nodename!(writer, operator, name)
    said = Dict{Symbol,Any}(attributes)
    push!(writer.nodes, Node(y, operator, "", names, [y], said, Set(keys(said))))
    writer.sizes[y] = size
    return Traced(writer, y, size)
end

function nodename!(writer::Writer, operator, name)
    layer = join(writer.path, '.')
    name === nothing && !isempty(layer) && !(layer in writer.taken) &&
        return fresh!(writer, layer)
    return fresh!(writer, join([writer.path; something(name, lowercase(operator))], '.'))
end

"A name that nothing else has."
function fresh!(writer::Writer, name)
    found, k = name, 1
    while found in writer.taken
        k += 1
        found = string(name, '_', k)
    end
    push!(writer.taken, found)
    return found
end

operand(writer::Writer, ::Nothing) = ""
operand(writer::Writer, x::Traced) = x.name
operand(writer::Writer, x::Base.Broadcast.Broadcasted) = operand(writer, Base.materialize(x))
operand(writer::Writer, x::Number) = tensor(writer, "constant", fill(writer.number(x))).name
operand(writer::Writer, x::Base.RefValue{<:Number}) = operand(writer, x[])
operand(writer::Writer, x::AbstractArray) =
    tensor(writer, something(fieldof(writer, x), "constant"), x).name

"""
    tensor(x, name, array, form=Plain) -> Traced

A layer's array as a tensor, for [`node`](@ref); `name` is added to the layer's. The same array is
the same tensor.
"""
tensor(x::Traced, name, array, form::Form=Plain) = tensor(x.writer, name, array, form)
tensor(x::Traced, name, ::Union{Nothing,Bool}, form::Form=Plain) = nothing

function tensor(writer::Writer, name, array::AbstractArray, form::Form=Plain)
    known = get(writer.names, array, nothing)
    if known !== nothing && first(writer.shared[known]) == form
        return Traced(writer, known, size(array))
    end
    name = fresh!(writer, join([writer.path; name], '.'))
    writer.tensors[name] = unbind(form, array)
    writer.shared[name] = (form, array)
    writer.names[array] = name
    return Traced(writer, name, size(array))
end

"Call `f` within a layer of a name, or of none."
function enter(f, writer::Writer, name, layer)
    name === nothing || push!(writer.path, string(name))
    push!(writer.owners, layer)
    try
        return f()
    finally
        pop!(writer.owners)
        name === nothing || pop!(writer.path)
    end
end

"A layer of a container, by its name there."
inside(name, layer, xs::Traced...) = enter(first(xs).writer, name, layer) do
    trace(layer, xs...)
end

"A layer that the call of another one calls."
function called(layer, xs::Traced...)
    writer = first(xs).writer
    return inside(fieldof(writer, layer), layer, xs...)
end

"What an array or a layer is called in the layer around, or nothing."
fieldof(writer::Writer, x) = placeof(x, Flux.Functors.children(owner(writer)))

function placeof(x, children)
    for (key, child) in pairs(children)
        child === x && return string(key)
        child isa Union{Tuple,NamedTuple,AbstractVector{<:Any}} &&
            !(child isa AbstractArray{<:Number}) || continue
        found = placeof(x, child)
        found === nothing || return string(key, '.', found)
    end
    return nothing
end

"The number of a value's dimensions."
Base.ndims(x::Traced) = length(size(x))
Base.size(x::Traced) = x.size !== nothing ? x.size : throw(UnsupportedOperator(
    "layer '$(join(x.writer.path, '.'))': the number of dimensions of what it gets isn't known"
))

"The size of a value's dimension, which a layer must know."
function Base.size(x::Traced, d::Integer)
    d > ndims(x) && return 1
    n = size(x)[d]
    n === nothing && throw(UnsupportedOperator(string(
        "layer '", join(x.writer.path, '.'), "': it needs the size of dimension ", d,
        ", which isn't fixed; give it in the input's size"
    )))
    return n
end

"Check that an input has `n` features or channels, in dimension `d`, where that is known."
function expect(layer, x::Traced, d, n)
    d <= ndims(x) && something(x.size[d], n) == n || throw(DimensionMismatch(string(
        here(x.writer, layer), ": it wants ", n, " in dimension ", d, " of its input, and gets ",
        described(x.size)
    )))
end

described(size::Tuple) = string("the size (", join(map(n -> something(n, "any"), size), ", "), ")")

include("tracing/elementwise.jl")
include("tracing/containers.jl")
include("tracing/layers.jl")
include("tracing/recurrent.jl")
include("tracing/attention.jl")
