"""Inverse-problem rules where the answer is known: specs/guidance.md, test beds TB-B, TB-C and TB-D."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.guidance import krylov, operators
from diffsample.guidance.second_order import probed_trace

VE = ds.VarianceExploding(0.002, 80.0)
PRIOR = ds.exact.Gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
FIRST = operators.matrix([[1.0, 0.0]])
SEEN, SEEN_Y = operators.mask([1.0, 0.0]), np.array([1.0, 0.0])
Y, SIGMA_Y = np.ones(1), 0.5
LEVEL, X = ds.Level(1.3, 1.0, 1.3), np.array([[0.7, -0.4]])


def ask(rule, x: Any = X, level=LEVEL, ahead=None, seed=0):
    """A rule's pair at x, in JAX's default float: with the fixture x64 all constants above are doubles."""
    x = jnp.asarray(x, float)
    keys = jax.random.split(jax.random.key(seed), len(x))
    at = ds.Point(level, ahead or level, jnp.int32(0), jnp.int32(0), keys)
    return rule(x, at, None, rule.init(x))[0]


def table_b(law, operator, y):
    """The rows of TB-B: rule, x0 at x_t, mean and covariance after 64 Heun steps; None where it is not tabulated."""
    exact = ([0.721234, 0.405419], ([0.794592, 0.633065], [0.201461, 0.160955, 0.491180]))
    posterior = law.posterior([[1.0, 0.0]], [1.0], SIGMA_Y**2)
    return {
        "unconditional": (law, [0.135565, 0.019163], ([0.0, 0.0], [1.005465, 0.803956, 1.005465])),
        "exact": (posterior, *exact),
        "tmpd": (guidance.tmpd(law, operator, y, SIGMA_Y, size=1), *exact),
        "tmpd_diagonal": (guidance.tmpd_diagonal(law, operator, y, SIGMA_Y), *exact),  # one number: its own row sum
        "mmps": (guidance.mmps(law, operator, y, SIGMA_Y), *exact),
        "mmps(cg)": (guidance.mmps(law, operator, y, SIGMA_Y, solver=krylov.conjugate_gradient), *exact),
        "pigdm": (guidance.pigdm(law, operator, y, SIGMA_Y), [0.652536, 0.360112],
                  ([0.765461, 0.604970], [0.226312, 0.185894, 0.516306])),
        "dps_gaussian": (guidance.dps_gaussian(law, operator, y, SIGMA_Y), [1.951690, 1.216919],
                         ([1.241723, 1.233391], [0.031348, -0.034446, 0.257159])),
    }  # fmt: skip


TABLE_B = table_b(PRIOR, FIRST, Y)


@pytest.mark.parametrize("name", TABLE_B)
def test_table_b_at_one_state(x64, name):
    rule, x0, _ = TABLE_B[name]
    found = ask(rule)
    np.testing.assert_allclose(found.x0[0], x0, atol=1e-6)
    np.testing.assert_allclose(found.x0 + LEVEL.sigma * found.eps, X, atol=1e-12)  # the pair stays consistent


def pushed(rule, table):
    """Mean and covariance (11, 12, 22) of an affine sampler's output from N(0, sigma^2 I): three probes tell all."""
    start = float(table.now.sigma[0])
    probes = jnp.array([[0.0, 0.0], [start, 0.0], [0.0, start]])
    mean, *moved = np.asarray(ds.sample(jax.random.key(0), solvers.linear(rule, table), x=probes))
    columns = np.stack(moved, axis=1) - mean[:, None]
    cov = columns @ columns.T
    return mean, np.array([cov[0, 0], cov[0, 1], cov[1, 1]])


@pytest.mark.parametrize("name", ["unconditional", "exact", "tmpd", "mmps", "pigdm", "dps_gaussian"])
def test_table_b_after_heun(x64, name):
    rule, _, (mean, cov) = TABLE_B[name]
    found = pushed(rule, solvers.heun(VE, ds.times.karras(VE, 64)))
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1], cov, atol=1e-6)


