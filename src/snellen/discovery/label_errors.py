"""Which labels of the data are probably wrong, and how many?

Confident learning (Northcutt et al., 2021). The model is sure of a class where its probability reaches the mean it
has on images of that class. Where it is sure of another class than the label names, the label is in doubt; the counts
of such pairs, scaled to the labels, estimate the joint distribution of given and true labels, and that says how many
labels of each pair to suspect. Here a statement is made only on what a calibrated model would not show by chance (see
`_label_noise.py`), with thresholds and calibration from the half of the images that is not judged. A pair of classes
that a calibration takes for a habit of the model is still told where the model errs as surely as it is right
(`_sure_mistakes.py`).

Misleads (1) on images the model was trained on: it may have learnt the wrong labels by heart and then finds none, so
the predictions must be out of sample (other images, or cross-validation), which no table of scores can tell; (2) where
the model is confidently wrong, as with a shortcut: labels and model contradict each other, and only a look at the
images decides which is wrong; (3) where a whole pair of classes was mislabelled alike in training too: the model has
then learnt the confusion as it is, and it no longer looks like more than chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
import pyarrow as pa
from scipy.special import softmax

from snellen.discovery._confident_learning import (
    Rule,
    check_inputs,
    confident_joint,
    find_label_issues,
    normalized_margin,
    self_confidence,
)
from snellen.discovery._label_errors_report import (
    gallery,
    group_finding,
    group_grid,
    measure_grid,
    pair_finding,
    pair_grid,
    sure_finding,
    sure_grid,
    unjudged_finding,
    whole_finding,
)
from snellen.discovery._label_errors_rows import LEVEL, SCHEMA, Whole, from_rows, pairs_of, to_rows, whole_of
from snellen.discovery._label_noise import contradictions
from snellen.discovery._mislabelled_groups import mislabelled_groups
from snellen.discovery._sure_mistakes import sure_mistakes
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import derive_seed
from snellen.scores import read_scores
from snellen.stats import attribute_groups, needed_samples

FEWEST_SAMPLES = 30
TELLING_SHARE = 0.05
MORE = 0.02
"""Share of wrong labels that a group must have more than the others to be told."""
BETTER_THAN_CHANCE = 1.5
"""A model right less often than this times 1 / K knows nothing about the labels."""


@register
@dataclass(frozen=True)
class LabelErrors(ProbeBase):
    """Labels in doubt, their number, the pairs of classes that were exchanged, and the groups in which they gather.

    Rows of part "sample": label, suggested label (the answer), self-confidence, normalised margin (both 0 to 1, low is
    suspicious), issue (flagged by `rule` on all images), sure_of (class the model is sure of by the other half's
    thresholds, -1 none), confirmed (it contradicts the label). Value and effect: share of labels that are confirmed
    contradictions beyond chance; a wrong label on an image that the model is unsure of is not counted, so it is
    rather too low. Of a pair, the share of that label's images; of a group (a value of an attribute), the share of its
    images, and effect is what it has more than the others. p-values of pairs and groups hold for the whole search.
    """

    name: ClassVar[str] = "discovery/label-errors"
    paper: ClassVar[str] = "Northcutt et al., 2021"
    card: ClassVar[str | None] = "noisy-label-core"
    access: ClassVar[Access] = Access.SCORES
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("predictions",)
    version: ClassVar[int] = 3

    rule: Rule = "prune_by_noise_rate"
    """Which labels are listed as issues; see `find_label_issues`."""
    draws: int = 999
    """Simulated labellings, at least 99."""
    max_findings: int = 10
    """At most so many pairs and so many groups; at least 1."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise InvalidInput(f"rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")
        if self.draws < 99 or self.max_findings < 1:
            raise InvalidInput(
                f"draws must be at least 99 and max_findings at least 1, got {self.draws} and {self.max_findings}"
            )

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        scores = read_scores(tables["predictions"], self.name)
        ids, labels, logits = scores.ids, scores.labels, scores.logits
        if len(labels) == 0:
            return pa.Table.from_pylist([], schema=SCHEMA)
        p = softmax(logits, axis=1)
        check_inputs(labels, p)
        answers = p.argmax(axis=1)
        samples = rows(
            ids[:],
            label=labels,
            suggested=answers,
            self_confidence=self_confidence(labels, p),
            margin=normalized_margin(labels, p),
            issue=find_label_issues(labels, p, self.rule),
        )
        joint = confident_joint(labels, p)
        agreement, joint_share = float((answers == labels).mean()), 1 - float(joint.trace() / joint.sum())

        first = np.array([derive_seed("label-errors", sample_id) % 2 == 0 for sample_id in ids])
        if min(first.sum(), (~first).sum()) < FEWEST_SAMPLES // 3 or agreement < BETTER_THAN_CHANCE / p.shape[1]:
            return to_rows(samples, Whole(len(labels), agreement, joint_share))
        rng = context.random(self.name)
        found = contradictions(labels, logits, first, rng, self.draws)
        for name, values in (("sure_of", found.sure_of), ("confirmed", found.flagged)):
            samples = samples.append_column(name, pa.array(values))
        whole, pairs = whole_of(found, agreement, joint_share, rng), pairs_of(labels, found, rng)
        groupings = attribute_groups(samples["id"], context.samples, context.attributes)
        chance, doubt = found.chance.sum(axis=1), -self_confidence(labels, p)
        groups = mislabelled_groups(ids, found.flagged, chance, doubt, groupings, rng)
        return to_rows(samples, whole, pairs, sure_mistakes(ids, labels, logits), groups)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        whole, pairs, sure, groups, doubts, _ = from_rows(table)
        names, found = context.spec.class_names, []
        # Pairs and groups only then: alone they find the pairs on which a weak model with true labels is overconfident.
        if whole.judged and whole.p_value <= LEVEL:
            significant = [pair for pair in pairs if pair.p_value <= LEVEL][: self.max_findings]
            gathered = [group for group in groups if group.p_value <= LEVEL and group.value - group.elsewhere >= MORE]
            found = [
                whole_finding(whole, doubts),
                *(pair_finding(pair, names, doubts) for pair in significant),
                *(group_finding(group) for group in gathered[: self.max_findings]),
            ]
            told = {(pair.label, pair.sure_of) for pair in significant}
            sure = [pair for pair in sure if (pair.label, pair.sure_of) not in told]
        found += [sure_finding(pair, names) for pair in sure[: self.max_findings]]
        if found:
            return found
        right = max(1 - whole.by_chance / whole.n, TELLING_SHARE)
        needed = max(FEWEST_SAMPLES, needed_samples(TELLING_SHARE, right))
        enough = whole.judged and whole.n >= needed
        return [] if enough else [unjudged_finding(whole, needed, TELLING_SHARE)]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0:
            return []
        whole, pairs, sure, groups, doubts, issues = from_rows(table)
        names = context.spec.class_names
        shown: list[Exhibit] = [measure_grid(whole, issues, self.rule)]
        if pairs:
            shown.append(pair_grid(pairs, names))
        if sure:
            shown.append(sure_grid(sure, names))
        if groups:
            shown.append(group_grid(groups))
        return [*shown, gallery(doubts, names)] if doubts else shown
