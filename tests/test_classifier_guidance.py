"""Classifier guidance, EluCD and minority guidance against closed forms (TB-C of specs/guidance.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers

KEY, VE, VP = jax.random.key(0), ds.VarianceExploding(), ds.VariancePreserving()
TBC = ds.exact.ClassMixture([0.5, 0.5], [-2.0, 2.0], 0.25, labels=[0, 1])
LEVEL = ds.Level(2.0, 1.0, 2.0)


def exact(x, level, cond):
    return TBC.log_prob(x, level, cond) - TBC.log_prob(x, level, TBC.null)  # log p(k | x_t) up to a constant


def point(now=LEVEL, after=LEVEL, stage=0, index=0, batch=1):
    return ds.Point(now, after, jnp.int32(index), jnp.int32(stage), jax.random.split(KEY, batch))


def unconditional():
    return guidance.fixed(TBC, TBC.null)


def test_the_exact_classifier_gives_the_conditional_score(x64):
    x, label = jnp.array([0.5]), jnp.array([1])
    plain, _ = unconditional()(x, point(), label, ())
    assert -plain.eps[0] / 2 == pytest.approx(-0.008920, abs=1e-6)
    rule = guidance.classifier(unconditional(), exact)
    found, _ = rule(x, point(), label, ())
    assert -found.eps[0] / 2 == pytest.approx(0.352941, abs=1e-6)
    np.testing.assert_allclose(found.x0, TBC.predict(x, LEVEL, label).x0, rtol=1e-12)


@pytest.mark.parametrize("process", [VE, VP, ds.FlowMatching()], ids=["ve", "vp", "flow"])
def test_the_exact_classifier_samples_the_conditional_law(x64, process):
    table = solvers.heun(process, ds.times.uniform_logsnr(process, 5, stop=0.2))
    labels = jnp.array([0, 1, 1])
    x = table.now.sigma[0] * jnp.array([0.3, -1.0, 0.5])
    guided, plain = (
        ds.sample(KEY, solvers.linear(denoiser, table), x=x, cond=labels)
        for denoiser in (guidance.classifier(unconditional(), exact), TBC)
    )
    np.testing.assert_allclose(guided, plain, rtol=1e-8)


def test_classifier_refuses_a_start_in_pure_noise():
    flow = ds.FlowMatching()
    with pytest.raises(ValueError, match="alpha = 0 at t = 1"):
        solvers.linear(guidance.classifier(unconditional(), exact), solvers.ddim(flow, [1.0, 0.5, 0.0]))


def slanted(x, level, cond):
    return 3.0 * jnp.sum(x, axis=1)


def test_mean_shift_moves_the_mean_of_a_ddpm_step_by_its_posterior_variance(x64):
    """beta_tilde = (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s), times scale 2 and gradient 3."""
    times, law = [0.7, 0.4, 0.2], ds.exact.PointMass(jnp.zeros(2))
    x = jnp.array([[0.3, -1.0]])

    def step(rule, grid):
        return ds.sample(KEY, solvers.linear(rule, solvers.ddpm(VP, grid)), x=x)

    rule = guidance.mean_shift(law, slanted, 2.0)
    for grid in (times[:2], times[1:]):
        high, low = (VP.alpha(t) ** 2 for t in grid)
        variance = (1 - low) / (1 - high) * (1 - high / low)
        np.testing.assert_allclose(step(rule, grid) - step(law, grid), np.full((1, 2), 6 * variance), rtol=1e-9)
    np.testing.assert_array_equal(step(rule, [0.2, 0.0]), step(law, [0.2, 0.0]))  # the last step has no variance


def test_score_guidance_moves_a_ddpm_step_by_the_variance_of_the_reverse_sde(x64):
    """beta / sqrt(1 - beta) times the gradient, beta = 1 - abar_t / abar_s."""
    x, law, grid = jnp.array([[0.3, -1.0]]), ds.exact.PointMass(jnp.zeros(2)), [0.7, 0.4]
    moved, still = (
        ds.sample(KEY, solvers.linear(rule, solvers.ddpm(VP, grid)), x=x)
        for rule in (guidance.classifier(law, slanted, 2.0), law)
    )
    beta = 1 - (VP.alpha(0.7) / VP.alpha(0.4)) ** 2
    np.testing.assert_allclose(moved - still, np.full((1, 2), 6 * beta / np.sqrt(1 - beta)), rtol=1e-9)


@pytest.mark.parametrize(("tau", "others", "slope"), [(1, 1, 0.361861), (1, 0.5, 0.384210), (1, 0, 0.352941)])
def test_tempered_log_prob_at_tb_c(x64, tau, others, slope):
    """Logits log(1/2) + log N(x; mu_k, 1/4 + 4): the classifier, a mix, and the joint energy."""

    def value(x):
        logits = jnp.stack([TBC.given(k).log_prob(x, LEVEL) + jnp.log(0.5) for k in (0, 1)], axis=-1)
        return guidance.tempered_log_prob(logits, jnp.array([1]), tau, others)[0]

    assert jax.grad(value)(jnp.array([0.5]))[0] == pytest.approx(slope, abs=1e-6)


def test_tempered_log_prob_does_not_overflow():
    assert jnp.isfinite(guidance.tempered_log_prob(jnp.array([[900.0, -900.0]]), jnp.array([1]))).all()


def test_smooth_relu_is_within_log_2_over_beta_of_relu(x64):
    z = jnp.linspace(-3, 3, 601)
    for beta in (1.0, 3.0, 50.0):
        error = np.abs(guidance.smooth_relu(z, beta) - np.maximum(z, 0))
        assert error.max() == pytest.approx(np.log(2) / beta, rel=1e-6)


def linear_logits(x):
    """Class 1 has the gradient (2, -1)."""
    return jnp.stack([jnp.zeros(len(x), x.dtype), x @ jnp.array([2.0, -1.0], x.dtype)], axis=-1)


def test_elucd_weighs_the_gradient_with_its_sine_and_the_largest_variance(x64):
    """Joint energy (others = 0), so that the gradient is the class's own."""
    rule = guidance.elucd(ds.exact.PointMass(jnp.zeros(2)), linear_logits, 2.0, others=0.0, sway=0.3)
    x, label, largest = jnp.ones((1, 2)), jnp.array([1]), 0.0
    state = rule.init(x)
    for high, low in ((0.8, 0.5), (0.3, 0.2)):
        now, after = VP.level(high), VP.level(low)
        beta = 1 - (now.alpha / after.alpha) ** 2
        variance = beta * (after.sigma / now.sigma) ** 2
        largest = max(largest, variance)
        prediction, state = rule(x, point(now, after), label, state)
        expected = 2 * (variance + 0.3 * largest * np.sin(np.pi * high)) * np.array([2.0, -1.0]) / after.alpha
        np.testing.assert_allclose(prediction.x0[0], expected, rtol=1e-9)
        np.testing.assert_allclose(state.largest, [largest], rtol=1e-9)
    assert largest > variance  # so that the memory matters
    _, later = rule(x, point(VP.level(0.9), VP.level(0.1), stage=1), label, state)
    np.testing.assert_array_equal(later.largest, state.largest)


