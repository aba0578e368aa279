"""Shift: what the world does to images."""
