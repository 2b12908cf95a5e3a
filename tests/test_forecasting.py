"""Observation self-guidance on a Gaussian (TB-B of specs/guidance.md), where every sampler is an affine map."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers

KEY = jax.random.key(0)
VE = ds.VarianceExploding(0.002, 80.0)
BETAS = ds.DiscreteBetas(tuple(np.linspace(1e-4, 0.1, 100)))  # the published schedule
S = np.array([[1.0, 0.8], [0.8, 1.0]])
LAW = ds.exact.Gaussian([0.0, 0.0], S)
Y, MASK = np.array([1.0, 99.0]), np.array([1.0, 0.0])  # what is not observed is not read
HEUN = solvers.heun(VE, ds.times.karras(VE, 64))


def point(level, n):
    return ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(KEY, n))


def output(rule, table, x):
    return ds.sample(KEY, solvers.linear(rule, table), x=jnp.asarray(x))


def test_squared_error_at_scale_s_is_dps_of_noise_variance_1_over_2s(x64):
    x = jnp.array([[0.7, -0.4]])
    rule = guidance.observe(LAW, Y, MASK, scale=2.0)
    x0, eps = rule(x, point(VE.level(1.3), 1), None, rule.init(x))[0]
    np.testing.assert_allclose(x0[0], [1.951690, 1.216919], atol=1e-6)
    np.testing.assert_allclose(x0 + 1.3 * eps, x, atol=1e-12)


def test_observation_guidance_reaches_the_known_law_of_dps(x64):
    out = output(guidance.observe(LAW, Y, MASK, scale=2.0), HEUN, np.r_[np.zeros((1, 2)), np.eye(2)])
    np.testing.assert_allclose(out[0], [1.241723, 1.233391], atol=1e-6)
    M = (out[1:] - out[:1]).T
    np.testing.assert_allclose((80.0**2 * M @ M.T)[[0, 0, 1], [0, 1, 1]], [0.031348, -0.034446, 0.257159], atol=1e-6)


def test_quantile_gradient_is_minus_q_below_and_1_minus_q_above():
    energy = guidance.quantile_loss(jnp.array([0.9, 0.9, 0.2]))
    x0, y = jnp.array([[0.0, 5.0], [2.0, 5.0], [2.0, 5.0]]), jnp.array([[1.0, 0.0]] * 3)
    gradient = jax.grad(lambda x0: energy(x0, y, jnp.array([[1.0, 0.0]] * 3)).sum())(x0)
    np.testing.assert_allclose(gradient, [[-0.9, 0.0], [0.1, 0.0], [0.8, 0.0]], atol=1e-6)
    np.testing.assert_allclose(guidance.quantile_levels(9), np.arange(0.1, 0.95, 0.1), rtol=1e-6)


def test_quantile_guidance_sorts_an_ensemble_by_its_levels():
    """Same noise, rising levels: forecasts of the observed entry rise with q, and surround the observation."""
    levels = guidance.quantile_levels(9)
    rule = guidance.observe(LAW, Y, MASK, 2.0, guidance.quantile_loss(levels))
    x = jnp.broadcast_to(jnp.array([[10.0, -30.0]]), (9, 2))
    out = output(rule, solvers.ddim(VE, ds.times.karras(VE, 40)), x)
    assert (np.diff(out[:, 0]) > 0).all() and (np.diff(out[:, 1]) > 0).all()
    alone = guidance.observe(LAW, Y, MASK, 2.0, guidance.quantile_loss(levels[3]))
    np.testing.assert_allclose(output(alone, solvers.ddim(VE, ds.times.karras(VE, 40)), x[:1])[0], out[3], rtol=1e-5)


def without_noise(table):
    return dataclasses.replace(table, c=np.zeros_like(table.c))


def test_after_step_form_is_the_published_loop(x64):
    """Algorithm of TSDiff on the mean path, its own loop: step, then a gradient at the new state and the old level."""
    grid = ds.times.trailing(BETAS, 100)
    levels = [ds.Level(*map(float, level)) for level in zip(*grid.levels, strict=True)]
    x = np.array([0.5, -1.0])
    for t, s in itertools.pairwise(levels):
        D = t.alpha * S @ np.linalg.inv(t.alpha**2 * S + t.sigma**2 * np.eye(2))
        abar_t, abar_s = t.alpha**2, s.alpha**2
        beta = 1 - abar_t / abar_s
        x = np.sqrt(abar_s) * beta / (1 - abar_t) * D @ x + np.sqrt(abar_t / abar_s) * (1 - abar_s) / (1 - abar_t) * x
        residual = np.array([(D @ x)[0] - 1.0, 0.0])
        x = x - 4.0 * beta * (1 - abar_s) / (1 - abar_t) * D.T @ (2 * residual)
    rule = guidance.observe_after_step(LAW, Y, MASK, scale=4.0)
    found = output(rule, without_noise(solvers.ddpm(BETAS, grid)), [[0.5, -1.0]])
    np.testing.assert_allclose(found[0], x, atol=1e-10)


def test_both_forms_agree_in_the_limit_of_many_steps(x64):
    """A gradient after the step, times the step's variance, is the score term of the ancestral step to first order."""
    apart = []
    for steps in (100, 400):
        table = without_noise(solvers.ddpm(VE, ds.times.karras(VE, steps)))
        rules = [form(LAW, Y, MASK, 0.5) for form in (guidance.observe, guidance.observe_after_step)]
        a, b = (output(rule, table, [[0.0, 0.0]]) for rule in rules)
        apart.append(float(jnp.abs(a - b).max()))
    assert apart[1] < 0.02 and apart[1] < 0.35 * apart[0]


def test_scale_zero_is_the_denoiser_itself():
    table = solvers.ddpm(BETAS, ds.times.trailing(BETAS, 20))
    x = jax.random.normal(KEY, (4, 2))
    plain = output(LAW, table, x)
    for form in (guidance.observe, guidance.observe_after_step):
        np.testing.assert_allclose(output(form(LAW, Y, MASK, 0.0), table, x), plain, rtol=1e-5, atol=1e-6)


def test_bad_observations_are_named():
    table = solvers.ddim(VE, [80.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="mask must hold 0 and 1"):
        guidance.observe(LAW, Y, [0.5, 1.0], 1.0)
    with pytest.raises(ValueError, match=r"y has shape \(3,\)"):
        output(guidance.observe(LAW, np.ones(3), MASK, 1.0), table, [[0.0, 0.0]])
    with pytest.raises(ValueError, match="q=1"):
        guidance.quantile_loss(1.0)
    flow = solvers.ddim(ds.FlowMatching(), [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="alpha"):
        solvers.linear(guidance.observe(LAW, Y, MASK, 1.0), flow)
