"""The transforms of MedMNIST-C (Di Salvo et al., 2024), each with its published constants as arguments.

Images `[B, C, H, W]` in [0, 1] of any size. Lengths are pixels of a 224 px picture, the only size the constants were
published for, and follow the short side: what is drawn on a 48 px picture looks like the reduced 224 px one. That is
our extension. Whatever draws takes one generator a sample and reads it in an order that the constants do not change;
spots, bubbles and words come in one after the other as their number grows.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from snellen.shift._blur import disk_blur, draw_angles, streak
from snellen.shift._extra import scaled_saturation
from snellen.shift._noise import count_photons, draw
from snellen.shift._weather import grey

PUBLISHED_SIDE = 224
EDGE = 10  # px that spots and words keep from the border
MOST_SPOTS, LUMPS = 5, 5
FEWEST_BUBBLES, MOST_BUBBLES, SMALLEST_BUBBLE, RIM = 7, 25, 3, 2
BUBBLE, BUBBLE_RIM = 100 / 255, 130 / 255
MOST_WORDS, FEWEST_LETTERS, MOST_LETTERS = 6, 3, 10
SMALLEST_SCALE = 0.14
TYPE_SIZE = 30.0  # px of Pillow's font whose capitals are as tall as those of OpenCV's at scale 1
SMALLEST_TYPE = 4.0  # px; below, letters are no letters


def published_pixel(images: Tensor) -> float:
    """How many pixels one pixel of the published 224 px pictures is."""
    return min(images.shape[-2:]) / PUBLISHED_SIDE


def shot_noise(images: Tensor, generators: Sequence[Generator], photons: float) -> Tensor:
    """Counts photons: Poisson(x photons) / photons. The counts of two strengths are not coupled."""
    return count_photons(images, generators, 1 / photons)


def defocus_blur(images: Tensor, radius: float, rim_sigma: float) -> Tensor:
    """Convolution with a disk, borders mirrored. The sigma that softens its rim is a matter of one pixel and stays."""
    return disk_blur(images, radius * published_pixel(images), rim_sigma)


def gaussian_blur(images: Tensor, taps: float) -> Tensor:
    """Gaussian filter of `taps` x `taps` with the sigma that OpenCV and torchvision derive from them, mirrored."""
    reach = (taps - 1) / 2 * published_pixel(images)
    vertical, horizontal = (_taps_matrix(side, reach).to(images.device) for side in images.shape[-2:])
    return vertical @ (images @ horizontal.T)


@lru_cache(maxsize=64)
def _taps_matrix(size: int, reach: float) -> Tensor:
    """The filter with its mirrored borders as a matrix, which is faster than a convolution for wide kernels."""
    offsets = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    # A kernel between two odd sizes gives its last tap only a part of its weight.
    weights = np.exp(-(offsets**2) / (2 * (0.3 * (reach - 1) + 0.8) ** 2)) * np.clip(reach + 1 - np.abs(offsets), 0, 1)
    rows = np.arange(size)[:, None]
    columns = np.abs(rows + offsets)
    columns = np.minimum(columns, 2 * (size - 1) - columns)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.broadcast_to(rows, columns.shape), columns), weights / weights.sum())
    return torch.from_numpy(matrix).float()


def motion_blur(images: Tensor, generators: Sequence[Generator], radius: float, sigma: float) -> Tensor:
    """One-sided Gaussian streak at an angle drawn from U(-45, 45) degrees."""
    pixel = published_pixel(images)
    return streak(images, radius * pixel, sigma * pixel, draw_angles(generators, -45.0, 45.0))


def brightness(images: Tensor, factor: float) -> Tensor:
    """x factor."""
    return (images * factor).clamp_(0, 1)


def contrast(images: Tensor, factor: float) -> Tensor:
    """m + (x - m) factor around the mean grey level m."""
    middle = grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(middle, images, factor).clamp_(0, 1)


def gamma(images: Tensor, exponent: float) -> Tensor:
    """x ^ exponent."""
    return images.pow(exponent)


def saturate(images: Tensor, added: float) -> Tensor:
    """Adds to the HSV saturation. Grey turns reddish, its hue being 0; single-channel images stay."""
    return scaled_saturation(images, 1.0, added)


def stain_deposit(images: Tensor, generators: Sequence[Generator], most: float, size: float) -> Tensor:
    """1 to `most` black ink spots up to `size` px wide; below one, a single spot that fades.

    The spots are thresholded smooth noise instead of the published silhouettes.
    """
    pixel = published_pixel(images)
    drawn = draw(generators, lambda g: torch.rand(1 + MOST_SPOTS * (2 + LUMPS**2), generator=g), images)
    count = 1 + (drawn[:, 0] * most).floor()
    spots = drawn[:, 1:].view(len(images), MOST_SPOTS, -1)

    # Shape: how far the ink reaches, 0.7 to 1 of half the size, differs from place to place
    side = max(math.ceil(size * pixel), 1)
    lumps = spots[..., 2:].view(-1, MOST_SPOTS, LUMPS, LUMPS)
    reach = 0.7 + 0.3 * F.interpolate(lumps, size=(side, side), mode="bilinear", align_corners=False)
    ink = _distances(side, images) <= reach * (size * pixel / 2)

    # Place
    edge = EDGE * pixel
    room = images.new_tensor([max(length - side - 2 * edge, 0) for length in images.shape[-2:]])
    shown = ink & (torch.arange(MOST_SPOTS, device=images.device) < count[:, None])[..., None, None]
    cover = _topmost(shown.float(), (edge + spots[..., :2] * room).round().long(), images.shape[-2:])
    return images * (1 - min(most, 1.0) * cover)[:, None]


def bubble(images: Tensor, generators: Sequence[Generator], largest: float, most: float, opacity: float) -> Tensor:
    """7 to `most` white discs with radii from 3 to `largest` px, thin inside and thicker on the rim."""
    pixel = published_pixel(images)
    drawn = draw(generators, lambda g: torch.rand(1 + MOST_BUBBLES * 3, generator=g), images)
    count = FEWEST_BUBBLES + (drawn[:, 0] * (most - FEWEST_BUBBLES + 1)).floor()
    places = drawn[:, 1:].view(len(images), MOST_BUBBLES, 3)
    radii = (SMALLEST_BUBBLE + (places[..., 0] * (largest - SMALLEST_BUBBLE + 1)).floor()) * pixel

    margin = math.ceil((largest + RIM) * pixel) + 1
    lengths = images.new_tensor(images.shape[-2:])
    centres = (radii[..., None] + places[..., 1:] * (lengths - 1 - 2 * radii[..., None])).round().long()

    # As drawn in the original, a bubble takes the place of those below it: the highest number wins, odd if inside
    distances, numbers = _distances(2 * margin + 1, images), torch.arange(MOST_BUBBLES, device=images.device)
    inside, there = (distances <= (radii + more * pixel)[..., None, None] for more in (0, RIM))
    layers = (2 * numbers + 2)[:, None, None] + inside
    layers = layers * (there & (numbers < count[:, None])[..., None, None])
    top = _topmost(layers.float(), centres, [length + 2 * margin for length in images.shape[-2:]])
    top = top[:, None, margin:-margin, margin:-margin]
    film = torch.where(top % 2 == 1, BUBBLE, BUBBLE_RIM) * (top > 0) * opacity
    return images + film * (1 - images)


def black_corner(images: Tensor, radius: float, opacity: float = 1.0) -> Tensor:
    """Darkens what lies outside a centred circle of `radius` times half the short side."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    columns = torch.arange(width, device=images.device) - (width - 1) / 2
    outside = rows**2 + columns**2 > (radius * min(height, width) / 2) ** 2
    return images * (1 - opacity * outside.float())


