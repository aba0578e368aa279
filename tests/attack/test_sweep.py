import math

import pyarrow as pa
import pytest
import torch

from snellen.attack.apgd import APGD
from snellen.attack.pgd import PGD
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom

GRID = (0.02, 0.05, 0.1, 0.2)


def examined(probe, digits, model=None, copies=1):
    ids = [f"{copy}-{i}" for copy in range(copies) for i in range(60)]
    images, labels = digits.images.repeat(copies, 1, 1, 1), digits.labels.repeat(copies)
    table = probe.run(model or digits.model, Batch(ids, images, labels), SampleRandom(0, probe.name))
    samples = pa.table({"id": ids, "label": labels.numpy()})
    return table, Context((model or digits.model).spec, samples)


@pytest.mark.parametrize("probe", [PGD(eps=GRID, steps=5), APGD(eps=GRID, steps=5)])
def test_robust_accuracy_never_rises_with_eps_for_any_sample(digits, probe):
    table, _ = examined(probe, digits)
    robust = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["eps"]):
        robust.setdefault(row["id"], []).append(row["robust"])
    assert all(len(values) == 4 and values == sorted(values, reverse=True) for values in robust.values())


def test_rows_say_what_they_promise(digits):
    table, _ = examined(PGD(eps=GRID, steps=5), digits)
    predicted = dict(zip([f"0-{i}" for i in range(60)], digits.model.labels(digits.images).tolist(), strict=True))
    assert not all(row["clean_correct"] for row in table.to_pylist())
    for row in table.to_pylist():
        assert row["clean_correct"] == (predicted[row["id"]] == row["label"])
        if row["robust"]:
            assert row["clean_correct"]
            assert row["distance"] is None
            assert row["adversarial_label"] == row["label"]
        else:
            assert row["adversarial_label"] != row["label"]
            assert row["distance"] <= row["eps"] + 1e-6
        if not row["clean_correct"]:
            assert row["distance"] == 0


def test_shards_have_one_schema(digits):
    def schema(eps, labels):
        batch = Batch(["a"], digits.images[:1], labels)
        return PGD(eps=(eps,), steps=1).run(digits.model, batch, SampleRandom(0, "attack/pgd")).schema

    right = digits.model.labels(digits.images[:1])
    assert schema(1e-6, right) == schema(0.3, (right + 1) % 10)


def test_only_correct_images_and_survivors_are_attacked(digits):
    wrong = (digits.model.labels(digits.images) + 1) % 10
    before = digits.model.ledger.totals
    batch = Batch([str(i) for i in range(60)], digits.images, wrong)
    PGD(eps=GRID).run(digits.model, batch, SampleRandom(0, "attack/pgd"))
    spent = digits.model.ledger.totals - before
    assert (spent.forward, spent.backward) == (60, 0)


def test_finding_states_harm_with_interval_test_and_evidence(digits):
    table, context = examined(PGD(eps=GRID, steps=10), digits, copies=3)
    probe = PGD(eps=GRID, steps=10)
    (finding,) = probe.findings(table, context)
    middle = [row for row in table.to_pylist() if row["eps"] == 0.05]
    robust = sum(row["robust"] for row in middle) / 180
    assert finding.value == pytest.approx(robust)
    assert finding.effect == pytest.approx(finding.baseline - robust)
    assert finding.ci[0] < robust < finding.ci[1]
    assert finding.p_value < 1e-3
    assert finding.subject["eps"] == 0.05
    assert "half of the correct answers are lost at eps about" in finding.title
    distances = {row["id"]: row["distance"] for row in table.to_pylist() if row["eps"] == 0.2}
    shown = [distances[sample] for sample in finding.evidence]
    assert shown == sorted(shown)
    assert len(shown) == 12


def test_exhibit_starts_at_clean_accuracy_and_falls(digits):
    probe = PGD(eps=GRID, steps=5)
    table, context = examined(probe, digits)
    (curve,) = probe.exhibits(table, context)
    values = [point.y for point in curve.points]
    assert [point.x for point in curve.points] == pytest.approx([0, *(255 * eps for eps in GRID)])
    assert values == sorted(values, reverse=True)
    assert all(point.low <= point.y <= point.high for point in curve.points)


def test_a_few_samples_are_said_to_be_too_few(digits):
    probe = PGD(eps=(1e-4,), steps=2)
    table = probe.run(
        digits.model, Batch(list("abcde"), digits.images[:5], digits.model.labels(digits.images[:5])),
        SampleRandom(0, probe.name),
    )  # fmt: skip
    (finding,) = probe.findings(table, Context(digits.model.spec, pa.table({"id": list("abcde")})))
    assert not finding.enough_data
    assert finding.title.startswith("not enough data: n = 5, needs about")


def test_masked_gradients_raise_a_red_flag_and_the_cross_check_clears_it(digits):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = digits.network

        def forward(self, images):
            return 1000 * self.inner(images)

    model = TorchModel(Scaled(), digits.model.spec)
    blind = PGD(eps=GRID, steps=5)
    main, flag = blind.findings(*examined(blind, digits, model, copies=3))
    assert "not to be trusted" in main.title
    assert "attack/apgd with loss dlr" in flag.title
    assert flag.effect > 0.3
    sighted = APGD(eps=GRID, steps=5, loss="dlr")
    assert len(sighted.findings(*examined(sighted, digits, model, copies=3))) == 1


def test_probabilities_instead_of_logits_raise_a_red_flag(digits):
    model = TorchModel(torch.nn.Sequential(digits.network, torch.nn.Softmax(1)), digits.model.spec)
    probe = PGD(eps=GRID, steps=5)
    findings = probe.findings(*examined(probe, digits, model))
    assert any("probabilities" in finding.title for finding in findings)


def test_answers_that_are_not_finite_count_as_wrong_and_break_nothing(digits):
    def broken(images):
        logits = digits.network(images)
        return torch.where(images.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > 0.31, math.nan * logits, logits)

    spec = ModelSpec("broken", tuple("0123456789"), (8, 8), mean=(0.0,), std=(1.0,))
    model = TorchModel(broken, spec, access=Access.GRADIENTS)
    table, context = examined(PGD(eps=GRID, steps=5), digits, model)
    assert -1 in table["adversarial_label"].to_pylist()
    assert PGD(eps=GRID).findings(table, context)
