"""Discrete states: weights, experts and energies of masked models, and jump processes with corrected rates."""
