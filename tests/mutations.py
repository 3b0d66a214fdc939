"""Break the code on purpose and see the tests notice: `python tests/mutations.py [TEXT] [--write]`.

Each row names one place, what is put there instead, and the tests that have to fail. Nothing of the checkout or of the
installation changes: Python is mutated in a copy of the installed package, C++ in a copy of the sources, of which one
variant (base) is built. `--write` saves the table as bench/results/mutations.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(sysconfig.get_path("purelib"))


@dataclass(frozen=True)
class Mutation:
    """Name a change: `old` must occur exactly once in `file`."""

    what: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def native(self) -> bool:
        return self.file.startswith("cpp/")


THEOREM = "tests/theorems/test_"
MUTATIONS = (
    # -------------------------------------------------------------------------------------------- the reference
    Mutation("the best-iterate guard is deleted", "awp_edge/solvers/base.py",
             "if state.feasible and (best is None or state.objective < best.objective):", "if state.feasible:",
             f"{THEOREM}T03_paper_step.py"),
    Mutation("ties go to the highest index", "awp_edge/constraints/base.py",
             "mask |= ties & (np.cumsum(ties, axis=-1) <= missing)",
             "mask |= ties & (np.cumsum(ties[..., ::-1], axis=-1)[..., ::-1] <= missing)", "tests/test_constraints.py"),
    Mutation("the support is chosen by size, not by gain", "awp_edge/constraints/sparse.py",
             "return rounded * (z + z - rounded)", "return z * z", f"{THEOREM}T01_projection.py"),
    Mutation("codes are cut off instead of rounded", "awp_edge/constraints/values.py",
             "steps = np.rint(self._grouped(z) / self.scales[..., None].astype(z.dtype, copy=False))",
             "steps = np.floor(self._grouped(z) / self.scales[..., None].astype(z.dtype, copy=False))",
             f"{THEOREM}T01_projection.py"),
    Mutation("the step goes uphill", "awp_edge/solvers/pgd.py",
             "z = theta + eta * descent", "z = theta - eta * descent", f"{THEOREM}T02_descent.py"),
    Mutation("the objective loses its half", "awp_edge/problem.py",
             "return 0.5 * float(np.sum(a * b, dtype=np.float64))", "return float(np.sum(a * b, dtype=np.float64))",
             f"{THEOREM}T03_paper_step.py"),
    Mutation("low rank forgets the activations", "awp_edge/baselines/asvd.py",
             "np.linalg.svd(weight @ gram_root(problem.gram), full_matrices=False)",
             "np.linalg.svd(weight, full_matrices=False)", f"{THEOREM}T09_weighted_low_rank.py"),
    Mutation("a lower bound takes all of C's diagonal", "awp_edge/lower_bound.py",
             "found = found + share * step * free", "found = gram.diagonal().copy()", f"{THEOREM}T13_lower_bound.py"),
    Mutation("a lower bound forgets what its tilt costs", "awp_edge/lower_bound.py",
             "return relaxed.floor(weight + slope, diagonal) - spent", "return relaxed.floor(weight + slope, diagonal)",
             f"{THEOREM}T13_lower_bound.py"),
    # -------------------------------------------------------------------------------------------- theory.py
    Mutation("descent: L counts half", "awp_edge/theory.py",
             "return 0.5 * (1 / step - lipschitz) *", "return 0.5 * (1 / step - lipschitz / 2) *",
             f"{THEOREM}T02_descent.py"),
    Mutation("fixed points: half a step too much", "awp_edge/theory.py",
             "steps / (2 * pull)", "steps / pull", f"{THEOREM}T04_fixed_points.py"),
    Mutation("termination: the spacing is not squared", "awp_edge/theory.py",
             "n_steps=1) / spacing**2", "n_steps=1) / (4 * spacing**2)", f"{THEOREM}T05_finite_termination.py"),
    Mutation("rate: only the fastest direction counts", "awp_edge/theory.py",
             "np.abs(1 - step * positive).max(initial=0.0)", "np.abs(1 - step * positive).min(initial=1.0)",
             f"{THEOREM}T06_linear_rate.py"),
    Mutation("restricted condition: kappa - 1 halved", "awp_edge/theory.py",
             "return best + (kappa - 1) *", "return best + 0.1 * (kappa - 1) *",
             f"{THEOREM}T07_restricted_condition.py"),
    Mutation("thresholding: a constant below the golden ratio", "awp_edge/theory.py",
             "GOLDEN = (1 + 5**0.5) / 2", "GOLDEN = 1.55", f"{THEOREM}T08_recovery.py"),
    Mutation("rounding: the bound of half a step", "awp_edge/theory.py",
             "return float(np.sum(weights * steps * steps)) / 8", "return float(np.sum(weights * steps * steps)) / 16",
             f"{THEOREM}T10_rounding_with_feedback.py"),
    Mutation("swaps: what the leaving input explained is lost", "awp_edge/theory.py",
             "numerator = (pull + spread.T * fitted[:, None] / own) ** 2", "numerator = (pull + 0 * spread.T) ** 2",
             f"{THEOREM}T11_swap_gain.py"),
    Mutation("sampling: the error falls as 1 / n^2", "awp_edge/theory.py",
             "return (fourth_moment - float(np.sum(gram * gram))) / n_tokens",
             "return (fourth_moment - float(np.sum(gram * gram))) / n_tokens**2",
             f"{THEOREM}T12_estimated_gram.py"),
    # -------------------------------------------------------------------------------------------- the native core
    Mutation("native: the guard keeps the last iterate", "cpp/core/pgd.cpp",
             "if (feasible && exact && (!run.found || objective < run.objective)) {", "if (feasible && exact) {",
             f"{THEOREM}T03_paper_step.py"),
    Mutation("native: ties go to the highest index", "cpp/core/select.cpp",
             "for (std::size_t j = size, extra = bracket.above_low - k; extra > 0 && j-- > 0;)\n"
             "    if (keys[j] == threshold) mask[j] = 0, --extra;",
             "for (std::size_t j = 0, extra = bracket.above_low - k; extra > 0 && j < size; ++j)\n"
             "    if (keys[j] == threshold) mask[j] = 0, --extra;",
             "tests/test_parity.py"),
    Mutation("native: the gain is the square", "cpp/core/project.cpp",
             "gain[j] = rounded[j] * (z[j] + z[j] - rounded[j]);", "gain[j] = z[j] * z[j];",
             "tests/test_parity.py"),
    Mutation("native: the step is a tenth shorter", "cpp/core/pgd.cpp",
             "z.data[j] = from.data[j] + step_ * descent[offset + j];",
             "z.data[j] = from.data[j] + T(0.9) * step_ * descent[offset + j];", f"{THEOREM}T04_fixed_points.py"),
)  # fmt: skip


def mutated(text: str, mutation: Mutation) -> str:
    """Return the text with the change. Raises: ValueError where the place is not there exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} holds {text.count(mutation.old)} times: {mutation.old}")
    return text.replace(mutation.old, mutation.new)


