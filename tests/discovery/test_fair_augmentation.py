import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from snellen.discovery.fair_augmentation import (
    ConditionalVae,
    ImageSet,
    PcaGaussian,
    balanced_cells,
    compare,
    correct_answers,
    fairness,
    memorisation,
    synthesise,
    train_mixed,
)
from snellen.errors import InvalidInput

ANY = np.random.default_rng


def two_sites(n=300, seed=0):
    """Digits 0 to 3; group 1 is darker and rare."""
    digits, rng = load_digits(n_class=4), ANY(seed)
    rows = rng.permutation(len(digits.target))[:n]
    groups = torch.from_numpy((rng.random(n) < 0.2).astype(np.int64))
    images = torch.from_numpy(digits.images[rows] / 16).float()[:, None] * (1 - 0.5 * groups)[:, None, None, None]
    return ImageSet(images, torch.from_numpy(digits.target[rows]), groups)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


REAL = two_sites()
GENERATORS = {
    "gaussian": PcaGaussian.fit(REAL.images, REAL.labels, REAL.groups),
    "vae": ConditionalVae.fit(REAL.images, REAL.labels, REAL.groups),
}
MADE = synthesise(GENERATORS["gaussian"], balanced_cells(REAL.labels, 2, 200, 0), 0)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_groups_are_sampled_equally_and_classes_by_their_prevalence():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100 + [-1] * 500)
    cells = balanced_cells(labels, 3, 2000, seed=1)
    counts = cells[:, 1].bincount()
    assert counts.max() - counts.min() <= 1
    for label, p in enumerate((0.6, 0.3, 0.1)):
        share = float((cells[:, 0] == label).float().mean())
        assert abs(share - p) < 3 * np.sqrt(p * (1 - p) / 2000)


