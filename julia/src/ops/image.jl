# Operators that sample images at given places, and those that pick boxes in them.

@operator function GridSample(X, grid; align_corners=0, mode="linear", padding_mode="zeros")
    return gridsampled(X, grid, samplingmode(mode, padding_mode), padding_mode, align_corners == 1)
end

function samplingmode(mode, padding)
    kind = String(chopprefix(mode, "bi"))
    kind in ("nearest", "linear", "cubic") || unsupported("mode ", mode)
    padding in ("zeros", "border", "reflection") || unsupported("padding_mode ", padding)
    kind == "cubic" && padding == "border" &&
        unsupported("cubic with border: whether a place or its neighbours are clamped isn't agreed")
    return kind
end

gridsampled(x, grid, mode, padding, corners) =
    sampledat(x, gridtaps(grid, size(x), mode, padding, corners), size(grid)[2:(end - 1)])

function ChainRulesCore.rrule(::typeof(gridsampled), x, grid, mode, padding, corners)
    taps = gridtaps(grid, size(x), mode, padding, corners)
    function back(dy)
        dx, dgrid = samplinggradients(unthunk(dy), x, taps)
        differentials = (dx, reshape(eltype(grid).(dgrid), size(grid)))
        return NoTangent(), differentials..., NoTangent(), NoTangent(), NoTangent()
    end
    return sampledat(x, taps, size(grid)[2:(end - 1)]), back
end

"""
    gridtaps(grid, dims, mode, padding, corners)

For each place in `grid` (coordinates × places × samples) and each coordinate, the taps that
interpolate there: their indices, their weights, and the weights' slopes in the coordinate.
"""
function gridtaps(grid, dims, mode, padding, corners)
    T = float(promote_type(Float32, eltype(grid)))
    offsets = mode == "nearest" ? (0:0) : mode == "linear" ? (0:1) : (-1:2)
    rank = size(grid, 1)
    places = reshape(grid, rank, prod(size(grid)[2:(end - 1)]), size(grid)[end])
    index = ones(Int, length(offsets), size(places)...)
    weight, slope = zeros(T, size(index)), zeros(T, size(index))
    for n in axes(places, 3), p in axes(places, 2), k in 1:rank
        len = dims[k]
        x, dx = gridcoordinate(T(places[k, p, n]), len, mode, padding, corners)
        start = floor(Int, x)
        for (j, offset) in enumerate(offsets)
            i = gridtap(start + offset, len, padding, corners)
            0 <= i < len || continue
            index[j, k, p, n] = i + 1
            weight[j, k, p, n], s = gridweight(x - start - offset, mode)
            slope[j, k, p, n] = s * dx
        end
    end
    return (; index, weight, slope)
end

"""
    gridcoordinate(g, length, mode, padding, corners)

The coordinate (from 0) of the normalized `g`, brought within the borders, and its derivative.
"""
function gridcoordinate(g::T, len, mode, padding, corners) where {T}
    x, dx = if corners
        (g + 1) / 2 * (len - 1), T(len - 1) / 2
    else
        ((g + 1) * len - 1) / 2, T(len) / 2
    end
    mode == "nearest" && (x = round(x))
    low, high = gridborders(T, len, corners)
    if x < low || x > high
        if padding == "border"
            x, dx = clamp(x, zero(T), T(len - 1)), zero(T)
        elseif padding == "reflection"
            x, sign = reflectedcoordinate(x, low, high)
            dx *= sign
        else
            x = clamp(x, T(-9), T(len + 9))
        end
    end
    return x, dx
end

gridborders(T, len, corners) = corners ? (zero(T), T(len - 1)) : (-T(0.5), T(len) - T(0.5))

function reflectedcoordinate(x::T, low::T, high::T) where {T}
    width = high - low
    width <= 0 && return low, zero(T)
    distance = x < low ? low - x : x - high
    turns = floor(distance / width)
    rest = distance - turns * width
    fromlow = (x < low) == iseven(turns)
    sign = (x < low ? -one(T) : one(T)) * (fromlow ? one(T) : -one(T))
    return fromlow ? low + rest : high - rest, sign
end

