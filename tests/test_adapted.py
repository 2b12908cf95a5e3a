"""Adapted particles for linear measurements, against Gaussian posteriors; z-tests at 4 standard errors (6e-5 each)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
LAW = ds.exact.Gaussian([0.5, -1.0], [[1.0, 0.8], [0.8, 1.5]])  # specs/smc.md 9.3b


def sampler(steps=100, law=LAW, **options):
    grid = ds.times.uniform_logsnr(VP, steps, stop=1e-3, zero=False)
    return solvers.linear(law, solvers.ddpm(VP, grid, large=True, **options))


def groups(fk, n=48, particles=128):
    return ds.sample(KEY, fk, (n * particles, 2))


def test_mcgdiff_without_noise_has_the_conditional_law_and_the_evidence():
    out = groups(smc.mcgdiff(sampler(), [[1.0, 0.0]], [1.5], 0.0, particles=128))
    np.testing.assert_allclose(out.x[:, 0], 1.5, atol=1e-5)
    mean, second = np.asarray(out.mean(out.x[:, 1])), np.asarray(out.mean((out.x[:, 1] + 0.2) ** 2))
    assert abs(mean.mean() + 0.2) < 0.02 + 4 * mean.std() / np.sqrt(len(mean))
    assert abs(second.mean() - 0.86) < 0.03 + 4 * second.std() / np.sqrt(len(second))
    z = np.exp(out.log_z + 1.4189385)
    assert z.std() < 1.2 and abs(z.mean() - 1) < 0.03 + 4 * z.std() / np.sqrt(len(z))


def test_noisy_measurements_are_exact_at_any_number_of_steps():
    # N(0, 1) data on VP: the table's kernels are the exact ones, so that p(y) is known
    law = ds.exact.Gaussian([0.0, 0.0], 1.0)
    operator, y, noise = np.array([[1.2, 0.9]]), np.array([1.0]), 0.5
    out = groups(smc.mcgdiff(sampler(30, law), operator, y, noise, particles=128))
    cov = operator @ operator.T + noise**2 * np.eye(1)
    exact = -0.5 * y @ np.linalg.solve(cov, y) - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    z = np.exp(out.log_z - exact)
    assert z.std() < 1.0
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(len(z)) + 0.005  # and what alpha of the start keeps of the data
    posterior = operator.T @ np.linalg.solve(cov, y)
    error = z[:, None] * (np.asarray(out.mean(out.x)) - posterior[None])
    assert (np.abs(error.mean(0)) < 4 * error.std(0) / np.sqrt(len(z)) + 0.01).all()


@pytest.mark.parametrize("path", [1, 2])
def test_filtering_along_a_path_has_the_conditional_law_whatever_the_path(path):
    fk = smc.fps(sampler(200), [[1.0, 0.0]], [1.5], 0.0, jax.random.key(path), particles=256)
    out = groups(fk, 16, 256)
    np.testing.assert_allclose(out.x[:, 0], 1.5, atol=1e-5)
    mean, second = np.asarray(out.mean(out.x[:, 1])), np.asarray(out.mean((out.x[:, 1] + 0.2) ** 2))
    assert abs(mean.mean() + 0.2) < 0.06 + 4 * mean.std() / 4
    assert abs(second.mean() - 0.86) < 0.08 + 4 * second.std() / 4


def test_unobserved_directions_are_the_samplers_own_and_rows_share_a_program():
    linear = sampler(20)
    assert smc.mcgdiff(linear, [[1.0, 0.0]], [1.5], 0.5, particles=4).nfe == linear.nfe
    image = ds.exact.Gaussian(np.zeros((2, 2)), 1.0)
    fk = smc.mcgdiff(sampler(20, image), np.eye(4)[:1], [2.0], 0.0, particles=8)
    x = ds.sample(KEY, fk, (8, 2, 2)).x
    np.testing.assert_allclose(x[:, 0, 0], 2.0, atol=1e-5)
    assert jnp.abs(x[:, 1]).max() < 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: smc.mcgdiff(sampler(5), [[1.0, 0.0]], [1.0, 2.0], 0.1, particles=4), "must be"),
        (lambda: smc.mcgdiff(sampler(5), [[1.0, 0.0], [2.0, 0.0]], [1.0, 2.0], 0.1, particles=4), "full row rank"),
        (lambda: smc.mcgdiff(sampler(5), [[1.0, 0.0]], [1.0], -0.1, particles=4), ">= 0"),
        (
            lambda: ds.sample(KEY, smc.mcgdiff(sampler(5), [[1.0, 0.0]], [1.0], 0.1, particles=4), (4, 3)),
            r"vectors of 2 numbers, and the samples \(4, 3\) hold 3 each",
        ),
    ],
)
def test_bad_measurements_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
