"""One self-contained HTML page about a compressed model: no script, no network, the plot as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .artifacts import REPORT_FILE, read_manifest
from .errors import AwpError
from .spec import CompressSpec
from .storage import atomic_file, read_json

ZEROS_NOTE = (
    "Zeros that are stored like other weights bring neither speed nor size: a dense export of this model runs as fast "
    "and is as large as without them. Fewer bits bring both."
)
WORST = 10
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 300, 70, 40
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#2f4f4f", "#d1495b", "#5c5c5c")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;margin:.5em 0}
td,th{padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
.note{background:#fff6df;padding:.6em 1em}svg text{font:11px system-ui,sans-serif}code{font-size:.92em}"""
_QUALITY = ("folder", "against_perplexity", "perplexity", "kl", "top1_agreement", "windows", "seq_len")
_SPEED = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "peak_memory_bytes",
          "bytes", "threads")  # fmt: skip

_GUARANTEES = {
    "relative_step": "step times L", "covered": "step covered", "condition": "condition of C",
    "descent_gain": "gradient step gains", "coordinate_gain": "single change gains", "refit_gain": "refit gains",
    "lower_bound": "unavoidable share", "at_most": "at most, times the best", "bound_for": "best of",
}  # fmt: skip

Row = Sequence[object]


def write_report(folder: Path, page: Path, *, results: Sequence[Path] = ()) -> None:
    """Write the page about a compressed folder.

    Args:
        folder: what `awp-edge compress` wrote.
        page: the HTML file.
        results: JSON files of `eval` and `bench`, shown as before and after.

    Raises:
        AwpError: no compressed folder, results that are not JSON objects, a page that cannot be written.
    """
    manifest = read_manifest(folder)
    timings = read_json(folder / REPORT_FILE) if (folder / REPORT_FILE).is_file() else {}
    text = render(folder.name, manifest, timings=timings, results=[_read_result(path) for path in results])
    with atomic_file(page) as file:
        file.write(text.encode())


def _stores_zeros(spec: Mapping[str, Any]) -> bool:
    """Return whether zeros were asked for that an export stores like other weights."""
    asked = CompressSpec(**spec)
    return asked.kind in ("pruning", "joint") and not asked.sparse_export


def render(
    title: str,
    manifest: Mapping[str, Any],
    *,
    timings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the page as text."""
    layers = manifest["layers"]
    body = [
        f"<h1>{escape(title)}</h1>",
        _table(_summary_rows(manifest)),
        f'<p class="note">{ZEROS_NOTE}</p>' if _stores_zeros(manifest["spec"]) else "",
        *_result_sections(results),
        "<h2>Error per layer</h2>",
        "<p>Relative error f(&Theta;)/f(0): the share of the layer's output energy that compression changed.</p>",
        error_plot(layers),
        f"<h2>By kind of linear</h2>{_kind_table(layers)}",
        f"<h2>Largest errors</h2>{_layer_table(layers)}",
        *_guarantee_section(layers),
        f"<h2>What was done</h2>{_table(_flat(manifest, skip=('layers', 'files')))}",
        f"<h2>Time and machine</h2>{_table(_flat(timings, skip=('layers',)))}",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}: awp-edge</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def error_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG of relative error (log scale) over the block, one line per kind of linear.

    Where no layer has an error, a sentence says so.
    """
    points = _points(layers)
    errors = [error for series in points.values() for _, error in series]
    if not errors:
        return "<p>Every layer is exact.</p>"
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))
    decades, blocks = max(1, high - low), max(1, *(x for series in points.values() for x, _ in series))

    def place(block: int, error: float) -> tuple[float, float]:
        across = (_WIDTH - _LEFT - 10) * block / blocks
        return _LEFT + across, 10 + (_HEIGHT - _BOTTOM - 10) * (1 - (math.log10(error) - low) / decades)

    marks = [_grid_line(place(0, 10.0**power)[1], power) for power in range(low, low + decades + 1)]
    for colour, (kind, series) in zip(_cycle(len(points)), points.items(), strict=True):
        marks.append(_series([place(*point) for point in series], colour=colour, kind=kind))
    marks.append(f'<text x="{_LEFT}" y="{_HEIGHT - _BOTTOM + 18}">block 0</text>')
    marks.append(f'<text x="{_WIDTH - 60}" y="{_HEIGHT - _BOTTOM + 18}">block {blocks}</text>')
    frame = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="relative error per layer"'
    return f"<svg {frame}>{''.join(marks)}</svg>{_legend(list(points))}"


def _points(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for layer in layers:
        if layer["relative_error"] > 0:
            kind = str(layer["name"]).rpartition(".")[2]
            points.setdefault(kind, []).append((int(layer["block"]), float(layer["relative_error"])))
    return points


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]


def _grid_line(y: float, power: int) -> str:
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    return f'{line}<text x="10" y="{y + 4:.1f}">{10.0**power:g}</text>'


