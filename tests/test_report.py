"""The page of a run: read as a browser reads it, every text escaped, every number with n and interval."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import recorded
from alignstar import cli
from alignstar.evaluate.judge import Judged, judgement
from alignstar.evaluate.judgements import Judgements, write_judgements
from alignstar.evaluate.summary import summarise
from alignstar.evaluate.units import Run
from alignstar.report.build import write_report
from alignstar.report.survey import choose
from alignstar.report.tables import number

VOID = {"meta", "input", "link", "br", "hr", "img"}


class Node:
    """An element of a page."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Node | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, **attributes: str) -> list[Node]:
        return [
            node
            for node in self.walk()
            if node.tag == tag and all(node.attributes.get(name) == value for name, value in attributes.items())
        ]

    def walk(self) -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child.walk()


class Reader(HTMLParser):
    """Builds the tree; an element that is never closed, or closed twice, is an error."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(path: Path) -> Node:
    reader = Reader()
    reader.feed(path.read_text())
    reader.close()
    assert len(reader.open) == 1
    return reader.open[0]


def page_of(run: Run, folder: Path, **how: Any) -> Node:
    write_report(run, folder / "report.html", **how)
    return read(folder / "report.html")


def browser(page: Node) -> dict[str, Any]:
    return json.loads(page.all("script", id="data")[0].text)


def table(page: Node, section: str, place: int = 0) -> dict[str, list[Node]]:
    """The cells of a section's table by row name, the number of the method before the name left out."""
    body = page.all("section", id=section)[0].all("tbody")[place]
    return {row.all("th")[0].children[-1]: row.all("td") for row in body.all("tr")}  # type: ignore[misc]


def test_the_page_is_one_file_that_asks_for_nothing_and_runs_its_own_script_only(tmp_path: Path):
    page = page_of(recorded.run(), tmp_path)
    for node in page.walk():
        for name in ("src", "href", "action", "srcset", "data"):
            assert (node.attributes.get(name) or "#").startswith("#")
        assert node.tag not in ("link", "img", "iframe", "object", "embed")
    assert "url(" not in page.all("style")[0].text
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"] or ""
    own = page.all("script")[-1].text
    assert "default-src 'none'" in policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'" in policy


def test_the_first_table_has_the_summary_s_means_intervals_and_numbers_of_prompts(tmp_path: Path):
    run = recorded.run()
    page, summary = page_of(run, tmp_path), summarise(run)
    rows = table(page, "summary")
    assert list(rows) == list(recorded.METHODS)
    for method in summary.methods:
        expected = method.figures["reward:learned"]
        cell = rows[method.label][0]
        assert cell.children[0] == number(expected.mean)
        assert cell.all("small")[0].text == f"[{number(expected.low)}, {number(expected.high)}]\nn={expected.n}"


@pytest.mark.parametrize("section", ["summary", "comparison", "wins", "figures", "kl", "cost"])
def test_no_number_is_without_n_and_interval(tmp_path: Path, section: str):
    page = page_of(recorded.run(), tmp_path)
    cells = [cell for body in page.all("section", id=section)[0].all("tbody") for cell in body.all("td")]
    assert cells
    for cell in cells:
        small = "".join(note.text for note in cell.all("small"))
        assert cell.text == "\N{EN DASH}" or ("n=" in small and any(sign in small for sign in ("[", "bound", "alone")))


def test_a_bound_is_shown_as_one(tmp_path: Path):
    run = recorded.run()
    without = [replace(one, kl=None) if one.method == "best-of-n" else one for one in run.units]
    page = page_of(replace(run, units=without), tmp_path)
    heads = [head.text for head in page.all("section", id="summary")[0].all("th") if head.attributes["scope"] == "col"]
    cell = table(page, "summary")["best-of-n"][heads.index("KL to SFT (nats)") - 1]
    assert cell.text.startswith("\N{LESS-THAN OR EQUAL TO} 0.636")
    assert page.all("section", id="kl")[0].all("line", **{"class": "bound"})


EVIL = "</script><script>alert(1)</script><!-- <b>&amp; \u2028 ]]> \" '"


def test_texts_of_models_and_people_are_escaped_everywhere(tmp_path: Path):
    run = recorded.run(methods={EVIL: ("greedy", {}), "args": ("args", {})}, name=EVIL, about=EVIL)
    units = [replace(one, prompt=EVIL, response=EVIL) for one in run.units]
    units[0] = replace(recorded.failed(EVIL, 0, error=EVIL), prompt=EVIL)
    units[1] = replace(units[1], steps=(recorded.step(0, EVIL),))
    page = page_of(replace(run, units=units, environment={EVIL: EVIL}), tmp_path)
    assert len(page.all("script")) == 2
    assert page.all("h1")[0].text == EVIL
    data = browser(page)
    first, second = data["prompts"][:2]
    assert first["prompt"] == EVIL
    assert first["replies"][0]["error"] == EVIL
    assert second["replies"][0]["text"] == EVIL
    assert second["replies"][0]["trace"][0]["options"][1][0] == f"{EVIL}1"
    assert data["methods"][0]["label"] == EVIL
    raw = (tmp_path / "report.html").read_text()
    assert raw.count("alert(1)") > 10
    assert "<script>alert" not in raw


