"""Fill the marked places of README.md with figures from bench/results: `python bench/readme.py [--check]`.

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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = (ROOT / "README.md",)
MARKED = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)

Result = Mapping[str, Any]


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
    machine = result["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {result['date']}"
    total = sum(result["seconds"].values()) / 60
    return f"{_table(header, rows)}\n\n{result['evaluation']}. {where}; {total:.0f} minutes in all.\n"


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
    return f"{_table(header, rows)}\n\n{_where(result)}, {result['results']['threads']} threads.\n"


def quality(result: Result) -> str:
    """Return the perplexity of every method, beside the prototype's where there is one."""
    measured = result["results"]
    rows = [("dense", "", f"{measured['dense_perplexity']:.2f}", "", "", "32")]
    rows += [
        (
            row["name"],
            row["backend"],
            f"{row['perplexity']:.2f}",
            "-" if row.get("prototype_perplexity") is None else f"{row['prototype_perplexity']:.2f}",
            f"{row['mean_relative_error']:.5f}",
            f"{row['bits_per_weight']:.2f}",
        )
        for row in measured["rows"]
    ]
    header = ("", "backend", "perplexity", "prototype", "mean relative error", "bits/weight")
    note = (
        f"{measured['text']}, {measured['windows']} windows of 2048; calibrated on {measured['calibration']}"
    )
    return f"{_table(header, rows)}\n\n{note}. {_where(result)}.\n"


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
        f"{_table(header, rows)}\n\nBlocks {blocks} of SmolLM2-135M, {result['results']['threads']} threads; a + b: "
        f"steps of the search and of the refit. {_where(result)}.\n"
    )


def calibration(result: Result) -> str:
    """Return what calibration costs beside the bare forward passes."""
    measured = result["results"]
    ratios = measured["ratio_to_bare_forward"]
    cost = f"{ratios['float32']:.2f}x (float32 Gram products) and {ratios['bfloat16']:.2f}x (bfloat16)"
    size = f"{measured['samples']} windows of {measured['seq_len']} tokens, {measured['threads']} threads"
    return f"{cost} the time of the bare forward passes over {size}. {_where(result)}.\n"


def sparse(result: Result) -> str:
    """Return the sparse operator against the best dense one of the same shape."""
    measured = result["results"]
    rows = (
        (
            "x".join(map(str, row["shape"])),
            row["operator"],
            f"{row['streamed_us']:.0f} us ({row['streamed_speedup']:.2f}x)",
            f"{row['streamed_gb_s']:.1f} GB/s",
            f"{row['resident_us']:.0f} us ({row['resident_speedup']:.2f}x)",
            f"{row['prefill_us'] / 1e3:.1f} ms ({row['prefill_speedup']:.2f}x)",
        )
        for row in measured["rows"]
    )
    limits = measured["limits"]
    how = f"{measured['kernels']} kernels, {measured['threads']} threads, medians of {measured['runs']}"
    rates = f"{limits['memory_gweights']:.0f}e9 weights/s at {limits['bits_per_weight']:.2f} bits"
    note = (
        f"{how}. The machine reads {limits['read_gb_s']:.1f} GB/s, which allows {rates}; from the cache it decodes "
        f"{limits['decode_gweights']:.0f}e9"
    )
    header = ("layer", "operator", "streamed", "reads", "resident", "512 rows")
    return f"{_table(header, rows)}\n\n{note}. {_where(result)}.\n"


RENDERERS: Mapping[str, Callable[[Result], str]] = MappingProxyType(
    {
        "demo": demo,
        "solver": solver,
        "calibration": calibration,
        "quality": quality,
        "quality_self": quality,
        "quality_plus": quality,
        "search": search,
        "sparse": sparse,
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
            print(
                f"{page.name} does not say what bench/results says: run python bench/readme.py",
                file=sys.stderr,
            )
        else:
            page.write_text(fill(page.read_text()))
            print(f"filled {page.name}")
    return int(check and bool(stale))


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _where(result: Result) -> str:
    machine = result["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, {machine['date']}"


if __name__ == "__main__":
    sys.exit(main())