def test_rare_classes_can_be_sampled_as_often_as_others():
    cells = balanced_cells(torch.tensor([0] * 990 + [1] * 10), 2, 1000, 0, uniform_labels=True)
    assert abs(float((cells[:, 0] == 1).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_gives_the_same_images_of_the_cells_asked_for(name):
    cells = balanced_cells(REAL.labels, 2, 50, 3)
    one, two, other = (synthesise(GENERATORS[name], cells, seed) for seed in (5, 5, 6))
    assert torch.equal(one.images, two.images)
    assert one.origin == two.origin != other.origin
    assert not torch.equal(one.images, other.images)
    assert torch.equal(torch.stack([one.labels, one.groups], 1), cells)


@pytest.mark.parametrize("name", GENERATORS)
def test_an_image_does_not_depend_on_the_rest_of_the_batch(name):
    cells = balanced_cells(REAL.labels, 2, 20, 3)
    whole = synthesise(GENERATORS[name], cells, 0).images
    torch.testing.assert_close(synthesise(GENERATORS[name], cells[:7], 0).images, whole[:7], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GENERATORS)
def test_made_images_follow_class_and_group(name):
    made = synthesise(GENERATORS[name], balanced_cells(REAL.labels, 2, 400, 0), 0)
    brightness = [float(made.images[made.groups == group].mean()) for group in (0, 1)]
    assert brightness[1] < 0.75 * brightness[0]
    model = network()
    train_mixed(model, REAL, alpha=1.0, steps=400)
    made_right = (model(made.images).argmax(1) == made.labels).float().mean()
    assert made_right > 0.85


def test_fitting_leaves_the_global_random_state_and_is_repeatable():
    before = torch.get_rng_state()
    one, two, other = (ConditionalVae.fit(REAL.images, REAL.labels, REAL.groups, 20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_a_group_without_labels_is_drawn_by_the_vae_and_refused_by_the_gaussian():
    labels = REAL.labels.masked_fill(REAL.groups == 1, -1)
    cells = torch.tensor([[2, 1]])
    vae = ConditionalVae.fit(REAL.images, labels, REAL.groups, steps=20)
    assert synthesise(vae, cells, 0).images.shape == (1, 1, 8, 8)
    with pytest.raises(InvalidInput, match="too few in"):
        synthesise(PcaGaussian.fit(REAL.images, labels, REAL.groups), cells, 0)


def test_the_null_class_is_the_absence_of_a_class():
    condition = GENERATORS["vae"].network.condition(torch.tensor([-1, 2]), torch.tensor([0, 1]))
    assert condition.tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]


def test_alpha_one_is_the_run_on_real_images_bit_for_bit():
    alone, beside = network(), network()
    train_mixed(alone, REAL, None, alpha=1.0, steps=30)
    train_mixed(beside, REAL, MADE, alpha=1.0, steps=30)
    assert torch.equal(weights_of(alone), weights_of(beside))


def test_alpha_zero_uses_no_real_image():
    one, two = network(), network()
    other = ImageSet(1 - REAL.images, (REAL.labels + 1) % 4, REAL.groups)
    train_mixed(one, REAL, MADE, alpha=0.0, steps=30)
    train_mixed(two, other, MADE, alpha=0.0, steps=30)
    assert torch.equal(weights_of(one), weights_of(two))


def test_unlabelled_images_do_not_train_the_classifier():
    one, two = network(), network()
    hidden = REAL.labels.masked_fill(REAL.groups == 1, -1)
    changed = REAL.images.clone()
    changed[REAL.groups == 1] = 0.5
    train_mixed(one, ImageSet(REAL.images, hidden, REAL.groups), alpha=1.0, steps=30)
    train_mixed(two, ImageSet(changed, hidden, REAL.groups), alpha=1.0, steps=30)
    assert torch.equal(weights_of(one), weights_of(two))


def test_made_images_are_never_judged_on_nor_passed_off_as_real():
    with pytest.raises(InvalidInput, match="made by the generator"):
        correct_answers(network(), MADE)
    with pytest.raises(InvalidInput, match="made by the generator"):
        train_mixed(network(), MADE, alpha=1.0, steps=1)


def test_the_gap_is_that_of_the_extreme_groups_and_does_not_know_their_names():
    success = np.array([True] * 90 + [False] * 10 + [True] * 60 + [False] * 40 + [True] * 75 + [False] * 25)
    groups = np.repeat([0, 1, 2], 100)
    found = fairness(success, groups, ANY(0))
    assert found.gap == pytest.approx(0.3)
    assert found.overall == pytest.approx(0.75)
    assert found.gap_ci.low < 0.3 < found.gap_ci.high
    assert fairness(success, np.array([7, 2, 11])[groups], ANY(0)).gap == found.gap
    assert fairness(success, np.zeros(300, dtype=np.int64), ANY(0)).gap == 0


def test_the_interval_of_the_gap_covers_it():
    covered = 0
    for seed in range(200):
        rng, groups = ANY(seed), np.repeat([0, 1], 150)
        found = fairness(rng.random(300) < np.where(groups == 0, 0.9, 0.7), groups, rng)
        covered += found.gap_ci.low <= 0.2 <= found.gap_ci.high
    assert covered >= 180


def test_a_comparison_of_a_model_with_itself_is_zero_and_a_repair_of_one_group_is_seen():
    rng, groups = ANY(0), np.repeat([0, 1], 200)
    before = rng.random(400) < np.where(groups == 0, 0.95, 0.5)
    same = compare(before, before, groups, rng)
    assert same.overall == same.gap == 0
    after = before | ((groups == 1) & (rng.random(400) < 0.7))
    found = compare(before, after, groups, rng)
    assert found.gap_ci.high < 0 < found.overall_ci.low
    expected = fairness(after, groups, rng).gap - fairness(before, groups, rng).gap
    assert found.gap == pytest.approx(expected)


def test_copies_are_memorised_and_new_real_images_are_not():
    real, new = REAL.images[:200], REAL.images[200:]
    assert memorisation(real, real).memorised
    assert not memorisation(new, real).memorised
    assert not memorisation(MADE.images, REAL.images).memorised


def test_the_percentile_over_all_pairs_would_call_new_real_images_memorised():
    """The card's "1st percentile of real-real distances", read over all pairs, is no check."""
    real, new = REAL.images[:200].flatten(1), REAL.images[200:].flatten(1)
    pairs = torch.pdist(real).quantile(0.01)
    assert (torch.cdist(new, real).min(dim=1).values < pairs).float().mean() > 0.5


class Broken:
    fingerprint = "broken"

    def sample(self, labels, groups, seed):
        return torch.full((len(labels), 1, 8, 8), torch.nan)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: ImageSet(REAL.images * 2, REAL.labels, REAL.groups), r"\[0, 1\]"),
        (lambda: ImageSet(REAL.images, torch.full_like(REAL.labels, -1), REAL.groups), "none labelled"),
        (lambda: synthesise(Broken(), torch.tensor([[0, 0]]), 0), r"\[0, 1\]"),
        (lambda: synthesise(GENERATORS["vae"], torch.tensor([[9, 0]]), 0), "labels"),
        (lambda: synthesise(GENERATORS["vae"], torch.tensor([[0, 5]]), 0), "groups"),
        (lambda: PcaGaussian.fit(REAL.images[:1], REAL.labels[:1], REAL.groups[:1]), "2 images"),
        (lambda: PcaGaussian.fit(REAL.images, REAL.labels, REAL.groups, components=0), "components"),
        (lambda: train_mixed(network(), REAL, MADE, alpha=1.2), "alpha"),
        (lambda: train_mixed(network(), REAL, None, alpha=0.5), "made"),
        (lambda: balanced_cells(torch.tensor([-1]), 2, 5, 0), "labels"),
        (lambda: correct_answers(network(), ImageSet(REAL.images[:2], torch.tensor([0, -1]), REAL.groups[:2])), "-1"),
        (lambda: fairness(np.array([1.0]), np.array([0]), ANY(0)), "success"),
        (lambda: compare(np.array([True]), np.array([True, False]), np.array([0]), ANY(0)), "length"),
        (lambda: memorisation(REAL.images, REAL.images[:1]), "real"),
    ],
)
def test_bad_input_is_refused(call, word):
    with pytest.raises(InvalidInput, match=word):
        call()
