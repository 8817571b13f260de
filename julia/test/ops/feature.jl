# Features of classical machine learning.

@testset "LabelEncoder" begin
    encode(x; options...) = Operators.LabelEncoder(x; options...)
    named = (keys_strings=["a", "b"], values_int64s=[5, 6])
    @test encode(["a" "c"; "b" "a"]; named..., default_int64=0) == [5 0; 6 5]
    @test encode(["c"]; named...) == [-1]
    @test encode([2, 3]; keys_int64s=[2], values_strings=["two"]) == ["two", "_Unused"]
    found = encode(Float32[NaN, -0.0, 1]; keys_floats=Float32[NaN, 0], values_floats=Float32[7, 8])
    @test found == Float32[7, 8, 0] && eltype(found) == Float32
    @test encode(["a"]; keys_tensor=["a", "a"], values_tensor=Int16[1, 2]) == Int16[2]
end

@testset "ArrayFeatureExtractor" begin
    x = numbers(3, 2)
    @test Operators.ArrayFeatureExtractor(x, [2, 0]) == x[[3, 1], :]
    @test Operators.ArrayFeatureExtractor(["a", "b"], [1]) == fill("b", 1, 1)
    checkgradient(x -> Operators.ArrayFeatureExtractor(x, [2, 0, 2]), x)
end

@testset "Binarizer" begin
    found = Operators.Binarizer(Float32[1, 2, 3]; threshold=2.0f0)
    @test found == [0, 0, 1] && eltype(found) == Float32
end
