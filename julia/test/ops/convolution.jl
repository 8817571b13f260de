using .Operators: Conv, ConvTranspose, ConvInteger, DeformConv, UnsupportedOperator

sequence(sizes...) = reshape(sin.(1:prod(sizes)), sizes)
picture(rows...) = reshape(Float64[x for row in rows for x in row], length(rows[1]), :, 1, 1)

@testset "a cross-correlation, not flipped" begin
    x = reshape([1.0, 2, 3, 4], 4, 1, 1)
    w = reshape([1.0, 10], 2, 1, 1)
    @test vec(Conv(x, w)) == [21, 32, 43]
    @test vec(Conv(x, w, [0.5])) == [21.5, 32.5, 43.5]
    @test vec(Conv(x, w; pads=[1, 0])) == [10, 21, 32, 43]
    @test vec(Conv(x, w; strides=[2])) == [21, 43]
    @test vec(Conv(x, w; dilations=[2])) == [31, 42]
    @test vec(Conv(x, w; auto_pad="SAME_UPPER")) == [21, 32, 43, 4]
    @test vec(Conv(x, w; auto_pad="SAME_LOWER")) == [10, 21, 32, 43]
    @test eltype(Conv(Float16.(x), Float16.(w))) === Float16
    @test size(Conv(zeros(4, 1, 0), w)) == (3, 1, 0)
end

@testset "attributes are in ONNX's order of dimensions" begin
    x, w = ones(5, 4, 1, 1), ones(1, 1, 1, 1)
    @test size(Conv(x, w; pads=[1, 0, 0, 0])) == (5, 5, 1, 1)
    @test size(Conv(x, w; strides=[1, 2])) == (3, 4, 1, 1)
end

@testset "groups keep channels apart" begin
    x = reshape([1.0, 2, 3, 4], 1, 4, 1)
    w = ones(1, 2, 2)
    @test vec(Conv(x, w; group=2)) == [3, 7]
end

@testset "transposed" begin
    x = reshape([1.0, 2], 2, 1, 1)
    w = reshape([1.0, 10, 100], 3, 1, 1)
    @test vec(ConvTranspose(x, w)) == [1, 12, 120, 200]
    @test vec(ConvTranspose(x, w; strides=[2])) == [1, 10, 102, 20, 200]
    @test vec(ConvTranspose(x, w; strides=[2], output_padding=[1])) == [1, 10, 102, 20, 200, 0]
    @test vec(ConvTranspose(x, w; pads=[1, 0])) == [12, 120, 200]
    @test vec(ConvTranspose(x, w; strides=[2], output_shape=[4])) == [10, 102, 20, 200]
    @test vec(ConvTranspose(x, w; strides=[2], auto_pad="SAME_UPPER")) == [1, 10, 102, 20]
    @test_throws UnsupportedOperator ConvTranspose(x, w; strides=[4], auto_pad="SAME_UPPER")
end

@testset "integers" begin
    x = reshape(UInt8[1, 2, 3], 3, 1, 1)
    w = reshape(Int8[1, -1], 2, 1, 1)
    y = ConvInteger(x, w, fill(0x01); pads=[1, 0])
    @test vec(y) == [0, -1, -1] && eltype(y) === Int32
end

@testset "deformed" begin
    x = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    w = ones(1, 1, 1, 1)
    offset = zeros(3, 3, 2, 1)
    @test DeformConv(x, w, offset) == x
    offset[:, :, 2, 1] .= 0.5
    @test DeformConv(x, w, offset)[:, 1, 1, 1] == [1.5, 2.5, 1.5]
    @test DeformConv(x, w, offset, nothing, fill(2.0, 3, 3, 1, 1))[:, 1, 1, 1] == [3, 5, 3]
end

@testset "gradients" begin
    x = sequence(5, 4, 4, 2)
    checkgradient((x, w, b) -> Conv(x, w, b; group=2, pads=[1, 0, 0, 2], strides=[2, 1],
                                    dilations=[1, 2]), x, sequence(2, 3, 2, 6), sequence(6))
    checkgradient((x, w, b) -> ConvTranspose(x, w, b; group=2, pads=[1, 0, 0, 1], strides=[2, 1],
                                             output_padding=[1, 0]),
                  x, sequence(2, 3, 3, 4), sequence(6))
    checkgradient((x, w) -> Conv(x, w; auto_pad="SAME_LOWER"), sequence(4, 2, 1),
                  sequence(2, 2, 3))
    checkgradient((x, w, o, b, m) -> DeformConv(x, w, o, b, m; group=2, offset_group=2),
                  x, sequence(2, 2, 2, 2), 0.7 .* sequence(4, 3, 16, 2), sequence(2),
                  sequence(4, 3, 8, 2))
end

@testset "CausalConvWithState" begin
    x, w = reshape([1.0, 2, 3], 3, 1, 1), reshape([10.0, 1], 2, 1, 1)
    y, state = Operators.CausalConvWithState(x, w)
    @test vec(y) == [1, 12, 23]
    @test vec(state) == [3]
    y, state = Operators.CausalConvWithState(x[1:1, :, :], w, [0.5], fill(7.0, 1, 1, 1))
    @test vec(y) == [71.5]
    @test vec(state) == [1]
    y, _ = Operators.CausalConvWithState(x, w; activation="silu")
    @test vec(y) ≈ [1, 12, 23] ./ (1 .+ exp.(-[1, 12, 23]))
    flat(results) = vcat(map(vec, results)...)
    checkgradient(
        (inputs...) -> flat(Operators.CausalConvWithState(inputs...; activation="swish")),
        numbers(4, 2, 2), numbers(3, 1, 2), numbers(2), numbers(2, 2, 2),
    )
end
