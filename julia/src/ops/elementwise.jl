# Operators on single elements; ONNX's broadcasting is Julia's, the dimensions reversed.

"""
    elementwise(f, x, parameters...)

`f.(x, parameters...)` as an array; the parameters are numbers. `derivative(f, x, y, parameters...)`
is the derivative of `y = f(x, parameters...)`, where `x` is what [`differentiated`](@ref) keeps.
"""
elementwise(f::F, x, parameters::Vararg{Any,N}) where {F,N} =
    reshape(broadcast(f, vec(x), parameters...), size(x))

function ChainRulesCore.rrule(
    ::typeof(elementwise), f::F, x, parameters::Vararg{Any,N}
) where {F,N}
    y = elementwise(f, x, parameters...)
    kept = differentiated(f, x, y)
    constants = map(_ -> NoTangent(), parameters)
    function elementwise_pullback(dy)
        dx = elementwisegradient(f, unthunk(dy), kept, y, parameters...)
        return (NoTangent(), NoTangent(), dx, constants...)
    end
    return y, elementwise_pullback
end

elementwisegradient(f, dy, x::AbstractArray{<:Integer}, y, parameters...) = NoTangent()

function elementwisegradient(f::F, dy, x, y, parameters::Vararg{Any,N}) where {F,N}
    @inline slope(d, value, result) = d * derivative(f, value, result, parameters...)
    return reshape(broadcast(slope, vec(dy), vec(x), vec(y)), size(y))
end

"""
    differentiated(f, x, y)

What `derivative` is given as `x`: `y` again where the derivative is a function of `y` alone, so
that `x` can be freed.
"""
differentiated(f, x, y) = x

"""
    combine(f, x, y)

`f.(x, y)` as an array. `leftslope(f, d, x, y)` and `rightslope(f, d, x, y)` are the gradients of one
`x` and one `y`, where `d` is that of `f(x, y)`.
"""
function combine(f::F, x, y) where {F}
    isflat(x, y) || return broadcast(f, x, y)
    extent = size(length(x) == 1 && ndims(x) <= ndims(y) ? y : x)
    return reshape(array(broadcast(f, flattened(x), flattened(y))), extent)
end

"""
    isflat(x, y)

Whether `x` and `y` are of one size, or one of them is a single number: then they are combined as
vectors, which is compiled once for all numbers of dimensions, and to faster code.
"""
isflat(x, y) = size(x) == size(y) ||
    (length(x) == 1 && ndims(x) <= ndims(y)) ||
    (length(y) == 1 && ndims(y) <= ndims(x))

flattened(x) = vec(x)
flattened(x::Number) = x
flattened(x::Array{<:Any,0}) = only(x)

function ChainRulesCore.rrule(::typeof(combine), f::F, x, y) where {F}
    z = combine(f, x, y)
    @inline left(d, x, y) = leftslope(f, d, x, y)
    @inline right(d, x, y) = rightslope(f, d, x, y)
    function combine_pullback(dz)
        d = unthunk(dz)
        dx = isconstant(x) ? NoTangent() : combinegradient(left, size(x), d, x, y)
        dy = isconstant(y) ? NoTangent() : combinegradient(right, size(y), d, x, y)
        return (NoTangent(), NoTangent(), dx, dy)
    end
    return z, combine_pullback
end

function combinegradient(slope::F, extent, d, x, y) where {F}
    isflat(x, y) || return unbroadcast(extent, broadcast(slope, d, x, y))
    slopes = broadcast(slope, vec(d), flattened(x), flattened(y))
    prod(extent) == length(d) && return reshape(slopes, extent)
    return reshape(sum(slopes; dims=1), extent)
end

function ChainRulesCore.rrule(::typeof(combine), f::Union{typeof(+),typeof(-)}, x, y)
    z = combine(f, x, y)
    left, right = isconstant(x) ? nothing : size(x), isconstant(y) ? nothing : size(y)
    function sum_pullback(dz)
        d = unthunk(dz)
        dx = left === nothing ? NoTangent() : unbroadcast(left, d)
        dy = right === nothing ? NoTangent() : withsign(f, unbroadcast(right, d))
        return (NoTangent(), NoTangent(), dx, dy)
    end
    return z, sum_pullback
end

withsign(::typeof(+), d) = d
withsign(::typeof(-), d) = array(.-d)

isconstant(x) = eltype(x) <: Integer

