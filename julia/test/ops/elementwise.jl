@testset "arithmetic" begin
    a, b = Int32[-7, 7, -7, 7], Int32[2, -2, -2, 2]
    @test Operators.Div(a, b) == Int32[-3, -3, 3, 3]
    @test Operators.Mod(a, b) == Int32[1, -1, -1, 1]
    @test Operators.Mod(a, b; fmod=1) == Int32[-1, 1, -1, 1]
    @test Operators.Mod([-7.5], [2.0]; fmod=1) == [-1.5]
    @test Operators.Mod([-7.5], [2.0]) == [0.5]
    @test Operators.Add(UInt8[250], UInt8[10]) == UInt8[4]
    @test Operators.Add([1.0 2; 3 4], [10.0, 20]) == [11 12; 23 24]
    @test Operators.Sub(fill(1.0f0), fill(3.0f0)) == fill(-2.0f0)
    @test Operators.Mul(fill(2.0f0), [1.0f0 2]) == [2.0f0 4]
    @test Operators.Sum([1.0], [2.0 3], fill(4.0)) == [7.0 8]
    @test Operators.Mean([1.0f0], [2.0f0 3], fill(6.0f0)) ≈ [3 10/3]
    @test Operators.Max([1.0, NaN, 3], fill(2.0)) ≈ [2, NaN, 3] nans = true
    @test Operators.Min(Int8[1, 2, 3], Int8[2]) == Int8[1, 2, 2]
    x = [1.0f0]
    @test Operators.Sum(x) == x && Operators.Max(x) == x
end

@testset "power" begin
    x = [-2.0f0, 0.5f0, 4.0f0]
    @test Operators.Pow(x, fill(2.0f0)) == x .^ 2
    @test Operators.Pow(x, [3.0, -1, 0.5]) == Float32[-8, 2, 2]
    @test isnan(only(Operators.Pow([-2.0], [0.5])))
    @test Operators.Pow(Int64[3, -1, 2], Int32[39, -3, -1]) == [3^39, -1, 0]
    @test Operators.Pow(Int32[9, 2], Float32[0.5, 0.5]) == Int32[3, 1]
    @test Operators.Pow(Float16[3], [2]) isa Vector{Float16}
end

@testset "not a number outside of $f" for f in (:Sqrt, :Log, :Asin, :Acos, :Acosh, :Atanh, :Pow)
    y = f == :Pow ? Operators.Pow([-2.0f0], [1.5f0]) : getfield(Operators, f)([-2.0f0])
    @test y isa Vector{Float32} && isnan(only(y))
end

@testset "scalars stay arrays in $f" for f in (
    :Abs, :Neg, :Reciprocal, :Sqrt, :Exp, :Log, :Sin, :Cos, :Tan, :Asin, :Acos, :Atan, :Sinh, :Cosh,
    :Asinh, :Atanh, :Erf, :Sign, :Ceil, :Floor, :Round, :Identity, :Clip, :Dropout
)
    x = fill(Float16(0.5))
    expected = getfield(Operators, f)(fill(0.5))
    @test getfield(Operators, f)(x) isa Array{Float16,0}
    @test only(getfield(Operators, f)(x)) ≈ only(expected) rtol = 2e-3
    @test only(getfield(Operators, f)(fill(0.5f0))) ≈ only(expected) rtol = 1e-6
end

