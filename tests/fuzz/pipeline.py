"""What a fuzzed file goes through: load, normalize, groups, prune, and back to bytes."""

from __future__ import annotations

import onnxjl
from onnxjl.errors import OnnxjlError
from onnxjl.serialize import write


class _Nowhere:
    """A file that forgets what is written."""

    def write(self, data: bytes | memoryview) -> object:
        return len(data)


def outcome(data: bytes) -> str:
    """Return how far a file came: "pruned", or the error's name; other exceptions escape."""
    return steps(data)[0]


def steps(data: bytes) -> tuple[str, str]:
    """Return the same with the error's message."""
    try:
        graph = onnxjl.normalize(onnxjl.load(data))
        kinds = {group.kind for group in onnxjl.groups(graph, granularity="head-dim")}
        granularity = "head-dim" if "head-dim" in kinds else "channel"
        small = onnxjl.prune(graph, amount=0.3, granularity=granularity)
        write(small, _Nowhere())
    except OnnxjlError as error:
        return type(error).__name__, str(error)
    return "pruned", ""
