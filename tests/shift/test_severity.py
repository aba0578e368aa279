from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snellen.shift import _blur, _digital, _noise, _weather
from snellen.shift._severity import SeverityTable

TABLES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (_noise, _blur, _weather, _digital)
    for name, value in vars(module).items()
    if isinstance(value, SeverityTable)
}


def test_there_is_a_table_for_each_of_the_fifteen_corruptions() -> None:
    assert len(TABLES) == 15


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_published_severities_are_exact_at_the_published_sizes(name: str, severity: int) -> None:
    table = TABLES[name]
    assert table.constants(severity, 224) == tuple(table.imagenet[severity - 1])
    assert table.constants(severity, 32) == tuple(table.cifar[severity - 1])
    assert table.constants(severity, 16) == tuple(table.cifar[severity - 1])


@pytest.mark.parametrize("name", TABLES)
def test_the_curve_has_no_jumps(name: str) -> None:
    table = TABLES[name]
    for side in (32, 97, 224, 512):
        for severity in (1, 2, 3, 4):
            before, after = (table.constants(severity + step, side) for step in (-1e-9, 1e-9))
            assert before == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("name", TABLES)
def test_sizes_between_the_published_ones_get_constants_between(name: str) -> None:
    table = TABLES[name]
    ends = [table.constants(2.3, side) for side in (32, 224)]
    steps = [table.constants(2.3, side) for side in (32, 60, 97, 150, 224)]
    for index, (a, b) in enumerate(zip(*ends, strict=True)):
        walked = sum(abs(after[index] - before[index]) for before, after in itertools.pairwise(steps))
        assert walked == pytest.approx(abs(a - b))


@pytest.mark.parametrize("name", TABLES)
def test_halfway_severities_lie_halfway(name: str) -> None:
    table = TABLES[name]
    middle = [(a + b) / 2 for a, b in zip(table.constants(2, 224), table.constants(3, 224), strict=True)]
    assert table.constants(2.5, 224) == pytest.approx(middle)


def test_sizes_mix_in_the_logarithm() -> None:
    side = round(math.sqrt(32 * 224))
    (std,) = _noise.GAUSSIAN_NOISE.constants(5, side)
    assert std == pytest.approx((0.10 + 0.38) / 2, abs=1e-3)


def test_beyond_224_px_lengths_grow_and_strengths_stay() -> None:
    assert _blur.MOTION_BLUR.constants(5, 448) == pytest.approx((40, 30))
    assert _blur.DEFOCUS_BLUR.constants(5, 448) == pytest.approx((20, 0.5))
    assert _noise.GAUSSIAN_NOISE.constants(5, 448) == pytest.approx((0.38,))
    alpha, sigma, reach = _digital.ELASTIC_TRANSFORM.constants(1, 448)
    assert (alpha, sigma, reach) == pytest.approx((4 * 488, 2 * 170.8, 2 * 24.4))


@given(severity=st.floats(0, 5), side=st.integers(16, 2000))
def test_constants_are_finite_everywhere(severity: float, side: int) -> None:
    for table in TABLES.values():
        assert all(math.isfinite(value) for value in table.constants(severity, side))
