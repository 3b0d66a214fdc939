"""Read calibration text and cut it into windows of tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import AwpError, UsageError

DATASETS = ("c4", "wikitext2")
_SEPARATOR = "\n\n"
_CHARACTERS_PER_TOKEN = 8  # more than English needs, so that streamed documents fill the windows asked for


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def encode(self, text: str, **options: Any) -> list[int]:
        """Return the tokens of a text."""


def token_windows(
    source: str | Path, tokenizer: Tokenizer, *, samples: int | None, seq_len: int, seed: int | None = None
) -> NDArray[np.int32]:
    """Cut a text, tokenized once without special tokens, into consecutive windows; the tail is dropped.

    Args:
        source: a .txt file (as it is), a .jsonl file (the fields `text`, joined with blank lines), "c4" or "wikitext2".
        tokenizer: the model's.
        samples: the first so many windows, all that there are where the text has fewer; None takes all.
        seq_len: tokens per window.
        seed: draw the windows without replacement instead; they keep the order of the text.

    Returns: (windows, seq_len) tokens.

    Raises: AwpError for a text that is missing, unreadable, empty or shorter than one window.
    """
    text = _named_text(str(source), samples, seq_len) if str(source) in DATASETS else read_text(Path(source))
    if not text.strip():
        raise AwpError(f"{source} has no text; give a file with at least {seq_len} tokens")
    # Not verbose: the text is longer than the model's context on purpose.
    tokens = np.asarray(tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=np.int32)
    n = len(tokens) // seq_len
    if n == 0:
        raise AwpError(
            f"{source} has {len(tokens)} tokens and one window needs {seq_len}; give more text or a smaller --seq-len"
        )
    windows = tokens[: n * seq_len].reshape(n, seq_len)
    if seed is not None and samples is not None and samples < n:
        return windows[np.sort(np.random.default_rng(seed).choice(n, samples, replace=False))]
    return windows[:samples]


def require_readable(path: Path) -> None:
    """Raise UsageError for another kind of file, AwpError where it cannot be opened; nothing of it is read."""
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"text comes from self, {', '.join(DATASETS)}, or a .txt or .jsonl file, not {path}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise AwpError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """Read a .txt file as it is, or the documents of a .jsonl file joined with blank lines.

    Raises: UsageError for another kind of file; AwpError where it is missing, not UTF-8, or a line is not a document.
    """
    require_readable(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise AwpError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AwpError(
            f"{path} is not UTF-8 text: byte {error.start} cannot be decoded; convert it"
        ) from None
    return text if path.suffix == ".txt" else _SEPARATOR.join(_documents(path, text))


def _documents(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
            if not isinstance(document, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise AwpError(
                f'{path} line {number} is not a JSON object with a "text" of characters; mend or remove the line'
            ) from None
        yield document


def _named_text(name: str, samples: int | None, seq_len: int) -> str:
    """Load a data set by name: the training part, as much as the windows need."""
    try:
        import datasets

        with _quiet("huggingface_hub"):
            return _load(datasets, name, _CHARACTERS_PER_TOKEN * seq_len * (samples or 128))
    except ImportError:
        raise AwpError(f'{name} needs the package datasets: pip install "awp-edge[datasets]"') from None
    except Exception as error:  # the hub's client raises dozens of unrelated classes for "not reachable"
        raise AwpError(
            f"cannot load {name} from the hub ({type(error).__name__}); give a .txt or .jsonl file, or self"
        ) from None


def _load(datasets: Any, name: str, characters: int) -> str:
    if name == "wikitext2":
        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="train")
        return _SEPARATOR.join(rows["text"])
    shard = {"train": "en/c4-train.00000-of-01024.json.gz"}
    rows = datasets.load_dataset("allenai/c4", data_files=shard, split="train", streaming=True)
    return _joined(rows, characters)


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Keep a logger's warnings (one for each retry of a download) out of the user's way."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _joined(rows: Any, characters: int) -> str:
    documents, length = [], 0
    for row in rows:
        documents.append(row["text"])
        length += len(row["text"])
        if length >= characters:
            break
    return _SEPARATOR.join(documents)
