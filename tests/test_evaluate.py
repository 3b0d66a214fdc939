"""Perplexity, KL and agreement against plain formulas, on logits we choose."""

from dataclasses import dataclass

import numpy as np
import pytest

from awp_edge.errors import AwpError
from awp_edge.evaluate import cut_windows, evaluate, log_softmax

VOCAB = 32


@dataclass(frozen=True)
class Bigram:
    """A model whose logits depend on the last token only: `table[token]`."""

    table: np.ndarray
    chunk: int = 7
    shift: int = 0

    @property
    def vocab_size(self):
        return self.table.shape[1]

    def encode(self, text):
        return [(ord(c) + self.shift) % self.vocab_size for c in text]

    def logits(self, window):
        for start in range(0, len(window), self.chunk):
            yield self.table[window[start : start + self.chunk]].astype(np.float32)


def bigram(seed, **options):
    return Bigram(3 * np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)), **options)


TEXT = "the quick brown fox jumps over the lazy dog " * 5


def oracle(model, against, *, seq_len, windows):
    """The definitions in float64, without chunks."""
    ids = np.array(model.encode(TEXT))
    nll, kl, same = [], [], []
    for start in range(0, windows * seq_len, seq_len):
        window = ids[start : start + seq_len]
        p, q = (np.exp(t[window[:-1]]) for t in (against.table, model.table))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        nll.extend(-np.log(q[np.arange(seq_len - 1), window[1:]]))
        kl.extend((p * np.log(p / q)).sum(1))
        same.extend(p.argmax(1) == q.argmax(1))
    return np.exp(np.mean(nll)), np.mean(kl), np.mean(same)


@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
def test_measures_match_their_definitions_however_the_logits_are_cut(chunk):
    model, dense = bigram(0, chunk=chunk), bigram(1, chunk=5)
    measured = evaluate(model, TEXT, seq_len=32, windows=3, against=dense)
    perplexity, kl, agreement = oracle(model, dense, seq_len=32, windows=3)
    assert measured.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert measured.kl == pytest.approx(kl, rel=1e-4)
    assert measured.top1_agreement == pytest.approx(agreement)
    assert (measured.windows, measured.seq_len, measured.tokens) == (3, 32, 93)
    alone = evaluate(model, TEXT, seq_len=32, windows=3)
    assert alone.perplexity == pytest.approx(measured.perplexity, rel=1e-12)
    assert alone.kl is None and alone.top1_agreement is None


def test_sums_do_not_depend_on_the_threads():
    one, three = (
        evaluate(bigram(0, chunk=31), TEXT, seq_len=64, against=bigram(1, chunk=29), threads=threads)
        for threads in (1, 3)
    )
    assert one == three


def test_a_model_agrees_with_itself():
    measured = evaluate(bigram(0), TEXT, seq_len=16, against=bigram(0))
    assert (measured.kl, measured.top1_agreement) == (0.0, 1.0)
    assert measured.perplexity == measured.against_perplexity


def test_tokens_of_probability_zero_count_where_the_other_model_expects_them():
    never, hardly = ([bigram(seed).table for seed in (0, 1)] for _ in range(2))
    for rows, logit in ((never, -np.inf), (hardly, -60)):
        for table in rows:
            table[:, -1] = logit  # of a token that the text does not have
    measured = evaluate(Bigram(never[0]), TEXT, seq_len=32, against=Bigram(never[1]))
    expected = evaluate(Bigram(hardly[0]), TEXT, seq_len=32, against=Bigram(hardly[1]))
    assert (measured.kl, measured.perplexity) == pytest.approx((expected.kl, expected.perplexity))
    assert np.isfinite(evaluate(bigram(0), TEXT, seq_len=32, against=Bigram(never[1])).kl)
    with pytest.raises(
        AwpError, match="KL from the other model is inf: the measured one gives probability 0"
    ):
        evaluate(Bigram(never[0]), TEXT, seq_len=32, against=bigram(1))


def test_uniform_logits_have_the_vocabulary_as_perplexity():
    assert evaluate(Bigram(np.zeros((VOCAB, VOCAB))), TEXT, seq_len=16).perplexity == pytest.approx(VOCAB)


def test_the_tail_is_dropped_and_the_first_windows_are_taken():
    tokens = np.arange(23)
    np.testing.assert_array_equal(cut_windows(tokens, seq_len=5), np.arange(20).reshape(4, 5))
    np.testing.assert_array_equal(cut_windows(tokens, seq_len=5, windows=2), np.arange(10).reshape(2, 5))


def test_large_logits_neither_overflow_nor_lose_the_rest():
    out = log_softmax(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))
    np.testing.assert_allclose(out[0, :2], [-np.log1p(np.exp(-1)), -1 - np.log1p(np.exp(-1))], rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "against", "seq_len", "message"),
    [
        (bigram(0), None, 10_000, "220 tokens and one window needs 10000"),
        (bigram(0), None, 1, "leaves nothing to predict"),
        (bigram(0), Bigram(np.zeros((VOCAB, VOCAB + 1))), 16, "32 and 33 tokens"),
        (bigram(0), bigram(0, shift=1), 16, "tokenize the text differently"),
        (Bigram(np.full((VOCAB, VOCAB), np.nan)), None, 16, "NaN or infinite"),
    ],
)
def test_refusals(model, against, seq_len, message):
    with pytest.raises(AwpError, match=message):
        evaluate(model, TEXT, seq_len=seq_len, against=against)


def test_a_model_that_answers_too_little_is_refused():
    @dataclass(frozen=True)
    class Short(Bigram):
        def logits(self, window):
            yield next(super().logits(window))

    with pytest.raises(AwpError, match="7 of 16 tokens"):
        evaluate(Short(np.zeros((VOCAB, VOCAB))), TEXT, seq_len=16)
