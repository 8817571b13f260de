"""Coverage-guided fuzzing of whole files: load, normalize, groups, prune, write.

Needs atheris (``pip install atheris``). Run by hand, for as long as one likes::

    python tests/fuzz/files.py --runs 100000

Each round is a process of its own, so that a crash of native code, an input that takes more than a
minute, and one that takes more than a gigabyte of memory are found and the rest goes on. What was
found lies in ``--work``; the counts are added to ``tests/fuzz/counts.json``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
COUNTS = HERE / "counts.json"
SECONDS, BYTES = 60, 1 << 30
_ROUND = 2000


def main() -> None:
    """Fuzz in rounds, and add up what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="number of files")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--work", type=Path, help="folder of the corpus and of what is found")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="onnxjl-fuzz-"))
    for name in ("corpus", "found"):
        (work / name).mkdir(parents=True, exist_ok=True)
    _write_seeds(work / "corpus")
    total: collections.Counter[str] = collections.Counter()
    number = 0
    while (done := sum(total.values())) < arguments.runs:
        log = work / "log"
        log.unlink(missing_ok=True)
        process = subprocess.run(
            [
                sys.executable,
                __file__,
                "--worker",
                str(work),
                str(work / "corpus"),
                f"-runs={min(_ROUND, arguments.runs - done)}",
                f"-seed={arguments.seed + number}",
                f"-timeout={SECONDS}",
                f"-rss_limit_mb={2 * BYTES >> 20}",
                f"-artifact_prefix={work / 'found'}/",
                "-max_len=16384",
                "-len_control=0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=(work / "messages").open("wb"),
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        outcomes = collections.Counter(log.read_text().split() if log.exists() else ())
        if process.returncode:
            outcomes["killed"] += 1
            print(f"round {number} ended with status {process.returncode}", flush=True)
            shutil.copy(work / "messages", work / "found" / f"killed-{number}.txt")
            shutil.copy(work / "current", work / "found" / f"killed-{number}.onnx")
        if not outcomes.total() - outcomes["killed"]:
            sys.exit((work / "messages").read_text(errors="replace")[-4000:])
        total += outcomes
        number += 1
        print(time.strftime("%H:%M:%S"), sum(total.values()), dict(outcomes), flush=True)
        add_counts("files", outcomes)
    found = sorted(path.name for path in (work / "found").iterdir())
    print(f"{work / 'found'}: {', '.join(found) or 'nothing'}")


def add_counts(kind: str, outcomes: collections.Counter[str]) -> None:
    """Add outcomes to those that are on file, which were counted since the last fault was mended.

    Whoever mends one empties its kind's counts, and fuzzes anew.
    """
    counts: dict[str, dict[str, int]] = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    sums = collections.Counter(counts.get(kind, {})) + outcomes
    sums["inputs"] = sum(number for name, number in sums.items() if name != "inputs")
    counts[kind] = dict(sorted(sums.items()))
    COUNTS.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")


def _write_seeds(folder: Path) -> None:
    sys.path.insert(0, str(HERE.parent))
    from seeds import seeds

    for name, model in seeds().items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    for path in (HERE / "corpus").glob("*.onnx"):
        (folder / path.name).write_bytes(path.read_bytes())


class _Worker:
    """One round in this process."""

    def __init__(self, work: Path) -> None:
        self.found = work / "found"
        self.log = (work / "log").open("a", buffering=1)
        self.current = work / "current"

    def run(self, arguments: list[str]) -> None:
        import atheris

        sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parents[1])]
        import logging
        import warnings

        logging.disable()
        warnings.simplefilter("ignore")
        with atheris.instrument_imports(include=["onnxjl"]):
            from mutations import mutated
            from pipeline import outcome
            from seeds import seeds

            # What is imported late is imported now, and instrumented.
            valid = [model.SerializeToString() for model in seeds().values()]
            for model in valid:
                outcome(model)
        self.outcome = outcome

        def mutate(data: bytes, size: int, seed: int) -> bytes:
            if seed % 4:
                # Few changes of something valid go furthest.
                data = mutated(valid[seed % len(valid)] if seed % 3 else data, seed)
            if seed % 4 == 0 or seed % 16 == 1:
                data = atheris.Mutate(data, size)
            return data[:size]

        atheris.Setup([sys.argv[0], *arguments], self.one, custom_mutator=mutate)
        atheris.Fuzz()

    def one(self, data: bytes) -> None:
        """Try one file, and note what came of it."""
        self.current.write_bytes(data)
        before = _memory("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
        start = time.monotonic()
        try:
            result = self.outcome(data)
        except Exception as error:
            result = "escaped"
            self.keep("escaped", data, error)
        if time.monotonic() - start > SECONDS / 6:
            self.keep("slow", data)
        if _memory("VmHWM") - before > BYTES / 4:
            self.keep("memory", data)
        self.log.write(f"{result}\n")

    def keep(self, kind: str, data: bytes, error: Exception | None = None) -> None:
        """Keep one input for each place where it went wrong."""
        text = ""
        if error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "onnxjl" in Path(frame.filename).parts]
            last = ours[-1] if ours else frames[-1]
            text = f"{type(error).__name__} {Path(last.filename).name} {last.name} {last.lineno}"
        key = hashlib.sha256(text.encode() or data).hexdigest()[:12]
        path = self.found / f"{kind}-{key}.onnx"
        if not path.exists():
            path.write_bytes(data)
            if error is not None:
                said = "".join(traceback.format_exception(error))
                path.with_suffix(".txt").write_text(f"{text}\n{said}")


def _memory(key: str) -> int:
    """A line of the process's status in bytes."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _Worker(Path(sys.argv[2])).run(sys.argv[3:])
    else:
        main()
