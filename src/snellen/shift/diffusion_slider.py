"""How would the same scene look with more and more of a shift, when a diffusion model paints it?

Paper: CNS-Bench (2025). A low-rank adapter of a text-to-image model is trained so that the plain class prompt gives
what the prompt "class, in heavy snow" would: its scale is then a slider from none to much of the shift. It acts only
once the picture's layout is settled, so one seed gives a trajectory of one scene. Needs a Stable Diffusion pipeline of
the library diffusers (`pip install snellen[diffusion]`) and, in practice, a GPU.

When it misleads: at high scales the class itself may get lost, which is what `failure_points.keep_in_class` is for; a
generator has its own idea of classes and of snow. Prompts and settings are the published ones, yet a slider is trained
anew for every class and shift, so figures do not compare across generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import torch_generator
from snellen.shift._lora import LowRankSlider

__all__ = ["LowRankSlider", "SliderTraining", "paint_trajectory", "train_slider"]

NEGATIVE_PROMPT = "blurry, text, watermark, low quality, deformed, cropped"


class Sample(Protocol):
    sample: Tensor


class Previous(Protocol):
    prev_sample: Tensor


class Scheduler(Protocol):
    """A noise schedule of diffusers."""

    timesteps: Tensor
    init_noise_sigma: float

    def set_timesteps(self, num_inference_steps: int) -> None: ...
    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...
    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Previous: ...


class UNetConfig(Protocol):
    in_channels: int


class UNet(Protocol):
    """Predicts the noise in a latent picture; an `nn.Module`."""

    config: UNetConfig

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Sample: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def requires_grad_(self, requires_grad: bool) -> UNet: ...


class DecoderConfig(Protocol):
    scaling_factor: float


class Decoder(Protocol):
    """Makes a picture of a latent one."""

    config: DecoderConfig

    def decode(self, z: Tensor) -> Sample: ...


class Pipeline(Protocol):
    """The parts of `diffusers.StableDiffusionPipeline` that are used."""

    unet: UNet
    vae: Decoder
    scheduler: Scheduler

    def encode_prompt(
        self, prompt: list[str], device: torch.device, num_images_per_prompt: int, do_classifier_free_guidance: bool
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class SliderTraining:
    """How a slider is trained; defaults are the paper's."""

    iterations: int = 400
    """Steps of AdamW."""
    learning_rate: float = 2e-4
    rank: int = 4
    """Of the adapters, at least 1."""
    strength: float = 4.0
    """How many times the difference between shifted and plain prompt the slider learns at scale 1."""
    guidance: float = 7.5
    """Of the partial pictures that it learns on."""
    steps: int = 50
    """Of the noise schedule."""
    batch: int = 1
    """Pictures a step; the paper's 16 want memory."""
    side: int = 64
    """Of the latent picture, in its own pixels."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.rank, self.batch, self.side) < 1 or self.steps < 2 or self.learning_rate <= 0:
            raise InvalidInput(
                f"iterations, rank, batch, side and learning_rate must be positive and steps 2 or more, got {self}"
            )


def train_slider(
    pipeline: Pipeline,
    class_name: str,
    shift: str,
    settings: SliderTraining | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> LowRankSlider:
    """A slider towards `shift` ("heavy snow") for pictures of `class_name` (CNS-Bench, 2025).

    pipeline: a Stable Diffusion pipeline; its own weights stay as they are. progress: called with step and loss.
    """
    settings = settings or SliderTraining()
    unet, scheduler, device = pipeline.unet.requires_grad_(False), pipeline.scheduler, _device(pipeline)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        slider = LowRankSlider(cast(nn.Module, unet), settings.rank)
    optimiser = torch.optim.AdamW(slider.parameters(), lr=settings.learning_rate)
    generator = torch_generator(settings.seed, "slider", class_name, shift)
    plain, shifted = (_prompt(pipeline, [text] * settings.batch) for text in (class_name, f"{class_name}, in {shift}"))
    scheduler.set_timesteps(settings.steps)

    with slider.attached():
        for step in range(settings.iterations):
            # A half-painted picture, by the slider as it is now
            until = int(torch.randint(1, settings.steps, (), generator=generator))
            with torch.no_grad():
                latent = _noise(pipeline, settings.batch, settings.side, generator, device)
                slider.scale = 1.0
                latent = _denoise(pipeline, latent, plain, plain, settings.guidance, scheduler.timesteps[:until])
                timestep = scheduler.timesteps[until]
                seen = scheduler.scale_model_input(latent, timestep)
                slider.scale = 0.0
                neutral, positive = (unet(seen, timestep, prompt).sample for prompt in (plain, shifted))

            # The neutral and the unconditional prompt are both the plain class
            slider.scale = 1.0
            predicted = unet(seen, timestep, plain).sample
            loss = F.mse_loss(predicted, neutral + settings.strength * (positive - neutral))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress(step + 1, float(loss.detach()))
    slider.scale = 0.0
    return slider


@torch.no_grad()
def paint_trajectory(
    pipeline: Pipeline,
    slider: LowRankSlider,
    class_name: str,
    scales: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5),
    *,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 7.5,
    start_noise: int = 750,
    side: int = 64,
) -> Tensor:
    """One scene at rising scales of a slider, float `[S, 3, H, W]` in [0, 1] (CNS-Bench, 2025).

    scales: ascending from 0. start_noise: the slider acts on timesteps below it, of 1000. side: of the latent picture;
    the picture is 8 times as large for Stable Diffusion. Same noise and prompt at every scale.
    """
    if not scales or scales[0] != 0 or any(b <= a for a, b in pairwise(scales)):
        raise InvalidInput(f"scales must start at 0 and ascend, got {list(scales)}")
    prompt = _prompt(pipeline, [f"a picture of a {class_name}"])
    unwanted = _prompt(pipeline, [NEGATIVE_PROMPT])
    device = _device(pipeline)
    pictures = []
    with slider.attached():
        for scale in scales:
            pipeline.scheduler.set_timesteps(steps)
            timesteps = pipeline.scheduler.timesteps
            latent = _noise(pipeline, 1, side, torch_generator(seed, "trajectory", class_name), device)
            slider.scale = 0.0
            latent = _denoise(pipeline, latent, prompt, unwanted, guidance, timesteps[timesteps >= start_noise])
            slider.scale = scale
            latent = _denoise(pipeline, latent, prompt, unwanted, guidance, timesteps[timesteps < start_noise])
            factor = pipeline.vae.config.scaling_factor
            pictures.append(pipeline.vae.decode(latent / factor).sample)
    slider.scale = 0.0
    return (torch.cat(pictures).float() / 2 + 0.5).clamp(0, 1)


def _denoise(
    pipeline: Pipeline, latent: Tensor, prompt: Tensor, unwanted: Tensor, guidance: float, timesteps: Tensor
) -> Tensor:
    """Steps with classifier-free guidance (Ho and Salimans, 2022)."""
    for timestep in timesteps:
        seen = pipeline.scheduler.scale_model_input(latent, timestep)
        wanted = pipeline.unet(seen, timestep, prompt).sample
        away = wanted if guidance == 1 else pipeline.unet(seen, timestep, unwanted).sample
        latent = pipeline.scheduler.step(away + guidance * (wanted - away), timestep, latent).prev_sample
    return latent


def _noise(pipeline: Pipeline, count: int, side: int, generator: torch.Generator, device: torch.device) -> Tensor:
    channels = pipeline.unet.config.in_channels
    drawn = torch.randn(count, channels, side, side, generator=generator)
    return drawn.to(device, next(pipeline.unet.parameters()).dtype) * pipeline.scheduler.init_noise_sigma


def _prompt(pipeline: Pipeline, texts: list[str]) -> Tensor:
    with torch.no_grad():
        embedded, _ = pipeline.encode_prompt(texts, _device(pipeline), 1, do_classifier_free_guidance=False)
    return embedded


def _device(pipeline: Pipeline) -> torch.device:
    return next(pipeline.unet.parameters()).device


register_functions(
    "shift/diffusion-slider",
    paper="CNS-Bench, 2025",
    card="cns-bench",
    access=Access.LABELS,
    data="text prompts",
    module=__name__,
)
