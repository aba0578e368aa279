import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import norm as gaussian
from sklearn.datasets import load_digits
from torch import nn

from snellen.attack.pgd import pgd
from snellen.certify.smoothing import (
    Smoothing,
    average_certified_radius,
    certified_radius,
    certify,
    lower_bound,
    needed_copies,
    predict,
    radius_curve,
    sample_counts,
)
from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom, normal

SHAPE = (1, 4, 4)


def generators(count, seed=0):
    return SampleRandom(seed, "test").generators([str(i) for i in range(count)])


class Halfspace(nn.Module):
    """Class 1 where w.x > b: the smoothed classifier is the same, its radius is |w.x - b| / |w|."""

    def __init__(self, shape=SHAPE):
        super().__init__()
        w = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0))
        self.register_buffer("w", w / w.norm())
        self.eval()

    def forward(self, images):
        margin = images.flatten(1) @ self.w - 0.5 * self.w.sum()
        return torch.stack([-margin, margin], 1)

    def radius(self, images):
        return self(images)[:, 1].abs().double()


def constant(images):
    return torch.full((len(images),), 2)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5000), data=st.data(), alpha=st.floats(1e-4, 0.4))
def test_lower_bound_is_the_exact_one_sided_interval(n, data, alpha):
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact").low
    assert lower_bound(k, n, alpha) == pytest.approx(expected, abs=1e-12)
    if k < n:
        assert lower_bound(k, n, alpha) <= lower_bound(k + 1, n, alpha)


@pytest.mark.parametrize("p", [0.3, 0.55, 0.9, 0.99])
def test_lower_bound_covers(p):
    alpha, trials = 0.05, 10_000
    drawn = np.random.default_rng(0).binomial(100, p, trials)
    bounds = np.array([lower_bound(k, 100, alpha) for k in range(101)])[drawn]
    slack = 3 * math.sqrt(alpha * (1 - alpha) / trials)
    assert (bounds <= p).mean() >= 1 - alpha - slack


def test_constant_classifier_gets_the_largest_radius_there_is():
    result = certify(constant, torch.rand(3, *SHAPE), 0.5, generators(3), 4, n0=20, n=500, alpha=0.001)
    assert result.predicted.tolist() == [2, 2, 2]
    assert result.radius.tolist() == pytest.approx([0.5 * gaussian.ppf(0.001 ** (1 / 500))] * 3, rel=1e-12)


def test_coin_flips_are_not_certified():
    coin = torch.Generator().manual_seed(0)
    result = certify(
        lambda x: torch.randint(0, 5, (len(x),), generator=coin), torch.rand(20, *SHAPE), 0.5, generators(20), 5, n=1000
    )
    assert (result.predicted == -1).all()
    assert not result.radius.any()


def test_radius_of_a_halfspace_is_never_exceeded_and_nearly_reached():
    model = Halfspace()
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    exact = model.radius(images)
    result = certify(model, images, 0.25, generators(40), 2, n=20_000, alpha=0.001, chunk=4096)
    sure = result.predicted >= 0
    assert torch.equal(result.predicted[sure], model(images).argmax(1)[sure])
    assert (result.radius <= exact).all()
    readable = (exact / 0.25 < 2.5) & (exact / 0.25 > 0.5)
    assert readable.sum() > 10
    assert (result.radius / exact)[readable].min() > 0.9


def test_scaling_images_and_noise_scales_the_radius():
    model = Halfspace()
    images = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(1))
    plain = certify(model, images, 0.25, generators(10), 2, n=1000)
    scaled = certify(lambda x: model(x / 4), 4 * images, 1.0, generators(10), 2, n=1000)
    assert torch.equal(plain.votes, scaled.votes)
    assert torch.allclose(4 * plain.radius, scaled.radius)


@pytest.mark.parametrize("chunk", [16, 50, 100_000])
def test_counts_depend_neither_on_the_chunk_nor_on_the_other_images(chunk):
    model = Halfspace()
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = sample_counts(model, images, 0.5, 210, generators(5), 2)
    assert torch.equal(sample_counts(model, images, 0.5, 210, generators(5), 2, chunk), expected)
    assert torch.equal(sample_counts(model, images[3:4], 0.5, 210, generators(5)[3:4], 2, chunk), expected[3:4])
    assert (expected.sum(1) == 210).all()
    assert (expected.min(1).values > 0).any()


def test_no_forward_pass_is_larger_than_the_chunk_and_none_is_wasted():
    sizes = []

    def recording(images):
        sizes.append(len(images))
        return constant(images)

    sample_counts(recording, torch.rand(7, *SHAPE), 0.5, 50, generators(7), 3, 128)
    assert max(sizes) <= 128
    assert sum(sizes) == 7 * 50
    assert len(sizes) <= 4


