# Operators of onnxruntime's own, which its tools put in place of several of ONNX's.

@operator "com.microsoft" "Gelu" exactgelu(X) = Gelu(X)

@operator "com.microsoft" BiasGelu(A, B) = Gelu(Add(A, B))

@operator "com.microsoft" FastGelu(X, bias=nothing) =
    Gelu(bias === nothing ? X : Add(X, bias); approximate="tanh")

@operator "com.microsoft" QuickGelu(X; alpha=1.702f0) = Swish(X; alpha)

"""
    SkipLayerNormalization(input, skip, gamma, beta, bias; epsilon)

Layer normalization of the sum of both inputs and the bias, over the first dimension.
"""
function SkipLayerNormalization end

@operator "com.microsoft" function SkipLayerNormalization(
    input, skip, gamma, beta=nothing, bias=nothing; epsilon=1f-12, outputs=1
)
    total = summed(input, skip, bias)
    outputs == 1 && return LayerNormalization(total, gamma, beta; epsilon)
    y, mean, deviation = LayerNormalization(total, gamma, beta; epsilon, outputs=3)
    return y, mean, deviation, total
end

@operator "com.microsoft" function SkipSimplifiedLayerNormalization(
    input, skip, gamma, bias=nothing; epsilon=1f-12, outputs=1
)
    total = summed(input, skip, bias)
    y = RMSNormalization(total, gamma; epsilon)
    outputs == 1 && return y
    x = widefloat(total)
    deviation = Float32.(inv.(sqrt.(mean(abs2.(x); dims=1) .+ eltype(x)(epsilon))))
    return y, zero(deviation), deviation, total
end

summed(a, b, ::Nothing) = Add(a, b)
summed(a, b, c) = Add(Add(a, b), c)

"""
    EmbedLayerNormalization(input_ids, segment_ids, words, positions, segments, gamma, beta, mask,
                            position_ids; epsilon)

Layer normalization of the sum of a row of each table. The second output are the lengths that a
mask of ones and zeros leaves, the third is the sum.
"""
function EmbedLayerNormalization end

@operator "com.microsoft" function EmbedLayerNormalization(
    input_ids, segment_ids, words, positions, segments, gamma, beta, mask=nothing,
    position_ids=nothing; epsilon=1f-12, mask_index_type=0, outputs=1
)
    places = position_ids === nothing ? reshape(0:(size(input_ids, 1) - 1), :, 1) : position_ids
    total = Add(Gather(words, input_ids), Gather(positions, places))
    if segment_ids !== nothing && segments !== nothing
        total = Add(total, Gather(segments, segment_ids))
    end
    y = LayerNormalization(total, gamma, beta; epsilon)
    return outputs == 1 ? y : (y, lengths(mask, size(input_ids, 2)), total)
end

lengths(::Nothing, batch) = zeros(Int32, batch)
lengths(mask, _) = Int32.(vec(sum(mask; dims=1)))

@non_differentiable lengths(::Any...)

"""
    PackedAttention(input, weights, bias, mask_index, past, attention_bias; num_heads, …)

onnxruntime's `Attention`: queries, keys and values are consecutive columns of one product. Inputs
are (features, sequence, batch).
"""
function PackedAttention end

@operator "com.microsoft" "Attention" function PackedAttention(
    input, weights, bias=nothing, mask_index=nothing, past=nothing, attention_bias=nothing,
    past_sequence_length=nothing; do_rotary=0, mask_filter_value=-10000f0, num_heads,
    past_present_share_buffer=0, qkv_hidden_sizes=nothing, rotary_embedding_dim=0, scale=0f0,
    unidirectional=0, outputs=1
)
    past === nothing && past_sequence_length === nothing && outputs == 1 ||
        unsupported("keys and values of earlier steps")
    do_rotary == 0 || unsupported("rotary embeddings inside of Attention")
    product = MatMul(input, weights)
    columns = bias === nothing ? product : Add(product, bias)
    sizes = qkv_hidden_sizes === nothing ? fill(size(columns, 1) ÷ 3, 3) : Int.(qkv_hidden_sizes)
    parts = map(range -> columns[range, :, :], consecutive(sizes...))
    return attended(parts..., mask_index, attention_bias; num_heads, scale, unidirectional,
                    mask_filter_value)
end

@operator "com.microsoft" function MultiHeadAttention(
    query, key=nothing, value=nothing, bias=nothing, key_padding_mask=nothing,
    attention_bias=nothing, past_key=nothing, past_value=nothing, past_sequence_length=nothing,
    cache_indirection=nothing; mask_filter_value=-10000f0, num_heads, scale=0f0, unidirectional=0,
    outputs=1
)
    earlier = (past_key, past_value, past_sequence_length, cache_indirection)
    all(isnothing, earlier) && outputs == 1 || unsupported("keys and values of earlier steps")
    given = (query, key, value)
    all(x -> x !== nothing && ndims(x) == 3, given) ||
        unsupported("queries, keys and values that aren't three arrays of three dimensions")
    if bias !== nothing
        ranges = consecutive(map(x -> size(x, 1), given)...)
        given = map((x, range) -> Add(x, bias[range]), given, ranges)
    end
    return attended(given..., key_padding_mask, attention_bias; num_heads, scale, unidirectional,
                    mask_filter_value)
end

consecutive(a, b, c) = (1:a, (a + 1):(a + b), (a + b + 1):(a + b + c))

@non_differentiable consecutive(::Any...)

"""
    attended(query, key, value, mask, bias; num_heads, scale, unidirectional, mask_filter_value)

Attention of arrays (features of all heads, sequence, batch). A mask holds zeros where a key isn't
to be seen, as (keys, batch), or numbers of keys that are; `mask_filter_value` is added there.
"""
function attended(query, key, value, mask, bias; num_heads, scale, unidirectional,
                  mask_filter_value)
    q, k, v = (attentionheads(x, num_heads) for x in (query, key, value))
    T = eltype(query)
    root = T(sqrt(scale == 0 ? 1 / sqrt(size(q, 1)) : scale))
    product = headproducts(q .* root, k .* root)
    hidden = hiddenkeys(T, mask, size(k, 2), mask_filter_value)
    biased = withbias(hidden === nothing ? product : product .+ hidden, bias)
    allowed = attendable(nothing, size(product), 0, nothing, unidirectional != 0, -1, -1)
    return joinedheads(headvalues(narrowto(query, rowsoftmax(masked(biased, allowed))), v))
end

hiddenkeys(T, ::Nothing, keys, filler) = nothing
hiddenkeys(T, lengths::AbstractVector, keys, filler) =
    hiddenkeys(T, (0:(keys - 1)) .< reshape(lengths, 1, :), keys, filler)
function hiddenkeys(T, mask, keys, filler)
    ndims(mask) == 2 || unsupported("a mask of ", ndims(mask), " dimensions")
    return reshape(ifelse.(mask .> 0, zero(T), T(filler)), size(mask, 1), 1, 1, size(mask, 2))
end

@non_differentiable hiddenkeys(::Any...)
