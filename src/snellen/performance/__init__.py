"""Performance: the predictions themselves, and how often they are right."""
