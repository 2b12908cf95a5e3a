"""Conservativity and the gauge condition on fields whose parts are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import diagnostics, solvers
from diffsample.denoiser import Prediction, expand
from diffsample.probes import every_axis
from diffsample.struct import pytree

KEY = jax.random.key(0)
VE = ds.VarianceExploding(0.002, 10.0)
S, B = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
LAW = ds.exact.Gaussian([0.0, 0.0], S)


@pytree
class Rotating(ds.Denoiser):
    """The exact denoiser of N(0, S) with g B S_t^-1 x added to its score: no gradient, and no change of any density."""

    law: ds.exact.Gaussian
    g: float

    def __call__(self, x, at, cond, state):
        exact = self.law.predict(x, at.now)
        extra = self.g * jnp.flip(exact.eps, axis=1) * jnp.array([[1.0, -1.0]], x.dtype)  # sigma g B S_t^-1 x
        return Prediction(exact.x0 + expand(at.now.sigma, x) * extra, exact.eps - extra), state


def flow(g):
    """The matrix of the noise-to-data map, which is linear."""
    grid = ds.times.uniform_logsnr(VE, 400, stop=1e-3)
    return ds.sample(KEY, solvers.linear(Rotating(LAW, g), solvers.rk4(VE, grid)), x=jnp.eye(2)).T


@pytest.mark.parametrize("g", [0.0, 0.7, 3.0])
def test_a_gauge_part_turns_the_flow_and_keeps_the_law(x64, g):
    M = flow(g)
    np.testing.assert_allclose(M @ (S + 100.0 * np.eye(2)) @ M.T, S, atol=4e-6)  # fourth order
    assert np.abs(M - flow(0.0)).max() > 0.01 or g == 0


def test_the_gauge_residual_of_a_rotation_is_zero_and_of_another_part_not(x64):
    x = jax.random.normal(KEY, (16, 2), jnp.float64)
    level = VE.level(0.8)
    score = diagnostics.score_at(LAW, level)
    turned = diagnostics.score_at(Rotating(LAW, 0.7), level)
    residual = diagnostics.gauge_residual(KEY, lambda x: turned(x) - score(x), score, x)
    np.testing.assert_allclose(residual, 0, atol=1e-14)
    np.testing.assert_allclose(turned(x) - score(x), 0.7 * x @ np.linalg.inv(S + 0.64 * np.eye(2)) @ B.T, atol=1e-12)
    tilted = diagnostics.gauge_residual(KEY, lambda x: 0.1 * x, score, x)  # 0.1 (2 - x' S_t^-1 x)
    distance = np.einsum("bi,ij,bj->b", x, np.linalg.inv(S + 0.64 * np.eye(2)), x)
    np.testing.assert_allclose(tilted, 0.1 * (2 - distance), atol=1e-12)


def test_asymmetry_is_0_for_gradients_2_for_rotations_and_known_between(x64):
    """(2 |J_a|^2) / |J|^2 in Frobenius norms of the antisymmetric part and the whole."""
    x = jax.random.normal(KEY, (3, 2), jnp.float64)
    level = VE.level(0.8)
    assert jnp.abs(diagnostics.asymmetry(KEY, diagnostics.score_at(LAW, level), x)).max() < 1e-28
    precision = np.linalg.inv(S + 0.64 * np.eye(2))
    np.testing.assert_allclose(diagnostics.asymmetry(KEY, lambda x: x @ B.T, x), 2, atol=1e-12)
    J = -precision + 0.7 * B @ precision
    expected = ((J - J.T) ** 2).sum() / (2 * (J**2).sum())
    turned = diagnostics.score_at(Rotating(LAW, 0.7), level)
    found, estimated = jax.jit(
        lambda x: (
            diagnostics.asymmetry(KEY, turned, x, probes=every_axis),
            diagnostics.asymmetry(KEY, turned, x, count=4000),
        )
    )(x)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(estimated, expected, atol=0.02)


def test_asymmetry_costs_one_jvp_and_one_vjp_a_probe():
    calls = []

    @jax.custom_jvp
    def field(x):
        return jnp.tanh(x)

    @field.defjvp
    def _(primals, tangents):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.tanh(primals[0]), tangents[0] / jnp.cosh(primals[0]) ** 2

    diagnostics.asymmetry(KEY, field, jnp.ones((2, 3)), count=5)
    jax.effects_barrier()
    assert len(calls) == 5 + 1  # a JVP a probe, and the one linearisation that all pullbacks share


def test_the_loop_integral_of_a_gradient_vanishes_and_of_a_rotation_is_its_area(x64):
    angle = 2 * np.pi * np.arange(7) / 7
    corners = jnp.asarray(np.stack([3 * np.cos(angle), np.sin(angle)], axis=1))
    area = 0.5 * 7 * np.sin(2 * np.pi / 7) * 3
    assert diagnostics.loop_integral(lambda x: x @ B.T, corners) == pytest.approx(-2 * area, abs=1e-12)
    assert diagnostics.loop_integral(diagnostics.score_at(LAW, VE.level(1.0)), corners) == pytest.approx(0, abs=1e-13)
    turn = 2 * np.pi * np.arange(2000) / 2000
    circle = jnp.asarray(np.stack([np.cos(turn), np.sin(turn)], axis=1))
    mixture = ds.exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 1.0]], 0.2)
    assert diagnostics.loop_integral(diagnostics.score_at(mixture, VE.level(0.5)), circle) == pytest.approx(0, abs=1e-4)


def test_the_trace_of_a_batch_is_that_of_each_sample(x64):
    mixture = ds.exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 1.0]], 0.2)
    field = diagnostics.score_at(mixture, VE.level(0.5))
    x = jax.random.normal(KEY, (5, 2), jnp.float64)
    exact, estimated, jacobians = jax.jit(
        lambda x: (
            diagnostics.trace(KEY, field, x, probes=every_axis),
            diagnostics.trace(KEY, field, x, count=4000),
            jax.vmap(jax.jacobian(lambda x: field(x[None])[0]))(x),
        )
    )(x)
    np.testing.assert_allclose(exact, np.trace(jacobians, axis1=1, axis2=2), rtol=1e-10)
    spread = 2 * jnp.abs(jacobians[:, 0, 1]) / np.sqrt(4000)  # of Rademacher probes: from off the diagonal alone
    assert (jnp.abs(estimated - exact) < 4.5 * spread).all()


def test_bad_input_of_the_diagnostics_is_named():
    with pytest.raises(ValueError, match="count=0"):
        diagnostics.trace(KEY, jnp.sin, jnp.ones((2, 2)), count=0)
    with pytest.raises(ValueError, match="three corners"):
        diagnostics.loop_integral(jnp.sin, jnp.ones((2, 2)))
