"""The life of OUT.partial: one owner, a state written atomically after every block, and the rename that ends it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .artifacts import MANIFEST_FILE, SCHEMA_VERSION, read_manifest, require_hashes
from .errors import AwpError
from .storage import (
    STATE_FILE,
    empty_folder,
    partial_of,
    read_json,
    require_free,
    sole_owner,
    sync_folder,
    write_json,
    writing,
)

STATE_FOLDER = "state"

Request = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """Record what a resumed run needs: the request, the next block, and the finished blocks' results and hashes."""

    request: dict[str, Any]
    spec: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    next_block: int = 0
    n_blocks: int | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)
    runs: int = 1

    @property
    def all_blocks_done(self) -> bool:
        """Return whether only the closing steps are left."""
        return self.n_blocks is not None and self.next_block >= self.n_blocks


class Workspace:
    """Own OUT.partial until it becomes OUT. Make one with `open_workspace`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.partial = partial_of(out)
        self.state_folder = self.partial / STATE_FOLDER

    def load(self) -> State:
        """Read the state. Raises: AwpError where it is damaged or a finished block is not what it was."""
        raw = read_json(self.partial / STATE_FILE)
        if not isinstance(raw, dict) or raw.pop("schema_version", None) != SCHEMA_VERSION:
            raise AwpError(
                f"{self.partial / STATE_FILE} is of another version or damaged; {self.start_again()}"
            )
        try:
            state = State(**raw)
        except TypeError:
            raise AwpError(f"{self.partial / STATE_FILE} is damaged; {self.start_again()}") from None
        require_hashes(self.partial, state.files, advice=f"the checkpoint is corrupted: {self.start_again()}")
        return state

    def save(self, state: State) -> None:
        """Write the state atomically; everything that it speaks of must be on disk already."""
        write_json(self.partial / STATE_FILE, {"schema_version": SCHEMA_VERSION, **asdict(state)})

    def begin(self) -> None:
        """Empty OUT.partial of what is no checkpoint, and make its folders."""
        with writing(self.partial):
            empty_folder(self.partial)
            self.state_folder.mkdir()
            (self.partial / "blocks").mkdir()

    def discard(self) -> None:
        """Remove OUT.partial."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def publish(self) -> None:
        """Turn a folder with a finished manifest into OUT; may be repeated after a crash at any point."""
        with writing(self.out):
            shutil.rmtree(self.state_folder, ignore_errors=True)
            # The state goes after everything it could still bring back, the rename last.
            (self.partial / STATE_FILE).unlink(missing_ok=True)
            for leftover in self.partial.rglob("*.tmp"):
                leftover.unlink()
            if self.out.is_dir():
                self.out.rmdir()
            self.partial.rename(self.out)
            sync_folder(self.out.parent)

    def start_again(self) -> str:
        """Say what is left to do where the run cannot go on."""
        return f"delete {self.partial} and start again"


@contextmanager
def open_workspace(out: Path, *, resume: bool) -> Iterator[tuple[Workspace, bool]]:
    """Claim OUT.partial for one process; yield it and whether it holds a state to resume.

    Raises: AwpError where OUT is not empty or cannot be written, OUT.partial exists and `resume` was not asked, or
    another process owns it.
    """
    workspace = Workspace(out)
    require_free(out)
    existed = workspace.partial.exists()
    if existed and not resume:
        raise AwpError(f"{workspace.partial} holds an unfinished run; continue it with --resume or delete it")
    with writing(workspace.partial):
        workspace.partial.mkdir(parents=True, exist_ok=True)
    with sole_owner(workspace.partial):
        yield workspace, existed and (workspace.partial / STATE_FILE).is_file()


def finished_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that is complete or lacks only its closing steps, else None."""
    if not (folder / MANIFEST_FILE).is_file() or (folder / STATE_FILE).is_file():
        return None
    return read_manifest(folder)


def require_same(request: Request, earlier: Request, partial: Path) -> None:
    """Raise AwpError naming the first option that differs from the run to be resumed."""
    old, new = _flat(earlier), _flat(request)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            change = f"{key} was {_shown(old.get(key))} and is now {_shown(new.get(key))}"
            raise AwpError(
                f"cannot resume with other options: {change}; use the same, or delete {partial} and start again"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
