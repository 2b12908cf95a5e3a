"""Particle Gibbs and parallel tempering on a tree whose leaves can be enumerated."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import smc
from diffsample.smc import ConditionalSMC, StepwiseReward, ancestral_tracing
from diffsample.struct import pytree

LIMIT = 54.05  # chi-squared with 26 degrees of freedom is larger once in a thousand
CHAINS = 2000
BASE, SCORES = chains.tree()


def score(seen, row):
    """The score of a node in its depth."""
    return jnp.asarray(SCORES)[row[0]][seen]


def tilted(temperature=0.7):
    return StepwiseReward(BASE, score, temperature), chains.leaf_law(BASE, SCORES[-1] / temperature)


def counts(found):
    return np.bincount(np.asarray(found).reshape(-1), minlength=chains.LEAVES)


def some_path():
    return jnp.array([0, 1, 4])


@pytest.mark.parametrize(
    "kernel",
    [
        ConditionalSMC(6),
        pytest.param(ConditionalSMC(6, ancestral_tracing, ancestor_sampling=True), marks=pytest.mark.slow),
    ],
)
def test_particle_gibbs_reaches_the_enumerated_leaves(kernel):
    model, law = tilted()

    def run(key):
        path = smc.path_of(model, some_path())
        return smc.particle_gibbs(key, model, path, 16, kernel, keep=chains.leaves).kept[-1]

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), CHAINS))
    assert chains.g_test(counts(found), law) < LIMIT


def test_stepwise_scores_guide_but_do_not_change_the_target():
    """The filter's normaliser is that of the last score alone, whatever the scores before it."""
    model, _ = tilted()
    base = chains.leaf_law(BASE, np.zeros(chains.LEAVES))
    z = float(np.sum(base * np.exp(SCORES[-1] / 0.7)))

    def log_z(key):
        return smc.particle_filter(key, model, 32, resample=smc.multinomial)[0].log_z[-1]

    ratio = np.exp(np.asarray(jax.jit(jax.vmap(log_z))(jax.random.split(jax.random.key(1), CHAINS)))) / z
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / CHAINS**0.5


def test_parallel_tempering_keeps_the_law_of_every_temperature():
    temperatures = jnp.array([0.25, 0.7, 2.0])
    model, _ = tilted()
    start = jnp.broadcast_to(some_path(), (3, 3))

    def run(key):
        paths = jax.vmap(lambda x: smc.path_of(model, x))(start)
        made = smc.parallel_tempering(key, model, temperatures, paths, 20, ConditionalSMC(4), keep=chains.leaves)
        return made.kept[-1], made.accepted

    found, accepted = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), CHAINS))
    for i, temperature in enumerate(temperatures):
        assert chains.g_test(counts(found[:, i]), tilted(float(temperature))[1]) < LIMIT
    assert bool(((accepted.mean(axis=0) > 0.2) & (accepted.mean(axis=0) < 0.95)).all())


def test_parallel_tempering_at_equal_temperatures_always_exchanges():
    model, _ = tilted()
    paths = jax.vmap(lambda x: smc.path_of(model, x))(jnp.broadcast_to(some_path(), (3, 3)))
    made = smc.parallel_tempering(jax.random.key(3), model, jnp.ones(3), paths, 7, ConditionalSMC(4))
    np.testing.assert_array_equal(made.accepted, 1.0)


def test_weighing_every_step_by_its_own_score_is_another_target():
    """Not telescoping (Puri et al.'s particle filter): the product of all steps' scores; the test above would fail."""
    _, law = tilted()

    class Products(StepwiseReward):
        def log_potential(self, before, after, row):
            return after.log_reward / self.temperature

    products = pytree(Products)(BASE, score, 0.7)

    def run(key):
        cloud, _ = smc.particle_filter(key, products, 64, resample=smc.multinomial)
        return ancestral_tracing(key, products, cloud).x[-1]

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(4), CHAINS))
    assert chains.g_test(counts(found), law) > 10 * LIMIT


def test_parallel_tempering_refuses_one_chain():
    model, _ = tilted()
    paths = jax.vmap(lambda x: smc.path_of(model, x))(some_path()[None])
    with pytest.raises(ValueError, match="at least 2"):
        smc.parallel_tempering(jax.random.key(0), model, jnp.ones(1), paths, 1, ConditionalSMC(4))
