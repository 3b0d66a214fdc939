"""What the loss makes of a linear's output: one pass of the dense model forward, one backward, block by block.

The loss is next-token cross-entropy, summed over tokens. To second order, an error dy_t in a linear's output costs
1/2 sum_t sum_i g_ti^2 dy_ti^2, where g is the loss gradient at that output and the cross terms of the (empirical)
Fisher matrix are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..artifacts import LinearInfo, Sensitivity
from ..errors import AwpError, UsageError
from ..options import GRADIENT_TOKENS, HEAD_TOKENS
from ..storage import TensorFile, write_tensors
from .capture import Capture, capture, without_data
from .gram import GramAccumulator
from .hidden import HiddenReader, hidden_writer
from .modules import Skeleton
from .saved import read_sensitivity, sensitivity_name, write_sensitivity
from .threads import torch_threads


@dataclass(frozen=True)
class DensePass:
    """Bundle what the pass runs on.

    Args:
        skeleton: the model.
        tokens: (windows, length) int64.
        batch: windows at a time.
        first: what a batch of this size showed: how the model calls its blocks.
        infos: the linears of every block.
        state: a folder for hidden states and results.
        threads: of torch.
    """

    skeleton: Skeleton
    tokens: torch.Tensor
    batch: int
    first: Capture
    infos: Sequence[Sequence[LinearInfo]]
    state: Path
    threads: int | None = None

    def windows(self) -> torch.Tensor:
        """Return the windows to run: whole batches of the first ones, at most 32768 tokens (one batch at least)."""
        batches = max(1, min(len(self.tokens), GRADIENT_TOKENS // self.tokens.shape[1]) // self.batch)
        return self.tokens[: batches * self.batch]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of the hidden states of these windows."""
        return (len(self.windows()), self.tokens.shape[1], self.first.hidden.shape[-1])


def sensitivity(run: DensePass, block: int) -> Sensitivity:
    """Return a block's sensitivity, computed for all blocks when the first is asked for.

    Cost: about three forward passes over at most 32768 tokens. Disk: the hidden states of every block while it runs.

    Raises: UsageError for a model without next-token loss, AwpError where its gradients are NaN or infinite.
    """
    first, path = run.state / sensitivity_name(0), run.state / sensitivity_name(block)
    if not first.is_file():  # the backward pass ends with block 0
        _require_loss(run.skeleton)
        with torch_threads(run.threads):
            _embed(run)
            _forward(run)
            _from_loss(run)
            _backward(run)
    return read_sensitivity(path)


def _require_loss(skeleton: Skeleton) -> None:
    if skeleton.model.get_output_embeddings() is None or not skeleton.model.can_generate():
        raise UsageError(
            f"{skeleton.folder.architecture} has no next-token loss; "
            "--allocate and --token-weights loss need a causal language model"
        )


def _embed(run: DensePass) -> None:
    """Write the first block's inputs."""
    outside = run.skeleton.outside()
    with hidden_writer(_hidden(run.state, 0)) as writer:
        for tokens in run.windows().split(run.batch):
            writer.write(capture(run.skeleton, outside, tokens).hidden)


def _forward(run: DensePass) -> None:
    """Write the other blocks' inputs and, beside them, the Gram matrices of all linears."""
    for block in range(len(run.infos)):
        module = run.skeleton.block(block)
        grams = {
            info.input: GramAccumulator(info.input, info.shape[1], threads=run.threads)
            for info in run.infos[block]
        }
        with (
            torch.inference_mode(),
            hidden_writer(_hidden(run.state, block + 1)) as writer,
            ExitStack() as stack,
        ):
            for name, gram in grams.items():
                linear = module.get_submodule(run.skeleton.linears[block][name])
                stack.callback(linear.register_forward_pre_hook(_listen(gram)).remove)
            for hidden in _inputs(run, block):
                writer.write(run.first.calls[block].run(module, hidden))
        write_tensors(
            _forward_result(run.state, block), {name: gram.result().matrix for name, gram in grams.items()}
        )


def _from_loss(run: DensePass) -> None:
    """Write the gradient at the last block's output."""
    last, head = len(run.infos), _Head(run.skeleton)
    with hidden_writer(_gradient(run.state, last)) as writer:
        for tokens, hidden in zip(run.windows().split(run.batch), _inputs(run, last), strict=True):
            writer.write(head.gradient(hidden, tokens))


def _backward(run: DensePass) -> None:
    """Write, from the last block to the first, what the gradients at the linears' outputs say."""
    for block in reversed(range(len(run.infos))):
        module, listener = run.skeleton.block(block), _Gradients()
        call = run.first.calls[block].owned()
        with (
            hidden_writer(_gradient(run.state, block)) as writer,
            listener.on(module, run.skeleton.linears[block]),
        ):
            gradients = HiddenReader(_gradient(run.state, block + 1), run.shape).batches(run.batch)
            for hidden, gradient in zip(_inputs(run, block), gradients, strict=True):
                hidden.requires_grad_()
                call.run(module, hidden).backward(gradient)
                assert hidden.grad is not None
                writer.write(hidden.grad)
        _save(run, block, listener)
        for path in (
            _hidden(run.state, block + 1),
            _gradient(run.state, block + 1),
            _forward_result(run.state, block),
        ):
            path.unlink()
    for path in (_hidden(run.state, 0), _gradient(run.state, 0)):
        path.unlink()


