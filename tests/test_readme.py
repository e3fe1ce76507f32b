"""What the README shows is true: its commands exist with those options, its Python runs, its table is the table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from alignstar.cli import COMMANDS, build
from alignstar.methods import METHODS
from alignstar.methods.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    pieces = README.split("\n```")
    return [piece.partition("\n")[2] for piece in pieces[1::2] if piece.partition("\n")[0] == language]


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    shown = [re.split(r"\s{3,}", line)[0] if " --prompt" not in line else line for line in lines]
    return [shlex.split(line)[1:] for line in shown if line.startswith("alignstar ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_shown_can_be_parsed(words: list[str], monkeypatch: pytest.MonkeyPatch):
    import typer.main

    group = typer.main.get_command(build(words))
    context = group.make_context("alignstar", list(words))
    name, command, rest = group.resolve_command(context, list(words))  # pyright: ignore
    assert name in COMMANDS
    command.make_context(name, rest, parent=context)


def test_every_method_and_preset_is_shown():
    rows = re.findall(r"^\| `([\w-]+)` \|", README, flags=re.MULTILINE)
    assert rows == list(METHODS)
    for name in PRESETS:
        assert f"`{name}`" in README


def test_the_tree_is_the_folder():
    tree = next(block for block in blocks("") if block.startswith("src/alignstar/"))
    shown = [re.split(r"\s{2,}", line.strip())[0] for line in tree.splitlines()[1:] if line.startswith("  ")]
    named = {word.rstrip("/") for line in shown for word in line.split() if word.endswith(("/", ".py"))}
    package = ROOT / "src" / "alignstar"
    there = {path.name for path in package.iterdir() if not path.name.startswith("__") and path.name != "py.typed"}
    assert named == there


def test_the_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).exists()


@pytest.mark.slow
def test_the_python_shown_runs(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