def characters(
    images: Tensor, generators: Sequence[Generator], words: float, letters: float, largest_scale: float
) -> Tensor:
    """1 to `words` random strings of 3 to `letters` lower-case letters in a random colour; below one, it fades.

    Scales count as OpenCV's. Set in Pillow's font, no smaller than 4 px: shapes differ from the original's strokes.
    """
    height, width = images.shape[-2:]
    pixel = published_pixel(images)
    wide = 1 + MOST_WORDS * (7 + MOST_LETTERS)
    drawn = torch.stack([torch.rand(wide, generator=g) for g in generators]).double()
    result = images.clone()
    for image, numbers in zip(result, drawn.tolist(), strict=True):
        for word in range(min(1 + math.floor(numbers[0] * words), MOST_WORDS)):
            first = 1 + word * (7 + MOST_LETTERS)
            length, scale, x, y, *colour = numbers[first : first + 7]
            count = FEWEST_LETTERS + math.floor(length * (letters - FEWEST_LETTERS + 1))
            scale = SMALLEST_SCALE + scale * (largest_scale - SMALLEST_SCALE)
            places = numbers[first + 7 : first + 7 + count]
            text = "".join(string.ascii_lowercase[math.floor(place * 26)] for place in places)
            left = EDGE + x * max(width / pixel - 8 * count - EDGE, 0)
            base = EDGE + y * (height / pixel - 2 * EDGE)

            paper = Image.new("L", (width, height))
            type_face = _type_face(max(TYPE_SIZE * scale * pixel, SMALLEST_TYPE))
            ImageDraw.Draw(paper).text((left * pixel, base * pixel), text, fill=255, font=type_face, anchor="ls")
            strokes = torch.from_numpy(np.array(paper)).to(images.device) * (min(words, 1.0) / 255)
            ink = images.new_tensor(colour if len(image) == 3 else colour[:1]).view(-1, 1, 1)
            image += strokes * (ink - image)
    return result


@lru_cache(maxsize=64)
def _type_face(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(round(size, 1))


def _distances(side: int, like: Tensor) -> Tensor:
    """Distance in pixels from the centre of a square patch `[side, side]`."""
    axis = torch.arange(side, device=like.device) - (side - 1) / 2
    return torch.hypot(axis[:, None], axis)


def _topmost(values: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """The largest value at each pixel `[B, *size]`, 0 where none, of patches `[B, N, S, S]` put at `[B, N, 2]`."""
    side = torch.arange(values.shape[-1], device=values.device)
    rows, columns = corners[..., 0, None, None] + side[:, None], corners[..., 1, None, None] + side
    canvas = values.new_zeros(len(values), size[0] * size[1])
    canvas.scatter_reduce_(1, (rows * size[1] + columns).flatten(1), values.flatten(1), "amax")
    return canvas.view(-1, *size)
