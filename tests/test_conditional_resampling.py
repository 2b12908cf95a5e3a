"""Conditional resampling has the law of its scheme given that the reference survives."""

import itertools
from math import factorial

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample.smc import conditional_killing, conditional_multinomial, conditional_systematic

WEIGHTS = np.array([0.55, 0.33, 0.12])
DRAWS = 40_000
LIMIT = 27.9  # chi-squared with 9 degrees of freedom is larger once in a thousand
VECTORS = [counts for counts in itertools.product(range(4), repeat=3) if sum(counts) == 3]


def multinomial_law():
    return [6 * np.prod([w**c / factorial(c) for w, c in zip(WEIGHTS, v, strict=True)]) for v in VECTORS]


def systematic_law():
    """Midpoints between the places at which an ancestor changes."""
    ends = np.cumsum(WEIGHTS)
    breaks = np.unique(np.concatenate([[0.0, 1.0], *[(ends - i / 3) % 1 for i in range(3)]]))
    law = dict.fromkeys(VECTORS, 0.0)
    for low, high in itertools.pairwise(breaks):
        points = ((low + high) / 2 + np.arange(3) / 3) % 1
        law[tuple(np.bincount(np.searchsorted(ends, points), minlength=3).tolist())] += high - low
    return [law[v] for v in VECTORS]


def killing_law():
    kept, law = WEIGHTS / WEIGHTS.max(), dict.fromkeys(VECTORS, 0.0)
    for slots in itertools.product(range(3), repeat=3):
        odds = [(i == a) * kept[i] + (1 - kept[i]) * WEIGHTS[a] for i, a in enumerate(slots)]
        law[tuple(np.bincount(slots, minlength=3).tolist())] += float(np.prod(odds))
    return [law[v] for v in VECTORS]


SCHEMES = {
    "multinomial": (conditional_multinomial, multinomial_law),
    "systematic": (conditional_systematic, systematic_law),
    "killing": (conditional_killing, killing_law),
}


def counts_around_a_drawn_reference(scheme):
    """Frequencies of the copy numbers where the reference itself is drawn by the weights."""

    def one(key):
        first, second = jax.random.split(key)
        log_w = jnp.log(jnp.asarray(WEIGHTS))
        pivot = jax.random.categorical(first, log_w)
        chosen = (scheme(second, jnp.roll(log_w, -pivot)) + pivot) % 3
        return jnp.bincount(chosen, length=3), chosen[0] == pivot

    copies, held = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), DRAWS))
    assert bool(held.all())
    return np.array([np.sum((np.asarray(copies) == v).all(axis=1)) for v in VECTORS])


@pytest.mark.parametrize("name", SCHEMES)
def test_conditional_scheme_with_a_drawn_reference_is_the_scheme(name):
    scheme, law = SCHEMES[name]
    law = np.array(law())
    assert law.sum() == pytest.approx(1.0)
    counts = counts_around_a_drawn_reference(scheme)
    assert counts[law < 1e-9].sum() == 0
    assert chains.g_test(counts[law > 1e-9], law[law > 1e-9]) < LIMIT


def test_overwriting_a_slot_of_systematic_resampling_is_another_law():
    def overwritten(key, log_w):
        ends = jnp.cumsum(jax.nn.softmax(log_w))
        points = (jnp.arange(3) / 3 + jax.random.uniform(key)) % 1
        return jnp.searchsorted(ends, points, side="right").clip(0, 2).at[0].set(0)

    law = np.array(systematic_law())
    counts = counts_around_a_drawn_reference(overwritten)
    assert counts[law < 1e-9].sum() > 0.01 * DRAWS


@pytest.mark.parametrize("name", SCHEMES)
def test_conditional_scheme_never_selects_a_particle_without_weight(name):
    log_w = jnp.array([0.0, -jnp.inf, 1.0, -jnp.inf])
    keys = jax.random.split(jax.random.key(1), 20_000)
    chosen = jax.jit(jax.vmap(SCHEMES[name][0], (0, None)))(keys, log_w)
    assert set(np.unique(chosen).tolist()) == {0, 2}
