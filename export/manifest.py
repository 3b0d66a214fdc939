"""The manifest of an edge folder: what it was made from, and the SHA-256 of every file.

The runtime's configuration is there to be edited, by users and by tools for a device: it may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..artifacts import EDGE_KIND
from ..errors import AwpError
from ..storage import file_sha256, read_json, write_json

MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "genai_config.json"
SCHEMA_VERSION = 1
_PACKAGES = ("awp-edge", "onnxruntime", "onnxruntime-genai", "onnx-ir", "transformers", "torch")


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write manifest.json: facts, versions, and size and SHA-256 of every other file in the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
    }
    head = {"kind": EDGE_KIND, "schema_version": SCHEMA_VERSION, "versions": _versions(), "files": files}
    write_json(folder / MANIFEST_FILE, {**facts, **head})


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add what became known after the files were written."""
    write_json(folder / MANIFEST_FILE, {**read_json(folder / MANIFEST_FILE), **facts})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check manifest.json; every file must be there with its size, but for the configuration's.

    Raises:
        AwpError: no edge folder, another schema version, or a file that is missing or cut short.
    """
    if not (folder / MANIFEST_FILE).is_file():
        raise AwpError(f"{folder} has no {MANIFEST_FILE}; give a folder that awp-edge export made")
    manifest = read_json(folder / MANIFEST_FILE)
    if (
        not isinstance(manifest, dict)
        or manifest.get("kind") != EDGE_KIND
        or not isinstance(manifest.get("files"), dict)
    ):
        raise AwpError(f"{folder / MANIFEST_FILE} does not describe an edge folder; export the model again")
    found = manifest.get("schema_version")
    if found != SCHEMA_VERSION:
        raise AwpError(
            f"{folder} has schema version {found}, this program reads {SCHEMA_VERSION}; export the model again"
        )
    for name, facts in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != facts.get("bytes") and (size is None or name != CONFIG_FILE):
            raise AwpError(
                f"{folder / name} has {size} bytes, the manifest says {facts.get('bytes')}; copy it again"
            )
    return manifest


def verify(folder: Path) -> None:
    """Read every file of an edge folder but its configuration and compare the SHA-256.

    Raises:
        AwpError: naming the first file that differs.
    """
    for name, facts in read_manifest(folder)["files"].items():
        if name != CONFIG_FILE and file_sha256(folder / name) != facts.get("sha256"):
            raise AwpError(
                f"{folder / name} differs from the manifest's SHA-256; copy it again or export the model again"
            )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
