# ONNX's operators for features of classical machine learning.

@nondifferentiable "ai.onnx.ml" function LabelEncoder(
    X;
    keys_floats=nothing, keys_int64s=nothing, keys_strings=nothing, keys_tensor=nothing,
    values_floats=nothing, values_int64s=nothing, values_strings=nothing, values_tensor=nothing,
    default_float=-0.0f0, default_int64=-1, default_string="_Unused", default_tensor=nothing,
)
    from = something(keys_floats, keys_int64s, keys_strings, keys_tensor)
    to = something(values_floats, values_int64s, values_strings, values_tensor)
    unknown = if to === values_tensor && default_tensor !== nothing
        only(default_tensor)
    elseif eltype(to) <: Integer
        eltype(to)(default_int64)
    else
        eltype(to) <: AbstractString ? default_string : eltype(to)(default_float)
    end
    classes = Dict(zip(map(samekey, from), to))
    return eltype(to)[get(classes, samekey(x), unknown) for x in X]
end

"A key for a dictionary, in which the two zeros are one, as are all that aren't numbers."
samekey(x) = x
samekey(x::AbstractFloat) = isnan(x) ? oftype(x, NaN) : x + zero(x)

@operator "ai.onnx.ml" function ArrayFeatureExtractor(X, Y)
    z = X[vec(Y) .+ 1, ntuple(_ -> Colon(), ndims(X) - 1)...]
    return ndims(X) == 1 ? reshape(z, :, 1) : z
end

@nondifferentiable "ai.onnx.ml" Binarizer(X; threshold=0.0f0) =
    map(x -> oftype(x, x > threshold), X)
