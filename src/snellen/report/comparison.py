"""The page of two runs side by side: what changed, and the paired tests behind it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from snellen.audit.compare import CHANGE_KINDS, Change, Comparison
from snellen.audit.pairing import PairedRow
from snellen.exhibits import Bar, Bars
from snellen.report.charts import bars_svg
from snellen.report.page import ShownExhibit, interval, number, templates

MOST_BARS = 24
"""Of more conditions the chart has those that changed most; the table has all."""

METRIC_TITLES = {
    "accuracy": "Accuracy",
    "robust_accuracy": "Robust accuracy",
    "shift_accuracy": "Accuracy under shifts",
    "certified_accuracy": "Certified accuracy",
    "coverage": "Coverage of prediction sets",
}
WHAT_CHANGED = {
    "appeared": "new",
    "graver": "graver",
    "moved": "moved",
    "milder": "milder",
    "gone": "gone",
}


def render_comparison(comparison: Comparison) -> str:
    """The page as HTML, complete in itself."""
    weighty = [change for change in comparison.changes if concerns(change)]
    counts = Counter(change.kind for change in weighty)
    return (
        templates()
        .get_template("comparison.html.j2")
        .render(
            before=comparison.before,
            after=comparison.after,
            warnings=comparison.warnings,
            changes=weighty,
            remarks=[change for change in comparison.changes if not concerns(change)],
            wording=WHAT_CHANGED,
            counts=[(WHAT_CHANGED[kind], counts[kind]) for kind in CHANGE_KINDS if counts[kind]],
            pairs=[(probe, [_drawn(rows)]) for probe, rows in _by_probe(comparison.pairs).items()],
            refused=comparison.refused,
        )
    )


def comparison_json(comparison: Comparison) -> str:
    """The comparison for programs."""
    sides = {"before": comparison.before, "after": comparison.after}
    return json.dumps(
        {
            **{
                side: {"run": run.url, "model": run.manifest.model.name, "data": run.manifest.data.name}
                for side, run in sides.items()
            },
            "warnings": comparison.warnings,
            "changes": [
                {
                    "change": change.kind,
                    "id": change.finding.id,
                    "before": change.before and change.before.model_dump(mode="json"),
                    "after": change.after and change.after.model_dump(mode="json"),
                }
                for change in comparison.changes
            ],
            "pairs": [{**vars(row), "condition": dict(row.condition)} for row in comparison.pairs],
            "refused": [refusal._asdict() for refusal in comparison.refused],
        },
        indent=1,
    )


def concerns(change: Change) -> bool:
    """Whether either side is more than a remark."""
    return any(side is not None and side.severity != "info" for side in (change.before, change.after))


def condition_of(row: PairedRow) -> str:
    """The condition of a row in words: "fog, severity 3"."""
    shown = dict(row.condition)
    words = [str(shown.pop("shift", shown.pop("method", ""))).replace("_", " ")]
    eps = shown.get("eps")
    if isinstance(eps, float) and shown.get("norm") == "linf":
        shown["eps"] = f"{eps * 255:.4g}/255"
    words += [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    return ", ".join(filter(None, [row.group, *words])) or "all samples"


def _by_probe(pairs: Sequence[PairedRow]) -> dict[str, list[PairedRow]]:
    found: dict[str, list[PairedRow]] = {}
    for row in pairs:
        found.setdefault(row.probe, []).append(row)
    return found


def _drawn(rows: Sequence[PairedRow]) -> ShownExhibit:
    """A bar a condition with its table beside it."""
    largest = sorted(rows, key=lambda row: -abs(row.difference))[:MOST_BARS]
    drawn = [row for row in rows if row in largest]
    bars = Bars(
        title="",
        caption="",
        value_label="second run minus first",
        bars=[Bar(condition_of(row), row.difference, row.low, row.high, row.n) for row in drawn],
        reference=0.0,
    )
    caption = "Second run minus first on the same samples, with 95 % intervals; to the left the second is worse."
    if len(drawn) < len(rows):
        caption += f" The {len(drawn)} of {len(rows)} that differ most."
    columns = ["condition", "first", "second", "difference", "95 % interval", "p", "q", "n"]
    cells = [
        [
            condition_of(row),
            number(row.before),
            number(row.after),
            f"{row.difference:+.3f}",
            interval((row.low, row.high)),
            f"{row.p_value:.2g}",
            f"{row.q_value:.2g}",
            number(row.n),
        ]
        for row in rows
    ]
    title = METRIC_TITLES.get(rows[0].metric, rows[0].metric)
    return ShownExhibit(title, caption, "chart", Markup(bars_svg(bars)), columns, cells)