def test_elucd_takes_its_gradient_at_the_prediction_and_not_through_the_denoiser(x64):
    """D = 0.3 x: through it the gradient would shrink by 0.3; at x it would be that of another place."""

    def squared(x):
        return jnp.stack([jnp.zeros(len(x)), jnp.sum(x**2, axis=1)], axis=-1)

    network = ds.Network(lambda p, x, t, c: 0.3 * x, predicts="data")
    rule = guidance.elucd(network, squared, 1.0, others=0.0, sway=0.0)
    x, now, after = jnp.array([[1.0, -2.0]]), VP.level(0.8), VP.level(0.5)
    prediction, _ = rule(x, point(now, after), jnp.array([1]), rule.init(x))
    variance = (1 - (now.alpha / after.alpha) ** 2) * (after.sigma / now.sigma) ** 2
    np.testing.assert_allclose(prediction.x0, 0.3 * x + variance / after.alpha * 0.6 * x, rtol=1e-9)


def test_elucd_nudge_moves_the_state_by_a_share_of_its_size_before_a_step(x64):
    """N = 4: a_0 = 0.004, a_2 = 0.004 (3 / 5) + 0.0012; RMS(x) g / RMS(g) = (10 / sqrt(2)) (2, -1) sqrt(2 / 5)."""
    law = ds.exact.PointMass(jnp.zeros(2))
    rule, x = guidance.elucd_nudge(law, linear_logits, 4), jnp.array([[6.0, 8.0]])
    for index, amount in ((0, 0.004), (2, 0.0036)):
        prediction, _ = rule(x, point(index=index), jnp.array([1]), ())
        moved = prediction.x0 + 2.0 * prediction.eps
        expected = x + amount * 10 / np.sqrt(2) * np.array([[2.0, -1.0]]) * np.sqrt(2 / 5)
        np.testing.assert_allclose(moved, expected, rtol=1e-9)
    prediction, _ = rule(x, point(stage=1), jnp.array([1]), ())
    np.testing.assert_allclose(prediction.x0 + 2.0 * prediction.eps, x, rtol=1e-12)
    sampler = solvers.linear(rule, solvers.heun(VE, [8.0, 4.0, 2.0]))
    path = ds.sample(KEY, sampler, x=x, cond=jnp.array([1]), record=lambda view: view.x)[1]
    assert path[0, 0, 0] > 6.0  # the sampler's state is the moved one


