"""Names of any kind: shown, and never carried out by a terminal, a shell, a browser or Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxjl
from onnxjl.cli import main
from onnxjl.errors import OnnxjlError, OutputError, UsageError
from onnxjl.printable import printable, printable_json

EVIL = [
    "\x1b[31mred\x1b]0;title\x07",
    "a\ncheck: equal\r\x0b",
    "'; touch MARK; \"$(touch MARK)`touch MARK`",
    "$(run(`touch MARK`)) end; Base.run(`touch MARK`)",
    "__import__('os').system('touch MARK')",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "%s%n{0.__class__}{x!r}{}",
    "\u202egnp.exe\u2066",
    "\x00\x9b31m",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Layers one after another, each with a name of these in every place that takes one."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], f"in{EVIL[0]}"
    for i, evil in enumerate(EVIL):
        array = generator.standard_normal((4, 4)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{i}{evil}"))
        made = f"h{i}{evil}"
        nodes.append(helper.make_node("MatMul", [last, weights[-1].name], [made], name=evil))
        last = f"r{i}{evil}"
        nodes.append(helper.make_node("Relu", [made], [last], doc_string=evil))
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            EVIL[0],
            [helper.make_tensor_value_info(f"in{EVIL[0]}", 1, ["N", 4])],
            [helper.make_tensor_value_info(last, 1, None)],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name=EVIL[0] + EVIL[5],
        producer_version=EVIL[1],
    )
    helper.set_model_props(proto, {evil: evil for evil in EVIL})
    path = tmp_path / "a $(touch MARK)\x1b[31m.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 中文 \N{GRINNING FACE}", "plain, naïve, 中文 \N{GRINNING FACE}"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb", r"a\nb"),
        ("\x9b\u202e\udcff\x00", r"\x9b\u202e\udcff\x00"),
        ("a\u00a0b", "a\u00a0b"),
        (r"\x1b", r"\x1b"),
    ],
)
def test_what_is_not_printable_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert printable(f"{text}\n", lines=True).endswith("\n")


def test_json_stays_what_it_says() -> None:
    value = {evil: [evil, "\U000e0001\udcff"] for evil in EVIL}
    text = printable_json(json.dumps(value, indent=1, ensure_ascii=False))
    assert json.loads(text) == value
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("kind", [OnnxjlError, OutputError, UsageError])
def test_errors_are_one_line_that_can_be_printed(kind: type[OnnxjlError]) -> None:
    assert str(kind("node 'a\n\x1b[31m'")) == r"node 'a\n\x1b[31m'"


def is_harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\u00a0" for c in text)


def test_no_command_prints_what_a_terminal_carries_out(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    target = model.with_name("small $(touch MARK).onnx")
    pruning = ["prune", model, "-o", target, "--amount", "0.4", "--plan", f"{target}.json"]
    commands = [
        ["info", model],
        ["groups", model],
        ["groups", model, "--granularity", "block"],
        ["normalize", model, "-o", model.with_name("normal.onnx"), "--no-check"],
        pruning,
        ["apply", model, f"{target}.json", "-o", f"{target}2", "--no-check", "--no-measure"],
        ["sparsify", model, "-o", f"{target}3", "--amount", "0.5", "--no-check", "--no-measure"],
        ["compare", model, target],
        ["report", model, target, "-o", f"{target}.html"],
    ]
    for command in commands:
        for json_ in ([], ["--json", *(["--force"] if "-o" in command else [])]):
            status = main([*map(str, command), *json_])
            captured = capsys.readouterr()
            assert is_harmless(captured.out), command[0]
            assert is_harmless(captured.err), command[0]
            assert status == 0 or command[0] == "compare", captured.err
            if json_:
                json.loads(captured.out)
            elif command is pruning:
                assert r"\x1b[31mred" in captured.out
                assert "\ncheck: equal\n" not in captured.out
    for name in ("--ignore=\x1b[31m", "--amount-for=\x1b[31m=0.5"):
        assert main(["prune", str(model), "-o", "x.onnx", "--amount", "0.4", name])
        assert is_harmless(capsys.readouterr().err)
    assert main(["info", "none\x1b[31m\n.onnx"]) == 1
    assert is_harmless(capsys.readouterr().err)
    assert not list(model.parent.glob("**/MARK"))


def test_a_page_shows_names_as_text(model: Path, tmp_path: Path) -> None:
    onnxjl.report(model, onnxjl.prune(model, amount=0.4), measure=False).save(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert is_harmless(text)
    assert "[31mred" in text

    elements: list[tuple[str, list[str]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            elements.append((tag, [name for name, _ in attrs]))

    Reader().feed(text)
    assert [tag for tag, _ in elements].count("script") == 1
    assert "img" not in [tag for tag, _ in elements]
    assert not [name for _, names in elements for name in names if name.startswith("on")]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding(model: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxjl", "info", str(model)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert is_harmless(done.stdout.decode(encoding))
