"""See how a model calls its blocks: run its own embedding, mask and position code with the blocks as shapes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..artifacts import LinearInfo
from ..errors import AwpError
from .modules import Skeleton, first_line


@dataclass(frozen=True)
class BlockCall:
    """Hold how a model calls one block: the arguments beside the hidden states, and those states' name if not first."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    hidden_name: str | None

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return a block's output for other hidden states of the same shape."""
        if self.hidden_name is not None:
            out = block(*self.args, **{**self.kwargs, self.hidden_name: hidden})
        else:
            out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def owned(self) -> BlockCall:
        """Return the same call with tensors that a backward pass may keep."""
        return BlockCall(_map(_owned, self.args), _map(_owned, dict(self.kwargs)), self.hidden_name)

    def same(self, other: BlockCall) -> bool:
        """Return whether the arguments are equal, entry by entry."""
        return _equal((self.args, dict(self.kwargs)), (other.args, dict(other.kwargs)))


@dataclass(frozen=True)
class Capture:
    """Hold what one run showed: the first block's input, each block's call, and who shares an input with whom.

    inputs: linear -> the first linear of its block that reads the same tensor objects, call by call; linears never
        called are absent.
    """

    hidden: torch.Tensor
    calls: tuple[BlockCall, ...]
    inputs: Mapping[str, str]


def capture(skeleton: Skeleton, outside: nn.Module, tokens: torch.Tensor) -> Capture:
    """Run the model on tokens (batch, length) with every block on the meta device: no block costs time or memory.

    `outside` comes from skeleton.outside(). A hook hands each block a copy of its input without data and puts the
    input back as its output, so the model's code goes through all of its calls.

    Raises: AwpError where the model wants more than token ids, or its blocks look at the values they compute with.
    """
    recorder = _Recorder()
    with torch.inference_mode(), _hooks(recorder, skeleton, outside):
        try:
            outside(input_ids=tokens)
        except (NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise AwpError(
                f"{skeleton.folder.architecture} cannot be run block by block: {first_line(error)}"
            ) from error
    if len(recorder.calls) != len(skeleton.stack):
        raise AwpError(
            f"{skeleton.folder.architecture} made {len(recorder.calls)} calls to the {len(skeleton.stack)} blocks of "
            f"{skeleton.stack_name}; every block has to be called once"
        )
    assert recorder.first is not None
    return Capture(recorder.first, tuple(recorder.calls), recorder.inputs)


def linear_infos(skeleton: Skeleton, inputs: Mapping[str, str]) -> tuple[tuple[LinearInfo, ...], ...]:
    """List the linears of every block that are called and not skipped.

    `input` is the first of these that reads the same tensor.
    """
    return tuple(_infos(skeleton, block, inputs) for block in range(len(skeleton.stack)))


def _infos(skeleton: Skeleton, block: int, inputs: Mapping[str, str]) -> tuple[LinearInfo, ...]:
    first: dict[str, str] = {}
    kept = [name for name in skeleton.linears[block] if name in inputs and name not in skeleton.skipped]
    return tuple(LinearInfo(n, first.setdefault(inputs[n], n), skeleton.shape(n)) for n in kept)


class _Recorder:
    """Collect calls while the hooks are in place."""

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None
        self.calls: list[BlockCall] = []
        self.inputs: dict[str, str] = {}
        self._hidden: torch.Tensor | None = None
        self._read: dict[str, list[torch.Tensor]] = {}

    def enter_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else next(key for key, value in kwargs.items() if isinstance(value, torch.Tensor))
        self._hidden = kwargs[name] if name else args[0]
        if self.first is None:
            self.first = self._hidden
        others = {key: value for key, value in kwargs.items() if key != name}
        self.calls.append(BlockCall(args[1:], others, name))
        return without_data(args), without_data(kwargs)

    def leave_block(self, block: nn.Module, args: Any, output: Any) -> Any:
        first: dict[tuple[int, ...], str] = {}
        for name, tensors in self._read.items():
            self.inputs[name] = first.setdefault(tuple(map(id, tensors)), name)
        self._read.clear()
        return (self._hidden, *output[1:]) if isinstance(output, tuple) else self._hidden

    def at_linear(self, name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, args: Any) -> None:
            # Tensors are kept until the block ends, so that no other can take an id over.
            self._read.setdefault(name, []).append(args[0])

        return note


@contextmanager
def _hooks(recorder: _Recorder, skeleton: Skeleton, outside: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for index, block in enumerate(skeleton.blocks_of(outside)):
            for name, path in skeleton.linears[index].items():
                handle = block.get_submodule(path).register_forward_pre_hook(recorder.at_linear(name))
                stack.callback(handle.remove)
            stack.callback(block.register_forward_pre_hook(recorder.enter_block, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(recorder.leave_block).remove)
        yield


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_map(function, item) for item in value)
    if isinstance(value, dict):
        return {key: _map(function, item) for key, item in value.items()}
    return function(value)


def without_data(value: Any) -> Any:
    """Return arguments with every tensor moved to the meta device."""
    return _map(lambda item: item.to("meta") if isinstance(item, torch.Tensor) else item, value)


def _owned(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a is b or a == b
