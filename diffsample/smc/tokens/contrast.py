"""Noise-contrastive training of EDLM's energy: a classifier of data against draws from the factorised law.

-E is the logit of "x0 is data, not a draw from prod mu": at the minimum E = log prod mu(x0 | x) - log p(x0 | x), for
which Z(x) = 1. The masked model is frozen.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.discrete.draws import Draws, draws_of
from diffsample.discrete.model import MaskedModel
from diffsample.smc.tokens.partition import check_completions, log_mass, masked_laws
from diffsample.struct import pytree, static


@pytree
class NetworkEnergy:
    """E(x0, x) of a network; made by `network_energy`."""

    apply: Callable[..., Array] = static()
    params: PyTree
    cond: PyTree = None

    def __call__(self, x0: Array, x: Array, log_mu: Array) -> Array:
        if self.cond is None:
            return self.apply(self.params, x0, x)
        own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(x), *jnp.shape(leaf))), self.cond)
        return self.apply(self.params, x0, x, own)


def network_energy(apply: Callable[..., Array], params: PyTree, cond: PyTree = None) -> NetworkEnergy:
    """A trained network as the energy of `energy_pick`, `partition_bounds` and `nce_loss`.

    Args:
        apply: `(params, x0 [B, L], x [B, L]) -> E [B]`, or `(params, x0, x, cond)` where a condition is given; the
            published network embeds both, averages over positions and ends in two layers.
        params: pytree of weights, leaves: training it does not recompile.
        cond: condition of one sequence, the same for all.

    Raises:
        TypeError: no function.

    >>> energy = network_energy(lambda params, x0, x: params * jnp.sum(x0, axis=1), 2.0)
    >>> energy(jnp.array([[0, 1]]), jnp.array([[2, 2]]), jnp.zeros(1)).tolist()
    [2.0]
    """
    if not callable(apply):
        raise TypeError(f"apply must be a function (params, x0, x) -> E [B], got {apply!r}")
    return NetworkEnergy(apply, params, cond)


def nce_loss(
    key: Array | Draws,
    model: MaskedModel,
    energy: Callable[[Array, Array, Array], Array],
    x0: Array,
    masked: Array,
    cond: PyTree = None,
    *,
    negatives: int = 1,
) -> Array:
    """-log sigmoid(-E(x0)) - mean log sigmoid(E(x0')), x0' drawn from prod mu at the masked positions; [B].

    Differentiate the mean in the energy's weights. Averaging over several negatives leaves the minimiser where it is.
    One call of the frozen model, no gradient through it; 1 + negatives energies.

    Args:
        key: typed key. model: the trained masked model. energy: `network_energy(apply, params)`.
        x0: int32 `[B, L]` clean. masked: bool `[B, L]`, drawn as in training of the model. negatives: at least 1, the
            published default.

    Raises:
        ValueError: no negative; x0 with a mask or an id out of range.

    Reference: Xu et al. 2024, arXiv 2410.21357; Gutmann, Hyvarinen 2010, Noise-Contrastive Estimation.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> energy, x0 = network_energy(lambda params, x0, x: params * x0[:, 0], 0.0), jnp.array([[0, 1]])
    >>> nce_loss(jax.random.key(0), model, energy, x0, x0 >= 0).round(4).tolist()
    [1.386...]
    """
    if negatives < 1:
        raise ValueError(f"negatives={negatives} must be at least 1")
    x = jnp.where(masked, model.mask_id, x0).astype(x0.dtype)
    check_completions(model, x, x0)
    log_p = jax.lax.stop_gradient(masked_laws(model, x, cond))
    source = draws_of(key, len(x))
    drawn = [jnp.where(masked, source.at(i).tokens(log_p, masked), x0).astype(x0.dtype) for i in range(negatives)]
    every = jnp.stack([x0, *drawn])
    energies = jax.lax.map(lambda one: energy(one, x, log_mass(log_p, one, masked)), every)
    loss = jax.nn.softplus(energies[0]) + jnp.mean(jax.nn.softplus(-energies[1:]), axis=0)
    broken = jnp.any(jnp.isnan(jnp.where(masked[..., None], log_p, 0.0)), axis=(1, 2))
    return jnp.where(broken, jnp.nan, loss)
