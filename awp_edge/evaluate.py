"""Measure a model by its logits: perplexity, KL divergence from a dense model and top-1 agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import AwpError
from .native import thread_count

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
OnWindow = Callable[[int, int], None]

DEFAULT_SEQ_LEN = 2048
#: Tokens that a thread takes at a time: the logits of as many stay in its cache.
TOKENS_AT_A_TIME = 8


class LogitsSource(Protocol):
    """A model that turns tokens into logits: a Hugging Face, compressed or edge folder, opened."""

    @property
    def vocab_size(self) -> int:
        """Return the number of logits per token."""

    @property
    def context_length(self) -> int | None:
        """Return the longest window in tokens; None where there is no limit."""

    def encode(self, text: str) -> Sequence[int] | NDArray[np.integer[Any]]:
        """Return the text's tokens, no special token added."""

    def logits(self, window: Tokens) -> Iterator[Logits]:
        """Yield the logits of a window's tokens in order, (chunk, vocab_size) float32, in chunks that fit in memory."""


@dataclass(frozen=True)
class Evaluation:
    """Hold what was measured; kl (nats) and top1_agreement (0 to 1) are None without a model to compare with.

    perplexity: exp of the mean negative log-likelihood over windows (seq_len - 1) tokens; inf where it overflows.
    against_perplexity: the other model's, over the same tokens.
    """

    perplexity: float
    windows: int
    seq_len: int
    tokens: int
    kl: float | None = None
    top1_agreement: float | None = None
    against_perplexity: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def evaluate(
    model: LogitsSource,
    text: str,
    *,
    seq_len: int = DEFAULT_SEQ_LEN,
    windows: int | None = None,
    skip: int = 0,
    against: LogitsSource | None = None,
    on_window: OnWindow | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Measure a model on consecutive, non-overlapping windows of a text.

    The text is tokenized once, the tail that fills no window is dropped, and each window predicts its tokens 2 to
    seq_len from those before them.

    Args:
        model: the model to measure.
        text: the whole text.
        seq_len: tokens per window.
        windows: how many windows at most; None takes all.
        skip: windows at the start of the text that are left out.
        against: the model (usually the dense one) that KL(against || model) and the agreement refer to.
        on_window: called as on_window(done, all) after each window.
        threads: that sum over the logits, one per usable core by default; the sums do not depend on it.

    Raises:
        AwpError: a text shorter than one window, two models whose tokenizers differ, logits that are not finite, a KL
            divergence that is not.

    Source: the WikiText-2 protocol of GPTQ, SparseGPT and Wanda (gptq/opt.py, wanda/lib/eval.py).
    """
    tokens = np.asarray(model.encode(text), dtype=np.int64)
    if against is not None:
        _check_same_tokens(model, against, tokens, text=text)
    cut = cut_windows(tokens, seq_len=seq_len, windows=windows, skip=skip)
    sums = np.zeros(4)
    with ThreadPoolExecutor(thread_count(threads)) as pool:
        for done, window in enumerate(cut, start=1):
            if against is None:
                sums += _window_sums(model, window, pool=pool)
            else:
                sums += _paired_sums(model, against, window, pool=pool)
            if on_window is not None:
                on_window(done, len(cut))
    return _summary(sums / (len(cut) * (seq_len - 1)), cut, compared=against is not None)


def cut_windows(tokens: Tokens, *, seq_len: int, windows: int | None = None, skip: int = 0) -> Tokens:
    """Return consecutive windows after the first `skip`, (n, seq_len); the tail that fills none is dropped.

    Raises:
        AwpError: too few tokens for one window, or a window that predicts nothing.
    """
    if seq_len < 2:
        raise AwpError(f"--seq-len {seq_len} leaves nothing to predict: give at least 2")
    n = len(tokens) // seq_len
    if n == 0:
        raise AwpError(
            f"the text has {len(tokens)} tokens and one window needs {seq_len}: "
            "give a longer text or a smaller --seq-len"
        )
    if skip >= n:
        raise AwpError(f"the text has {n} windows of {seq_len} tokens: there is none after the first {skip}")
    last = n if windows is None else min(n, skip + windows)
    return tokens[skip * seq_len : last * seq_len].reshape(last - skip, seq_len)


def log_softmax(logits: Logits) -> Logits:
    """Return log softmax along the last axis, float32; sums are taken in float64.

    Raises:
        AwpError: NaN or infinite logits.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    if not np.isfinite(total).all():
        raise AwpError("the model's logits are NaN or infinite: its weights are damaged or overflow")
    shifted -= np.log(total).astype(np.float32)
    return shifted


def _window_sums(model: LogitsSource, window: Tokens, *, pool: Executor) -> NDArray[np.float64]:
    """Return [nll, 0, 0, 0], summed over the window's predicted tokens."""

    def sums(targets: Tokens, logits: Logits) -> NDArray[np.float64]:
        return np.array([-_likelihood(log_softmax(logits), targets), 0.0, 0.0, 0.0])

    start, total = 0, np.zeros(4)
    for chunk in model.logits(window):
        targets = window[start + 1 : start + 1 + len(chunk)]
        total += sum(pool.map(sums, *_pieces(targets, chunk)))
        start += len(chunk)
    _check_length(start, window)
    return total


def _paired_sums(
    model: LogitsSource, against: LogitsSource, window: Tokens, *, pool: Executor
) -> NDArray[np.float64]:
    """Return [nll, nll of `against`, KL(against || model), agreements], summed over the window's predicted tokens."""

    def sums(targets: Tokens, logits: Logits, reference: Logits) -> NDArray[np.float64]:
        q, p = log_softmax(logits), log_softmax(reference)
        agreements = np.count_nonzero(q.argmax(axis=-1) == p.argmax(axis=-1))
        return np.array([-_likelihood(q, targets), -_likelihood(p, targets), _divergence(p, q), agreements])

    start, total = 0, np.zeros(4)
    for chunk, reference in _aligned(model.logits(window), against.logits(window)):
        targets = window[start + 1 : start + 1 + len(chunk)]
        total += sum(pool.map(sums, *_pieces(targets, chunk, reference)))
        start += len(chunk)
    _check_length(start, window)
    return total


def _pieces(targets: Tokens, *logits: Logits) -> tuple[list[NDArray[Any]], ...]:
    """Return equal cuts of the targets and of the logits that predict them."""
    parts: tuple[NDArray[Any], ...] = (targets, *logits)
    n, step = len(targets), TOKENS_AT_A_TIME
    return tuple([part[i : min(i + step, n)] for i in range(0, n, step)] for part in parts)


def _likelihood(log_probabilities: Logits, targets: Tokens) -> float:
    return float(log_probabilities[np.arange(len(targets)), targets].sum(dtype=np.float64))


def _divergence(p: Logits, q: Logits) -> float:
    """Return KL(p || q) of log probabilities, summed over tokens; where p is 0, a term is 0 whatever q is."""
    mass = np.exp(p)
    with np.errstate(invalid="ignore"):  # 0 (-inf) and inf - inf
        terms = mass * (p - q)
    terms[mass == 0] = 0
    return float(np.sum(terms, dtype=np.float64))


def _aligned(first: Iterator[Logits], second: Iterator[Logits]) -> Iterator[tuple[Logits, Logits]]:
    """Yield pieces of equal length of two streams that may be cut differently."""
    a = b = np.empty((0, 0), np.float32)
    while True:
        a = next(first, a) if len(a) == 0 else a
        b = next(second, b) if len(b) == 0 else b
        n = min(len(a), len(b))
        if n == 0:
            return
        yield a[:n], b[:n]
        a, b = a[n:], b[n:]


def _check_length(predicted: int, window: Tokens) -> None:
    if predicted != len(window):
        raise AwpError(
            f"the model gave logits for {predicted} of {len(window)} tokens: its context may be too short"
        )


def _check_same_tokens(model: LogitsSource, against: LogitsSource, tokens: Tokens, *, text: str) -> None:
    if model.vocab_size != against.vocab_size:
        raise AwpError(
            f"the two models have {model.vocab_size} and {against.vocab_size} tokens: "
            "--against needs the model this one was made from"
        )
    if not np.array_equal(tokens, np.asarray(against.encode(text), dtype=np.int64)):
        raise AwpError("the two folders tokenize the text differently: --against needs the original model")


def _summary(means: NDArray[np.float64], cut: Tokens, *, compared: bool) -> Evaluation:
    n, seq_len = cut.shape
    measured = Evaluation(_exp(means[0]), n, seq_len, n * (seq_len - 1))
    if not compared:
        return measured
    if not math.isfinite(means[2]):
        raise AwpError(
            f"KL from the other model is {means[2]}: the measured one gives probability 0 to tokens that the other "
            "expects; evaluate it without --against"
        )
    return Evaluation(
        **{
            **measured.as_dict(),
            "kl": max(0.0, float(means[2])),
            "top1_agreement": float(means[3]),
            "against_perplexity": _exp(means[1]),
        }
    )


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
