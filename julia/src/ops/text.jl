# Text: arrays of strings.

array(x::AbstractString) = fill(x)

const TEXT = 8  # ONNX's element type.

texts(x::AbstractArray{<:AbstractString}) = x
texts(x::AbstractArray{<:Integer}) = map(string, x)
texts(x::AbstractArray{Bool}) = unwritten(x)
texts(x::AbstractArray{<:AbstractFloat}) = unwritten(x)

unwritten(x) = unsupported("a cast of ", eltype(x), " to text, which every engine does its own way")

parsed(::Type{Bool}, x) = unsupported("a cast of text to Bool")
parsed(::Type{T}, x) where {T<:Union{Integer,AbstractFloat}} = map(text -> parse(T, text), x)

@nondifferentiable function StringNormalizer(
    X; case_change_action="NONE", is_case_sensitive=0, locale="en_US", stopwords=String[]
)
    ndims(X) == 1 || (ndims(X) == 2 && size(X, 2) == 1) ||
        throw(ArgumentError("one row of text is expected, not size $(reverse(size(X)))"))
    match(r"^(tr|az|lt)"i, locale) === nothing ||
        unsupported("upper and lower case of the locale ", locale)
    comparable = is_case_sensitive == 1 ? identity : lowercase
    stopped = Set(map(comparable, stopwords))
    kept = String[cased(x, case_change_action) for x in X if comparable(x) ∉ stopped]
    isempty(kept) && push!(kept, "")
    return ndims(X) == 1 ? kept : reshape(kept, :, 1)
end

function cased(text, action)
    action == "NONE" && return text
    action == "LOWER" && return lowercase(text)
    action == "UPPER" && return uppercase(text)
    return unsupported("case_change_action ", action)
end

@nondifferentiable StringConcat(X, Y) = array(string.(X, Y))

@nondifferentiable function StringSplit(X; delimiter="", maxsplit=typemax(Int) - 1)
    pieces = isempty(delimiter) ? x -> words(x, maxsplit) : x -> cut(x, delimiter, maxsplit)
    found = Vector{String}[pieces(x) for x in X]
    counts = Int[length(list) for list in found]
    y = fill("", maximum(counts; init=0), size(X)...)
    for (column, list) in zip(eachcol(reshape(y, size(y, 1), length(X))), found)
        column[1:length(list)] = list
    end
    return y, reshape(counts, size(X))
end

cut(text, delimiter, most) = String.(split(text, delimiter; limit=most + 1))

"The words of a text; after the `most` first ones the rest is one."
function words(text, most)
    found = String[]
    rest = lstrip(text)
    while !isempty(rest)
        stop = length(found) == most ? nothing : findfirst(isspace, rest)
        stop === nothing && return push!(found, rest)
        push!(found, rest[1:prevind(rest, stop)])
        rest = lstrip(rest[stop:end])
    end
    return found
end

@nondifferentiable function RegexFullMatch(X; pattern)
    whole = Regex("\\A(?:$pattern)\\z", "a")  # Classes as \d are those of ASCII.
    return map(text -> occursin(whole, text), X)
end

"""
    TfIdfVectorizer(X; …)

How often each n-gram of the pool occurs in each row: the items of one may be up to
`max_skip_count + 1` places apart, all by the same distance.
"""
function TfIdfVectorizer end

@nondifferentiable function TfIdfVectorizer(
    X; max_gram_length, max_skip_count, min_gram_length, mode, ngram_counts, ngram_indexes,
    pool_int64s=Int[], pool_strings=String[], weights=nothing,
)
    pool = isempty(pool_strings) ? pool_int64s : pool_strings
    places = ngramplaces(pool, ngram_counts, ngram_indexes)
    batch = size(X)[2:end]
    rows = reshape(X, size(X, 1), prod(batch; init=1))
    y = zeros(Float32, maximum(ngram_indexes) + 1, size(rows, 2))
    for (counts, row) in zip(eachcol(y), eachcol(rows)), n in min_gram_length:max_gram_length
        for distance in 1:(n == 1 ? 1 : max_skip_count + 1)
            span = (n - 1) * distance
            for start in 1:(length(row) - span)
                place = get(places, row[start:distance:(start + span)], nothing)
                place === nothing || (counts[place] += 1)
            end
        end
    end
    return reshape(weighted(y, mode, weights, ngram_indexes), size(y, 1), batch...)
end

"The place in a row of the output for each n-gram of the pool."
function ngramplaces(pool, counts, indexes)
    places = Dict{typeof(pool),Int}()
    k = 0
    for (n, start) in enumerate(counts)
        stop = n < length(counts) ? counts[n + 1] : length(pool)
        for first in (start + 1):n:(stop - n + 1)
            k += 1
            places[pool[first:(first + n - 1)]] = indexes[k] + 1
        end
    end
    return places
end

function weighted(counts, mode, weights, indexes)
    mode == "TF" && return counts
    found = mode == "IDF" ? Float32.(counts .> 0) : counts
    weights === nothing && return found
    # ONNX's text counts weights by n-gram, engines by place.
    indexes == 0:(length(indexes) - 1) || unsupported("weights of n-grams that change places")
    return found .* weights
end
