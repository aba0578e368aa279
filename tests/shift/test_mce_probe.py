"""mCE from stored rows: against itself 100, against AlexNet the published arithmetic, against a run on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snellen.errors import InvalidInput
from snellen.models import ModelSpec
from snellen.probe import Context, Rows
from snellen.shift._mce import ALEXNET_ERRORS
from snellen.shift.mce import MeanCorruptionError, errors_of

CONTEXT = Context(ModelSpec("m", ("a", "b"), (8, 8)), pa.table({"id": [], "label": []}))
RUNS = "shift/corruptions"


def corruption_rows(error: dict[str, float], clean: float = 0.1, n: int = 400, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    conditions = [("clean", 0.0, clean), *((name, s, rate) for name, rate in error.items() for s in (1.0, 3.0))]
    return pa.table(
        {
            "id": [f"s{i}" for _ in conditions for i in range(n)],
            "shift": [name for name, _, _ in conditions for _ in range(n)],
            "severity": [s for _, s, _ in conditions for _ in range(n)],
            "correct": np.concatenate([rng.random(n) >= rate for _, _, rate in conditions]),
        }
    )


def test_a_model_against_itself_is_100(tmp_path: Path) -> None:
    table = corruption_rows({"fog": 0.3, "snow": 0.5})
    folder = tmp_path / "results" / RUNS
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "a.parquet")
    probe = MeanCorruptionError(str(tmp_path))
    plain, relative = probe.findings(probe.run({RUNS: table}, CONTEXT), CONTEXT)
    assert plain.value == pytest.approx(100)
    assert relative.value == pytest.approx(100)
    assert plain.ci is not None
    assert plain.ci[0] < 100 < plain.ci[1]
    assert plain.n == 400


def test_against_alexnet_the_published_errors_divide() -> None:
    table = corruption_rows({"fog": 0.3, "snow": 0.5})
    probe = MeanCorruptionError()
    (plain, _) = probe.findings(probe.run({RUNS: table}, CONTEXT), CONTEXT)
    errors = errors_of(table)
    expected = 100 * np.mean([np.mean(errors[name]) / ALEXNET_ERRORS[name] for name in ("fog", "snow")])
    assert plain.value == pytest.approx(expected)
    (grid,) = probe.exhibits(probe.run({RUNS: table}, CONTEXT), CONTEXT)
    assert [row[0] for row in grid.rows] == ["fog", "snow", "clean"]


def test_the_interval_covers_the_truth() -> None:
    expected = 100 * np.mean([0.3 / ALEXNET_ERRORS["fog"], 0.5 / ALEXNET_ERRORS["snow"]])
    probe, inside = MeanCorruptionError(), []
    for seed in range(100):
        table = corruption_rows({"fog": 0.3, "snow": 0.5}, n=150, seed=seed)
        ci = probe.findings(probe.run({RUNS: table}, CONTEXT), CONTEXT)[0].ci
        assert ci is not None
        inside.append(ci[0] <= expected <= ci[1])
    assert np.mean(inside) > 0.89


def test_a_reference_that_does_not_suffer_leaves_it_undefined(tmp_path: Path) -> None:
    folder = tmp_path / "results" / RUNS
    folder.mkdir(parents=True)
    pq.write_table(corruption_rows({"fog": 0.0}, clean=0.0), folder / "a.parquet")
    probe = MeanCorruptionError(str(tmp_path))
    plain, _ = probe.findings(probe.run({RUNS: corruption_rows({"fog": 0.3})}, CONTEXT), CONTEXT)
    assert plain.value is None
    assert "undefined" in plain.title


def test_a_wrong_reference_is_told_and_an_empty_table_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="run directory"):
        MeanCorruptionError(str(tmp_path / "nowhere"))
    assert MeanCorruptionError().findings(pa.table({}), CONTEXT) == []
    assert MeanCorruptionError().exhibits(pa.table({}), CONTEXT) == []
