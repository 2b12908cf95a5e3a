"""Log-likelihood by the flow: Gaussians and mixtures in closed form, the two traces, gradients, bits."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample.likelihood import bits_per_dim, dequantise, log_likelihood
from diffsample.probes import every_axis, gaussian, rademacher

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
FINE = diffrax.PIDController(rtol=1e-9, atol=1e-9)
PROCESSES = [VP, ds.SubVP(), ds.VarianceExploding(0.002, 80.0), ds.FlowMatching(), ds.DiscreteBetas.linear(20)]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_gaussian_data_have_the_closed_density(x64, process):
    """The flow maps N(alpha mu, v) of t_min to a Gaussian at t_max linearly, and the prior there is N(0, sigma^2)."""
    mu, var, x = 0.7, 0.25, jnp.linspace(-1.0, 2.0, 8).reshape(2, 4)
    law = ds.exact.Gaussian(mu, var)
    begin, end = process.level(process.t_min), process.level(process.t_start)
    found = log_likelihood(KEY, law, process, x, controller=FINE)
    spread = [np.sqrt(level.alpha**2 * var + level.sigma**2) for level in (begin, end)]
    latent = end.alpha * mu + spread[1] / spread[0] * (x - begin.alpha * mu)
    np.testing.assert_allclose(found.latent, latent, rtol=1e-6)
    log_normal = -0.5 * (latent / end.sigma) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(end.sigma)
    expected = (log_normal + np.log(spread[1] / spread[0])).sum(axis=1)
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-7)  # Rademacher is exact: the Jacobian is diagonal
    assert found.ok.all() and (found.calls >= 6 * found.steps).all()
    if process is VP:
        # p_1 has mean 0.7 alpha_1, not 0, and x0 lies up to 2.6 standard deviations out
        np.testing.assert_allclose(found.log_prob, law.log_prob(x, begin), atol=0.05)
        exact = log_likelihood(KEY, law, process, x, controller=FINE, probes=every_axis)
        np.testing.assert_allclose(exact.log_prob, found.log_prob, rtol=1e-10)


def pair():
    """A law with correlated coordinates, whose Jacobian is not diagonal."""
    cov = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]]])
    return ds.exact.Mixture([0.4, 0.6], [[-1.0, 0.5], [1.0, 0.0]], cov)


def test_mixture_density_and_score(x64):
    """VE to sigma = 4e4, where N(0, sigma^2) is the prior up to 1e-5 nats for data of size 1."""
    process, law = ds.VarianceExploding(0.05, 4e4), pair()
    x, level = jnp.array([[-1.0, 0.2], [0.3, 0.4], [2.0, -1.0]]), process.level(process.t_min)

    def total(x):
        found = log_likelihood(KEY, law, process, x, probes=every_axis, controller=FINE, max_steps=512)
        return found.log_prob.sum(), found.log_prob

    slope, log_prob = jax.grad(total, has_aux=True)(x)
    np.testing.assert_allclose(log_prob, law.log_prob(x, level), atol=5e-5)
    np.testing.assert_allclose(slope, law.score(x, level), atol=1e-4)


def test_hutchinson_is_unbiased_and_per_sample():
    law, x = pair(), jnp.tile(jnp.array([[0.3, 0.4]]), (256, 1))
    exact = log_likelihood(KEY, law, VP, x[:1], probes=every_axis).log_prob[0]
    for probes in (rademacher, gaussian):
        found = log_likelihood(KEY, law, VP, x, probes=probes).log_prob
        error = found.std() / np.sqrt(256)
        assert 1e-4 < error and abs(float(found.mean() - exact)) < 4.5 * error  # false alarm 7e-6
        alone = log_likelihood(KEY, law, VP, x[:2], probes=probes, first=200).log_prob
        np.testing.assert_allclose(alone, found[200:202], rtol=1e-4, atol=1e-4)
    one, many = found.var(), log_likelihood(KEY, law, VP, x, probes=gaussian, count=16).log_prob.var()
    assert 8 < one / many < 32  # a ratio of variances of 256 samples has a relative spread of 13 %


def test_float32_is_accurate_to_its_tolerance_and_conditions_are_per_sample():
    law = ds.exact.Gaussian(0.0, 0.25)
    shifted = ds.Network(moved, (), predicts="data")
    x, cond = jnp.array([[0.3, 0.1], [1.3, 1.1]]), jnp.array([0.0, 1.0])
    found = log_likelihood(KEY, shifted, VP, x, cond=cond)
    expected = [float(law.log_prob(x[:1], VP.level(1e-3))[0]), float(law.log_prob(x[1:] - 1.0, VP.level(1e-3))[0])]
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-2)  # p_1 is not quite N(0, 1)
    assert found.log_prob.dtype == jnp.float32


def moved(params, x, t, cond):
    """E[x0 | x] of N(cond, 1/4)."""
    level = VP.level(t)
    a, s = level.alpha[:, None], level.sigma[:, None]
    return cond[:, None] + a * 0.25 / (a**2 * 0.25 + s**2) * (x - a * cond[:, None])


def test_the_number_of_calls_is_the_number_of_calls():
    count = []

    def counted(params, x, t, cond):
        jax.debug.callback(lambda: count.append(1))
        return 0.5 * x

    found = log_likelihood(KEY, ds.Network(counted, (), predicts="noise"), VP, jnp.ones((1, 2)))
    jax.effects_barrier()
    assert len(count) == found.calls[0]


def test_giving_up_is_a_nan_and_a_flag():
    found = log_likelihood(KEY, pair(), VP, jnp.zeros((2, 2)), max_steps=3)
    assert not found.ok.any() and np.isnan(found.log_prob).all()


def test_bits_per_dimension_of_a_uniform_density_count_the_values():
    """A density of 1 / 2 on [-1, 1], or 1 on [0, 1], spends 8 bits on each of 256 values."""
    np.testing.assert_allclose(bits_per_dim(jnp.array([3 * np.log(0.5)]), 3), [8.0], rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(jnp.zeros(1), 3, low=0.0), [8.0], rtol=1e-6)
    v = jnp.arange(256).reshape(1, -1)
    x = dequantise(KEY, v, low=0.0)
    np.testing.assert_array_equal(np.floor(np.asarray(x) * 256), v)


def test_what_it_refuses():
    x = jnp.zeros((2, 2))
    with_memory = ds.guidance.apg(
        ds.exact.ClassMixture([0.5, 0.5], [-1.0, 1.0], 0.1, labels=[0, 1]), 2, 3.0, momentum=-0.5
    )
    for arguments, message in (
        ({"denoiser": with_memory}, "memory"),
        ({"denoiser": ds.guidance.cfg_pp(ds.exact.Gaussian(0.0, 1.0), null=0)}, "not coupled"),
        ({"t_min": 0.0}, "must lie in"),
        ({"t_min": 0.9, "t_max": 0.5}, "below"),
        ({"process": ds.FlowMatching(), "t_max": 1.0}, "infinite"),
        ({"count": 0}, "count=0"),
        ({"cond": jnp.zeros(3)}, r"cond has shape \(3,\).*here 2"),
        ({"first": -1}, "first=-1"),
    ):
        options: dict[str, Any] = {"denoiser": pair(), "process": VP} | arguments
        with pytest.raises(ValueError, match=message):
            log_likelihood(KEY, x=x, **options)
    with pytest.raises(TypeError, match="typed key"):
        log_likelihood(0, pair(), VP, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integers"):
        dequantise(KEY, x)
