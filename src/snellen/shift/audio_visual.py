"""How much does an audio-visual model lose when one cause, as rain or a crowd, spoils sight and sound together?

Paper: Maharana et al., 2025 (AVRobustBench). Fifteen causes at five severities, each a pair of changes, one to the
frames and one to the waveform. Besides the accuracy under both, each stream is spoilt alone, and the interaction
drop_both - (drop_frames + drop_wave) says whether the streams fail together worse than they fail apart.

When it misleads: the recordings and the picture of a person are replaced by synthesised noises and a drawn figure, so
scores compare with the published ones by trend only; the interaction is bounded where one stream alone already takes
the accuracy to chance. Clips with several labels (mAP) are not covered. Frames of a clip are spoilt independently.
The test-time repair AV2C waits for the repair family and is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import SampleRandom
from snellen.shift import _extra, _frames, _waveforms
from snellen.shift._catalogue import check_severity, corrupt
from snellen.shift._clip_table import SCHEMA, condition_row, interaction, mean_row
from snellen.shift._waveforms import BASE_RATE, mix, snr_db

__all__ = [
    "AV_CORRUPTIONS",
    "Clip",
    "corrupt_clip",
    "corrupt_frames",
    "corrupt_wave",
    "evaluate_audio_visual",
    "mix",
    "snr_db",
]

NAME = "shift/audio-visual"
SHARED: Mapping[str, str] = {
    "gaussian": "gaussian_noise", "impulse": "impulse_noise", "shot": "shot_noise", "compression": "jpeg_compression",
    "snow": "snow", "frost": "frost", "wind": "motion_blur", "concert": "brightness",
}  # fmt: skip
"""Causes whose frames ImageNet-C already has a corruption for."""
OWN: Mapping[str, Callable[[Tensor, float, Sequence[Generator]], Tensor]] = {
    "speckle": _extra.speckle_noise, "spatter": _extra.spatter, "rain": _frames.rain, "underwater": _frames.underwater,
    "smoke": _frames.smoke, "crowd": _frames.crowd, "interference": _frames.interference,
}  # fmt: skip
AV_CORRUPTIONS: tuple[str, ...] = (
    "gaussian", "impulse", "shot", "speckle", "compression",
    "snow", "frost", "spatter", "wind", "rain", "underwater",
    "concert", "smoke", "crowd", "interference",
)  # fmt: skip


class Clip(NamedTuple):
    """frames: `[T, 3, H, W]` in [0, 1]. wave: `[L]` in [-1, 1]."""

    frames: Tensor
    wave: Tensor


def corrupt_clip(
    frames: Tensor, wave: Tensor, name: str, severity: float, generator: Generator, rate: int = BASE_RATE
) -> Clip:
    """Frames and sound of one clip under one cause at one severity (Maharana et al., 2025).

    frames, wave, name, severity, rate: as for `corrupt_frames` and `corrupt_wave`. generator: on the CPU; every frame
    and the wave get streams of their own from it, so either can be made without the other.
    """
    seeds = torch.randint(2**62, (1 + len(frames),), generator=generator).tolist()
    sound, *pictures = (torch.Generator().manual_seed(seed) for seed in seeds)
    return Clip(corrupt_frames(frames, name, severity, pictures), corrupt_wave(wave, name, severity, sound, rate))


@torch.no_grad()
def corrupt_frames(frames: Tensor, name: str, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Sight under one of `AV_CORRUPTIONS`.

    frames: float `[B, 3, H, W]` in [0, 1], sides of 16 px or more. severity: 0 (the frames themselves) to 5; integers
    are the published constants for 224 px. generators: on the CPU, one a frame. Returns new frames cut to 8 bits.
    """
    severity = check_severity(severity)
    _check_name(name)
    if frames.ndim != 4 or frames.shape[1] != 3 or len(generators) != len(frames):
        raise InvalidInput(
            f"frames must be [B, 3, H, W] with one generator each, got {list(frames.shape)} and {len(generators)}"
        )
    # The catalogue's own checks and quantisation serve the causes it does not know, too.
    if name in SHARED or severity == 0:
        return corrupt(frames, SHARED.get(name, "brightness"), severity, generators)
    checked = corrupt(frames, "brightness", 0.0).float()
    changed = OWN[name](checked, severity, generators).clamp(0, 1)
    return changed.mul(255).add_(1e-3).floor_().div_(255).to(frames.dtype)


