"""A sampler that jumps: discrete states with rates that depend on the state, weighted by `Growth`.

Steps of length dt by tau-leaping, each position on its own: it jumps with probability 1 - exp(-dt sum_v R(l <- v)) and
then takes token v with odds R(l <- v). First order in dt, in the law and in the weights; exact weights for masked
models are `token_weights`.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.discrete.categorical import invert
from diffsample.process import Level
from diffsample.sampler import fold
from diffsample.smc.functions import Plain, as_pytree
from diffsample.smc.potentials import Closing, Potential, Transition
from diffsample.smc.tokens.jump_rates import Jumps
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete


class JumpRow(NamedTuple):
    """One call: its time, the length of the move before it, and of that after it."""

    time: Any
    before: Any
    after: Any
    index: Any


class JumpState(NamedTuple):
    x: Array  # int32 [B, L]
    jumps: Jumps  # at x, times the length of the coming move
    time: Array
    index: Array


class JumpView(NamedTuple):
    """What potentials and observers may read."""

    x: Array  # int32 [B, L]
    level: Level  # t; alpha, sigma = 1 - t, t
    jumps: Jumps  # at x, times the length of the coming move
    memory: PyTree
    index: Array
    stage: Array
    fresh: Array
    cond: PyTree = None


@pytree
class JumpProcess:
    """The sampler; see `jump_process`."""

    rates: Any
    times: Any  # [n + 1]
    vocab: int = static()
    start: int | None = static(default=None)

    @property
    def dtype(self) -> Any:
        """Of the state."""
        return jnp.int32

    @property
    def nfe(self) -> int:
        """Calls of `rates` a sample."""
        return jnp.shape(self.times)[0] - 1

    @property
    def steps(self) -> JumpRow:
        times = jnp.asarray(self.times)
        lengths = times[:-1] - times[1:]
        before = jnp.concatenate([jnp.zeros(1, lengths.dtype), lengths[:-1]])
        return JumpRow(times[:-1], before, lengths, jnp.arange(len(lengths), dtype=jnp.int32))

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """All `start`, or uniform tokens."""
        if self.start is not None:
            return jnp.full(shape, self.start, jnp.int32)
        return jax.vmap(lambda key: jax.random.randint(key, shape[1:], 0, self.vocab, jnp.int32))(keys)

    def init(self, keys: Array, x: Array, cond: PyTree) -> JumpState:
        """Nothing to jump to."""
        shape = jax.eval_shape(self.rates, x, jnp.asarray(self.times)[0], cond)
        return JumpState(x, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape), jnp.zeros(()), jnp.int32(-1))

    def step(self, keys: Array, state: JumpState, step: JumpRow, cond: PyTree) -> JumpState:
        """Jump, then call the rates."""
        x = _jumped(keys, state)
        rates, growth = self.rates(x, step.time, cond)
        return JumpState(x, Jumps(rates * step.after, growth * step.after), step.time, step.index)

    def finish(self, keys: Array, state: JumpState, cond: PyTree) -> Array:
        """The last move."""
        return _jumped(keys, state)

    def view(self, state: JumpState) -> JumpView:
        level = Level(state.time, 1 - state.time, state.time)
        return JumpView(state.x, level, state.jumps, (), state.index, jnp.int32(0), jnp.ones((), bool))


@pytree
class Growth(Potential):
    """log G = g dt of each move; at the start log_start(x), the target's part that the prior lacks.

    >>> Growth().log_start is None
    True
    """

    log_start: Any = None

    def __post_init__(self) -> None:
        if inspect.isfunction(self.log_start):
            vars(self)["log_start"] = Plain(self.log_start)

    def start(self, view: JumpView) -> tuple[Array, tuple]:
        log_g = jnp.zeros_like(view.jumps.growth)
        return log_g if self.log_start is None else log_g + self.log_start(view.x), ()

    def __call__(self, transition: Transition, memory: tuple) -> tuple[Array, tuple]:
        return _growth(transition.before), memory

    def finish(self, closing: Closing, memory: tuple) -> Array:
        return _growth(closing.before)


def jump_process(
    rates: Callable[[Array, Array, PyTree], Jumps], times: Any, *, vocab: int, start: int | None = None
) -> JumpProcess:
    """The sampler of a jump process on token sequences, for `feynman_kac(process, Growth(), particles=K)`.

    Args:
        rates: function (x `[B, L]`, t, cond) -> `Jumps` with rates `[B, L, V]` to token v at position l, 0 to the
            present token; from `corrected_jumps`, `unmasking_jumps`, `tempered_unmasking_jumps`.
        times: falling times `[n + 1]`, n calls; leaves.
        vocab: V. start: token that all positions start from (a mask), or None for uniform ones.

    Raises:
        ValueError: times that do not fall.

    >>> from diffsample.smc.tokens.jump_rates import Jumps
    >>> def idle(x, t, cond):
    ...     return Jumps(jnp.zeros((*x.shape, 2)), jnp.zeros(x.shape[0]))
    >>> jump_process(idle, [1.0, 0.5, 0.0], vocab=2).nfe
    2
    """
    if is_concrete(times):
        grid = np.asarray(times, np.float64)
        if grid.ndim != 1 or len(grid) < 2 or (np.diff(grid) >= 0).any():
            raise ValueError(f"times must be at least two falling numbers, got {grid.tolist()}")
    return JumpProcess(as_pytree(rates), jnp.asarray(times, float), vocab, start)


def _growth(view: Any) -> Array:
    return view.jumps.growth


def _jumped(keys: Array, state: JumpState) -> Array:
    """Every position on its own: whether, then where to."""
    rates = state.jumps.rates
    total = jnp.sum(rates, axis=-1)

    def uniforms(stream: int) -> Array:
        own = fold(keys, stream)
        return jax.vmap(lambda key: jax.random.uniform(key, total.shape[1:], total.dtype))(own)

    jumps = uniforms(0) < -jnp.expm1(-total)
    return jnp.where(jumps, invert(rates, uniforms(1)).astype(state.x.dtype), state.x)


def neighbour_gains(
    log_reward: Callable[[Array], Array], x: Array, masked: Array, vocab: int, *, batch_size: int | None = None
) -> Array:
    """rho(x with v at l) - rho(x) for all masked l and all v, `[B, L, V]`, 0 at the other positions.

    L V rewards a state, `batch_size` sequences at a time.

    Args:
        log_reward: rho of sequences `[B, L]`, partly masked ones included, -> `[B]`.
        x: `[B, L]`. masked: `[B, L]`. vocab: V.

    >>> x = jnp.array([[2, 0]])
    >>> neighbour_gains(lambda x: x.sum(axis=1) * 1.0, x, x == 2, 2).tolist()
    [[[-2.0, -1.0], [0.0, 0.0]]]
    """
    length = x.shape[1]
    place, token = jnp.meshgrid(jnp.arange(length), jnp.arange(vocab, dtype=x.dtype), indexing="ij")

    def moved(at: tuple[Array, Array]) -> Array:
        return log_reward(jnp.where(jnp.arange(length)[None] == at[0], at[1], x))

    gains = jax.lax.map(moved, (place.reshape(-1), token.reshape(-1)), batch_size=batch_size)
    gains = jnp.moveaxis(gains, 0, 1).reshape(x.shape[0], length, vocab) - log_reward(x)[:, None, None]
    return jnp.where(masked[..., None], gains, 0.0)
