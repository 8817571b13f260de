using .Operators: RNN, GRU, LSTM, UnsupportedOperator

wave(sizes...) = reshape(sin.(1:prod(sizes)), sizes)

@testset "one unit, by hand" begin
    x = reshape([1.0, 2, 3], 1, 1, 3)
    one, zero = ones(1, 1, 1), zeros(1, 1, 1)
    sums, last = RNN(x, one, one; activations=["Affine"])
    @test vec(sums) == [1, 3, 6] && vec(last) == [6]
    @test vec(RNN(x, one, one; activations=["Affine"], direction="reverse")[1]) == [6, 5, 3]
    @test vec(RNN(x, one, zero; activations=["Affine"], clip=2.5f0)[1]) == [1, 2, 2.5]
    @test vec(RNN(x, one, one, [0.5 0.25]'; activations=["Relu"])[1]) == [1.75, 4.5, 8.25]
    halved = RNN(x, one, zero; activations=["affine"], activation_alpha=[0.5f0],
                 activation_beta=[1f0])[1]
    @test vec(halved) == [1.5, 2, 2.5]
    @test_throws UnsupportedOperator RNN(x, one, one; activations=["ScaledTanh"])

    # Gates of weight zero are one half.
    h, _ = GRU(x, reshape([0.0, 0, 1], 1, 3, 1), zeros(1, 3, 1); activations=["Sigmoid", "Affine"])
    @test vec(h) ≈ [0.5, 1.25, 2.125]
    h, _, c = LSTM(x, reshape([0.0, 0, 0, 1], 1, 4, 1), zeros(1, 4, 1);
                   activations=["Sigmoid", "Affine", "Affine"])
    @test vec(h) ≈ [0.25, 0.625, 1.0625] && vec(c) ≈ [2.125]
end

@testset "lengths and directions" begin
    x, w, r = wave(2, 2, 3), wave(2, 12, 2), wave(3, 12, 2)
    y, h, c = LSTM(x, w, r, nothing, [3, 2]; direction="bidirectional")
    @test size(y) == (3, 2, 2, 3) && size(h) == size(c) == (3, 2, 2)
    alone, last, _ = LSTM(x[:, 2:2, 1:2], w, r; direction="bidirectional")
    @test y[:, 2, :, 1:2] ≈ alone[:, 1, :, :] && all(iszero, y[:, 2, :, 3])
    @test h[:, 2, :] ≈ last[:, 1, :]
    swapped, swappedlast, _ = LSTM(permutedims(x, (1, 3, 2)), w, r, nothing, [3, 2];
                                   direction="bidirectional", layout=1)
    @test swapped == permutedims(y, (1, 3, 4, 2)) && swappedlast == permutedims(h, (1, 3, 2))
end

@testset "gradients" begin
    x, h, c = wave(2, 3, 4), wave(3, 3, 2), 0.5 .* wave(3, 3, 2)
    lengths = [4, 2, 3]
    outputs(y) = vcat(map(vec, y)...)
    both = (; direction="bidirectional")
    checkgradient((x, w, r, b, h) -> outputs(RNN(x, w, r, b, lengths, h; both...)), x,
                  wave(2, 3, 2), wave(3, 3, 2), wave(6, 2), h)
    for linear_before_reset in (0, 1)
        checkgradient((x, w, r, b, h) -> outputs(GRU(x, w, r, b, nothing, h; linear_before_reset,
                                                     both...)),
                      x, wave(2, 9, 2), wave(3, 9, 2), wave(18, 2), h)
    end
    checkgradient((x, w, r, b, h, c, p) -> outputs(LSTM(x, w, r, b, lengths, h, c, p; both...)),
                  x, wave(2, 12, 2), wave(3, 12, 2), wave(24, 2), h, c, wave(9, 2))
    checkgradient((x, w, r) -> LSTM(x, w, r; layout=1, direction="reverse")[1], x,
                  wave(2, 12, 1), wave(3, 12, 1))
    for name in ("LeakyRelu", "HardSigmoid", "Elu")
        checkgradient(x -> RNN(x, wave(2, 3, 1), wave(3, 3, 1); activations=[name])[1], x)
    end
end
