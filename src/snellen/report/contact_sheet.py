"""A contact sheet: what a shift does to images as it gets stronger, in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from snellen.probe import Condition
from snellen.report.pictures import as_picture

CELL = 112
"""Pixels of the longer side of one picture on the sheet."""
MARGIN, CAPTION, NAMES = 6, 16, 190
PAPER, INK, MISSING = (255, 255, 255), (40, 40, 40), (225, 225, 225)


class Row(NamedTuple):
    """One image under one shift: a name and a picture a severity, None where the shift cannot be made."""

    name: str
    pictures: Sequence[tuple[float, Tensor | None]]


def sheet_rows(untouched: Tensor, conditions: Iterable[Condition]) -> list[Row]:
    """A row a shift and image, severities ascending from 0. untouched: `[B, C, H, W]`."""
    by_shift: dict[str, list[Condition]] = {}
    for condition in conditions:
        by_shift.setdefault(condition.name, []).append(condition)
    found = []
    for name, steps in by_shift.items():
        steps.sort(key=lambda condition: condition.severity)
        for index, image in enumerate(untouched):
            pictures: list[tuple[float, Tensor | None]] = [(0.0, image)]
            for step in steps:
                made = step.kept is None or bool(step.kept[index])
                pictures.append((step.severity, step.images[index] if made else None))
            found.append(Row(name if index == 0 else "", pictures))
    return found


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """The sheet as a picture: shifts downwards, severity to the right."""
    columns = max(len(row.pictures) for row in rows)
    first = rows[0].pictures[0][1]
    assert first is not None
    factor = CELL / max(first.shape[-2:])
    height, width = (max(1, round(side * factor)) for side in first.shape[-2:])
    resampling = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    size = (NAMES + columns * (width + MARGIN) + MARGIN, len(rows) * (height + CAPTION + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for line, row in enumerate(rows):
        top = MARGIN + line * (height + CAPTION + MARGIN)
        draw.text((MARGIN, top + height / 2), row.name.replace("_", " "), fill=INK, font=font, anchor="lm")
        for column, (severity, picture) in enumerate(row.pictures):
            left = NAMES + column * (width + MARGIN)
            if picture is None:
                draw.rectangle((left, top, left + width, top + height), fill=MISSING)
                draw.text((left + width / 2, top + height / 2), "not possible", fill=INK, font=font, anchor="mm")
            else:
                sheet.paste(as_picture(picture).convert("RGB").resize((width, height), resampling), (left, top))
            caption = "untouched" if column == 0 else f"{severity:g}"
            draw.text((left + width / 2, top + height + CAPTION / 2), caption, fill=INK, font=font, anchor="mm")
    return sheet
