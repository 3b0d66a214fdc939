"""The command `table`: the paper's tables on any model, row by row, each row kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from ..calibrate.text import read_text
from ..record import machine
from ..spec import EFFORTS
from ..storage import write_json, writing
from ..table import SETTINGS, Row, draw, markdown, packed_bits, table_rows
from .command import Options, Outcome
from .compression import CompressChoice, compress
from .evaluation import measure
from .steps import Steps


@dataclass(frozen=True, kw_only=True)
class TableChoice(Options):
    """Options of `table`."""

    table: Annotated[str, typer.Argument(metavar="|".join(SETTINGS), help="Which table.")]
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder with safetensors weights.")
    ]
    text: Annotated[Path, typer.Option(metavar="FILE", help="What perplexity is taken on, .txt or .jsonl.")]
    calibration: Annotated[
        str, typer.Option(metavar="self|c4|wikitext2|FILE", help="Text; self: the model writes its own.")
    ]
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Results; a second run goes on where the first stopped.")
    ] = Path("table")
    methods: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="This method; may be repeated.")
    ] = None
    group_size: Annotated[int, typer.Option(min=1, metavar="G", help="Inputs that share a scale.")] = 64
    effort: Annotated[str, typer.Option(metavar="|".join(EFFORTS), help="Time against quality.")] = "default"
    samples: Annotated[int | None, typer.Option(min=1, metavar="N", help="Calibration windows.")] = None
    seq_len: Annotated[int, typer.Option(min=2, metavar="L", help="Tokens per window, in both.")] = 2048
    windows: Annotated[int | None, typer.Option(min=1, help="Windows of the text; all by default.")] = None
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all usable cores by default.")] = None


def table(options: TableChoice) -> Outcome:
    """Compress by every method and measure: the paper's tables for a model of your own.

    One calibration serves all rows; every row is written when it is done.
    """
    rows = list(
        table_rows(
            options.table, group_size=options.group_size, effort=options.effort, methods=options.methods
        )
    )
    text = read_text(options.text)
    steps = Steps(options.out)
    key = {"model": str(options.model), "text": str(options.text), "windows": options.windows,
           "calibration": options.calibration, "samples": options.samples, "seq_len": options.seq_len}  # fmt: skip
    dense = steps.run("dense", key, partial(_judge, options.model, text, options))
    result: dict[str, Any] = {
        "table": options.table,
        "dense": dense,
        "rows": [],
        "protocol": f"{options.text.name}, {dense['windows']} windows of {options.seq_len} tokens; calibrated on "
        f"{Path(options.calibration).name}; {machine()['cpu']}, {time.strftime('%Y-%m-%d')}.",
        "machine": machine(),
    }
    for row in rows:
        asked = {**key, **asdict(row.spec)}
        result["rows"].append(steps.run(row.name, asked, partial(_row, row, text, options)))
        _write(result, options.out)
    plots = [str(file) for file in draw(result, options.out)]
    return Outcome({**result, "plots": plots}, [*markdown(result).splitlines(), *plots])


def _row(row: Row, text: str, options: TableChoice) -> dict[str, Any]:
    """Compress, measure and throw the folder away."""
    folder = options.out / row.name.replace(" ", "-").replace("%", "")
    shutil.rmtree(folder, ignore_errors=True)
    spec = asdict(row.spec) | {"group_size": str(row.spec.group_size)}
    done = compress(
        CompressChoice(
            model=options.model, out=folder, calibration=options.calibration, samples=options.samples,
            seq_len=options.seq_len, statistics=options.out / "statistics", threads=options.threads, resume=True,
            **spec,
        )
    ).payload  # fmt: skip
    judged = _judge(folder, text, options, against=options.model)
    shutil.rmtree(folder)
    kept = ("mean_relative_error", "bits_per_weight", "layers")
    return {
        "method": row.spec.method, "setting": row.setting, "packed_bits": packed_bits(row.spec),
        "seconds": done["solve_seconds"], **judged, **{name: done[name] for name in kept},
    }  # fmt: skip


def _judge(folder: Path, text: str, options: TableChoice, *, against: Path | None = None) -> dict[str, Any]:
    measured = measure(
        folder,
        text,
        seq_len=options.seq_len,
        windows=options.windows,
        against=against,
        threads=options.threads,
    )
    return measured.as_dict()


def _write(result: Mapping[str, Any], out: Path) -> None:
    write_json(out / f"{result['table']}.json", result)
    page = out / f"{result['table']}.md"
    with writing(page):
        page.write_text(markdown(result))


Declared = tuple[type[Options], Callable[[Any], Outcome]]
COMMANDS: Mapping[str, Declared] = MappingProxyType({"table": (TableChoice, table)})
