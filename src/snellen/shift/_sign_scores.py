"""With which score a model finds a sign, from which score on it counts as found, and how often a patch hides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.shift._boxes import Detector, box_iou
from snellen.shift._sign_render import Sign
from snellen.stats import mcnemar_exact, needed_samples, newcombe_difference, wilson

Score = Callable[[Tensor, Sequence[Sign]], Tensor]
"""Images `[B, 3, H, W]` and their signs -> `[B]` in [0, 1]: the score with which each sign is found as its class, 0
where it is not."""


Row: TypeAlias = dict[str, str | float | int | bool | None]
"""One row of `attack_table`."""


def classifier_score(classify: Callable[[Tensor, Sequence[Sign]], Tensor]) -> Score:
    """From logits `[B, K]` of the signs (a classifier that crops, for example): its probability if it wins."""

    def score(images: Tensor, signs: Sequence[Sign]) -> Tensor:
        logits = classify(images, signs)
        labels = torch.tensor([sign.label for sign in signs], device=logits.device)
        if logits.ndim != 2 or len(logits) != len(signs) or int(labels.max()) >= logits.shape[1]:
            raise InvalidInput(
                f"classify must give logits [B, K] for {len(signs)} signs with labels up to {int(labels.max())},"
                f" got {list(logits.shape)}"
            )
        own = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
        return torch.where(logits.argmax(dim=1) == labels, own, torch.zeros_like(own))

    return score


def detector_score(detector: Detector, overlap: float = 0.5) -> Score:
    """The best score among the boxes of the sign's class with that intersection over union with its key points' box."""
    if not 0 < overlap <= 1:
        raise InvalidInput(f"overlap must be in (0, 1], got {overlap}")

    def score(images: Tensor, signs: Sequence[Sign]) -> Tensor:
        best = []
        for found, sign in zip(detector(list(images)), signs, strict=True):
            iou = box_iou(found["boxes"].cpu(), sign.box[None].cpu(), torch.zeros(1, dtype=torch.bool))[:, 0]
            on = (iou >= overlap) & (found["labels"].cpu() == sign.label)
            scores = found["scores"].detach().cpu()[on]
            best.append(float(scores.max()) if len(scores) else 0.0)
        return torch.tensor(best)

    return score


def recall_threshold(scores: ArrayLike, miss_rate: float = 0.05) -> float:
    """The largest of `scores` `[n]` of signs at which fewer than `miss_rate` of them are missed (found: at or above).

    The value just below it is returned, so that `score > threshold` finds. Raises InvalidInput where none will do.
    """
    ordered = _finite(scores)
    fits = np.flatnonzero(np.searchsorted(ordered, ordered, side="left") / len(ordered) < miss_rate)
    if not len(fits) or ordered[fits[-1]] <= 0:
        raise InvalidInput(f"scores must find more than {1 - miss_rate:.0%} of the signs at some threshold above 0")
    return float(np.nextafter(ordered[fits[-1]], -np.inf))


def f1_threshold(signs: ArrayLike, others: ArrayLike) -> float:
    """The threshold with the best F1, such that `score > threshold` finds.

    signs: `[n]`, scores of the signs, 0 where not found. others: `[m]`, those of detections that match none.
    """
    right, wrong = _finite(signs), np.sort(np.asarray(others, dtype=float))
    candidates = np.unique(right[right > 0])
    if not len(candidates):
        raise InvalidInput("signs must hold a score above 0, got none")
    found = len(right) - np.searchsorted(right, candidates, side="left")
    alarms = len(wrong) - np.searchsorted(wrong, candidates, side="left")
    f1 = 2 * found / (found + alarms + len(right))
    return float(np.nextafter(candidates[f1.argmax()], -np.inf))


def attack_table(outcomes: Rows) -> pa.Table:
    """False negatives and attack success of each class and of all signs together, from rows of one condition.

    Columns: label ("all" first, weighted by counts; "mean" last, each class alike and without interval), n, too_small,
    fnr_clean, fnr, asr (share of the signs found clean that the patch hides), low, high (Wilson, of asr), p_value
    (McNemar: the patch changes nothing), needed, enough_data. Raises InvalidInput where no sign is found clean.
    """
    classes = sorted(set(outcomes["label"].to_pylist()))
    columns = [_counted("all", outcomes)]
    if columns[0]["asr"] is None:
        raise InvalidInput("no sign is found without the patch, so that its success is undefined; lower the threshold")
    per_class = [_counted(str(label), outcomes.filter(pc.equal(outcomes["label"], label))) for label in classes]
    mean: Row = dict.fromkeys(columns[0])
    mean["label"] = "mean"
    for name in ("fnr_clean", "fnr", "asr"):
        known = [value for row in per_class if isinstance(value := row[name], float)]
        mean[name] = sum(known) / len(known)
    return pa.Table.from_pylist([*columns, *per_class, mean])


class Gap(NamedTuple):
    """How much more often a patch succeeds in one evaluation than in another, with Newcombe's 95 % interval."""

    difference: float
    low: float
    high: float
    ratio: float


def compare_success(naive: Rows, realistic: Rows) -> Gap:
    """Attack success on pasted signs minus that on real ones, and realistic / naive (NaN for 0), from outcome rows."""
    (won_a, n_a), (won_b, n_b) = _success(naive), _success(realistic)
    if not n_a or not n_b:
        raise InvalidInput(f"both evaluations need signs that are found clean, got {n_a} and {n_b}")
    low, high = newcombe_difference(won_a, n_a, won_b, n_b)
    return Gap(won_a / n_a - won_b / n_b, low, high, (won_b / n_b) / (won_a / n_a) if won_a else math.nan)


def _success(outcomes: Rows) -> tuple[int, int]:
    """Signs found clean that the patch hides, and signs found clean."""
    found = outcomes.filter(pc.and_(outcomes["judged"], outcomes["found_clean"]))
    return found.num_rows - sum(found["found_patched"].to_pylist()), found.num_rows


def _counted(label: str, outcomes: Rows) -> Row:
    judged = outcomes.filter(outcomes["judged"])
    n = judged.num_rows
    hidden, found = _success(outcomes)
    missed = n - sum(judged["found_patched"].to_pylist())
    low, high = wilson(hidden, found)
    needed = needed_samples(0.1, 0.9)
    return {
        "label": label, "n": n, "too_small": outcomes.num_rows - n,
        "fnr_clean": (n - found) / n if n else None, "fnr": missed / n if n else None,
        "asr": hidden / found if found else None, "low": low, "high": high,
        "p_value": mcnemar_exact(hidden, hidden + n - found - missed),
        "needed": needed, "enough_data": found >= needed,
    }  # fmt: skip


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    ordered = np.sort(np.asarray(scores, dtype=float))
    if ordered.ndim != 1 or not len(ordered) or not np.isfinite(ordered).all():
        raise InvalidInput(f"scores must be a list of finite numbers, got {ordered.shape}")
    return ordered
