# Which field of a layer is which ONNX tensor, and how its array lies in it.

"""
    Form

How a tensor lies in a layer's field: `Plain`, as it is (ONNX's dimensions reversed); `Transposed`,
a matrix with its dimensions exchanged; `Flipped`, a kernel turned over in its spatial dimensions,
as Flux convolves and ONNX correlates.
"""
@enum Form Plain Transposed Flipped

"""
    bind(form, x; own=false)

The array that a layer holds for the tensor `x`: one of its own, which is `x` itself where that may
be taken (`own`).
"""
function bind(form::Form, x::AbstractArray; own=false)
    form == Transposed && return permutedims(x)
    y = own ? x : copy(x)
    if form == Flipped  # In all spatial dimensions at once: their elements in reverse.
        foreach(reverse!, eachcol(reshape(y, prod(size(y)[1:(end - 2)]), :)))
    end
    return y
end

"""
    unbind(form, x)

The tensor that a layer holds as the array `x`.
"""
unbind(form::Form, x::AbstractArray) = form == Plain ? x : bind(form, x)

"""
    Field(path, position, form, suffix)

A place of a layer where a parameter is: the fields that lead to it, which input of which node it
is (both from 1), its form, and the ending of its name where it has none yet.
"""
struct Field
    path::Tuple{Vararg{Symbol}}
    node::Int
    position::Int
    form::Form
    suffix::String
end

Field(name::Symbol, position::Int, form::Form=Plain) =
    Field((name,), 1, position, form, string(name))

"""
    Binding(field, tensor)

A place of a layer, and the name of the ONNX tensor there.
"""
struct Binding
    field::Field
    tensor::String
end

follow(layer, path) = foldl(getfield, path; init=layer)
follow(gradient::Nothing, path) = nothing
follow(gradient::NamedTuple, path) = isempty(path) ? gradient :
    follow(get(gradient, first(path), nothing), Base.tail(path))
