"""snellen: an eye examination for vision models."""

__version__ = "0.1.0"