function gridtap(i, len, padding, corners)
    padding == "zeros" && return i
    padding == "border" && return clamp(i, 0, len - 1)
    low, high = gridborders(Float64, len, corners)
    low <= i <= high && return i
    return clamp(trunc(Int, first(reflectedcoordinate(Float64(i), low, high))), 0, len - 1)
end

"""
    gridweight(t, mode)

The weight of a tap at distance `t` before the sampled place, and its derivative in `t`.
"""
function gridweight(t::T, mode) where {T}
    mode == "nearest" && return one(T), zero(T)
    s = abs(t)
    mode == "linear" && return 1 - s, t >= 0 && s < 1 ? -one(T) : one(T)
    a = T(-0.75)
    slope = s <= 1 ? (3 * (a + 2) * s - 2 * (a + 3)) * s : (3a * s - 10a) * s + 8a
    return cubicweight(t, a), sign(t) * slope
end

function sampledat(x, taps, places)
    T = promote_type(Float32, eltype(x))
    dims = size(x)[1:(end - 2)]
    x3 = reshape(x, prod(dims), size(x)[(end - 1):end]...)
    y3 = zeros(T, prod(places), size(x3, 2), size(x3, 3))
    addsamples!(y3, x3, taps, dims)
    return reshape(eltype(x).(y3), places..., size(x)[(end - 1):end]...)
end

function addsamples!(y, x, taps, dims)
    corners = CartesianIndices(map(_ -> size(taps.index, 1), dims))
    steps = Base.size_to_strides(1, dims...)
    for n in axes(y, 3), p in axes(y, 1), tap in corners
        source = 1
        weight = one(eltype(taps.weight))
        for k in eachindex(dims)
            source += (taps.index[tap[k], k, p, n] - 1) * steps[k]
            weight *= taps.weight[tap[k], k, p, n]
        end
        iszero(weight) && continue
        for c in axes(y, 2)
            y[p, c, n] += weight * x[source, c, n]
        end
    end
end

function samplinggradients(dy, x, taps)
    dims = size(x)[1:(end - 2)]
    x3 = reshape(x, prod(dims), size(x)[(end - 1):end]...)
    dy3 = reshape(dy, size(taps.index, 3), size(x3, 2), size(x3, 3))
    dx3 = zeros(promote_type(Float32, eltype(x)), size(x3))
    dgrid = zeros(eltype(taps.slope), size(taps.slope)[2:end])
    addsamplinggradients!(dx3, dgrid, dy3, x3, taps, dims)
    return reshape(eltype(x).(dx3), size(x)), dgrid
end

function addsamplinggradients!(dx, dgrid, dy, x, taps, dims)
    corners = CartesianIndices(map(_ -> size(taps.index, 1), dims))
    steps = Base.size_to_strides(1, dims...)
    for n in axes(dy, 3), p in axes(dy, 1), tap in corners
        source = 1
        for k in eachindex(dims)
            source += (taps.index[tap[k], k, p, n] - 1) * steps[k]
        end
        weight = prod(k -> taps.weight[tap[k], k, p, n], eachindex(dims))
        product = zero(eltype(dgrid))
        for c in axes(dy, 2)
            dx[source, c, n] += weight * dy[p, c, n]
            product += dy[p, c, n] * x[source, c, n]
        end
        for k in eachindex(dims)
            slope = taps.slope[tap[k], k, p, n]
            for other in eachindex(dims)
                other == k || (slope *= taps.weight[tap[other], other, p, n])
            end
            dgrid[k, p, n] += product * slope
        end
    end
end

@operator function AffineGrid(theta, size; align_corners=0)
    dims = Tuple(Int.(reverse(size[3:end])))
    base = homogeneousgrid(eltype(theta), dims, align_corners == 1)
    places = NNlib.batched_mul(NNlib.batched_transpose(theta), base)
    return reshape(places, length(dims), dims..., Int(size[1]))
end

"""
    homogeneousgrid(T, dims, corners)

The coordinates in −1…1 of each entry of an array of size `dims`, and 1, as columns of one matrix.
"""
function homogeneousgrid(T, dims, corners)
    corners && any(==(1), dims) && unsupported("align_corners for a size of 1")
    coordinate(i, n) = corners ? 2 * (i - 1) / (n - 1) - 1 : (2i - 1) / n - 1
    places = vec(CartesianIndices(dims))
    rank = length(dims)
    base = [k > rank ? 1.0 : coordinate(I[k], dims[k]) for k in 1:(rank + 1), I in places]
    return reshape(T.(base), rank + 1, length(places), 1)
