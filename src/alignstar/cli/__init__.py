"""The command `alignstar`: chooses the subcommand, imports that one file, turns errors into a sentence and a status.

Knows no subcommand's options. Until one is chosen only typer is imported: no numpy, no pydantic, no torch.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from alignstar import __version__
from alignstar.errors import AlignstarError, UserError

COMMANDS = {
    "demo": "Decode held-out prompts with every method on the embedded models; a table of reward, KL and cost.",
    "methods": "What methods there are: paper, needs, cost; or one method's options.",
    "generate": "Decode prompts with your own models, reward and method.",
    "eval": "Compare methods by a recipe: decode its prompts, score every reply, keep all of it; goes on after a stop.",
    "judge": "Let a language model behind an endpoint compare a run's replies, pair by pair.",
    "rewardbench": "How often a reward prefers the better of two answers, by subset and section.",
    "calibrate": "Bring a group's reward to a scale that all groups rate on, so that they can be compared.",
    "report": "What an evaluation found: one page that opens anywhere, and tables as JSON, CSV and LaTeX.",
    "train": "Train what decoding uses by a recipe file: an SFT model, a reward, a DPO baseline, a value head.",
    "layers": "Which of a model's layers tells labelled texts apart best: where to put a head, what to train.",
    "theory": "Check Theorem 1 on random tabular worlds, by enumeration.",
    "bench": "The comparisons behind the figures: the same decoding done in several ways, cost and identity.",
}
"""Subcommand -> its line in the help. What it runs, a function or an application, lies by its name in such a file."""

SEARCHED_AFTER = 50_000
"""New objects after which the youngest are searched for cycles; by Python's 700 a tenth of decoding is searching."""

_EXTRAS = {
    "eval": ("datasets", "pyarrow", "jinja2", "markupsafe"),
    "hf": ("torch", "transformers", "safetensors", "tokenizers", "peft"),
    "train": ("trl", "accelerate", "datasets"),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.

    An error of ours is one sentence on stderr; any other exception is a fault of the package and keeps its traceback.
    """
    gc.set_threshold(SEARCHED_AFTER)
    # The process ends with everything it holds: searching the libraries' objects for cycles first takes seconds.
    atexit.register(gc.freeze)
    given = list(sys.argv[1:] if arguments is None else arguments)
    _quiet_libraries()
    try:
        build(given)(given, prog_name="alignstar")
    except KeyboardInterrupt:
        sys.exit(130)
    except AlignstarError as error:
        _fail(str(error), status=2 if isinstance(error, UserError) else 1)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        extra = next((name for name, modules in _EXTRAS.items() if missing in modules), None)
        if extra is None:
            raise
        _fail(f"The {extra} backend needs {missing}. Install it with: pip install 'alignstar[{extra}]'.", status=2)
    sys.exit(0)


def _quiet_libraries() -> None:
    """Standard error is for our sentences; what libraries draw there is for people who watch. Read when they load."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft asks transformers by an old name whenever it touches a model.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application for these arguments: the subcommand that their first plain word names is imported, no other."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_top_level)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = _command(name) if name == chosen else _not_chosen
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, short_help=line)
        else:
            app.command(name, short_help=line)(command)
    return app


def _command(name: str) -> Callable[..., None] | typer.Typer:
    return getattr(importlib.import_module(f"alignstar.cli.{name}"), name)


def _not_chosen() -> None:
    """Stands in the help's list for a command that this call does not run."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alignstar {__version__}")
        raise typer.Exit


def _top_level(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Aligns a language model's output while it decodes."""


def _fail(message: str, *, status: int) -> NoReturn:
    typer.echo(" ".join(message.split()), err=True)
    sys.exit(status)
