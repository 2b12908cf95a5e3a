"""Draws of tokens against the laws of specs/discrete.md section 2, with stated false-alarm rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffsample import discrete
from diffsample.discrete.draws import Keyed

KEY = jax.random.key(1)


def shares(draw, log_p, n):
    """Shares of n draws of one law."""
    x = jax.jit(lambda keys: draw(keys, jnp.broadcast_to(log_p, (50, n // 50, log_p.size))))(jax.random.split(KEY, 50))
    return np.bincount(np.asarray(x).ravel(), minlength=log_p.size) / n


@pytest.mark.parametrize("draw", [discrete.inverse_cdf, discrete.gumbel_max])
def test_draws_have_the_law(draw):
    # chi-squared over 100 tokens of a steep law, one of probability zero; fails once in 10^6 keys
    p = np.exp(-0.1 * np.arange(100))
    p[7] = 0.0
    p /= p.sum()
    n = 200000
    found = shares(draw, jnp.log(jnp.asarray(p)), n)
    assert found[7] == 0
    seen = p > 0
    statistic = n * np.sum((found[seen] - p[seen]) ** 2 / p[seen])
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-6, 98)


def test_two_levels_keep_a_long_tail():
    # Zipf's law over 50257 tokens: shares of 12 spans of the vocabulary, chi-squared, once in 10^6 keys
    p = 1 / (np.arange(50257) + 2.7)
    p /= p.sum()
    n = 100000
    log_p = jnp.log(jnp.asarray(p, jnp.float32))
    draw = jax.jit(lambda keys: discrete.inverse_cdf(keys, jnp.broadcast_to(log_p, (1, n // 1000, 50257))))
    x = np.concatenate([np.asarray(draw(keys[None])).ravel() for keys in jax.random.split(KEY, 1000)])
    edges = np.array([0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 20000, 35000, 50257])
    wanted = np.add.reduceat(p, edges[:-1])
    found = np.histogram(x, edges)[0]
    assert np.sum((found - n * wanted) ** 2 / (n * wanted)) < scipy.stats.chi2.ppf(1 - 1e-6, 11)


def test_coarse_noise_sharpens_a_one_step_draw_and_separating_when_from_what_does_not():
    # a mask of probability 1 - rho beside tokens rho p: kept / ideal = x / (e^x - 1), x = 2^-b (1 - rho) / (rho p)
    bits, rho, p, n = 12, 2**-10, np.array([0.9, 0.09, 0.009, 0.001]), 1_000_000
    joint = jnp.log(jnp.asarray(np.append(rho * p, 1 - rho)))
    one_step = shares(discrete.CoarseGumbel(bits), joint, n)[:4]
    x = 2.0**-bits * (1 - rho) / (rho * p)
    # the dominant class draws u = 0 with probability 2^-b, and then any token wins: at most that much is added
    expected = rho * p * x / np.expm1(x)
    deviation = 4.5 * np.sqrt(expected / n) + 2.0**-bits * rho
    np.testing.assert_array_less(np.abs(one_step - expected), deviation + 2.0**-bits * expected / expected.sum())
    assert one_step.sum() < 0.9 * rho  # uncertain positions wait longer
    assert one_step[2] / one_step[0] < 0.7 * p[2] / p[0]  # and what they draw is colder
    apart = shares(discrete.inverse_cdf, jnp.log(jnp.asarray(p)), 400000)
    np.testing.assert_array_less(np.abs(apart - p), 4.5 * np.sqrt(p / 400000))


@pytest.mark.parametrize("draw", [discrete.inverse_cdf, discrete.gumbel_max])
def test_one_possible_token_is_drawn(draw):
    for vocab, at in ((3, 1), (1000, 999), (1000, 0)):
        log_p = jnp.full((2, 5, vocab), -jnp.inf).at[..., at].set(-3.0)
        assert (draw(jax.random.split(KEY, 2), log_p) == at).all()


def test_draws_of_a_sequence_depend_on_its_key_alone():
    log_p = jax.random.normal(KEY, (3, 4, 70))
    keys = jax.random.split(KEY, 3)
    together = discrete.inverse_cdf(keys, log_p)
    np.testing.assert_array_equal(together[1], discrete.inverse_cdf(keys[1:2], log_p[1:2])[0])


def test_orders_are_drawn_without_replacement():
    # first place by weight, second by weight among the rest: shares within 4.5 standard errors
    n, w = 40000, np.array([0.5, 0.3, 0.2])
    log_w = jnp.broadcast_to(jnp.append(jnp.log(jnp.asarray(w)), -jnp.inf), (n, 4))
    ranks = np.asarray(Keyed(jax.random.split(KEY, n)).ranks(log_w))
    assert (ranks[:, 3] == 4).all() and (np.sort(ranks[:, :3], axis=1) == np.arange(3)).all()
    for first in range(3):
        for second in range(3):
            if first != second:
                p = w[first] * w[second] / (1 - w[first])
                found = np.mean((ranks[:, first] == 0) & (ranks[:, second] == 1))
                assert abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_clocks_are_order_statistics_of_uniforms():
    n, length = 20000, 8
    clocks = np.asarray(Keyed(jax.random.split(KEY, n)).clocks(jnp.full(n, 5), length))
    assert (np.diff(clocks, axis=1) <= 0).all() and (clocks[:, 5:] == 0).all()
    means = np.arange(5, 0, -1) / 6
    np.testing.assert_array_less(np.abs(clocks[:, :5].mean(axis=0) - means), 4.5 * 0.18 / np.sqrt(n))
    assert scipy.stats.kstest(clocks[:, 0] ** 5, "uniform").pvalue > 1e-6


def kept(proposal, p):
    out = proposal(jnp.log(jnp.asarray(p, jnp.float32))[None, None], None)
    return np.flatnonzero(np.asarray(out[0, 0]) > -np.inf).tolist(), np.exp(np.asarray(out[0, 0]))


def test_top_p_and_top_k_keep_what_a_sort_would():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.dirichlet(np.full(30, 0.3)).astype(np.float32)
        p = np.maximum(p, 1e-20) / np.maximum(p, 1e-20).sum()
        order = np.argsort(-p)
        mass = np.cumsum(p[order])
        for goal in (0.2, 0.8, 0.97):
            through = order[: int(np.searchsorted(mass, goal)) + 1]
            within = order[: max(1, int((mass <= goal).sum()))]
            assert kept(discrete.TopP(goal), p)[0] == sorted(through.tolist())
            assert kept(discrete.TopP(goal, inside=True), p)[0] == sorted(within.tolist())
        found, q = kept(discrete.TopK(4), p)
        assert found == sorted(order[:4].tolist())
        np.testing.assert_allclose(q[order[:4]], p[order[:4]] / p[order[:4]].sum(), rtol=1e-5)


def test_ties_are_kept_and_every_sequence_may_have_its_number():
    assert kept(discrete.TopK(2), [0.4, 0.2, 0.2, 0.2])[0] == [0, 1, 2, 3]
    assert kept(discrete.TopP(0.5), [0.5, 0.25, 0.25])[0] == [0]
    assert kept(discrete.TopP(0.6), [0.5, 0.25, 0.25])[0] == [0, 1, 2]
    assert kept(discrete.TopP(0.8, inside=True), [0.5, 0.25, 0.25])[0] == [0]
    p = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.2])), (3, 3, 3))  # as many sequences as slots and tokens
    for make, numbers in (
        (discrete.Temperature, [0.5, 1.0, 2.0]),
        (discrete.TopP, [0.4, 0.7, 1.0]),
        (discrete.TopK, [1, 2, 3]),
    ):
        together = make(jnp.array(numbers))(p, None)
        for i, number in enumerate(numbers):
            np.testing.assert_allclose(together[i], make(number)(p[i : i + 1], None)[0], rtol=1e-6)
    assert kept(discrete.Temperature(float("inf")), [0.5, 0.0, 0.5])[0] == [0, 2]


def test_temperature_and_greedy():
    p = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(kept(discrete.Temperature(0.5), p)[1], p**2 / np.sum(p**2), rtol=1e-6)
    assert kept(discrete.greedy, p)[0] == [0]
    both = discrete.chain(discrete.greedy, discrete.Temperature(2.0))
    assert kept(both, p)[0] == [0]
