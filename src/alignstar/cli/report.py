"""`alignstar report`: writes what `alignstar.report` makes of a run's folder. Computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignstar.cli.output import check_writable
from alignstar.errors import OptionError


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder: the --out of alignstar eval.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; other files take its name. None: DIR/report.html.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Compare with this method instead of the recipe's choice.")
    ] = None,
    alpaca_eval: Annotated[
        bool, typer.Option("--alpaca-eval", help="Also AlpacaEval's model_outputs.json, one folder per method.")
    ] = False,
) -> None:
    """Make a run's page: one HTML file that needs nothing else, and its tables as JSON, CSV and LaTeX.

    Works on a run that is not finished too, with what there is; what `alignstar judge` found is on it.
    """
    # jinja2 comes with an extra: the help must not need it.
    from alignstar.evaluate.judgements import read_judgements
    from alignstar.evaluate.units import open_run
    from alignstar.report.alpaca import write_alpaca
    from alignstar.report.build import write_report

    run = open_run(folder)
    page = folder / "report.html" if out is None else out
    if page.suffix != ".html":
        raise OptionError(f"--out {str(page)!r} must end in .html; the files beside it take its name.")
    check_writable(str(page), option="--out")
    for file in write_report(run, page, baseline=baseline, judged=read_judgements(folder)):
        typer.echo(str(file))
    if alpaca_eval:
        for file, left_out in write_alpaca(run, page.parent / "alpaca_eval"):
            typer.echo(f"{file} ({left_out} failed left out)" if left_out else str(file))
