"""Budgets under a global sparsity: the least predicted loss, the sparsity asked for, and real models that keep it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awp_edge import CompressSpec, compress_layer
from awp_edge.allocate import WIDTHS, Prices, Target, allocate, allocate_bits, bit_prices, levels, prices
from awp_edge.backend import resolve
from awp_edge.errors import AwpError, UsageError


def random_prices(rng: np.random.Generator, budgets: int, d_in: int, *, rows: int = 1) -> Prices:
    kept = levels(d_in)
    steps = np.cumsum(rng.exponential(size=(budgets, len(kept) - 1)), axis=1) * rng.lognormal(
        size=(budgets, 1)
    )
    return Prices(d_in, kept, steps.astype(np.float32), rows)


def loss(found: Prices, counts: tuple[int, ...]) -> float:
    """Return the predicted loss of a matrix above that of its first level."""
    taken = np.searchsorted(-found.kept, -np.array(counts[:: found.rows]))
    spent = np.cumsum(found.steps * found.sizes(), axis=1, dtype=np.float64)
    return float(sum(spent[i, n - 1] for i, n in enumerate(taken) if n))


def zeros(matrices: dict[str, Prices], budgets: dict[str, tuple[int, ...]]) -> int:
    return sum(matrices[name].whole * len(counts) - sum(counts) for name, counts in budgets.items())


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.8))
def test_the_budgets_reach_the_sparsity_with_the_least_predicted_loss(seed, sparsity):
    rng = np.random.default_rng(seed)
    matrices = {
        "a": random_prices(rng, 5, 64),
        "b": random_prices(rng, 3, 576),
        "c": random_prices(rng, 1, 192, rows=4),
    }
    budgets = allocate(matrices, sparsity)
    total = sum(found.whole * found.rows * len(found.steps) for found in matrices.values())
    largest = max(int(found.sizes().max()) for found in matrices.values())
    assert -1e-6 * total <= zeros(matrices, budgets) - sparsity * total <= largest
    # Weak duality: at the price of the dearest step taken no allocation costs less, removed weights paid back.
    dearest = max(
        (found.steps[i, n - 1] for name, found in matrices.items()
         for i, n in enumerate(np.searchsorted(-found.kept, -np.array(budgets[name][:: found.rows]))) if n),
        default=0.0,
    )  # fmt: skip
    for _ in range(5):
        other = {
            name: tuple(np.repeat(rng.choice(found.kept, len(found.steps)), found.rows).tolist())
            for name, found in matrices.items()
        }
        ours, theirs = (
            sum(loss(found, chosen[name]) for name, found in matrices.items())
            - dearest * zeros(matrices, chosen)
            for chosen in (budgets, other)
        )
        assert ours <= theirs + 1e-4 * abs(theirs) + dearest * largest


def test_every_level_is_a_share_of_the_inputs():
    for d in (1, 2, 7, 64, 576, 1536):
        kept = levels(d)
        assert (np.diff(kept) < 0).all() or len(kept) == 1
        assert kept[0] == np.floor(0.85 * d + 0.5) and kept[-1] == np.floor(0.15 * d + 0.5)


def layer(seed: int = 0, shape: tuple[int, int] = (24, 96)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, shape[1])) * rng.lognormal(size=shape[1])
    x += rng.normal(size=(400, 1)) * 2
    return rng.normal(size=shape).astype(np.float32), (x.T @ x / 400).astype(np.float32)


def test_a_price_is_what_the_loss_pays():
    weight, gram = layer()
    rows = np.linspace(0.5, 4, 24).astype(np.float32)
    spec = CompressSpec(sparsity=0.5)
    found = prices(weight, gram, rows, sparsity=0.5, engine=resolve("numpy"))
    assert (np.diff(found.steps, axis=1) >= 0).all()
    for k in (72, 48, 24):
        theta = compress_layer(weight, gram, spec, kept=(k,) * 24, backend="numpy").theta
        paid = rows * np.einsum("ij,ij->i", (weight - theta) @ gram, weight - theta) / 2
        reached = np.searchsorted(-found.kept, -k)
        removed = np.cumsum(found.steps * found.sizes(), axis=1)[:, reached - 1]
        first = compress_layer(weight, gram, spec, kept=(int(found.kept[0]),) * 24, backend="numpy").theta
        paid -= rows * np.einsum("ij,ij->i", (weight - first) @ gram, weight - first) / 2
        assert 0.6 < paid.sum() / removed.sum() < 1.6
        assert np.corrcoef(np.log(paid), np.log(removed))[0, 1] > 0.8


def test_rows_that_the_loss_minds_keep_more():
    weight, gram = layer()
    rows = np.where(np.arange(24) < 12, 10.0, 0.1).astype(np.float32)
    found = prices(weight, gram, rows, sparsity=0.5, engine=resolve("numpy"))
    assert np.ptp(np.log(found.cautious(0.5).steps.mean(axis=1))) < np.ptp(np.log(found.steps.mean(axis=1)))
    counts = allocate({"w": found.cautious(0.5)}, 0.5)["w"]
    assert min(counts[:12]) > max(counts[12:])
    (pooled,) = set(allocate({"w": found.pooled()}, 0.5)["w"])
    assert pooled == 48


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 4]))
def test_bits_go_where_they_save_most(seed, bits):
    rng = np.random.default_rng(seed)
    sizes, energies = rng.integers(1, 100, 4) * 64, 10 ** rng.normal(size=4)
    widths = np.array(WIDTHS)
    losses = energies[:, None] / (2.0**widths - 1) ** 2
    matrices = {
        str(i): Prices(
            8, widths, (np.diff(losses[i]) / -np.diff(widths) / size)[None].astype(np.float32), int(size)
        )
        for i, size in enumerate(sizes)
    }
    chosen = allocate_bits(matrices, bits)
    spent = sum(chosen[str(i)] * size for i, size in enumerate(sizes))
    assert bits * sizes.sum() - 4 * sizes.max() < spent <= bits * sizes.sum()

    def loss(widths_of: tuple[int, ...]) -> float:
        return sum(losses[i][WIDTHS.index(width)] for i, width in enumerate(widths_of))

    found = loss(tuple(chosen.values()))
    for others in itertools.product(WIDTHS, repeat=4):
        if np.dot(others, sizes) <= spent:
            assert found <= loss(others) * (1 + 1e-5)


def test_a_bit_costs_what_rounding_pays():
    weight, gram = layer()
    rows = np.linspace(0.5, 4, 24).astype(np.float32)
    found = bit_prices(weight, gram, rows, group_size=32, engine=resolve("numpy"))
    assert (np.diff(found.steps[0]) > 0).all() and found.rows == weight.size
    paid = []
    for bits in WIDTHS:
        theta = compress_layer(weight, gram, CompressSpec(bits=bits, group_size=32), backend="numpy").theta
        paid.append(float(rows @ np.einsum("ij,ij->i", (weight - theta) @ gram, weight - theta)) / 2)
    predicted = np.cumsum(found.steps[0] * found.sizes()[0])
    shares = np.subtract(paid[1:], paid[0]) / predicted
    assert (shares < 1.5).all() and (shares > 0.4).all()
    assert np.ptp(np.log(shares)) < np.log(1.5)


def test_equal_matrices_get_nearly_equal_budgets():
    flat = Prices(8, np.array(WIDTHS), np.zeros((1, 3), np.float32), 640)
    assert sorted(allocate_bits({name: flat for name in "abcd"}, 4).values()) == [4, 4, 4, 4]
    rows = Prices(128, levels(128), np.ones((1, len(levels(128)) - 1), np.float32), 24)
    kept = [counts[0] for counts in allocate({name: rows for name in "abcd"}, 0.5).values()]
    assert max(kept) - min(kept) <= 5


def test_gradients_that_are_not_finite_are_refused():
    weight, gram = layer()
    rows = np.full(24, np.nan, dtype=np.float32)
    for target in (Target("row", 0.5, False, None, 32), Target("layer", 0.0, False, 4, 32)):
        with pytest.raises(AwpError, match="NaN or infinite"):
            target.price(weight, gram, rows, engine=resolve("numpy"))


def test_blocks_lose_their_cheapest_weights():
    weight, gram = layer(shape=(24, 128))
    rows = np.linspace(0.5, 4, 24).astype(np.float32)
    target = Target("layer", 0.5, True, None, 64)
    found = prices(weight, gram, rows, sparsity=0.5, blocks=True, engine=resolve("numpy")).pooled()
    assert (np.diff(found.steps) >= 0).all() and found.rows == weight.size // 64
    first = compress_layer(weight, gram, CompressSpec(pattern="52/64"), backend="numpy").objective
    for k in (44, 32, 20):
        paid = (
            compress_layer(weight, gram, CompressSpec(pattern=f"{k}/64"), backend="numpy").objective - first
        )
        reached = np.searchsorted(-found.kept, -k)
        uniform = prices(weight, gram, np.ones_like(rows), sparsity=0.5, blocks=True, engine=resolve("numpy"))
        predicted = np.cumsum(uniform.pooled().steps[0] * uniform.pooled().sizes()[0])[reached - 1]
        assert 0.5 < paid / predicted < 1.6
    dear = target.price(weight, gram, 10 * rows, engine=resolve("numpy"))
    cheap = target.price(weight, gram, rows / 10, engine=resolve("numpy"))
    budgets = target.settle({"dear": dear, "cheap": cheap})
    kept = {name: int(str(budget).removesuffix("/64")) for name, budget in budgets.items()}
    assert kept["dear"] > 32 > kept["cheap"] and abs(sum(kept.values()) - 64) <= 4


def test_a_target_spends_zeros_before_bits():
    assert Target("row", 0.5, False, 4, 64).spent == "zeros"
    assert Target("layer", 0.0, False, 3, 64).spent == "bits"


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps", "awp", "awp-plus"])
@pytest.mark.parametrize("bits", [None, 4])
def test_every_pruning_method_keeps_the_budgets(method, bits, backend):
    if bits and method == "alps":
        pytest.skip("alps has no grid")
    weight, gram = layer()
    counts = tuple(np.random.default_rng(1).integers(10, 80, 24).tolist())
    spec = CompressSpec(method=method, sparsity=0.5, bits=bits, group_size=32)
    result = compress_layer(weight, gram, spec, kept=counts, backend=backend)
    kept = np.count_nonzero(result.theta, axis=1)
    assert (kept <= counts).all()
    assert (kept > 0.8 * np.array(counts)).all(), "a grid may round a few to zero, no more"
    assert bits or (kept == counts).all()


def test_bad_requests_are_named():
    with pytest.raises(
        UsageError, match=r"--allocate gives rows 15% to 85% zeros; --sparsity 0.9 is outside"
    ):
        allocate({"w": random_prices(np.random.default_rng(0), 2, 64)}, 0.9)
    weight, gram = layer()
    with pytest.raises(ValueError, match="k is given for 3 rows, the matrix has 24"):
        compress_layer(weight, gram, CompressSpec(sparsity=0.5), kept=(1, 2, 3))
    fixed = {"2:4": {"pattern": "2:4"}, "32/64": {"pattern": "32/64", "bits": 4}, "rank 4": {"rank": 4}}
    for name, spec in fixed.items():
        with pytest.raises(ValueError, match=f"budgets of their own under .*{name}: drop kept"):
            compress_layer(weight, gram, CompressSpec(**spec), kept=(32,) * 24)


def test_patterns_of_different_k_run_on_the_edge(tmp_path: Path):
    tiny_models = pytest.importorskip("tiny_models")
    pytest.importorskip("onnxruntime_genai")
    from command_line import awp_edge

    from awp_edge.artifacts import CompressedModel

    model, text = tiny_models.build("llama", tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    asked = ["--pattern", "32/64", "--bits", 4, "--group-size", 64, "--allocate", "layer"]
    awp_edge(
        "compress", model, tmp_path / "out", *asked, "--calibration", text, "--samples", 4, "--seq-len", 64
    )
    compressed = CompressedModel(tmp_path / "out")
    masks = [compressed.layer(name).encoding.mask for name in compressed.tensors]
    assert len({layer["pattern"] for layer in compressed.manifest["layers"]}) > 1
    for layer, mask in zip(compressed.manifest["layers"], masks, strict=True):
        blocks = mask.reshape(len(mask), 64, -1).sum(axis=1)
        assert blocks.max() == int(layer["pattern"].removesuffix("/64")), "a grid may round a few to zero"
    assert sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks) == pytest.approx(
        0.5, abs=0.05
    )
    awp_edge("export", tmp_path / "out", tmp_path / "edge", "--weights", "sparse")
    awp_edge("export", tmp_path / "out", tmp_path / "dense", "--weights", "dense")


def test_a_compressed_model_keeps_the_mean_width_and_runs_on_the_edge(tmp_path: Path):
    tiny_models = pytest.importorskip("tiny_models")
    pytest.importorskip("onnxruntime_genai")
    from command_line import awp_edge

    from awp_edge.artifacts import CompressedModel

    model, text = tiny_models.build("llama", tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    asked = ["--bits", "4", "--group-size", "32", "--allocate", "layer", "--samples", "4", "--seq-len", "64"]
    awp_edge("compress", model, tmp_path / "out", *asked, "--calibration", text)
    compressed = CompressedModel(tmp_path / "out")
    layers = [compressed.layer(name) for name in compressed.tensors]
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    widths = {layer.bits for layer in layers}
    assert len(widths) > 1 and widths <= set(WIDTHS)
    assert all(layer.encoding.codes.max() < 2**layer.bits for layer in layers)
    assert 3 < sum(layer.bits * layer.shape[0] * layer.shape[1] for layer in layers) / weights <= 4
    awp_edge("export", tmp_path / "out", tmp_path / "hf", "--format", "hf")
    awp_edge("export", tmp_path / "out", tmp_path / "edge")  # compares the logits with the compressed model's


def test_a_compressed_model_keeps_the_global_sparsity(tmp_path: Path):
    tiny_models = pytest.importorskip("tiny_models")
    from command_line import awp_edge

    model, text = tiny_models.build("llama", tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    common = ["compress", model, "--sparsity", 0.5, "--calibration", text, "--samples", 4, "--seq-len", 64]
    for allocation in ("uniform", "layer", "row"):
        awp_edge(*common, tmp_path / allocation, "--allocate", allocation, "--token-weights", "loss")
    from awp_edge.artifacts import CompressedModel

    spread = {}
    for allocation in ("uniform", "layer", "row"):
        model_out = CompressedModel(tmp_path / allocation)
        masks = {name: model_out.layer(name).dense() != 0 for name in model_out.tensors}
        size = sum(mask.size for mask in masks.values())
        assert sum(mask.sum() for mask in masks.values()) / size == pytest.approx(0.5, abs=0.01)
        spread[allocation] = (
            len({round(float(mask.mean()), 3) for mask in masks.values()}),
            max(len(set(mask.sum(axis=1).tolist())) for mask in masks.values()),
        )
    assert spread["uniform"] == (1, 1)
    assert spread["layer"][0] > 1 and spread["layer"][1] == 1
    assert spread["row"][1] > 1
