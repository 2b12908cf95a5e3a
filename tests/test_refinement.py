"""Refinement of forecasts, where the energy is a known quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffsample as ds
from diffsample import guidance

KEY = jax.random.key(0)
VP = ds.VariancePreserving()
LEVEL = VP.level(0.25)
VARIANCES = np.array([1.0, 0.3])
LAW = ds.exact.Gaussian(np.zeros(2), VARIANCES)


def slope_and_noise(level=LEVEL):
    """E(x) = |a eps - b x|^2 on each axis."""
    k = level.sigma / (level.alpha**2 * VARIANCES + level.sigma**2)
    return 1 - level.sigma * k, level.alpha * k


def test_langevin_reaches_the_stationary_law_of_the_quadratic_energy():
    """x <- (1 - 2 h b^2) x + 2 h a b eps + sqrt(2 h) xi has a known variance, 1 / (2 b^2) as h -> 0: precision 2 Q."""
    n, step = 20_000, 0.02
    a, b = slope_and_noise()
    keep = 1 - 2 * step * b**2
    expected = ((2 * step * a * b) ** 2 + 2 * step) / (1 - keep**2)
    np.testing.assert_allclose(expected, 1 / (2 * b**2), rtol=0.06)
    start = jnp.asarray(np.sqrt(expected) * np.random.default_rng(0).normal(size=(n, 2)), jnp.float32)
    x = guidance.refine_by_langevin(KEY, LAW, 0.3 * start, LEVEL, weight=0.0, step=step, noise_scale=1.0,
                                    iterations=300)  # fmt: skip
    np.testing.assert_allclose(x.var(0), expected, rtol=4.5 * np.sqrt(2 / n))
    np.testing.assert_allclose(x.mean(0), 0, atol=4.5 * np.sqrt(expected.max() / n))
    quiet = guidance.refine_by_langevin(KEY, LAW, 0.3 * start, LEVEL, weight=0.0, step=step, noise_scale=0.1,
                                        iterations=300)  # fmt: skip
    cold = ((2 * step * a * b) ** 2 + 2 * step * 0.01) / (1 - keep**2)
    np.testing.assert_allclose(quiet.var(0), cold, rtol=4.5 * np.sqrt(2 / n) + 1e-3)


def test_descent_reaches_the_minimum_between_model_and_forecast():
    """The mean over eps of E is b^2 x^2 + const, so with R = (x - f)^2 the minimum is at weight f / (weight + b^2)."""
    _, b = slope_and_noise()
    forecast = np.array([2.0, -1.0])
    expected = 0.7 * forecast / (0.7 + b**2)
    x = guidance.refine_by_descent(KEY, LAW, jnp.zeros((4000, 2)), LEVEL, forecast=forecast, weight=0.7, iterations=300,
                                   optimizer=optax.sgd(0.02))  # fmt: skip
    np.testing.assert_allclose(x.mean(0), expected, atol=4.5 * float(x.std(0).max()) / np.sqrt(4000))
    assert x.std(0).max() < 0.4
    first, target = np.array([1.0, 0.0]), forecast
    masked = guidance.refine_by_descent(KEY, LAW, jnp.zeros((4000, 2)), LEVEL, forecast=target, mask=first, weight=0.7,
                                        iterations=300, optimizer=optax.sgd(0.02))  # fmt: skip
    np.testing.assert_allclose(masked.mean(0), expected * first, atol=4.5 * float(x.std(0).max()) / np.sqrt(4000))


def test_the_published_descent_slows_down_on_a_plateau():
    """With the same seeds, twenty iterations of rate 0.1 are plain gradient descent until ten brought no progress."""
    x = jnp.full((3, 2), 2.0)
    published = guidance.refine_by_descent(KEY, LAW, x, LEVEL, iterations=5)
    plain = guidance.refine_by_descent(KEY, LAW, x, LEVEL, iterations=5, optimizer=optax.sgd(0.1))
    np.testing.assert_allclose(published, plain, rtol=1e-6)
    late = [guidance.refine_by_descent(KEY, LAW, x, LEVEL, iterations=n) for n in (200, 201)]
    still = [guidance.refine_by_descent(KEY, LAW, x, LEVEL, iterations=n, optimizer=optax.sgd(0.1)) for n in (200, 201)]
    assert jnp.abs(late[1] - late[0]).max() < 0.02 * jnp.abs(still[1] - still[0]).max()


def test_series_are_refined_one_by_one_and_levels_may_be_drawn():
    x = jax.random.normal(KEY, (5, 2))
    drawn = jax.tree_util.Partial(lambda key: VP.level(jax.random.uniform(key, minval=0.1, maxval=0.9)))
    for level in (LEVEL, drawn):
        batch = guidance.refine_by_langevin(KEY, LAW, x, level, weight=jnp.linspace(0, 1, 5))
        alone = guidance.refine_by_langevin(KEY, LAW, x[:1], level, weight=0.0)
        np.testing.assert_allclose(alone[0], batch[0], rtol=1e-5)
    assert not np.allclose(*(guidance.refine_by_langevin(KEY, LAW, x, level)[0] for level in (LEVEL, drawn)), atol=1e-3)


def test_an_iteration_is_one_evaluation_and_one_pullback():
    forward, backward = [], []

    @jax.custom_vjp
    def network(x):
        jax.debug.callback(lambda: forward.append(1))
        return 0.5 * x

    def pull(_, g):
        jax.debug.callback(lambda: backward.append(1))
        return (0.5 * g,)

    network.defvjp(lambda x: (network(x), None), pull)
    denoiser = ds.Network(lambda p, x, t, c: network(x), predicts="noise")
    for refine in (guidance.refine_by_langevin, guidance.refine_by_descent):
        forward.clear()
        backward.clear()
        jax.block_until_ready(refine(KEY, denoiser, jnp.ones((2, 2)), LEVEL, iterations=7))
        jax.effects_barrier()
        assert (len(forward), len(backward)) == (7, 7)


def test_bad_input_of_refinement_is_named():
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="iterations=0"):
        guidance.refine_by_descent(KEY, LAW, x, LEVEL, iterations=0)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        guidance.refine_by_langevin(KEY, LAW, x, LEVEL, mask=np.ones(3))
    remembering = guidance.apg(ds.exact.Switch((LAW, LAW)), 1, 2.0, momentum=-0.5)
    with pytest.raises(ValueError, match="memory"):
        guidance.refine_by_langevin(KEY, remembering, x, LEVEL, cond=jnp.zeros(2, int))