def test_elucd_nudge_shows_the_classifier_no_more_than_unit_size(x64):
    seen = []

    def spy(x):
        jax.debug.callback(lambda value: seen.append(np.sqrt(np.mean(value**2))), x)
        return linear_logits(x)

    rule = guidance.elucd_nudge(ds.exact.PointMass(jnp.zeros(2)), spy, 4)
    for size in (10.0, 0.3):
        rule(size * jnp.ones((1, 2)), point(), jnp.array([1]), ())
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(set(np.round(seen, 6))), [0.3, 1.0])


MINORITY = {(1.0, 0.0): 0.508264, (0.0, 1.0): 1.084711, (0.0, 0.0): 0.258264}  # S = diag(1, 0.1), abar = 1/2


def test_minority_score_of_a_gaussian_in_closed_form():
    level, copies, draws = ds.Level(None, np.sqrt(0.5), np.sqrt(0.5)), 2000, 20
    law = ds.exact.Gaussian([0.0, 0.0], [1.0, 0.1])
    for x0, expected in MINORITY.items():
        data = jnp.broadcast_to(jnp.array(x0), (copies, 2))
        scores = guidance.minority_score(KEY, law, data, level, draws=draws)
        assert abs(scores.mean() - expected) < 5 * scores.std() / np.sqrt(copies)  # 5 standard errors: 6e-7 a run
        assert scores.std() / np.sqrt(copies) < 0.005


def test_minority_score_is_of_the_sample_and_takes_any_distance():
    law, x0 = ds.exact.Gaussian([0.0, 0.0], [1.0, 0.1]), jax.random.normal(KEY, (4, 2))
    scores = guidance.minority_score(KEY, law, x0, LEVEL)
    np.testing.assert_allclose(guidance.minority_score(KEY, law, x0[:2], LEVEL), scores[:2], rtol=1e-5)
    none = guidance.minority_score(KEY, law, x0, LEVEL, distance=lambda a, b: jnp.zeros(len(a)))
    np.testing.assert_array_equal(none, 0)
    with pytest.raises(ValueError, match="draws=0"):
        guidance.minority_score(KEY, law, x0, LEVEL, draws=0)


def test_quantile_labels_have_equal_mass_and_own_their_upper_edges():
    scores = jax.random.permutation(KEY, jnp.arange(1000.0))
    labels = guidance.quantile_labels(scores, 100)
    np.testing.assert_array_equal(np.bincount(labels), 10)
    np.testing.assert_array_equal(labels[jnp.argsort(scores)], np.repeat(np.arange(100), 10))
    np.testing.assert_array_equal(guidance.quantile_labels(jnp.array([0.0, 1.0, 2.0]), 2), [0, 0, 1])  # median 1
    np.testing.assert_array_equal(guidance.quantile_labels(jnp.ones(4), 2), 0)  # ties stay together
    with pytest.raises(ValueError, match="got 5"):
        guidance.quantile_labels(jnp.ones(4), 5)


def test_classifiers_of_another_shape_are_named():
    law, x, zero = ds.exact.Gaussian(0.0, 1.0), jnp.ones((2, 3)), jnp.int32(0)
    at = ds.Point(ds.Level(0.5, 0.6, 0.8), ds.Level(0.4, 0.8, 0.6), zero, zero, jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match=r"one number a sample, \(2,\), got shape \(2, 3\)"):
        guidance.classifier(law, lambda x, level, cond: x)(x, at, None, ())
    with pytest.raises(TypeError, match="integer labels"):
        guidance.tempered_log_prob(x, x)