def _series(places: Sequence[tuple[float, float]], *, colour: str, kind: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity=".6"/>'
    return f"<g><title>{escape(kind)}</title>{line}{dots}</g>"


def _legend(kinds: Sequence[str]) -> str:
    marked = [
        f'<span style="color:{c}">&#9679;</span> <code>{escape(k)}</code>'
        for c, k in zip(_cycle(len(kinds)), kinds, strict=True)
    ]
    return f"<p>{' &nbsp; '.join(marked)}</p>"


def _summary_rows(manifest: Mapping[str, Any]) -> list[Row]:
    layers, model = manifest["layers"], manifest.get("model", {})
    weights = sum(math.prod(layer["shape"]) for layer in layers)
    zeros = sum(math.prod(layer["shape"]) * layer.get("sparsity", 0) for layer in layers)
    rows: list[Row] = [
        ("model", model.get("architecture", "")),
        ("method", manifest.get("spec", {}).get("method", "")),
        ("compressed linears", f"{len(layers)} with {weights / 1e6:.1f} million weights"),
        ("exact zeros", f"{zeros / weights:.1%}" if weights else "none"),
        ("bits per weight", f"{manifest['bits_per_weight']:.4g}"),
        ("mean relative error", f"{manifest['mean_relative_error']:.4g}"),
    ]
    return rows


def _kind_table(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for all layers of one name: their mean error, and how far budgets went apart."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        kinds.setdefault(str(layer["name"]).rpartition(".")[2], []).append(layer)
    rows = [
        (kind, len(members), _cell(sum(float(m["relative_error"]) for m in members) / len(members)),
         *(_range([float(m.get(key) or 0) for m in members]) for key in ("sparsity", "bits_per_weight")))
        for kind, members in kinds.items()
    ]  # fmt: skip
    return _table(rows, header=["kind", "layers", "mean relative error", "sparsity", "bits per weight"])


def _range(values: Sequence[float]) -> str:
    least, largest = _cell(min(values)), _cell(max(values))
    return least if least == largest else f"{least} to {largest}"


def _layer_table(layers: Iterable[Mapping[str, Any]]) -> str:
    worst = sorted(layers, key=lambda layer: -float(layer["relative_error"]))[:WORST]
    keys = (
        "name",
        "relative_error",
        "iterations",
        "reason",
        "pattern",
        "sparsity",
        "bits",
        "bits_per_weight",
    )
    rows = [tuple(_cell(layer.get(key, "")) for key in keys) for layer in worst]
    return _table(rows, header=[key.replace("_", " ") for key in keys])


def _guarantee_section(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the layers' certificates say: a summary and the layers that may be farthest from their best."""
    certified = [(layer["name"], layer["certificate"]) for layer in layers if layer.get("certificate")]
    if not certified:
        return []
    bounds = sorted(float(c["at_most"]) for _, c in certified if c["at_most"] is not None)
    steps = [bool(c["covered"]) for _, c in certified if c["covered"] is not None]
    rows: list[Row] = [("layers with a bound", f"{len(bounds)} of {len(certified)}")]
    if bounds:
        middle = bounds[len(bounds) // 2]
        rows.append(
            (
                "error over the least possible, at most",
                f"{bounds[0]:.3g} to {bounds[-1]:.3g}, median {middle:.3g}",
            )
        )
    if steps:
        rows.append(("steps short enough for descent at every step", f"{sum(steps)} of {len(steps)}"))
    worst = sorted(certified, key=lambda pair: -float(pair[1]["at_most"] or math.inf))[:WORST]
    table = [(name, *(_cell(c.get(key)) for key in _GUARANTEES)) for name, c in worst]
    return [
        "<h2>What is guaranteed</h2>",
        "<p>From evenly spaced rows of every layer. Gains are shares of its error that are still to be had; the "
        "unavoidable share is proved, and the error is at most its inverse times the least possible.</p>",
        _table(rows), _table(table, header=["name", *_GUARANTEES.values()]),
    ]  # fmt: skip


def _result_sections(results: Sequence[Mapping[str, Any]]) -> list[str]:
    quality = [r for r in results if "perplexity" in r]
    speed = [r for r in results if "decode_tokens_per_second" in r]
    columns = (("Before and after", quality, _QUALITY), ("Speed", speed, _SPEED))
    return [
        f"<h2>{name}</h2>"
        + _table(
            [[_cell(r.get(key)) for key in keys] for r in rows], header=[k.replace("_", " ") for k in keys]
        )
        for name, rows, keys in columns
        if rows
    ]


def _table(rows: Iterable[Row], *, header: Sequence[str] = ()) -> str:
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>" if header else ""
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{head}{lines}</table>"


def _flat(value: Mapping[str, Any], *, skip: Sequence[str] = (), prefix: str = "") -> list[Row]:
    """Return nested JSON as (dotted name, text) rows."""
    rows: list[Row] = []
    for key, entry in value.items():
        if key in skip:
            continue
        if isinstance(entry, Mapping):
            rows.extend(_flat(entry, prefix=f"{prefix}{key}."))
        else:
            rows.append((f"{prefix}{key}".replace("_", " "), _cell(entry)))
    return rows


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return str(value)


def _read_result(path: Path) -> Mapping[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict):
        raise AwpError(f"{path} is not a JSON object: give what eval --output or bench --json wrote")
    return result
