"""Objects in images, what a detector says about them, and how far two of them overlap."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

Overlap = Literal["box", "mask", "boundary"]
"""What is intersected over union: boxes, masks, or masks and the bands along their outlines (Cheng et al., 2021)."""

Detector = Callable[[list[Tensor]], Sequence[Mapping[str, Tensor]]]
"""Images `[3, H, W]` in [0, 1] of any size -> per image `boxes` `[N, 4]` (x1, y1, x2, y2 in pixels), `labels` int
`[N]`, `scores` `[N]` in [0, 1] and, of segmenters, `masks` `[N, H, W]` or `[N, 1, H, W]`, bool or probabilities:
torchvision's convention."""

BAND = 0.02
"""Width of the band along an outline, as a share of the image's diagonal (Cheng et al., 2021)."""


@dataclass(frozen=True)
class Objects:
    """The truth about one image. boxes: `[N, 4]` as x1, y1, x2, y2 in pixels. labels: int `[N]`. masks: bool
    `[N, H, W]`. crowd: bool `[N]`, regions of many objects that count neither for nor against a detector."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    crowd: Tensor | None = None

    def __post_init__(self) -> None:
        _check_boxes("truth", self.boxes, self.labels, self.masks)
        if self.crowd is not None and (self.crowd.dtype != torch.bool or self.crowd.shape != self.labels.shape):
            raise InvalidInput(f"crowd must be bool [{len(self.labels)}], got {_kind(self.crowd)}")

    @property
    def crowds(self) -> Tensor:
        return torch.zeros(len(self.labels), dtype=torch.bool) if self.crowd is None else self.crowd

    def keep(self, chosen: Tensor) -> Objects:
        """The objects at `chosen`, bool or index `[k]`."""
        masks = None if self.masks is None else self.masks[chosen]
        return Objects(self.boxes[chosen], self.labels[chosen], masks, self.crowds[chosen])


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image; as `Objects`, with scores `[N]` in [0, 1]."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        _check_boxes("detections", self.boxes, self.labels, self.masks)
        fits = self.scores.shape == self.labels.shape and self.scores.is_floating_point()
        if not fits or not bool(((self.scores >= 0) & (self.scores <= 1)).all()):
            raise InvalidInput(
                f"detections need float scores [{len(self.labels)}] in [0, 1] without NaN, got {_kind(self.scores)}"
            )

    def keep(self, chosen: Tensor) -> Detections:
        """The detections at `chosen`, bool or index `[k]`."""
        masks = None if self.masks is None else self.masks[chosen]
        return Detections(self.boxes[chosen], self.labels[chosen], self.scores[chosen], masks)


@dataclass(frozen=True)
class Scene:
    """One image `[3, H, W]` in [0, 1] with its objects; id names it in seeds and evidence."""

    id: str
    image: Tensor
    truth: Objects

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] not in (1, 3) or not self.image.is_floating_point():
            raise InvalidInput(f"image of scene {self.id!r} must be float [3, H, W] in [0, 1], got {_kind(self.image)}")
        masks = self.truth.masks
        if masks is not None and masks.shape[-2:] != self.image.shape[-2:]:
            raise InvalidInput(
                f"masks of scene {self.id!r} must have the image's size {list(self.image.shape[-2:])},"
                f" got {list(masks.shape[-2:])}"
            )


def without_empty_masks(scene: Scene) -> tuple[Scene, int]:
    """The scene without objects whose mask has no pixel, and how many those were."""
    if scene.truth.masks is None:
        return scene, 0
    filled = scene.truth.masks.flatten(1).any(dim=1)
    dropped = int((~filled).sum())
    return (replace(scene, truth=scene.truth.keep(filled)), dropped) if dropped else (scene, 0)


def read_detections(output: Mapping[str, Tensor], scene: Scene, overlap: Overlap) -> Detections:
    """One image's detector output, checked and moved to the CPU; mask probabilities are cut at one half."""
    missing = sorted({"boxes", "labels", "scores"} - set(output))
    if missing:
        raise InvalidInput(f"the detector must answer boxes, labels and scores for every image, without {missing}")
    masks = output.get("masks") if overlap != "box" else None
    if overlap != "box":
        if masks is None:
            raise InvalidInput(f"the detector must answer masks when the overlap is {overlap!r}, got {sorted(output)}")
        masks = masks.detach().cpu()
        masks = masks.squeeze(1) if masks.ndim == 4 else masks
        masks = masks if masks.dtype == torch.bool else masks > 0.5
        if masks.shape[-2:] != scene.image.shape[-2:]:
            raise InvalidInput(
                f"masks of the detector must have the image's size {list(scene.image.shape[-2:])},"
                f" got {list(masks.shape)}"
            )
    boxes, labels, scores = (output[key].detach().cpu() for key in ("boxes", "labels", "scores"))
    return Detections(boxes.float(), labels.long(), scores.float(), masks)