"""
    unbroadcast(extent, d)

`d`, summed over the dimensions along which an array of size `extent` was broadcast.
"""
function unbroadcast(extent::Tuple, d)
    size(d) == extent && return array(d)
    dims = filter(k -> k > length(extent) || extent[k] == 1, 1:ndims(d))
    return reshape(sum(d; dims), extent)
end

# Arithmetic

@operator Add(A, B) = combine(+, A, B)

@operator Sub(A, B) = combine(-, A, B)

@operator Mul(A, B) = combine(*, A, B)

leftslope(::typeof(*), d, x, y) = d * y
rightslope(::typeof(*), d, x, y) = d * x

@operator Div(A, B) = combine(quotient, A, B)

"""
    quotient(x, y)

`x / y`, and for integers the quotient rounded towards zero.
"""
quotient(x, y) = x / y
quotient(x::Integer, y::Integer) = div(x, y)

leftslope(::typeof(quotient), d, x, y) = d / y
rightslope(::typeof(quotient), d, x, y) = -d * (x / y) / y

@operator Mod(A, B; fmod=0) = fmod == 0 ? combine(mod, A, B) : combine(rem, A, B)

leftslope(::Union{typeof(mod),typeof(rem)}, d, x, y) = d
rightslope(::typeof(mod), d, x, y) = -d * floor(x / y)
rightslope(::typeof(rem), d, x, y) = -d * trunc(x / y)

@operator Pow(X, Y) = combine(power, X, Y)

"""
    power(x, y)

`x` to the power `y` in the type of `x`; NaN where a negative `x` has a fractional `y`.
"""
function power(x::T, y) where {T}
    y == 2 && return x * x
    y == 3 && return x * x * x
    base, exponent = promote(x, y)
    base < 0 && !isinteger(exponent) && return T(isinf(exponent) ? (-base)^exponent : NaN)
    return T(base^exponent)
end

function power(x::T, y::Integer) where {T<:Integer}
    y >= 0 && return x^y
    return abs(x) == 1 ? (iseven(y) ? one(x) : x) : zero(x)
end

power(x::T, y::AbstractFloat) where {T<:Integer} = cast(T, power(Float64(x), Float64(y)))

@inline function leftslope(::typeof(power), d, x, y)
    y == 2 && return 2 * d * x
    return iszero(y) ? zero(d) : d * oftype(x, y * power(x, y - one(y)))
end

@inline function rightslope(::typeof(power), d, x, y)
    z = power(x, y)
    return ifelse(iszero(z), zero(z), d * z * logarithm(x))
end

@operator Sum(data_0, more...) = summation(data_0, more...)

summation(x) = x
summation(x, y, more...) = summation(combine(+, x, y), more...)

@operator Mean(data_0, more...) =
    elementwise(dividedby, summation(data_0, more...), oftypeof(data_0, length(more) + 1))

dividedby(x, count) = x / count
derivative(::typeof(dividedby), x, y, count) = inv(count)

"""
    oftypeof(x, number)

`number` in the element type of the array `x`.
"""
oftypeof(x, number) = convert(eltype(x), number)

@operator Max(data_0, more...) = extreme(max, data_0, more...)

@operator Min(data_0, more...) = extreme(min, data_0, more...)

extreme(f, x) = x
extreme(f, x, y, more...) = extreme(f, combine(f, x, y), more...)

leftslope(::typeof(max), d, x, y) = share(d, x > y, x == y)
rightslope(::typeof(max), d, x, y) = share(d, y > x, x == y)
leftslope(::typeof(min), d, x, y) = share(d, x < y, x == y)
rightslope(::typeof(min), d, x, y) = share(d, y < x, x == y)

"""
    share(d, chosen, equal)

The gradient `d` where one of two numbers is chosen, half of it where they are equal.
"""
share(d, chosen, equal) = ifelse(equal, d / 2, ifelse(chosen, d, zero(d)))

# Functions of one number

@operator Abs(X) = elementwise(abs, X)

derivative(::typeof(abs), x, y) = sign(x)

@operator Neg(X) = elementwise(-, X)

derivative(::typeof(-), x, y) = -one(x)

@operator Reciprocal(X) = elementwise(inv, X)

derivative(::typeof(inv), x, y) = -y * y

@operator Sqrt(X) = elementwise(squareroot, X)

