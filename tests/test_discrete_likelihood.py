"""Losses and likelihoods against sums over all masks of the reference chain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import discrete, exact

double = pytest.mark.usefixtures("x64")
X = np.array([[0, 1, 2, 1, 0]])
EVERY = np.array(list(itertools.product(range(3), repeat=5)))
MASKS = np.array(list(itertools.product([False, True], repeat=5)))


def bent_model():
    """An imperfect network: the chain's laws, sharpened, so that orders disagree."""
    return discrete.MaskedModel(*bent_parts(), exact.golden_chain(), 3, 3, hollow=True)


def bent_parts():
    return sharpened, exact.golden_chain().model().head


def sharpened(params, x, t, cond):
    return params.law(x) ** 2


@double
def test_set_weights_turn_the_losses_of_all_masks_into_the_likelihood_of_an_exact_model():
    chain = exact.golden_chain()
    losses = discrete.masked_loss(chain.model(), jnp.asarray(X).repeat(32, 0), jnp.asarray(MASKS))
    weights = discrete.set_weights(5)[MASKS.sum(axis=1)]
    assert float(jnp.sum(weights * losses)) == pytest.approx(7.195437, abs=1e-6)


@pytest.mark.slow
@double
def test_any_order_identity_for_every_sequence():
    chain = exact.golden_chain()
    found = discrete.exact_bound(chain.model(), jnp.asarray(EVERY))
    np.testing.assert_allclose(found, -chain.log_prob(jnp.asarray(EVERY)), rtol=1e-12)
    np.testing.assert_allclose(discrete.log_likelihood(chain.model(), jnp.asarray(EVERY)), -found, rtol=1e-12)


@double
@pytest.mark.parametrize("loss", [discrete.score_entropy, discrete.cross_entropy])
@pytest.mark.parametrize("schedule", [discrete.Polynomial(2.0), discrete.Cosine()])
def test_continuous_time_losses_integrate_to_the_same_bound(loss, schedule):
    # Gauss-Legendre over t, all masks weighted by their probability at t
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t, dt = (nodes + 1) / 2, weights / 2
    m = 1 - np.asarray(schedule.alpha(t))
    k = MASKS.sum(axis=1)
    chance = m[:, None] ** k * (1 - m[:, None]) ** (5 - k)  # [t, masks]
    x, masks = (jnp.asarray(a) for a in (np.broadcast_to(X, (40 * 32, 5)), np.tile(MASKS, (40, 1))))
    values = loss(bent_model(), x, masks, schedule, jnp.repeat(jnp.asarray(t), 32)).reshape(40, 32)
    total = float(np.sum(dt[:, None] * chance * np.asarray(values)))
    assert total == pytest.approx(float(discrete.exact_bound(bent_model(), jnp.asarray(X))[0]), rel=1e-4)


def test_estimates_of_the_bound_are_unbiased_and_say_how_far_off_they_are():
    model, x = bent_model(), jnp.asarray(EVERY[::20])
    exact_values = discrete.exact_bound(model, x)
    estimate = discrete.any_order_bound(jax.random.key(0), model, x, draws=400)
    z = (np.asarray(estimate.value) - exact_values) / np.asarray(estimate.standard_error)
    assert np.abs(z).max() < 4.5 and np.asarray(estimate.standard_error).max() < 0.5
    prompt = jnp.asarray(X) == 1
    given = discrete.any_order_bound(jax.random.key(0), model, jnp.asarray(X), draws=400, frozen=prompt)
    chain = exact.golden_chain()
    perfect = discrete.any_order_bound(jax.random.key(1), chain.model(), jnp.asarray(X), draws=400, frozen=prompt)
    wanted = chain.log_prob(jnp.where(prompt, X, 3)) - chain.log_prob(jnp.asarray(X))
    assert abs(float(perfect.value[0] - wanted[0])) < 4.5 * float(perfect.standard_error[0])
    assert given.value[0] < estimate.value.max()


def test_more_orders_tighten_the_bound_towards_the_likelihood():
    model, x = bent_model(), jnp.asarray(np.repeat(X, 200, 0))
    bound = float(discrete.exact_bound(model, jnp.asarray(X))[0])
    truth = -float(discrete.log_likelihood(model, jnp.asarray(X))[0])
    one, many = (np.asarray(discrete.importance_weighted_bound(jax.random.key(2), model, x, orders=m)) for m in (1, 16))
    assert abs(one.mean() - bound) < 4.5 * one.std() / np.sqrt(200)
    assert truth < bound - 0.01
    # bias of M orders is var / 2M to first order
    assert abs(many.mean() - truth) < 4.5 * many.std() / np.sqrt(200) + 0.1 * (bound - truth)


def of_the_time(params, x, t, cond):
    return jnp.stack([0 * t, 3 * t - 1], axis=-1)[:, None, :] + jnp.zeros((*x.shape, 2))


def as_it_is(params, h, positions):
    return h


def itself(m):
    return m


def test_a_timed_network_is_asked_at_the_share_that_is_masked():
    # logits (0, 3 t - 1) whatever x: with k of 3 masked at t = k / 3, log(1 + e^(1 - k)) a token, in any order
    model, x = discrete.MaskedModel(of_the_time, as_it_is, (), 2, 2, time=itself), jnp.ones((1, 3), int)
    wanted = np.log1p(np.exp([0.0, -1.0, -2.0])).sum()
    key = jax.random.key(4)
    for found in (
        discrete.any_order_bound(key, model, x, draws=3).value,
        discrete.importance_weighted_bound(key, model, x, orders=2),
        discrete.exact_bound(model, x),
        -discrete.log_likelihood(model, x),
    ):
        assert float(found[0]) == pytest.approx(wanted, rel=1e-5)
