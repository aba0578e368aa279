"""The eight LiDAR corruptions of Robo3D (Kong et al., 2023) on one scan, and what they share.

Every function takes points float32 `[N, C]` (x, y, z in metres, intensity, then an optional ring index), a severity in
[0, 5], the scanner and one CPU generator. Robo3D publishes three levels: light is severity 1, moderate 3, heavy 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput

SPEED_OF_LIGHT = 0.299792458  # m/ns
FEATURES = 4
LEVELS = (1.0, 3.0, 5.0)


@dataclass(frozen=True)
class Scanner:
    """What the corruptions must know of the sensor and of the data set."""

    beams: int = 64
    """Rings of the scanner, 8 to 128; 64 for KITTI, 32 for nuScenes."""
    shake: tuple[float, float, float] = (0.20, 0.25, 0.30)
    """Motion blur at the three levels, metres; SemanticKITTI and nuScenes, (0.04, 0.08, 0.10) for KITTI."""
    full_intensity: float = 1.0
    """The brightest echo the sensor reports: 1 for KITTI, 255 for nuScenes."""
    vehicles: tuple[int, ...] = ()
    """Class numbers of vehicles, for incomplete echo."""
    repeat_beams: bool = False
    """Draw missing beams with replacement as the published files did, so that fewer go missing than asked."""

    def __post_init__(self) -> None:
        if not 8 <= self.beams <= 128:
            raise InvalidInput(f"beams must be in [8, 128], got {self.beams}")
        if len(self.shake) != 3 or not all(math.isfinite(t) and t >= 0 for t in self.shake):
            raise InvalidInput(f"shake must be three lengths in metres, got {self.shake}")
        if not (math.isfinite(self.full_intensity) and self.full_intensity > 0):
            raise InvalidInput(f"full_intensity must be a number above 0, got {self.full_intensity}")


class Change(NamedTuple):
    """points `[N, C]` before any is dropped; kept, moved: bool `[N]`."""

    points: Tensor
    kept: Tensor
    moved: Tensor


def at(severity: float, levels: tuple[float, float, float], identity: float = 0.0) -> float:
    """The constant at a severity in [0, 5], linear between identity, light (1), moderate (3) and heavy (5)."""
    return float(np.interp(severity, (0.0, *LEVELS), (identity, *levels)))


def _none(points: Tensor) -> Tensor:
    return torch.zeros(len(points), dtype=torch.bool, device=points.device)


def _uniform(count: int, generator: Generator, like: Tensor) -> Tensor:
    return torch.rand(count, generator=generator).to(like)


def _range(points: Tensor) -> Tensor:
    distance: Tensor = points[:, :3].norm(dim=1)
    return distance


def ring_index(points: Tensor, beams: int) -> Tensor:
    """The beam of every point, int64 `[N]` in [0, beams).

    Read from the fifth column where there is one. Otherwise recovered from the order of the scan, a new ring where the
    azimuth wraps round; a cloud that is not in that order, or shows fewer than half of the rings, falls back to
    `beams` equal steps of elevation.
    """
    if points.shape[1] > FEATURES:
        return points[:, FEATURES].long().clamp(0, beams - 1)
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    azimuth = 0.5 * (torch.atan2(y, x) / math.pi % 2)
    step = azimuth.diff()
    # Scanners turn either way; in an unordered cloud about half of the steps go backwards.
    forward = float(((step % 1) < 0.5).float().mean()) if len(step) else 0.0
    before, after = (azimuth[:-1], azimuth[1:]) if forward >= 0.5 else (azimuth[1:], azimuth[:-1])
    wraps = (before > 0.8) & (after < 0.2)
    if abs(forward - 0.5) > 0.3 and int(wraps.sum()) + 1 >= beams / 2:
        return torch.cat((wraps.new_zeros(1), wraps)).long().cumsum(0).clamp(max=beams - 1)

    elevation = torch.atan2(z, torch.hypot(x, y))
    low, high = elevation.aminmax()
    if not float(high - low) > 1e-4:
        raise InvalidInput(
            "points need a ring index as fifth column: they are not in scan order and all have one elevation"
        )
    return ((elevation - low) / (high - low) * beams).long().clamp(max=beams - 1)


def beam_missing(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Drops 1/4, 1/2 or 3/4 of the beams, drawn from all but the outermost few."""
    beams = scanner.beams
    count = round(beams * at(severity, (0.25, 0.5, 0.75)))
    first, last = beams // 16, beams - 2 - beams // 16  # 4 to 58 of 64, 2 to 28 of 32
    if scanner.repeat_beams:
        gone = torch.randint(first, last + 1, (count,), generator=generator)
    else:
        gone = first + torch.randperm(last + 1 - first, generator=generator)[:count]
    kept = ~torch.isin(ring_index(points, beams), gone.to(points.device))
    return Change(points, kept, _none(points))


