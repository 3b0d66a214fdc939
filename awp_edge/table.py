"""The rows of the paper's tables, what each would take packed, and what several calibrations say together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from .artifacts import LinearInfo
from .errors import UsageError
from .methods import METHODS
from .options import DAMPING, CompressOptions, fit_spec
from .spec import CompressSpec

#: Table -> the settings of its rows; the rivals of `joint` take as much packed storage without zeros.
SETTINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {
        "pruning": (
            *({"sparsity": share} for share in (0.5, 0.6, 0.7, 0.8, 0.9)),
            *({"pattern": pattern} for pattern in ("2:4", "4:8", "32/64")),
        ),
        "quantization": tuple({"bits": bits} for bits in (4, 3, 2)),
        "joint": (
            *({"sparsity": share, "bits": 4} for share in (0.25, 0.5, 0.75)),
            {"pattern": "32/64", "bits": 4},
            {"bits": 3},
            {"bits": 2},
        ),
        "lowrank": tuple({"rank": share} for share in (0.9, 0.8, 0.7, 0.6, 0.5)),
    }
)
ALL = "all"
TABLES = (*SETTINGS, ALL)
#: With zeros and INT4, and dense with as many bits a weight when both are packed.
RIVALS: tuple[tuple[str, str], ...] = (("50% + INT4", "INT3"), ("75% + INT4", "INT2"))
MEASURES = ("perplexity", "kl", "top1_agreement")
_SCALE_BITS = 16


@dataclass(frozen=True)
class Row:
    """Name one row: what is asked of every layer."""

    setting: str
    spec: CompressSpec

    @property
    def name(self) -> str:
        """Return the row's name in results, plots and progress."""
        return f"{self.spec.method} {self.setting}"


@dataclass(frozen=True)
class Choice:
    """Bundle what narrows a table down.

    Args:
        methods: only these; None takes all that there are.
        rows: shell patterns of row names ("awp* 50%"), one of which has to fit; None takes every row.
    """

    methods: Sequence[str] | None = None
    rows: Sequence[str] | None = None

    def takes(self, row: Row) -> bool:
        """Return whether a row is wanted."""
        named = self.rows is None or any(fnmatchcase(row.name, pattern) for pattern in self.rows)
        return named and (self.methods is None or row.spec.method in self.methods)

    def __str__(self) -> str:
        return ", ".join([*(self.methods or ()), *(self.rows or ())])


def table_rows(
    table: str,
    *,
    group_size: int,
    effort: str = "default",
    damping: float | None = None,
    choice: Choice = Choice(),
) -> Iterator[Row]:
    """Yield the rows of a table, one for every method that does what a setting asks; "all" holds every setting once.

    A row names its damping, so that it is measured again where another one has become the default.

    Raises:
        UsageError: a table or a method that does not exist, or a choice that leaves no row.
    """
    if table not in TABLES:
        raise UsageError(f"table {table!r} is unknown: choose one of {', '.join(TABLES)}")
    for name in choice.methods or ():
        if name not in METHODS:
            raise UsageError(f"method {name!r} is unknown: choose one of {', '.join(METHODS)}")
    found = False
    for setting in settings_of(table):
        # The default method does all kinds.
        asked = CompressSpec(group_size=group_size, effort=effort, **setting)
        for method in METHODS:
            if METHODS[method].handles(asked.kind):
                spec = replace(asked, method=method)
                if spec.damped:
                    spec = replace(spec, damping=DAMPING if damping is None else damping)
                row = Row(setting_name(asked), spec)
                if choice.takes(row):
                    found = True
                    yield row
    if not found:
        raise UsageError(f"none of {choice} does {table}: see awp-edge table --help")


def fitting(rows: Iterable[Row], layers: Sequence[LinearInfo]) -> tuple[list[Row], dict[str, str]]:
    """Return the rows that every layer allows, and for each other setting why it is left out.

    Raises: UsageError where no row is left.
    """
    kept: list[Row] = []
    reasons: dict[str, str | None] = {}  # of every setting: methods do not matter to it
    for row in rows:
        if row.setting not in reasons:
            reasons[row.setting] = _misfit(row.spec, layers)
        if reasons[row.setting] is None:
            kept.append(row)
    left_out = {setting: reason for setting, reason in reasons.items() if reason is not None}
    if not kept:
        why = ", ".join(f"{setting} ({reason})" for setting, reason in left_out.items())
        raise UsageError(f"the model's widths allow no row: {why}; choose other rows or another --group-size")
    return kept, left_out