def test_table_b_approaches_the_posterior(x64):
    """Euler with 200 steps; Heun with 400, whose mean of 0.7946 for 0.8 is the start at N(0, 80^2 I)."""
    rule = TABLE_B["tmpd"][0]
    mean, cov = pushed(rule, solvers.euler(VE, ds.times.karras(VE, 200)))
    np.testing.assert_allclose(mean, [0.794687, 0.633178], atol=1e-6)
    np.testing.assert_allclose(cov, [0.194354, 0.155865, 0.474911], atol=1e-6)
    table = solvers.heun(VE, ds.times.karras(VE, 400))
    _, cov = pushed(rule, table)
    np.testing.assert_allclose(cov, [0.200021, 0.160006, 0.488033], atol=1e-6)
    posterior = jnp.array([[0.8, 0.64]])  # the mean of N(posterior mean, posterior cov + 80^2 I) stays where it is
    out = ds.sample(jax.random.key(0), solvers.linear(rule, table), x=posterior)
    np.testing.assert_allclose(out, posterior, atol=1e-5)


def test_dps_descends_the_unsquared_norm(x64):
    """The published gradient, and the state that DDIM reaches: its own step minus scale times the gradient."""
    gradient = np.array([-0.310790, -0.204970])
    ahead = ds.Level(0.7, 1.0, 0.7)
    plain = ask(PRIOR, ahead=ahead)
    for operator in (FIRST, lambda x0: x0[:1]):
        found = ask(guidance.dps(PRIOR, operator, Y, 0.3), ahead=ahead)
        np.testing.assert_allclose(found.x0 - plain.x0, [-0.3 * gradient], atol=1e-6)
        np.testing.assert_array_equal(found.eps, plain.eps)
    vp = ds.VariancePreserving()
    table = solvers.ddim(vp, [0.5, 0.3])  # alpha_next is not 1
    x = jnp.array([[0.7, -0.4]])
    moved = ds.sample(jax.random.key(0), solvers.linear(guidance.dps(PRIOR, FIRST, Y, 0.3), table), x=x)
    alone = ds.sample(jax.random.key(0), solvers.linear(PRIOR, table), x=x)
    level = ds.Level(*map(float, vp.level(0.5)))
    slope = jax.grad(lambda x: jnp.abs(1 - PRIOR.predict(x, level).x0[0, 0]))(x)
    np.testing.assert_allclose(moved, alone - 0.3 * slope, rtol=1e-12)


def test_dps_is_still_where_the_residual_is_zero(x64):
    """The norm has no gradient at 0; the rule takes 0, not NaN."""
    plain = ask(PRIOR)
    np.testing.assert_array_equal(ask(guidance.dps(PRIOR, FIRST, plain.x0[0, :1], 1.0)).x0, plain.x0)


MIXTURE = ds.exact.Mixture([0.5, 0.5], [[-2.0], [2.0]], 0.25)
IDENTITY = operators.mask([1.0])
AT_HALF, SIGMA_TWO = np.array([[0.5]]), ds.Level(2.0, 1.0, 2.0)


def test_table_c_posterior_and_approximations(x64):
    y = jnp.array([1.5])
    posterior = MIXTURE.posterior([[1.0]], [1.5], 1.0)
    mean, cov = posterior.moments()
    np.testing.assert_allclose(posterior.weights, [0.00816257, 0.99183743], atol=1e-8)
    np.testing.assert_allclose(posterior.means, [[-1.3], [1.9]])
    np.testing.assert_allclose([mean[0], cov[0, 0]], [1.873880, 0.282902], atol=1e-6)
    for rule, expected in [
        (MIXTURE, 0.464322),
        (posterior, 1.811948),
        (guidance.tmpd(MIXTURE, IDENTITY, y, 1.0, size=1), 1.274333),
        (guidance.pigdm(MIXTURE, IDENTITY, y, 1.0), 2.529579),
        (guidance.dps_gaussian(MIXTURE, IDENTITY, y, 1.0), 4.181785),
    ]:
        assert float(ask(rule, AT_HALF, SIGMA_TWO).x0[0, 0]) == pytest.approx(expected, abs=1e-6)
    slope = jax.jacobian(lambda x: MIXTURE.predict(x, SIGMA_TWO).x0)(jnp.asarray(AT_HALF)).item()
    assert slope == pytest.approx(0.897350, abs=1e-6)


