"""How bench/readme.py renders a table, and what was measured of the sparse operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Result = Mapping[str, Any]


def grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table, figures to the right."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def where(result: Mapping[str, Any]) -> str:
    """Return the processor, its cores and the date of a result."""
    machine = result["machine"]
    return f"{machine['processor']}, {machine['cores']} core{'s'[: machine['cores'] > 1]}, {machine['date']}"


def sparse(result: Result) -> str:
    """Return the sparse operator against the best dense one of the same shape."""
    measured = result["results"]
    turns = all("streamed_dense_us" in row for row in measured["rows"])
    parts = [_operators(measured["rows"], turns=turns), f"{_limits(measured, turns=turns)}. {where(result)}."]
    if "kernel_rows" in measured:
        parts += _kernels(measured["kernel_rows"])
    if "edge" in measured:
        parts.append(_edge(measured["edge"]))
    return "\n\n".join(parts) + "\n"


def _operators(measured: Iterable[Mapping[str, Any]], *, turns: bool) -> str:
    """Return the operators' times; with turns also that of the dense one which a sparse one took turns with."""
    rows = []
    for row in measured:
        dense = row["operator"].startswith("dense")
        beside = ["-" if dense else f"{row['streamed_dense_us']:.0f} us"] if turns else []
        rows.append(
            [
                "x".join(map(str, row["shape"])),
                row["operator"],
                f"{row['streamed_us']:.0f} us ({row['streamed_speedup']:.2f}x)",
                *beside,
                f"{row['streamed_gb_s']:.1f} GB/s",
                f"{row['resident_us']:.0f} us ({row['resident_speedup']:.2f}x)",
                f"{row['prefill_us'] / 1e3:.1f} ms ({row['prefill_speedup']:.2f}x)",
            ]
        )
    beside = ["dense in its turns"] if turns else []
    return grid(["layer", "operator", "streamed", *beside, "reads", "resident", "512 rows"], rows)


def _limits(measured: Mapping[str, Any], *, turns: bool) -> str:
    """Return how the operators were measured and what the machine allows."""
    limits = measured["limits"]
    how = f"{measured['kernels']} kernels, {measured['threads']} threads, medians of {measured['runs']}"
    if turns:
        how += "; a sparse operator's ratio is that of its turns with the fastest dense one"
    bits = 8 * limits["read_gb_s"] / limits["memory_gweights"]
    rates = f"{limits['memory_gweights']:.0f}e9 weights/s at {bits:.2f} bits"
    form = {"stored": " of weights as stored", "expanded": " of expanded copies"}.get(
        limits.get("form", ""), ""
    )
    return (
        f"{how}. The machine reads {limits['read_gb_s']:.1f} GB/s, which allows {rates}; from the cache it decodes "
        f"{limits['decode_gweights']:.0f}e9{form}"
    )


def _kernels(measured: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the bare kernels beside a dense one."""
    measured = list(measured)
    rows = (
        (
            f"{row['from']}, {row['rows']}x{row['inputs']}",
            f"{row['kept']}/64",
            f"{row['sparse_gweights']:.0f}",
            f"{row['dense_avx2_gweights']:.0f}",
            f"{row['ratio']:.2f}x",
            f"{row['memory_gweights']:.0f}",
            row["bound"],
        )
        for row in measured
    )
    header = ("weights from", "", "sparse, 1e9/s", "dense AVX2, 1e9/s", "ratio", "memory allows", "binds")
    note = (
        f"The bare {measured[0]['kernels']} kernels against a dense AVX2 kernel of our own, groups of 128, while "
        f"memory gave {measured[0]['read_gb_s']:.1f} GB/s"
    )
    return [f"{note}:", grid(header, rows)]


def _edge(measured: Mapping[str, Any]) -> str:
    dense = measured["against"]["dense int4"]
    return (
        f"SmolLM2-135M at 32/64 in onnxruntime-genai, {measured['threads']} threads, {measured['limits']['kernels']} "
        f"kernels: {measured['decode_tokens_per_second']:.0f} tokens/s, {dense['decode_speedup']:.2f}x of the same "
        f"with dense INT4 layers, prompts {dense['prefill_speedup']:.2f}x; the decoder blocks take "
        f"{measured['block_bytes']['ratio']:.2f} of the bytes."
    )


def patterns(result: Result) -> str:
    """Return what 32/64 costs beside 50% of every row, by layer type."""
    measured = result["results"]
    rows = (
        (
            f"`{row['type']}`",
            str(row["layers"]),
            f"{row['mean_ratio']:.3f}",
            f"{row['worst_ratio']:.3f}",
            ", ".join(f"`{name.removeprefix('model.')}`" for name in row["outliers"]) or "none",
        )
        for row in measured["types"]
    )
    header = (
        "layer type",
        "layers",
        "error of 32/64 over 50% per row",
        "largest",
        f"above {measured['allowed']}",
    )
    return (
        f"{grid(header, rows)}\n\nSmolLM2-135M, one-shot statistics, awp-plus both ways. {where(result)}.\n"
    )


def greedy(result: Result) -> str:
    """Return how far greedy tokens follow the emulation."""
    measured = result["results"]
    worst = max(row["logit_difference"]["max"] for row in measured["rows"])
    return (
        f"Of {measured['tokens']} greedy tokens after {len(measured['rows'])} prompts, {measured['leaves']} are not "
        f"the emulation's; its two logits there are at most {measured['largest_gap']:.3f} apart (allowed: "
        f"{measured['allowed']:.3f}). Between the emulation "
        f"in float32 and in float64 the lead of a first token over the second moves by up to "
        f"{measured['tolerance']:.3f}. Logits differ by at most {worst:.2f}. {where(result)}.\n"
    )


def scale(result: Result) -> str:
    """Return what a model of a billion weights took beside what `plan` expected, and how fast its exports are."""
    measured = result["results"]
    steps = [
        (
            f"`compress {name}`",
            _gigabytes(row["plan"]["peak_memory_bytes"]),
            _gigabytes(row["compress"]["peak_memory_bytes"]),
            f"{(row['plan']['calibration_seconds'] + row['plan']['solve_seconds']) / 60:.0f} min",
            f"{row['compress']['seconds'] / 60:.0f} min",
            f"{_gigabytes(row['plan']['compressed_bytes'])}, {_gigabytes(row['compressed_bytes'])}",
        )
        for name, row in measured["rows"].items()
    ]
    edges = [
        (
            f"`{name}`",
            f"{row['export']['seconds'] / 60:.1f} min",
            _gigabytes(row["export"]["peak_memory_bytes"]),
            _gigabytes(row["edge_bytes"]),
            f"{row['bench']['prefill_tokens_per_second']:.0f}",
            f"{row['bench']['decode_tokens_per_second']:.1f}",
            _gigabytes(row["bench"]["peak_memory_bytes"]),
        )
        for name, row in measured["rows"].items()
        if "bench" in row
    ]
    asked = ("", "memory planned", "taken", "time planned", "taken", "folder planned, taken")
    run = ("", "`export`", "its memory", "folder", "prefill tok/s", "decode tok/s", "peak memory")
    note = (
        f"{measured['weights'] / 1e9:.2f} billion random weights; calibrated with `{measured['calibration']}`"
    )
    return f"{grid(asked, steps)}\n\n{grid(run, edges)}\n\n{note}. {where(result)}.\n"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
