"""Domino's error-aware mixture as its authors use it (Eyuboglu et al., 2022): fitted and read on the same images.

It is the mixture of `snellen.discovery`, without the confirmation on a held-out half. 25 components, 128 principal
components of the features at most and gamma 10 are the paper's; as in the authors' package the five slices are told
in which the shares of label and answer differ most, whatever the network. A sample is in the slice that is most
probable given its features, label and answer. The authors' sentences come from a model of images and text, which the
bench has not: a slice is described by the class and the answer that most of it have.
"""

from __future__ import annotations

import time

import numpy as np
from benchmarks.faults.peers.handover import Subject
from benchmarks.faults.peers.judging import Statement, Told

from snellen.discovery._mixture import Mixture, fit_mixture, principal

COMPONENTS, DIMENSIONS, GAMMA, TOLD, SEED = 25, 128, 10.0, 5, 0
MOST = 0.5


def tell(subject: Subject) -> Told:
    begun = time.process_time()
    labels, answers = subject.made.labels.astype(np.int64), subject.probabilities.argmax(axis=1)
    points = principal(subject.features, np.ones(len(labels), dtype=np.bool_), DIMENSIONS)
    mixture = fit_mixture(points, labels, answers, COMPONENTS, GAMMA, np.random.default_rng(SEED)).mixture
    slices = mixture.log_joint(points, labels, answers, GAMMA).argmax(axis=1)
    worst = np.argsort(-(mixture.answers - mixture.labels).max(axis=1))[:TOLD]
    statements = [
        Statement(
            "slice", _described(mixture, number, subject.made.class_names), np.flatnonzero(slices == number).tolist()
        )
        for number in worst
    ]
    return Told("the mixture of Domino", statements, time.process_time() - begun)


def _described(mixture: Mixture, number: int, class_names: tuple[str, ...]) -> str:
    label, answer = mixture.labels[number].argmax(), mixture.answers[number].argmax()
    of = f"class {class_names[label]}" if mixture.labels[number, label] > MOST else "several classes"
    taken = f"class {class_names[answer]}" if mixture.answers[number, answer] > MOST else "several classes"
    return f"images of {of}, taken for {taken}"
