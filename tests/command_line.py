"""Run the installed command line as a user does: a process of its own, its exit code, stdout and stderr."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm_start

# -P: the installed package, not the checkout that happens to be the working directory.
AWP_EDGE = (sys.executable, "-P", "-m", "awp_edge.cli")


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Return the object on the last line of stdout."""
        return json.loads(self.out.rstrip("\n").split("\n")[-1])

    def refused(self, *, code: int = 1) -> str:
        """Return the one line on stderr of a run that failed as it should."""
        lines = self.err.strip().split("\n")
        assert self.code == code, (self.code, self.out, self.err)
        assert len(lines) == 1 and lines[0].startswith("awp-edge: "), self.err
        assert "Traceback" not in self.err and "traceback" not in self.err, self.err
        return lines[0]


def awp_edge(*arguments: object, **options: Any) -> Run:
    """Run `awp-edge` with these arguments; with `options`, those of subprocess.run, from a cold start."""
    words = [str(argument) for argument in arguments]
    if not options:
        return Run(*warm_start.run(words))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    done = subprocess.run(
        [*AWP_EDGE, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=warm_start.TIMEOUT_S,
        env=environment,
        **options,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def succeeded(*arguments: object, **options: Any) -> Run:
    """Run `awp-edge` and require success."""
    run = awp_edge(*arguments, **options)
    assert run.code == 0, (run.code, run.out, run.err)
    return run


def obey_permissions() -> None:
    """Let the mode bits of files bind root as well: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
