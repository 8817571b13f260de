using .Operators: Attention, RotaryEmbedding

ramp(sizes...) = reshape(sin.(1:prod(sizes)), sizes)

@testset "weights by hand" begin
    q = reshape([0.0, 0.0], 1, 2, 1, 1)
    k = reshape([1.0, 2, 3], 1, 3, 1, 1)
    v = reshape([3.0, 6, 9], 1, 3, 1, 1)
    @test vec(Attention(q, k, v)) ≈ [6, 6]
    @test vec(Attention(q, k, v; is_causal=1)) ≈ [3, 4.5]
    @test vec(Attention(q, k, v, Bool[1 0; 0 0; 1 0])) ≈ [6, 0]
    @test vec(Attention(q, k, v, [0 -Inf; -Inf 0; -Inf -Inf])) ≈ [3, 6]
    @test vec(Attention(q, k, v, Bool[1 0; 1 1])) ≈ [4.5, 6]
    @test vec(Attention(q, k, v, nothing, nothing, nothing, [2])) ≈ [4.5, 4.5]
    @test vec(Attention(q, k, v; left_window_size=0)) ≈ [6, 7.5]
    y, key, value = Attention(q, k[:, 2:3, :, :], v[:, 2:3, :, :], nothing, k[:, 1:1, :, :],
                              v[:, 1:1, :, :]; is_causal=1, outputs=3)
    @test vec(y) ≈ [4.5, 6] && key == k && value == v
    weights = Attention(q, k, v; qk_matmul_output_mode=3, outputs=4)[4]
    @test weights ≈ fill(1 / 3, 3, 2, 1, 1)
    @test Attention(q .+ 1, k, v; softcap=1f-3) ≈ fill(6, 1, 2, 1, 1) atol = 1e-2
end

@testset "heads" begin
    q, k, v = ramp(2, 3, 4, 2), ramp(2, 5, 2, 2), ramp(3, 5, 2, 2)
    y = Attention(q, k, v)
    repeated(x) = x[:, :, [1, 1, 2, 2], :]
    @test y ≈ Attention(q, repeated(k), repeated(v))
    joined(x) = reshape(permutedims(x, (1, 3, 2, 4)), :, size(x, 2), size(x, 4))
    @test Attention(joined(q), joined(k), joined(v); q_num_heads=4, kv_num_heads=2) ≈ joined(y)
end

@testset "rotary positions" begin
    x = reshape([1.0, 2, 3, 4], 4, 1, 1, 1)
    cosine, sine = zeros(2, 1, 1), ones(2, 1, 1)
    @test vec(RotaryEmbedding(x, cosine, sine)) == [-3, -4, 1, 2]
    @test vec(RotaryEmbedding(x, cosine, sine; interleaved=1)) == [-2, 1, -4, 3]
    @test vec(RotaryEmbedding(x, cosine[1:1, :, :], sine[1:1, :, :]; rotary_embedding_dim=2)) ==
          [-2, 1, 3, 4]
    caches = [1.0 0; 1 0], [0.0 1; 0 1]
    @test vec(RotaryEmbedding(x, caches..., fill(1, 1, 1))) == [-3, -4, 1, 2]
    @test vec(RotaryEmbedding(reshape(x, 4, 1, 1), [1.0 0], [0.0 1], fill(1, 1, 1);
                              num_heads=2)) == [-2, 1, -4, 3]
end

@testset "gradients" begin
    q, k, v = ramp(2, 3, 4, 2), ramp(2, 3, 2, 2), ramp(3, 3, 2, 2)
    checkgradient((q, k, v) -> Attention(q, k, v; is_causal=1, softcap=2f0), q, k, v)
    checkgradient((q, k, v, m) -> Attention(q, k, v, m), q, k, v, ramp(3, 3))
    checkgradient((q, k, v) -> Attention(q, k, v; q_num_heads=2, kv_num_heads=1), ramp(4, 3, 2),
                  ramp(2, 3, 2), ramp(3, 3, 2))
    checkgradient((k, v, a, b) -> Attention(q, k, v, nothing, a, b), k, v, ramp(2, 1, 2, 2),
                  ramp(3, 1, 2, 2))
    for interleaved in (0, 1)
        checkgradient((x, c, s) -> RotaryEmbedding(x, c, s; interleaved), ramp(4, 3, 2, 2),
                      ramp(2, 3, 2), ramp(2, 3, 2))
    end
end

@testset "LinearAttention" begin
    # Two tokens of one head, with the state as the rule says: features 2, values 3.
    k, v, q = numbers(2, 2, 1), numbers(3, 2, 1), numbers(2, 2, 1) .+ 1
    heads = (kv_num_heads=1, q_num_heads=1, scale=1.0f0)
    y, state = Operators.LinearAttention(q, k, v; heads..., update_rule="linear")
    first_state = v[:, 1, 1] * k[:, 1, 1]'
    last_state = first_state + v[:, 2, 1] * k[:, 2, 1]'
    @test y[:, :, 1] ≈ [first_state * q[:, 1, 1] last_state * q[:, 2, 1]]
    @test state[:, :, 1, 1] ≈ last_state
    decay, beta, past = fill(-0.5, 1, 2, 1), fill(0.25, 1, 2, 1), numbers(3, 2, 1, 1)
    y, _ = Operators.LinearAttention(q[:, 1:1, :], k[:, 1:1, :], v[:, 1:1, :], past,
        decay[:, 1:1, :], beta[:, 1:1, :]; heads...)
    kept = exp(-0.5) * past[:, :, 1, 1]
    expected = kept + 0.25 * (v[:, 1, 1] - kept * k[:, 1, 1]) * k[:, 1, 1]'
    @test vec(y) ≈ expected * q[:, 1, 1]
    @test_throws ArgumentError Operators.LinearAttention(q, k, v; heads...)

    shared = (kv_num_heads=2, q_num_heads=4)
    q, k, v = numbers(8, 3, 2), numbers(4, 3, 2), numbers(6, 3, 2)
    past, decay, beta = numbers(3, 2, 2, 2), numbers(4, 3, 2), numbers(2, 3, 2)
    flat(results) = vcat(map(vec, results)...)
    checkgradient(
        (inputs...) -> flat(Operators.LinearAttention(inputs...; shared...)),
        q, k, v, past, decay, beta,
    )
    checkgradient(
        (inputs...) ->
            first(Operators.LinearAttention(inputs...; shared..., update_rule="linear")),
        q, k, v,
    )
end
