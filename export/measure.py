"""Time onnxruntime-genai on edge folders, each in a process of its own, so that its peak memory is the runtime's.

Several folders take turns, run by run: a machine whose speed changes from minute to minute changes it for all of them.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import AwpError
from .runtime import EdgeModel, open_genai


def measure(
    models: Sequence[EdgeModel], *, prompt_tokens: int, tokens: int, repeats: int,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return every folder's speeds, memory and size; folders take turns, so all of them are open at once.

    Returns:
        for every folder decode_tokens_per_second, prefill_tokens_per_second, time_to_first_token_s (medians over
        `repeats`), load_s, peak_memory_bytes (the runtime process alone), bytes (the folder), threads and the sizes
        asked for.

    Raises:
        AwpError: as `require_sizes`, or a runtime that fails.
    """
    for model in models:
        require_sizes(model, prompt_tokens=prompt_tokens, tokens=tokens, repeats=repeats)
    sizes = {"prompt_tokens": prompt_tokens, "tokens": tokens}
    runs = []
    with ExitStack() as stack:
        runners = [_Runner(model, sizes, stack) for model in models]
        for turn in range(repeats):
            if say is not None:
                say(f"run {turn + 1} of {repeats}")
            runs.append([runner.run() for runner in runners])
        peaks = [runner.close() for runner in runners]
    found = []
    for model, runner, peak, taken in zip(models, runners, peaks, zip(*runs, strict=True), strict=True):
        prefill, first, decode = (statistics.median(column) for column in zip(*taken, strict=True))
        found.append({
            "prefill_tokens_per_second": prompt_tokens / prefill,
            "decode_tokens_per_second": (tokens - 1) / decode,
            "time_to_first_token_s": first, "load_s": runner.load_s, "peak_memory_bytes": peak,
            "threads": model.threads, **sizes, "repeats": repeats, "bytes": model.n_bytes,
        })  # fmt: skip
    return found


def require_sizes(model: EdgeModel, *, prompt_tokens: int, tokens: int, repeats: int) -> None:
    """Raise AwpError for sizes below 1 (tokens: 2) or beyond the folder's context."""
    if min(prompt_tokens, repeats) < 1 or tokens < 2:
        raise AwpError(
            f"bench needs prompt tokens >= 1, tokens >= 2, repeats >= 1; got {prompt_tokens}, {tokens}, {repeats}"
        )
    if prompt_tokens + tokens > model.context_length:
        raise AwpError(
            f"{prompt_tokens} + {tokens} tokens are more than the context of {model.context_length}"
        )


class _Runner:
    """A process that has a folder open and runs it when told to; it ends with the stack."""

    def __init__(self, model: EdgeModel, sizes: dict[str, int], stack: ExitStack) -> None:
        self._folder = model.folder
        asked = {
            "folder": str(model.folder.resolve()),
            "vocab_size": model.vocab_size,
            "threads": model.threads,
        }
        command = [sys.executable, "-P", "-m", __name__, json.dumps({**asked, **sizes})]
        self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        )
        stack.callback(self._process.kill)  # comes before the wait for it; does nothing where it has ended
        self.load_s = float(self._answer())

    def run(self) -> tuple[float, float, float]:
        """Return the seconds of one run, see `one_run`."""
        prefill, first, decode = self._answer("run\n")
        return prefill, first, decode

    def close(self) -> int:
        """End the process and return its peak memory in bytes."""
        return int(self._answer("end\n"))

    def _answer(self, command: str = "") -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(command)
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            code = self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or [f"its process ended with {code}"])[-1]
            raise AwpError(f"onnxruntime-genai could not run {self._folder}: {last[:300]}") from None


def serve(asked: dict[str, Any], commands: Iterable[str], answers: TextIO) -> None:
    """Open the folder, run it for every command "run" and say at the end what memory it took; one JSON value a line."""

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    started = time.perf_counter()
    model = open_genai(Path(asked["folder"]), threads=asked["threads"])
    loaded = time.perf_counter() - started
    prompt = (
        np.random.default_rng(0).integers(0, asked["vocab_size"], asked["prompt_tokens"]).astype(np.int32)
    )
    # First touches of weights and buffers are not what is measured, nor sparse operators that still try both forms.
    one_run(model, prompt, tokens=min(8, asked["tokens"]))
    answer(loaded)
    for command in commands:
        if command.strip() != "run":
            break
        answer(one_run(model, prompt, tokens=asked["tokens"]))
    answer(peak_memory())


def one_run(model: Any, prompt: np.ndarray, *, tokens: int) -> tuple[float, float, float]:
    """Return the seconds of the prompt, of the prompt and the first token, and of all further tokens."""
    import onnxruntime_genai

    length = len(prompt) + tokens
    parameters = onnxruntime_genai.GeneratorParams(model)
    # min_length keeps an end-of-text token from ending the run.
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    start = time.perf_counter()
    generator.append_tokens(prompt)
    prefilled = time.perf_counter()
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(tokens - 1):
        generator.generate_next_token()
    return prefilled - start, first - start, time.perf_counter() - first


def peak_memory() -> int:
    """Return this process's largest resident size in bytes.

    VmHWM where the kernel has it: getrusage also counts the parent's pages, inherited when the process was started.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    # The runtime prints lines of its own: they go where errors go.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), sys.stdin, channel)
