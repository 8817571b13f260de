# Runs the tests of the package OnnxJL as Pkg does, in a copy of the active project.
#
#     julia --project=PROJECT package.jl FOLDER_OF_ONNXJL [PART_OF_A_FILE'S_NAME...]

using Pkg

project = dirname(Base.active_project())
mktempdir() do copied
    for name in ("Project.toml", "Manifest.toml")
        isfile(joinpath(project, name)) && write(joinpath(copied, name), read(joinpath(project, name)))
    end
    Pkg.activate(copied)
    # A machine without a network may have a registry that lacks those of Julia's own packages that
    # have releases of their own.
    own = [joinpath(Sys.STDLIB, name) for name in ("DelimitedFiles", "Statistics")]
    Pkg.develop([PackageSpec(; path) for path in [ARGS[1]; own]])
    # Bounds as in the packages that are compiled already: by itself Pkg compiles them all anew.
    Pkg.test("OnnxJL"; julia_args=`--check-bounds=auto`, test_args=ARGS[2:end])
end
