"""Confounder rewriting (Yan et al., 2023): a head that is forbidden a confounder recovers what the confounder cost.

Claim: where a confounder sits on one class in training and on the other in the test, the plain network fails; the
confounder is found by clustering its evidence, and a head on concepts, trained with the rule "it must not imply the
class", recovers much of the accuracy. Protocol: generated lesions of 32 x 32 pixels, of which a bright rim, large size
and a dark core each go with class 1 in 85 % and class 0 in 15 %; a bright disc in the corner on 95 % of class 1 and
5 % of class 0 in training, the reverse in the flipped test, never in the clean one. A small network; four concepts by
50 exemplars with and 50 without, on which nothing goes together; five seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snellen.discovery.confounders import (
    LinearHead,
    drop_concept,
    erasing_matrix,
    find_patterns,
    fit_concept_bank,
    forbidden,
    gradcam_evidence,
    match_patterns,
    residual_leak,
    rewrite,
    suspicion,
    train_head,
)
from snellen.explain._layers import last_spatial_layer
from snellen.replication import Claim

PAPER = "Towards Trustable Skin Cancer Diagnosis via Rewriting Model's Decision (2023)"
SEEDS = 5
SIDE = 32
CONCEPTS = ("corner disc", "bright rim", "large", "dark core")
CLASSES = ("nevus", "melanoma")


class Lesions(NamedTuple):
    """images `[n, 1, 32, 32]`; labels int64 `[n]`; masks bool `[n, 32, 32]`; facts bool `[n, 4]`, as CONCEPTS."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    facts: Tensor


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_run(seed * SEEDS + k) for k in range(SEEDS)]
    for run in runs:
        print("  " + ", ".join(f"{name} {value:.3f}" for name, value in run._asdict().items()))

    def spread(values: list[float]) -> str:
        return f"mean {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    over_plain = [run.rewritten_flipped - run.plain_flipped for run in runs]
    over_concepts = [run.rewritten_flipped - run.concepts_flipped for run in runs]
    lost = [run.plain_clean - run.rewritten_clean for run in runs]
    leak, leak_leace = [run.leak_hard for run in runs], [run.leak_leace for run in runs]
    found = sum(run.corner_heat >= 0.5 for run in runs)
    return [
        Claim(
            "The corner disc's evidence is the top suspect",
            "at least half of the suspect's heat in the corner's quarter, in >= 4 of 5 seeds",
            f"{found} of {SEEDS}; heat in the corner {spread([run.corner_heat for run in runs])}",
            found >= 4,
        ),
        Claim(
            "The rewritten head recovers the flipped test",
            "mean rise over the plain head >= 0.20",
            spread(over_plain),
            float(np.mean(over_plain)) >= 0.20,
        ),
        Claim(
            "The rule does it, not the concepts",
            "mean rise over a head on the same concepts without the rule >= 0.10",
            spread(over_concepts),
            float(np.mean(over_concepts)) >= 0.10,
        ),
        Claim(
            "The clean test is kept",
            "mean loss against the plain head <= 0.03",
            spread(lost),
            float(np.mean(lost)) <= 0.03,
        ),
        Claim(
            "After the hard drop the head's outputs do not tell the confounder",
            "mean AUC of a linear probe <= 0.6 (images on which disc and class are independent)",
            f"{spread(leak)}; without a rule {spread([run.leak_concepts for run in runs])}",
            float(np.mean(leak)) <= 0.6,
        ),
        Claim(
            "Nor after the drop by LEACE, the card's other hard option",
            "mean AUC of a linear probe <= 0.6",
            spread(leak_leace),
            float(np.mean(leak_leace)) <= 0.6,
        ),
    ]


class Run(NamedTuple):
    corner_heat: float
    plain_clean: float
    plain_flipped: float
    concepts_flipped: float
    rewritten_clean: float
    rewritten_flipped: float
    hard_flipped: float
    leace_flipped: float
    forbidden_share: float
    leak_concepts: float
    leak_rewritten: float
    leak_hard: float
    leak_leace: float


