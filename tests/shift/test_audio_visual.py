from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.randomness import torch_generator
from snellen.shift._catalogue import corrupt
from snellen.shift._frames import UNDERWATER
from snellen.shift._waveforms import NOISES, SCENES, compression, shot
from snellen.shift.audio_visual import (
    AV_CORRUPTIONS,
    corrupt_clip,
    corrupt_frames,
    corrupt_wave,
    evaluate_audio_visual,
    mix,
    snr_db,
)

MIXED = [*NOISES, *SCENES]
RATE = 16_000


def wave(seconds: float = 1.0, rate: int = RATE) -> Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    return 0.1 * torch.sin(2 * math.pi * 440 * time) + 0.05 * torch.sin(2 * math.pi * 1234 * time)


def spoilt(name: str, severity: float, seed: int = 0) -> Tensor:
    return corrupt_wave(wave(), name, severity, torch_generator(seed))


def realised_snr(clean: Tensor, noisy: Tensor) -> float:
    return 10 * math.log10(float(clean.square().mean() / (noisy - clean).square().mean()))


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch_generator(seed, index) for index in range(count)]


def test_there_are_fifteen_causes() -> None:
    assert len(set(AV_CORRUPTIONS)) == 15
    assert set(MIXED) | {"compression", "interference"} == set(AV_CORRUPTIONS)


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
def test_severity_zero_is_the_identity_of_both_streams(name: str, images: Tensor) -> None:
    clip = corrupt_clip(images[:2], wave(), name, 0, torch_generator(0))
    assert torch.equal(clip.frames, images[:2])
    assert torch.equal(clip.wave, wave())


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
def test_the_same_seed_reproduces_both_streams_and_the_inputs_are_left_alone(name: str, images: Tensor) -> None:
    frames, sound = images[:2, :, :64, :80].clone(), wave(0.3)
    one, two = (corrupt_clip(frames, sound, name, 4, torch_generator(5)) for _ in range(2))
    assert torch.equal(one.frames, two.frames)
    assert torch.equal(one.wave, two.wave)
    assert torch.equal(frames, images[:2, :, :64, :80])
    assert torch.equal(sound, wave(0.3))


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
def test_a_small_severity_changes_both_streams_little(name: str, images: Tensor) -> None:
    frames = corrupt_frames(images[:1], name, 0.01, generators(1))
    # jpeg is no identity at any quality, and a streak of rain keeps its shape
    assert float((frames - images[:1]).abs().mean()) < 0.02
    silence = name == "interference"  # 0.1 % of the samples is silent, however loud they were
    change = (spoilt(name, 0.01) - wave()).abs()
    assert float((change > 1e-6).float().mean()) <= 0.002 if silence else float(change.mean()) < 1e-3


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 2.5, 5])
def test_results_stay_in_range_and_keep_their_shape(name: str, severity: float, images: Tensor) -> None:
    clip = corrupt_clip(images[:2, :, :48, :64], wave(0.5), name, severity, torch_generator(1))
    assert clip.frames.shape == (2, 3, 48, 64)
    assert clip.wave.shape == wave(0.5).shape
    assert float(clip.frames.min()) >= 0
    assert float(clip.frames.max()) <= 1
    assert float(clip.wave.abs().max()) <= 1
    assert torch.equal((clip.frames * 255).round() / 255, clip.frames)


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
def test_a_frame_does_not_depend_on_its_batch(name: str, images: Tensor) -> None:
    small = images[:3, :, :64, :64]
    together = corrupt_frames(small, name, 3, generators(3))
    alone = corrupt_frames(small[2:], name, 3, generators(3)[2:])
    assert torch.allclose(together[2:], alone, atol=1.01 / 255)


@pytest.mark.parametrize("name", ["gaussian", "impulse", "shot", "compression", "snow", "frost", "wind", "concert"])
def test_shared_causes_equal_the_corruptions_of_imagenet_c(name: str, images: Tensor) -> None:
    peers = {"compression": "jpeg_compression", "wind": "motion_blur", "concert": "brightness"}
    peer = peers.get(name, name if name in ("snow", "frost") else f"{name}_noise")
    ours = corrupt_frames(images[:1], name, 3, generators(1))
    assert torch.equal(ours, corrupt(images[:1], peer, 3, generators(1)))


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
def test_frames_move_further_from_clean_at_severity_five_than_at_one(name: str, images: Tensor) -> None:
    far = [float((corrupt_frames(images, name, s, generators(4)) - images).abs().mean()) for s in (1, 5)]
    assert far[0] < far[1] or name == "interference"  # the turn is drawn


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_speckle_has_the_published_strength(severity: int) -> None:
    std = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    grey = torch.full((1, 3, 224, 224), 0.3)
    noisy = corrupt_frames(grey, "speckle", severity, generators(1))
    inside = noisy[noisy > 0]
    if severity <= 2:  # later ones are clipped at black
        assert float(inside.std()) == pytest.approx(0.3 * std, rel=0.02)
    # Half of the normal lies above: its median deviation is 0.6745 std whatever is cut below.
    above = noisy[noisy > 0.3] - 0.3
    assert float(above.median()) == pytest.approx(0.3 * std * 0.6745, rel=0.05)


