"""Fill the marked places of README.md and docs/ with figures from bench/results: `python bench/readme.py [--check]`.

`<!-- results:NAME -->` ... `<!-- /results:NAME -->` encloses the table of bench/results/NAME.json, made by the function
of that name. `--check` changes nothing and fails where the text is not what the files say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from readme_edge import Result, greedy, grid, patterns, scale, sparse, where

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("device", "figures", "first-model", "guarantees", "methods")),
)
MARKED = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)


def demo(result: Result) -> str:
    """Return the before/after table of `awp-edge demo`."""
    rows = (
        (
            name,
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']:.2f}",
            "-" if row["kl"] is None else f"{row['kl']:.4f}",
            "-" if row["kl"] is None else f"{row['top1_agreement']:.1%}",
            f"{row['prefill_tokens_per_second']:.0f}",
            f"{row['decode_tokens_per_second']:.0f}",
            f"{row['peak_memory_bytes'] / 1e6:.0f} MB",
        )
        for name, row in sorted(
            result["rows"].items(), key=lambda item: (-item[1]["bytes"], item[1]["sparsity"])
        )
    )
    header = ("", "folder", "bits/weight", "perplexity", "KL to dense", "same top-1", "prefill tok/s", "decode tok/s",
              "peak memory")  # fmt: skip
    total = sum(result["seconds"].values()) / 60
    return f"{grid(header, rows)}\n\n{result['evaluation']}. {_origin(result)}; {total:.0f} minutes in all.\n"


def _origin(result: Result) -> str:
    """Return machine and date of every step, or of the whole where the steps of an older file do not say."""
    if "origin" in result:
        return str(result["origin"])
    return f"{result['machine']['cpu']}, {result['machine']['cores']} cores, {result['date']}"


def solver(result: Result) -> str:
    """Return the native core against PyTorch."""
    rows = (
        (
            "x".join(map(str, row["shape"])),
            f"{row['native_ms']:.2f} ms",
            f"{row['torch_ms']:.2f} ms",
            f"{row['speedup']:.1f}x",
            f"{row['native_product_gflops'] / row['torch_product_gflops']:.0%}",
            f"{row['share_outside_product']:.0%}",
        )
        for row in result["results"]["layers"]
    )
    header = (
        "layer",
        "native iteration",
        "PyTorch iteration",
        "faster",
        "product, of torch's rate",
        "outside the product",
    )
    return f"{grid(header, rows)}\n\n{where(result)}, {result['results']['threads']} threads.\n"


def quality(result: Result) -> str:
    """Return the perplexity of every method, beside the prototype's where there is one."""
    measured = result["results"]
    weights = measured.get("token_weights", "uniform")
    # The prototypes ran under one protocol only.
    alike = (
        measured["text"] == "wikitext2-raw-test.txt"
        and measured["calibration"] != "self"
        and weights == "uniform"
    )
    prototypes = [row["prototype_perplexity"] if alike else None for row in measured["rows"]]
    header = ["", "backend", "perplexity", "prototype", "mean relative error", "bits/weight"]
    rows = [["dense", "", f"{measured['dense_perplexity']:.2f}", "", "", "32"]]
    for row, prototype in zip(measured["rows"], prototypes, strict=True):
        figures = f"{row['mean_relative_error']:.5f}", f"{row['bits_per_weight']:.2f}"
        beside = "-" if prototype is None else f"{prototype:.2f}"
        rows.append([row["name"], row["backend"], f"{row['perplexity']:.2f}", beside, *figures])
    if not any(prototypes):
        header, *rows = ([*line[:3], *line[4:]] for line in (header, *rows))
    note = (
        f"{measured['text']}, {measured['windows']} windows of 2048; calibrated on {measured['calibration']}"
    )
    if weights != "uniform":
        note += f", tokens weighted by {weights} there and in the errors (not to compare with those of other weights)"
    return f"{grid(header, rows)}\n\n{note}. {where(result)}.\n"


def search(result: Result) -> str:
    """Return how soon awp-plus reaches the error of the PyTorch loops, and what it reaches in the end."""
    rows = (
        (
            row["name"],
            f"{row['mean_relative_error']:.5f}",
            f"{row['seconds']:.1f} s",
            f"{row['speedup']:.1f}x" if "speedup" in row else "",
        )
        for row in result["results"]["rows"]
    )
    header = ("50% per row", "mean relative error", "seconds", "awp-plus is there sooner by")
    blocks = result["results"]["blocks"].replace(",", " and ")
    return (
        f"{grid(header, rows)}\n\nBlocks {blocks} of SmolLM2-135M, {result['results']['threads']} threads; a + b: "
        f"steps of the search and of the refit. {where(result)}.\n"
    )


