import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snellen.errors import InvalidInput
from snellen.stats import group_attribute


def test_categories_keep_their_names_and_missing_ones_belong_nowhere():
    grouping = group_attribute(["stripes", None, "plain", "stripes", math.nan])
    assert grouping.names == ("plain", "stripes")
    assert grouping.codes.tolist() == [1, -1, 0, 1, -1]
    assert group_attribute([True, False, None]).names == ("no", "yes")


def test_few_numbers_stay_as_they_are_in_numeric_order():
    assert group_attribute([10, 9, 2, 10]).names == ("2", "9", "10")
    assert group_attribute([0.5, 1.0]).names == ("0.5", "1")


def test_many_numbers_become_readable_quantile_bins():
    grouping = group_attribute(list(range(12, 62)))
    assert grouping.names == ("12 to 21", "22 to 31", "32 to 41", "42 to 51", "52 to 61")
    assert np.bincount(grouping.codes).tolist() == [10] * 5


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=80))
def test_bin_names_tell_the_truth(values):
    grouping = group_attribute(values, max_numbers=4)
    for value, code in zip(values, grouping.codes, strict=True):
        assert (code == -1) == (value is None)
        if value is not None and " to " in grouping.names[code]:
            first, last = (float(end) for end in grouping.names[code].split(" to "))
            slack = 1e-9 * max(1, abs(value))
            assert first - slack <= value <= last + slack


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=80))
def test_bins_of_whole_numbers_do_not_overlap(values):
    grouping = group_attribute(values, max_numbers=4)
    assert len(set(grouping.names)) == len(grouping.names)
    for value, code in zip(values, grouping.codes, strict=True):
        name = grouping.names[code]
        first, last = name.split(" to ") if " to " in name else (name, name)
        assert int(first) <= value <= int(last)


def test_a_value_that_holds_most_of_the_mass_is_a_bin_of_its_own():
    grouping = group_attribute([0.0] * 90 + [0.1 * k for k in range(1, 11)])
    assert np.bincount(grouping.codes).tolist() == [90, 10]


def test_rare_categories_beyond_the_limit_belong_nowhere():
    values = [f"c{k}" for k in range(30) for _ in range(k + 1)]
    grouping = group_attribute(values, max_categories=10)
    assert len(grouping.names) == 10
    assert "c29" in grouping.names
    assert "c0" not in grouping.names


def test_too_few_bins_are_refused():
    with pytest.raises(InvalidInput, match="bins"):
        group_attribute([1, 2], bins=1)