def build(source: Path, work: Path) -> list[Path]:
    """Build the base variant of a copy of the sources; return its modules."""
    nanobind = importlib.util.find_spec("nanobind")
    assert nanobind is not None and nanobind.origin is not None
    prefix = Path(nanobind.origin).parents[1]
    configure = [
        "cmake", "-S", source, "-B", work, "-DAWP_ISAS=base", "-DAWP_BUILD_OPS=OFF", f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-Dnanobind_DIR={Path(nanobind.origin).parent / 'cmake'}", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", work, "--target", "_core_base"]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-2000:]}"
            )
    return sorted(work.rglob("_core_base*.so"))


def install(mutation: Mutation | None, work: Path) -> Path:
    """Return a folder whose awp_edge holds the change."""
    site = work / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(SITE / "awp_edge", site / "awp_edge", ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is None or not mutation.native:
        if mutation is not None:
            path = site / mutation.file
            path.write_text(mutated(path.read_text(), mutation))
        return site
    source = work / "source"
    if not source.is_dir():
        shutil.copytree(ROOT / "cpp", source / "cpp")
        shutil.copy(ROOT / "CMakeLists.txt", source)
    path = source / mutation.file
    original = path.read_text()
    path.write_text(mutated(original, mutation))
    try:
        modules = build(source, work / "build")
    finally:
        path.write_text(original)
    for other in (site / "awp_edge").glob("_core_*.so"):
        other.unlink()
    for module in modules:
        shutil.copy(module, site / "awp_edge")
    return site


def fails(site: Path, tests: str) -> tuple[bool, str]:
    """Run the tests on that package; return whether they fail, and the first failure."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "AWP_REQUIRE_NATIVE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        *tests.split(),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the tests did not run:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.returncode == 1, failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else ""


def main() -> int:
    """Run every mutation; return 1 where one is not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.text in f"{m.what} {m.file}"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mutation in chosen:
            started = time.perf_counter()
            caught, by = fails(install(mutation, Path(folder)), mutation.tests)
            row = {
                **asdict(mutation),
                "caught": caught,
                "by": by,
                "seconds": round(time.perf_counter() - started, 1),
            }
            rows.append(row)
            sys.stdout.write(
                f"{'caught' if caught else 'MISSED':7} {mutation.what} ({mutation.file}): {by}\n"
            )
            sys.stdout.flush()
    missed = sum(not row["caught"] for row in rows)
    sys.stdout.write(f"{len(rows) - missed} of {len(rows)} caught\n")
    if options.write:
        sys.path.insert(0, str(ROOT / "bench"))
        from common import write

        write("mutations", {"caught": len(rows) - missed, "of": len(rows), "mutations": rows})
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
