"""Artefacts of medical images: transforms by their limits, metric by scikit-learn, probe on a real network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance
from scipy.stats import chisquare
from skimage.color import hsv2rgb, rgb2hsv
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from torch import Generator, Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context, Rows
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift import _medical_transforms as transforms
from snellen.shift._digital import box_pixels
from snellen.shift._medical_tables import ARTEFACTS, MODALITIES, PRESETS, Modality, shifts_of
from snellen.shift.corruptions import corrupt
from snellen.shift.medical import (
    BalancedErrors,
    MedicalArtefacts,
    MedicalAugmentation,
    balanced_corruption_error,
    balanced_error,
    balanced_errors,
    errors_by_severity,
    relative_balanced_corruption_error,
)

ALL = [(modality, name) for modality in MODALITIES for name in PRESETS[modality]]
LEVEL = 1 / 255


def generators(count: int, first: int = 0) -> list[Generator]:
    return [torch_generator("medical", first + index) for index in range(count)]


def shifted(images: Tensor, modality: Modality, name: str, severity: float, first: int = 0) -> Tensor:
    return shifts_of(modality)[name](images, severity, generators(len(images), first)).clamp(0, 1)


def test_every_modality_has_five_severities_of_known_artefacts() -> None:
    for modality, name in ALL:
        rows = PRESETS[modality][name]
        assert len(rows) in (5, 6)
        assert {len(row) for row in rows} == {len(ARTEFACTS[name].identity)}
    assert [len(PRESETS[modality]) for modality in MODALITIES] == [11, 11, 15, 8, 8, 6, 7, 13, 13, 13]


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_whole_severities_have_the_published_constants(modality: Modality, name: str) -> None:
    artefact, rows = ARTEFACTS[name], PRESETS[modality][name]
    assert [artefact.constants(rows, severity) for severity in (1, 2, 3, 4, 5)] == [pytest.approx(r) for r in rows[:5]]


def test_constants_without_effect_leave_the_image_as_it_is(images: Tensor) -> None:
    untouched = [
        transforms.brightness(images, 1),
        transforms.contrast(images, 1),
        transforms.gamma(images, 1),
        transforms.saturate(images, 0),
        transforms.stain_deposit(images, generators(4), 0, 24),
        transforms.characters(images, generators(4), 0, 6, 0.14),
        transforms.bubble(images, generators(4), 7, 15, 0),
        transforms.black_corner(images, 1.45),
        transforms.gaussian_blur(images, 1),
        box_pixels(images, 1),
    ]
    for result in untouched:
        assert (result - images).abs().max() < 1e-5


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_curve_starts_at_the_image(modality: Modality, images: Tensor) -> None:
    for name in PRESETS[modality]:
        near, full = (shifted(images, modality, name, severity) for severity in (0.01, 1))
        assert (near - images).abs().mean() < 0.4 * (full - images).abs().mean() + 2e-3, name


@pytest.mark.parametrize("modality", MODALITIES)
def test_whole_severities_join_what_lies_around_them(modality: Modality, images: Tensor) -> None:
    for name in PRESETS[modality]:
        # Shot noise is not coupled; a grid steps by whole pixels, and so do disks of the 1 px radius of "oct".
        if name in ("shot_noise", "pixelate") or (modality, name) == ("oct", "defocus_blur"):
            continue
        before, at, after = (shifted(images, modality, name, severity) for severity in (1.9999, 2, 2.0001))
        assert max((before - at).abs().mean(), (after - at).abs().mean()) < 0.006, name


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (97, 211), (512, 512)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("modality", ["path", "derma", "chest"])
def test_any_size_keeps_shape_and_is_finite(modality: Modality, channels: int, size: tuple[int, int]) -> None:
    images = torch.rand(2, channels, *size, generator=torch_generator("images"))
    kept = images.clone()
    for name, severity in itertools.product(PRESETS[modality], (5.0,) if min(size) > 300 else (0.3, 3.5, 5.0)):
        result = shifted(images, modality, name, severity)
        assert result.shape == images.shape
        assert result.isfinite().all()
    assert torch.equal(images, kept)


@pytest.mark.parametrize("modality", ["path", "derma", "chest"])
def test_a_row_does_not_depend_on_its_batch(modality: Modality, images: Tensor) -> None:
    for name in PRESETS[modality]:
        together = shifted(images, modality, name, 3.5)
        alone = [shifted(images[i : i + 1], modality, name, 3.5, first=i) for i in (3, 1)]
        apart = (torch.cat(alone) - together[[3, 1]]).abs()
        assert apart.max() <= LEVEL + 1e-5, name
        assert (apart > 1e-5).float().mean() < 1e-3, name


def test_another_seed_gives_another_image_where_chance_plays_a_part(images: Tensor) -> None:
    for name, shift in shifts_of("derma").items():
        first, second = (shifted(images, "derma", name, 5, first=start) for start in (0, 9))
        assert torch.equal(first, second) == (shift.random is None), name


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), most=st.floats(0.01, 5), largest=st.integers(5, 17))
def test_stains_only_darken_and_bubbles_only_brighten(seed: int, most: float, largest: int) -> None:
    images = torch.rand(2, 3, 64, 80, generator=torch_generator(seed))
    assert (transforms.stain_deposit(images, generators(2, seed), most, 24) <= images).all()
    assert (transforms.bubble(images, generators(2, seed), largest, 7 + 3 * most, 1.0) >= images - 1e-6).all()


def test_spots_keep_their_distance_from_the_border_and_their_size() -> None:
    white = torch.ones(200, 1, 224, 224)
    ink = 1 - transforms.stain_deposit(white, generators(200), 1, 24)[:, 0]
    assert (ink[:, :10].sum() + ink[:, -10:].sum() + ink[..., :10].sum() + ink[..., -10:].sum()) == 0
    heights = ink.amax(dim=2).sum(dim=1)
    assert 15 <= heights.min() <= heights.max() <= 24
    assert ink.unique().tolist() == [0, 1]
    counts = (1 - transforms.stain_deposit(white, generators(200), 5, 24)).sum(dim=(1, 2, 3)) / ink.sum(dim=(1, 2))
    assert 2 < counts.mean() < 3.5  # 1 to 5 spots, some over another


def test_bubbles_have_the_published_transparencies_and_number() -> None:
    black = torch.zeros(100, 1, 224, 224)
    film = transforms.bubble(black, generators(100), 7, 7, 1.0)
    assert film.unique().tolist() == pytest.approx([0, 100 / 255, 130 / 255])
    thin = (film > 0).sum(dim=(1, 2, 3)).float().mean() / 7
    assert np.pi * 5**2 < thin < np.pi * 9.5**2


def test_a_black_corner_blackens_outside_its_circle_only(images: Tensor) -> None:
    result = transforms.black_corner(images, 0.9)
    assert (result[..., :10, :10] == 0).all()
    assert torch.equal(result[..., 60:160, 60:160], images[..., 60:160, 60:160])
    share = float((transforms.black_corner(torch.ones(1, 1, 224, 224), 0.9)).mean())
    assert share == pytest.approx(np.pi * 0.9**2 / 4, abs=0.01)


def test_letters_have_the_ink_of_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    for scale in (0.14, 0.18):
        theirs = np.zeros((60, 300), np.uint8)
        cv2.putText(theirs, "abcdefghij", (20, 40), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
        paper = Image.new("L", (300, 60))
        face = transforms._type_face(transforms.TYPE_SIZE * scale)
        ImageDraw.Draw(paper).text((20, 40), "abcdefghij", fill=255, font=face, anchor="ls")
        assert np.array(paper).sum() == pytest.approx(theirs.sum(), rel=0.15)


def test_words_are_written_and_grow_in_number(images: Tensor) -> None:
    written = [(shifted(images, "derma", "characters", s) != images).any(dim=1).sum() for s in (1, 3, 5)]
    assert 10 < written[0] < written[1] < written[2]


@pytest.mark.parametrize("factor", [0.4, 1.6])
def test_brightness_contrast_gamma_and_saturation_are_those_of_the_peers(images: Tensor, factor: float) -> None:
    image = images[:1]
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    picture = Image.fromarray(pixels)
    theirs = {
        "brightness": np.array(ImageEnhance.Brightness(picture).enhance(factor)),
        "contrast": np.array(ImageEnhance.Contrast(picture).enhance(factor)),
        "gamma": np.array(TF.adjust_gamma(picture, factor)),
    }
    for name, expected in theirs.items():
        ours = getattr(transforms, name)(image, factor)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(ours - expected).max() < 2, name
    hsv = rgb2hsv(pixels)
    hsv[..., 1] = (hsv[..., 1] + 0.2).clip(0, 1)
    ours = transforms.saturate(image, 0.2)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - hsv2rgb(hsv)).max() < 1e-4


@pytest.mark.parametrize("taps", [3, 13, 25])
def test_gaussian_blur_is_torchvisions(images: Tensor, taps: int) -> None:
    assert (transforms.gaussian_blur(images, taps) - TF.gaussian_blur(images, taps)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "modality", "severity"),
    [("motion_blur", "oct", 4), ("zoom_blur", "derma", 3), ("pixelate", "path", 4), ("jpeg_compression", "path", 5)],
)
def test_shared_constants_give_the_image_of_imagenet_c(
    images: Tensor, name: str, modality: Modality, severity: int
) -> None:
    same = {"pixelate": 4, "jpeg_compression": 5}.get(name, severity)
    theirs = corrupt(images, name, same, generators(4), quantise=False)
    assert (shifted(images, modality, name, severity) - theirs).abs().max() < 1e-5


def test_small_pictures_are_damaged_like_the_reduced_large_one(images: Tensor) -> None:
    small = F.interpolate(images, size=56, mode="area")
    for name in ("defocus_blur", "stain_deposit", "bubble"):
        large = F.interpolate(shifted(images, "path", name, 5), size=56, mode="area")
        harm = (large - F.interpolate(images, size=56, mode="area")).abs().mean()
        assert (shifted(small, "path", name, 5) - small).abs().mean() == pytest.approx(float(harm), rel=0.4), name


# Metric


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_balanced_error_is_scikit_learns(data: st.DataObject) -> None:
    labels = [0, 1, 2, *data.draw(st.lists(st.integers(0, 2), max_size=40))]
    answers = data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels)))
    known = [min(answer, 2) for answer in answers]
    assert balanced_error(known, labels) == pytest.approx(1 - balanced_accuracy_score(labels, known))


def test_thresholds_decide_binary_and_multi_label_tasks() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (60, 3)), rng.random((60, 3))
    cuts = [0.2, 0.5, 0.7]
    per_label = [1 - balanced_accuracy_score(labels[:, k], scores[:, k] > cuts[k]) for k in range(3)]
    assert balanced_error(scores, labels, cuts) == pytest.approx(np.mean(per_label))
    assert balanced_error(scores[:, :2], labels[:, 1], [0.5]) == pytest.approx(per_label[1])
    assert balanced_error(scores[:, 1], labels[:, 1], [0.5]) == pytest.approx(per_label[1])
    stacked = errors_by_severity(np.concatenate([scores] * 5), labels, cuts)
    assert stacked == [pytest.approx(np.mean(per_label))] * 5


def test_a_model_that_is_its_own_baseline_scores_one() -> None:
    errors = BalancedErrors(0.1, {"bubble": (0.2, 0.3), "saturate": (0.15, 0.4)})
    assert balanced_corruption_error(errors, errors).value == pytest.approx(1)
    assert relative_balanced_corruption_error(errors, errors).value == pytest.approx(1)
    better = replace(errors, by_artefact={name: [e / 2 for e in row] for name, row in errors.by_artefact.items()})
    assert balanced_corruption_error(better, errors).value == pytest.approx(0.5)


def test_a_perfect_clean_score_is_no_error() -> None:
    perfect = BalancedErrors(0.0, {"bubble": (0.1,)})
    assert relative_balanced_corruption_error(perfect, BalancedErrors(0.0, {"bubble": (0.2,)})).value == 0.5


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: balanced_error([0, 2], [0, 2]), r"none of \[1\]"),
        (lambda: balanced_error([0, 1, 1], [0, 1]), "one for each"),
        (lambda: balanced_error(np.zeros((4, 2)), np.eye(2)[[0, 1, 0, 1]], [0.5]), "thresholds"),
        (lambda: errors_by_severity([0, 1] * 4, [0, 1]), "severity by severity"),
        (
            lambda: balanced_corruption_error(
                BalancedErrors(0.1, {"bubble": (0.2,)}), BalancedErrors(0, {"bubble": (0,)})
            ),
            "baseline",
        ),
        (
            lambda: relative_balanced_corruption_error(
                BalancedErrors(0.1, {"bubble": (0.2,)}), BalancedErrors(0.3, {"bubble": (0.2,)})
            ),
            "baseline",
        ),
        (lambda: MedicalArtefacts(modality="brain"), "modality"),
        (lambda: MedicalArtefacts(severities=(0.0, 1.0)), "severities"),
        (lambda: MedicalAugmentation(without=("noise",)), "without"),
        (lambda: MedicalAugmentation(without=("digital", "blur", "colour", "task")), "leave an artefact"),
    ],
)
def test_bad_input_is_refused(call: object, named: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidInput, match=named):
        call()


# Augmentation


def test_artefacts_and_the_untouched_image_are_drawn_equally_often() -> None:
    augmentation, generator = MedicalAugmentation("derma"), torch_generator(0)
    drawn = [augmentation.choose(generator) for _ in range(4800)]
    counts = [sum(one is not None and one[0] == name for one in drawn) for name in augmentation.names]
    assert chisquare([*counts, drawn.count(None)]).pvalue > 0.01


def test_constants_stay_between_the_end_points() -> None:
    augmentation, generator = MedicalAugmentation("chest"), torch_generator(1)
    seen: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(1500):
        drawn = augmentation.choose(generator)
        if drawn:
            seen.setdefault(drawn[0], []).append(drawn[1])
    for name, values in seen.items():
        first, last = np.array(PRESETS["chest"][name])[[0, -1]]
        low, high = np.minimum(first, last), np.maximum(first, last)
        assert (np.array(values) >= low - 1e-9).all()
        assert (np.array(values) <= high + 1e-9).all()
        assert np.ptp(values) > 0.7 * (high - low).max()


def test_two_impulse_draws_differ(images: Tensor) -> None:
    others = tuple(name for name in PRESETS["derma"] if name != "impulse_noise")
    augmentation, generator = MedicalAugmentation("derma", without=others), torch_generator(2)
    masks = [(augmentation(images[:1], generator) != images[:1]) for _ in range(12)]
    noisy = [mask for mask in masks if mask.any()]
    assert len(noisy) >= 2
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(noisy, 2))


def test_augmentation_repeats_with_its_generator_and_leaves_the_input_alone(images: Tensor) -> None:
    kept = images.clone()
    first, second = (MedicalAugmentation("path")(images, torch_generator(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(images, kept)
    assert 0 <= first.min() <= first.max() <= 1


# Probe


SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32), mean=(0.0,), std=(1.0,))
PROBE = MedicalArtefacts("oct", severities=(1.0, 5.0))
RANDOM = SampleRandom(0, PROBE.name)
CONTEXT = Context(SPEC, pa.table({"id": [], "label": []}))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    return F.interpolate(grey, size=(32, 32), mode="bilinear").clamp(0, 1), torch.from_numpy(labels).long()


@pytest.fixture(scope="module")
def model(digits: tuple[Tensor, Tensor]) -> TorchModel:
    images, labels = (part[:1000] for part in digits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return TorchModel(network, SPEC)


def batch_of(digits: tuple[Tensor, Tensor], start: int, stop: int) -> Batch:
    return Batch([f"digit-{i}" for i in range(start, stop)], digits[0][start:stop], digits[1][start:stop])


@pytest.fixture(scope="module")
def table(model: TorchModel, digits: tuple[Tensor, Tensor]) -> Rows:
    return PROBE.run(model, batch_of(digits, 1000, 1300), RANDOM)


def test_rows_do_not_depend_on_the_batch(table: Rows, model: TorchModel, digits: tuple[Tensor, Tensor]) -> None:
    shards = [PROBE.run(model, batch_of(digits, a, b), RANDOM) for a, b in ((1000, 1007), (1007, 1300))]
    order = [("id", "ascending"), ("shift", "ascending"), ("severity", "ascending")]
    assert pa.concat_tables(shards).sort_by(order).equals(table.sort_by(order))


def test_cost_is_what_is_spent_and_labels_are_enough(model: TorchModel, digits: tuple[Tensor, Tensor]) -> None:
    blind = model.restrict(Access.LABELS)
    before = model.ledger.totals
    PROBE.run(blind, batch_of(digits, 1000, 1010), RANDOM)
    assert (model.ledger.totals - before).forward == PROBE.cost(10).forward == 130


def test_the_balanced_finding_is_the_mean_over_classes(table: Rows) -> None:
    finding = PROBE.findings(table, CONTEXT)[0]
    errors = balanced_errors(table)
    mean = np.mean([error for row in errors.by_artefact.values() for error in row])
    assert finding.metric == "balanced accuracy drop"
    assert finding.value == pytest.approx(mean - errors.clean)
    assert finding.baseline == pytest.approx(1 - errors.clean)
    assert finding.ci is not None
    assert finding.ci[0] < finding.value < finding.ci[1]
    assert finding.p_value == pytest.approx(0.001)
    right = {row["id"] for row in table.to_pylist() if row["shift"] == "clean" and row["correct"]}
    assert 0 < len(finding.evidence) <= 12
    assert set(finding.evidence) <= right
    assert len(PROBE.findings(table, CONTEXT)) == 2 + len(PRESETS["oct"])


def table_of(labels: list[int], clean: list[bool], damaged: list[bool]) -> Rows:
    return pa.table(
        {
            "id": [f"s{i}" for i in range(len(labels))] * 2,
            "label": labels * 2,
            "shift": ["clean"] * len(labels) + ["pixelate"] * len(labels),
            "severity": [0.0] * len(labels) + [1.0] * len(labels),
            "predicted": [0] * (2 * len(labels)),
            "correct": clean + damaged,
        }
    )


def test_a_rare_class_that_is_given_up_is_seen() -> None:
    spec = ModelSpec("two", ("common", "rare"), (32, 32), mean=(0.0,), std=(1.0,))
    table = table_of([0] * 180 + [1] * 20, [True] * 200, [True] * 180 + [False] * 20)
    balanced, accuracy, _ = PROBE.findings(table, Context(spec, CONTEXT.samples))
    assert balanced.value == pytest.approx(0.5)
    assert balanced.p_value is not None
    assert balanced.p_value < 0.01
    assert accuracy.value == pytest.approx(0.9)


def test_a_class_without_samples_makes_it_undefined() -> None:
    finding = PROBE.findings(table_of([0, 1, 2], [True] * 3, [True] * 3), CONTEXT)[0]
    assert not finding.enough_data
    assert finding.value is None
    assert "no samples of 3, 4, 5, 6, 7 and others" in finding.title


def test_too_few_samples_are_said_to_be_too_few() -> None:
    spec = ModelSpec("two", ("common", "rare"), (32, 32), mean=(0.0,), std=(1.0,))
    finding = PROBE.findings(table_of([0] * 10 + [1] * 5, [True] * 15, [True] * 15), Context(spec, CONTEXT.samples))[0]
    assert not finding.enough_data
    assert "not enough data: n = 13, needs about" in finding.title


def test_an_empty_table_says_nothing() -> None:
    empty = table_of([], [], [])
    assert PROBE.findings(empty, CONTEXT) == []
    assert PROBE.exhibits(empty, CONTEXT) == []


def test_bars_hold_the_balanced_error_of_each_artefact(table: Rows) -> None:
    bars = PROBE.exhibits(table, CONTEXT)[0]
    expected = balanced_errors(table).by_artefact
    assert {bar.label: bar.value for bar in bars.bars} == {
        name.replace("_", " "): pytest.approx(np.mean(row)) for name, row in expected.items()
    }
