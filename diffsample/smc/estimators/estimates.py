"""Expectations from weighted particles, with control variates and a standard error each.

With normalised weights W and controls c whose mean under the target is zero, the calibrated weights

    W_i (1 - (c_i - c_bar)' S^-1 c_bar),   c_bar = sum W c,   S = sum W (c - c_bar)(c - c_bar)',

still sum to one and give every control its mean of zero exactly. So one correction serves all functions: it is the
regression estimator of each. Controls cost nothing where the score is known (Stein's identity).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.smc.weights import log_mean


class Estimate(NamedTuple):
    """An estimate and its standard error, of one shape."""

    value: Array
    std_error: Array


def expectation(values: Array, log_w: Array, controls: Array | None = None) -> Estimate:
    """Self-normalised estimate sum_i W_i phi(x_i) of any number of functions, by calibrated weights where controls are.

    Bias O(1/N). The standard error is that of independent weighted draws, sqrt(sum_i W_i^2 r_i^2), r the residual of
    the regression on the controls. Particles that were resampled depend on each other: there, estimate in each group,
    and combine with `pooled`.

    Args:
        values: `[N, ...]`, phi at each particle.
        log_w: `[N]` log-weights, any constant added.
        controls: `[N, m]`, of mean zero under the target, m far below N; for example `stein_controls`.

    Raises:
        ValueError: shapes that do not belong together; as many controls as particles.

    Reference: Robert & Casella 2004, Monte Carlo Statistical Methods, section 4.4.2 (regression on control variates).

    >>> expectation(jnp.array([1.0, 3.0]), jnp.zeros(2)).value.tolist()
    2.0
    """
    if log_w.ndim != 1 or values.shape[:1] != log_w.shape:
        raise ValueError(f"values {values.shape} and log_w {log_w.shape} need one leading axis of particles; for "
                         f"groups use jax.vmap and `pooled`")  # fmt: skip
    flat = values.reshape(values.shape[0], -1)
    weights = jax.nn.softmax(log_w)
    if controls is None:
        value = weights @ flat
        residual = flat - value[None]
    else:
        value = calibrated_weights(log_w, controls) @ flat
        centred, _ = _centred(weights, controls)
        slope = _pseudo_inverse(_covariance(weights, centred)) @ (centred.T @ (weights[:, None] * flat))
        residual = flat - (weights @ flat)[None] - centred @ slope
    error = jnp.sqrt(weights**2 @ residual**2)
    return Estimate(value.reshape(values.shape[1:]), error.reshape(values.shape[1:]))


def calibrated_weights(log_w: Array, controls: Array) -> Array:
    """Normalised weights `[N]` corrected so that every control has weighted mean zero.

    They may be negative: for expectations only, never to resample with. Controls that depend linearly on others count
    once.

    Args, Raises: as for `expectation`.

    >>> calibrated_weights(jnp.zeros(3), jnp.array([[1.0], [2.0], [-1.0]])).sum().tolist()
    1.0
    """
    n, m = controls.shape if controls.ndim == 2 else (0, 0)
    if log_w.shape != (n,) or m >= n:
        raise ValueError(f"controls {controls.shape} must be [N, m] with m < N for log_w {log_w.shape}")
    weights = jax.nn.softmax(log_w)
    centred, mean = _centred(weights, controls)
    return weights * (1 - centred @ (_pseudo_inverse(_covariance(weights, centred)) @ mean))


def stein_controls(x: Array, score: Array, order: int = 1) -> Array:
    """Controls div u + u . score for u the polynomials of degree below `order`: zero mean under the target.

    Order 1 (u constant) gives the score itself, `[N, d]`; order 2 (u linear) adds delta_ij + x_i score_j,
    `[N, d + d^2]`. On a Gaussian target order 1 makes means exact, order 2 covariances too, from any weighted points.

    Args:
        x: `[N, ...]` particles, flattened to d.
        score: like x, gradient of the target's log-density; an unnormalised density is enough.
        order: 1 or 2.

    Raises:
        ValueError: another order; shapes that differ.

    Reference: Assaraf & Caffarel 1999 (Phys. Rev. Lett. 83, 4682); Mira, Solgi & Imparato 2013, arXiv 1012.2983.

    >>> stein_controls(jnp.ones((5, 2)), jnp.ones((5, 2)), order=2).shape
    (5, 6)
    """
    if x.shape != score.shape or x.ndim < 2:
        raise ValueError(f"x {x.shape} and score {score.shape} must be of one shape [N, ...]")
    if order not in (1, 2):
        raise ValueError(f"order={order} must be 1 or 2")
    x, score = x.reshape(x.shape[0], -1), score.reshape(x.shape[0], -1)
    if order == 1:
        return score
    linear = jnp.eye(x.shape[1], dtype=x.dtype)[None] + x[:, :, None] * score[:, None, :]
    return jnp.concatenate([score, linear.reshape(x.shape[0], -1)], axis=1)


def pooled(means: Array, log_z: Array) -> Estimate:
    """Independent groups combined: sum_g Z_g phi_g / sum_g Z_g, with the standard error from between the groups.

    Consistent in the number of groups for any number of particles in each, because Z_g phi_g and Z_g are unbiased.

    Args:
        means: `[G, ...]`, each group's own weighted mean. log_z: `[G]`, each group's log-normaliser.

    >>> pooled(jnp.array([1.0, 3.0]), jnp.zeros(2)).value.tolist()
    2.0
    """
    return expectation(means, log_z)


def normaliser(log_z: Array) -> Estimate:
    """log of the mean of exp(log_z) over independent groups `[G]`, with its standard error (delta method).

    exp of the value is unbiased; trust the error where it is below about 0.3.

    >>> normaliser(jnp.zeros(4)).value.tolist()
    0.0
    """
    value = log_mean(log_z)
    ratio = jnp.exp(log_z - value)
    return Estimate(value, jnp.std(ratio, ddof=1) / jnp.sqrt(jnp.asarray(log_z.shape[0], log_z.dtype)))


def chain_mean(values: Array, burn_in: int, batches: int = 16) -> Estimate:
    """Mean over a chain's sweeps after burn-in, with the standard error of batch means.

    Args:
        values: `[sweeps, ...]`. burn_in: sweeps left out. batches: of consecutive sweeps whose means are taken as
            independent; each should be longer than the chain's memory.

    Raises:
        ValueError: fewer sweeps left than batches.

    >>> chain_mean(jnp.arange(40.0) % 2, 8).value.tolist()
    0.5
    """
    left = values.shape[0] - burn_in
    if left < batches or burn_in < 0 or batches < 2:
        raise ValueError(f"{values.shape[0]} sweeps with burn_in={burn_in} leave {left}, fewer than batches={batches}")
    size = left // batches
    means = values[-size * batches :].reshape(batches, size, *values.shape[1:]).mean(axis=1)
    error = jnp.std(means, axis=0, ddof=1) / jnp.sqrt(jnp.asarray(batches, means.dtype))
    return Estimate(values[burn_in:].mean(axis=0), error)


def _centred(weights: Array, controls: Array) -> tuple[Array, Array]:
    mean = weights @ controls
    return controls - mean[None], mean


def _covariance(weights: Array, centred: Array) -> Array:
    return centred.T @ (weights[:, None] * centred)


def _pseudo_inverse(matrix: Array) -> Array:
    """Of a covariance; of its correlation matrix, so that the scale of a control does not decide its rank."""
    scale = jnp.sqrt(jnp.diag(matrix))
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    return jnp.linalg.pinv(matrix / (scale[:, None] * scale[None]), hermitian=True) / (scale[:, None] * scale[None])
