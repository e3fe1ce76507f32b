"""What commands read and write: prompts files and JSON lines, with every way in which they can be wrong."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest

from alignstar.cli.output import interrupt_held, json_lines_file
from alignstar.cli.prompts import as_json, read_prompts
from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.jsonl import json_line
from alignstar.types import Message


def test_json_lines_hold_texts_and_conversations(tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "one\\u2028two"}\n\n{"messages": [{"role": "user", "content": "hi"}], "id": 3}\n')
    first, second = read_prompts(prompt=None, prompts=str(file))
    assert first == "one\u2028two"
    assert second == (Message(role="user", content="hi"),)
    assert as_json(second) == [{"role": "user", "content": "hi"}]
    assert as_json("hi") == "hi"


def test_a_prompt_may_be_a_list_of_messages(tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}')
    assert read_prompts(prompt=None, prompts=str(file)) == [
        (Message(role="system", content="s"), Message(role="user", content="u"))
    ]


def test_text_lines_are_prompts_and_blank_lines_are_not(tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \n")
    assert read_prompts(prompt=None, prompts=str(file)) == ["one", " two "]


def test_standard_input_is_one_prompt_or_json_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert read_prompts(prompt=None, prompts=None) == ["two\nlines"]
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "a"}\n{"prompt": "b"}\n'))
    assert read_prompts(prompt=None, prompts="-") == ["a", "b"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(PromptError, match="no prompt"):
        read_prompts(prompt=None, prompts=None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", r"ends at line 1 without a prompt"),
        ("p.txt", b"\n\n", r"ends at line 3 without a prompt"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"line 2: not JSON"),
        ("p.jsonl", b'"a"\n', r"line 1: needs an object"),
        ("p.jsonl", b'{"text": "a"}\n', r"line 1: needs an object"),
        ("p.jsonl", b'{"prompt": "a", "messages": []}\n', r"line 1: needs an object"),
        ("p.jsonl", b'{"prompt": 3}\n', r"line 1: messages are a list"),
        ("p.jsonl", b'{"messages": "a"}\n', r"line 1: messages are a list"),
        ("p.jsonl", b'{"messages": []}\n', r"line 1: .* at least one"),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "cat", "content": "b"}]}', r"message 2"),
        ("p.txt", b"fine\n\xff\n", r"line 2: not UTF-8"),
        ("p.csv", b"a\n", r"must end in"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(prompt=None, prompts=str(file))


def test_a_missing_file_and_two_sources_are_refused(tmp_path: Path):
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(prompt=None, prompts=str(tmp_path / "none.jsonl"))
    with pytest.raises(OptionError, match="both given"):
        read_prompts(prompt="a", prompts="b.txt")


def test_json_lines_are_strict_json():
    line = json_line({"reward": float("-inf"), "usage": {"wall_s": float("nan")}, "ids": (1, 2), "text": "é"})
    assert json.loads(line) == {"reward": None, "usage": {"wall_s": None}, "ids": [1, 2], "text": "é"}


def test_what_was_written_is_kept_after_an_interrupt(tmp_path: Path):
    target = tmp_path / "out.jsonl"
    target.write_text("old\n")

    def interrupted(rows: int) -> None:
        with json_lines_file(str(target), option="--out") as write:
            for row in range(rows):
                write({"row": row})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(0)
    assert target.read_text() == "old\n"
    with pytest.raises(KeyboardInterrupt):
        interrupted(2)
    assert target.read_text() == '{"row": 0}\n{"row": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_that_cannot_be_written_is_refused_on_entry(tmp_path: Path):
    for path in (tmp_path / "none" / "out.jsonl", tmp_path):
        with pytest.raises(OptionError, match="cannot be written"), json_lines_file(str(path), option="--out"):
            pass


def test_no_file_takes_rows_and_writes_none(tmp_path: Path):
    with json_lines_file(None, option="--out") as write:
        write({"row": 1})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_waits_until_a_line_is_written_everywhere():
    done: list[int] = []

    def written() -> None:
        with interrupt_held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        written()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
