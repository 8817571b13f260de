"""
    Operators

ONNX's operators as Julia functions, one file a family in `ops/`.

A function is named as its operator, takes its inputs in ONNX's order (`nothing` for an absent one)
and its attributes as keywords with ONNX's defaults. Arrays have ONNX's dimensions reversed, so that
the bytes are the same; a scalar is an array without dimensions. What an operator gives is an array,
or a tuple of arrays where it has several outputs. A keyword `outputs` is the number of outputs that
the node names, a keyword `opset` the version of the operator set.
"""
module Operators

using ChainRulesCore
using NNlib
using Statistics
import Flux

export UnsupportedOperator, dimension

"""
    UnsupportedOperator(reason)

An operator, an attribute or a form of one that isn't here. Whoever runs a node adds its name.
"""
struct UnsupportedOperator <: Exception
    reason::String
end

Base.showerror(io::IO, e::UnsupportedOperator) = print(io, "unsupported operator: ", e.reason)

unsupported(reason...) = throw(UnsupportedOperator(string(reason...)))

"""
    OPERATORS

`(domain, operator)` → the function that runs it.
"""
const OPERATORS = Dict{Tuple{String,String},Function}()

"""
    NAMES

What the operator is called that a function runs.
"""
const NAMES = IdDict{Function,String}()

"""
    NONDIFFERENTIABLE

Functions whose outputs are constants to a gradient: shapes, comparisons, integers.
"""
const NONDIFFERENTIABLE = Set{Function}()

"""
    @operator function Name(inputs...; attributes...) … end
    @operator "domain" function Name(inputs...; attributes...) … end
    @operator "domain" "Name" function other(inputs...; attributes...) … end

Define a function and make it known as the ONNX operator of its name, or of another.
"""
macro operator(arguments...)
    domain = length(arguments) > 1 ? first(arguments) : ""
    name = length(arguments) > 2 ? arguments[2] : called(last(arguments))
    return register(domain, last(arguments), name)
end

"""
    @nondifferentiable function Name(inputs...; attributes...) … end

As [`@operator`](@ref), for an operator that no gradient goes through.
"""
macro nondifferentiable(arguments...)
    domain = length(arguments) == 2 ? first(arguments) : ""
    name = called(last(arguments))
    return quote
        $(register(domain, last(arguments)))
        push!(NONDIFFERENTIABLE, $(esc(name)))
        $(esc(name))
    end
end

function register(domain, definition, name=called(definition))
    return quote
        Base.@__doc__ $(esc(definition))
        haskey(OPERATORS, ($domain, $(string(name)))) &&
            error("operator ", $(string(name)), " is defined twice")
        OPERATORS[($domain, $(string(name)))] = $(esc(called(definition)))
        NAMES[$(esc(called(definition)))] = $(string(name))
    end
end

function called(definition)
    signature = definition.args[1]
    while signature.head in (:where, :(::))
        signature = signature.args[1]
    end
    return signature.args[1]
end

"""
    dimension(axis, n) -> Int
    dimension(axis, x) -> Int

Julia's dimension (from 1) of ONNX's `axis` (from 0, or from the end where negative) in an array of
`n` dimensions.
"""
dimension(axis::Integer, n::Integer) = axis < 0 ? Int(-axis) : Int(n - axis)
dimension(axis::Integer, x::AbstractArray) = dimension(axis, ndims(x))

"""
    array(x)

`x` as an array: a number becomes one without dimensions, as broadcasting and reductions turn such
arrays into numbers.
"""
array(x::AbstractArray) = x
array(x::Number) = fill(x)

"""
    inthreads(f, range)

`f` of each of `range`, shared out among Julia's threads. Where there is one, it happens here: a
thread of Python's would wait for Julia's, which is Python's main thread and may be elsewhere.
"""
function inthreads(f, range)
    Threads.nthreads() == 1 && return foreach(f, range)
    Threads.@threads for i in range
        f(i)
    end
end

for file in readdir(joinpath(@__DIR__, "ops"); join=true)
    endswith(file, ".jl") && include(file)
end

end
