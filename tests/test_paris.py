"""PaRIS and Parisian particle Gibbs against the exact smoother (specs/smc.md, sections 5.2, 5.3 and 9.4)."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import smc
from diffsample.smc import ConditionalSMC, Paris, Rejection


def product(before, after, row):
    return (before * after)[:, 0]


def nothing(after, row):
    return jnp.zeros(after.shape[0])


def bound(after, row):
    """The moves' relative density is at most 1."""
    return chains.log_likelihood(after, row[0])


PRODUCTS = Paris(product, nothing)


def assert_near(values, expected, rounding=0.0):
    """Within 4.4 standard errors (false alarm 1e-5) and the rounding of the printed number."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0) / len(values) ** 0.5
    np.testing.assert_array_less(np.abs(values.mean(axis=0) - expected), 4.4 * error + rounding)


def filtered(particles, runs, paris):
    model = chains.chain()

    def one(key):
        cloud, statistic = smc.particle_filter(key, model, particles, resample=smc.multinomial, collector=paris)
        return smc.weighted_mean(statistic, cloud.log_w[-1])

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(particles), runs))


@pytest.mark.parametrize(
    ("particles", "bias", "runs"),
    [
        (4, 0.228, 3000),
        pytest.param(10, -0.120, 6000, marks=pytest.mark.slow),
        pytest.param(50, -0.034, 2000, marks=pytest.mark.slow),
    ],
)
def test_paris_has_the_bias_of_its_particles(particles, bias, runs):
    # the printed figures are estimates too, of a precision like ours: 0.01 covers them
    assert_near(filtered(particles, runs, PRODUCTS), chains.PRODUCTS + bias, rounding=0.01)


@pytest.mark.slow
def test_paris_by_rejection_is_dense_paris():
    rejecting = Paris(product, nothing, parents=Rejection(bound, trials=3))
    dense, other = (np.asarray(filtered(10, 3000, paris)) for paris in (PRODUCTS, rejecting))
    assert abs(dense.mean() - other.mean()) < 4.4 * ((dense.var() + other.var()) / 3000) ** 0.5
    assert other.std() == pytest.approx(dense.std(), rel=0.08)


@pytest.mark.parametrize("trials", [0, 40])
def test_rejection_draws_parents_by_their_odds(trials):
    """One particle's parents against the odds W M, by all-dense and by (almost) all-rejected draws."""
    model, n = chains.chain(), 5
    x = jnp.linspace(-1.5, 1.5, n)[:, None]
    log_w = jnp.array([0.0, 1.0, -1.0, 0.5, -jnp.inf])
    before = smc.Generation(x, x, log_w, jnp.arange(n), jnp.zeros(()))
    row = jax.tree.map(lambda leaf: leaf[1], model.rows)
    draw = Rejection(bound, trials)
    parents = jax.jit(lambda key: draw(key, model, before, before, row, 20_000))(jax.random.key(0))
    for i in range(n):
        odds = np.exp(np.asarray(log_w) - 0.5 * ((float(x[i, 0]) - 0.9 * np.asarray(x)[:, 0]) / 0.7) ** 2)
        counts = np.bincount(np.asarray(parents[i]), minlength=n)
        assert counts[-1] == 0
        assert chains.g_test(counts[:4], odds[:4] / odds.sum()) < 21.1  # 3 degrees of freedom: once in 10^4


def test_rejection_with_a_wrong_bound_is_reported():
    wrong = Paris(product, nothing, parents=Rejection(lambda after, row: bound(after, row) - 3.0))
    assert np.isnan(np.asarray(filtered(10, 4, wrong))).all()


def test_paris_refuses_a_single_parent():
    with pytest.raises(ValueError, match="draws=1"):
        Paris(product, nothing, draws=1)


def gibbs_estimates(particles, runs, sweeps, x):
    model = chains.chain()

    def one(key, x):
        path = smc.path_of(model, x)
        chain = smc.particle_gibbs(key, model, path, sweeps, ConditionalSMC(particles), collector=PRODUCTS)
        return chain.estimates, jnp.sum(chain.kept[:, 1:] * chain.kept[:, :-1], axis=(1, 2))

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(particles), runs), x)


BIASES = {10: (-0.297, -0.126, -0.062, -0.033, -0.018), 4: (-0.573, -0.358, -0.246, -0.182, -0.140)}


@pytest.mark.parametrize("particles", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_parisian_particle_gibbs_loses_its_bias_geometrically(particles):
    estimates, _ = gibbs_estimates(particles, 1500, 5, jnp.zeros((1500, 6, 1)))
    assert_near(estimates, chains.PRODUCTS + np.array(BIASES[particles]), rounding=0.01)


def test_parisian_particle_gibbs_is_unbiased_from_the_target_and_varies_less_than_its_path():
    """Variances 0.43 of the estimate and 0.62 of the single path at N = 4."""
    runs = 6000
    x = chains.draw_paths(jax.random.key(0), runs)
    estimates, paths = (np.asarray(values[:, 0]) for values in gibbs_estimates(4, runs, 1, x))
    assert_near(estimates, chains.PRODUCTS)
    assert_near(paths, chains.PRODUCTS)
    assert estimates.var() == pytest.approx(0.43, abs=0.035)
    assert paths.var() == pytest.approx(0.62, abs=0.05)


@pytest.mark.slow
def test_parisian_particle_gibbs_states_an_honest_standard_error():
    """The mean stated error of 100 runs of 64 sweeps is the spread of the runs (whose own relative error is 7 %)."""
    model, runs = chains.chain(), 100

    @jax.jit
    @jax.vmap
    def run(key):
        path = smc.path_of(model, jnp.zeros((6, 1)))
        kernel = ConditionalSMC(6)
        return smc.parisian_particle_gibbs(key, model, path, 72, kernel, PRODUCTS, burn_in=8)[0]

    found = run(jax.random.split(jax.random.key(1), runs))
    assert_near(found.value, chains.PRODUCTS)
    assert np.asarray(found.std_error).mean() == pytest.approx(np.asarray(found.value).std(), rel=0.35)


def test_chain_mean_refuses_too_few_sweeps():
    with pytest.raises(ValueError, match="burn_in=8 leave 2"):
        smc.chain_mean(jnp.zeros(10), 8)
