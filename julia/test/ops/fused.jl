using .Operators: OPERATORS, PackedAttention, MultiHeadAttention, EmbedLayerNormalization,
    GroupQueryAttention, PlacedRotaryEmbedding, SkipLayerNormalization,
    SkipSimplifiedLayerNormalization, BiasGelu, FastGelu, QuickGelu

wave(sizes...) = reshape(sin.(1:prod(sizes)), sizes)

@testset "activations" begin
    x, b = wave(4, 3), wave(4)
    @test OPERATORS[("com.microsoft", "Gelu")](x) == Operators.Gelu(x)
    @test BiasGelu(x, b) ≈ Operators.Gelu(x .+ b)
    @test FastGelu(x, b) ≈ Operators.Gelu(x .+ b; approximate="tanh")
    @test FastGelu(x) ≈ Operators.Gelu(x; approximate="tanh")
    @test QuickGelu(x) ≈ x ./ (1 .+ exp.(-1.702f0 .* x))
end

@testset "normalizations of sums" begin
    x, s, g, b, c = wave(4, 3, 2), wave(4, 3, 2) .^ 2, wave(4), wave(4) .+ 1, wave(4) .- 1
    total = x .+ s .+ c
    y, _, _, handed = SkipLayerNormalization(x, s, g, b, c; outputs=4)
    @test handed ≈ total
    @test y ≈ Operators.LayerNormalization(total, g, b; epsilon=1f-12)
    @test SkipLayerNormalization(x, s, g; epsilon=0.1f0) ≈
          Operators.LayerNormalization(x .+ s, g; epsilon=0.1f0)
    y, _, slope, handed = SkipSimplifiedLayerNormalization(x, s, g, c; outputs=4)
    @test handed ≈ total
    @test y ≈ Operators.RMSNormalization(total, g; epsilon=1f-12)
    @test vec(slope) ≈ vec(1 ./ sqrt.(sum(abs2, total; dims=1) ./ 4))
    checkgradient((x, s, g, b, c) -> SkipLayerNormalization(x, s, g, b, c), x, s, g, b, c)
    checkgradient((x, s, g, c) -> SkipSimplifiedLayerNormalization(x, s, g, c), x, s, g, c)
end

@testset "embeddings" begin
    numbers, words, places, kinds = [1 0; 3 2; 0 0], wave(4, 5), wave(4, 3) .+ 1, wave(4, 2) .^ 2
    g, b, segments = wave(4), wave(4) .+ 1, [0 1; 0 1; 1 1]
    y, seen, total = EmbedLayerNormalization(
        numbers, segments, words, places, kinds, g, b, [1 1; 1 1; 0 1]; outputs=3
    )
    @test seen == Int32[2, 3]
    @test total[:, 2, 1] ≈ words[:, 4] .+ places[:, 2] .+ kinds[:, 1]
    @test total[:, 3, 2] ≈ words[:, 1] .+ places[:, 3] .+ kinds[:, 2]
    @test y ≈ Operators.LayerNormalization(total, g, b; epsilon=1f-12)
    moved = EmbedLayerNormalization(
        numbers, nothing, words, places, nothing, g, b, nothing, [2 2; 1 1; 0 0]; outputs=3
    )
    @test moved[2] == Int32[0, 0]
    @test moved[3][:, 1, 2] ≈ words[:, 1] .+ places[:, 3]
    checkgradient(
        (w, p, k, g, b) -> EmbedLayerNormalization(numbers, segments, w, p, k, g, b),
        words, places, kinds, g, b,
    )
end