end

# A gradient goes to `X` only: the regions count as constants, as in torchvision.
@operator function RoiAlign(
    X, rois, batch_indices;
    coordinate_transformation_mode=nothing, mode="avg", output_height=1, output_width=1,
    sampling_ratio=0, spatial_scale=1.0f0, opset=16,
)
    mode in ("avg", "max") || unsupported("mode ", mode)
    coordinates = something(
        coordinate_transformation_mode, opset < 16 ? "output_half_pixel" : "half_pixel"
    )
    shift = coordinates == "half_pixel"
    bins = (output_width, output_height)
    regions = roitaps(size(X), rois, batch_indices, bins, sampling_ratio, spatial_scale, shift)
    return regionspooled(X, regions, bins, mode == "max")
end

"""
    roitaps(dims, rois, images, bins, sampling, scale, shift)

For each region its image, and for each of its bins the samples' four neighbours (linear positions)
and their weights, as arrays of 4 × samples × bins.
"""
function roitaps(dims, rois, images, bins, sampling, scale, shift)
    T = float(promote_type(Float32, eltype(rois)))
    return map(axes(rois, 2)) do r
        corner = T.(rois[:, r]) .* T(scale) .- (shift ? T(0.5) : T(0))
        x, y = ntuple(2) do k
            extent = corner[k + 2] - corner[k]
            shift || (extent = max(extent, one(T)))
            roisamples(corner[k], extent, bins[k], sampling, dims[k])
        end
        index, weight = crossed(x, y, dims[1])
        (; image=Int(images[r]) + 1, index, weight)
    end
end

"""
    roisamples(start, extent, bins, sampling, length)

Along one dimension: the two neighbours (from 0) and their weights for each sample of each bin.
"""
function roisamples(start::T, extent, bins, sampling, len) where {T}
    size = extent / bins
    count = sampling > 0 ? sampling : max(ceil(Int, size), 0)
    low, high = zeros(Int, count, bins), zeros(Int, count, bins)
    first, second = zeros(T, count, bins), zeros(T, count, bins)
    for b in 1:bins, s in 1:count
        x = start + (b - 1) * size + (s - T(0.5)) * size / count
        -1 <= x <= len || continue
        x = clamp(x, zero(T), T(len - 1))
        low[s, b] = floor(Int, x)
        high[s, b] = min(low[s, b] + 1, len - 1)
        second[s, b] = x - low[s, b]
        first[s, b] = 1 - second[s, b]
    end
    return (; low, high, first, second)
end

function crossed(x, y, width)
    places(i, j) = i .+ width .* j .+ 1
    across(a) = reshape(a, size(a, 1), 1, size(a, 2), 1)
    down(a) = reshape(a, 1, size(a, 1), 1, size(a, 2))
    index = [
        places(across(x.low), down(y.low)), places(across(x.high), down(y.low)),
        places(across(x.low), down(y.high)), places(across(x.high), down(y.high)),
    ]
    weight = [
        across(x.first) .* down(y.first), across(x.second) .* down(y.first),
        across(x.first) .* down(y.second), across(x.second) .* down(y.second),
    ]
    samples, bins = size(x.low, 1) * size(y.low, 1), size(x.low, 2) * size(y.low, 2)
    stacked(parts) = permutedims(reshape(stack(parts), samples, bins, 4), (3, 1, 2))
    return stacked(index), stacked(weight)
end

function regionspooled(x, regions, bins, maximal)
    x3 = reshape(x, size(x, 1) * size(x, 2), size(x, 3), size(x, 4))
    y = zeros(eltype(x), prod(bins), size(x, 3), length(regions))
    for (r, region) in enumerate(regions), c in axes(y, 2), b in axes(y, 1)
        taps, weights = view(region.index, :, :, b), view(region.weight, :, :, b)
        isempty(taps) && continue
        values = view(x3, :, c, region.image)
        y[b, c, r] = maximal ? maximum(k -> weights[k] * values[taps[k]], eachindex(taps)) :
                     sum(k -> weights[k] * values[taps[k]], eachindex(taps)) / size(taps, 2)
    end
    return reshape(y, bins..., size(x, 3), length(regions))
