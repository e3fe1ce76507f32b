"""Progress on standard error: drawn on a terminal, invisible in a pipe."""

from __future__ import annotations

import pytest

from alignstar.cli.progress import Stages


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool) -> str:
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    with Stages() as stages:
        stages.to("reading", 0, 3)
        stages.to("reading", 3, 3)
        stages.to("training", 5, 8, "loss 0.25")
        stages.to("training", 7, 8)
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_every_stage_has_its_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(monkeypatch, capsys, terminal=True)
    for text in ("reading", "3/3", "training", "7/8"):
        assert text in told


def test_a_pipe_sees_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(monkeypatch, capsys, terminal=False) == ""
