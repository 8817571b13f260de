# Flux's recurrent layers: features × time × batch, ONNX's: time × batch × features.

using Flux: GRU, GRUCell, LSTM, LSTMCell, RNN, RNNCell, Recurrence

const Recurrent = Union{RNN,LSTM,GRU,Recurrence}

# ONNX's gates: input, output, forget, cell; Flux's: input, forget, cell, output.
operator(::LSTMCell) = "LSTM"
gates(::LSTMCell) = [1, 4, 2, 3]
settings(cell::LSTMCell, x) = ()

# ONNX's gates: update, reset, hidden; Flux's: reset, update, hidden.
operator(::GRUCell) = "GRU"
gates(::GRUCell) = [2, 1, 3]
settings(cell::GRUCell, x) = (:linear_before_reset => 1,)

operator(::RNNCell) = "RNN"
gates(::RNNCell) = [1]

function settings(cell::RNNCell, x)
    known = Dict(
        tanh => "Tanh", NNlib.tanh_fast => "Tanh", NNlib.relu => "Relu",
        NNlib.sigmoid => "Sigmoid", NNlib.sigmoid_fast => "Sigmoid",
        NNlib.softsign => "Softsign", NNlib.softplus => "Softplus",
    )
    haskey(known, cell.σ) || throw(UnsupportedOperator(string(
        here(x.writer, owner(x.writer)), ": ONNX's RNN has no activation function ", cell.σ
    )))
    return (:activations => [known[cell.σ]],)
end

biasof(cell) = cell.bias
biasof(cell::GRUCell) = cell.b

"Rows of a matrix or vector of Flux's, a block for each gate, in ONNX's order."
function reordered(cell, x)
    rows = reshape(axes(x, 1), :, length(gates(cell)))[:, gates(cell)]
    return x[vec(rows), ntuple(Returns(:), ndims(x) - 1)...]
end

"A matrix as ONNX has it: directions × rows × columns, with Julia's order reversed."
directed(x) = reshape(permutedims(x), size(x, 2), size(x, 1), 1)

function trace(layer::Recurrent, x::Traced)
    cell = layer.cell
    applicable(gates, cell) || throw(UnsupportedOperator(string(
        here(x.writer, layer), ": ONNX has no operator for its cell, a ", nameof(typeof(cell))
    )))
    first(typeof(layer).parameters) === false || throw(UnsupportedOperator(string(
        here(x.writer, layer), ": it returns its state too (return_state=true)"
    )))
    expect(layer, x, 1, size(cell.Wi, 2))
    hidden = size(cell.Wh, 2)
    weight = tensor(x.writer, "Wi", directed(reordered(cell, cell.Wi)))
    recurrence = tensor(x.writer, "Wh", directed(reordered(cell, cell.Wh)))
    bias = nothing
    if biasof(cell) isa AbstractArray  # ONNX's has one for the input and one for the state.
        b = reordered(cell, biasof(cell))
        bias = tensor(x.writer, "bias", reshape([b; zero(b)], :, 1))
    end
    batched = ndims(x) == 3
    sequence = batched ?
        node("Transpose", (x,), size(x)[[1, 3, 2]], :perm => [1, 0, 2]; name="timefirst") :
        node("Unsqueeze", (x, axestensor(x, [1])), (size(x)[1], 1, size(x)[2]); name="batch")
    _, batch, len = sequence.size
    ys = node(
        operator(cell), (sequence, weight, recurrence, bias), (hidden, batch, 1, len),
        :hidden_size => hidden, settings(cell, x)...,
    )
    if batched
        y = node("Squeeze", (ys, axestensor(x, [1])), (hidden, batch, len); name="direction")
        return node("Transpose", (y,), (hidden, len, batch), :perm => [1, 0, 2]; name="batchfirst")
    end
    return node("Squeeze", (ys, axestensor(x, [1, 2])), (hidden, len); name="direction")
end

axestensor(x::Traced, axes) = tensor(x.writer, "axes", Int64[axes...])

for layer in (:RNN, :LSTM, :GRU, :Recurrence)
    @eval (layer::Flux.$layer)(x::Traced) = called(layer, x)
end
