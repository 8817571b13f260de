"""Write docs/operators.md: what the Flux engine knows of each ONNX operator, and ONNX's verdicts.

``python tests/backend_table.py`` writes it from OnnxJL's own list and ``backend_verdicts.json``,
which ``python tests/backend_suite.py`` writes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from backend_exclusions import EXCLUSIONS
from backend_suite import EXPANDED, KINDS, VERDICTS, Verdict, saved

from onnxjl.flux import julia
from onnxjl.structure.rules import RULES

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

HEAD = """# Operators of the Flux engine

<!-- Written by `python tests/backend_table.py`; don't edit. -->

What ONNX's own backend tests (onnx {onnx}) say of `onnxjl.backend`, which loads a network, makes
Flux layers of it (`to_flux`), runs them in Julia and compares outputs by ONNX's tolerance, shape
and element type. `python tests/backend_suite.py` runs them all. What isn't supported raises
`UnsupportedOperator`, which names the node, its operator and the version of its operator set.

*Baked*: the same once more with all inputs but the first as constants, so that an operator becomes
a layer of Flux's where there is one. *Exported*: what passed, written to ONNX again, and judged by
the same test: in onnxruntime {onnxruntime}, or in onnx.reference, for the {reference:,} tests whose
original onnxruntime doesn't pass either.

"""

OPERATORS = """
## Operators

*Versions* are those of the operator set in which ONNX changed the operator, from the first to the
last one here; networks of sets before 13 are raised to 17 as they are loaded. *In Julia* is the
layer that a node with constant weights becomes, where all of its attributes are ones that the layer
has; otherwise, and with computed weights, it is a function that does the same. A gradient goes
through what is *differentiable*. *Tests*: those of this operator alone that pass, of all but those
with element types that Julia lacks. *Exported*: of those that pass. *Prunable*: the analysis has a
rule for the operator; what one without a rule touches stays as it is.

| operator | versions | in Julia | differentiable | tests | exported | prunable |
| --- | --- | --- | --- | ---: | ---: | --- |
"""

MISSING = """
## What isn't there

| tests | why |
| ---: | --- |
"""


@dataclass(frozen=True)
class Operator:
    """An operator that OnnxJL knows.

    Parameters
    ----------
    domain, name : as ONNX has them.
    differentiable : whether gradients go through it.
    """

    domain: str
    name: str
    differentiable: bool

    @property
    def label(self) -> str:
        """The name with its domain, as `backend_suite.operators` gives it."""
        return f"{self.domain}::{self.name}" if self.domain else self.name


def known() -> list[Operator]:
    """Return OnnxJL's list of operators."""
    return [Operator(str(d), str(o), bool(x)) for d, o, x in julia().operators()]


def write(operators: list[Operator], verdicts: Mapping[str, Verdict], versions: Mapping) -> str:
    """Return the page."""
    return (
        HEAD.format(**versions, reference=sum(v.engine == "reference" for v in verdicts.values()))
        + _counts(verdicts)
        + OPERATORS
        + "\n".join(_row(operator, verdicts) for operator in operators)
        + "\n"
        + MISSING
        + _missing(verdicts)
    )


def _counts(verdicts: Mapping[str, Verdict]) -> str:
    groups = {kind: [v for v in verdicts.values() if v.kind == kind] for kind in KINDS}
    groups["node, expanded functions"] = [
        v for name, v in verdicts.items() if v.kind == "node" and EXPANDED in name
    ]
    groups["together"] = list(verdicts.values())
    lines = [
        "| tests | all | pass | unsupported | wrong | error | baked | exported |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group, members in groups.items():
        count = Counter(v.verdict for v in members)
        baked = [v.baked for v in members if v.baked]
        cells = [
            f"{len(members):,}",
            *(f"{count[v]:,}" for v in ("pass", "unsupported", "wrong", "error")),
            f"{baked.count('pass'):,} of {len(baked):,}" if baked else "",
            f"{sum(v.exported == 'pass' for v in members):,} of {count['pass']:,}",
        ]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _row(operator: Operator, verdicts: Mapping[str, Verdict]) -> str:
    history = [
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if (schema.domain, schema.name) == (operator.domain, operator.name)
    ]
    layers = {
        kind
        for verdict in verdicts.values()
        for known_as, _, kind in (layer.partition(": ") for layer in verdict.layers)
        if known_as == operator.label
    }
    holds_graphs = operator.label in ("If", "Loop", "Scan", "SequenceMap")
    own = [
        v
        for name, v in verdicts.items()
        if v.kind == "node"
        and EXPANDED not in name
        and (v.operators == [operator.label] or (operator.label in v.operators and holds_graphs))
    ]
    judged = [v for v in own if not _typed(v)]
    passed = [v for v in judged if v.verdict == "pass"]
    cells = [
        f"`{operator.label}`",
        f"{min(history)}–{max(history)}" if history else "",
        ", ".join(f"`{layer}`" for layer in sorted(layers)) or "function",
        "yes" if operator.differentiable else "",
        f"{len(passed)} of {len(judged)}" if judged else "",
        f"{sum(v.exported == 'pass' for v in passed)}" if passed else "",
        "yes" if (operator.domain, operator.name) in RULES else "",
    ]
    return f"| {' | '.join(cells)} |"


def _typed(verdict: Verdict) -> bool:
    """Whether a test has an element type that Julia lacks."""
    return verdict.verdict == "unsupported" and any(
        text in verdict.reason for text in (" holds ", "ONNX's element type")
    )


def _missing(verdicts: Mapping[str, Verdict]) -> str:
    found: dict[str, int] = defaultdict(int)
    for name, verdict in verdicts.items():
        if verdict.verdict != "pass":
            reason = next(e.reason for e in EXCLUSIONS if e.covers(name))
            found[reason] += 1
    return "".join(f"| {n} | {r} |\n" for r, n in sorted(found.items(), key=lambda x: -x[1]))


def main() -> None:
    """Write the page."""
    versions = {k: v for k, v in json.loads(VERDICTS.read_text()).items() if k != "tests"}
    PAGE.write_text(write(known(), saved(), versions), encoding="utf-8")


if __name__ == "__main__":
    main()