def one_run(seed: int) -> Run:
    rng = np.random.default_rng([seed, 23])
    train = lesions(rng, 2000, (0.05, 0.95))
    clean, flipped, free = (lesions(rng, 800, disc) for disc in ((0.0, 0.0), (0.95, 0.05), (0.5, 0.5)))
    network = trained(train, seed)

    def features(data: Lesions) -> Tensor:
        with torch.no_grad():
            return network[:-1](data.images)

    bank = fit_concept_bank(exemplars(rng, features), seed)
    scores = bank.scores(features(train))
    mean, std = scores.mean(dim=0), scores.std(dim=0)

    def accuracy(head: nn.Module, inputs: Tensor, data: Lesions) -> float:
        with torch.no_grad():
            return float((head(inputs).argmax(dim=1) == data.labels).float().mean())

    def standard(data: Lesions) -> Tensor:
        return (bank.scores(features(data)) - mean) / std

    mask = forbidden(["corner disc must not imply melanoma"], CLASSES, CONCEPTS)
    plain = train_head(LinearHead(4, 2), standard(train), train.labels, seed=seed)
    rewritten = rewrite(lambda: LinearHead(4, 2), standard(train), train.labels, mask, seed)

    hard_flipped, leaks = [], []
    held = lesions(rng, 800, (0.5, 0.5))  # for LEACE, and not the images of the leak probe
    for eraser in (None, erasing_matrix(features(held), held.facts[:, 0])):
        dropped = drop_concept(bank, "corner disc", eraser)
        base = dropped.scores(features(train))
        center, scale = base.mean(dim=0), base.std(dim=0)
        head = train_head(LinearHead(3, 2), (base - center) / scale, train.labels, seed=seed)
        hard_flipped.append(accuracy(head, (dropped.scores(features(flipped)) - center) / scale, flipped))
        outputs = head((dropped.scores(features(free)) - center) / scale)
        leaks.append(residual_leak(outputs, free.facts[:, 0], rng))
    return Run(
        corner_heat(network, train, rng),
        accuracy(network[-1], features(clean), clean),
        accuracy(network[-1], features(flipped), flipped),
        accuracy(plain, standard(flipped), flipped),
        accuracy(rewritten.head, standard(clean), clean),
        accuracy(rewritten.head, standard(flipped), flipped),
        *hard_flipped,
        rewritten.forbidden_share,
        residual_leak(plain(standard(free)), free.facts[:, 0], rng),
        residual_leak(rewritten.head(standard(free)), free.facts[:, 0], rng),
        *leaks,
    )


def corner_heat(network: nn.Module, data: Lesions, rng: np.random.Generator) -> float:
    """Share of the top suspect's heat in the corner's quarter of the image: the layer sees 15 pixels around a cell."""
    layer = last_spatial_layer(network, data.images[:1])
    seen = gradcam_evidence(network, data.images, layer)
    vectors, answers = seen.vectors.numpy(), seen.logits.argmax(dim=1).numpy()
    heat = nn.functional.interpolate(seen.heat.unsqueeze(1), size=(SIDE, SIDE), mode="bilinear")[:, 0]
    whole = heat.sum(dim=(1, 2)).clamp_min(1e-12)
    on_object = ((heat * data.masks).sum(dim=(1, 2)) / whole).double().numpy()
    in_corner = (heat[:, : SIDE // 2, : SIDE // 2].sum(dim=(1, 2)) / whole).numpy()
    codes, centres, classes = np.full(len(answers), -1), [], []
    for answer in (0, 1):
        mine = (answers == answer) & (np.linalg.norm(vectors, axis=1) > 0.5)
        found = find_patterns(vectors[mine], np.ones(int(mine.sum()), dtype=np.bool_), 5, rng)
        if found is not None:
            codes[mine] = found.codes + sum(len(c) for c in centres)
            centres.append(found.centres)
            classes += [answer] * len(found.centres)
    groups = match_patterns(np.concatenate(centres), np.array(classes))
    of_group = np.where(codes >= 0, groups[codes], -1)
    top = int(suspicion(of_group, data.labels.numpy(), on_object).argmax())
    return float(in_corner[of_group == top].mean())


def exemplars(rng: np.random.Generator, features: Callable[[Lesions], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """50 with and 50 without each concept, on which no concept goes together with another."""
    found = {}
    for k, name in enumerate(CONCEPTS):
        pool = drawn(rng, rng.random((400, 4)) < 0.5)
        vectors = features(pool)
        found[name] = (vectors[pool.facts[:, k]][:50], vectors[~pool.facts[:, k]][:50])
    return found


def lesions(rng: np.random.Generator, count: int, disc: tuple[float, float]) -> Lesions:
    """disc: share of each class's images with the corner disc."""
    labels = np.arange(count) % 2
    shape = rng.random((count, 3)) < np.where(labels == 1, 0.85, 0.15)[:, None]
    corner = rng.random(count) < np.array(disc)[labels]
    return drawn(rng, np.column_stack([corner, shape]), labels)


def drawn(rng: np.random.Generator, facts: np.ndarray, labels: np.ndarray | None = None) -> Lesions:
    count = len(facts)
    corner, rim, large, core = (facts[:, k, None, None].astype(float) for k in range(4))
    y, x = np.mgrid[:SIDE, :SIDE]
    middle = 17 + rng.uniform(-3, 3, (2, count, 1, 1))
    dy, dx = y - middle[0], x - middle[1]
    edge = 5.5 + 3 * large + rng.uniform(-0.5, 0.5, (count, 1, 1))
    distance = np.hypot(dy, dx)
    masks = distance < edge
    inner = 0.4 - 0.3 * core * (distance < 0.55 * edge)
    inner = np.where((distance > edge - 2) & (rim > 0), 0.9, inner)
    image = np.where(masks, inner, 0.65)
    image = np.where((np.hypot(y - 4, x - 4) < 4) & (corner > 0), 1.0, image)
    image = image + rng.normal(0, 0.05, image.shape)
    return Lesions(
        torch.from_numpy(image).float().clamp(0, 1).unsqueeze(1),
        torch.from_numpy(np.zeros(count, dtype=np.int64) if labels is None else labels),
        torch.from_numpy(masks),
        torch.from_numpy(facts.astype(np.bool_)),
    )


def trained(data: Lesions, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(12):
            for at in torch.randperm(len(data.labels)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(data.images[at]), data.labels[at]).backward()
                optimiser.step()
    return network.eval()