def deterministic(rule, steps):
    """Mean and variance of x2 under DDIM; x1 must be y."""
    mean, cov = pushed(rule, solvers.ddim(VE, ds.times.karras(VE, steps)))
    assert mean[0] == pytest.approx(1.0, abs=1e-12) and cov[0] == pytest.approx(0.0, abs=1e-12)
    return mean[1], cov[2]


@pytest.mark.parametrize(
    ("steps", "mean", "var"), [(20, 0.5673, 0.4097), (100, 0.7673, 0.3692), (1000, 0.7979, 0.3602)]
)
def test_table_d_ddnm_without_noise(x64, steps, mean, var):
    """Exact: the sampler is affine. The posterior is N(0.8, 0.36), which small steps reach."""
    found = deterministic(guidance.ddnm(PRIOR, SEEN, SEEN_Y, eta=0.0), steps)
    np.testing.assert_allclose(found, (mean, var), atol=5.1e-5)


def drawn(rule, table, n=40_000, seed=0):
    """Mean and variance of x2 over n samples, with their standard errors; x1 must be y."""
    out = np.asarray(ds.sample(jax.random.key(seed), solvers.linear(rule, table), (n, 2)), np.float64)
    np.testing.assert_allclose(out[:, 0], 1.0, atol=1e-6)
    var = out[:, 1].var()
    return (out[:, 1].mean(), np.sqrt(var / n)), (var, var * np.sqrt(2 / n))


def assert_drawn(found, mean, var):
    """Within 4.5 standard errors (7e-6 false alarms a number) and the rounding of the table."""
    for (value, error), expected in zip(found, (mean, var), strict=True):
        assert abs(value - expected) < 4.5 * error + 6e-5, (value, expected, error)


TABLE_D = {  # rule, {steps: (mean, variance of x2)}
    "ddnm(0.85)": (guidance.ddnm(PRIOR, SEEN, SEEN_Y, eta=0.85), {20: (0.5216, 0.3245), 100: (0.7281, 0.2854)}),
    "ddnm(1)": (guidance.ddnm(PRIOR, SEEN, SEEN_Y, eta=1.0), {20: (0.5068, 0.2156), 100: (0.7238, 0.1865)}),
    "ddrm(0)": (guidance.ddrm(PRIOR, SEEN, SEEN_Y, eta=0.0), {20: (0.3153, 0.4909), 100: (0.3410, 0.5766)}),
    "ddrm(0.85)": (guidance.ddrm(PRIOR, SEEN, SEEN_Y), {20: (0.4241, 0.3391), 100: (0.6575, 0.3050)}),
    "ddnm_plus(0.85)": (guidance.ddnm_plus(PRIOR, SEEN, SEEN_Y, 0.0), {20: (0.4241, 0.3391), 100: (0.6575, 0.3050)}),
}
REPLACED = {  # (steps, passes): (mean, variance of x2) of replacement with resampling
    (50, 1): (0.4691, 0.4210), (50, 2): (0.6046, 0.3546), (50, 5): (0.7185, 0.3089), (50, 10): (0.7600, 0.2928),
    (50, 50): (0.7921, 0.2761),
    (250, 1): (0.4940, 0.4778), (250, 2): (0.6268, 0.4096), (250, 5): (0.7315, 0.3666), (250, 10): (0.7673, 0.3526),
    (250, 50): (0.7938, 0.3405),
    (1000, 1): (0.4985, 0.4901), (1000, 2): (0.6308, 0.4222), (1000, 5): (0.7337, 0.3802), (1000, 10): (0.7684, 0.3670),
    (1000, 50): (0.7941, 0.3565),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE_D)
def test_table_d_with_noise(name):
    """By Monte Carlo; DDNM+ without measurement noise is DDRM, whose measured axes get fresh noise alone."""
    rule, rows = TABLE_D[name]
    for steps, expected in rows.items():
        assert_drawn(drawn(rule, solvers.ddim(VE, ds.times.karras(VE, steps))), *expected)


def resampled(steps, passes, n):
    table = solvers.ddpm(VE, ds.times.karras(VE, steps))
    rule = guidance.replacement(PRIOR, SEEN, SEEN_Y)
    return drawn(rule, solvers.time_travel(table, jump=1, repeats=passes), n)