def test_smoke_equals_the_fog_formula_with_scipys_gaussian_field(images: Tensor) -> None:
    weight, sigma = 2.5, 1.7
    field = torch.rand(1, 224, 224, generator=torch_generator(0, 0))[0].numpy()
    cloud = ndimage.gaussian_filter(field, sigma)
    image = images[0].numpy()
    expected = (image + weight * cloud) * image.max() / (image.max() + weight)
    ours = corrupt_frames(images[:1], "smoke", 3, generators(1))[0].numpy()
    assert np.abs(ours - expected).max() < 1.01 / 255


def test_underwater_weakens_red_and_keeps_the_channels_in_place() -> None:
    for colour in range(3):
        plain = torch.zeros(1, 3, 64, 64)
        plain[:, colour] = 1.0
        result = corrupt_frames(plain, "underwater", 5, generators(1)).mean(dim=(0, 2, 3))
        if colour == 0:  # at a tenth of its strength
            assert float(result.max() - result.min()) < 0.06
        else:
            assert int(result.argmax()) == colour
            assert float(result.max() - result.min()) > 0.3


@pytest.mark.parametrize("severity", [1, 2, 3, 5])
def test_underwater_blurs_as_opencv_does_with_its_odd_kernels(severity: int, images: Tensor) -> None:
    red, kernel, contrast, haze, level = UNDERWATER.imagenet[severity - 1]
    tinted = images[0].permute(1, 2, 0).numpy() * np.array([red, 1, 1], dtype=np.float32)
    blurred = cv2.GaussianBlur(tinted, (int(kernel), int(kernel)), 0, borderType=cv2.BORDER_REFLECT)
    expected = ((blurred - blurred.mean()) * contrast + blurred.mean()) * (1 - haze) + haze * level / 255
    ours = corrupt_frames(images[:1], "underwater", severity, generators(1))[0].permute(1, 2, 0).numpy()
    # OpenCV has a table of its own for kernels of 3 to 7 taps, and cuts its tails earlier.
    assert np.abs(ours - expected).mean() < 2 / 255


def test_opencv_refuses_the_even_kernel_of_the_published_code() -> None:
    with pytest.raises(cv2.error):
        cv2.GaussianBlur(np.zeros((32, 32), np.float32), (10, 10), 0)


def test_a_person_covers_more_of_the_frame_the_higher_the_severity() -> None:
    black = torch.zeros(1, 3, 128, 128)
    covered = [float((corrupt_frames(black, "crowd", s, generators(1)) > 0).any(1).float().mean()) for s in range(6)]
    assert covered == sorted(covered)
    assert covered[0] == 0
    assert 0.3 * 0.5**2 < covered[5] < 0.5**2


def test_interference_turns_frames_by_whole_degrees_within_its_bound() -> None:
    x = torch.linspace(-1, 1, 64)
    disk = ((x[:, None] ** 2 + x**2) < 0.8).float()
    frame = (disk * (x > 0)).expand(1, 3, 64, 64)  # the right half of a disk
    angles = []
    for seed in range(40):
        turned = corrupt_frames(frame, "interference", 1, generators(1, seed))[0, 0]
        cx, cy = float((turned * x).sum()), float((turned * x[:, None]).sum())
        angles.append(math.degrees(math.atan2(cy, cx)))
    assert max(map(abs, angles)) < 11.6
    assert max(map(abs, angles)) > 7
    assert all(abs(angle - round(angle)) < 0.3 for angle in angles)


@pytest.mark.parametrize("name", MIXED)
@given(severity=st.floats(0.2, 5))
@settings(max_examples=8, deadline=None)
def test_the_realised_snr_is_the_target_before_clamping(name: str, severity: float) -> None:
    maker = {**NOISES, **SCENES}[name]
    target = snr_db(name, severity)
    noisy = mix(wave(), maker(wave(), RATE, torch_generator(1)), target)
    assert realised_snr(wave(), noisy) == pytest.approx(target, abs=0.1)


@pytest.mark.parametrize("name", MIXED)
def test_a_higher_severity_never_has_a_higher_snr(name: str) -> None:
    grid = np.linspace(0.05, 5, 100)
    values = [snr_db(name, float(severity)) for severity in grid]
    assert all(a >= b for a, b in pairwise(values))
    published = (40, 30, 20, 10, 0) if name in NOISES else (20, 15, 10, 5, 0)
    assert [snr_db(name, s) for s in (1, 2, 3, 4, 5)] == list(published)
    quiet = [realised_snr(wave(), spoilt(name, s)) for s in (1, 2, 3, 4)]  # 5 is clamped in places
    assert quiet == sorted(quiet, reverse=True)


