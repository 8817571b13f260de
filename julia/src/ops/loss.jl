# Losses of class scores against labels.

"""
    NegativeLogLikelihoodLoss(input, target, weight; ignore_index, reduction)

Minus `input` at each label, times the weight of the label's class; the mean divides by the sum of
these weights. Labels `ignore_index` weigh nothing.
"""
function NegativeLogLikelihoodLoss end

@operator function NegativeLogLikelihoodLoss(input, target, weight=nothing; ignore_index=nothing,
                                             reduction="mean")
    return labelloss(input, target, weight, ignore_index, reduction)
end

@operator function SoftmaxCrossEntropyLoss(scores, labels, weights=nothing; ignore_index=nothing,
                                           reduction="mean", outputs=1)
    logits = NNlib.logsoftmax(widefloat(scores); dims=ndims(scores) - 1)
    loss = narrowto(scores, labelloss(logits, labels, weights, ignore_index, reduction))
    return outputs == 1 ? loss : (loss, narrowto(scores, logits))
end

function labelloss(x, target, weight, ignore_index, reduction)
    reduction in ("none", "sum", "mean") || unsupported("reduction ", reduction)
    chosen = NNlib.gather(vec(x), labelindices(x, target, ignore_index))
    loss = if weight === nothing && ignore_index === nothing
        .-chosen
    else
        kept = labelweights(x, target, weight, ignore_index)
        .-ifelse.(weightless(kept), zero(eltype(x)), chosen) .* kept
    end
    reduction == "none" && return reshape(loss, size(target))
    total = sum(widefloat(loss))
    reduction == "sum" && return lossscalar(x, total)
    weight === nothing && ignore_index === nothing && return lossscalar(x, total / length(target))
    return lossscalar(x, total / sum(widefloat(labelweights(x, target, weight, ignore_index))))
end

weightless(weights) = iszero.(weights)

@non_differentiable weightless(::Any...)

lossscalar(x, value) = reshape(eltype(x)[value], ())

function labelindices(x, target, ignore_index)
    classes, batch = size(x, ndims(x) - 1), size(x, ndims(x))
    pixels = length(x) ÷ max(classes * batch, 1)
    labels = reshape(target, pixels, batch)
    known = ifelse.(labels .== something(ignore_index, -1), 0, labels)
    all(l -> 0 <= l < classes, known) ||
        throw(ArgumentError("labels beyond the $classes classes"))
    return vec(@. (1:pixels) + pixels * (known + classes * $transpose(0:(batch - 1))))
end

@non_differentiable labelindices(::Any...)

function labelweights(x, target, weight, ignore_index)
    ignored = vec(target) .== something(ignore_index, -1)
    weight === nothing && return eltype(x).(.!ignored)
    return NNlib.gather(weight, ifelse.(ignored, 0, vec(target)) .+ 1) .* .!ignored
end
