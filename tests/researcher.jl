# What a researcher does in Julia, from an ONNX file to a smaller one, without Python code.
#
#     julia researcher.jl FOLDER_OF_ONNXJL NETWORK DATA TRANSFORMER RESULTS
#
# Python's onnxjl must be importable: JULIA_PYTHONCALL_EXE names the Python that has it, and
# JULIA_CONDAPKG_BACKEND is Null.

folder, source, data, transformer, results = ARGS
push!(LOAD_PATH, folder)  # unless OnnxJL is in the project

using OnnxJL, Flux, PythonCall, Test
using OnnxJL: slice

@testset "a researcher's experiments" begin
    m = OnnxJL.load(source)
    @test m["conv1"] isa Conv

    # Images as Flux has them, width × height × channels × samples; labels from 0.
    file = pyimport("numpy").load(data)
    x = permutedims(pyconvert(Array{Float32}, file["image"]), (4, 3, 2, 1))[:, :, :, 1:64]
    labels = pyconvert(Vector{Int}, file["target"])[1:64]
    onehot = Flux.onehotbatch(labels, 0:9)
    @test size(m(x)) == (10, 64)

    @testset "groups" begin
        found = groups(m)
        @test found isa Vector{OnnxJL.Group}
        @test all(g -> haskey(m, g.layer), found)
        g = first(found)
        @test sprint(show, g) == "Group(\"conv1\", 16 × channel)"
        @test contains(repr(MIME("text/plain"), g), "conv1.weight: 3×3×1×16 Array{Float32, 4}, dimension 4")
        # A member has the tensor as ONNX has it; Flux's kernels are turned over.
        kernel = only(member for member in g.members if member.tensor == "conv1.weight")
        @test kernel.weight[end:-1:1, end:-1:1, :, :] == m["conv1"].weight
        @test size(slice(kernel, 3)) == (3, 3, 1, 1)
        @test kernel.gradient === nothing
        Δ = only(Flux.gradient(m -> Flux.logitcrossentropy(m(x), onehot), m))
        kernel = first(first(groups(m; gradient=Δ)).members)
        @test size(kernel.gradient) == size(kernel.weight)
        @test sum(abs, kernel.gradient) > 0
        @test isempty(groups(m; ignore=["*"]))
        @test_throws "UsageError: no layer or node matches 'conv99'" groups(m; ignore=["conv99"])
    end

    # Scores of one's own: the half of each layer's channels that is largest stays.
    norms(g) = vec(sum(abs, m[g.layer].weight; dims=(1, 2, 3)))
    scores = [norms(g) for g in groups(m)]
    half(s) = partialsortperm(s, 1:(length(s) ÷ 2); rev=true)
    small = prune(m, [g => half(s) for (g, s) in zip(groups(m), scores)])
    @test size(small["conv1"].weight) == (3, 3, 1, 8)
    @test small["conv1"].weight == m["conv1"].weight[:, :, :, sort(half(scores[1]))]
    @test size(m["conv1"].weight) == (3, 3, 1, 16)
    @test startswith(OnnxJL.save(small, joinpath(results, "half.onnx")), "equals")
    write(joinpath(results, "half.json"), OnnxJL.plan(small))
    @test OnnxJL.plan(m) === nothing

    @testset "a plan as data" begin
        for plan in (OnnxJL.plan(small), joinpath(results, "half.json"))
            again = prune(m, plan)
            @test again(x) == small(x)
        end
        @test_throws "PlanError: the plan was made for another graph" prune(small, OnnxJL.plan(small))
        @test_throws "PlanError" prune(m, "no.json")
        g = groups(m)[2]
        one = prune(m, g => 1:3)
        @test one(x) == prune(m, g.name => (1:length(g)) .<= 3)(x)
        @test length(only(h for h in groups(one) if h.name == g.name)) == 3
        @test_throws "would lose all of its units" prune(m, g => Int[])
        @test_throws "no such one to keep" prune(m, g => [length(g) + 1])
        @test_throws "no group is called 'conv99'" prune(m, "conv99" => [1])
        # Its edits alone, as Julia may make them itself.
        edits = OnnxJL.edits(pyimport("onnxjl").Plan.from_json(OnnxJL.plan(small)))
        again = prune(m, edits)
        @test again(x) == small(x)
        @test startswith(OnnxJL.save(again, joinpath(results, "edits.onnx")), "equals")
    end

    @testset "to a budget" begin
        mine = prune(m; macs=0.5, criterion=norms)
        @test prune(m; macs=0.5, criterion=:l1)(x) != mine(x)
        taylor = prune(m; macs=0.5, criterion="taylor", data=(x, labels), ignore=["conv1"])
        @test size(taylor["conv1"].weight, 4) == 16
        loader = Flux.DataLoader((x, labels); batchsize=64)
        @test prune(m; macs=0.5, criterion="taylor", data=loader, ignore=["conv1"])(x) == taylor(x)
        @test_throws "BudgetError" prune(m; macs=0.0001)
        OnnxJL.save(mine, joinpath(results, "macs.onnx"))
        write(joinpath(results, "macs.json"), OnnxJL.plan(mine))
    end

    @testset "blocks" begin
        found = blocks(m)
        @test [b.name for b in found] == ["layer$i.$j" for i in 1:3 for j in 0:1]
        b = found[2]
        @test sprint(show, b) == "Block(\"layer1.1\", convolution)"
        @test contains(repr(MIME("text/plain"), b), "parameters\n  layer1.1.conv1\n  layer1.1.conv2")
        @test b.weights["layer1.1.conv1.weight"][end:-1:1, end:-1:1, :, :] == m["layer1.1.conv1"].weight
        @test b.gradients === nothing
        @test found[3].projection !== nothing
        Δ = only(Flux.gradient(m -> Flux.logitcrossentropy(m(x), onehot), m))
        slopes = blocks(m; gradient=Δ, ignore=["layer1.0"])[1].gradients
        @test size(slopes["layer1.1.conv1.weight"]) == size(b.weights["layer1.1.conv1.weight"])
        @test all(name -> size(slopes[name]) == size(b.weights[name]), keys(b.weights))
        @test sum(abs, slopes["layer1.1.conv1.weight"]) > 0
        shallow = removeblocks(m, b, "layer3.*")
        @test !haskey(shallow, "layer1.1.conv1") && !haskey(shallow, "layer3.0.conv1")
        @test [b.name for b in blocks(shallow)] == ["layer1.0", "layer2.0", "layer2.1"]
        @test_throws "UsageError: no block is called 'layer9'" removeblocks(m, "layer9")
        small = prune(m; macs=0.7, granularity="block", criterion=b -> b.parameters)
        @test length(blocks(small)) < 6
        saliency(b) = sum(abs(sum(b.weights[k] .* b.gradients[k])) for k in keys(b.weights))
        mine = prune(m; amount=0.5, granularity="block", criterion=saliency, data=(x, labels))
        @test length(blocks(mine)) == 3
        @test startswith(OnnxJL.save(shallow, joinpath(results, "shallow.onnx")), "equals")
    end

    @testset "whole heads" begin
        attention = OnnxJL.load(transformer)
        heads = filter(g -> g.kind == "head", groups(attention; granularity="head"))
        @test all(g -> length(g) == 4, heads)
        fewer = prune(attention, [g => [2, 4] for g in heads])
        @test all(g -> g.kind != "head" || length(g) == 2, groups(fewer; granularity="head"))
        @test startswith(OnnxJL.save(fewer, joinpath(results, "heads.onnx")), "equals")
        write(joinpath(results, "heads.json"), OnnxJL.plan(fewer))
        one = first(heads)
        other = first(g for g in groups(attention; granularity="head-dim") if g.kind == "head-dim")
        @test_throws "head and head-dim can't go at once" prune(attention, one => 1:2, other => 1:2)
    end

    # It is a Flux layer: train it, and save what it has become.
    loss(model, x, y) = Flux.logitcrossentropy(model(x), y)
    before = loss(small, x, onehot)
    state = Flux.setup(Flux.Adam(1e-3), small)
    Flux.train!(loss, small, [(x, onehot) for _ in 1:5], state)
    @test loss(small, x, onehot) < before
    @test startswith(OnnxJL.save(small, joinpath(results, "trained.onnx")), "equals Julia's own")
    @test OnnxJL.load(joinpath(results, "trained.onnx"))(x) ≈ small(x)

    # Another head, for another task.
    other = deepcopy(m)
    other["fc"] = Dense(64 => 3)
    @test startswith(OnnxJL.save(other, joinpath(results, "head.onnx")), "equals")
    @test size(OnnxJL.load(joinpath(results, "head.onnx"))(x)) == (3, 64)
    @test size(m(x)) == (10, 64)

    first8 = prune(m, groups(m)[1] => 1:8)
    @testset "$name can be saved" for (name, model) in (
        "f64" => Flux.f64(small),
        "f16" => Flux.f16(small),
        "a GPU's" => Flux.gpu(small),
        "fmap's" => Flux.fmap(x -> x isa Array ? copy(x) : x, small),
        "a copy" => deepcopy(small),
        "a loaded state" => Flux.loadmodel!(prune(m, OnnxJL.plan(first8)), Flux.state(first8)),
    )
        @test OnnxJL.plan(model) isa String
        path = joinpath(results, replace("$name.onnx", ' ' => '-', '\'' => '-'))
        @test startswith(OnnxJL.save(model, path), "equals")
        @test_throws "exists; --force" OnnxJL.save(model, path)
        OnnxJL.save(model, path; force=true, check=false)
    end

    @testset "errors" begin
        @test_throws "no such file" OnnxJL.load("nowhere.onnx")
        made = FluxGraph(Network(Node[], Dict(), ["x"], ["x"], Dict("" => 17)))
        @test_throws "was made in Julia" OnnxJL.save(made, "made.onnx")
    end

    @testset "a model written by hand" begin
        chain = Chain(
            Conv((3, 3), 1 => 8, relu; pad=1), GlobalMeanPool(), Flux.flatten, Dense(8 => 10)
        )
        made = OnnxJL.load(chain, (28, 28, 1, nothing))
        @test made(x) ≈ chain(x)
        @test made["1"].weight === chain[1].weight
        @test startswith(OnnxJL.save(made, joinpath(results, "chain.onnx")), "equals")
        half = prune(made, only(groups(made)) => 1:4)
        @test size(half["1"].weight) == (3, 3, 1, 4)
        @test_throws "OnnxJL.load(model, size)" OnnxJL.save(
            FluxGraph(chain, (28, 28, 1, nothing)), joinpath(results, "none.onnx")
        )
    end
end
