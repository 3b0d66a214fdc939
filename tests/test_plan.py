"""Plans of tiny models: what they say is what a run then does."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from awp_edge import certificate, memory, native
from awp_edge.artifacts import LinearInfo
from awp_edge.backend import Backend, NativeBackend, NumpyBackend
from awp_edge.errors import AwpError, UsageError
from awp_edge.memory import (
    SOLVER_MATRICES,
    calibration_size,
    certificate_bytes,
    hidden_state_bytes,
    solver_squares,
)
from awp_edge.methods import METHODS, CompressSpec, compress_layer
from awp_edge.models import ModelFolder
from awp_edge.options import CompressOptions
from awp_edge.plan import plan, require_fit
from awp_edge.problem import Array
from awp_edge.solvers.admm import STRIP, Admm, proximal_map

TEXT = {"source": "text.txt", "samples": 4, "seq_len": 32, "order": "one-shot"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(tiny_models.build("llama", tmp_path_factory.mktemp("plan") / "llama"))


def options(**spec: object) -> CompressOptions:
    return CompressOptions(CompressSpec(**spec), calibration=TEXT)


def test_a_plan_counts_layers_bits_and_bytes(llama: ModelFolder) -> None:
    made = plan(llama, options(bits=4, sparsity=0.5, group_size=64))
    assert (made.n_blocks, len(made.layers), made.left_alone) == (3, 21, ())
    first = made.layers[0]
    assert (first.name, first.block, first.shape, first.kept) == (
        "model.layers.0.self_attn.q_proj",
        0,
        (64, 64),
        32,
    )
    assert first.bits_per_weight == 4 + 32 / 64 + 8 / 64
    assert made.weight_bytes == llama.weight_bytes()
    weights = sum(layer.shape[0] * layer.shape[1] for layer in made.layers)
    assert made.block_bytes == pytest.approx(weights * made.bits_per_weight / 8, abs=1)
    assert made.compressed_bytes < made.weight_bytes
    json.dumps(made.to_json())


def test_a_block_pattern_with_4_bits_is_planned_sparse(llama: ModelFolder) -> None:
    made = plan(llama, options(bits=4, pattern="32/64", group_size=64))
    # A mask bit, half a code, a float16 scale and a zero point a group, the guards of the codes.
    assert made.layers[0].bits_per_weight == 1 + 2 + 20 / 64 + 1024 / 64**2
    assert "bring neither size nor speed" not in " ".join(made.warnings)


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ({"sparsity": 0.3}, 45),
        ({"pattern": "2:4"}, 32),
        ({"pattern": "48/64"}, 48),
        ({"bits": 4}, 64),
        ({"rank": 4}, None),
    ],
    ids=str,
)
def test_a_plan_says_how_many_weights_a_row_stay(
    llama: ModelFolder, spec: dict[str, object], kept: int | None
) -> None:
    assert plan(llama, options(**spec)).layers[0].kept == kept


def test_calibration_defaults_and_the_context_limit(llama: ModelFolder) -> None:
    def size(**asked: object) -> tuple[int, int]:
        return calibration_size(llama, CompressOptions(CompressSpec(sparsity=0.5), calibration=asked))

    assert size(source="file.txt", samples=None, seq_len=None) == (
        64,
        128,
    )  # 2048, capped by the model's context
    assert size(source="self") == (16, 128)
    assert size(source="file.txt", samples=3, seq_len=20) == (3, 20)
    assert hidden_state_bytes(llama, options(sparsity=0.5)) == 2 * 4 * 4 * 32 * 64
    with pytest.raises(UsageError, match="--seq-len 129 exceeds the 128 positions"):
        size(source="self", seq_len=129)


def test_a_language_model_inside_another_is_planned_by_its_own_config(tmp_path: Path) -> None:
    folder = ModelFolder(tiny_models.build_nested(tmp_path / "nested"))
    felt = CompressOptions(CompressSpec(sparsity=0.5), calibration={**TEXT, "token_weights": "loss"})
    made = plan(folder, replace(felt, calibration={"source": "self"}))
    assert (len(made.layers), made.n_blocks, made.samples, made.seq_len) == (21, 3, 16, 128)
    assert hidden_state_bytes(folder, options(sparsity=0.5)) == 2 * 4 * 4 * 32 * 64
    assert hidden_state_bytes(folder, felt) == (3 + 3) * 4 * 4 * 32 * 64


def test_notes_say_what_a_user_should_know(llama: ModelFolder, tmp_path: Path) -> None:
    notes = " ".join(plan(llama, options(sparsity=0.5)).warnings)
    assert "zeros in a dense export bring neither size nor speed" in notes and "embedding" in notes
    assert "3-bit codes are stored in 4 bits" in " ".join(plan(llama, options(bits=3)).warnings)
    bert = ModelFolder(tiny_models.build("bert", tmp_path / "bert"))
    assert "is not a causal language model" in " ".join(plan(bert, options(sparsity=0.5)).warnings)
    own = " ".join(plan(bert, CompressOptions(CompressSpec(sparsity=0.5))).warnings)
    assert "BertModel cannot write its own calibration text: give --calibration FILE" in own
    assert "its own text first" not in own


def test_skipped_layers_are_left_alone(llama: ModelFolder) -> None:
    skipping = CompressOptions(CompressSpec(sparsity=0.5), skip=("mlp.*",), calibration=TEXT)
    made = plan(llama, skipping)
    assert len(made.layers) == 12 and len(made.left_alone) == 9
    assert made.left_alone[0] == "model.layers.0.mlp.down_proj.weight"


def test_a_memory_limit_is_judged_before_any_work(llama: ModelFolder) -> None:
    def limited(n_bytes: int) -> CompressOptions:
        return CompressOptions(CompressSpec(sparsity=0.5), calibration=TEXT, max_memory_bytes=n_bytes)

    needed = plan(llama, limited(10**12)).peak_memory_bytes
    assert plan(llama, limited(10**12)).fits and not plan(llama, limited(1000)).fits
    require_fit(llama, limited(needed))
    with pytest.raises(AwpError, match="--max-memory allows"):
        require_fit(llama, limited(needed - 1))


def test_what_a_run_would_refuse_a_plan_refuses(llama: ModelFolder) -> None:
    with pytest.raises(UsageError, match="group size 48 does not divide d_in = 64"):
        plan(llama, options(bits=4, group_size=48))
    with pytest.raises(UsageError, match="keeps k = 0"):
        require_fit(llama, options(sparsity=0.999))


@pytest.mark.parametrize("method", ["awq", "awq+wanda"])
def test_input_scales_count_and_have_no_genai_export(llama: ModelFolder, method: str) -> None:
    sparse = {"sparsity": 0.5} if METHODS[method].handles("joint") else {}
    made = plan(llama, options(method=method, bits=4, group_size=64, **sparse))
    plain = plan(llama, options(bits=4, group_size=64, **sparse))
    first = made.layers[0]
    assert first.bits_per_weight == plain.layers[0].bits_per_weight + 32 / first.shape[0]
    inputs = sum(layer.shape[1] for layer in made.layers)
    assert made.compressed_bytes - plain.compressed_bytes == 4 * inputs
    assert f"refuses the input scales of {method}" in " ".join(made.warnings)
    assert "genai" not in " ".join(plain.warnings)


def test_a_rank_that_stores_more_than_the_dense_weight_is_noted(llama: ModelFolder) -> None:
    assert require_fit(llama, options(rank=21)) == ()  # the most that pays, for 32 x 64
    [note] = require_fit(llama, options(rank=33))
    assert "rank 33 stores more than the dense weight in" in note and "64 x 64, ranks up to 32" in note
    assert note in plan(llama, options(rank=33)).warnings
    assert CompressSpec(rank=0.9).notes([LinearInfo("a", "a", (64, 64))]) == ()


def test_saved_statistics_take_disk_of_their_own(llama: ModelFolder) -> None:
    asked = CompressOptions(CompressSpec(sparsity=0.5), skip=("mlp.*",), calibration=TEXT)
    made = plan(llama, replace(asked, statistics="saved"))
    # One matrix for q, k and v, one for o, one for gate and up, one for down; what is skipped is saved all the same.
    assert made.statistics_bytes == 4 * made.n_blocks * (3 * 64**2 + 128**2)
    assert plan(llama, asked).statistics_bytes == 0 and plan(llama, asked).disk_bytes == made.disk_bytes
    found = plan(llama, replace(asked, statistics="reused"))
    assert (found.statistics_bytes, found.calibration_seconds) == (0, 0.0)
    assert made.disk_bytes - found.disk_bytes == hidden_state_bytes(llama, asked)


def test_reused_statistics_need_no_memory_for_text(llama: ModelFolder) -> None:
    spec = CompressSpec(sparsity=0.5)
    own = CompressOptions(
        spec, calibration={"source": "self", "samples": 4096, "seq_len": 128}, allocate="row"
    )
    reused, text = replace(own, statistics="reused"), CompressOptions(spec, calibration=TEXT)
    needed = plan(llama, reused)
    assert (
        needed.peak_memory_bytes <= plan(llama, text).peak_memory_bytes < plan(llama, own).peak_memory_bytes
    )
    assert "its own text" in " ".join(plan(llama, own).warnings)
    assert "its own text" not in " ".join(needed.warnings)
    require_fit(llama, replace(reused, max_memory_bytes=needed.peak_memory_bytes))
    with pytest.raises(AwpError, match="or use a calibration file instead of self"):
        require_fit(llama, replace(own, max_memory_bytes=needed.peak_memory_bytes))
    with pytest.raises(AwpError, match=r"raise the limit$"):
        require_fit(llama, replace(reused, max_memory_bytes=1))


# Memory of the solvers and of certificates

ENGINES = [NumpyBackend(), *([NativeBackend(2)] if native.available() else [])]


def layer(d_out: int, d_in: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((2 * d_in, d_in)) * np.exp(rng.standard_normal(d_in))
    gram = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return rng.standard_normal((d_out, d_in)).astype(np.float32), (gram + gram.T) / 2


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("d_in", [1, STRIP - 1, STRIP, 2 * STRIP + 3])
def test_the_proximal_matrix_has_the_bits_of_its_formula(d_in: int, engine: Backend) -> None:
    gram = layer(1, d_in)[1]
    gram[gram < 0] = -0.0
    inverse = 0.7 * engine.inverse(gram.astype(np.float64) + 0.7 * np.eye(d_in))
    expected = ((inverse + inverse.T) / 2).astype(np.float32)
    assert proximal_map(gram, method=Admm(penalty=0.7), engine=engine).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "asked",
    [
        {"sparsity": 0.5},
        {"bits": 4},
        {"pattern": "32/64", "bits": 4},
        {"method": "sparsegpt", "sparsity": 0.5},
        {"method": "alps", "sparsity": 0.5},
        {"method": "gptq", "bits": 4},
        {"method": "awq+wanda", "sparsity": 0.5, "bits": 4},
        {"rank": 0.5},
    ],
    ids=str,
)
def test_no_solver_holds_more_than_is_planned(llama: ModelFolder, asked: dict[str, object]) -> None:
    spec, shape = CompressSpec(**asked), (32, 512)
    weight, gram = layer(*shape)
    tracemalloc.start()
    try:
        compress_layer(weight, gram, spec, threads=1)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    planned = (
        SOLVER_MATRICES * weight.nbytes + solver_squares(spec, threads=1, dense=1 - spec.pruned) * gram.nbytes
    )
    assert 0.3 * planned < held < planned


def test_every_thread_of_the_default_method_factors_a_support_of_its_own(llama: ModelFolder) -> None:
    def peak(threads: int, **asked: object) -> int:
        made = replace(options(**asked), threads=threads, certificate=False, statistics="reused")
        return plan(llama, made).peak_memory_bytes

    widest = 4 * 128**2  # down_proj's C, which sets the peak
    assert peak(66, sparsity=0.5) - peak(2, sparsity=0.5) == 64 * widest / 4
    assert peak(66, sparsity=0.25, bits=4) - peak(2, sparsity=0.25, bits=4) == 64 * widest * 0.75**2
    assert peak(66, bits=4) == peak(2, bits=4)
    assert peak(66, method="alps", sparsity=0.5) == peak(2, method="alps", sparsity=0.5)


@pytest.mark.parametrize("limit", [512, 511])
def test_no_certificate_holds_more_than_is_planned(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (certificate, memory):
        monkeypatch.setattr(module, "MAX_INPUTS", limit)
    (weight, gram), spec = layer(32, 512), CompressSpec(sparsity=0.5)
    result = compress_layer(weight, gram, spec, threads=1)
    tracemalloc.start()
    try:
        facts = certificate.gram_facts(gram)
        certificate.certify_layer(weight, result, facts=facts, spec=spec)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.6 * certificate_bytes(512) < held < certificate_bytes(512)
