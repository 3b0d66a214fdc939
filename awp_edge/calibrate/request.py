"""What a calibration is asked to do, and the source of statistics that does it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AwpError, DamagedCheckpoint, UsageError
from ..models import ModelFolder
from ..options import SELF
from ..storage import atomic_file, file_sha256
from .saved import SavedStatistics, SavingStatistics, has_statistics, require_claimable, saved_calibration
from .text import DATASETS, require_readable, token_windows

if TYPE_CHECKING:
    from .stream import BlockStream

TOKENS_FILE = "tokens.npy"
TOKEN_WEIGHTS = ("uniform", "norm", "loss")
_DEFAULT_SIZE = {SELF: (16, 1024)}
_TEXT_SIZE = (64, 2048)
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
#: Families whose positions start behind the padding token's number.
_PADDED_POSITIONS = frozenset({
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip

Progress = Callable[[str], None]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class CalibrationRequest:
    """Bundle what a calibration is asked to do.

    Args:
        source: "self", "c4", "wikitext2", or a .txt or .jsonl file.
        samples, seq_len: windows and tokens in each; None takes 64 x 2048, for self 16 x 1024, capped by the model.
        seed: 0 or more; draws the windows, or the text of self; None takes the first windows, for self seed 0.
        order: "sequential" or "one-shot".
        products: of the Gram matrices, "float32" or "bfloat16".
        token_weights: of the Gram matrices: "uniform", "norm" for 1 / ||x||^2, or "loss", where half of the total
            follows ||g||, g the loss gradient at the outputs (of the first 32768 tokens, the others weigh alike).
        skip: shell patterns of linears to leave alone.
        threads: None leaves torch's setting.
        statistics: a folder to save one-shot statistics in, or to take them from.
    """

    source: str = SELF
    samples: int | None = None
    seq_len: int | None = None
    seed: int | None = None
    order: str = "sequential"
    products: str = "float32"
    skip: tuple[str, ...] = ()
    threads: int | None = None
    statistics: Path | None = None
    token_weights: str = "uniform"

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, got {self.seed}")
        if self.seed is not None and self.seed >= 2**64:
            raise UsageError(f"--seed must be below 2^64, got {self.seed}")

    def check(self) -> None:
        """Raise UsageError for options that do not go together, AwpError for a file that cannot be read."""
        if self.order not in ("sequential", "one-shot"):
            raise UsageError(f"the order of calibration is sequential or one-shot, not {self.order!r}")
        if self.token_weights not in TOKEN_WEIGHTS:
            raise UsageError(f"--token-weights is {', '.join(TOKEN_WEIGHTS)}, not {self.token_weights!r}")
        if self.statistics is not None and self.order != "one-shot":
            raise UsageError("--statistics keeps one-shot statistics; it does not go with --sequential")
        if self.source not in (SELF, *DATASETS):
            require_readable(Path(self.source))

    def sized(self, folder: ModelFolder) -> CalibrationRequest:
        """Fill in samples and seq_len. Raises: UsageError where seq_len exceeds what the model can take."""
        samples, seq_len = _DEFAULT_SIZE.get(self.source, _TEXT_SIZE)
        context = context_length(folder)
        if self.seq_len is not None and context is not None and self.seq_len > context:
            raise UsageError(f"--seq-len {self.seq_len} exceeds the {context} positions of {folder.path}")
        capped = min(seq_len, context) if context is not None else seq_len
        return replace(self, samples=self.samples or samples, seq_len=self.seq_len or capped)

    def known(self) -> dict[str, Any]:
        """Return what is known of the calibration before it is opened: a file's hash, and the tokens' where saved.

        Raises: AwpError for a file that cannot be read.
        """
        found: dict[str, Any] = {"text_sha256": file_sha256(Path(self.source))} if self.is_file else {}
        if self.statistics is not None and has_statistics(self.statistics):
            found["tokens_sha256"] = saved_calibration(self.statistics).get("tokens_sha256")
        return found

    @property
    def is_file(self) -> bool:
        """Return whether the source is a file of text."""
        return Path(self.source).suffix in (".txt", ".jsonl")


def context_length(folder: ModelFolder) -> int | None:
    """Return the number of positions that a model can take, as its config says."""
    config = folder.text_config
    found = next((int(config[key]) for key in _CONTEXT_KEYS if config.get(key)), None)
    if found is None or config.get("model_type") not in _PADDED_POSITIONS:
        return found
    padding = config.get("pad_token_id")
    return found - (1 if padding is None else int(padding)) - 1


def open_statistics(
    folder: ModelFolder, request: CalibrationRequest, state: Path, *, progress: Progress | None = None
) -> BlockStream | SavedStatistics | SavingStatistics:
    """Open the source of statistics that a request asks for; `state` keeps what a resumed run needs.

    Raises: AwpError or UsageError, in one line, for text, models and folders that will not do.
    """
    say = progress or (lambda message: None)
    asked = request.sized(folder)
    asked.check()
    if asked.statistics is None:
        return _stream(folder, asked, state, say=say)
    if has_statistics(asked.statistics):
        say(f"statistics from {asked.statistics}")
        named = {key: value for key, value in _identity(asked).items() if key != "seed"}
        saved = SavedStatistics(folder, asked.statistics, skip=asked.skip, asked=named)
        _require_seed(asked, saved.calibration)
        return saved
    require_claimable(asked.statistics)  # before the model writes text for minutes
    stream = _stream(folder, replace(asked, skip=()), state, say=say)
    return SavingStatistics(stream, folder, asked.statistics, skip=asked.skip)


def _stream(folder: ModelFolder, asked: CalibrationRequest, state: Path, *, say: Progress) -> BlockStream:
    import torch  # only where a model has to run
    import transformers

    from .stream import BlockStream, StreamOptions

    tokens = _tokens(folder, asked, state, say=say)
    calibration = {
        **_identity(asked), "windows": len(tokens), "order": asked.order, "products": asked.products,
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").data).hexdigest(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    options = StreamOptions(
        asked.order == "one-shot", asked.products, asked.skip, asked.threads, asked.token_weights
    )
    return BlockStream(folder, tokens, state, options=options, calibration=calibration)


def _identity(asked: CalibrationRequest) -> dict[str, Any]:
    """Return what decides the tokens and their weights; a file is known by its name and contents, not its place."""
    path = Path(asked.source)
    return {
        "source": path.name if asked.is_file else asked.source, "samples": asked.samples, "seq_len": asked.seq_len,
        "seed": asked.seed, "text_sha256": file_sha256(path) if asked.is_file else None,
        "token_weights": asked.token_weights,
    }  # fmt: skip


def _require_seed(asked: CalibrationRequest, saved: Mapping[str, Any]) -> None:
    """Raise AwpError where saved statistics are of other windows, or of other text of the model's own."""
    unnamed = 0 if asked.source == SELF else None
    found, wanted = (unnamed if seed is None else seed for seed in (saved.get("seed"), asked.seed))
    if found != wanted:
        first, second = ("no --seed" if seed is None else f"--seed {seed}" for seed in (found, wanted))
        raise AwpError(
            f"{asked.statistics} was made with {first}, not {second}; give the same, or another --statistics folder"
        )


