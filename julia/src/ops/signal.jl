# Fourier transforms, windows of signals and mel filters.

"""
    fouriermatrices(T, from, to, length, sign)

Cosines and sines of `sign 2π k n / length`, for `k` in `0:to-1` and `n` in `0:from-1`.
"""
function fouriermatrices(T, from, to, length, sign)
    turns = [mod(k * n, length) / length for k in 0:(to - 1), n in 0:(from - 1)]
    return T.(cospi.(2 .* turns)), T.(sign .* sinpi.(2 .* turns))
end

@non_differentiable fouriermatrices(::Any...)

"""
    fourier(x, d, length, inverse, onesided)

Discrete Fourier transform along dimension `d` of `x`, whose first dimension has the real and, if
there is one, the imaginary part. Complex signals are transformed by `fastfourier`; real ones, and
those that become real, by matrix products, in time length².
"""
function fourier(x, d, length, inverse, onesided)
    real = inverse && onesided
    spectrum = real ? halfspectrum(x, d, length) : x
    used = min(size(spectrum, d), length)
    to = onesided && !inverse ? length ÷ 2 + 1 : length
    order = (d, filter(!=(d), 1:ndims(x))...)
    front = permutedims(spectrum, order)[1:used, :, ntuple(_ -> Colon(), ndims(x) - 2)...]
    rest = size(front)[3:end]
    part(i) = reshape(front[:, i, ntuple(_ -> Colon(), ndims(x) - 2)...], used, :)
    if size(x, 1) == 2 && !onesided
        whole = map(i -> extended(part(i), length), (1, 2))
        re, im = fastfourier(whole..., inverse ? 1 : -1)
    else
        cosine, sine = fouriermatrices(eltype(x), used, to, length, inverse ? 1 : -1)
        re, im = cosine * part(1), sine * part(1)
        if size(x, 1) == 2
            re, im = re .- sine * part(2), im .+ cosine * part(2)
        end
    end
    parts = real ? reshape(re, to, 1, rest...) :
            cat(reshape(re, to, 1, rest...), reshape(im, to, 1, rest...); dims=2)
    y = permutedims(parts, invperm(order))
    return inverse ? y ./ eltype(x)(length) : y
end

extended(a, length) =
    size(a, 1) == length ? a : NNlib.pad_zeros(a, (0, length - size(a, 1), 0, 0))

"""
    fastfourier(re, im, sign)

`Σₙ xₙ exp(sign 2πi kn / length)` of each column, in the precision of its elements, in time
proportional to the length and to the sum of its prime factors. Decimation in frequency, the
smallest factor first.

Source: Gentleman and Sande 1966, *Fast Fourier transforms: for fun and profit*.
"""
function fastfourier(re, im, sign)
    length = size(re, 1)
    length <= 1 && return re, im
    radix = smallestfactor(length)
    part = length ÷ radix
    outre, outim = similar(re), similar(im)
    for k in 0:(radix - 1)
        a, b = zero(re[1:part, :]), zero(im[1:part, :])
        for n in 0:(radix - 1)
            cosine, sine = turn(eltype(re), k * n, radix, sign)
            x, y = re[(n * part + 1):((n + 1) * part), :], im[(n * part + 1):((n + 1) * part), :]
            a, b = a .+ (x .* cosine .- y .* sine), b .+ (x .* sine .+ y .* cosine)
        end
        turns = [turn(eltype(re), k * j, length, sign) for j in 0:(part - 1)]
        cosines = copyto!(similar(re, part), first.(turns))
        sines = copyto!(similar(re, part), last.(turns))
        inner = fastfourier(a .* cosines .- b .* sines, a .* sines .+ b .* cosines, sign)
        outre[(k + 1):radix:length, :] = inner[1]
        outim[(k + 1):radix:length, :] = inner[2]
    end
    return outre, outim
end

function ChainRulesCore.rrule(::typeof(fastfourier), re, im, sign)
    function fastfourier_pullback(dy)
        dre, dim = map((d, x) -> d isa AbstractZero ? zero(x) : d, unthunk.((dy[1], dy[2])),
                       (re, im))
        return (NoTangent(), fastfourier(dre, dim, -sign)..., NoTangent())
    end
    return fastfourier(re, im, sign), fastfourier_pullback
end

"The cosine and sine of `sign 2π n / length`."
turn(T, n, length, sign) = T(cospi(2mod(n, length) / length)), T(sign * sinpi(2mod(n, length) / length))

smallestfactor(n) = something(findfirst(p -> n % p == 0, 2:isqrt(n)), n - 1) + 1

# The entries beyond the middle of a real signal's spectrum are the conjugates of those before.
function halfspectrum(x, d, length)
    kept = min(size(x, d), length ÷ 2 + 1)
    whole(i, range) = ntuple(k -> k == i ? range : Colon(), ndims(x))
    half = x[whole(d, 1:kept)...]
    missed = length ÷ 2 + 1 - kept
    padded = missed == 0 ? half :
             NNlib.pad_zeros(half, ntuple(k -> k == 2d ? missed : 0, 2ndims(x)))
    conjugate = conjugatesign(x)
    mirrored = padded[whole(d, (length - length ÷ 2):-1:2)...] .* conjugate
    return cat(imaginaryfree(padded, d, length), mirrored; dims=d)
end

conjugatesign(x) = copyto!(similar(x, size(x, 1)), eltype(x)[1, -1][1:size(x, 1)])

