"""Precision and recall by hand and by a k-d tree; Sinkhorn distances by shifts and exact assignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from diffsample import metrics
from diffsample.metrics import sinkhorn

LINE = jnp.arange(10.0)[:, None]


def inside_by_tree(points, members, k):
    """Share of points within reach of a member, by a k-d tree."""
    tree = KDTree(members)
    radii = tree.query(members, k + 1)[0][:, -1]
    return np.mean([any(np.linalg.norm(members - point, axis=1) <= radii) for point in points])


def test_precision_counts_the_samples_within_reach_of_the_data():
    """Balls of radius 1 around 0 .. 9: -1 is on the surface, 9.5 inside, 10.5 and -2 outside."""
    samples = jnp.array([-1.0, 9.5, 4.2, 10.5, -2.0])[:, None]
    assert float(metrics.precision_recall(samples, LINE, neighbours=1).precision) == pytest.approx(3 / 5)


def test_recall_counts_the_data_within_reach_of_the_samples():
    """Samples 0, 2, 5 with radii 2, 2, 3: 0 .. 8 are covered, 9 is not."""
    samples = jnp.array([0.0, 2.0, 5.0])[:, None]
    assert float(metrics.precision_recall(samples, LINE, neighbours=1).recall) == pytest.approx(9 / 10)


def test_a_member_is_not_its_own_neighbour_and_twins_are():
    twins = jnp.array([0.0, 0.0, 5.0, 5.0])[:, None]
    near = jnp.array([0.0, 0.1, 5.0, 2.0])[:, None]
    assert float(metrics.precision_recall(near, twins, neighbours=1).precision) == 0.5
    assert float(metrics.precision_recall(near, twins, neighbours=2).precision) == 1.0


@pytest.mark.parametrize("k", [1, 4])
def test_precision_and_recall_are_those_of_a_tree_whatever_the_block(k):
    x, y = np.random.default_rng(k).normal(size=(2, 70, 3)) * np.array([0.6, 1.0])[:, None, None] + 0.5
    found = metrics.precision_recall(jnp.asarray(x), jnp.asarray(y), neighbours=k)
    assert float(found.precision) == pytest.approx(inside_by_tree(x, y, k))
    assert float(found.recall) == pytest.approx(inside_by_tree(y, x, k))
    assert 0.2 < float(found.recall) != float(found.precision) > 0.2
    blocks = metrics.precision_recall(jnp.asarray(x), jnp.asarray(y), neighbours=k, block=16)
    assert found == blocks


@pytest.mark.parametrize("k", [0, 5])
def test_precision_refuses_more_neighbours_than_there_are(k):
    with pytest.raises(ValueError, match=rf"neighbours={k} must lie in 1 .. 4, with 5 samples and 10 data"):
        metrics.precision_recall(LINE[:5], LINE, neighbours=k)
    with pytest.raises(ValueError, match="one space"):
        metrics.precision_recall(LINE, jnp.zeros((10, 2)))


@pytest.mark.parametrize("epsilon", [None, 0.5, 20.0])
def test_sinkhorn_wasserstein_of_a_shift_is_its_length_whatever_epsilon(epsilon):
    pytest.importorskip("ott")
    x = jax.random.normal(jax.random.key(0), (40, 2, 2))
    shift = jnp.array([[1.0, -2.0], [0.0, 2.0]])
    assert float(metrics.sinkhorn_wasserstein(x, x + shift[None], epsilon)) == pytest.approx(3.0, rel=2e-3)
    assert float(metrics.sinkhorn_wasserstein(x, x[::-1], epsilon)) == pytest.approx(0.0, abs=0.03)


def test_sinkhorn_wasserstein_tends_to_the_exact_assignment():
    pytest.importorskip("ott")
    x, y = jax.random.normal(jax.random.key(1), (2, 30, 2)) * jnp.array([1.0, 2.0])[:, None, None]
    cost = ((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2).sum(axis=-1)
    exact = np.sqrt(cost[linear_sum_assignment(cost)].mean())
    found = [float(metrics.sinkhorn_wasserstein(x, y, epsilon, 20_000)) for epsilon in (1.0, 0.02)]
    assert found[1] == pytest.approx(exact, rel=0.01)
    assert abs(found[1] - exact) < abs(found[0] - exact)


def test_sinkhorn_wasserstein_that_did_not_converge_is_nan():
    pytest.importorskip("ott")
    x, y = jax.random.normal(jax.random.key(2), (2, 50, 2))
    assert np.isnan(metrics.sinkhorn_wasserstein(x, 3 * y, 1e-4, max_iterations=10))


def test_sinkhorn_wasserstein_says_how_to_get_what_it_needs(monkeypatch):
    monkeypatch.setattr(sinkhorn, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ott-jax: pip install 'diffsample\[metrics\]'"):
        metrics.sinkhorn_wasserstein(LINE, LINE)
