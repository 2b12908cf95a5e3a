"""SEDD's samplers for uniform noise, on exact concrete scores of two correlated tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, exact

JOINT = np.array([[0.30, 0.05, 0.02], [0.03, 0.25, 0.05], [0.05, 0.05, 0.20]])
SCHEDULE = discrete.Polynomial()
double = pytest.mark.usefixtures("x64")


def kernel(alpha):
    return alpha * jnp.eye(3) + (1 - alpha) / 3


def log_score(params, x, t, cond):
    """log p_t(x with the position at v) / p_t(x), [B, 2, 3]."""
    noisy = kernel(1 - t[0]) @ jnp.asarray(JOINT, t.dtype) @ kernel(1 - t[0])
    score = jnp.stack([noisy[:, x[:, 1]].T, noisy[x[:, 0]]], axis=1) / noisy[x[:, 0], x[:, 1]][:, None, None]
    return jnp.log(score)


def log_leave_one_out(params, x, t, cond):
    """log p(x0_l | the other noisy token), [B, 2, 3]."""
    joint = jnp.asarray(JOINT, t.dtype)
    first, second = joint @ kernel(1 - t[0]), joint.T @ kernel(1 - t[0])
    return jnp.log(jnp.stack([first[:, x[:, 1]].T, second[:, x[:, 0]].T], axis=1))


def model(function):
    return discrete.MaskedModel(function, as_it_is, (), vocab=3, mask_id=3, time=itself)


def as_it_is(params, h, positions):
    return h


def itself(m):
    return m


def law(sampler, start=0.2):
    """The output law from the exact noisy law at alpha = start, [9]."""
    noisy = np.asarray(kernel(start)) @ JOINT @ np.asarray(kernel(start))
    starts = itertools.product(range(3), repeat=2)
    return sum(noisy[s] * exact.output_law(sampler, np.array(s)).p for s in starts)


@double
def test_analytic_step_on_scores_is_the_leave_one_out_step_on_laws():
    times = np.linspace(0.8, 0.0, 5)
    scored = law(discrete.uniform_tweedie(model(log_score), SCHEDULE, times))
    plain = law(discrete.uniform_ancestral(model(log_leave_one_out), times))
    np.testing.assert_allclose(scored, plain, atol=1e-12)


@double
@pytest.mark.parametrize("method", [discrete.uniform_tweedie, discrete.uniform_euler])
def test_score_samplers_are_first_order(method):
    errors = []
    for steps in (8, 16):
        found = law(method(model(log_score), SCHEDULE, np.linspace(0.8, 0.0, steps + 1)))
        errors.append(0.5 * np.abs(found - JOINT.ravel()).sum())
    assert errors[1] < 0.05 and 1.7 < errors[0] / errors[1] < 2.6


def test_euler_steps_are_as_long_as_the_noise_rate_where_they_start():
    # alpha = 1 - t: sigma' = 1 / (1 - t), 5 at t = 0.8 and 2.5 at 0.6; row 0 only calls
    sampler = discrete.uniform_euler(model(log_score), SCHEDULE, [0.8, 0.6, 0.0])
    np.testing.assert_allclose(sampler.numbers[2], [0.0, 1.0, 1.5], rtol=1e-6)


def test_euler_samples_have_their_law_and_belong_to_their_keys():
    sampler = discrete.uniform_euler(model(log_score), discrete.LogLinear(0.1), np.linspace(1.0, 0.0, 9))
    out = ds.sample(jax.random.key(0), sampler, (20000, 2))
    assert (out.calls == 8).all()
    np.testing.assert_array_equal(ds.sample(jax.random.key(0), sampler, (1, 2), first=17).x[0], out.x[17])
    starts = itertools.product(range(3), repeat=2)
    wanted = np.mean([exact.output_law(sampler, np.array(s)).p for s in starts], axis=0)
    shares = np.bincount(np.asarray(out.x @ jnp.array([3, 1])), minlength=9) / 20000
    np.testing.assert_array_less(np.abs(shares - wanted), 4.5 * np.sqrt(wanted / 20000))


def test_no_signal_and_bad_ids_are_refused():
    with pytest.raises(ValueError, match=r"alpha\(1\) = 0"):
        discrete.uniform_tweedie(model(log_score), SCHEDULE, [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="times must fall"):
        discrete.uniform_euler(model(log_score), SCHEDULE, [0.5, 0.5, 0.0])
    sampler = discrete.uniform_euler(model(log_score), SCHEDULE, [0.5, 0.0])
    with pytest.raises(ValueError, match=r"x\[0, 1\] = 4 is no token"):
        ds.sample(jax.random.key(0), sampler, x=jnp.array([[0, 4]]))
