"""Training of marginalization models: self-consistency with conditionals, an energy's law, and the chain that feeds it.

A marginal network log p(x_S) and a conditional one c(x_l | x_S) agree where log p(x_S with l) = log p(x_S) + log
c(x_l | x_S) for every S and l. From data, train the conditionals by `any_order_loss` and the marginals by
`consistency_loss`; from an energy, add `energy_loss` on samples of the model, which `gibbs_chain` keeps up to date.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.decoder import Corrector, Place
from diffsample.discrete.draws import FIX, Draws, draws_of
from diffsample.discrete.losses import check_clean
from diffsample.discrete.marginals import MarginalModel
from diffsample.discrete.model import Laws, MaskedModel

PyTree: TypeAlias = Any

ORDER, SIZE = 0, 1  # streams


def consistency_loss(
    key: Array | Draws,
    marginal: MarginalModel,
    conditional: MaskedModel,
    x: Array,
    cond: PyTree = None,
    *,
    log_z: Any = 0.0,
) -> Array:
    """L residual^2 + (log p(nothing) - log_z)^2 at one random order and length a sequence, [B].

    The residual is log p(x_S with l) - log p(x_S) - log c(x_l | x_S), S the first d - 1 positions of a random order, l
    the next, d uniform on 1 .. L; its square summed over one order, in expectation. Two marginal rows and one call of
    the conditionals. Differentiate the mean in the weights of both.

    Args:
        key: typed key. marginal, conditional: the two networks, which may share weights.
        x: int32 `[B, L]` clean: data, samples of the model, or both.
        log_z: log p(nothing): 0 of likelihood training, a parameter of energy training; None leaves the constant free.

    Raises:
        ValueError: tokens out of range, or masks, named.

    Reference: Liu et al. 2023, arXiv 2310.12920, section 4.

    >>> import diffsample.discrete as discrete
    >>> marginal = MarginalModel(lambda p, x, cond: -p * jnp.sum(x < 2, axis=1), jnp.log(2.0), 2, 2)
    >>> conditional = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 2)), (), 2, 2)
    >>> consistency_loss(jax.random.key(0), marginal, conditional, jnp.array([[0, 1, 1]])).round(6).tolist()
    [0.0]
    """
    check_clean(conditional, x)
    source = draws_of(key, len(x))
    length = x.shape[1]
    ranks = source.at(ORDER).ranks(jnp.zeros(x.shape))
    even = jnp.full((len(x), 1, length), -jnp.log(float(length)))
    last = source.at(SIZE).tokens(even, jnp.ones((len(x), 1), bool))  # d - 1
    at = jnp.argmax(ranks == last, axis=1).astype(jnp.int32)
    seen = jnp.where(ranks <= last, x, marginal.mask_id).astype(x.dtype)
    clock = 1 - last[:, 0] / length

    def log_probs(without: Array, positions: Array) -> Array:
        return conditional.log_probs(conditional(without, clock, cond), positions)

    loss = length * marginal.residual(log_probs, seen, at, cond) ** 2
    if log_z is None:
        return loss
    nothing = marginal.log_marginal(marginal.params, jnp.full_like(x, marginal.mask_id), cond)
    return loss + (nothing - log_z) ** 2


def energy_loss(
    marginal: MarginalModel, log_target: Any, x: Array, cond: PyTree = None, *, log_w: Array | None = None
) -> Array:
    """A loss with the gradient of KL(p_theta || exp(log_target) / Z) on samples of p_theta (REINFORCE); a scalar.

    sum_i w_i stop(s_i - sum_j w_j s_j) log p(x_i), s = log p(x) - log_target(x): the mean is the baseline. The value
    itself means nothing. Add a multiple of the mean `consistency_loss`, which keeps p_theta normalised; with another
    multiple the signal may be scaled, but not by its own spread, which vanishes at the solution.

    Args:
        marginal: the model; its `log_likelihood` is log p. log_target: function x `[B, L]` -> `[B]`, e.g. -E / T.
        x: int32 `[B, L]` samples of the model, by any decoder or `gibbs_chain`.
        log_w: `[B]` log-weights of samples that are not; None for equal ones.

    Raises:
        ValueError: tokens out of range, or masks, named; fewer than two samples, whose signal is 0.

    Reference: Liu et al. 2023, arXiv 2310.12920, section 4; Williams 1992, Machine Learning 8.

    >>> def bit(p, x, cond):
    ...     return jnp.where(x[:, 0] < 2, jax.nn.log_sigmoid(p * (2 * x[:, 0] - 1)), 0.0)
    >>> def loss(p):
    ...     return energy_loss(MarginalModel(bit, p, 2, 2), lambda x: 1.0 * x[:, 0], jnp.array([[0], [1]]))
    >>> float(jax.grad(loss)(0.0))
    -0.25
    """
    check_clean(marginal, x)
    if len(x) < 2:
        raise ValueError(f"{len(x)} sample has no signal beside its own mean; give at least two")
    log_p = marginal.log_likelihood(x, cond)
    w = jax.nn.softmax(jnp.zeros_like(log_p) if log_w is None else log_w)
    signal = log_p - log_target(x)
    return jnp.sum(jax.lax.stop_gradient(w * (signal - jnp.sum(w * signal))) * log_p)


def gibbs_chain(
    key: Array | Draws,
    model: Any,
    corrector: Corrector,
    x: Array,
    cond: PyTree = None,
    *,
    steps: int = 4,
    frozen: Array | None = None,
) -> Array:
    """Complete sequences moved on by a corrector: the persistent chain of energy training, or any MCMC over tokens.

    With `BlockGibbs` of a `MarginalModel`, or `Gibbs` of a hollow model, it leaves the model's law invariant.

    Args:
        key: typed key. model: hollow. corrector: `BlockGibbs(b)` or `Gibbs()`. x: int32 `[B, L]` clean.
        steps: redraws, each with a call. frozen: bool `[B, L]`, positions that stay.

    Returns: int32 `[B, L]`.

    Raises:
        ValueError: no step, a model that is not hollow, tokens out of range.

    Reference: Liu et al. 2023, arXiv 2310.12920, section 4 (4 steps between updates).

    >>> from diffsample.discrete.marginals import BlockGibbs
    >>> model = MarginalModel(lambda p, x, cond: -9.0 * jnp.sum(x == 0, axis=1), (), vocab=2, mask_id=2)
    >>> gibbs_chain(jax.random.key(0), model, BlockGibbs(2), jnp.array([[0, 1, 0]]), steps=8).tolist()
    [[1, 1, 1]]
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if not model.hollow:
        raise ValueError("a chain over observed positions needs laws given the others: a model declared hollow=True")
    check_clean(model, x)
    source = draws_of(key, len(x)).at(FIX)
    free = jnp.ones(x.shape, bool) if frozen is None else ~frozen
    clock = jnp.zeros(len(x))
    for i in range(steps):
        place = Place(jnp.zeros(x.shape, bool), free, clock, jnp.int32(i))
        x = corrector(source.at(i), Laws(model, model(x, clock, cond), x), place)
    return x
