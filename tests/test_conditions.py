"""Rules on the condition: what the network is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers

VE, KEY = ds.VarianceExploding(), jax.random.key(4)
LEVEL = ds.Level(1.0, 1.0, 1.0)
PAIR = ds.exact.Switch((ds.exact.Gaussian(1.0, 0.25), ds.exact.Gaussian(-1.0, 0.5), ds.exact.Gaussian(0.0, 1.0)))


def echo(params, x, t, cond):
    """Answers with the condition itself, so that what the network saw is the prediction."""
    return jnp.broadcast_to(cond.reshape(len(x), -1), x.shape).astype(x.dtype)


ECHO = ds.Network(echo, predicts="data")


def seen(rule, cond, batch=64, width=1, key=KEY, level=LEVEL):
    at = ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(key, batch))
    x = jnp.zeros((batch, width))
    return rule(x, at, cond, rule.init(x))[0].x0


def test_relabel_gives_each_label_its_stand_in():
    labels = jnp.array([0, 1, 2, 3])
    np.testing.assert_array_equal(seen(guidance.relabel(ECHO, [0, 2, 2, 1]), labels, 4)[:, 0], [0, 2, 2, 1])


def test_a_forgotten_class_is_sampled_as_its_stand_in():
    """Conditional-score substitution: the samples of y are those of table[y], under guidance too."""

    def drawn(denoiser, labels):
        sampler = solvers.linear(guidance.cfg(denoiser, 2, 1.7), solvers.ddim(VE, [10.0, 2.0, 0.5, 0.0]))
        return ds.sample(KEY, sampler, (3,), cond=jnp.array(labels))

    np.testing.assert_array_equal(drawn(guidance.relabel(PAIR, [0, 0, 2]), [0, 1, 1]), drawn(PAIR, [0, 0, 0]))


def test_fixed_condition_hides_the_samples_own():
    np.testing.assert_array_equal(seen(guidance.fixed(ECHO, 7), jnp.arange(5), 5)[:, 0], 7)
    np.testing.assert_array_equal(seen(guidance.fixed(ECHO, jnp.array([1.0, 2.0])), None, 5, 2)[3], [1, 2])


def random_label(key):
    return jax.random.randint(key, (), 0, 4)


def test_icg_draws_a_condition_for_every_sample_and_call():
    rule = guidance.icg(ECHO, random_label, 3.0)
    cond = jnp.full(4000, 2)
    drawn = (6 - seen(rule, cond, 4000)[:, 0]) / 2  # c + 2 (c - u)
    counts = np.bincount(np.asarray(drawn, int), minlength=4)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 3 / 16)  # 5 standard errors: 2e-6 a run
    again = (6 - seen(rule, cond, 4000, key=jax.random.key(5))[:, 0]) / 2
    assert 0.2 < (again == drawn).mean() < 0.3  # another key: 1/4 agree
    apart = guidance.icg(ECHO, random_label, 3.0, batched=False)
    np.testing.assert_array_equal(seen(rule, cond, 4000), seen(apart, cond, 4000))


def test_icg_with_the_null_condition_is_cfg():
    rule, labels = guidance.icg(PAIR, lambda key: 2, 3.0), jnp.array([0, 1] * 32)
    np.testing.assert_array_equal(seen(rule, labels), seen(guidance.cfg(PAIR, 2, 3.0), labels))


def test_cads_adds_the_noise_that_its_schedule_says():
    cond = jnp.full((20000, 1), 3.0)
    ramp = guidance.piecewise_linear([1.0, 100.0], [1.0, 0.0])
    for sigma, gamma in ((0.5, 1.0), (10.0, 0.5), (200.0, 0.0)):
        level = ds.Level(sigma, 1.0, sigma)
        found = seen(guidance.cads(ECHO, ramp, 2.0, mix=0.0), cond, 20000, level=level)
        assert abs(found.mean() - 3 * np.sqrt(gamma)) < 5 * 2 / np.sqrt(20000)
        assert found.var() == pytest.approx(4 * (1 - gamma), rel=5 * np.sqrt(2 / 20000))


def test_cads_restores_mean_and_deviation_and_leaves_the_condition_alone_without_noise():
    cond = jax.random.normal(KEY, (64, 6))
    found = seen(guidance.cads(ECHO, 0.3, 1.0), cond, width=6)
    np.testing.assert_allclose(found.mean(1), cond.mean(1), atol=1e-5)
    np.testing.assert_allclose(found.std(1), cond.std(1), atol=1e-5)
    assert np.abs(found - cond).max() > 0.5
    np.testing.assert_array_equal(seen(guidance.cads(ECHO, 1.0), cond, width=6), cond)


def test_cads_around_cfg_leaves_the_null_condition_alone():
    rule = guidance.cads(guidance.cfg(ECHO, jnp.full(1, 5.0), 0.0), 0.0)  # scale 0: the null branch
    np.testing.assert_array_equal(seen(rule, jnp.zeros((64, 1))), 5)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: guidance.relabel(ECHO, [0.5]), ValueError, "list of integers"),
        (lambda: seen(guidance.relabel(ECHO, [0]), jnp.zeros(64)), TypeError, "integer labels"),
        (lambda: guidance.cads(ECHO, 1.5), ValueError, "gamma=1.5"),
        (lambda: seen(guidance.cads(ECHO, 0.5), jnp.zeros(64, int)), TypeError, "floating point"),
    ],
)
def test_bad_conditions_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
