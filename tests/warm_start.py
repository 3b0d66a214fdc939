"""Run the command line in forks of one process that has imported what takes seconds: PyTorch and transformers.

Started as a program it answers every line of JSON on stdin, {"arguments", "environment", "out", "err"}, by a fork that
runs the command with its output in those files, and one line with the exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

TIMEOUT_S = 300


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `awp-edge` in a process of its own."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        asked = {"arguments": arguments, "environment": dict(os.environ), "out": str(out), "err": str(err)}
        print(json.dumps(asked), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, f"the process with the imports ended with {server.wait()}"
        return int(answer), out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")


@cache
def _server() -> subprocess.Popen[str]:
    # Ends with the worker, whose end closes its stdin.
    return subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _serve() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
    from awp_edge.cli import app

    app._quiet_libraries()
    import transformers.modeling_utils  # noqa: F401

    import awp_edge.calibrate.modules  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(asked)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _child(asked: dict) -> None:
    from awp_edge.cli import app

    signal.alarm(TIMEOUT_S)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(asked["environment"], HF_HUB_OFFLINE="1")
    code = 1
    try:
        code = app.main(asked["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
