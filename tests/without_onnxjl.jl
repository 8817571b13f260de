# Prints what is said where PythonCall, or Python's onnxjl, isn't there.
#
#     julia without_onnxjl.jl FOLDER_OF_ONNXJL

push!(LOAD_PATH, ARGS[1])
using OnnxJL

said() =
    try
        OnnxJL.load("x.onnx")
    catch e
        split(sprint(showerror, e), '\n')
    end

println(last(said()))
using PythonCall
pyimport("sys").modules["onnxjl"] = nothing  # as if it weren't installed
println(only(said()))
