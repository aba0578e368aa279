from __future__ import annotations

import pytest
import torch
from torch import nn

from snellen.errors import InvalidInput
from snellen.explain.gradients import Gradients, gradient, integrated_gradients, smooth_grad
from snellen.models import Model
from snellen.probe import Batch
from snellen.randomness import SampleRandom, torch_generator

TARGETS = torch.tensor([0, 1, 2, 1])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch_generator("images"))


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(200, 3),
        ).eval()


def generators(count: int = 4) -> list[torch.Generator]:
    return SampleRandom(0, "test").generators([str(i) for i in range(count)])


def test_integrated_gradients_add_up_to_the_difference_of_the_scores(network: nn.Module, images: torch.Tensor) -> None:
    result = integrated_gradients(network, images, TARGETS)
    gained = (network(images) - network(torch.zeros_like(images))).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(result.attributions.sum((1, 2, 3)), gained, rtol=0.011, atol=1e-5)
    assert torch.allclose(result.gap, (result.attributions.sum((1, 2, 3)) - gained).abs(), atol=1e-5)


def test_coarse_integrals_are_refined_only_where_they_need_it(network: nn.Module, images: torch.Tensor) -> None:
    images = torch.cat([images[:3], torch.zeros_like(images[:1])])  # nothing to integrate in the last one
    result = integrated_gradients(network, images, TARGETS, steps=2, max_steps=256)
    assert result.steps[3] == 2
    assert (result.steps[:3] > 2).any()
    gained = (network(images) - network(torch.zeros_like(images))).gather(1, TARGETS[:, None])[:, 0].abs()
    assert ((result.gap <= 0.01 * gained + 2e-6) | (result.steps == 256)).all()


def test_on_a_linear_model_all_maps_are_weight_times_input(images: torch.Tensor) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    expected = linear[1].weight[TARGETS].view(4, 3, 16, 16)
    assert torch.allclose(gradient(linear, images, TARGETS), expected, atol=1e-6)
    assert torch.allclose(integrated_gradients(linear, images, TARGETS).attributions, expected * images, atol=1e-5)
    assert torch.allclose(smooth_grad(linear, images, TARGETS, generators()), expected, atol=1e-5)


def test_a_pixel_the_model_ignores_gets_nothing(images: torch.Tensor) -> None:
    def blind(x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :8].pow(2).mean(dim=(2, 3))

    for found in (gradient(blind, images, TARGETS), integrated_gradients(blind, images, TARGETS).attributions):
        assert found[:, :, 8:].abs().max() == 0
        assert found[:, :, :8].abs().max() > 0


def test_smoothgrad_without_noise_is_the_gradient(network: nn.Module, images: torch.Tensor) -> None:
    smooth = smooth_grad(network, images, TARGETS, generators(), samples=3, noise=1e-7)
    assert torch.allclose(smooth, gradient(network, images, TARGETS), atol=1e-5)


def test_maps_of_a_batch_are_those_of_its_images(network: nn.Module, images: torch.Tensor) -> None:
    whole = smooth_grad(network, images, TARGETS, generators(), samples=4)
    alone = [smooth_grad(network, images[i : i + 1], TARGETS[i : i + 1], generators()[i : i + 1], 4) for i in range(4)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)


def test_integrated_gradients_do_not_see_how_the_network_is_written(images: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        apart = nn.Sequential(convolution, norm, head).eval()
        apart(images)
        merged = nn.Sequential(nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), norm.eval()), head)
    first = integrated_gradients(apart, images, TARGETS).attributions
    assert torch.allclose(first, integrated_gradients(merged, images, TARGETS).attributions, atol=1e-5)


def test_captum_agrees(network: nn.Module, images: torch.Tensor) -> None:
    attr = pytest.importorskip("captum.attr")
    wrapped = images.clone().requires_grad_()
    assert torch.allclose(
        gradient(network, images, TARGETS), attr.Saliency(network).attribute(wrapped, TARGETS, abs=False), atol=1e-6
    )
    theirs = attr.IntegratedGradients(network).attribute(images, target=TARGETS, n_steps=100, method="riemann_middle")
    ours = integrated_gradients(network, images, TARGETS, steps=100, max_steps=100).attributions
    assert torch.allclose(ours, theirs.float(), atol=1e-5)


def test_the_global_random_state_is_not_touched(network: nn.Module, images: torch.Tensor) -> None:
    before = torch.get_rng_state()
    smooth_grad(network, images, TARGETS, generators())
    assert torch.equal(before, torch.get_rng_state())


def test_passes_are_those_that_cost_promises(tiny_model: Model, images: torch.Tensor) -> None:
    probe = Gradients(methods=("saliency", "smoothgrad"), samples_smoothgrad=5, curve_steps=4)
    probe.run(tiny_model, Batch(["a", "b", "c", "d"], images, TARGETS), SampleRandom(0, "g"))
    promised = probe.cost(4)
    totals = tiny_model.ledger.totals
    assert (totals.forward, totals.backward) == (promised.forward, promised.backward)


@pytest.mark.parametrize(
    "wrong", [{"methods": ("magic",)}, {"methods": ()}, {"noise": 0.0}, {"baseline": 2.0}, {"steps": 0}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Gradients(**wrong)
