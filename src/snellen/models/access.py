"""What the user has of a model: the one axis by which methods differ first."""

from __future__ import annotations

from enum import IntEnum


class Access(IntEnum):
    """Ordered: each level includes those below it, so `model.access >= method.access` decides what fits."""

    LABELS = 1  #: the predicted class only
    SCORES = 2  #: logits or probabilities
    FEATURES = 3  #: intermediate activations
    GRADIENTS = 4  #: derivatives with respect to input and activations
    WEIGHTS = 5  #: parameters may be read and changed

    def __str__(self) -> str:
        return self.name.lower()
