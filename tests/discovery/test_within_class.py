"""Parts of one class in which a model fails, cut finer than by bins."""

import numpy as np
import pyarrow as pa

from snellen.discovery._within_class import Split, number_columns, within_classes
from snellen.discovery.subgroup import SubgroupAnalysis
from snellen.models import ModelSpec
from snellen.probe import Context
from snellen.stats import Grouping, group_attribute

NAMES = tuple("abcdefgh")


def drawn(rng, n=1200):
    """Classes in balance, an angle, a site; answers right on 95 % wherever."""
    labels = Grouping(np.arange(n) % len(NAMES), NAMES)
    columns = {"angle": rng.integers(-30, 31, n).astype(float), "site": rng.choice(["A", "B", "C"], n)}
    groups = {name: group_attribute(values.tolist()) for name, values in columns.items()}
    return labels, groups, {"angle": columns["angle"]}, columns["site"], rng.random(n) < 0.95


def test_a_fault_at_both_ends_of_a_number_in_one_class_is_named():
    rng = np.random.default_rng(0)
    labels, groups, numbers, _, correct = drawn(rng)
    struck = (labels.codes == 2) & (np.abs(numbers["angle"]) > 15)
    correct &= ~(struck & (rng.random(len(correct)) < 0.6))
    (found,) = within_classes(labels, groups, numbers, correct, rng)
    (_, name), (attribute, value) = found.where
    assert (name, attribute) == ("c", "angle")
    assert value.startswith("-30 to -")
    assert value.endswith(" to 30")
    assert " or " in value
    assert struck[found.rows].mean() > 0.9
    assert found.high is not None
    assert found.accuracy < found.high < found.rest_correct / found.rest_n
    assert found.n + found.rest_n == (labels.codes == 2).sum()


def test_a_site_that_spoils_one_class_is_named():
    rng = np.random.default_rng(1)
    labels, groups, numbers, site, correct = drawn(rng)
    correct &= ~((labels.codes == 5) & (site == "B") & (rng.random(len(correct)) < 0.6))
    (found,) = within_classes(labels, groups, numbers, correct, rng)
    assert found.where == (("class", "f"), ("site", "B"))


def test_what_spoils_every_class_alike_is_not_told_class_by_class():
    told = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels, groups, numbers, site, correct = drawn(rng)
        correct &= ~((site == "B") & (rng.random(len(correct)) < 0.4))
        told += len(within_classes(labels, groups, numbers, correct, rng, permutations=199))
    assert told <= 1


def test_chance_is_rarely_told():
    told = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels, groups, numbers, _, correct = drawn(rng)
        told += bool(within_classes(labels, groups, numbers, correct, rng, permutations=199))
    assert told <= 4


def test_nothing_to_split_is_no_error():
    rng = np.random.default_rng(2)
    labels, groups, numbers, _, correct = drawn(rng)
    assert within_classes(labels, {}, {}, correct, rng) == []
    assert within_classes(labels, groups, numbers, np.ones_like(correct), rng) == []
    assert within_classes(labels, groups, numbers, np.zeros_like(correct), rng) == []
    nobody = {"site": Grouping(np.full(len(correct), -1), ())}
    assert within_classes(labels, nobody, {}, correct, rng) == []


def test_missing_numbers_are_in_no_part():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    assert Split("x", 2, 4).inside(values).tolist() == [False, False, True, False]
    assert Split("x", 2, 4, outside=True).inside(values).tolist() == [True, False, False, True]
    assert Split("x", 2, 4, outside=True).ranges(values) == "1 to 1 or 5 to 5"


def test_numbers_are_read_in_the_order_of_the_ids():
    samples = pa.table(
        {"id": [f"s{i}" for i in range(12)], "x": [*range(11), None], "few": [1, 2] * 6, "word": list("abcdefghijkl")}
    )
    found = number_columns(
        samples, pa.chunked_array([["s11", "s3", *(f"s{i}" for i in range(9))]]), ("x", "few", "word")
    )
    assert list(found) == ["x"]
    assert np.isnan(found["x"][0])
    assert found["x"][1:4].tolist() == [3, 0, 1]


def test_the_probe_says_against_what():
    rng = np.random.default_rng(3)
    labels, _, numbers, site, correct = drawn(rng)
    correct &= ~((labels.codes == 2) & (np.abs(numbers["angle"]) > 15) & (rng.random(len(correct)) < 0.4))
    ids = [f"s{i:04}" for i in range(len(correct))]
    predicted = np.where(correct, labels.codes, (labels.codes + 1) % len(NAMES))
    confidence = pa.array(np.full(len(ids), 0.9), pa.float32())
    predictions = pa.table({"id": ids, "label": labels.codes, "predicted": predicted, "confidence": confidence})
    samples = pa.table({"id": ids, "angle": numbers["angle"].astype(int), "site": site})
    context = Context(ModelSpec("m", NAMES, (8, 8)), samples, ("angle", "site"))
    probe = SubgroupAnalysis(permutations=199)
    findings = probe.findings(probe.run({"predictions": predictions}, context), context)
    (found,) = [finding for finding in findings if "for the others of class c" in finding.title]
    assert found.subject["class"] == "c"
    assert found.subject["attribute"] == "angle"
    assert found.measured == ("value",)
