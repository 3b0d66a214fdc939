"""Check the machine-checked proofs: install Coq where possible, compile every file, print what each theorem assumes.

`python proofs/coq/check.py` exits 1, with one line, if a proof has a gap or rests on an axiom.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
PACKAGES = ("coq", "libcoq-mathcomp-algebra", "libcoq-mathcomp-algebra-tactics")
CLOSED = "Closed under the global context"
#: Commands that leave a gap, assume something for good, or switch a check off.
GAPS = re.compile(
    r"\b(Admitted|admit|give_up|Axioms?|Parameters?|Conjecture|Declare\s+Module|bypass_check|Unset\s+\w+\s+Checking)\b"
)
#: Inside a section these become premises of the theorem; outside they are axioms.
PREMISES = re.compile(r"^\s*(Variables?|Hypothes[ie]s|Context)\b")
STATEMENT = re.compile(r"^\s*(?:Theorem|Corollary|Lemma)\s+(\w+)", re.MULTILINE)
PROMINENT = re.compile(r"^\s*(?:Theorem|Corollary)\s+(\w+)", re.MULTILINE)


def sources() -> list[Path]:
    """Return the files that _CoqProject names, in the order of compilation."""
    return [FOLDER / line for line in (FOLDER / "_CoqProject").read_text().split("\n") if line.endswith(".v")]


def without_comments(text: str) -> str:
    """Return the text with its comments, nested ones too, removed."""
    depth, kept = 0, []
    for part in re.split(r"(\(\*|\*\))", text):
        if part == "(*":
            depth += 1
        elif part == "*)":
            depth -= 1
        elif depth == 0:
            kept.append(part)
    return "".join(kept)


def gaps(text: str) -> Iterator[str]:
    """Yield each command that leaves a gap or an axiom."""
    depth = 0
    for line in without_comments(text).split("\n"):
        depth += bool(re.match(r"\s*Section\b", line)) - bool(re.match(r"\s*End\b", line))
        if (found := GAPS.search(line)) or (depth == 0 and (found := PREMISES.match(line))):
            yield f"{found[1]}: {line.strip()}"


def theorems(path: Path) -> list[str]:
    """Return the theorems and corollaries of one file, as file.name."""
    return [f"{path.stem}.{name}" for name in PROMINENT.findall(without_comments(path.read_text()))]


def installed() -> bool:
    """Return whether Coq and the two libraries are there."""
    if not shutil.which("coqc"):
        return False
    where = Path(
        subprocess.run(["coqc", "-where"], capture_output=True, text=True, check=True).stdout.strip()
    )
    return (where / "user-contrib/mathcomp/algebra_tactics/ring.vo").exists()


def install() -> None:
    """Install the Debian packages as root or through sudo; exit with one line where that is not possible."""
    root: list[str] | None = [] if os.geteuid() == 0 else None
    if (
        root is None
        and shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], check=False).returncode == 0
    ):
        root = ["sudo", "-n"]
    if root is None or not shutil.which("apt-get"):
        sys.exit(f"the proofs need Coq 8.16 with mathcomp 1.15: apt-get install {' '.join(PACKAGES)}")
    subprocess.run([*root, "apt-get", "-q", "update"], check=True)
    subprocess.run([*root, "apt-get", "-qy", "--no-install-recommends", "install", *PACKAGES], check=True)


def assumptions(names: list[str]) -> dict[str, str]:
    """Return what Print Assumptions says of each theorem."""
    with tempfile.TemporaryDirectory() as folder:
        modules = sorted({name.split(".")[0] for name in names})
        lines = [f"From awp Require {' '.join(modules)}."]
        lines += [f'Redirect "{folder}/{name}" Print Assumptions {name}.' for name in names]
        (Path(folder) / "assumptions.v").write_text("\n".join(lines) + "\n")
        subprocess.run(
            ["coqc", "-w", "none", "-Q", str(FOLDER), "awp", f"{folder}/assumptions.v"], check=True
        )
        return {name: " ".join((Path(folder) / f"{name}.out").read_text().split()) for name in names}


def main() -> None:
    """Check everything."""
    for path in sources():
        for gap in gaps(path.read_text()):
            sys.exit(f"{path.name} has a gap: {gap}")
    if not installed():
        install()
    subprocess.run(["coq_makefile", "-f", "_CoqProject", "-o", "Makefile.coq"], cwd=FOLDER, check=True)
    subprocess.run(["make", "-f", "Makefile.coq", "-j", "2"], cwd=FOLDER, check=True)
    said = assumptions([name for path in sources() for name in theorems(path)])
    for name, text in said.items():
        print(f"{name:48} {text}")
    if resting := [name for name, text in said.items() if text != CLOSED]:
        sys.exit(f"these theorems rest on axioms: {', '.join(resting)}")
    print(f"{len(said)} theorems, none rests on an axiom")


if __name__ == "__main__":
    main()
