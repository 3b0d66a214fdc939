"""Time onnxruntime-genai on one folder: run as a process of its own, so that its peak memory is the runtime's."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai

from .runtime import open_genai


def measure(request: dict[str, Any]) -> dict[str, float]:
    """Return speeds and peak memory for {folder, threads, prompt_tokens, tokens, repeats, vocab_size}."""
    started = time.perf_counter()
    model = open_genai(Path(request["folder"]), threads=request["threads"])
    loaded = time.perf_counter() - started
    prompt = (
        np.random.default_rng(0).integers(0, request["vocab_size"], request["prompt_tokens"]).astype(np.int32)
    )
    one_run(model, prompt, tokens=2)  # first touches of weights and buffers are not what is measured
    runs = [one_run(model, prompt, tokens=request["tokens"]) for _ in range(request["repeats"])]
    prefill, first, decode = (statistics.median(column) for column in zip(*runs, strict=True))
    return {
        "prefill_tokens_per_second": request["prompt_tokens"] / prefill,
        "decode_tokens_per_second": (request["tokens"] - 1) / decode,
        "time_to_first_token_s": first,
        "load_s": loaded,
        "peak_memory_bytes": peak_memory(),
    }


def one_run(model: Any, prompt: np.ndarray, *, tokens: int) -> tuple[float, float, float]:
    """Return the seconds of the prompt, of the prompt and the first token, and of all further tokens."""
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
    asked = json.loads(sys.argv[1])
    Path(asked["result"]).write_text(json.dumps(measure(asked)))
