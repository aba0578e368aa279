"""What the 22 obfuscations promise, one by one and together, and the probe on a small real network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from snellen.errors import InvalidInput
from snellen.exhibits import Bars, Grid
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context, Rows
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift._donors import NUMBERS, PHOTOGRAPHS, Donors, pictures_of
from snellen.shift._obfuscate import COMPOSITIONS
from snellen.shift._obfuscate_overlay import COVERED, icons, words
from snellen.shift._strength import length, rising
from snellen.shift.obfuscations import (
    HELD_OUT,
    OBFUSCATIONS,
    TRAINING,
    Obfuscations,
    adversarial_patches,
    obfuscate,
    obfuscated_for_training,
)
from snellen.stats import wilson

NAMES = tuple(OBFUSCATIONS)
CELLWISE = ("rotate_blocks", "line_shift", "photo_composition", "background_blur_composition", "high_contrast_border")
"""Those that go in steps of whole cells or pixels."""


def generators(count: int, first: int = 0) -> list[Generator]:
    return [torch_generator("test", first + index) for index in range(count)]


def change(images: Tensor, name: str, severity: float) -> float:
    return float((OBFUSCATIONS[name](images, severity, generators(len(images))).clamp(0, 1) - images).abs().mean())


def test_the_benchmark_lists_nineteen_to_train_on_and_three_held_out() -> None:
    assert (len(TRAINING), len(HELD_OUT)) == (19, 3)
    assert tuple(OBFUSCATIONS) == (*TRAINING, *HELD_OUT)
    assert not set(TRAINING) & set(HELD_OUT)
    assert all(shift.random is not None for shift in OBFUSCATIONS.values())


def test_a_strength_meets_the_middle_at_three_and_the_end_at_five() -> None:
    assert [rising(severity, 4, 6) for severity in (0, 1.5, 3, 4, 5)] == [0, 2, 4, 5, 6]
    assert length(8, torch.empty(1, 3, 224, 300)) == 8
    assert length(8, torch.empty(1, 3, 448, 600)) == 16
    assert length(8, torch.empty(1, 3, 56, 56)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_starts_at_the_image_and_rises(name: str, images: Tensor) -> None:
    near, low, middle, high = (change(images, name, severity) for severity in (0.01, 1, 3, 5))
    assert near < 0.15 * low + 1e-3
    assert low < middle
    # Beyond severity 3 larger dots of halftone move as much ink, and a smaller copy lies elsewhere on its own blur.
    if name not in ("halftoning", "background_blur_composition"):
        assert middle < high


@pytest.mark.parametrize("name", [n for n in NAMES if n not in CELLWISE])
def test_a_little_more_severity_changes_little(name: str, images: Tensor) -> None:
    before, at = (OBFUSCATIONS[name](images, severity, generators(4)) for severity in (2.499, 2.5))
    assert (before - at).abs().mean() < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_rows_follow_their_own_generator_only(name: str, images: Tensor) -> None:
    state = torch.get_rng_state()
    kept = images.clone()
    together = OBFUSCATIONS[name](images, 3.5, generators(4))
    alone = OBFUSCATIONS[name](images[2:3], 3.5, generators(1, first=2))
    assert (together[2:3] - alone).abs().max() < 1e-4
    assert torch.equal(together, OBFUSCATIONS[name](images, 3.5, generators(4)))
    assert not torch.equal(together, OBFUSCATIONS[name](images, 3.5, generators(4, first=9)))
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (97, 211), (211, 97), (512, 512)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_keeps_shape_type_and_range(channels: int, size: tuple[int, int]) -> None:
    images = torch.rand(1 if min(size) > 300 else 2, channels, *size, generator=torch_generator("images"))
    for name in NAMES:
        for severity in (3.0,) if min(size) > 300 else (0.3, 3.0, 5.0):
            result = obfuscate(images, name, severity, generators(len(images)))
            assert result.shape == images.shape, name
            assert result.dtype == torch.float32, name
            assert result.isfinite().all(), name
            assert 0 <= result.min() <= result.max() <= 1, name
            assert (result * 255 - (result * 255).round()).abs().max() < 1e-3, name


@pytest.mark.parametrize("name", NAMES)
def test_flat_images_stay_finite(name: str) -> None:
    for value in (0.0, 1.0):
        assert OBFUSCATIONS[name](torch.full((1, 3, 32, 32), value), 5.0, generators(1)).isfinite().all()


@pytest.mark.parametrize("name", ["rotate_blocks", "line_shift"])
@pytest.mark.parametrize("severity", [1.0, 3.0, 5.0])
def test_blocks_and_lines_keep_the_pixels(name: str, severity: float, images: Tensor) -> None:
    for batch in (images, images[:, :, :97, :211]):
        moved = OBFUSCATIONS[name](batch, severity, generators(4))
        assert not torch.equal(moved, batch)
        # A pixel keeps its colour: sort whole pixels, coded as one number
        code = torch.tensor([1.0, 256.0, 65536.0]).view(1, 3, 1, 1)
        before, after = (((part * 255).round() * code).sum(dim=1).flatten(1).sort().values for part in (batch, moved))
        assert torch.equal(before, after)


def test_all_blocks_are_turned_at_the_end() -> None:
    unique = torch.arange(64 * 64.0).view(1, 1, 64, 64) / 4096
    moved = OBFUSCATIONS["rotate_blocks"](unique, 5.0, generators(1))
    assert (moved != unique).float().mean() > 0.85  # the middle of odd cells and the rim stay


@pytest.mark.parametrize("severity", [1.0, 3.0, 5.0])
def test_inverting_lines_twice_gives_the_image_back(severity: float, images: Tensor) -> None:
    once = obfuscate(images, "invert_lines", severity, generators(4))
    twice = obfuscate(once, "invert_lines", severity, generators(4))
    assert (once - images).abs().mean() > 0.02
    assert (twice - images).abs().max() < 1e-6


def test_every_other_band_is_negative_at_severity_three() -> None:
    flat = torch.zeros(4, 3, 224, 224)
    flat[..., :112] = 0.25
    shifted = OBFUSCATIONS["invert_lines"](flat, 3.0, generators(4))
    assert (shifted > 0.5).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("name", "share"), [("icon_overlay", COVERED), ("text_overlay", COVERED)])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (97, 211), (224, 224)])
def test_stamps_cover_at_most_the_declared_share(name: str, share: float, size: tuple[int, int]) -> None:
    images = torch.full((6, 3, *size), 0.5)
    changed = (OBFUSCATIONS[name](images, 5.0, generators(6)) != images).any(dim=1).float().mean(dim=(1, 2))
    assert (changed <= share).all()
    assert (changed > 0.02).all()


@pytest.mark.parametrize("size", [(16, 16), (97, 211), (224, 224)])
def test_patches_and_frames_cover_what_they_declare(size: tuple[int, int]) -> None:
    images = torch.full((8, 3, *size), 0.5)
    for severity, share in ((3.0, 0.1), (5.0, 0.2)):
        changed = (OBFUSCATIONS["adversarial_patches"](images, severity, generators(8)) != 0.5).any(dim=1)
        covered = changed.float().mean(dim=(1, 2))
        assert (covered <= share).all()
        assert covered.max() > share / 2
    frame = (OBFUSCATIONS["high_contrast_border"](images, 5.0, generators(8)) != 0.5).any(dim=1)
    inner = round(0.25 * min(size))
    assert frame[:, :inner].all()
    assert not frame[:, inner:-inner, inner:-inner].any()


def test_glyphs_are_there() -> None:
    assert all(0.1 < float(icon.mean()) < 0.9 for icon in icons())
    assert all(float(word.max()) == 1 and 0.1 < float(word.mean()) < 0.8 for word in words())


@pytest.mark.parametrize("value", [0.1, 0.3, 0.5, 0.8])
def test_halftone_keeps_the_mean_of_a_flat_image_and_has_two_levels(value: float) -> None:
    printed = OBFUSCATIONS["halftoning"](torch.full((2, 3, 224, 224), value), 3.0, generators(2))
    assert set(printed.unique().tolist()) == {0.0, 1.0}
    assert printed.mean() == pytest.approx(value, abs=0.02)


def test_the_hue_wave_keeps_the_mean_of_the_channels_and_grey_only_bends() -> None:
    colour = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    waved = OBFUSCATIONS["wavy_color_warp"](colour, 3.0, generators(1))
    assert (waved.mean(dim=1) - colour.mean(dim=1)).abs().max() < 1e-5
    assert (waved - colour).abs().mean() > 0.05
    grey = torch.full((1, 1, 64, 64), 0.4)
    assert (OBFUSCATIONS["wavy_color_warp"](grey, 3.0, generators(1)) - grey).abs().max() < 1e-6


def test_a_quarter_turn_is_a_quarter_turn(images: Tensor) -> None:
    # The first draw of a generator decides the angle; the severity is chosen so that it comes to 90 degrees.
    shares = [2 * float(torch.rand(2, generator=generator)[0]) - 1 for generator in generators(20)]
    first, share = next((i, share) for i, share in enumerate(shares) if abs(share) > 0.5)
    severity = float(np.interp(90 / abs(share), (90, 180), (3, 5)))
    turned = OBFUSCATIONS["rotate_image"](images[:1], severity, generators(1, first=first))
    assert (turned - images[:1].rot90(1 if share > 0 else -1, (2, 3)))[..., 2:-2, 2:-2].abs().max() < 0.01


@pytest.mark.parametrize(("severity", "cells"), [(3.0, 2), (5.0, 3)])
def test_a_collage_holds_the_whole_image_in_one_cell(severity: float, cells: int, images: Tensor) -> None:
    collage = OBFUSCATIONS["photo_composition"](images, severity, generators(4))
    side = -(-224 // cells)
    small = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    corners = [collage[..., rows, columns] for rows in (slice(side), slice(-side, None))
               for columns in (slice(side), slice(-side, None))]  # fmt: skip
    apart = torch.stack([(corner - small).abs().amax(dim=(1, 2, 3)) for corner in corners])
    assert (apart.amin(dim=0) < 1e-6).all()
    assert (apart < 1e-6).sum() == 4


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_foreign_content_comes_from_the_donors_given(name: str, images: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    Image.new("RGB", (80, 60), (255, 0, 0)).save(file)
    batch = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    result = obfuscate(batch, name, 3.0, generators(4), Donors((str(file),)))
    redder = (result[:, 0] - result[:, 1]).mean(dim=(1, 2))
    assert (redder > 0.02).any()
    assert not torch.equal(result, obfuscate(batch, name, 3.0, generators(4)))


def test_donor_crops_have_the_wanted_shape_and_come_from_both_photographs() -> None:
    numbers = torch.rand(40, NUMBERS, generator=torch_generator("donors"))
    for channels, size in ((3, (224, 224)), (1, (16, 50)), (3, (700, 512))):
        like = torch.empty(2, channels, *size)
        crops = PHOTOGRAPHS.crops(numbers[:2], like)
        assert crops.shape == like.shape
        assert 0 <= crops.min() < crops.max() <= 1
    first, second = pictures_of(())
    assert first.shape == second.shape == (3, 427, 640)
    blue = PHOTOGRAPHS.crops(numbers, torch.empty(1, 3, 32, 32))[:, 2].mean(dim=(1, 2))
    assert blue.min() < 0.35 < 0.45 < blue.max()  # flower, sky


def test_a_donor_that_is_no_image_is_refused(tmp_path: Path, images: Tensor) -> None:
    file = tmp_path / "donor.png"
    file.write_text("no image")
    for donor in (file, tmp_path / "missing.png"):
        with pytest.raises(InvalidInput, match="donors must be image files"):
            obfuscate(images, "image_overlay", 3.0, generators(4), Donors((str(donor),)))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"name": "icon_overlays"}, "names"),
        ({"severity": 5.5}, "severity"),
        ({"images": torch.rand(2, 4, 32, 32)}, "images"),
        ({"images": torch.rand(2, 3, 8, 32)}, "16 px"),
        ({"images": torch.rand(2, 3, 32, 32) + 1}, r"\[0, 1\]"),
        ({"generators": generators(1)}, "generators"),
    ],
)
def test_bad_input_is_refused_by_name(wrong: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {
        "images": torch.rand(2, 3, 32, 32),
        "name": "icon_overlay",
        "severity": 3.0,
        "generators": generators(2),
    }
    with pytest.raises(InvalidInput, match=named):
        obfuscate(**{**arguments, **wrong})


# Training and patches


def test_training_draws_one_obfuscation_or_none_an_image() -> None:
    images = torch.rand(200, 1, 16, 16, generator=torch_generator("train"))
    names = ("invert_lines", "line_shift", "image_overlay")
    result = obfuscated_for_training(images, generators(200), names=names)
    untouched = (result == images).all(dim=(1, 2, 3)).float().mean()
    assert untouched == pytest.approx(1 / 4, abs=0.1)
    alone = obfuscated_for_training(images[7:8], generators(1, first=7), names=names)
    assert (alone - result[7:8]).abs().max() <= 1 / 255 + 1e-6


# The network and the probe

SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32), mean=(0.0,), std=(1.0,))
PROBE = Obfuscations(names=("image_overlay", "line_shift", "rotate_blocks", "low_contrast_triangles"))
RANDOM = SampleRandom(0, PROBE.name)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    return F.interpolate(grey, size=(32, 32), mode="bilinear").clamp(0, 1), torch.from_numpy(labels).long()


@pytest.fixture(scope="module")
def network(digits: tuple[Tensor, Tensor]) -> nn.Module:
    images, labels = (part[:1000] for part in digits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network.eval()


def batch_of(digits: tuple[Tensor, Tensor], start: int, stop: int) -> Batch:
    return Batch([f"digit-{i}" for i in range(start, stop)], digits[0][start:stop], digits[1][start:stop])


@pytest.fixture(scope="module")
def table(network: nn.Module, digits: tuple[Tensor, Tensor]) -> Rows:
    return PROBE.run(TorchModel(network, SPEC), batch_of(digits, 1000, 1300), RANDOM)


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(SPEC, pa.table({"id": [], "label": []}))


def test_optimised_patches_fool_the_surrogate_more_than_loud_ones(
    network: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (part[1000:1100] for part in digits)
    loud = obfuscate(images, "adversarial_patches", 3.0, generators(100))
    aimed = adversarial_patches(images, labels, network, generators(100), area=0.1, steps=10)
    touched = (aimed != images).any(dim=1)
    assert (touched.float().mean(dim=(1, 2)) <= 0.1).all()
    assert 0 <= aimed.min() <= aimed.max() <= 1

    def right(batch: Tensor) -> float:
        return float((network(batch).argmax(1) == labels).float().mean())

    assert right(aimed) < right(loud) - 0.1
    alone = adversarial_patches(images[3:4], labels[3:4], network, generators(1, first=3), area=0.1, steps=10)
    assert (alone - aimed[3:4]).abs().max() < 1e-6
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_patches_refuse_what_they_cannot_use(network: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (part[:2] for part in digits)
    for wrong, named in (
        ({"area": 0.3}, "area"),
        ({"steps": 0}, "steps"),
        ({"generators": generators(1)}, "generators"),
        ({"labels": labels[:1]}, "labels"),
        ({"surrogate": lambda batch: torch.zeros(len(batch), 10)}, "surrogate"),
    ):
        arguments: dict[str, object] = {
            "images": images,
            "labels": labels,
            "surrogate": network,
            "generators": generators(2),
        }
        with pytest.raises(InvalidInput, match=named):
            adversarial_patches(**{**arguments, **wrong})


def right(table: Rows, shift: str) -> np.ndarray:
    return np.array([row["correct"] for row in table.to_pylist() if row["shift"] == shift])


def test_the_worst_case_is_the_and_over_obfuscations(table: Rows, context: Context) -> None:
    findings = PROBE.findings(table, context)
    worst = findings[0]
    every = np.stack([right(table, name) for name in PROBE.names])
    safe = every.all(axis=0)
    assert worst.value == pytest.approx(safe.mean())
    assert worst.baseline == pytest.approx(right(table, "clean").mean())
    assert worst.ci == tuple(wilson(int(safe.sum()), 300))
    assert worst.value <= every.mean(axis=1).min() <= every.mean()
    assert worst.p_value is not None
    assert worst.p_value < 0.05
    assert "recognised under all of 4 obfuscations" in worst.title
    ids = [f"digit-{i}" for i in range(1000, 1300)]
    assert 0 < len(worst.evidence) <= 12
    lost_times = [int((~every)[:, ids.index(sample_id)].sum()) for sample_id in worst.evidence]
    assert lost_times == sorted(lost_times, reverse=True)

    hardest = findings[1]
    assert hardest.value == pytest.approx(every.mean(axis=1).min())
    assert hardest.subject["obfuscation"] == PROBE.names[int(every.mean(axis=1).argmin())]
    assert hardest.effect == 0
    assert findings[2].subject["corruption"] == "hard and easy obfuscations"
    assert {finding.subject["corruption"] for finding in findings[3:]} == {"all", *PROBE.names}
    assert all(finding.effect == 0 for finding in findings[1:])


def test_exhibits_show_every_obfuscation_and_the_scores(table: Rows, context: Context) -> None:
    chart, scores = PROBE.exhibits(table, context)
    assert isinstance(chart, Bars)
    assert chart.bars[0].label == "every obfuscation"
    assert len(chart.bars) == 5
    values = [bar.value for bar in chart.bars[1:]]
    assert values == sorted(values)
    assert isinstance(scores, Grid)
    assert len(scores.rows) == 6
    (alone,) = Obfuscations(("line_shift",)).exhibits(table.filter(_is_one_of(table, ("clean", "line_shift"))), context)
    assert isinstance(alone, Bars)


def _is_one_of(table: Rows, shifts: tuple[str, ...]) -> np.ndarray:
    return np.isin(np.array(table["shift"].to_pylist()), shifts)


def test_rows_do_not_depend_on_the_batch_and_cost_is_what_is_spent(
    table: Rows, network: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = TorchModel(network, SPEC)
    shards = [
        PROBE.run(model.restrict(Access.LABELS), batch_of(digits, a, b), RANDOM)
        for a, b in ((1000, 1009), (1009, 1300))
    ]
    order = [("id", "ascending"), ("shift", "ascending")]
    assert pa.concat_tables(shards).sort_by(order).equals(table.sort_by(order))
    assert model.ledger.totals.forward == PROBE.cost(300).forward == 1500


def test_samples_of_a_donor_class_get_no_foreign_content(network: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    probe = Obfuscations(("image_overlay", "line_shift"), donor_classes=(3, 4))
    rows = probe.run(TorchModel(network, SPEC), batch_of(digits, 1000, 1100), RANDOM).to_pylist()
    assert {row["label"] for row in rows if row["shift"] == "image_overlay"} == set(range(10)) - {3, 4}
    assert {row["label"] for row in rows if row["shift"] == "line_shift"} == set(range(10))


def test_too_few_samples_decide_nothing_and_no_rows_say_nothing(table: Rows, context: Context) -> None:
    robust = [row for row in table.to_pylist() if row["correct"]]
    ids = [i for i in {row["id"] for row in robust} if sum(row["id"] == i for row in robust) == 5][:4]
    few = table.filter(np.isin(np.array(table["id"].to_pylist()), ids))
    finding = PROBE.findings(few, context)[0]
    assert not finding.enough_data
    assert "not enough data: n = 4" in finding.title
    assert PROBE.findings(table.slice(0, 0), context) == []
    assert PROBE.exhibits(table.slice(0, 0), context) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"names": ("icons",)}, "names"),
        ({"names": ()}, "names"),
        ({"names": ("texturize", "texturize")}, "names"),
        ({"severity": 0.0}, "severity"),
        ({"severity": 6.0}, "severity"),
        ({"donor_classes": (-1,)}, "donor_classes"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Obfuscations(**settings)
