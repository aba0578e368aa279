"""Wet ground for LiDAR scans (Kong et al., 2023): the film of water sends part of the light away."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from snellen.shift._points import Change, Scanner, at

WATER = 1.33  # refractive index
PAVEMENT_DEPTH = 0.0012  # m
NOISE_FLOOR = 0.2
NEAR_PLANE = 0.5  # m
ENOUGH_POINTS = 1000
TRIES, JUDGES = 100, 2000
BINS = 20


def wet_ground(points: Tensor, severity: float, scanner: Scanner, generator: Generator) -> Change:
    """Darkens the ground by a film of 0.2, 1.0 or 1.2 mm of water and drops echoes below the noise.

    The reflectivity ρ of a point mixes with that under water, ρ t², by the share of the pavement's depth that is
    filled. t is the larger Fresnel transmittance, passed on the way in and on the way out. Without 1,000 points within
    half a metre of the ground plane the scan stays as it is.
    """
    filled = min(at(severity, (0.0002, 0.0010, 0.0012)) / PAVEMENT_DEPTH, 1.0)
    unchanged = Change(points, torch.ones_like(points[:, 0], dtype=torch.bool), torch.zeros_like(points[:, 0]).bool())
    plane = ground_plane(points[:, :3], generator)
    ground = (points[:, :3] @ plane[:3] + plane[3]).abs() < NEAR_PLANE
    if int(ground.sum()) < ENOUGH_POINTS:
        return unchanged

    # Incidence
    rays, intensity = points[ground, :3], points[ground, 3]
    distance = rays.norm(dim=1)
    cosine = ((rays @ plane[:3]).abs() / distance.clamp_min(1e-6)).clamp(1e-3, 1)

    # The light that reaches the pavement and comes back. The laser's own power cancels in I = I_rel cos θ ρ.
    through = torch.stack(fresnel_transmittance(cosine)).amax(0) ** 2
    dimmed = intensity * ((1 - filled) + filled * through)

    # Noise
    result = points.clone()
    result[ground, 3] = torch.minimum(dimmed, intensity)
    lost = dimmed < NOISE_FLOOR * lower_envelope(distance, intensity / cosine) * cosine
    kept = unchanged.kept.clone()
    kept[ground] = ~lost
    return Change(result, kept, unchanged.moved)


def fresnel_transmittance(cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Power that passes from air into water for s- and p-polarised light, by the cosine of the incidence."""
    inside = (1 - (1 - cosine**2) / WATER**2).sqrt()
    s = (cosine - WATER * inside) / (cosine + WATER * inside)
    p = (WATER * cosine - inside) / (WATER * cosine + inside)
    return 1 - s**2, 1 - p**2


def ground_plane(xyz: Tensor, generator: Generator) -> Tensor:
    """(unit normal, offset) of the plane near most points among those nearly level: RANSAC, then least squares."""
    triples = torch.randint(len(xyz), (TRIES, 3), generator=generator).to(xyz.device)
    judges = xyz[torch.randint(len(xyz), (JUDGES,), generator=generator).to(xyz.device)]
    a, b, c = xyz[triples].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    normal = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-9)
    offset = -(normal * a).sum(1)
    votes = ((judges @ normal.T + offset).abs() < NEAR_PLANE / 2).sum(0)
    best = int((votes * (normal[:, 2].abs() > 0.9)).argmax())

    inliers = xyz[(xyz @ normal[best] + offset[best]).abs() < NEAR_PLANE / 2]
    if len(inliers) < 3:
        return torch.cat((normal[best], offset[best, None]))
    centre = inliers.mean(0)
    spread = (inliers - centre).T @ (inliers - centre)
    refined = torch.linalg.eigh(spread).eigenvectors[:, 0]  # least spread is across the plane
    return torch.cat((refined, -(refined @ centre)[None]))


def lower_envelope(distance: Tensor, values: Tensor) -> Tensor:
    """A line through the least values in 20 equal bins of distance, at every point, not below 0."""
    low, high = distance.aminmax()
    bins = ((distance - low) / (high - low).clamp_min(1e-6) * BINS).long().clamp(max=BINS - 1)
    least = values.new_full((BINS,), torch.inf).scatter_reduce(0, bins, values, "amin")
    centre = low + (torch.arange(BINS, device=values.device) + 0.5) * (high - low) / BINS
    used = least.isfinite()
    x, y = centre[used], least[used]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum().clamp_min(1e-9)
    return (y.mean() + slope * (distance - x.mean())).clamp_min(0)
