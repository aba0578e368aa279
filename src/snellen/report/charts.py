"""Curves and bars as inline SVG, drawn by Altair and converted here, so that a page needs no script and no network."""

from __future__ import annotations

import re

import altair as alt
import vl_convert

from snellen.exhibits import Bars, Curve

WIDTH = 560
COLOURS = ["#1b6ca8", "#c8553d", "#4f8a3c", "#8a5fa8", "#b58a1b", "#3a8c8c", "#a83a6b", "#6b6b6b"]


def curve_svg(curve: Curve) -> str:
    """Lines with points and, where given, bands of their 95 % intervals."""
    rows = [
        {"x": point.x, "y": point.y, "low": point.low, "high": point.high, "series": point.series or curve.y_label}
        for point in curve.points
    ]
    several = len({row["series"] for row in rows}) > 1
    legend = alt.Legend(title=None, orient="bottom", columns=3, labelLimit=240, symbolOpacity=1) if several else None
    colour = alt.Color("series:N", legend=legend, scale=alt.Scale(range=COLOURS), sort=None)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", title=curve.x_label, scale=alt.Scale(zero=False, nice=False)),
        y=alt.Y("y:Q", title=curve.y_label, scale=alt.Scale(domain=_domain(curve))),
        color=colour,
    )
    layers: list[alt.Chart] = []
    if any(row["low"] is not None for row in rows):
        layers.append(base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title=curve.y_label), y2="high:Q"))
    layers += [base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=30)]
    if curve.diagonal:
        ends = alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}])
        layers.append(alt.Chart(ends).mark_line(strokeDash=[4, 4], color="#888").encode(x="x:Q", y="y:Q"))
    return _svg(alt.layer(*layers).properties(width=WIDTH, height=260))


def bars_svg(bars: Bars) -> str:
    """Horizontal bars with whiskers and a reference line."""
    rows = [
        {
            "label": bar.label if bar.n is None else f"{bar.label} (n={bar.n})",
            "value": bar.value,
            "low": bar.low,
            "high": bar.high,
        }
        for bar in bars.bars
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=220))
    )
    layers: list[alt.Chart] = [base.mark_bar(color="#9dbfd9").encode(x=alt.X("value:Q", title=bars.value_label))]
    if any(row["low"] is not None for row in rows):
        layers.append(base.mark_rule(strokeWidth=2, color="#1b3a57").encode(x="low:Q", x2="high:Q"))
    if bars.reference is not None:
        reference = alt.Data(values=[{"x": bars.reference}])
        layers.append(alt.Chart(reference).mark_rule(strokeDash=[4, 4], color="#c8553d").encode(x="x:Q"))
    return _svg(alt.layer(*layers).properties(width=WIDTH - 160, height=max(40, 20 * len(rows))))


def _domain(curve: Curve) -> list[float]:
    values = [value for point in curve.points for value in (point.y, point.low, point.high) if value is not None]
    highest = max(values)
    return [min(0.0, *values), 1.0 if highest <= 1 else highest]


def _svg(chart: alt.LayerChart) -> str:
    chart = chart.configure_view(stroke=None).configure_axis(
        grid=True, gridColor="#e8e8e8", labelFontSize=11, titleFontSize=12, titleFontWeight="normal", domain=False
    )
    svg: str = vl_convert.vegalite_to_svg(chart.to_dict())
    # The page scales the drawing by its view box; ids of clip paths would clash between charts.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