def _save(run: DensePass, block: int, listener: _Gradients) -> None:
    infos, file = run.infos[block], TensorFile(_forward_result(run.state, block))
    rows = {info.name: listener.rows(info.name) for info in infos}
    bad = next((name for name, squares in rows.items() if not np.isfinite(squares).all()), None)
    if bad is not None:
        raise AwpError(f"{bad}: the loss gradient at its output is NaN or infinite; check the weights")
    readers = {info.input: [other.name for other in infos if other.input == info.input] for info in infos}
    tokens = {name: listener.tokens(names) for name, names in readers.items()}
    grams = {name: file.tensor(name) for name in file.names()}
    write_sensitivity(run.state / sensitivity_name(block), Sensitivity(grams, rows, tokens))


class _Gradients:
    """Collect the squares of the gradients at the outputs of a block's linears."""

    def __init__(self) -> None:
        self._rows: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, list[torch.Tensor]] = {}
        self._shapes: dict[str, tuple[int, int]] = {}  # tokens and outputs seen on the way forward

    @contextmanager
    def on(self, module: nn.Module, linears: Mapping[str, str]) -> Iterator[None]:
        """Listen while the block runs forward and backward."""
        with ExitStack() as stack:
            for name, path in linears.items():
                stack.callback(module.get_submodule(path).register_forward_hook(self._at_output(name)).remove)
            yield

    def rows(self, name: str) -> Any:
        """Return E[g_i^2] per token, (d_out,) float32."""
        n_tokens, d_out = self._shapes[name]
        squares = self._rows.get(name, torch.zeros(d_out))
        return (squares / n_tokens).numpy().astype(np.float32)

    def tokens(self, names: Sequence[str]) -> Any:
        """Return the mean over some linears of ||g_t|| / mean ||g||, (tokens,) float32."""
        norms = [
            torch.cat(self._tokens[name]) if name in self._tokens else torch.zeros(self._shapes[name][0])
            for name in names
        ]
        shares = [norm / norm.mean() if norm.any() else torch.ones_like(norm) for norm in norms]
        return torch.stack(shares).mean(dim=0).numpy().astype(np.float32)

    def _at_output(self, name: str) -> Any:
        def forward(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            tokens, d_out = self._shapes.get(name, (0, output.shape[-1]))
            self._shapes[name] = tokens + output.numel() // d_out, d_out
            if output.requires_grad:  # one that the hidden states do not reach has no gradient
                output.register_hook(lambda gradient: self._add(name, gradient))

        return forward

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        squares = gradient.reshape(-1, gradient.shape[-1]).square().double()
        self._rows[name] = self._rows.get(name, torch.zeros(())) + squares.sum(dim=0)
        self._tokens.setdefault(name, []).append(squares.sum(dim=1).sqrt())


class _Head:
    """The model behind its last block, by its own code: final norm, head and whatever it does to the logits."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._model = skeleton.around()
        self._hidden: torch.Tensor | None = None
        for block in self._model.get_submodule(skeleton.stack_name):
            block.register_forward_pre_hook(
                lambda _, args, kwargs: (without_data(args), without_data(kwargs)), with_kwargs=True
            )
            block.register_forward_hook(self._leave)

    def gradient(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return d loss / d hidden, (windows, length, d); the head runs on some tokens at a time."""
        parts = []
        following = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
        step = max(1, HEAD_TOKENS // len(tokens))
        for start in range(0, tokens.shape[1], step):
            part = slice(start, start + step)
            self._hidden = hidden[:, part].clone().requires_grad_()
            logits = self._model(input_ids=tokens[:, part]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), following[:, part].flatten(), reduction="sum", ignore_index=-100
            )
            loss.backward()
            assert self._hidden.grad is not None
            parts.append(self._hidden.grad)
        return torch.cat(parts, dim=1)

    def _leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        return (self._hidden, *output[1:]) if isinstance(output, tuple) else self._hidden


def _listen(gram: GramAccumulator) -> Any:
    return lambda module, args: gram.add(args[0])


def _inputs(run: DensePass, block: int) -> Iterator[torch.Tensor]:
    return HiddenReader(_hidden(run.state, block), run.shape).batches(run.batch)


def _hidden(state: Path, block: int) -> Path:
    return state / f"dense-{block:03d}.f32"


def _gradient(state: Path, block: int) -> Path:
    return state / f"gradient-{block:03d}.f32"


def _forward_result(state: Path, block: int) -> Path:
    return state / f"dense-gram-{block:03d}.safetensors"
