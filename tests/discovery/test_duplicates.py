import io

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.data import Dataset, load_dataset
from snellen.demo.digits import demo_images
from snellen.discovery._copies import find_copies, read_pictures
from snellen.discovery.duplicates import Duplicates, leakage
from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.models.loading import load_model
from snellen.probe import Context, rows
from snellen.randomness import SampleRandom

PROBE = Duplicates()


def scenes(seed, n):
    """Flat backgrounds with two to five discs and boxes, `[n, 3, 64, 64]`."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:64, :64]
    images = np.ones((n, 3, 64, 64)) * rng.uniform(0.2, 0.9, (n, 3, 1, 1))
    for image in images:
        for _ in range(rng.integers(2, 6)):
            x, y, r, flat = *rng.uniform(8, 56, 2), rng.uniform(4, 18), rng.uniform(0.4, 1)
            disc = (right - x) ** 2 + (down - y) ** 2 < r * r
            box = (abs(right - x) < r) & (abs(down - y) < r * flat)
            image[:, disc if rng.random() < 0.5 else box] = rng.uniform(0, 1, (3, 1))
    return torch.tensor(images).float()


def jpeg(images):
    saved = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(file, "JPEG", quality=60)
        saved.append(torch.tensor(np.array(Image.open(file))).permute(2, 0, 1) / 255)
    return torch.stack(saved)


def resized(images):
    small = F.interpolate(images, scale_factor=0.6, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[2:], mode="bilinear")


def moved(images):
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    return padded[:, :, : images.shape[2], 3 : 3 + images.shape[3]]


def cropped(images):
    return F.interpolate(images[:, :, 1:-1, 1:-1], images.shape[2:], mode="bilinear")


def brighter(images):
    return (images * 1.1 + 0.03).clamp(0, 1)


def search(images, flips=False):
    pictures = read_pictures([([f"{row:05}" for row in range(len(images))], images)])
    return find_copies(pictures, np.ones(len(images), dtype=bool), flips)


def together(found, first, second):
    return (found.cluster[first] >= 0) & (found.cluster[first] == found.cluster[second])


# ---------------------------------------------------------------------------------------- what is and is not a copy


@pytest.mark.parametrize("change", [torch.clone, jpeg, resized, moved, cropped, brighter])
def test_changed_copies_of_scenes_are_found_and_nothing_else(change):
    images = scenes(0, 300)
    found = search(torch.cat([images, change(images[:30])]))
    assert together(found, np.arange(30), np.arange(300, 330)).mean() >= 0.9
    assert (found.cluster[30:300] == -1).all()


def test_mirror_images_count_only_when_asked_for():
    images = scenes(1, 200)
    both = torch.cat([images, images[:20].flip(-1)])
    assert together(search(both, flips=True), np.arange(20), np.arange(200, 220)).all()
    assert not together(search(both), np.arange(20), np.arange(200, 220)).any()


@pytest.mark.parametrize("seed", range(2))
def test_demo_digits_of_one_kind_are_no_copies(seed):
    images = demo_images("test", 600, seed).images.float() / 255
    assert (search(images).cluster == -1).all()


@pytest.mark.parametrize("change", [moved, brighter])
def test_changed_copies_of_demo_digits_are_found(change):
    images = demo_images("test", 600, 9).images.float() / 255
    found = search(torch.cat([images, change(images[:40])]))
    assert together(found, np.arange(40), np.arange(600, 640)).mean() >= 0.9
    assert (found.cluster[40:600] == -1).all()


def test_handwritten_digits_are_no_copies():
    images = torch.tensor(load_digits().images[:900] / 16).float()[:, None]
    assert (search(images).cluster == -1).sum() == len(images)


def test_noise_is_no_copy():
    images = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (search(images).cluster == -1).all()


def test_products_on_white_of_one_shape_are_no_copies():
    rng = np.random.default_rng(0)
    images = torch.ones(300, 3, 64, 64)
    for image in images:
        w, h = rng.integers(8, 17), rng.integers(14, 27)
        image[:, 32 - h : 32 + h, 32 - w : 32 + w] = torch.tensor(rng.uniform(0.1, 0.9, (3, 1, 1))).float()
    found = search(images)
    assert (found.cluster[~found.exact] == -1).all()


def test_flat_images_are_copies_only_when_equal():
    flat = torch.linspace(0.1, 0.9, 80).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    found = search(torch.cat([flat, flat[:1]]))
    assert np.flatnonzero(found.cluster >= 0).tolist() == [0, 80]


def test_few_images_are_searched_for_exact_copies_only():
    images = scenes(2, 20)
    found = search(torch.cat([images, images[:2], brighter(images[2:4])]))
    assert found.limit == 0
    assert np.flatnonzero(found.cluster >= 0).tolist() == [0, 1, 20, 21]


def test_half_of_the_images_may_be_copies():
    images = scenes(3, 150)
    found = search(torch.cat([images, jpeg(images)]))
    assert together(found, np.arange(150), np.arange(150, 300)).mean() >= 0.9


# ------------------------------------------------------------------------------------------------------- two sets


def test_leakage_names_the_training_image_whatever_the_batches():
    train, extra = scenes(4, 150), scenes(5, 80)
    test = torch.cat([extra, train[:3], jpeg(train[3:6])])
    names = [f"x{row:03}" for row in range(200)]  # the same names in both sets
    whole = leakage([(names[:150], train)], [(names[:86], test)])
    parts = leakage(
        [(names[s : s + 7], train[s : s + 7]) for s in range(0, 147, 7)] + [(names[147:150], train[147:])],
        [(names[80:86], test[80:]), (names[:80], test[:80])],
    )
    assert {(c.test_id, c.train_id, c.exact) for c in whole.copies} == {
        (f"x{80 + row:03}", f"x{row:03}", row < 3) for row in range(6)
    }
    assert [c[:2] for c in parts.copies] == [c[:2] for c in whole.copies]
    assert [c.correlation for c in whole.copies[:3]] == [1.0] * 3
    assert all(0.9 <= c.correlation <= 1 for c in whole.copies)
    assert whole.near_searched


def test_sets_without_a_common_image_do_not_leak():
    assert leakage([(list("ab"), scenes(0, 2))], [(list("ab"), scenes(1, 2))]).copies == []
    assert leakage([], []).copies == []


def test_bad_images_are_refused():
    good = scenes(0, 2)
    with pytest.raises(InvalidInput, match="one id each"):
        leakage([(["a"], good)], [])
    with pytest.raises(InvalidInput, match="in \\[0, 1\\]"):
        leakage([(["a", "b"], good * 255)], [])
    with pytest.raises(InvalidInput, match="finite"):
        leakage([(["a", "b"], good * float("nan"))], [])
    with pytest.raises(InvalidInput, match="unique"):
        leakage([(["a", "a"], good)], [])


# -------------------------------------------------------------------------------------------------------- the probe


def examine(images, labels, correct, attributes=None):
    """Table and findings for given answers; labels access is enough."""
    n = len(images)
    data = Dataset.from_arrays(images, labels, ("cat", "dog"), attributes)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 2))
    model = TorchModel(network, ModelSpec("m", ("cat", "dog"), tuple(images.shape[2:]))).restrict(Access.LABELS)
    answers = np.where(correct, labels, 1 - labels)
    predictions = rows(data.ids, label=labels, predicted=answers)
    view = SampleView(loader_for(model, data), np.arange(n), BatchSize(3, 64, 64, 32))
    table = PROBE.run(model, view, {"predictions": predictions}, SampleRandom(0, PROBE.name))
    context = Context(model.spec, data.table, data.attributes, 0)
    return table, PROBE.findings(table, context), PROBE.exhibits(table, context)


def test_contradicting_labels_are_counted_once_a_picture():
    images = scenes(6, 100)
    images = torch.cat([images, images[:5], jpeg(images[:1])])
    labels = np.arange(106) % 2
    labels[100:] = [1 - labels[0], 1 - labels[1], labels[2], labels[3], labels[4], 1 - labels[0]]
    table, findings, exhibits = examine(images, labels, np.ones(106, dtype=bool))
    noise = next(f for f in findings if f.kind == "label-noise")
    assert noise.value == noise.effect == pytest.approx(2 / 106)
    assert {"00000000", "00000100", "00000105", "00000001", "00000101"} == set(noise.evidence)
    assert noise.ci[0] == noise.value < noise.ci[1]
    assert "Copies of 2 pictures carry different labels (for example cat and dog)" in noise.title
    copies = next(f for f in findings if f.metric == "share of images that are copies")
    assert copies.value == pytest.approx(6 / 106)
    assert copies.effect < 0.02
    assert [type(e).__name__ for e in exhibits] == ["Grid", "Gallery"]
    assert exhibits[1].items[0].sample_id in noise.evidence
    assert table["exact"].to_pylist()[:6] == [True] * 5 + [False]


@pytest.mark.parametrize("right_on_others", [0.5, 1.0])
def test_leakage_between_splits_is_told_with_what_it_is_worth(right_on_others):
    images = torch.cat([scenes(7, 120), scenes(7, 120)[:30], scenes(8, 60)])
    split = ["Train"] * 120 + ["test"] * 90
    correct = np.ones(210, dtype=bool)
    correct[150:][np.arange(60) >= 60 * right_on_others] = False
    _, findings, _ = examine(images, np.tile([0, 1], 105), correct, {"split": split})
    leak = next(f for f in findings if f.subject.get("attribute") == "split")
    assert leak.n == 90
    assert "30 of 90 test images" in leak.title
    assert f"right on 100.0% of them and on {right_on_others:.1%} of the others" in leak.title
    assert leak.effect == leak.value == pytest.approx(1 / 3)
    assert leak.ci[0] <= leak.value <= leak.ci[1]


def test_what_few_leaked_images_do_to_accuracy_is_not_judged():
    images = torch.cat([scenes(7, 120), scenes(7, 120)[:3], scenes(8, 27)])
    split = ["train"] * 120 + ["val"] * 30
    _, findings, _ = examine(images, np.tile([0, 1], 75), np.ones(150, dtype=bool), {"Subset": split})
    leak = next(f for f in findings if "attribute" in f.subject)
    assert "3 of 30 test images" in leak.title
    assert "n = 3, needs about" in leak.title


@pytest.mark.parametrize("values", [["train"] * 64, list(range(64)), [None] * 64, ["a", "b"] * 32])
def test_a_split_without_two_sides_says_nothing(values):
    images = torch.cat([scenes(9, 60), scenes(9, 60)[:4]])
    _, findings, _ = examine(images, np.tile([0, 1], 32), np.ones(64, dtype=bool), {"fold": values})
    assert [f.metric for f in findings] == ["share of images that are copies"]


def test_the_healthy_demo_and_an_empty_table_have_no_finding():
    model, data = load_model("demo:healthy").model, load_dataset("demo")
    view = SampleView(loader_for(model, data), np.arange(len(data)), BatchSize(3, 32, 32, 256))
    predictions = rows(data.ids, label=data.labels, predicted=data.labels)
    before = model.ledger.totals.forward
    table = PROBE.run(model, view, {"predictions": predictions}, SampleRandom(0, PROBE.name))
    assert model.ledger.totals.forward - before == PROBE.cost(len(data)).forward == 0
    context = Context(model.spec, data.table, data.attributes, 0)
    assert PROBE.findings(table, context) == []
    assert PROBE.findings(table.slice(0, 0), context) == PROBE.exhibits(table.slice(0, 0), context) == []
    assert isinstance(table, pa.Table)
