"""Conditional SMC leaves the law of paths invariant, and mixes as theory says."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import smc
from diffsample.smc import (
    ConditionalSMC,
    ancestral_tracing,
    backward_sampling,
    conditional_killing,
    conditional_systematic,
)

PATHS = 12_000
# 27 z-scores a kernel, 5 kernels: false alarm 135 x 6.8e-6 = 0.1 % over all
LIMIT = 4.5

KERNELS = {
    "trace": ConditionalSMC(4, choose=ancestral_tracing),
    "backward": ConditionalSMC(4, choose=backward_sampling),
    "ancestor": ConditionalSMC(4, choose=ancestral_tracing, ancestor_sampling=True),
    "both": ConditionalSMC(4, choose=backward_sampling, ancestor_sampling=True),
    "trace-systematic": ConditionalSMC(4, choose=ancestral_tracing, resample=conditional_systematic),
    "trace-killing": ConditionalSMC(4, choose=ancestral_tracing, resample=conditional_killing),
    "ancestor-systematic": ConditionalSMC(
        4, choose=ancestral_tracing, resample=conditional_systematic, ancestor_sampling=True
    ),
    "ancestor-killing": ConditionalSMC(
        4, choose=ancestral_tracing, resample=conditional_killing, ancestor_sampling=True
    ),
    "backward-ess": ConditionalSMC(4, policy=smc.ess(0.6)),
}


@jax.jit
def swept(kernel, model, key, x):
    """Each path after one sweep."""
    keys = jax.random.split(key, x.shape[0])
    return jax.vmap(lambda key, x: kernel(key, model, smc.path_of(model, x)).path.x)(keys, x)


@pytest.mark.parametrize("name", ["backward", "trace-killing", "ancestor-systematic"])
def test_conditional_smc_leaves_the_paths_invariant(name):
    x = chains.draw_paths(jax.random.key(1), PATHS)
    out = swept(KERNELS[name], chains.chain(), jax.random.key(2), x)
    assert np.abs(chains.path_z_scores(out[..., 0])).max() < LIMIT


@pytest.mark.parametrize("choose", [backward_sampling, ancestral_tracing])
def test_conditional_smc_is_invariant_where_potentials_see_both_states(choose):
    model = chains.Guided(chains.chain().data)
    x = chains.draw_paths(jax.random.key(1), PATHS)
    kernel = ConditionalSMC(4, choose=choose, ancestor_sampling=choose is ancestral_tracing)
    out = swept(kernel, model, jax.random.key(2), x)
    assert np.abs(chains.path_z_scores(out[..., 0])).max() < LIMIT


def test_backward_and_ancestor_sampling_renew_the_start():
    """P(x_0 changes) is 0.8 %, 54 %, 54 % at N = 4 (specs/smc.md 5.1)."""
    x = chains.draw_paths(jax.random.key(3), PATHS)
    expected = {"trace": 0.008, "backward": 0.54, "ancestor": 0.54}
    for name, share in expected.items():
        out = swept(KERNELS[name], chains.chain(), jax.random.key(4), x)
        renewed = float(jnp.mean(out[:, 0] != x[:, 0]))
        assert abs(renewed - share) < 4 * (share * (1 - share) / PATHS) ** 0.5 + 0.005 * share**0.5


def test_a_sweep_without_its_reference_is_not_invariant():
    """The plain filter's own path, N = 4, is off by tens of standard errors: the test above can fail."""
    model = chains.chain()

    @jax.jit
    @jax.vmap
    def free(key):
        cloud, _ = smc.particle_filter(key, model, 4, resample=smc.multinomial)
        return ancestral_tracing(key, model, cloud).x

    out = free(jax.random.split(jax.random.key(5), PATHS))
    assert np.abs(chains.path_z_scores(out[..., 0])).max() > 20


def test_path_filter_is_unbiased_for_the_normaliser():
    """N = 200, multinomial: sd of log Z is 0.28 (specs/smc.md 9.4)."""
    model, runs = chains.chain(), 1000

    def log_z(key):
        return smc.particle_filter(key, model, 200, resample=smc.multinomial)[0].log_z[-1]

    found = np.asarray(jax.jit(jax.vmap(log_z))(jax.random.split(jax.random.key(6), runs)), np.float64)
    ratio = np.exp(found - chains.LOG_Z)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / runs**0.5
    assert found.std() == pytest.approx(0.28, abs=4 * 0.28 / (2 * runs) ** 0.5 + 0.005)


def test_a_potential_that_is_nan_shows_in_the_chain():
    def broken(x, y):
        return jnp.where(y > 1.9, jnp.nan, chains.log_likelihood(x, y))

    model = chains.chain()
    model = smc.GaussianModel(model.mean, model.std, chains.drift, model.noise, broken, model.data)
    run = smc.particle_gibbs(jax.random.key(0), model, smc.path_of(model, jnp.zeros((6, 1))), 3, ConditionalSMC(4))
    assert np.isnan(run.log_z).all()


def test_weights_are_float32_where_states_are_bfloat16():
    model = smc.GaussianModel(jnp.zeros(1, jnp.bfloat16), 1.0, chains.drift, 0.7, chains.log_likelihood, jnp.ones(3))
    cloud, _ = smc.particle_filter(jax.random.key(0), model, 4, resample=smc.multinomial)
    assert (cloud.x.dtype, cloud.log_w.dtype, cloud.log_z.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


def test_conditional_smc_refuses_a_lone_reference():
    with pytest.raises(ValueError, match="particles=1"):
        ConditionalSMC(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_conditional_smc_leaves_the_paths_invariant_over_many_sweeps(name):
    """2e5 paths, as in specs/smc.md 5.1: means within 1.3e-3 there."""
    x = chains.draw_paths(jax.random.key(7), 200_000)
    for sweep in range(3):
        x = swept(KERNELS[name], chains.chain(), jax.random.key(8 + sweep), x)
    assert np.abs(chains.path_z_scores(x[..., 0])).max() < LIMIT
