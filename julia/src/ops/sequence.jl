# Sequences of arrays and optional values. An optional value is the value, or `nothing`.

"""
    TensorSequence

A value that is a sequence. Its gradient is a vector of the same length, whose entries may be
`nothing` or zero tangents.
"""
const TensorSequence = Vector{AbstractArray}

@operator SequenceConstruct(inputs...) = sequenceof(inputs...)

sequenceof(xs...) = TensorSequence(collect(AbstractArray, xs))

function ChainRulesCore.rrule(::typeof(sequenceof), xs...)
    sequenceof_pullback(dys) = (NoTangent(), entrygradients(dys)...)
    return sequenceof(xs...), sequenceof_pullback
end

entrygradients(dxs) = Any[entrygradient(dx) for dx in unthunk(dxs)]
entrygradient(dx) = unthunk(dx)
entrygradient(::Nothing) = ZeroTangent()

@nondifferentiable SequenceEmpty(; dtype=1) = TensorSequence()

@nondifferentiable SequenceLength(input_sequence) = fill(length(input_sequence))

@operator function SequenceAt(input_sequence, position)
    return entry(input_sequence, sequenceplace(position, length(input_sequence)))
end

entry(xs, k) = xs[k]

function ChainRulesCore.rrule(::typeof(entry), xs, k)
    n = length(xs)
    function entry_pullback(dy)
        dxs = Any[ZeroTangent() for _ in 1:n]
        dxs[k] = unthunk(dy)
        return NoTangent(), dxs, NoTangent()
    end
    return xs[k], entry_pullback
end

"""
    sequenceplace(position, n, last=n)

The place from 1 of ONNX's `position` in a sequence of `n`; by default the `last` one.
"""
sequenceplace(::Nothing, n, last=n) = last
function sequenceplace(position, n, last=n)
    place = only(position) + (only(position) < 0 ? n : 0) + 1
    1 <= place <= last ||
        throw(ArgumentError("there is no position $(only(position)) in a sequence of $n"))
    return Int(place)
end

ChainRulesCore.@non_differentiable sequenceplace(::Any...)

@operator function SequenceInsert(input_sequence, tensor, position=nothing)
    n = length(input_sequence)
    return inserted(input_sequence, tensor, sequenceplace(position, n, n + 1))
end

inserted(xs, x, k) = TensorSequence([xs[1:(k - 1)]; [x]; xs[k:end]])

function ChainRulesCore.rrule(::typeof(inserted), xs, x, k)
    function inserted_pullback(dys)
        dxs = entrygradients(dys)
        dx = popat!(dxs, k)
        return NoTangent(), dxs, dx, NoTangent()
    end
    return inserted(xs, x, k), inserted_pullback
end

@operator function SequenceErase(input_sequence, position=nothing)
    return erased(input_sequence, sequenceplace(position, length(input_sequence)))
end

erased(xs, k) = deleteat!(copy(xs), k)

function ChainRulesCore.rrule(::typeof(erased), xs, k)
    function erased_pullback(dys)
        dxs = entrygradients(dys)
        return NoTangent(), insert!(dxs, k, ZeroTangent()), NoTangent()
    end
    return erased(xs, k), erased_pullback
end

@operator function ConcatFromSequence(input_sequence; axis, new_axis=0)
    return joinedsequence(input_sequence, axis, new_axis == 1)
end

"The arrays of a sequence one after another, or side by side along a new axis."
joinedsequence(xs, axis, new) = first(joining(xs, axis, new))

function joining(xs, axis, new)
    isempty(xs) && unsupported("an empty sequence, whose arrays have no known shape, is joined")
    d = dimension(axis, ndims(first(xs)) + new)
    wide = new ? map(x -> reshape(x, size(x)[1:(d - 1)]..., 1, size(x)[d:end]...), xs) : xs
    return concatenated(d, wide...), d, [size(x, d) for x in wide]
end

function ChainRulesCore.rrule(::typeof(joinedsequence), xs, axis, new)
    y, d, lengths = joining(xs, axis, new)
    sizes = map(size, xs)
    function joinedsequence_pullback(dy)
        dxs = collect(Any, parts(unthunk(dy), d, lengths))
        return NoTangent(), Any[reshape(dx, s) for (dx, s) in zip(dxs, sizes)], NoTangent(),
            NoTangent()
    end
    return y, joinedsequence_pullback
end

@operator function SplitToSequence(input, split=nothing; axis=0, keepdims=1)
    d = dimension(axis, input)
    lengths = sequencelengths(split, size(input, d))
    return splitsequence(input, d, lengths, split !== nothing || keepdims == 1)
end

sequencelengths(::Nothing, n) = fill(1, n)
sequencelengths(split::AbstractArray{<:Integer,0}, n) =
    [min(only(split), n - start) for start in 0:only(split):(n - 1)]
function sequencelengths(split, n)
    sum(split; init=0) == n || throw(ArgumentError("split $split doesn't add up to $n"))
    return Int.(split)
end

ChainRulesCore.@non_differentiable sequencelengths(::Any...)

"An array cut along dimension `d`, which goes from arrays of length 1 unless it's kept."
function splitsequence(x, d, lengths, keep)
    pieces = parts(x, d, lengths)
    return sequenceof((keep ? y : dropdims(y; dims=d) for y in pieces)...)
end

function ChainRulesCore.rrule(::typeof(splitsequence), x, d, lengths, keep)
    _, back = rrule(parts, x, d, lengths)
    function splitsequence_pullback(dys)
        wide = map(entrygradients(dys), lengths) do dy, n
            dy isa AbstractArray ? reshape(dy, resized(x, d, n)) : dy
        end
        return back(Tuple(wide))[1:2]..., NoTangent(), NoTangent(), NoTangent()
    end
    return splitsequence(x, d, lengths, keep), splitsequence_pullback
end

@operator Optional(input=nothing; type=nothing) = input

@nondifferentiable OptionalHasElement(input=nothing) = fill(input !== nothing)

@operator OptionalGetElement(input) = present(input)

present(x) = x
present(::Nothing) = throw(ArgumentError("the optional value is empty"))
