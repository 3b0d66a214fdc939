"""The command `table`: the paper's tables on any model, row by row, each row kept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from ..artifacts import LinearInfo
from ..calibrate.request import CalibrationRequest, context_length, open_statistics
from ..calibrate.saved import MANIFEST_FILE, SavedStatistics, has_statistics, saved_calibration
from ..calibrate.text import read_text
from ..convergence import convergence
from ..errors import AwpError, UsageError
from ..evaluate import DEFAULT_SEQ_LEN, Evaluation, LogitsSource, evaluate
from ..methods import METHODS
from ..models import ModelFolder
from ..problem import Problem
from ..spec import EFFORTS
from ..storage import file_sha256, partial_of, write_json, writing
from ..table import TABLES, Choice, Row, fitting, packed_bits, pooled, rivals, table_rows
from ..table_page import draw, markdown, require_drawing
from .command import Options, Outcome
from .compression import CompressChoice, compress
from .console import note, progress
from .evaluation import open_source
from .steps import Steps, finished_steps, folder_name, steps_in

_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class TableChoice(Options):
    """Options of `table`."""

    table: Annotated[str, typer.Argument(metavar="|".join(TABLES), help="Which table.")]
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder with safetensors weights.")
    ]
    text: Annotated[
        list[str],
        typer.Option(
            metavar="FILE[:A-B]",
            help="What perplexity is taken on, .txt or .jsonl; windows A to B; may be repeated.",
        ),
    ]
    calibration: Annotated[
        str, typer.Option(metavar="self|c4|wikitext2|FILE", help="Text; self: the model writes its own.")
    ]
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Results; a second run goes on where the first stopped.")
    ] = Path("table")
    methods: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="This method; may be repeated.")
    ] = None
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--row", metavar="PATTERN", help='Rows of this name ("wanda 50%", "awp* INT?"); may be repeated.'
        ),
    ] = None
    group_size: Annotated[int, typer.Option(min=1, metavar="G", help="Inputs that share a scale.")] = 64
    effort: Annotated[str, typer.Option(metavar="|".join(EFFORTS), help="Time against quality.")] = "default"
    damping: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="As in compress, for the rows where awp-plus prunes."),
    ] = None
    samples: Annotated[int | None, typer.Option(min=1, metavar="N", help="Calibration windows.")] = None
    seq_len: Annotated[
        int | None,
        typer.Option(min=2, metavar="L", help="Tokens per window, in both; 2048, or a shorter context."),
    ] = None
    windows: Annotated[int | None, typer.Option(min=1, help="Windows of each text; all by default.")] = None
    token_weights: Annotated[
        str,
        typer.Option(
            metavar="uniform|norm|loss", help="Weights of the calibration tokens, as in `compress`."
        ),
    ] = "uniform"
    subsets: Annotated[
        int,
        typer.Option(
            min=1,
            help="Calibrations: the first windows, then draws by seeds 1, 2, ...; rows get means and ranges.",
        ),
    ] = 1
    statistics: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Take these saved statistics for the subsets; may be repeated."),
    ] = None
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all usable cores by default.")] = None

    def kept(self) -> str:
        """Name the folder of the finished rows."""
        return finished_steps(self.out)


@dataclass(frozen=True)
class Text:
    """Hold one text of the evaluation and which of its windows are taken."""

    label: str
    content: str
    sha256: str
    skip: int
    windows: int | None


@dataclass(frozen=True)
class Subset:
    """Name one calibration: the folder of its statistics, and what makes them where there are none.

    label: of its steps.  sha256: of the manifest of saved statistics, None for those that the table makes.
    """

    statistics: Path
    seed: int | None
    label: str
    sha256: str | None = None


def table(options: TableChoice) -> Outcome:
    """Compress by every method and measure: the paper's tables for a model of your own.

    One calibration (or several, for a spread) serves all rows; every row is written when it is done. A method that
    does not look at activations is run once.
    """
    choice = Choice(options.methods, options.rows)
    rows = list(
        table_rows(
            options.table,
            group_size=options.group_size,
            effort=options.effort,
            damping=options.damping,
            choice=choice,
        )
    )
    # What can be refused is refused before hours of rows.
    texts, subsets = open_texts(options.text, options.windows), subsets_of(options)
    require_drawing()
    model = ModelFolder(options.model)
    rows, left_out = fitting(rows, linears_of(model))
    calibration = calibration_of(options, model, subsets)
    for setting, reason in left_out.items():
        note(f"{setting} is left out: {reason}")
    with steps_in(options.out) as steps:
        run = _Run(options, Inputs(model, texts, subsets, calibration), steps)
        result = run.measure(rows, left_out)
        plots = [str(file) for file in draw(result, options.out)]
    return Outcome({**result, "plots": plots}, [*markdown(result).splitlines(), *plots])


def linears_of(model: ModelFolder) -> list[LinearInfo]:
    """List what is compressed. Raises: AwpError for a model without a block stack of linears."""
    from ..calibrate.modules import Skeleton

    skeleton = Skeleton(model)
    return [LinearInfo(name, name, skeleton.shape(name)) for block in skeleton.linears for name in block]


def calibration_of(options: TableChoice, model: ModelFolder, subsets: Sequence[Subset]) -> CalibrationRequest:
    """Return what every calibration has in common, its sizes settled.

    Raises: UsageError or AwpError for options and text that will not do, and for statistics of another calibration.
    """
    seq_len = options.seq_len or min(DEFAULT_SEQ_LEN, context_length(model) or DEFAULT_SEQ_LEN)
    request = CalibrationRequest(
        options.calibration, samples=options.samples, seq_len=seq_len, token_weights=options.token_weights
    ).sized(model)
    request.check()
    for subset in subsets:
        folder = subset.statistics
        if not has_statistics(folder):
            continue
        asked = replace(request, seed=subset.seed, order="one-shot", statistics=folder)
        try:
            open_statistics(model, asked, folder)
        except AwpError as error:
            if subset.sha256 is not None:
                raise
            what = str(error).partition("; ")[0]
            raise AwpError(f"{what}; choose another --out, or delete {folder} to calibrate again") from None
    return request


def open_texts(names: Sequence[str], windows: int | None) -> list[Text]:
    """Read every text. Raises: UsageError where two have one label, under which results are kept."""
    labels: dict[str, str] = {}
    for name in names:
        label = Path(name).name
        if label in labels:
            raise UsageError(
                f"--text {labels[label]} and --text {name} would both be called {label}: "
                "rename a file, or leave one out"
            )
        labels[label] = name
    return [open_text(name, windows) for name in names]


def open_text(name: str, windows: int | None) -> Text:
    """Read FILE, or FILE:A-B for its windows A to B, counted from 0."""
    match = re.fullmatch(r"(.+):(\d+)-(\d+)", name)
    path, first = Path(match[1] if match else name), 0
    if match is not None:
        first, last = int(match[2]), int(match[3])
        if last < first:
            raise UsageError(f"--text {name}: the last window is before the first")
        n = last - first + 1
        windows = n if windows is None else min(n, windows)
    return Text(Path(name).name, read_text(path), file_sha256(path), first, windows)


def subsets_of(options: TableChoice) -> list[Subset]:
    """Return the calibrations that every row is compressed with.

    Raises: UsageError for subsets of saved statistics; AwpError where a folder of those has no complete set.
    """
    if options.statistics:
        if options.subsets != 1:
            raise UsageError(
                f"--subsets {options.subsets} makes statistics, --statistics takes saved ones: give one"
            )
        return [saved_subset(folder) for folder in options.statistics]
    names = ["statistics", *(f"statistics-{seed}" for seed in range(1, options.subsets))]
    return [Subset(options.out / name, seed or None, name) for seed, name in enumerate(names)]


def saved_subset(folder: Path) -> Subset:
    """Return a calibration whose statistics are there. Raises: AwpError where they are not."""
    if not has_statistics(folder):
        raise AwpError(
            f"{folder} holds no complete statistics; make them with awp-edge compress --one-shot --statistics, "
            "or leave --statistics out"
        )
    return Subset(
        folder, saved_calibration(folder).get("seed"), str(folder), file_sha256(folder / MANIFEST_FILE)
    )


@dataclass(frozen=True)
class Inputs:
    """Hold what is compressed, measured on and calibrated with."""

    model: ModelFolder
    texts: Sequence[Text]
    subsets: Sequence[Subset]
    calibration: CalibrationRequest

    @property
    def seq_len(self) -> int:
        """Return the tokens of a window."""
        assert self.calibration.seq_len is not None
        return self.calibration.seq_len

    def dense_key(self) -> dict[str, Any]:
        """Return what decides the dense model's results: contents, which a path does not tell."""
        return {
            "model": self.model.hash(), "seq_len": self.seq_len,
            "texts": [[text.label, text.sha256, text.skip, text.windows] for text in self.texts],
        }  # fmt: skip

    def key(self, subset: Subset) -> dict[str, Any]:
        """Return what decides the results of a row on one calibration, the row itself aside."""
        asked = self.calibration
        return {
            **self.dense_key(), "calibration": Path(asked.source).name, **asked.known(), "samples": asked.samples,
            "token_weights": asked.token_weights, "seed": None if subset.sha256 else subset.seed,
            "statistics": subset.sha256,
        }  # fmt: skip


