"""Where a run was made: versions, machine, commit. Read, never asked for; knows no recipe."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import alignstar

PACKAGES = ("alignstar", "numpy", "torch", "transformers", "tokenizers", "safetensors", "peft", "datasets", "pydantic")


def environment(data: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of what is installed, the machine, the source's commit, the time; `data` is what the data held."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": dict(data),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that nobody installed
            continue
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit that this source is checked out at, with a + where files differ from it; None for an installed one."""
    root = Path(alignstar.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    said = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return said.stdout.strip() + ("+" if changed.stdout.strip() else "") if said.returncode == 0 else None