def judged_by(shown: dict[str, Any]) -> Judgements:
    """A judge that gave best-of-n these scores against greedy, prompt by prompt."""
    pairs = [Judged(index=int(index), **said) for index, said in shown.items()]
    one = judgement(pairs, judge="the judge", first="best-of-n", second="greedy", orders="both")
    return Judgements(
        url="http://judge", model="the judge", orders="both", seed=0, temperature=0.0, spent={}, judgements=(one,)
    )


def test_a_judge_s_verdicts_stand_beside_the_reward_s(tmp_path: Path):
    judged = judged_by(
        {
            "0": {"scores": (8.0, 3.0), "shown": ((8.0, 3.0), (3.0, 8.0))},
            "1": {"scores": (5.0, 6.0), "shown": ((5.0, 5.0), (7.0, 5.0))},
            "2": {"scores": None, "why": "unparsable"},
            "4": {"scores": None, "why": "no answer"},
        }
    )
    page = page_of(recorded.run(), tmp_path, judged=judged)
    rows = table(page, "judged")
    assert list(rows) == ["best-of-n"]
    by_judge, by_reward, left_out, same, first = rows["best-of-n"]
    assert by_judge.text == "50.0[9.5, 90.5]\nn=2\n1 / 0 / 1"
    assert by_reward.text == table(page, "wins")["best-of-n"][0].text
    assert left_out.text == "1 unparsable, 1 no answer"
    assert (same.children[0], first.children[0]) == ("50.0", "66.7")
    data = browser(page)
    assert data["judge"] == {"name": "the judge", "rival": "greedy"}
    assert {
        (prompt["index"], reply["method"]): reply["judged"]
        for prompt in data["prompts"]
        for reply in prompt["replies"]
        if "judged" in reply
    } == {(0, 1): [8.0, 3.0], (1, 1): [5.0, 6.0]}
    assert json.loads((tmp_path / "report.json").read_text())["judged"]["judgements"][0]["unparsable"] == 1
    assert "judged,best-of-n,greedy,win_tie:the judge,0.5," in (tmp_path / "report.csv").read_text()


def test_a_run_that_was_not_judged_says_nothing_of_a_judge(tmp_path: Path):
    page = page_of(recorded.run(), tmp_path)
    assert not page.all("section", id="judged")
    assert browser(page)["judge"] is None


def test_failed_units_are_listed_and_enter_no_figure(tmp_path: Path):
    run = recorded.run(prompts=4)
    units = [
        recorded.failed("best-of-n", 2) if (one.method, one.prompt_index) == ("best-of-n", 2) else one
        for one in run.units
    ]
    page = page_of(replace(run, units=units), tmp_path)
    expected = (1.0 + 1.1 + 1.3) / 3
    cell = table(page, "summary")["best-of-n"][0]
    assert cell.children[0] == number(expected)
    assert "n=3" in cell.text
    spread = table(page, "distributions")["best-of-n"]
    assert [spread[0].text, spread[1].text] == ["3", number(1.0)]
    assert "1 of 16 units failed" in page.all("p", **{"class": "warn"})[0].text
    assert [cell.text for cell in table(page, "failures")["best-of-n"]] == ["1", "3"]
    assert table(page, "failures", 1)["best-of-n"][2].text == "A forward failed."


def test_a_run_of_failures_alone_has_a_page(tmp_path: Path):
    methods = dict(list(recorded.METHODS.items())[:2])
    units = [recorded.failed(label, prompt) for label in methods for prompt in range(2)]
    page = page_of(Run(recipe=recorded.recipe(methods), environment={}, units=units), tmp_path)
    assert "4 of 4 units failed" in page.all("p", **{"class": "warn"})[0].text
    assert not page.all("section", id="kl")


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path):
    run = recorded.run(prompts=3)
    page = page_of(replace(run, units=list(run.units)[:-2]), tmp_path)
    assert "2 units of its prompts are still missing" in page.all("p", **{"class": "warn"})[0].text


