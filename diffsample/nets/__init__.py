"""Flax networks, and the small trained ones that ship with the package. Used by examples and tests, not by samplers."""
