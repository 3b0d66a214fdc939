"""The machine-checked proofs have no gaps; the table in proofs/README.md names theorems that exist. Needs no Coq."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROOFS = ROOT / "proofs"


def load():
    """The module proofs/coq/check.py."""
    spec = importlib.util.spec_from_file_location("check", PROOFS / "coq" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load()
#: | T02 (a) | `T02.v`: `exact_decrease`, `...` | `test_T02_descent.py` | `solvers/pgd.py` |
ROWS = re.findall(
    r"^\| (T\d\d)[^|]*\| `(\w+\.v)`: ([^|]*)\| `(test_T\w+\.py)` \| ([^|]*)\|$",
    (PROOFS / "README.md").read_text(),
    re.MULTILINE,
)


def statements(text: str) -> list[str]:
    """Every theorem, corollary and lemma of a source."""
    return check.STATEMENT.findall(check.without_comments(text))


def test_every_source_is_compiled():
    assert {path.name for path in check.sources()} == {path.name for path in (PROOFS / "coq").glob("*.v")}


@pytest.mark.parametrize("path", check.sources(), ids=lambda path: path.name)
def test_no_gaps(path):
    text = path.read_text()
    assert not list(check.gaps(text))
    assert len(statements(text)) == len(re.findall(r"\bQed\.", check.without_comments(text))) > 0


@pytest.mark.parametrize(
    "text",
    [
        "Lemma a : False.\nProof.\nAdmitted.",
        "Axiom a : False.",
        "Lemma a : False.\nProof. (* clear *) admit. Qed.",
        "Section A.\nEnd A.\nVariable a : False.",
        "Hypotheses (a : False).",
        "Unset Guard Checking.",
    ],
)
def test_gaps_are_found(text):
    assert list(check.gaps(text))


def test_comments_and_premises_are_no_gaps():
    assert not list(check.gaps("(* no Axiom (* nor *) admit *)\nSection A.\nVariable a : nat.\nEnd A.\n"))


@pytest.mark.parametrize(("statement", "file", "names", "test", "code"), ROWS, ids=lambda value: value[:30])
def test_the_table_names_what_exists(statement, file, names, test, code):
    known = statements((PROOFS / "coq" / file).read_text())
    named = re.findall(r"`(\w+)`", names)
    assert named and set(named) <= set(known)
    assert file.startswith(statement) and test.startswith(f"test_{statement}")
    assert (ROOT / "tests" / "theorems" / test).exists()
    for path in re.findall(r"`([\w/]+\.py)`", code):
        assert (ROOT / "awp_edge" / path).exists()


def test_the_table_names_every_statement_that_is_checked():
    listed = {file for _, file, _, _, _ in ROWS}
    assert listed == {path.name for path in check.sources()} - {"matrix_forms.v"}