def test_noise_has_the_asked_deviation_and_is_not_clipped():
    seen = []

    def recording(images):
        seen.append(images.clone())
        return constant(images)

    sample_counts(recording, torch.full((1, 3, 16, 16), 0.9), 0.5, 200, generators(1), 3)
    noise = torch.cat(seen) - 0.9
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert (noise + 0.9).max() > 1.5
    assert len(noise.flatten(1).unique(dim=0)) == 200


def test_second_draw_is_fresh():
    streams = generators(1)
    seen = []

    def recording(images):
        seen.append(images.clone())
        return constant(images)

    for _ in range(2):
        sample_counts(recording, torch.zeros(1, *SHAPE), 1.0, 16, streams, 3)
    assert not (seen[0] == seen[1]).any()


def test_predict_abstains_at_alpha_zero_and_agrees_with_certificates():
    model = Halfspace()
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    # The p-value of 1000 equal votes underflows nothing: it is 2 ** -999.
    assert (predict(model, images, 0.25, generators(40), 2, n=1000, alpha=0.0) == -1).all()
    certified = certify(model, images, 0.25, generators(40), 2, n=5000).predicted
    answers = predict(model, images, 0.25, generators(40, seed=1), 2, n=5000)
    both = (certified >= 0) & (answers >= 0)
    assert both.sum() > 25
    assert torch.equal(certified[both], answers[both])


def test_votes_that_are_not_finite_weaken_the_certificate():
    def shaky(images):
        logits = torch.tensor([[0.0, 1.0]]).repeat(len(images), 1)
        logits[images.flatten(1)[:, 0] > 0.5] = math.nan  # half of the copies
        return logits

    images = torch.full((1, *SHAPE), 0.5)
    counts = sample_counts(shaky, images, 0.5, 1000, generators(1), 2)
    assert counts[0, 0] == 0
    assert 400 < counts[0, 1] < 600
    assert certify(shaky, images, 0.5, generators(1), 2, n=1000).predicted.item() == -1


def test_models_that_give_labels_only_are_enough():
    model = Halfspace(shape=(3, 4, 4))
    white = TorchModel(model, ModelSpec("half", ("no", "yes"), (4, 4)))
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = certify(model, images, 0.25, generators(4), 2, n=200)
    labels_only = certify(lambda x: model(x).argmax(1), images, 0.25, generators(4), 2, n=200)
    black_box = certify(white.restrict(Access.LABELS), images, 0.25, generators(4), 2, n=200)
    assert torch.equal(expected.votes, labels_only.votes)
    assert torch.equal(expected.votes, black_box.votes)


def test_curve_and_average_radius_count_errors_and_abstentions_as_nothing():
    predicted, labels = [1, 1, -1, 0], [1, 0, 1, 0]
    radius = [0.5, 2.0, 0.0, 0.25]
    assert radius_curve(predicted, radius, labels, [0.0, 0.25, 0.3, 0.6]).tolist() == [0.5, 0.5, 0.25, 0.0]
    assert average_certified_radius(predicted, radius, labels) == pytest.approx(0.75 / 4)


def test_needed_copies_is_the_first_number_that_certifies():
    for radius in (0.0, 1.0, 2.0):
        n = needed_copies(radius, 0.001)
        assert certified_radius(0.001 ** (1 / n), 1.0) > radius
        assert not certified_radius(0.001 ** (1 / (n - 1)), 1.0) > radius


def test_too_few_copies_are_warned_of():
    with pytest.warns(UserWarning, match="at least 10 are needed"):
        certify(constant, torch.rand(1, *SHAPE), 0.5, generators(1), 3, n=9)


@pytest.mark.parametrize(
    "broken",
    [
        {"sigma": 0.0}, {"sigma": math.inf}, {"n": 0}, {"n0": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"chunk": 1},
        {"images": torch.full((2, *SHAPE), math.nan)}, {"images": torch.zeros(1, 2)}, {"num_classes": 2},
        {"generators": generators(1)}, {"model": Halfspace().train()},
        {"model": lambda x: torch.zeros(len(x))}, {"model": lambda x: torch.zeros(3, dtype=torch.int64)},
    ],
)  # fmt: skip
def test_bad_input_is_refused(broken):
    arguments = {
        "model": constant, "images": torch.rand(2, *SHAPE), "sigma": 0.5, "generators": generators(2),
        "num_classes": 3,
    } | broken  # fmt: skip
    with pytest.raises(InvalidInput):
        certify(**({"n": 20} | arguments))