def _misfit(spec: CompressSpec, layers: Sequence[LinearInfo]) -> str | None:
    try:
        fit_spec(CompressOptions(spec), layers)
    except UsageError as error:
        return str(error).partition("; ")[0]  # without the advice, which names options of compress
    return None


def settings_of(table: str) -> tuple[Mapping[str, Any], ...]:
    """Return the settings of a table, each once."""
    if table != ALL:
        return SETTINGS[table]
    every = [setting for settings in SETTINGS.values() for setting in settings]
    return tuple(setting for i, setting in enumerate(every) if setting not in every[:i])


def setting_name(spec: CompressSpec) -> str:
    """Return what is asked in a few characters: "50%", "2:4", "INT3", "50% + INT4", "rank 80%"."""
    if spec.rank is not None:
        return f"rank {spec.rank:.0%}" if spec.rank < 1 else f"rank {spec.rank:g}"
    share = f"{spec.sparsity:.0%}" if spec.sparsity else ""
    parts = [share if spec.pattern == "row" else spec.pattern, f"INT{spec.bits}" if spec.bits else ""]
    return " + ".join(part for part in parts if part)


def packed_bits(spec: CompressSpec) -> float:
    """Return bits a weight where zeros are skipped: kept codes, a mask bit, 16-bit scales and zero points.

    Real values and factors count 16 bits; a rank has to be a share. 50% + INT4 in groups of 64 makes
    1 + 2 + 20/64 = 3.31 against 3.30 of dense INT3: the rivals at equal storage.
    """
    if spec.rank is not None:
        return 16.0 * spec.rank
    zeros = spec.pruned
    mask = 1.0 if zeros else 0.0
    if spec.bits is None:
        return mask + 16 * (1 - zeros)
    return mask + spec.bits * (1 - zeros) + (_SCALE_BITS + spec.bits) / spec.group_size


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what runs of one row on several calibrations say together.

    Every number is the mean over the runs; "spread" holds least, largest, standard deviation and the runs
    themselves where there are several. The measures at the top are those of the first text; layers are those of the
    first run.

    Args:
        runs: equal keys: "texts" (label -> measures), "mean_relative_error", "seconds", "cpu_seconds", "layers"
            (name -> relative error), and what is the same in all.
    """
    first = runs[0]
    errors = [run["mean_relative_error"] for run in runs]
    texts = {label: _pooled_text([run["texts"][label] for run in runs]) for label in first["texts"]}
    top = next(iter(texts.values()))
    result = {
        **{key: value for key, value in first.items() if key not in ("texts", "seconds", "cpu_seconds")},
        **{key: top[key] for key in (*MEASURES, "windows")},
        "mean_relative_error": statistics.fmean(errors),
        **{key: statistics.fmean(run[key] for run in runs) for key in ("seconds", "cpu_seconds")},
        "texts": texts,
        "runs": len(runs),
    }
    if len(runs) > 1:
        result["error_spread"] = _spread(errors)
    return result


def _pooled_text(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"windows": measured[0]["windows"]}
    for key in MEASURES:
        values = [one[key] for one in measured]
        found[key] = statistics.fmean(values)
        if len(values) > 1:
            found[f"{key}_spread"] = _spread(values)
    return found


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "min": min(values),
        "max": max(values),
        "deviation": statistics.stdev(values),
        "runs": list(values),
    }


def rivals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for both kinds of equal storage, the row of least perplexity with zeros and the one without."""
    found = []
    for pair in RIVALS:
        best = [
            min(having, key=lambda row: row["perplexity"])
            for setting in pair
            if (having := [row for row in rows if row["setting"] == setting])
        ]
        if len(best) == len(pair):
            kept = ("method", "setting", "packed_bits", "perplexity", "kl")
            found.append({"sparse": _part(best[0], kept), "dense": _part(best[1], kept)})
    return found


def _part(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: row[key] for key in keys}
