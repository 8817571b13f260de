# Text.

@testset "StringNormalizer" begin
    days = ["monday", "Tuesday", "MONDAY"]
    normalize(x; options...) = Operators.StringNormalizer(x; options...)
    @test normalize(days) == days
    @test normalize(days; stopwords=["monday"]) == ["Tuesday"]
    @test normalize(days; stopwords=["monday"], is_case_sensitive=1) == ["Tuesday", "MONDAY"]
    @test normalize(days; case_change_action="UPPER") == ["MONDAY", "TUESDAY", "MONDAY"]
    @test normalize(reshape(days, :, 1); case_change_action="LOWER") ==
        reshape(["monday", "tuesday", "monday"], :, 1)
    @test normalize(days; stopwords=["monday", "tuesday"]) == [""]
    @test_throws ArgumentError normalize(fill("a", 1, 2))
    @test_throws Operators.UnsupportedOperator normalize(days; locale="tr_TR")
end

@testset "StringConcat" begin
    @test Operators.StringConcat(["a", "b"], ["c", "d"]) == ["ac", "bd"]
    @test Operators.StringConcat(["a" "b"], ["é", ""]) == ["aé" "bé"; "a" "b"]
    @test Operators.StringConcat(fill("a"), fill("b")) == fill("ab")
end

@testset "StringSplit" begin
    y, counts = Operators.StringSplit(["a,b", ",", "c"]; delimiter=",")
    @test y == ["a" "" "c"; "b" "" ""]
    @test counts == [2, 2, 1]
    y, counts = Operators.StringSplit(["  a  b c ", ""])
    @test y == ["a" ""; "b" ""; "c" ""]
    @test counts == [3, 0]
    @test first(Operators.StringSplit(["a b  c"]; maxsplit=1)) == ["a"; "b  c";;]
    @test first(Operators.StringSplit(["a.b.c"]; delimiter=".", maxsplit=1)) == ["a"; "b.c";;]
    @test size(first(Operators.StringSplit(String[]))) == (0, 0)
end

@testset "RegexFullMatch" begin
    @test Operators.RegexFullMatch(["ab", "abc", "b"]; pattern="a|ab") == [true, false, false]
    @test Operators.RegexFullMatch(["1", "٣", "1\n"]; pattern="\\d") == [true, false, false]
end

@testset "Equal" begin
    @test Operators.Equal(["a", "b"], ["a"]) == [true, false]
end

@testset "TfIdfVectorizer" begin
    options = (
        max_gram_length=2, min_gram_length=1, ngram_counts=[0, 2], ngram_indexes=[0, 1, 2, 3],
        pool_strings=["a", "b", "a", "b", "b", "a"],
    )
    x = ["a" "b"; "b" "b"; "a" "b"]  # ONNX's 2 × 3: a b a, and b b b
    count(; more...) = Operators.TfIdfVectorizer(x; options..., more...)
    @test count(; mode="TF", max_skip_count=0) == [2 0; 1 3; 1 0; 1 0]
    @test count(; mode="TF", max_skip_count=1) == [2 0; 1 3; 1 0; 1 0]
    @test count(; mode="IDF", max_skip_count=0) == [1 0; 1 1; 1 0; 1 0]
    @test count(; mode="TFIDF", max_skip_count=0, weights=[1, 2, 3, 4]) == [2 0; 2 6; 3 0; 4 0]
    far = Operators.TfIdfVectorizer(
        [1, 9, 2]; mode="TF", max_gram_length=2, min_gram_length=2, max_skip_count=1,
        ngram_counts=[0, 0], ngram_indexes=[0], pool_int64s=[1, 2],
    )
    @test far == [1]
end

@testset "Cast" begin
    @test Operators.Cast([1, -20]; to=8) == ["1", "-20"]
    @test Operators.Cast(["a"]; to=8) == ["a"]
    @test Operators.CastLike(fill(7), ["a"]) == fill("7")
    found = Operators.Cast(["1.5", "-2e3", "INF", "-inf", "nan"]; to=1)
    @test isequal(found, Float32[1.5, -2000, Inf, -Inf, NaN])
    @test Operators.CastLike(["12"], Int32[1]) == Int32[12]
    @test_throws Operators.UnsupportedOperator Operators.Cast([1.5]; to=8)
    @test_throws Operators.UnsupportedOperator Operators.Cast([true]; to=8)
    @test_throws Operators.UnsupportedOperator Operators.Cast(["1"]; to=9)
end
