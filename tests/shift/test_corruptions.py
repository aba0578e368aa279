"""The probe on a small real network, trained here on handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.exhibits import Curve
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context, Finding, Rows
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift.corruptions import CORRUPTIONS, GROUPS, Corruptions, corrupt
from snellen.stats import paired_difference

SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32), mean=(0.0,), std=(1.0,))
PROBE = Corruptions(names=("gaussian_noise", "contrast", "fog"), severities=(1.0, 2.5, 5.0))
RANDOM = SampleRandom(0, PROBE.name)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    return F.interpolate(grey, size=(32, 32), mode="bilinear").clamp(0, 1), torch.from_numpy(labels).long()


@pytest.fixture(scope="module")
def model(digits: tuple[Tensor, Tensor]) -> TorchModel:
    images, labels = (part[:1000] for part in digits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return TorchModel(network, SPEC)


def batch_of(digits: tuple[Tensor, Tensor], start: int, stop: int) -> Batch:
    return Batch([f"digit-{i}" for i in range(start, stop)], digits[0][start:stop], digits[1][start:stop])


@pytest.fixture(scope="module")
def table(model: TorchModel, digits: tuple[Tensor, Tensor]) -> Rows:
    return PROBE.run(model, batch_of(digits, 1000, 1400), RANDOM)


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(SPEC, pa.table({"id": [], "label": []}))


def of(findings: list[Finding], corruption: str) -> Finding:
    return next(finding for finding in findings if finding.subject["corruption"] == corruption)


def correct(table: Rows, corruption: str, severity: float) -> np.ndarray:
    rows = [row for row in table.to_pylist() if row["shift"] == corruption and row["severity"] == severity]
    return np.array([row["correct"] for row in rows], dtype=bool)


def test_rows_hold_each_condition_once_and_the_clean_image_once(table: Rows) -> None:
    assert table.column_names == ["id", "label", "shift", "severity", "predicted", "correct"]
    assert table.num_rows == 400 * (1 + 3 * 3)
    keys = list(zip(*(table[name].to_pylist() for name in ("id", "shift", "severity")), strict=True))
    assert len(set(keys)) == len(keys)
    assert correct(table, "clean", 0.0).size == 400
    for row in table.to_pylist():
        assert row["correct"] == (row["label"] == row["predicted"])


def test_predictions_are_those_on_corrupted_images(
    table: Rows, model: TorchModel, digits: tuple[Tensor, Tensor]
) -> None:
    batch = batch_of(digits, 1000, 1400)
    generators = RANDOM.generators(batch.ids, "fog")
    expected = model.labels(corrupt(batch.images, "fog", 2.5, generators)) == batch.labels
    assert np.array_equal(correct(table, "fog", 2.5), expected.numpy())


def test_rows_do_not_depend_on_the_batch(table: Rows, model: TorchModel, digits: tuple[Tensor, Tensor]) -> None:
    shards = [PROBE.run(model, batch_of(digits, a, b), RANDOM) for a, b in ((1000, 1007), (1007, 1400))]
    order = [("id", "ascending"), ("shift", "ascending"), ("severity", "ascending")]
    assert pa.concat_tables(shards).sort_by(order).equals(table.sort_by(order))


def test_labels_access_is_enough_and_cost_is_what_is_spent(model: TorchModel, digits: tuple[Tensor, Tensor]) -> None:
    blind = model.restrict(Access.LABELS)
    before = model.ledger.totals
    PROBE.run(blind, batch_of(digits, 1000, 1020), RANDOM)
    spent = model.ledger.totals - before
    assert (spent.forward, spent.backward) == (PROBE.cost(20).forward, PROBE.cost(20).backward) == (200, 0)


def test_a_fall_is_stated_with_its_start_interval_and_evidence(table: Rows, context: Context) -> None:
    finding = of(PROBE.findings(table, context), "gaussian_noise")
    clean = correct(table, "clean", 0.0)
    noisy = [correct(table, "gaussian_noise", severity) for severity in PROBE.severities]
    assert finding.value == pytest.approx(clean.mean() - noisy[1].mean())
    assert finding.effect == pytest.approx(max(clean.mean() - np.mean(noisy), 0))
    assert finding.ci == tuple(paired_difference(clean, noisy[1]))
    assert finding.subject["severity"] == 2.5

    flat = of(PROBE.findings(table, context), "contrast")
    assert flat.subject["starts_at"] in PROBE.severities
    assert f"it starts at severity {flat.subject['starts_at']:g}" in flat.title
    assert flat.p_value is not None
    right = {row["id"] for row in table.to_pylist() if row["shift"] == "clean" and row["correct"]}
    assert 0 < len(flat.evidence) <= 12
    assert set(flat.evidence) <= right


def rows_from(clean: list[bool], corrupted: dict[float, list[bool]]) -> Rows:
    conditions = [("clean", 0.0, clean), *(("fog", severity, row) for severity, row in corrupted.items())]
    return pa.table(
        {
            "id": [f"s{i}" for _, _, row in conditions for i in range(len(row))],
            "label": [0 for _, _, row in conditions for _ in row],
            "shift": [name for name, _, row in conditions for _ in row],
            "severity": [severity for _, severity, row in conditions for _ in row],
            "predicted": [0 if right else 1 for _, _, row in conditions for right in row],
            "correct": [right for _, _, row in conditions for right in row],
        }
    )


def test_the_first_significant_severity_is_the_start(context: Context) -> None:
    clean = [True] * 200
    falls = {1.0: [True] * 200, 2.0: [False] * 4 + [True] * 196, 3.0: [False] * 60 + [True] * 140}
    finding = of(Corruptions(("fog",), (1.0, 2.0, 3.0)).findings(rows_from(clean, falls), context), "fog")
    assert finding.subject["starts_at"] == 3.0
    assert finding.title == "Accuracy falls from 1.00 to 0.98 under fog of severity 2; it starts at severity 3"
    assert finding.evidence[0] in {"s0", "s1", "s2", "s3"}


def test_no_harm_is_stated_only_with_enough_samples(context: Context) -> None:
    probe = Corruptions(("fog",), (1.0, 2.0))
    many = of(probe.findings(rows_from([True] * 500, {1.0: [True] * 500, 2.0: [True] * 500}), context), "fog")
    assert many.enough_data
    assert "no drop" in many.title
    few = of(probe.findings(rows_from([True] * 12, {1.0: [True] * 12, 2.0: [True] * 12}), context), "fog")
    assert not few.enough_data
    assert "not enough data: n = 12, needs about" in few.title
    assert few.effect == 0.0


def test_a_model_that_knows_nothing_is_not_an_error(context: Context) -> None:
    wrong = [False] * 30
    finding = of(Corruptions(("fog",), (1.0,)).findings(rows_from(wrong, {1.0: wrong}), context), "fog")
    assert finding.value == 0.0


def test_a_run_cut_short_counts_only_complete_samples(context: Context) -> None:
    table = rows_from([True] * 60, {1.0: [True] * 60, 2.0: [False] * 40})
    finding = of(Corruptions(("fog",), (1.0, 2.0)).findings(table, context), "fog")
    assert finding.n == 40


def test_the_summary_is_information(table: Rows, context: Context) -> None:
    summary = of(PROBE.findings(table, context), "all")
    assert summary.effect == 0.0
    assert summary.ci is not None
    assert summary.value is not None
    assert summary.ci[0] <= summary.value <= summary.ci[1]


def curves(exhibits: list[object]) -> Iterator[Curve]:
    for exhibit in exhibits:
        assert isinstance(exhibit, Curve)
        yield exhibit


def test_charts_group_the_corruptions_and_start_at_the_clean_accuracy(table: Rows, context: Context) -> None:
    charts = list(curves(list(PROBE.exhibits(table, context))))
    assert {chart.title.split(": ")[1] for chart in charts} == {"noise", "weather", "digital"}
    for chart in charts:
        for point in chart.points:
            assert point.low is not None
            assert point.high is not None
            assert point.low <= point.y <= point.high
        starts = {point.y for point in chart.points if point.x == 0}
        assert starts == {float(correct(table, "clean", 0.0).mean())}


def test_an_empty_table_says_nothing(context: Context) -> None:
    assert PROBE.findings(rows_from([], {}), context) == []
    assert PROBE.exhibits(rows_from([], {}), context) == []


def test_defaults_are_the_papers() -> None:
    assert Corruptions().names == CORRUPTIONS == tuple(name for names in GROUPS.values() for name in names)
    assert Corruptions().cost(10).forward == 760


@pytest.mark.parametrize(
    "settings",
    [
        {"names": ("fogg",)},
        {"names": ()},
        {"names": ("fog", "fog")},
        {"severities": (0.0, 1.0)},
        {"severities": (2.0, 1.0)},
        {"severities": (6.0,)},
        {"severities": ()},
        {"severities": (float("nan"),)},
    ],
)
def test_settings_are_checked(settings: dict[str, tuple[str, ...] | tuple[float, ...]]) -> None:
    with pytest.raises(InvalidInput):
        Corruptions(**settings)


def test_too_small_images_are_refused_with_the_reason(model: TorchModel) -> None:
    tiny = Batch(["a"], torch.rand(1, 1, 8, 8, generator=torch_generator(0)), torch.zeros(1, dtype=torch.long))
    with pytest.raises(InvalidInput, match="16 px"):
        PROBE.run(model, tiny, RANDOM)
