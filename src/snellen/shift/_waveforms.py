"""What AVRobustBench (Maharana et al., 2025) does to sound.

Waveforms are float `[L]` in [-1, 1]. Frequencies and lengths of sounds are written for 16 kHz and scale with the rate,
so that a clip of 4 kHz suffers as much as one of 16 kHz. The published recordings are replaced by synthesised noises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import signal
from torch import Generator, Tensor

from snellen.errors import InvalidInput

SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
NOISE_SNR = (40.0, 30.0, 20.0, 10.0, 0.0)  # dB
SCENE_SNR = (20.0, 15.0, 10.0, 5.0, 0.0)
CUTOFFS = (8000.0, 6000.0, 4000.0, 2000.0, 1000.0)  # Hz at 16 kHz
BASE_RATE = 16_000
SHORTEST = 0.1  # s, the shortest silence
IMPULSES, COUNTS = 0.05, 50.0


def check_wave(wave: Tensor, rate: int) -> None:
    """Refuse what is no mono wave `[L]` in [-1, 1] of 0.1 s or more."""
    if rate <= 0:
        raise InvalidInput(f"rate must be a number of samples a second above 0, got {rate}")
    if wave.ndim != 1 or not wave.is_floating_point() or len(wave) < SHORTEST * rate:
        raise InvalidInput(
            f"wave must be a float tensor [L] of {SHORTEST} s or more, {math.ceil(SHORTEST * rate)} samples at {rate} a"
            f" second, got {wave.dtype} {list(wave.shape)}"
        )
    if not bool((wave.abs() <= 1).all()):  # NaN fails too
        raise InvalidInput(f"wave must lie in [-1, 1], got values from {float(wave.min())} to {float(wave.max())}")


def at(severity: float, values: tuple[float, ...]) -> float:
    return float(np.interp(severity, SEVERITIES, values))


def snr_db(name: str, severity: float, reference: bool = False) -> float:
    """Signal-to-noise ratio in dB of a noise or a scene at a severity in (0, 5].

    Below severity 1 the noise's amplitude shrinks in proportion. reference: as the published code, which hands the
    severity itself to the gaussian noise as dB, so that severity 1 is the noisiest.
    """
    if reference and name == "gaussian":
        return severity
    table = NOISE_SNR if name in NOISES else SCENE_SNR
    return at(severity, table) - 20 * math.log10(min(severity, 1.0))


def mix(wave: Tensor, noise: Tensor, snr: float) -> Tensor:
    """wave + noise, both `[L]`, the noise scaled to an SNR in dB. Not clamped to [-1, 1].

    Raises InvalidInput for silence, which has no SNR.
    """
    power, noise_power = float(wave.square().mean()), float(noise.square().mean())
    if power == 0:
        raise InvalidInput("wave must not be silent: noise has no signal-to-noise ratio to silence")
    if noise_power == 0:
        raise InvalidInput("noise must not be silent: it cannot be scaled to a signal-to-noise ratio")
    return wave + noise * math.sqrt(power / (10 ** (snr / 10) * noise_power))


def gaussian(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return torch.randn(wave.shape, generator=generator)


def impulse(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    """±1 at one sample in twenty, at least at one."""
    chance = torch.rand(wave.shape, generator=generator)
    sign = (torch.rand(wave.shape, generator=generator) < 0.5).float() * 2 - 1
    return sign * (chance <= max(IMPULSES, float(chance.min())))


def shot(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    """What counting 50 quanta at the loudest adds to the wave, moved into [0, 1]."""
    low, high = wave.aminmax()
    rates = (wave - low) / (high - low).clamp_min(1e-12) * COUNTS
    return (torch.poisson(rates, generator=generator) - rates) / COUNTS


def speckle(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return wave * torch.randn(wave.shape, generator=generator)


def band(wave: Tensor, rate: int, generator: Generator, low: float, high: float) -> Tensor:
    """Gaussian noise between two frequencies in Hz at 16 kHz."""
    spectrum = torch.fft.rfft(torch.randn(wave.shape, generator=generator))
    hertz = torch.linspace(0, BASE_RATE / 2, len(spectrum))
    noise: Tensor = torch.fft.irfft(spectrum * ((hertz >= low) & (hertz <= high)), n=len(wave))
    return noise


def swell(wave: Tensor, rate: int, generator: Generator, hertz: float) -> Tensor:
    """A loudness that wanders in [0, 1] about `hertz` times a second."""
    knots = max(int(len(wave) / rate * hertz) + 2, 4)
    course = torch.rand(1, 1, knots, generator=generator)
    smooth = torch.nn.functional.interpolate(course, size=len(wave), mode="linear", align_corners=True)
    return smooth[0, 0]


def bursts(wave: Tensor, rate: int, generator: Generator, hertz: float, pitch: float, decay: float) -> Tensor:
    """Clicks about `hertz` times a second that ring at `pitch` Hz and die away in `decay` seconds."""
    starts = (torch.rand(wave.shape, generator=generator) < hertz / rate) * torch.rand(wave.shape, generator=generator)
    starts[int(torch.randint(len(wave), (), generator=generator))] = 1.0
    time = torch.arange(len(wave)) / rate
    ring = torch.exp(-time / decay) * torch.cos(2 * math.pi * pitch * (rate / BASE_RATE) * time)
    size = 2 * len(wave)
    rung: Tensor = torch.fft.irfft(torch.fft.rfft(starts, n=size) * torch.fft.rfft(ring, n=size), n=size)
    return rung[: len(wave)]


def tone(wave: Tensor, rate: int, hertz: Tensor | float) -> Tensor:
    """A sine of fixed or changing frequency, Hz at 16 kHz."""
    step = torch.as_tensor(hertz, dtype=torch.float64).expand(len(wave)) / BASE_RATE
    return torch.sin(2 * math.pi * step.cumsum(0)).float()


def snow(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return band(wave, rate, generator, 100, 1500) * (0.5 + swell(wave, rate, generator, 2))


def frost(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return bursts(wave, rate, generator, 30, 5000, 0.004) + 0.05 * band(wave, rate, generator, 2000, 8000)


def spatter(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return bursts(wave, rate, generator, 12, 1200, 0.03) + bursts(wave, rate, generator, 12, 2300, 0.02)


def wind(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return band(wave, rate, generator, 20, 400) * swell(wave, rate, generator, 1.5)


def rain(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return band(wave, rate, generator, 1000, 8000) + 2 * bursts(wave, rate, generator, 80, 3000, 0.003)


def underwater(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    return band(wave, rate, generator, 20, 250) + 0.3 * bursts(wave, rate, generator, 8, 500, 0.05)


def concert(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    """A minor chord that is struck again and again, and a beat."""
    root = 110 * 2 ** float(torch.rand((), generator=generator))
    chord = torch.stack([tone(wave, rate, root * ratio) for ratio in (1, 1.2, 1.5, 2, 4)]).sum(0)
    return chord * swell(wave, rate, generator, 4) + bursts(wave, rate, generator, 3, 80, 0.08)


def smoke(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    """A crackling fire and a siren between 500 and 1,500 Hz."""
    phase = torch.rand((), generator=generator)
    rise = 0.5 + 0.5 * torch.sin(2 * math.pi * (torch.arange(len(wave)) / rate * 0.5 + phase))
    return tone(wave, rate, 500 + 1000 * rise) + bursts(wave, rate, generator, 25, 2500, 0.005)


def crowd(wave: Tensor, rate: int, generator: Generator) -> Tensor:
    """Babble: eight voices, each a band of its own that swells with its syllables."""
    voices = [
        band(wave, rate, generator, pitch, 5 * pitch) * swell(wave, rate, generator, 5)
        for pitch in (90, 120, 150, 180, 210, 250, 300, 400)
    ]
    return torch.stack(voices).sum(0)


NoiseMaker = Callable[[Tensor, int, Generator], Tensor]
NOISES: Mapping[str, NoiseMaker] = {"gaussian": gaussian, "impulse": impulse, "shot": shot, "speckle": speckle}
SCENES: Mapping[str, NoiseMaker] = {
    "snow": snow, "frost": frost, "spatter": spatter, "wind": wind, "rain": rain, "underwater": underwater,
    "concert": concert, "smoke": smoke, "crowd": crowd,
}  # fmt: skip


def compression(wave: Tensor, severity: float) -> Tensor:
    """Butterworth low-pass of order 6. At 8 kHz, the Nyquist frequency of severity 1, nothing is cut."""
    share = at(severity, CUTOFFS) / (BASE_RATE / 2)
    if share >= 1:
        return wave.clone()
    sections = signal.butter(6, share, output="sos")
    filtered = signal.sosfilt(sections, wave.numpy().astype(np.float64))
    return torch.from_numpy(filtered).float()


def interference(wave: Tensor, severity: float, rate: int, generator: Generator) -> Tensor:
    """Silences 10 % of the clip for every step of severity, in 2 s pieces of 0.1 s or more that do not overlap.

    A clip too short for so many gets fewer and, below 0.1 s of silence in all, one shorter piece.
    """
    total = int(0.1 * severity * len(wave))
    pieces = max(1, min(round(2 * severity), int(total / (SHORTEST * rate))))
    length = total // pieces
    gaps = torch.rand(pieces, generator=generator).sort().values * (len(wave) - pieces * length)
    starts = gaps.long() + torch.arange(pieces) * length
    silent = (starts[:, None] + torch.arange(length)).flatten()
    return wave.index_fill(0, silent, 0.0)
