"""Would a printed sticker on a real sign fool the model once perspective, lighting and the camera take part?

Paper: REAP: A Large-Scale Realistic Adversarial Patch Benchmark (2023), with the attack RP2 (Eykholt et al., 2018). The
patch lives on the sign looked at straight on; each real sign's key points give the homography, its pixels the light,
and the patch is relit, warped and laid over differentiably. One patch for all signs is optimised through that renderer
(`universal_patch`) and judged on other signs (`evaluate_patch`) by false negatives and by attack success; the same
patch on pasted signs (`naive_signs`) shows how much a simulation without perspective and light promises.

When it misleads: the sticker itself is assumed flat, matt and printed in exact colours; percentile light takes the
sign to have dark and bright parts; a patch that fails was not found by *this* optimisation. One sign is treated an
image; mAP is left to `shift/detection`, which can read the rendered images. Of the paper's kinds of light, colour
transfer is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Rows, register_functions, rows
from snellen.randomness import uniform
from snellen.shift._composite import turning, warp
from snellen.shift._sign_render import (
    SAME_LIGHT,
    Light,
    Plane,
    Rendered,
    Sign,
    measured_light,
    percentile_light,
    plane_to_image,
    polygon_area,
    polynomial_light,
    render,
    sign_pixels,
    stacked,
)
from snellen.shift._sign_scores import (
    Gap,
    Score,
    attack_table,
    classifier_score,
    compare_success,
    detector_score,
    f1_threshold,
    recall_threshold,
)

__all__ = [
    "SAME_LIGHT",
    "Gap",
    "Jitter",
    "Light",
    "PatchRun",
    "Plane",
    "Rendered",
    "Score",
    "Sign",
    "attack_table",
    "classifier_score",
    "compare_success",
    "detector_score",
    "evaluate_patch",
    "f1_threshold",
    "measured_light",
    "naive_signs",
    "percentile_light",
    "plane_to_image",
    "polynomial_light",
    "random_patch",
    "recall_threshold",
    "render",
    "rp2_harm",
    "sign_pixels",
    "universal_patch",
]

NAME = "shift/sign-patches"
SMALLEST_SIDE = 16.0
"""Pixels: a sign of a smaller area than this squared is not judged."""

Harm = Callable[[Tensor, Sequence[Sign]], Tensor]
"""Images `[B, 3, H, W]` with their signs -> a differentiable number that grows as the model fails."""


@dataclass(frozen=True)
class Jitter:
    """Random changes of the patch while it is optimised (expectation over transformations); the paper ships none."""

    rotation: float = 10.0
    """Degrees either way."""
    translation: float = 0.05
    """Share of the plane's sides either way."""
    scale: float = 0.05
    """Share either way."""
    colour: float = 0.05
    """Of the gain and of the offset either way."""

    def __post_init__(self) -> None:
        if min(self.rotation, self.translation, self.scale, self.colour) < 0 or max(self.scale, self.colour) >= 1:
            raise InvalidInput(f"jitter must be 0 or more, scale and colour below 1, got {self}")


class PatchRun(NamedTuple):
    """patch: `[3, h, w]` in [0, 1]. losses: one a step, as the attacker saw them."""

    patch: Tensor
    losses: list[float]