@testset "error function" begin
    x = [0.1, 0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
    y = [
        0.1124629160182849, 0.5204998778130465, 0.796908212422832, 0.8427007929497149,
        0.9661051464753108, 0.9953222650189527, 0.9999779095030014, 0.9999999999984626, 1.0
    ]
    @test Operators.Erf(x) ≈ y rtol = 1e-15
    @test Operators.Erf(-x) == -Operators.Erf(x)
    @test maximum(abs, Operators.Erf(Float32.(x)) .- Operators.erf.(Float64.(Float32.(x)))) < 6e-8
    grid = Float32.(-6:0.001:6)
    found = Operators.Erf(grid)
    @test all(abs.(found .- Operators.erf.(Float64.(grid))) .<= eps.(found))
    @test Operators.Erf([Inf32, -Inf32, NaN32, 0.0f0]) ≈ [1, -1, NaN, 0] nans = true
    @test Operators.Erf([Inf, -Inf, NaN]) ≈ [1, -1, NaN] nans = true
end

@testset "logarithm" begin
    x = exp2.(Float32.(-148.5:0.37:127))
    @test Operators.Log(x) ≈ log.(x) rtol = 1e-7
    x = Float32.(0.5:0.0001:2)
    @test all(abs.(Operators.Log(x) .- log.(Float64.(x))) .<= eps.(log.(x)))
    @test Operators.Log([0.0f0, Inf32, NaN32, -1.0f0]) ≈ [-Inf, Inf, NaN, NaN] nans = true
end

@testset "rounding" begin
    x = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    @test Operators.Round(x) == [-2, -2, 0, 0, 2, 2]
    @test Operators.Ceil(x) == [-2, -1, 0, 1, 2, 3]
    @test Operators.Floor(x) == [-3, -2, -1, 0, 1, 2]
    @test Operators.Sign(Int8[-3, 0, 3]) == Int8[-1, 0, 1]
end

@testset "clip" begin
    x = [-3.0f0, 0.5f0, 3.0f0]
    @test Operators.Clip(x, fill(-1.0f0), fill(1.0f0)) == [-1, 0.5, 1]
    @test Operators.Clip(x, nothing, fill(1.0f0)) == [-3, 0.5, 1]
    @test Operators.Clip(x, fill(-1.0f0)) == [-1, 0.5, 3]
    @test Operators.Clip(x, fill(2.0f0), fill(1.0f0)) == [1, 1, 1]
    @test Operators.Clip(x; min=-1.0f0, max=2.0f0, opset=6) == [-1, 0.5, 2]
    @test Operators.Clip(x; max=2.0f0, opset=6) == [-3, 0.5, 2]
    @test Operators.Clip(Int8[-3, 3], nothing, fill(Int8(1))) == Int8[-3, 1]
    @test Operators.Clip(Float16[-3, 3]; min=0.0f0, max=6.0f0, opset=10) isa Vector{Float16}
    @test isnan(only(Operators.Clip([NaN], fill(0.0), fill(1.0))))
end

@testset "choices" begin
    @test Operators.Where([true, false], [1 2], fill(9)) == [1 2; 9 9]
    @test Operators.Where(fill(true), fill(1.0), fill(2.0)) == fill(1.0)
    x = [1.0f0, 2.0f0]
    @test Operators.Dropout(x; ratio=0.3f0) == x
    @test Operators.Dropout(x, fill(0.3f0), fill(false); outputs=2) == (x, [true, true])
    @test Operators.Dropout(x; outputs=2, opset=7)[2] isa Vector{Float32}
    @test Operators.Dropout(x, fill(0.0f0), fill(true)) == x
    @test_throws UnsupportedOperator Operators.Dropout(x, fill(0.3f0), fill(true))
end

@testset "casts" begin
    @test Operators.Cast([-1.7, 1.7]; to=6) == Int32[-1, 1]
    @test Operators.Cast([-1.7, 0.0, NaN]; to=9) == [true, false, true]
    @test Operators.Cast([300, -1]; to=2) == UInt8[44, 255]
    @test Operators.Cast([true, false]; to=1) isa Vector{Float32}
    @test Operators.Cast(fill(1.5); to=10) == fill(Float16(1.5))
    @test Operators.CastLike([1.5f0], [1]) == [1]
    @test_throws UnsupportedOperator Operators.Cast([1.0]; to=16)
end

@testset "comparisons" begin
    a, b = [1 2 3], [2, 3]
    @test Operators.Less(a, b) == [true false false; true true false]
    for f in (:Equal, :Greater, :GreaterOrEqual, :Less, :LessOrEqual)
        @test getfield(Operators, f)(a, b) isa Matrix{Bool}
        @test getfield(Operators, f)(fill(1), fill(2)) isa Array{Bool,0}
    end
    t, f = fill(true), fill(false)
    @test Operators.And(t, [true, false]) == [true, false]
    @test Operators.Or(f, [true, false]) == [true, false]
    @test Operators.Xor(t, [true, false]) == [false, true]
    @test Operators.Not(t) == f
    @test Operators.IsNaN([NaN, Inf, 1]) == [true, false, false]
    x = [-Inf, Inf, NaN, 1]
    @test Operators.IsInf(x) == [true, true, false, false]
    @test Operators.IsInf(x; detect_negative=0) == [false, true, false, false]
    @test Operators.IsInf(x; detect_positive=0) == [true, false, false, false]
end

@testset "bits" begin
    @test Operators.BitwiseAnd(UInt8[12], UInt8[10]) == UInt8[8]
    @test Operators.BitwiseOr(UInt8[12], UInt8[10]) == UInt8[14]
    @test Operators.BitwiseXor(UInt8[12], UInt8[10]) == UInt8[6]
    @test Operators.BitwiseNot(Int8[5]) == Int8[-6]
    @test Operators.BitShift(UInt8[200], UInt8[1]; direction="LEFT") == UInt8[144]
    @test Operators.BitShift(UInt8[200, 1], UInt8[3, 9]; direction="RIGHT") == UInt8[25, 0]
end

@testset "gradient of $f" for (f, xs) in (
    :Abs => [-1.3, 0.4], :Neg => [1.0], :Reciprocal => [-0.7, 2.0], :Sqrt => [0.3, 2.0],
    :Exp => [-1.0, 1.0], :Log => [0.3, 2.0], :Sin => [1.0, 4.0], :Cos => [1.0, 4.0],
    :Tan => [-0.5, 1.0], :Asin => [-0.5, 0.7], :Acos => [-0.5, 0.7], :Atan => [-2.0, 0.7],
    :Sinh => [-1.0, 2.0], :Cosh => [-1.0, 2.0], :Asinh => [-1.0, 2.0], :Acosh => [1.4, 3.0],
    :Atanh => [-0.5, 0.7], :Erf => [-1.3, 0.2, 3.0]
)
    checkgradient(getfield(Operators, f), xs)
    checkgradient(getfield(Operators, f), fill(xs[end]))
end

@testset "broadcast gradient of $f" for f in (:Add, :Sub, :Mul, :Div, :Pow, :Max, :Min, :Mod)
    operator = getfield(Operators, f)
    x, y = reshape(1.13:0.5:6.63, 3, 2, 2), [2.3, 1.7, 0.9]
    checkgradient(operator, collect(x), y)
    checkgradient(operator, y, collect(x))
    checkgradient(operator, collect(x), reshape([1.3, 2.7], 1, 2))
    checkgradient(operator, reshape([1.3, 2.7], 1, 1, 2), collect(x))
    checkgradient(operator, collect(x), fill(1.3))
    checkgradient(operator, fill(2.7), fill(1.3))
    checkgradient(operator, fill(2.8), y)
end

@testset "other gradients" begin
    x = reshape(sin.(1.0:6), 3, 2)
    checkgradient((x, y) -> Operators.Mod(x, y; fmod=1), 5x, [0.7, 0.8, 0.9])
    checkgradient((x, y, z) -> Operators.Sum(x, y, z), x, fill(1.0), [1.0, 2, 3])
    checkgradient((x, y, z) -> Operators.Mean(x, y, z), x, fill(1.0), [1.0, 2, 3])
    checkgradient(x -> Operators.Pow(x, fill(2.0)), x)
    checkgradient(x -> Operators.Pow(x, fill(3)), x)
    checkgradient((x, l, u) -> Operators.Clip(x, l, u), x, fill(-0.5), fill(0.4))
    checkgradient((x, l, u) -> Operators.Clip(x, l, u), x, fill(0.5), fill(0.4))
    checkgradient(x -> Operators.Clip(x; min=-0.5f0, max=0.4f0, opset=6), x)
    checkgradient((x, y) -> Operators.Where([true, false, true], x, y), x, reshape([1.0, 2], 1, 2))
    checkgradient(x -> Operators.Cast(Operators.Cast(x; to=11); to=11), x)
    @test Zygote.gradient(x -> sum(Operators.Cast(x; to=11)), Float32[1, 2])[1] isa Vector{Float32}
    @test Zygote.gradient(x -> sum(Operators.Pow(x, fill(2.0f0))), [0.0f0])[1] == [0]
    @test Zygote.gradient(x -> sum(Operators.Max(x, [1.0])), [1.0])[1] == [0.5]
end

@testset "BitCast" begin
    @test Operators.BitCast(Float32[1, -2]; to=6) == reinterpret(Int32, Float32[1, -2])
    @test Operators.BitCast(fill(1.0f0); to=6) == fill(reinterpret(Int32, 1.0f0))
end
