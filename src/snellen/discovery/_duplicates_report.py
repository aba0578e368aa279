"""What the duplicates probe says and shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snellen.exhibits import Gallery, GalleryItem, Grid
from snellen.probe import Context, Finding, Rows
from snellen.sequences import Texts
from snellen.stats import attribute_groups, needed_samples, newcombe_difference, wilson

MOST_EVIDENCE = 12
MOST_SHOWN = 24
FEWEST_LEAKED = 10
TELLING_GAP = 0.1
SPLITS = ("split", "subset", "fold", "partition")
TRAINING = frozenset({"train", "training", "trn", "fit"})
TESTING = frozenset({"test", "testing", "tst", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout"})

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Read:
    """The table in columns. clusters: the rows of each picture that occurs more than once."""

    ids: Texts
    table: Rows
    labels: NDArray[np.int64]
    correct: Bools
    clusters: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, table: Rows) -> Read:
        cluster = table["cluster"].to_numpy()
        order = np.argsort(cluster, kind="stable")
        order = order[cluster[order] >= 0]
        groups = np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1) if len(order) else []
        return cls(Texts(table["id"]), table, table["label"].to_numpy(), table["correct"].to_numpy(), tuple(groups))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pictures(self) -> int:
        """Different pictures."""
        return len(self) - sum(len(rows) - 1 for rows in self.clusters)

    @property
    def contradictions(self) -> list[NDArray[np.int64]]:
        """Clusters whose members have different labels, exact copies first, then the most alike."""
        apart = [rows for rows in self.clusters if len(set(self.labels[rows].tolist())) > 1]
        return sorted(apart, key=lambda rows: (-self._likeness(rows), int(rows[0])))

    def _likeness(self, rows: NDArray[np.int64]) -> float:
        return float(np.nanmin(self.table["correlation"].to_numpy()[rows]))

    def named(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        return [self.ids[int(row)] for row in rows]

    def scope(self) -> str:
        """What was not searched, in words for the end of a sentence."""
        searched = int(self.table["searched"].to_numpy().sum())
        if not self.table["near"][0].as_py():
            return " (only exact copies were sought: there are too few different pictures for near ones)"
        return "" if searched == len(self) else f" (near copies were sought among {searched} images drawn at random)"


def sides(ids: Texts, context: Context) -> dict[str, tuple[Bools, Bools]]:
    """Attribute that names a split -> training rows and test rows; attributes without both sides are left out."""
    found = {}
    for name in context.attributes:
        if name.casefold().strip() not in SPLITS:
            continue
        group = attribute_groups(context.samples["id"], context.samples, (name,))[name]
        side = np.array([_side(value) for value in group.names] + [0], dtype=np.int64)  # the last: missing
        place = {sample_id: row for row, sample_id in enumerate(context.samples["id"].to_pylist())}
        of = side[group.codes[[place[sample_id] for sample_id in ids]]]
        if (of == 1).any() and (of == 2).any():
            found[name] = (np.asarray(of == 1), np.asarray(of == 2))
    return found


def _side(value: str) -> int:
    word = value.casefold().strip()
    return 1 if word in TRAINING else 2 if word in TESTING else 0


def label_finding(whole: Read, names: Sequence[str]) -> Finding | None:
    """Pictures that carry different labels; of each all labels but the commonest must be wrong."""
    apart = whole.contradictions
    if not apart:
        return None
    wrong = sum(len(rows) - int(np.bincount(whole.labels[rows]).max()) for rows in apart)
    n, first = len(whole), whole.labels[apart[0]]
    told = " and ".join(names[label] for label in sorted(set(first.tolist())))
    several = f"{len(apart)} pictures" if len(apart) > 1 else "one picture"
    return Finding(
        kind="label-noise",
        title=f"Copies of {several} carry different labels (for example {told}), so at least {wrong} of {n} labels"
        f" ({wrong / n:.1%}) {'is' if wrong == 1 else 'are'} wrong or more than one class is right{whole.scope()}.",
        metric="share of labels that contradict a copy",
        value=wrong / n,
        baseline=0.0,
        effect=wrong / n,
        ci=(wrong / n, wilson(wrong, n).high),  # of these images the count is exact: at least so many
        n=n,
        evidence=whole.named(np.concatenate(apart)[:MOST_EVIDENCE]),
    )


def accuracy_finding(whole: Read) -> Finding | None:
    """The sample is smaller than it seems; a picture counts as right where most of its copies are."""
    if not whole.clusters:
        return None
    n, pictures = len(whole), whole.pictures
    once = int(whole.correct.sum()) - sum(int(whole.correct[rows].sum()) for rows in whole.clusters)
    once += sum(int(whole.correct[rows].mean() >= 0.5) for rows in whole.clusters)
    flattered = wilson(int(whole.correct.sum()), n).low - wilson(once, pictures).low
    largest = sorted(whole.clusters, key=lambda rows: (-len(rows), int(rows[0])))
    return Finding(
        kind="accuracy",
        title=f"{n - pictures} of {n} images ({1 - pictures / n:.1%}) are copies of others, so accuracy rests on"
        f" {pictures} pictures: counted once each, {once / pictures:.1%} are right, not"
        f" {whole.correct.mean():.1%}{whole.scope()}.",
        metric="share of images that are copies",
        value=(n - pictures) / n,
        baseline=0.0,
        effect=max(flattered, 0.0),
        ci=wilson(n - pictures, n),
        n=n,
        evidence=whole.named(np.concatenate(largest)[:MOST_EVIDENCE]),
    )


def leakage_finding(whole: Read, split: tuple[Bools, Bools], attribute: str) -> Finding | None:
    """Test images that also lie in the training set, and how much better the model is on them."""
    training, testing = split
    leaked = np.zeros(len(whole), dtype=np.bool_)
    evidence: list[str] = []
    for rows in whole.clusters:
        seen, asked = rows[training[rows]], rows[testing[rows]]
        if len(seen) and len(asked):
            leaked[asked] = True
            evidence += whole.named([asked[0], seen[0]])
    n1, n2 = int(leaked.sum()), int((testing & ~leaked).sum())
    if n1 == 0:
        return None
    right1, right2 = int(whole.correct[leaked].sum()), int(whole.correct[testing & ~leaked].sum())
    title = f"{n1} of {n1 + n2} test images ({n1 / (n1 + n2):.1%}, by {attribute}) also lie in the training set"
    if min(n1, n2) >= FEWEST_LEAKED:
        gap = newcombe_difference(right1, n1, right2, n2)
        title += (
            f" and test nothing; the model is right on {right1 / n1:.1%} of them and on {right2 / n2:.1%} of the others"
            f" (difference {gap.low:.3f} to {gap.high:.3f})"
        )
    else:
        needed = max(FEWEST_LEAKED, needed_samples(TELLING_GAP, min(max(right2 / max(n2, 1), TELLING_GAP), 1.0)))
        title += f"; not enough data to say what it does to accuracy: n = {min(n1, n2)}, needs about {needed}"
    return Finding(
        kind="accuracy",
        title=f"{title}{whole.scope()}.",
        metric="share of test images seen in training",
        value=n1 / (n1 + n2),
        baseline=0.0,
        effect=n1 / (n1 + n2),
        ci=wilson(n1, n1 + n2),
        n=n1 + n2,
        subject={"attribute": attribute},
        evidence=evidence[:MOST_EVIDENCE],
    )


def measure_grid(whole: Read) -> Grid:
    copies = len(whole) - whole.pictures
    return Grid(
        title="Copies in the data set",
        caption="Exact copies have equal pixels as the model gets them; near ones are far more alike than the data's"
        f" ordinary nearest neighbours{whole.scope()}.",
        columns=["measure", "value"],
        rows=[
            ["images", len(whole)],
            ["different pictures", whole.pictures],
            ["copies", copies],
            ["images with an exact copy", int(whole.table["exact"].to_numpy().sum())],
            ["pictures with different labels", len(whole.contradictions)],
        ],
    )


def gallery(whole: Read, names: Sequence[str]) -> Gallery:
    """Contradictions first, then the largest clusters; copies stand side by side."""
    apart = whole.contradictions
    told = {int(rows[0]) for rows in apart}
    rest = sorted((rows for rows in whole.clusters if int(rows[0]) not in told), key=lambda rows: -len(rows))
    items = []
    for number, rows in enumerate([*apart, *rest], start=1):
        for row in rows[:3]:
            alike = float(whole.table["correlation"][int(row)].as_py())
            note = f"picture {number}, {len(rows)} copies: labelled {names[whole.labels[row]]}, correlation {alike:.3f}"
            items.append(GalleryItem(whole.ids[int(row)], note))
        if len(items) >= MOST_SHOWN:
            break
    return Gallery(
        title="Images that occur more than once",
        caption="Copies side by side, at most three of a picture; those with different labels first.",
        items=items,
    )
