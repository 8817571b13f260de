# Activation functions that a layer may hold, and the ONNX nodes that say the same.

"Operator and attributes -> function."
const ACTIVATIONS = Dict{String,Vector{Tuple{Dict{Symbol,Any},Function}}}(
    "Relu" => [(Dict(), NNlib.relu)],
    "Sigmoid" => [(Dict(), NNlib.sigmoid)],
    "Tanh" => [(Dict(), tanh)],
    "HardSwish" => [(Dict(), NNlib.hardswish)],
    "HardSigmoid" => [(Dict(:alpha => 1.0f0 / 6, :beta => 0.5f0), NNlib.hardsigmoid)],
    "LeakyRelu" => [(Dict(:alpha => 0.01f0), NNlib.leakyrelu)],
    "Elu" => [(Dict(:alpha => 1.0f0), NNlib.elu)],
    "Softplus" => [(Dict(), NNlib.softplus)],
    "Softsign" => [(Dict(), NNlib.softsign)],
    "Mish" => [(Dict(), NNlib.mish)],
    "Gelu" => [
        (Dict(:approximate => "none"), NNlib.gelu_erf),
        (Dict(:approximate => "tanh"), NNlib.gelu_tanh),
    ],
)

const ATTRIBUTE_DEFAULTS = Dict{Tuple{String,Symbol},Any}(
    ("HardSigmoid", :alpha) => 0.2f0,
    ("HardSigmoid", :beta) => 0.5f0,
    ("LeakyRelu", :alpha) => 0.01f0,
    ("Elu", :alpha) => 1.0f0,
    ("Gelu", :approximate) => "none",
)

"""
    activationfunction(node, source)

The function of one number that a node applies to each, where a layer can hold it; else nothing.
"""
function activationfunction(node::Node, source::Source)
    isempty(node.domain) || return nothing
    node.operator == "Clip" && return isrelu6(node, source) ? NNlib.relu6 : nothing
    for (wanted, f) in get(ACTIVATIONS, node.operator, ())
        same = all(wanted) do (name, value)
            default = ATTRIBUTE_DEFAULTS[(node.operator, name)]
            agrees(attribute(node, name, default), value)
        end
        same && return f
    end
    return nothing
end

agrees(a::Number, b::Number) = a ≈ b
agrees(a, b) = a == b

function isrelu6(node::Node, source::Source)
    bounds = map((2 => :min, 3 => :max)) do (i, name)
        x = constant(source, node, i)
        x === nothing ? attribute(node, name, nothing) : only(x)
    end
    return bounds == (0, 6)
end