@torch.no_grad()
def corrupt_wave(
    wave: Tensor, name: str, severity: float, generator: Generator, rate: int = BASE_RATE, *, reference: bool = False
) -> Tensor:
    """Sound under one of `AV_CORRUPTIONS`.

    wave: float `[L]` in [-1, 1], mono, 0.1 s or more. severity: 0 (the wave itself) to 5; integers are the published
    constants. generator: on the CPU. rate: samples a second; frequencies scale with it. reference: hand the severity
    as dB to the gaussian noise, as the published code does.

    Returns a new wave, clamped to [-1, 1]. Raises InvalidInput, also for a silent wave that noise is to be mixed into.
    """
    severity = check_severity(severity)
    _check_name(name)
    _waveforms.check_wave(wave, rate)
    if severity == 0:
        return wave.clone()
    exact = wave.detach().float().cpu()
    if name == "compression":
        changed = _waveforms.compression(exact, severity)
    elif name == "interference":
        changed = _waveforms.interference(exact, severity, rate, generator)
    else:
        maker = {**_waveforms.NOISES, **_waveforms.SCENES}[name]
        changed = mix(exact, maker(exact, rate, generator), snr_db(name, severity, reference))
    return changed.clamp(-1, 1).to(wave)


def _check_name(name: str) -> None:
    if name not in AV_CORRUPTIONS:
        near = get_close_matches(name, AV_CORRUPTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"name must be one of {', '.join(AV_CORRUPTIONS)}, got {name!r}{hint}")


def evaluate_audio_visual(
    model: Callable[[Tensor, Tensor], Tensor],
    frames: Tensor,
    waves: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    *,
    seed: int = 0,
    names: Sequence[str] = AV_CORRUPTIONS,
    severities: Sequence[float] = _waveforms.SEVERITIES,
    rate: int = BASE_RATE,
    model_rate: int = BASE_RATE,
    batch_size: int = 64,
) -> pa.Table:
    """Accuracy clean, with both streams spoilt and with one of them, for every cause and severity.

    model: (frames `[B, T, 3, H, W]`, waves `[B, L]`) to scores `[B, K]`. frames: `[N, T, 3, H, W]`. waves: `[N, L]` at
    `rate`. labels: int64 `[N]`. ids: one a clip, which seeds its noise. model_rate: the rate the model was made for.

    Returns an Arrow table: corruption ("clean" first, "mean" last), severity (null for "mean"), stream ("both",
    "frames", "wave"), accuracy, low, high, drop, drop_low, drop_high, p_value (exact McNemar against clean), and for
    "both" interaction, interaction_low, interaction_high; n, enough_data. Intervals are 95 %: Wilson's for
    accuracies, Tango's for drops, BCa over clips for means and interactions. Raises InvalidInput.
    """
    n = len(labels)
    if rate != model_rate:
        raise InvalidInput(f"rate must be the model's {model_rate} samples a second, got {rate}; resample the waves")
    if frames.ndim != 5 or waves.ndim != 2 or n < 2 or not (len(frames) == len(waves) == len(ids) == n):
        raise InvalidInput(
            "frames [N, T, 3, H, W], waves [N, L], labels [N] and ids must be of 2 clips or more, got"
            f" {list(frames.shape)}, {list(waves.shape)}, {list(labels.shape)} and {len(ids)}"
        )
    random = SampleRandom(seed, NAME)

    def correct(pictures: Tensor, sounds: Tensor) -> NDArray[np.bool_]:
        parts = zip(pictures.split(batch_size), sounds.split(batch_size), strict=True)
        with torch.no_grad():
            predicted = torch.cat([model(*part).argmax(1) for part in parts])
        right: NDArray[np.bool_] = (predicted == labels.to(predicted.device)).cpu().numpy()
        return right

    clean = correct(frames, waves)
    table = [condition_row("clean", 0.0, "both", clean, clean)]
    total: dict[str, NDArray[np.float64]] = {}
    for name in names:
        for severity in severities:
            # One stream for all severities of a cause: a clip's curve is the same rain falling harder.
            spoilt = [
                corrupt_clip(picture, sound, name, severity, random.generator(clip, name), rate)
                for picture, sound, clip in zip(frames, waves, ids, strict=True)
            ]
            seen, heard = torch.stack([clip.frames for clip in spoilt]), torch.stack([clip.wave for clip in spoilt])
            streams = {"both": correct(seen, heard), "frames": correct(seen, waves), "wave": correct(frames, heard)}
            for stream, right in streams.items():
                table.append(condition_row(name, severity, stream, right, clean))
                total[stream] = total.get(stream, np.zeros(n)) + right / (len(names) * len(severities))
            table[-3] |= interaction(streams, clean, random.numpy(name, severity))
    for stream, mean in total.items():
        table.append(mean_row(stream, mean, clean, random.numpy("mean", stream)))
    if total:
        table[-3] |= interaction(total, clean, random.numpy("mean"))
    return pa.Table.from_pylist(table, schema=SCHEMA)


register_functions(
    NAME, paper="Maharana et al., 2025", card="avrobustbench", access=Access.SCORES, data="video with sound",
    module=__name__,
)  # fmt: skip
