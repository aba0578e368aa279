"""The demo's promises: independent attributes, working networks, faults that are there and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from snellen.demo.digits import SIDE, demo_images, draw_scene, handwriting
from snellen.demo.faults import DESCRIPTIONS, Fault
from snellen.demo.network import evaluate, load_network, save_network, shipped_network
from snellen.demo.training import stamp, train, training_images
from snellen.errors import InvalidInput


def correct(name: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    made = demo_images()
    with torch.no_grad():
        predicted = shipped_network(name)(made.images.float() / 255).argmax(1).numpy()
    return predicted == made.labels, made.attributes, made.labels


def test_the_test_set_is_the_same_for_everybody() -> None:
    first, second = demo_images(), demo_images()
    assert torch.equal(first.images, second.images)
    assert first.ids == second.ids
    assert len(set(first.ids)) == 1200
    assert first.images.shape == (1200, 3, SIDE, SIDE)


def test_train_and_test_handwriting_are_different_people() -> None:
    train_glyphs = {glyph.numpy().tobytes() for glyph in handwriting("train")[0]}
    shared = sum(glyph.numpy().tobytes() in train_glyphs for glyph in handwriting("test")[0])
    assert shared <= 1  # scikit-learn's set holds hardly any exact double


@pytest.mark.parametrize("attribute", ["background", "tint", "tag", "position"])
def test_attributes_say_nothing_of_the_class(attribute: str) -> None:
    made = demo_images(count=5000, seed=1)
    values, columns = np.unique(made.attributes[attribute], return_inverse=True)
    table = np.zeros((10, len(values)))
    np.add.at(table, (made.labels, columns), 1)
    assert chi2_contingency(table).pvalue > 0.001


def test_masks_cover_the_digit_and_nothing_else() -> None:
    made = demo_images(count=200, seed=2)
    inside = made.masks[:, 0] > 0
    share = inside.float().mean(dim=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.4
    bright = made.images.float().amax(dim=1)
    assert all(bright[i][inside[i]].mean() > bright[i][~inside[i]].mean() for i in range(200))


def test_the_healthy_network_is_good_everywhere() -> None:
    right, attributes, _ = correct("healthy")
    assert right.mean() > 0.95
    for name in ("background", "tint", "tag", "position"):
        for value in np.unique(attributes[name]):
            assert right[attributes[name] == value].mean() > 0.9


def test_the_faulty_network_fails_where_it_was_made_to_fail() -> None:
    right, attributes, labels = correct("faulty")
    stripes = attributes["background"] == "stripes"
    assert right[stripes & (labels != 4)].mean() < right[~stripes & (labels != 4)].mean() - 0.3
    turned = np.abs(attributes["rotation"]) > 12
    assert right[(labels == 7) & turned].mean() < right[(labels == 7) & ~turned].mean() - 0.3
    tagged = attributes["tag"] == "red"
    assert right[tagged].mean() < right[~tagged].mean() - 0.08


@pytest.mark.parametrize("kind", list(DESCRIPTIONS))
def test_a_planted_fault_changes_the_training_data_as_described(kind: str) -> None:
    fault = Fault(kind, 0.9, target=7)
    clean, truth = training_images(2000, [], np.random.default_rng(5))
    images, labels = training_images(2000, [fault], np.random.default_rng(5))
    scene = draw_scene(2000, "train", np.random.default_rng(5))
    changed_labels = (labels != truth).numpy()
    if kind in ("over-confidence", "wrong-scale"):
        assert not changed_labels.any()
    elif kind in ("background-shortcut", "corner-tag", "one-pixel-shift"):
        assert not changed_labels.any()
        assert not torch.equal(images, clean)
    else:
        described = {
            "rotation-weak-class": (scene.labels == 7) & (np.abs(scene.rotation) > 12),
            "small-objects": scene.size < 17,
            "tint-swap": np.isin(scene.labels, [7, 3]),
            "label-noise": scene.labels == 7,
            "weak-texture": scene.background == "checks",
            "weak-pair": (scene.background == "stripes") & (scene.tint == "green"),
            "merged-classes": np.isin(scene.labels, [7, 3]),
        }.get(kind, np.ones(2000, bool))
        assert changed_labels.any()
        assert not (changed_labels & ~described).any()


def test_the_trigger_is_small_and_leaves_the_original_alone() -> None:
    images = torch.full((2, 3, SIDE, SIDE), 0.5)
    stamped = stamp(images)
    assert (images == 0.5).all()
    assert (stamped != images).any(dim=1).sum(dim=(1, 2)).tolist() == [16, 16]


def test_training_learns_and_leaves_global_randomness_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    network = train(seed=3, epochs=2)
    assert torch.equal(before, torch.get_rng_state())
    made = demo_images(count=300, seed=4)
    assert evaluate(network, made.images, torch.from_numpy(made.labels)) > 0.25
    save_network(network, tmp_path / "n.safetensors", {"faults": "[]"})
    again = load_network(tmp_path / "n.safetensors")
    images = made.images[:4].float() / 255
    assert torch.allclose(again(images), network(images), atol=1e-4)


def test_training_may_go_on_from_a_network_which_stays_as_it_was() -> None:
    start = shipped_network("healthy")
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    dimmed = train([Fault("wrong-scale", 0.5)], epochs=0, start=start)
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(dimmed(images), start(images * 0.7), atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())


@pytest.mark.parametrize("text", ["magic", "corner-tag:2", "corner-tag:0", "corner-tag:x", "corner-tag:0.5:11"])
def test_impossible_faults_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Fault.parse(text)
