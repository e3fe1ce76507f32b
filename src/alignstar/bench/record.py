"""What stands beside every figure, so that it can be traced.

`--out FILE` writes one JSON object:

bench           which benchmark
machine         platform; cpu, its model; cores that this process may use; threads of torch (null: not loaded);
                accelerator, its name (null: the CPU)
versions        python, alignstar, torch, transformers, numpy (null where not installed)
commit          of the checkout, with "+" behind it where tracked files were changed; null outside a checkout
settings        the command's options as they were used
peak_rss_bytes  most memory that the process held so far
runs            the figures; their keys stand with `as_json` of what was measured: `tq.Outcome`, `greedy.Outcome`,
                `memory.Outcome`, `plan.Price`, `maxmin.Outcome`, `layers.Outcome`,
                `compiled.Row` beside what compiling took
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[3]


def record(
    bench: str,
    *,
    settings: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    threads: int | None = None,
    accelerator: str | None = None,
) -> dict[str, Any]:
    """The object above."""
    return {
        "bench": bench,
        "machine": {
            "platform": platform.platform(),
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "threads": threads,
            "accelerator": accelerator,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("alignstar", "torch", "transformers", "numpy")},
        },
        "commit": commit(),
        "settings": dict(settings),
        "peak_rss_bytes": _peak_rss(),
        "runs": list(runs),
    }


def write(path: str, recorded: Mapping[str, Any]) -> None:
    """Write the object to a file, its folder made where there is none."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit; None where the package does not lie in one."""
    if not (CHECKOUT / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    return (git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _peak_rss() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