end

function ChainRulesCore.rrule(::typeof(regionspooled), x, regions, bins, maximal)
    function back(cotangent)
        dy = reshape(unthunk(cotangent), prod(bins), size(x, 3), length(regions))
        x3 = reshape(x, size(x, 1) * size(x, 2), size(x, 3), size(x, 4))
        dx3 = zeros(eltype(x), size(x3))
        for (r, region) in enumerate(regions), c in axes(dy, 2), b in axes(dy, 1)
            taps, weights = view(region.index, :, :, b), view(region.weight, :, :, b)
            isempty(taps) && continue
            values = view(x3, :, c, region.image)
            best = maximal ? argmax(k -> weights[k] * values[taps[k]], eachindex(taps)) : 0
            for k in (maximal ? (best:best) : eachindex(taps))
                share = maximal ? weights[k] : weights[k] / size(taps, 2)
                dx3[taps[k], c, region.image] += share * dy[b, c, r]
            end
        end
        dx = reshape(dx3, size(x))
        return NoTangent(), dx, NoTangent(), NoTangent(), NoTangent()
    end
    return regionspooled(x, regions, bins, maximal), back
end

# A gradient goes to `X` only, as with RoiAlign.
@operator function MaxRoiPool(X, rois; pooled_shape, spatial_scale=1.0f0)
    bins = Tuple(reverse(Int.(pooled_shape)))
    places = ChainRulesCore.ignore_derivatives(() -> roimaxima(X, rois, bins, spatial_scale))
    return takenorzero(X, places)
end

"""
    roimaxima(x, rois, bins, scale)

Where in `x` the maximum of each bin of each region lies (linear positions; 0 in an empty bin).

Regions are columns (image, x₁, y₁, x₂, y₂), rounded to whole pixels that belong to them.
Source: Girshick 2015, "Fast R-CNN", <https://arxiv.org/abs/1504.08083>, section 2.1.
"""
function roimaxima(x, rois, bins, scale)
    places = zeros(Int, bins..., size(x, 3), size(rois, 2))
    linear = LinearIndices(x)
    for r in axes(rois, 2)
        n = Int(rois[1, r]) + 1
        ranges = ntuple(2) do k
            first, last = (round(Int, rois[j, r] * scale, RoundNearestTiesAway) for j in (k + 1, k + 3))
            extent = max(last - first + 1, 1)
            map(1:bins[k]) do b
                from = fld((b - 1) * extent, bins[k])
                to = cld(b * extent, bins[k])
                (clamp(first + from, 0, size(x, k)) + 1):clamp(first + to, 0, size(x, k))
            end
        end
        for c in axes(x, 3), b in CartesianIndices(bins)
            across, down = ranges[1][b[1]], ranges[2][b[2]]
            (isempty(across) || isempty(down)) && continue
            best = argmax(view(x, across, down, c, n))
            places[b, c, r] = linear[across[best[1]], down[best[2]], c, n]
        end
    end
    return places
end

takenorzero(x, places) = map(k -> k == 0 ? zero(eltype(x)) : x[k], places)

function ChainRulesCore.rrule(::typeof(takenorzero), x, places)
    function back(cotangent)
        dy, dx = unthunk(cotangent), zero(x)
        for (k, d) in zip(places, dy)
            k == 0 || (dx[k] += d)
        end
        return NoTangent(), dx, NoTangent()
    end
    return takenorzero(x, places), back
end

@nondifferentiable function NonMaxSuppression(
    boxes, scores, max_output_boxes_per_class=nothing, iou_threshold=nothing,
    score_threshold=nothing;
    center_point_box=0,
)
    optional(x, default) = x === nothing || isempty(x) ? default : only(x)
    limit = max(Int(optional(max_output_boxes_per_class, 0)), 0)
    overlap = optional(iou_threshold, 0.0f0)
    least = optional(score_threshold, -Inf32)
    chosen = NTuple{3,Int}[]
    for image in axes(scores, 3), class in axes(scores, 2)
        corners = [boxcorners(view(boxes, :, b, image), center_point_box) for b in axes(boxes, 2)]
        kept = suppressed(corners, view(scores, :, class, image), limit, overlap, least)
        append!(chosen, [(image - 1, class - 1, b - 1) for b in kept])
    end
    return Int[box[k] for k in 1:3, box in chosen]
