# Flux's layers as ONNX nodes. Where a layer is imported from a node, the same definitions say its
# parameters and attributes.

using Flux: AdaptiveMaxPool, AdaptiveMeanPool, AlphaDropout, CrossCor, Dropout, Embedding,
    PixelShuffle, Upsample

"A layer's input, and its parameters in the places of the node's other inputs."
function operands(layer, x::Traced)
    places = fields(layer, Node[])
    found = Any[nothing for _ in 1:maximum(field -> field.position, places)]
    found[1] = x
    for field in places
        found[field.position] = tensor(x, field.suffix, follow(layer, field.path), field.form)
    end
    return found
end

function trace(layer::Union{Conv,ConvTranspose,CrossCor}, x::Traced)
    y = node(
        operator(layer), operands(layer, x), outputsize(layer, x), attributes(layer, nothing)...
    )
    return elementwise(layer.σ, y)
end

operator(::CrossCor) = "Conv"
fields(::CrossCor, nodes) = [Field(:weight, 2), Field(:bias, 3)]

function attributes(layer::CrossCor, node)
    N = ndims(layer.weight) - 2
    return Dict{Symbol,Any}(
        :kernel_shape => byaxis(size(layer.weight)[1:N]), :strides => byaxis(layer.stride),
        :pads => onnxpads(layer.pad, N), :dilations => byaxis(layer.dilation),
    )
end

"How far the padding of each dimension goes, both sides together."
padding(pad, N) = ntuple(d -> length(pad) == N ? 2pad[d] : pad[2d - 1] + pad[2d], N)

"The length of an output of a sliding window."
slid(n, k, stride, pad, dilation=1) =
    n === nothing ? nothing : (n + pad - dilation * (k - 1) - 1) ÷ stride + 1

function outputsize(layer::Union{Conv,CrossCor}, x::Traced)
    N = checkrank(layer, x, ndims(layer.weight))
    expect(layer, x, N + 1, size(layer.weight, N + 1) * (layer isa Conv ? layer.groups : 1))
    k = size(layer.weight)
    spatial = map(slid, x.size[1:N], k[1:N], layer.stride, padding(layer.pad, N), layer.dilation)
    return (spatial..., last(k), x.size[end])
end

function outputsize(layer::ConvTranspose, x::Traced)
    N = checkrank(layer, x, ndims(layer.weight))
    expect(layer, x, N + 1, size(layer.weight, N + 2))
    k, pad = size(layer.weight), padding(layer.pad, N)
    spatial = ntuple(N) do d
        n = x.size[d]
        n === nothing ? nothing : (n - 1) * layer.stride[d] + 1 +
            (k[d] - 1) * layer.dilation[d] - pad[d] + layer.outpad[d]
    end
    return (spatial..., k[N + 1] * layer.groups, x.size[end])
end

"The number of spatial dimensions of an input, which must have `n` dimensions, if that is known."
function checkrank(layer, x::Traced, n)
    x.size === nothing && size(x)
    length(x.size) == n || throw(DimensionMismatch(string(
        here(x.writer, layer), ": it wants ", n, " dimensions, and gets ", described(x.size)
    )))
    return n - 2
end

function trace(layer::Dense, x::Traced)
    expect(layer, x, 1, size(layer.weight, 2))
    dims = (size(layer.weight, 1), size(x)[2:end]...)
    weight, bias = tensor(x, "weight", layer.weight), tensor(x, "bias", layer.bias)
    if ndims(x) == 2
        return elementwise(layer.σ, node("Gemm", (x, weight, bias), dims))
    end
    y = node("MatMul", (x, weight), dims)
    return elementwise(layer.σ, bias === nothing ? y : node("Add", (y, bias), dims))
end

function trace(layer::Scale, x::Traced)
    y = node("Mul", (x, tensor(x, "scale", layer.scale)), broadcastsize(x.size, size(layer.scale)))
    bias = tensor(x, "bias", layer.bias)
    return elementwise(layer.σ, bias === nothing ? y : node("Add", (y, bias), y.size))
end

function trace(layer::Bilinear, x::Traced, y::Traced=x)
    weight, bias = tensor(x, "weight", layer.weight), tensor(x, "bias", layer.bias)
    dims = (size(layer.weight, 1), last(size(x)))
    z = node("Einsum", (x, y, weight), dims, :equation => "nx,ny,yxo->no")
    return elementwise(layer.σ, bias === nothing ? z : node("Add", (z, bias), dims))
end

