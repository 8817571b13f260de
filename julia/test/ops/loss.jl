using .Operators: NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss

@testset "likelihood" begin
    x = [-1.0 -4; -2 -5; -3 -6]
    target = [0, 2]
    @test NegativeLogLikelihoodLoss(x, target; reduction="none") == [1, 6]
    @test NegativeLogLikelihoodLoss(x, target; reduction="sum") == fill(7.0)
    @test NegativeLogLikelihoodLoss(x, target) == fill(3.5)
    @test NegativeLogLikelihoodLoss(x, target, [1.0, 0, 3]) == fill(19 / 4)
    @test NegativeLogLikelihoodLoss(x, target; ignore_index=2) == fill(1.0)
    @test NegativeLogLikelihoodLoss(x, [0, -1], [2.0, 0, 3]; ignore_index=-1) == fill(1.0)
    @test_throws ArgumentError NegativeLogLikelihoodLoss(x, [0, 3])
    pixels = reshape(collect(1.0:12), 2, 3, 2)
    @test NegativeLogLikelihoodLoss(pixels, [0 1; 2 0]; reduction="none") == -[1 9; 6 8]
end

@testset "cross entropy" begin
    x = zeros(Float32, 4, 2)
    loss, logits = SoftmaxCrossEntropyLoss(x, [0, 3]; outputs=2)
    @test loss ≈ fill(log(4f0)) && logits ≈ fill(-log(4f0), 4, 2)
    @test eltype(SoftmaxCrossEntropyLoss(Float16.(x), [0, 3])) === Float16
end

@testset "gradients" begin
    x = reshape(sin.(1:24), 2, 4, 3)
    target = [0 3 2; 1 1 0]
    twice(x) = vcat(vec(x), vec(x))
    for reduction in ("none", "sum", "mean")
        crossentropy(x, w) = SoftmaxCrossEntropyLoss(x, target, w; reduction, ignore_index=1)
        checkgradient(twice ∘ crossentropy, x, [1.0, 2, 3, 4])
    end
    checkgradient(twice ∘ (x -> NegativeLogLikelihoodLoss(x, target)), x)
end
