"""`alignstar bench`: the comparisons behind the figures. Prints tables, writes JSON; `alignstar.bench` measures."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from alignstar.errors import OptionError

CLIPS = (1.0, 2.0, 4.0, None)


def bench(
    what: Annotated[Literal["tq"], typer.Argument(help="tq: Transfer Q* against the published loop.")],
    models: Annotated[str, typer.Option(help="demo, or 30M: random weights of that size.")] = "demo",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the random prompts of 30M.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens emitted per prompt; end-of-sequence is ignored.")] = 96,
    repeats: Annotated[int, typer.Option(min=1, help="Alternating repeats; medians are printed.")] = 3,
    clip: Annotated[str, typer.Option(help="Bounds of the standardised reward, e.g. 1,2,4,none.")] = "1,2,4,none",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Compare ways of decoding on the same models and prompts in one run. Ratios are paired, ids are compared."""
    import torch

    from alignstar.bench.setups import demo_setup, random_setup
    from alignstar.bench.tq import Outcome, run

    if models not in ("demo", "30M"):
        raise OptionError(f"models={models!r} is unknown. Known: demo, 30M.")
    bounds = [_bound(word) for word in clip.split(",")]
    if threads is not None:
        torch.set_num_threads(threads)
    progress = Console(stderr=True)
    console = Console() if Console().is_terminal else Console(width=120)
    outcomes: list[Outcome] = []
    for bound in bounds:
        setup = (
            demo_setup(bound, prompts)
            if models == "demo"
            else random_setup(bound, prompts, prompt_tokens=prompt_tokens)
        )
        with progress.status("") as status:
            outcome = run(setup, tokens=tokens, repeats=repeats, on_row=lambda name, s=status: s.update(name))
        outcomes.append(outcome)
        console.print(_table(outcome))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = {"machine": _machine(), "runs": [outcome.as_json() for outcome in outcomes]}
        out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _bound(word: str) -> float | None:
    if word == "none":
        return None
    try:
        bound = float(word)
    except ValueError:
        bound = 0.0
    if not 0 < bound < float("inf"):
        raise OptionError(f"clip={word!r} must be a number above 0, or none.")
    return bound


def _table(outcome: Any) -> Table:
    bound = "no range" if outcome.clip is None else f"clip +-{outcome.clip:g}"
    table = Table(
        title=f"{outcome.setup}, {outcome.prompts} prompt(s) x {outcome.tokens} tokens, {bound}, "
        f"entropy {outcome.entropy:.2f} nats",
        caption="per emitted token: milliseconds, LM and RM tokens, dependent forwards; x naive: paired median",
    )
    columns = ("", "x naive", "ms", "LM", "RM", "steps", "evaluated", "no rollout", "near ties", "ids")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "ids") else "right")
    emitted = outcome.tokens * outcome.prompts
    for row in outcome.rows:
        counts = row.counts
        share = f"{1 - counts['certified'] / counts['candidates']:.1%}" if counts.get("candidates") else ""
        compared = row.name not in ("greedy", "transformers generate")
        table.add_row(
            row.name,
            f"{outcome.ratio(row):.2f}",
            f"{1000 * sorted(row.seconds)[len(row.seconds) // 2] / emitted:.2f}",
            f"{counts['lm_tokens']:.1f}",
            f"{counts['rm_tokens']:.1f}" if "rm_tokens" in counts else "",
            f"{counts['sequential_steps']:.2f}",
            share,
            f"{counts['steps_without_rollout']:.0%}" if share else "",
            f"{counts['near_ties']:.0f}" if "near_ties" in counts else "",
            ("equal" if outcome.equal(row) else "DIFFER") if compared else "",
        )
    return table


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    from alignstar import __version__

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "device": "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "alignstar": __version__,
        "commit": commit.stdout.strip() or None,
    }
