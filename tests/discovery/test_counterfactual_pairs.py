import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from snellen.demo.digits import demo_images
from snellen.demo.network import shipped_network
from snellen.discovery.counterfactual_pairs import (
    Pairs,
    Twin,
    attribution_statistics,
    check_split,
    contrast,
    contrast_of,
    cut_paste_pairs,
    demo_pairs,
    make_pairs,
    node_dependency,
    purity,
    train_on_mix,
    worst_group,
)
from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom

DEMO = demo_pairs(150, 0)


def pairs_of(n, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return labels, (labels + rng.integers(1, classes, n)) % classes


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 10_000))
def test_the_kinds_of_pairs_add_up_and_give_the_accuracy(classes, n, seed):
    rng = np.random.default_rng(seed)
    labels, twins = pairs_of(n, classes, seed)
    answers, twin_answers = rng.integers(0, classes, n), rng.integers(0, classes, n)
    found = contrast(labels, twins, answers, twin_answers, classes)
    assert found.correct + sum(found.alike) + found.reversed + found.half + found.astray == n
    assert found.accuracy == pytest.approx(((answers == labels).mean() + (twin_answers == twins).mean()) / 2)
    if classes == 2:
        assert found.half == found.astray == 0
        assert found.accuracy == pytest.approx((found.correct + sum(found.alike) / 2) / n)


def test_a_constant_a_perfect_and_a_reversed_classifier():
    labels, twins = pairs_of(50)
    constant = contrast(labels, twins, np.ones(50, dtype=int), np.ones(50, dtype=int), 2)
    assert (constant.correct, constant.alike) == (0, (0, 50))
    assert constant.share(sum(constant.alike))[0] == 1
    assert contrast(labels, twins, labels, twins, 2).correct == 50
    assert contrast(labels, twins, twins, labels, 2).reversed == 50


def test_three_classes_have_two_more_kinds():
    one = np.array([0])
    assert contrast(one, one + 1, one, one + 2, 3).half == 1
    assert contrast(one, one + 1, one + 1, one + 2, 3).astray == 1
    assert contrast(one, one + 1, one + 2, one + 2, 3).alike == (0, 0, 1)


def test_demo_twins_differ_where_the_digits_are_and_nowhere_else():
    same = (DEMO.samples == DEMO.twins).all(dim=1).float()  # down to the noise, so equal means untouched
    assert same.flatten(1).mean(dim=1).min() > 0.3
    assert same[:, 0, -1].mean() > 0.9
    assert bool((DEMO.labels != DEMO.twin_labels).all())


def test_the_healthy_demo_follows_the_digit_and_a_background_reader_never_does():
    assert contrast_of(shipped_network("healthy"), DEMO).correct > 0.9 * len(DEMO)

    def corner(images):  # reads what both twins share
        return torch.stack([images[:, 0, :2, -2:].mean((1, 2)), images[:, 2, :2, -2:].mean((1, 2))], dim=1).repeat(1, 5)

    found = contrast_of(corner, DEMO)
    assert found.correct == 0
    assert sum(found.alike) == len(DEMO)


@pytest.fixture(scope="module")
def pasted():
    data = demo_images(count=120, seed=3)
    images, masks = data.images.float() / 255, data.masks > 0
    masks = masks.reshape(len(images), 32, 32)
    return (
        data,
        images,
        masks,
        cut_paste_pairs(data.ids, images, masks, torch.from_numpy(data.labels), SampleRandom(0, "test")),
    )


def test_pasted_pairs_share_their_background_and_carry_the_donors_class(pasted):
    data, _, _, pairs = pasted
    assert len(pairs) > 100
    assert pairs.labels.tolist() == [int(data.labels[data.ids.index(name)]) for name in pairs.ids]
    assert bool((pairs.samples[:, :, 0, -1] == pairs.twins[:, :, 0, -1]).all())
    assert contrast_of(shipped_network("healthy"), pairs).correct > 0.75 * len(pairs)


