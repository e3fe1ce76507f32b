"""The shape of the package: who imports whom, what is heavy where, how long things are, tables that resolve."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignstar
from alignstar.cli import COMMANDS
from alignstar.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "alignstar"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS_AND_SCRIPTS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])

# A part may import those in the lines above its own, and itself.
LAYERS = (
    ("types", "errors", "files"),
    ("sampling", "radix"),
    ("meter", "text"),
    ("engine", "background"),
    ("streaming",),
    ("models",),
    ("rewards",),
    ("methods",),
    ("options", "streaming"),
    ("aligner",),
    ("loading",),
    ("theory", "evaluate", "layers"),
    ("report",),
    ("train",),
    ("demo",),
    ("bench",),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers", "trl", "accelerate", "datasets"}
HEAVY_HOMES = ("models/hf/", "layers/", "rewards/checkpoint.py", "train/", "bench/", "cli/bench.py", "evaluate/hub.py")

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, *, for_types: bool = True) -> Iterator[str]:
    """Modules that a file imports anywhere; without `for_types` not those that only a type checker sees."""
    tree = ast.parse(file.read_text())
    if not for_types:
        tree.body = [s for s in tree.body if not (isinstance(s, ast.If) and "TYPE_CHECKING" in ast.unparse(s.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            if node.module == "alignstar":
                yield from (f"alignstar.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_up(file: Path):
    if file == PACKAGE / "__init__.py":
        return
    own = part_of(file)
    assert own in RANK, f"{own} has no place in LAYERS"
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "alignstar" or len(parts) == 1:
            continue
        other = parts[1]
        if other in RANK:
            assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"
        else:
            assert other in alignstar.__all__, f"{own} imports alignstar.{other}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_heavy_imports_live_where_they_belong(file: Path):
    if str(file.relative_to(PACKAGE)).startswith(HEAVY_HOMES):
        return
    heavy = {name.partition(".")[0] for name in imports(file, for_types=False)} & HEAVY
    assert not heavy, f"{file.relative_to(PACKAGE)} imports {heavy}"


@pytest.mark.parametrize("file", [*FILES, *TESTS_AND_SCRIPTS], ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_is_too_long(file: Path):
    text = file.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_every_file_says_what_it_is(file: Path):
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resolves_and_has_its_paper_entry(name: str):
    assert "seed" in inspect.signature(METHODS[name].load()).parameters
    headings = [line for line in (ROOT / "docs" / "papers.md").read_text().splitlines() if line.startswith("#")]
    assert any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line) for line in headings), f"{name}: no heading"


def test_all_names_are_there_and_commands_have_files():
    assert sorted(alignstar.__all__) == sorted(set(alignstar.__all__))
    for name in alignstar.__all__:
        assert getattr(alignstar, name) is not None
    for command in COMMANDS:
        assert (PACKAGE / "cli" / f"{command}.py").exists()


def test_the_version_is_one():
    assert f'version = "{alignstar.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"[{alignstar.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint('\\n' + ' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import alignstar",
        "import alignstar; alignstar.METHODS, alignstar.UserError, alignstar.Response",
        "from alignstar.cli import main; main(['--help'])",
        "from alignstar.cli import main; main(['--version'])",
    ],
)
def test_nothing_heavy_on_the_way_to_help(code: str):
    assert not loaded_by(code) & {"numpy", "pydantic", "httpx2", *HEAVY}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_loads_nothing_heavy_before_it_starts(command: str):
    assert not loaded_by(f"from alignstar.cli import main; main(['{command}', '--help'])") & HEAVY


def test_the_table_of_methods_needs_no_arrays():
    assert "numpy" not in loaded_by("from alignstar.cli import main; main(['methods'])")


# Words that would say something of how the package was made instead of what it does; split, so as not to match here.
FORBIDDEN = re.compile(
    "|".join([r"/wo" r"rk/", r"\bHEL" r"PER\b", r"\bissue" r" #?\d", r"seed do" r"cument", r"not imple" r"mented",
              r"NotImple" r"mented", r"\bTO" r"DO\b", r"\bFIX" r"ME\b"]),
    re.IGNORECASE,
)  # fmt: skip
TEXTS = (".py", ".md", ".toml", ".txt", ".json", ".yaml", ".patch", ".diff", ".sh")


def test_public_text_speaks_of_the_project_alone():
    folders = ("src", "tests", "docs", "scripts", "bench", "examples", "dev", "recipes")
    files = [
        f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in TEXTS and "models" not in f.parts
    ]
    files += [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
    found = [f"{f.relative_to(ROOT)}: {match[0]}" for f in files if (match := FORBIDDEN.search(f.read_text()))]
    assert not found
