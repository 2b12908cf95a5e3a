"""Models of paths: what conditional SMC, PaRIS and particle Gibbs need to know of a Feynman-Kac model.

The target is a law of whole paths, Q(x_0:n) = M_0(x_0) G_0(x_0) prod_k M_k(x_k | x_k-1) G_k(x_k-1, x_k) / Z. A method
here takes one cloud of N particles; `jax.vmap` over the key and the path runs many.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree, expand
from diffsample.sampler import normal
from diffsample.struct import pytree, static


class PathModel(Protocol):
    """Moves M_k and potentials G_k of paths x_0, ..., x_n; every method takes and returns the particle axis first.

    What is computed from x once and used by the potential, the next move and the densities (a network call) belongs
    into `look`; the other methods see what it returned.
    """

    @property
    def rows(self) -> PyTree:
        """Data of each k = 0, ..., n: leaves [n + 1, ...]."""
        ...

    def draw(self, keys: Array, row: PyTree) -> PyTree:
        """x_0 ~ M_0, one from each key."""
        ...

    def look(self, x: PyTree, row: PyTree) -> PyTree:
        """What the model sees at x, computed once; x itself where nothing is worth keeping."""
        return x

    def move(self, keys: Array, before: PyTree, row: PyTree) -> PyTree:
        """x_k ~ M_k(. | x_k-1), from what was seen at x_k-1."""
        ...

    def log_transition(self, before: PyTree, x: PyTree, row: PyTree) -> Array:
        """log M_k(x_k | x_k-1) for pairs, [N]; constants that do not depend on x_k-1 may be left out."""
        ...

    def log_start(self, after: PyTree, row: PyTree) -> Array:
        """log G_0(x_0), [N]."""
        ...

    def log_potential(self, before: PyTree, after: PyTree, row: PyTree) -> Array:
        """log G_k(x_k-1, x_k) for pairs, [N]."""
        ...


def first_row(rows: PyTree) -> PyTree:
    """Row 0."""
    return jax.tree.map(lambda leaf: leaf[0], rows)


def later_rows(rows: PyTree) -> PyTree:
    """Rows 1, ..., n."""
    return jax.tree.map(lambda leaf: leaf[1:], rows)


def take(tree: PyTree, index: Array) -> PyTree:
    """Particles of the given numbers."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def spread(tree: PyTree, n: int) -> PyTree:
    """One particle repeated n times, on a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *jnp.shape(leaf))), tree)


def log_link(model: PathModel, before: PyTree, x: PyTree, after: PyTree, row: PyTree) -> Array:
    """log M_k(x | x_k-1^j) G_k(x_k-1^j, x) of one successor x for every particle j before it, [N]."""
    n = jax.tree.leaves(before)[0].shape[0]
    density = model.log_transition(before, spread(x, n), row)
    return density + model.log_potential(before, spread(after, n), row)


def gaussian_log_ratio(x: Array, mean: Array, std: Any) -> Array:
    """-|x - mean|^2 / (2 std^2), [N]: the part of a Gaussian log-density that depends on the mean."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scaled = (x - mean) / expand(std, x)
    return -0.5 * jnp.sum(scaled**2, axis=range(1, x.ndim))


@pytree
class GaussianModel(PathModel):
    """x_0 ~ N(mean, std^2), x_k = drift(x_k-1, row) + noise(row) z: a state-space model with any potential.

    Args:
        mean: `[...]`, the mean of x_0; std: its standard deviation, a scalar.
        drift: function (x `[N, ...]`, row) -> `[N, ...]`.
        noise: `[n + 1]` standard deviations of the moves, or a scalar; entry 0 is not read.
        log_g: function (x `[N, ...]`, row) -> `[N]`, the log-potential of every k, for example log p(y_k | x_k).
        data: `[n + 1, ...]` leaves that the two functions read as row.

    >>> walk = GaussianModel(jnp.zeros(2), 1.0, lambda x, y: x, 0.5, lambda x, y: -jnp.sum((x - y)**2, 1), jnp.ones(4))
    >>> walk.rows[1].shape
    (4,)
    """

    mean: Array
    std: Any
    drift: Callable[[Array, PyTree], Array] = static()
    noise: Any
    log_g: Callable[[Array, PyTree], Array] = static()
    data: PyTree

    @property
    def rows(self) -> tuple[PyTree, Array]:
        n = jax.tree.leaves(self.data)[0].shape[0]
        return self.data, jnp.broadcast_to(jnp.asarray(self.noise, self.mean.dtype), (n,))

    def draw(self, keys: Array, row: PyTree) -> Array:
        shape = (keys.shape[0], *self.mean.shape)
        return self.mean[None] + self.std * normal(keys, shape, self.mean.dtype)

    def move(self, keys: Array, before: Array, row: PyTree) -> Array:
        return self.drift(before, row[0]) + row[1] * normal(keys, before.shape, before.dtype)

    def log_transition(self, before: Array, x: Array, row: PyTree) -> Array:
        return gaussian_log_ratio(x, self.drift(before, row[0]), row[1])

    def log_start(self, after: Array, row: PyTree) -> Array:
        return self.log_g(after, row[0])

    def log_potential(self, before: Array, after: Array, row: PyTree) -> Array:
        return self.log_g(after, row[0])
