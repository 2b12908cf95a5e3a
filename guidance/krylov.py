"""Krylov solvers for a batch of small systems M v = r whose product with M passes through a network.

Every product costs a VJP, so its by-product is kept: `product(p)` returns (w, M p), where w is the image in sample
space that M p was measured from, and the solvers return the image of the solution without another product. The solvers
of `jax.scipy` spend up to three products more: on the first residual, the last, and the image.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax import Array

Product: TypeAlias = Callable[[Array], tuple[Array, Array]]  # p [B, *m] -> w [B, ...], M p [B, *m]
Solver: TypeAlias = Callable[[Product, Array, int], Array]  # product, r, iterations -> image of the solution


def minimal_residual(product: Product, r: Array, iterations: int) -> Array:
    """GMRES in its conjugate-residual form: the smallest |r - M v| over the Krylov space; M of any kind.

    Args:
        product: p [B, *m] -> (w [B, ...], M p [B, *m]), linear in p.
        r: [B, *m].
        iterations: products spent; exact once it reaches the dimension m.

    Returns: image of the solution, [B, ...].

    Reference: Eisenstat, Elman, Schultz 1983, SIAM J. Numer. Anal. 20, GCR.

    >>> minimal_residual(lambda p: (p, 2 * p), jnp.array([[4.0, 6.0]]), 1).tolist()
    [[2.0, 3.0]]
    """
    found, past = None, []
    for _ in range(iterations):
        w, u = product(r)
        for old_w, old_u in past:  # u orthogonal to all before it
            share = _inner(old_u, u)
            w, u = w - _like(share, w) * old_w, u - _like(share, u) * old_u
        size = jnp.sqrt(_inner(u, u))
        w, u = _divide(w, size), _divide(u, size)
        share = _inner(u, r)
        found = _like(share, w) * w + (0 if found is None else found)
        r = r - _like(share, u) * u
        past.append((w, u))
    assert found is not None
    return found


def conjugate_gradient(product: Product, r: Array, iterations: int) -> Array:
    """Conjugate gradients: for M symmetric and positive definite, which networks only approximate.

    Args, Returns: as for `minimal_residual`, with two vectors of memory however many iterations.

    Reference: Hestenes & Stiefel 1952, J. Res. Natl. Bur. Stand. 49.

    >>> conjugate_gradient(lambda p: (p, 2 * p), jnp.array([[4.0, 6.0]]), 1).tolist()
    [[2.0, 3.0]]
    """
    found, p = None, r
    for _ in range(iterations):
        w, u = product(p)
        before = _inner(r, r)
        step = _divide(before, _inner(p, u))
        found = _like(step, w) * w + (0 if found is None else found)
        r = r - _like(step, u) * u
        p = r + _like(_divide(_inner(r, r), before), p) * p
    assert found is not None
    return found


def _inner(a: Array, b: Array) -> Array:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)


def _like(scale: Array, x: Array) -> Array:
    return scale.reshape(scale.shape + (1,) * (x.ndim - 1))


def _divide(value: Array, by: Array) -> Array:
    """value / by per sample, 0 where by = 0: nothing is left to solve."""
    by = _like(by, value)
    return jnp.where(by != 0, value / jnp.where(by != 0, by, 1), 0)