def test_a_pasted_pair_does_not_depend_on_the_other_images_but_its_donors(pasted):
    data, images, masks, pairs = pasted
    again = cut_paste_pairs(data.ids, images, masks, torch.from_numpy(data.labels), SampleRandom(0, "test"))
    assert torch.equal(again.twins, pairs.twins)


def test_an_editor_may_find_no_twin():
    samples, labels = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2

    def edit(sample, label):
        return None if label == 0 else Twin(1 - sample, 0)

    pairs = make_pairs(edit, [str(row) for row in range(10)], samples, labels)
    assert pairs.ids == ["1", "3", "5", "7", "9"]
    assert pairs.twin_labels.tolist() == [0] * 5


def test_one_group_has_the_overall_accuracy_and_more_have_less():
    rng = np.random.default_rng(0)
    embeddings, right = rng.normal(size=(300, 4)), rng.random(300) < 0.8
    assert worst_group(embeddings, right, 1, 0).accuracy == pytest.approx(right.mean())
    for clusters in range(2, 8):
        found = worst_group(embeddings, right, clusters, 0, rng.integers(0, 2, 300))
        assert found.accuracy <= right.mean()
        assert found.interval.low <= found.accuracy <= found.interval.high


def test_the_planted_group_is_the_worst():
    rng = np.random.default_rng(1)
    centre = rng.integers(0, 3, 300)
    right = np.where(centre == 2, rng.random(300) < 0.3, rng.random(300) < 0.95)
    found = worst_group(np.eye(3)[centre] * 10 + rng.normal(size=(300, 3)), right, 3, 0)
    assert found.n == (centre == 2).sum()
    assert found.interval.high < 0.6


def test_the_interval_of_the_worst_of_many_equal_groups_holds_their_accuracy():
    missed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = worst_group(rng.normal(size=(140, 3)), rng.random(140) < 0.8, 7, seed)
        missed += not found.interval.low <= 0.8 <= found.interval.high
    assert missed <= 7


def test_purity_of_labels_is_one_and_of_noise_is_chance():
    rng = np.random.default_rng(2)
    labels = (rng.random(600) < 0.3).astype(int)
    assert purity(np.eye(2)[labels] + 1e-6 * rng.normal(size=(600, 2)), labels).value == 1
    noise = purity(rng.normal(size=(600, 5)), labels)
    assert abs(noise.value - noise.chance) < 3 * np.sqrt(noise.chance * (1 - noise.chance) / 600)


def test_purity_is_the_peers_vote_without_the_sample_itself():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 3)), rng.integers(0, 2, 80)
    shares = []
    for row in range(80):
        others = np.arange(80) != row
        votes = KNeighborsClassifier(5).fit(x[others], y[others]).predict_proba(x[row : row + 1])[0]
        shares.append(votes[y[row]])
    assert purity(x, y, 5).value == pytest.approx(np.mean(shares))


def test_attributions_are_compared_as_shares():
    rng = np.random.default_rng(4)
    maps, labels = rng.random((40, 6)), np.arange(40) % 3
    found = attribution_statistics(maps, labels)
    scaled = attribution_statistics(-maps * rng.uniform(1, 9, (40, 1)), labels)
    assert np.allclose(found.between, found.between.T)
    assert np.allclose(np.diag(found.between), 0)
    assert np.allclose(found.within, scaled.within)
    same = attribution_statistics(np.eye(6)[labels], labels)
    assert np.allclose(same.within, 0)
    assert same.between[0, 1] == pytest.approx(np.sqrt(2))


def test_nodes_of_an_additive_scorer_do_not_depend_on_each_other():
    nodes = torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0))
    found = node_dependency(lambda x: x.sum(dim=2), nodes)
    assert torch.allclose(found, torch.diag(found.diagonal()), atol=1e-6)
    assert bool((found.diagonal() > 0.1).all())
    dominated = node_dependency(lambda x: x.sum(dim=2) + 5 * x[:, :1, 0], nodes)
    assert int(dominated.mean(dim=0).argmax()) == 0


