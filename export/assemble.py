"""Make the edge graph: the builder's float graph with our packed weights in the place of its float ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..errors import AwpError
from ..models import WEIGHTS_FILE
from ..storage import TensorFile, read_json, write_json
from .graph import (
    DATA_FILE,
    GRAPH_FILE,
    Matches,
    Rows,
    build_float_graph,
    find_head,
    match_layers,
    set_windows,
    weight_of,
)
from .head import pack_head
from .hf import write_hf
from .library import LIBRARY, require_library
from .manifest import CONFIG_FILE
from .packing import PackedLinear, concatenate
from .passes import FactorMatMuls, PackMatMuls, SparseMatMuls, TieEmbedding
from .passes.common import name_of
from .source import Source
from .sparse_packing import SparseLinear, pack_sparse, stack

Floats = NDArray[np.float32]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Kinds:
    """Say how weights are stored: the head "int8", "int4" or "fp32", the layers sparse where they can be.

    accuracy_level: 0 or 4.
    """

    head: str
    accuracy_level: int
    sparse: bool = False


@dataclass(frozen=True)
class Written:
    """Say which node carries which rows of which linear, and give those linears' weights."""

    matches: Matches
    dense: Callable[[str], Floats]


def write_graph(source: Source, out: Path, work: Path, *, kinds: Kinds, say: Progress) -> Written:
    """Write model.onnx, its data, genai_config.json and the tokenizer files.

    Args:
        source: the model.
        out: an existing folder.
        work: a scratch folder for the float weights; the caller removes it when it needs `Written` no more.
        kinds: how weights are stored and multiplied.
        say: called with one line per stage.

    Raises:
        AwpError: the builder fails, or its graph does not hold the model's weights.
    """
    say("writing the weights for the model builder")
    folder, dense = _float_weights(source, work / "hf")
    say("building the float graph")
    model = build_float_graph(folder, work / "float", fuse_qkv=source.fusible(sparse=kinds.sparse))
    set_windows(model, source.config)
    say("putting packed weights into the graph")
    matches = match_layers(model, source.layers, dense)
    _replace_layers(model, source, matches, kinds=kinds)
    if kinds.head != "fp32":
        _replace_head(model, source, kinds.head, accuracy_level=kinds.accuracy_level)
    RemoveUnusedNodesPass()(model)
    # Large tensors start on a page, so that a runtime can map them. Shapes stay in the graph: they must be known early.
    ir.save(model, out / GRAPH_FILE, external_data=DATA_FILE, size_threshold_bytes=256, alignment=4096,
            align_threshold=65536)  # fmt: skip
    for path in (work / "float").iterdir():
        if path.is_file() and path.name not in (GRAPH_FILE, DATA_FILE):
            shutil.copyfile(path, out / path.name)
    if kinds.sparse:
        _add_library(out)
    return Written(matches, dense)


def _add_library(out: Path) -> None:
    """Put the operator library into the folder and name it in genai_config.json."""
    shutil.copyfile(require_library(), out / LIBRARY)
    config = read_json(out / CONFIG_FILE)
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = LIBRARY
    write_json(out / CONFIG_FILE, config)


def _float_weights(source: Source, folder: Path) -> tuple[Path, Callable[[str], Floats]]:
    """Return a folder the builder can read and a reader of the very floats it reads."""
    if not source.layers:
        return source.path, source.dense
    folder.mkdir(parents=True)
    write_hf(source, folder, dtype="F32")
    tensors = TensorFile(folder / WEIGHTS_FILE)
    return folder, lambda name: tensors.tensor(source.tensor_name(name))


def _replace_layers(model: ir.Model, source: Source, matches: Matches, *, kinds: Kinds) -> None:
    packed: dict[str, PackedLinear] = {}
    sparse: dict[str, SparseLinear] = {}
    factors: dict[str, tuple[Floats, Floats]] = {}
    for node, rows in matches.items():
        layer = source.layer(rows[0].layer)
        if kinds.sparse and all(source.unfit(part.layer) is None for part in rows):
            sparse[node] = pack_sparse(
                stack([source.sparse(part.layer).rows(part.start, part.stop) for part in rows])
            )
        elif layer.encoding.codes is not None:
            packed[node] = concatenate([_rows(source.packed(part.layer), part) for part in rows])
        elif (low_rank := source.factors(rows[0].layer)) is not None:
            factors[node] = (low_rank[0][rows[0].start : rows[0].stop], low_rank[1])
    PackMatMuls(packed, accuracy_level=kinds.accuracy_level)(model)
    SparseMatMuls(sparse, accuracy_level=kinds.accuracy_level)(model)
    FactorMatMuls(factors)(model)


def _rows(packed: PackedLinear, part: Rows) -> PackedLinear:
    return packed if (part.start, part.stop) == (0, packed.shape[0]) else packed.rows(part.start, part.stop)


def _replace_head(model: ir.Model, source: Source, kind: str, *, accuracy_level: int) -> None:
    node = find_head(model)
    weight = weight_of(node)
    if not any(_is_tensor(source, name, weight) for name in source.rest_names()):
        raise AwpError(
            f"{node.name}: its weights {weight.shape} are those of no tensor of the model; use --lm-head fp32"
        )
    packed, name = pack_head(weight, kind), name_of(node.inputs[1])
    PackMatMuls({name_of(node): packed}, accuracy_level=accuracy_level)(model)
    TieEmbedding(name, packed)(model)


def _is_tensor(source: Source, name: str, weight: Floats) -> bool:
    if source.rest_shape(name) != weight.shape:
        return False
    stored = source.rest(name).widened().astype(np.float32, copy=False)
    return np.array_equal(stored.view(np.uint32), weight.view(np.uint32))
