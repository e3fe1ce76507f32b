"""A run, counted and summarised, becomes the page: which figures stand where, and what is said of them.

Knows the summary's names of metrics; draws and computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from alignstar.evaluate import kl
from alignstar.evaluate.judgements import Judgements
from alignstar.evaluate.metrics import Metric
from alignstar.evaluate.statistics import Interval
from alignstar.evaluate.summary import Comparison, Summary, WinTie
from alignstar.evaluate.units import Run
from alignstar.report.judged import judged_intervals, judged_section
from alignstar.report.page import Fact, Page, Section, flat
from alignstar.report.sections import ByMethod, chart_section, distribution, failures, metrics_table, reward_against
from alignstar.report.shifted import shift_section
from alignstar.report.survey import Chosen, Method, Survey
from alignstar.report.sweeps import sweep_section
from alignstar.report.tables import NONE, Cell, Row, Table, interval_cell, win_tie_cell, words

FIRST = ("kl", "diversity", "coherence", "response_tokens", "lm_tokens", "rm_tokens")
"""The metrics of the first table, after the rewards."""

OF_REWARDS = ("reward:", "normalised:", "length_controlled:", "gap:")
OF_TEXTS = ("diversity", "rep_", "coherence", "words", "response_tokens")


def compose(
    run: Run, summary: Summary, counted: Survey, chosen: Chosen, *, beside: str, judged: Judgements | None = None
) -> Page:
    """The page; `beside` is the name of the file that holds all replies, `judged` what a judge said of the run."""
    first = [*(f"reward:{name}" for name in _charted(run, counted)), *FIRST]
    sections = [
        Section(id="summary", title="Summary", notes=_reading(summary), tables=[_table(summary, counted, first)]),
        _comparison_section(run, summary, counted),
        _kl_section(run, summary, counted),
        _cost_section(run, summary, counted),
        sweep_section(summary, counted.methods, _charted(run, counted)),
        shift_section(summary.shifts, counted),
        chart_section("distributions", "Reward distributions", [distribution(counted, r) for r in counted.rewards]),
        _win_tie_section(summary, counted),
        None if judged is None else judged_section(judged, summary, counted.methods),
        _every_figure(summary, counted),
        _counts(summary, counted),
        failures(counted),
    ]
    return Page(
        title=run.recipe["name"],
        about=run.recipe.get("about", ""),
        facts=_facts(summary, counted),
        warnings=_warnings(run, summary, counted),
        methods=counted.methods,
        sections=[section for section in sections if section is not None],
        sampling=_sampling(counted, chosen, beside),
        tracing=_tracing(counted, chosen),
        environment=flat(run.environment),
        meanings=[(_head(metric), metric.about) for metric in summary.metrics],
        recipe=json.dumps(run.recipe, indent=2, ensure_ascii=False),
    )


def tables(page: Page) -> list[Table]:
    """Every table of the page, those of the charts included, under titles that can stand alone."""
    return [
        replace(table, title=": ".join(filter(None, (section.title, table.title))))
        for section in page.sections
        for table in [*section.tables, *(chart.table for chart in section.charts)]
    ]


def _facts(summary: Summary, counted: Survey) -> list[Fact]:
    done, failed = sum(counted.done.values()), sum(counted.failed.values())
    skipped = sum(sum(row.skipped.values()) for row in summary.methods)
    counts = {
        "method": len(counted.methods),
        "prompt": len(counted.prompts),
        "seed": len(counted.seeds),
        "reply": done,
        "failed unit": failed,
        "skipped score": skipped,
    }
    return [Fact(name=_plural(name, n), value=f"{n:,}") for name, n in counts.items()]


def _plural(name: str, n: int) -> str:
    return name if n == 1 else {"reply": "replies"}.get(name, f"{name}s")


def _warnings(run: Run, summary: Summary, counted: Survey) -> list[str]:
    said: list[str] = []
    failed, made = sum(counted.failed.values()), sum(counted.done.values())
    if failed:
        said.append(f"{failed:,} of {failed + made:,} units failed; they are listed below and enter no figure.")
    expected = len(counted.methods) * len(counted.prompts) * len(run.recipe["seeds"])
    if failed + made < expected:
        said.append(f"The run is not finished: {expected - failed - made:,} units of its prompts are still missing.")
    skipped = [
        f"{count:,} by {reward} of {row.label}"
        for row in summary.methods
        for reward, count in row.skipped.items()
        if count
    ]
    if skipped:
        said.append(f"Scores that are no finite number are left out: {', '.join(skipped)}.")
    return said


def _reading(summary: Summary) -> list[str]:
    return [
        f"Each cell: the mean over prompts, below it its {100 * summary.level:g}\N{NO-BREAK SPACE}% interval "
        f"(bootstrap over prompts, {summary.resamples:,} resamples) and n, the number of prompts. Several seeds of a "
        "prompt are averaged first.",
    ]


def _head(metric: Metric) -> str:
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _matches(name: str, wanted: Sequence[str]) -> bool:
    return any(name == one or (one[-1] in ":_" and name.startswith(one)) for one in wanted)


def _column(summary: Summary, name: str) -> ByMethod:
    return {row.label: row.figures.get(name) for row in summary.methods}


def _table(summary: Summary, counted: Survey, wanted: Sequence[str], title: str = "") -> Table:
    chosen = [metric for metric in summary.metrics if _matches(metric.name, wanted)]
    columns = {_head(metric): _column(summary, metric.name) for metric in chosen}
    bounds = {_head(metric): _bounded(summary) for metric in chosen if metric.name == "kl"}
    return metrics_table(counted.methods, columns, title=title, bounds=bounds)


def _every_figure(summary: Summary, counted: Survey) -> Section:
    rest = [m.name for m in summary.metrics if not _matches(m.name, (*OF_REWARDS, *OF_TEXTS))]
    groups = {"Rewards": OF_REWARDS, "Texts": OF_TEXTS, "Divergence and cost": rest}
    return Section(
        id="figures",
        title="All figures",
        notes=["What each one means stands at the end of the page."],
        tables=[_table(summary, counted, names, title) for title, names in groups.items()],
    )


def _comparison_section(run: Run, summary: Summary, counted: Survey) -> Section | None:
    compared = {one.reward for one in summary.comparisons}
    rewards = [name for name in _charted(run, counted) if name in compared]
    if not rewards:
        return None
    methods = {m.label: m for m in counted.methods}
    return Section(
        id="comparison",
        title=f"Against {summary.baseline}",
        notes=[
            f"Paired by prompt: the method minus {summary.baseline}. p: two-sided sign-flip test of the mean "
            "difference, adjusted by Holm for all methods compared by the reward. Effect: Cohen's d of the "
            "differences. Superiority: share of prompts won, ties counted half. Coloured: the interval of the "
            "difference excludes zero.",
        ],
        tables=[
            Table(
                title=f"By {reward}",
                head=["method", "difference", "p (Holm)", "effect", "superiority (%)"],
                rows=[_compared(one, methods[one.method]) for one in summary.comparisons if one.reward == reward],
            )
            for reward in rewards
        ],
    )


def _compared(one: Comparison, method: Method) -> Row:
    cell = interval_cell(one.difference)
    if one.difference.excludes_zero:
        leaning = "better" if one.difference.mean > 0 else "worse"
        cell = Cell(text=cell.text, small=cell.small, leaning=leaning, share=0.6)
    test = Cell(
        text=_p(one.p_adjusted), small=f"alone {_p(one.p)}{', exact' if one.exact else ''}\nn={one.difference.n:,}"
    )
    cells = [Cell(text=one.method), cell, test, interval_cell(one.effect), interval_cell(one.superiority, percent=True)]
    return Row(cells=cells, method=method)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _bounded(summary: Summary) -> list[str]:
    """The methods of whose KL only an upper bound is known."""
    return [row.label for row in summary.methods if row.kl_law == kl.BOUND]


def _charted(run: Run, counted: Survey) -> list[str]:
    """The rewards that say how good a method is; what the baseline once learned does not."""
    return [name for name in counted.rewards if run.recipe["rewards"][name]["role"] in ("reward", "gold")]


def _kl_section(run: Run, summary: Summary, counted: Survey) -> Section | None:
    charts = [
        reward_against(
            counted.methods,
            _column(summary, "kl"),
            _column(summary, f"reward:{reward}"),
            title=f"{reward} against KL",
            x_title="KL to SFT (nats)",
            y_title=reward,
            bounded=_bounded(summary),
        )
        for reward in _charted(run, counted)
    ]
    laws: dict[str, list[str]] = {}
    for row in summary.methods:
        laws.setdefault(row.kl_law, []).append(row.label)
    told = "; ".join(f"{', '.join(labels)}: {law}" for law, labels in laws.items())
    notes = [
        "KL from the SFT model along each reply. Figures of methods that take the best token and of methods that draw "
        "are different quantities: compare within a kind.",
        f"The law of the replies that the figure is of. {told}.",
    ]
    return chart_section("kl", "Reward against KL", charts, notes)


def _cost_section(run: Run, summary: Summary, counted: Survey) -> Section | None:
    priced = [metric for metric in summary.metrics if metric.name == "cost"]
    shown = priced or [metric for metric in summary.metrics if metric.name in ("lm_tokens", "rm_tokens")]
    charts = [
        reward_against(
            counted.methods,
            _column(summary, metric.name),
            _column(summary, f"reward:{reward}"),
            title=f"{reward} against {metric.title}",
            x_title=f"{metric.title} per reply ({metric.unit})" if priced else f"{metric.title} per reply",
            y_title=reward,
            log_x=True,
        )
        for metric in shown
        for reward in _charted(run, counted)
    ]
    note = "What a reply costs decoded alone from a cold start; the scale is logarithmic."
    notes = [note, *(f"{metric.title}: {metric.about}." for metric in priced)]
    return chart_section("cost", "Reward against tokens", charts, notes)


def _win_tie_section(summary: Summary, counted: Survey) -> Section | None:
    if not summary.win_ties:
        return None
    found = {(one.first, one.second): one for one in summary.win_ties}

    def cell(one: WinTie | None) -> Cell:
        return Cell(text=NONE) if one is None else win_tie_cell(one.win_tie, one.wins, one.ties, one.losses)

    rows = [
        Row(cells=[Cell(text=m.label), *(cell(found.get((m.label, o.label))) for o in counted.methods)], method=m)
        for m in counted.methods
    ]
    return Section(
        id="wins",
        title="Win-tie matrix",
        notes=[
            f"Share of prompts (%) on which the row's reply has at least the {summary.win_tie_reward} of the column's; "
            f"differences up to {summary.win_tie_tolerance:g} tie. Below: the interval (Wilson), n, and prompts won, "
            "tied, lost. Blue above one half, orange below.",
        ],
        tables=[Table(title="Win-tie by method", head=["method", *counted.methods], rows=rows)],
    )


def _counts(summary: Summary, counted: Survey) -> Section:
    rewards = list(dict.fromkeys(name for row in summary.methods for name in row.skipped))
    reasons = list(dict.fromkeys(reason for row in summary.methods for reason in row.finished))
    methods = {m.label: m for m in counted.methods}
    rows = [
        Row(
            cells=words(
                row.label,
                *(f"{n:,}" for n in (row.prompts, row.replies, row.failed)),
                *(f"{row.finished.get(reason, 0):,}" for reason in reasons),
                *(f"{row.skipped.get(name, 0):,}" for name in rewards),
                ", ".join(f"{name}={_option(value)}" for name, value in row.options.items()),
            ),
            method=methods[row.label],
        )
        for row in summary.methods
    ]
    ended, skipped = (f"ended: {reason}" for reason in reasons), (f"skipped by {name}" for name in rewards)
    head = ["method", "prompts", "replies", "failed", *ended, *skipped, "options"]
    return Section(
        id="counts",
        title="Units and options",
        notes=["Skipped: replies whose score by that reward is no finite number."],
        tables=[Table(title="Units", head=head, rows=rows, texts=frozenset({0, len(head) - 1}))],
    )


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sampling(counted: Survey, chosen: Chosen, beside: str) -> str:
    held, total = len(chosen.prompts), len(counted.prompts)
    if held == total:
        return ""
    along = f"evenly spread along the mean {counted.main}" if counted.main else "evenly spread"
    return (
        f"This browser holds a sample of {held:,} of {total:,} prompts, {along}, those with failed or traced replies "
        f"first; the page would be too large with all. All replies are in {beside}, beside this page. Every figure "
        "above is of all prompts."
    )


def _tracing(counted: Survey, chosen: Chosen) -> str:
    traced = sum(1 for prompt in counted.prompts.values() if prompt.trace_weight)
    if not traced:
        return "No unit of this run has a token trace (trace: in the recipe)."
    here = len(chosen.traced)
    left = "" if here == traced else f" {here:,} of them are here, all of them in the run's own folder."
    return f"{traced:,} prompts were traced: their replies have a button that shows every step.{left}"


def all_intervals(summary: Summary, judged: Judgements | None) -> list[tuple[str, str, str, str, Interval]]:
    """Every interval as (table, method, other, metric, interval)."""
    figures = [("figure", row.label, "", name, value) for row in summary.methods for name, value in row.figures.items()]
    compared = [
        ("comparison", one.method, one.baseline, f"{kind}:{one.reward}", value)
        for one in summary.comparisons
        for kind, value in (("difference", one.difference), ("effect", one.effect), ("superiority", one.superiority))
    ]
    ties = [
        ("win_tie", one.first, one.second, f"win_tie:{summary.win_tie_reward}", one.win_tie) for one in summary.win_ties
    ]
    shifted = [
        ("shift", one.reward, one.source, name, value)
        for one in summary.shifts
        for name, value in (("difference", one.difference), ("spread", one.spread), ("correlation", one.correlation))
    ]
    return [*figures, *compared, *ties, *shifted, *([] if judged is None else judged_intervals(judged))]