squareroot(x) = ifelse(x < 0, oftype(x, NaN), sqrt(abs(x)))
derivative(::typeof(squareroot), x, y) = inv(2y)

@operator Exp(input) = elementwise(exp, input)

derivative(::typeof(exp), x, y) = y

@operator Log(input) = elementwise(logarithm, input)

"""
    logarithm(x)

The natural logarithm, NaN of negative numbers; without branches in single precision, so that the
compiler vectorizes it.

Source: the Cephes library's `logf` (Moshier, 1992).
"""
logarithm(x) = defined(log, x, !(x < 0))

@inline function logarithm(x::Float32)
    small = x < floatmin(Float32)
    bits = reinterpret(Int32, ifelse(small, x * 8.388608f6, x))
    power = (bits - reinterpret(Int32, 0.70710677f0)) >> 23
    exponent = Float32(power) - ifelse(small, 23.0f0, 0.0f0)
    m = reinterpret(Float32, bits - (power << 23)) - 1
    rest = m * m * (m * evalpoly(m, LOGARITHM) - 0.5f0) - exponent * 2.12194440f-4
    y = m + rest + exponent * 0.693359375f0
    return ifelse(x > 0, ifelse(isinf(x), x, y), ifelse(iszero(x), -Inf32, NaN32))
end

const LOGARITHM = (
    3.3333331174f-1,
    -2.4999993993f-1,
    2.0000714765f-1,
    -1.6668057665f-1,
    1.4249322787f-1,
    -1.2420140846f-1,
    1.1676998740f-1,
    -1.1514610310f-1,
    7.0376836292f-2,
)

derivative(::typeof(logarithm), x, y) = inv(x)

differentiated(::Union{typeof(exp),typeof(squareroot),typeof(inv)}, x, y) = y

"""
    defined(f, x, inside)

`f(x)`, or NaN where `x` is not `inside` the domain of `f`, where Julia throws an error.
"""
defined(f::F, x, inside) where {F} = inside ? f(x) : oftype(x, NaN)

@operator Sin(input) = elementwise(sine, input)

sine(x) = defined(sin, x, !isinf(x))
derivative(::typeof(sine), x, y) = cosine(x)

@operator Cos(input) = elementwise(cosine, input)

cosine(x) = defined(cos, x, !isinf(x))
derivative(::typeof(cosine), x, y) = -sine(x)

@operator Tan(input) = elementwise(tangent, input)

tangent(x) = defined(tan, x, !isinf(x))
derivative(::typeof(tangent), x, y) = 1 + y * y

@operator Asin(input) = elementwise(arcsine, input)

arcsine(x) = defined(asin, x, !(abs(x) > 1))
derivative(::typeof(arcsine), x, y) = inv(squareroot((1 - x) * (1 + x)))

@operator Acos(input) = elementwise(arccosine, input)

arccosine(x) = defined(acos, x, !(abs(x) > 1))
derivative(::typeof(arccosine), x, y) = -inv(squareroot((1 - x) * (1 + x)))

@operator Atan(input) = elementwise(atan, input)

derivative(::typeof(atan), x, y) = inv(1 + x * x)

@operator Sinh(input) = elementwise(sinh, input)

derivative(::typeof(sinh), x, y) = cosh(x)

@operator Cosh(input) = elementwise(cosh, input)

derivative(::typeof(cosh), x, y) = sinh(x)

@operator Asinh(input) = elementwise(asinh, input)

derivative(::typeof(asinh), x, y) = inv(sqrt(1 + x * x))

@operator Acosh(input) = elementwise(areacosine, input)

areacosine(x) = defined(acosh, x, !(x < 1))
derivative(::typeof(areacosine), x, y) = inv(squareroot(x - 1) * squareroot(x + 1))

@operator Atanh(input) = elementwise(areatangent, input)

areatangent(x) = defined(atanh, x, !(abs(x) > 1))
derivative(::typeof(areatangent), x, y) = inv((1 - x) * (1 + x))

@operator Erf(input) = elementwise(erf, input)

