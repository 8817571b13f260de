"An array of fixed numbers, no two of them alike."
numbers(sizes...) = reshape(sin.(1.0:prod(sizes)), sizes)

"""
    checkgradient(f, xs...; rtol=1e-5, step=1e-6)

Test that Zygote's gradient of `sum(w .* f(xs...))`, for fixed random `w`, is that of central
differences, for each of the Float64 arrays `xs`.
"""
function checkgradient(f, xs::AbstractArray{Float64}...; rtol=1e-5, step=1e-6)
    y = f(xs...)
    w = reshape(0.3 .+ 1.4 .* (1:length(y)) ./ length(y), size(y))
    loss(xs...) = sum(w .* f(xs...))
    gradients = Zygote.gradient(loss, xs...)
    for (i, x) in enumerate(xs)
        expected = similar(x)
        for k in eachindex(x)
            moved(h) = loss(ntuple(j -> j == i ? shifted(x, k, h) : xs[j], length(xs))...)
            expected[k] = (moved(step) - moved(-step)) / 2step
        end
        found = something(gradients[i], zero(x))
        @test isapprox(found, expected; rtol, atol=1e-6)
    end
end

function shifted(x, k, h)
    y = copy(x)
    y[k] += h
    return y
end