def calibration(result: Result) -> str:
    """Return what calibration costs beside the bare forward passes."""
    measured = result["results"]
    ratios = measured["ratio_to_bare_forward"]
    cost = " and ".join(f"{ratio:.2f}x ({products} Gram products)" for products, ratio in ratios.items())
    size = f"{measured['samples']} windows of {measured['seq_len']} tokens, {measured['threads']} threads"
    return f"{cost} the time of the bare forward passes over {size}. {where(result)}.\n"


#: key of a layer -> what the row says, and its format
OF_C = {
    "pruning_step": ("step 2/\\|\\|C\\|\\|_F times L (T02 needs below 1)", "{:.2f}"),
    "rounding_step": ("step 1.5/\\|\\|C\\|\\|_F times L (T02 needs below 1)", "{:.2f}"),
    "condition": ("condition number of C (T07 at 50% needs below 2, T08 below 4.24)", "{:.2g}"),
    "energy_ratio": ("largest over smallest input energy (T07, T08 at any sparsity: the same)", "{:.2g}"),
    "pair_condition": ("condition number over pairs of inputs (the same)", "{:.2g}"),
    "feedback_gain": ("expected error of GPTQ over that of rounding (T10 d)", "{:.2f}"),
}
OF_PRUNING = {
    "relative_error": ("f / f(0)", "{:.5f}"),
    "descent_gain": ("one covered gradient step would still remove", "{:.2%}"),
    "coordinate_gain": ("the best swap or change in every row would still remove", "{:.2%}"),
    "refit_gain": ("a refit would still remove (T11)", "{:.2%}"),
    "support_condition": ("condition number of a support found", "{:.2g}"),
    "rate": ("rate on it at 1/L (T06)", "{:.6f}"),
    "at_most": ("at most this many times the least possible f (T13)", "{:.2f}"),
}
OF_ROUNDING = {
    "relative_error": ("f / f(0)", "{:.5f}"),
    "descent_gain": ("one covered gradient step would still remove", "{:.2%}"),
    "coordinate_gain": ("the best code change in every row would still remove", "{:.2%}"),
    "at_most": ("at most this many times the least possible f with its scales (T13)", "{:.2f}"),
}


def guarantees(result: Result) -> str:
    """Return what the theorems say about real layers."""
    layers = result["results"]["layers"]

    def line(name: str, values: Iterable[Any], pattern: str) -> list[str]:
        return [name, *("-" if value is None else pattern.format(value) for value in values)]

    rows = [line(text, [layer[key] for layer in layers.values()], form) for key, (text, form) in OF_C.items()]
    for method in next(iter(layers.values()))["methods"]:
        of_method = OF_PRUNING if method.endswith("%") else OF_ROUNDING
        found = [layer["methods"][method] for layer in layers.values()]
        for key, (text, form) in of_method.items():
            rows.append(line(f"{method}: {text}", [one[key] for one in found], form))
    header = ["", *(f"`{'.'.join(name.split('.')[2:])}`" for name in layers)]
    sampled = next(iter(next(iter(layers.values()))["methods"].values()))["rows"]
    note = f"SmolLM2-135M, one-shot statistics, certificates from {sampled} rows"
    return f"{grid(header, rows)}\n\n{note}. {where(result)}.\n"


def mutations(result: Result) -> str:
    """Return which deliberate faults the tests notice."""
    rows = [
        (row["what"], f"`{row['file']}`", f"`{row['by'].rpartition('/')[2]}`" if row["caught"] else "missed")
        for row in result["results"]["mutations"]
    ]
    return f"{grid(('fault', 'in', 'first test that fails'), rows)}\n\n{where(result)}.\n"


def table(result: Result) -> str:
    """Return what `awp-edge table` printed."""
    from awp_edge.table_page import markdown

    return markdown(result)


def layers(result: Result) -> str:
    """Return the gains of awp-plus over the best peer of every layer."""
    rows = []
    for effort, found in result["results"]["summary"].items():
        every = [("all", found), *found["settings"].items()]
        rows += [
            (
                f"{effort}, {name}",
                str(one["n"]),
                f"{one['mean']:.2%}",
                f"{one['min']:.2%}",
                f"{one['max']:.2%}",
            )
            for name, one in every
        ]
    header = ("effort, setting", "layers", "mean gain", "least", "largest")
    names = {row["layer"].removeprefix("model.layers.") for row in result["results"]["rows"]}
    blocks = sorted({int(name.partition(".")[0]) for name in names})
    measured = f"{len(names)} layers of blocks {', '.join(map(str, blocks))} of SmolLM2-135M"
    return f"{grid(header, rows)}\n\n{measured}. {_made(result)}.\n"


