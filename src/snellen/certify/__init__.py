"""Certify: what no adversary can do."""
