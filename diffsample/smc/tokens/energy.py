"""EDLM: each update draws whole candidates from the factorised laws and keeps one by its energy.

p(x0 | x_t) is taken proportional to prod_l mu_l(x0_l | x_t) exp(-E(x0, x_t)). Of k candidates drawn from the product
one is picked with probabilities softmax(-E / temperature), low energy first, and the positions that are due show its
tokens. Self-normalised importance sampling: biased at finite k, consistent as k grows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Around, Place, Selection
from diffsample.discrete.slots import of_token
from diffsample.smc.functions import as_pytree
from diffsample.struct import pytree, static


@pytree
class EnergyPick(Around):
    """A policy of "when" with tokens picked by energy; see `energy_pick`."""

    policy: Any
    energy: Any
    temperature: Any
    low: Any
    high: Any
    candidates: int = static()

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        return self.policy.init(draws.at(0), place)

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: PyTree) -> tuple[Selection, PyTree]:
        """The policy's positions, with the tokens of the picked candidate."""
        chosen, memory = self.policy.select(draws.at(0), laws, place, memory, row)
        log_p = laws.everywhere(lambda log_p, positions: log_p)
        tokens = [draws.at(2 + i).tokens(log_p, place.masked) for i in range(self.candidates)]

        def energy(tokens: Array) -> Array:
            log_mu = jnp.sum(jnp.where(place.masked, of_token(log_p, tokens), 0.0), axis=1)
            return self.energy(jnp.where(place.masked, tokens, laws.x), laws.x, log_mu)

        inside = (self.low <= place.clock) & (place.clock <= self.high)
        energies = jnp.stack([energy(one) for one in tokens], axis=1) / self.temperature
        log_pick = jax.nn.log_softmax(jnp.where(inside[:, None], -energies, 0.0), axis=1)
        picked = draws.at(1).tokens(log_pick[:, None], jnp.any(place.masked, axis=1)[:, None])
        kept = jnp.take_along_axis(jnp.stack(tokens, axis=1), picked[..., None], axis=1)[:, 0]
        return chosen._replace(tokens=kept.astype(jnp.int32)), memory


def energy_pick(
    policy: Any,
    energy: Callable[[Array, Array, Array], Array],
    *,
    candidates: int = 2,
    temperature: Any = 1.0,
    low: float = 0.0,
    high: float = 1.0,
) -> EnergyPick:
    """EDLM's importance sampling over any policy that says when positions are revealed.

    One network call an update as before, and `candidates` energies. The particle form with resampling between updates
    is `feynman_kac` with `token_weights` and the reward -E.

    Args:
        policy: when, for example `discrete.ancestral(levels)`.
        energy: function (x0 `[B, L]`, x `[B, L]`, log prod mu(x0) `[B]`) -> E `[B]`; with a joint law p it is
            log prod mu - log p(x0), see `joint_energy`.
        candidates: k, at least 1, the published default is 2.
        temperature: of the pick, a leaf.
        low, high: mask probabilities between which energies count; elsewhere the pick is blind.

    Raises:
        ValueError: no candidate, a temperature that is not positive.

    Reference: Xu et al. 2024, arXiv 2410.21357.

    >>> from diffsample import discrete
    >>> energy_pick(discrete.first_hitting(4), lambda x0, x, log_mu: 0.0 * log_mu, candidates=3).width(4)
    1
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates} must be at least 1")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    return EnergyPick(policy, as_pytree(energy), temperature, low, high, candidates)


@pytree
class JointEnergy:
    """E = log prod_l mu_l(x0_l) - log p(x0); see `joint_energy`."""

    log_prob: Any

    def __call__(self, x0: Array, x: Array, log_mu: Array) -> Array:
        return log_mu - self.log_prob(x0)


def joint_energy(log_prob: Callable[[Array], Array]) -> JointEnergy:
    """The energy under which weights are p(x0) / prod mu(x0), p a joint law such as an autoregressive model's.

    Args:
        log_prob: function x0 `[B, L]` -> log p(x0) `[B]`, all terms, the observed tokens' included: then the picked law
            tends to p(masked | observed).

    >>> joint_energy(lambda x: jnp.zeros(x.shape[0]))(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return JointEnergy(as_pytree(log_prob))