@pytest.mark.parametrize(("steps", "passes"), [(50, 1), (50, 2), (50, 5), (250, 1)])
def test_table_d_replacement_with_resampling(steps, passes):
    """Plain replacement is biased; resampling mends the mean, small steps the variance. Monte Carlo."""
    assert_drawn(resampled(steps, passes, 40_000), *REPLACED[steps, passes])


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "passes"), REPLACED)
def test_table_d_replacement_whole(steps, passes):
    assert_drawn(resampled(steps, passes, 20_000), *REPLACED[steps, passes])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "mean", "var"),
    [
        (guidance.ddnm(PRIOR, SEEN, SEEN_Y, eta=0.85), 0.7919, 0.2755),
        (guidance.ddnm(PRIOR, SEEN, SEEN_Y, eta=1.0), 0.7914, 0.1804),
        (guidance.ddrm(PRIOR, SEEN, SEEN_Y, eta=0.0), 0.3463, 0.5975),
        (guidance.ddrm(PRIOR, SEEN, SEEN_Y), 0.7827, 0.2783),
    ],
)
def test_table_d_with_1000_steps(rule, mean, var):
    assert_drawn(drawn(rule, solvers.ddim(VE, ds.times.karras(VE, 1000)), 20_000), mean, var)


def test_replacement_is_exact_where_measured_and_missing_parts_are_independent():
    law = ds.exact.Gaussian([0.3, -0.7], [1.0, 2.0])
    rule = guidance.replacement(law, SEEN, SEEN_Y)
    table = solvers.ddpm(VE, ds.times.karras(VE, 100))
    reference = ds.exact.output_moments(table, ds.exact.Moments(-0.7, 2.0), ds.exact.Moments(0.0, 80.0**2))
    assert_drawn(drawn(rule, table), *reference)


def test_colourisation_keeps_the_gray_and_replaces_it_in_turned_channels():
    """score-SDE's colourisation: replacement through the grayscale operator; on independent axes it is exact."""
    shape = (1, 1, 3)
    gray = operators.grayscale(shape)
    y = jnp.full((1, 1, 1), 0.6)
    law = ds.exact.Gaussian(np.zeros(shape), np.ones(shape))
    rule = guidance.replacement(law, gray, y)
    table = solvers.ddpm(VE, ds.times.karras(VE, 60))
    out = ds.sample(jax.random.key(0), solvers.linear(rule, table), (20_000, *shape))
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 0.6, atol=1e-5)
    cov = np.cov(np.asarray(out).reshape(-1, 3).T)
    left = ds.exact.output_moments(table, ds.exact.Moments(0.0, 1.0), ds.exact.Moments(0.0, 80.0**2)).variance
    expected = left * (np.eye(3) - 1 / 3)  # nothing along gray, the prior's law across it
    np.testing.assert_allclose(cov, expected, atol=5 * left * np.sqrt(2 / 20_000))


@pytest.mark.parametrize("rule", ["pigdm", "jfps"])
def test_fixed_covariances_are_exact_for_a_round_prior(x64, rule):
    """Cov = v I: both are E[x0 | x_t, y] at any level of any process, whatever A."""
    A, v, noise = np.array([[1.0, 2.0, 0.0], [0.5, 0.0, -1.0]]), 2.3, 0.4
    law = ds.exact.Gaussian([0.3, -1.0, 0.2], v)
    y = jnp.array([1.0, -0.5])
    guided = getattr(guidance, rule)(law, operators.matrix(A), y, noise, data_var=v)
    posterior = law.posterior(A, y, noise**2)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    for t in (0.1, 0.5, 0.9):
        level = ds.Level(*map(float, ds.VariancePreserving().level(t)))
        found, expected = ask(guided, x, level), posterior.predict(x, level)
        np.testing.assert_allclose(found.x0, expected.x0, atol=1e-9)
        np.testing.assert_allclose(found.eps, expected.eps, atol=1e-9)


