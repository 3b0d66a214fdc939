"""Loss gradients at the outputs of linears: the streamed pass equals autograd on the whole model."""

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
import transformers  # noqa: E402

from awp_edge.calibrate.request import CalibrationRequest, open_statistics  # noqa: E402
from awp_edge.calibrate.stream import BlockStream, StreamOptions  # noqa: E402
from awp_edge.errors import AwpError, UsageError  # noqa: E402
from awp_edge.models import ModelFolder  # noqa: E402

CAUSAL = tuple(family for family in tiny_models.FAMILIES if family not in ("bert", "roberta", "deberta"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_models.build(family, root / family) for family in tiny_models.FAMILIES}


def windows(n: int = 5, length: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, length))


def gradients_of(model, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return the loss gradients at the outputs of all linears, (tokens, d_out), by plain autograd."""
    found = {}

    def listen(name):
        def hook(module, args, output):
            output.register_hook(
                lambda gradient: found.__setitem__(name, gradient.flatten(0, -2).double().numpy())
            )

        return hook

    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(listen(name))
    ids = torch.from_numpy(tokens)
    logits = model(input_ids=ids).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    ).backward()
    return found


@pytest.mark.parametrize("family", CAUSAL)
def test_the_streamed_gradients_are_those_of_the_whole_model(family, folders, tmp_path):
    tokens = windows()
    expected = gradients_of(tiny_models.whole(folders[family]), tokens)
    stream = BlockStream(ModelFolder(folders[family]), tokens, tmp_path, options=StreamOptions(one_shot=True))
    for block in range(stream.n_blocks):
        found, infos = stream.sensitivity(block), stream.linears(block)
        norms = {info.name: np.linalg.norm(expected[info.name], axis=1) for info in infos}
        for info in infos:
            mean_square = np.mean(expected[info.name] ** 2, axis=0)
            np.testing.assert_allclose(
                found.rows[info.name], mean_square, rtol=1e-4, atol=1e-6 * mean_square.max()
            )
            sharing = [
                norms[other.name] / norms[other.name].mean() for other in infos if other.input == info.input
            ]
            np.testing.assert_allclose(
                found.tokens[info.input], np.mean(sharing, axis=0), rtol=1e-4, atol=1e-6
            )
    assert not list(tmp_path.glob("*.f32*")), "hidden states are left on disk"


def test_the_gram_matrices_beside_the_gradients_are_the_dense_ones(folders, tmp_path):
    stream = BlockStream(
        ModelFolder(folders["llama"]), windows(), tmp_path, options=StreamOptions(one_shot=True)
    )
    for block in range(stream.n_blocks):
        felt, dense = stream.sensitivity(block), stream.statistics(block)
        assert felt.gram.keys() == dense.keys()
        for name, gram in dense.items():
            np.testing.assert_allclose(felt.gram[name], gram.matrix, rtol=0, atol=2e-6 * gram.matrix.max())
        stream.advance(block, {})


def test_half_of_the_weight_follows_the_gradient_norms(folders, tmp_path):
    tokens = windows()
    options = StreamOptions(one_shot=True, token_weights="loss")
    stream = BlockStream(ModelFolder(folders["llama"]), tokens, tmp_path, options=options)
    (tmp_path / "plain").mkdir()
    plain = BlockStream(
        ModelFolder(folders["llama"]), tokens, tmp_path / "plain", options=StreamOptions(one_shot=True)
    )
    inputs, name = [], stream.linears(0)[0].name
    model = tiny_models.whole(folders["llama"])
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(tokens))
    x = inputs[0].double().numpy()
    shares = 1 + stream.sensitivity(0).tokens[name].astype(np.float64)
    assert shares.mean() == pytest.approx(2, rel=1e-5)
    expected = (x * shares[:, None]).T @ x / shares.sum()
    found = stream.statistics(0)[name].matrix
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * expected.max())
    assert not np.allclose(found, plain.statistics(0)[name].matrix, rtol=1e-3)


def test_a_model_without_next_token_loss_is_named(folders, tmp_path):
    stream = BlockStream(
        ModelFolder(folders["bert"]), windows(), tmp_path, options=StreamOptions(one_shot=True)
    )
    with pytest.raises(
        UsageError, match="BertModel has no next-token loss; --allocate and --token-weights loss need"
    ):
        stream.sensitivity(0)


def test_saved_statistics_keep_the_gradients_or_say_that_they_have_none(folders, tmp_path):
    folder, text = ModelFolder(folders["llama"]), tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 40)
    for name, felt in (("with", True), ("without", False)):
        request = CalibrationRequest(
            source=str(text), samples=4, seq_len=32, order="one-shot", statistics=tmp_path / name
        )
        (tmp_path / f"{name}-state").mkdir()
        if not felt:  # what a run on other text that was stopped has left
            (tmp_path / name).mkdir()
            shutil.copy(tmp_path / "with" / "sensitivity-000.safetensors", tmp_path / name)
            (tmp_path / name / "unfinished.json").write_text('{"calibration": {"source": "other.txt"}}')
        source = open_statistics(folder, request, tmp_path / f"{name}-state")
        first = [source.sensitivity(block) for block in range(source.n_blocks)] if felt else []
        for block in range(source.n_blocks):
            source.statistics(block)
            source.advance(block, {})
        again = open_statistics(folder, request, tmp_path / f"{name}-state")
        for block, found in enumerate(first):
            for key, rows in again.sensitivity(block).rows.items():
                assert np.array_equal(rows, found.rows[key])
        if not felt:
            with pytest.raises(AwpError, match="was saved without loss gradients"):
                again.sensitivity(0)
