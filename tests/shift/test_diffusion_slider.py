"""Sliders in a text-to-image model: adapters that start at nothing, learn, and leave the model as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from snellen.errors import InvalidInput
from snellen.shift.diffusion_slider import LowRankSlider, Pipeline, SliderTraining, paint_trajectory, train_slider

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
FILES = "vocab.json", "merges.txt"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A Stable Diffusion pipeline with tiny random networks."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters), ",</w>"]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / FILES[0]).write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / FILES[1]).write_text("#version: 0.2\n")
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    made: Pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(text).eval(), unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        tokenizer=transformers.CLIPTokenizer(*(str(folder / n) for n in FILES), model_max_length=77),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return made


def test_adapters_start_at_nothing_and_leave_with_the_context() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    images = torch.rand(2, 3, 8, 8)
    plain = network(images)
    slider = LowRankSlider(network)
    with slider.attached():
        slider.scale = 3.0
        assert torch.equal(network(images), plain)  # up is zero
        for part in slider.up.values():
            nn.init.normal_(part.get_parameter("weight"))
        once = network(images) - plain
        slider.scale = 0.0
        assert torch.equal(network(images), plain)
    assert once.abs().max() > 0.01
    assert torch.equal(network(images), plain)
    linear = nn.Linear(4, 4)
    alone = LowRankSlider(nn.Sequential(linear), rank=2, alpha=1.0)
    nn.init.normal_(alone.up["0"].get_parameter("weight"))
    x = torch.rand(3, 4)
    with alone.attached():
        alone.scale = 2.0
        expected = linear.weight + 2.0 * 0.5 * alone.up["0"].weight @ alone.down["0"].weight
        assert torch.allclose(linear(x), x @ expected.T + linear.bias, atol=1e-6)


def test_cross_attention_is_left_out(pipeline: Pipeline) -> None:
    slider = LowRankSlider(pipeline.unet)
    assert slider.down
    assert not any("attn2" in name for name in slider.down)
    assert any("attn1" in name for name in slider.down)
    with pytest.raises(InvalidInput, match="linear or convolution"):
        LowRankSlider(nn.ReLU())
    with pytest.raises(InvalidInput, match="rank"):
        LowRankSlider(nn.Linear(2, 2), rank=0)


def test_training_lowers_the_loss_and_does_not_touch_the_generator(pipeline: Pipeline) -> None:
    before = copy.deepcopy(pipeline.unet.state_dict())
    losses: list[float] = []
    settings = SliderTraining(iterations=60, learning_rate=1e-2, side=8, steps=4, batch=2, guidance=1.0)
    slider = train_slider(pipeline, "cat", "heavy snow", settings, lambda _, loss: losses.append(loss))
    assert len(losses) == 60
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])
    after = pipeline.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = train_slider(pipeline, "cat", "heavy snow", SliderTraining(iterations=2, side=8, steps=4))
    twice = train_slider(pipeline, "cat", "heavy snow", SliderTraining(iterations=2, side=8, steps=4))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), twice.parameters(), strict=True))

    pictures = paint_trajectory(pipeline, slider, "cat", (0.0, 1.0, 3.0), steps=4, side=8)
    assert pictures.shape == (3, 3, 16, 16)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    distances = (pictures - pictures[:1]).abs().mean(dim=(1, 2, 3))
    assert distances[0] == 0 < distances[1] < distances[2]


def test_scale_zero_is_the_generator_itself_and_layout_is_kept_above_the_start(pipeline: Pipeline) -> None:
    torch.manual_seed(1)
    slider = LowRankSlider(pipeline.unet)
    for part in slider.up.values():
        nn.init.normal_(part.get_parameter("weight"), std=0.1)
    untouched = LowRankSlider(pipeline.unet)
    with_slider = paint_trajectory(pipeline, slider, "dog", (0.0, 2.0), steps=4, side=8)
    without = paint_trajectory(pipeline, untouched, "dog", (0.0,), steps=4, side=8)
    assert torch.equal(with_slider[:1], without)
    never = paint_trajectory(pipeline, slider, "dog", (0.0, 2.0), steps=4, side=8, start_noise=0)
    assert torch.equal(never[0], never[1])


def test_bad_settings_are_refused(pipeline: Pipeline) -> None:
    slider = LowRankSlider(pipeline.unet)
    for scales in ((), (0.5, 1.0), (0.0, 2.0, 1.0)):
        with pytest.raises(InvalidInput, match="start at 0"):
            paint_trajectory(pipeline, slider, "cat", scales)
    with pytest.raises(InvalidInput, match="positive"):
        SliderTraining(iterations=0)
