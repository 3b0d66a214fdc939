"""Compressing a whole stack: the order of work, the results, and refusals before any work."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_stack
from command_line import obey_permissions
from safetensors.numpy import load_file, save_file

from awp_edge.artifacts import CompressedModel, LinearInfo
from awp_edge.compress import Interrupted, compress_model
from awp_edge.errors import AwpError, UsageError
from awp_edge.memory import peak_memory_bytes
from awp_edge.methods import CompressSpec, compress_layer
from awp_edge.models import ModelFolder
from awp_edge.options import DAMPING, CompressOptions, fit_spec
from awp_edge.problem import Problem
from awp_edge.record import CompressSummary, Event, Progress


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_stack.build(tmp_path / "model", n_blocks=3)


def run(
    model: Path, out: Path, options: CompressOptions, progress: Progress | None = None
) -> CompressSummary:
    folder = ModelFolder(model)
    return compress_model(
        lambda state: toy_stack.ToySource(folder, state), folder, out, options=options, progress=progress
    )


def test_blocks_see_the_stream_of_the_compressed_blocks_before_them(model: Path, tmp_path: Path) -> None:
    summary = toy_stack.compress(model, tmp_path / "out", sparsity=0.5)
    state = tmp_path / "by-hand"
    state.mkdir()
    source = toy_stack.ToySource(ModelFolder(model), state)
    spec, errors = CompressSpec(sparsity=0.5, damping=DAMPING), []
    for block in range(source.n_blocks):
        grams, weights = source.statistics(block), {}
        for info in source.linears(block):
            weight, gram = source.weight(info.name), grams[info.input].matrix
            result = compress_layer(weight, gram, spec, backend="numpy")
            weights[info.name] = result.theta
            errors.append(Problem(weight, gram).relative_error(result.theta))
            np.testing.assert_array_equal(
                CompressedModel(tmp_path / "out").layer(info.name).dense(), result.theta
            )
        source.advance(block, weights)
    assert [layer["relative_error"] for layer in summary.layers] == pytest.approx(errors, rel=1e-5)
    assert summary.mean_relative_error == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_summary_has_what_the_command_line_prints(model: Path, tmp_path: Path) -> None:
    summary = toy_stack.compress(model, tmp_path / "out", method="wanda", sparsity=0.25)
    values = json.loads(json.dumps(summary.to_json()))
    assert {"mean_relative_error", "seconds", "solve_seconds", "bits_per_weight", "layers"} <= set(values)
    assert set(values["layers"][0]) == {"name", "relative_error", "iterations", "seconds", "certificate"}
    assert values["sparsity"] == 0.25 and values["bits_per_weight"] == 32
    assert 0 < values["solve_seconds"] <= values["seconds"] and len(values["layers"]) == 9
    assert values["solve_cpu_seconds"] > 0


def test_progress_tells_blocks_layers_and_errors(model: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    run(model, tmp_path / "out", CompressOptions(CompressSpec(method="wanda", sparsity=0.5)), events.append)
    layers = [event for event in events if event.layer]
    assert [event.layer for event in layers][:3] == ["layers.0.gate", "layers.0.up", "layers.0.down"]
    assert all(0 < event.relative_error < 1 for event in layers)
    assert [event.block for event in layers] == [0, 0, 0, 1, 1, 1, 2, 2, 2] and layers[0].n_blocks == 3
    assert layers[0].remaining_s is None and layers[-1].remaining_s > 0
    assert (tmp_path / "out" / "compress.log").read_text().count("relative error") == 10


def test_nothing_of_the_work_stays_behind(model: Path, tmp_path: Path) -> None:
    toy_stack.compress(model, tmp_path / "out", method="wanda", sparsity=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    records = {"manifest.json", "report.json", "compress.log"}
    assert names == records | {"blocks", "config.json", "rest.safetensors", "tokenizer.json"}


def test_an_empty_folder_may_be_the_target(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    toy_stack.compress(model, tmp_path / "out", method="wanda", sparsity=0.5)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_the_largest_group_that_divides_every_layer_is_chosen(model: Path, tmp_path: Path) -> None:
    options = CompressOptions(CompressSpec(method="rtn", bits=4), auto_group_size=True)
    run(model, tmp_path / "out", options)
    assert CompressedModel(tmp_path / "out").manifest["spec"]["group_size"] == 64


def rtn(group_size: int) -> CompressSpec:
    return CompressSpec(method="rtn", bits=4, group_size=group_size)


@pytest.mark.parametrize(
    ("widths", "expected"), [((128, 256), 128), ((576, 1536), 64), ((96, 128), 32)], ids=str
)
def test_automatic_group_size(widths: tuple[int, ...], expected: int) -> None:
    layers = [LinearInfo(f"l{width}", f"l{width}", (8, width)) for width in widths]
    options = CompressOptions(CompressSpec(method="rtn", bits=4), auto_group_size=True)
    assert fit_spec(options, layers).group_size == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"sparsity": 0.5}, DAMPING),
        ({"sparsity": 0.5, "damping": 0.2}, 0.2),
        ({"bits": 4}, None),
        ({"method": "wanda", "sparsity": 0.5}, None),
    ],
)
def test_a_model_is_pruned_with_damping(asked: dict[str, Any], expected: float | None) -> None:
    layers = [LinearInfo("a", "a", (8, 128))]
    assert fit_spec(CompressOptions(CompressSpec(**asked)), layers).damping == expected


@pytest.mark.parametrize(
    ("spec", "automatic", "width", "message"),
    [
        (
            rtn(128),
            False,
            576,
            "group size 128 does not divide d_in = 576 of a; sizes that would do: 64, 32, 16",
        ),
        (rtn(64), False, 72, "no size from 16 to 256 would do"),
        (
            rtn(64),
            True,
            80,
            "no group size of 128, 64, 32 divides d_in = 80 of a; sizes that would do: 16, or --skip",
        ),
        (
            CompressSpec(sparsity=0.999),
            False,
            64,
            r"sparsity 0\.999 keeps k = 0 of the 64 weights a row in a; ask for",
        ),
        (
            CompressSpec(pattern="2:4"),
            False,
            66,
            r"a: .*2:4.* 66; choose a pattern that divides it, or --skip the",
        ),
        (CompressSpec(pattern="32/64"), False, 96, r"a: .*32/64.* 96; choose"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(
    spec: CompressSpec, *, automatic: bool, width: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit_spec(CompressOptions(spec, auto_group_size=automatic), [LinearInfo("a", "a", (8, width))])


def test_no_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="no linear layer to compress"):
        fit_spec(CompressOptions(CompressSpec(sparsity=0.5)), [])


def test_refusals_leave_nothing_behind(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="group size 48 does not divide"):
        toy_stack.compress(model, tmp_path / "out", method="rtn", bits=4, group_size=48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_run_that_does_not_fit_in_memory_is_refused(model: Path, tmp_path: Path) -> None:
    options = CompressOptions(CompressSpec(method="wanda", sparsity=0.5), max_memory_bytes=1_000_000)
    with pytest.raises(AwpError, match=r"needs about 0\.\d+ GB of memory and --max-memory allows 0\.00 GB"):
        run(model, tmp_path / "out", options)
    assert not (tmp_path / "out.partial").exists()
    layers = [LinearInfo("a", "a", (64, 64))]
    needed = peak_memory_bytes(ModelFolder(model), layers, options)
    run(model, tmp_path / "out", replace(options, max_memory_bytes=2 * needed))


def test_a_full_target_is_refused_and_untouched(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(AwpError, match="out is not empty; choose another folder or empty it"):
        toy_stack.compress(model, tmp_path / "out", method="wanda", sparsity=0.5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("named", [".", "link", "link/..", "inner/.."])
def test_a_target_by_another_name_is_the_folder_itself(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    if named.startswith("link"):
        (tmp_path / "link").symlink_to(target if named == "link" else tmp_path / "target" / "inner")
    monkeypatch.chdir(target if named == "." else tmp_path)
    if ".." in named:
        (target / "inner").mkdir()
        (tmp_path / "inner").mkdir()
        with pytest.raises(AwpError, match="is not empty; choose another folder"):
            toy_stack.compress(model, Path(named), method="wanda", sparsity=0.5)
        return
    toy_stack.compress(model, Path(named), method="wanda", sparsity=0.5)
    CompressedModel(target).verify()
    assert not (tmp_path / "link").exists() or (tmp_path / "link").is_symlink()


def test_a_mount_point_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    empty = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    empty = [Path(place) for place in empty if Path(place).is_dir() and not any(Path(place).iterdir())]
    if not empty:
        pytest.skip("nothing empty is mounted here")
    with pytest.raises(AwpError, match="is a mount point; choose a folder inside it"):
        toy_stack.compress(model, empty[0], method="wanda", sparsity=0.5)


def test_a_target_that_cannot_be_made_gets_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AwpError, match=r"cannot write .*out\.partial: Not a directory") as caught:
        toy_stack.compress(model, tmp_path / "file" / "out", sparsity=0.5)
    assert "\n" not in str(caught.value)


def test_a_folder_without_write_permission_gets_one_line(model: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    command = [sys.executable, toy_stack.__file__, str(model), str(locked / "out"), '{"sparsity": 0.5}']
    process = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=obey_permissions, check=False
    )
    assert process.returncode == 1
    assert process.stderr.startswith("cannot write ") and "Permission denied" in process.stderr
    assert process.stderr.count("\n") == 1 and not list(locked.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_a_weight_is_found_before_any_work(model: Path, tmp_path: Path, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["layers.1.down.weight"][2, 3] = value
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(
        AwpError,
        match=r"layers\.1\.down\.weight: 1 of 8192 entries are NaN or infinite",
    ):
        toy_stack.compress(model, tmp_path / "out", method="wanda", sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_activations_that_overflow_name_the_layer(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["embed.weight"][:] = 1e30
    save_file(tensors, model / "model.safetensors")
    message = r"layers\.0\.gate: 4096 of 4096 entries of its activations are NaN or infinite"
    with pytest.raises(AwpError, match=message), np.errstate(all="ignore"):
        toy_stack.compress(model, tmp_path / "out", method="wanda", sparsity=0.5)
    assert not (tmp_path / "out.partial").exists()


def test_an_interrupt_before_the_first_block_can_be_resumed(model: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    options = CompressOptions(CompressSpec(method="wanda", sparsity=0.5))
    with pytest.raises(Interrupted, match=r"interrupted: 0 of 3 blocks are kept in .*out\.partial; go on"):
        run(model, tmp_path / "out", options, stop)
    run(model, tmp_path / "out", replace(options, resume=True))
    CompressedModel(tmp_path / "out").verify()


WAYS = [{"sparsity": 0.5}, {"method": "rtn", "bits": 4, "group_size": 32}, {"rank": 4}]


@pytest.mark.parametrize("spec", WAYS, ids=str)
def test_a_second_run_gives_the_same_bytes(model: Path, tmp_path: Path, spec: dict[str, object]) -> None:
    for name in ("a", "b"):
        toy_stack.compress(model, tmp_path / name, **spec)
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file() and path.name not in ("report.json", "compress.log"):
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), (
                path.name
            )


def test_resume_with_another_backend_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: Event) -> None:
        if event.block == 1:
            raise KeyboardInterrupt

    options = CompressOptions(CompressSpec(method="wanda", sparsity=0.5), resume=True)
    monkeypatch.setenv("AWP_BACKEND", "numpy")
    with pytest.raises(Interrupted, match="1 of 3 blocks are kept"):
        run(model, tmp_path / "out", options, stop)
    monkeypatch.setenv("AWP_BACKEND", "")
    with pytest.raises(AwpError, match="other options: backend was numpy and is now auto"):
        run(model, tmp_path / "out", options)
    monkeypatch.setenv("AWP_BACKEND", "fast")
    with pytest.raises(AwpError, match=r"^backend must be auto, numpy or native, got 'fast'"):
        run(model, tmp_path / "other", options)
    assert not (tmp_path / "other.partial").exists()
