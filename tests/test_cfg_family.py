"""The relatives of CFG against golden vectors, closed forms and each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.guidance.frequency import from_pyramid, laplacian_pyramid

VE, KEY = ds.VarianceExploding(0.002, 80.0), jax.random.key(0)
TWO_LAWS = ds.exact.Switch((ds.exact.Gaussian(1.0, 0.25), ds.exact.Gaussian(0.0, 1.0)))  # TB-A: conditional, null
LEVEL = ds.Level(0.5, 0.6, 0.8)
C, U = (3.0, 4.0, 0.0), (1.0, 4.0, -2.0)


def table(params, x, t, cond):
    """Answers params[cond] whatever x is."""
    return params[cond]


def answers(*outputs, kind="velocity"):
    return ds.Network(table, jnp.asarray(outputs, jnp.float64), predicts=kind)


def point(index=5, level=LEVEL, batch=1):
    return ds.Point(level, level, jnp.int32(index), jnp.int32(0), jax.random.split(KEY, batch))


def guide(rule, x=(0.3, -1.0, 0.5), index=5):
    x = jnp.asarray([x], jnp.float64)
    return x, rule(x, point(index), jnp.array([0]), rule.init(x))[0]


def velocity(rule, **options):
    _, prediction = guide(rule, **options)
    return prediction.eps[0] - prediction.x0[0]


GOLDEN = {  # specs/guidance.md section 3, scale 4; outputs of a velocity network
    "cfg": (lambda d: guidance.cfg(d, 1, 4.0), (9, 4, 6)),
    "rescale": (lambda d: guidance.rescale(d, 1, 4.0, 0.7, space=guidance.VELOCITY), (7.911172, 3.516077, 5.274115)),
    "cfg_zero": (lambda d: guidance.cfg_zero(d, 1, 4.0), (9.285714, 5.142857, 5.428571)),
    "tcfg": (lambda d: guidance.tcfg(d, 1, 4.0), (6.181753, 4.661076, 2.685946)),
    "mambo_g": (lambda d: guidance.mambo_g(d, 1, 4.0), (3.043026, 4, 0.043026)),
}


@pytest.mark.parametrize(("rule", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_golden_vectors(x64, rule, expected):
    np.testing.assert_allclose(velocity(rule(answers(C, U))), expected, atol=1e-6)


def test_rescale_restores_the_spread_of_the_conditional_output_in_its_space(x64):
    for space in (guidance.V, guidance.DATA, guidance.NOISE):
        spread = [
            float(space.output(guide(rule)[1], LEVEL).std())
            for rule in (answers(C, U), guidance.rescale(answers(C, U), 1, 4.0, 1.0, space=space))
        ]
        assert spread[1] == pytest.approx(spread[0], rel=1e-12)
    found = [guide(guidance.rescale(answers(C, U), 1, 4.0, space=s))[1].x0 for s in (guidance.V, guidance.DATA)]
    assert np.abs(found[0] - found[1]).max() > 0.05  # so the space has to be named


def test_cfg_zero_does_not_move_a_flow_in_its_first_steps(x64):
    rule = guidance.cfg_zero(answers(C, U), 1, 4.0, zero_steps=2)
    for index in (0, 1):
        x, prediction = guide(rule, index=index)
        np.testing.assert_allclose(0.6 * prediction.x0 + 0.8 * prediction.eps, x)
        np.testing.assert_allclose(prediction.x0, prediction.eps)
    np.testing.assert_allclose(velocity(rule, index=2), GOLDEN["cfg_zero"][1], atol=1e-6)
    flow = ds.FlowMatching()
    path = ds.sample(KEY, solvers.linear(rule, solvers.euler(flow, [0.9, 0.7, 0.5, 0.2])), (1, 3),
                     cond=jnp.array([0]), record=lambda view: view.x)[1]  # fmt: skip
    np.testing.assert_array_equal(path[1], path[0])
    assert np.abs(path[2] - path[1]).max() < 1e-6 < 0.1 < np.abs(ds.sample(
        KEY, solvers.linear(rule, solvers.euler(flow, [0.9, 0.7, 0.5, 0.2])), (1, 3), cond=jnp.array([0])
    ) - path[2]).max()  # fmt: skip


def test_tcfg_projects_on_the_leading_singular_vector(x64):
    for key in jax.random.split(KEY, 5):
        c, u = jax.random.normal(key, (2, 3), jnp.float64)
        v = np.linalg.svd(np.stack([c, u]))[2][0]
        along = (u @ v) * v
        np.testing.assert_allclose(velocity(guidance.tcfg(answers(c, u), 1, 3.0)), along + 3 * (c - along), rtol=1e-9)
    equal = velocity(guidance.tcfg(answers((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), 1, 3.0))
    np.testing.assert_allclose(equal, (3.0, -1.0, 0.0), atol=1e-12)  # no leading direction: half of u stays


def test_degenerate_outputs_are_finite():
    zero = (0.0, 0.0, 0.0)
    for (rule, _), pair in itertools.product(GOLDEN.values(), ((zero, zero), (C, zero), (zero, U), (C, C))):
        network = ds.Network(table, jnp.asarray(pair, jnp.float32), predicts="velocity")
        x = jnp.ones((1, 3))
        prediction, _ = rule(network)(x, point(), jnp.array([0]), rule(network).init(x))
        assert jnp.isfinite(prediction.x0).all() and jnp.isfinite(prediction.eps).all()


def test_composable_is_a_weighted_sum_of_differences(x64):
    network = answers(C, U, (0.0, 1.0, 5.0), (2.0, 2.0, 2.0))
    rule = guidance.composable(network, 1, 4.0, [2, 3], [1.5, -0.5])
    c, u, first, second = np.asarray(network.params)
    np.testing.assert_allclose(velocity(rule), u + 4 * (c - u) + 1.5 * (first - u) - 0.5 * (second - u), atol=1e-12)
    one_call = guidance.composable(network, 1, 4.0, [2, 3], [1.5, -0.5], batched=False)
    np.testing.assert_allclose(velocity(one_call), velocity(rule), atol=1e-12)
    np.testing.assert_allclose(velocity(guidance.composable(network, 1, 4.0, [], [])), (9, 4, 6), atol=1e-12)


def test_a_product_of_gaussians_is_composed_exactly_at_each_level(x64):
    """Of laws with one variance, u + sum_i (D_i - u) is the denoiser of p_1 p_2 p_3 / p_u^2, again a Gaussian."""
    laws = ds.exact.Switch(tuple(ds.exact.Gaussian(mean, 1.0) for mean in (1.0, -0.5, 2.0, 0.0)))
    x, at = jnp.array([0.7]), point(level=ds.Level(2.0, 1.0, 2.0))
    rule = guidance.composable(laws, 3, 1.0, [1, 2], [1.0, 1.0])
    found, _ = rule(x, at, jnp.array([0]), rule.init(x))
    expected = ds.exact.Gaussian(1.0 - 0.5 + 2.0, 1.0).predict(x, at.now)
    np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-12)


def test_autoguidance_and_perturbed_guidance_on_known_answers(x64):
    main, bad = answers(C, U), answers((1.0, 2.0, 3.0), (9.0, 9.0, 9.0))
    np.testing.assert_allclose(velocity(guidance.autoguidance(main, bad, 3.0)), (7, 8, -6), atol=1e-12)
    rule = guidance.perturbed(main, bad, 1, 4.0, 2.0)  # (9, 4, 6) + 2 (2, 2, -3)
    np.testing.assert_allclose(velocity(rule), (13, 8, 0), atol=1e-12)
    alone = guidance.perturbed(main, bad, 1, 1.0, 3.0)  # c + 3 (c - worse), also at scale 1
    np.testing.assert_allclose(velocity(alone), velocity(guidance.autoguidance(main, bad, 4.0)), atol=1e-12)


def test_time_step_guidance_is_autoguidance_by_another_clock(x64):
    def clock(params, x, t, cond):
        return x * 0 + t[:, None]

    main = ds.Network(clock, predicts="velocity")
    late = ds.Network(clock, predicts="velocity", time=ds.noise_scale)  # 4/3 in place of 0.5
    np.testing.assert_allclose(velocity(guidance.autoguidance(main, late, 2.0)), 3 * (2 * 0.5 - 4 / 3,), rtol=1e-12)


SIGMAS = (*np.geomspace(10.0, 0.05, 9), 0.0)


def ddim_from(rule, x, sigmas=SIGMAS, solver=solvers.ddim):
    sampler = solvers.linear(rule, solver(VE, sigmas))
    return ds.sample(KEY, sampler, x=jnp.asarray(x), cond=jnp.zeros(len(x), int))


def test_cfg_pp_is_cfg_with_a_scale_that_knows_the_step(x64):
    expected = 1.3502988587
    assert ddim_from(guidance.cfg_pp(TWO_LAWS, 1, 0.6), [7.3])[0] == pytest.approx(expected, abs=1e-9)
    now, later = np.array(SIGMAS[:-1]), np.array(SIGMAS[1:])
    edges = np.sqrt(now[:-1] * now[1:])[::-1]
    scale = guidance.piecewise_constant(edges, (0.6 * now / (now - later))[::-1])
    assert ddim_from(guidance.cfg(TWO_LAWS, 1, scale), [7.3])[0] == pytest.approx(expected, abs=1e-9)


def test_cfg_pp_under_a_multistep_table_keeps_guided_history(x64):
    """DPM++ 2M in EDM's variables with the pair (x0, eps_u): its first-order part is CFG++, its history is guided."""
    sigmas, x, old = (10.0, 4.0, 1.5, 0.5), 7.3, None
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        u, c = x / (1 + s**2), (0.25 * x + s**2) / (0.25 + s**2)
        guided, ratio = u + 0.6 * (c - u), t / s
        curve = 0.0
        if old is not None:
            r = np.log(sigmas[i - 1] / s) / np.log(s / t)
            curve = (1 - ratio) * (guided - old) / (2 * r)
        x, old = guided + ratio * (x - u) + curve, guided
    found = ddim_from(guidance.cfg_pp(TWO_LAWS, 1, 0.6), [7.3], sigmas, solvers.dpmpp)
    assert found[0] == pytest.approx(x, rel=1e-9)


