"""Levels between two grid points, where methods of several calls a step ask the network."""

from math import log

from diffsample.process import Level, Process
from diffsample.solvers.moves import rescaled_noise


def level_at(process: Process, noise: float) -> Level:
    """The level of the process where sigma / alpha = noise."""
    return Level(*map(float, process.level(process.t_from_half_logsnr(-log(noise)))))


def between(process: Process, s: Level, t: Level, share: float) -> Level:
    """The level that a move s -> t reaches after this share of its gain in log-SNR; share = 1 is t itself."""
    noise = rescaled_noise(s) ** (1 - share) * rescaled_noise(t) ** share
    return t if share == 1 else level_at(process, noise)
