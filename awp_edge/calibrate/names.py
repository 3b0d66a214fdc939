"""Match names of linears against shell patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from ..errors import UsageError


def skipped_names(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Return the names that a shell pattern matches, whole or from one of their dots on.

    Raises: UsageError for a pattern that matches nothing.
    """
    skipped: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatch(f".{name}", f"*.{pattern}")]
        if not hits:
            raise UsageError(f"--skip {pattern} matches none of the {len(names)} linears, such as {names[0]}")
        skipped.update(hits)
    return frozenset(skipped)