def _tokens(folder: ModelFolder, asked: CalibrationRequest, state: Path, *, say: Progress) -> Tokens:
    """Return the tokens saved by an earlier run, or make and save them."""
    path = state / TOKENS_FILE
    if path.is_file():
        return _saved_tokens(path)
    tokens = _sampled(folder, asked, say=say) if asked.source == SELF else _from_text(folder, asked, say=say)
    content = io.BytesIO()  # np.save and np.load on the file itself can turn a Ctrl-C into a TypeError
    np.save(content, tokens)
    with atomic_file(path) as file:
        file.write(content.getbuffer())
    return tokens


def _saved_tokens(path: Path) -> Tokens:
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError):
        raise DamagedCheckpoint(f"the checkpoint is damaged: {path} is not readable") from None


def _sampled(folder: ModelFolder, asked: CalibrationRequest, *, say: Progress) -> Tokens:
    from .openings import joined, opened_texts, text_shape
    from .sample import sample_texts
    from .tokenizer import load_tokenizer

    assert asked.samples is not None and asked.seq_len is not None
    count, length = text_shape(samples=asked.samples, seq_len=asked.seq_len)
    say(f"the model writes {count} texts of {length} tokens")
    try:
        given = opened_texts(load_tokenizer(folder.path), samples=asked.samples, seq_len=asked.seq_len)
    except AwpError as error:
        say(f"{error}: every text starts with the model's start token")
        given = None
    texts = sample_texts(
        folder, count=count, length=length, seed=asked.seed or 0, given=given,
        on_tokens=lambda done, total: say(f"calibration text: {done} of {total} tokens of each"),
    )  # fmt: skip
    return joined(texts, samples=asked.samples, seq_len=asked.seq_len)


def _from_text(folder: ModelFolder, asked: CalibrationRequest, *, say: Progress) -> Tokens:
    from .tokenizer import load_tokenizer

    assert asked.samples is not None and asked.seq_len is not None
    tokenizer = load_tokenizer(folder.path)
    tokens = token_windows(
        asked.source, tokenizer, samples=asked.samples, seq_len=asked.seq_len, seed=asked.seed
    )
    if len(tokens) < asked.samples:
        say(
            f"{asked.source} fills {len(tokens)} of the {asked.samples} windows asked for; going on with those"
        )
    return tokens
