"""The shape of the project: who may import whom, how long a function may be, what every public name owes.

Each rule of `rules.py` is itself tested on a bad example.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

import pytest
from rules import (
    MAX_FILE,
    MAX_LINES,
    OWNERS,
    ROOT,
    RULES,
    Rule,
    Source,
    functions,
    imports,
    library,
    lines,
    rule_directions,
    rule_owners,
)

MEDIAN_LINES = 12
#: Machine paths and notes to oneself, spelled so that this file does not match itself.
LEFTOVERS = re.compile(r"/(?:work|home|root)/\w|\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")

#: (module name, text) that breaks the rule.
BAD_EXAMPLES: Mapping[str, tuple[str, str]] = {
    "rule_directions": ("problem", "def f():\n    from .methods import METHODS\n"),
    "rule_owners": ("compress", "def f():\n    import torch\n"),
    "rule_lengths": ("problem", "def f():\n" + "    pass\n" * MAX_LINES),
    "rule_parameters": ("problem", "def f(a: int, b: int, c: bool, d: int) -> None: ...\n"),
    "rule_module_state": ("problem", "CACHE = {}\ndef f(): CACHE[1] = 2\n"),
    "rule_no_side_effects": ("problem", "import logging\nlogging.basicConfig()\n"),
    "rule_no_prints": ("problem", "def f(): print('x')\n"),
    "rule_docstrings": ("problem", "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def f(self): pass\n"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_library_keeps_the_rule(rule: Rule) -> None:
    found = [violation for source in library() for violation in rule(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_catches_a_bad_example(rule: Rule) -> None:
    assert rule(Source(*BAD_EXAMPLES[rule.__name__]))


def test_forbidden_imports_are_caught() -> None:
    assert rule_directions(Source("export.graph", "from awp_edge.methods import METHODS\n"))
    assert rule_directions(Source("compress", "from .calibrate import stream\n"))
    assert rule_directions(Source("export.package", "from awp_edge import calibrate\n"))  # lazy ones only
    assert rule_owners(Source("solvers.pgd", "import scipy\n"))


def test_functions_are_short() -> None:
    lengths = [lines(f) for source in library() for f in functions(source)]
    assert median(lengths) <= MEDIAN_LINES


def test_no_import_cycles() -> None:
    names = {source.name for source in library()}
    graph = {
        source.name: {module_of(name, names) for name, at_top in imports(source) if at_top}
        for source in library()
    }
    done: set[str] = set()
    while left := [name for name in graph if name not in done]:
        ready = [name for name in left if graph[name] - {"", name} <= done]
        assert ready, f"a cycle among {left}"
        done.update(ready)


def module_of(name: str, names: set[str]) -> str:
    """Return the module of the package that a dotted import reaches, "" for foreign ones and for package roots."""
    parts = name.removeprefix("awp_edge.").split(".") if name.startswith("awp_edge.") else []
    while parts and ".".join(parts) not in names:
        parts.pop()
    module = ".".join(parts)
    return "" if any(other.startswith(module + ".") for other in names) else module


def test_importing_the_core_loads_nothing_heavy() -> None:
    code = (
        "import sys, awp_edge, awp_edge.compress, awp_edge.cli\n"
        f"print(sorted(set({sorted(OWNERS)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ the rest of the tree
def texts() -> Iterator[tuple[Path, str]]:
    """Yield every text file that belongs to the project."""
    suffixes = {".py", ".md", ".cpp", ".hpp", ".h", ".toml", ".txt", ".v"}
    folders = ("awp_edge", "export", "cpp", "tests", "proofs", "bench", "examples", "docs")
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    paths += [p for p in ROOT.iterdir() if p.is_file() and (p.suffix in suffixes or p.name == "Makefile")]
    return ((path, path.read_text()) for path in paths)


def test_no_machine_paths_or_notes_to_oneself() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in texts()
        for match in LEFTOVERS.finditer(text)
    ]
    assert not found, "\n".join(found)
    assert LEFTOVERS.search("see /wo" + "rk/x") and LEFTOVERS.search("# TO" + "DO later")


def test_running_asks_for_a_runtime_that_opens_what_export_writes() -> None:
    """Folders carry what the builder of one version writes; older runtimes refuse its configuration."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = [name for name in extras["run"] if name.startswith("onnxruntime-genai")]
    assert wanted == "onnxruntime-genai>=0.18" and "awp-edge[run,calibrate]" in extras["export"]
    for page in ("device.md", "first-model.md"):
        assert f"pip install onnxruntime '{wanted}'" in (ROOT / "docs" / page).read_text()


def test_no_file_is_too_long() -> None:
    code = {".py", ".cpp", ".hpp"}
    long = [f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines" for path, text in texts()
            if path.suffix in code and text.count("\n") > MAX_FILE]  # fmt: skip
    assert not long, "\n".join(long)


def test_eigen_and_the_bindings_stay_where_they_belong() -> None:
    for path, text in texts():
        if path.suffix not in (".cpp", ".hpp"):
            continue
        folder = path.relative_to(ROOT).parts[1]
        assert folder == "core" or "#include <Eigen" not in text, path
        assert folder == "bindings" or "#include <nanobind" not in text, path


PROOF_SECTIONS = ("## Statement", "## In plain words", "## Proof", "## Where the code relies on it",
                  "## What it does not cover", "## Sources")  # fmt: skip


def test_every_proof_has_a_test_and_every_test_a_proof() -> None:
    proofs = {path.stem: path.read_text() for path in (ROOT / "proofs").glob("T*.md")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "theorems").glob("test_T*.py")}
    assert proofs.keys() == tests and proofs
    index = (ROOT / "proofs" / "README.md").read_text()
    for name, text in proofs.items():
        assert f"({name}.md)" in index and f"test_{name}.py" in index
        places = [text.find("\n" + section + "\n") for section in PROOF_SECTIONS]
        assert -1 not in places and places == sorted(places), (
            f"{name}.md lacks a section, or has them out of order"
        )