def universal_patch(
    harm: Harm,
    signs: Sequence[Sign],
    plane: Plane,
    generator: Generator,
    *,
    steps: int = 1000,
    per_step: int = 1,
    step_size: float = 0.01,
    smoothness: float = 1e-5,
    jitter: Jitter | None = None,
) -> PatchRun:
    """One patch for all `signs`, by Adam on z with patch = (tanh z + 1) / 2 (RP2 as shipped with REAP, 2023).

    Every step renders `per_step` signs and lowers `smoothness` * total variation - `harm`. signs: for training; keep
    them apart from those that are judged. generator: CPU, for the start and the draws. Raises InvalidInput for bad
    settings, an empty patch or a loss that is not finite.
    """
    if steps < 1 or per_step < 1 or step_size <= 0 or smoothness < 0:
        raise InvalidInput(
            "steps and per_step must be 1 or more, step_size above 0 and smoothness 0 or more,"
            f" got {steps}, {per_step}, {step_size} and {smoothness}"
        )
    if not signs or not bool(plane.patch.any()):
        raise InvalidInput(f"signs must be one or more and the plane's patch not empty, got {len(signs)} signs")
    device = signs[0].image.device
    start = torch.rand(3, *plane.patch.shape, generator=generator) * 2 - 1
    z = start.to(device).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=step_size)
    losses: list[float] = []
    for step in range(steps):
        drawn = torch.randint(len(signs), (per_step,), generator=generator).tolist()
        chosen = [signs[i] for i in drawn]
        images, matrices, light = stacked(chosen, plane)
        moved = None
        if jitter is not None:
            moved, light = _jittered(jitter, plane, light, generator)
        patch = 0.5 * torch.tanh(z) + 0.5
        rendered = render(images, patch, plane, matrices, light, moved)
        loss = smoothness * total_variation(patch) - harm(rendered.images, chosen)
        if not bool(loss.isfinite()):
            raise InvalidInput(f"harm must be finite, got {float(loss.detach())} at step {step}")
        (z.grad,) = torch.autograd.grad(loss, z)
        optimiser.step()
        losses.append(float(loss.detach()))
    return PatchRun((0.5 * torch.tanh(z) + 0.5).detach(), losses)


