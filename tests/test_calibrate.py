"""Calibration: streaming equals running the whole model, and resuming gives the same bits."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
import transformers  # noqa: E402

from awp_edge.calibrate.gram import GramAccumulator  # noqa: E402
from awp_edge.calibrate.modules import Skeleton  # noqa: E402
from awp_edge.calibrate.stream import BlockStream, StreamOptions  # noqa: E402
from awp_edge.errors import AwpError, UsageError  # noqa: E402
from awp_edge.models import ModelFolder  # noqa: E402

FAMILIES = tuple(tiny_models.FAMILIES)
ONE_SHOT = StreamOptions(one_shot=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_models.build(family, root / family) for family in FAMILIES}


def windows(n: int = 5, length: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, length))


def linears_of(model) -> dict:
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def whole_grams(model, tokens) -> dict:
    seen: dict = {}

    def listen(name):
        def hook(module, args):
            seen.setdefault(name, []).append(args[0].double().reshape(-1, args[0].shape[-1]))

        return hook

    for name, module in linears_of(model).items():
        module.register_forward_pre_hook(listen(name))
    with torch.inference_mode():
        model(torch.from_numpy(tokens))
    joined = {name: torch.cat(parts) for name, parts in seen.items()}  # DeBERTa's take positions, too
    return {name: (x.T @ x / len(x)).numpy() for name, x in joined.items()}


def assert_grams(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_statistics_are_those_of_the_whole_model(family, folders, tmp_path):
    tokens = windows()
    expected = whole_grams(tiny_models.whole(folders[family]), tokens)
    state = torch.random.get_rng_state()
    stream = BlockStream(ModelFolder(folders[family]), tokens, tmp_path, options=ONE_SHOT)
    assert stream.n_blocks == 3
    for block in range(3):
        grams = stream.statistics(block)
        infos = stream.linears(block)
        assert {info.input for info in infos} == set(grams)
        for info in infos:
            assert stream.weight(info.name).shape == info.shape
            assert grams[info.input].n_tokens == tokens.size or family == "deberta"
            assert_grams(grams[info.input].matrix, expected[info.name])
        stream.advance(block, {})
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("family", ("llama", "gemma3", "gpt2", "opt", "bert"))
def test_sequential_statistics_see_the_compressed_blocks_before(family, folders, tmp_path):
    tokens, model = windows(), tiny_models.whole(folders[family])
    stream = BlockStream(ModelFolder(folders[family]), tokens, tmp_path)
    linears = linears_of(model)
    for block in range(3):
        grams = stream.statistics(block)
        expected = whole_grams(model, tokens)
        for info in stream.linears(block):
            assert_grams(grams[info.input].matrix, expected[info.name])
        halved = {info.name: 0.5 * stream.weight(info.name) for info in stream.linears(block)}
        stream.advance(block, halved)
        for name in halved:
            linears[name].weight.data.mul_(0.5)


def test_who_shares_an_input_is_seen_not_named(folders, tmp_path):
    stream = BlockStream(ModelFolder(folders["llama"]), windows(), tmp_path)
    prefix = "model.layers.1."
    inputs = {info.name.removeprefix(prefix): info.input.removeprefix(prefix) for info in stream.linears(1)}
    assert inputs == {
        "self_attn.q_proj": "self_attn.q_proj", "self_attn.k_proj": "self_attn.q_proj",
        "self_attn.v_proj": "self_attn.q_proj", "self_attn.o_proj": "self_attn.o_proj",
        "mlp.gate_proj": "mlp.gate_proj", "mlp.up_proj": "mlp.gate_proj", "mlp.down_proj": "mlp.down_proj",
    }  # fmt: skip


def test_skipped_linears_are_left_out_and_the_input_gets_another_owner(folders, tmp_path):
    options = StreamOptions(skip=("q_proj", "layers.0.mlp.*"))
    stream = BlockStream(ModelFolder(folders["llama"]), windows(), tmp_path, options=options)
    names = {
        info.name.rpartition("layers.0.")[2]: info.input.rpartition(".")[2] for info in stream.linears(0)
    }
    assert names == {"self_attn.k_proj": "k_proj", "self_attn.v_proj": "k_proj", "self_attn.o_proj": "o_proj"}
    assert set(stream.statistics(0)) == {info.input for info in stream.linears(0)}
    assert len(stream.linears(1)) == 6
    with pytest.raises(UsageError, match="matches none of the 21 linears"):
        BlockStream(
            ModelFolder(folders["llama"]), windows(), tmp_path, options=StreamOptions(skip=("w_proj",))
        )


def test_nothing_but_the_block_stack_is_listed(folders):
    for family in ("llama", "llama-untied", "gpt-neox"):
        skeleton = Skeleton(ModelFolder(folders[family]))
        names = [name for block in skeleton.linears for name in block]
        assert not any("lm_head" in name or "embed" in name for name in names)


def test_sharded_bfloat16_weights_without_the_prefix(tmp_path):
    plain = tiny_models.build("gpt2", tmp_path / "plain", dtype="bfloat16")
    bare = tiny_models.build("gpt2", tmp_path / "bare", dtype="bfloat16")
    tiny_models.rename(bare, lambda name: name.removeprefix("transformer."))
    tiny_models.shard(bare)
    streams = [
        BlockStream(ModelFolder(folder), windows(), tmp_path, options=ONE_SHOT) for folder in (plain, bare)
    ]
    first, second = (stream.statistics(0) for stream in streams)
    assert list(second) == [name.removeprefix("transformer.") for name in first]
    for a, b in zip(first.values(), second.values(), strict=True):
        assert np.array_equal(a.matrix, b.matrix)


def run_all(
    folder: Path, tokens: np.ndarray, state: Path, *, options: StreamOptions, restart_at: tuple[int, ...] = ()
):
    """Return all Gram matrices of a run in which a new process takes over before some blocks."""
    found = {}
    stream = BlockStream(ModelFolder(folder), tokens, state, options=options)
    for block in range(stream.n_blocks):
        if block in restart_at:
            stream.statistics(block)  # the work that the killed process had begun
            (state / "hidden-009.f32.tmp").write_bytes(b"half written")
            stream = BlockStream(ModelFolder(folder), tokens, state, options=options)
        found.update({name: gram.matrix for name, gram in stream.statistics(block).items()})
        stream.advance(block, {i.name: np.round(stream.weight(i.name), 1) for i in stream.linears(block)})
    return found


@pytest.mark.parametrize("options", (StreamOptions(), ONE_SHOT), ids=("sequential", "one-shot"))
def test_resuming_gives_the_same_bits(options, folders, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    once = run_all(folders["llama"], windows(), tmp_path / "a", options=options)
    again = run_all(folders["llama"], windows(), tmp_path / "b", options=options, restart_at=(0, 1, 2))
    assert once.keys() == again.keys()
    assert all(np.array_equal(once[name], again[name]) for name in once)
    assert len(list((tmp_path / "a").iterdir())) <= 2


@pytest.mark.parametrize("damage", ("cut", "changed", "gone"))
def test_damaged_hidden_states_are_one_line(damage, folders, tmp_path):
    stream = BlockStream(ModelFolder(folders["llama"]), windows(), tmp_path, options=ONE_SHOT)
    stream.statistics(0)
    path = tmp_path / "hidden-001.f32"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    {
        "cut": lambda: path.write_bytes(data[:-9]),
        "changed": lambda: path.write_bytes(data),
        "gone": path.unlink,
    }[damage]()
    with pytest.raises(AwpError, match=r"checkpoint is damaged.*hidden-001"):
        BlockStream(ModelFolder(folders["llama"]), windows(), tmp_path, options=ONE_SHOT).statistics(1)


def plant(folder: Path, name: str, value: float) -> None:
    def change(tensor):
        tensor.view(-1)[7] = value
        return tensor

    tiny_models.edit(folder, name, change)


def test_bad_numbers_are_named(tmp_path):
    folder = tiny_models.build("llama-untied", tmp_path / "nan")
    plant(folder, "model.layers.1.mlp.up_proj.weight", float("nan"))
    stream = BlockStream(ModelFolder(folder), windows(), tmp_path, options=ONE_SHOT)
    stream.statistics(0)
    with pytest.raises(AwpError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        stream.statistics(1)
    plant(folder, "model.layers.1.mlp.up_proj.weight", 3e38)
    with pytest.raises(AwpError, match=r"model\.layers\.1\.mlp\.down_proj|model\.layers\.1: its output"):
        BlockStream(ModelFolder(folder), windows(), tmp_path, options=ONE_SHOT).statistics(1)


def test_models_that_cannot_be_streamed_say_so(folders, tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    transformers.ResNetModel(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(AwpError, match="no stack of blocks"):
        Skeleton(ModelFolder(tmp_path / "resnet"))
    config = transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, vocab_size=16)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(AwpError, match="encoder-decoder"):
        Skeleton(ModelFolder(tmp_path / "t5"))
    config = transformers.MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    with pytest.raises(AwpError, match="a mixture of 2 experts"):
        Skeleton(ModelFolder(tmp_path / "mixtral"))
    tiny_models.rename(
        tiny_models.build("llama", tmp_path / "lacking"), lambda name: name.replace("layers.2", "layers.9")
    )
    with pytest.raises(AwpError, match=r"no tensor model\.layers\.2"):
        Skeleton(ModelFolder(tmp_path / "lacking"))
    with pytest.raises(AwpError, match="token 999"):
        BlockStream(ModelFolder(folders["llama"]), np.full((2, 8), 999), tmp_path)


def test_gram_accumulator_adds_in_any_cuts():
    x = torch.randn(3000, 300, generator=torch.Generator().manual_seed(1)) + 0.5
    expected = (x.double().T @ x.double() / 3000).numpy()
    for cuts in ((3000,), (1, 2047, 952), (100,) * 30):
        accumulator = GramAccumulator("x", 300)
        for part in torch.split(x, list(cuts)):
            accumulator.add(part[None])
        assert_grams(accumulator.result().matrix, expected)
    rounded = GramAccumulator("x", 300, products="bfloat16")
    rounded.add(x)
    assert np.abs(rounded.result().matrix - expected).max() < 2e-2 * np.abs(expected).max()


def test_tokens_weighed_by_their_norm_count_alike():
    x = torch.randn(500, 20, generator=torch.Generator().manual_seed(2))
    x[3] *= 1e3
    x[7] = 0
    units = torch.nn.functional.normalize(x.double())
    weight = float((1 / x.double().square().sum(dim=1)[x.abs().sum(dim=1) > 0]).sum())
    expected = (units.T @ units / weight).numpy()
    for cuts in ((500,), (4, 496)):
        accumulator = GramAccumulator("x", 20, token_weights="norm")
        for part in torch.split(x, list(cuts)):
            accumulator.add(part)
        found = accumulator.result()
        assert_grams(found.matrix, expected)
        assert found.n_tokens == 500
    plain = GramAccumulator("x", 20)
    plain.add(x)
    assert plain.result().matrix.trace() > 100 * found.matrix.trace()  # the one token decides there
    with pytest.raises(ValueError, match="token weights"):
        GramAccumulator("x", 20, token_weights="square")
