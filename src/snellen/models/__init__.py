"""Models: what they grant (`Access`), what they say of themselves (`ModelSpec`), how they are loaded and counted."""

from snellen.models.access import Access
from snellen.models.ledger import LedgerTotals, QueryLedger
from snellen.models.model import Activations, Model, labels_of
from snellen.models.spec import ModelSpec
from snellen.models.torch_model import TorchModel

__all__ = [
    "Access",
    "Activations",
    "LedgerTotals",
    "Model",
    "ModelSpec",
    "QueryLedger",
    "TorchModel",
    "labels_of",
]
