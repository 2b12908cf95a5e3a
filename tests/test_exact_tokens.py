"""Chains, hidden Markov models and mixtures of chains against enumeration of all sequences."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import exact

pytestmark = pytest.mark.usefixtures("x64")

PI, P = np.array([0.5, 0.3, 0.2]), np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
SECOND = ([0.2, 0.2, 0.6], [[0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.5, 0.4, 0.1]], 5)
EVERY = np.array(list(itertools.product(range(3), repeat=5)))
MASKED = np.array(list(itertools.product(range(4), repeat=5)))
HMM = (
    [0.6, 0.4],
    [[0.9, 0.1], [0.3, 0.7]],
    [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]],
)


def chain_joint():
    return np.array([PI[s[0]] * np.prod([P[a, b] for a, b in itertools.pairwise(s)]) for s in EVERY])


def hidden_joint():
    start, transition, emission = map(np.array, HMM)
    total = np.zeros(len(EVERY))
    for z in itertools.product(range(2), repeat=5):
        weight = start[z[0]] * np.prod([transition[a, b] for a, b in itertools.pairwise(z)])
        total += weight * np.prod([emission[z[i], EVERY[:, i]] for i in range(5)], axis=0)
    return total


def marginal(joint, x):
    """Probability of the observed tokens of x, by summing the table."""
    fits = ((EVERY == x[None]) | (x[None] == 3)).all(axis=1)
    return joint[fits].sum()


def check_model(model, joint):
    """Joint, marginals and hollow conditionals at a spread of masked inputs."""
    some = MASKED[::7]
    log_p, law = np.asarray(model.log_prob(jnp.asarray(some))), np.asarray(model.law(jnp.asarray(some)))
    for i, x in enumerate(some):
        assert np.exp(log_p[i]) == pytest.approx(marginal(joint, x), rel=1e-12)
        for at in range(5):
            others = np.where(np.arange(5) == at, 3, x)
            wanted = [marginal(joint, np.where(np.arange(5) == at, v, others)) for v in range(3)]
            np.testing.assert_allclose(law[i, at], wanted / np.sum(wanted), rtol=1e-12)


def test_chain_has_the_marginals_and_conditionals_of_its_table():
    check_model(exact.golden_chain(), chain_joint())


def test_golden_numbers_of_the_chain():
    chain = exact.golden_chain()
    joint = chain_joint()
    assert -(joint * np.log(joint)).sum() == pytest.approx(4.596364, abs=1e-6)
    x = jnp.array([[0, 0, 0, 0, 0], [0, 1, 2, 1, 0], [0, 3, 3, 2, 3]])
    np.testing.assert_allclose(chain.log_prob(x), [np.log(0.12005), -7.195437, np.log(0.1145)], atol=1e-6)
    law = chain.law(jnp.array([[3, 1, 3, 3, 0]]))[0]
    golden = [
        [0.303030, 0.545455, 0.151515],
        [0.525678, 0.246739, 0.227583],
        [0.195255, 0.448905, 0.355839],
        [0.523723, 0.166058, 0.310219],
        [0.274, 0.399, 0.327],
    ]
    np.testing.assert_allclose(law, golden, atol=1e-6)


@pytest.mark.parametrize("messages", [exact.by_scan, exact.by_associative_scan])
def test_hidden_markov_model_has_the_conditionals_of_its_table(messages):
    check_model(exact.hidden_markov(*HMM, messages=messages), hidden_joint())


def test_mixture_of_chains_has_the_conditionals_and_classes_of_its_table():
    second = exact.markov_chain(*SECOND)
    mixture = exact.chain_mixture([exact.golden_chain(), second], [0.7, 0.3])
    tables = np.stack([chain_joint(), np.exp(second.log_prob(jnp.asarray(EVERY)))])
    check_model(mixture, 0.7 * tables[0] + 0.3 * tables[1])
    x = np.array([3, 1, 3, 2, 3])
    found = np.exp(mixture.log_class(jnp.asarray(x[None])))[0]
    weights = [0.7 * marginal(tables[0], x), 0.3 * marginal(tables[1], x)]
    np.testing.assert_allclose(found, weights / np.sum(weights), rtol=1e-12)
    conditional = mixture.law(jnp.asarray(x[None]).repeat(3, 0), jnp.array([0, 1, mixture.null]))
    np.testing.assert_allclose(conditional[0], exact.golden_chain().law(jnp.asarray(x[None]))[0], rtol=1e-12)
    np.testing.assert_allclose(conditional[1], second.law(jnp.asarray(x[None]))[0], rtol=1e-12)
    np.testing.assert_allclose(conditional[2], mixture.law(jnp.asarray(x[None]))[0], rtol=1e-12)


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        exact.markov_chain([0.5, 0.4], np.eye(2), 3)
    with pytest.raises(ValueError, match=r"\[V, V\]"):
        exact.markov_chain([0.5, 0.5], np.eye(3), 3)
    with pytest.raises(ValueError, match="transition"):
        exact.hidden_markov([1.0], [[0.5]], [[1.0]])
