using Statistics: mean, std

@testset "RandomNormal" begin
    x = Operators.RandomNormal(; shape=[300, 200], mean=3.0f0, scale=0.5f0)
    @test x isa Matrix{Float32}
    @test size(x) == (200, 300)
    @test mean(x) ≈ 3 atol = 0.02
    @test std(x) ≈ 0.5 atol = 0.02
    @test x != Operators.RandomNormal(; shape=[300, 200], mean=3.0f0, scale=0.5f0)
    @test eltype(Operators.RandomNormal(; shape=[2], dtype=11)) == Float64
    @test eltype(Operators.RandomNormal(; shape=[2], dtype=10)) == Float16
    @test_throws UnsupportedOperator Operators.RandomNormal(; shape=[2], dtype=16)
end

@testset "RandomUniform" begin
    x = Operators.RandomUniform(; shape=[300, 200], low=-1.0f0, high=3.0f0)
    @test x isa Matrix{Float32}
    @test size(x) == (200, 300)
    @test all(-1 .<= x .< 3)
    @test mean(x) ≈ 1 atol = 0.05
    @test size(Operators.RandomUniform(; shape=Int[])) == ()
end

@testset "Like another" begin
    x = zeros(Float64, 200, 300)
    for operator in (Operators.RandomNormalLike, Operators.RandomUniformLike)
        @test size(operator(x)) == size(x)
        @test eltype(operator(x)) == Float64
        @test eltype(operator(x; dtype=1)) == Float32
        @test eltype(operator(zeros(Int64, 2); dtype=1)) == Float32
    end
    @test std(Operators.RandomNormalLike(x; scale=2.0f0)) ≈ 2 atol = 0.05
    @test mean(Operators.RandomUniformLike(x; high=4.0f0)) ≈ 2 atol = 0.05
end

@testset "Bernoulli" begin
    p = repeat(Float32[0, 0.25, 1], 1, 20_000)
    drawn = Operators.Bernoulli(p)
    @test eltype(drawn) == Float32
    @test vec(mean(drawn; dims=2)) ≈ [0, 0.25, 1] atol = 0.02
    @test eltype(Operators.Bernoulli(p; dtype=9)) == Bool
    @test eltype(Operators.Bernoulli(p; dtype=7)) == Int64
end

@testset "Multinomial" begin
    p = [0.1 0.5; 0.2 0.5; 0.7 0.0]
    drawn = Operators.Multinomial(log.(p); sample_size=20_000)
    @test drawn isa Matrix{Int32}
    @test size(drawn) == (20_000, 2)
    for (column, wanted) in zip(eachcol(drawn), eachcol(p))
        @test [mean(column .== class) for class in 0:2] ≈ wanted atol = 0.02
    end
    @test eltype(Operators.Multinomial(log.(p); dtype=7)) == Int64
end

@testset "A seed gives the same numbers again" begin
    x, p = zeros(3, 4), fill(0.5, 3, 4)
    for draw in (
        seed -> Operators.RandomNormal(; shape=[9], seed),
        seed -> Operators.RandomUniform(; shape=[9], seed),
        seed -> Operators.RandomNormalLike(x; seed),
        seed -> Operators.RandomUniformLike(x; seed),
        seed -> Operators.Bernoulli(fill(0.5, 100); seed),
        seed -> Operators.Multinomial(log.(p); sample_size=100, seed),
    )
        @test draw(1.5f0) == draw(1.5f0)
        @test draw(1.5f0) != draw(2.5f0)
        @test draw(nothing) != draw(nothing)
    end
end
