"""What a probe shows in a report, as data: the report decides how it is drawn.

Every exhibit has a title (what is seen), a caption (how to read it) and its rows, so that the same thing can be a
chart, a text alternative for it, and a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Lines with optional confidence bands; one point a row."""

    title: str
    caption: str
    x_label: str
    y_label: str
    points: Sequence[CurvePoint]
    diagonal: bool = False
    """Draw y = x, the reference of a reliability diagram."""


@dataclass(frozen=True)
class CurvePoint:
    """low and high bound the 95 % interval of y; series names the line."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    series: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars with optional intervals, in the order given."""

    title: str
    caption: str
    value_label: str
    bars: Sequence[Bar]
    reference: float | None = None
    """A vertical line, for example the overall accuracy."""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Grid:
    """A table of plain cells."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Gallery:
    """Images of the data set, each with an optional heat map laid over it."""

    title: str
    caption: str
    items: Sequence[GalleryItem]


@dataclass(frozen=True)
class GalleryItem:
    """sample_id: whose image. heat_maps: name -> `[H][W]` values, drawn beside the image."""

    sample_id: str
    note: str
    heat_maps: Sequence[tuple[str, Sequence[Sequence[float]]]] = ()


Exhibit = Curve | Bars | Grid | Gallery
