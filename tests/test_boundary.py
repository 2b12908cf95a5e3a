"""The search for a boundary condition, where the sampler's map is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers

VE = ds.VarianceExploding(0.002, 80.0)
VARIANCE = 0.49
MEANS = np.array([[1.0, -2.0, 0.5], [4.0, 0.0, -1.0]])
LAWS = ds.exact.Switch(tuple(ds.exact.Gaussian(mean, VARIANCE) for mean in MEANS))
CONDS = jnp.array([0, 1, 0, 1])
OFFSETS = np.array([[0.3, 0.1, -0.2], [0.5, 0.0, 0.4]])
REFERENCES = jnp.asarray(MEANS[[0, 1, 0, 1]] + np.concatenate([OFFSETS, -OFFSETS]))  # symmetric about their means
START = np.sqrt(VARIANCE + 80.0**2)  # standard deviation of x_T under a conditional law


def squared_error(x, reference):
    return ((x - reference) ** 2).sum(axis=1)


def second_half(x, reference):
    return -x[:, 0]


def sampler(eta=0.0, steps=200):
    return solvers.linear(LAWS, solvers.ddim(VE, ds.times.karras(VE, steps), eta=eta))


def search(metric=squared_error, candidates=24, eta=0.0, **options):
    return ds.search_boundary(jax.random.key(3), sampler(eta), CONDS, REFERENCES, metric, candidates, **options)


def test_squared_error_selects_the_start_nearest_to_the_posterior_mean():
    """Data given y are N(m, v I), so h = m + sqrt(v / (v + T^2)) (x_T - m), and scores are known but for the solver."""
    found = search()
    starts = ds.diffuse(jax.random.key(3), jnp.zeros((24, 3)), VE.level(80.0))
    reach = np.sqrt(VARIANCE) / START * (np.asarray(starts)[:, None] - MEANS)  # [K, 2, 3]
    expected = (reach**2).sum(-1).mean(-1) + (OFFSETS**2).sum(-1).mean()
    np.testing.assert_allclose(found.scores, expected, rtol=0.05)  # DDIM has not converged at 200 steps
    assert found.best == expected.argmin()
    np.testing.assert_allclose(found.x, starts[found.best], rtol=1e-6)
    x = ds.sample(jax.random.key(0), sampler(), x=jnp.broadcast_to(found.x, (4, 3)), cond=CONDS)
    assert squared_error(x, REFERENCES).mean() == pytest.approx(float(found.scores.min()), rel=1e-5)


def test_the_metric_decides():
    starts = ds.diffuse(jax.random.key(3), jnp.zeros((24, 3)), VE.level(80.0))
    assert search(second_half).best == starts[:, 0].argmax() != search().best


def test_chunks_change_no_score():
    whole = search()
    for chunk in (5, 24, 100):
        np.testing.assert_allclose(search(chunk=chunk).scores, whole.scores, rtol=1e-5)


def test_search_makes_as_many_evaluations_as_it_says():
    rows = []

    def spy(params, x, t, cond):
        jax.debug.callback(lambda x: rows.append(len(x)), x)
        return x * 0.0

    table = solvers.ddim(VE, ds.times.karras(VE, 3))
    counted = solvers.linear(ds.Network(spy, predicts="data"), table)
    count = {}
    for candidates in (4, 9):
        rows.clear()
        ds.search_boundary(jax.random.key(0), counted, CONDS, REFERENCES, squared_error, candidates, chunk=2)
        jax.effects_barrier()
        count[candidates] = sum(rows)
    assert count[9] - count[4] == 5 * 4 * counted.nfe  # beside the check that the sampler is deterministic


def test_bad_input_of_the_search_is_named():
    with pytest.raises(ValueError, match="draws noise"):
        search(eta=1.0)
    with pytest.raises(ValueError, match="candidates=0"):
        search(candidates=0)
    with pytest.raises(ValueError, match=r"metric .* got shape \(4, 3\)"):
        search(lambda x, reference: x - reference)
    with pytest.raises(ValueError, match=r"conds has shape \(3,\)"):
        ds.search_boundary(jax.random.key(0), sampler(), CONDS[:3], REFERENCES, squared_error, 2)
