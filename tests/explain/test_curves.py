from __future__ import annotations

import itertools

import pytest
import torch

from snellen.errors import InvalidInput
from snellen.explain._curves import area, blur, curve_passes, faithfulness_curves
from snellen.randomness import torch_generator


def additive(images: torch.Tensor) -> torch.Tensor:
    """A model whose score is a sum over the left pixels with known weights."""
    weights = torch.arange(16.0).view(1, 4, 4) / 4
    score = (images[:, 0] * weights).sum((1, 2))
    return torch.stack([score, torch.zeros_like(score)], dim=1)


def test_deletion_in_the_true_order_is_below_every_other_order() -> None:
    image = torch.ones(1, 3, 4, 4)
    image[:, :, ::2, ::2] = 0  # so that the mean is not the image
    effect = (image - image.mean((2, 3), keepdim=True))[:, 0] * torch.arange(16.0).view(1, 4, 4)
    target = torch.tensor([0])
    best = area(faithfulness_curves(additive, image, [effect], target, 16)[0].deletion)
    for seed in range(50):
        order = torch.rand(1, 4, 4, generator=torch_generator("order", seed))
        assert best <= area(faithfulness_curves(additive, image, [order], target, 16)[0].deletion) + 1e-6


def test_curves_begin_and_end_at_the_same_images_whatever_the_map() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch_generator("ends"))
    target = torch.tensor([0, 1])
    clean = additive(images).softmax(1).gather(1, target[:, None])[:, 0]
    for seed in range(3):
        order = torch.rand(2, 4, 4, generator=torch_generator("ends", seed))
        curves = faithfulness_curves(additive, images, [order], target, 8)[0]
        assert torch.allclose(curves.deletion[:, 0], clean)
        assert torch.allclose(curves.insertion[:, -1], clean)


def test_the_number_of_passes_is_as_stated() -> None:
    counted = itertools.count()

    def model(images: torch.Tensor) -> torch.Tensor:
        next(counted)
        return additive(images)

    for maps in (1, 3):
        before = next(counted) + 1
        faithfulness_curves(model, torch.rand(1, 3, 4, 4), [torch.rand(1, 4, 4)] * maps, torch.tensor([0]), 8)
        assert next(counted) - before == curve_passes(maps, 8)


def test_area_of_a_straight_line_is_a_half() -> None:
    assert area(torch.linspace(1, 0, 11)[None]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("size", [(16, 16), (97, 211)])
def test_blur_keeps_constants_and_shape(size: tuple[int, int]) -> None:
    assert torch.allclose(blur(torch.full((1, 3, *size), 0.3)), torch.full((1, 3, *size), 0.3), atol=1e-6)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidInput, match="heat_maps"):
        faithfulness_curves(additive, torch.rand(1, 3, 4, 4), [torch.rand(1, 5, 5)], torch.tensor([0]), 4)
