# Where a network's arrays are: in ordinary memory, or on a GPU that Julia can use.

using Flux: MLDataDevices, cpu_device, gpu_device

"Packages that bring a GPU, by its maker; MLDataDevices wants all of a line."
const GPU_PACKAGES = [["CUDA", "cuDNN"], ["AMDGPU"], ["Metal"], ["oneAPI"]]

"""
    todevice(graph, device) -> FluxGraph

The network on `"cpu"`, or on the `"gpu"` that MLDataDevices finds; loads the package that the GPU
needs, where the Julia project has it.
"""
function todevice(graph::FluxGraph, device)
    device == "cpu" && return cpu_device()(graph)
    for packages in GPU_PACKAGES
        all(name -> Base.find_package(name) !== nothing, packages) || continue
        foreach(name -> Base.require(Main, Symbol(name)), packages)
    end
    return Base.invokelatest(togpu, graph)
end

function togpu(graph)
    MLDataDevices.reset_gpu_device!()  # What it found before the packages were loaded.
    device = try
        gpu_device(; force=true)
    catch cause
        cause isa MLDataDevices.Internal.DeviceSelectionException || rethrow()
        throw(ArgumentError(
            "no GPU works here: for NVIDIA's, Julia needs the packages CUDA and cuDNN, for others " *
            "AMDGPU, Metal or oneAPI, and a driver; device=\"cpu\" needs none"
        ))
    end
    return device(graph)
end

"""
    mover(x)

The function that brings arrays to where an array, or a network's, is.
"""
mover(::Array) = identity
mover(::Nothing) = identity
mover(x::AbstractArray) = MLDataDevices.get_device(x)
mover(graph) = mover(firstarray(graph))

"The first array of a functor, or nothing."
firstarray(x::AbstractArray{<:Number}) = x
function firstarray(x)
    for child in Flux.Functors.children(x)
        found = firstarray(child)
        found === nothing || return found
    end
    return nothing
end

const PRECISIONS = Dict(16 => Flux.f16, 32 => Flux.f32, 64 => Flux.f64)

"The network with floating arrays of so many bits an element."
function inprecision(graph, bits)
    x = firstarray(graph)
    return x === nothing || 8 * sizeof(eltype(x)) == bits ? graph : PRECISIONS[bits](graph)
end

"The network in ordinary memory."
oncpu(graph) = mover(graph) === identity ? graph : cpu_device()(graph)
