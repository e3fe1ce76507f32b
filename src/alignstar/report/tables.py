"""A table as the page, the LaTeX file and a test see it: titled rows of cells. Knows how numbers are written.

A number with an interval always comes with how many values it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from alignstar.evaluate.statistics import Interval
from alignstar.report.survey import Method

NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is written, in `small` the lines below it; `leaning` colours the cell by `share`, from 0 to 1."""

    text: str
    small: str = ""
    leaning: Literal["", "better", "worse"] = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Cells; the first one is the row's name. `method` puts a method's number before it."""

    cells: Sequence[Cell]
    method: Method | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`texts` are the columns that hold words; a method among the heads is shown by its number."""

    title: str
    head: Sequence[str | Method]
    rows: Sequence[Row]
    texts: frozenset[int] = frozenset({0})


def words(*texts: str) -> list[Cell]:
    """Cells without numbers."""
    return [Cell(text=text) for text in texts]


def number(value: float | None, digits: int = 3) -> str:
    """A value for a reader: at least `digits` significant digits, thousands separated, a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        written = f"{value:,.0f}"
    elif abs(value) >= 1:
        written = f"{value:.{max(0, digits - len(str(int(abs(value)))))}f}"
    elif abs(value) >= 0.01:
        written = f"{value:.{digits}f}"
    else:
        written = f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.0e}"
    return written.replace("-", "\N{MINUS SIGN}")


def interval_cell(interval: Interval | None, *, percent: bool = False, bound: bool = False) -> Cell:
    """Mean, and below it the interval and n; of an upper `bound`, which is exact, that it is one."""
    if interval is None or not math.isfinite(interval.mean):
        return Cell(text=NONE)
    mean, low, high = (_percent(v) if percent else number(v) for v in (interval.mean, interval.low, interval.high))
    if bound:
        return Cell(text=f"\N{LESS-THAN OR EQUAL TO} {mean}", small=f"bound\nn={interval.n:,}")
    return Cell(text=mean, small=f"[{low}, {high}]\nn={interval.n:,}")


def win_tie_cell(share: Interval, wins: float, ties: float, losses: float) -> Cell:
    """A share won or tied with its counts, coloured by how far it is from one half."""
    cell = interval_cell(share, percent=True)
    if cell.text == NONE:
        return cell
    return Cell(
        text=cell.text,
        small=f"{cell.small}\n{wins:,.4g} / {ties:,.4g} / {losses:,.4g}",
        leaning="better" if share.mean >= 0.5 else "worse",
        share=abs(share.mean - 0.5) * 2,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--",
    "\N{LESS-THAN OR EQUAL TO}": r"$\le$", "[": "{[}", "<": "$<$", ">": "$>$",
}  # fmt: skip


def tex(text: str) -> str:
    """`text` so that LaTeX prints it."""
    return "".join(_TEX.get(character, character) for character in text)


def latex(tables: Iterable[Table]) -> str:
    """The tables as LaTeX, to be input; needs the packages booktabs and makecell."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    columns = "".join("l" if place in table.texts else "r" for place in range(len(table.head)))
    rows = [" & ".join(_latex_cell(cell) for cell in row.cells) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(tex(head if isinstance(head, str) else head.label) for head in table.head) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    if not cell.small:
        return tex(cell.text)
    lines = [tex(cell.text), *(rf"{{\scriptsize {tex(line)}}}" for line in cell.small.splitlines())]
    return r"\makecell[r]{" + r" \\ ".join(lines) + "}"
