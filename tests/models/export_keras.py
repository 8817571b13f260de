"""Make skeletons of Keras networks, converted by tf2onnx, with random weights.

    python -m tests.models.export_keras [--only NAME ...] [--keep FOLDER]

Needs tensorflow-cpu (with Keras), tf2onnx, onnx and onnxruntime, best in a virtual environment of
their own; the versions that made the committed files are in README.md. Each network is converted
at two opsets, with a dynamic batch. What sets these files apart: channels come last in the
original, so transposes surround the convolutions, normalization is folded or spelled out, and
initializers have no names that say what they are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import onnx
import tensorflow
import tf2onnx

from .skeleton import strip
from .verify import check_equal, run, write_skeleton

FOLDER = Path(__file__).parent / "skeletons"
OPSETS = (13, 17)
BATCH = 2


def attention_network() -> keras.Model:
    """Embedding, Keras's own multi-head attention, feed-forward, LSTM: (batch, 16) int → 5."""
    tokens = keras.Input((16,), dtype="int32")
    x = keras.layers.Embedding(100, 32)(tokens)
    attended = keras.layers.MultiHeadAttention(num_heads=4, key_dim=8)(x, x)
    x = keras.layers.LayerNormalization()(x + attended)
    hidden = keras.activations.gelu(keras.layers.Dense(64)(x), approximate=True)
    x = keras.layers.LayerNormalization()(x + keras.layers.Dense(32)(hidden))
    x = keras.layers.LSTM(24)(x)
    return keras.Model(tokens, keras.layers.Dense(5)(x))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "keras_mobilenet_v2": lambda: keras.applications.MobileNetV2(weights=None),
    "keras_resnet50": lambda: keras.applications.ResNet50(weights=None),
    "keras_attention": attention_network,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    arguments.add_argument("--keep", type=Path, help="keep the complete models in this folder")
    options = arguments.parse_args()
    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in options.only:
        keras.utils.set_random_seed(0)
        network = NETWORKS[name]()
        sample = prepare(network)
        for opset in OPSETS:
            print(f"{name}.tf{opset}: {make(name, network, sample, opset, options.keep)}")


def prepare(network: keras.Model) -> np.ndarray:
    """Give a network weights that hide nothing, and return an input for it.

    Batch normalization gets statistics with which its output has a mean square near 1, and the
    last layer weights whose scores have one too, so that softmax neither saturates nor flattens.
    """
    generator = np.random.default_rng(1)
    shape = (BATCH, *network.input_shape[1:])
    integer = network.inputs[0].dtype.startswith("int")
    sample = (
        generator.integers(0, 100, shape, np.int32) if integer else generator.normal(size=shape)
    )
    sample = sample if integer else sample.astype(np.float32)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = keras.Model(network.input, layer.input)(sample).numpy()
            square = float((before**2).mean())
            size = before.shape[-1]
            layer.set_weights(
                [
                    generator.uniform(0.8, 1.2, size),
                    generator.normal(0, 0.1, size),
                    generator.normal(0, 0.1 * square**0.5, size),
                    generator.uniform(0.8 * square, 1.2 * square, size),
                ]
            )
    head = network.layers[-1]
    features = keras.Model(network.input, head.input)(sample).numpy()
    kernel, bias = head.get_weights()
    spread = 1 / float(np.sqrt((features**2).sum(1).mean()))
    head.set_weights(
        [generator.normal(0, spread, kernel.shape), generator.normal(0, 0.1, bias.shape)]
    )
    return sample


def make(name: str, network: keras.Model, sample: np.ndarray, opset: int, keep: Path | None) -> str:
    """Convert a network, check it, and write its skeleton; say how large both are."""
    signature = tensorflow.TensorSpec((None, *sample.shape[1:]), sample.dtype, name="input")
    call = tensorflow.function(
        lambda input: network(input, training=False), input_signature=(signature,)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = (keep or Path(folder)) / f"{name}.tf{opset}.onnx"
        tf2onnx.convert.from_function(
            call, input_signature=(signature,), opset=opset, output_path=str(file)
        )
        model = onnx.load(file)
        size = file.stat().st_size
    feeds = {"input": sample}
    results = run(model.SerializeToString(), feeds)
    check_equal(results, [network(sample, training=False).numpy()])
    if keep is not None:
        np.savez_compressed(
            keep / f"{name}.tf{opset}.io.npz",
            **{"in::input": sample, f"out::{model.graph.output[0].name}": results[0]},
        )
    description = {"shape": list(sample.shape), "batch_axis": 0}
    if sample.dtype.kind == "i":
        description["high"] = 100
    target = FOLDER / f"{name}.tf{opset}.onnx.xz"
    write_skeleton(strip(model, {"input": description}), target)
    return f"{size / 1e6:.1f} MB, skeleton {target.stat().st_size / 1e3:.1f} kB"


if __name__ == "__main__":
    main()
