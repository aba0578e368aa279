"""A labelled image set: an Arrow table of ids, labels and attributes beside a source of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from snellen.data.decode import Geometry, MissingImage
from snellen.data.sources import ArrayImages, ImageSource
from snellen.errors import InvalidInput


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order.

    table: `id` (string, unique), `label` (int64, index into `class_names`) and one column an attribute. positions:
    for each row, its place in `images`. masks: an optional second source, object pixels > 127. quarantine: what was
    left out while reading.
    """

    name: str
    table: pa.Table
    class_names: tuple[str, ...]
    images: ImageSource
    positions: np.ndarray
    masks: ImageSource | None = None
    quarantine: tuple[Quarantined, ...] = ()
    named_classes: bool = True
    """False when labels were bare integers, so that `class_names` are only their digits."""
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.table.num_rows != len(self.positions):
            raise InvalidInput(f"{self.table.num_rows} rows but {len(self.positions)} image positions")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(name for name in self.table.column_names if name not in ("id", "label"))

    @property
    def ids(self) -> list[str]:
        return [str(value) for value in self.table.column("id").to_pylist()]

    @property
    def labels(self) -> np.ndarray:
        labels: np.ndarray = self.table.column("label").to_numpy()
        return labels

    def take(self, rows: Sequence[int] | np.ndarray) -> Dataset:
        """The given rows in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(self, table=self.table.take(pa.array(rows)), positions=self.positions[rows])

    def without(self, bad: Mapping[int, str]) -> Dataset:
        """Without the given rows, which go to the quarantine; bad: row -> reason."""
        ids = self.table.column("id")
        apart = tuple(Quarantined(str(ids[row].as_py()), reason) for row, reason in bad.items())
        kept = self.take(np.delete(np.arange(len(self)), list(bad)))
        return replace(kept, quarantine=self.quarantine + apart)

    def pixels(self, row: int, geometry: Geometry) -> Tensor:
        """uint8 `[C, H, W]` of one row; raises `BadImage`."""
        return self.images.pixels(int(self.positions[row]), geometry)

    def mask(self, row: int, geometry: Geometry) -> Tensor:
        """bool `[H, W]`, True on the object of one row; nowhere when the row has none. Raises `BadImage`."""
        if self.masks is None:
            raise InvalidInput(f"the data set {self.name} has no masks")
        try:
            pixels = self.masks.pixels(int(self.positions[row]), replace(geometry, channels=1, interpolation="nearest"))
        except MissingImage:
            return torch.zeros(geometry.size or self.images.size(int(self.positions[row])) or (1, 1), dtype=torch.bool)
        return pixels[0] > 127

    def common_size(self, looked_at: int = 200) -> tuple[int, int] | None:
        """The most frequent height and width among the first images, None when none can be read."""
        sizes = Counter(self.images.size(int(position)) for position in self.positions[:looked_at])
        sizes.pop(None, None)
        return sizes.most_common(1)[0][0] if sizes else None

    @classmethod
    def from_arrays(
        cls,
        images: Tensor | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        attributes: Mapping[str, Sequence[object] | np.ndarray] | None = None,
        ids: Sequence[str] | None = None,
        name: str = "arrays",
        masks: Tensor | np.ndarray | None = None,
    ) -> Dataset:
        """A data set in memory.

        images: uint8 or float [0, 1], `[N, C, H, W]`; labels index `class_names`. masks: bool `[N, H, W]`, True on
        the object.
        """
        source = ArrayImages(images)
        labels = np.asarray(labels, dtype=np.int64)
        if len(labels) != len(source):
            raise InvalidInput(f"{len(source)} images but {len(labels)} labels")
        if len(labels) and (labels.min() < 0 or labels.max() >= len(class_names)):
            raise InvalidInput(f"labels must be 0 to {len(class_names) - 1}, got {labels.min()} to {labels.max()}")
        ids = list(ids) if ids is not None else [f"{position:08d}" for position in range(len(source))]
        columns = {"id": pa.array(ids, pa.string()), "label": pa.array(labels)}
        columns.update({key: pa.array(values) for key, values in (attributes or {}).items()})
        mask_source = None
        if masks is not None:
            mask_source = ArrayImages(torch.as_tensor(masks).bool().unsqueeze(1).to(torch.uint8) * 255)
            if mask_source.tensor.shape[2:] != source.tensor.shape[2:] or len(mask_source) != len(source):
                raise InvalidInput(f"masks must be [{len(source)}, H, W] like the images, got {list(masks.shape)}")
        return cls(name, pa.table(columns), tuple(class_names), source, np.arange(len(source)), mask_source)


def align_classes(dataset: Dataset, class_names: Sequence[str], aliases: Mapping[str, str] | None = None) -> Dataset:
    """The data set with labels that index the model's `class_names`, matched by name.

    The data may hold a subset of the model's classes. Bare integer labels are taken as output indices when they fit.
    aliases: other names of the model's classes. Raises InvalidInput that shows both lists when names do not match.
    """
    aliases = aliases or {}
    index_of = {name: index for index, name in enumerate(class_names)}
    folded = {name.casefold().strip(): index for name, index in index_of.items()}
    folded.update({other.casefold(): index_of[name] for other, name in aliases.items() if name in index_of})
    mapped = [folded.get(name.casefold().strip()) for name in dataset.class_names]
    notes = dataset.warnings
    if None in mapped and not dataset.named_classes:
        numbers = [int(name) for name in dataset.class_names]
        mapped = [number if 0 <= number < len(class_names) else None for number in numbers]
        notes += ("labels are bare integers and were taken as the model's output indices",)
    unknown = [name for name, index in zip(dataset.class_names, mapped, strict=True) if index is None]
    rows_of_unknown = np.isin(dataset.labels, [i for i, index in enumerate(mapped) if index is None])
    if unknown and (dataset.named_classes or rows_of_unknown.mean() > 0.05):
        raise InvalidInput(
            f"the data has classes that the model does not: {_listed(unknown)}; the model's classes are"
            f" {_listed(class_names)}, the data's are {_listed(dataset.class_names)}. Rename the folders or give the"
            " model's own names with --classes names.txt"
        )
    bad = {
        int(row): f"label {dataset.class_names[dataset.labels[row]]!r} is outside the classes"
        for row in np.flatnonzero(rows_of_unknown)
    }
    table = np.array([-1 if index is None else index for index in mapped], dtype=np.int64)
    kept = dataset.without(bad) if bad else dataset
    column = kept.table.column_names.index("label")
    labels = pa.array(table[kept.labels] if len(kept) else np.zeros(0, dtype=np.int64))
    return replace(
        kept,
        table=kept.table.set_column(column, "label", labels),
        class_names=tuple(class_names),
        warnings=notes,
    )


def _listed(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return "[" + ", ".join(names[:shown]) + more + "]"
