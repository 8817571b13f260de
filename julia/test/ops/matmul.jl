"""The einsum of `xs`, whose letters are in ONNX's order, one product at a time."""
function einsumbyloops(equation, xs...)
    sides = split(replace(equation, " " => ""), "->")
    terms = split(sides[1], ",")
    widths = [ndims(x) - count(isletter, term) for (term, x) in zip(terms, xs)]
    ellipsis(width) = String('Z' .- (width - 1:-1:0))
    terms = [replace(term, "..." => ellipsis(width)) for (term, width) in zip(terms, widths)]
    letters = unique(join(terms))
    once = sort(filter(letter -> count(==(letter), join(terms)) == 1, letters))
    output = length(sides) == 1 ? once : replace(sides[2], "..." => ellipsis(maximum(widths)))
    extent(letter) = maximum(
        size(x)[end + 1 - k] for (term, x) in zip(terms, xs) for k in findall(==(letter), term)
    )
    y = zeros([extent(letter) for letter in reverse(collect(output))]...)
    for index in CartesianIndices(Tuple(extent.(letters)))
        at(letter) = index[findfirst(==(letter), letters)]
        place(term, x) = min.(map(at, reverse(collect(term))), size(x))
        y[map(at, reverse(collect(output)))...] +=
            prod(x[place(term, x)...] for (term, x) in zip(terms, xs))
    end
    return y
end

@testset "MatMul of $(reverse(a)) and $(reverse(b))" for (a, b, extent) in (
    ((3,), (3,), ()),
    ((3, 2), (3,), (2,)),
    ((3,), (4, 3), (4,)),
    ((3, 2), (4, 3), (4, 2)),
    ((3, 2, 5), (4, 3), (4, 2, 5)),
    ((3, 2), (4, 3, 5), (4, 2, 5)),
    ((3, 2, 5), (4, 3, 5), (4, 2, 5)),
    ((3, 2, 5, 2), (4, 3, 5, 2), (4, 2, 5, 2)),
    ((3, 2, 5, 2), (4, 3, 5), (4, 2, 5, 2)),
    ((3, 2, 1, 2), (4, 3, 5, 1), (4, 2, 5, 2)),
    ((3, 2, 1, 2), (4, 3, 5), (4, 2, 5, 2)),
    ((3,), (4, 3, 5), (4, 5)),
    ((3, 2, 5), (3,), (2, 5)),
)
    x, y = numbers(a...), cos.(numbers(b...))
    z = Operators.MatMul(x, y)
    @test z isa Array{Float64} && size(z) == extent
    left, rows = ndims(x) == 1 ? ("j", "") : ("...ij", "i")
    right, columns = ndims(y) == 1 ? ("j", "") : ("...jk", "k")
    @test z ≈ einsumbyloops("$left,$right->...$rows$columns", x, y)
    checkgradient(Operators.MatMul, x, y)
end

@testset "MatMul of other types" begin
    @test Operators.MatMul(Int32[1 2; 3 4], Int32[1 0; 1 1]) == Int32[1 2; 4 6]
    @test Operators.MatMul(ones(Float16, 3, 2), ones(Float16, 4, 3)) == fill(Float16(3), 4, 2)
    @test Operators.MatMul(ones(Float16, 3), ones(Float16, 3)) isa Array{Float16,0}
    @test Operators.MatMul(ones(0, 2), ones(4, 0)) == zeros(4, 2)
    @test size(Operators.MatMul(ones(3, 2, 0), ones(4, 3))) == (4, 2, 0)
    @test_throws DimensionMismatch Operators.MatMul(ones(3, 2, 2), ones(4, 3, 3))
    loss(a, b) = sum(Operators.MatMul(a, b))
    gradients = Zygote.gradient(loss, ones(Float16, 3, 2), ones(Float16, 4, 3))
    @test_throws UnsupportedOperator Operators.Gemm([1;;], [1;;]; alpha=0.5f0)
    @test gradients == (fill(Float16(4), 3, 2), fill(Float16(2), 4, 3))
end