def test_the_published_gaussian_noise_is_loudest_at_severity_one() -> None:
    quiet = 0.2 * wave()
    snr = [
        realised_snr(quiet, corrupt_wave(quiet, "gaussian", s, torch_generator(0), reference=True)) for s in (1, 3, 5)
    ]
    assert snr == pytest.approx([1, 3, 5], abs=0.1)


def test_shot_noise_is_that_of_counting_fifty_quanta() -> None:
    full = torch.linspace(-1, 1, 40_000)
    noise = shot(full, RATE, torch_generator(0))
    rate = (full + 1) / 2 * 50
    assert float(noise.mean()) == pytest.approx(0, abs=0.002)
    for part in (slice(9000, 11000), slice(36000, 40000)):
        assert float((noise[part] * 50).var()) == pytest.approx(float(rate[part].mean()), rel=0.1)


@pytest.mark.parametrize(("severity", "cutoff"), [(2, 6000), (3, 4000), (4, 2000), (5, 1000)])
def test_compression_has_scipys_butterworth_response(severity: int, cutoff: float) -> None:
    click = torch.zeros(RATE)
    click[0] = 1.0
    ours = np.abs(np.fft.rfft(compression(click, severity).numpy()))
    b, a = signal.butter(6, cutoff, fs=RATE)
    hertz, expected = signal.freqz(b, a, worN=np.fft.rfftfreq(RATE, 1 / RATE), fs=RATE)
    assert np.abs(ours - np.abs(expected)).max() < 1e-3
    assert ours[np.searchsorted(hertz, cutoff)] == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_compression_at_the_nyquist_frequency_leaves_the_wave_as_it_is() -> None:
    assert torch.equal(spoilt("compression", 1), wave())
    with pytest.raises(ValueError, match="critical frequencies"):
        signal.butter(6, 8000, fs=RATE)


