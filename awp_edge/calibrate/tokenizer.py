"""Load the tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import AwpError


def load_tokenizer(folder: Path) -> Any:
    """Return the Hugging Face tokenizer of a folder. Raises: AwpError where there is none or it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (
        Exception
    ) as error:  # broken files surface as anything from KeyError to the Rust library's own class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise AwpError(
            f"{folder} has no tokenizer that can be read ({lines[0].rstrip(' :')}): copy the tokenizer files of the "
            "model into it"
        ) from None