def cross_sensor(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Drops 1/4, 1/2 or 3/4 of the beams at regular steps, then every second point of what is left."""
    share = at(severity, (0.25, 0.5, 0.75))
    gone = (1 + torch.arange(round(scanner.beams * share), device=points.device) / max(share, 1e-9)).long()
    kept = ~torch.isin(ring_index(points, scanner.beams), gone)
    part = at(severity, (0.5, 0.5, 0.5), identity=1.0)
    position = torch.arange(int(kept.sum()), dtype=torch.float64, device=points.device)
    taken = ((position + 1) * part).ceil() > (position * part).ceil()
    return Change(points, kept.masked_scatter(kept, taken), _none(points))


def crosstalk(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Adds N(0, 3²) to place and intensity of 0.6, 0.8 or 1 % of the points, as echoes of another sensor would."""
    count = int(at(severity, (0.006, 0.008, 0.01)) * len(points))
    chosen = torch.randperm(len(points), generator=generator)[:count].to(points.device)
    noise = 3 * torch.randn(len(points), FEATURES, generator=generator)[:count].to(points)
    result = points.clone()
    result[chosen, :FEATURES] += noise
    return Change(result, ~_none(points), _none(points).index_fill(0, chosen, True))


def motion_blur(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """One offset N(0, t²) an axis for the whole scan and a jitter of 0.1 t (0.05 t upwards), together within 3 t."""
    shake = at(severity, scanner.shake)
    offset = torch.randn(3, generator=generator)
    jitter = torch.randn(len(points), 3, generator=generator) * torch.tensor([0.1, 0.1, 0.05])
    result = points.clone()
    result[:, :3] += ((offset + jitter).clamp(-3, 3) * shake).to(points)
    return Change(result, ~_none(points), _none(points))


def incomplete_echo(points: Tensor, labels: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Drops 75, 85 or 95 % of the points of every vehicle class that has more than ten."""
    share = at(severity, (0.75, 0.85, 0.95))
    kept = ~_none(points)
    for vehicle in scanner.vehicles:
        members = (labels == vehicle).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator).to(points.device)
        if len(members) > 10:
            kept[members[order[: int(len(members) * share)]]] = False
    return Change(points, kept, _none(points))


FOG_EXTINCTION = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)  # 1/m
PULSE = 20.0  # ns
TARGET_BACK_SCATTER = 1e-6 / math.pi
FOG_STEP, FOG_REACH = 0.1, 200.0  # m


class FogEcho(NamedTuple):
    """The strongest echo of the fog in front of a target at 0, 0.1, ..., 200 m: its strength and its range in m."""

    strength: Tensor
    range: Tensor


@lru_cache(maxsize=64)
def fog_echo(extinction: float) -> FogEcho:
    """P(R) = ∫ sin²(π t / 2τ) exp(-2 α R') / R'² ξ(R') dt with R' = R - ct/2, and its maximum up to every range.

    ξ, the overlap of beam and receiver, rises from 0 at 0.9 m to 1 at 1 m. t runs over two pulse widths, in seconds.
    """
    fine = FOG_STEP / 10
    distance = np.arange(round(FOG_REACH / fine) + 1) * fine
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = np.clip((distance - 0.9) / 0.1, 0, 1)
        back = np.where(overlap > 0, overlap * np.exp(-2 * extinction * distance) / distance**2, 0.0)
    time = np.arange(0, 2 * PULSE, 2 * fine / SPEED_OF_LIGHT)
    pulse = np.sin(np.pi * time / (2 * PULSE)) ** 2
    response = np.convolve(back, pulse)[: len(distance)][::10] * (2 * fine / SPEED_OF_LIGHT) * 1e-9

    # An echo from behind the target would not come back, so only ranges up to it count.
    strongest = np.maximum.accumulate(response)
    where = np.maximum.accumulate(np.where(response >= strongest, np.arange(len(response)), 0)) * FOG_STEP
    return FogEcho(torch.from_numpy(strongest).float(), torch.from_numpy(where).float())


def fog(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Weakens every echo on its two ways; where the fog's own echo is stronger, the point moves into the fog.

    The extinction is drawn from a table, the back-scatter is the level's. The published range factor r / U(r - 10,
    r + 10) flips or explodes for near points; here it is held in [0.5, 2], and no echo lies behind its target.
    """
    back_scatter = at(severity, (0.008, 0.05, 0.2))
    drawn = FOG_EXTINCTION[int(torch.randint(len(FOG_EXTINCTION), (), generator=generator))]
    extinction = drawn * min(severity, 1.0)
    spread = 20 * _uniform(len(points), generator, points) - 10

    distance, intensity = _range(points), points[:, 3]
    hard = intensity * torch.exp(-2 * extinction * distance)
    strength, place = (table.to(points) for table in fog_echo(extinction))
    entry = (distance / FOG_STEP).long().clamp(max=len(strength) - 1)
    soft = strength[entry] * intensity * distance**2 * (back_scatter / TARGET_BACK_SCATTER)
    moved = soft > hard

    factor = distance / (distance + spread).clamp(min=distance / 2, max=2 * distance).clamp_min(1e-6)
    echo = torch.minimum(place[entry] * factor, distance)
    return _displaced(points, moved, echo, torch.where(moved, soft, hard).clamp(max=scanner.full_intensity))


def snow(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Lets every beam meet its first flake after an exponential range; the stronger of flake and target returns.

    A simplification of the published beam-by-beam simulation: its occupancy o and flakes of D = 1 mm give the mean
    free path 2 D / 3 o; a flake covers a share U(0, 1) of the beam and shines at 90 % of the full intensity.
    """
    rate, velocity = at(severity, (0.5, 1.0, 2.5)), at(severity, (2.0, 1.6, 1.6), identity=2.0)
    occupancy = rate / (3.6e6 * 0.1 * velocity)
    free_path = 2 * 0.001 / (3 * occupancy)
    flake = -free_path * torch.log1p(-_uniform(len(points), generator, points))
    share = _uniform(len(points), generator, points)

    distance, intensity = _range(points), points[:, 3]
    hit = (flake < distance) & (flake > 0.9)  # nearer flakes lie outside the receiver's view
    behind = intensity * (1 - share)
    shine = 0.9 * scanner.full_intensity * share * ((flake - 0.9) / 0.1).clamp(0, 1)
    wins = hit & (shine / flake.clamp_min(0.1) ** 2 > behind / distance.clamp_min(0.1) ** 2)

    moved = wins & (distance - flake > 0.2)
    seen = torch.where(wins, shine, torch.where(hit, behind, intensity))
    return _displaced(points, moved, flake, seen)


def _displaced(points: Tensor, moved: Tensor, distance: Tensor, intensity: Tensor) -> Change:
    """Moves points along their rays to a new distance and sets the intensity of all."""
    scale = torch.where(moved, distance / _range(points).clamp_min(1e-6), 1.0)
    result = points.clone()
    result[:, :3] *= scale[:, None]
    result[:, 3] = intensity
    return Change(result, ~_none(points), moved)
