"""The exact law of a linear solver's output on Gaussian data: moments propagated through its table, no sampling."""

from typing import NamedTuple

import numpy as np

from diffsample.tableau import Tableau


class Moments(NamedTuple):
    """Mean and variance of one coordinate."""

    mean: float
    variance: float


def output_moments(tableau: Tableau, data: Moments, start: Moments) -> Moments:
    """Moments of a solver's output where the data are N(mean, variance) and the network is exact.

    Everything is then linear, so the joint law of registers and history is Gaussian and its moments follow the rows
    exactly: the weak error of any stochastic solver without a single draw.

    Args:
        tableau: a solver, without a shift by an image.
        data: law of the clean data, one coordinate.
        start: law of the initial state, for example Moments(alpha mean, alpha^2 variance + sigma^2).

    >>> import diffsample as ds
    >>> table = ds.solvers.ddim(ds.VarianceExploding(), [10.0, 1.0, 0.0])
    >>> output_moments(table, Moments(2.0, 0.0), Moments(0.0, 100.0))  # a point mass is reached exactly
    Moments(mean=2.0, variance=0.0)
    """
    R, size = tableau.registers, tableau.registers + tableau.slots
    mean, cov = np.zeros(size), np.zeros((size, size))
    mean[:R], cov[:R, :R] = start.mean, start.variance
    for r in range(tableau.rows + 1):
        if r == tableau.rows or tableau.active[r]:
            update = np.eye(size)
            update[:R] = np.concatenate([tableau.A[r], tableau.B[r]], axis=1)
            mean, cov = update @ mean, update @ cov @ update.T
            cov[:R, :R] += np.outer(tableau.c[r], tableau.c[r])
            mean[:R] += 0.0 if tableau.shift is None else tableau.shift[r]
        if r < tableau.rows and tableau.active[r]:
            slope, shift = _stored(tableau, r, data)
            update, slot = np.eye(size), R + int(tableau.slot[r])
            update[slot] = 0.0
            update[slot, int(tableau.register[r])] = slope
            mean, cov = update @ mean, update @ cov @ update.T
            mean[slot] += shift
    return Moments(float(mean[tableau.output]), float(cov[tableau.output, tableau.output]))


def _stored(tableau: Tableau, r: int, data: Moments) -> tuple[float, float]:
    """The stored output u x0 + w eps of the exact network as slope * x + shift."""
    alpha, sigma, (u, w) = tableau.now.alpha[r], tableau.now.sigma[r], tableau.store[r]
    total = alpha**2 * data.variance + sigma**2
    slope, shift = alpha * data.variance / total, data.mean * sigma**2 / total
    return u * slope + w * sigma / total, u * shift - w * alpha * data.mean * sigma / total
