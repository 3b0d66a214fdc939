"""Calibration text, requests, saved statistics and the torch runner."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from awp_edge.calibrate import (  # noqa: E402
    CalibrationRequest,
    SavedStatistics,
    has_statistics,
    open_statistics,
)
from awp_edge.calibrate.openings import OPENINGS, TEXT_TOKENS, joined, opened_texts, text_shape  # noqa: E402
from awp_edge.calibrate.runner import TorchModel  # noqa: E402
from awp_edge.calibrate.sample import sample_texts  # noqa: E402
from awp_edge.calibrate.text import token_windows  # noqa: E402
from awp_edge.errors import AwpError, UsageError  # noqa: E402
from awp_edge.models import ModelFolder  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_models.build(family, root / family) for family in tiny_models.FAMILIES}


def byte_tokenizer(folders):
    return transformers.AutoTokenizer.from_pretrained(folders["llama"])


def test_windows_are_consecutive_and_the_tail_is_dropped(folders, tmp_path):
    text = "abc\r\ndéf " * 20
    (tmp_path / "x.txt").write_bytes(text.encode())
    tokenizer = byte_tokenizer(folders)
    found = token_windows(tmp_path / "x.txt", tokenizer, samples=None, seq_len=16)
    flat = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.shape == (len(flat) // 16, 16)
    assert found.reshape(-1).tolist() == flat[: found.size]
    assert np.array_equal(token_windows(tmp_path / "x.txt", tokenizer, samples=3, seq_len=16), found[:3])
    drawn = token_windows(tmp_path / "x.txt", tokenizer, samples=3, seq_len=16, seed=5)
    assert np.array_equal(drawn, token_windows(tmp_path / "x.txt", tokenizer, samples=3, seq_len=16, seed=5))
    assert all(any(np.array_equal(row, other) for other in found) for row in drawn)


def test_jsonl_documents_are_joined_with_blank_lines(folders, tmp_path):
    lines = [json.dumps({"text": text, "url": "u"}) for text in ("one\u2028two", "three", "four")]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n\n", newline="")
    tokenizer = byte_tokenizer(folders)
    found = token_windows(tmp_path / "x.jsonl", tokenizer, samples=1, seq_len=10)
    assert tokenizer.decode(found[0]) == "one\u2028two\n"[:8]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"  \n ", "has no text"),
        ("x.txt", b"short", "has 5 tokens and one window needs 16"),
        ("x.txt", b"\xff\xfe", "not UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"text": 3}', "line 2"),
        ("x.jsonl", b'{"text": "a"}\n\n{"txt": "b"}', "line 3"),
        ("x.jsonl", b"[1", "line 1"),
        ("x.csv", b"a,b", "a .txt or .jsonl file"),
        ("missing.txt", None, "cannot read"),
    ],
)
def test_bad_text_is_one_line(name, content, message, folders, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AwpError, match=message) as caught:
        token_windows(tmp_path / name, byte_tokenizer(folders), samples=2, seq_len=16)
    assert "\n" not in str(caught.value)


# Self calibration


@pytest.mark.parametrize("family", ("llama", "gemma3", "gpt2", "opt"))
def test_self_text_follows_the_models_own_distribution(family, folders):
    state = torch.random.get_rng_state()
    tokens = sample_texts(ModelFolder(folders[family]), count=32, length=40, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(tokens, sample_texts(ModelFolder(folders[family]), count=32, length=40, seed=3))
    assert not np.array_equal(tokens, sample_texts(ModelFolder(folders[family]), count=32, length=40, seed=4))
    with torch.inference_mode():
        logits = tiny_models.whole(folders[family])(torch.from_numpy(tokens.astype(np.int64))).logits[:, :-1]
    chosen = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(tokens[:, 1:, None].astype(np.int64)))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    # Sampled from the right conditionals, the mean surprise is the mean entropy, up to its standard error.
    assert abs(-chosen.mean() - entropy.mean()) < 5 * chosen.std() / chosen.numel() ** 0.5
    assert -chosen.mean() < 0.9 * np.log(tiny_models.VOCAB)


def test_openings_are_given_and_the_rest_is_written(folders):
    tokenizer = byte_tokenizer(folders)
    given = opened_texts(tokenizer, samples=3, seq_len=2 * TEXT_TOKENS)
    assert given.shape == (6, TEXT_TOKENS)
    for row in range(6):
        opening = ("\n\n" if row % 2 else "") + OPENINGS[row]
        tokens = tokenizer.encode(opening, add_special_tokens=False)
        assert given[row, : len(tokens)].tolist() == tokens and (given[row, len(tokens) :] == -1).all()
    short = opened_texts(tokenizer, samples=40, seq_len=64)
    assert ((short >= 0).sum(axis=1) <= 16).all() and (short[:, 0] >= 0).all()
    written = sample_texts(ModelFolder(folders["llama"]), count=40, length=64, given=short)
    assert (written >= 0).all() and np.array_equal(written[short >= 0], short[short >= 0])
    assert len({tuple(row[32:]) for row in written.tolist()}) == 40


@pytest.mark.parametrize("seq_len", (2, 64, TEXT_TOKENS, TEXT_TOKENS + 1, 2 * TEXT_TOKENS + 7))
def test_windows_are_filled_by_whole_texts(seq_len):
    count, length = text_shape(samples=3, seq_len=seq_len)
    texts = np.arange(count * length, dtype=np.int32).reshape(count, length)
    windows = joined(texts, samples=3, seq_len=seq_len)
    assert length <= TEXT_TOKENS and windows.shape == (3, seq_len)
    assert count * length - windows.size < count
    assert all(np.array_equal(row, row[0] + np.arange(seq_len)) for row in windows)


def test_an_encoder_cannot_write_text(folders):
    with pytest.raises(AwpError, match="cannot write its own calibration text"):
        sample_texts(ModelFolder(folders["bert"]), count=1, length=4)


# Requests and saved statistics


def request(tmp_path: Path, **changes) -> CalibrationRequest:
    source = tiny_models.write_text(tmp_path / "text.txt")
    return CalibrationRequest(
        **{"source": str(source), "samples": 4, "seq_len": 32, "order": "one-shot", **changes}
    )


def opened(folder: Path, asked: CalibrationRequest, state: Path, said: list | None = None):
    state.mkdir(exist_ok=True)
    return open_statistics(
        ModelFolder(folder), asked, state, progress=(said if said is not None else []).append
    )


def drive(source) -> dict:
    found = {}
    for block in range(source.n_blocks):
        found.update({name: gram.matrix for name, gram in source.statistics(block).items()})
        source.advance(block, {})
    return found


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_saved_statistics_stand_in_for_the_stream(family, folders, tmp_path):
    asked = request(tmp_path, statistics=tmp_path / "stats")
    stream = opened(folders[family], asked, tmp_path / "state")
    live = drive(stream)
    saved = opened(folders[family], asked, tmp_path / "other")
    assert isinstance(saved, SavedStatistics)
    again = drive(saved)
    assert live.keys() == again.keys() and all(np.array_equal(live[name], again[name]) for name in live)
    assert dict(saved.calibration) == dict(stream.calibration)
    for block in range(3):
        assert list(saved.linears(block)) == list(stream.linears(block))
        for info in saved.linears(block):
            assert np.array_equal(saved.weight(info.name), stream.weight(info.name))
    assert not list((tmp_path / "other").iterdir())


def test_saved_statistics_that_do_not_fit_are_one_line(folders, tmp_path):
    asked = request(tmp_path, statistics=tmp_path / "stats")
    drive(opened(folders["llama"], asked, tmp_path / "state"))
    with pytest.raises(AwpError, match="model hash"):
        opened(folders["llama-untied"], asked, tmp_path / "state")
    with pytest.raises(AwpError, match="samples 4, not 5"):
        opened(
            folders["llama"], request(tmp_path, statistics=tmp_path / "stats", samples=5), tmp_path / "state"
        )
    with pytest.raises(UsageError, match="one-shot"):
        opened(
            folders["llama"],
            request(tmp_path, statistics=tmp_path / "stats", order="sequential"),
            tmp_path / "state",
        )
    (tmp_path / "stats/block-001.safetensors").write_bytes(b"")
    with pytest.raises(AwpError, match=r"block-001\.safetensors has changed"):
        drive(opened(folders["llama"], asked, tmp_path / "state"))
    (tmp_path / "stats/block-001.safetensors").unlink()
    with pytest.raises(AwpError, match=r"block-001\.safetensors is missing"):
        drive(opened(folders["llama"], asked, tmp_path / "state"))


def test_saved_statistics_are_of_the_seed_that_is_asked_for(folders, tmp_path):
    def asked(source: str, name: str, seed: int | None) -> CalibrationRequest:
        return request(tmp_path, source=source, statistics=tmp_path / name, seed=seed)

    def drawn(source: str, name: str, seed: int | None) -> None:
        drive(opened(folders["llama"], asked(source, name, seed), tmp_path / f"{name}-state"))

    text = str(tiny_models.write_text(tmp_path / "text.txt"))
    drawn(text, "first", None)
    drawn(text, "third", 3)
    drawn("self", "own", None)
    for source, name, seed, clash in (
        (text, "first", 0, "first was made with no --seed, not --seed 0; give the same, or another"),
        (text, "third", None, "third was made with --seed 3, not no --seed;"),
        (text, "third", 1, "third was made with --seed 3, not --seed 1;"),
        ("self", "own", 1, "own was made with --seed 0, not --seed 1;"),
    ):
        with pytest.raises(AwpError, match=clash):
            opened(folders["llama"], asked(source, name, seed), tmp_path / "other")
    opened(folders["llama"], asked("self", "own", 0), tmp_path / "other")


def step(source, *blocks: int) -> None:
    for block in blocks:
        source.statistics(block)
        source.advance(block, {})


def test_statistics_of_a_stopped_run_are_gone_on_with(folders, tmp_path):
    asked = request(tmp_path, statistics=tmp_path / "stats")
    step(opened(folders["llama"], asked, tmp_path / "state"), 0)
    assert not has_statistics(tmp_path / "stats")
    step(opened(folders["llama"], asked, tmp_path / "state"), 1, 2)
    saved = opened(folders["llama"], asked, tmp_path / "other")
    live = drive(opened(folders["llama"], replace(asked, statistics=None), tmp_path / "whole"))
    found = drive(saved)
    assert isinstance(saved, SavedStatistics) and all(
        np.array_equal(live[name], found[name]) for name in live
    )
    assert not (tmp_path / "stats/unfinished.json").exists()


def test_a_folder_of_statistics_takes_one_calibration_at_a_time(folders, tmp_path):
    asked = request(tmp_path, statistics=tmp_path / "stats")
    first = opened(folders["llama"], asked, tmp_path / "one")
    step(first, 0)
    for other in (asked, replace(asked, seed=1)):
        with pytest.raises(AwpError, match=r"another process is working in .*stats; wait for it or choose"):
            opened(folders["llama"], other, tmp_path / "two")
    step(first, 1, 2)
    assert isinstance(opened(folders["llama"], asked, tmp_path / "two"), SavedStatistics)


def test_statistics_that_would_lack_blocks_are_never_complete(folders, tmp_path):
    asked = request(tmp_path)
    step(opened(folders["llama"], asked, tmp_path / "state"), 0, 1)
    resumed = opened(folders["llama"], replace(asked, statistics=tmp_path / "stats"), tmp_path / "state")
    with pytest.raises(AwpError, match=r"lacks block-000\.safetensors.*go on without --statistics"):
        resumed.statistics(2)
    with pytest.raises(AwpError, match=r"lacks block-000\.safetensors"):
        resumed.advance(2, {})
    assert not has_statistics(tmp_path / "stats")


def test_what_is_left_of_other_text_is_not_taken_for_this(folders, tmp_path):
    asked = request(tmp_path, statistics=tmp_path / "stats")
    other = tiny_models.write_text(tmp_path / "other.txt", seed=1)
    step(opened(folders["llama"], replace(asked, source=str(other)), tmp_path / "one"), 0, 1)
    step(opened(folders["llama"], replace(asked, statistics=None), tmp_path / "state"), 0, 1)
    with pytest.raises(AwpError, match=r"lacks block-000\.safetensors"):
        opened(folders["llama"], asked, tmp_path / "state").statistics(2)
    (tmp_path / "stats/block-000.safetensors").touch()
    (tmp_path / "stats/unfinished.json").unlink()
    with pytest.raises(
        AwpError, match=r"has block-000\.safetensors of an unknown calibration; give an empty"
    ):
        opened(folders["llama"], asked, tmp_path / "two")


def test_requests_are_sized_by_the_model_and_tokens_are_kept(folders, tmp_path):
    folder = ModelFolder(folders["llama"])
    assert CalibrationRequest().sized(folder).samples == 16
    assert CalibrationRequest("x.txt").sized(folder).seq_len == tiny_models.CONTEXT
    with pytest.raises(UsageError, match="--seq-len 4096 exceeds the 128 positions"):
        CalibrationRequest(seq_len=4096).sized(folder)
    said: list = []
    first = opened(folders["llama"], request(tmp_path, samples=10_000), tmp_path / "state", said)
    assert any("of the 10000 windows" in line for line in said)
    (tmp_path / "text.txt").write_text("another text")
    kept = np.load(tmp_path / "state/tokens.npy")
    assert kept.shape == (4096 // 32, 32) and first.n_tokens == kept.size


def test_token_weights_are_part_of_saved_statistics(folders, tmp_path):
    uniform, norm = (
        request(tmp_path, statistics=tmp_path / "stats", token_weights=w) for w in ("uniform", "norm")
    )
    first = drive(opened(folders["llama"], uniform, tmp_path / "one"))
    with pytest.raises(AwpError, match="token_weights uniform, not norm"):
        opened(folders["llama"], norm, tmp_path / "two")
    manifest = tmp_path / "stats/manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"token_weights"', '"other"')
    )  # a set from before the choice
    with pytest.raises(AwpError, match="token_weights uniform, not norm"):
        opened(folders["llama"], norm, tmp_path / "two")
    opened(folders["llama"], uniform, tmp_path / "two")
    other = drive(opened(folders["llama"], replace(norm, statistics=None), tmp_path / "three"))
    assert all(np.isfinite(other[name]).all() and not np.allclose(other[name], first[name]) for name in first)
    with pytest.raises(UsageError, match="--token-weights"):
        opened(folders["llama"], replace(norm, statistics=None, token_weights="square"), tmp_path / "four")


def test_saved_statistics_need_no_torch(folders, tmp_path):
    asked = request(tmp_path, statistics=tmp_path / "stats")
    drive(opened(folders["llama"], asked, tmp_path / "state"))
    program = (
        "import sys; from pathlib import Path; from awp_edge.models import ModelFolder; "
        "from awp_edge.calibrate import CalibrationRequest, open_statistics; "
        f"s = open_statistics(ModelFolder({str(folders['llama'])!r}), CalibrationRequest({asked.source!r}, 4, 32, "
        f"order='one-shot', statistics=Path({str(tmp_path / 'stats')!r})), Path('.')); "
        "s.statistics(2); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


# The model runner


@pytest.mark.parametrize("family", ("llama", "llama-untied", "qwen3", "gemma3", "opt", "gpt2", "gpt-neox"))
def test_runner_gives_the_models_logits(family, folders):
    model = TorchModel(folders[family])
    tokens = np.random.default_rng(0).integers(0, 256, 100)
    with torch.inference_mode():
        expected = tiny_models.whole(folders[family])(torch.from_numpy(tokens)[None]).logits[0].numpy()
    found = np.concatenate(list(model.logits(tokens)))
    assert model.vocab_size == tiny_models.VOCAB and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert list(model.encode("ab")) == byte_tokenizer(folders)("ab", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_runner_refuses_more_than_the_context(family, folders):
    """Learned positions end there, and rotary ones go on without a word."""
    model = TorchModel(folders[family])
    assert model.context_length == 128
    with pytest.raises(AwpError, match=r"^129 tokens are more than the context of 128$"):
        next(model.logits(np.zeros(129, dtype=np.int64)))
    assert sum(len(part) for part in model.logits(np.zeros(128, dtype=np.int64))) == 128


def test_runner_refuses_what_has_no_next_token(folders):
    with pytest.raises(AwpError, match="not a causal language model"):
        TorchModel(folders["bert"])
