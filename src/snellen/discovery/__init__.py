"""Discovery: faults that nobody told us about."""
