# Runs all files of tests, or those whose names have one of the arguments in them, each in a module
# of its own: Flux's layers and ONNX's operators share names.

using OnnxJL
using Test

chosen(file) = isempty(ARGS) || any(part -> occursin(part, file), ARGS)

"Run a file of tests, with the package and `checkgradient` at hand."
function run(file)
    space = Module(Symbol(file))
    Core.eval(space, :(using OnnxJL, OnnxJL.Operators, Test, Zygote))
    Base.include(space, joinpath(@__DIR__, "gradients.jl"))
    Base.include(space, joinpath(@__DIR__, file))
end

@testset "OnnxJL" begin
    operators = [joinpath("ops", file) for file in readdir(joinpath(@__DIR__, "ops"))]
    for file in [
        operators; "functor.jl"; "plan.jl"; "double.jl"; "pooling.jl"; "training.jl"; "masks.jl";
        "regularization.jl"; "control.jl";
        "chain.jl"
    ]
        chosen(file) && endswith(file, ".jl") && @testset "$file" run(file)
    end
end
