"""A table's results as Markdown and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

#: Setting whose layers are drawn, the first of these that the table has.
DRAWN = ("50%", "INT3", "50% + INT4", "rank 80%")
#: Measures of a text that have a range over calibrations, and how they are written.
RANGED: Mapping[str, str] = MappingProxyType({"perplexity": ".2f", "kl": ".4f"})
_NUMBERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "mean_relative_error": ("mean relative error", ".5f"),
        "seconds": ("seconds", ".0f"),
        "cpu_seconds": ("CPU seconds", ".0f"),
        "bits_per_weight": ("bits/weight, dense export", ".2f"),
        "packed_bits": ("bits/weight, packed", ".2f"),
    }
)


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table as Markdown, dense model first, the rivals at equal storage and the protocol below."""
    labels = list(result["dense"])
    header = ["method", "asked"]
    header += [title for label in labels for title in (f"perplexity, {label}", f"KL, {label}")]
    header += [title for title, _ in _NUMBERS.values()]
    rows = [["dense", "", *(cell for label in labels for cell in (f"{result['dense'][label]['perplexity']:.2f}", "-")),
             *("-" for _ in _NUMBERS)]]  # fmt: skip
    rows += [[row["method"], row["setting"], *_cells(row, labels)] for row in result["rows"]]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [*_rival_lines(result.get("rivals", ())), *_left_out_lines(result.get("left_out", {}))]
    return "\n".join([*text, "", *notes, result["protocol"], ""])


def _cells(row: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    cells = []
    for label in labels:
        measured = row["texts"][label]
        cells += [ranged(measured, key, form) for key, form in RANGED.items()]
    return cells + [_cell(row.get(key), form) for key, (_, form) in _NUMBERS.items()]


def ranged(measured: Mapping[str, Any], key: str, form: str) -> str:
    """Return a measure in a format, behind it the least and the largest where there were several calibrations."""
    spread = measured.get(f"{key}_spread")
    middle = _cell(measured[key], form)
    return middle if spread is None else f"{middle} ({spread['min']:{form}}-{spread['max']:{form}})"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _rival_lines(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Equal storage: " + " against ".join(
            f"{side['method']} {side['setting']} ({side['packed_bits']:.2f} bits packed, perplexity "
            f"{side['perplexity']:.2f})"
            for side in (pair["sparse"], pair["dense"])
        ) + "."
        for pair in pairs
    ]  # fmt: skip
    return [*lines, ""] if lines else []


def _left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """Name the settings that the model does not allow, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for setting, reason in left_out.items():
        by_reason.setdefault(reason, []).append(setting)
    parts = [f"{', '.join(settings)} ({reason})" for reason, settings in by_reason.items()]
    return [f"Left out: {'; '.join(parts)}.", ""] if parts else []


def require_drawing() -> None:
    """Raise ModuleNotFoundError where matplotlib is not installed: before hours of rows, not after them."""
    import matplotlib.figure  # noqa: F401


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw perplexity against packed bits, the error of every layer and convergence; return the files.

    Raises: ModuleNotFoundError where matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figures = {"perplexity": Figure(figsize=(7, 5)), "layers": Figure(figsize=(9, 5))}
    _draw_quality(figures["perplexity"], result)
    _draw_layers(figures["layers"], result)
    if result.get("convergence"):
        figures["convergence"] = Figure(figsize=(11, 4.5))
        _draw_convergence(figures["convergence"], result["convergence"])
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{result['table']}-{name}.svg")
        # Without a salt and a date, equal results make equal files.
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(files[-1], bbox_inches="tight", metadata={"Date": None})
    return files


def _draw_quality(figure: Any, result: Mapping[str, Any]) -> None:
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        by_method.setdefault(row["method"], []).append(row)
    axes = figure.add_subplot()
    for method, rows in by_method.items():
        ordered = sorted(rows, key=lambda row: row["packed_bits"])
        points = [(row["packed_bits"], row["perplexity"]) for row in ordered]
        axes.plot(*zip(*points, strict=True), "o-" if method == "awp-plus" else "o:", label=method)
    label, dense = next(iter(result["dense"].items()))
    axes.axhline(dense["perplexity"], color="grey", linestyle="--", label="dense")
    axes.set(xlabel="bits a weight, masks and scales included", ylabel=f"perplexity, {label}", yscale="log")
    axes.legend(fontsize="small")


def _draw_layers(figure: Any, result: Mapping[str, Any]) -> None:
    settings = [row["setting"] for row in result["rows"]]
    setting = next((name for name in DRAWN if name in settings), settings[0])
    axes = figure.add_subplot()
    for row in result["rows"]:
        if row["setting"] == setting:
            axes.plot(list(row["layers"].values()), label=row["method"])
    axes.set(xlabel="linear, in the order of the model", ylabel=f"relative error, {setting}", yscale="log")
    axes.legend(fontsize="small")


def _draw_convergence(figure: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    """Draw the mean over the layers: against steps, and against seconds."""
    left, right = figure.subplots(1, 2)
    for method in layers[0]["curves"]:
        points = zip(*(layer["curves"][method] for layer in layers), strict=False)
        means = [
            [sum(point[key] for point in at) / len(at) for key in ("steps", "seconds", "relative_error")]
            for at in points
        ]
        steps, seconds, errors = zip(*means, strict=True)
        left.plot(steps, errors, ".-", label=method)
        right.plot(seconds, errors, ".-", label=method)
    left.set(xlabel="steps", ylabel=f"mean relative error of {len(layers)} layers, 50% zeros")
    right.set(xlabel="seconds a layer")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize="small")