@pytest.fixture(scope="module")
def noisy_digits():
    """A small network trained under noise of sigma 0.25, and 100 test images."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    noise = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for step in range(400):
            rows = slice(step * 64 % 1500, step * 64 % 1500 + 64)
            batch = images[rows]
            optimizer.zero_grad()
            noisy = batch + 0.25 * torch.randn(batch.shape, generator=noise)
            nn.functional.cross_entropy(network(noisy), labels[rows]).backward()
            optimizer.step()
    spec = ModelSpec("digits", tuple("0123456789"), (8, 8), mean=(0.0,), std=(1.0,))
    return TorchModel(network, spec), images[1600:1700], labels[1600:1700]


def test_no_attack_within_the_radius_flips_the_smoothed_answer(noisy_digits):
    model, images, _ = noisy_digits
    streams = [str(i) for i in range(100)]
    result = certify(model, images, 0.25, SampleRandom(0, "t").generators(streams), 10, n=2000)
    held = (result.radius > 0.1).nonzero().flatten()
    assert len(held) > 60
    noise = normal(generators(32), (1, 8, 8), 0.25)

    def softly_smoothed(x):
        copies = (x[:, None] + noise[None]).flatten(0, 1)
        return model(copies).softmax(1).view(len(x), 32, 10).mean(1).log()

    shortest = float(result.radius[held].min())
    # One budget for all, below every radius, then the image's own radius.
    for row in [held, *held[:10].split(1)]:
        budget = shortest if len(row) > 1 else float(result.radius[row])
        attacked = pgd(
            softly_smoothed, images[row], result.predicted[row], 0.99 * budget, "l2", steps=20, stop_early=False
        )
        change = attacked.images - images[row]
        assert change.flatten(1).norm(dim=1).max() <= 0.99 * budget + 1e-6
        answers = predict(model, attacked.images, 0.25, generators(len(row), seed=5), 10, n=2000)
        assert ((answers == result.predicted[row]) | (answers == -1)).all()


def examined(probe, noisy_digits, count=100):
    model, images, labels = noisy_digits
    ids = [str(i) for i in range(count)]
    table = probe.run(model, Batch(ids, images[:count], labels[:count]), SampleRandom(0, probe.name))
    return table, Context(model.spec, pa.table({"id": ids, "label": labels[:count].numpy()}))


def test_probe_spends_what_it_says(noisy_digits):
    probe = Smoothing(n=100, n0=20)
    before = noisy_digits[0].ledger.totals
    examined(probe, noisy_digits)
    spent, cost = noisy_digits[0].ledger.totals - before, probe.cost(100)
    assert (spent.forward, spent.backward) == (cost.forward, cost.backward)


def test_probe_rows_do_not_depend_on_the_batches(noisy_digits):
    model, images, labels = noisy_digits
    probe, random = Smoothing(n=200, chunk=64), SampleRandom(0, "certify/smoothing")
    ids = [str(i) for i in range(20)]
    whole = probe.run(model, Batch(ids, images[:20], labels[:20]), random).to_pylist()
    split = [
        row
        for a, b in ((0, 3), (3, 20))
        for row in probe.run(model, Batch(ids[a:b], images[a:b], labels[a:b]), random).to_pylist()
    ]
    assert whole == split


def test_finding_and_curve_agree_with_the_rows(noisy_digits):
    probe = Smoothing(n=500)
    table, context = examined(probe, noisy_digits)
    rows = table.to_pylist()
    (finding,) = probe.findings(table, context)
    held = [row["id"] for row in rows if row["predicted"] == row["label"] and row["radius"] >= 0.25]
    assert finding.value == pytest.approx(len(held) / 100)
    assert finding.ci[0] < finding.value < finding.ci[1]
    assert finding.baseline == pytest.approx(sum(row["base_predicted"] == row["label"] for row in rows) / 100)
    assert finding.subject["alpha_all_images"] == pytest.approx(0.1)
    assert not set(finding.evidence) & set(held)
    (curve,) = probe.exhibits(table, context)
    series = {name: [p.y for p in curve.points if p.series == name] for name in {p.series for p in curve.points}}
    certified, joint = series["certified"], series["all images together (Bonferroni)"]
    assert certified == sorted(certified, reverse=True)
    assert certified[0] == sum(row["predicted"] == row["label"] for row in rows) / 100
    assert all(a >= b for a, b in zip(certified, joint, strict=True))


def test_finding_says_when_copies_or_images_are_too_few(noisy_digits):
    few_copies, few_images = Smoothing(n=20, n0=5), Smoothing(n=100)
    (first,) = few_copies.findings(*examined(few_copies, noisy_digits))
    (second,) = few_images.findings(*examined(few_images, noisy_digits, count=8))
    assert not first.enough_data
    assert "20 noisy copies an image, needs about 40" in first.title
    assert not second.enough_data
    assert "n = 8, needs about" in second.title


@pytest.mark.parametrize("broken", [{"sigma": 0.0}, {"n": 0}, {"n0": 0}, {"alpha": 1.0}, {"chunk": 0}])
def test_bad_settings_are_refused(broken):
    with pytest.raises(InvalidInput):
        Smoothing(**broken)
