"""Builders of tiny random Hugging Face folders: real configs and safetensors, a byte-level tokenizer.

`build("llama", folder)` writes one of FAMILIES. Everything is deterministic in `seed` and leaves torch's global
random state alone; nothing is downloaded.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 264  # 256 bytes, three special tokens, five rows that no token uses (real models have such padding)
SPECIAL = {"<s>": 256, "</s>": 257, "<unk>": 258}
CONTEXT = 128

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "max_position_embeddings": CONTEXT,
}
_FFN = {"intermediate_size": 128}
_GQA = {**_FFN, "num_key_value_heads": 2}

# family -> (config class, model class, what differs from _SIZES)
FAMILIES: dict[str, tuple[str, str, dict]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_GQA, "tie_word_embeddings": True}),
    "llama-untied": ("LlamaConfig", "LlamaForCausalLM", {**_GQA, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_GQA, "head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_GQA, "head_dim": 16, "sliding_window": 16,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GQA, "head_dim": 16, "sliding_window": 16, "tie_word_embeddings": False},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_GQA, "sliding_window": 80}),
    "phi3": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {**_GQA, "sliding_window": 80, "original_max_position_embeddings": CONTEXT},
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_positions": CONTEXT, "n_inner": 128, "resid_pdrop": 0.0}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_FFN, "tie_word_embeddings": False}),
    "bert": ("BertConfig", "BertModel", {**_FFN}),
    "roberta": ("RobertaConfig", "RobertaModel", {**_FFN, "max_position_embeddings": CONTEXT + 2, "pad_token_id": 1}),
    "deberta": ("DebertaV2Config", "DebertaV2Model",
                {**_FFN, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32,
                 "share_att_key": True, "norm_rel_ebd": "layer_norm"}),
}  # fmt: skip


def build(family: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **overrides: object) -> Path:
    """Write the folder of a tiny random model; `overrides` are config entries; `dtype` is the stored one."""
    config_class, model_class, special = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**_SIZES, **special, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
    randomize(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    write_tokenizer(folder)
    return Path(folder)


def build_nested(folder: Path, *, vision_blocks: int = 1) -> Path:
    """Write a tiny model of images and text, whose config has its language model's as `text_config`."""
    text = {**_SIZES, **_GQA, "head_dim": 16}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": vision_blocks, "patch_size": 4,
              "out_hidden_size": 64, "deepstack_visual_indexes": [], "num_position_embeddings": 16}  # fmt: skip
    config = transformers.Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def whole(folder: Path) -> torch.nn.Module:
    """Load a folder the usual way, as an oracle."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Give every weight a size at which all layers matter (matrices sqrt(2 / columns))."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (2.0 / parameter.shape[-1]) ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.1 * noise)


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges: one token a byte."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **SPECIAL}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(folder)


def shard(folder: Path, parts: int = 3) -> None:
    """Cut model.safetensors into several files with an index, tensors spread evenly."""
    tensors = load_file(folder / "model.safetensors")
    index: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        names = sorted(tensors)[part::parts]
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(names, file))
    (folder / "model.safetensors").unlink()
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    )


def edit(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Rewrite one tensor of model.safetensors: `change(tensor) -> tensor` (to plant a NaN, say)."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rename(folder: Path, change: Callable[[str], str]) -> Path:
    """Rename the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {change(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_text(path: Path, n_bytes: int = 4096, seed: int = 0) -> Path:
    """Write a text of English-like words (one token a byte), `n_bytes` long."""
    words = "the of and to in a is that for it as was with be by on not he his but at are this have".split()
    picks = torch.randint(len(words), (n_bytes,), generator=torch.Generator().manual_seed(seed)).tolist()
    path.write_text(" ".join(words[i] for i in picks)[:n_bytes], newline="")
    return path
