import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.inspection import permutation_importance

from snellen.discovery._slab_data import slab_width
from snellen.discovery.simplicity_bias import (
    Slabs,
    complement,
    dependence,
    linear_coordinate,
    randomised,
    slab_coordinate,
    stacked_images,
    swapped,
)
from snellen.errors import InvalidInput
from snellen.probe import function_methods

BEST_THRESHOLD = {3: 0.75, 5: 0.6875, 7: 0.625}


def reads(column):
    """A model that looks at one column only."""
    return lambda x: torch.stack([-x[:, column], x[:, column]], dim=1)


def drawn(kind=None, n=4000, seed=0):
    data = (kind or Slabs(slabs=(5, 7), noise=1)).draw(n, np.random.default_rng(seed))
    return torch.from_numpy(data.x), torch.from_numpy(data.y), data


# --------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("slabs", [3, 5, 7])
def test_slabs_are_separable_by_their_gaps_and_the_gaps_are_empty(slabs):
    rng = np.random.default_rng(slabs)
    y = rng.integers(0, 2, 6000)
    x = slab_coordinate(y, slabs, 0.1, 1.0, rng)
    wide, half = slab_width(slabs, 0.1, 1.0), slabs // 2
    assert np.abs(x).max() <= 1.0
    middle = np.rint(x / (wide + 0.2))
    np.testing.assert_array_equal(np.abs(middle) % 2, y)
    assert np.abs(x - middle * (wide + 0.2)).max() <= wide / 2 + 1e-12  # nothing in the gaps
    assert set(middle.astype(int)) == set(range(-half, half + 1))


@pytest.mark.parametrize("slabs", [3, 5, 7])
def test_the_best_single_threshold_has_the_accuracy_of_the_card(slabs):
    n = 20_000
    rng = np.random.default_rng(slabs)
    y = rng.integers(0, 2, n)
    order = np.argsort(slab_coordinate(y, slabs, 0.1, 1.0, rng))
    above = np.cumsum(1 - y[order]) + (y.sum() - np.cumsum(y[order]))  # right when class 1 lies above
    assert max(above.max(), (n - above).max()) / n == pytest.approx(BEST_THRESHOLD[slabs], abs=3 / np.sqrt(n))


def test_the_linear_coordinate_keeps_its_margin():
    y = np.array([0, 1] * 500)
    x = linear_coordinate(y, 0.1, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(x > 0, y == 1)
    assert np.abs(x).min() >= 0.1
    assert np.abs(x).max() <= 1


@pytest.mark.parametrize("corruption", ["flip", "margin"])
def test_a_corrupted_linear_coordinate_misleads_as_often_as_asked(corruption):
    x, y, _ = drawn(Slabs(slabs=(5,), corrupted=0.4, corruption=corruption), n=10_000)
    wrong = ((x[:, 0] > 0).long() != y).double().mean()
    assert wrong == pytest.approx(0.4 if corruption == "flip" else 0.2, abs=0.02)


def test_coordinates_are_independent_given_the_class():
    x, y, _ = drawn(Slabs(slabs=(5, 5)), n=10_000)
    inside = x[y == 0].abs().numpy()
    assert np.abs(np.corrcoef(inside.T)[np.triu_indices(3, 1)]).max() < 0.05


def test_rotation_is_undone_by_its_transpose():
    straight, turned = (Slabs(slabs=(5, 7), rotated=turn).draw(200, np.random.default_rng(1)) for turn in (False, True))
    np.testing.assert_allclose(turned.x @ turned.rotation.T, straight.x, atol=1e-12)


def test_stacked_images_share_their_class_and_nothing_else():
    top, bottom = torch.arange(6.0).view(6, 1, 1, 1), 100 + torch.arange(40.0).view(40, 1, 1, 1)
    top_labels, bottom_labels = torch.arange(6) % 2, torch.arange(40) % 2
    images, labels = stacked_images(top, top_labels, bottom, bottom_labels, np.random.default_rng(0))
    assert images.shape == (6, 1, 2, 1)
    assert torch.equal(images[:, :, :1], top)
    assert torch.equal((images[:, 0, 1, 0] - 100).long() % 2, labels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0.0}, {"margin": 1.0}, {"slab_margin": 1.5}, {"slabs": (4,)}, {"slab_margin": 0.26, "slabs": (5,)},
        {"width": 0.0}, {"corrupted": 1.2}, {"slabs": (), "linear": False},
    ],
)  # fmt: skip
def test_impossible_slabs_are_refused(wrong):
    with pytest.raises(InvalidInput):
        Slabs(**wrong)


