"""Soft values of noisy states, trained on a sampler's own paths (SVDD-MC): the closed form on Gaussian data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers
from diffsample.struct import pytree

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
ROWS, GROUPS, EACH = 40, 8, 10_000
GRID = ds.times.custom(VP, [float(VP.t_from_half_logsnr(-np.log(rho))) for rho in np.geomspace(20.0, 0.01, ROWS + 1)])
# the exact reverse of N(0, 1), in which x0 given x_t is N(alpha x_t, sigma^2)
SAMPLER = solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddpm(VP, GRID, large=True))


def features(x):
    return jnp.stack([jnp.ones_like(x), x, x**2], axis=-1)


@pytree
class Quadratic:
    """A value function: a quadratic at every row."""

    coefficients: Any  # [n, 3]

    def __call__(self, view, cond):
        return features(view.x) @ self.coefficients[view.index]


def trained(x, rewards):
    """Where the mean loss over states [B] of a row and rewards [B] of their samples is least, by Newton's method."""

    def loss(w):
        return smc.soft_value_loss(features(x) @ w, rewards, 1.0).mean()

    def newton(w, _):
        return w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)), None

    below = jnp.linalg.lstsq(features(x), rewards)[0]  # the mean reward, from which the method climbs
    return jax.lax.scan(newton, below, None, length=10)[0]


def test_exact_soft_value_is_stationary_for_any_reward_and_temperature(x64):
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    x, weight = jnp.linspace(-2.0, 2.0, 5), jnp.asarray(weight / weight.sum())
    for t, temperature in ((0.05, 0.7), (0.6, 2.0)):
        level = VP.level(t)
        x0 = level.alpha * x[:, None] + level.sigma * jnp.asarray(z)[None]
        for rewards in (jnp.sin(x0), -2.0 * (x0 - 2.0) ** 2):

            def mean_loss(value, rewards=rewards, temperature=temperature):
                losses = smc.soft_value_loss(jnp.tile(value[:, None], (1, 80)), rewards, temperature)
                return (losses * weight[None]).sum()

            value = temperature * jnp.log((jnp.exp(rewards / temperature) * weight[None]).sum(axis=1))
            np.testing.assert_allclose(jax.grad(mean_loss)(value), 0.0, atol=1e-12)


def test_value_trained_on_paths_of_the_sampler_is_the_exact_one_and_selects_like_it():
    # reward x0 at temperature 1: log E[exp(x0) | x_t] = alpha x_t + sigma^2 / 2
    x0, (states, alphas, sigmas) = ds.sample(
        KEY, SAMPLER, (GROUPS * EACH,), record=lambda view: (view.x, view.level.alpha, view.level.sigma)
    )
    fit = jax.jit(jax.vmap(jax.vmap(trained), (0, None)))(states.reshape(ROWS, GROUPS, EACH), x0.reshape(GROUPS, EACH))
    exact = np.stack([np.asarray(sigmas) ** 2 / 2, alphas, np.zeros(ROWS)], axis=1)
    found, spread = fit.mean(axis=1), fit.std(axis=1, ddof=1) / np.sqrt(GROUPS)
    # 120 numbers of 7 degrees of freedom: |t| > 9 has odds of 4e-5 each; float32 resolves 1e-3 of a sum of many squares
    assert (np.abs(found - exact) < 9 * spread + 1e-3).all()
    assert spread.max() < 0.02 and exact[0, 0] > 0.45  # a squared error would learn 0, the mean reward, for the first

    trained_one, exact_one = (
        np.asarray(ds.sample(KEY, smc.svdd(SAMPLER, Quadratic(jnp.asarray(value)), 1.0, candidates=5), (20_000,)))
        for value in (found, exact)
    )
    assert abs(trained_one.mean() - 0.778) < 4 / np.sqrt(20_000) + 0.012  # specs/guidance.md 9, the exact value
    assert np.abs(trained_one - exact_one).mean() < 0.05  # the same draws, of which few change the choice


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf])
def test_a_value_that_decides_nothing_is_reported_with_row_and_sample(bad):
    def value(view, cond):
        here = (view.index == 3) & (cond == 1) & (jnp.isinf(bad) | (view.x > 0))
        return jnp.where(here, bad, view.x0)

    def run(candidates, alpha, check=True):
        selecting = smc.svdd(SAMPLER, value, alpha, candidates=candidates)
        return ds.sample(KEY, selecting, (4,), cond=jnp.array([0, 0, 1, 0]), check=check)

    with pytest.raises(ds.NonFiniteError, match=r"first at call [34] .* in 1 of 4 samples .numbers .2"):
        run(16, 1.0)
    np.testing.assert_array_equal(jnp.isnan(run(16, 1.0, check=False)), [False, False, True, False])
    if bad == -jnp.inf:  # at alpha 0 all are equally good
        assert jnp.isfinite(run(16, 0.0)).all()


def test_what_is_no_function_is_named():
    wrong: Any = 3.0
    for make in (smc.posterior_mean, lambda value: smc.svdd(SAMPLER, value, 1.0, candidates=2)):
        with pytest.raises(TypeError, match=r"expected a function, .* got 3.0"):
            make(wrong)
    with pytest.raises(ValueError, match="samples=2"):
        smc.sampled_value(lambda x0, cond: x0, KEY, samples=2.5)  # pyright: ignore[reportArgumentType]