"""
    erf(x)

The error function 2/√π ∫₀ˣ exp(-t²) dt, exact to one unit in the last place.

Sources: fdlibm's `s_erf.c` (Sun Microsystems, 1993); in single precision Norbert Juffa's `my_erff`,
where both of its branches are computed, so that the compiler vectorizes it.
"""
function erf(x::Real)
    a = abs(x)
    a < 0.84375 && return x + x * evalpoly(x * x, ERF_SMALL[1]) / evalpoly(x * x, ERF_SMALL[2])
    isnan(x) && return x
    if a < 1.25
        s = a - 1
        y = 0.845062911510467529297 + evalpoly(s, ERF_MIDDLE[1]) / evalpoly(s, ERF_MIDDLE[2])
    elseif a < 6
        s = inv(a * a)
        over, under = a < 1 / 0.35 ? ERF_LARGE : ERF_TAIL
        y = 1 - exp(-a * a - 0.5625 + evalpoly(s, over) / evalpoly(s, under)) / a
    else
        y = one(x)
    end
    return copysign(y, x)
end

@inline function erf(x::Float32)
    a = min(abs(x), 4.0f0)
    small = muladd(evalpoly(a * a, ERF_SINGLE_SMALL), x, x)
    large = copysign(1 - exponential(-a * evalpoly(a, ERF_SINGLE_LARGE)), x)
    return ifelse(a > 0.921875f0, large, small)
end

erf(x::Float16) = Float16(erf(Float32(x)))

derivative(::typeof(erf), x, y) = oftype(x, 2 / sqrt(pi)) * exponential(-x * x)

const ERF_SMALL = (
    (
        1.28379167095512558561e-01,
        -3.25042107247001499370e-01,
        -2.84817495755985104766e-02,
        -5.77027029648944159157e-03,
        -2.37630166566501626084e-05,
    ),
    (
        1.0,
        3.97917223959155352819e-01,
        6.50222499887672944485e-02,
        5.08130628187576562776e-03,
        1.32494738004321644526e-04,
        -3.96022827877536812320e-06,
    ),
)
const ERF_MIDDLE = (
    (
        -2.36211856075265944077e-03,
        4.14856118683748331666e-01,
        -3.72207876035701323847e-01,
        3.18346619901161753674e-01,
        -1.10894694282396677476e-01,
        3.54783043256182359371e-02,
        -2.16637559486879084300e-03,
    ),
    (
        1.0,
        1.06420880400844228286e-01,
        5.40397917702171048937e-01,
        7.18286544141962662868e-02,
        1.26171219808761642112e-01,
        1.36370839120290507362e-02,
        1.19844998467991074170e-02,
    ),
)
const ERF_LARGE = (
    (
        -9.86494403484714822705e-03,
        -6.93858572707181764372e-01,
        -1.05586262253232909814e+01,
        -6.23753324503260060396e+01,
        -1.62396669462573470355e+02,
        -1.84605092906711035994e+02,
        -8.12874355063065934246e+01,
        -9.81432934416914548592e+00,
    ),
    (
        1.0,
        1.96512716674392571292e+01,
        1.37657754143519042600e+02,
        4.34565877475229228821e+02,
        6.45387271733267880336e+02,
        4.29008140027567833386e+02,
        1.08635005541779435134e+02,
        6.57024977031928170135e+00,
        -6.04244152148580987438e-02,
    ),
)
const ERF_TAIL = (
    (
        -9.86494292470009928597e-03,
        -7.99283237680523006574e-01,
        -1.77579549177547519889e+01,
        -1.60636384855821916062e+02,
        -6.37566443368389627722e+02,
        -1.02509513161107724954e+03,
        -4.83519191608651397019e+02,
    ),
    (
        1.0,
        3.03380607434824582924e+01,
        3.25792512996573918826e+02,
        1.53672958608443695994e+03,
        3.19985821950859553908e+03,
        2.55305040643316442583e+03,
        4.74528541206955367215e+02,
        -2.24409524465858183362e+01,
    ),
)

const ERF_SINGLE_SMALL = (
    1.28379166f-1,
    -3.76125336f-1,
    1.12819925f-1,
    -2.67681349f-2,
    4.99119423f-3,
    -5.96761703f-4,
)
const ERF_SINGLE_LARGE = (
    1.128717512f0,
    6.34846687f-1,
    1.06777877f-1,
    -2.42546219f-2,
    3.88396438f-3,
    -3.83197126f-4,
    1.72853470f-5,
)

"""
    exponential(x)

`exp(x)` of a number that isn't positive: without branches in single precision, where it is zero
instead of subnormal, so that the compiler vectorizes it.

Source: the Cephes library's `expf` (Moshier, 1989).
"""
exponential(x) = exp(x)

