# Prints what is said where PythonCall, or Python's onnxjl, isn't there.
#
#     julia without_onnxjl.jl FOLDER_OF_ONNXJL FOLDER_OF_PYTHONS

push!(LOAD_PATH, ARGS[1])
using OnnxJL

said() =
    try
        OnnxJL.load("x.onnx")
    catch e
        split(sprint(Base.display_error, e, Nothing[]), '\n')
    end

foreach(println, filter(contains("PythonCall"), said()))
using PythonCall
path = pyimport("sys").path
while ARGS[2] in path
    path.remove(ARGS[2])
end
foreach(println, filter(contains("onnxjl"), said()))
