"""The loop over decoder blocks: statistics, layer problems, compressed layers on disk, the next block's inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .allocate import Budget, Counts, Target
from .artifacts import (
    LOG_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    REST_FILE,
    CompressedLayer,
    Gram,
    LinearInfo,
    Sensitivity,
    block_file,
    write_block,
)
from .backend import resolve, wanted
from .certificate import GramFacts, certify_layer, gram_facts
from .checkpoint import State, Workspace, finished_manifest, open_workspace, partial_of, require_same
from .errors import AwpError, DamagedCheckpoint, UsageError
from .memory import require_memory
from .methods import CompressSpec, compress_layer
from .models import ModelFolder, copy_companions
from .options import CompressOptions, fit_spec
from .problem import half_inner, ratio
from .record import CompressSummary, Event, Progress, manifest_of, report_of, summary_of
from .solvers.base import Result
from .storage import file_sha256, output_folder, read_json, write_json, write_tensor_stream, writing

BUDGETS_FILE = "budgets.json"
Weights = Mapping[str, NDArray[np.float32]]


class StatisticsSource(Protocol):
    """Give the layers of a block stack and what their inputs look like, one block at a time."""

    n_blocks: int
    calibration: Mapping[str, Any]
    """What the statistics come from, plain JSON values: source, samples, seq_len, seed, order, tokens_sha256."""

    def linears(self, block: int) -> Sequence[LinearInfo]:
        """List the linears of a block to compress, in the order of the module tree."""

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return a linear's weight, (d_out, d_in) float32."""

    def statistics(self, block: int) -> Mapping[str, Gram]:
        """Return the Gram matrix of every input of a block, by the name of its first linear."""

    def sensitivity(self, block: int) -> Sensitivity:
        """Return how much the dense model's loss minds errors in a block's linears."""

    def advance(self, block: int, weights: Weights) -> None:
        """Make the inputs of block + 1, on disk and atomically, so that a new process can go on from there."""


#: Opens the statistics in a folder of their own, which a resumed run finds again.
SourceFactory = Callable[[Path], StatisticsSource]


class Interrupted(AwpError):
    """Report a run stopped by the user; the finished blocks are kept."""


def compress_model(
    open_source: SourceFactory, folder: ModelFolder, out: str | Path, *, options: CompressOptions,
    progress: Progress | None = None,
) -> CompressSummary:  # fmt: skip
    """Compress every linear of the block stack into the folder OUT, which appears by rename when it is complete.

    All work happens in OUT.partial. After each block its file, the next block's inputs and then the state reach the
    disk, in this order, so that a run killed at any moment resumes to the same bytes.

    Raises: AwpError, in one line, for everything a user can mend; Interrupted on Ctrl-C.
    """
    target = output_folder(out)
    request = _request(folder, options)
    done = _already_done(target, request, options, progress=progress)
    if done is not None:
        return done
    with open_workspace(target, resume=options.resume) as (workspace, has_state):
        listener = progress or (lambda event: None)
        run = _Run(workspace, folder, options=options, request=request, listener=listener)
        return run.go(open_source, has_state=has_state)


