using .Operators: OPERATORS, PackedAttention, MultiHeadAttention, EmbedLayerNormalization,
    SkipLayerNormalization, SkipSimplifiedLayerNormalization, BiasGelu, FastGelu, QuickGelu

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
