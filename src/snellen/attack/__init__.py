"""Attack: what an adversary can do to images."""