@testset "attention" begin
    x, w, b = wave(6, 3, 2), wave(20, 6), wave(20)
    sizes = [6, 6, 8]
    columns = Operators.MatMul(x, w) .+ b
    q, k, v = columns[1:6, :, :], columns[7:12, :, :], columns[13:20, :, :]
    y = PackedAttention(x, w, b; num_heads=2, qkv_hidden_sizes=sizes)
    @test y ≈ Operators.Attention(q, k, v; q_num_heads=2, kv_num_heads=2)
    @test y ≈ MultiHeadAttention(q, k, v; num_heads=2)
    @test y ≈ MultiHeadAttention(q .- b[1:6], k .- b[7:12], v .- b[13:20], b; num_heads=2)
    causal = Operators.Attention(q, k, v; q_num_heads=2, kv_num_heads=2, is_causal=1, scale=0.3f0)
    @test causal ≈ MultiHeadAttention(q, k, v; num_heads=2, unidirectional=1, scale=0.3f0)
    # Two of three keys of the first sample, all of the second.
    lengths, mask = Int32[2, 3], Int32[1 1; 1 1; 0 1]
    seen = PackedAttention(x, w, b, mask; num_heads=2, qkv_hidden_sizes=sizes)
    @test seen ≈ PackedAttention(x, w, b, lengths; num_heads=2, qkv_hidden_sizes=sizes)
    @test seen[:, :, 2] ≈ y[:, :, 2]
    @test seen[:, 1:2, 1] ≈ PackedAttention(x[:, 1:2, :], w, b; num_heads=2,
                                            qkv_hidden_sizes=sizes)[:, :, 1]
    added = wave(3, 3, 2, 1)
    @test MultiHeadAttention(q, k, v, nothing, nothing, added; num_heads=2) ≈
          Operators.Attention(q, k, v, added; q_num_heads=2, kv_num_heads=2)
    @test_throws UnsupportedOperator PackedAttention(x, w, b, nothing, wave(3, 1, 2, 2, 2);
                                                     num_heads=2, qkv_hidden_sizes=sizes)
    @test_throws UnsupportedOperator MultiHeadAttention(q; num_heads=2)
    checkgradient(
        (x, w, b, a) -> PackedAttention(x, w, b, mask, nothing, a; num_heads=2,
                                        qkv_hidden_sizes=sizes),
        x, w, b, added,
    )
    checkgradient(
        (q, k, v, b) -> MultiHeadAttention(q, k, v, b; num_heads=2, unidirectional=1),
        q, k, v, b,
    )
end

@testset "rotary embeddings with positions" begin
    x, cosine, sine = wave(8, 3, 2), cos.(wave(2, 7)), sin.(wave(2, 7))
    places = [3 4; 1 5; 0 6]
    turned = Operators.RotaryEmbedding(x, cosine, sine, places; num_heads=2)
    @test PlacedRotaryEmbedding(x, places, cosine, sine) == turned
    @test PlacedRotaryEmbedding(x, [2], cosine, sine; interleaved=1) ==
          Operators.RotaryEmbedding(x, cosine, sine, [2 2; 3 3; 4 4]; num_heads=2, interleaved=1)
    @test PlacedRotaryEmbedding(x, fill(2), cosine, sine) ==
          PlacedRotaryEmbedding(x, [2], cosine, sine)
    apart = Operators.attentionheads(x, 2)
    @test Operators.joinedheads(PlacedRotaryEmbedding(apart, places, cosine, sine)) == turned
    part = (; num_heads=1, rotary_embedding_dim=4)
    @test PlacedRotaryEmbedding(x, places, cosine, sine; part...) ==
          Operators.RotaryEmbedding(x, cosine, sine, places; part...)
    @test_throws "a scale of RotaryEmbedding" PlacedRotaryEmbedding(
        x, places, cosine, sine; scale=2
    )
    checkgradient((x, c, s) -> PlacedRotaryEmbedding(x, [2], c, s), x, cosine, sine)
end

