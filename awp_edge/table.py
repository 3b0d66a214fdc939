"""The rows of the paper's tables, what each would take packed, and the table as Markdown and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import UsageError
from .methods import METHODS
from .spec import CompressSpec

#: Table -> the settings of its rows; the rivals of `joint` take as much packed storage without zeros.
SETTINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {
        "pruning": tuple({"sparsity": share} for share in (0.5, 0.6, 0.7, 0.8, 0.9)),
        "quantization": tuple({"bits": bits} for bits in (4, 3, 2)),
        "joint": (
            *({"sparsity": share, "bits": 4} for share in (0.25, 0.5, 0.75)),
            {"bits": 3},
            {"bits": 2},
        ),
        "lowrank": tuple({"rank": share} for share in (0.9, 0.8, 0.7, 0.6, 0.5)),
    }
)
_SCALE_BITS = 16
_FIELDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "perplexity": ("perplexity", ".2f"),
        "kl": ("KL to dense", ".4f"),
        "mean_relative_error": ("mean relative error", ".5f"),
        "seconds": ("seconds", ".0f"),
        "bits_per_weight": ("bits/weight, dense export", ".2f"),
        "packed_bits": ("bits/weight, packed", ".2f"),
    }
)


@dataclass(frozen=True)
class Row:
    """Name one row: what is asked of every layer."""

    setting: str
    spec: CompressSpec

    @property
    def name(self) -> str:
        """Return the row's name in results, plots and progress."""
        return f"{self.spec.method} {self.setting}"


def table_rows(
    table: str, *, group_size: int, effort: str = "default", methods: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield the rows of a table, one for every method that does what a setting asks.

    Raises:
        UsageError: a table or a method that does not exist, or methods of which none does what the table asks.
    """
    if table not in SETTINGS:
        raise UsageError(f"table {table!r} is unknown: choose one of {', '.join(SETTINGS)}")
    for name in methods or ():
        if name not in METHODS:
            raise UsageError(f"method {name!r} is unknown: choose one of {', '.join(METHODS)}")
    found = False
    for setting in SETTINGS[table]:
        asked = CompressSpec(
            group_size=group_size, effort=effort, **setting
        )  # the default method does all kinds
        for method in METHODS:
            if METHODS[method].handles(asked.kind) and (methods is None or method in methods):
                found = True
                yield Row(setting_name(asked), replace(asked, method=method))
    if not found:
        raise UsageError(f"none of {', '.join(methods or ())} does {table}: see awp-edge compress --help")


def setting_name(spec: CompressSpec) -> str:
    """Return what is asked in a few characters: "50%", "INT3", "50% + INT4", "rank 80%"."""
    if spec.rank is not None:
        return f"rank {spec.rank:.0%}" if spec.rank < 1 else f"rank {spec.rank:g}"
    parts = [f"{spec.sparsity:.0%}" if spec.sparsity else "", f"INT{spec.bits}" if spec.bits else ""]
    return " + ".join(part for part in parts if part)


def packed_bits(spec: CompressSpec) -> float:
    """Return bits a weight where zeros are skipped: kept codes, a mask bit, 16-bit scales and zero points.

    Real values and factors count 16 bits; a rank has to be a share. 50% + INT4 in groups of 64 makes
    1 + 2 + 20/64 = 3.31 against 3.30 of dense INT3: the rivals at equal storage.
    """
    if spec.rank is not None:
        return 16.0 * spec.rank
    kept = 1 - spec.sparsity
    mask = 1.0 if spec.sparsity else 0.0
    if spec.bits is None:
        return mask + 16 * kept
    return mask + spec.bits * kept + (_SCALE_BITS + spec.bits) / spec.group_size


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table as Markdown, dense model first."""
    header = ["method", "asked", *(title for title, _ in _FIELDS.values())]
    lines = ["| " + " | ".join(header) + " |", "| --- | --- |" + " ---: |" * len(_FIELDS)]
    for row in ({"method": "dense", "setting": "", **result["dense"]}, *result["rows"]):
        cells = [
            row["method"],
            row["setting"],
            *(_cell(row.get(key), form) for key, (_, form) in _FIELDS.items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", result["protocol"], ""])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw perplexity against packed bits, and the error of every layer; return the files.

    Raises: ModuleNotFoundError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        by_method.setdefault(row["method"], []).append(row)
    quality, layers = Figure(figsize=(7, 5)), Figure(figsize=(9, 5))
    axes, errors = quality.add_subplot(), layers.add_subplot()
    for method, rows in by_method.items():
        ordered = sorted(rows, key=lambda row: row["packed_bits"])
        axes.plot(
            *zip(*((r["packed_bits"], r["perplexity"]) for r in ordered), strict=True), "o-", label=method
        )
        errors.plot(
            [layer["relative_error"] for layer in rows[0]["layers"]], label=f"{method} {rows[0]['setting']}"
        )
    axes.axhline(result["dense"]["perplexity"], color="grey", linestyle=":", label="dense")
    axes.set(xlabel="bits a weight, masks and scales included", ylabel="perplexity", yscale="log")
    errors.set(xlabel="layer", ylabel="relative error", yscale="log")
    files = [folder / f"{result['table']}-perplexity.svg", folder / f"{result['table']}-layers.svg"]
    for figure, file in zip((quality, layers), files, strict=True):
        figure.gca().legend(fontsize="small")
        figure.savefig(file, bbox_inches="tight")
    return files
