# Normalizations with constant scale and bias.

using Flux: BatchNorm, GroupNorm, InstanceNorm, LayerNorm

const EPSILON = 1.0f-5  # ONNX's default, everywhere.

epsilon(node::Node) = attribute(node, :epsilon, EPSILON)

function layer(::Val{:BatchNormalization}, node::Node, source::Source)
    inference = attribute(node, :training_mode, 0) == 0 && attribute(node, :spatial, 1) == 1
    inference && count(!isempty, node.outputs) == 1 || return nothing
    found = parameters(source, node, 2 => Plain, 3 => Plain, 4 => Plain, 5 => Plain)
    found === nothing && return nothing
    γ, β, μ, σ² = found
    momentum = 1 - attribute(node, :momentum, 0.9f0)
    return BatchNorm(
        identity, β, γ, μ, σ², epsilon(node), momentum, true, true, false, length(γ)
    )
end

function layer(::Val{:InstanceNormalization}, node::Node, source::Source)
    found = parameters(source, node, 2 => Plain, 3 => Plain)
    found === nothing && return nothing
    γ, β = found
    return InstanceNorm(
        identity, β, γ, nothing, nothing, epsilon(node), 0.1f0, true, false, nothing, length(γ)
    )
end

function layer(::Val{:GroupNormalization}, node::Node, source::Source)
    source.network.opsets[""] >= 21 || return nothing  # Before, a scale was a group's.
    attribute(node, :stash_type, 1) == 1 || return nothing
    found = parameters(source, node, 2 => Plain, 3 => Plain)
    found === nothing && return nothing
    γ, β = found
    G = Int(node.attributes[:num_groups])
    return GroupNorm(
        G, identity, β, γ, nothing, nothing, epsilon(node), 0.1f0, true, false, nothing, length(γ)
    )
end

function layer(::Val{:LayerNormalization}, node::Node, source::Source)
    count(!isempty, node.outputs) == 1 && attribute(node, :stash_type, 1) == 1 || return nothing
    found = parameters(source, node, 2 => Plain, 3 => Plain)
    (found === nothing || false in found) && return nothing
    scale, bias = found
    attribute(node, :axis, -1) == -ndims(scale) && size(bias) == size(scale) || return nothing
    # Flux adds the square of its ϵ.
    ϵ = sqrt(Float64(epsilon(node)))
    return LayerNorm(identity, Scale(scale, bias, identity), ϵ, size(scale), true)
end

operator(::BatchNorm) = "BatchNormalization"
operator(::InstanceNorm) = "InstanceNormalization"
operator(::GroupNorm) = "GroupNormalization"
operator(::LayerNorm) = "LayerNormalization"

activation(::Union{BatchNorm,InstanceNorm,GroupNorm}) = :λ

function fields(layer::Union{BatchNorm,InstanceNorm,GroupNorm}, nodes)
    affine = [Field((:γ,), 1, 2, Plain, "weight"), Field((:β,), 1, 3, Plain, "bias")]
    layer isa BatchNorm || return affine
    return [
        affine
        Field((:μ,), 1, 4, Plain, "running_mean")
        Field((:σ²,), 1, 5, Plain, "running_var")
    ]
end

fields(::LayerNorm, nodes) = [
    Field((:diag, :scale), 1, 2, Plain, "weight"), Field((:diag, :bias), 1, 3, Plain, "bias")
]

attributes(layer::BatchNorm, node) =
    Dict{Symbol,Any}(:epsilon => Float32(layer.ϵ), :momentum => Float32(1 - layer.momentum))
attributes(layer::InstanceNorm, node) = Dict{Symbol,Any}(:epsilon => Float32(layer.ϵ))
attributes(layer::GroupNorm, node) =
    Dict{Symbol,Any}(:epsilon => Float32(layer.ϵ), :num_groups => layer.G)
attributes(layer::LayerNorm, node) =
    Dict{Symbol,Any}(:epsilon => Float32(layer.ϵ^2), :axis => -length(layer.size))
