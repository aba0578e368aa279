"""What the subgroup probe says and shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snellen.discovery._contingency import SAMPLES_A_COLUMN
from snellen.discovery._subgroup_rows import FINER, Row
from snellen.exhibits import Bar, Bars, Grid
from snellen.probe import Finding
from snellen.stats import needed_samples, wilson

MOST_BARS = 30
TELLING_DROP = 0.2


def group_finding(row: Row) -> Finding:
    rest, low, high = row.rest_accuracy or 0.0, *wilson(row.correct, row.n)
    others = f"for the others of class {row.value}" if row.name == FINER else "elsewhere"
    where = " and ".join(f"{key} = {value}" for key, value in row.where.items())
    subject = {"class": row.where["class"]} if "class" in row.where else {}
    for suffix, (key, value) in zip(
        ("", "_2"), (item for item in row.where.items() if item[0] != "class"), strict=False
    ):
        subject |= {f"attribute{suffix}": key, f"value{suffix}": value}
    return Finding(
        kind="subgroup",
        title=f"Accuracy is {row.accuracy:.2f} where {where} (n = {row.n}), against {rest:.2f} {others}.",
        metric="accuracy",
        value=row.accuracy,
        baseline=rest,
        effect=rest - row.accuracy,
        ci=(low, high if row.high is None else row.high),
        n=row.n,
        subject=subject,
        measured=("value",) if row.name == FINER else (),
        p_value=row.p_value,
        evidence=row.evidence,
    )


def mistake_finding(row: Row, p_value: float, measures: Mapping[str, Row]) -> Finding:
    """row: of part "mistakes"; p_value: adjusted over the attributes too; measures: SkewSize rows by name."""
    share, mean, skew = row.measure or 0.0, measures.get("mean corrected V"), measures.get("SkewSize")
    aggregates = ""
    if mean is not None and mean.measure is not None and mean.low is not None and mean.high is not None:
        aggregates = f"; mean corrected V is {mean.measure:.2f} ({mean.low:.2f} to {mean.high:.2f})"
        if skew is not None and skew.measure is not None:
            aggregates += f", SkewSize {skew.measure:.2f}"
    return Finding(
        kind="subgroup",
        title=f"Which wrong answer the model gives depends on {row.key}: {share:.1%} of {row.n} answers are mistakes"
        f" that follow it, most surely in class {row.name}{aggregates}.",
        metric="share of answers that are mistakes following the attribute",
        value=share,
        baseline=0.0,
        effect=share,
        ci=None if row.low is None or row.high is None else (max(row.low, 0.0), max(row.high, 0.0)),
        n=row.n,
        subject={"attribute": row.key, "class": row.name or ""},
        p_value=p_value,
        evidence=row.evidence,
    )


def small_finding(row: Row, min_group: int, accuracy: float) -> Finding:
    """An attribute value too small for the search. accuracy: overall, of which a telling drop is searched."""
    baseline = max(accuracy, TELLING_DROP)
    needed = max(min_group, needed_samples(TELLING_DROP, baseline))
    return Finding(
        kind="subgroup",
        title=f"Not enough data to search {row.key} = {row.value}: n = {row.n}, needs about {needed} to see a drop of"
        f" {TELLING_DROP:.0%}.",
        metric="accuracy",
        value=None,
        effect=0.0,
        n=row.n,
        subject={"attribute": row.key, "value": row.value or ""},
        enough_data=False,
    )


def group_grid(groups: Sequence[Row], min_group: int) -> Grid:
    return Grid(
        title="Worst groups",
        caption=f"Groups of at least {min_group} images, the most telling first. p is adjusted for the whole search,"
        " and of a pair also for being worse than both groups it is made of. Reported: p at most 0.05, far enough below"
        " the rest, and not the echo of another group.",
        columns=["group", "n", "accuracy", "low", "high", "accuracy elsewhere", "adjusted p", "reported"],
        rows=[
            [
                " and ".join(f"{key} = {value}" for key, value in row.where.items()),
                row.n,
                row.accuracy,
                *wilson(row.correct, row.n),
                row.rest_accuracy,
                row.p_value,
                "yes" if row.reported else "no",
            ]
            for row in groups
        ],
    )


def skewsize_grid(attribute: str, rows: Sequence[Row]) -> Grid:
    """Measures, classes and what was left out of one attribute."""
    sparse = [row for row in rows if row.sparse]
    warning = (
        f" In {len(sparse)} classes n is below {SAMPLES_A_COLUMN} x the number of answers: there raw V is large by"
        " chance."
        if sparse
        else ""
    )
    cells: list[list[str | int | float | None]] = []
    for row in rows:
        if row.part == "skewsize":
            cells.append([row.name, None, row.measure, None, row.low, row.high, None, ""])
        elif row.part == "class":
            note = "few samples" if row.sparse else ""
            cells.append([f"class {row.name}", row.n, row.v, row.corrected_v, None, None, row.q_value, note])
        else:
            cells.append([row.name or "SkewSize", None, None, None, None, None, None, row.reason])
    return Grid(
        title=f"SkewSize of {attribute}",
        caption=f"How strongly the answers of each true class depend on {attribute} (Cramer's V, 0 to 1), raw and"
        f" without its bias, and the skewness of V over the classes; q is of independence (permutations, BH).{warning}",
        columns=["measure", "n", "value or V", "corrected V", "low", "high", "q", "note"],
        rows=cells,
    )


def v_bars(attribute: str, classes: Sequence[Row]) -> Bars:
    highest = sorted(classes, key=lambda row: -(row.corrected_v or 0.0))[:MOST_BARS]
    return Bars(
        title=f"Dependence of the answers on {attribute}",
        caption="Bias-corrected Cramer's V of each true class, highest first.",
        value_label="corrected V",
        bars=[Bar(row.name or "", row.corrected_v or 0.0, n=row.n) for row in highest],
    )
