# Which Julia this is, and where it finds packages; loads none of them. It runs in any Julia 1.x.
#
#     julia --project=PROJECT environment.jl NAME=UUID...
#
# prints the version, and a line for each package: its name, a tab, and its file, if it has one.

println(VERSION)
for argument in ARGS
    name, uuid = split(argument, '=')
    file = Base.locate_package(Base.PkgId(Base.UUID(uuid), String(name)))
    println(name, '\t', file === nothing || !isfile(file) ? "" : file)
end
