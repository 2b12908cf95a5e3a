"""Sequential Monte Carlo over any stochastic sampler: particles, weights, resampling, log-normalisers."""

from diffsample.smc.filtering import FeynmanKac, feynman_kac
from diffsample.smc.particles import Diagnostics, Particles, final_resample, repeat, select_one
from diffsample.smc.policies import always, ess, every, never, window
from diffsample.smc.potentials import Closing, Potential, Transition, combine
from diffsample.smc.resampling import multinomial, rotated, stratified, systematic

__all__ = [
    "Closing",
    "Diagnostics",
    "FeynmanKac",
    "Particles",
    "Potential",
    "Transition",
    "always",
    "combine",
    "ess",
    "every",
    "feynman_kac",
    "final_resample",
    "multinomial",
    "never",
    "repeat",
    "rotated",
    "select_one",
    "stratified",
    "systematic",
    "window",
]
