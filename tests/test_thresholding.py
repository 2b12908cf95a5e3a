"""Clipping and dynamic thresholding of x0: small exact cases, the pair, and what DDIM makes of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.compiles import count_compiles

KEY = jax.random.key(3)
VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 6)
RULES = {"clip": guidance.clip, "dynamic": guidance.dynamic_threshold}


def answer(params, x, t, cond):
    return params + 0 * x


LEVEL = ds.Level(1.0, 0.6, 0.8)


def point(level=LEVEL, batch=1):
    return ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(KEY, batch))


def applied(rule, x0, **options):
    x0 = jnp.asarray(x0)
    denoiser = rule(ds.Network(answer, x0, predicts="data"), **options)
    x = jnp.linspace(-1, 1, x0.size).reshape(x0.shape)
    return x, denoiser(x, point(batch=len(x0)), None, ())[0]


def test_clip_cuts_each_element():
    _, found = applied(guidance.clip, [[3.0, 0.25, -1.5]])
    np.testing.assert_allclose(found.x0, [[1.0, 0.25, -1.0]])
    _, found = applied(guidance.clip, [[3.0, 0.25], [3.0, 0.25]], low=0.5, high=jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found.x0, [[1.0, 0.5], [2.0, 0.5]])


def test_dynamic_threshold_divides_by_the_quantile_of_each_sample():
    """|x0| = 0, 1, 2, 3, 4 has the 0.75-quantile 3; the second sample stays within 1 and is left alone."""
    x0 = [[0.0, -1.0, 2.0, -3.0, 4.0], [0.0, 0.1, -0.2, 0.3, 0.4]]
    _, found = applied(guidance.dynamic_threshold, x0, quantile=0.75)
    np.testing.assert_allclose(found.x0, [[0, -1 / 3, 2 / 3, -1, 1], x0[1]], rtol=1e-6)
    _, found = applied(guidance.dynamic_threshold, x0, quantile=jnp.array([0.5, 0.5]), bound=0.2)
    np.testing.assert_allclose(found.x0, [[0, -0.1, 0.2, -0.2, 0.2], [0, 0.1, -0.2, 0.2, 0.2]], rtol=1e-6)


def test_dynamic_threshold_with_its_least_largest_is_clip():
    x0 = [[0.0, -1.0, 2.0, -3.0, 0.4]]
    _, dynamic = applied(guidance.dynamic_threshold, x0, largest=1.0)
    np.testing.assert_allclose(dynamic.x0, applied(guidance.clip, x0)[1].x0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_pair_is_consistent_unless_eps_is_kept(rule):
    x0 = [[3.0, -2.0, 0.5]]
    x, found = applied(rule, x0)
    np.testing.assert_allclose(0.6 * found.x0 + 0.8 * found.eps, x, atol=1e-6)
    x, kept = applied(rule, x0, keep_eps=True)
    np.testing.assert_allclose(kept.eps, (x - 0.6 * jnp.asarray(x0)) / 0.8, rtol=1e-6)
    np.testing.assert_array_equal(kept.x0, found.x0)
    network = ds.Network(answer, 0.0, predicts="data")
    assert rule(network).coupled and not rule(network, keep_eps=True).coupled


@pytest.mark.parametrize("keep_eps", [False, True])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rule_is_the_identity_where_nothing_exceeds(rule, keep_eps):
    law = ds.exact.Mixture([0.5, 0.5], [-0.8, 0.6], 0.0)
    plain = ds.sample(KEY, solvers.linear(law, solvers.dpmpp(VP, GRID)), (16, 4))
    limited = ds.sample(KEY, solvers.linear(rule(law, keep_eps=keep_eps), solvers.dpmpp(VP, GRID)), (16, 4))
    np.testing.assert_allclose(limited, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [solvers.ddim, solvers.euler], ids=["data form", "state form"])
@pytest.mark.parametrize("keep_eps", [False, True])
def test_ddim_of_a_clipped_pair_is_the_formula_of_diffusers(solver, keep_eps):
    """use_clipped_model_output of diffusers' DDIM is `not keep_eps`."""
    law = ds.exact.Gaussian(0.5, 2.0)
    x = expected = jnp.linspace(-2.0, 2.0, 9)
    levels = [ds.Level(*map(float, level)) for level in zip(*GRID.levels, strict=True)]
    for s, t in itertools.pairwise(levels):
        found, _ = law(expected, point(s, 9), None, ())
        clipped = jnp.clip(found.x0, -1, 1)
        eps = found.eps if keep_eps else (expected - s.alpha * clipped) / s.sigma
        expected = t.alpha * clipped + t.sigma * eps
    sampler = solvers.linear(guidance.clip(law, keep_eps=keep_eps), solver(VP, GRID))
    np.testing.assert_allclose(ds.sample(KEY, sampler, x=x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_another_bound_compiles_nothing_and_samples_do_not_depend_on_their_batch(rule):
    name = "high" if rule is guidance.clip else "bound"
    law = ds.exact.Gaussian(0.5, 4.0)

    def run(size, n=8, **options):
        sampler = solvers.linear(rule(law, **{name: size}), solvers.dpmpp(VP, GRID))
        return ds.sample(KEY, sampler, (n, 3), **options)

    batch = run(1.0)
    with count_compiles() as compiles:
        run(2.0)
    assert compiles.count == 0
    np.testing.assert_allclose(run(1.0, 1, first=5)[0], batch[5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("clip", {"low": 1.0}),
        ("dynamic", {"quantile": 1.5}),
        ("dynamic", {"bound": 0.0}),
        ("dynamic", {"bound": 2.0, "largest": 1.0}),
    ],
)
def test_impossible_bounds_are_named(rule, options):
    with pytest.raises(ValueError, match="|".join(options)):
        RULES[rule](ds.exact.PointMass(0.0), **options)
