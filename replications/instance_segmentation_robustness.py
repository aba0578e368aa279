"""Instance segmentation: does group norm stand corruption better than batch norm, and crops another size than masks
tied to places?

Claims (Altindis et al., 2021): group norm makes networks more robust to additive corruption; single-stage heads fail
at larger images than they were trained on, two-stage ones do not.

Protocol: scenes of 1 to 3 shapes with masks, 64 px, held-out test scenes. One small network finds centres and boxes;
two mask heads are trained on it together, so that they share everything else: one without crop, per-instance weights
over prototypes that see absolute coordinates, and one on crops of the features. Once with group norm, once with batch
norm, four seeds. Judged by mask AP on the noise and blur corruptions at severity 3 (the paper: 1 to 5).

Outcome at seed 0: group norm held in 3 of 4 seeds. The claim on size did not: crops lost .58 of mask AP, masks without
crop .09 of the little they had (.22 against .76 at the trained size). The box branch is shared and was trained at one
size, so this may be its failure rather than the mask heads'; it was not separated.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from snellen.randomness import torch_generator
from snellen.replication import Claim
from snellen.shift.detection import (
    GROUPS,
    DetectionSettings,
    Detector,
    Objects,
    Scene,
    corruption_grid,
    resolution_curve,
)

PAPER = "Benchmarking the Robustness of Instance Segmentation Models (2021/2023)"
RUNS, NEEDED = 4, 3
SIDE, STRIDE, CLASSES, WIDTH, PROTOTYPES, CROP = 64, 4, 3, 32, 12, 14
TRAIN, TEST, UPDATES, BATCH = 320, 40, 150, 16
NAMES = (*GROUPS["noise"], *GROUPS["blur"])
SEVERITIES = (3.0,)
SETTINGS = DetectionSettings("mask", batch_size=TEST, resamples=20)


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_run(seed * RUNS + k) for k in range(RUNS)]
    gaps = [run["group"]["rpc"] - run["batch"]["rpc"] for run in runs]
    # Batch norm is the paper's default; the two heads are compared on that network.
    lost = {head: [run["batch"][head] - run["batch"][f"{head} x1.5"] for run in runs] for head in ("places", "crops")}
    worse = [a - b for a, b in zip(lost["places"], lost["crops"], strict=True)]
    return [
        Claim(
            "Group norm keeps more precision than batch norm under noise and blur",
            f"rPC higher by .03 or more in {NEEDED} of {RUNS} seeds",
            f"{sum(gap >= 0.03 for gap in gaps)} of {RUNS}: " + ", ".join(f"{gap:+.3f}" for gap in gaps),
            sum(gap >= 0.03 for gap in gaps) >= NEEDED,
        ),
        Claim(
            "Masks tied to places lose more than crops at 1.5 times the size",
            f"mask AP loss larger by .1 or more, mean of {RUNS} seeds",
            f"{fmean(worse):+.3f} (places {fmean(lost['places']):+.3f}, crops {fmean(lost['crops']):+.3f})",
            fmean(worse) >= 0.1,
        ),
    ]


def one_run(seed: int) -> dict[str, dict[str, float]]:
    training = [scene(torch_generator(seed, "train", k), f"train {k}") for k in range(TRAIN)]
    test = [scene(torch_generator(seed, "test", k), f"test {k}") for k in range(TEST)]
    found: dict[str, dict[str, float]] = {}
    for norm in ("group", "batch"):
        model = train(training, norm, seed)
        grid = corruption_grid(model.detector("crops"), test, SETTINGS, NAMES, SEVERITIES)
        result = {
            "rpc": grid.rpc().value,
            "noise": grid.mpc(GROUPS["noise"]).value,
            "blur": grid.mpc(GROUPS["blur"]).value,
        }
        for head in ("places", "crops"):
            result[head], result[f"{head} x1.5"] = resolution_curve(model.detector(head), test, SETTINGS, (1.0, 1.5))[
                "ap"
            ].to_pylist()
        print(f"seed {seed} {norm:5s} " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()))
        found[norm] = result
    return found


def scene(generator: torch.Generator, name: str) -> Scene:
    """1 to 3 shapes (disc, square, triangle) of any colour on a textured ground, none over another."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ground = F.interpolate(torch.rand(1, 3, 7, 7, generator=generator), SIDE, mode="bicubic")[0]
    image = (0.15 + 0.35 * ground + 0.08 * torch.rand(3, SIDE, SIDE, generator=generator)).clamp(0, 1)
    placed: list[tuple[float, float, float]] = []
    masks, labels = [], []
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        radius = float(7 + 4 * torch.rand((), generator=generator))
        down, right = (radius + (SIDE - 2 * radius) * float(torch.rand((), generator=generator)) for _ in range(2))
        if any((down - d) ** 2 + (right - r) ** 2 < (radius + o) ** 2 for d, r, o in placed):
            continue
        label = int(torch.randint(0, CLASSES, (), generator=generator))
        v, h = (y + 0.5 - down) / radius, (x + 0.5 - right) / radius
        inside = (v**2 + h**2 < 1, torch.maximum(v.abs(), h.abs()) < 1, (v.abs() < 1) & (h.abs() < (v + 1) / 2))[label]
        image[:, inside] = 0.45 + 0.55 * torch.rand(3, 1, generator=generator)
        placed.append((down, right, radius))
        masks.append(inside)
        labels.append(label)
    stacked = torch.stack(masks)
    return Scene(name, image, Objects(tight_boxes(stacked), torch.tensor(labels), stacked))


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes `[N, 4]` around masks `[N, H, W]` that hold a pixel."""
    sides = []
    for line in (masks.any(dim=1).float(), masks.any(dim=2).float()):
        sides += [line.argmax(dim=1), line.shape[1] - line.flip(1).argmax(dim=1)]
    return torch.stack([sides[0], sides[2], sides[1], sides[3]], dim=1).float()


class Segmenter(nn.Module):
    """Centres and boxes (Zhou et al., 2019), then masks by prototypes (Bolya et al., 2019, without the crop) and on
    crops (He et al., 2017)."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, (incoming, outgoing) in enumerate(pairwise((3, 24, *[WIDTH] * 4))):
            layers += [nn.Conv2d(incoming, outgoing, 3, 2 if k < 2 else 1, 1), normalised(norm, outgoing), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.centre, self.sides = nn.Conv2d(WIDTH, CLASSES, 1), nn.Conv2d(WIDTH, 4, 1)
        self.weights = nn.Conv2d(WIDTH + 2, PROTOTYPES, 3, padding=1)
        self.prototypes = nn.Sequential(
            nn.Conv2d(WIDTH + 2, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(WIDTH, PROTOTYPES, 3, padding=1),
        )  # fmt: skip
        self.crop = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 1, 1),
        )  # fmt: skip
        nn.init.constant_(self.centre.bias, -4)
        nn.init.constant_(self.sides.bias, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features without and with absolute coordinates (in units of the training side)."""
        features = self.layers(images * 2 - 1)
        height, width = features.shape[-2:]
        down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = (torch.stack([down, right]) * (2 * STRIDE / SIDE) - 1).expand(len(images), -1, -1, -1)
        return features, torch.cat([features, places], dim=1)

    def place_masks(self, placed: Tensor, image: Tensor, cell: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits `[N, *size]` of the instances at `cell` `[N, 2]` (down, right) of images `image` `[N]`."""
        weights = self.weights(placed)[image, :, cell[:, 0], cell[:, 1]]
        small = torch.einsum("np,nphw->nhw", weights, self.prototypes(placed)[image])
        return F.interpolate(small[:, None], size, mode="bilinear")[:, 0]

    def crop_masks(self, features: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """Mask logits `[N, 14, 14]` inside boxes `[N, 4]`."""
        regions = torch.cat([image[:, None].float(), boxes], dim=1)
        return self.crop(roi_align(features, regions, CROP // 2, 1 / STRIDE, 2, aligned=True))[:, 0]

    def detector(self, head: str) -> Detector:
        def detect(images: list[Tensor]) -> list[Mapping[str, Tensor]]:
            features, placed = self(torch.stack(images))
            heat, sides = self.centre(features).sigmoid(), self.sides(features).exp()
            answers: list[Mapping[str, Tensor]] = []
            for k, image in enumerate(images):
                peak = (heat[k] == F.max_pool2d(heat[k], 3, 1, 1)) & (heat[k] > 0.1)
                label, down, right = torch.nonzero(peak, as_tuple=True)
                best = heat[k][label, down, right].argsort(descending=True)[:8]
                label, cell = label[best], torch.stack([down[best], right[best]], dim=1)
                size = (image.shape[-2], image.shape[-1])
                boxes = boxes_at(cell, sides[k][:, cell[:, 0], cell[:, 1]].T)
                own = torch.zeros(len(cell), dtype=torch.long)
                if head == "places":
                    masks = self.place_masks(placed[k : k + 1], own, cell, size) > 0
                else:
                    masks = pasted(self.crop_masks(features[k : k + 1], own, boxes), boxes, size) > 0
                filled = masks.flatten(1).any(dim=1)
                scores = heat[k][label, cell[:, 0], cell[:, 1]][filled]
                answers.append(
                    {"boxes": boxes[filled], "labels": label[filled], "scores": scores, "masks": masks[filled]}
                )
            return answers

        return detect


def normalised(norm: str, width: int) -> nn.Module:
    return nn.GroupNorm(8, width) if norm == "group" else nn.BatchNorm2d(width)


def boxes_at(cell: Tensor, sides: Tensor) -> Tensor:
    """cell: `[N, 2]` (down, right), sides: `[N, 4]` distances to left, top, right, bottom in pixels."""
    centres = cell.flip(1) * STRIDE + STRIDE / 2
    return torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], dim=1)


def pasted(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops `[N, 14, 14]` put back where their boxes are, `[N, *size]`; very negative outside."""
    height, width = size
    down = (torch.arange(height) + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    right = (torch.arange(width) + 0.5 - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    grid = torch.stack([right[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=-1)
    found = F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return torch.where((grid.abs() <= 1).all(dim=-1), found, -20.0)


def train(scenes: list[Scene], norm: str, seed: int) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Segmenter(norm)
    generator = torch_generator(seed, "updates")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=UPDATES)
    for _ in range(UPDATES):
        rows = torch.randint(0, len(scenes), (BATCH,), generator=generator).tolist()
        optimiser.zero_grad()
        loss(model, [scenes[row] for row in rows]).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def loss(model: Segmenter, batch: list[Scene]) -> Tensor:
    features, placed = model(torch.stack([one.image for one in batch]))
    boxes, masks, labels = (torch.cat(part) for part in zip(*map(truth_of, batch), strict=True))
    image = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(one.truth.labels) for one in batch]))
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    cell = (middle.flip(1) / STRIDE).long().clamp(max=SIDE // STRIDE - 1)

    heat = model.centre(features)
    wanted = torch.zeros_like(heat)
    near = torch.zeros_like(heat)
    near[image, labels, cell[:, 0], cell[:, 1]] = 1
    near = F.max_pool2d(near, 3, 1, 1)
    wanted[image, labels, cell[:, 0], cell[:, 1]] = 1
    p = heat.sigmoid()
    # The neighbours of a centre are neither right nor wrong.
    ignored = (near > 0) & (wanted == 0)
    focal = F.binary_cross_entropy_with_logits(heat, wanted, reduction="none") * (wanted - p).abs() ** 2
    found = boxes_at(cell, model.sides(features).exp()[image, :, cell[:, 0], cell[:, 1]])
    by_place = model.place_masks(placed, image, cell, (SIDE, SIDE))
    by_crop = model.crop_masks(features, image, boxes)
    cropped = roi_align(
        masks[:, None], torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], dim=1), CROP, 1.0, 2, True
    )
    return (
        focal[~ignored].sum() / len(boxes)
        + 0.1 * F.smooth_l1_loss(found, boxes)
        + F.binary_cross_entropy_with_logits(by_place, masks)
        + F.binary_cross_entropy_with_logits(by_crop, cropped[:, 0])
    )


def truth_of(one: Scene) -> tuple[Tensor, Tensor, Tensor]:
    masks = one.truth.masks if one.truth.masks is not None else torch.zeros(0, SIDE, SIDE)
    return one.truth.boxes, masks.float(), one.truth.labels
