"""Reveals at the model's own rates: discrete guidance changes not only which token comes, but when.

In the clock -log m every masked position of a plain model leaves at rate 1, to token v at rate c(v). A guided model
has rates w(v) = c(v) ratio(v)^scale that do not sum to one; their sum U_l, the model's `log_total`, is the rate at
which position l leaves. Models with such rates are `smc.rate_guided`, `smc.token_product` and `smc.token_guidance`; a
model without them has U = 1, for which these policies are `ancestral` and `first_hitting`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.decoder import Place, Policy, PyTree, Selection
from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.discrete.schedules import check_length, check_levels
from diffsample.struct import pytree, static

LARGEST = 80.0  # of log U: exp of more overflows float32


@pytree
class TauLeaping(Policy):
    """Rates held over each step, one coin a position; see `tau_leaping`."""

    span: Array  # [K], log(m / s), infinite in the last step
    clock: Array  # [K], mask probability after each update
    start: Any

    @property
    def steps(self) -> PyTree:
        return self.span, self.clock

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        return (), jnp.full(place.clock.shape, self.start, place.clock.dtype)

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: PyTree) -> tuple[Selection, PyTree]:
        span, clock = row
        rate, last = jnp.exp(_log_rates(laws)), jnp.isinf(span)
        leaves = jnp.where(last, 1.0, -jnp.expm1(-rate * jnp.where(last, 0.0, span)))
        coin = draws.coins(jnp.where(place.masked, leaves, 0.0))
        return Selection(coin & place.masked, jnp.full(place.clock.shape, clock)), memory


@pytree
class NextJump(Policy):
    """One jump an update, position l in proportion to U_l; see `next_jump`."""

    updates: Array  # int32 [L]
    length: int = static()  # of the longest sequence

    @property
    def steps(self) -> Array:
        return self.updates

    @property
    def adaptive(self) -> bool:
        return False

    def width(self, length: int) -> int:
        return 1

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        return (), place.clock

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        log_rate = jnp.where(place.masked, _log_rates(laws), -jnp.inf)
        total = jnp.sum(jnp.exp(log_rate), axis=1)
        moves = total > 0
        odds = jnp.where(moves[:, None], jnp.exp(log_rate) / jnp.where(moves, total, 1.0)[:, None], 0.0)
        odds = jnp.where(moves[:, None], odds, 1.0 / odds.shape[1])
        at = draws.at(0).tokens(jnp.log(odds)[:, None], moves[:, None])
        reveal = (jnp.arange(odds.shape[1])[None] == at) & place.masked & moves[:, None]
        u = draws.at(1).clocks(jnp.ones_like(total, jnp.int32), 1)[:, 0]
        clock = place.clock * u ** (1.0 / jnp.where(moves, total, 1.0))
        return Selection(reveal, jnp.where(moves, clock, place.clock)), memory


def tau_leaping(levels: Any) -> TauLeaping:
    """Discrete guidance's jump process on a grid: a position leaves with probability 1 - (s / m)^U_l from m to s.

    U_l is the total rate of the position under the model, held over the step, so the hazard is integrated exactly and
    no probability exceeds one at any step size. `ancestral` where U = 1; else first order in the steps, with the law of
    `next_jump` in the limit. The last step reveals all that is left.

    Args:
        levels: [N + 1] falling mask probabilities that end at 0; `discrete.levels(schedule, N)`.

    Reference: Nisonoff et al. 2024, arXiv 2406.01572; tau-leaping: Campbell et al. 2022, arXiv 2205.14987.

    >>> np.exp(-tau_leaping([1.0, 0.5, 0.0]).span).tolist()
    [0.5, 0.0]
    """
    m = check_levels(levels)
    with np.errstate(divide="ignore"):
        span = np.log(m[:-1]) - np.log(m[1:])
    span[-1] = np.inf
    return TauLeaping(*(jnp.asarray(a, float) for a in (np.nan_to_num(span, nan=np.inf, posinf=np.inf), m[1:], m[0])))


def next_jump(length: int) -> NextJump:
    """Discrete guidance's jump process without a time step: the next position in proportion to U_l, L calls.

    The exact law of the guided rates where neither model nor classifier reads the time, as of masked diffusion neither
    needs to. `first_hitting` where U = 1. With `smc.token_weights` its paths are weighed to the exact tilted law.

    Args:
        length: L of the sequences; prompts may leave fewer to reveal.

    Raises:
        ValueError: no length.

    Reference: Gillespie 1977, J. Phys. Chem. 81; the rates: Nisonoff et al. 2024, arXiv 2406.01572.

    >>> next_jump(4).width(4)
    1
    """
    check_length(length)
    return NextJump(jnp.arange(length, dtype=jnp.int32), length)


def _log_rates(laws: Laws) -> Array:
    """log U at every position, [B, L]; 0 for a model without rates of its own."""
    model: Any = laws.model
    if not hasattr(model, "log_total"):
        return jnp.zeros(laws.x.shape)
    return jnp.minimum(laws.everywhere(lambda log_p, at: model.log_total(laws.features, at)), LARGEST)
