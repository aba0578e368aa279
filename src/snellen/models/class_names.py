"""Class names from a file."""

from __future__ import annotations

import json
from pathlib import Path

from snellen.errors import InvalidInput


def read_class_names(path: Path) -> list[str]:
    """One class name a line, or a JSON list, or a JSON object index -> name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--classes {path} cannot be read: {error}") from error
    if path.suffix == ".json":
        try:
            stored = json.loads(text)
            return [str(stored[key]) for key in sorted(stored, key=int)] if isinstance(stored, dict) else list(stored)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"--classes {path} is not a JSON list of names or object of index to name") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
