using .Operators: MaxPool, AveragePool, LpPool, GlobalAveragePool, GlobalMaxPool, GlobalLpPool,
                  MaxUnpool, UnsupportedOperator

row(x...) = reshape([x...], length(x), 1, 1)

@testset "largest of a window" begin
    x = row(1.0, -2, 3, -4, -5)
    @test vec(MaxPool(x; kernel_shape=[2])) == [1, 3, 3, -4]
    @test vec(MaxPool(x; kernel_shape=[2], strides=[2])) == [1, 3]
    @test vec(MaxPool(x; kernel_shape=[2], strides=[2], ceil_mode=1)) == [1, 3, -5]
    @test vec(MaxPool(x; kernel_shape=[2], dilations=[3])) == [1, -2]
    @test vec(MaxPool(-x; kernel_shape=[2], pads=[1, 0])) == [-1, 2, 2, 4, 5]
    @test vec(MaxPool(x; kernel_shape=[2], auto_pad="SAME_UPPER")) == [1, 3, 3, -4, -5]
    @test vec(MaxPool(x; kernel_shape=[2], auto_pad="SAME_LOWER")) == [1, 1, 3, 3, -4]
    @test vec(MaxPool(row(-Inf, -Inf, 1); kernel_shape=[2])) == [-Inf, 1]
    @test isequal(vec(MaxPool(row(NaN, 2, 1); kernel_shape=[2])), [NaN, 2])
    @test_throws UnsupportedOperator MaxPool(row(1.0:9...); kernel_shape=[1], strides=[3],
                                             auto_pad="SAME_UPPER")
    @test vec(MaxPool(row(1.0:4...); kernel_shape=[1], strides=[2], auto_pad="SAME_UPPER")) ==
          [1, 3]
    @test MaxPool(row(0x01, 0x03, 0x02); kernel_shape=[2]) == row(0x03, 0x03)
end

@testset "indices" begin
    x = reshape(collect(1.0:12), 3, 2, 2, 1)
    y, indices = MaxPool(x; kernel_shape=[2, 2], outputs=2)
    @test vec(indices) == [4, 5, 10, 11] && eltype(indices) === Int64
    @test vec(x)[vec(indices) .+ 1] == vec(y)
    _, indices = MaxPool(x; kernel_shape=[2, 2], storage_order=1, outputs=2)
    @test vec(indices) == [3, 5, 9, 11]
end

@testset "averages" begin
    x = row(2.0, 4, 6, 8, 10)
    @test vec(AveragePool(x; kernel_shape=[2])) == [3, 5, 7, 9]
    @test vec(AveragePool(x; kernel_shape=[2], pads=[1, 0])) == [2, 3, 5, 7, 9]
    @test vec(AveragePool(x; kernel_shape=[2], pads=[1, 0], count_include_pad=1)) ==
          [1, 3, 5, 7, 9]
    @test vec(AveragePool(x; kernel_shape=[2], strides=[2], ceil_mode=1, count_include_pad=1)) ==
          [3, 7, 10]
    @test vec(AveragePool(x; kernel_shape=[2], dilations=[3])) == [5, 7]
    @test eltype(AveragePool(Float16.(x); kernel_shape=[2])) === Float16
end

@testset "norms, and the whole picture" begin
    x = row(3.0, -4, 0)
    @test vec(LpPool(x; kernel_shape=[2])) == [5, 4]
    @test vec(LpPool(x; kernel_shape=[2], p=1)) == [7, 4]
    @test GlobalLpPool(x) == row(5.0)
    @test GlobalMaxPool(x) == row(3.0)
    @test GlobalAveragePool(x) ≈ row(-1 / 3)
end

@testset "unpooling" begin
    x = row(5.0, 7.0)
    indices = row(1, 2)
    @test vec(MaxUnpool(x, indices; kernel_shape=[2], strides=[2])) == [0, 5, 7, 0]
    @test vec(MaxUnpool(x, indices, [1, 1, 5]; kernel_shape=[2], strides=[2])) ==
          [0, 5, 7, 0, 0]
end

@testset "gradients" begin
    x = reshape(sin.(1:120), 6, 5, 2, 2)
    window = (; kernel_shape=[2, 3], strides=[1, 2], pads=[1, 0, 0, 1], ceil_mode=1)
    checkgradient(x -> MaxPool(x; window..., dilations=[1, 2]), x)
    checkgradient(x -> AveragePool(x; window...), x)
    checkgradient(x -> AveragePool(x; window..., count_include_pad=1), x)
    checkgradient(x -> LpPool(x; window..., p=3), x)
    checkgradient(GlobalAveragePool, x)
    checkgradient(GlobalMaxPool, x)
    checkgradient(GlobalLpPool, x)
    checkgradient(x -> MaxUnpool(x, row(1, 1, 4); kernel_shape=[2], strides=[2]),
                  row(1.0, 2, 3))
    zeros_only = Zygote.gradient(x -> sum(LpPool(x; kernel_shape=[2])), zeros(4, 1, 1))[1]
    @test zeros_only == zeros(4, 1, 1)
    # The first of equal values has the gradient, and close ones aren't equal.
    ties = Zygote.gradient(x -> sum(MaxPool(x; kernel_shape=[2])), row(1.0, 1.00001, 1.00001))[1]
    @test vec(ties) == [0, 2, 0]
end
