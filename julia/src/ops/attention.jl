# Scaled dot-product attention and rotary position embeddings.

"""
    Attention(Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen; …)

`softmax(scale Q K' + mask) V` for each head. Arrays are (head size, sequence, heads, batch), or
(heads × head size, sequence, batch) with the numbers of heads given. A key's head serves
`q_num_heads ÷ kv_num_heads` heads of the query. Rows that are masked whole give zeros.
"""
function Attention end

@operator function Attention(Q, K, V, attn_mask=nothing, past_key=nothing, past_value=nothing,
                             nonpad_kv_seqlen=nothing; is_causal=0, kv_num_heads=nothing,
                             left_window_size=-1, q_num_heads=nothing, qk_matmul_output_mode=0,
                             right_window_size=-1, scale=nothing, softcap=0f0,
                             softmax_precision=nothing, outputs=1)
    (past_key === nothing) == (past_value === nothing) ||
        throw(ArgumentError("past_key and past_value come together"))
    past_key === nothing || nonpad_kv_seqlen === nothing ||
        throw(ArgumentError("nonpad_kv_seqlen doesn't go with past_key"))
    query = attentionheads(Q, q_num_heads)
    key = withpast(past_key, attentionheads(K, kv_num_heads))
    value = withpast(past_value, attentionheads(V, kv_num_heads))
    product = scaledproducts(query, key, scale)
    capped = softlycapped(product, softcap)
    allowed = attendable(attn_mask, size(product), past_key === nothing ? 0 : size(past_key, 2),
                         nonpad_kv_seqlen, is_causal != 0, left_window_size, right_window_size)
    biased = masked(withbias(capped, attn_mask), allowed)
    weights = narrowto(Q, rowsoftmax(inprecision(softmax_precision, biased)))
    y = headvalues(weights, value)
    Y = ndims(Q) == 4 ? y : joinedheads(y)
    outputs == 1 && return Y
    outputs < 4 && return Y, key, value
    return Y, key, value, (product, capped, biased, weights)[qk_matmul_output_mode + 1]
end

function attentionheads(x, heads)
    ndims(x) == 4 && return x
    heads === nothing && throw(ArgumentError("three dimensions need the number of heads"))
    split = reshape(x, size(x, 1) ÷ Int(heads), Int(heads), size(x, 2), size(x, 3))
    return permutedims(split, (1, 3, 2, 4))
end

function joinedheads(y)
    moved = permutedims(y, (1, 3, 2, 4))
    return reshape(moved, size(moved, 1) * size(moved, 2), size(moved, 3), size(moved, 4))
end

withpast(::Nothing, x) = x
withpast(past, x) = cat(past, x; dims=2)

"The products of queries and keys, times `scale`; `nothing` is 1 / √(head size)."
function scaledproducts(query, key, scale)
    root = eltype(query)(sqrt(something(scale, 1 / sqrt(size(query, 1)))))
    return headproducts(query .* root, key .* root)
end

softlycapped(x, cap) = cap > 0 ? eltype(x)(cap) .* tanh.(x ./ eltype(x)(cap)) : x

# The heads that share a key are so many more queries of its one head.
function headproducts(query, key)
    d, queries, heads, batch = size(query)
    keys, shared = size(key, 2), size(key, 3)
    flatquery = reshape(query, d, queries * (heads ÷ shared), shared * batch)
    flatkey = reshape(key, d, keys, shared * batch)
    product = NNlib.batched_mul(NNlib.batched_transpose(widefloat(flatkey)), widefloat(flatquery))
    return reshape(narrowto(query, product), keys, queries, heads, batch)
end

function headvalues(weights, value)
    keys, queries, heads, batch = size(weights)
    shared = size(value, 3)
    flatweights = reshape(weights, keys, queries * (heads ÷ shared), shared * batch)
    flatvalue = reshape(value, size(value, 1), keys, shared * batch)
    y = NNlib.batched_mul(widefloat(flatvalue), widefloat(flatweights))
    return reshape(narrowto(value, y), size(value, 1), queries, heads, batch)
end

"""
    attendable(mask, (keys, queries, heads, batch), past, lengths, causal, left, right)

Where a query may see a key, as Bools that broadcast to the products, or `nothing` if everywhere.
"""
function attendable(mask, (keys, queries, _, _), past, lengths, causal, left, right)
    key = 0:(keys - 1)
    position = transpose(0:(queries - 1)) .+
               (lengths === nothing ? past : reshape(lengths, 1, 1, 1, :) .- queries)
    conditions = Any[]
    eltype(mask) === Bool && push!(conditions, longermask(mask, keys, false))
    eltype(mask) === Bool || mask === nothing || size(mask, 1) == keys ||
        push!(conditions, key .< size(mask, 1))
    causal && push!(conditions, key .<= position)
    left >= 0 && push!(conditions, position .- key .<= left)
    right >= 0 && push!(conditions, key .- position .<= right)
    lengths === nothing || push!(conditions, key .< reshape(lengths, 1, 1, 1, :))
    isempty(conditions) && return nothing
    return reduce((a, b) -> a .& b, conditions)
