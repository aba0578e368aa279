"""`--dry-run`: jobs, passes and time, from a timed warm-up of the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from snellen.audit.engine import Examination
from snellen.audit.jobs import total_passes
from snellen.models import Access, Model
from snellen.probe import Passes


class Forecast(NamedTuple):
    """One line of the dry run; seconds are those of the passes alone."""

    label: str
    jobs: int
    finished: int
    images: int
    passes: Passes
    seconds: float


def forecast(examination: Examination) -> list[Forecast]:
    """What the plan would cost. Jobs that are already there count as finished and cost nothing."""
    audit = examination.audit
    batch_size = examination.worker.batch_size.value
    forward, backward = seconds_per_image(audit.model, batch_size)
    lines = []
    for entry in audit.entries:
        jobs = examination.jobs.get(entry.label, ())
        waiting = [job for job in jobs if not audit.store.has(entry.probe.name, job.key)]
        costs = [total_passes(job, batch_size) for job in waiting]
        passes = Passes(sum(cost.forward for cost in costs), sum(cost.backward for cost in costs))
        seconds = passes.forward * forward + passes.backward * backward
        images = sum(len(job.rows) for job in waiting)
        lines.append(Forecast(entry.label, len(jobs), len(jobs) - len(waiting), images, passes, seconds))
    return lines


def seconds_per_image(model: Model, batch_size: int, repeats: int = 3) -> tuple[float, float]:
    """Seconds an image forward and backward, the least of a few repeats; not booked in the ledger.

    NaN for a remote model, which is not asked.
    """
    if model.remote:
        return math.nan, 0.0
    images = torch.rand(batch_size, model.spec.channels, *model.spec.input_size).to(model.device)
    with model.ledger.off_the_books():
        forward = min(_timed(lambda: model.labels(images), model.device) for _ in range(repeats))
        backward = 0.0
        if model.access >= Access.GRADIENTS:
            both = min(_timed(lambda: _gradient(model, images), model.device) for _ in range(repeats))
            backward = max(both - forward, forward)
    return forward / batch_size, backward / batch_size


def _gradient(model: Model, images: torch.Tensor) -> torch.Tensor:
    images = images.detach().requires_grad_()
    return torch.autograd.grad(model(images).sum(), images)[0]


def _timed(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
