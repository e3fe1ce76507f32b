"""The built wheel, in fresh environments outside the checkout: what works without extras, and the demo with them."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def succeeded(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    succeeded(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def environment(folder: Path, *install: str | Path) -> Path:
    """A fresh virtual environment with these things installed from what CI pins; its `bin`."""
    faulthandler.cancel_dump_traceback_later()  # installing takes what the network takes
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    succeeded(python, *quiet, "-c", ROOT / "constraints.txt", *install, cwd=folder)
    return python.parent


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("core"), wheel)


def test_the_core_runs_without_extras(core: Path, tmp_path: Path):
    assert "theory" in succeeded(core / "alignstar", "--help", cwd=tmp_path)
    assert succeeded(core / "alignstar", "--version", cwd=tmp_path).startswith("alignstar ")
    assert "transfer-q" in succeeded(core / "alignstar", "methods", cwd=tmp_path)
    assert "alpha" in succeeded(core / "alignstar", "methods", "transfer-q", cwd=tmp_path)
    assert "violation" in succeeded(core / "alignstar", "theory", "--worlds", "20", cwd=tmp_path)


@pytest.mark.parametrize("command", [("demo",), ("generate", "--sft", ".", "--method", "greedy", "--prompt", "a")])
def test_what_needs_torch_names_the_extra(core: Path, tmp_path: Path, command: tuple[str, ...]):
    done = run(core / "alignstar", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "The hf backend needs torch. Install it with: pip install 'alignstar[hf]'."


def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path):
    # torch and transformers are those of this environment: installing them again would take minutes and prove little.
    folder = environment(tmp_path, "--no-deps", wheel)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    here = [p for p in sys.path if p.endswith("site-packages")]
    (site / "extras.pth").write_text("\n".join(here) + "\n")
    out = succeeded(folder / "alignstar", "demo", "--prompts", "2", "--json", cwd=tmp_path)
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["setting"] for row in rows} == {"direct", "indirect"}
    assert all(row["prompts"] == 2 for row in rows)
    module = succeeded(folder / "python", "-c", "import alignstar; print(alignstar.__file__)", cwd=tmp_path)
    assert str(tmp_path) in module
