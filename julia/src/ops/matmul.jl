# Matrix products and other contractions.

import NNlib.LinearAlgebra

@operator MatMul(A, B) = matrixproduct(A, B)

"""
    matrixproduct(a, b)

NumPy's `matmul(a, b)`. With dimensions reversed, `a` is K×M×batch, `b` is N×K×batch and the result,
`b * a` for each of the batch, is N×M×batch.
"""
function matrixproduct(a, b)
    left, right, extent = matrixstacks(a, b)
    return reshape(stackproduct(left, right), extent)
end

matrixproduct(a::AbstractArray{Float16}, b::AbstractArray{Float16}) =
    converted(Float16, matrixproduct(Float32.(a), Float32.(b)))

function ChainRulesCore.rrule(::typeof(matrixproduct), a, b)
    left, right, extent = matrixstacks(wideoperand(a), wideoperand(b))
    y = reshape(stackproduct(left, right), extent)
    sizes = size(a), size(b)
    count = prod(batchextent(a, b))
    function matrixproduct_pullback(dy)
        isconstant(left) && return (NoTangent(), NoTangent(), NoTangent())
        d = wideoperand(densearray(unthunk(dy)))
        d = reshape(d, size(left, 1), size(right, 2), count)
        da = unstackedgradient(rightproductgradient(left, right, d), sizes[1], sizes[2])
        db = unstackedgradient(leftproductgradient(left, right, d), sizes[2], sizes[1])
        return (NoTangent(), converted(eltype(a), da), converted(eltype(b), db))
    end
    return converted(eltype(a), y), matrixproduct_pullback
end

"""
    wideoperand(x)

`x` in the type in which its products are summed: single precision for half.
"""
wideoperand(x) = x
wideoperand(x::AbstractArray{Float16}) = Float32.(x)

densearray(x::DenseArray) = x
densearray(x::AbstractArray) = collect(x)

"""
    matrixstacks(a, b)

`b` and `a` as stacks of matrices to be multiplied, N×K×B and K×M×B, where either may have one
matrix for all, and the size of the result.
"""
function matrixstacks(a, b)
    batch = batchextent(a, b)
    rows = ndims(b) == 1 ? () : (size(b, 1),)
    columns = ndims(a) == 1 ? () : (size(a, 2),)
    left = ndims(b) == 1 ? reshape(b, 1, :, 1) : matrixstack(b, batch)
    right = ndims(a) == 1 ? reshape(a, :, 1, 1) : matrixstack(a, batch)
    return left, right, (rows..., columns..., batch...)
end

batchof(x) = size(x)[3:end]

function batchextent(a, b)
    left, right = batchof(b), batchof(a)
    n = max(length(left), length(right))
    return ntuple(k -> broadcastlength(get(left, k, 1), get(right, k, 1)), n)
end

function broadcastlength(m, n)
    m == n || m == 1 || n == 1 || throw(DimensionMismatch("batches of $m and $n matrices"))
    return m == 1 ? n : m
end

function matrixstack(x, batch)
    whole = prod(batchof(x)) in (1, prod(batch))
    y = whole ? x : expandedto(x, (size(x, 1), size(x, 2), batch...))
    return reshape(y, size(x, 1), size(x, 2), prod(batchof(y)))
end

"""
    unstackedgradient(d, extent, other)

The gradient `d` of a stack as that of the array of size `extent` which was stacked.
"""
function unstackedgradient(d, extent, other)
    prod(extent) == length(d) && return reshape(d, extent)
    n = max(length(extent), length(other))
    batch = Tuple(broadcastlength(get(extent, k, 1), get(other, k, 1)) for k in 3:n)
    return unbroadcast(extent, reshape(d, extent[1], extent[2], batch...))
end

sidebyside(x) = reshape(x, size(x, 1), size(x, 2) * size(x, 3))

"""
    stackproduct(left, right)

The products of the matrices of two stacks; one matrix on the left multiplies all others at once.
"""
function stackproduct(left, right)
    size(left, 3) == 1 || return batched_mul(left, right)
    product = sidebyside(left) * sidebyside(right)
    return reshape(product, size(left, 1), size(right, 2), size(right, 3))
end

