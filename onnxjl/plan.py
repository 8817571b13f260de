"""Plan: what to remove, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxjl.errors import PlanError

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The edits that turn one normalized graph into a smaller one.

    Parameters
    ----------
    kept : initializer name -> axis -> 0-based sorted indices that stay.
    attributes : node name (or first output, where it has none) -> attribute -> new value.
    constants : integer initializer name -> its whole new value, nested as its shape.
    removed_nodes : names of nodes that go.
    source : ``{"sha256": …, "opset": …}`` of the normalized graph that the names refer to.
    request : what was asked for.
    engine : ``"numpy"`` or ``"flux"``.
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    removed_nodes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "numpy"