def test_moment_matching_is_exact_for_any_gaussian_and_any_number_measured(x64):
    rng = np.random.default_rng(1)
    root, A, noise = rng.normal(size=(4, 4)), rng.normal(size=(3, 4)), jnp.array([0.4, 0.2])
    law, y = ds.exact.Gaussian(rng.normal(size=4), root @ root.T), jnp.asarray(rng.normal(size=(2, 3)))
    level = ds.Level(*map(float, ds.VariancePreserving().level(0.4)))
    x = jax.random.normal(jax.random.key(0), (2, 4))
    exact = [law.posterior(A, y[i], noise[i] ** 2).predict(x[i : i + 1], level).x0[0] for i in range(2)]
    linear = lambda x0: jnp.asarray(A) @ x0  # noqa: E731
    for rule in (
        guidance.tmpd(law, linear, y, noise, size=3),
        guidance.mmps(law, linear, y, noise, iterations=3),
        guidance.mmps(law, linear, y, noise, iterations=3, solver=krylov.conjugate_gradient),
        guidance.mmps(law, linear, y, noise, iterations=5),  # nothing is left to solve: no division by zero
    ):
        np.testing.assert_allclose(ask(rule, x, level).x0, jnp.stack(exact), atol=1e-7)
    diagonal = ds.exact.Gaussian(np.zeros(4), [1.0, 2.0, 3.0, 4.0])
    exact = diagonal.posterior(np.eye(4), np.ones(4), 0.25).predict(x, level).x0
    np.testing.assert_allclose(
        ask(guidance.tmpd_diagonal(diagonal, lambda x0: x0, jnp.ones(4), 0.5), x, level).x0, exact
    )


def test_krylov_solvers_are_those_of_scipy(x64):
    """The same iterates as jax.scipy's CG and GMRES, k products each; here the image of the solution is itself."""
    rng = np.random.default_rng(2)
    root, r = rng.normal(size=(6, 6)), jnp.asarray(rng.normal(size=(2, 6)))
    positive, general = jnp.asarray(root @ root.T + np.eye(6)), jnp.asarray(np.eye(6) + 0.3 * root)
    for k in (1, 2, 4):
        ours = krylov.conjugate_gradient(lambda p: (p, p @ positive), r, k)
        theirs = jax.vmap(lambda r, k=k: jax.scipy.sparse.linalg.cg(positive, r, maxiter=k, tol=0.0)[0])(r)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        ours = krylov.minimal_residual(lambda p: (p, p @ general.T), r, k)
        theirs = jax.vmap(
            lambda r, k=k: jax.scipy.sparse.linalg.gmres(
                general, r, maxiter=1, restart=k, tol=0.0, solve_method="incremental"
            )[0]
        )(r)
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_pigdm_as_coded_moves_the_step_by_both_alphas(x64):
    """x_next = DDIM + alpha_next alpha J' A+ (y - A D), Jacobian by finite differences."""
    vp = ds.VariancePreserving()
    table, x = solvers.ddim(vp, [0.5, 0.3]), jnp.array([[0.7, -0.4]])
    level, ahead = (ds.Level(*map(float, vp.level(t))) for t in (0.5, 0.3))
    rule = guidance.pigdm_as_coded(PRIOR, SEEN, SEEN_Y)
    moved = ds.sample(jax.random.key(0), solvers.linear(rule, table), x=x)
    alone = ds.sample(jax.random.key(0), solvers.linear(PRIOR, table), x=x)
    unit = 1e-3 * jnp.eye(2)
    jacobian = (PRIOR.predict(x + unit, level).x0 - PRIOR.predict(x - unit, level).x0).T / 2e-3
    residual = jnp.array([1 - PRIOR.predict(x, level).x0[0, 0], 0.0])
    shift = ahead.alpha * level.alpha * jacobian.T @ residual
    np.testing.assert_allclose(moved - alone, shift[None], rtol=1e-8)


