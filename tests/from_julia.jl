# Loads a network in a Python that Julia started.
#
#     julia from_julia.jl FOLDER_OF_ONNXJL NETWORK

push!(LOAD_PATH, ARGS[1])
using OnnxJL, PythonCall

model = pyimport("onnxjl.flux").to_flux(ARGS[2])
print(pyconvert(Any, model.julia) isa FluxGraph)
