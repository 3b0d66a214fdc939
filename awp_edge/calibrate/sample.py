"""Let a model write its own calibration text: batched sampling with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..errors import AwpError
from ..models import ModelFolder
from .modules import whole_model
from .threads import torch_threads

# A token of each text a step leaves more threads waiting for each other in a small model; and a fixed number makes its
# text the same for every --threads.
_SMALL_PARAMETERS = 500_000_000
_SMALL_THREADS = 2

OnTokens = Callable[[int, int], None]


def sample_texts(
    folder: ModelFolder,
    *,
    count: int,
    length: int,
    seed: int = 0,
    given: NDArray[np.int32] | None = None,
    on_tokens: OnTokens | None = None,
) -> NDArray[np.int32]:
    """Sample text from a causal language model at temperature one, all texts side by side.

    Where nothing is given, a text starts with the first token that the model's config names as the beginning (else
    the end) of a text. Weights are kept in bfloat16 where the processor multiplies bfloat16, else in float32.

    Args:
        folder: the model.
        count, length: texts, and tokens in each.
        given: tokens that are not the model's, (count, length), -1 where it writes itself.
        seed: of a generator of its own; torch's global random state is not touched.
        on_tokens: called as on_tokens(done, length) from time to time.

    Returns: (count, length) tokens.

    Raises: AwpError where the model is not a causal language model, or has no such token.
    """
    model = _causal_model(folder)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((count, length), -1, dtype=torch.int64)
    if given is not None:
        n = model.get_input_embeddings().num_embeddings
        if int(given.max()) >= n:
            raise AwpError(
                f"{folder.path}: its tokenizer has tokens beyond the model's {n}; give its own tokenizer"
            )
        tokens[:] = torch.from_numpy(given)
    tokens[:, 0] = torch.where(tokens[:, 0] < 0, _start_token(model.config), tokens[:, 0])
    cache = _cache(model.config, length)
    masks = _open_masks(model.config, cache, length)
    small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL_PARAMETERS
    with torch_threads(_SMALL_THREADS if small else None), torch.inference_mode():
        for position in range(1, length):
            last = tokens[:, position - 1 : position]
            mask = None if masks is None else masks[..., :position]
            logits = model(input_ids=last, attention_mask=mask, past_key_values=cache, use_cache=True).logits
            logits = logits[:, -1].float()
            if not torch.isfinite(logits).all():
                raise AwpError(f"{folder.path}: the model's logits are NaN or infinite at token {position}")
            drawn, known = _draw(logits, generator), tokens[:, position]
            tokens[:, position] = torch.where(known < 0, drawn, known)
            if on_tokens is not None and position % 32 == 0:
                on_tokens(position, length)
    return tokens.numpy().astype(np.int32)


class _ReservedLayer(DynamicLayer):
    """Keys and values of one block, in memory reserved at once: concatenation would copy all at each token."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length, self._filled = length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._stores = [self._reserve(states) for states in (key_states, value_states)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new tokens and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self._filled + key_states.shape[-2]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., self._filled : stop, :] = states
        self._filled = stop
        self.keys, self.values = (store[..., :stop, :] for store in self._stores)
        return self.keys, self.values

    def _reserve(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_empty((*states.shape[:-2], self._length, states.shape[-1]))


def _cache(config: Any, length: int) -> Cache:
    """Return the model's kind of cache, full-attention layers with their memory reserved."""
    layers = DynamicCache(config=config).layers
    return Cache(
        layers=[_ReservedLayer(length) if type(layer) is DynamicLayer else layer for layer in layers]
    )


def _open_masks(config: Any, cache: Cache, length: int) -> torch.Tensor | None:
    """Return a mask (1, 1, 1, length) that hides nothing, for models whose query heads share keys; else None.

    With a mask, transformers folds the query heads that share a key into one product; torch's own kernel for shared
    keys took 275 ms a token in bfloat16 where the folded one took 55 (SmolLM2-135M, 16 rows, 600 tokens, one thread).
    """
    text = config.get_text_config()
    shared = getattr(text, "num_key_value_heads", None) not in (None, text.num_attention_heads)
    plain = all(isinstance(layer, _ReservedLayer) for layer in cache.layers)
    return torch.zeros((1, 1, 1, length), dtype=_fast_dtype()) if shared and plain else None


def _draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one token a row from softmax(logits) by inverting the distribution function."""
    reached = torch.softmax(logits, dim=-1).cumsum(dim=-1)
    target = torch.rand((len(logits), 1), generator=generator) * reached[:, -1:]
    return torch.searchsorted(reached, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def _causal_model(folder: ModelFolder) -> Any:
    model = whole_model(folder, dtype=_fast_dtype())
    if not model.can_generate():
        raise AwpError(
            f"{folder.architecture} cannot write its own calibration text; give --calibration FILE with text instead"
        )
    return model


def _fast_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _start_token(config: Any) -> int:
    text = config.get_text_config()
    named = [text.bos_token_id, text.eos_token_id]
    tokens = [token[0] if isinstance(token, list) else token for token in named if token is not None]
    return int(tokens[0]) if tokens else 0