end

"""
    boxcorners(box, centered) -> (lows, highs)

The lowest and highest coordinates of a box given by two opposite corners, or by center and extent.
"""
function boxcorners(box, centered)
    if centered == 1
        half = (box[3] / 2, box[4] / 2)
        return (box[1], box[2]) .- half, (box[1], box[2]) .+ half
    end
    return min.((box[1], box[2]), (box[3], box[4])), max.((box[1], box[2]), (box[3], box[4]))
end

function suppressed(corners, scores, limit, overlap, least)
    candidates = [b for b in eachindex(scores) if least == -Inf32 || scores[b] > least]
    sort!(candidates; by=b -> scores[b], rev=true, alg=MergeSort)
    kept = Int[]
    for b in candidates
        length(kept) < limit || break
        any(k -> overlapping(corners[k], corners[b], overlap), kept) || push!(kept, b)
    end
    return kept
end

function overlapping((lows1, highs1), (lows2, highs2), threshold)
    area(lows, highs) = prod(highs .- lows)
    extent = min.(highs1, highs2) .- max.(lows1, lows2)
    any(<=(0), extent) && return false
    area1, area2, shared = area(lows1, highs1), area(lows2, highs2), prod(extent)
    union = area1 + area2 - shared
    (area1 <= 0 || area2 <= 0 || union <= 0) && return false
    return shared / union > threshold
end

@non_differentiable samplingmode(::Any...)
@non_differentiable homogeneousgrid(::Any...)
@non_differentiable roitaps(::Any...)

"""
    Col2Im(input, image_shape, block_shape; dilations, pads, strides)

The sum of blocks (positions × block entries and channels × samples) where they lie in an image.
"""
function Col2Im end

@operator function Col2Im(
    input, image_shape, block_shape; dilations=nothing, pads=nothing, strides=nothing
)
    dims = Tuple(Int.(reverse(image_shape)))
    rows, places = blockplaces(dims, block_shape, dilations, pads, strides)
    block = prod(block_shape)
    channels, samples = size(input, 2) ÷ block, size(input, 3)
    blocks = reshape(input, size(input, 1) * block, channels * samples)
    maps = (
        Selection(1, size(blocks, 1), rows), Opposite(Selection(1, prod(dims), places))
    )
    return reshape(mapped(maps, blocks), dims..., channels, samples)
end

"""
    blockplaces(dims, block, dilations, pads, strides)

Which entries of all blocks lie within an image of size `dims`, and their linear positions there.
"""
function blockplaces(dims, block, dilations, pads, strides)
    n = length(dims)
    inorder(x, default) = x === nothing ? fill(default, n) : reverse(Int.(x))
    sizes, steps, gaps = inorder(block, 1), inorder(strides, 1), inorder(dilations, 1)
    before = pads === nothing ? zeros(Int, n) : reverse(Int.(pads[1:n]))
    after = pads === nothing ? zeros(Int, n) : reverse(Int.(pads[(n + 1):end]))
    counts = ntuple(n) do d
        (dims[d] + before[d] + after[d] - gaps[d] * (sizes[d] - 1) - 1) ÷ steps[d] + 1
    end
    linear = LinearIndices(dims)
    rows, places = Int[], Int[]
    entries = Iterators.product(CartesianIndices(counts), CartesianIndices(Tuple(sizes)))
    for (row, (position, entry)) in enumerate(entries)
        place = CartesianIndex(ntuple(n) do d
            (position[d] - 1) * steps[d] + (entry[d] - 1) * gaps[d] - before[d] + 1
        end)
        checkbounds(Bool, linear, place) || continue
        push!(rows, row)
        push!(places, linear[place])
    end
    return rows, places
end

@non_differentiable blockplaces(::Any...)
