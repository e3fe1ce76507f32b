"""Data for evaluations: every form is read, nothing is dropped in silence, samples are what the seed says."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.data import SEEN, read_examples, read_sample
from alignstar.evaluate.recipe import Data
from alignstar.evaluate.rows import example
from alignstar.types import Message


def user(*said: str) -> tuple[Message, ...]:
    """Turns of a user and an assistant, the user first."""
    return tuple(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(said))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


Q, GOOD, POOR = turn("user", "q"), turn("assistant", "good"), turn("assistant", "poor")
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant:"

FORMS: dict[str, tuple[Any, tuple[Message, ...], str | None, str | None]] = {
    "a text": ("q", user("q"), None, None),
    "prompt only": ({"prompt": "q", "other": 3}, user("q"), None, None),
    "prompt only, messages": ({"prompt": [Q]}, user("q"), None, None),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, user("q"), "a", None),
    "unpaired": ({"prompt": "q", "completion": "a", "label": True}, user("q"), "a", None),
    "unpaired, a poor one": ({"prompt": "q", "completion": "a", "label": False}, user("q"), None, None),
    "completion, messages": ({"prompt": [Q], "completion": [GOOD]}, user("q"), "good", None),
    "preference": ({"prompt": "q", "chosen": "good", "rejected": "poor"}, user("q"), "good", "poor"),
    "preference, messages": ({"prompt": [Q], "chosen": [GOOD], "rejected": [POOR]}, user("q"), "good", "poor"),
    "preference, no prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."}, user("The sky is"), "blue.", "green.",
    ),
    "preference, no prompt, messages": ({"chosen": [Q, GOOD], "rejected": [Q, POOR]}, user("q"), "good", "poor"),
    "language modelling": ({"messages": [Q, GOOD, Q, POOR]}, user("q", "good", "q"), "poor", None),
    "hh-rlhf": (
        {"chosen": HH + " good", "rejected": HH + " poor\n\nHuman: what?"}, user("hi", "hello", "how?"), "good", "poor",
    ),
    "hh-rlhf with prompt": (
        {"prompt": HH, "chosen": " good", "rejected": " poor"}, user("hi", "hello", "how?"), " good", " poor",
    ),
    "ultrafeedback": (
        {
            "instruction": "q",
            "completions": [
                {"response": "poor", "overall_score": 2}, {"response": "good", "overall_score": 8.5},
                {"response": "fair", "overall_score": 5},
            ],
        }, user("q"), "good", "poor",
    ),
    "ultrafeedback, binarised": (
        {"prompt": "q", "messages": [Q, GOOD], "chosen": [Q, GOOD], "rejected": [Q, POOR], "score_chosen": 8.5},
        user("q"), "good", "poor",
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [
                {"answer": "fair", "rank": 2.0}, {"answer": "good", "rank": 1.0}, {"answer": "poor", "rank": 7.0}
            ],
        }, user("q"), "good", "poor",
    ),
    "alpaca-eval": (
        {"dataset": "helpful_base", "instruction": "q", "output": "a", "generator": "x"}, user("q"), "a", None,
    ),
    "alpaca with input": ({"instruction": "q", "input": "this", "output": "a"}, user("q\n\nthis"), "a", None),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str):
    row, prompt, chosen, rejected = FORMS[form]
    read = example(row, where="here")
    assert (read.prompt, read.chosen, read.rejected) == (prompt, chosen, rejected)


def test_a_dialogue_may_stay_one_text_and_columns_may_have_other_names():
    read = example({"frage": HH}, where="here", columns={"prompt": "frage"}, dialogue="text")
    assert read.prompt == user(HH)
    assert example({"prompt": HH}, where="here").shown == "user: hi\n\nassistant: hello\n\nuser: how?"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q"}, "keys (question) are those of no known form"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": None}, "no known form"),
        ({"prompt": 3}, "prompt must be a text or a list of messages"),
        ({"messages": []}, "messages must be a text or a list"),
        ({"messages": [turn("robot", "x")]}, "message 1 of messages must have a role"),
        ({"prompt": "q", "chosen": 3, "rejected": "x"}, "chosen must be text, not int"),
        ({"chosen": [Q, GOOD], "rejected": [turn("user", "other"), POOR]}, "differ before their last message"),
        ({"chosen": [Q], "rejected": [Q]}, "must end with an assistant's message"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "no turn in common"),
        ({"prompt": "q", "answers": [{"answer": "x"}]}, "each of answers must have answer, a text, and rank"),
        ({"prompt": "q", "answers": []}, "answers is empty"),
        ([1], "is list, not an object"),
    ],
)
def test_a_bad_row_is_named(row: Any, said: str):
    with pytest.raises(PromptError) as raised:
        example(row, where="p.jsonl, line 7")
    assert str(raised.value).startswith("p.jsonl, line 7: ")
    assert said in str(raised.value)
    with pytest.raises(PromptError, match="has no 'x', which data\\.columns calls prompt"):
        example({"prompt": "q"}, where="here", columns={"prompt": "x"})


ROWS = [{"prompt": f"q {i}\u2028", "chosen": f'a, {i}\n"x"', "rejected": "b"} for i in range(5)]


def written(folder: Path, kind: str) -> Path:
    """The rows in a file of a kind."""
    file = folder / f"rows.{kind}"
    opened: Any = gzip.open if kind.endswith(".gz") else open
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), file)
        return file
    with opened(file, "wt", encoding="utf-8", newline="") as out:
        if kind.startswith("csv"):
            writer = csv.DictWriter(out, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
        elif kind.startswith("jsonl"):
            out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
        else:
            out.write(json.dumps(ROWS))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "csv.gz", "parquet"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, kind: str):
    if kind == "parquet":
        pytest.importorskip("datasets")
    found = read_examples(Data(source=str(written(tmp_path, kind))))
    assert [(e.prompt, e.chosen, e.rejected) for e in found] == [
        (user(row["prompt"]), row["chosen"], row["rejected"]) for row in ROWS
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": }\n', "p.jsonl, line 3: not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "p.jsonl, line 2: its keys (text)"),
        ("p.json", '{"prompt": "a"}', "p.json must hold a list"),
        ("p.csv", "prompt,x\na,1\nb\n", "p.csv, line 3: has not as many cells"),
        ("p.csv", 'prompt,x\na,1\nb,"1\n', "p.csv, line 3: not CSV"),
        ("p.jsonl", b'{"prompt": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, name: str, text: str | bytes, said: str):
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(PromptError) as raised:
        read_examples(Data(source=str(file)))
    assert said in str(raised.value)


def test_a_source_that_is_not_there(tmp_path: Path):
    with pytest.raises(OptionError, match="cannot be read"):
        read_examples(Data(source=str(tmp_path / "none.jsonl")))
    (tmp_path / "p.txt").write_text("x")
    with pytest.raises(OptionError, match=r"must end in one of \.jsonl"):
        read_examples(Data(source=str(tmp_path / "p.txt")))
    with pytest.raises(OptionError, match=r"data\.source is null"):
        read_examples(Data(source=None))


def test_samples_are_nested_ordered_and_a_function_of_the_seed(tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(50)))

    def sample(**how: Any) -> list[str]:
        return [e.shown for e in read_sample(Data(source=str(file), **how)).examples]

    everything = sample()
    assert everything == [f"q{i}" for i in range(50)]
    ten, twenty = sample(prompts=10), sample(prompts=20)
    assert len(ten) == 10
    assert set(ten) < set(twenty)
    assert ten == [q for q in everything if q in ten]
    assert ten == sample(prompts=10) != sample(prompts=10, seed=1)


def test_what_cannot_be_used_is_counted(tmp_path: Path):
    file = tmp_path / "p.jsonl"
    texts = ["short", "x" * 30, "short", "y" * 40, "one two three", "z z"]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    data = Data(source=str(file), max_prompt_characters=20, max_prompt_tokens=2)
    sample = read_sample(data, count_tokens=lambda messages: len(messages[0].content.split()))
    assert [e.shown for e in sample.examples] == ["short", "z z"]
    assert sample.skipped == {"longer than 20 characters": 2, SEEN: 1, "longer than 2 tokens": 1}
    assert sample.rows == len(texts) == len(sample.examples) + sum(sample.skipped.values())
    with pytest.raises(
        OptionError, match=r"of the 6 rows of .* 3 can be used, 2 are longer than 20 characters, 1 are the"
    ):
        read_sample(data.model_copy(update={"prompts": 9, "max_prompt_tokens": None}))


def test_functions_give_rows(monkeypatch: pytest.MonkeyPatch):
    source = "python:eval_worlds:prompts"
    assert [e.shown for e in read_examples(Data(source=source, split="AB"))] == ["AA", "AB", "BA", "BB"]
    assert len(read_examples(Data(source=source))) == 16


def test_hub_data_sets_are_fetched_by_name_and_split(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        if split != "test":
            raise ValueError("Unknown split. Should be one of ['test'].\nmore")
        return [{"prompt": "q"}, {"wrong": "q"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PromptError, match=r"org/name \[test\], row 2: its keys \(wrong\)"):
        read_examples(Data(source="org/name", config="c", split="test"))
    assert asked == [("org/name", "c", "test")]
    with pytest.raises(OptionError, match=r"cannot be fetched as split 'dev' .*Should be one of \['test'\]\); correct"):
        read_examples(Data(source="org/name", split="dev"))
    with pytest.raises(OptionError, match=r"data\.split is missing"):
        read_examples(Data(source="org/name"))