function leftproductgradient(left, right, d)
    size(left, 3) == 1 && return reshape(sidebyside(d) * sidebyside(right)', size(left))
    return batched_mul(d, batched_adjoint(right))
end

function rightproductgradient(left, right, d)
    size(left, 3) == 1 && return reshape(sidebyside(left)' * sidebyside(d), size(right))
    dright = batched_mul(batched_adjoint(left), d)
    return size(right, 3) == 1 ? sum(dright; dims=3) : dright
end

@operator "com.microsoft" function FusedMatMul(
    A, B; alpha=1.0f0, transA=0, transB=0, transBatchA=0, transBatchB=0
)
    transBatchA == 0 && transBatchB == 0 || unsupported("transposed batches")
    y = matrixproduct(transA == 0 ? A : swappedmatrices(A), transB == 0 ? B : swappedmatrices(B))
    return alpha == 1 ? y : elementwise(multiplied, y, oftypeof(y, alpha))
end

swappedmatrices(x) = ndims(x) < 2 ? x : permutedims(x, (2, 1, 3:ndims(x)...))

multiplied(x, factor) = x * factor
derivative(::typeof(multiplied), x, y, factor) = factor

@nondifferentiable MatMulInteger(A, B, a_zero_point=nothing, b_zero_point=nothing) = converted(
    Int32,
    matrixproduct(
        frompoint(A, a_zero_point === nothing ? nothing : perrow(a_zero_point)),
        frompoint(B, b_zero_point),
    ),
)

frompoint(x, ::Nothing) = Float64.(x)
frompoint(x, zero_point) = Float64.(x) .- zero_point

perrow(x) = ndims(x) == 1 ? reshape(x, 1, :) : x

@operator Gemm(A, B, C=nothing; alpha=1.0f0, beta=1.0f0, transA=0, transB=0) =
    generalproduct(A, B, C, alpha, beta, transA != 0, transB != 0)

"""
    generalproduct(a, b, c, alpha, beta, transa, transb)

`alpha * b * a .+ beta * c`, with `a` and `b` transposed if so asked.
"""
function generalproduct(a, b, c, alpha, beta, transa, transb)
    eltype(a) <: Integer && !(isinteger(alpha) && isinteger(beta)) &&
        unsupported("fractions as factors of integers")
    y = turnedproduct(wideoperand(b), wideoperand(a), transb, transa)
    alpha == 1 || (y .*= oftypeof(y, alpha))
    c === nothing || (y .+= oftypeof(y, beta) .* c)
    return converted(eltype(a), y)
end

function ChainRulesCore.rrule(::typeof(generalproduct), a, b, c, alpha, beta, transa, transb)
    left, right = wideoperand(b), wideoperand(a)
    extent = c === nothing || isconstant(c) ? nothing : size(c)
    function generalproduct_pullback(dy)
        isconstant(a) && return ntuple(_ -> NoTangent(), 8)
        d = wideoperand(densearray(unthunk(dy)))
        dc = extent === nothing ? NoTangent() : weightedgradient(unbroadcast(extent, d), beta)
        d = weightedgradient(d, alpha)
        db = transb ? turnedproduct(right, d, transa, true) :
            turnedproduct(d, right, false, !transa)
        da = transa ? turnedproduct(d, left, true, transb) : turnedproduct(left, d, !transb, false)
        dc isa NoTangent || (dc = converted(eltype(a), dc))
        da, db = converted(eltype(a), da), converted(eltype(b), db)
        return (NoTangent(), da, db, dc, ntuple(_ -> NoTangent(), 4)...)
    end
    return generalproduct(a, b, c, alpha, beta, transa, transb), generalproduct_pullback
end

weightedgradient(d, factor) = factor == 1 ? d : array(d .* oftypeof(d, factor))

function turnedproduct(left, right, turnleft, turnright)
    turnleft && turnright && return left' * right'
    turnleft && return left' * right
    return turnright ? left * right' : left * right
end

@operator Det(X) = determinant(X)

function determinant(x)
    n = size(x, 1)
    matrices = reshape(x, n, n, :)
    values = [LinearAlgebra.det(matrices[:, :, k]) for k in axes(matrices, 3)]
    return reshape(convert(Vector{eltype(x)}, values), size(x)[3:end])
end

function ChainRulesCore.rrule(::typeof(determinant), x)
    function determinant_pullback(dy)
        n = size(x, 1)
        matrices, d = reshape(x, n, n, :), vec(densearray(unthunk(dy)))
        dx = similar(matrices)
        for k in axes(matrices, 3)
            dx[:, :, k] = d[k] .* cofactors(matrices[:, :, k])
        end
        return (NoTangent(), reshape(dx, size(x)))
    end
    return determinant(x), determinant_pullback
end

"""
    cofactors(x)

The matrix of the cofactors of `x`, by its singular values, so that `x` may be singular.
"""
function cofactors(x)
    u, s, v = LinearAlgebra.svd(x)
    others = [prod(s[j] for j in eachindex(s) if j != k; init=one(eltype(s))) for k in eachindex(s)]
    return LinearAlgebra.det(u) * LinearAlgebra.det(v) .* (u * (others .* v'))
end

@operator Einsum(Inputs, more...; equation) = contraction(equation, Inputs, more...)

"""
    contraction(equation, xs...)

NumPy's `einsum(equation, xs...)`.
"""
function contraction(equation, xs...)
    terms, output = einsumlabels(equation, map(ndims, xs))
    return converted(eltype(first(xs)), contracted(terms, output, map(wideoperand, xs)))
end

function ChainRulesCore.rrule(::typeof(contraction), equation, xs...)
    terms, output = einsumlabels(equation, map(ndims, xs))
    extents = labelextents(terms, xs)
    wide = map(wideoperand, xs)
    y = converted(eltype(first(xs)), contracted(terms, output, wide))
    function contraction_pullback(dy)
        isconstant(first(xs)) && return (NoTangent(), NoTangent(), map(_ -> NoTangent(), xs)...)
        d = wideoperand(densearray(unthunk(dy)))
        gradients = map(ntuple(identity, length(xs))) do k
            others = [terms[j] for j in eachindex(terms) if j != k]
            factors = [wide[j] for j in eachindex(wide) if j != k]
            label = [extents[l] == size(xs[k], i) ? l : nothing for (i, l) in enumerate(terms[k])]
            target = Int[l for l in label if l !== nothing]
            dx = contracted([[output]; others], target, (d, factors...), extents)
            return converted(eltype(xs[k]), reshape(dx, size(xs[k])))
        end
        return (NoTangent(), NoTangent(), gradients...)
    end
    return y, contraction_pullback
end

"""
    einsumlabels(equation, ranks)

The labels of the dimensions of each input, and of the output, in Julia's order: a letter's code, or
a negative number for a dimension of an ellipsis, counted from its end.
"""
function einsumlabels(equation, ranks)
    sides = split(replace(equation, " " => ""), "->")
    terms = split(sides[1], ",")
    length(terms) == length(ranks) ||
        throw(ArgumentError("$(length(ranks)) inputs for the equation $equation"))
    labels = [termlabels(term, rank) for (term, rank) in zip(terms, ranks)]
    used = reduce(vcat, labels; init=Int[])
    width = -min(0, minimum(used; init=0))
    letters = sort([l for l in unique(used) if l > 0 && count(==(l), used) == 1])
    output = length(sides) == 1 ? [-width:-1; letters] : termlabels(sides[2], nothing, width)
    issubset(output, used) || throw(ArgumentError("new labels in the output of $equation"))
    return reverse.(labels), reverse(output)
end

function termlabels(term, rank, width=rank - count(isletter, term))
    letters(part) = [Int(character) for character in part]
    parts = split(term, "...")
    length(parts) == 1 && (rank === nothing || width == 0) && return letters(term)
    length(parts) == 2 && width >= 0 && return [letters(parts[1]); -width:-1; letters(parts[2])]
    throw(ArgumentError("the term $term is for another number of dimensions than $rank"))
end

function labelextents(terms, xs)
    extents = Dict{Int,Int}()
    for (labels, x) in zip(terms, xs), (k, label) in enumerate(labels)
        extents[label] = broadcastlength(get(extents, label, 1), size(x, k))
    end
    return extents
end

"""
    contracted(terms, output, xs, extents)

The contraction of `xs`, whose dimensions have the labels `terms`, to the labels `output`. Labels
that only the output has are dimensions along which it is constant.
"""
function contracted(terms, output, xs, extents=labelextents(terms, xs))
    pairs = [distinctlabels(x, labels, extents) for (x, labels) in zip(xs, terms)]
    x, labels = first(pairs)
    for k in 2:length(pairs)
        needed = union(output, (last(pair) for pair in pairs[(k + 1):end])...)
        x, labels = contractpair(x, labels, pairs[k]..., needed)
    end
    x, labels = summedout(x, labels, output)
    distinct = unique(output)
    x = alignedlabels(x, labels, distinct)
    extent = Tuple(extents[label] for label in distinct)
    size(x) == extent || (x = expandedto(x, extent))
    return distinct == output ? x : ondiagonal(x, distinct, output)
end

"""
    distinctlabels(x, labels, extents)

`x` and its labels without dimensions of size 1 that are broadcast, and with the diagonal of those
that have the same label.
"""
function distinctlabels(x, labels, extents)
    kept = [k for k in eachindex(labels) if size(x, k) == extents[labels[k]]]
    x, labels = reshape(x, Tuple(size(x, k) for k in kept)), labels[kept]
    allunique(labels) && return x, labels
    distinct = unique(labels)
    return x[diagonalindices(x, distinct, labels)], distinct
end

function diagonalindices(x, distinct, labels)
    extent = Tuple(size(x, findfirst(==(label), labels)) for label in distinct)
    place = [findfirst(==(label), distinct) for label in labels]
    return [CartesianIndex(Tuple(index[k] for k in place)) for index in CartesianIndices(extent)]
end

function ondiagonal(x, distinct, labels)
    y = fill!(similar(x, Tuple(size(x, findfirst(==(l), distinct)) for l in labels)), 0)
    y[diagonalindices(y, distinct, labels)] = x
    return y
end

function summedout(x, labels, needed)
    dims = [k for k in eachindex(labels) if !(labels[k] in needed)]
    isempty(dims) && return x, labels
    return withoutdims(sumover(x, dims), dims), labels[setdiff(eachindex(labels), dims)]
end

sumover(x, dims) = converted(eltype(x), sum(x; dims))

"""
    alignedlabels(x, labels, order)

`x` with its dimensions in the `order` of their labels, and of size 1 for those it doesn't have.
"""
function alignedlabels(x, labels, order)
    present = [label for label in order if label in labels]
    y = arrangedlabels(x, labels, present)
    present == order && return y
    extents = Dict(present .=> size(y))
    return reshape(y, Tuple(get(extents, label, 1) for label in order))
end

function arrangedlabels(x, labels, order)
    labels == order && return x
    return permutedims(x, [findfirst(==(label), labels) for label in order])
end

function contractpair(x, xlabels, y, ylabels, needed)
    x, xlabels = summedout(x, xlabels, union(ylabels, needed))
    y, ylabels = summedout(y, ylabels, union(xlabels, needed))
    shared = intersect(xlabels, ylabels)
    inner = setdiff(shared, needed)
    if isempty(inner)
        order = intersect(needed, union(xlabels, ylabels))
        return array(alignedlabels(x, xlabels, order) .* alignedlabels(y, ylabels, order)), order
    end
    batch = intersect(needed, shared)
    rows = intersect(needed, setdiff(xlabels, shared))
    columns = intersect(needed, setdiff(ylabels, shared))
    firstfree = findfirst(in(union(rows, columns)), needed)
    if firstfree !== nothing && needed[firstfree] in columns
        x, xlabels, rows, y, ylabels, columns = y, ylabels, columns, x, xlabels, rows
    end
    left, leftturned = matrices(x, xlabels, rows, inner, batch)
    right, rightturned = matrices(y, ylabels, inner, columns, batch)
    product = if size(left, 3) == 1 && size(right, 3) == 1
        turnedproduct(left[:, :, 1], right[:, :, 1], leftturned, rightturned)
    else
        batched_mul(
            leftturned ? batched_adjoint(left) : left, rightturned ? batched_adjoint(right) : right
        )
    end
    labels = [rows; columns; batch]
    extents = Dict([xlabels .=> size(x); ylabels .=> size(y)])
    return reshape(product, Tuple(extents[label] for label in labels)), labels
end

"""
    matrices(x, labels, rows, columns, batch)

`x` as a stack of matrices, and whether they are transposed (which saves moving them).
"""
function matrices(x, labels, rows, columns, batch)
    extent(group) = prod(size(x, findfirst(==(label), labels)) for label in group; init=1)
    turned = labels == [columns; rows; batch] && labels != [rows; columns; batch]
    turned && return reshape(x, extent(columns), extent(rows), extent(batch)), true
    y = arrangedlabels(x, labels, [rows; columns; batch])
    return reshape(y, extent(rows), extent(columns), extent(batch)), false
end
