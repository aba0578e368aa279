"""What the obfuscation probe says: the worst case over obfuscations, the hardest ones, and the benchmark's scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.exhibits import Bar, Bars, Exhibit, Grid
from snellen.probe import Finding, Rows
from snellen.shift._curve import curves_of, mean_estimate, on_common_samples
from snellen.shift._obfuscate import HELD_OUT, TRAINING
from snellen.shift._obfuscation_scores import obfuscation_scores
from snellen.shift._trials import HARM
from snellen.stats import mcnemar_exact, needed_samples, wilson

HARDEST = 3


class Trial(NamedTuple):
    """Samples that have every obfuscation. clean: bool `[n]`. correct: bool `[O, n]`."""

    ids: list[str]
    names: list[str]
    clean: NDArray[np.bool_]
    correct: NDArray[np.bool_]

    @property
    def safe(self) -> NDArray[np.bool_]:
        """`[n]`: right under every obfuscation."""
        return np.asarray(self.correct.all(axis=0))


def trial_of(table: Rows) -> Trial | None:
    """The rows of a `ShiftProbe` at one severity; None where no sample has all."""
    curves = on_common_samples(curves_of(table))
    if not curves:
        return None
    last = np.stack([curve.correct[-1] for curve in curves])
    return Trial(list(curves[0].ids), [curve.shift for curve in curves], curves[0].correct[0], last)


def worst_case_finding(trial: Trial) -> Finding:
    """The share of images recognised under every obfuscation, against the untouched images."""
    safe, clean, n = trial.safe, trial.clean, len(trial.ids)
    worst, untouched, mean = float(safe.mean()), float(clean.mean()), float(trial.correct.mean())
    p_value = mcnemar_exact(int((clean & ~safe).sum()), int((safe & ~clean).sum()))
    needed = needed_samples(min(HARM, untouched), untouched) if untouched > 0 else 0
    enough = p_value < 0.05 or n >= needed
    count = len(trial.names)
    if enough:
        title = (
            f"{worst:.1%} of the images are recognised under all of {count} obfuscations, against {untouched:.1%}"
            f" untouched and {mean:.1%} under the average one"
        )
    else:
        title = (
            f"Whether the worst of {count} obfuscations harms cannot be told, not enough data: n = {n},"
            f" needs about {needed}"
        )
    times = (~trial.correct).sum(axis=0)
    lost = sorted(np.flatnonzero(clean & ~safe).tolist(), key=lambda i: -times[i])
    return Finding(
        kind="attack",  # somebody's choice among disguises, which every model suffers from
        title=title,
        metric="worst-case accuracy",
        value=worst,
        baseline=untouched,
        effect=max(untouched - worst, 0.0),
        n=n,
        subject={"corruption": "worst obfuscation"},
        ci=wilson(int(safe.sum()), n),
        p_value=p_value,
        evidence=[trial.ids[i] for i in lost[:12]],
        enough_data=enough,
    )


class Split(NamedTuple):
    """The harder and the easier half of the obfuscations, and the accuracy of each on images that did not choose."""

    hard: list[str]
    easy: list[str]
    hard_by_image: NDArray[np.float64]
    easy_by_image: NDArray[np.float64]


def hard_easy_split(trial: Trial) -> Split | None:
    """Halves the obfuscations by accuracy on every other image and measures both halves on the images between.

    None with fewer than two obfuscations or four images. `hard_by_image`, `easy_by_image`: mean accuracy of each image.
    """
    if len(trial.names) < 2 or len(trial.ids) < 4:
        return None
    order = np.argsort(trial.correct[:, ::2].mean(axis=1), kind="stable")
    hard, easy = order[: len(order) // 2], order[len(order) // 2 :]
    judged = trial.correct[:, 1::2].astype(np.float64)
    names = [[trial.names[i] for i in sorted(half.tolist())] for half in (hard, easy)]
    return Split(names[0], names[1], judged[hard].mean(axis=0), judged[easy].mean(axis=0))


def split_finding(trial: Trial, rng: np.random.Generator) -> list[Finding]:
    """How far apart the hard and the easy half are; information."""
    split = hard_easy_split(trial)
    if split is None:
        return []
    gap = mean_estimate(split.easy_by_image - split.hard_by_image, rng)
    return [
        Finding(
            kind="shift",
            title=(
                f"The harder half of the obfuscations leaves an accuracy of {split.hard_by_image.mean():.2f}, the"
                f" easier half {split.easy_by_image.mean():.2f}, on images that did not choose the halves"
            ),
            metric="accuracy, easy minus hard",
            value=gap.value,
            effect=0.0,  # information: the harm is counted in the worst case
            n=gap.n,
            subject={"corruption": "hard and easy obfuscations", "hard": ", ".join(split.hard)},
            measured=("hard",),
            ci=(gap.low, gap.high) if gap.n >= 2 else None,
        )
    ]


def hardest_finding(trial: Trial) -> Finding:
    """The obfuscations with the lowest accuracy. The interval belongs to that one and does not know it was picked."""
    order = _by_difficulty(trial)
    listed = ", ".join(f"{name.replace('_', ' ')} ({right.mean():.2f})" for name, right in order[:HARDEST])
    name, right = order[0]
    return Finding(
        kind="shift",
        title=f"Hardest obfuscations by accuracy: {listed}; untouched {trial.clean.mean():.2f}",
        metric="lowest accuracy under an obfuscation",
        value=float(right.mean()),
        baseline=float(trial.clean.mean()),
        effect=0.0,  # information: the harm is counted in the worst case
        n=len(trial.ids),
        subject={"corruption": "hardest obfuscations", "obfuscation": name},
        measured=("obfuscation",),
        ci=wilson(int(right.sum()), len(right)),
        evidence=[trial.ids[i] for i in np.flatnonzero(trial.clean & ~right)[:12].tolist()],
    )


def trial_exhibits(trial: Trial, severity: float) -> list[Exhibit]:
    """Accuracy under each obfuscation and under all of them; the benchmark's scores where both groups were run."""
    bars = [_bar(name.replace("_", " "), right) for name, right in _by_difficulty(trial)]
    chart = Bars(
        title=f"Accuracy under each obfuscation, severity {severity:g}",
        caption=(
            f"The same {len(trial.ids)} images under each, hardest first, after the share recognised under all of"
            " them; the line is accuracy on the untouched images. 95 % Wilson intervals."
        ),
        value_label="accuracy",
        bars=[_bar("every obfuscation", trial.safe), *bars],
        reference=float(trial.clean.mean()),
    )
    if all(any(name in group for name in trial.names) for group in (TRAINING, HELD_OUT)):
        return [chart, _summary(trial)]
    return [chart]


def _by_difficulty(trial: Trial) -> list[tuple[str, NDArray[np.bool_]]]:
    order = np.argsort(trial.correct.mean(axis=1), kind="stable")
    return [(trial.names[i], trial.correct[i]) for i in order.tolist()]


def _bar(label: str, right: NDArray[np.bool_]) -> Bar:
    low, high = wilson(int(right.sum()), len(right))
    return Bar(label, float(right.mean()), low, high, len(right))


def _summary(trial: Trial) -> Grid:
    scores = obfuscation_scores(trial.correct[:, :, None], names=trial.names, top=(1,))
    named = {
        "mean, to train on": scores.mean_training,
        "mean, held out": scores.mean_hold_out,
        "mean, all": scores.mean_all,
        "worst case, to train on": scores.worst_training,
        "worst case, held out": scores.worst_hold_out,
        "worst case, all": scores.worst_all,
    }
    return Grid(
        title="Scores of the obfuscation benchmark",
        caption=(
            "Means over obfuscations, and the share of images right under every one. 95 % Wilson intervals over"
            " images, which are wider than needed for the means."
        ),
        columns=("score", "accuracy", "low", "high"),
        rows=[[name, *(float(values[0]) for values in score)] for name, score in named.items()],
    )
