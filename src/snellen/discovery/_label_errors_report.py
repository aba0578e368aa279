"""What the label-error probe says and shows."""

from __future__ import annotations

from collections.abc import Sequence

from snellen.discovery._label_errors_rows import Doubt, Pair, Whole
from snellen.discovery._mislabelled_groups import MislabelledGroup
from snellen.discovery._sure_mistakes import ORDINARY, SureMistakes
from snellen.exhibits import Gallery, GalleryItem, Grid
from snellen.probe import Finding

MOST_EVIDENCE = 12
MOST_LISTED = 30


def whole_finding(whole: Whole, doubts: Sequence[Doubt]) -> Finding:
    """A share of wrong labels beyond chance."""
    return Finding(
        kind="label-noise",
        title=f"About {whole.value:.1%} of {whole.n} labels look wrong: the model is sure of another class on"
        f" {whole.flagged} images, where about {whole.by_chance:.0f} would be chance; look at them, since the model may"
        " also be confidently wrong.",
        metric="share of labels that look wrong, beyond chance",
        value=whole.value,
        baseline=0.0,
        effect=max(whole.value, 0.0),
        ci=(whole.low, whole.high),
        n=whole.n,
        p_value=whole.p_value,
        evidence=[doubt.id for doubt in doubts[:MOST_EVIDENCE]],
    )


def pair_finding(pair: Pair, names: Sequence[str], doubts: Sequence[Doubt]) -> Finding:
    """One label that often hides one other class."""
    label, other = names[pair.label], names[pair.sure_of]
    here = [doubt.id for doubt in doubts if (doubt.label, doubt.sure_of) == (pair.label, pair.sure_of)]
    return Finding(
        kind="label-noise",
        title=f"Of {pair.n} images labelled {label}, about {pair.flagged - pair.by_chance:.0f} look like {other}: the"
        f" model is sure of {other} on {pair.flagged}, where about {pair.by_chance:.0f} would be chance; or it is"
        " confidently wrong there.",
        metric="share of the label's images that look like the other class, beyond chance",
        value=pair.value,
        baseline=0.0,
        effect=max(pair.value, 0.0),
        ci=None if pair.low is None or pair.high is None else (pair.low, pair.high),
        n=pair.n,
        subject={"class": label, "looks like": other},
        p_value=pair.p_value,
        evidence=here[:MOST_EVIDENCE],
    )


def sure_finding(pair: SureMistakes, names: Sequence[str]) -> Finding:
    """One label on which the model errs as surely as it is right."""
    label, other = names[pair.label], names[pair.sure_of]
    return Finding(
        kind="label-noise",
        title=f"Of {pair.n} images labelled {label}, {pair.flagged} are answered {other} as surely as images of {other}"
        f" are: either about {pair.value * pair.n:.0f} of these labels are wrong, or the model has learnt a wrong rule"
        " for them; look at them.",
        metric="share of the label's images that are surely answered as the other class",
        value=pair.value,
        baseline=0.0,
        effect=pair.value,
        ci=(pair.low, pair.high),
        n=pair.n,
        subject={"class": label, "looks like": other},
        p_value=pair.p_value,
        evidence=pair.evidence,
    )


def group_finding(group: MislabelledGroup) -> Finding:
    """A value of an attribute where wrong labels gather."""
    return Finding(
        kind="label-noise",
        title=f"Labels look wrong above all where {group.attribute} = {group.group}: about {group.value:.1%} of"
        f" {group.n} images beyond chance, against {max(group.elsewhere, 0):.1%} of the others; or the model is"
        " confidently wrong there.",
        metric="share of the group's labels that look wrong, beyond chance",
        value=group.value,
        baseline=group.elsewhere,
        effect=max(group.value - group.elsewhere, 0.0),
        ci=None if group.low is None or group.high is None else (group.low, group.high),
        n=group.n,
        subject={"attribute": group.attribute, "value": group.group},
        p_value=group.p_value,
        evidence=group.evidence,
    )


