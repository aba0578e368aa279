"""What a set of certificates says: certified accuracy at one sigma, and the curve over all radii."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.certify._radius import (
    average_certified_radius,
    certified_radius,
    lower_bound,
    needed_copies,
    radius_curve,
)
from snellen.exhibits import Curve, CurvePoint, Exhibit
from snellen.probe import Finding, Rows
from snellen.stats import clopper_pearson, needed_samples

POINTS = 25


class Certified(NamedTuple):
    """Columns of the table, `[N]` each. joint: radii that hold for all images together (Bonferroni)."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    base_correct: NDArray[np.bool_]
    predicted: NDArray[np.int64]
    radius: NDArray[np.float64]
    joint: NDArray[np.float64]
    copies: int

    @property
    def base_accuracy(self) -> float:
        return float(self.base_correct.mean())

    def holding(self, radius: float) -> int:
        """Images with the right class certified to `radius`."""
        return int(((self.predicted == self.labels) & (self.radius >= radius)).sum())


def smoothing_findings(table: Rows, sigma: float, alpha: float) -> list[Finding]:
    """Certified accuracy at the radius sigma, with an exact interval over the images."""
    if table.num_rows == 0:
        return []
    seen = _columns(table, sigma, alpha)
    n = len(seen.ids)
    held = seen.holding(sigma)
    least_copies, least_images = needed_copies(1.0, alpha), needed_samples(0.1, max(0.1, seen.base_accuracy))

    enough = seen.copies >= least_copies and n >= least_images
    if seen.copies < least_copies:
        title = (
            f"not enough data: {seen.copies} noisy copies an image, needs about {least_copies} to certify a radius"
            f" of {sigma:g}"
        )
    elif n < least_images:
        title = f"not enough data: n = {n}, needs about {least_images} to judge certified accuracy"
    else:
        average = average_certified_radius(seen.predicted, seen.radius, seen.labels)
        title = (
            f"under noise of sigma {sigma:g} the answer of {held / n:.1%} of the images is right and cannot be changed"
            f" within L2 distance {sigma:g}; the average certified radius is {average:.2f}"
        )

    # Answered correctly by the model itself, least protected first.
    open_ = np.flatnonzero(seen.base_correct & ~((seen.predicted == seen.labels) & (seen.radius >= sigma)))
    order = open_[np.lexsort((seen.ids[open_], seen.radius[open_]))]
    return [
        Finding(
            kind="certificate",
            title=title,
            metric="certified accuracy",
            value=held / n,
            baseline=seen.base_accuracy,
            effect=0.0,
            n=n,
            subject={
                "norm": "l2",
                "radius": sigma,
                "sigma": sigma,
                "alpha_each_image": alpha,
                "alpha_all_images": min(1.0, alpha * n),
            },
            ci=clopper_pearson(held, n),
            evidence=[str(sample) for sample in seen.ids[order][:12]],
            enough_data=enough,
        )
    ]


def smoothing_exhibits(table: Rows, sigma: float, alpha: float) -> list[Exhibit]:
    """Certified accuracy against the radius, for each image by itself and for all images together."""
    if table.num_rows == 0:
        return []
    seen = _columns(table, sigma, alpha)
    n = len(seen.ids)
    radii = np.linspace(0, float(certified_radius(alpha ** (1 / seen.copies), sigma)), POINTS)

    points = [
        CurvePoint(float(r), seen.holding(r) / n, *clopper_pearson(seen.holding(r), n), series="certified")
        for r in radii
    ]
    joint = radius_curve(seen.predicted, seen.joint, seen.labels, radii)
    points += [
        CurvePoint(float(r), float(value), series="all images together (Bonferroni)")
        for r, value in zip(radii, joint, strict=True)
    ]
    base = clopper_pearson(int(seen.base_correct.sum()), n)
    points += [CurvePoint(float(r), seen.base_accuracy, *base, series="model without noise") for r in radii[[0, -1]]]
    caption = (
        f"Part of {n} images for which the class is right and proved unchangeable within the radius (noise sigma"
        f" {sigma:g}, {seen.copies} copies an image). A certificate is wrong with probability at most {alpha:g} for one"
        " image; the second line holds for all images at once. The flat line is the accuracy without noise, which is"
        " proved for no radius. Bands are 95 % intervals."
    )
    return [Curve("Certified accuracy", caption, "L2 radius (pixel units)", "certified accuracy", points)]


def _columns(table: Rows, sigma: float, alpha: float) -> Certified:
    labels, predicted, votes = (table[name].to_numpy() for name in ("label", "predicted", "votes"))
    copies = int(table["n"][0].as_py())
    bounds = [lower_bound(int(k), copies, alpha / len(labels)) for k in votes]
    return Certified(
        ids=np.asarray(table["id"].to_pylist()),
        labels=labels,
        base_correct=table["base_predicted"].to_numpy() == labels,
        predicted=predicted,
        radius=table["radius"].to_numpy(),
        joint=np.where(np.asarray(bounds) > 0.5, certified_radius(bounds, sigma), -1.0),
        copies=copies,
    )