# ------------------------------------------------------------------------------------------------- the randomisation


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), block=st.sets(st.integers(0, 4), min_size=1))
def test_randomising_keeps_the_joint_law_of_the_block_and_the_bits_of_the_rest(seed, block):
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(seed))
    columns, rest = sorted(block), [c for c in range(5) if c not in block]
    changed = randomised(x, columns, np.random.default_rng(seed))
    assert torch.equal(changed[:, rest], x[:, rest])
    assert {tuple(row) for row in changed[:, columns].tolist()} == {tuple(row) for row in x[:, columns].tolist()}
    assert torch.equal(changed.sort(dim=0).values, x.sort(dim=0).values)


def test_image_blocks_are_exchanged_in_all_channels():
    x = torch.rand(20, 3, 4, 4)
    top = torch.zeros(4, 4, dtype=torch.bool)
    top[:2] = True
    changed = randomised(x, top, np.random.default_rng(0))
    assert torch.equal(changed[:, :, 2:], x[:, :, 2:])
    assert not torch.equal(changed[:, :, :2], x[:, :, :2])
    assert torch.equal(complement(x, top)[0], ~top)


def test_swapped_blocks_come_from_the_other_class():
    y = torch.tensor([0, 1] * 20)
    x = torch.stack([y.double(), torch.arange(40.0).double()], dim=1)
    changed = swapped(x, y, [0], np.random.default_rng(0))
    assert torch.equal(changed[:, 0], 1 - y.double())
    assert torch.equal(changed[:, 1], x[:, 1])


def test_a_model_of_one_coordinate_is_at_chance_without_it_and_untouched_by_the_others():
    x, y, _ = drawn()
    own = dependence(reads(0), x, y, [0], np.random.default_rng(0))
    assert own.clean_auc == 1.0
    assert own.complement_auc == (1.0, 0.0)
    assert own.randomised_auc[0] == pytest.approx(0.5, abs=3 / np.sqrt(len(y)))
    assert own.swap_accuracy == (0.0, 0.0)
    other = dependence(reads(0), x, y, [1, 2], np.random.default_rng(0))
    assert other.randomised_auc == (own.clean_auc, 0.0)
    assert other.swap_accuracy == (1.0, 0.0)


def test_rotated_data_shows_the_same_dependence():
    kind = Slabs(slabs=(5, 7), noise=1)
    x, y, _ = drawn(kind)
    turned, _, data = drawn(Slabs(slabs=(5, 7), noise=1, rotated=True))
    rotation = torch.from_numpy(data.rotation)
    straight = dependence(reads(0), x, y, [0], np.random.default_rng(3))
    back = dependence(lambda z: reads(0)(z @ rotation.T), turned, y, [0], np.random.default_rng(3), rotation=rotation)
    for name in ("clean_auc", "randomised_auc", "complement_auc", "swap_accuracy"):
        assert getattr(back, name) == pytest.approx(getattr(straight, name), abs=1e-5)


def test_agrees_with_the_permutation_importance_of_scikit_learn():
    x, y, _ = drawn(Slabs(slabs=(3,), corrupted=0.2))
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)

    class Fixed(ClassifierMixin, BaseEstimator):
        classes_ = np.array([0, 1])

        def fit(self, features, labels):
            return self

        def decision_function(self, features):
            return features @ weights.numpy()

    peer = permutation_importance(Fixed(), x.numpy(), y.numpy(), scoring="roc_auc", n_repeats=40, random_state=0)
    for column in range(2):
        ours = dependence(
            lambda z: torch.stack([torch.zeros(len(z)).double(), z @ weights], dim=1), x, y, [column],
            np.random.default_rng(column), permutations=40,
        )  # fmt: skip
        assert ours.clean_auc - ours.randomised_auc[0] == pytest.approx(peer.importances_mean[column], abs=0.006)


def test_bad_input_is_refused():
    x, y, _ = drawn(n=50)
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInput, match="two classes"):
        dependence(reads(0), x, torch.zeros_like(y), [0], rng)
    with pytest.raises(InvalidInput, match="at least one feature"):
        dependence(reads(0), x, y, [], rng)
    with pytest.raises(InvalidInput, match="complement is empty"):
        complement(x, list(range(x.shape[1])))
    with pytest.raises(InvalidInput, match="orthonormal"):
        dependence(reads(0), x, y, [0], rng, rotation=2 * torch.eye(x.shape[1], dtype=x.dtype))
    with pytest.raises(InvalidInput, match="below d"):
        randomised(x, [99], rng)
    with pytest.raises(InvalidInput, match="shape of one sample"):
        randomised(x, torch.ones(3, 3, dtype=torch.bool), rng)
    with pytest.raises(InvalidInput, match=r"logits \[n, 2\]"):
        dependence(lambda z: z, x, y, [0], rng)
    assert np.isnan(dependence(reads(0), x, y, list(range(x.shape[1])), rng).complement_auc[0])


def test_is_listed_with_its_card():
    assert function_methods()["discovery/simplicity-bias"].card == "simplicity-bias"
