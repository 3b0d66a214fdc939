"""Find the block stack and its linears through the module tree, and bring parts of a model to life one at a time."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import AwpError
from ..models import ModelFolder
from .names import skipped_names

TRANSPOSED_CLASS = "Conv1D"
"""The class of GPT-2's linears, which keep their weight as (d_in, d_out)."""

# Parameters that files hold under another name than the class gives them (GPT-NeoX).
_OTHER_NAMES = MappingProxyType({"lm_head.weight": "embed_out.weight"})
# What normalization layers' parameters were called in old files (BERT).
_OLD_ENDINGS = MappingProxyType({"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})

Weights = Mapping[str, NDArray[Any]]


class Skeleton:
    """A model on the meta device (shapes, no weights) and the folder that its weights are read from.

    `stack_name` is the longest ModuleList of one class whose members hold linears, of the text model where there are
    others; `linears[i]` maps the linears of block i to their paths inside the block, in the order of the module tree. A
    linear is named by its tensor in the folder, without ".weight".

    Raises: AwpError for an unknown architecture, an encoder-decoder, no block stack of linears, or weights that do
    not fit the config; UsageError for a `skip` pattern that matches no linear.
    """

    def __init__(self, folder: ModelFolder, *, skip: Sequence[str] = ()) -> None:
        self.folder = folder
        self.model = meta_model(folder)
        self._tensors = frozenset(folder.tensor_names())
        self._transposed: set[str] = set()
        self.stack_name, self.stack = _find_stack(self.model)
        self._base_path = _path_of(self.model, self.model.base_model)
        self.linears = tuple(self._linears_of(i) for i in range(len(self.stack)))
        self.skipped = skipped_names([name for block in self.linears for name in block], skip)

    def key(self, name: str) -> str:
        """Return the tensor that holds a parameter. Raises: AwpError where there is none."""
        found = find_key(self._tensors, name, self.model.base_model_prefix)
        if found is None:
            raise AwpError(f"{self.folder.path}: no tensor {name}; the weights do not fit config.json")
        return found

    def is_transposed(self, name: str) -> bool:
        """Return whether a linear keeps its weight as (d_in, d_out)."""
        return name in self._transposed

    def shape(self, name: str) -> tuple[int, int]:
        """Return a linear's (d_out, d_in)."""
        rows, columns = self.folder.shape(f"{name}.weight")
        return (columns, rows) if self.is_transposed(name) else (rows, columns)

    def weight(self, name: str) -> NDArray[np.float32]:
        """Read a linear's weight, (d_out, d_in) float32. Raises: AwpError for NaN or infinite entries."""
        weight = self.folder.tensor(f"{name}.weight", finite=True).astype(np.float32, copy=False)
        return np.ascontiguousarray(weight.T) if self.is_transposed(name) else weight

    def block(self, index: int, weights: Weights | None = None) -> nn.Module:
        """Return a copy of a block, alive in float32, its linears in `weights` replaced by those (d_out, d_in)."""
        block, given = copy.deepcopy(self.stack[index]), dict(weights or {})
        paths = {f"{path}.weight": name for name, path in self.linears[index].items()}
        state = {}
        for name in block.state_dict():
            linear = paths.get(name, "")
            full = f"{self.stack_name}.{index}.{name}"
            state[name] = self.as_stored(linear, given[linear]) if linear in given else self.read(full)
        return revive(self.model, block, state)

    def outside(self) -> nn.Module:
        """Return a copy of the base model in which all but the block stack is alive: embeddings, positions, norms."""
        base = copy.deepcopy(self.model.base_model)
        stack = f"{self._in_base(self.stack_name)}."
        prefix = f"{self._base_path}." if self._base_path else ""
        names = [name for name in base.state_dict() if not name.startswith(stack)]
        return revive(self.model, base, {name: self.read(prefix + name) for name in names}, below=stack)

    def around(self) -> Any:
        """Return a copy of the whole model in which all but the block stack is alive: `outside` with the head."""
        model, tensors = copy.deepcopy(self.model), self._tensors
        names = [name for name in model.state_dict() if not name.startswith(f"{self.stack_name}.")]
        found = {name: find_key(tensors, name, model.base_model_prefix) for name in names}
        state = {name: as_tensor(self.folder.tensor(key, finite=True)) for name, key in found.items() if key}
        revive(model, model, state, below=f"{self.stack_name}.")
        model.tie_weights()
        return model

    def blocks_of(self, base: nn.Module) -> nn.ModuleList:
        """Return the block stack of a copy of the base model."""
        stack = base.get_submodule(self._in_base(self.stack_name))
        assert isinstance(stack, nn.ModuleList)
        return stack

    def as_stored(self, name: str, weight: NDArray[Any]) -> torch.Tensor:
        """Return a (d_out, d_in) weight as the float32 tensor that the linear keeps."""
        tensor = torch.tensor(np.asarray(weight, dtype=np.float32))
        return tensor.T.contiguous() if self.is_transposed(name) else tensor

    def read(self, name: str) -> torch.Tensor:
        """Read a parameter or buffer by its name in the model; floats as float32."""
        return as_tensor(self.folder.tensor(self.key(name), finite=True))

    def _require_floats(self, key: str) -> None:
        dtype = self.folder.dtype(key)
        if not dtype.startswith(("F", "BF")):
            raise AwpError(integers(self.folder, key))

    def _in_base(self, name: str) -> str:
        return name.removeprefix(f"{self._base_path}.") if self._base_path else name

    def _linears_of(self, index: int) -> dict[str, str]:
        linears = {}
        for path, module in self.stack[index].named_modules():
            if is_linear(module):
                name = self.key(f"{self.stack_name}.{index}.{path}.weight").removesuffix(".weight")
                self._require_floats(f"{name}.weight")
                linears[name] = path
                if type(module).__name__ == TRANSPOSED_CLASS:
                    self._transposed.add(name)
        return linears


_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def meta_model(folder: ModelFolder) -> Any:
    """Build the model of a folder on the meta device: no memory, no random numbers.

    Raises: AwpError for an architecture that transformers does not know, an encoder-decoder or a mixture of experts.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError, TypeError) as error:
        if "auto_map" in folder.config:
            raise AwpError(
                f"{folder.path}: {folder.architecture} needs code of its own, which is not run; only architectures of "
                "transformers itself are supported"
            ) from None
        raise AwpError(f"{folder.path}: transformers cannot read config.json: {first_line(error)}") from None
    model_class = getattr(transformers, folder.architecture, None)
    if model_class is None or not issubclass(model_class, transformers.PreTrainedModel):
        raise AwpError(f"transformers {transformers.__version__} has no architecture {folder.architecture}")
    if getattr(config, "is_encoder_decoder", False):
        raise AwpError(
            f"{folder.architecture} is an encoder-decoder; only single stacks of blocks are supported"
        )
    experts = next((n for key in _EXPERT_KEYS if (n := getattr(config.get_text_config(), key, None))), 0)
    if experts > 1:
        raise AwpError(
            f"{folder.architecture} is a mixture of {experts} experts, which transformers keeps as no linear layers; "
            "only dense models are supported"
        )
    config.use_cache = False
    config._attn_implementation = None  # a choice for other machines; None takes what this one has
    with torch.device("meta"):
        return model_class(config).eval()


def whole_model(folder: Any, *, dtype: torch.dtype = torch.float32, uniform: Collection[str] = ()) -> Any:
    """Build a model with all of its weights, tied ones once; `folder` gives tensors as a ModelFolder does.

    `uniform` are the tensors that it gives as (d_out, d_in) also where the model keeps them the other way round.

    Memory: every parameter in `dtype`.  Raises: AwpError as Skeleton does.
    """
    model = meta_model(folder)
    names, turned = set(folder.tensor_names()), _transposed_weights(model)
    state = {}
    for name, parameter in model.state_dict().items():
        key = find_key(names, name, model.base_model_prefix)
        if key is not None:
            tensor = as_tensor(folder.tensor(key, finite=True))
            if parameter.is_floating_point() and not tensor.is_floating_point():
                raise AwpError(integers(folder, key))
            tensor = tensor.T.contiguous() if key in uniform and name in turned else tensor
            state[name] = tensor.to(dtype) if parameter.is_floating_point() else tensor
    revive(model, model, state)
    model.tie_weights()
    missing = next((name for name, value in model.state_dict().items() if value.is_meta), None)
    if missing is not None:
        raise AwpError(f"{folder.path}: no tensor {missing}; the weights do not fit config.json")
    return model


def find_key(names: Collection[str], name: str, prefix: str) -> str | None:
    """Return the tensor of a parameter: files may have the base model's prefix where the class has none, or not."""
    older = name
    for new, old in _OLD_ENDINGS.items():
        older = f"{older.removesuffix(new)}{old}" if older.endswith(new) else older
    found = (f for n in (name, older) for f in (n, n.removeprefix(f"{prefix}."), f"{prefix}.{n}"))
    return next((key for key in (*found, _OTHER_NAMES.get(name)) if key in names), None)


def integers(folder: Any, key: str) -> str:
    """Return what to say of a weight that is stored as integers."""
    return f"{folder.path}: {key} is stored as integers, so the model is quantized already; give its original weights"


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor that shares its memory; floats as float32."""
    return torch.from_numpy(array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a matrix product that can be compressed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == TRANSPOSED_CLASS


def revive(model: Any, module: nn.Module, state: Mapping[str, torch.Tensor], *, below: str = "") -> nn.Module:
    """Put tensors into a module on the meta device and compute the buffers that no file holds.

    Nothing below the path `below` is touched.

    Raises: AwpError where a tensor's shape does not fit the config.
    """
    try:
        module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise AwpError(f"the weights do not fit config.json: {str(error).splitlines()[-1].strip()}") from None
    for path, part in module.named_modules():
        missing = [name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        if missing and not (below and f"{path}.".startswith(below)):
            _compute_buffers(model, part, missing)
    return module.eval().requires_grad_(False)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _compute_buffers(model: Any, part: nn.Module, names: Sequence[str]) -> None:
    """Let the model's own initialization fill buffers such as inverse frequencies; parameters stay as they are."""
    for name in names:
        setattr(part, name, torch.zeros_like(part.get_buffer(name), device="cpu"))
    for parameter in part.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model._init_weights(part)


def _find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the longest outermost ModuleList of one class with linears inside; the first of equals.

    Only the text model is searched where the config has a section of its own for it.
    """
    found: list[tuple[str, nn.ModuleList]] = []
    root = _text_model(model)
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in found)
        if not path.startswith(root):
            continue
        if isinstance(module, nn.ModuleList) and not inside and _is_stack(module):
            found.append((path, module))
    if not found:
        raise AwpError(
            f"{type(model).__name__} has no stack of blocks that hold linear layers: nothing to compress"
        )
    return max(found, key=lambda item: len(item[1]))


def _text_model(model: Any) -> str:
    """Return the path of the outermost module that the config's text section describes; "" where it has none."""
    text = model.config.get_text_config()
    if text is model.config:
        return ""
    kinds = ((path, getattr(module, "config", None)) for path, module in model.named_modules())
    return next((path for path, config in kinds if type(config) is type(text)), "")


def _is_stack(modules: nn.ModuleList) -> bool:
    same = len({type(module) for module in modules}) == 1
    return same and all(any(is_linear(part) for part in module.modules()) for module in modules)


def _transposed_weights(model: nn.Module) -> frozenset[str]:
    return frozenset(
        f"{path}.weight" for path, part in model.named_modules() if type(part).__name__ == TRANSPOSED_CLASS
    )


def _path_of(model: nn.Module, module: nn.Module) -> str:
    return next(path for path, part in model.named_modules() if part is module)
