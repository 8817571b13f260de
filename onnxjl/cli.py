"""The command line: what can be asked for, and how it ends."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import onnxjl
from onnxjl.errors import OnnxjlError, UsageError
from onnxjl.printable import printable

DONE, FAILED, MISUSED = 0, 1, 2
"""Exit status. Ctrl-C is a failure like others."""

DEBUG = "ONNXJL_DEBUG"
"""Environment variable: set to anything, errors show Python's traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : as after ``onnxjl`` in a shell; those of this process if not given.

    Returns
    -------
    Exit status: 0 done, 1 failed or interrupted, 2 misused.
    """
    parser = make_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as error:
        return int(error.code or DONE)
    if options.command is None:
        parser.print_help(sys.stderr)
        return MISUSED
    # A terminal that knows other characters only gets to see their numbers.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Files that are complete, for whoever asks after an interruption.
    options.written = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_warning
            # What a library logs of a broken model, our error says in one line.
            logging.getLogger("onnx_ir").setLevel(logging.ERROR)
            commands = import_module("onnxjl.commands")
            status: int = getattr(commands, options.command)(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        # Python remembers one that leaves a text which is executed, as dataclasses are, and ends by
        # the signal whatever we return. Executing another text makes it forget.
        exec("")
        done = ", ".join(options.written)
        end = f"already written: {done}" if done else "nothing was written"
        return _end(f"interrupted; {end}", FAILED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        return _end(f"error: {error}", MISUSED)
    except OnnxjlError as error:
        return _end(f"error: {error}", FAILED)
    except MemoryError:
        return _end("error: out of memory", FAILED)
    except Exception as error:
        return _end(
            f"error: unexpected {type(error).__name__}: {error} (a fault of onnxjl; please report "
            f"it with what {DEBUG}=1 shows)",
            FAILED,
        )


def _end(message: str, status: int) -> int:
    """Say in one line how the command ended."""
    if os.environ.get(DEBUG):
        traceback.print_exc()
    print(f"onnxjl: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, without all that there is besides."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"onnxjl: error: {message} (see {self.prog} --help)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help whose options aren't broken at their hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    text = printable(" ".join(str(message).split()))
    print(f"onnxjl: warning: {text}", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="onnxjl",
        description="Make trained ONNX networks smaller by removing whole channels, hidden units "
        "and attention heads.",
        epilog="example:\n"
        "  onnxjl groups net.onnx                          what could go, and what couldn't\n"
        "  onnxjl prune net.onnx -o small.onnx --macs 0.5  half the multiply–accumulates\n\n"
        "Each command has its own --help. Exit status: 0 done, 1 failed, 2 misused.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"onnxjl {onnxjl.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (
        _info,
        _normalize,
        _groups,
        _prune,
        _sparsify,
        _apply,
        _compare,
        _report,
        _experiment,
        _doctor,
        _completion,
    ):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, summary: str, description: str, example: str, *, json: bool = True
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=_Help,
    )
    command.set_defaults(command=name)
    if json:
        command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return command


def _info(commands: Any) -> None:
    command = _command(
        commands,
        "info",
        "what is in a model",
        "Print a model's inputs, outputs, operators, parameters, multiply–accumulates (MACs) and\n"
        "layers. Works on any ONNX model, whether or not it can be pruned.",
        "  onnxjl info net.onnx",
    )
    _model(command)


def _normalize(commands: Any) -> None:
    command = _command(
        commands,
        "normalize",
        "write a model in the form that pruning works on",
        "Rewrite a model without a change in what it computes: constants folded, each concept\n"
        "written in one way, names kept. `onnxjl prune` does the same first, so the names in its\n"
        "plans are those of this file.",
        "  onnxjl normalize net.onnx -o normal.onnx --opset 20",
    )
    _model(command)
    _output(command)
    command.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="raise the operator set to this version (default: keep it, at least 13)",
    )


def _groups(commands: Any) -> None:
    command = _command(
        commands,
        "groups",
        "what can be removed together, and why not more",
        "Print the groups of a model: layers whose channels (or hidden units, or heads) can only\n"
        "go together, how many each has, and what removing one saves; then what stays whole and\n"
        "why. With --granularity block, the residual branches that can go as a whole.",
        "  onnxjl groups net.onnx --granularity head\n  onnxjl groups net.onnx --granularity block",
    )
    _model(command)
    _offer(command)


def _prune(commands: Any) -> None:
    command = _command(
        commands,
        "prune",
        "make a model smaller",
        "Remove the least important channels, hidden units or heads until a budget is met. The\n"
        "new file is compared with the original in onnxruntime before it gets its name.",
        "  onnxjl prune net.onnx -o small.onnx --macs 0.5\n"
        "  onnxjl prune net.onnx -o small.onnx --latency 0.5\n"
        "  onnxjl prune net.onnx -o small.onnx --amount 0.3 --scope local --ignore 'head*'\n"
        "  onnxjl prune net.onnx -o small.onnx --macs 0.5 --params 0.6 --scope optimal\n"
        "  onnxjl prune net.onnx -o small.onnx --params 0.4 --criterion activation --data x.npz\n"
        "  onnxjl prune net.onnx -o small.onnx --macs 0.5 --calibrate x.npz\n"
        "  onnxjl prune net.onnx -o small.onnx --macs 0.7 --granularity block\n"
        "  onnxjl prune net.onnx -o small.onnx --macs 0.5 --engine flux --criterion taylor \\\n"
        "      --data train.npz --finetune 3",
    )
    _model(command)
    _output(command)
    budget = command.add_argument_group(
        "budget (exactly one, several with --scope optimal, or --amount-for alone)"
    )
    for name, help_ in (
        ("macs", "keep this fraction of the multiply–accumulates"),
        ("params", "keep this fraction of the parameters"),
        ("bytes", "keep this fraction of the weights' bytes"),
        ("latency", "keep this fraction of the time that onnxruntime takes here, on one thread"),
        ("amount", "remove this fraction of all prunable units"),
    ):
        budget.add_argument(f"--{name}", type=float, metavar="F", help=help_)
    budget.add_argument(
        "--amount-for",
        action="append",
        default=[],
        metavar="PATTERN=F",
        help="remove this fraction of the units of matching layers; can be repeated",
    )
    choice = command.add_argument_group("which units go")
    choice.add_argument(
        "--criterion",
        default="l2",
        metavar="NAME",
        help="how important a unit is: random, l1, l2, linf, bn-scale, lamp, fpgm; with --data "
        "or --calibrate also activation, apoz, hrank, reconstruction; with --engine flux also "
        "synflow, and with labelled --data taylor, fisher, obd, snip, grasp, hessian-trace; or a "
        "function of your own, FILE.py:NAME, or with --engine flux FILE.jl:NAME. Of blocks: "
        "random, l2, bn-scale; with --data also relative-change, block-influence; or a function of "
        "your own (default: l2)",
    )
    choice.add_argument(
        "--scope",
        default="global",
        choices=("global", "local", "isomorphic", "erk", "sensitivity", "optimal"),
        help="global: rank all units together; local: take the same share of each group; "
        "isomorphic: rank within groups of the same topology; erk: keep densities of an "
        "Erdős–Rényi kernel; sensitivity: raise the outputs' error by the same in each group, "
        "measured on --data; optimal: keep the largest sum of scores, by integer programming "
        "(default: global)",
    )
    choice.add_argument(
        "--aggregation",
        default="mean",
        choices=("mean", "sum", "max"),
        help="how the scores of coupled layers become one (default: mean)",
    )
    choice.add_argument(
        "--normalization",
        choices=("mean", "max", "none"),
        help="what a group's scores are divided by, to be comparable (default: mean)",
    )
    choice.add_argument(
        "--data",
        metavar="FILE.npz",
        help="samples for criteria, for --scope sensitivity and for fine-tuning: arrays named as "
        "the model's inputs, labels as 'target'",
    )
    choice.add_argument(
        "--round-to",
        type=_step,
        metavar="N",
        help="widths become multiples of N; auto: of what onnxruntime is fast at on this machine, "
        "measured once (default: 1; with --latency, auto)",
    )
    choice.add_argument(
        "--min-units", type=int, default=1, metavar="N", help="units that every group keeps"
    )
    choice.add_argument("--seed", type=int, default=0, metavar="N", help="for --criterion random")
    _offer(command)
    recovery = command.add_argument_group("recovery of what the removed units computed")
    recovery.add_argument(
        "--calibrate",
        metavar="FILE.npz",
        help="inputs to recover with, named as the model's inputs; labels aren't needed. Never use "
        "the data that accuracy is reported on",
    )
    recovery.add_argument(
        "--recover",
        choices=("refit", "bn"),
        help="refit: solve every layer anew so that it computes what the original did; bn: only "
        "estimate batch normalization anew (default: refit, with --calibrate)",
    )
    _finetuning(command)
    command.add_argument("--plan", metavar="FILE", help="also write what was removed, as JSON")
    _measurements(command)


def _sparsify(commands: Any) -> None:
    command = _command(
        commands,
        "sparsify",
        "set single weights to zero",
        "Set the least important weights to zero, each on its own or N of every M. Nothing gets\n"
        "smaller, and nothing faster in onnxruntime: this is for files that are compressed, for\n"
        "hardware and runtimes that skip zeros, and for experiments. The new file is compared\n"
        "with the sparse network before it gets its name.",
        "  onnxjl sparsify net.onnx -o sparse.onnx --amount 0.8\n"
        "  onnxjl sparsify net.onnx -o sparse.onnx --pattern 2:4 --criterion wanda --data x.npz\n"
        "  onnxjl sparsify net.onnx -o sparse.onnx --amount 0.9 --engine flux --data train.npz \\\n"
        "      --finetune 3",
    )
    _model(command)
    _output(command)
    budget = command.add_argument_group("how many (exactly one)")
    budget.add_argument(
        "--amount", type=float, metavar="F", help="this fraction of the weights becomes zero"
    )
    budget.add_argument(
        "--pattern",
        metavar="N:M",
        help="N of every M weights along a layer's inputs stay, as 2:4",
    )
    choice = command.add_argument_group("which weights go")
    choice.add_argument(
        "--criterion",
        default="magnitude",
        metavar="NAME",
        help="how important a weight is: magnitude, l1 (the same), random; with --data wanda, "
        "sparsegpt; with --engine flux and labelled --data snip, taylor, movement; or a function "
        "of your own, FILE.py:NAME (default: magnitude)",
    )
    choice.add_argument(
        "--scope",
        choices=("global", "local", "erk"),
        help="rank the weights of all layers together, take the same share of each, or a smaller "
        "one of small layers (default: global; for wanda and sparsegpt local)",
    )
    choice.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave matching layers whole ('layer4.*'); can be repeated",
    )
    choice.add_argument(
        "--data",
        metavar="FILE.npz",
        help="samples for criteria and for fine-tuning: arrays named as the model's inputs, labels "
        "as 'target'",
    )
    choice.add_argument("--seed", type=int, default=0, metavar="N", help="for --criterion random")
    _finetuning(command)
    _measurements(command, what="accuracy")


def _step(text: str) -> int | str:
    """A step of widths: a whole number, or auto."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        message = f"expected a whole number or auto, not '{text}'"
        raise argparse.ArgumentTypeError(message) from None


