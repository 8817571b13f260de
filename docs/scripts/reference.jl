# Write the page of OnnxJL's public names from their docstrings.
#
#     julia --project=PROJECT docs/scripts/reference.jl [FILE]
#
# PROJECT has OnnxJL's dependencies. Without FILE it is docs/reference/julia.md.

push!(LOAD_PATH, joinpath(@__DIR__, "..", "..", "julia"))
using OnnxJL
using Flux: Chain

const TOPICS = [
    "Networks" => [:FluxGraph, :load, :save, :Chain, :gradients],
    "Pruning" => [:groups, :Group, :Member, :slice, :prune, :blocks, :Block, :removeblocks, :plan, :Edits],
    "Masks" => [:mask!],
    "Networks as data" => [:Network, :Node, :network],
    "Layers of one's own" => [:trace, :tensor, :node],
    "Errors" => [:UnsupportedOperator],
]

const TOP = """
# Julia

<!-- Written by `julia --project=PROJECT docs/scripts/reference.jl`; don't edit. -->

The package OnnxJL is a part of the Python package, and works in a Julia session without it, too, but
for what reads and writes files or finds groups; [Julia](../julia.md#from-a-julia-session) says how to
get there and shows a session. Arrays are in Julia's order: ONNX's dimensions reversed, so samples come
last. Numbers of units and labels of dimensions count from 1, unless it is said that they are ONNX's.
"""

"The docstrings that OnnxJL has for a name, in the order of the source."
function docstrings(name)
    found = String[]
    for owner in (OnnxJL, OnnxJL.Operators), (binding, docs) in Base.Docs.meta(owner)
        binding.var === name || continue
        append!(found, (join(docs.docs[signature].text) for signature in docs.order))
    end
    # Those without a signature are of methods for OnnxJL itself.
    filter!(startswith("    "), found)
    isempty(found) && error("OnnxJL.$name has no docstring with a signature")
    return found
end

"A docstring as a page shows it: its signature as a block, references as links."
function shown(text, public)
    text = replace(strip(text, '\n'), r"^```jldoctest.*$"m => "```text")
    text = replace(text, r"\[(`[^`\]]+`)\]\(@ref\)" => s -> reference(s, public))
    lines = split(text, '\n')
    body = findfirst(line -> !isempty(line) && !startswith(line, "    "), lines)
    (body === nothing || body == 1) && return text
    signature = rstrip(join((chopprefix(line, "    ") for line in lines[1:(body - 1)]), '\n'))
    return string("```text\n", signature, "\n```\n\n", join(lines[body:end], '\n'))
end

function reference(text, public)
    quoted = match(r"`[^`]+`", text).match
    name = strip(quoted, '`')
    return Symbol(name) in public ? "[$quoted](#$(anchor(Symbol(name))))" : String(quoted)
end

"What a site or GitHub calls the place of a heading."
anchor(name) = lowercase(replace(heading(name), r"[^\w\- ]" => ""))

heading(name) = Base.isexported(OnnxJL, name) || name === :Chain ? "$name" : "OnnxJL.$name"

function page()
    public = Set(Iterators.flatten(last.(TOPICS)))
    missed = setdiff(names(OnnxJL), public, [:OnnxJL])
    isempty(missed) || error("exported, and in no topic: ", join(missed, ", "))
    parts = [TOP]
    for (topic, listed) in TOPICS
        push!(parts, "## $topic\n")
        for name in listed
            push!(parts, "### $(heading(name))\n")
            append!(parts, (shown(text, public) * "\n" for text in docstrings(name)))
        end
    end
    return join(parts, '\n')
end

write(get(ARGS, 1, joinpath(@__DIR__, "..", "reference", "julia.md")), page())
