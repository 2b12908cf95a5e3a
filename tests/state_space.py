"""A linear-Gaussian state-space model run as a sampler: the bootstrap filter whose evidence the Kalman filter knows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffsample as ds
from diffsample import smc
from diffsample.struct import pytree


class Walk(NamedTuple):
    x: jax.Array
    twin: jax.Array  # a copy that only stays equal if it is gathered with x
    level: ds.Level
    index: jax.Array


@pytree
class Bootstrap:
    """A linear-Gaussian state-space model as a sampler: x_0 ~ N(0, 1), x_t = 0.9 x_{t-1} + 0.7 z."""

    observed: Any
    nfe: int = 0

    @property
    def steps(self) -> Any:
        return jnp.arange(len(self.observed))

    def prior(self, keys: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.vmap(jax.random.normal)(keys)

    def init(self, keys: Any, x: Any, cond: Any) -> Walk:
        return Walk(x, x, ds.Level(jnp.zeros(()), jnp.ones(()), jnp.zeros(())), jnp.zeros((), int))

    def step(self, keys: Any, state: Walk, step: Any, cond: Any) -> Walk:
        moved = 0.9 * state.x + 0.7 * jax.vmap(jax.random.normal)(keys)
        x = jnp.where(step == 0, state.x, moved)
        return state._replace(x=x, twin=jnp.where(step == 0, state.twin, state.twin + (moved - state.x)), index=step)

    def finish(self, keys: Any, state: Walk, cond: Any) -> Any:
        return jnp.stack([state.x, state.twin], axis=1)

    def view(self, state: Walk) -> ds.View:
        pair = ds.Prediction(state.x, state.x)
        zero = jnp.zeros(())
        return ds.View(state.x, state.level, pair, (), zero, zero, state.index, state.index, jnp.ones((), bool))


@pytree
class Observation(smc.Potential):
    """y_t = x_t + 0.5 noise."""

    observed: Any

    def log_g(self, view: ds.View) -> Any:
        y = self.observed[view.index]
        return -0.5 * ((view.x - y) / 0.5) ** 2 - 0.5 * np.log(2 * np.pi * 0.25)

    def start(self, view: ds.View) -> tuple[Any, Any]:
        return self.log_g(view), ()

    def __call__(self, transition: smc.Transition, memory: Any) -> tuple[Any, Any]:
        return self.log_g(transition.after), memory


OBSERVED = jnp.array([0.5, 1.2, -0.3, -1.0, 0.4, 2.0])
LOG_EVIDENCE = -9.8475334  # Kalman filter, specs/smc.md 9.4
