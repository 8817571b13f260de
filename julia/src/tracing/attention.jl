# Flux's MultiHeadAttention: features × time × batch, heads side by side in the features.

using Flux: MultiHeadAttention

trace(layer::MultiHeadAttention, x::Traced; settings...) = trace(layer, x, x, x; settings...)
trace(layer::MultiHeadAttention, q::Traced, kv::Traced; settings...) =
    trace(layer, q, kv, kv; settings...)

function trace(
    layer::MultiHeadAttention, q::Traced, k::Traced, v::Traced, bias=nothing; mask=nothing
)
    foreach(x -> checkrank(layer, x, 3), (q, k, v))
    heads = layer.nheads
    query = splitheads(inside("q_proj", layer.q_proj, q), heads, [0, 2, 1, 3], "query")
    key = splitheads(inside("k_proj", layer.k_proj, k), heads, [0, 2, 3, 1], "key")
    value = splitheads(inside("v_proj", layer.v_proj, v), heads, [0, 2, 1, 3], "value")
    dims = (k.size[2], q.size[2], heads, q.size[3])
    scaled = node("Div", (query, sqrt(first(query.size))), query.size; name="scale")
    scores = node("MatMul", (scaled, key), dims; name="scores")
    bias === nothing || (scores = scores .+ bias)
    mask === nothing || (scores = node("Where", (mask, scores, -Inf), dims; name="mask"))
    α = node("Softmax", (scores,), dims, :axis => -1; name="softmax")
    features = size(value, 1)
    mixed = node("MatMul", (α, value), (features, q.size[2], heads, q.size[3]); name="mix")
    back = node(
        "Transpose", (mixed,), mixed.size[[1, 3, 2, 4]], :perm => [0, 2, 1, 3]; name="heads"
    )
    shape = tensor(q.writer, "shape", Int64[0, 0, features * heads])
    joined = node("Reshape", (back, shape), (features * heads, q.size[2:3]...); name="join")
    return inside("out_proj", layer.out_proj, joined), α
end

"Features as heads × features, in an order of ONNX's axes batch, time, head, feature."
function splitheads(x::Traced, heads, perm, name)
    features = size(x, 1) ÷ heads
    shape = tensor(x.writer, "shape", Int64[0, 0, heads, features])
    dims = (features, heads, x.size[2:3]...)
    apart = node("Reshape", (x, shape), dims; name=string(name, ".split"))
    return node("Transpose", (apart,), reverse(reverse(dims)[perm .+ 1]), :perm => perm; name)
end

(layer::MultiHeadAttention)(q::Traced; settings...) = layer(q, q, q; settings...)
(layer::MultiHeadAttention)(q::Traced, kv::Traced; settings...) = layer(q, kv, kv; settings...)
function (layer::MultiHeadAttention)(q::Traced, k::Traced, v::Traced, bias=nothing; mask=nothing)
    return enter(q.writer, fieldof(q.writer, layer), layer) do
        trace(layer, q, k, v, bias; mask)
    end
end
