"""How the texts begin that a model writes for its own calibration.

A model left to itself keeps to a few kinds of text; chat models, to the beginnings of chats. Openings of many kinds
bring its text nearer to what it will be used on: on blocks of SmolLM2-135M pruned with `awp`, the error under C4's Gram
matrices fell a seventh of the way from that of text written from the start token to that of C4's own text. A lower
temperature made it worse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Most tokens of a text; a longer window holds several.
TEXT_TOKENS = 512
OPENINGS = (
    "The city council voted on Tuesday night to",
    "To make this soup you will need two onions,",
    "I bought this jacket last winter and",
    "Chapter One. The old house at the end of the road",
    "def read_table(path):",
    "A new study of more than two thousand patients has found that",
    "Our hotel is located in the heart of",
    "The match was over by half time, when",
    "Q: How do I remove a stain from",
    "Welcome to our website! We are a family business that",
    "In 1874 the railway reached the small town of",
    "Dear Sir or Madam, I am writing to",
    "The theorem follows at once from the lemma: let x be",
    "She is best known for her role in",
    "Please read these terms carefully before you",
    "Shares of the company fell by 4 percent on",
    "The beetle is found in the forests of",
    "Step 1: Turn off the power at the",
    "When I was a child, my grandmother used to",
    "The software is available for Windows and Mac, and",
    "According to the police, the driver of the",
    "Looking for a gift for someone who loves",
    "The river rises in the mountains north of",
    "We are looking for an experienced engineer to join",
    "God said to them, and the people",
    "This course introduces students to the principles of",
    "The album was recorded in a small studio in",
    "Last weekend we drove up to the coast and",
    "The Supreme Court ruled that",
    "How much should you pay for a used",
    "The purpose of this report is to",
    "Thanks for the reply. I tried that, but",
)


def text_shape(*, samples: int, seq_len: int) -> tuple[int, int]:
    """Return how many texts of how many tokens fill the windows, (samples, seq_len), up to a token of each text."""
    texts = -(-seq_len // TEXT_TOKENS)
    return samples * texts, -(-seq_len // texts)


def opened_texts(tokenizer: Any, *, samples: int, seq_len: int) -> NDArray[np.int32]:
    """Return the texts of the windows, shape text_shape(), with the tokens of their openings and -1 after them.

    An opening takes a quarter of its text at most. A text starts with the beginning-of-text token if the tokenizer
    starts texts so, else with a blank line where it follows another in its window, as documents are joined.
    """
    count, length = text_shape(samples=samples, seq_len=seq_len)
    texts = np.full((count, length), -1, dtype=np.int32)
    begins = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    for row in range(count):
        follows = row % (count // samples) > 0 and not begins
        opening = ("\n\n" if follows else "") + OPENINGS[row % len(OPENINGS)]
        tokens = tokenizer.encode(opening, add_special_tokens=False)
        tokens = ([tokenizer.bos_token_id, *tokens] if begins else tokens)[: max(1, length // 4)]
        texts[row, : len(tokens)] = tokens
    return texts


def joined(texts: NDArray[np.int32], *, samples: int, seq_len: int) -> NDArray[np.int32]:
    """Return the windows, (samples, seq_len), that written texts fill."""
    return np.ascontiguousarray(texts.reshape(samples, -1)[:, :seq_len])
