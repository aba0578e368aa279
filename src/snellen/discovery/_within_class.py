"""Inside one class, where does the model fail: at one end of a number, at both ends, in the middle, at one value?

The search for groups crosses classes with bins of equal counts, so a fault that strikes one class at large angles to
either side is cut into small pieces. Here each class is split by every attribute: a number below or above a tenth of
its values, near to its median or far from it, or a category. The statistic is the signed root of the binomial deviance
of a part from its class; right and wrong answers are shuffled inside every class, and the largest statistic of all
classes and splits guards the whole search (Westfall and Young, 1993), at one per cent. A part must be worse than the
same part of the other classes too, so that an attribute that is bad for all classes is not told class by class.

The best of many cuts looks worse than it is. So of its distance to the rest of the class only that share counts as
proven by which the statistic exceeds what the search reaches by chance once in twenty times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from snellen.discovery._subgroups import LEVEL, Bools, Subgroup, deviance
from snellen.stats import Grouping, fisher_exact, wilson

CORRECTION = 5
"""p-values times this: one per cent of the probe's level of five is this search's."""
FEWEST, FEWEST_WRONG = 30, 5
"""Images of a part and of the rest of its class; wrong answers of a class."""
RESEMBLANCE = 2.0
"""By so much the variance may exceed that of unrelated images: pictures of one class often show one thing twice. On 29
healthy networks of the fault bench, whose digits come twice, two parts in two trials were told that fresh images did
not show; with this both are told as low."""
MOST_CLASSES, MOST_OF_CLASS = 50, 5000
"""Classes searched, those with the most wrong answers, and images of each, a random subset."""
TENTHS = np.arange(1, 10) / 10
FEWEST_NUMBERS = 9
"""Distinct values from which a number is split by size; with fewer each value is a category."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """The samples whose value lies in [lower, upper], or, `outside`, those whose value does not."""

    attribute: str
    lower: float
    upper: float
    outside: bool = False

    def inside(self, values: Numbers) -> Bools:
        """bool, of the shape of `values`; NaN is in no part."""
        between = (values >= self.lower) & (values <= self.upper)
        return np.asarray(~(between | np.isnan(values)) if self.outside else between)

    def ranges(self, values: Numbers) -> str:
        """The values that occur, such as "-30 to -13 or 13 to 30"."""
        here = values[self.inside(values)]
        parts = [here[here < self.lower], here[here > self.upper]] if self.outside else [here]
        return " or ".join(f"{part.min():g} to {part.max():g}" for part in parts if len(part))


def number_columns(samples: pa.Table, ids: pa.ChunkedArray, attributes: Sequence[str]) -> dict[str, Numbers]:
    """The attributes that are numbers with many values, `[n]` in the order of `ids`, NaN where missing."""
    place, found = pc.index_in(ids, value_set=samples["id"]), {}
    for name in attributes:
        kind = samples[name].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            values = pc.fill_null(samples[name].take(place).cast(pa.float64()), np.nan).to_numpy()
            values = np.where(np.isfinite(values), values, np.nan)
            if len(np.unique(values[~np.isnan(values)])) >= FEWEST_NUMBERS:
                found[name] = values
    return found


def within_classes(
    labels: Grouping,
    attributes: Mapping[str, Grouping],
    numbers: Mapping[str, Numbers],
    correct: Bools,
    rng: np.random.Generator,
    min_count: int = FEWEST,
    min_effect: float = 0.05,
    permutations: int = 999,
) -> list[Subgroup]:
    """The worst part of each class that is significantly worse than its rest (the group's rest), the surest first.

    labels, attributes, correct: as for `search`. numbers: values `[n]` of the attributes that are split by size, NaN
    where missing.
    """
    values = {name: np.where(g.codes < 0, np.nan, g.codes) for name, g in attributes.items()} | dict(numbers)
    splits = [split for name in attributes for split in _splits(name, values[name], name in numbers)]
    mistakes = np.bincount(labels.codes[~correct], minlength=len(labels.names))
    largest, best = np.full(permutations, -np.inf), []
    for label in np.argsort(-mistakes, kind="stable")[:MOST_CLASSES].tolist():
        rows = np.flatnonzero(labels.codes == label)
        if len(rows) > MOST_OF_CLASS:
            rows = rng.choice(rows, MOST_OF_CLASS, replace=False)
        wrong = ~correct[rows]
        if not splits or wrong.sum() < FEWEST_WRONG or wrong.all():
            continue
        inside = np.stack([split.inside(values[split.attribute][rows]) for split in splits], axis=1)
        sizes = inside.sum(axis=0)
        large = np.flatnonzero((sizes >= min_count) & (len(rows) - sizes >= min_count))
        if len(large) == 0:
            continue
        inside, sizes, rate = inside[:, large].astype(np.float32), sizes[large], float(wrong.mean())
        shuffled = rng.permuted(np.tile(wrong, (permutations, 1)), axis=1).astype(np.float32)
        largest = np.maximum(largest, deviance(shuffled @ inside, sizes, rate).max(axis=1))
        statistics = deviance(wrong.astype(np.float32) @ inside, sizes, rate)
        best.append((label, splits[large[statistics.argmax()]], float(statistics.max())))
    found = []
    for label, split, statistic in best:
        reached = int((largest >= statistic - 1e-4).sum())
        p_value = min(CORRECTION * (1 + reached) / (1 + permutations), 1.0)
        if p_value > LEVEL:
            continue
        of_part, of_class = split.inside(values[split.attribute]), labels.codes == label
        here, rest, others = of_part & of_class, ~of_part & of_class, of_part & ~of_class
        named = split.ranges(values[split.attribute])
        if split.attribute not in numbers:
            named = attributes[split.attribute].names[int(split.lower)]
        by_chance = float(np.quantile(largest, 1 - LEVEL)) * RESEMBLANCE**0.5
        proven = max(1 - by_chance / statistic, 0.0) * float(correct[rest].mean() - correct[here].mean())
        usual = wilson(int(correct[here].sum()), int(here.sum()))
        group = Subgroup(
            (("class", labels.names[label]), (split.attribute, named)),
            int(here.sum()),
            int(correct[here].sum()),
            int(rest.sum()),
            int(correct[rest].sum()),
            p_value,
            np.flatnonzero(here),
            reported=True,
            high=max(float(correct[rest].mean()) - proven, usual.high),
        )
        same = fisher_exact(group.correct, group.n, int(correct[others].sum()), int(others.sum()), "less")
        if group.drop >= min_effect and (same * len(best) <= LEVEL or not others.any()):
            found.append(group)
    return sorted(found, key=lambda group: (group.p_value, -group.drop))


def _splits(name: str, values: Numbers, by_size: bool) -> list[Split]:
    known = values[~np.isnan(values)]
    if not by_size:
        return [Split(name, value, value) for value in np.unique(known).tolist()]
    median = float(np.median(known))
    cuts = np.unique(np.quantile(known, TENTHS)).tolist()
    distances = np.unique(np.quantile(np.abs(known - median), TENTHS)).tolist()
    intervals = [(-np.inf, cut) for cut in cuts] + [(median - d, median + d) for d in distances]
    return [Split(name, lower, upper, outside) for lower, upper in intervals for outside in (False, True)]
