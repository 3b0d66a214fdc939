"""Turn a GGUF file of a Llama model into a Hugging Face folder, weights dequantized to float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AwpError
from .storage import StoredTensor, atomic_file, write_json, write_tensor_stream

_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_CONTROL_TOKEN = 3
_DIGIT_SPLITTING = ("smollm",)
# What the model class takes as given and a GGUF file does not carry.
_FIXED_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
    "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None, "use_cache": True,
    "initializer_range": 0.041666666666666664, "torch_dtype": "float32",
}  # fmt: skip


def write_model_folder(gguf_file: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32) and the tokenizer of a Llama GGUF into an existing folder.

    Raises: AwpError for another architecture or tokenizer, or a tensor without a known place.
    """
    try:
        import gguf
    except ImportError:
        raise AwpError(
            'reading a GGUF file needs the package gguf: pip install "awp-edge[calibrate]"'
        ) from None
    reader = gguf.GGUFReader(str(gguf_file))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise AwpError(f"{gguf_file.name} holds a {fields['general.architecture']} model; only llama is read")
    tensors = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    config = _config(fields, tied="lm_head.weight" not in tensors)

    def read(name: str) -> StoredTensor:
        tensor = tensors[name]
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        return StoredTensor("F32", _unpermuted(name, values, config))

    shapes = {name: ("F32", tuple(int(n) for n in reversed(t.shape))) for name, t in tensors.items()}
    write_tensor_stream(folder / "model.safetensors", shapes, read, metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    _write_tokenizer(fields, folder)


def _hf_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in _BLOCK_NAMES:
        return ".".join(["model.layers", parts[1], _BLOCK_NAMES[parts[2]], *parts[3:]])
    if parts[0] in _TOP_NAMES:
        return ".".join([_TOP_NAMES[parts[0]], *parts[1:]])
    raise AwpError(f"the GGUF tensor {name} has no place in a Llama model")


def _unpermuted(name: str, values: NDArray[np.float32], config: Mapping[str, Any]) -> NDArray[np.float32]:
    """Undo the converter's reordering of q and k rows: it interleaves the two rotary halves of every head."""
    heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    key = next((key for suffix, key in heads.items() if name.endswith(suffix)), None)
    if key is None:
        return values
    rows, columns = values.shape
    by_head = values.reshape(config[key], rows // config[key] // 2, 2, columns)
    return np.ascontiguousarray(by_head.swapaxes(1, 2)).reshape(rows, columns)


def _config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = int(fields["llama.attention.head_count"])
    hidden = int(fields["llama.embedding_length"])
    return _FIXED_CONFIG | {
        "hidden_size": hidden,
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": hidden // heads,
        "max_position_embeddings": int(fields["llama.context_length"]),
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        **{f"{role}_token_id": index for role, index in _token_ids(fields).items() if role != "unk"},
    }


def _token_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys = {role: f"tokenizer.ggml.{name}_token_id" for role, name in names.items()}
    return {role: int(fields[key]) for role, key in keys.items() if key in fields}


def _write_tokenizer(fields: Mapping[str, Any], folder: Path) -> None:
    tokens: list[str] = list(fields["tokenizer.ggml.tokens"])
    special = [
        t
        for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == _CONTROL_TOKEN
    ]
    roles = {f"{role}_token": tokens[index] for role, index in _token_ids(fields).items()}
    with atomic_file(folder / "tokenizer.json") as file:
        file.write(_byte_level_bpe(fields, tokens, special).encode())
    settings = {
        # The class that takes tokenizer.json as it is; model-specific ones rebuild the splitting rules.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(fields["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "additional_special_tokens": [t for t in special if t not in roles.values()],
        **roles,
    }
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", roles)
    ids = {f"{role}_token_id": index for role, index in _token_ids(fields).items() if role != "unk"}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})


def _byte_level_bpe(fields: Mapping[str, Any], tokens: list[str], special: list[str]) -> str:
    """Return tokenizer.json of a GPT-2 style byte-level BPE that splits numbers into digits first."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise AwpError(
            'building a tokenizer needs the package tokenizers: pip install "awp-edge[calibrate]"'
        ) from None
    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kind[0] != "gpt2" or kind[1] not in _DIGIT_SPLITTING:
        raise AwpError(f"the GGUF tokenizer {kind[0]}/{kind[1]} is not read; only gpt2/smollm is")
    merges = [_pair(merge) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return str(tokenizer.to_str())


def _pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ", 1)
    return left, right
