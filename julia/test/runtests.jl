using OnnxJL
using OnnxJL.Operators
using Test
using Zygote

include("gradients.jl")

@testset "OnnxJL" begin
    for file in readdir(joinpath(@__DIR__, "ops"); join=true)
        endswith(file, ".jl") && @testset "$(basename(file))" include(file)
    end
    @testset "double.jl" include("double.jl")
    @testset "pooling.jl" include("pooling.jl")
    @testset "training.jl" include("training.jl")
    @testset "control.jl" include("control.jl")
end