def unjudged_finding(whole: Whole, needed: int, share: float) -> Finding:
    """Too few images, or a model that knows too little."""
    title = f"Not enough data to judge the labels: n = {whole.n}, needs about {needed} to see {share:.0%} wrong ones."
    if whole.n >= needed:
        title = (
            f"The labels cannot be judged with this model: its answer is the label on {whole.agreement:.1%} of"
            f" {whole.n} images, hardly more than by guessing."
        )
    return Finding(
        kind="label-noise",
        title=title,
        metric="share of labels that look wrong, beyond chance",
        value=None,
        effect=0.0,
        n=whole.n,
        enough_data=False,
    )


def measure_grid(whole: Whole, issues: int, rule: str) -> Grid:
    rows: list[list[str | int | float | None]] = [
        ["answers that are the label", whole.agreement],
        ["label issues on all images", issues],
        ["wrong labels by the calibrated joint", whole.joint_share],
    ]
    if whole.judged:
        rows += [
            ["sure contradictions", whole.flagged],
            ["sure contradictions by chance", whole.by_chance],
            ["share beyond chance", whole.value],
            ["low", whole.low],
            ["high", whole.high],
            ["p value", whole.p_value],
        ]
    return Grid(
        title="Label errors",
        caption=f"Issues are flagged by the rule {rule}; they and the joint hold mistakes of the model too. Sure"
        " contradictions are counted with thresholds of the other half of the images, and p is of labels drawn from"
        " the calibrated probabilities. Only images the model was not trained on say anything.",
        columns=["measure", "value"],
        rows=rows,
    )


def pair_grid(pairs: Sequence[Pair], names: Sequence[str]) -> Grid:
    return Grid(
        title="Labels that look like another class",
        caption=f"The {MOST_LISTED} pairs with the most sure contradictions beyond chance; share: of the label's"
        " images, beyond chance; p is adjusted for the whole search.",
        columns=["label", "looks like", "images of the label", "seen", "by chance", "share", "low", "high", "p"],
        rows=[
            [names[p.label], names[p.sure_of], p.n, p.flagged, p.by_chance, p.value, p.low, p.high, p.p_value]
            for p in pairs[:MOST_LISTED]
        ],
    )


def sure_grid(pairs: Sequence[SureMistakes], names: Sequence[str]) -> Grid:
    return Grid(
        title="Mistakes as sure as right answers",
        caption="Area: how well the margin tells these mistakes from right answers of the same class (0.5 not at all;"
        f" mistakes of a model's own usually have {ORDINARY:g} or more). Share: of the label's images, what is more"
        " than such mistakes; p is adjusted for all pairs.",
        columns=["label", "answered", "images of the label", "seen", "area", "share", "low", "high", "p"],
        rows=[
            [names[p.label], names[p.sure_of], p.n, p.flagged, p.area, p.value, p.low, p.high, p.p_value]
            for p in pairs[:MOST_LISTED]
        ],
    )


def group_grid(groups: Sequence[MislabelledGroup]) -> Grid:
    return Grid(
        title="Groups in which labels look wrong",
        caption=f"The {MOST_LISTED} surest groups; share: of the group's images, beyond chance, with its 95 % interval"
        " where it is significant; p is adjusted for the whole search.",
        columns=["attribute", "value", "n", "seen", "by chance", "share", "low", "high", "elsewhere", "p"],
        rows=[
            [g.attribute, g.group, g.n, g.flagged, g.by_chance, g.value, g.low, g.high, g.elsewhere, g.p_value]
            for g in groups[:MOST_LISTED]
        ],
    )


def gallery(doubts: Sequence[Doubt], names: Sequence[str]) -> Gallery:
    return Gallery(
        title="Labels in doubt",
        caption="Images on which the model is surest that the label is wrong.",
        items=[
            GalleryItem(
                doubt.id,
                f"labelled {names[doubt.label]} (probability {doubt.self_confidence:.3f}),"
                f" looks like {names[doubt.sure_of]}",
            )
            for doubt in doubts[:MOST_EVIDENCE]
        ],
    )