def _finetuning(command: argparse.ArgumentParser) -> None:
    engine = command.add_argument_group("gradients and fine-tuning, in Julia")
    engine.add_argument(
        "--engine",
        default="numpy",
        choices=("numpy", "flux"),
        help="flux: the network as Flux layers in Julia (`onnxjl doctor` says whether Julia is "
        "there), for criteria with gradients and for fine-tuning (default: numpy)",
    )
    engine.add_argument(
        "--loss",
        metavar="NAME",
        help="what is differentiated: cross-entropy, mse, mae, huber, binary-cross-entropy, or a "
        "function of your own, FILE.jl:NAME or FILE.py:NAME (default: cross-entropy)",
    )
    engine.add_argument(
        "--finetune",
        type=int,
        metavar="EPOCHS",
        help="train the new network on --data; Ctrl-C ends training, and what was learned so "
        "far is saved",
    )
    engine.add_argument(
        "--optimiser",
        default="adamw",
        metavar="NAME",
        help="adamw, adam, sgd, momentum, nesterov, rmsprop or another of Optimisers.jl "
        "(default: adamw)",
    )
    engine.add_argument("--lr", type=float, metavar="F", help="learning rate (default: 0.001)")
    engine.add_argument(
        "--schedule",
        default="constant",
        choices=("constant", "cosine", "step"),
        help="how the learning rate falls (default: constant)",
    )
    engine.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="samples in a step (default: 64)"
    )
    engine.add_argument(
        "--distil",
        action="store_true",
        help="also learn from the outputs of the original network",
    )
    engine.add_argument(
        "--checkpoint", metavar="FILE", help="file that holds the training after each epoch"
    )
    engine.add_argument(
        "--resume", action="store_true", help="go on from --checkpoint, if it is there"
    )