def test_ddnm_plus_and_ddrm_weigh_y_by_its_noise(x64):
    """One measured axis, by hand: above and below the level where the noise ahead equals that of y / s."""
    A, law = operators.matrix([[2.0, 0.0]]), PRIOR
    x, now = jnp.array([[0.7, -0.4]]), ds.Level(1.3, 1.0, 1.3)
    D = law.predict(x, now).x0[0]
    y, sigma_y, eta = jnp.array([1.0]), 0.5, 0.6  # y / s = 0.5 with noise 0.25
    for ahead in (0.7, 0.1):
        level = ds.Level(ahead, 1.0, ahead)
        many = jnp.repeat(x, 20_000, axis=0)
        clear = ahead >= 0.25
        plus = ask(guidance.ddnm_plus(law, A, y, sigma_y, eta=eta), many, now, level)
        trust = 1.0 if clear else 0.8 * ahead / 0.25
        np.testing.assert_allclose(plus.x0[0], [D[0] + trust * (0.5 - D[0]), D[1]], rtol=1e-9)
        total = (ahead * plus.eps[:, 0]).var() + (trust * 0.25) ** 2  # with y's own noise: sigma_next^2 in all
        np.testing.assert_allclose(total, ahead**2, rtol=5 * np.sqrt(2 / 20_000))
        restored = ask(guidance.ddrm(law, A, y, sigma_y, eta=eta, eta_b=0.9), many, now, level)
        end = restored.x0 + ahead * restored.eps  # the state that DDIM reaches
        if clear:
            mean, var = D[0] + 0.9 * (0.5 - D[0]), ahead**2 - (0.9 * 0.25) ** 2
        else:
            mean, var = D[0] + 0.8 * ahead / 0.25 * (0.5 - D[0]), (eta * ahead) ** 2
        assert float(end[:, 0].mean()) == pytest.approx(float(mean), abs=5 * np.sqrt(var / 20_000))
        assert float(end[:, 0].var()) == pytest.approx(var, rel=5 * np.sqrt(2 / 20_000))


def test_identities_between_rules(x64):
    """What becomes what: MPGD is DDNM, PSLD with a perfect autoencoder and a loss of the norm are DPS."""
    ahead = ds.Level(0.7, 1.0, 0.7)

    def norm(x0, y):
        return jnp.sqrt(jnp.sum((y - x0 * jnp.array([1.0, 0.0])) ** 2))

    dps = ask(guidance.dps(PRIOR, SEEN, SEEN_Y, 0.5), ahead=ahead)
    same = lambda v: v  # noqa: E731
    for rule in (
        guidance.loss_guidance(PRIOR, norm, SEEN_Y[None], scale=0.5),
        guidance.psld(PRIOR, SEEN, SEEN_Y, encode=same, decode=same, omega=0.3, gamma=0.2),
    ):
        for found, expected in zip(ask(rule, ahead=ahead), dps, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    ddnm = ask(guidance.ddnm(PRIOR, SEEN, SEEN_Y, eta=0.0))
    for found, expected in zip(ask(guidance.mpgd(PRIOR, SEEN, SEEN_Y, 0.5)), ddnm, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    mcg = ask(guidance.mcg(PRIOR, SEEN, SEEN_Y, 0.5), ahead=ahead)
    seen = np.array([[1.0 + LEVEL.sigma * float(mcg.eps[0, 0]), X[0, 1]]])  # x1 is a noised y, x2 the state's own
    inner = ask(guidance.dps(PRIOR, SEEN, SEEN_Y, 0.5), seen, ahead=ahead)
    np.testing.assert_allclose(mcg.x0[0], [1.0, float(inner.x0[0, 1])], rtol=1e-12)
    np.testing.assert_allclose(mcg.eps[0, 1], inner.eps[0, 1], rtol=1e-12)


def test_diffpir_is_the_proximal_step(x64):
    """The gradient of |y - A x|^2 / sigma_y^2 + lam (alpha / sigma)^2 |x - D|^2 vanishes at x0'."""
    A = jnp.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.3]])
    y, level = jnp.array([1.0, 0.2, -0.3]), ds.Level(0.5, 0.6, 0.8)
    x0 = ask(guidance.diffpir(PRIOR, operators.matrix(A), y, 0.4, lam=7.0), level=level).x0[0]
    D = ask(PRIOR, level=level).x0[0]
    slope = A.T @ (A @ x0 - y) / 0.4**2 + 7.0 * (0.6 / 0.8) ** 2 * (x0 - D)
    np.testing.assert_allclose(slope, 0.0, atol=1e-10)


