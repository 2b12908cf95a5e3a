"""FK steering: particles weighed by a reward on the predicted clean sample, exact in the end by a last correction.

Rewards at the rows chosen build factors log G = scale * (difference, running maximum, running sum, ...); the closing
update multiplies exp(scale r(x)) / (product of all G so far), so that the target is p(x) exp(scale r(x)) whatever the
factors were. Rewards need no gradient, and may run on the host.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import View
from diffsample.smc.functions import as_pytree
from diffsample.smc.potentials import Closing, Potential, Transition, zeros
from diffsample.smc.rewards.values import Reward, Value, posterior_mean
from diffsample.struct import pytree


class Steered(NamedTuple):
    """Memory of a steering potential."""

    running: Array  # [B] the last, largest or summed reward
    log_g: Array  # [B] log of the product of all factors so far


@pytree
class Steering(Potential):
    """A reward as a potential; see `fk_difference`, `fk_max`, `fk_sum`, `fk_immediate`."""

    reward: Any
    value: Any  # (view, condition) -> [B], the reward's guess at noisy states
    scale: Any
    rule: Any  # (running, reward) -> (running, exponent)
    begin: Any  # running before the first reward
    rows: Any  # (row) -> bool, or None for all

    def start(self, view: View) -> tuple[Array, Steered]:
        zero = zeros(view)
        return self._weigh(view, Steered(zero + self.begin, zero))

    def __call__(self, transition: Transition, memory: Steered) -> tuple[Array, Steered]:
        return self._weigh(transition.after, memory)

    def finish(self, closing: Closing, memory: Steered) -> Array:
        reward = _checked(self.reward(closing.x, closing.before.cond), closing.x)
        return jnp.asarray(self.scale, reward.dtype) * reward - memory.log_g

    def _weigh(self, view: View, memory: Steered) -> tuple[Array, Steered]:
        def score() -> tuple[Array, Steered]:
            value = _checked(self.value(view, view.cond), view.x)
            # a path of weight 0 stays so, whatever its sample is worth: no last correction could undo it
            running, exponent = self.rule(memory.running, jnp.where(value == -jnp.inf, jnp.nan, value))
            log_g = jnp.asarray(self.scale, exponent.dtype) * exponent
            return log_g, Steered(running, memory.log_g + log_g)

        if self.rows is None:
            return score()
        return jax.lax.cond(self.rows(view.index), score, lambda: (jnp.zeros_like(memory.log_g), memory))


def fk_difference(
    reward: Reward, scale: Any = 1.0, *, rows: Callable[[Array], Array] | None = None, value: Value | None = None
) -> Steering:
    """FK steering by differences: log G = scale (r_t - r_before), r_t the reward of the predicted clean sample.

    The factors telescope: at each row particles stand for p_t exp(scale r_t). The default of the four, with the least
    variance. No network call beyond the sampler's, one reward a scored row and one for the result.

    Args:
        reward: (x0 [B, ...], condition) -> [B]; `host` makes one of a NumPy function. No gradient is taken. -inf, a
            constraint, is for results only; at a noisy state it is reported as NaN: give a `value` that is finite.
        scale: lambda, the inverse temperature of the tilt; a leaf.
        rows: function of the row's number (int32) -> bool, which rows are scored; None: all. Rewards of other rows are
            not computed. `smc.window` and `smc.every` as policy restrict resampling instead.
        value: (view, condition) -> [B], what stands for the reward at noisy states: None is `posterior_mean(reward)`,
            `sampled_value` averages over draws; anything keeps the target.

    Reference: Singhal et al. 2025, arXiv 2501.06848, section 3.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 20), large=True)
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    >>> up = ds.smc.feynman_kac(sampler, fk_difference(lambda x0, cond: x0), particles=256)
    >>> out = ds.sample(jax.random.key(0), up, (256,))
    >>> bool(abs(out.mean(out.x)[0] - 1) < 0.2)
    True
    """
    return _steering(reward, value, scale, by_difference, 0.0, rows)


def fk_max(
    reward: Reward, scale: Any = 1.0, *, rows: Callable[[Array], Array] | None = None, value: Value | None = None
) -> Steering:
    """FK steering by the running maximum: log G = scale max over the rows scored so far of r.

    Args, Reference: as for `fk_difference`.

    >>> fk_max(lambda x0, cond: x0, 10.0).scale
    10.0
    """
    return _steering(reward, value, scale, by_maximum, -np.inf, rows)


def fk_sum(
    reward: Reward, scale: Any = 1.0, *, rows: Callable[[Array], Array] | None = None, value: Value | None = None
) -> Steering:
    """FK steering by the running sum: log G = scale sum over the rows scored so far of r. Its variance explodes.

    Args, Reference: as for `fk_difference`.

    >>> fk_sum(lambda x0, cond: x0, 10.0).scale
    10.0
    """
    return _steering(reward, value, scale, by_sum, 0.0, rows)


def fk_immediate(
    reward: Reward, scale: Any = 1.0, *, rows: Callable[[Array], Array] | None = None, value: Value | None = None
) -> Steering:
    """FK steering by each row's own reward: log G = scale r_t.

    Args, Reference: as for `fk_difference`.

    >>> fk_immediate(lambda x0, cond: x0, 10.0).scale
    10.0
    """
    return _steering(reward, value, scale, by_itself, 0.0, rows)


@pytree
class Host:
    """A NumPy function called from the compiled program; see `host`."""

    function: Any

    def __call__(self, x0: Array, cond: PyTree) -> Array:
        shape = jax.ShapeDtypeStruct(x0.shape[:1], jnp.promote_types(x0.dtype, jnp.float32))

        def run(x0: Any, cond: Any) -> np.ndarray:
            return np.asarray(self.function(np.asarray(x0), jax.tree.map(np.asarray, cond)), shape.dtype)

        return jax.pure_callback(run, shape, x0, cond, vmap_method="sequential")


def host(function: Callable[[np.ndarray, PyTree], np.ndarray]) -> Host:
    """A reward that runs on the host: any NumPy, PyTorch or web function, by `jax.pure_callback`. It has no gradient.

    Args:
        function: (x0 [B, ...], condition), both NumPy -> [B]. It must depend on its arguments only.

    >>> import jax.numpy as jnp, numpy as np
    >>> host(lambda x0, cond: np.round(x0))(jnp.array([0.4, 0.6]), None).tolist()
    [0.0, 1.0]
    """
    if not callable(function):
        raise TypeError(f"host needs a function (x0, condition) -> rewards, got {function!r}")
    return Host(as_pytree(function))


def by_difference(running: Array, reward: Array) -> tuple[Array, Array]:
    """(the last reward, its gain over the one before)."""
    return reward, reward - running


def by_maximum(running: Array, reward: Array) -> tuple[Array, Array]:
    """(the largest reward, itself)."""
    largest = jnp.maximum(running, reward)
    return largest, largest


def by_sum(running: Array, reward: Array) -> tuple[Array, Array]:
    """(the sum of rewards, itself)."""
    return running + reward, running + reward


def by_itself(running: Array, reward: Array) -> tuple[Array, Array]:
    """(the last reward, itself)."""
    return reward, reward


def _steering(reward: Reward, value: Value | None, scale: Any, rule: Any, begin: float, rows: Any) -> Steering:
    if not callable(reward):
        raise TypeError(f"reward must be a function (x0, condition) -> [batch], got {reward!r}")
    at_noise = posterior_mean(reward) if value is None else as_pytree(value)
    chosen = None if rows is None else as_pytree(rows)
    return Steering(as_pytree(reward), at_noise, scale, as_pytree(rule), begin, chosen)


def _checked(reward: Array, x: Array) -> Array:
    """The reward as [B] in float32 at least."""
    if jnp.shape(reward) != x.shape[:1]:
        raise ValueError(f"the reward has shape {jnp.shape(reward)}; it must be one number a sample, {x.shape[:1]}")
    return jnp.asarray(reward, jnp.promote_types(x.dtype, jnp.float32))