def _apply(commands: Any) -> None:
    command = _command(
        commands,
        "apply",
        "remove what a plan says",
        "Apply a plan that `onnxjl prune --plan` wrote to the same model again.",
        "  onnxjl apply net.onnx plan.json -o small.onnx",
    )
    _model(command)
    command.add_argument("plan", metavar="PLAN", help="the plan, a JSON file")
    _output(command)
    _measurements(command)


def _compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        "how far the outputs of two models are apart",
        "Run two models in onnxruntime on the same inputs and print, for each output, the largest\n"
        "difference relative to the second model's largest output. Exit status 1 if they differ.",
        "  onnxjl compare net.onnx normal.onnx\n"
        "  onnxjl compare net.onnx small.onnx --inputs x.npz --tolerance 0.01",
    )
    command.add_argument("a", metavar="A", help="an ONNX file")
    command.add_argument("b", metavar="B", help="another one")
    _inputs(command)
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs")
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="F",
        help="relative difference that counts as equal (default: 1e-4; 16-bit floats: 2e-2)",
    )
    _files(command)


def _report(commands: Any) -> None:
    command = _command(
        commands,
        "report",
        "write a page that shows what became of a model",
        "Write one HTML page with two models beside one another: MACs, parameters, size, latency\n"
        "and accuracy, the widths and costs of every layer, what stays whole and why. The page\n"
        "fetches nothing; a browser shows it offline, and prints it.",
        "  onnxjl report net.onnx small.onnx -o report.html\n"
        "  onnxjl report net.onnx small.onnx -o report.html --plan plan.json --validate test.npz",
    )
    command.add_argument("a", metavar="A", help="an ONNX file")
    command.add_argument("b", metavar="B", help="what became of it")
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the HTML file to write"
    )
    command.add_argument("--force", action="store_true", help="replace a file that exists")
    command.add_argument(
        "--plan",
        metavar="FILE",
        help="the plan that made B, to show what was asked for (default: B's NAME.plan.json, if "
        "there is one)",
    )
    _inputs(command)
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs")
    _measurements(command, "A")
    _files(command)


