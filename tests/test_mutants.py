"""Every fault in tests/mutants is noticed by the tests that claim to notice it."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("patch", sorted((ROOT / "tests" / "mutants").glob("*.patch")), ids=lambda patch: patch.stem)
def test_every_mutant_fits_the_sources(patch: Path):
    done = subprocess.run(["git", "apply", "--check", patch], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_mutant_survives(capfd: pytest.CaptureFixture[str]):
    faulthandler.cancel_dump_traceback_later()  # hundreds of tests in one: each mutant has its own time limit
    with capfd.disabled():
        print()
        command = [sys.executable, ROOT / "scripts" / "mutants.py"]
        with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            assert run.stdout is not None
            faults = ""  # the summary of a failed run names them
            for line in run.stdout:
                print(line, end="", flush=True)
                faults += line if " killed " not in line else ""
    assert run.returncode == 0, faults
