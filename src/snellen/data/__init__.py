"""Data: labelled images from folders, Parquet files and arrays, with what could not be used set apart."""

from snellen.data.dataset import Dataset, Quarantined, align_classes
from snellen.data.decode import BadImage, Geometry
from snellen.data.loader import Inspection, LoadedBatch, Loader, fingerprint
from snellen.data.loading import load_dataset

__all__ = [
    "BadImage",
    "Dataset",
    "Geometry",
    "Inspection",
    "LoadedBatch",
    "Loader",
    "Quarantined",
    "align_classes",
    "fingerprint",
    "load_dataset",
]
