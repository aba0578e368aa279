import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.functional.image import total_variation as peer_variation

from snellen.discovery.filter_simplicity import (
    ablated,
    class_entropy,
    dissect,
    filter_variation,
    gradient_variation,
    noise_ratio,
    total_variation,
)
from snellen.errors import InvalidInput


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_constant_has_no_variation_and_a_checkerboard_the_most():
    board = (torch.arange(6).view(-1, 1) + torch.arange(5)).remainder(2).float()
    assert total_variation(torch.full((3, 6, 5), 0.7)).tolist() == [0, 0, 0]
    assert total_variation(board) == 6 * 4 + 5 * 5
    assert (total_variation(torch.rand(50, 6, 5)) < total_variation(board)).all()


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(-5, 5), seed=st.integers(0, 100))
def test_variation_scales_with_the_map(factor, seed):
    x = noise(4, 7, 6, seed=seed)
    torch.testing.assert_close(total_variation(factor * x), abs(factor) * total_variation(x), rtol=1e-4, atol=1e-4)


def test_agrees_with_torchmetrics():
    x = noise(4, 3, 9, 8)
    torch.testing.assert_close(total_variation(x).sum(dim=1), peer_variation(x, reduction="none"))


def test_unit_norm_makes_filters_of_any_size_alike():
    weight = noise(5, 3, 5, 5)
    scale = torch.tensor([1.0, 2.0, 3.0, 0.1, 7.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(filter_variation(scale * weight), filter_variation(weight))
    torch.testing.assert_close(
        filter_variation(scale * weight, unit_norm=False), scale.flatten() * filter_variation(weight, unit_norm=False)
    )
    assert filter_variation(torch.zeros(2, 3, 3, 3)).tolist() == [0, 0]


def test_a_blurring_layer_passes_less_noise_on():
    x = torch.linspace(0.2, 0.8, 24).expand(6, 1, 24, 24)
    layer = nn.Conv2d(1, 2, 5, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 2, 2] = 1.0
        layer.weight[1] = 1 / 25
    sharp, blurred = noise_ratio(layer, x, [str(i) for i in range(6)]).tolist()
    assert sharp > 2 * blurred > 2


def test_noise_belongs_to_the_image():
    layer, x, ids = nn.Conv2d(1, 3, 3), torch.rand(4, 1, 9, 9), list("abcd")
    one = noise_ratio(layer, x[:1], ["c"])
    torch.testing.assert_close(noise_ratio(layer, x[:1].repeat(2, 1, 1, 1), ["c", "c"]), one)
    assert not torch.equal(noise_ratio(layer, x, ids), noise_ratio(layer, x, ids[::-1]))


def test_the_gradient_of_a_linear_model_is_its_filter():
    weight = noise(1, 64)
    linear = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.cat([weight, -weight]))
    found = gradient_variation(lambda x: linear(x.flatten(1)), torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 0]))
    expected = total_variation(weight.view(8, 8) / weight.abs().max())
    torch.testing.assert_close(found, expected.detach().expand(3), rtol=1e-4, atol=1e-4)


def test_a_channel_that_is_the_mask_of_a_concept_is_named_after_it():
    concepts = torch.zeros(10, 3, 20, 20, dtype=torch.bool)
    concepts[:, 0, :2, :1] = True  # 2 of 400 pixels: half a percent
    concepts[:, 1, 5:15, 5:15] = True
    concepts[:, 2, 18:, 18:] = True
    responses = torch.stack([concepts[:, 0].float(), noise(10, 20, 20)], dim=1)
    found = dissect(responses, concepts)
    assert found.iou[0, 0] == 1.0
    assert found.concept[0] == 0
    assert found.detected[0] == 1
    assert found.concept[1] == -1


def test_half_a_percent_lies_above_the_threshold():
    responses = noise(30, 4, 16, 16)
    found = dissect(responses, torch.ones(30, 1, 16, 16, dtype=torch.bool))
    above = (responses > found.threshold.view(1, -1, 1, 1)).double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(above, torch.full((4,), 0.005).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.iou[:, 0].double(), above)


def test_responses_are_enlarged_to_the_masks():
    responses = torch.zeros(2, 1, 4, 4)
    responses[:, :, 1, 1] = 1.0
    concepts = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    concepts[:, :, 4:8, 4:8] = True
    assert dissect(responses, concepts, share=16 / 256).iou.item() > 0.7


def test_a_channel_of_one_class_has_no_entropy_and_one_of_two_halves_a_bit():
    labels = torch.arange(40) % 2
    responses = torch.stack([labels.float(), torch.zeros(40)], dim=1).view(40, 2, 1, 1)
    responses[:20, 1] = 1.0
    torch.testing.assert_close(class_entropy(responses, labels, 20), torch.tensor([0.0, 1.0]).double())


def test_zeroing_all_channels_leaves_the_bias():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(5, 1, 8, 8)
    before = network(x)
    with ablated(network[0], range(4)):
        torch.testing.assert_close(network(x), network[4].bias.expand(5, 3))
    with ablated(network[0], range(4), keep_only=True):
        assert torch.equal(network(x), before)
    with ablated(network[0], [1]):
        one = network(x)
    with ablated(network[0], [0, 2, 3], keep_only=True):
        assert torch.equal(network(x), one)
    assert torch.equal(network(x), before)


def test_bad_input_is_refused():
    with pytest.raises(InvalidInput, match="2 x 2"):
        total_variation(torch.rand(3, 1, 5))
    with pytest.raises(InvalidInput, match="weight"):
        filter_variation(torch.rand(3, 5))
    with pytest.raises(InvalidInput, match="sigma"):
        noise_ratio(nn.Conv2d(1, 2, 3), torch.rand(1, 1, 8, 8), ["a"], sigma=0)
    with pytest.raises(InvalidInput, match="responses"):
        noise_ratio(lambda x: x.flatten(1), torch.rand(1, 1, 8, 8), ["a"])
    with pytest.raises(InvalidInput, match="concepts"):
        dissect(torch.rand(2, 3, 4, 4), torch.rand(2, 1, 8, 8))
    with pytest.raises(InvalidInput, match="share"):
        dissect(torch.rand(2, 3, 4, 4), torch.ones(2, 1, 8, 8, dtype=torch.bool), share=0)
    with pytest.raises(InvalidInput, match="top"):
        class_entropy(torch.rand(5, 2, 3, 3), torch.zeros(5, dtype=torch.int64))
    linear = nn.Linear(4, 2)
    with ablated(linear, [0]), pytest.raises(InvalidInput, match="must give"):
        linear(torch.rand(1, 4))
    layer = nn.Conv2d(1, 2, 3)
    with ablated(layer, [7]), pytest.raises(InvalidInput, match="channels"):
        layer(torch.rand(1, 1, 8, 8))