def _experiment(commands: Any) -> None:
    command = _command(
        commands,
        "experiment",
        "prune in rounds, as a file says",
        "Run an experiment: pruning in rounds, with recovery or training between them, as the\n"
        "fields of onnxjl.Experiment in a JSON or TOML file say. Finished rounds are kept in the\n"
        "folder; an experiment that was stopped goes on from there. A result.json from such a\n"
        "folder runs the same again.",
        "  onnxjl experiment rounds.toml -o rounds",
    )
    command.add_argument("file", metavar="FILE", help="the experiment, a JSON or TOML file")
    command.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="where rounds are kept: their networks, plans and figures",
    )


def _doctor(commands: Any) -> None:
    _command(
        commands,
        "doctor",
        "whether Julia is there for the Flux engine, and what mends it",
        "Print the versions of what onnxjl runs on, in Python and in Julia, what is missing, and\n"
        "the command that mends it. Starts Julia if all is there; the first time, that takes\n"
        "minutes.\n"
        "Exit status 1 if the Flux engine wouldn't work.",
        "  onnxjl doctor",
    )


def _completion(commands: Any) -> None:
    command = _command(
        commands,
        "completion",
        "print what completes onnxjl's commands and options in a shell",
        "Print a script that makes a shell complete commands, options, criteria and files.",
        "  source <(onnxjl completion bash)          in ~/.bashrc\n"
        "  onnxjl completion fish > ~/.config/fish/completions/onnxjl.fish",
        json=False,
    )
    command.add_argument(
        "shell", choices=("bash", "zsh", "fish", "tcsh"), help="the shell that it is for"
    )


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="an ONNX file")
    _files(command)


def _files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1,3,224,224",
        help="shape of an input that the model leaves open; can be repeated (default: batch 1, "
        "other sizes 16 or the smallest multiple of 32 that works)",
    )
    command.add_argument(
        "--allow-external",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder, besides the model's own, where its external data may lie; can be repeated",
    )


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the ONNX file to write"
    )
    command.add_argument("--force", action="store_true", help="replace files that exist")
    command.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="don't compare the new file with the original before it gets its name",
    )
    _inputs(command)


def _inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--inputs",
        metavar="FILE.npz",
        help="inputs to run with, named as the model's inputs (default: random)",
    )


def _offer(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--granularity",
        default="channel",
        choices=("channel", "head", "head-dim", "block"),
        help="channels and hidden units; also whole attention heads; or also the same feature in "
        "every head; or instead whole residual branches (default: channel)",
    )
    command.add_argument(
        "--allow-inexact",
        action="store_true",
        help="also offer groups whose removal changes a mean or normalization taken over them",
    )
    command.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave matching layers whole ('layer4.*'); can be repeated",
    )


def _measurements(
    command: argparse.ArgumentParser,
    model: str = "MODEL",
    what: str = "latency and accuracy",
) -> None:
    command.add_argument(
        "--validate",
        metavar="FILE.npz",
        help=f"inputs and 'target' to report the accuracy on (default: {model}'s NAME.test.npz, if "
        "there is one)",
    )
    command.add_argument(
        "--no-measure",
        dest="measure",
        action="store_false",
        help=f"don't measure {what}",
    )
