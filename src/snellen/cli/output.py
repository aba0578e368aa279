"""Files that a command writes where the user says."""

from __future__ import annotations

from pathlib import Path

from snellen.errors import InvalidInput


def write_file(option: str, path: Path, content: bytes) -> None:
    """option: what the user called the path, for the error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise InvalidInput(f"{option} {str(path)!r} cannot be written: {error.strerror or error}") from error