@testset "Gemm" begin
    a, b, c = numbers(3, 2), cos.(numbers(4, 3)), numbers(4)
    turned(x) = collect(transpose(x))
    @test Operators.Gemm(a, b) ≈ b * a
    @test Operators.Gemm(a, b, c; alpha=0.5f0, beta=2.0f0) ≈ 0.5 .* (b * a) .+ 2c
    @test Operators.Gemm(turned(a), turned(b), c; transA=1, transB=1) ≈ b * a .+ c
    @test Operators.Gemm(Int32[1 2], Int32[3; 4;;], fill(Int32(1))) == Int32[4 7; 5 9]
    @test Operators.Gemm(Float16[1 2], Float16[3; 4;;], Float16[1, 2]) isa Matrix{Float16}
    for transA in 0:1, transB in 0:1, extent in ((4, 2), (4,), (1, 2), ())
        x, y = transA == 0 ? a : turned(a), transB == 0 ? b : turned(b)
        f(x, y, c) = Operators.Gemm(x, y, c; alpha=0.5f0, beta=2.0f0, transA, transB)
        checkgradient(f, x, y, numbers(extent...))
        checkgradient((x, y) -> Operators.Gemm(x, y; transA, transB), x, y)
    end
end

@testset "quantized and fused" begin
    a, b = UInt8[11 7; 3 10], UInt8[1 4; 2 5]
    @test Operators.MatMulInteger(a, b) == Int32.(b) * Int32.(a)
    @test Operators.MatMulInteger(a, b, fill(0x0c)) == Int32.(b) * (Int32.(a) .- Int32(12))
    @test Operators.MatMulInteger(a, b, [0x0c, 0x01], [0x00, 0x02]) ==
        (Int32.(b) .- Int32[0, 2]) * (Int32.(a) .- Int32[12 1])
    x, y = numbers(2, 3, 2), numbers(4, 3, 2)
    z = Operators.FusedMatMul(x, y; alpha=0.5f0, transA=1)
    @test z[:, :, 2] ≈ 0.5 .* y[:, :, 2] * transpose(x[:, :, 2])
    checkgradient((x, y) -> Operators.FusedMatMul(x, y; transA=1), x, y)
    @test_throws UnsupportedOperator Operators.FusedMatMul(x, y; transBatchA=1)
end

@testset "Det" begin
    x = cat([1.0 2; 3 4], [1.0 2; 2 4]; dims=3)
    @test Operators.Det(x) ≈ [-2, 0] atol = 1e-12
    @test Operators.Det([2.0f0;;]) == fill(2.0f0)
    checkgradient(Operators.Det, x)
    checkgradient(Operators.Det, numbers(3, 3))
end

@testset "Einsum $equation" for (equation, extents...) in (
    ("ij,jk->ik", (3, 2), (4, 3)),
    ("ij,jk", (3, 2), (4, 3)),
    ("ij,kj->ki", (3, 2), (3, 4)),
    ("ji,jk->ik", (2, 3), (4, 3)),
    ("ij->ji", (3, 2)),
    ("ij->", (3, 2)),
    ("ij->j", (3, 2)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iij->ji", (2, 3, 3)),
    ("i,j->ij", (3,), (2,)),
    ("ij,ij->ij", (3, 2), (3, 2)),
    ("ij,ij->", (3, 2), (3, 2)),
    ("ij,j->i", (3, 2), (1,)),
    ("bhqd,bhkd->bhqk", (3, 2, 2, 2), (3, 4, 2, 2)),
    ("bhqk,bhkd->bqhd", (4, 2, 2, 2), (3, 4, 2, 2)),
    ("bqhd,bkhd->bhqk", (3, 2, 2, 2), (3, 2, 4, 2)),
    ("...ij,...jk->...ik", (3, 2, 2), (4, 3)),
    ("...ij,...jk->...ik", (3, 2, 1, 2), (4, 3, 5, 1)),
    ("i...->...", (2, 3)),
    ("ij,jk,kl->il", (3, 2), (4, 3), (2, 4)),
    ("ab,b,ac->abc", (3, 2), (3,), (2, 2)),
    ("ij,k->i", (3, 2), (4,)),
    ("ii,ij->j", (3, 3), (2, 3)),
    ("bij,ij->b", (3, 2, 2), (3, 2)),
    (" i j , j k -> k i ", (3, 2), (4, 3)),
)
    xs = map(extent -> numbers(extent...), extents)
    f(xs...) = Operators.Einsum(xs...; equation)
    y = f(xs...)
    @test y isa Array{Float64}
    @test y ≈ einsumbyloops(equation, xs...)
    @test f(map(x -> Float16.(x), xs)...) ≈ y rtol = 0.01
    checkgradient(f, xs...)
end

@testset "wrong equations" begin
    @test_throws ArgumentError Operators.Einsum(ones(2, 2); equation="ij,jk->ik")
    @test_throws ArgumentError Operators.Einsum(ones(2, 2); equation="ijk->i")
    @test_throws ArgumentError Operators.Einsum(ones(2, 2); equation="ij->k")
    @test_throws DimensionMismatch Operators.Einsum(ones(3, 2), ones(2, 2); equation="ij,jk->ik")
end
