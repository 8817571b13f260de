"""Run notebooks from a clean start, and keep what they print.

    python notebooks/run.py [PART OF A NAME …]

Each runs in a folder of its own, beside a link to the repository's ``tests``, so what it writes is
gone afterwards. Its outputs are written into the notebook as a reader should find them: the last
state of each progress bar, none that is wiped, no times of execution, no paths of this machine.

A notebook in Julia is made from the script beside it, and has no outputs: it needs IJulia's kernel.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
TIMEOUT = 600  # seconds for a cell; a whole notebook should take less than 300


def main() -> None:
    """Run the notebooks whose names contain one of the arguments, or all."""
    parts = sys.argv[1:]
    for path in sorted(FOLDER.rglob("*.ipynb")):
        if not parts or any(part in str(path.relative_to(FOLDER)) for part in parts):
            print(path.relative_to(ROOT), flush=True)
            script = path.with_suffix(".jl")
            nbformat.write(of_script(script) if script.exists() else run(path), path)


def run(path: Path) -> Any:
    """Execute a notebook.

    Parameters
    ----------
    path : path of the notebook, which is left as it is

    Returns
    -------
    nbformat.NotebookNode
        The notebook with its new outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve() / FOLDER.name
        place.mkdir()
        (place.parent / "tests").symlink_to(ROOT / "tests", target_is_directory=True)
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(place)}},
        )
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # asyncio's and ZeroMQ's, as nbclient uses them
            client.execute(env=environment)
        hide = {str(place): ".", str(place.parent): "..", str(ROOT): "..", str(Path.home()): "~"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [clean(output, hide) for output in joined(cell.outputs)]
            # What is left of a bar that was wiped is nothing.
            cell.outputs = joined([o for o in outputs if o.get("text", "-").strip()])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        **{name: notebook.metadata[name] for name in ("onnxjl",) if name in notebook.metadata},
    }
    return notebook


def of_script(path: Path) -> Any:
    """Return a Julia script as a notebook, whose text are comments that stand alone.

    Parameters
    ----------
    path : path of the script

    Returns
    -------
    nbformat.NotebookNode
        The notebook, without outputs.
    """
    import jupytext

    notebook = jupytext.read(path, fmt="jl:light")
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Julia", "language": "julia", "name": "julia-1.10"},
        "language_info": {"name": "julia"},
    }
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Join what follows each other on one stream."""
    found: list[Any] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            found.append(output)
    return found


def clean(output: Any, hide: dict[str, str]) -> Any:
    """Return an output as a reader should find it."""
    if output.output_type == "stream":
        output.text = _text(output.text, hide)
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(data, str):
            output.data[kind] = _text(data, hide)
    return output


def _text(text: str, hide: dict[str, str]) -> str:
    """Return text without machine paths, each line as it stood in the end."""
    for path, name in hide.items():
        text = text.replace(path, name)
    # A bar is drawn over itself, and wiped in the end.
    lines = [re.sub(r"\x1b\[\d*K", "", line).rstrip("\r") for line in text.split("\n")]
    return "\n".join(line.rsplit("\r", 1)[-1].rstrip() for line in lines)


if __name__ == "__main__":
    main()