# ONNX counts from 0.
function trace(layer::Embedding, x::Traced)
    index = whole(x)
    one = tensor(x.writer, "one", fill(Int64(1)))
    index = node("Sub", (index, one), x.size; name="index")
    dims = x.size === nothing ? nothing : (size(layer.weight, 1), x.size...)
    return node("Gather", (tensor(x, "weight", layer.weight), index), dims, :axis => 0)
end

"A value as whole numbers, which an input then is from the start."
function whole(x::Traced)
    if any(node -> x.name in node.outputs, x.writer.nodes)
        return node("Cast", (x,), x.size, :to => 7; name="cast")  # 7 is int64.
    end
    x.writer.types[x.name] = Int64
    return x
end

# What a normalization may lack, and its node may not.
ones_like(layer, name, x) = tensor(x, name, fill(x.writer.number(1), layer.chs))
zeros_like(layer, name, x) = tensor(x, name, fill(x.writer.number(0), layer.chs))

function trace(layer::Union{BatchNorm,InstanceNorm,GroupNorm}, x::Traced)
    expect(layer, x, ndims(x) - 1, layer.chs)
    tracked = layer isa BatchNorm || layer.track_stats
    tracked && !layer.track_stats && throw(UnsupportedOperator(string(
        here(x.writer, layer), ": it keeps no statistics (track_stats=false), and ONNX's wants some"
    )))
    layer isa GroupNorm && atleast!(x.writer, 21)
    scale = layer.affine ? tensor(x, "weight", layer.γ) : ones_like(layer, "weight", x)
    bias = layer.affine ? tensor(x, "bias", layer.β) : zeros_like(layer, "bias", x)
    if tracked
        statistics = (tensor(x, "running_mean", layer.μ), tensor(x, "running_var", layer.σ²))
        said = Dict{Symbol,Any}(
            :epsilon => Float32(layer.ϵ), :momentum => Float32(1 - layer.momentum)
        )
        y = node("BatchNormalization", (x, scale, bias, statistics...), x.size, said...)
    else
        y = node(operator(layer), (x, scale, bias), x.size, attributes(layer, nothing)...)
    end
    return elementwise(layer.λ, y)
end

function trace(layer::LayerNorm, x::Traced)
    foreach((d, n) -> expect(layer, x, d, n), eachindex(layer.size), layer.size)
    T = x.writer.number
    scale, bias = layer.affine ? (layer.diag.scale, layer.diag.bias) :
        (ones(T, layer.size), zeros(T, layer.size))
    inputs = (x, tensor(x, "weight", scale), tensor(x, "bias", bias))
    y = node("LayerNormalization", inputs, x.size, attributes(layer, nothing)...)
    return elementwise(layer.λ, y)
end

trace(::Union{Dropout,AlphaDropout}, x::Traced) = x

function trace(layer::Union{MaxPool,MeanPool}, x::Traced)
    N = checkrank(layer, x, length(layer.k) + 2)
    spatial = map(slid, x.size[1:N], layer.k, layer.stride, padding(layer.pad, N))
    dims = (spatial..., x.size[N + 1], x.size[end])
    return node(operator(layer), (x,), dims, attributes(layer, nothing)...)
end

function trace(layer::Union{GlobalMaxPool,GlobalMeanPool}, x::Traced)
    n = ndims(x)
    dims = ntuple(d -> d <= n - 2 ? 1 : x.size[d], n)
    return node(operator(layer), (x,), dims)
end

function trace(layer::Union{AdaptiveMaxPool,AdaptiveMeanPool}, x::Traced)
    kinds = layer isa AdaptiveMaxPool ? (GlobalMaxPool, MaxPool) : (GlobalMeanPool, MeanPool)
    all(==(1), layer.out) && return trace(kinds[1](), x)
    N = checkrank(layer, x, length(layer.out) + 2)
    n = ntuple(d -> size(x, d), N)
    stride = n .÷ layer.out
    return trace(kinds[2](n .- (layer.out .- 1) .* stride; stride), x)
end

