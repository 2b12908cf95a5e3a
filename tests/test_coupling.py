"""Couplings: exact laws and the published probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from diffsample.coupling import coupling_probability, reflection_coupling, residual_sample

N = 40_000
ACCEPTANCE = {0.1: 0.960122, 0.5: 0.802587, 1.0: 0.617075, 2.0: 0.317311, 3.0: 0.133614}
DRAFT_MEAN, MEAN, STD = jnp.array([0.3, -0.2, 0.5]), jnp.array([0.0, 0.1, 0.1]), 0.7


def coupled(draft_mean, mean, std, n=N):
    draw, decide = jax.random.split(jax.random.key(0))
    z = jax.random.normal(draw, (n, *mean.shape))
    draft_mean, mean = (jnp.broadcast_to(m, z.shape) for m in (draft_mean, mean))
    return reflection_coupling(jax.random.split(decide, n), z, draft_mean, mean, std)


@pytest.mark.parametrize("gap", ACCEPTANCE)
def test_reflection_accepts_as_often_as_is_possible(gap):
    expected = ACCEPTANCE[gap]
    draft = 2.0 * gap * jnp.array([0.6, 0.8])
    assert coupling_probability(draft[None], jnp.zeros((1, 2)), 2.0)[0] == pytest.approx(expected, abs=1e-6)
    accepted = coupled(draft, jnp.zeros(2), 2.0).accepted.mean()
    assert accepted == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / N))


def test_reflection_leaves_the_target_law():
    """Section 11a of specs/guidance.md: the mean is the target's and the covariance 0.49 I, whatever the draft was."""
    x, accepted = coupled(DRAFT_MEAN, MEAN, STD)
    assert accepted.mean() == pytest.approx(0.677047, abs=4 * 0.4676 / np.sqrt(N))
    np.testing.assert_allclose(x.mean(0), MEAN, atol=4 * STD / np.sqrt(N))
    np.testing.assert_allclose(np.cov(x.T), 0.49 * np.eye(3), atol=4.5 * 0.49 * np.sqrt(2 / N))
    assert not np.allclose(x[accepted].mean(0), MEAN, atol=0.05)  # what was kept alone has not the law


def test_reflection_keeps_a_perfect_draft_and_replaces_a_point():
    keys, z = jax.random.split(jax.random.key(1), 4), jax.random.normal(jax.random.key(2), (4, 3))
    same = jnp.ones((4, 3))
    assert reflection_coupling(keys, z, same, same, 0.5).accepted.all()
    x, accepted = reflection_coupling(keys, z, same.at[0].set(2.0), same, jnp.array([0.0, 0.0, 0.5, 0.5]))
    np.testing.assert_array_equal(x[:2], 1.0)
    assert accepted.tolist() == [False, True, True, True]


def replaced(key, logp, logq, sample_p, sample_q):
    """A draft, kept with probability min(1, p / q), else replaced by a residual draw."""
    draft, decide, again = jax.random.split(key, 3)
    y = sample_q(draft)
    keep = jnp.log(jax.random.uniform(decide)) <= logp(y) - logq(y)
    residual = residual_sample(again, logp, logq, sample_p)
    return jnp.where(keep, y, residual.x), keep, residual


def test_residual_of_discrete_laws_is_exact():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.3, 0.1])
    logp, logq = jnp.log(p), jnp.log(q)
    out, keep, residual = jax.vmap(
        lambda key: replaced(key, lambda i: logp[i], lambda i: logq[i],
                             lambda k: jax.random.categorical(k, logp), lambda k: jax.random.categorical(k, logq))
    )(jax.random.split(jax.random.key(3), N))  # fmt: skip
    total = 0.4  # total variation of p and q; the residual law is (0, 1/2, 1/2)
    for found, expected in ((residual.x, [0.0, 0.5, 0.5]), (out, p)):
        np.testing.assert_allclose(np.bincount(found, minlength=3) / N, expected, atol=4 * 0.5 / np.sqrt(N))
    assert keep.mean() == pytest.approx(1 - total, abs=4 * 0.5 / np.sqrt(N))
    assert residual.accepted.all()
    assert residual.tries.mean() == pytest.approx(1 / total, abs=4 * np.sqrt(1 - total) / total / np.sqrt(N))


def test_residual_of_normals_of_other_widths_is_exact():
    def logp(x):
        return norm.logpdf(x)

    def logq(x):
        return norm.logpdf(x, 0.5, 0.7)

    out, _, residual = jax.vmap(
        lambda key: replaced(key, logp, logq, jax.random.normal, lambda k: 0.5 + 0.7 * jax.random.normal(k))
    )(jax.random.split(jax.random.key(4), N))
    for level in (-1.0, 0.0, 0.8, 1.7):
        assert (out <= level).mean() == pytest.approx(float(norm.cdf(level)), abs=4 * 0.5 / np.sqrt(N))
    assert (jnp.exp(logp(residual.x)) > jnp.exp(logq(residual.x))).all()


def test_residual_says_when_its_tries_ran_out():
    found = residual_sample(jax.random.key(5), lambda x: 0.0 * x, lambda x: 0.0 * x, jax.random.normal, max_tries=7)
    assert int(found.tries) == 7 and not bool(found.accepted)
    with pytest.raises(ValueError, match="max_tries=0"):
        residual_sample(jax.random.key(5), norm.logpdf, norm.logpdf, jax.random.normal, max_tries=0)
