using .Operators: DFT, STFT, HannWindow, HammingWindow, BlackmanWindow, MelWeightMatrix

@testset "Fourier" begin
    x = reshape([1.0, 0, 0, 0], 1, 4, 1)
    @test DFT(x) ≈ repeat([1.0, 0], 1, 4, 1)
    @test size(DFT(x; onesided=1)) == (2, 3, 1)
    @test size(DFT(x, fill(6))) == (2, 6, 1)
    signal = reshape(sin.(1:16), 2, 8, 1)
    @test DFT(DFT(signal); inverse=1) ≈ signal
    @test DFT(DFT(signal; axis=1, opset=17), nothing, fill(-2); inverse=1) ≈ signal
    real = signal[1:1, :, :]
    @test DFT(DFT(real; onesided=1); inverse=1, onesided=1) ≈ real
    odd = real[:, 1:7, :]
    @test DFT(DFT(odd; onesided=1), fill(7); inverse=1, onesided=1) ≈ odd
    frames = STFT(real, fill(2), ones(4))
    @test size(frames) == (2, 3, 3, 1)
    @test frames[:, :, 2, :] ≈ DFT(real[:, 3:6, :]; onesided=1)
end

@testset "complex signals of any length" begin
    for length in (1, 2, 3, 7, 10, 12, 16, 30), inverse in (0, 1)
        x = reshape(sin.(1:(4 * length)), 2, length, 2)
        z = complex.(x[1, :, :], x[2, :, :])
        sign = inverse == 1 ? 1 : -1
        turns = [cispi(sign * 2k * n / length) for k in 0:(length - 1), n in 0:(length - 1)]
        expected = turns * z ./ (inverse == 1 ? length : 1)
        y = DFT(x; inverse)
        @test complex.(y[1, :, :], y[2, :, :]) ≈ expected
        @test DFT(Float32.(x); inverse) isa Array{Float32}
        @test DFT(Float32.(x); inverse) ≈ y
    end
end

@testset "windows and filters" begin
    @test HannWindow(fill(4)) ≈ [0, 0.5, 1, 0.5]
    @test HannWindow(fill(3); periodic=0) ≈ [0, 1, 0]
    @test HammingWindow(fill(2)) ≈ [4 / 46, 1]
    @test BlackmanWindow(fill(2); output_datatype=11) ≈ [0, 1] atol = 1e-12
    filters = MelWeightMatrix(fill(3), fill(16), fill(8000), fill(0f0), fill(4000f0))
    @test size(filters) == (3, 9) && maximum(filters; dims=2) == ones(3, 1)
end

@testset "gradients" begin
    x = reshape(cos.(1:24), 2, 6, 2)
    checkgradient(DFT, x)
    checkgradient(x -> DFT(x, fill(8); inverse=1), x)
    checkgradient(x -> DFT(x, fill(9); inverse=1, onesided=1), x)
    checkgradient((x, w) -> STFT(x, fill(1), w), x[1:1, :, :], sin.(1:4))
end
