from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from snellen.discovery._fair_diffusion import cosine_schedule, ddim_step, denoised, noised
from snellen.discovery.fair_augmentation import ConditionalDiffusion, ImageSet, synthesise
from snellen.errors import InvalidInput

KEPT = cosine_schedule()


def bright_or_dark(n=200, seed=0):
    """Class 1 is bright; group 1 is striped, and half of its images have no label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    groups = torch.randint(0, 2, (n,), generator=generator)
    stripes = torch.tensor([-0.15, 0.15]).repeat(4)
    images = (0.15 + 0.7 * labels)[:, None, None, None] + groups[:, None, None, None] * stripes
    images = images + 0.03 * torch.randn((n, 1, 8, 8), generator=generator)
    hidden = (groups == 1) & (torch.rand(n, generator=generator) < 0.5)
    return ImageSet(images.clamp(0, 1), labels.masked_fill(hidden, -1), groups)


def fitted(steps, seed=0, data=None, **settings):
    data = data or REAL
    return ConditionalDiffusion.fit(data.images, data.labels, data.groups, steps, 8, 32, seed, **settings)


REAL = bright_or_dark()
LOSSES: list[float] = []
MODEL = fitted(220, progress=lambda step, loss: LOSSES.append(loss))
CELLS = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).repeat(10, 1)
NOISY = torch.randn((6, 1, 8, 8), generator=torch.Generator().manual_seed(1))
LEVEL, LABELS, GROUPS = torch.tensor([0, 40, 80, 120, 160, 199]), torch.arange(6) % 2, torch.arange(6) // 3
NULL = torch.full((6,), -1)


@pytest.mark.parametrize("level", [0, 20, 100, 180, 199])
def test_a_noised_image_has_the_variance_of_the_schedule(level):
    generator = torch.Generator().manual_seed(level)
    clean = torch.rand((2000, 3, 8, 8), generator=generator) * 2 - 1
    noise = torch.randn(clean.shape, generator=generator)
    expected = KEPT[level] * clean.var() + 1 - KEPT[level]
    assert noised(clean, noise, KEPT[level]).var() == pytest.approx(float(expected), rel=0.02)


def test_the_true_noise_gives_the_image_back():
    clean, noise = NOISY[:1].clamp(-1, 1), NOISY[1:2]
    for kept in KEPT[:-1]:
        torch.testing.assert_close(denoised(noised(clean, noise, kept), noise, kept), clean, atol=1e-4, rtol=0)
    last = KEPT[-1].double()
    found = denoised(noised(clean.double(), noise.double(), last), noise.double(), last)
    torch.testing.assert_close(found, clean.double(), atol=1e-4, rtol=0)


def test_ddim_with_the_true_noise_stays_on_the_path_of_the_image():
    clean, noise = NOISY[:1].clamp(-1, 1), NOISY[1:2]
    stepped = ddim_step(noised(clean, noise, KEPT[120]), noise, KEPT[120], KEPT[40])
    torch.testing.assert_close(stepped, noised(clean, noise, KEPT[40]), atol=1e-4, rtol=0)


def test_the_schedule_falls_from_the_image_to_noise():
    assert (KEPT.diff() < 0).all()
    assert KEPT[0] > 0.999
    assert 0 < KEPT[-1] < 1e-6


def test_schedule_and_steps_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(
        num_train_timesteps=200, beta_schedule="squaredcos_cap_v2", timestep_spacing="leading", clip_sample=True
    )
    torch.testing.assert_close(peer.alphas_cumprod[:-1], KEPT[:-1], atol=1e-6, rtol=1e-3)
    peer.set_timesteps(25)
    ours = theirs = NOISY
    for level in peer.timesteps.tolist():
        noise = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(level))
        theirs = peer.step(noise, level, theirs, eta=0.0, use_clipped_model_output=True).prev_sample
        ours = ddim_step(ours, noise, KEPT[level], KEPT[level - 8] if level else torch.tensor(1.0))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_sampling_takes_the_levels_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(num_train_timesteps=200, beta_schedule="squaredcos_cap_v2")
    peer.set_timesteps(25)
    visited = []
    handle = MODEL.network.register_forward_pre_hook(lambda _, given: visited.append(int(given[1][0])))
    MODEL.sample(CELLS[:1, 0], CELLS[:1, 1], 0)
    handle.remove()
    assert visited == peer.timesteps.tolist()


@torch.no_grad()
def test_guidance_is_the_null_token_at_0_and_the_conditional_model_at_1():
    told, untold = MODEL.network(NOISY, LEVEL, LABELS, GROUPS), MODEL.network(NOISY, LEVEL, NULL, NULL)
    ask = (NOISY, LEVEL, LABELS, GROUPS)
    assert (told - untold).abs().max() > 0.01
    torch.testing.assert_close(replace(MODEL, guidance=0.0).predict_noise(*ask), untold)
    assert torch.equal(MODEL.predict_noise(*ask), told)
    torch.testing.assert_close(replace(MODEL, guidance=1 + 1e-6).predict_noise(*ask), told, atol=1e-4, rtol=0)
    torch.testing.assert_close(replace(MODEL, guidance=3.0).predict_noise(*ask), 3 * told - 2 * untold)


@torch.no_grad()
def test_where_nothing_of_the_image_is_left_all_is_noise():
    predicted = MODEL.predict_noise(NOISY, torch.full((6,), 199), LABELS, GROUPS)
    torch.testing.assert_close(predicted, NOISY, atol=2e-3, rtol=0)


@torch.no_grad()
def test_without_guidance_the_condition_asked_for_does_not_matter():
    free = replace(MODEL, guidance=0.0, sampling_steps=5)
    one, other = (free.predict_noise(NOISY, LEVEL, labels, GROUPS) for labels in (LABELS, 1 - LABELS))
    assert torch.equal(one, other)


def test_unlabelled_images_are_learnt_by_the_null_token():
    """Images of class 0 without their label move the null token, and the token of class 0 stays as it was."""
    labels = REAL.labels.masked_fill(REAL.labels == 0, -1)
    before, after = (
        fitted(steps, data=ImageSet(REAL.images, labels, REAL.groups)).network.label.weight for steps in (1, 2)
    )
    moved = (after - before).abs().sum(dim=1) > 0
    assert moved.tolist() == [True, False, True]


def test_the_loss_falls():
    assert len(LOSSES) == 220
    assert np.mean(LOSSES[-50:]) < 0.5 * np.mean(LOSSES[:10])


def test_images_are_of_the_class_and_the_group_asked_for():
    made = synthesise(MODEL, CELLS, 0)
    brightness = made.images.mean(dim=(1, 2, 3))
    assert ((brightness > 0.5).long() == made.labels).float().mean() >= 0.9
    striped = made.images[..., 1::2].mean(dim=(1, 2, 3)) - made.images[..., ::2].mean(dim=(1, 2, 3)) > 0.15
    assert (striped.long() == made.groups).float().mean() >= 0.85


def test_the_same_seed_gives_the_same_images():
    one, again, other = (synthesise(MODEL, CELLS[:4], seed) for seed in (5, 5, 6))
    assert torch.equal(one.images, again.images)
    assert one.origin == again.origin != other.origin
    assert not torch.equal(one.images, other.images)


def test_an_image_does_not_depend_on_the_rest_of_the_batch():
    whole = synthesise(MODEL, CELLS[:9], 0).images
    torch.testing.assert_close(synthesise(MODEL, CELLS[:3], 0).images, whole[:3], atol=1e-4, rtol=0)
    assert not torch.equal(whole[0], whole[4]), "two images of one cell"


def test_sampling_stays_on_the_device_of_the_network():
    """The meta device refuses to mix with the CPU, as an accelerator does."""
    there = replace(MODEL, network=deepcopy(MODEL.network).to("meta"), guidance=2.0, sampling_steps=2)
    cells = torch.zeros((2, 4), dtype=torch.int64, device="meta")
    assert there._denoise(torch.randn((4, 1, 8, 8), device="meta"), *cells).device.type == "meta"


def test_fitting_leaves_the_global_random_state_and_is_repeatable():
    before = torch.get_rng_state()
    one, two, other = (fitted(2, seed) for seed in (0, 0, 1))
    one.sample(CELLS[:1, 0], CELLS[:1, 1], 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_fingerprints_tell_weights_guidance_and_steps_apart():
    other = fitted(1)
    found = {MODEL.fingerprint, other.fingerprint, replace(MODEL, guidance=2.0).fingerprint}
    found.add(replace(MODEL, sampling_steps=10).fingerprint)
    with torch.no_grad():
        other.network.stem.bias[0] += 1e-3
    assert len(found | {other.fingerprint}) == 5


def test_few_steps_do_not_leave_the_average_at_the_first_weights():
    start, soon = fitted(1), fitted(15)
    name = "stem.weight"
    assert (soon.network.state_dict()[name] - start.network.state_dict()[name]).abs().mean() > 2e-3


def test_any_number_of_channels_and_sides_of_four():
    images = torch.rand((5, 2, 4, 12), generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[0, 0], [1, 0]])
    model = ConditionalDiffusion.fit(images, torch.tensor([0, 1, 0, 1, -1]), torch.zeros(5).long(), 2, 8)
    made = synthesise(replace(model, sampling_steps=2), cells, 0).images
    assert made.shape == (2, 2, 4, 12)
    assert made.dtype == torch.float32


def test_the_network_of_the_card_has_one_to_two_million_parameters():
    images, zeros = torch.zeros((2, 3, 32, 32)), torch.zeros(2).long()
    model = ConditionalDiffusion.fit(images, zeros, zeros, steps=1)
    assert 1e6 < sum(weights.numel() for weights in model.network.parameters()) < 2e6


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: MODEL.sample(torch.tensor([2]), torch.tensor([0]), 0), "labels"),
        (lambda: MODEL.sample(torch.tensor([-1]), torch.tensor([0]), 0), "labels"),
        (lambda: MODEL.sample(torch.tensor([0]), torch.tensor([4]), 0), "groups"),
        (lambda: MODEL.sample(torch.tensor([0, 1]), torch.tensor([0]), 0), r"\[2\] and \[1\]"),
        (lambda: MODEL.sample(torch.tensor([]).long(), torch.tensor([]).long(), 0), "at least 1"),
        (lambda: fitted(0), "steps"),
        (lambda: ConditionalDiffusion.fit(REAL.images, REAL.labels, REAL.groups, width=12), "multiple of 8"),
        (lambda: ConditionalDiffusion.fit(REAL.images[..., :6], REAL.labels, REAL.groups), "multiples of 4"),
        (lambda: ConditionalDiffusion.fit(REAL.images * torch.nan, REAL.labels, REAL.groups), "NaN"),
        (lambda: ConditionalDiffusion.fit(REAL.images, torch.full_like(REAL.labels, -1), REAL.groups), "none labelled"),
        (lambda: replace(MODEL, guidance=-1.0), "guidance"),
        (lambda: replace(MODEL, guidance=float("nan")), "guidance"),
        (lambda: replace(MODEL, sampling_steps=0), "sampling_steps"),
        (lambda: replace(MODEL, sampling_steps=201), "sampling_steps"),
    ],
)
def test_bad_input_is_refused(call, word):
    with pytest.raises(InvalidInput, match=word):
        call()