def total_variation(patch: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down and across, of `[3, h, w]`."""
    return patch.diff(dim=1).abs().mean() + patch.diff(dim=2).abs().mean()


def random_patch(plane: Plane, generator: Generator) -> Tensor:
    """The control: uniform noise `[3, h, w]`."""
    return torch.rand(3, *plane.patch.shape, generator=generator)


def rp2_harm(
    logits: Tensor,
    label: int,
    overlaps: Tensor,
    scores: Tensor,
    objectness: Tensor | None = None,
    *,
    least_overlap: float = 0.0,
    least_score: float = 0.0,
    objectness_weight: float = 0.0,
) -> Tensor:
    """What RP2 raises for one sign: mean cross-entropy of the proposals on it, and how little they say "object".

    logits: `[P, K]` of a detector's proposals before suppression. overlaps: `[P]`, their intersection over union with
    the sign's box. scores: `[P]`. objectness: logits `[P]`, needed with a weight. 0 where no proposal counts.
    """
    on = (overlaps >= least_overlap) & (scores >= least_score)
    if not bool(on.any()):
        return logits.sum() * 0
    truth = torch.full((int(on.sum()),), label, device=logits.device)
    harm = F.cross_entropy(logits[on], truth)
    if objectness_weight:
        if objectness is None:
            raise InvalidInput("objectness must be given when objectness_weight is not 0, got None")
        harm = harm + objectness_weight * F.binary_cross_entropy_with_logits(
            objectness[on], torch.ones_like(truth * 1.0)
        )
    return harm


def naive_signs(
    picture: Tensor,
    plane: Plane,
    backgrounds: Tensor,
    label: int,
    generators: Sequence[Generator],
    *,
    side: float = 64.0,
    rotation: float = 15.0,
    translation: float = 0.4,
) -> list[Sign]:
    """The synthetic baseline: the sign's own picture pasted flat and unlit on backgrounds.

    picture: `[3, h, w]`, the sign in its plane. backgrounds: `[B, 3, H, W]`. side: pixels of the sign's width.
    rotation: degrees either way. translation: share of the image either way, as far as the sign stays inside.
    """
    height, width = backgrounds.shape[-2:]
    across = float(plane.points[:, 0].max() - plane.points[:, 0].min())
    middle = (plane.points.amax(dim=0) + plane.points.amin(dim=0)).double() / 2
    draws = uniform(generators, (3,), -1, 1).double()
    count = torch.ones(len(draws), dtype=torch.float64)
    matrices = turning(rotation * draws[:, 0], middle[0] * count, middle[1] * count, side / across * count)
    points = torch.cat([plane.points.double(), torch.ones(len(plane.points), 1)], dim=1) @ matrices.mT
    for axis, limit in ((0, width), (1, height)):
        corners = points[..., axis]
        half = (corners.amax(dim=1) - corners.amin(dim=1)) / 2
        room = (limit / 2 - half).clamp(min=0)
        wanted = limit / 2 + torch.minimum(translation * limit * count, room) * draws[:, 1 + axis]
        shift = wanted - (corners.amax(dim=1) + corners.amin(dim=1)) / 2
        points[..., axis] += shift[:, None]
        matrices[:, axis, 2] += shift
    layers = torch.cat([picture * plane.sign, plane.sign[None].to(picture)]).expand(len(draws), -1, -1, -1)
    pasted = warp(layers.to(backgrounds), matrices.to(backgrounds.device), (height, width))
    images = (pasted[:, :3] + backgrounds * (1 - pasted[:, 3:])).clamp(0, 1)
    return [
        Sign(f"naive-{i}", image, corners[:, :2].float(), label, SAME_LIGHT)
        for i, (image, corners) in enumerate(zip(images, points, strict=True))
    ]


@torch.no_grad()
def evaluate_patch(
    score: Score, signs: Sequence[Sign], patch: Tensor, plane: Plane, *, threshold: float = 0.0, condition: str = ""
) -> Rows:
    """Ask about every sign with and without the patch; one row a sign.

    score: see `classifier_score`, `detector_score`. patch: `[3, h, w]` in [0, 1]. threshold: a sign is found when its
    score is above. Columns: id, label, condition, clean_score, patched_score, found_clean, found_patched, judged (False
    for signs below 16 px squared). Raises InvalidInput.
    """
    if patch.shape != (3, *plane.patch.shape) or not bool(((patch >= 0) & (patch <= 1)).all()):
        raise InvalidInput(f"patch must be {[3, *plane.patch.shape]} in [0, 1], got {list(patch.shape)}")
    if not signs:
        raise InvalidInput("signs must be one or more, got none")
    judged = [polygon_area(sign.points) >= SMALLEST_SIDE**2 for sign in signs]
    clean, patched = [], []
    for sign, large in zip(signs, judged, strict=True):
        scores = (math.nan, math.nan)
        if large:
            images, matrices, light = stacked([sign], plane)
            shown = render(images, patch.to(images), plane, matrices, light).images
            scores = (float(score(images, [sign])), float(score(shown, [sign])))
        clean.append(scores[0])
        patched.append(scores[1])
    return rows(
        [sign.id for sign in signs],
        label=[sign.label for sign in signs],
        condition=[condition] * len(signs),
        clean_score=clean,
        patched_score=patched,
        found_clean=[value > threshold for value in clean],
        found_patched=[value > threshold for value in patched],
        judged=judged,
    )


def _jittered(jitter: Jitter, plane: Plane, light: Light, generator: Generator) -> tuple[Tensor, Light]:
    count, device = len(light.gain), light.gain.device
    draws = torch.rand(count, 6, generator=generator).double() * 2 - 1
    height, width = plane.patch.shape
    down, right = (torch.full((count,), side / 2, dtype=torch.float64) for side in (height, width))
    matrices = turning(jitter.rotation * draws[:, 0], right, down, 1 + jitter.scale * draws[:, 1])
    matrices[:, 0, 2] += jitter.translation * width * draws[:, 2]
    matrices[:, 1, 2] += jitter.translation * height * draws[:, 3]
    colour = (jitter.colour * draws[:, 4:, None]).to(light.gain)
    return matrices.to(device), Light(light.gain * (1 + colour[:, 0]), light.offset + colour[:, 1])


register_functions(
    NAME, paper="REAP, 2023", card="reap", access=Access.GRADIENTS, data="images with sign polygons", module=__name__
)
