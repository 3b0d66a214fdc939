"""Open an edge folder: logits through ONNX Runtime, text and timings through onnxruntime-genai. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AwpError
from ..storage import read_json
from .manifest import CONFIG_FILE, read_manifest

CHUNK = 256
_CONFIG_KEYS = ("context_length", "vocab_size", "decoder")
_SESSION_INPUTS = ("input_ids", "attention_mask", "position_ids")


def usable_cores() -> int:
    """Return the number of processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EdgeModel:
    """Run an exported folder.

    Args:
        folder: what `awp-edge export` wrote.
        threads: intra-op threads of ONNX Runtime; the cores this process may use by default.

    Raises:
        AwpError: no edge folder, another schema version, or files missing or cut short.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.threads = usable_cores() if threads is None else threads
        if self.threads < 1:
            raise AwpError(f"threads must be at least 1, got {self.threads}")
        if not self.folder.is_dir():
            raise AwpError(f"{self.folder} is not a folder; give a folder that awp-edge export made")
        self.manifest = read_manifest(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return genai_config.json. Raises: AwpError where it is damaged."""
        path = self.folder / CONFIG_FILE
        found = read_json(path)
        model = found.get("model") if isinstance(found, dict) else None
        missing = [key for key in _CONFIG_KEYS if not isinstance(model, dict) or key not in model]
        if missing:
            raise AwpError(f"{path} lacks model.{missing[0]}; restore it or export the model again")
        return dict(found)

    @property
    def context_length(self) -> int:
        """Return the longest sequence the model takes, in tokens."""
        return int(self.config["model"]["context_length"])

    @property
    def vocab_size(self) -> int:
        """Return the number of logits of a position."""
        return int(self.config["model"]["vocab_size"])

    @property
    def n_bytes(self) -> int:
        """Return the size of all files in the folder."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the text's token ids without special tokens, by the folder's own tokenizer."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self._tokenizer.decode([int(token) for token in tokens]))

    def logits(
        self, window: Sequence[int] | NDArray[np.integer], *, chunk: int = CHUNK
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of a window of tokens, (chunk, vocabulary) float32 at a time, from an empty past.

        Raises:
            AwpError: more tokens than the context, or a token outside the vocabulary.
        """
        tokens = np.asarray(window, dtype=np.int64)
        if len(tokens) > self.context_length:
            raise AwpError(f"{len(tokens)} tokens are more than the context of {self.context_length}")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise AwpError(f"token {int(tokens.max())} is outside the vocabulary of {self.vocab_size}")
        past = self._empty_past()
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            outputs = self._step(part, start, past)
            yield outputs.pop("logits")[0]
            past = {name.replace("present", "past_key_values", 1): value for name, value in outputs.items()}

    def generate(self, prompt: str, *, max_tokens: int = 64, chat: bool = False) -> str:
        """Continue a prompt greedily and return the new text.

        Args:
            prompt: plain text, or the user's message where `chat` is set.
            max_tokens: new tokens at most.
            chat: put the prompt into the folder's chat template, which has the special tokens it wants.

        Raises:
            AwpError: an empty prompt, or one that leaves no room in the context.
        """
        context = self.context_length
        tokens = list(self.encode(_chat(self._genai_tokenizer, prompt))) if chat else self._opened(prompt)
        room = min(max_tokens, context - len(tokens))
        if not len(tokens) or room < 1:
            raise AwpError(f"the prompt has {len(tokens)} tokens and the context {context}; "
                           "give at least one token and leave room for one more")  # fmt: skip
        try:
            generator = self._generator(len(tokens) + room)
            generator.append_tokens(tokens)
            while not generator.is_done():
                generator.generate_next_token()
        except AwpError:
            raise
        except Exception as error:
            raise AwpError(f"onnxruntime-genai cannot run {self.folder}: {_first_line(error)}") from None
        # onnxruntime-genai's tokenizer ends a text at the first byte that is not UTF-8.
        sequence, shown = generator.get_sequence(0), self.decode(tokens)
        whole = self.decode(sequence)
        return whole[len(shown) :] if whole.startswith(shown) else self.decode(sequence[len(tokens) :])

    def bench(self, *, prompt_tokens: int = 128, tokens: int = 64, repeats: int = 3) -> dict[str, Any]:
        """Measure prefill, decode, time to first token and memory in a process of its own, see `measure`."""
        from .measure import measure

        return measure([self], prompt_tokens=prompt_tokens, tokens=tokens, repeats=repeats)[0]

    def _opened(self, text: str) -> list[int]:
        """Return the tokens of a text to continue: with the special ones before it (BOS), not those behind (EOS)."""
        found = self._tokenizer.encode(text)
        end = max((i + 1 for i, added in enumerate(found.special_tokens_mask) if not added), default=0)
        return list(found.ids[:end])

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise AwpError(f"{self.folder} has no tokenizer.json; export the model again with its tokenizer")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise AwpError(f"{path} is damaged: {_first_line(error)}; copy it again") from None
        # Some models store these for training: a whole text would be cut after a few tokens.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        decoder = self.config["model"]["decoder"]
        path, library = (
            self.folder / decoder["filename"],
            decoder["session_options"].get("custom_ops_library"),
        )
        try:
            if library:
                options.register_custom_ops_library(str((self.folder / library).resolve()))
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise AwpError(f"ONNX Runtime cannot open {path}: {_first_line(error)}") from None

    def _empty_past(self) -> dict[str, NDArray[np.float32]]:
        decoder = self.config["model"]["decoder"]
        shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        names = [value.name for value in self._session.get_inputs() if value.name not in _SESSION_INPUTS]
        return {name: np.zeros(shape, dtype=np.float32) for name in names}

    def _step(
        self, tokens: NDArray[np.int64], start: int, past: dict[str, NDArray[np.float32]]
    ) -> dict[str, Any]:
        stop = start + len(tokens)
        feeds = {"input_ids": tokens[None], "attention_mask": np.ones((1, stop), dtype=np.int64),
                 "position_ids": np.arange(start, stop, dtype=np.int64)[None]}  # fmt: skip
        wanted = {value.name for value in self._session.get_inputs()}
        names = [value.name for value in self._session.get_outputs()]
        inputs = {**{name: value for name, value in feeds.items() if name in wanted}, **past}
        try:
            outputs = self._session.run(names, inputs)
        except Exception as error:
            raise AwpError(f"ONNX Runtime cannot run {self.folder}: {_first_line(error)}") from None
        return dict(zip(names, outputs, strict=True))

    @property
    def _genai(self) -> Any:
        try:
            import onnxruntime_genai
        except ImportError:
            raise AwpError("onnxruntime-genai is not installed; pip install 'awp-edge[run]'") from None
        return onnxruntime_genai

    @cached_property
    def _genai_model(self) -> Any:
        return open_genai(self.folder, threads=self.threads)

    @cached_property
    def _genai_tokenizer(self) -> Any:
        genai, model = self._genai, self._genai_model
        try:
            return genai.Tokenizer(model)
        except Exception as error:
            raise AwpError(
                f"onnxruntime-genai cannot use the tokenizer of {self.folder}: {_first_line(error)}"
            ) from None

    def _generator(self, max_length: int) -> Any:
        parameters = self._genai.GeneratorParams(self._genai_model)
        parameters.set_search_options(max_length=max_length, do_sample=False)
        return self._genai.Generator(self._genai_model, parameters)


def open_genai(folder: Path, *, threads: int) -> Any:
    """Open a folder in onnxruntime-genai with a number of threads; its own default is one."""
    import onnxruntime_genai

    options = {"intra_op_num_threads": threads}
    try:
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        return onnxruntime_genai.Model(config)
    except Exception as error:
        raise AwpError(f"onnxruntime-genai cannot open {folder}: {_first_line(error)}") from None


def _chat(tokenizer: Any, prompt: str) -> str:
    messages = json.dumps([{"role": "user", "content": prompt}])
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    except Exception as error:
        raise AwpError(
            f"the folder's chat template cannot be used: {_first_line(error)}; leave out --chat"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:300]
