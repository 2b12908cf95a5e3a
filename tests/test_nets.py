"""The networks' contracts, and the quality of the trained models that ship with the package."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffsample import metrics
from diffsample.nets import digits
from diffsample.nets.unet import UNet


@pytest.fixture(scope="module")
def models():
    return digits.load()


apply = jax.jit(digits.apply)


@jax.jit
def denoise(params, x, s, label):
    """D(x; s) of the preconditioned network; s scalar."""
    variance, d = s**2 + digits.SIGMA_DATA**2, digits.SIGMA_DATA
    return d**2 / variance * x + s * d / jnp.sqrt(variance) * digits.apply(
        params, x / jnp.sqrt(variance), jnp.log(s) / 4, label
    )


@jax.jit
def heun(params, x, grid, label):
    """The second-order sampler of arXiv 2206.00364, algorithm 1, written out apart from the library's own."""

    def step(x, pair):
        s, end = pair
        slope = (x - denoise(params, x, s, label)) / s
        guess = x + (end - s) * slope
        late = jnp.maximum(end, 1e-4)
        second = (guess - denoise(params, guess, late, label)) / late
        return jnp.where(end > 0, x + (end - s) * (slope + second) / 2, guess), None

    return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]


@pytest.fixture(scope="module")
def tiny():
    """A call F(params, x, c_noise, label) of a tiny U-Net, and its initial parameters."""
    graph, params = nnx.split(UNet((4, 4, 1), classes=3, width=8, rngs=nnx.Rngs(0)), nnx.Param)
    return jax.jit(lambda params, x, c_noise, label: nnx.merge(graph, params)(x, c_noise, label)), params


def test_unet_sees_level_label_and_every_pixel(tiny):
    call, params = tiny  # blocks start as identities and the output as zero: wake them up
    rng = np.random.default_rng(1)  # on the host: a draw of every shape would be a compiled program each
    params = jax.tree.map(lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape, np.float32), params)
    x = jax.random.normal(jax.random.key(2), (1, 4, 4, 1))
    base = call(params, x, 0.1, jnp.array([3]))
    assert np.abs(call(params, x, 0.2, jnp.array([3])) - base).max() > 1e-4
    assert np.abs(call(params, x, 0.1, jnp.array([2])) - base).max() > 1e-4
    reach = jax.grad(lambda x: call(params, x, 0.1, jnp.array([3]))[0, 0, 0, 0])(x)
    assert np.all(np.abs(reach) > 0)


def test_unet_starts_at_zero_so_that_the_denoiser_starts_at_its_skip(tiny):
    call, params = tiny
    assert not np.any(call(params, jnp.ones((1, 4, 4, 1)), 0.1, jnp.array([1])))


@pytest.mark.parametrize(("shape", "width"), [((7, 8, 1), 8), ((8, 8, 1), 12)])
def test_unet_refuses_shapes_it_cannot_halve_or_group(shape, width):
    with pytest.raises(ValueError, match="multiple of 8"):
        UNet(shape, classes=2, width=width, rngs=nnx.Rngs(0))


def test_apply_takes_one_level_or_one_a_sample(models):
    x = jax.random.normal(jax.random.key(0), (5, *digits.SHAPE))
    labels = jnp.array([0, 3, 9, digits.NULL, 4])
    one = apply(models.params, x, jnp.float32(-0.3), labels)
    many = apply(models.params, x, jnp.full(5, -0.3), labels)
    alone = apply(models.params, x[3:4], jnp.float32(-0.3), jnp.int32(digits.NULL))
    np.testing.assert_array_equal(one, many)
    np.testing.assert_allclose(alone, one[3:4], atol=1e-4)


def test_apply_in_bfloat16_is_apply_to_the_precision_of_its_input(models):
    x = jax.random.normal(jax.random.key(1), (16, *digits.SHAPE)).astype(jnp.bfloat16)
    labels = jnp.arange(16) % 11
    half = apply(models.params, x, jnp.float32(0.1), labels)
    full = apply(models.params, x.astype(jnp.float32), jnp.float32(0.1), labels)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.03)


def test_load_is_cached_and_apply_does_not_trace_again(models):
    assert digits.load() is models
    traces = []
    call = jax.jit(lambda p, x: traces.append(1) or digits.apply(p, x, jnp.float32(0.0), jnp.int32(2)))
    for scale in (1.0, 2.0):
        call(jax.tree.map(lambda a, scale=scale: a * scale, models.params), jnp.ones((1, *digits.SHAPE)))
    assert len(traces) == 1


def test_stored_moments_are_consistent(models):
    assert models.sigma_data == pytest.approx(digits.SIGMA_DATA, rel=1e-6)
    pixel_variance = np.trace(models.cov) / 64 + models.mean.var()
    assert np.sqrt(pixel_variance) == pytest.approx(models.sigma_data, rel=1e-3)  # 1/N against 1/(N-1)
    for cov in (models.cov, *models.class_covs):
        assert np.linalg.eigvalsh(cov.astype(np.float64))[0] > -1e-5
    np.testing.assert_allclose(models.class_means.mean(axis=0), models.mean, atol=0.02)  # nearly balanced classes


def test_denoiser_answers_the_mean_in_pure_noise(models):
    # At s = 150 the exact posterior mean is within 0.01 of the class mean; the rest is the network's error.
    x = 150.0 * jax.random.normal(jax.random.key(2), (64, *digits.SHAPE))
    labels = jnp.arange(64) % 11
    means = np.concatenate([models.class_means, models.mean[None]])[labels].reshape(x.shape)
    errors = denoise(models.params, x, jnp.float32(150.0), labels) - means
    assert np.sqrt(np.mean(errors**2)) < 0.05


def test_denoiser_leaves_clean_digits_alone(models):
    x = models.class_means.reshape(10, *digits.SHAPE)
    clean = denoise(models.params, x, jnp.float32(0.002), jnp.arange(10))
    assert np.abs(clean - x).max() < 0.01


def test_classifier_knows_the_class_means_and_was_good_on_held_out_digits(models):
    logits = models.classifier(jnp.asarray(models.class_means.reshape(10, *digits.SHAPE)))
    np.testing.assert_array_equal(logits.argmax(-1), np.arange(10))
    assert models.accuracy > 0.97


def test_conditional_samples_have_the_law_and_the_labels_of_the_data(models):
    # 500 real digits, drawn with replacement, are at distance 0.25 of all 1797; samples are to be not far beyond it.
    grid = (80 ** (1 / 7) + np.linspace(0, 1, 18) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    labels = jnp.arange(500) % 10
    noise = 80.0 * jax.random.normal(jax.random.key(3), (500, *digits.SHAPE))
    samples = heun(models.params, noise, jnp.asarray([*grid, 0.0], jnp.float32), labels)
    assert float(metrics.accuracy(models.classifier(samples), labels)) > 0.95
    distance = metrics.frechet_distance(*metrics.moments(samples), models.mean, models.cov)
    assert distance < 0.4


def test_load_needs_no_scikit_learn_and_may_come_first_inside_a_trace():
    code = """
import sys
sys.modules["sklearn"] = None
import jax, jax.numpy as jnp
from diffsample.nets import digits
jax.jit(lambda x: digits.load().classifier(x))(jnp.zeros((1, *digits.SHAPE)))
digits.load().classifier(jnp.zeros((2, *digits.SHAPE)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