function trace(layer::Upsample{mode}, x::Traced) where {mode}
    N = ndims(x) - 2
    scale = if layer.scale === nothing
        map((to, d) -> to // size(x, d), layer.size, ntuple(identity, N))
    else
        layer.scale isa Number ? ntuple(_ -> layer.scale, N) : layer.scale
    end
    all(isinteger, scale) || throw(UnsupportedOperator(string(
        here(x.writer, layer), ": it scales by ", join(scale, " × "), ", not by whole numbers"
    )))
    factors = tensor(x.writer, "scales", Float32[1, 1, reverse(scale)...])
    dims = ntuple(N + 2) do d
        d > N || x.size[d] === nothing ? x.size[d] : Int(x.size[d] * scale[d])
    end
    form = mode == :nearest ?
        (:mode => "nearest", :coordinate_transformation_mode => "asymmetric",
         :nearest_mode => "floor") :
        (:mode => "linear", :coordinate_transformation_mode => "align_corners")
    return node("Resize", (x, nothing, factors), dims, form...)
end

function trace(layer::PixelShuffle, x::Traced)
    checkrank(layer, x, 4)
    r = layer.r
    times(n) = n === nothing ? nothing : n * r
    dims = (times(x.size[1]), times(x.size[2]), size(x, 3) ÷ r^2, x.size[4])
    return node("DepthToSpace", (x,), dims, :blocksize => r, :mode => "CRD")
end

# Operators that stay functions in a network that was imported.
trace(call::Call, xs::Traced...) = tracecall(call, xs)

function trace(layer::Applied, xs::Traced...)
    layer.layer isa Call && layer.output == 1 || throw(UnsupportedOperator(string(
        here(first(xs).writer, layer.layer), ": a later output of an operator, or one with graphs"
    )))
    return tracecall(layer.layer, filled(layer.arguments, xs))
end

function tracecall(call::Call, inputs)
    writer = first(x for x in inputs if x isa Traced).writer
    haskey(call.keywords, :opset) && atleast!(writer, call.keywords.opset)
    said = (k => v for (k, v) in pairs(call.keywords) if k ∉ CONTEXT)
    return node(operator(call), inputs, sizeafter(call, inputs), said...)
end

"""
    sizeafter(call, inputs)

The size of what an operator or a network gives: it is run twice, with two lengths for what isn't
fixed, on which then depends what differs. It is `nothing` where that doesn't work.
"""
function sizeafter(call, inputs)
    any(x -> x isa Traced && x.size === nothing, inputs) && return nothing
    a, b = map((2, 3)) do free
        example(x) = x
        example(x::Traced) = get(x.writer.tensors, x.name) do
            zeros(x.writer.number, map(n -> something(n, free), x.size))
        end
        try
            y = call(map(example, inputs)...)
            size(y isa Tuple ? first(y) : y)
        catch
            return nothing
        end
    end
    (a === nothing || b === nothing || length(a) != length(b)) && return nothing
    return map((m, n) -> m == n ? m : nothing, a, b)
end

# A network that was imported, as a part of another one.
function trace(graph::FluxGraph, xs::Traced...)
    writer, inner = first(xs).writer, network(graph)
    atleast!(writer, get(inner.opsets, "", 1))
    length(graph.program.outputs) == 1 && all(node -> isempty(node.domain), inner.nodes) ||
        throw(UnsupportedOperator(string(
            here(writer, graph), ": it has several outputs, or operators of other domains"
        )))
    held = Dict(
        b.tensor => (b.field.form, follow(layer, b.field.path))
        for (layer, step) in zip(graph.layers, graph.program.steps) for b in step.bindings
    )
    names = Dict{String,String}(inner.inputs .=> (x.name for x in xs))
    renamed(name) = get!(names, name) do
        isempty(name) ? "" : fresh!(writer, join([writer.path; name], '.'))
    end
    for (name, x) in inner.tensors
        writer.tensors[renamed(name)] = x
        haskey(held, name) && (writer.shared[renamed(name)] = held[name])
    end
    for node in inner.nodes
        push!(writer.nodes, Node(
            fresh!(writer, join([writer.path; nodename(node)], '.')), node.operator, "",
            renamed.(node.inputs), renamed.(node.outputs), node.attributes,
            Set(keys(node.attributes)),
        ))
    end
    return Traced(writer, renamed(only(inner.outputs)), sizeafter(graph, xs))
end

# Within calls of other layers.
for layer in (
    :AdaptiveMaxPool, :AdaptiveMeanPool, :AlphaDropout, :BatchNorm, :Bilinear, :Chain, :Conv,
    :ConvTranspose, :CrossCor, :Dense, :Dropout, :Embedding, :GlobalMaxPool, :GlobalMeanPool,
    :GroupNorm, :InstanceNorm, :LayerNorm, :MaxPool, :Maxout, :MeanPool, :Parallel, :PixelShuffle,
    :Scale, :SkipConnection,
)
    @eval (layer::Flux.$layer)(x::Traced) = called(layer, x)
end
(graph::FluxGraph)(x::Traced, xs::Traced...) = called(graph, x, xs...)
for mode in (:nearest, :bilinear, :trilinear)
    @eval (layer::Upsample{$(QuoteNode(mode))})(x::Traced) = called(layer, x)
end