def test_lgd_mc_with_many_draws_is_pigdm(x64):
    """log E exp(-loss) over N(D, r^2 I) of a Gaussian likelihood is that of N(A D, r^2 A A' + sigma_y^2 I)."""

    def likelihood(x0, y):
        return (y[0] - x0[0]) ** 2 / (2 * SIGMA_Y**2)

    n = 64
    x = jnp.repeat(X, n, axis=0)
    rule = guidance.lgd_mc(PRIOR, likelihood, jnp.ones((n, 1)), draws=2000)
    found = np.asarray(ask(rule, x).x0)
    error = found.std(axis=0) / np.sqrt(n)
    expected = ask(guidance.pigdm(PRIOR, FIRST, Y, SIGMA_Y)).x0[0]
    assert (np.abs(found.mean(axis=0) - expected) < 4.5 * error + 1e-3).all()  # and O(1 / draws) of bias
    one = guidance.lgd_mc(
        PRIOR, likelihood, jnp.ones((1, 1)), draws=1, data_var=1e-12
    )  # no spread: the likelihood at D
    np.testing.assert_allclose(ask(one).x0, ask(TABLE_B["dps_gaussian"][0]).x0, rtol=1e-5)


def test_stsl_on_a_gaussian_is_dps(x64):
    """The trace of a Gaussian's score is constant, so the second-order term has no gradient."""
    ahead = ds.Level(0.7, 1.0, 0.7)
    gradient = np.array([[-0.310790, -0.204970]])
    plain, corrected = ask(PRIOR).x0, ask(PRIOR, X - 0.05 * gradient).x0
    for curvature in (0.0, 5.0):
        rule = guidance.stsl(PRIOR, FIRST, Y, scale=0.05, curvature=curvature, corrections=1)
        found = ask(rule, ahead=ahead)
        np.testing.assert_allclose(found.x0, plain, rtol=1e-12)  # read before its correction
        np.testing.assert_allclose(found.x0 + LEVEL.sigma * found.eps, X - 0.05 * gradient, atol=1e-7)
    twice = ask(guidance.stsl(PRIOR, FIRST, Y, scale=0.05, corrections=2), ahead=ahead)
    np.testing.assert_allclose(twice.x0, corrected, atol=1e-7)


def test_stsl_probe_measures_the_trace(x64):
    """Gaussian: probes sqrt(d) e_i average to tr of -(S + sigma^2)^-1 exactly; mixture: E z's(x + z) by quadrature."""
    z = np.sqrt(2) * jnp.eye(2)
    x = jnp.repeat(jnp.asarray(X), 2, axis=0)
    traces = probed_trace(PRIOR.predict(x, LEVEL), PRIOR.predict(x + z, LEVEL), z, LEVEL, jnp.ones(2))
    expected = -np.trace(np.linalg.inv(np.array([[1, 0.8], [0.8, 1]]) + 1.69 * np.eye(2)))
    assert float(traces.mean()) == pytest.approx(expected, rel=1e-12)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z = jnp.asarray(nodes)[:, None]
    x = jnp.repeat(jnp.asarray(AT_HALF), 80, axis=0)
    there = MIXTURE.predict(x + z, SIGMA_TWO)
    smoothed = weights @ probed_trace(MIXTURE.predict(x, SIGMA_TWO), there, z, SIGMA_TWO, jnp.ones(80))
    assert float(smoothed / weights.sum()) == pytest.approx(-0.05538, abs=1e-5)  # the card's digits are cut
    bends = jax.vmap(jax.grad(lambda x: MIXTURE.score(x[None], SIGMA_TWO).sum()))(x + z)[:, 0]
    assert float(smoothed) == pytest.approx(float(weights @ bends), abs=1e-9)  # Stein
    small = 1e-4 * jnp.ones(80)
    there = MIXTURE.predict(x + 1e-4 * z, SIGMA_TWO)
    local = weights @ probed_trace(MIXTURE.predict(x, SIGMA_TWO), there, z, SIGMA_TWO, small) / weights.sum()
    assert local == pytest.approx(-0.025663, abs=1e-6)
    slope = jax.grad(lambda x: jax.grad(lambda x: MIXTURE.score(x, SIGMA_TWO).sum())(x).sum())(jnp.asarray(AT_HALF))
    assert slope.item() == pytest.approx(-0.045585, abs=1e-6)