def check_labels(labels: Tensor, categories: Collection[int] | None, whose: str) -> None:
    """Refuse labels that are not categories."""
    unknown = sorted(set(labels.tolist()) - set(categories)) if categories is not None else []
    if unknown:
        raise InvalidInput(f"labels of the {whose} must be categories ({sorted(categories or ())}), got {unknown}")


def overlaps(found: Detections, truth: Objects, overlap: Overlap) -> Tensor:
    """Intersection over union of every detection with every object, float64 `[D, G]` in [0, 1].

    Over a crowd region the detection's own area is the denominator, as in COCO. For "boundary" it is the smaller of
    the masks' and of the bands' (Cheng et al., 2021).
    """
    if overlap == "box":
        return box_iou(found.boxes, truth.boxes, truth.crowds)
    if found.masks is None or truth.masks is None:
        raise InvalidInput(f"overlap {overlap!r} needs masks of the detections and of the truth")
    masks = mask_iou(found.masks, truth.masks, truth.crowds)
    if overlap == "mask":
        return masks
    return torch.minimum(masks, mask_iou(outline(found.masks), outline(truth.masks), truth.crowds))


def box_iou(first: Tensor, second: Tensor, crowd: Tensor) -> Tensor:
    """`[D, 4]` and `[G, 4]` to float64 `[D, G]`."""
    first, second = first.double(), second.double()
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    common = (high - low).clamp_(min=0).prod(dim=2)
    return _ratio(common, _area(first), _area(second), crowd)


def mask_iou(first: Tensor, second: Tensor, crowd: Tensor) -> Tensor:
    """Bool `[D, H, W]` and `[G, H, W]` to float64 `[D, G]`; 0 where both are empty."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    return _ratio((a @ b.T).double(), a.sum(dim=1).double(), b.sum(dim=1).double(), crowd)


def outline(masks: Tensor) -> Tensor:
    """The band inside the outline of each mask, bool `[N, H, W]`; the image's edge counts as outline."""
    height, width = masks.shape[-2:]
    reach = max(1, round(BAND * float(height**2 + width**2) ** 0.5))
    if len(masks) == 0:
        return masks
    outside = F.pad((~masks).float(), (reach,) * 4, value=1.0)
    near = F.max_pool2d(outside[:, None], 2 * reach + 1, stride=1)[:, 0] > 0
    return masks & near


def _ratio(common: Tensor, first: Tensor, second: Tensor, crowd: Tensor) -> Tensor:
    union = first[:, None] + second - common
    whole = torch.where(crowd, first[:, None].expand_as(union), union)
    return torch.where(whole > 0, common / whole.clamp(min=1e-12), torch.zeros_like(common))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def _check_boxes(whose: str, boxes: Tensor, labels: Tensor, masks: Tensor | None) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1] or labels.is_floating_point():
        raise InvalidInput(f"{whose} need boxes [N, 4] and int labels [N], got {_kind(boxes)} and {_kind(labels)}")
    if not bool(((boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)).all()):
        raise InvalidInput(f"{whose} need boxes with x1 < x2 and y1 < y2 and finite corners, got {boxes.tolist()[:20]}")
    if masks is not None and (masks.ndim != 3 or len(masks) != len(boxes) or masks.dtype != torch.bool):
        raise InvalidInput(f"{whose} need masks as bool [{len(boxes)}, H, W], got {_kind(masks)}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
