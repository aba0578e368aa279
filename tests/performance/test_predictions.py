import numpy as np
import pyarrow as pa
import pytest
import torch

from snellen.models import Access, ModelSpec, TorchModel
from snellen.performance.predictions import Predictions, confidence_of
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom

SPEC = ModelSpec("linear", ("a", "b", "c"), (4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    return TorchModel(network, SPEC)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(20, 3, 4, 4, generator=generator)
    return Batch([f"s{i}" for i in range(20)], images, torch.arange(20) % 3)


def run(model, batch):
    return Predictions().run(model, batch, SampleRandom(0, "predictions"))


def context(table):
    return Context(SPEC, pa.table({"id": table["id"], "label": table["label"]}))


def test_columns_repeat_what_the_model_says(model, batch):
    table = run(model, batch)
    logits = model.scores(batch.images)
    assert table.column_names == ["id", "label", "predicted", "correct", "confidence", "logits"]
    assert table["id"].to_pylist() == batch.ids
    np.testing.assert_array_equal(table["predicted"].to_numpy(), logits.argmax(1))
    np.testing.assert_array_equal(table["correct"].to_numpy(), (logits.argmax(1) == batch.labels))
    np.testing.assert_allclose(table["confidence"].to_numpy(), logits.softmax(1).amax(1), rtol=1e-6)
    np.testing.assert_array_equal(np.array(table["logits"].to_pylist(), np.float32), logits)
    assert str(table.schema.field("logits").type.value_type) == "float"
    assert table.schema.field("confidence").type == pa.float32()
    assert table.schema.field("label").type == table.schema.field("predicted").type == pa.int64()


def test_one_forward_pass_an_image_and_no_backward(model, batch):
    run(model, batch)
    totals = model.ledger.totals
    assert (totals.forward, totals.backward) == (20, 0)
    assert Predictions().cost(20).forward == 20


def test_labels_access_gives_the_same_answers_without_scores(model, batch):
    table, full = run(model.restrict(Access.LABELS), batch), run(model, batch)
    assert table["predicted"] == full["predicted"]
    assert table["logits"].null_count == 20
    assert np.isnan(table["confidence"].to_numpy()).all()
    assert pa.concat_tables([table, full]).num_rows == 40  # shards of both kinds share one schema


def test_rows_do_not_depend_on_the_batch(model, batch):
    halves = [
        run(model, Batch(batch.ids[part], batch.images[part], batch.labels[part]))
        for part in (slice(0, 7), slice(7, 20))
    ]
    whole, pieces = run(model, batch), pa.concat_tables(halves)
    assert pieces.drop_columns(["confidence", "logits"]) == whole.drop_columns(["confidence", "logits"])
    np.testing.assert_allclose(pieces["confidence"].to_numpy(), whole["confidence"].to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_a_finding(batch, broken):
    def network(images):
        logits = images.flatten(1)[:, :3].clone()
        logits[batch.labels[: len(images)] == 2, 1] = broken
        return logits

    table = run(TorchModel(network, SPEC), batch)
    lost = batch.labels.numpy() == 2
    np.testing.assert_array_equal(table["predicted"].to_numpy() == -1, lost)
    assert not table["correct"].to_numpy()[lost].any()
    (finding,) = Predictions().findings(table, context(table))
    assert finding.kind == "accuracy"
    assert finding.value == finding.effect == 6 / 20
    assert finding.ci[0] < 0.3 < finding.ci[1]
    assert set(finding.evidence) == {batch.ids[i] for i in np.flatnonzero(lost)}


def test_finite_outputs_are_no_finding(model, batch):
    table = run(model, batch)
    assert Predictions().findings(table, context(table)) == []


def test_all_minus_infinity_is_no_answer():
    assert confidence_of(torch.full((1, 3), -torch.inf)).isnan().all()
    one = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert confidence_of(one).item() == 1.0