@inline function exponential(x::Float32)
    bounded = ifelse(x < -87.0f0, -87.0f0, x)
    exponent = round(bounded * 1.442695f0)
    rest = muladd(exponent, -0.693359375f0, bounded)
    rest = muladd(exponent, 2.12194440f-4, rest)
    mantissa = evalpoly(rest, EXPONENTIAL)
    scale = reinterpret(Float32, (unsafe_trunc(Int32, exponent) + Int32(127)) << 23)
    return ifelse(x < -87.0f0, 0.0f0, mantissa * scale)
end

const EXPONENTIAL = (
    1.0f0,
    1.0f0,
    5.0000001201f-1,
    1.6666665459f-1,
    4.1665795894f-2,
    8.3334519073f-3,
    1.3981999507f-3,
    1.9875691500f-4,
)

# Steps, through which no gradient goes

@nondifferentiable Sign(input) = array(sign.(input))

@nondifferentiable Ceil(X) = array(ceil.(X))

@nondifferentiable Floor(X) = array(floor.(X))

@nondifferentiable Round(X) = array(round.(X))

# Choices

@operator function Clip(input, lower=nothing, upper=nothing; min=nothing, max=nothing, opset=13)
    if opset < 11
        lower = oftypeof(input, something(min, -floatmax(Float32)))
        upper = oftypeof(input, something(max, floatmax(Float32)))
    else
        lower = clipbound(lower, typemin(eltype(input)))
        upper = clipbound(upper, typemax(eltype(input)))
    end
    return clipped(input, lower, upper)
end

clipbound(::Nothing, default) = default
clipbound(x::AbstractArray, default) = reshape(x, ())

clipped(x, lower, upper) =
    reshape(broadcast(clip, vec(x), flattened(lower), flattened(upper)), size(x))

function clip(x, lower, upper)
    raised = ifelse(x < lower, lower, x)
    return ifelse(raised > upper, upper, raised)
end

function ChainRulesCore.rrule(::typeof(clipped), x, lower, upper)
    function clipped_pullback(dy)
        isconstant(x) && return (NoTangent(), NoTangent(), NoTangent(), NoTangent())
        @inline inside(d, v, l, u) = ifelse((v < l) | (v > u), zero(d), d)
        @inline below(d, v, l, u) = ifelse((v < l) & (l <= u), d, zero(d))
        @inline above(d, v, l, u) = ifelse(ifelse(v < l, l, v) > u, d, zero(d))
        arguments = vec(unthunk(dy)), vec(x), flattened(lower), flattened(upper)
        dx = reshape(broadcast(inside, arguments...), size(x))
        dlower = clipboundgradient(lower, below, arguments...)
        dupper = clipboundgradient(upper, above, arguments...)
        return (NoTangent(), dx, dlower, dupper)
    end
    return clipped(x, lower, upper), clipped_pullback
end

clipboundgradient(::Number, f, arguments...) = NoTangent()
clipboundgradient(bound, f::F, arguments::Vararg{Any,N}) where {F,N} =
    reshape(sum(broadcast(f, arguments...); dims=1), size(bound))

@operator Where(condition, X, Y) = selection(condition, X, Y)

selection(condition, x, y) = array(broadcast(ifelse, condition, x, y))

function ChainRulesCore.rrule(::typeof(selection), condition, x, y)
    function selection_pullback(dz)
        isconstant(x) && return (NoTangent(), NoTangent(), NoTangent(), NoTangent())
        d = unthunk(dz)
        none = zero(eltype(d))
        dx = unbroadcast(size(x), ifelse.(condition, d, none))
        dy = unbroadcast(size(y), ifelse.(condition, none, d))
        return (NoTangent(), NoTangent(), dx, dy)
    end
    return selection(condition, x, y), selection_pullback
end

@operator Identity(input) = input

@operator function Dropout(
    data, rate=nothing, training=nothing; ratio=0.5f0, seed=nothing, outputs=1, opset=13
)
    dropping = training !== nothing && first(training) && (rate === nothing || first(rate) != 0)
    dropping && unsupported("dropout that drops, in training")
    outputs == 1 && return data
    return data, fill!(similar(data, opset < 10 ? eltype(data) : Bool), true)
end

# Types

