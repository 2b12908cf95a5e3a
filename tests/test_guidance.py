"""CFG and APG against golden vectors, closed forms and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers

LEVEL = ds.Level(1.0, 1.0, 2.0)
VE = ds.VarianceExploding(0.002, 80.0)
TWO_LAWS = ds.exact.Switch((ds.exact.Gaussian(1.0, 0.25), ds.exact.Gaussian(0.0, 1.0)))


def point(stage=0, level=LEVEL, batch=1):
    keys = jax.random.split(jax.random.key(0), batch)
    return ds.Point(level, level, jnp.int32(0), jnp.int32(stage), keys)


def two_answers(params, x, t, cond):
    """Answers params[cond] whatever x is."""
    return params[cond]


def answers(conditional, unconditional):
    table = jnp.stack([jnp.asarray(conditional, jnp.float64), jnp.asarray(unconditional, jnp.float64)])
    return ds.Network(two_answers, table, predicts="data")


def guide(rule, state=None, stage=0):
    x = jnp.zeros((1, 3), jnp.float64)
    state = rule.init(x) if state is None else state
    prediction, state = rule(x, point(stage), jnp.array([0]), state)
    return prediction.x0[0], state


GOLDEN = [  # eta, radius -> x0 (specs/guidance.md, section 2, tests)
    (1.0, None, (9, 4, 6)),
    (0.0, None, (6.84, 1.12, 6)),
    (0.0, 1.0, (4.3576450199, 2.9817662351, 2.1213203436)),
    (0.5, 1.0, (4.7394826817, 3.4908831175, 2.1213203436)),
]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("eta", "radius", "expected"), GOLDEN)
def test_apg_golden_vectors(x64, eta, radius, expected, batched):
    network = answers((3, 4, 0), (1, 4, -2))
    rule = guidance.apg(network, 1, 4.0, eta=eta, radius=radius, batched=batched)
    np.testing.assert_allclose(guide(rule)[0], expected, atol=1e-9)


def test_apg_momentum_run(x64):
    """The published recursion: not an average, and the stored sum is not clipped."""
    pairs = [((3, 4, 0), (1, 4, -2)), ((2, 4, 1), (1, 3, 0)), ((1, 1, 1), (0, 2, 0))]
    outputs = [(6.3941125497, 1.4544155877, 5.3033008589), (0.8571428571, 4.7142857143, 0.4285714286), (3.5, -4, 3.5)]
    sums = [(2, 0, 2), (0, 1, 0), (1, -1.5, 1)]
    state = None
    for pair, output, total in zip(pairs, outputs, sums, strict=True):
        rule = guidance.apg(answers(*pair), 1, 4.0, radius=2.5, momentum=-0.5)
        x0, state = guide(rule, state)
        np.testing.assert_allclose(x0, output, atol=1e-9)
        assert state.average is not None
        np.testing.assert_allclose(state.average[0], total, atol=1e-12)


def test_apg_memory_advances_on_the_first_call_of_a_step_only(x64):
    rule = guidance.apg(answers((3, 4, 0), (1, 4, -2)), 1, 4.0, momentum=-0.5)
    _, state = guide(rule)
    _, later = guide(rule, state, stage=1)
    np.testing.assert_array_equal(later.average, state.average)
    _, committed = guide(rule, state, stage=0)
    assert committed.average is not None
    np.testing.assert_allclose(committed.average[0], (1, 0, 1))


def test_the_mix_is_cfg_at_first_while_apgs_momentum_already_runs(x64):
    """The momentum run again: plain CFG in steps 0 and 1, then what APG says after all three."""
    pairs = [((3, 4, 0), (1, 4, -2)), ((2, 4, 1), (1, 3, 0)), ((1, 1, 1), (0, 2, 0))]
    expected = [(7, 4, 4), (4, 6, 3), (3.5, -4, 3.5)]
    x, state = jnp.zeros((1, 3)), None
    for index, (pair, output) in enumerate(zip(pairs, expected, strict=True)):
        rule = guidance.apg_mix(answers(*pair), 1, 3.0, 4.0, cfg_steps=2, radius=2.5, space=guidance.DATA)
        at = point()._replace(index=jnp.int32(index))
        (x0, _), state = rule(x, at, jnp.array([0]), rule.init(x) if state is None else state)
        np.testing.assert_allclose(x0[0], output, atol=1e-9)
    assert state is not None and state.average is not None
    np.testing.assert_allclose(state.average[0], (1, -1.5, 1), atol=1e-12)


def test_apg_in_another_space_is_apg_of_its_outputs(x64):
    """The golden vectors as noise, v and velocity: diffusers' reading of the rule."""
    level, x = ds.Level(0.5, 0.6, 0.8), jnp.array([[0.3, -1.0, 0.5]])
    for kind, space in (("noise", guidance.NOISE), ("v", guidance.V), ("velocity", guidance.VELOCITY)):
        network = ds.Network(two_answers, answers((3, 4, 0), (1, 4, -2)).params, predicts=kind)
        rule = guidance.apg(network, 1, 4.0, radius=1.0, eta=0.5, space=space)
        found, _ = rule(x, point(level=level), jnp.array([0]), rule.init(x))
        np.testing.assert_allclose(space.output(found, level)[0], GOLDEN[3][2], atol=1e-9)
        np.testing.assert_allclose(0.6 * found.x0 + 0.8 * found.eps, x, atol=1e-12)


