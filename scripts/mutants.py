"""Break the source on purpose, one small patch at a time, and see whether the tests that claim to notice it do.

Every `tests/mutants/*.patch` is a unified diff against the checkout with two kinds of header lines:

    # breaks: what is wrong afterwards
    # killed by: tests/test_x.py::test_y    (a pytest node id; several lines, or several ids in one)

The source is copied, the patch applied to the copy, and the named tests run on it; each of them must fail (of a
parametrised test, one case). Exit status 1: a mutant survived a test, a patch no longer applies, or a named test fails
(or is missing) without any mutation.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120
TIMEOUT_OF_ALL_S = 1200  # all named tests in one run
TESTS_FAILED = 1  # pytest's exit status; others are faults of ours: no such test, no collection


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A patch, what it breaks and which tests claim to notice."""

    path: Path
    breaks: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def read(path: Path) -> Mutant:
    """A mutant from its patch. Ends the run if the header is incomplete."""
    lines = path.read_text().splitlines()
    breaks = " ".join(line.partition(":")[2].strip() for line in lines if line.startswith("# breaks:"))
    tests = tuple(t for line in lines if line.startswith("# killed by:") for t in line.partition(":")[2].split())
    if not breaks or not tests:
        sys.exit(f"{path.name} needs a '# breaks:' and a '# killed by:' line.")
    return Mutant(path=path, breaks=breaks, tests=tests)


def copy_file(source: str, target: str) -> str:
    """Weights are large and no patch touches them."""
    if source.endswith(".safetensors"):
        os.symlink(source, target)
        return target
    return shutil.copy2(source, target)


def left_out(directory: str, names: list[str]) -> list[str]:
    """Python's compiled files; numba's take seconds to make, and are made anew where their source was patched."""
    compiled = Path(directory).name == "__pycache__"
    return [name for name in names if compiled and not name.endswith((".nbi", ".nbc"))]


def copy_source(directory: Path) -> None:
    """A copy of src/ inside `directory`."""
    shutil.copytree(ROOT / "src", directory / "src", copy_function=copy_file, ignore=left_out)


def run_tests(directory: Path, tests: tuple[str, ...], limit_s: int = TIMEOUT_S) -> tuple[int, str]:
    """Pytest's exit status and output, with the package taken from `directory`; -1 where it took too long."""
    environment = os.environ | {
        "PYTHONPATH": str(directory / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return -1, f"They took more than {limit_s} s."
    return done.returncode, done.stdout + done.stderr


def check_unbroken(mutants: list[Mutant]) -> str | None:
    """What is wrong without any mutation, or None: killing means nothing if a test fails anyway."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        copy_source(directory)
        where = subprocess.run(
            [sys.executable, "-c", "import alignstar; print(alignstar.__file__)"],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(directory / "src")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        if not Path(where).is_relative_to(directory):
            return f"The package is imported from {where}, not from the copy."
        tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
        status, output = run_tests(directory, tests, TIMEOUT_OF_ALL_S)
        return None if status == 0 else f"The named tests do not all pass without a mutation:\n{output}"


def judge(mutant: Mutant) -> tuple[bool, str]:
    """Whether the mutant was killed, and what to say of it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        copy_source(directory)
        applied = subprocess.run(
            ["git", "apply", "--recount", str(mutant.path)],
            cwd=directory,
            env=os.environ | {"GIT_CEILING_DIRECTORIES": str(directory.parent)},
            capture_output=True,
            text=True,
        )
        if applied.returncode != 0:
            return False, f"DOES NOT APPLY ({applied.stderr.strip()})"
        status, output = run_tests(directory, mutant.tests)
    if status == -1:
        return True, "killed (the tests ran out of time)"
    if status not in (0, TESTS_FAILED):
        return False, f"NO VERDICT (pytest exited with {status})\n{output}"
    failed = [line.split()[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    blind = [
        test for test in mutant.tests if not any(f == test or f.startswith((f"{test}[", f"{test}::")) for f in failed)
    ]
    return not blind, f"SURVIVED {' '.join(blind)}" if blind else "killed"


def main() -> None:
    """Judge all mutants, or those named."""
    parser = argparse.ArgumentParser(description="Break the source on purpose and see whether the tests notice.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="judge these mutants alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many to judge at a time")
    arguments = parser.parse_args()
    mutants = [read(path) for path in sorted((ROOT / "tests" / "mutants").glob("*.patch"))]
    if arguments.only:
        unknown = set(arguments.only) - {mutant.name for mutant in mutants}
        if unknown:
            sys.exit(f"No such mutant: {', '.join(sorted(unknown))}.")
        mutants = [mutant for mutant in mutants if mutant.name in arguments.only]
    fault = check_unbroken(mutants)
    if fault is not None:
        sys.exit(fault)
    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, (killed, verdict) in zip(mutants, pool.map(judge, mutants), strict=True):
            survivors += not killed
            print(f"{mutant.name:40} {verdict:10} {mutant.breaks}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed.")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
