from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snellen.audit import Examination, Plan
from snellen.data import Dataset
from snellen.exhibits import Bar, Bars, Curve, CurvePoint
from snellen.models import Access, Model
from snellen.report import render_report
from snellen.report.charts import bars_svg, curve_svg
from snellen.report.page import number
from snellen.report.pictures import overlay, thumbnail

EVERYTHING = Plan.model_validate(
    {
        "probes": [
            "predictions",
            "accuracy",
            "calibration",
            "subgroup",
            "uncertainty/conformal",
            {"shift/corruptions": {"names": ["gaussian_noise", "contrast"], "severities": [1, 3]}},
            {"attack/pgd": {"steps": 2}},
            {"certify/smoothing": {"n": 20, "n0": 10}},
            {"explain/cam": {"curve_steps": 4}},
            {"explain/gradients": {"methods": ["saliency"], "curve_steps": 4}},
        ]
    }
)


class Page(HTMLParser):
    """Collects what a reader's machine would fetch or run, and pictures without a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.silent = 0
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        self.fetched += [str(given[key]) for key in ("src", "href") if given.get(key)]
        self.silent += tag == "img" and not given.get("alt")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def page(tiny_model: Model, tiny_data: Dataset, shared_folder: Path) -> str:
    audit = Examination(tiny_model, tiny_data, EVERYTHING, str(shared_folder)).run()
    assert audit.failures == []
    return render_report(audit, ("<b>model</b>", "data & more"))


def test_the_page_needs_no_network_and_runs_no_script(page: str) -> None:
    found = Page(page)
    assert "script" not in found.tags
    assert all(address.startswith(("data:image/", "#")) for address in found.fetched)
    assert not re.search(r"url\(\s*['\"]?http", page)


def test_names_are_escaped(page: str) -> None:
    assert "<b>model</b>" not in page
    assert "&lt;b&gt;model&lt;/b&gt;" in page


def test_every_picture_has_a_text_and_every_chart_a_table(page: str) -> None:
    found = Page(page)
    assert found.silent == 0
    assert page.count("<svg") > 4
    assert page.count("The same as a table") >= page.count('class="chart"')


@pytest.mark.parametrize(
    "family", ["Accuracy", "Confidence and abstention", "Groups", "Shifts", "Attacks", "Certificates", "Explanations"]
)
def test_every_family_has_its_section(page: str, family: str) -> None:
    assert f"<h2>{family}</h2>" in page


def test_what_was_left_out_is_said(tiny_model: Model, tiny_data: Dataset, tmp_path: Path) -> None:
    audit = Examination(tiny_model.restrict(Access.LABELS), tiny_data, EVERYTHING, str(tmp_path)).run()
    text = render_report(audit, ("m", "d"))
    assert "it needs gradients access and the model grants labels" in text


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_thumbnails_keep_the_aspect() -> None:
    assert decoded(thumbnail(torch.rand(3, 32, 64))).shape == (48, 96, 3)
    assert decoded(thumbnail(torch.rand(1, 300, 200))).shape == (96, 64, 3)


def test_an_overlay_is_brightest_where_the_map_is() -> None:
    heat = np.zeros((32, 32))
    heat[:8, :8] = 1
    shown = decoded(overlay(torch.full((3, 32, 32), 0.5), heat.tolist())).astype(float).sum(axis=2)
    assert shown[2:20, 2:20].mean() > shown[40:, 40:].mean() + 100


def test_a_map_of_nothing_is_drawn() -> None:
    assert decoded(overlay(torch.rand(3, 16, 16), [[float("nan")] * 16] * 16)).shape == (96, 96, 3)


def test_markup_in_labels_does_not_reach_the_drawing() -> None:
    hostile = "</text><script>alert(1)</script>"
    bars = bars_svg(Bars("t", "c", "share", [Bar(hostile, 0.5, 0.4, 0.6, 10)]))
    curve = curve_svg(Curve("t", "c", "x", "y", [CurvePoint(0, 0.5, series=hostile), CurvePoint(1, 0.2, series="b")]))
    assert "<script" not in bars
    assert "<script" not in curve


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (3, "3"),
        (12345, "12,345"),
        (0.5, "0.500"),
        (0.99987, "0.99987"),
        (0.00012, "0.00012"),
        (1.0, "1.000"),
    ],
)
def test_numbers_are_not_rounded_into_something_else(value: float | None, shown: str) -> None:
    assert number(value) == shown
