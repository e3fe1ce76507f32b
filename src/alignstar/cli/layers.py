"""`alignstar layers MODEL --data FILE`: how well each layer tells labelled texts apart. A table, a picture, JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable
from alignstar.cli.progress import progress_bar
from alignstar.evaluate.jsonl import json_line
from alignstar.layers.choice import Band, band_of

if TYPE_CHECKING:
    from alignstar.train.labelled import Labelled

SHOWN = ("full", "star", "star_k(2)", "star_tuned_head_top(2)", "top_k(2)")
"""Choices whose layers stand below the table."""

BAR = 40


def layers(
    model: Annotated[str, typer.Argument(help="A causal language model or sequence classifier: a folder or hub id.")],
    data: Annotated[
        str,
        typer.Option(
            help="A file of preferences (chosen, rejected), or of rows with text and label (.jsonl, .csv, ...)."
        ),
    ],
    rows: Annotated[int, typer.Option(min=1, help="At most so many rows, chosen by the seed.")] = 1000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer texts are left out.")] = 512,
    pool: Annotated[
        Literal["mean", "last"], typer.Option(help="A text's state: the mean over its tokens, or its last one's.")
    ] = "mean",
    seed: Annotated[int, typer.Option(min=0, help="Chooses the rows.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float64, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    svg: Annotated[str | None, typer.Option(help="Also draw nu by layer into this SVG file.")] = None,
) -> None:
    """Which layer tells labelled texts apart best, by the variability of its hidden states; nothing is trained.

    `train reward` and `train value` put their head there with `layers: star`.
    """
    if svg is not None:
        check_writable(svg, option="--svg")
    from alignstar.evaluate.recipe import Source
    from alignstar.layers.states import layer_variabilities, open_backbone
    from alignstar.layers.variability import star_of
    from alignstar.loading import located
    from alignstar.models.hf.codec import load_tokenizer
    from alignstar.models.hf.network import context_limit
    from alignstar.train.labelled import read_labelled

    path = located(model)
    opened = open_backbone(path, device=device, dtype=dtype)
    tokenizer = load_tokenizer(path)
    limit = min(max_tokens, context_limit(opened.config) or max_tokens)
    found = read_labelled(Source(source=data), tokenizer, name=model, rows=rows, max_tokens=limit, seed=seed)
    with progress_bar(total=len(found.texts), doing="reading") as bar:
        nu = layer_variabilities(
            opened, found.texts, found.labels, special=tokenizer.all_special_ids, pool=pool,
            on_texts=lambda done: bar.progress.update(bar.task, completed=done),
        )  # fmt: skip
    star = star_of(nu)
    told = _told(model, data, found, nu.tolist(), star, pool)
    if svg is not None:
        Path(svg).write_text(picture(told), encoding="utf-8")
    if as_json:
        typer.echo(json_line(told))
    else:
        (Console() if Console().is_terminal else Console(width=100)).print(table(told))


def _told(model: str, data: str, found: Labelled, nu: list[float], star: int, pool: str) -> dict[str, Any]:
    counts = {name: found.labels.count(at) for at, name in enumerate(found.names)}
    bands = {name: band_of(name, layers=len(nu), star=star) for name in SHOWN if len(nu) > 1 or "2" not in name}
    return {
        "model": model, "data": data, "pool": pool, "texts": counts, "too_long": found.too_long, "nu": nu,
        "star": star, "choices": {name: _triple(band) for name, band in bands.items()},
    }  # fmt: skip


def _triple(band: Band) -> list[int]:
    """First and last trained layer, and the head's."""
    return [band.bottom, band.top, band.head]


def table(told: dict[str, Any]) -> Table:
    """One line per layer, the one of least variability marked; below it what the choices would train."""
    nu, star = told["nu"], told["star"]
    known = [value for value in nu if math.isfinite(value)]
    texts = ", ".join(f"{count:,} {name}" for name, count in told["texts"].items())
    choices = "; ".join(f"{name}: {a}..{b}, head {c}" for name, (a, b, c) in told["choices"].items())
    made = Table(
        title=f"{told['model']}: variability of hidden states within classes over that between them\n{texts}",
        caption=f"l* = {star}: least variability. Trained layers and head: {choices}",
    )
    for name in ("layer", "nu"):
        made.add_column(name, justify="right")
    made.add_column("")
    for layer, value in enumerate(nu, start=1):
        bar = "█" * max(1, round(BAR * value / max(known))) if math.isfinite(value) and max(known) > 0 else ""
        made.add_row(str(layer), f"{value:.4g}", bar + (" l*" if layer == star else ""))
    return made


def picture(told: dict[str, Any]) -> str:
    """The variability by layer, l* marked."""
    from alignstar.report.curves import curves

    points = [(float(layer), value) for layer, value in enumerate(told["nu"], start=1) if math.isfinite(value)]
    star = told["star"]
    return curves(
        {"nu": points, f"l* = {star}": [(float(star), told["nu"][star - 1])]},
        title=f"Variability of hidden states: {told['model']}",
        x_title="layer",
        y_title="nu",
    )