@given(st.floats(0.01, 5), st.floats(0.1, 10), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_interference_silences_its_share_of_the_clip_in_pieces(severity: float, seconds: float, seed: int) -> None:
    length = math.ceil(seconds * RATE)
    silenced = corrupt_wave(torch.full((length,), 0.5), "interference", severity, torch_generator(seed)) == 0
    share = 0.1 * severity
    assert share * length - 2 * 5 - 1 <= int(silenced.sum()) <= share * length
    edges = torch.cat((torch.zeros(1), silenced.float(), torch.zeros(1))).diff()
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    assert len(starts) <= max(1, round(2 * severity))
    if share * seconds > 0.11:
        assert int((ends - starts).min()) >= 0.1 * RATE - 1


def test_a_ten_second_clip_is_silenced_in_ten_pieces_of_half_a_second() -> None:
    silenced = corrupt_wave(torch.full((10 * RATE,), 0.5), "interference", 5, torch_generator(3)) == 0
    assert int(silenced.sum()) == 5 * RATE
    assert 1 < int((silenced.int().diff() == 1).sum()) + int(silenced[0]) <= 10


@pytest.mark.parametrize("name", AV_CORRUPTIONS)
def test_a_clip_at_four_kilohertz_can_be_spoilt(name: str) -> None:
    result = corrupt_wave(wave(0.5, 4000), name, 5, torch_generator(0), 4000)
    assert result.isfinite().all()
    assert not torch.equal(result, wave(0.5, 4000))


def test_scenes_sound_where_they_should() -> None:
    """Most of the wind is below 400 Hz, most of the rain above 1 kHz."""
    for name, low, high in (("wind", 0, 420), ("underwater", 0, 700), ("rain", 990, 8000), ("crowd", 80, 2100)):
        sound = SCENES[name](wave(), RATE, torch_generator(0))
        power = torch.fft.rfft(sound).abs().square()
        hertz = torch.linspace(0, RATE / 2, len(power))
        assert float(power[(hertz >= low) & (hertz <= high)].sum() / power.sum()) > 0.9


def test_bad_input_is_refused(images: Tensor) -> None:
    generator = torch_generator(0)
    with pytest.raises(InvalidInput, match="silent"):
        corrupt_wave(torch.zeros(RATE), "rain", 3, generator)
    with pytest.raises(InvalidInput, match="silent"):
        corrupt_wave(torch.zeros(RATE), "shot", 3, generator)
    with pytest.raises(InvalidInput, match=r"0\.1 s or more"):
        corrupt_wave(wave(0.05), "interference", 3, generator)
    for wrong in (torch.full((RATE,), math.nan), 2 * torch.ones(RATE)):
        with pytest.raises(InvalidInput, match=r"lie in \[-1, 1\]"):
            corrupt_wave(wrong, "gaussian", 3, generator)
    with pytest.raises(InvalidInput, match="wave must be a float"):
        corrupt_wave(wave()[None], "gaussian", 3, generator)
    with pytest.raises(InvalidInput, match="rate"):
        corrupt_wave(wave(), "gaussian", 3, generator, 0)
    with pytest.raises(InvalidInput, match="did you mean 'rain'"):
        corrupt_wave(wave(), "rian", 3, generator)
    with pytest.raises(InvalidInput, match="severity"):
        corrupt_wave(wave(), "rain", 5.1, generator)
    with pytest.raises(InvalidInput, match="one generator each"):
        corrupt_frames(images, "rain", 3, [generator])
    for name in ("gaussian", "rain"):
        with pytest.raises(InvalidInput, match="images must lie"):
            corrupt_frames(images * math.nan, name, 3, generators(4))


def set_of_clips(count: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Bright frames with a high tone are class 1, dark ones with a low tone class 0."""
    labels = torch.arange(count) % 2
    frames = (0.3 + 0.4 * labels.float()).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 32, 32).contiguous()
    time = torch.arange(800) / RATE * 3
    waves = 0.3 * torch.sin(2 * math.pi * (300 + 900 * labels)[:, None] * time)
    return frames, waves.repeat(1, 3), labels, [str(index) for index in range(count)]


def brightness_and_pitch(frames: Tensor, waves: Tensor) -> Tensor:
    bright = frames.mean(dim=(1, 2, 3, 4)) - 0.5
    crossings = (waves[:, 1:].sign() != waves[:, :-1].sign()).float().mean(1) - 0.28
    score = bright + crossings
    return torch.stack((-score, score), dim=1)


def test_evaluation_gives_drops_and_their_interaction() -> None:
    table = evaluate_audio_visual(
        brightness_and_pitch, *set_of_clips(24), names=("gaussian", "concert"), severities=(2, 5)
    )
    rows = table.to_pylist()
    assert [row["corruption"] for row in rows] == ["clean", *["gaussian"] * 6, *["concert"] * 6, *["mean"] * 3]
    by = {(row["corruption"], row["severity"], row["stream"]): row for row in rows}
    clean = rows[0]["accuracy"]
    for (name, severity, stream), row in by.items():
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["drop"] == pytest.approx(clean - row["accuracy"])
        assert not row["enough_data"]  # 24 clips
        if stream == "both" and name != "clean":
            apart = by[name, severity, "frames"]["drop"] + by[name, severity, "wave"]["drop"]
            assert row["interaction"] == pytest.approx(row["drop"] - apart)
            assert row["interaction_low"] <= row["interaction"] + 1e-12
            assert row["interaction"] <= row["interaction_high"] + 1e-12
    means = [
        row["accuracy"] for row in rows if row["stream"] == "both" and row["corruption"] in ("gaussian", "concert")
    ]
    assert by["mean", None, "both"]["accuracy"] == pytest.approx(sum(means) / len(means))


def test_spoiling_a_stream_that_the_model_ignores_costs_nothing() -> None:
    def deaf(frames: Tensor, waves: Tensor) -> Tensor:
        return brightness_and_pitch(frames, torch.zeros_like(waves))

    table = evaluate_audio_visual(deaf, *set_of_clips(20), names=("rain",), severities=(5,)).to_pylist()
    drops = {row["stream"]: row["drop"] for row in table if row["corruption"] == "rain"}
    assert drops["wave"] == 0
    assert drops["both"] == drops["frames"]


def test_a_clip_is_spoilt_the_same_way_in_any_batch_and_company() -> None:
    frames, waves, labels, ids = set_of_clips(6)
    seen: list[Tensor] = []

    def watch(pictures: Tensor, sounds: Tensor) -> Tensor:
        seen.append(sounds)
        return brightness_and_pitch(pictures, sounds)

    evaluate_audio_visual(watch, frames, waves, labels, ids, names=("crowd",), severities=(3,), batch_size=6)
    evaluate_audio_visual(
        watch, frames[4:], waves[4:], labels[4:], ids[4:], names=("crowd",), severities=(3,), batch_size=1
    )
    assert torch.equal(seen[1][4], seen[6][0])
    assert seen[6].shape[0] == 1


def test_evaluation_refuses_another_sample_rate_and_unlike_lengths() -> None:
    frames, waves, labels, ids = set_of_clips(4)
    with pytest.raises(InvalidInput, match="resample"):
        evaluate_audio_visual(brightness_and_pitch, frames, waves, labels, ids, rate=4000)
    with pytest.raises(InvalidInput, match="2 clips or more"):
        evaluate_audio_visual(brightness_and_pitch, frames, waves[:3], labels, ids)


def test_the_method_is_registered() -> None:
    assert function_methods()["shift/audio-visual"].card == "avrobustbench"
