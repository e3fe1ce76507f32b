"""Alignstar aligns a language model's output while it decodes.

Importing it loads nothing else: what is asked for is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignstar.aligner import Aligner
    from alignstar.demo.settings import open_setting as demo
    from alignstar.errors import AlignstarError, FailedError, UserError
    from alignstar.loading import load
    from alignstar.methods import METHODS
    from alignstar.types import Candidate, Message, Prompt, Reply, Response, Step, Usage

__version__ = "0.1.0"

_HOMES = {
    "Aligner": "aligner",
    "AlignstarError": "errors",
    "Candidate": "types",
    "FailedError": "errors",
    "METHODS": "methods",
    "Message": "types",
    "Prompt": "types",
    "Reply": "types",
    "Response": "types",
    "Step": "types",
    "Usage": "types",
    "UserError": "errors",
    "load": "loading",
}

__all__ = [
    "METHODS",
    "Aligner",
    "AlignstarError",
    "Candidate",
    "FailedError",
    "Message",
    "Prompt",
    "Reply",
    "Response",
    "Step",
    "Usage",
    "UserError",
    "__version__",
    "demo",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "demo":
        # A package that can be called: importing any of its modules binds this name to it in any case.
        return importlib.import_module("alignstar.demo")
    if name not in _HOMES:
        raise AttributeError(f"module 'alignstar' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alignstar.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
