"""Sequences whose items are made when they are asked for, so that a million of them weigh little."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

import pyarrow as pa

T = TypeVar("T")


class Lazy(Sequence[T]):
    """Give `__len__` and `_item`; a slice is a list."""

    @abstractmethod
    def _item(self, position: int) -> T:
        """The item at a position from 0 to the length minus 1."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        positions = range(len(self))[index]
        return self._item(positions) if isinstance(positions, int) else [self._item(place) for place in positions]


class Texts(Lazy[str]):
    """A text column read cell by cell, which stays in Arrow."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def _item(self, position: int) -> str:
        return str(self._column[position].as_py())
