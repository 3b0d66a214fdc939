"""Run a Hugging Face or compressed folder in torch, for evaluation and for the check after an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..artifacts import CompressedModel, folder_kind
from ..errors import AwpError
from ..models import ModelFolder
from .modules import whole_model
from .threads import torch_threads
from .tokenizer import load_tokenizer

CHUNK_BYTES = 1 << 26


def load_model(path: str | Path) -> Any:
    """Return the torch model of a Hugging Face or compressed folder, an encoder's too, compressed layers dense.

    Memory: every parameter in float32.  Raises: AwpError for a folder that cannot be read.
    """
    return _model(_tensors(path))


class TorchModel:
    """A causal language model that turns tokens into logits in float32; compressed layers are put in place dense.

    Memory: every parameter in float32, and 64 MB of logits at a time.

    Raises: AwpError for a folder that cannot be read or is not a causal language model.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self._folder = _tensors(path)
        self._threads = threads
        self._model = _model(self._folder)
        self._head = self._model.get_output_embeddings()
        if self._head is None or not self._model.can_generate():
            raise AwpError(
                f"{path} holds {self._folder.architecture}, not a causal language model: it has no next-token logits"
            )
        self._plain_head = self._is_plain_head()
        self._tokenizer: Any = None

    @property
    def vocab_size(self) -> int:
        """Return the number of logits per token."""
        return int(self._head.weight.shape[0])

    @property
    def context_length(self) -> int | None:
        """Return the longest sequence the model takes, in tokens; None where its config names none."""
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return None if longest is None else int(longest)

    def encode(self, text: str) -> Sequence[int]:
        """Return the text's tokens, no special token added."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder.path)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return tokens

    def logits(self, window: NDArray[np.integer[Any]] | Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of a window's tokens in order, (chunk, vocab_size) float32.

        Raises: AwpError for more tokens than the context, which some models would take without a word.
        """
        if self.context_length is not None and len(window) > self.context_length:
            raise AwpError(f"{len(window)} tokens are more than the context of {self.context_length}")
        tokens = torch.from_numpy(np.asarray(window, dtype=np.int64))[None]
        chunk = max(1, CHUNK_BYTES // (4 * self.vocab_size))
        with torch_threads(self._threads), torch.inference_mode():
            hidden = self._hidden(tokens) if self._plain_head else None
            whole = self._model(input_ids=tokens).logits[0] if hidden is None else None
        for start in range(0, tokens.shape[1], chunk):
            with torch_threads(self._threads), torch.inference_mode():
                if hidden is not None:
                    part = self._head(hidden[start : start + chunk])
                else:
                    assert whole is not None
                    part = whole[start : start + chunk]
                yield part.numpy()

    def _hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, (length, d), of one window (1, length)."""
        hidden: torch.Tensor = self._model.base_model(input_ids=tokens)[0][0]
        return hidden

    def _is_plain_head(self) -> bool:
        """Return whether the logits are the head's product and nothing more (some models scale or cap them)."""
        tokens = torch.arange(4)[None]
        with torch_threads(self._threads), torch.inference_mode():
            plain = self._head(self._model.base_model(input_ids=tokens)[0])
            return bool(torch.allclose(plain, self._model(input_ids=tokens).logits, rtol=1e-5, atol=1e-5))


class ReferenceModel(TorchModel):
    """A model that others are compared with on the same windows, again and again: its hidden states are kept.

    Memory: 4 d bytes a token more, at most `keep_bytes`; windows beyond that are run again.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, keep_bytes: int = 1 << 30) -> None:
        super().__init__(path, threads=threads)
        self._room = keep_bytes
        self._kept: dict[bytes, torch.Tensor] = {}
        self._encoded: dict[str, Sequence[int]] = {}

    def encode(self, text: str) -> Sequence[int]:
        """Return the text's tokens, no special token added; a text is tokenized once."""
        if text not in self._encoded:
            self._encoded[text] = super().encode(text)
        return self._encoded[text]

    def _hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        key = tokens.numpy().tobytes()
        if key in self._kept:
            return self._kept[key]
        hidden = super()._hidden(tokens)
        if hidden.nbytes <= self._room:
            self._room -= hidden.nbytes
            self._kept[key] = hidden
        return hidden


def _tensors(path: str | Path) -> ModelFolder | _CompressedTensors:
    return _CompressedTensors(Path(path)) if folder_kind(path) == "compressed" else ModelFolder(path)


def _model(folder: ModelFolder | _CompressedTensors) -> Any:
    uniform = folder.layer_tensors if isinstance(folder, _CompressedTensors) else ()
    return whole_model(folder, uniform=uniform)


class _CompressedTensors:
    """A compressed folder seen as the tensors of a Hugging Face folder."""

    def __init__(self, path: Path) -> None:
        self._model = CompressedModel(path)
        self.path, self.config = path, self._model.config
        self.architecture = str(self._model.manifest["model"]["architecture"])
        self._layers = {tensor: name for name, tensor in self._model.tensors.items()}

    @property
    def layer_tensors(self) -> frozenset[str]:
        """Return the tensors that are compressed linears."""
        return frozenset(self._layers)

    def tensor_names(self) -> list[str]:
        """List every tensor, sorted."""
        return sorted([*self._layers, *self._model.rest_names()])

    def tensor(self, name: str, *, finite: bool = False) -> NDArray[Any]:
        """Return a tensor; a compressed linear's weight is (d_out, d_in)."""
        array = self._layer(name) if name in self._layers else self._model.rest(name).widened()
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise AwpError(f"{self.path}: {name} has NaN or infinite entries; the folder is damaged")
        return array

    def _layer(self, name: str) -> NDArray[np.float32]:
        return self._model.layer(self._layers[name]).dense()
