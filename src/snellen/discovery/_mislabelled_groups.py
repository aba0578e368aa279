"""In which groups of images do the wrong labels lie: one site, one camera, one annotator?

An image's excess is 1 where the model surely contradicts its label, less the probability that a calibrated model's
would. A group whose mean excess lies above that of the other images is suspected; to guard the search, the excesses are
shuffled over all images, and a group's p-value is how often the largest statistic of all groups reaches its own
(Westfall and Young, 1993). That wrong labels lie evenly everywhere is the null, so plain noise names no group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snellen.discovery._confident_learning import Bools, Floats
from snellen.stats import Grouping, bootstrap_bca, exceedance_p_value

FEWEST = 20
"""Smallest group that is searched, and smallest rest."""
PERMUTATIONS = 999
LEVEL = 0.05
MOST_EVIDENCE = 12


@dataclass(frozen=True)
class MislabelledGroup:
    """Images whose `attribute` has the value `group`, n of them.

    flagged, by_chance: sure contradictions seen and expected. value, elsewhere: their difference as a share of the
    group's images, and of the others'. p_value: for the whole search. low, high: 95 % interval of value.
    """

    attribute: str
    group: str
    n: int
    flagged: int
    by_chance: float
    value: float
    elsewhere: float
    p_value: float
    low: float | None = None
    high: float | None = None
    evidence: tuple[str, ...] = ()


def mislabelled_groups(
    ids: Sequence[str],
    flagged: Bools,
    chance: Floats,
    doubt: Floats,
    groupings: Mapping[str, Grouping],
    rng: np.random.Generator,
) -> list[MislabelledGroup]:
    """Every group that is worse than the rest, the surest first.

    flagged, chance, doubt: `[n]`; evidence are the flagged images of a group, those of the largest doubt first.
    """
    excess = flagged - chance
    searched = {name: _Searched.of(grouping) for name, grouping in groupings.items()}
    searched = {name: one for name, one in searched.items() if one.large.any()}
    if not searched or not flagged.any():
        return []
    drawn = np.empty(PERMUTATIONS)
    for turn in range(PERMUTATIONS):
        shuffled = rng.permutation(excess)
        drawn[turn] = max(float(one.statistic(shuffled).max()) for one in searched.values())
    found = []
    for name, one in searched.items():
        statistic = one.statistic(excess)
        for cell in np.flatnonzero(statistic > 0).tolist():
            inside, rest = one.codes == cell, (one.codes >= 0) & (one.codes != cell)
            p_value, low, high = exceedance_p_value(float(statistic[cell]), drawn), None, None
            evidence: list[str] = []
            if p_value <= LEVEL:
                low, high = bootstrap_bca(excess[inside], lambda v: float(v.mean()), rng, resamples=1000)
                doubtful = np.flatnonzero(inside & flagged)
                doubtful = doubtful[np.argsort(-doubt[doubtful], kind="stable")][:MOST_EVIDENCE]
                evidence = [ids[row] for row in doubtful.tolist()]
            found.append(
                MislabelledGroup(
                    name,
                    groupings[name].names[cell],
                    int(inside.sum()),
                    int(flagged[inside].sum()),
                    float(chance[inside].sum()),
                    float(excess[inside].mean()),
                    float(excess[rest].mean()),
                    p_value,
                    low,
                    high,
                    tuple(evidence),
                )
            )
    return sorted(found, key=lambda group: (group.p_value, group.elsewhere - group.value))


@dataclass(frozen=True)
class _Searched:
    """One attribute: codes `[n]`, -1 for none; sizes and which are large enough, by cell."""

    codes: np.ndarray
    sizes: np.ndarray
    large: Bools

    @classmethod
    def of(cls, grouping: Grouping) -> _Searched:
        sizes = np.bincount(grouping.codes[grouping.codes >= 0], minlength=len(grouping.names))
        return cls(grouping.codes, sizes, (sizes >= FEWEST) & (sizes.sum() - sizes >= FEWEST))

    def statistic(self, excess: Floats) -> Floats:
        """Mean of each cell minus mean of the rest, in units of its spread; minus infinity where it is not searched."""
        known = self.codes >= 0
        sums = np.bincount(self.codes[known], weights=excess[known], minlength=len(self.sizes))
        rest = self.sizes.sum() - self.sizes
        with np.errstate(divide="ignore", invalid="ignore"):
            differences = sums / self.sizes - (sums.sum() - sums) / rest
            standard = excess[known].std() * np.sqrt(1 / self.sizes + 1 / rest)
            return np.where(self.large & (standard > 0), differences / standard, -np.inf)