class _Run:
    """The steps of a table, each done once."""

    def __init__(self, options: TableChoice, inputs: Inputs, steps: Steps) -> None:
        self._options, self._inputs, self._steps = options, inputs, steps
        self._texts, self._subsets = inputs.texts, inputs.subsets

    def measure(self, rows: Sequence[Row], left_out: Mapping[str, str]) -> dict[str, Any]:
        """Run every row on the first calibration, then on the next, and write what there is after each."""
        dense = self._steps.run("dense", self._inputs.dense_key(), self._dense)
        done: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
        result: dict[str, Any] = {
            "table": self._options.table, "dense": dense, "rows": [], "rivals": [], "convergence": [],
            "left_out": dict(left_out),
        }  # fmt: skip
        keys = [self._inputs.key(subset) for subset in self._subsets]
        for subset, key in zip(self._subsets, keys, strict=True):
            for row in rows:
                if done[row.name] and not METHODS[row.spec.method].calibrated:
                    continue
                step, asked = f"{row.name}, {subset.label}", {**key, **asdict(row.spec)}
                work = partial(self._row, row, subset, key=asked)
                done[row.name].append(self._steps.run(step, asked, work))
                result["rows"] = [pooled(runs) for runs in done.values() if runs]
                result["rivals"] = rivals(result["rows"])
                self._write(result)
        if any(row.spec.kind == "pruning" for row in rows):
            result["convergence"] = self._steps.run("convergence", keys[0], self._convergence)["layers"]
            self._write(result)
        return result

    @cached_property
    def _reference(self) -> LogitsSource:
        from ..calibrate.runner import ReferenceModel

        return ReferenceModel(self._options.model, threads=self._options.threads)

    def _dense(self) -> dict[str, Any]:
        return {text.label: self._judged(self._reference, text).as_dict() for text in self._texts}

    def _row(self, row: Row, subset: Subset, *, key: Mapping[str, Any]) -> dict[str, Any]:
        """Compress, measure and throw the folder away."""
        options = self._options
        folder = self._row_folder(row, key)
        spec = asdict(row.spec) | {"group_size": str(row.spec.group_size)}
        done = compress(
            CompressChoice(
                model=options.model, out=folder, calibration=options.calibration, samples=options.samples,
                seq_len=self._inputs.seq_len, seed=subset.seed, statistics=subset.statistics, threads=options.threads,
                token_weights=options.token_weights, certificate=False, resume=True, **spec,
            )
        ).payload  # fmt: skip
        model = open_source(folder, threads=options.threads)
        judged = {text.label: self._judged(model, text, self._reference).as_dict() for text in self._texts}
        shutil.rmtree(folder)
        return {
            "method": row.spec.method, "setting": row.setting, "packed_bits": packed_bits(row.spec),
            "bits_per_weight": done["bits_per_weight"], "mean_relative_error": done["mean_relative_error"],
            "seconds": done["solve_seconds"], "cpu_seconds": done["solve_cpu_seconds"], "texts": judged,
            "layers": {layer["name"]: layer["relative_error"] for layer in done["layers"]},
        }  # fmt: skip

    def _row_folder(self, row: Row, key: Mapping[str, Any]) -> Path:
        """Name the folder after all that decides the results, and delete what other options left of the row.

        So a row that was stopped, in its compression or its evaluation, is gone on with by the options that began it,
        and stands in nobody else's way.
        """
        name = folder_name(row.name)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:_DIGITS]
        folder = self._options.out / f"{name}-{digest}"
        for found in self._options.out.glob(f"{name}-{'[0-9a-f]' * _DIGITS}*"):
            if found.name not in (folder.name, partial_of(folder).name):
                shutil.rmtree(found, ignore_errors=True)
        return folder

    def _judged(self, model: LogitsSource, text: Text, against: LogitsSource | None = None) -> Evaluation:
        with progress("evaluating") as advance:
            return evaluate(
                model, text.content, seq_len=self._inputs.seq_len, windows=text.windows, skip=text.skip,
                against=against, on_window=lambda done, total: advance(done, total, "window"),
                threads=self._options.threads,
            )  # fmt: skip

    def _convergence(self) -> dict[str, Any]:
        """Follow the iterative methods on the middle block, one linear of every input."""
        source = SavedStatistics(self._inputs.model, self._subsets[0].statistics)
        block = source.n_blocks // 2
        grams = source.statistics(block)
        layers = [
            {"layer": info.name, "curves": convergence(Problem(source.weight(info.name), grams[info.input].matrix),
                                                       threads=self._options.threads)}
            for info in source.linears(block) if info.name == info.input
        ]  # fmt: skip
        return {"layers": layers}

    def _protocol(self, dense: Mapping[str, Any]) -> str:
        options = self._options
        texts = " and ".join(f"{dense[text.label]['windows']} of {text.label}" for text in self._texts)
        spread = (
            f" in {len(self._subsets)} subsets (mean, least to largest)" if len(self._subsets) > 1 else ""
        )
        source = Path(options.calibration).name
        if options.token_weights != "uniform":
            source += f", tokens weighted by {options.token_weights}"
        return (
            f"Windows of {self._inputs.seq_len} tokens: {texts}; calibrated on {source}{spread}, "
            f"groups of {options.group_size}; {self._steps.origin()}."
        )

    def _write(self, result: dict[str, Any]) -> None:
        result |= {"protocol": self._protocol(result["dense"]), "made": self._steps.made()}
        write_json(self._options.out / f"{result['table']}.json", result)
        page = self._options.out / f"{result['table']}.md"
        with writing(page):
            page.write_text(markdown(result))


Declared = tuple[type[Options], Callable[[Any], Outcome]]
COMMANDS: Mapping[str, Declared] = MappingProxyType({"table": (TableChoice, table)})
