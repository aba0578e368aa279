"""Fresh images drawn by a sentence, and how often a model fails on them.

Every image belongs to a shot: prompt, count and seed, from which it can be drawn again. Seeds of mining and of testing
are disjoint by construction, not by luck: their lowest two bits say what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.randomness import derive_seed

Answers: TypeAlias = NDArray[np.int64]
Classifier: TypeAlias = Callable[[Tensor], Tensor]
"""Images `[B, 3, H, W]` to scores `[B, K]` or to labels, int64 `[B]`."""
Embedder: TypeAlias = Callable[[Tensor], Tensor]
"""Images `[B, 3, H, W]` to features `[B, D]`."""
Captioner: TypeAlias = Callable[[Tensor], Sequence[str]]
"""Images `[B, 3, H, W]` to B descriptions."""
Realism: TypeAlias = Callable[[Tensor, str], Tensor]
"""Images `[B, 3, H, W]` and the class they were drawn for to `[B]`: high where the class is surely in the picture."""


class Generator(Protocol):
    """Images float32 `[n, 3, H, W]` in [0, 1] of what the prompt says, the same for the same seed."""

    def __call__(self, prompt: str, n: int, seed: int) -> Tensor: ...


class UndrawnSentence(InvalidInput):
    """A generator raises it for a prompt that it cannot draw; the search goes on without that sentence."""


class Purpose(IntEnum):
    MINING = 0
    TESTING = 1


class Shot(NamedTuple):
    prompt: str
    n: int
    seed: int


def plan_shots(prompts: Sequence[str], n: int, batch: int, seed: int, purpose: Purpose) -> tuple[Shot, ...]:
    """n images shared evenly among the prompts (the first get the remainder), at most `batch` a shot."""
    shots = []
    for place, prompt in enumerate(prompts):
        share = n // len(prompts) + (place < n % len(prompts))
        for start in range(0, share, batch):
            drawn = derive_seed("bug-discovery", seed, prompt, start)
            shots.append(Shot(prompt, min(batch, share - start), drawn & ~1 | purpose))
    return tuple(shots)


class Trial(NamedTuple):
    """n: images judged. wrong: how many got each answer that is not accepted. dropped: unrealistic ones.
    examples: the first failures, `[E, 3, H, W]`."""

    n: int
    wrong: Mapping[int, int]
    dropped: int
    examples: Tensor

    @property
    def failures(self) -> int:
        return sum(self.wrong.values())


class Pool(NamedTuple):
    """The neutral images of a class. embeddings `[F, D]`, captions and answers `[F]` are those of the failures."""

    trial: Trial
    embeddings: NDArray[np.float64]
    captions: Sequence[str]
    answers: Answers
    floor: float | None


@dataclass(frozen=True)
class Bench:
    """accepted: for each class the answers that are no failure."""

    generator: Generator
    class_names: Sequence[str]
    accepted: Sequence[frozenset[int]]
    realism: Realism | None
    quantile: float

    def trial(
        self, model: Classifier, label: int, shots: Sequence[Shot], floor: float | None, examples: int = 0
    ) -> Trial:
        """Failures on the shots of class `label`, without images whose realism is below `floor`."""
        wrong: dict[int, int] = {}
        kept, dropped, n, shown = [], 0, 0, 0
        for images in self._draw(shots):
            if self.realism is not None and floor is not None:
                real = self._realism(images, label) >= floor
                dropped += len(images) - int(real.sum())
                images = images[torch.from_numpy(real)]
            if len(images) == 0:
                continue
            answers = answers_of(model, images, len(self.class_names))
            failed = self._failed(answers, label)
            n += len(answers)
            for answer in answers[failed].tolist():
                wrong[answer] = wrong.get(answer, 0) + 1
            kept.append(images[torch.from_numpy(failed)][: examples - shown])
            shown += len(kept[-1])
        return Trial(n, wrong, dropped, torch.cat(kept) if kept else torch.empty(0))

    def mine(
        self, model: Classifier, label: int, shots: Sequence[Shot], captioner: Captioner, embedder: Embedder
    ) -> Pool:
        """Neutral images of a class; what a realistic image is, is the quantile of their own realism."""
        every, scores, embeddings, captions = [], [], [], []
        for images in self._draw(shots):
            answers = answers_of(model, images, len(self.class_names))
            every.append(answers)
            failed = self._failed(answers, label)
            if self.realism is not None:
                scores.append(self._realism(images, label))
            if failed.any():
                failures = images[torch.from_numpy(failed)]
                embeddings.append(_embed(embedder, failures))
                captions += _describe(captioner, failures)
        answers = np.concatenate(every)
        floor = float(np.quantile(np.concatenate(scores), self.quantile)) if scores else None
        real = np.concatenate(scores) >= floor if floor is not None else np.ones(len(answers), dtype=bool)
        failed = self._failed(answers, label)
        values, counts = np.unique(answers[failed & real], return_counts=True)
        trial = Trial(
            int(real.sum()),
            dict(zip(values.tolist(), counts.tolist(), strict=True)),
            int((~real).sum()),
            torch.empty(0),
        )
        kept = np.flatnonzero(real[failed])
        return Pool(
            trial,
            np.concatenate(embeddings)[kept] if embeddings else np.empty((0, 0)),
            [captions[row] for row in kept.tolist()],
            answers[failed & real],
            floor,
        )

    def _draw(self, shots: Sequence[Shot]) -> Iterator[Tensor]:
        for shot in shots:
            images = self.generator(shot.prompt, shot.n, shot.seed)
            if images.ndim != 4 or len(images) != shot.n or images.shape[1] != 3:
                raise InvalidInput(
                    f"generator must give images [{shot.n}, 3, H, W] for {shot.prompt!r}, got {list(images.shape)}"
                )
            if not bool(((images >= 0) & (images <= 1)).all()):  # catches NaN too
                raise InvalidInput(f"generator must give finite values in [0, 1], got others for {shot.prompt!r}")
            yield images.float()

    def _failed(self, answers: Answers, label: int) -> NDArray[np.bool_]:
        return ~np.isin(answers, sorted(self.accepted[label]))

    def _realism(self, images: Tensor, label: int) -> NDArray[np.float64]:
        assert self.realism is not None
        with torch.no_grad():
            scores = self.realism(images, self.class_names[label]).double().cpu().numpy()
        if scores.shape != (len(images),) or not np.isfinite(scores).all():
            raise InvalidInput(f"realism must give {len(images)} finite scores, got shape {list(scores.shape)}")
        return np.asarray(scores)


def answers_of(model: Classifier, images: Tensor, classes: int) -> Answers:
    """Labels `[B]` of scores or labels. Raises InvalidInput on anything else and on scores that are not finite."""
    with torch.no_grad():
        given = model(images).cpu()
    if given.ndim == 2 and given.shape == (len(images), classes) and bool(given.isfinite().all()):
        return np.asarray(given.argmax(dim=1).numpy())
    whole = given.ndim == 1 and len(given) == len(images) and not given.is_floating_point()
    if whole and bool(((given >= 0) & (given < classes)).all()):
        return np.asarray(given.long().numpy())
    raise InvalidInput(
        f"model must give finite scores [{len(images)}, {classes}] or labels [{len(images)}] below {classes},"
        f" got {given.dtype} {list(given.shape)}"
    )


def _embed(embedder: Embedder, images: Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        features = embedder(images).double().cpu().numpy()
    if features.ndim != 2 or len(features) != len(images) or not np.isfinite(features).all():
        raise InvalidInput(f"embedder must give finite features [{len(images)}, D], got {list(features.shape)}")
    return np.asarray(features)


def _describe(captioner: Captioner, images: Tensor) -> list[str]:
    captions = list(captioner(images))
    if len(captions) != len(images):
        raise InvalidInput(f"captioner must give one caption an image, got {len(captions)} for {len(images)}")
    return captions
