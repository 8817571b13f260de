using .Operators: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearConv,
                  QLinearMatMul, UnsupportedOperator

scalar(x) = fill(x)

@testset "to integers" begin
    x = Float32[-1, 0.5, 1, 1.5, 1000]
    @test QuantizeLinear(x, scalar(1f0)) == UInt8[0, 0, 1, 2, 255]
    @test QuantizeLinear(x, scalar(1f0), scalar(Int8(-1))) == Int8[-2, -1, 0, 1, 127]
    @test eltype(QuantizeLinear(x, scalar(1f0); output_dtype=5)) === Int16
    @test QuantizeLinear(scalar(3f0), scalar(0.5f0)) == scalar(0x06)
    byrow = QuantizeLinear(Float32[2 2; 2 2], Float32[1, 2], Int8[0, 1]; axis=0)
    @test byrow == Int8[2 2; 2 2]
    @test QuantizeLinear(Float32[2 2; 2 2], Float32[1, 2]; axis=-1) == UInt8[2 2; 1 1]
    @test QuantizeLinear(ones(Float32, 5), Float32[1, 0.5]; axis=0, block_size=3) ==
          UInt8[1, 1, 1, 2, 2]
    @test QuantizeLinear(Float16[2, 4], scalar(Float16(2))) == UInt8[1, 2]
    @test_throws UnsupportedOperator QuantizeLinear(x, scalar(1f0); output_dtype=21)
end

@testset "back to floats" begin
    x = UInt8[0 128; 255 130]
    y = DequantizeLinear(x, scalar(0.5f0), scalar(0x80))
    @test y == Float32[-64 0; 63.5 1] && eltype(y) === Float32
    @test DequantizeLinear(x, Float32[1, 2], UInt8[0, 128]; axis=1) == Float32[0 128; 254 4]
    @test eltype(DequantizeLinear(x, scalar(Float16(0.5)))) === Float16
    @test DequantizeLinear(Int8[1, 2, 3], Float32[1, 10]; axis=0, block_size=2) == [1, 2, 30]
    checkgradient(s -> DequantizeLinear(x, s, scalar(0x80)), scalar(0.5))
    checkgradient(s -> DequantizeLinear(x, s; axis=0), [0.5, 2.0])
end

@testset "by the range of the data" begin
    y, scale, zero_point = DynamicQuantizeLinear(Float32[-1, 0, 1.55])
    @test scale[] ≈ 2.55f0 / 255 && zero_point == scalar(0x64) && y == UInt8[0, 100, 255]
    @test DynamicQuantizeLinear(zeros(Float32, 2))[1] == zeros(UInt8, 2)
end

@testset "products of integers" begin
    a, b = UInt8[1 2; 3 4], UInt8[1 0; 0 1]
    half = scalar(0.5f0)
    y = QLinearMatMul(a, half, scalar(0x01), b, scalar(2f0), scalar(0x00), half, scalar(0x0a))
    @test y == UInt8[10 12; 14 16]
    x = reshape(UInt8[1, 2, 3], 3, 1, 1)
    w = reshape(Int8[1, 2], 1, 1, 2)
    y = QLinearConv(x, half, scalar(0x01), w, Float32[1, 2], Int8[0, 0], half, scalar(0x05),
                    Int32[1, -1])
    @test reshape(y, 3, 2) == UInt8[6 3; 7 7; 8 11]
end
