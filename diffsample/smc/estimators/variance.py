"""The error of a particle run from that one run: particles of one ancestor (an eve, or some rows back) are one draw.

Where a run has many groups of one target, the spread between groups (`normaliser`, `pooled`) is the plainer estimate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.smc.particles import Particles


class Variances(NamedTuple):
    """Estimates of each group, and from how many families: with one survivor an estimate means nothing."""

    log_z: Array  # [G] of Var(exp log_z) / Z^2, about Var(log_z)
    mean: Array  # [G] of the variance of the weighted mean
    families: Array  # [G] int32, distinct ancestors that the estimates compare


def variances(particles: Particles, values: Array, *, lag: int | None = None) -> Variances:
    """Lee-Whiteley and Chan-Lai estimates of the variances of exp(log_z) and of a weighted mean.

    With families e of equal ancestor, s_e = sum of W in e, and g generations (1 + resamplings):

        V_Z = 1 - (K / (K - 1))^g (1 - sum_e s_e^2),
        V_mean = (K / (K - 1))^g sum_e (sum_{i in e} W_i (phi_i - mean))^2.

    V_Z Z^2 is unbiased for Var(exp log_z) under multinomial resampling at every row; with other resamplers and policies
    both are approximations, as a rule too large.

    Args:
        particles: the result of a run.
        values: [G*K], phi of each particle.
        lag: ancestors `lag` resamplings back instead of the first, where few eves survive; needs genealogy=True. Biased
            down by what older ancestors share. None: the eves.

    Raises:
        ValueError: values of another shape; a lag below 1, or without a genealogy.

    Reference: Lee, Whiteley 2018, arXiv 1509.00394, eq. 3; Chan, Lai 2013, arXiv 1312.0379; Olsson, Douc 2019,
    arXiv 1701.01001 (lag).

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 4))
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    >>> fk = ds.smc.feynman_kac(sampler, lambda before, after: after.x0, particles=8)
    >>> out = ds.sample(jax.random.key(0), fk, (8,))
    >>> variances(out, out.x).families.tolist()
    [8]
    """
    groups, k = particles.log_w.shape
    if values.shape != (groups * k,):
        raise ValueError(f"values must be one number a particle, [{groups * k}], got shape {values.shape}")
    d = particles.diagnostics
    family = d.eve if lag is None else _ancestors_back(particles, lag)
    generations = 1 + d.resampled.sum(axis=1) if lag is None else 1 + jnp.minimum(d.resampled.sum(axis=1), lag)
    w, phi = particles.weights, values.reshape(groups, k)
    shares = _summed(w, family)
    parts = _summed(w * (phi - (w * phi).sum(axis=1, keepdims=True)), family)
    factor = (k / (k - 1)) ** generations.astype(w.dtype)
    families = (_summed(jnp.ones_like(w), family) > 0).sum(axis=1, dtype=jnp.int32)
    return Variances(1 - factor * (1 - (shares**2).sum(axis=1)), factor * (parts**2).sum(axis=1), families)


def _summed(w: Array, family: Array) -> Array:
    """Sums of w [G, K] over equal ancestors, one entry for every possible ancestor."""
    return jax.vmap(lambda w, family: jnp.zeros_like(w).at[family].add(w))(w, family)


def _ancestors_back(particles: Particles, lag: int) -> Array:
    """The ancestor of each particle `lag` resamplings before the end."""
    d = particles.diagnostics
    if lag < 1 or d.ancestors is None:
        raise ValueError(f"lag={lag} must be at least 1 and needs feynman_kac(..., genealogy=True)")

    def back(carry: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        family, left = carry
        ancestors, resampled = row
        older = jnp.take_along_axis(ancestors, family, axis=1)
        return (jnp.where((left > 0)[:, None], older, family), left - resampled), None

    groups, k = particles.log_w.shape
    own = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None], (groups, k))
    rows = (jnp.moveaxis(d.ancestors, 1, 0), d.resampled.T.astype(jnp.int32))
    return jax.lax.scan(back, (own, jnp.full(groups, lag, jnp.int32)), rows, reverse=True)[0][0]
