"""Consistency functions and one-step generators: boundary condition, and the laws that they sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.consistency import consistency_function

VE, KEY, EPS = ds.VarianceExploding(0.002, 80.0), jax.random.key(0), 0.002


def raw(params, x, t, cond):
    return jnp.sin(3 * x) + t[:, None] + params


def level(sigma):
    return ds.Level(sigma, 1.0, sigma)


def answer(network, x, sigma, process_level=None):
    at = ds.Point(
        process_level or level(sigma), level(sigma), jnp.int32(0), jnp.int32(0), jax.random.split(KEY, len(x))
    )
    return network(x, at, None, ())[0]


def test_the_function_is_the_identity_at_sigma_min_whatever_the_network(x64):
    x = jnp.array([[0.3, -2.0, 7.0]])
    np.testing.assert_allclose(answer(consistency_function(raw, 5.0), x, EPS).x0, x, rtol=1e-12)


def test_preconditioning_at_a_level_worked_by_hand(x64):
    """sigma - sigma_min = 1, sigma_data = 1/2: c_skip = 1/5, c_out = c_in / 2, c_in = 1 / sqrt(1.254004)."""
    seen = []

    def spy(params, x, t, cond):
        seen.append((x, t))
        return jnp.ones_like(x)

    x = jnp.array([[2.0]])
    found = answer(consistency_function(spy), x, 1.002)
    np.testing.assert_allclose(found.x0, 0.4 + 0.5 / np.sqrt(1.254004), rtol=1e-12)
    np.testing.assert_allclose(seen[0][0], 2 / np.sqrt(1.254004), rtol=1e-12)
    np.testing.assert_allclose(seen[0][1], np.log(1.002) / 4, rtol=1e-12)


def test_another_process_asks_the_same_function_at_equal_noise(x64):
    vp, x = ds.VariancePreserving(), jnp.array([[0.3, -1.2]])
    network = consistency_function(raw, 0.1, process=VE)
    now = vp.level(0.5)
    found = answer(ds.AnyProcess(network), x, None, now)
    np.testing.assert_allclose(found.x0, answer(network, x / now.alpha, now.sigma / now.alpha).x0, rtol=1e-9)


def end_of_path(params, x, t, cond):
    """The consistency function of N(0, v): x sqrt((v + eps^2) / (v + sigma^2))."""
    return x * jnp.sqrt((params + EPS**2) / (params + t[:, None] ** 2))


def test_one_step_and_multistep_samples_of_a_gaussian(x64):
    """One step from N(0, 80^2) has deviation 0.499994; further steps keep the variance v + eps^2."""
    network, v = ds.Network(end_of_path, 0.25, predicts="data", time=ds.noise_scale), 0.25
    one = solvers.linear(network, solvers.consistency_multistep(VE, [80.0, EPS], sigma_min=EPS))
    assert ds.sample(KEY, one, x=jnp.array([[80.0]]))[0, 0] == pytest.approx(0.499994, abs=1e-6)
    n = 40000
    many = solvers.linear(network, solvers.consistency_multistep(VE, [80.0, 5.0, 0.821, EPS], sigma_min=EPS))
    found = ds.sample(KEY, many, x=80 * jax.random.normal(KEY, (n, 1)))
    assert found.var() == pytest.approx(v + EPS**2, rel=5 * np.sqrt(2 / n))  # 5 standard errors: 6e-7


def test_a_one_step_generator_is_a_table_of_one_step(x64):
    """G(z) = D(sigma z, t): at step 440 of a linear-beta VP chain, rho = 2.502."""
    process = ds.DiscreteBetas.linear()
    t = 441 / 1000
    rho = process.sigma(t) / process.alpha(t)
    assert rho == pytest.approx(2.502, abs=2e-3)
    law = ds.exact.Gaussian(1.0, 0.25)
    sampler = solvers.linear(law, solvers.ddim(process, [t, 0.0]))
    assert sampler.nfe == 1
    noise = ds.diffuse(KEY, jnp.zeros((5,)), process.level(t))
    np.testing.assert_allclose(
        ds.sample(KEY, sampler, (5,), dtype=jnp.float64), law.predict(noise, process.level(t)).x0
    )


def test_bad_constants_are_named():
    with pytest.raises(ValueError, match="sigma_data > 0"):
        consistency_function(raw, sigma_data=0.0)