class Mean(torch.nn.Module):
    """Two channels' means, linearly to two classes."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, images):
        return self.linear(images.mean(dim=(2, 3)))


def planted(n, seed, agreeing=0.98):
    """Channel 0 tells the class weakly, channel 1 goes with it in originals and stays in the twin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    nuisance = torch.where(torch.rand(n, generator=generator) < agreeing, labels, 1 - labels)
    samples = torch.rand(n, 2, 4, 4, generator=generator) * 0.2
    twins = samples.clone()
    samples[:, 0] += 0.6 * labels[:, None, None]
    twins[:, 0] += 0.6 * (1 - labels)[:, None, None]
    for part in (samples, twins):
        part[:, 1] += 3.0 * nuisance[:, None, None]
    return Pairs([f"{seed}/{row}" for row in range(n)], samples, twins, labels, 1 - labels)


def test_training_on_whole_pairs_stops_a_model_from_reading_the_nuisance():
    train, test = planted(400, 0), planted(200, 1)
    check_split(train, test)
    share = {}
    for originals in (1.0, 0.5):
        model = train_on_mix(Mean(), train, originals, 400, np.random.default_rng(0), epochs=12, learning_rate=0.05)
        share[originals] = contrast_of(model, test).correct / len(test)
    assert share[0.5] > share[1.0] + 0.4


def test_training_repeats_and_leaves_global_randomness_alone():
    models = [Mean(), Mean()]
    before = torch.get_rng_state()
    for model in models:
        train_on_mix(model, planted(60, 0), 0.5, 60, np.random.default_rng(1), epochs=2)
    assert torch.equal(models[0].linear.weight, models[1].linear.weight)
    assert torch.equal(before, torch.get_rng_state())


X, Y = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Pairs(["a", "b"], X, X + 1, Y, Y),
        lambda: Pairs(["a", "b"], X, X, Y, 1 - Y),
        lambda: Pairs(["a", "a"], X, X + 1, Y, 1 - Y),
        lambda: Pairs(["a"], X, X + 1, Y, 1 - Y),
        lambda: Pairs(["a", "b"], X, X + torch.nan, Y, 1 - Y),
        lambda: Pairs([], X[:0], X[:0], Y[:0], Y[:0]),
        lambda: check_split(planted(10, 0), planted(10, 0)),
        lambda: make_pairs(lambda sample, label: None, ["a", "b"], X, Y),
        lambda: make_pairs(lambda sample, label: Twin(sample + 1, 1 - label), ["a", "b"], X, Y, largest_edit=0.5),
        lambda: make_pairs(lambda sample, label: Twin(sample + 1, label), ["a", "b"], X, Y),
        lambda: cut_paste_pairs(
            ["a", "b"], torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8).bool(), Y, SampleRandom(0, "t")
        ),
        lambda: contrast(np.array([0]), np.array([0]), np.array([0]), np.array([1]), 2),
        lambda: contrast(np.array([0]), np.array([1]), np.array([0]), np.array([2]), 2),
        lambda: worst_group(np.zeros((5, 2)), np.ones(5, dtype=bool), 6, 0),
        lambda: purity(np.zeros((5, 2)), np.zeros(5), 5),
        lambda: attribution_statistics(np.ones((4, 3)), np.zeros(4)),
        lambda: attribution_statistics(np.zeros((4, 3)), np.arange(4) % 2),
        lambda: node_dependency(lambda x: x, torch.rand(2, 3, 4)),
        lambda: train_on_mix(Mean(), planted(10, 0), 1.5, 10, np.random.default_rng(0)),
        lambda: train_on_mix(Mean(), planted(10, 0), 1.0, 11, np.random.default_rng(0)),
    ],
)
def test_impossible_input_is_refused(wrong):
    with pytest.raises(InvalidInput):
        wrong()