def test_cfg_of_equal_covariances_is_a_shift_of_the_mean(x64):
    pair = ds.exact.Switch((ds.exact.Gaussian(1.0, 1.0), ds.exact.Gaussian(0.0, 1.0)))
    grid = ds.times.uniform_logsnr(VE, 4000, stop=1e-4, zero=False)
    mean, moved = ddim_from(guidance.cfg(pair, 1, 2.0), [0.0, 80.0], grid, solvers.heun)
    assert (mean, (moved - mean) ** 2) == pytest.approx((1.975002, 0.999844), abs=5e-6)


def test_cfg_variance_follows_the_product_of_powers_in_closed_form(x64):
    """s^2 v_c^w v_u^(1-w) / ((v_c + s^2)^w (v_u + s^2)^(1-w)) from N(0, s^2), for scales that TB-A does not list."""
    grid, s2 = ds.times.uniform_logsnr(VE, 4000, stop=1e-4, zero=False), 80.0**2
    for w in (0.5, 3.0):
        mean, moved = ddim_from(guidance.cfg(TWO_LAWS, 1, w), [0.0, 80.0], grid, solvers.heun)
        expected = s2 * 0.25**w / ((0.25 + s2) ** w * (1 + s2) ** (1 - w))
        assert (moved - mean) ** 2 == pytest.approx(expected, rel=1e-4)