end

@non_differentiable attendable(::Any...)

function longermask(mask, keys, filler)
    size(mask, 1) >= keys && return mask
    filling = fill!(similar(mask, keys - size(mask, 1), size(mask)[2:end]...), filler)
    return cat(mask, filling; dims=1)
end

withbias(product, ::Nothing) = product
withbias(product, mask::AbstractArray{Bool}) = product
withbias(product, mask) = product .+ longermask(mask, size(product, 1), 0)

masked(x, ::Nothing) = x
masked(x, allowed) = ifelse.(allowed, x, typemin(eltype(x)))

function ChainRulesCore.rrule(::typeof(masked), x, allowed)
    masked_pullback(dy) = (NoTangent(), unthunk(dy) .* something(allowed, true), NoTangent())
    return masked(x, allowed), masked_pullback
end

"""
    inprecision(code, x)

`x` in ONNX's element type `code`; `nothing` is that of `x`.
"""
inprecision(::Nothing, x) = x
function inprecision(code, x)
    haskey(FLOAT_CODES, code) || unsupported("softmax in element type ", code)
    T = FLOAT_CODES[code]
    return eltype(x) === T ? x : T.(x)
end

const FLOAT_CODES = Dict(1 => Float32, 10 => Float16, 11 => Float64)

"""
    rowsoftmax(x)

Softmax along the first dimension; a column that is `-Inf` throughout gives zeros.
"""
function rowsoftmax(x)
    top = maximum(x; dims=1)
    y = exp.(x .- ifelse.(top .== -Inf, zero(eltype(x)), top))
    return y ./ nonzeros(narrowto(x, sum(widefloat(y); dims=1)))
end

function ChainRulesCore.rrule(::typeof(rowsoftmax), x)
    y = rowsoftmax(x)
    function rowsoftmax_pullback(dȳ)
        weighted = unthunk(dȳ) .* y
        return NoTangent(), weighted .- y .* sum(weighted; dims=1)
    end
    return y, rowsoftmax_pullback
end

"""
    RotaryEmbedding(X, cos_cache, sin_cache, position_ids; …)

Pairs of the first `rotary_embedding_dim` entries of a head, turned by the angle of the position.
Pairs are neighbours if `interleaved`, else entry `k` of the first half goes with `k` of the second.
"""
function RotaryEmbedding end

@operator function RotaryEmbedding(X, cos_cache, sin_cache, position_ids=nothing; interleaved=0,
                                   num_heads=0, rotary_embedding_dim=0)
    four = ndims(X) == 4
    x = four ? X : reshape(X, size(X, 1) ÷ Int(num_heads), Int(num_heads), size(X, 2), size(X, 3))
    turned = rotary_embedding_dim == 0 ? size(x, 1) : Int(rotary_embedding_dim)
    cosine, sine = map((cos_cache, sin_cache)) do cache
        angles = position_ids === nothing ? cache : cache[:, position_ids .+ 1]
        four ? reshape(angles, size(angles, 1), size(angles, 2), 1, size(angles, 3)) :
               reshape(angles, size(angles, 1), 1, size(angles, 2), size(angles, 3))
    end
    size(cosine, 1) == turned ÷ 2 ||
        throw(DimensionMismatch("cache of $(size(cosine, 1)) angles for $turned entries"))
    half = turned ÷ 2
    first, second = interleaved != 0 ? (1:2:turned, 2:2:turned) : (1:half, (half + 1):turned)
    a, b = x[first, :, :, :], x[second, :, :, :]
    real, imaginary = cosine .* a .- sine .* b, sine .* a .+ cosine .* b
    rotated = interleaved != 0 ? alternated(real, imaginary) : cat(real, imaginary; dims=1)
    y = turned == size(x, 1) ? rotated : cat(rotated, x[(turned + 1):end, :, :, :]; dims=1)
    return reshape(y, size(X))
end

function alternated(a, b)
    pairs = cat(reshape(a, 1, size(a)...), reshape(b, 1, size(b)...); dims=1)
    return reshape(pairs, 2size(a, 1), size(a)[2:end]...)
end

