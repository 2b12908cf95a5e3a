"""The sampler protocol: init, then n times step (update, then call), then finish.

After every step the state holds x_t and the prediction at x_t, so particle weights, rewards, recorders and plots need
no network call of their own, and n rows are n calls.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Prediction, PyTree, expand
from diffsample.process import Level


class View(NamedTuple):
    """What observers, potentials and plots may read after a step."""

    x: Array  # [B, ...] the state at which the network was called
    level: Level  # its noise level; fields are scalars, or [B]
    prediction: Prediction  # x0, eps at x
    memory: PyTree  # the denoiser's state
    gain: Array  # the coming move is x_next = ... + gain x0 + std z; scalar or [B]
    std: Array
    index: Array  # int32, number of the step
    stage: Array  # int32, number of the call inside the step
    fresh: Array  # bool, False on rows of padding, where nothing happened
    cond: PyTree = None  # the run's condition, for potentials; recorders see None

    @property
    def x0(self) -> Array:
        """Predicted clean sample."""
        return self.prediction.x0

    @property
    def eps(self) -> Array:
        """Predicted unit noise."""
        return self.prediction.eps

    @property
    def v(self) -> Array:
        """alpha eps - sigma x0."""
        return expand(self.level.alpha, self.x) * self.eps - expand(self.level.sigma, self.x) * self.x0

    @property
    def velocity(self) -> Array:
        """eps - x0."""
        return self.eps - self.x0

    @property
    def score(self) -> Array:
        """-eps / sigma."""
        return -self.eps / expand(self.level.sigma, self.x)


def with_cond(view: Any, cond: PyTree) -> Any:
    """A view that also shows the run's condition, where it has a field for it."""
    return view._replace(cond=cond) if "cond" in view._fields else view


class Kernel(NamedTuple):
    """The Gaussian law N(mean, std^2 I) of a state that is about to be drawn."""

    mean: Array  # [B, ...]
    std: Array  # scalar or [B]


class Sampler(Protocol):
    """Anything that `sample` can run. Batch axis first in every state leaf that belongs to a sample.

    A sampler may also have `kernel(state, step) -> Kernel`, the law of the x of the coming row (step=None: of what
    `finish` returns); `draws`, [n] bool, False on rows whose move draws no noise; `admit(shape, x)`, which raises
    before a run from initial states that are not valid (x None: from its own prior); and `verify(out)`, which raises
    where the result of a run is not valid; `done(state) -> bool`, which ends the loop before its last row; `dtype`, of
    states that are not floats. `finish` may return a NamedTuple whose field `x` holds the samples.
    """

    @property
    def steps(self) -> PyTree:
        """Data of each row, leading axis n, scanned over."""
        ...

    @property
    def nfe(self) -> int:
        """Network evaluations per sample, known before running."""
        ...

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Initial states [B, ...] from one key a sample."""
        ...

    def init(self, keys: Array, x: Array, cond: PyTree) -> PyTree:
        """State before the first row; no network call."""
        ...

    def step(self, keys: Array, state: PyTree, step: PyTree, cond: PyTree) -> PyTree:
        """Update, then call: the state ends on a fresh prediction. `keys` are [B] and new at every row."""
        ...

    def finish(self, keys: Array, state: PyTree, cond: PyTree) -> Any:
        """The closing update, without a call: samples [B, ...], or a NamedTuple with samples `x`."""
        ...

    def view(self, state: PyTree) -> Any:
        """A `View`, or another NamedTuple with at least `x` and `fresh`, where states are not Gaussian."""
        ...


def normal(keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normals [B, ...], row i from keys[i] alone; drawn flat, which compiles and runs several times faster."""
    size = math.prod(shape[1:])
    return jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys).reshape(shape)


def fold(keys: Array, data: Any) -> Array:
    """Each key folded with the same number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, jnp.uint32(data))


def sample_keys(key: Array, first: Any, n: int) -> Array:
    """The key of every sample, fold_in(key, first + i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.uint32(first) + jnp.arange(n, dtype=jnp.uint32))
