"""Repair: changes that measurably help."""
