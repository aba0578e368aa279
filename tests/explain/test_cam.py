from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from snellen.errors import AccessDenied, InvalidInput
from snellen.explain._layers import last_spatial_layer
from snellen.explain.cam import ClassActivationMaps, class_activation_map
from snellen.models import Access, Model
from snellen.probe import Batch
from snellen.randomness import SampleRandom, torch_generator


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch_generator("cam"))


def seeded(name: str, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model(name, num_classes=5, **options).eval()


def test_on_average_pooling_and_a_linear_head_gradcam_is_the_classic_map(images: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        features = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU())
        head = nn.Linear(6, 4)
        network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    targets = torch.tensor([0, 3, 1])
    maps, _ = class_activation_map(network, images, targets)
    classic = torch.einsum("bk,bkhw->bhw", head.weight[targets], features(images)).relu()
    enlarged = F.interpolate(classic[:, None], size=64, mode="bilinear")[:, 0]
    area = classic.shape[1] * classic.shape[2]
    assert torch.allclose(maps * area, enlarged, atol=1e-5)


def test_captum_agrees(images: torch.Tensor) -> None:
    attr = pytest.importorskip("captum.attr")
    network = seeded("resnet10t")
    targets = torch.tensor([0, 1, 2])
    theirs = attr.LayerGradCam(network, network.layer4).attribute(images, targets, relu_attributions=True)
    ours, _ = class_activation_map(network, images, targets, layer="layer4")
    enlarged = F.interpolate(theirs, size=64, mode="bilinear")[:, 0]
    assert torch.allclose(ours, enlarged, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("resnet10t", {}, "layer4"),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}, "blocks.1.norm1"),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}, "blocks.1.norm1"),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}, None),
        ("convnext_atto", {}, None),
    ],
)
def test_the_last_layer_with_a_grid_is_found(name: str, options: dict[str, object], layer: str | None) -> None:
    network = seeded(name, **options)
    side = int(options.get("img_size", 64))
    images = torch.rand(2, 3, side, side, generator=torch_generator("find"))
    found = last_spatial_layer(network, images)
    assert layer is None or found.name == layer
    maps, logits = class_activation_map(network, images)
    assert maps.shape == (2, side, side)
    assert (maps >= 0).all()
    assert torch.isfinite(maps).all()
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("variant", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_the_map_lights_the_only_region_that_matters(variant: str) -> None:
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 2, 1, bias=False)
            self.second = nn.Conv2d(2, 2, 1, bias=False)
            nn.init.ones_(self.features.weight)
            nn.init.ones_(self.second.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.features(x))[:, :, :8, :8].mean(dim=(2, 3))

    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :8, :8] = 1
    maps, _ = class_activation_map(Corner(), images, torch.tensor([0]), variant)
    assert maps[0, :8, :8].mean() > 0
    assert maps[0, 8:, 8:].abs().max() == 0


def test_gradients_access_is_enough_and_less_is_refused(tiny_model: Model) -> None:
    images = torch.rand(2, 3, 16, 16)
    class_activation_map(tiny_model.restrict(Access.GRADIENTS), images)
    with pytest.raises(AccessDenied):
        class_activation_map(tiny_model.restrict(Access.SCORES), images)


def test_a_layer_without_a_grid_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="no spatial grid"):
        class_activation_map(seeded("resnet10t"), images, layer="fc")


def test_a_network_without_any_grid_says_so(images: torch.Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
    with pytest.raises(InvalidInput, match="no layer with a spatial grid"):
        class_activation_map(network, images)


def test_passes_are_those_that_cost_promises(tiny_model: Model) -> None:
    probe = ClassActivationMaps(curve_steps=4)
    images = torch.rand(3, 3, 16, 16, generator=torch_generator("cost"))
    batch = Batch(["a", "b", "c"], images, torch.tensor([0, 1, 2]))
    probe.run(tiny_model, batch, SampleRandom(0, "cam"))  # the first batch also looks for the layer
    before = tiny_model.ledger.totals
    probe.run(tiny_model, batch, SampleRandom(0, "cam"))
    spent, promised = tiny_model.ledger.totals - before, probe.cost(3)
    assert (spent.forward, spent.backward) == (promised.forward, promised.backward)
