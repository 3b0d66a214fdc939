"""Run a model of a billion weights through the commands: `python bench/scale.py FOLDER --tokenizer MODEL --text T`.

FOLDER/model becomes a Llama of TinyLlama's shape with random weights in bfloat16 and the tokenizer of MODEL, if it is
not there: memory, disk and time do not ask what the weights are; what it says is noise. Beside what `plan` expects
stands what `compress` took; then the export and its speed. T is the calibration text. FOLDER needs 20 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common import stamp, write

from awp_edge.models import ModelFolder

SHAPE: Mapping[str, int] = MappingProxyType(
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
     "num_key_value_heads": 4, "max_position_embeddings": 2048, "vocab_size": 49152}
)  # fmt: skip
#: Enough tokens for a definite C of 5632 inputs.
CALIBRATION = ("--samples", "8", "--seq-len", "1024", "--one-shot")
#: The whole model by rounding alone, for its export; by awp-plus two blocks, which need the memory of all of them.
BLOCKS = "--skip model.layers.[2-9].* --skip model.layers.[12]?.*"
RUNS = ("--bits 4 --method rtn", f"--bits 4 {BLOCKS}")
PLANNED = ("peak_memory_bytes", "calibration_seconds", "solve_seconds", "compressed_bytes", "block_bytes")
TAKEN = ("seconds", "peak_memory_bytes")


def build(folder: Path, tokenizer: Path) -> None:
    """Write the model in shards of at most 1 GB, under another name until it is whole."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    names = AutoTokenizer.from_pretrained(tokenizer)
    names.chat_template = None
    config = LlamaConfig(**SHAPE, tie_word_embeddings=False, bos_token_id=names.bos_token_id,
                         eos_token_id=names.eos_token_id, pad_token_id=names.pad_token_id)  # fmt: skip
    partial = folder.with_name(folder.name + ".partial")
    LlamaForCausalLM(config).save_pretrained(partial, max_shard_size="1GB")
    names.save_pretrained(partial)
    partial.rename(folder)


def command(*arguments: str | Path) -> dict[str, Any]:
    """Run one command; return its JSON object, wall seconds and peak resident memory in bytes.

    Raises:
        SystemExit: the command failed.
    """
    start = time.perf_counter()
    line = [sys.executable, "-P", "-m", "awp_edge.cli", *map(str, arguments), "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.read()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode != 0:
        raise SystemExit(f"{' '.join(line)} ended with {running.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "json": json.loads(said.splitlines()[-1]),
    }


def measure(folder: Path, arguments: Sequence[str], text: Path) -> dict[str, Any]:
    """Return what one run was expected to take and took: of a whole model up to the speed of its export."""
    model, small, edge = folder / "model", folder / "small", folder / "edge"
    for old in (small, edge):
        shutil.rmtree(old, ignore_errors=True)
    asked = (*arguments, *CALIBRATION, "--calibration", text)
    plan = command("plan", model, *asked)["json"]
    compress = command("compress", model, small, *asked)
    row = {
        **stamp(),
        "plan": {key: plan[key] for key in PLANNED},
        "compress": {key: compress[key] for key in TAKEN},
        "compressed_bytes": _size(small),
    }
    if "--skip" in arguments:
        return row
    export = command("export", small, edge)
    return {
        **row,
        "export": {key: export[key] for key in TAKEN},
        "edge_bytes": _size(edge),
        "bench": command("bench", edge)["json"],
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure every run, or those asked for, and write bench/results/scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model folder")
    parser.add_argument("--text", type=Path, required=True)
    options = parser.parse_args()
    model = options.folder / "model"
    if not model.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        # A process of its own: what a child inherits counts as its memory.
        child = multiprocessing.get_context("spawn").Process(target=build, args=(model, options.tokenizer))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"no model was built from the tokenizer of {options.tokenizer}")
    folder = ModelFolder(model)
    weights = sum(math.prod(folder.shape(name)) for name in folder.tensor_names())
    rows: dict[str, Any] = {}
    for name in RUNS:
        rows[name] = measure(options.folder, name.split(), options.text)
        print(name, json.dumps(rows[name], indent=1), flush=True)
        found = {"weights": weights, "calibration": " ".join(CALIBRATION), "rows": rows}
        path = write("scale", found, complete=len(rows) == len(RUNS))
    print(path)


if __name__ == "__main__":
    main()
