"""Real processes killed at arbitrary moments; the resumed folder equals an uninterrupted one byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_stack
from command_line import AWP_EDGE

from awp_edge.compress import Interrupted, compress_model
from awp_edge.errors import AwpError
from awp_edge.methods import CompressSpec
from awp_edge.models import ModelFolder
from awp_edge.options import CompressOptions
from awp_edge.record import Event

PROGRAM = Path(toy_stack.__file__)
SPEC = {"method": "wanda", "sparsity": 0.5, "bits": 4, "group_size": 32}


def launch(
    model: Path, out: Path, *flags: str, pause_s: float = 0.0, **process: object
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "TOY_PAUSE_S": str(pause_s),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(PROGRAM), str(model), str(out), json.dumps(SPEC), *flags]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **process)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end; return the last line of stderr, empty where the run succeeded."""
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert bool(errors.strip()) == bool(process.returncode)
    return errors.strip()


def wait_for(path: Path, process: subprocess.Popen[str], *, may_finish: bool = False) -> None:
    """Return once the path is there, or, where allowed, once the process has finished before anyone looked."""
    while not path.exists():
        if may_finish and process.poll() == 0:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def contents(folder: Path) -> dict[str, str]:
    """Map every file that resume must reproduce to its SHA-256."""
    files = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("report.json", "compress.log")
    )
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_stack.build(tmp_path_factory.mktemp("toy") / "model", dtype="BF16")


@pytest.fixture(scope="module")
def reference(model: Path) -> dict[str, str]:
    out = model.parent / "reference"
    assert finish(launch(model, out)) == ""
    return contents(out)


@pytest.mark.parametrize("seed", range(3))
def test_killed_three_times_at_random_moments(
    model: Path, reference: dict[str, str], tmp_path: Path, seed: int
) -> None:
    rng, out = np.random.default_rng(seed), tmp_path / "out"
    flags: tuple[str, ...] = ()
    for _ in range(3):
        process = launch(model, out, *flags, pause_s=0.05)
        wait_for(tmp_path / "out.partial", process, may_finish=True)
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        process.wait()
        process.stderr.close()
        flags = ("--resume",)
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "file",
    ["state.json", "blocks/block-000.safetensors", "state/hidden-1.npy", "blocks/block-003.safetensors",
     "rest.safetensors", "report.json", "manifest.json"],
)  # fmt: skip
def test_killed_as_a_file_appears(model: Path, reference: dict[str, str], tmp_path: Path, file: str) -> None:
    out = tmp_path / "out"
    process = launch(model, out)
    while not (tmp_path / "out.partial" / file).exists() and process.poll() is None:
        pass
    process.kill()
    process.wait()
    process.stderr.close()
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference


