"""Stream a model block by block: Gram matrices of every linear input, hidden states on disk between the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..artifacts import Gram, LinearInfo, Sensitivity
from ..errors import AwpError
from ..models import ModelFolder
from ..options import BATCH_TOKENS
from .capture import BlockCall, Capture, capture, linear_infos
from .gram import GramAccumulator
from .hidden import HiddenReader, HiddenWriter, hidden_writer
from .modules import Skeleton
from .saved import sensitivity_name
from .sensitivity import DensePass, sensitivity
from .threads import torch_threads

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class StreamOptions:
    """Bundle how to stream.

    Args:
        one_shot: statistics of the dense model; otherwise of the blocks compressed so far.
        products: of the Gram matrices, "float32" or "bfloat16".
        skip: shell patterns of linears to leave alone.
        token_weights: of the Gram matrices, "uniform", "norm" or "loss".
        threads: of torch and of the native core; None leaves torch's setting and takes all cores.
    """

    one_shot: bool = False
    products: str = "float32"
    skip: tuple[str, ...] = ()
    threads: int | None = None
    token_weights: str = "uniform"


class BlockStream:
    """Give the statistics of one block after another, with one block in memory.

    Sequential: `statistics(i)` runs the dense block i, `advance(i, weights)` runs it again with the compressed
    weights. One-shot: `statistics(i)` makes the next block's inputs in the same pass. The inputs of block i are
    `hidden-i.f32` in the state folder; those of i - 1 are deleted once statistics(i) is asked for, so a process that
    is killed at any moment finds the inputs of the block it has to do again, and gets the same bits from them.

    Args:
        folder: the model.
        tokens: (n, length) integers, one window a row.
        state: a folder that exists.
        calibration: where the tokens come from, plain JSON values, for the manifest.

    Raises: AwpError for models that cannot be streamed and damaged checkpoints.
    """

    def __init__(
        self, folder: ModelFolder, tokens: NDArray[np.integer[Any]], state: Path, *,
        options: StreamOptions | None = None, calibration: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._options = options or StreamOptions()
        self.calibration: Mapping[str, Any] = dict(calibration or {})
        self._skeleton = Skeleton(folder, skip=self._options.skip)
        self.n_blocks = len(self._skeleton.stack)
        self.n_tokens = int(tokens.size)
        self._tokens, self._state = _checked(tokens, self._skeleton), Path(state)
        self._batch = max(1, BATCH_TOKENS // tokens.shape[1])
        self._alive: tuple[int, nn.Module] | None = None

    def linears(self, block: int) -> Sequence[LinearInfo]:
        """List the linears of a block that are not skipped, in the order of the module tree."""
        return self._infos[block]

    def weight(self, name: str) -> NDArray[np.float32]:
        """Read a linear's weight, (d_out, d_in) float32. Raises: AwpError for NaN or infinite entries."""
        return self._skeleton.weight(name)

    def is_transposed(self, name: str) -> bool:
        """Return whether the model keeps a linear's weight as (d_in, d_out)."""
        return self._skeleton.is_transposed(name)

    def statistics(self, block: int) -> Mapping[str, Gram]:
        """Return C of every distinct input of a block, by the name of the first linear that reads it.

        Raises: AwpError naming the linear or block where activations are NaN or infinite.
        """
        self._drop_all_but(block)
        module = self._skeleton.block(block)
        self._alive = (block, module)
        widths = {info.input: info.shape[1] for info in self._infos[block]}
        options = self._options
        felt = self.sensitivity(block).tokens if options.token_weights == "loss" else None
        grams = {
            name: GramAccumulator(
                name,
                width,
                products=options.products,
                token_weights=options.token_weights if felt is None else self._token_weights(felt[name]),
                threads=options.threads,
            )
            for name, width in widths.items()
        }
        paths = self._skeleton.linears[block]
        with _inputs_to({module.get_submodule(paths[name]): grams[name].add for name in grams}):
            self._pass(block, module, write=options.one_shot)
        return {name: gram.result() for name, gram in grams.items()}

    def sensitivity(self, block: int) -> Sensitivity:
        """Return how much the dense model's loss minds errors in a block. Raises: as `sensitivity.sensitivity`."""
        tokens, state = self._tokens, self._state
        run = DensePass(
            self._skeleton,
            tokens,
            batch=self._batch,
            first=self._first,
            infos=self._infos,
            state=state,
            threads=self._options.threads,
        )
        return sensitivity(run, block)

    @property
    def has_sensitivity(self) -> bool:
        """Return whether loss gradients were taken."""
        return (self._state / sensitivity_name(0)).is_file()

    def _token_weights(self, shares: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weights of all tokens, of whose total half follows the gradient norms of the first ones.

        Norms, not squares: with the squares a few tokens, the attention sink first of all, make C nearly singular.
        """
        weights = np.ones(self.n_tokens, dtype=np.float32)
        weights[: len(shares)] += shares * (self.n_tokens / len(shares))
        return weights

    def advance(self, block: int, weights: Weights) -> None:
        """Write the next block's inputs: sequential ones with the compressed weights in place."""
        if block + 1 < self.n_blocks and not (self._options.one_shot and self._path(block + 1).exists()):
            self._pass(block, self._module(block, {} if self._options.one_shot else weights), write=True)
        self._alive = None

    def _module(self, block: int, weights: Weights) -> nn.Module:
        """Return the block that statistics used, with weights replaced."""
        if self._alive is None or self._alive[0] != block:
            return self._skeleton.block(block, weights)
        module = self._alive[1]
        for name, weight in weights.items():
            linear = module.get_submodule(self._skeleton.linears[block][name])
            stored = self._skeleton.as_stored(name, weight)
            linear.load_state_dict({"weight": stored}, strict=False, assign=True)
        return module.requires_grad_(False)

    def _pass(self, block: int, module: nn.Module, *, write: bool) -> None:
        """Run every window through a block; write the outputs unless it is the last one."""
        with ExitStack() as stack:
            stack.enter_context(torch_threads(self._options.threads))
            stack.enter_context(torch.inference_mode())
            batches = self._inputs(block)
            writer: HiddenWriter | None = None
            if write and block + 1 < self.n_blocks:
                writer = stack.enter_context(hidden_writer(self._path(block + 1)))
            for hidden in batches:
                out = self._call(block, hidden.shape[0]).run(module, hidden)
                if not torch.isfinite(out.sum()):
                    name = f"{self._skeleton.stack_name}.{block}"
                    raise AwpError(f"{name}: its output has NaN or infinite entries; check its weights")
                if writer is not None:
                    writer.write(out)

    def _inputs(self, block: int) -> Iterator[torch.Tensor]:
        if block == 0 and not self._path(0).exists():
            self._embed()
        reader = HiddenReader(self._path(block), self._shape)
        return reader.batches(self._batch)

    def _embed(self) -> None:
        """Write the first block's inputs, made by the model's own code.

        Raises: AwpError where the model calls its blocks in a way that depends on the text.
        """
        outside = self._skeleton.outside()
        with hidden_writer(self._path(0)) as writer:
            for start in range(0, len(self._tokens), self._batch):
                seen = capture(self._skeleton, outside, self._tokens[start : start + self._batch])
                expected = self._call(0, seen.hidden.shape[0])
                if not seen.calls[0].same(expected):
                    raise AwpError(
                        f"{self._skeleton.folder.architecture} hands its blocks inputs that depend on the text; "
                        "it cannot be streamed block by block"
                    )
                writer.write(seen.hidden)

    def _call(self, block: int, batch: int) -> BlockCall:
        return (self._first if batch == self._batch else self._remainder).calls[block]

    @cached_property
    def _first(self) -> Capture:
        """Capture a first batch; its calls serve every batch of this size."""
        with torch_threads(self._options.threads):
            return capture(self._skeleton, self._skeleton.outside(), self._tokens[: self._batch])

    @cached_property
    def _remainder(self) -> Capture:
        size = len(self._tokens) % self._batch
        return capture(self._skeleton, self._skeleton.outside(), self._tokens[:size])

    @cached_property
    def _infos(self) -> tuple[tuple[LinearInfo, ...], ...]:
        return linear_infos(self._skeleton, self._first.inputs)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (*self._tokens.shape, self._first.hidden.shape[-1])  # type: ignore[return-value]

    def _path(self, block: int) -> Path:
        return self._state / f"hidden-{block:03d}.f32"

    def _drop_all_but(self, block: int) -> None:
        for path in self._state.glob("hidden-*"):
            if path != self._path(block):
                path.unlink()


@contextmanager
def _inputs_to(listeners: Mapping[nn.Module, Callable[[torch.Tensor], None]]) -> Iterator[None]:
    """Hand the input of each module to its listener while the block runs."""
    with ExitStack() as stack:
        for module, listener in listeners.items():
            hook = module.register_forward_pre_hook(lambda _, args, listen=listener: listen(args[0]))
            stack.callback(hook.remove)
        yield


def _checked(tokens: NDArray[np.integer[Any]], skeleton: Skeleton) -> torch.Tensor:
    if tokens.ndim != 2 or not tokens.size:
        raise AwpError(f"calibration tokens need shape (windows, length), got {tokens.shape}")
    vocab = int(skeleton.model.config.get_text_config().vocab_size)
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise AwpError(
            f"the tokenizer gave token {int(tokens.max())}, but the model has {vocab}; they do not belong together"
        )
    return torch.from_numpy(np.asarray(tokens, dtype=np.int64))
