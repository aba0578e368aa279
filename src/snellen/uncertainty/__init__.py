"""Uncertainty: what the scores are worth, and when to abstain."""