def test_leftovers_of_a_torn_write_do_no_harm(model: Path, reference: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_after_block(model, out, block=1)
    (tmp_path / "out.partial" / "blocks" / "block-002.safetensors").write_bytes(b"half a block")
    (tmp_path / "out.partial" / "blocks" / "block-003.safetensors.tmp").write_bytes(b"torn")
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference


def kill_after_block(model: Path, out: Path, *, block: int) -> None:
    """Leave an unfinished run in which blocks 0 to `block` are done."""
    process = launch(model, out, pause_s=0.2)
    partial = out.with_name(out.name + ".partial")
    while (
        not (partial / "state.json").exists()
        or json.loads((partial / "state.json").read_text())["next_block"] <= block
    ):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.wait()
    process.stderr.close()


def test_interrupt_leaves_a_resumable_state_and_one_line(
    model: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = launch(model, out, pause_s=0.3)
    wait_for(tmp_path / "out.partial" / "blocks" / "block-001.safetensors", process)
    process.send_signal(signal.SIGINT)
    line = finish(process)
    assert line.startswith("interrupted: ") and "--resume" in line and "\n" not in line
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference


def test_resume_without_an_unfinished_run_starts_fresh(
    model: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference
    assert "nothing to resume" in (out / "compress.log").read_text()


def test_resume_takes_nothing_from_a_folder_that_is_no_checkpoint(
    model: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    leftover = tmp_path / "out.partial" / "work"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("of a killed export")
    assert finish(launch(model, tmp_path / "out", "--resume")) == ""
    assert contents(tmp_path / "out") == reference


def test_resume_of_a_finished_run_changes_nothing(
    model: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finish(launch(model, out))
    before = contents(out) | {"report": (out / "report.json").read_text()}
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) | {"report": (out / "report.json").read_text()} == before
    assert before.items() >= reference.items()


def test_resume_of_a_run_that_needs_no_statistics_any_more_compares_their_text(
    model: Path, tmp_path: Path
) -> None:
    def compress(*, stop: bool = False, **known: str) -> None:
        def listen(event: Event) -> None:
            if stop and event.message.startswith("done: "):
                raise KeyboardInterrupt

        options = CompressOptions(CompressSpec(**SPEC), resume=True, known=known)
        folder = ModelFolder(model)
        compress_model(
            lambda state: toy_stack.ToySource(folder, state),
            folder,
            tmp_path / "out",
            options=options,
            progress=listen,
        )

    with pytest.raises(Interrupted, match="4 of 4 blocks are kept"):
        compress(stop=True)
    for _ in range(2):  # all blocks are done; then the whole run is
        with pytest.raises(AwpError, match=r"other options: tokens_sha256 was .* and is now other"):
            compress(tokens_sha256="other")
        compress()


def test_resume_brings_home_a_folder_that_lacked_only_the_rename(
    model: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finish(launch(model, out))
    out.rename(tmp_path / "out.partial")
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference


def test_an_unfinished_run_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_after_block(model, out, block=0)
    before = contents(tmp_path / "out.partial")
    line = finish(launch(model, out))
    assert "holds an unfinished run; continue it with --resume or delete it" in line
    assert contents(tmp_path / "out.partial") == before


def test_resume_with_another_option_names_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_after_block(model, out, block=0)
    with pytest.raises(AwpError, match=r"other options: sparsity was 0\.5 and is now 0\.6"):
        toy_stack.compress(model, out, resume=True, **{**SPEC, "sparsity": 0.6})
    other = toy_stack.build(tmp_path / "other", dtype="BF16", seed=1)
    with pytest.raises(AwpError, match="other options: model was "):
        toy_stack.compress(other, out, resume=True, **SPEC)
    assert finish(launch(model, out, "--resume")) == ""


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("state.json", lambda data: data[: len(data) // 2], "state.json: not valid JSON"),
        (
            "state.json",
            lambda data: data.replace(b'"schema_version": 1', b'"schema_version": 99'),
            "another version",
        ),
        ("state.json", lambda data: b'{"schema_version": 1, "odd": 2}', "state.json is damaged"),
        ("blocks/block-000.safetensors", lambda data: data[:-7], "the checkpoint is corrupted"),
        (
            "blocks/block-000.safetensors",
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            "the checkpoint is corrupted",
        ),
    ],
)
def test_a_corrupted_checkpoint_gets_one_line(
    model: Path, tmp_path: Path, file: str, damage: object, message: str
) -> None:
    out = tmp_path / "out"
    kill_after_block(model, out, block=0)
    path = tmp_path / "out.partial" / file
    path.write_bytes(damage(path.read_bytes()))
    line = finish(launch(model, out, "--resume"))
    assert message in line and "\n" not in line
    assert not out.exists() and path.exists()


def test_two_processes_do_not_share_a_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = launch(model, out, pause_s=0.5)
    wait_for(tmp_path / "out.partial" / "state.json", first)
    assert "another process is working in" in finish(launch(model, out, "--resume"))
    assert finish(first) == ""


def test_a_full_disk_keeps_the_finished_blocks(
    model: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill_after_block(model, out, block=1)
    # A file may not grow beyond what a block needs: the state and the hidden states fit, the next block does not.
    block_bytes = (tmp_path / "out.partial" / "blocks" / "block-000.safetensors").stat().st_size
    hidden_bytes = (tmp_path / "out.partial" / "state" / "hidden-0.npy").stat().st_size
    limit = block_bytes // 2
    assert limit < hidden_bytes
    line = finish(launch(model, out, "--resume", preexec_fn=lambda: limit_file_size(limit)))
    assert "no space left for block-002.safetensors" in line and "2 finished blocks are kept" in line
    assert not list((tmp_path / "out.partial").rglob("*.tmp"))
    assert finish(launch(model, out, "--resume")) == ""
    assert contents(out) == reference


def test_a_full_disk_before_the_first_block_leaves_nothing(model: Path, tmp_path: Path) -> None:
    line = finish(launch(model, tmp_path / "out", preexec_fn=lambda: limit_file_size(20_000)))
    assert "no space left" in line and "\n" not in line
    assert not list(tmp_path.iterdir())


def limit_file_size(n_bytes: int) -> None:
    """Make every write beyond `n_bytes` of a file fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "extra", "kills"),
    [
        ("text.txt", ["--sequential"], 3),
        ("self", ["--one-shot"], 1),
        ("text.txt", ["--sequential", "--allocate", "row", "--token-weights", "loss"], 3),
        ("text.txt", ["--pattern", "32/64", "--bits", "4", "--group-size", "64", "--allocate", "layer"], 2),
    ],
)
def test_the_command_on_a_real_architecture(
    tmp_path: Path, source: str, extra: list[str], kills: int
) -> None:
    tiny_models = pytest.importorskip("tiny_models")
    model = tiny_models.build("llama", tmp_path / "model", dtype="bfloat16")
    tiny_models.write_text(tmp_path / "text.txt", 8000)
    options = ["--calibration", source, *extra, "--samples", "4", "--seq-len", "64", "--sparsity", "0.5"]

    def command(out: str, *flags: str) -> subprocess.Popen[str]:
        arguments = [*AWP_EDGE, "compress", str(model), out, *options, *flags]
        return subprocess.Popen(
            arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    started = time.monotonic()
    whole = command("whole")
    wait_for(tmp_path / "whole.partial", whole)
    before_work_s = time.monotonic() - started
    assert whole.communicate(timeout=300)[0] is None and whole.returncode == 0
    work_s = time.monotonic() - started - before_work_s
    rng, flags = np.random.default_rng(len(source)), []
    for _ in range(kills):
        process = command("out", *flags)
        while not (tmp_path / "out.partial").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, work_s + (before_work_s if flags else 0)) * 0.7)
        process.kill()
        process.communicate()
        flags = ["--resume"]
    last = command("out", "--resume")
    assert last.communicate(timeout=300)[1] is not None and last.returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
