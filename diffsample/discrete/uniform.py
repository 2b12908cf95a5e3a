"""Uniform-noise discrete diffusion: a token keeps its value with probability alpha_t and is otherwise uniform.

The reverse step from t to s given a law x of the clean token is, with z the one-hot of x_t and V tokens,
[V a_t x z + (a_t / a_s - a_t) z + (a_s - a_t) x + (1 - a_t / a_s) (1 - a_s) / V] / [V a_t <x, z> + 1 - a_t].
It is exact when x is the law of the clean token given the *other* noisy tokens; see `posterior_step`.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.categorical import inverse_cdf
from diffsample.discrete.draws import WHAT, Categorical, Draws, as_draws
from diffsample.discrete.masked_sampler import TokenSampler, first_bad
from diffsample.discrete.model import MaskedModel, broken, mend
from diffsample.discrete.proposals import as_leaves
from diffsample.discrete.schedules import check_levels
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

PyTree: TypeAlias = Any


class Noisy(NamedTuple):
    """What the loop carries."""

    x: Array  # int32 [B, L]
    log_p: Array  # [B, L, V], the network's laws at x
    calls: Array  # int32 [B]
    fault: Array  # int32 [B]

    def future(self) -> PyTree:
        """What decides the law of what follows."""
        return (self.x,)


class NoisyOut(NamedTuple):
    """The result of a run."""

    x: Array  # int32 [B, L]
    calls: Array  # int32 [B]
    fault: Array  # int32 [B], first position where the model gave no law, -1 if none


class NoisyView(NamedTuple):
    """What observers may read after a row."""

    x: Array
    log_p: Array
    calls: Array
    fresh: Array
    cond: PyTree = None  # the run's condition, for potentials; recorders see None


@pytree
class UniformAncestral(TokenSampler):
    """See `uniform_ancestral`."""

    model: MaskedModel
    step_law: Any
    numbers: tuple[Array, ...]  # [N + 1] each: what the step law is given of each row; row 0 only calls
    clock: Array  # [N + 1] noise probability after each row
    categorical: Categorical = static(default=inverse_cdf)

    @property
    def steps(self) -> PyTree:
        return self.numbers, self.clock, jnp.arange(self.clock.shape[0])

    @property
    def draws(self) -> Array:
        """Which rows draw: all but row 0, which only calls."""
        return self.steps[2] > 0

    @property
    def nfe(self) -> int:
        """One call a step."""
        return (self.clock.shape[0] - 1) * self.model.evaluations

    @property
    def done(self) -> None:
        """All rows are run."""
        return None

    def settled(self, state: Noisy) -> bool:
        """Any row may change any token."""
        return False

    def prior(self, keys: Array | Draws, shape: tuple[int, ...], dtype: Any) -> Array:
        """Uniform tokens."""
        law = jnp.zeros((*shape, self.model.vocab))
        return as_draws(keys, self.categorical).tokens(law, jnp.ones(shape, bool))

    def admit(self, shape: tuple[int, ...], x: Array | None) -> None:
        """Raise before a run of a model whose mask is a token, from masks, and as every sampler over tokens."""
        super().admit(shape, x)
        if self.model.mask_id < self.model.vocab:
            raise ValueError(f"uniform noise knows no mask, and mask_id={self.model.mask_id} is one of the tokens 0 .. "
                             f"{self.model.vocab - 1}: declare the model with mask_id=vocab")  # fmt: skip
        if x is not None and is_concrete(x) and bool(jnp.any(x == self.model.mask_id)):
            raise ValueError(f"x holds {self.model.mask_id}, the mask's id: uniform noise starts from tokens 0 .. "
                             f"{self.model.vocab - 1}, or from a shape")  # fmt: skip

    def init(self, keys: Array | Draws, x: Array, cond: PyTree) -> Noisy:
        """Before the first call."""
        zero = jnp.zeros(x.shape[0], jnp.int32)
        shape = jax.eval_shape(self._laws, x, jnp.ones(x.shape[0]), cond)
        return Noisy(x, jnp.zeros(shape.shape, shape.dtype), zero, zero - 1)

    def step(self, keys: Array | Draws, state: Noisy, step: PyTree, cond: PyTree) -> Noisy:
        """Every token from the reverse step, then a call at the new noise."""
        numbers, noise, number = step
        law = self.step_law(jnp.exp(mend(state.log_p)), state.x, *numbers)
        valid = jnp.broadcast_to(number > 0, state.x.shape)
        drawn = as_draws(keys, self.categorical).at(WHAT).tokens(jnp.log(law), valid)
        x = jnp.where(number > 0, drawn.astype(state.x.dtype), state.x)
        more = noise > 0  # a clean sequence needs no call
        clock = jnp.full(x.shape[0], noise)
        log_p = jax.lax.cond(more, lambda: self._laws(x, clock, cond), lambda: state.log_p)
        fault = first_bad(broken(log_p) & more, state.fault)
        calls = state.calls + more * jnp.int32(self.model.evaluations)
        return Noisy(x, log_p, calls, fault)

    def finish(self, keys: Array | Draws, state: Noisy, cond: PyTree) -> NoisyOut:
        """The tokens."""
        return NoisyOut(state.x, state.calls, state.fault)

    def view(self, state: Noisy) -> NoisyView:
        return NoisyView(state.x, state.log_p, state.calls, jnp.ones((), bool))

    def _laws(self, x: Array, clock: Array, cond: PyTree) -> Array:
        positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape)
        return self.model.log_probs(self.model(x, clock, cond), positions)


def leave_one_out_step(law: Array, x: Array, alpha_t: Array, alpha_s: Array) -> Array:
    """UDLM's reverse step [B, L, V] from a law of the clean token; exact if the law does not read the token itself.

    Reference: Schiff et al. 2024, arXiv 2412.10193, eq. 10.

    >>> leave_one_out_step(jnp.array([[[0.5, 0.5]]]), jnp.array([[0]]), jnp.float32(0.5), jnp.float32(1.0)).tolist()
    [[[0.75, 0.25]]]
    """
    vocab = law.shape[-1]
    z = jax.nn.one_hot(x, vocab, dtype=law.dtype)
    stay = alpha_t / jnp.where(alpha_s > 0, alpha_s, 1.0)
    spread = (1 - stay) * (1 - alpha_s) / vocab
    top = vocab * alpha_t * law * z + (stay - alpha_t) * z + (alpha_s - alpha_t) * law + spread
    return top / jnp.sum(top, axis=-1, keepdims=True)


def posterior_step(law: Array, x: Array, alpha_t: Array, alpha_s: Array) -> Array:
    """The reverse step [B, L, V] from the posterior p(x0_l | all noisy tokens): sum over x0 of p(x0) q(x_s | x_t, x0).
    Exact.

    >>> posterior_step(jnp.array([[[0.75, 0.25]]]), jnp.array([[0]]), jnp.float32(0.5), jnp.float32(1.0)).tolist()
    [[[0.75, 0.25]]]
    """
    vocab = law.shape[-1]
    z = jax.nn.one_hot(x, vocab, dtype=law.dtype)
    likelihood = alpha_t * z + (1 - alpha_t) / vocab  # q(x_t | x0)
    other = law / jnp.maximum(likelihood, jnp.finfo(law.dtype).tiny)
    return leave_one_out_step(other / jnp.sum(other, axis=-1, keepdims=True), x, alpha_t, alpha_s)


def uniform_ancestral(
    model: MaskedModel, levels: Any, *, step_law: Any = leave_one_out_step, categorical: Categorical = inverse_cdf
) -> UniformAncestral:
    """Ancestral sampling of a uniform-noise model (UDLM, D3PM-uniform), one call a step, positions drawn independently.

    Args:
        model: a `MaskedModel` whose mask never occurs (mask_id = vocab); its time is that of 1 - alpha.
        levels: [N + 1] falling noise probabilities 1 - alpha from 1 to 0, `discrete.levels(schedule, N)`.
        step_law: `leave_one_out_step` where the network's law is trained inside the reverse step (UDLM),
            `posterior_step` where it predicts the clean token from all noisy ones. For concrete scores (SEDD) there are
            `uniform_tweedie` and `uniform_euler`.
        categorical: how tokens are drawn.

    Raises:
        ValueError: levels that do not fall to 0.

    Reference: Austin et al. 2021, arXiv 2107.03006; Schiff et al. 2024, arXiv 2412.10193.

    >>> from diffsample.discrete import from_logits
    >>> import diffsample as ds
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> ds.sample(jax.random.key(0), uniform_ancestral(model, [1.0, 0.5, 0.0]), (2, 4)).calls.tolist()
    [2, 2]
    """
    alpha = 1 - check_levels(levels)
    before, after = np.append(alpha[0], alpha[:-1]), alpha
    if (after[1:] <= 0).any():
        raise ValueError(f"levels must fall below 1 after the first, got {np.asarray(levels).tolist()}")
    alphas = jnp.asarray(before, float), jnp.asarray(after, float)
    return UniformAncestral(model, as_leaves(step_law), alphas, jnp.asarray(1 - alpha, float), categorical)