def test_stsl_follows_the_gradient_of_the_trace():
    """The curvature term moves x by -(curvature / d) grad of the smoothed trace; Monte Carlo over the probes."""
    n = 20_000
    x = jnp.repeat(AT_HALF, n, axis=0)
    moved = []
    for curvature in (0.0, 1.0):
        rule = guidance.stsl(MIXTURE, IDENTITY, jnp.array([1.5]), scale=0.0, curvature=curvature, corrections=1)
        pair = ask(rule, x, SIGMA_TWO)
        moved.append(np.asarray(pair.x0 + 2.0 * pair.eps - x, np.float64)[:, 0])
    np.testing.assert_allclose(moved[0], 0.0, atol=1e-6)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def smoothed(x):  # E z s(x + z) = E s'(x + z)
        s = MIXTURE.score(x + jnp.asarray(nodes, jnp.float32)[:, None], SIGMA_TWO)[:, 0]
        return jnp.dot(jnp.asarray(weights * nodes, jnp.float32), s) / weights.sum()

    slope = float(jax.grad(smoothed)(jnp.float32(0.5)))
    error = moved[1].std() / np.sqrt(n)
    assert abs(moved[1].mean() + slope) < 4.5 * error


def test_red_diff_settles_where_data_and_prior_balance():
    """Gaussian prior: A'(A m - y) + weight sigma^2 (alpha^2 S + sigma^2)^-1 m = 0 for the mean over the noise."""
    level = ds.Level(0.5, 0.6, 0.8)
    rule = guidance.red_diff(PRIOR, FIRST, Y, weight=0.5, rate=0.1, optimiser=optax.identity())
    n = 4000

    @jax.jit
    def run(keys):
        x = jnp.zeros((n, 2))

        def step(state, key):
            at = ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(key, n))
            return rule(x, at, None, state)[1], None

        return jax.lax.scan(step, rule.init(x), keys)[0].mean

    found = np.asarray(run(jax.random.split(jax.random.key(0), 400)))
    S, A = np.array([[1, 0.8], [0.8, 1]]), np.array([[1.0, 0.0]])
    prior = 0.5 * 0.8**2 * np.linalg.inv(0.36 * S + 0.64 * np.eye(2))
    expected = np.linalg.solve(A.T @ A + prior, A.T @ [1.0])
    assert (np.abs(found.mean(axis=0) - expected) < 4.5 * found.std(axis=0) / np.sqrt(n) + 1e-4).all()


def test_red_diff_starts_from_the_pseudo_inverse_and_ends_on_its_mean():
    rule = guidance.red_diff(PRIOR, SEEN, SEEN_Y, rate=0.0)
    out = ds.sample(jax.random.key(0), solvers.linear(rule, solvers.ddim(VE, ds.times.karras(VE, 5))), (3, 2))
    np.testing.assert_allclose(out, jnp.tile(SEEN_Y[None], (3, 1)), atol=1e-6)


def test_exact_guided_denoiser_samples_the_posterior():
    """Law L7, on the mixture of TB-C: the exact E[x0 | x_t, y] as a denoiser, under an ODE and an SDE solver."""
    posterior = MIXTURE.posterior([[1.0]], [1.5], 1.0)
    exact = np.sort(np.asarray(posterior.sample(jax.random.key(1), 20_000))[:, 0])
    for table in (solvers.dpmpp(VE, ds.times.karras(VE, 60)), solvers.ddpm(VE, ds.times.karras(VE, 400))):
        out = ds.sample(jax.random.key(0), solvers.linear(posterior, table), (20_000, 1))
        found = np.sort(np.asarray(out)[:, 0])
        assert np.abs(found - exact).mean() < 0.03  # 0.003 of sampling, 0.02 of the SDE's steps


def test_dps_guides_guided_denoisers(x64):
    """DPS around CFG is DPS around the law that CFG gives, gradient and all: CFG of two Gaussians of one covariance."""
    laws = ds.exact.Switch((ds.exact.Gaussian(1.0, 1.0), ds.exact.Gaussian(0.0, 1.0)))
    x = jnp.array([0.3, -0.9])
    level = ds.Level(1.3, 1.0, 1.3)
    at = ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(jax.random.key(0), 2))
    outer = guidance.dps(guidance.cfg(laws, 1, 3.0), lambda x0: x0, 2.0, 0.4)
    found, _ = outer(x, at, jnp.array([0, 0]), outer.init(x))
    same = guidance.dps(ds.exact.Gaussian(3.0, 1.0), lambda x0: x0, 2.0, 0.4)
    expected, _ = same(x, at, None, same.init(x))
    np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-12)