@testset "attention of heads that share keys" begin
    q, k, v = wave(16, 3, 2), wave(8, 3, 2) .^ 2, wave(8, 3, 2) .+ 1
    pastkey, pastvalue = wave(4, 2, 2, 2), wave(4, 2, 2, 2) .^ 2
    heads = (; num_heads=4, kv_num_heads=2)
    prompt(q, k, v, more...; settings...) = GroupQueryAttention(
        q, k, v, nothing, nothing, Int32[2, 2], fill(3), more...; heads..., settings...
    )
    later(q, k, v, pastkey, pastvalue, more...; settings...) = GroupQueryAttention(
        q, k, v, pastkey, pastvalue, Int32[4, 4], fill(5), more...; heads..., settings...
    )
    expected(more...; settings...) = Operators.Attention(
        q, k, v, more...; q_num_heads=4, kv_num_heads=2, is_causal=1, settings...
    )
    @test prompt(q, k, v) ≈ expected()
    @test prompt(cat(q, k, v; dims=1), nothing, nothing) ≈ expected()
    @test prompt(q, k, v; causal=0, scale=0.3f0) ≈ expected(; is_causal=0, scale=0.3f0)
    bias, none = wave(3, 3, 4, 1), ntuple(_ -> nothing, 3)
    @test prompt(q, k, v, none..., bias; softcap=0.5f0, local_window_size=2) ≈
          expected(bias; softcap=0.5f0, left_window_size=1)
    found = later(q, k, v, pastkey, pastvalue; outputs=3)
    @test all(map(≈, found, expected(nothing, pastkey, pastvalue; outputs=3)))

    cosine, sine = cos.(wave(2, 9)), sin.(wave(2, 9))
    turned(x, n, places) = Operators.RotaryEmbedding(x, cosine, sine, places; num_heads=n)
    angles = (; do_rotary=1, outputs=3)
    for (places, given) in ((0:2, nothing), (4:6, [4 7; 1 1; 1 1]))
        positions = repeat(places, 1, 2)
        y, key, value = prompt(q, k, v, cosine, sine, given; angles...)
        @test key ≈ Operators.attentionheads(turned(k, 2, positions), 2)
        @test value == Operators.attentionheads(v, 2)
        @test y ≈ prompt(turned(q, 4, positions), turned(k, 2, positions), v)
    end
    for (places, given) in ((repeat(2:4, 1, 2), nothing), ([4 7; 1 1; 1 1], [4 7; 1 1; 1 1]))
        found = later(q, k, v, pastkey, pastvalue, cosine, sine, given; angles...)
        moved = (turned(q, 4, places), turned(k, 2, places), v)
        @test all(map(≈, found, later(moved..., pastkey, pastvalue; outputs=3)))
    end

    # A sink is a key more, of value zero.
    sinks = [-1.0, 0.0, 0.5, 2.0]
    apart(x, n) = reshape(x, 4, n, 3, 2)
    for (y, sinks) in (
        (prompt(q, k, v, none..., nothing, sinks), sinks),
        (prompt(q, k, v; smooth_softmax=1), zeros(4)),
        (prompt(q, k, v, none..., nothing, sinks; smooth_softmax=1), sinks),
    )
        for b in 1:2, t in 1:3, h in 1:4
            shared = cld(h, 2)
            query, keys = apart(q, 4)[:, h, t, b], apart(k, 2)[:, shared, 1:t, b]
            weights = exp.(keys' * query ./ 2)
            values = apart(v, 2)[:, shared, 1:t, b]
            @test apart(y, 4)[:, h, t, b] ≈ values * weights ./ (sum(weights) + exp(sinks[h]))
        end
    end

    @test_throws "quantized or normalized keys" prompt(
        q, k, v, none..., nothing, nothing, [1.0]
    )
    @test_throws "products of queries and keys" prompt(q, k, v; outputs=4)
    @test_throws "a cache that slides" prompt(q, k, v; sliding_window_cache=1)
    @test_throws "a window without tokens" prompt(q, k, v; local_window_size=0)
    @test_throws "samples of different lengths" GroupQueryAttention(
        q, k, v, nothing, nothing, Int32[2, 1], fill(3); heads...
    )
    @test_throws "a past that isn't as long as its array" GroupQueryAttention(
        q, k, v, pastkey, pastvalue, Int32[3, 3], fill(4); heads...
    )

    short(x) = x[:, 1:2, :]
    checkgradient(
        (q, k, v, keys, values, c, s, sinks) -> GroupQueryAttention(
            q, k, v, keys, values, Int32[3, 3], fill(4), c, s, nothing, nothing, sinks;
            heads..., do_rotary=1, softcap=0.7f0, local_window_size=2,
        ),
        short(q), short(k), short(v), pastkey, pastvalue, cosine, sine, sinks,
    )
    checkgradient(
        (x, bias) -> prompt(x, nothing, nothing, none..., bias; smooth_softmax=1),
        cat(q, k, v; dims=1), bias,
    )
end