def test_the_published_interval_of_edm2_is_six_steps_of_32():
    law = ds.exact.Gaussian(0.0, 1.0)
    rule = guidance.during(guidance.cfg(law, 0, 2.0), law, 0.25, 1.61, whole_steps=True)
    sampler = solvers.linear(rule, solvers.heun(VE, ds.times.karras(VE, 32)))
    assert sampler.nfe == 63 + 2 * 6  # steps 17 to 22, both calls
    levels = np.asarray(sampler.tableau.now.sigma)[2 * np.array([17, 22])]
    np.testing.assert_allclose(levels, (1.6086, 0.2830), atol=1e-4)


def image(values):
    return jnp.asarray(values, jnp.float32).reshape(1, 8, 8, 1)


def checkerboard():
    return (-1.0) ** np.add.outer(np.arange(8), np.arange(8))


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9,)])
def test_the_pyramid_is_perfectly_inverted(size):
    x, axes = jax.random.normal(KEY, (2, *size, 3)), tuple(range(1, len(size) + 1))
    for levels in (1, 2, 3):
        bands = laplacian_pyramid(x, levels, axes)
        assert len(bands) == levels
        np.testing.assert_allclose(from_pyramid(bands, axes), x, atol=1e-6)


def test_fdg_scales_bands_by_their_own_scale():
    """A constant is all in the coarsest band, a checkerboard all in the finest."""
    flat, fine = np.ones((8, 8)), checkerboard()
    for difference, expected in ((flat, 3.0), (fine, 9.0)):
        network = ds.Network(table, jnp.stack([image(difference)[0], image(0 * flat)[0]]), predicts="data")
        rule, x = guidance.fdg(network, 1, [9.0, 5.0, 3.0]), image(flat)
        found, _ = rule(x, point(), jnp.array([0]), rule.init(x))
        np.testing.assert_allclose(found.x0, expected * image(difference), atol=1e-5)
        none, _ = guidance.fdg(network, 1, [9.0, 5.0, 3.0], parallel=[0.0] * 3)(
            x, point(), jnp.array([0]), rule.init(x)
        )
        np.testing.assert_allclose(none.x0, image(difference), atol=1e-5)  # all of it lies along the conditional image


