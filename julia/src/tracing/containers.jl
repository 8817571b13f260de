# Layers that hold layers, and functions that join or reshape values.

using Flux: Bilinear, Maxout, PairwiseFusion

trace(chain::Chain, x::Traced) =
    foldl((y, (name, layer)) -> passon(name, layer, y), pairs(chain.layers); init=x)
trace(chain::Chain, xs::Traced...) =
    foldl((y, (name, layer)) -> passon(name, layer, y), pairs(chain.layers); init=xs)

# A Chain hands on a tuple as it is, and only these layers take one apart.
passon(name, layer, x::Traced) = inside(name, layer, x)
passon(name, layer::Union{Chain,Parallel,PairwiseFusion,Bilinear}, xs::Tuple) =
    inside(name, layer, xs...)
passon(name, layer, xs::Tuple) = enter(first(xs).writer, name, layer) do
    layer(xs)
end

function trace(skip::SkipConnection, x::Traced)
    return connected(skip.connection, inside(nothing, skip.layers, x), x)
end

function trace(parallel::Parallel, xs::Traced...)
    layers = collect(pairs(parallel.layers))
    inputs = length(xs) == 1 ? fill(only(xs), length(layers)) : xs
    if length(layers) == 1
        layers = fill(only(layers), length(inputs))
    end
    length(layers) == length(inputs) || throw(UnsupportedOperator(string(
        here(first(xs).writer, parallel), ": it has ", length(layers), " layers for ", length(xs),
        " inputs"
    )))
    return connected(
        parallel.connection,
        (inside(name, layer, x) for ((name, layer), x) in zip(layers, inputs))...,
    )
end

function trace(fusion::PairwiseFusion, xs::Traced...)
    layers = collect(pairs(fusion.layers))
    length(xs) in (1, length(layers)) || throw(UnsupportedOperator(string(
        here(first(xs).writer, fusion), ": it has ", length(layers), " layers for ", length(xs),
        " inputs"
    )))
    y, ys = first(xs), Traced[]
    for (i, (name, layer)) in enumerate(layers)
        i == 1 || (y = connected(fusion.connection, last(ys), xs[min(i, end)]))
        push!(ys, inside(name, layer, y))
    end
    return Tuple(ys)
end

function trace(maxout::Maxout, x::Traced)
    ys = [inside(name, layer, x) for (name, layer) in pairs(maxout.layers)]
    return foldl((a, b) -> max.(a, b), ys)
end

"What a connection makes of values; the function `tuple` leaves them several outputs."
connected(connection, ys::Traced...) = trace(connection, ys...)
connected(::typeof(tuple), ys::Traced...) = ys

Base.cat(x::Traced, xs::Traced...; dims) = concatenatedtrace(onedimension(dims), x, xs...)
Base.vcat(x::Traced, xs::Traced...) = concatenatedtrace(1, x, xs...)
Base.hcat(x::Traced, xs::Traced...) = concatenatedtrace(2, x, xs...)

onedimension(d::Integer) = Int(d)
onedimension(::Val{d}) where {d} = d
onedimension(d) = only(d)

function concatenatedtrace(d, xs...)
    n = maximum(ndims, xs)
    d <= n || throw(UnsupportedOperator(string(
        "layer '", join(first(xs).writer.path, '.'), "': cat along dimension ", d, " of ", n
    )))
    lengths = [size(x)[d] for x in xs]
    total = nothing in lengths ? nothing : sum(lengths)
    dims = ntuple(k -> k == d ? total : size(first(xs))[k], n)
    return node("Concat", xs, dims, :axis => n - d)
end

function Base.reshape(x::Traced, dims::Union{Integer,Colon}...)
    onnxshape = Int64[d isa Colon ? -1 : d for d in reverse(dims)]
    known = x.size !== nothing && !(nothing in x.size)
    filled = map(dims) do d
        d isa Colon || return Int(d)
        known ? prod(x.size) ÷ prod(filter(d -> d isa Integer, dims); init=1) : nothing
    end
    shape = tensor(x.writer, "shape", onnxshape)
    return node("Reshape", (x, shape), filled)
end
Base.reshape(x::Traced, dims::Tuple) = reshape(x, dims...)

function Base.permutedims(x::Traced, order)
    n = ndims(x)
    perm = Int64[n - d for d in reverse(Tuple(order))]
    return node("Transpose", (x,), Tuple(size(x)[d] for d in order), :perm => perm)
end

function Flux.MLUtils.flatten(x::Traced)
    features = any(isnothing, size(x)[1:(end - 1)]) ? nothing : prod(size(x)[1:(end - 1)])
    return node("Flatten", (x,), (features, last(size(x))), :axis => 1)
end

for (f, operator) in ((:softmax, "Softmax"), (:logsoftmax, "LogSoftmax"))
    @eval NNlib.$f(x::Traced; dims=1) =
        node($operator, (x,), x.size, :axis => dims == 1 ? -1 : ndims(x) - dims)
end
