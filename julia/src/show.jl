function Base.show(io::IO, call::Call)
    print(io, operator(call), "(")
    shown = [string(k, "=", v) for (k, v) in pairs(call.keywords) if k ∉ CONTEXT]
    print(io, join(shown, ", "), ")")
end

Base.show(io::IO, graph::FluxGraph) =
    print(io, "FluxGraph(", length(graph.layers), " layers, ", counted(graph), " parameters)")

function Base.show(io::IO, ::MIME"text/plain", graph::FluxGraph)
    get(io, :compact, false) && return show(io, graph)
    println(io, "FluxGraph(")
    rows = map(graph.layers, graph.program.steps) do layer, step
        string("  \"", step.name, "\" => ", layer, ","), counted(layer)
    end
    held = zip(graph.program.parameters, graph.parameters)
    append!(rows, [
        (string("  \"", graph.program.values[slot], "\" => ", summary(x), ","), length(x))
        for (slot, x) in held
    ])
    width = min(72, maximum(length(text) for (text, _) in rows; init=0))
    for (text, count) in rows
        println(io, count == 0 ? text : string(rpad(text, width), "  # ", underscored(count), " parameters"))
    end
    arrays = Flux.trainables(graph)
    print(io, ")", " "^max(1, width - 1), "  # Total: ", length(arrays), " arrays, ")
    print(io, underscored(sum(length, arrays; init=0)), " parameters, ")
    print(io, Base.format_bytes(sum(sizeof, arrays; init=0)), ".")
end

counted(layer) = sum(length, Flux.trainables(layer); init=0)
counted(::Call) = 0

"A number with its digits in groups of three."
function underscored(n::Integer)
    digits = string(n)
    head = mod1(length(digits), 3)
    return join([digits[1:head]; [digits[i:(i + 2)] for i in (head + 1):3:length(digits)]], '_')
end