def test_fdg_with_equal_scales_is_cfg():
    params = jax.random.normal(KEY, (2, 8, 8, 1))
    network, x = ds.Network(table, params, predicts="noise"), image(np.ones((8, 8)))
    rules = guidance.fdg(network, 1, [3.0, 3.0]), guidance.cfg(network, 1, 3.0)
    fdg, cfg = (rule(x, point(), jnp.array([0]), rule.init(x))[0] for rule in rules)
    np.testing.assert_allclose(fdg.x0, cfg.x0, atol=1e-4)


def test_apg_radius_per_root_dimension_does_not_depend_on_the_resolution(x64):
    """The difference of a doubled image has sqrt(2) its norm: the radius grows with it."""
    shifts = []
    for times in (1, 4):
        rule = guidance.apg(answers(C * times, U * times, kind="data"), 1, 4.0, radius=0.5, rms=True)
        _, prediction = guide(rule, x=(0.0, 0.0, 0.0) * times)
        shifts.append(prediction.x0[0, :3] - np.array(C))
    np.testing.assert_allclose(shifts[0], shifts[1], rtol=1e-12)
    plain = guidance.apg(answers(C, U, kind="data"), 1, 4.0, radius=0.5 * np.sqrt(3))
    np.testing.assert_allclose(guide(plain)[1].x0[0] - np.array(C), shifts[0], rtol=1e-12)


def test_apg_over_chosen_axes_is_apg_of_each_line(x64):
    c, u = jax.random.normal(KEY, (2, 1, 3, 4), jnp.float64)
    x = jnp.zeros((1, 3, 4))

    def x0(c, u, x, **options):
        rule = guidance.apg(ds.Network(table, jnp.stack([c, u]), predicts="data"), 1, 4.0, radius=0.5, **options)
        return rule(x, point(), jnp.array([0]), rule.init(x))[0].x0

    together = x0(c[0], u[0], x, axes=(2,))
    for line in range(3):
        alone = x0(c[0, line], u[0, line], x[:, line])
        np.testing.assert_allclose(together[:, line], alone, rtol=1e-12)
    with pytest.raises(ValueError, match=r"axes=\(3,\) must lie in 1 \.\. 2"):
        x0(c[0], u[0], x, axes=(3,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: guidance.composable(d, 1, 2.0, [1, 2], [1.0]), "2 conditions and 1 weights"),
        (lambda d: guidance.apg(d, 1, 2.0, radius=-1.0), "radius=-1.0 must be positive"),
        (lambda d: guidance.apg_mix(d, 1, radius=0.0), "radius=0.0 must be positive"),
        (lambda d: guidance.elucd_nudge(d, lambda x: x, 0), "steps=0"),
        (lambda d: guidance.fdg(d, 1, []), "a scale a band"),
        (lambda d: guidance.fdg(d, 1, [1.0, 2.0], parallel=[1.0]), "as many parallel weights"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(TWO_LAWS)


def test_too_many_bands_are_refused():
    with pytest.raises(ValueError, match="4 bands"):
        laplacian_pyramid(image(checkerboard()), 4, (1, 2))
