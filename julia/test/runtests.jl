# Runs all files of tests, or those whose names have one of the arguments in them.

using OnnxJL
using OnnxJL.Operators
using Test
using Zygote

include("gradients.jl")

chosen(file) = isempty(ARGS) || any(part -> occursin(part, file), ARGS)

@testset "OnnxJL" begin
    operators = [joinpath("ops", file) for file in readdir(joinpath(@__DIR__, "ops"))]
    for file in [
        operators; "functor.jl"; "double.jl"; "pooling.jl"; "training.jl"; "control.jl"; "chain.jl"
    ]
        chosen(file) && endswith(file, ".jl") && @testset "$file" include(file)
    end
end
