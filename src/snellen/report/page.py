"""The page: what was examined, what was found, the exhibits of every probe, what was left out, how to repeat it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from snellen.audit import Audit, Statement
from snellen.audit.findings import SEVERITIES, repeat_command
from snellen.audit.plan import settings_of
from snellen.exhibits import Bars, Curve, Exhibit, Gallery, Grid
from snellen.report.charts import bars_svg, curve_svg
from snellen.report.pictures import overlay, thumbnail

EVIDENCE_SHOWN = 8
FINDINGS_WITH_IMAGES = 40
QUARANTINE_SHOWN = 50
FAMILY_TITLES = {
    "performance": "Accuracy",
    "uncertainty": "Confidence and abstention",
    "discovery": "Groups",
    "shift": "Shifts",
    "attack": "Attacks",
    "certify": "Certificates",
    "explain": "Explanations",
    "repair": "Repairs",
}


@dataclass(frozen=True)
class Picture:
    address: str
    caption: str


@dataclass(frozen=True)
class ShownFinding:
    statement: Statement
    pictures: list[Picture]


@dataclass(frozen=True)
class ShownExhibit:
    """One exhibit, drawn. columns and rows are its text alternative."""

    title: str
    caption: str
    kind: str
    svg: Markup | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    galleries: list[list[Picture]] = field(default_factory=list)


@dataclass(frozen=True)
class ProbeSection:
    label: str
    summary: str
    paper: str
    repeat: str
    exhibits: list[ShownExhibit]


def write_report(audit: Audit, names: tuple[str, str]) -> str:
    """Writes `report.html` into the run directory and returns its path."""
    audit.store.write(render_report(audit, names).encode(), "report.html")
    return audit.store.address(audit.store.path("report.html"))


def render_report(audit: Audit, names: tuple[str, str]) -> str:
    """The page as HTML, complete in itself."""
    manifest = json.loads(audit.store.read_bytes("manifest.json") or b"{}")
    pictures = _Pictures(audit)
    shown = [
        ShownFinding(
            statement,
            pictures.of(statement.finding.evidence[:EVIDENCE_SHOWN]) if place < FINDINGS_WITH_IMAGES else [],
        )
        for place, statement in enumerate(audit.statements)
    ]
    counts = Counter(statement.severity for statement in audit.statements)
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            names=names,
            manifest=manifest,
            findings=[item for item in shown if item.statement.severity != "info"],
            remarks=[item for item in shown if item.statement.severity == "info"],
            counts=[(level, counts[level]) for level in reversed(SEVERITIES) if counts[level]],
            families=_families(audit, names, pictures),
            left_out=audit.left_out,
            failures=audit.failures,
            quarantine=audit.dataset.quarantine[:QUARANTINE_SHOWN],
            quarantined=len(audit.dataset.quarantine),
            warnings=audit.warnings,
            stopped=audit.stopped,
            unreached=audit.unreached,
        )
    )


def templates() -> Environment:
    """The pages' templates: everything is escaped, a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["interval"] = interval
    return environment


def number(value: float | int | None) -> str:
    """A figure for people: three decimals, thousands separated."""
    if value is None:
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.1f}"
    rounded = f"{value:.3f}"
    # 0.99987 is not 1 and 0.00012 is not 0: a threshold rounded so would be another threshold.
    return f"{value:.5g}" if float(rounded) in (-1, 0, 1) and float(rounded) != value else rounded


def interval(ci: tuple[float, float] | None) -> str:
    return "–" if ci is None else f"{number(float(ci[0]))} to {number(float(ci[1]))}"


class _Pictures:
    """Images of samples by id, each encoded once."""

    def __init__(self, audit: Audit) -> None:
        self._loader = audit.loader
        self._row = {sample_id: row for row, sample_id in enumerate(audit.dataset.ids)}
        self._class = audit.model.spec.class_names
        self._labels = audit.dataset.labels
        self._made: dict[str, str] = {}

    def of(self, ids: Sequence[str]) -> list[Picture]:
        return [Picture(self._thumbnail(name), f"{name} ({self.truth(name)})") for name in ids if name in self._row]

    def heat_map(self, sample_id: str, title: str, values: Sequence[Sequence[float]]) -> Picture:
        return Picture(overlay(self._loader.image(self._row[sample_id]), values), title)

    def truth(self, sample_id: str) -> str:
        return self._class[int(self._labels[self._row[sample_id]])]

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._row

    def _thumbnail(self, sample_id: str) -> str:
        if sample_id not in self._made:
            self._made[sample_id] = thumbnail(self._loader.image(self._row[sample_id]))
        return self._made[sample_id]


def _families(audit: Audit, names: tuple[str, str], pictures: _Pictures) -> list[tuple[str, list[ProbeSection]]]:
    sections: dict[str, list[ProbeSection]] = {}
    for entry in audit.entries:
        if entry.label not in audit.tables:
            continue
        probe = entry.probe
        exhibits = probe.exhibits(audit.tables[entry.label], audit.context)
        if not exhibits:
            continue
        module = type(probe).__module__.split(".")
        family = FAMILY_TITLES.get(module[1], module[1].capitalize()) if module[0] == "snellen" else "Plug-ins"
        repeat = repeat_command(probe.name, *names, settings_of(probe), entry.samples, audit.plan.seed, audit.inputs)
        summary = " ".join((type(probe).__doc__ or "").split("\n\n")[0].split())
        drawn = [_draw(exhibit, pictures) for exhibit in exhibits]
        sections.setdefault(family, []).append(ProbeSection(entry.label, summary, probe.paper, repeat, drawn))
    return list(sections.items())


def _draw(exhibit: Exhibit, pictures: _Pictures) -> ShownExhibit:
    if isinstance(exhibit, Curve):
        several = len({point.series for point in exhibit.points}) > 1
        columns = [*(["series"] if several else []), exhibit.x_label, exhibit.y_label, "95 % interval"]
        rows = [
            [*([p.series] if several else []), number(p.x), number(p.y), interval(_bounds(p.low, p.high))]
            for p in exhibit.points
        ]
        svg = Markup(curve_svg(exhibit)) if exhibit.points else None
        return ShownExhibit(exhibit.title, exhibit.caption, "chart", svg, columns, rows)
    if isinstance(exhibit, Bars):
        columns = ["", exhibit.value_label, "95 % interval", "n"]
        rows = [[b.label, number(b.value), interval(_bounds(b.low, b.high)), number(b.n)] for b in exhibit.bars]
        svg = Markup(bars_svg(exhibit)) if exhibit.bars else None
        return ShownExhibit(exhibit.title, exhibit.caption, "chart", svg, columns, rows)
    if isinstance(exhibit, Grid):
        rows = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in exhibit.rows]
        return ShownExhibit(exhibit.title, exhibit.caption, "table", None, list(exhibit.columns), rows)
    return _draw_gallery(exhibit, pictures)


def _draw_gallery(gallery: Gallery, pictures: _Pictures) -> ShownExhibit:
    drawn = []
    for item in gallery.items:
        if item.sample_id not in pictures:
            continue
        original = pictures.of([item.sample_id])[0]
        maps = [pictures.heat_map(item.sample_id, title, values) for title, values in item.heat_maps]
        drawn.append([Picture(original.address, item.note), *maps])
    return ShownExhibit(gallery.title, gallery.caption, "gallery", galleries=drawn)


def _bounds(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
