# Penalties that make units small before they go: what a step of training does to the weights besides.

"""
    Slices(array, dim, indices)

A weight that units are cut from along its dimension `dim`: `indices` has a column for each unit.
"""
struct Slices
    array::AbstractArray
    dim::Int
    indices::Matrix{Int}
end

"""
    Penalty(groups, chosen)

What is penalized: for each group the weights that its units are cut from, and those of the units
(a `Bool` for each) that are meant.
"""
struct Penalty
    groups::Vector{Vector{Slices}}
    chosen::Vector{BitVector}
end

"""
    penalty(graph, groups, frozen=()) -> Penalty

A penalty on the trainable weights of a graph, those of the layers of numbers `frozen` excepted. Of
each group `groups` has its members, `(tensor, axis, indices)` in ONNX's terms with a column of
`indices` for each unit, from 0, and a `Bool` for each unit.
"""
function penalty(graph::FluxGraph, groups, frozen=())
    fixed = Base.IdSet{Any}()
    for i in frozen
        foreach(x -> push!(fixed, x), arrays(graph.layers[i]))
        for (slot, x) in zip(graph.program.parameters, graph.parameters)
            slot in graph.program.steps[i].inputs && push!(fixed, x)
        end
    end
    found = Dict{String,Tuple{AbstractArray,Form}}()
    eachtensor(graph) do name, x, form
        x in fixed || (found[name] = (x, form))
    end
    members = [
        Slices[
            Slices(first(found[tensor]), along(axis, found[tensor]...), indices .+ 1)
            for (tensor, axis, indices) in group if haskey(found, tensor)
        ] for (group, _) in groups
    ]
    return Penalty(members, [BitVector(chosen) for (_, chosen) in groups])
end

"The dimension of a layer's array that is an axis of ONNX's, from 0."
function along(axis, x, form::Form)
    dim = ndims(x) - axis
    return form == Transposed ? 3 - dim : dim
end

"""
    strengths(penalty, factor, norms) -> IdDict

For each array the factors `c` of its weights in the penalty's gradient `c * w`: for each of its
dimensions that units are cut along, a sum for each index, as an array that broadcasts.

With `norms` the penalty is `factor * Σ ‖w(unit)‖` over the units, each with all of its weights, so
that `c` is `factor / ‖w(unit)‖` (Wen et al. 2016, section 3, with a unit's weights in several layers);
of units that are single numbers it is an L1 norm. Without, it is `factor / 2 * Σ ‖w(unit)‖²`.
"""
function strengths(penalty::Penalty, factor, norms)
    found = IdDict{Any,Dict{Int,Vector{Float64}}}()
    for (members, chosen) in zip(penalty.groups, penalty.chosen)
        sums = norms ? zeros(length(chosen)) : Float64.(chosen)
        if norms
            for s in members
                squares = squaresalong(s.array, s.dim)
                sums .+= vec(sum(squares[s.indices]; dims=1))
            end
        end
        unit = map(chosen, sums) do meant, square
            meant && square > 0 ? factor / (norms ? sqrt(square) : 1) : 0.0
        end
        for s in members
            place = get!(() -> Dict{Int,Vector{Float64}}(), found, s.array)
            index = get!(() -> zeros(size(s.array, s.dim)), place, s.dim)
            for (u, column) in enumerate(eachcol(s.indices)), i in column
                index[i] += unit[u]
            end
        end
    end
    return found
end

"The sum of squares over all but one dimension, in ordinary memory."
squaresalong(x, dim) =
    Float64.(vec(Array(sum(abs2, x; dims=Tuple(d for d in 1:ndims(x) if d != dim)))))

"""
    penalize!(penalty, rate; factor, norms)

Take a step of the size `rate` against the gradient of a penalty, see [`strengths`](@ref): `w`
becomes `(1 - rate * c) * w`, but never changes its sign. It is apart from the optimiser's own step,
as a decoupled weight decay is (Loshchilov & Hutter 2019).
"""
function penalize!(penalty::Penalty, rate; factor, norms)
    for (x, places) in strengths(penalty, factor, norms)
        total = reduce((a, b) -> a .+ b, (
            reshape(c, ntuple(d -> d == dim ? length(c) : 1, ndims(x))) for (dim, c) in places
        ))
        left = eltype(x).(max.(0, 1 .- rate .* total))
        x .*= copyto!(similar(x, size(left)), left)
    end
    return penalty
end