# A real signal has real entries at zero, and at the middle of an even length.
function imaginaryfree(x, d, length)
    keep = fill!(similar(x, size(x, 1), ntuple(i -> i + 1 == d ? size(x, d) : 1, ndims(x) - 1)...),
                 1)
    if size(x, 1) == 2
        at(k) = ntuple(i -> i == 1 ? 2 : i == d ? k : 1, ndims(x))
        keep[at(1)...] = 0
        iseven(length) && (keep[at(size(x, d))...] = 0)
    end
    return x .* keep
end

function ChainRulesCore.rrule(::typeof(imaginaryfree), x, d, length)
    imaginaryfree_pullback(dy) = (NoTangent(), imaginaryfree(unthunk(dy), d, length),
                                  NoTangent(), NoTangent())
    return imaginaryfree(x, d, length), imaginaryfree_pullback
end

@non_differentiable conjugatesign(::Any...)

"""
    DFT(input, dft_length, axis; inverse, onesided)

Discrete Fourier transform; `axis` is an attribute before operator set 20.
"""
function DFT end

@operator function DFT(input, dft_length=nothing, axis_input=nothing; axis=nothing, inverse=0,
                       onesided=0, opset=20)
    chosen = axis_input !== nothing ? Int(only(axis_input)) :
             something(axis, opset < 20 ? 1 : -2)
    d = dimension(chosen, input)
    d == 1 && throw(ArgumentError("the last axis has the real and imaginary parts"))
    onesided != 0 && inverse == 0 && size(input, 1) == 2 &&
        unsupported("one-sided transform of a complex signal")
    default = inverse != 0 && onesided != 0 ? 2 * (size(input, d) - 1) : size(input, d)
    length = dft_length === nothing ? default : Int(only(dft_length))
    return narrowto(input, fourier(widefloat(input), d, length, inverse != 0, onesided != 0))
end

"""
    STFT(signal, frame_step, window, frame_length; onesided)

Fourier transforms of windows of the signal, one each `frame_step`.
"""
function STFT end

@operator function STFT(signal, frame_step, window=nothing, frame_length=nothing; onesided=1)
    length = frame_length !== nothing ? Int(only(frame_length)) :
             window !== nothing ? Base.length(window) : size(signal, 2)
    window === nothing || Base.length(window) == length ||
        throw(DimensionMismatch("window of $(Base.length(window)) in frames of $length"))
    onesided != 0 && size(signal, 1) == 2 &&
        unsupported("one-sided transform of a complex signal")
    x = widefloat(signal)
    frames = x[:, framepositions(size(signal, 2), length, Int(only(frame_step))), :]
    windowed = window === nothing ? frames : frames .* reshape(widefloat(window), 1, :)
    return narrowto(signal, fourier(windowed, 2, length, false, onesided != 0))
end

framepositions(total, length, step) =
    (1:length) .+ transpose((0:((total - length) ÷ step)) .* step)

@non_differentiable framepositions(::Any...)

const WINDOW_CODES = Dict(1 => Float32, 10 => Float16, 11 => Float64, 2 => UInt8, 3 => Int8,
                          4 => UInt16, 5 => Int16, 6 => Int32, 7 => Int64, 12 => UInt32,
                          13 => UInt64)

function incode(code, x)
    haskey(WINDOW_CODES, code) || unsupported("element type ", code)
    T = WINDOW_CODES[code]
    return T <: Integer ? unsafe_trunc.(T, x) : T.(x)
end

"""
    cosinewindow(size, periodic, code, coefficients...)

`a₀ + a₁ cos(2πn/N) + a₂ cos(4πn/N)`, where `N` is the size, or one less if not periodic.
"""
function cosinewindow(size, periodic, code, a0, a1, a2)
    n = Int(only(size))
    period = periodic != 0 ? n : n - 1
    return incode(code, [a0 + a1 * cospi(2k / period) + a2 * cospi(4k / period)
                         for k in 0:(n - 1)])
end

@nondifferentiable BlackmanWindow(size; output_datatype=1, periodic=1) =
    cosinewindow(size, periodic, output_datatype, 0.42, -0.5, 0.08)

@nondifferentiable HannWindow(size; output_datatype=1, periodic=1) =
    cosinewindow(size, periodic, output_datatype, 0.5, -0.5, 0.0)

@nondifferentiable HammingWindow(size; output_datatype=1, periodic=1) =
    cosinewindow(size, periodic, output_datatype, 25 / 46, -21 / 46, 0.0)

"""
    MelWeightMatrix(num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)

Triangular filters, evenly spaced in mel, over the bins of a one-sided spectrum.
"""
function MelWeightMatrix end

@nondifferentiable function MelWeightMatrix(num_mel_bins, dft_length, sample_rate,
                                            lower_edge_hertz, upper_edge_hertz;
                                            output_datatype=1)
    bins, length, rate = Int(only(num_mel_bins)), Int(only(dft_length)), only(sample_rate)
    mel(hertz) = 2595 * log10(1 + hertz / 700)
    low, high = mel(Float64(only(lower_edge_hertz))), mel(Float64(only(upper_edge_hertz)))
    edges = map(0:(bins + 1)) do k
        hertz = 700 * (exp10((low + k * (high - low) / (bins + 2)) / 2595) - 1)
        Int(fld((length + 1) * hertz, rate))
    end
    return incode(output_datatype, [triangle(j, edges[i], edges[i + 1], edges[i + 2])
                                    for i in 1:bins, j in 0:(length ÷ 2)])
end

function triangle(j, left, center, right)
    j == center && return 1.0
    left <= j < center && return (j - left) / (center - left)
    center < j < right && return (right - j) / (right - center)
    return 0.0
end
