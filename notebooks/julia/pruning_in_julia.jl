# # Pruning in Julia
#
# From an ONNX file to a smaller one that is nearly as accurate, written in Julia: a network is a Flux
# layer, its units are scored by functions of a line or two, and it is trained by a loop of one's own.
#
# ONNX files are read and written by the Python package onnxjl, which PythonCall brings in. The
# environment says where it is: `JULIA_PYTHONCALL_EXE` names the Python that has onnxjl, and
# `JULIA_CONDAPKG_BACKEND` is `Null`. The Julia package OnnxJL lies beside it. This is a script, for
# `julia --project=PROJECT pruning_in_julia.jl`, and the notebook of the same name is made from it.

push!(LOAD_PATH, joinpath(@__DIR__, "..", "..", "julia"))

using OnnxJL, Flux, PythonCall, Printf, Random, Statistics
using OnnxJL: slice

# ## A network, and digits to try it on
#
# Layers are called as in the file. The network is a small residual one that reads digits; it was
# trained in PyTorch.

models = joinpath(@__DIR__, "..", "..", "tests", "models")
m = OnnxJL.load(joinpath(models, "mnist-resnet14.onnx"))
display(m["layer1.0.conv1"])

# Arrays have Julia's order of dimensions, which is ONNX's reversed: width × height × channels ×
# samples.

function digits(name)
    file = pyimport("numpy").load(joinpath(models, name))
    x = permutedims(pyconvert(Array{Float32}, file["image"]), (4, 3, 2, 1))
    return x, pyconvert(Vector{Int}, file["target"])
end

x, labels = digits("mnist-resnet14.calib.npz")
xtest, testlabels = digits("mnist-resnet14.test.npz")
println(size(x), " to train on, ", size(xtest), " to test on")

accuracy(m) = mean(Flux.onecold(m(xtest), 0:9) .== testlabels)
@printf "accuracy of the original: %.2f %%\n" 100accuracy(m)

# ## What can go
#
# Channels that meet in a residual sum go together or not at all. A group holds such channels, and
# each of its members is a weight that they are cut from.

for g in groups(m)
    @printf "%-15s %2d channels, cut from %2d weights\n" g.name length(g) length(g.members)
end

# ## Scores of one's own
#
# With the gradient of a loss, the members have it too. Two scores of a channel: how large its weights
# are, and by how much the loss would change to first order if those of one layer were zero, summed
# over layers. `slice` is the part of a weight, or of its gradient, that belongs to one channel; the
# parameters of normalizations are left aside.

sample = randperm(Xoshiro(0), length(labels))[1:256]
onehot = Flux.onehotbatch(labels, 0:9)
Δ = only(Flux.gradient(m -> Flux.logitcrossentropy(m(x[:, :, :, sample]), onehot[:, sample]), m))
found = groups(m; gradient=Δ)

kernels(g) = filter(member -> ndims(member.weight) > 1, g.members)

magnitude(g, unit) = sum(sum(abs, slice(k, unit)) for k in kernels(g))

function firstorder(g, unit)
    return sum(abs(sum(slice(k, unit) .* slice(k, unit, k.gradient))) for k in kernels(g))
end

scores(f, g) = [f(g, unit) for unit in 1:length(g)]

# A picture of both, for the channels inside of one block; the largest score of each kind is 30 wide.

g = found[findfirst(g -> g.name == "layer1.0.conv1", found)]
bar(part) = rpad("█"^round(Int, 30part), 30)
println("channel  ", rpad("magnitude", 32), "first order")
for (unit, a, b) in zip(1:length(g), scores(magnitude, g), scores(firstorder, g))
    largest = maximum(scores(magnitude, g)), maximum(scores(firstorder, g))
    println(lpad(unit, 7), "  ", bar(a / largest[1]), "  ", rstrip(bar(b / largest[2])))
end

# ## Half of every group
#
# `prune` takes the channels to keep, and returns a network of smaller layers. Chance is the third
# candidate, as a control.

half(s) = partialsortperm(s, 1:(length(s) ÷ 2); rev=true)
dice = Xoshiro(1)
candidates = [
    "magnitude" => prune(m, [g => half(scores(magnitude, g)) for g in found]),
    "first order" => prune(m, [g => half(scores(firstorder, g)) for g in found]),
    "chance" => prune(m, [g => half(rand(dice, length(g))) for g in found]),
]
display(last(first(candidates))["layer1.0.conv1"])

# ## A training loop of one's own
#
# The pruned networks learn to answer as the original does: they need its outputs, no labels. In
# training mode batch normalization uses each batch's statistics, and tracks them.

function imitate!(small, original; epochs=3, batchsize=50, rate=1e-3)
    answers = softmax(original(x))
    state = Flux.setup(Adam(rate), small)
    dice = Xoshiro(1)
    Flux.trainmode!(small)
    for epoch in 1:epochs, batch in Iterators.partition(shuffle(dice, axes(x, 4)), batchsize)
        Δ = only(Flux.gradient(small) do small
            Flux.logitcrossentropy(small(x[:, :, :, batch]), answers[:, batch])
        end)
        Flux.update!(state, small, Δ)
    end
    return Flux.testmode!(small)
end

for (name, small) in candidates
    before = accuracy(small)
    imitate!(small, m)
    @printf "%-12s %5.1f %% → %5.1f %%\n" name 100before 100accuracy(small)
end

# Three short trainings tell networks apart only as far as their test set does: with 2,000 digits, an
# accuracy near 98 % has a standard error of 0.3 percentage points.

# ## To a budget
#
# The same function can rank the channels of all groups against each other, until a budget of
# multiply–accumulates is met. As a criterion it takes a group, whose members have the mean gradient
# over `data`, and returns a score for each unit.

for macs in (0.8, 0.6, 0.4)
    small = prune(m; macs, criterion=g -> scores(firstorder, g), data=(x, labels))
    before = accuracy(small)
    imitate!(small, m)
    @printf "%.1f of the MACs  %5.1f %% → %5.1f %%\n" macs 100before 100accuracy(small)
end

# ## Back to ONNX
#
# The file holds what the layers say now, and is compared with their outputs in onnxruntime before it
# has its name.

name, small = first(candidates)
path = joinpath(mktempdir(), "small.onnx")
println(name, ": ", OnnxJL.save(small, path))
@printf "%.0f kB, %.2f %% of the test digits\n" filesize(path) / 1000 100accuracy(OnnxJL.load(path))
