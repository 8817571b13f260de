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
    product = scaledproducts(q, k, scale == 0 ? nothing : scale)
    hidden = hiddenkeys(eltype(query), mask, size(k, 2), mask_filter_value)
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

"""
    GroupQueryAttention(query, key, value, past_key, past_value, seqlens_k, total_sequence_length,
                        cos_cache, sin_cache, position_ids, attention_bias, head_sink; …)

Attention of each token to the earlier ones and itself. `num_heads ÷ kv_num_heads` heads of the
query share a key and a value. Inputs are (features of all heads, sequence, batch), those of the
past (head size, past, heads, batch), which the second and third output go on with. A query alone
has keys and values as its further rows.
"""
function GroupQueryAttention end

@operator "com.microsoft" function GroupQueryAttention(
    query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache=nothing,
    sin_cache=nothing, position_ids=nothing, attention_bias=nothing, head_sink=nothing, further...;
    causal=1, do_rotary=0, k_quant_type="NONE", kv_cache_bit_width=0, kv_num_heads,
    local_window_size=-1, num_heads, qk_norm_epsilon=1f-6, qk_output=0, rotary_interleaved=0,
    scale=0f0, sliding_window_cache=0, smooth_softmax=0, softcap=0f0, v_quant_type="NONE", outputs=1
)
    all(isnothing, further) ||
        unsupported("quantized or normalized keys, or padded queries, in GroupQueryAttention")
    outputs < 4 || unsupported("products of queries and keys as an output")
    sliding_window_cache == 0 || unsupported("a cache that slides")
    local_window_size == 0 && unsupported("a window without tokens")
    past, tokens = past_key === nothing ? 0 : size(past_key, 2), size(query, 2)
    allequalto(past + tokens, seqlens_k .+ 1, total_sequence_length) ||
        unsupported("samples of different lengths, or a past that isn't as long as its array")
    numbers = (num_heads, kv_num_heads, kv_num_heads)
    given = key === nothing ? packedparts(query, numbers) : (query, key, value)
    q, k, v = map(attentionheads, given, numbers)
    if do_rotary != 0
        places = tokenplaces(position_ids, past, tokens)
        q, k = map((q, k)) do x
            RotaryEmbedding(x, cos_cache, sin_cache, places; interleaved=rotary_interleaved,
                            rotary_embedding_dim=2size(cos_cache, 1))
        end
    end
    keys, values = withpast(past_key, k), withpast(past_value, v)
    product = scaledproducts(q, keys, scale == 0 ? nothing : scale)
    biased = withbias(softlycapped(product, softcap), attention_bias)
    # The window counts the token itself.
    allowed = attendable(nothing, size(product), past, nothing, causal != 0,
                         local_window_size - 1, -1)
    sink = head_sink === nothing && smooth_softmax != 0 ? zero(eltype(query)) : head_sink
    weights = softmaxwithsink(masked(biased, allowed), sink)
    y = joinedheads(headvalues(narrowto(query, weights), values))
    return outputs == 1 ? y : (y, keys, values)
end

allequalto(n, lengths...) = all(x -> all(==(n), x), lengths)

@non_differentiable allequalto(::Any...)

function packedparts(x, numbers)
    width = size(x, 1) ÷ sum(numbers)
    return map(range -> x[range, :, :], consecutive((width .* numbers)...))
end

"""
    tokenplaces(given, past, tokens)

Positions from 0, (tokens, batch or 1). Where nothing is past, onnxruntime reads only the first.
"""
tokenplaces(::Nothing, past, tokens) = reshape(past:(past + tokens - 1), :, 1)
tokenplaces(given, past, tokens) = past == 0 ? following(given[1:1], tokens) : given

following(place, tokens) = reshape(place, 1, 1) .+ (0:(tokens - 1))

@non_differentiable tokenplaces(::Any...)
@non_differentiable following(::Any...)

"""
    softmaxwithsink(x, sink)

Softmax along the first dimension with one entry more, which isn't returned; `sink` is a number for
each of the heads of the third dimension, or for all.
"""
softmaxwithsink(x, ::Nothing) = rowsoftmax(x)
softmaxwithsink(x, sink::Number) =
    rowsoftmax(x) .* NNlib.sigmoid.(NNlib.logsumexp(x; dims=1) .- sink)
softmaxwithsink(x, sink) =
    rowsoftmax(x) .* NNlib.sigmoid.(NNlib.logsumexp(x; dims=1) .- reshape(sink, 1, 1, :))

"""
    PlacedRotaryEmbedding(input, position_ids, cos_cache, sin_cache; …)

onnxruntime's `RotaryEmbedding`, whose positions come second; one alone is that of the first token.
"""
function PlacedRotaryEmbedding end

@operator "com.microsoft" "RotaryEmbedding" function PlacedRotaryEmbedding(
    input, position_ids, cos_cache, sin_cache; interleaved=0, is_packed_batching=0, num_heads=0,
    rotary_embedding_dim=0, scale=1f0
)
    scale == 1 || unsupported("a scale of RotaryEmbedding")
    places = ndims(position_ids) == 2 ? position_ids : following(position_ids, size(input, 2))
    heads = num_heads == 0 ? size(input, 1) ÷ 2size(cos_cache, 1) : num_heads
    return RotaryEmbedding(input, cos_cache, sin_cache, places; interleaved, num_heads=heads,
                           rotary_embedding_dim)
end