def test_apg_laws(x64):
    key = jax.random.key(1)
    c, u = jax.random.normal(key, (2, 3), jnp.float64)
    shift = guide(guidance.apg(answers(c, u), 1, 3.0))[0] - c
    assert abs(jnp.vdot(shift, c)) < 1e-12  # eta = 0: orthogonal to the conditional prediction
    short = guide(guidance.apg(answers(c, u), 1, 3.0, radius=0.1, eta=0.4))[0] - c
    assert jnp.linalg.norm(short) <= 2 * 0.1 + 1e-12
    scaled = guide(guidance.apg(answers(5 * c, 5 * u), 1, 3.0, radius=0.5, eta=0.4))[0]
    np.testing.assert_allclose(scaled, 5 * (c + short), rtol=1e-12)
    same = guide(guidance.apg(answers(c, c), 1, 3.0, radius=0.5))[0]  # no difference: no division by zero
    np.testing.assert_array_equal(same, c)
    zero = guide(guidance.apg(answers(0 * c, u), 1, 3.0))[0]
    assert jnp.isfinite(zero).all()


@pytest.mark.parametrize("kind", ["noise", "v", "velocity", "score"])
def test_apg_acts_on_x0_whatever_the_network_predicts(x64, kind):
    alpha, sigma = 0.6, 0.8
    x = jnp.array([[0.3, -1.0, 0.5]])
    c, u = jnp.array([3.0, 4.0, 0.0]), jnp.array([1.0, 4.0, -2.0])

    def output(x0):
        eps = (x[0] - alpha * x0) / sigma
        return {"noise": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0, "score": -eps / sigma}[kind]

    network = ds.Network(two_answers, jnp.stack([output(c), output(u)]), predicts=kind)
    rule = guidance.apg(network, 1, 4.0, radius=1.0)
    at = point(level=ds.Level(0.5, alpha, sigma))
    prediction, _ = rule(x, at, jnp.array([0]), rule.init(x))
    np.testing.assert_allclose(prediction.x0[0], GOLDEN[2][2], atol=1e-9)
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, atol=1e-12)


def test_cfg_is_apg_without_its_additions(x64):
    network = answers((3, 4, 0), (1, 4, -2))
    np.testing.assert_allclose(guide(guidance.cfg(network, 1, 4.0))[0], (9, 4, 6), atol=1e-12)


def test_scale_one_is_the_conditional_model_bit_for_bit():
    c, u = jax.random.normal(jax.random.key(2), (2, 3))
    network = ds.Network(two_answers, jnp.stack([c, u]), predicts="data")
    x = jnp.ones((1, 3))
    rule = guidance.cfg(network, 1, 1.0)
    prediction, _ = rule(x, point(), jnp.array([0]), rule.init(x))
    np.testing.assert_array_equal(prediction.x0[0], c)


FINAL = {1.0: (0.993750, 0.249990), 2.0: (1.373923, 0.062505), 4.0: (1.514440, 0.003907)}


@pytest.mark.parametrize("scale", FINAL)
def test_cfg_samples_the_law_of_its_own_flow_not_the_tilted_one(x64, scale):
    """TB-A of specs/guidance.md: p_u = N(0, 1), p_c = N(1, 1/4); affine flow: two inputs tell all."""
    grid = ds.times.uniform_logsnr(VE, 4000, stop=1e-4, zero=False)
    sampler = solvers.linear(guidance.cfg(TWO_LAWS, 1, scale), solvers.heun(VE, grid))
    mean, moved = ds.sample(jax.random.key(0), sampler, x=jnp.array([0.0, 80.0]), cond=jnp.array([0, 0]))
    expected_mean, expected_variance = FINAL[scale]
    assert mean == pytest.approx(expected_mean, abs=2e-6)
    assert (moved - mean) ** 2 == pytest.approx(expected_variance, abs=2e-6)


def test_branches_are_one_call_or_two():
    shapes = []

    def spy(params, x, t, cond):
        shapes.append(x.shape)
        return x

    network = ds.Network(spy, predicts="data")
    for batched, expected in ((True, [(8, 3)]), (False, [(4, 3), (4, 3)])):
        shapes.clear()
        rule = guidance.cfg(network, 9, 2.0, batched=batched)
        jax.eval_shape(lambda x, rule=rule: rule(x, point(batch=4), jnp.zeros(4, int), rule.init(x)), jnp.ones((4, 3)))
        assert shapes == expected
        assert rule.evaluations == 2


@pytest.mark.parametrize(
    ("null", "cond", "message"),
    [
        (2, None, "needs a condition"),
        ((2, 2), jnp.zeros(4, int), "structure"),
        (jnp.zeros((3, 5)), jnp.zeros((4, 2)), "does not broadcast"),
        (0.5, jnp.zeros(4, int), "null must be an integer"),
    ],
)
def test_bad_conditions_are_named(null, cond, message):
    network = ds.Network(lambda p, x, t, c: x, predicts="data")
    sampler = solvers.linear(guidance.cfg(network, null, 2.0), solvers.ddim(VE, [80.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match=message):
        ds.sample(jax.random.key(0), sampler, (4, 3), cond=cond)


def test_guidance_of_guidance():
    """A guided denoiser is a denoiser: APG over CFG runs, counts its calls and keeps both memories."""
    inner = guidance.apg(TWO_LAWS, 1, 2.0, momentum=-0.3)
    outer = guidance.apg(inner, 1, 1.5, momentum=-0.5, batched=True)
    sampler = solvers.linear(outer, solvers.dpmpp(VE, ds.times.karras(VE, 6)))
    assert sampler.nfe == 24
    batched = ds.sample(jax.random.key(0), sampler, (4,), cond=jnp.zeros(4, int))
    outer = guidance.apg(inner, 1, 1.5, momentum=-0.5, batched=False)
    sampler = solvers.linear(outer, solvers.dpmpp(VE, ds.times.karras(VE, 6)))
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,), cond=jnp.zeros(4, int)), batched, rtol=1e-5)