def _request(folder: ModelFolder, options: CompressOptions) -> dict[str, Any]:
    """Return everything that decides the result, as plain JSON values: what a resumed run must have in common."""
    from . import native

    size = "auto" if options.auto_group_size else options.spec.group_size
    spec = {**asdict(options.spec), "group_size": size}
    try:
        resolve(options.backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    engine = {"backend": wanted(options.backend), "native": native.isa() if native.available() else "none"}
    return {
        "model": folder.hash(), "calibration": dict(options.calibration), "skip": list(options.skip), **spec, **engine,
        "allocate": options.allocate, "certificate": options.certificate,
        "versions": {"awp-edge": __version__, "numpy": np.__version__},
    }  # fmt: skip


def _already_done(
    out: Path, request: Mapping[str, Any], options: CompressOptions, *, progress: Progress | None
) -> CompressSummary | None:
    """Return the summary where a resumed run had finished, bringing OUT.partial home if only that was left."""
    if not options.resume:
        return None
    for place in (out, partial_of(out)):
        manifest = finished_manifest(place) if place.is_dir() else None
        if manifest is None:
            continue
        require_same(request, manifest["request"], place)
        _require_known(options, manifest["calibration"], place)
        if place != out:
            with open_workspace(out, resume=True) as (workspace, _):
                workspace.publish()
        if progress:
            progress(Event(f"{out} is complete already"))
        return summary_of(out, manifest, read_json(out / REPORT_FILE))
    return None


def _require_known(options: CompressOptions, recorded: Mapping[str, Any], place: Path) -> None:
    """Raise AwpError where the statistics of a run that needs none any more were of another text."""
    require_same(options.known, {key: recorded.get(key) for key in options.known}, place)


class _Run:
    """One process's share of a run: what it reads and writes, its state, and the listener it talks to."""

    def __init__(
        self, workspace: Workspace, folder: ModelFolder, *, options: CompressOptions, request: dict[str, Any],
        listener: Progress,
    ) -> None:  # fmt: skip
        self._workspace, self._folder, self._options = workspace, folder, options
        self._listener = listener
        self._start = time.perf_counter()
        self._state = State(request)
        self._earlier = self._state
        self._budgets: Mapping[str, Budget] = {}
        self._facts: tuple[str, GramFacts] | None = None  # of the input that the last linear had

    def go(self, open_source: SourceFactory, *, has_state: bool) -> CompressSummary:
        """Run or continue to the end."""
        if has_state:
            self._restore()
        try:
            if not has_state:
                self._begin()
            if not self._state.all_blocks_done:
                self._compress_blocks(open_source)
            return self._close()
        except KeyboardInterrupt:
            kept = f"{self._state.next_block} of {self._state.n_blocks or '?'} blocks are kept"
            raise Interrupted(
                f"interrupted: {kept} in {self._workspace.partial}; go on with --resume"
            ) from None
        except OSError as error:
            failure = AwpError(f"{error.strerror or error} ({error.filename or self._workspace.partial})")
            raise self._explained(failure, has_state=has_state) from None
        except AwpError as error:
            raise self._explained(error, has_state=has_state) from None

    def _explained(self, error: AwpError, *, has_state: bool) -> AwpError:
        """Leave nothing half-written where no block was ever finished; else say what is kept, if it is of use."""
        if not (self._state.next_block or has_state):
            self._workspace.discard()
        elif isinstance(error, DamagedCheckpoint):
            return AwpError(f"{error}; {self._workspace.start_again()}")
        if self._state.next_block == 0:
            return error
        kept = f"{self._state.next_block} finished blocks are kept in {self._workspace.partial} for --resume"
        return type(error)(f"{error}; {kept}")

    def _begin(self) -> None:
        self._folder.require_finite()  # now, not after hours in the last block
        self._workspace.begin()
        self._workspace.save(self._state)
        if self._options.resume:
            self._say(f"nothing to resume in {self._workspace.partial}: starting from the first block")

    def _restore(self) -> None:
        state = self._workspace.load()
        require_same(self._state.request, state.request, self._workspace.partial)
        if state.all_blocks_done:
            _require_known(self._options, state.calibration, self._workspace.partial)
        self._earlier = self._state = replace(state, runs=state.runs + 1)
        self._say(f"resuming after {state.next_block} of {state.n_blocks or '?'} blocks")

    def _compress_blocks(self, open_source: SourceFactory) -> None:
        started = time.perf_counter()
        source = open_source(self._workspace.state_folder)
        blocks = [tuple(source.linears(block)) for block in range(source.n_blocks)]
        spec = fit_spec(self._options, [layer for block in blocks for layer in block])
        require_memory(self._folder, [layer for block in blocks for layer in block], self._options)
        calibration = dict(source.calibration)
        if self._state.n_blocks is not None:
            require_same(calibration, self._state.calibration, self._workspace.partial)
        self._state = replace(
            self._state, calibration=calibration, spec=asdict(spec), n_blocks=source.n_blocks
        )
        self._spend("calibration", started)
        self._workspace.save(self._state)
        self._budgets = self._allocated(source, blocks, spec)
        for block in range(self._state.next_block, source.n_blocks):
            self._compress_block(source, block, layers=blocks[block], spec=spec)

    def _allocated(
        self, source: StatisticsSource, blocks: Sequence[Sequence[LinearInfo]], spec: CompressSpec
    ) -> Mapping[str, Budget]:
        """Return the budgets of all matrices, from the state folder where a run before this one had found them."""
        if self._options.allocate == "uniform":
            return {}
        path, started, found = self._workspace.state_folder / BUDGETS_FILE, time.perf_counter(), {}
        if path.is_file():
            stored = read_json(path).items()
            return {name: tuple(budget) if isinstance(budget, list) else budget for name, budget in stored}
        target = Target(self._options.allocate, spec.pruned, "/" in spec.pattern, spec.bits, spec.group_size)
        engine = resolve(self._options.backend, threads=self._options.threads)
        for block, layers in enumerate(blocks):
            self._say(f"what {target.spent} cost in block {block + 1} of {len(blocks)}")
            felt = source.sensitivity(block)
            for info in layers:
                weight, gram = source.weight(info.name), felt.gram[info.input]
                try:
                    found[info.name] = target.price(weight, gram, felt.rows[info.name], engine=engine)
                except AwpError as error:
                    raise AwpError(f"{info.name}: {error}") from None
        budgets = target.settle(found)
        write_json(path, budgets)
        self._spend("allocation", started)
        return budgets

    def _compress_block(
        self, source: StatisticsSource, block: int, *, layers: Sequence[LinearInfo], spec: CompressSpec
    ) -> None:
        started = time.perf_counter()
        grams = source.statistics(block)
        started = self._spend("calibration", started)
        compressed, records, certifying = [], [], self._state.seconds.get("certificate", 0.0)
        for info in layers:
            layer, record = self._compress_linear(
                source.weight(info.name), grams[info.input], info, spec=spec
            )
            compressed.append(layer)
            records.append({**record, "block": block})
        certifying = self._state.seconds.get("certificate", 0.0) - certifying
        solving = sum(record["seconds"] for record in records)
        started = self._spend("weights", started, less=solving + certifying)
        file = self._workspace.partial / block_file(block)
        write_block(file, compressed)
        files = {**self._state.files, block_file(block): file_sha256(file)}
        started = self._spend("writing", started)
        source.advance(block, {layer.name: layer.dense() for layer in compressed})
        self._spend("calibration", started)
        layers_done = [*self._state.layers, *records]
        state = replace(self._state, next_block=block + 1, layers=layers_done, files=files)
        self._workspace.save(state)
        self._state = state
        self._say(f"block {block + 1} of {self._state.n_blocks} done", remaining_s=self._remaining_s())

    def _compress_linear(
        self, weight: NDArray[np.float32], gram: Gram, info: LinearInfo, *, spec: CompressSpec
    ) -> tuple[CompressedLayer, dict[str, Any]]:
        started, computing = time.perf_counter(), time.process_time()
        budget = self._budgets.get(info.name)
        kept = budget if isinstance(budget, tuple) else None
        if isinstance(budget, str):
            spec = replace(spec, pattern=budget, sparsity=0.0)
        elif isinstance(budget, int):
            spec = replace(spec, bits=budget)
        layer, record, result = compress_linear(
            weight, gram, info, spec=spec, options=self._options, kept=kept
        )
        seconds = time.perf_counter() - started
        computing = time.process_time() - computing
        started = self._spend("solve", started)
        record |= {
            "tensor": self._folder.weight_name(info.name),
            "seconds": seconds,
            "cpu_seconds": computing,
        }
        if self._options.certificate:
            if self._facts is None or self._facts[0] != info.input:
                self._facts = info.input, gram_facts(gram.matrix)
            certificate = certify_layer(weight, result, facts=self._facts[1], spec=spec, kept=kept)
            record["certificate"] = certificate.to_json()
            self._spend("certificate", started)
        error = record["relative_error"]
        self._say(f"{info.name}: relative error {error:.5f}, {record['iterations']} iterations, {seconds:.2f} s",
                  layer=info.name, relative_error=error, remaining_s=self._remaining_s())  # fmt: skip
        return layer, record

    def _close(self) -> CompressSummary:
        """Write what is not a block, the manifest last, and publish."""
        started = time.perf_counter()
        partial = self._workspace.partial
        compressed = {layer["tensor"] for layer in self._state.layers}
        rest = [name for name in self._folder.tensor_names() if name not in compressed]
        shapes = {name: (self._folder.dtype(name), self._folder.shape(name)) for name in rest}
        write_tensor_stream(partial / REST_FILE, shapes, self._folder.stored, metadata={"format": "pt"})
        copy_companions(self._folder.path, partial)
        files = {**self._state.files, REST_FILE: file_sha256(partial / REST_FILE)}
        manifest = manifest_of(replace(self._state, files=files), self._folder)
        self._spend("writing", started)
        report = report_of(replace(self._state, files=files), self._options, seconds=self._elapsed_s())
        write_json(partial / REPORT_FILE, report)
        self._say(f"done: mean relative error {manifest['mean_relative_error']:.5f}, "
                  f"{manifest['bits_per_weight']:.3f} bits a weight")  # fmt: skip
        write_json(partial / MANIFEST_FILE, manifest)
        self._workspace.publish()
        return summary_of(self._workspace.out, manifest, report)

    def _elapsed_s(self) -> float:
        return float(self._earlier.seconds.get("total", 0.0)) + time.perf_counter() - self._start

    def _remaining_s(self) -> float | None:
        """Extrapolate from the blocks that this process has done."""
        blocks = self._state.next_block - self._earlier.next_block
        if not blocks or self._state.n_blocks is None:
            return None
        return (time.perf_counter() - self._start) / blocks * (self._state.n_blocks - self._state.next_block)

    def _spend(self, stage: str, started: float, *, less: float = 0.0) -> float:
        """Book the time since `started`, return now."""
        now = time.perf_counter()
        seconds = {**self._state.seconds, "total": self._elapsed_s()}
        seconds[stage] = seconds.get(stage, 0.0) + now - started - less
        self._state = replace(self._state, seconds=seconds)
        return now

    def _say(self, message: str, **numbers: Any) -> None:
        """Tell the listener and the log file."""
        elapsed = self._elapsed_s()
        self._listener(
            Event(message, self._state.next_block, self._state.n_blocks or 0, elapsed_s=elapsed, **numbers)
        )
        with (
            writing(self._workspace.partial / LOG_FILE),
            (self._workspace.partial / LOG_FILE).open("a") as log,
        ):
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {elapsed:9.1f} s  {message}\n")


def compress_linear(
    weight: NDArray[np.float32],
    gram: Gram,
    info: LinearInfo,
    *,
    spec: CompressSpec,
    options: CompressOptions,
    kept: Counts | None = None,
) -> tuple[CompressedLayer, dict[str, Any], Result]:
    """Compress one named linear; return what is stored, the manifest's record of it and the solver's result.

    `kept` are the budgets of its rows where they have budgets of their own.

    Raises: AwpError naming the layer for NaN or infinity in weights or activations, or shapes that clash.
    """
    for what, array in (("weight", weight), ("activations", gram.matrix)):
        if not np.isfinite(array).all():
            bad = int(np.sum(~np.isfinite(array)))
            raise AwpError(
                f"{info.name}: {bad} of {array.size} entries of its {what} are NaN or infinite; check the model"
            )
    try:
        result = compress_layer(
            weight, gram.matrix, spec, kept=kept, backend=options.backend, threads=options.threads
        )
        layer = CompressedLayer.of(info.name, result, bits=spec.bits)
    except ValueError as error:
        raise AwpError(f"{info.name}: {error}") from None
    # Not by NumPy: its BLAS threads go on spinning where the next layer's solver runs.
    moved = resolve(options.backend, threads=options.threads).product(weight, gram.matrix)
    zero_objective = half_inner(weight, moved)
    if zero_objective == 0:  # of tiny weights nothing is left in float32
        exact = weight.astype(np.float64)
        zero_objective = half_inner(exact, exact @ gram.matrix)
    record = {
        "name": info.name, "shape": list(layer.shape), "relative_error": ratio(result.objective, zero_objective),
        "iterations": result.n_iter, "converged": bool(result.converged), "reason": result.reason,
        "pattern": spec.pattern, "bits": layer.bits, "sparsity": layer.sparsity(),
        "bits_per_weight": layer.bits_per_weight(),
    }  # fmt: skip
    return layer, record, result
