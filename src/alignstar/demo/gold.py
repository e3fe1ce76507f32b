"""The true rewards as functions that a reward's line can name: python:alignstar.demo.gold:target."""

from __future__ import annotations

from alignstar.demo.truth import true_reward


def source(prompt: str, reply: str, complete: bool) -> float:
    """The true reward that the embedded baseline was aligned to, in [0, 1]."""
    return true_reward("source", message=prompt, reply=reply, complete=complete)


def target(prompt: str, reply: str, complete: bool) -> float:
    """The other true reward, in [0, 1]."""
    return true_reward("target", message=prompt, reply=reply, complete=complete)
