# Makes garbage on every thread at once.
function filltexts(n)
    counts = zeros(Int, n)
    Threads.@threads for i in 1:n
        texts = Any[]
        for k in 1:20000
            push!(texts, string(k))
        end
        counts[i] = length(texts)
    end
    return sum(counts)
end
