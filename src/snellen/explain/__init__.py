"""Explain: which pixels carried the answer, and how far the map can be trusted."""