"""
    LinearAttention(query, key, value; …)

For each token, `S ← exp(decay) S + β (v - exp(decay) S k) kᵀ` and `y = scale S q`, where S is a
state of size v × k × heads, and the rule without a delta adds `v kᵀ`. Sizes are features × tokens ×
batch.
"""
function LinearAttention end

@operator function LinearAttention(query, key, value, past_state=nothing, decay=nothing,
        beta=nothing; chunk_size=64, kv_num_heads, q_num_heads, scale=0.0f0,
        update_rule="gated_delta")
    gated, corrected = linearrule(update_rule, decay, beta)
    heads, (_, tokens, batch) = kv_num_heads, size(query)
    # One matrix for each head of keys and each of the batch, for token after token.
    stacked(x, rows, columns) = permutedims(
        reshape(widefloat(x), rows, columns, :, tokens, batch), (1, 2, 3, 5, 4)
    )
    k = stacked(key, 1, size(key, 1) ÷ heads)
    q = stacked(query, size(query, 1) ÷ q_num_heads, q_num_heads ÷ heads)
    v = stacked(value, size(value, 1) ÷ heads, 1)
    g = gated ? (stacked(decay, 1, size(decay, 1) ÷ heads),) : ()
    b = corrected ? (stacked(beta, 1, 1),) : ()
    start = past_state === nothing ? firststate(v, k) : widefloat(past_state)
    factor = iszero(scale) ? 1 / sqrt(eltype(q)(size(q, 1))) : eltype(q)(scale)
    y, state = scanned(LinearStep(gated, corrected), start, k, q, v, g..., b...)
    return narrowto(query, reshape(permutedims(factor .* y, (1, 2, 3, 5, 4)), :, tokens, batch)),
        narrowto(something(past_state, query), state)
end

function linearrule(rule, decay, beta)
    rule in ("linear", "gated", "delta", "gated_delta") || unsupported("update_rule ", rule)
    gated, corrected = startswith(rule, "gated"), endswith(rule, "delta")
    gated == (decay !== nothing) && corrected == (beta !== nothing) ||
        throw(ArgumentError("decay goes with a gated rule, and beta with a delta rule"))
    return gated, corrected
end

firststate(v, k) = fill!(similar(v, size(v, 1), size(k, 2), size(k, 3), size(k, 4)), 0)

ChainRulesCore.@non_differentiable linearrule(::Any...)
ChainRulesCore.@non_differentiable firststate(::Any...)

"What a token does to the state, and what it reads there."
struct LinearStep
    gated::Bool
    corrected::Bool
end

function (rule::LinearStep)(state, k, q, v, more...)
    rule.gated && (state = state .* exp.(first(more)))
    if rule.corrected
        v = last(more) .* (v .- sum(state .* k; dims=2))
    end
    state = state .+ v .* k
    return headproduct(state, q), state
end

"The products of matrices that stand along dimensions 3 and 4."
headproduct(a, b) = reshape(
    NNlib.batched_mul(reshape(a, size(a, 1), size(a, 2), :), reshape(b, size(b, 1), size(b, 2), :)),
    size(a, 1), size(b, 2), size(a, 3), size(a, 4),
)

"""
    scanned(step, state, xs...) -> ys, state

`y, state = step(state, slices...)` for the slices of `xs` along their last dimension.
"""
function scanned(step, state, xs...)
    ys = Any[]
    for t in axes(first(xs), ndims(first(xs)))
        y, state = step(state, slicesat(xs, t)...)
        push!(ys, y)
    end
    return stack(ys), state
end

slicesat(xs, t) = map(x -> collect(selectdim(x, ndims(x), t)), xs)

function ChainRulesCore.rrule(
    config::RuleConfig{>:HasReverseMode}, ::typeof(scanned), step, state, xs...
)
    ys, backs = Any[], Any[]
    for t in axes(first(xs), ndims(first(xs)))
        (y, state), back = rrule_via_ad(config, step, state, slicesat(xs, t)...)
        push!(ys, y)
        push!(backs, back)
    end
    function scanned_pullback((dys, dstate))
        dys, dstate = unthunk(dys), unthunk(dstate)
        dxs = map(x -> fill!(similar(x), 0), xs)
        for t in length(backs):-1:1
            dy = dys isa AbstractArray ? collect(selectdim(dys, ndims(dys), t)) : ZeroTangent()
            _, dstate, dslices... = map(unthunk, backs[t](Tangent{Any}(dy, dstate)))
            foreach(dxs, dslices) do dx, dslice
                dslice isa AbstractArray && (selectdim(dx, ndims(dx), t) .= dslice)
            end
        end
        return NoTangent(), NoTangent(), dstate, dxs...
    end
    return (stack(ys), state), scanned_pullback
end