"""
    ELEMENTTYPES

ONNX's number of an element type → Julia's type.
"""
const ELEMENTTYPES = Dict{Int,DataType}(
    1 => Float32,
    2 => UInt8,
    3 => Int8,
    4 => UInt16,
    5 => Int16,
    6 => Int32,
    7 => Int64,
    9 => Bool,
    10 => Float16,
    11 => Float64,
    12 => UInt32,
    13 => UInt64,
)

@operator function Cast(input; to, saturate=1, round_mode="up")
    to == TEXT && return texts(input)
    haskey(ELEMENTTYPES, to) || unsupported("a cast to ONNX's element type ", to)
    eltype(input) <: AbstractString && return parsed(ELEMENTTYPES[to], input)
    castable(eltype(input))
    return converted(ELEMENTTYPES[to], input)
end

@operator function CastLike(input, target_type; saturate=1, round_mode="up")
    eltype(target_type) <: AbstractString && return texts(input)
    eltype(input) <: AbstractString && return parsed(eltype(target_type), input)
    castable(eltype(input))
    castable(eltype(target_type))
    return converted(eltype(target_type), input)
end

@nondifferentiable function BitCast(input; to)
    haskey(ELEMENTTYPES, to) || unsupported("a cast to ONNX's element type ", to)
    return collect(reinterpret(ELEMENTTYPES[to], input))
end

castable(type) = type <: Real && type != Union{} || unsupported("a cast from or to ", type)

ChainRulesCore.@non_differentiable castable(::Any)

converted(::Type{T}, x::AbstractArray{T}) where {T} = x
converted(::Type{T}, x::AbstractArray) where {T} = map(value -> cast(T, value), x)

function ChainRulesCore.rrule(::typeof(converted), ::Type{T}, x::AbstractArray{S}) where {T,S}
    constant = T <: Integer || S <: Integer
    converted_pullback(dy) =
        (NoTangent(), NoTangent(), constant ? NoTangent() : converted(S, unthunk(dy)))
    return converted(T, x), converted_pullback
end

"""
    cast(T, x)

The number `x` in type `T`, as C casts it: truncated, wrapped around, true unless zero.
"""
cast(::Type{T}, x) where {T<:AbstractFloat} = T(x)
cast(::Type{T}, x::Integer) where {T<:Integer} = x % T
cast(::Type{T}, x::AbstractFloat) where {T<:Integer} = unsafe_trunc(Int64, x) % T
cast(::Type{UInt64}, x::AbstractFloat) =
    x < 0x1p63 ? unsafe_trunc(Int64, x) % UInt64 : unsafe_trunc(UInt64, x)
cast(::Type{Bool}, x::Integer) = !iszero(x)
cast(::Type{Bool}, x::AbstractFloat) = !iszero(x)

# Comparisons, logic and bits

"""
    compare(f, xs...)

`f.(xs...)` as a dense array of `Bool`.
"""
function compare(f::F, xs::Vararg{AbstractArray,N}) where {F,N}
    extent = map(length, Broadcast.combine_axes(xs...))
    return broadcast!(f, similar(first(xs), Bool, extent), xs...)
end

@nondifferentiable IsNaN(X) = compare(isnan, X)

@nondifferentiable IsInf(X; detect_negative=1, detect_positive=1) = compare(
    x -> isinf(x) & ((detect_negative != 0) & (x < 0) | (detect_positive != 0) & (x > 0)), X
)

@nondifferentiable Equal(A, B) = compare(==, A, B)

@nondifferentiable Greater(A, B) = compare(>, A, B)

@nondifferentiable GreaterOrEqual(A, B) = compare(>=, A, B)

@nondifferentiable Less(A, B) = compare(<, A, B)

@nondifferentiable LessOrEqual(A, B) = compare(<=, A, B)

@nondifferentiable And(A, B) = compare(&, A, B)

@nondifferentiable Or(A, B) = compare(|, A, B)

@nondifferentiable Xor(A, B) = compare(xor, A, B)

@nondifferentiable Not(X) = compare(!, X)

@nondifferentiable BitwiseAnd(A, B) = array(A .& B)

@nondifferentiable BitwiseOr(A, B) = array(A .| B)

@nondifferentiable BitwiseXor(A, B) = array(xor.(A, B))

@nondifferentiable BitwiseNot(X) = array(.~X)

@nondifferentiable function BitShift(X, Y; direction)
    direction in ("LEFT", "RIGHT") || unsupported("direction ", repr(direction))
    return array(direction == "LEFT" ? X .<< unsigned.(Y) : X .>> unsigned.(Y))
end