def _made(result: Result) -> str:
    """Return the processors and the days of every measurement, or of the file where they do not say."""
    kept = [one for row in result["results"]["rows"] for one in row.get("methods", {}).values()]
    made = [one for one in kept if "date" in one]
    if not made:
        return where(result)
    days = [find(one["date"] for one in made) for find in (min, max)]
    return (
        f"{' and '.join(dict.fromkeys(one['processor'] for one in made))}, {' to '.join(dict.fromkeys(days))}"
    )


def headroom(result: Result) -> str:
    """Return how far every effort ends above the least error that a long search found."""
    measured = result["results"]
    excess = measured["excess"]
    rows = [
        (kind if kind == "all" else f"`{kind}`", *(f"{excess[effort][kind]:.2%}" for effort in excess))
        for kind in next(iter(excess.values()))
    ]
    note = (
        f"{len(measured['rows'])} rows of blocks {measured['blocks'].replace(',', ', ')} of SmolLM2-135M at 50%, "
        f"{measured['steps']} steps"
    )
    return f"{grid(('f above the least found', *excess), rows)}\n\n{note}. {where(result)}.\n"


def damping(result: Result) -> str:
    """Return layer error, perplexity and KL for every damping, with their ranges over the calibrations."""
    from awp_edge.table_page import RANGED, ranged

    measured = result["results"]["rows"]
    rows = []
    for row in measured:
        (text,) = row["texts"].values()
        error = ranged({"error": row["mean_relative_error"], **row}, "error", ".5f")
        rows.append(
            [f"{row['damping']:g}", error, *(ranged(text, key, form) for key, form in RANGED.items())]
        )
    header = ("damping", "mean relative error", "perplexity", "KL to dense")
    return f"{grid(header, rows)}\n\n{measured[0]['protocol']}\n"


def encoder(result: Result) -> str:
    """Return how near a compressed encoder's embeddings are to the dense ones."""
    measured = result["results"]
    rows = (
        (
            row["method"],
            row["setting"],
            f"{row['mean_cosine']:.4f}",
            f"{row['least_cosine']:.4f}",
            f"{row['same_neighbour']:.1%}",
            f"{row['mean_relative_error']:.5f}",
        )
        for row in measured["rows"]
    )
    header = (
        "method",
        "asked",
        "mean cosine",
        "least cosine",
        "same nearest sentence",
        "mean relative error",
    )
    note = (
        f"{measured['sentences']} sentences of {measured['text']}; calibrated on {measured['samples']} windows of "
        f"{measured['seq_len']} tokens of {measured['calibration']}, groups of 64"
    )
    return f"{grid(header, rows)}\n\n{note}. {where(result)}.\n"


QUALITY = (
    "",
    "_self",
    "_joined",
    "_numpy",
    "_plus",
    "_vnni",
    "_fast",
    "_bits",
    "_allocated",
    "_widths",
    "_dithered",
    "_dithered_loss",
)
RENDERERS: Mapping[str, Callable[[Result], str]] = MappingProxyType(
    {
        "demo": demo,
        "solver": solver,
        "calibration": calibration,
        **{f"quality{kind}": quality for kind in QUALITY},
        "search": search,
        "table": table,
        "layers": layers,
        "headroom": headroom,
        "damping": damping,
        "encoder": encoder,
        "guarantees": guarantees,
        "mutations": mutations,
        **{
            f"sparse_{kernels}": sparse
            for kernels in ("base", "avx2", "avx512", "avx512vnni", "neon", "neondot")
        },
        "patterns": patterns,
        "greedy": greedy,
        "scale": scale,
    }
)


def fill(text: str) -> str:
    """Return a page with every marked place rendered from its file; places without a file are left as they are."""

    def place(match: re.Match[str]) -> str:
        name, file = match[2], RESULTS / f"{match[2]}.json"
        if not file.is_file():
            return match[0]
        return f"{match[1]}{RENDERERS[name](json.loads(file.read_text()))}{match[3]}"

    return MARKED.sub(place, text)


def main() -> int:
    """Fill or check every page; return 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [page for page in PAGES if fill(page.read_text()) != page.read_text()]
    for page in stale:
        if check:
            print(f"{page.name} differs from bench/results: run python bench/readme.py", file=sys.stderr)
        else:
            page.write_text(fill(page.read_text()))
            print(f"filled {page.name}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
