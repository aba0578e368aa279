"""What the engine tells while it works; the command line draws it, a script may ignore it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Work(NamedTuple):
    """label: a probe of the plan. images: how many it looks at. done: how many an earlier run left finished."""

    label: str
    images: int
    done: int


class Progress(Protocol):
    def begin(self, work: Sequence[Work]) -> None: ...
    def advance(self, label: str, images: int) -> None: ...
    def finish(self, label: str, trouble: str | None = None) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """Tells nobody."""

    def begin(self, work: Sequence[Work]) -> None:
        pass

    def advance(self, label: str, images: int) -> None:
        pass

    def finish(self, label: str, trouble: str | None = None) -> None:
        pass

    def note(self, text: str) -> None:
        pass
