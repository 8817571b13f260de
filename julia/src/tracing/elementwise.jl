# Broadcasts of values that are traced: functions that ONNX has an operator for, and formulas.

# Where a function is in `FORMULAS` too, that holds.
"A function of one number -> ONNX's operator, and its attributes."
const UNARY = Dict{Any,Pair{String,Vector{Pair{Symbol,Any}}}}(
    (f => operator => collect(Pair{Symbol,Any}, attributes)
     for (operator, forms) in ACTIVATIONS for (attributes, f) in forms)...,
    NNlib.sigmoid_fast => "Sigmoid" => [],
    NNlib.tanh_fast => "Tanh" => [],
    NNlib.selu => "Selu" => [],
    NNlib.celu => "Celu" => [],
    NNlib.trelu => "ThresholdedRelu" => [],
    NNlib.softshrink => "Shrink" => [:lambd => 0.5f0, :bias => 0.5f0],
    abs => "Abs" => [], ceil => "Ceil" => [], cos => "Cos" => [], cosh => "Cosh" => [],
    exp => "Exp" => [], floor => "Floor" => [], inv => "Reciprocal" => [], log => "Log" => [],
    (-) => "Neg" => [], round => "Round" => [], sign => "Sign" => [], sin => "Sin" => [],
    sinh => "Sinh" => [], sqrt => "Sqrt" => [], tan => "Tan" => [], atan => "Atan" => [],
)

"A function of a number and a setting -> ONNX's operator, and the attribute."
const PARAMETRIC = Dict{Any,Pair{String,Symbol}}(
    NNlib.leakyrelu => "LeakyRelu" => :alpha,
    NNlib.elu => "Elu" => :alpha,
    NNlib.celu => "Celu" => :alpha,
    NNlib.trelu => "ThresholdedRelu" => :alpha,
)

"A function of two numbers -> ONNX's operator."
const BINARY = Dict{Any,String}(
    (+) => "Add", (-) => "Sub", (*) => "Mul", (/) => "Div", max => "Max", min => "Min",
    (^) => "Pow",
)

const GELU_SCALE = sqrt(2 / π)
cubic(x) = GELU_SCALE .* (x .+ 0.044715 .* (x .* x .* x))

"A function of one number -> what it is of an array, in functions that are known."
const FORMULAS = Dict{Any,Any}(
    NNlib.swish => x -> x .* NNlib.sigmoid.(x),
    NNlib.gelu_sigmoid => x -> x .* NNlib.sigmoid.(2 .* cubic(x)),
    # Operators that came late.
    NNlib.gelu_tanh => x -> atleast!(x.writer, 20) ?
        node("Gelu", (x,), x.size, :approximate => "tanh") :
        x .* (0.5 .* (1 .+ tanh.(cubic(x)))),
    NNlib.gelu_erf => x -> atleast!(x.writer, 20) ?
        node("Gelu", (x,), x.size, :approximate => "none") :
        x .* (0.5 .* (1 .+ node("Erf", (x ./ sqrt(2),), x.size))),
    NNlib.mish => x -> atleast!(x.writer, 18) ? node("Mish", (x,), x.size) :
        x .* tanh.(NNlib.softplus.(x)),
    NNlib.hardswish => x -> atleast!(x.writer, 14) ? node("HardSwish", (x,), x.size) :
        x .* NNlib.hardsigmoid.(x),
    NNlib.logsigmoid => x -> .-(NNlib.softplus.(.-x)),
    NNlib.tanhshrink => x -> x .- tanh.(x),
    NNlib.lisht => x -> x .* tanh.(x),
    NNlib.relu6 => x -> node("Clip", (x, 0, 6), x.size),
    NNlib.hardtanh => x -> node("Clip", (x, -1, 1), x.size),
    abs2 => x -> x .* x,
    identity => identity,
)

"What a function of one number does to a value, or nothing where that isn't known."
function elementwiserule(f)
    haskey(FORMULAS, f) && return FORMULAS[f]
    if haskey(UNARY, f)
        operator, attributes = UNARY[f]
        return x -> node(operator, (x,), x.size, attributes...)
    end
    f isa Base.Fix2 && haskey(PARAMETRIC, f.f) && f.x isa Number &&
        return x -> elementwise(f.f, x, f.x)
    return nothing
end

"""
    elementwise(f, xs...) -> Traced

Write down `f.(xs...)`.
"""
function elementwise(f, x::Traced)
    rule = elementwiserule(f)
    rule === nothing && throw(UnsupportedOperator(string(
        here(x.writer, owner(x.writer)), ": ONNX has no operator for ", functionname(f),
        "; use a function of NNlib's"
    )))
    return rule(x)
end

function elementwise(f, xs...)
    if haskey(PARAMETRIC, f) && first(xs) isa Traced && last(xs) isa Number
        operator, attribute = PARAMETRIC[f]
        return node(operator, (first(xs),), first(xs).size, attribute => Float32(last(xs)))
    end
    x = first(x for x in xs if x isa Traced)
    operator = get(BINARY, f, nothing)
    operator === nothing && throw(UnsupportedOperator(string(
        here(x.writer, owner(x.writer)), ": ONNX has no operator for ", functionname(f),
        " of several numbers"
    )))
    return foldl(xs) do a, b
        node(operator, (a, b), broadcastsize(sizeof_operand(a), sizeof_operand(b)))
    end
end

# x .^ 2
function elementwise(::typeof(Base.literal_pow), _, x::Traced, power)
    p = typeof(power[]).parameters[1]
    return p == 2 ? elementwise(*, x, x) : elementwise(^, x, p)
end

elementwise(f::typeof(clamp), x::Traced, low, high) = node("Clip", (x, low, high), x.size)

sizeof_operand(x::Traced) = x.size
sizeof_operand(x::Base.RefValue) = ()
sizeof_operand(x) = size(x)

broadcastsize(a, b) = a === nothing || b === nothing ? nothing :
    ntuple(max(length(a), length(b))) do d
        m, n = get(a, d, 1), get(b, d, 1)
        m == 1 ? n : n == 1 || n === nothing ? m : n
    end

struct TracedStyle <: Base.BroadcastStyle end
Base.BroadcastStyle(::Type{Traced}) = TracedStyle()
Base.BroadcastStyle(style::TracedStyle, ::Base.BroadcastStyle) = style
Base.broadcastable(x::Traced) = x
Base.Broadcast.broadcasted(::TracedStyle, f, xs...) = elementwise(f, xs...)

# Arrays know these without a dot.
Base.:+(x::Traced, y::Traced) = x .+ y
Base.:-(x::Traced, y::Traced) = x .- y
Base.:-(x::Traced) = .-x
Base.:*(a::Number, x::Traced) = a .* x
Base.:*(x::Traced, a::Number) = x .* a
Base.:/(x::Traced, a::Number) = x ./ a
