"""Saturation and contrast against the standard library and by hand; entropies and n-grams by counting."""

import colorsys
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import metrics

COLOURS = np.random.default_rng(0).uniform(size=(3, 4, 5, 3))
TOKENS = np.random.default_rng(1).integers(0, 4, size=(6, 12))


def test_saturation_is_that_of_the_standard_library():
    expected = np.mean([colorsys.rgb_to_hsv(*colour)[1] for colour in COLOURS.reshape(-1, 3)])
    assert float(metrics.saturation(jnp.asarray(COLOURS), limits=(0.0, 1.0))) == pytest.approx(expected, rel=1e-5)
    assert float(metrics.saturation(jnp.asarray(2 * COLOURS - 1))) == pytest.approx(expected, rel=1e-5)


def test_saturation_of_black_and_grey_is_zero_and_what_is_out_of_range_is_clipped():
    assert float(metrics.saturation(jnp.full((2, 3, 3, 3), -1.0))) == 0.0
    assert float(metrics.saturation(jnp.full((2, 3, 3, 3), 0.3))) == 0.0
    strong = jnp.array([5.0, 0.0, -9.0]).reshape(1, 1, 1, 3)
    assert float(metrics.saturation(strong)) == 1.0


def test_contrast_of_two_halves_is_half_their_gap():
    """Grey values 0.2 and 0.6; red and black, of which luma keeps 0.299; the mean of several images."""
    grey = jnp.tile(jnp.array([0.2, 0.6]).reshape(1, 1, 2, 1), (1, 3, 1, 1))
    assert float(metrics.contrast(grey, limits=(0.0, 1.0))) == pytest.approx(0.2, rel=1e-5)
    red = jnp.stack([jnp.array([1.0, 0.0, 0.0]), jnp.zeros(3)]).reshape(1, 1, 2, 3)
    assert float(metrics.contrast(red, limits=(0.0, 1.0))) == pytest.approx(0.1495, rel=1e-5)
    flat = jnp.concatenate([grey, jnp.ones_like(grey)])
    assert float(metrics.contrast(flat, limits=(0.0, 1.0))) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(("metric", "shape"), [("saturation", (2, 8, 8, 1)), ("contrast", (2, 8, 8))])
def test_image_metrics_name_the_shape_they_refuse(metric, shape):
    with pytest.raises(ValueError, match=rf"got shape \({shape[0]}, 8, 8"):
        getattr(metrics, metric)(jnp.zeros(shape))


def test_token_entropy_is_the_mean_over_sequences():
    x = np.array([[7, 7, 7, 7], [1, 2, 3, 4], [0, 0, 9, 9]])
    assert metrics.token_entropy(x) == pytest.approx((0 + np.log(4) + np.log(2)) / 3)
    assert metrics.token_entropy(x, ignore=9) == pytest.approx((0 + np.log(4) + 0) / 3)
    with pytest.raises(ValueError, match="sequence 0 has no token besides 7"):
        metrics.token_entropy(x, ignore=7)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams_are_counted_within_sequences(n):
    grams = [tuple(row[i : i + n].tolist()) for row in TOKENS for i in range(12 - n + 1)]
    found = {tuple(gram.tolist()): int(count) for gram, count in zip(*metrics.ngram_counts(TOKENS, n), strict=True)}
    assert found == Counter(grams)
    assert metrics.distinct_ngrams(TOKENS, n) == pytest.approx(len(set(grams)) / len(grams))
    kept = [gram for gram in grams if 2 not in gram]
    assert dict(zip(*map(list, _listed(TOKENS, n, ignore=2)), strict=True)) == Counter(kept)


def _listed(x, n, ignore):
    grams, counts = metrics.ngram_counts(x, n, ignore)
    return [tuple(gram) for gram in grams.tolist()], counts.tolist()


def test_ngram_entropy_of_a_cycle_through_all_pairs_is_uniform():
    cycle = np.array([[0, 0, 1, 1, 0]])  # de Bruijn: each of the four pairs once
    assert metrics.ngram_entropy(cycle, 2) == pytest.approx(np.log(4))


def test_ngram_divergence_is_jensen_and_shannons():
    """Laws (1, 0) and (1/2, 1/2): H(3/4, 1/4) - log(2) / 2 = log(4) - 3/4 log 3 - 1/2 log 2."""
    x, y = np.array([[0, 0]]), np.array([[0, 1], [1, 0], [0, 1]])
    expected = 1.5 * np.log(2) - 0.75 * np.log(3)
    for one, other in ((x, y), (y, x)):
        assert metrics.ngram_divergence(one, other, 1) == pytest.approx(expected, rel=1e-12)
    assert metrics.ngram_divergence(TOKENS, TOKENS[::-1], 2) == pytest.approx(0.0, abs=1e-12)
    assert metrics.ngram_divergence(TOKENS, TOKENS + 9, 2) == pytest.approx(np.log(2))


def test_token_metrics_refuse_what_are_no_tokens():
    for bad in (np.zeros((2, 3)), np.zeros(4, int), np.zeros((0, 3), int)):
        with pytest.raises(ValueError, match=r"integers \[N, L\]"):
            metrics.token_entropy(bad)
    with pytest.raises(ValueError, match=r"n=13 must lie in 1 .. 12"):
        metrics.ngram_entropy(TOKENS, 13)
    with pytest.raises(ValueError, match="every 2-gram holds the token 1"):
        metrics.distinct_ngrams(np.ones((2, 4), int), 2, ignore=1)