def test_an_unfinished_run_may_lack_the_methods_that_rewards_are_normalised_by(tmp_path: Path):
    normalised = {"reference": "transfer-q alpha=0.5", "lowest": None}
    metrics = {"diversity_plus_one": True, "coherence": None, "normalised": normalised}
    run = recorded.run(prompts=3, metrics=metrics)
    page = page_of(replace(run, units=list(run.units)[:-3]), tmp_path)
    heads = [head.text for head in page.all("section", id="figures")[0].all("th", scope="col")]
    assert "learned" in heads
    assert "learned, normalised" not in heads


def test_scores_that_are_no_numbers_are_counted(tmp_path: Path):
    run = recorded.run(prompts=3)
    units = list(run.units)
    units[0] = replace(units[0], rewards={"learned": None, "true": 0.0})
    page = page_of(replace(run, units=units), tmp_path)
    assert "1 by learned of greedy" in page.all("p", **{"class": "warn"})[0].text
    assert "n=2" in table(page, "summary")["greedy"][0].text


def test_a_page_that_cannot_hold_all_says_so_and_where_the_rest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alignstar.report.build.choose", partial(choose, text_budget=12_000))
    page = page_of(recorded.run(prompts=40), tmp_path)
    held = [prompt["index"] for prompt in browser(page)["prompts"]]
    assert 3 < len(held) < 40
    notice = page.all("p", id="sampled")[0].text
    assert f"a sample of {len(held)} of 40 prompts" in notice
    assert "report.replies.jsonl" in notice
    assert json.loads((tmp_path / "report.json").read_text())["browser"] == {"prompts": held, "of": 40, "traced": []}
    assert len((tmp_path / "report.replies.jsonl").read_text().splitlines()) == 160
    # The figures are of all prompts all the same.
    assert "n=40" in table(page, "summary")["greedy"][0].text


def test_a_page_that_holds_all_claims_no_sample(tmp_path: Path):
    page = page_of(recorded.run(), tmp_path)
    assert not page.all("p", id="sampled")
    assert len(browser(page)["prompts"]) == 6


def test_the_browser_has_every_reply_with_its_scores_and_trace(tmp_path: Path):
    run = recorded.run(prompts=2, seeds=(0, 7))
    units = list(run.units)
    units[0] = replace(units[0], steps=(recorded.step(0, " a", chosen=1), recorded.step(1, " b")))
    data = browser(page_of(replace(run, units=units), tmp_path))
    assert data["seeds"] == [0, 7]
    assert data["rewards"] == ["learned", "true"]
    assert [prompt["index"] for prompt in data["prompts"]] == [0, 1]
    replies = data["prompts"][0]["replies"]
    assert [(reply["method"], reply["seed"]) for reply in replies] == [(m, s) for m in range(4) for s in (0, 7)]
    assert replies[3]["rewards"] == [1.07, 0.535]
    assert replies[0]["trace"][0] == {
        "index": 0, "text": " a", "chosen": 1, "near_ties": 0,
        "options": [[" a0", -1.0, 2.0, 0.5], [" a1", -2.0, 3.0, -0.5]],
    }  # fmt: skip
    assert "trace" not in replies[1]


def test_another_baseline_can_be_asked_for(tmp_path: Path):
    page = page_of(recorded.run(), tmp_path, baseline="best-of-n")
    assert page.all("section", id="comparison")[0].all("h2")[0].text == "Against best-of-n"
    assert list(table(page, "comparison")) == ["greedy", "transfer-q alpha=1", "transfer-q alpha=0.5"]


def test_the_same_run_makes_the_same_page(tmp_path: Path):
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(recorded.run(), tmp_path / name / "report.html")
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def status_of(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *arguments])
    return int(ended.value.code or 0)


def test_the_command_writes_beside_the_run_and_names_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = recorded.folder_of(recorded.run(), tmp_path / "run")
    write_judgements(judged_by({"0": {"scores": (8.0, 3.0)}}), folder)
    assert status_of([str(folder), "--alpaca-eval"]) == 0
    assert read(folder / "report.html").all("section", id="judged")
    named = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(file.is_file() for file in named)
    assert [file.name for file in named[:5]] == [
        f"report.{end}" for end in ("html", "json", "tex", "csv", "replies.jsonl")
    ]
    assert [file.parent.name for file in named[5:]] == [label.replace(" ", "-") for label in recorded.METHODS]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{none}"], "holds no run; give the folder"),
        (["{run}", "--baseline", "nobody"], "No method of this run is called 'nobody'; known: greedy,"),
        (["{run}", "--out", "page.pdf"], "must end in .html"),
        (["{run}", "--out", "{none}/page.html"], "cannot be written"),
        (["{empty}"], "no unit yet"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    recorded.folder_of(recorded.run(), tmp_path / "run")
    recorded.folder_of(replace(recorded.run(), units=[]), tmp_path / "empty")
    places = {name: str(tmp_path / name) for name in ("run", "none", "empty")}
    assert status_of([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
