"""Feynman-Kac correctors: identities without Monte Carlo, closed-form laws and normalisers, refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import probes, smc, solvers
from diffsample.compiles import count_compiles
from diffsample.smc.products.master import log_kernel_ratio, master_rate, weight_rate

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
Q = ds.exact.Mixture([0.3, 0.7], [-3.0, 3.0], [1.0, 0.25])  # specs/smc.md 9.2
Q2 = ds.exact.Mixture([0.6, 0.4], [-2.0, 2.5], [0.64, 0.64])
QC = ds.exact.Mixture([0.8, 0.2], [-3.0, 3.0], [1.0, 0.25])
ANYTHING: Any = Q
MOMENTS = {"means": [1.2, 1.2], "variances": [8.0, 8.0]}


def table(steps, solver: Any = solvers.ddpm, **options):
    return solver(VP, ds.times.uniform_logsnr(VP, steps, stop=1e-3, zero=False), **options)


def law(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    spread = 0.3 + jax.random.uniform(keys[2], (3,))
    return ds.exact.Mixture([0.2, 0.5, 0.3], 2 * jax.random.normal(keys[0], (3, 2)), spread)


def at(u):
    return ds.Level(u, 1.0, jnp.sqrt(u))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0, 2.0])
def test_master_formula_solves_the_weighted_fokker_planck_equation_at_any_noise_rate(x64, rate):
    # g = d log p / dtau + div v + v . grad log p - rate (laplace log p + |grad log p|^2) / 2 for p unnormalised
    laws = [law(1), law(2)]
    u, x = 0.7, jnp.array([0.4, -1.1])

    def beta(u):
        return jnp.array([1.3 + jnp.sin(u), -0.4 * u])

    def reward(x, u):
        return jnp.sin(x[0] * u) * x[1] - 0.3 * (x**2).sum()

    def log_qs(x, u):
        return jnp.stack([q.log_prob(x[None], at(u))[0] for q in laws])

    def log_p(x, u):
        return beta(u) @ log_qs(x, u) + reward(x, u)

    def drift(x):
        return (1 + rate) / 2 * beta(u) @ jax.jacobian(log_qs)(x, u) + rate / 2 * jax.grad(reward)(x, u)

    @jax.jit
    def both(x, u):
        gradient, hessian = jax.grad(log_p)(x, u), jax.hessian(log_p)(x, u)
        universal = -jax.grad(log_p, 1)(x, u) + jnp.trace(jax.jacobian(drift)(x)) + drift(x) @ gradient
        universal -= rate / 2 * (jnp.trace(hessian) + gradient @ gradient)
        found = master_rate(
            jax.jacobian(log_qs)(x, u)[:, None],
            beta(u),
            -jax.jacobian(beta)(u),
            log_qs(x, u)[:, None],
            -jax.grad(reward, 1)(x, u)[None],
            jax.grad(reward)(x, u)[None],
        )
        return found[0], universal

    np.testing.assert_allclose(*both(x, u), atol=1e-10)


def test_weights_vanish_without_a_product_and_a_square_is_a_product_of_equals(x64):
    scores = jax.random.normal(KEY, (2, 5, 3))
    assert np.abs(weight_rate(scores, [1.0, 0.0])).max() == 0
    same = scores[:1].repeat(2, axis=0)
    for exponents in ([3.0, -2.0], [0.3, 0.7]):
        assert np.abs(weight_rate(same, exponents)).max() < 1e-12
    np.testing.assert_allclose(weight_rate(same, [1.0, 1.0]), weight_rate(same[:1], [2.0]), rtol=1e-12)
    close = scores[:1] + 1e-6 * scores  # a difference that two squares would lose in float32
    exact = 3.0 * np.asarray(((close[0] - close[1]) ** 2).sum(axis=-1))
    np.testing.assert_allclose(weight_rate(close.astype(jnp.float32), [3.0, -2.0]), exact, rtol=1.0)
    np.testing.assert_allclose(weight_rate(close, [3.0, -2.0]), exact, rtol=1e-8)


def call(target, x, level, to):
    keys = jax.random.split(KEY, len(x))
    point = ds.Point(level, to, jnp.int32(0), jnp.int32(0), keys)
    return target(x, point, None, target.init(x))


def test_product_has_the_score_of_the_product_and_its_gauge_keeps_the_targets(x64):
    level, to = (jax.tree.map(jnp.asarray, VP.level(t)) for t in (0.5, 0.45))
    laws, beta = [law(3), law(4)], jnp.array([1.7, 0.6])
    x = jax.random.normal(KEY, (4, 2))
    moments = {"means": [[0.1, -0.2], [0.4, 0.3]], "variances": [2.0, 1.5]}
    plain, bare = call(smc.product(laws, beta, gauge=0.0, **moments), x, level, to)
    gauged, memory = call(smc.product(laws, beta, **moments), x, level, to)
    score = sum(b * q.score(x, level) for b, q in zip(beta, laws, strict=True))
    np.testing.assert_allclose(-plain.eps / level.sigma, score, rtol=1e-10)
    np.testing.assert_allclose(level.alpha * gauged.x0 + level.sigma * gauged.eps, x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(memory.rate, bare.rate, rtol=1e-12)

    def push(x):  # in y = x / alpha
        p, _ = call(smc.product(laws, beta, **moments), x[None], level, to)
        q, _ = call(smc.product(laws, beta, gauge=0.0, **moments), x[None], level, to)
        return (p.x0 - q.x0)[0] * (level.alpha / level.sigma) ** 2

    slope = jax.vmap(lambda x: jnp.trace(jax.jacobian(push)(x)))(x) * level.alpha
    along = (jax.vmap(push)(x) * score * level.alpha).sum(axis=-1)
    np.testing.assert_allclose(memory.gauge_rate, slope + along, rtol=1e-9)
    assert np.abs(bare.gauge_rate).max() == 0


def test_matched_gauge_makes_the_weights_of_gaussian_experts_constant(x64):
    laws = [ds.exact.Gaussian([1.0, -2.0], [1.5, 0.4]), ds.exact.Gaussian([0.0, 1.0], [2.0, 3.0])]
    moments: dict[str, Any] = {"means": [[1.0, -2.0], [0.0, 1.0]], "variances": [[1.5, 0.4], [2.0, 3.0]]}
    level, to = (jax.tree.map(jnp.asarray, VP.level(t)) for t in (0.4, 0.3))
    x = 3 * jax.random.normal(KEY, (20, 2))
    _, memory = call(smc.product(laws, [2.5, -0.3], **moments), x, level, to)
    rate = memory.rate + memory.gauge_rate
    np.testing.assert_allclose(rate, rate[0], rtol=1e-11)
    assert memory.rate.std() > 0.1


def log_product(mean, variance, beta):
    """log of the integral of prod N(m_i, v_i)^beta_i, one number each."""
    mean, variance, beta = map(np.asarray, (mean, variance, beta))
    width, peak = (beta / variance).sum(), (beta * mean / variance).sum()
    edge = -0.5 * (beta * np.log(2 * np.pi * variance)).sum() - 0.5 * (beta * mean**2 / variance).sum()
    return edge + 0.5 * np.log(2 * np.pi / width) + 0.5 * peak**2 / width


def test_gaussian_products_have_exact_normalisers_and_equal_weights_at_any_number_of_steps(x64):
    mean, variance, beta = [1.0, -0.5], [1.5, 0.4], [2.0, 0.7]
    target = smc.product(
        [ds.exact.Gaussian(m, v) for m, v in zip(mean, variance, strict=True)], beta, means=mean, variances=variance
    )
    for rows in (table(6, large=True), solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 5))):
        out = ds.sample(KEY, smc.corrected(solvers.linear(target, rows), particles=8), (16,), dtype=jnp.float64)
        exact = log_product(mean, np.asarray(variance) + float((rows.next.sigma[-1] / rows.next.alpha[-1]) ** 2), beta)
        np.testing.assert_allclose(out.log_z, exact, atol=1e-9)
        np.testing.assert_allclose(out.weights, 1 / 8, rtol=1e-9)


def test_discrete_kernels_are_exact_where_the_reverse_kernels_are(x64):
    # data N(0, 1) on VP: prod p_i^beta_i r^(1-B) / K = q'(x')^beta r(x|x') / (q(x)^beta K(x'|x)), any step, any K
    s, t, beta = VP.level(0.8), VP.level(0.2), jnp.array([1.4, 0.9])
    x, after = jax.random.normal(KEY, (2, 6, 3))
    y, gap = x / s.alpha, (s.sigma / s.alpha) ** 2 - (t.sigma / t.alpha) ** 2
    step, mean, drawn = after / t.alpha - y, 0.3 * y - 0.1, 0.7
    scores = jnp.broadcast_to(-y * s.alpha**2, (2, 6, 3))
    ratio = log_kernel_ratio(step, scores, beta, gap, (mean, (gap * (s.alpha / t.alpha) ** 2, jnp.float64(drawn))))

    def log(x, mean, variance):
        return jax.scipy.stats.norm.logpdf(x, mean, np.sqrt(variance)).sum(axis=-1)

    now, new = log(y, 0.0, s.alpha**-2), log(y + step, 0.0, t.alpha**-2)
    exact = 2.3 * (new - now) + log(step, 0.0, gap) - log(step, mean, drawn)
    np.testing.assert_allclose(ratio, exact, atol=1e-10)


@pytest.mark.parametrize("solver", [solvers.ddpm, solvers.sde_dpmpp])
def test_kernel_weights_estimate_the_normaliser_without_bias(x64, solver):
    options: Any = {"large": True} if solver is solvers.ddpm else {"order": 1, "eta": 1.5}
    sampler = solvers.linear(smc.annealed(ds.exact.Gaussian(0.0, 1.0), 1.2, gauge=0.3), table(20, solver, **options))
    fk = smc.corrected(sampler, particles=64, weights=smc.kernel_corrector)
    rows = sampler.tableau
    exact = log_product([0.0], [1 + float((rows.next.sigma[-1] / rows.next.alpha[-1]) ** 2)], [1.2])
    z = np.exp(ds.sample(KEY, fk, (200 * 64,), dtype=jnp.float64).log_z - exact)
    assert 0.005 < z.std() < 0.5
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(200)  # false alarms: 6e-5


CASES = {  # experts, exponents, moments -> log Z, P(x > 0), tolerances of both (specs/smc.md 9.2)
    "anneal 2": ((Q, Q2), (2.0, 0.0), {}, -1.19785, 0.91589, 0.12, 0.012),
    "anneal 3": ((Q, Q2), (3.0, 0.0), {}, -2.05143, 0.98070, 0.3, 0.01),
    "anneal 1/2": ((Q, Q2), (0.5, 0.0), {}, 0.93463, 0.52653, 0.05, 0.02),
    "product": ((Q, Q2), (1.0, 1.0), {}, -1.93632, 0.7134, 0.12, 0.03),
    "guided 2": ((QC, Q), (2.0, -1.0), {"means": [-1.8, 1.2], "variances": [6.61, 8.035]}, 0.7841, 0.0274, 0.06, 0.01),
    "guided 3": ((QC, Q), (3.0, -2.0), {"means": [-1.8, 1.2], "variances": [6.61, 8.035]}, 1.7413, 0.0041, 0.2, 0.01),
}


def run(experts, exponents, gauge=1.0, groups=16, particles=512, steps=100, **moments):
    target = smc.product(experts, exponents, gauge=gauge, **{**MOMENTS, **moments})
    sampler = solvers.linear(target, table(steps, large=True))
    return ds.sample(KEY, smc.corrected(sampler, particles=particles), (groups * particles,))


@pytest.mark.parametrize("name", CASES)
def test_targets_of_the_table_have_their_normaliser_and_their_mode_weights(name):
    experts, exponents, moments, log_z, positive, near, close = CASES[name]
    out = run(experts, exponents, **moments)
    assert abs(np.log(np.exp(out.log_z - log_z).mean())) < near
    share = np.asarray(out.mean((out.x > 0).astype(float)))
    assert abs(share.mean() - positive) < close + 4 * share.std() / np.sqrt(len(share))


def test_matched_gauge_halves_the_deviation_of_the_normaliser_and_shares_the_program():
    run(*CASES["anneal 2"][:2], groups=32)
    with count_compiles() as compiles:
        spread = {gauge: run(*CASES["anneal 2"][:2], gauge=gauge, groups=32).log_z.std() for gauge in (0.0, 1.0)}
        product = {gauge: run(*CASES["product"][:2], gauge=gauge, groups=32).log_z.std() for gauge in (0.0, 1.0)}
    assert spread[1.0] < 0.6 * spread[0.0] and product[1.0] < 0.5 * product[0.0]
    assert compiles.count <= 4  # the means of the results, not the programs


def test_more_noise_than_the_reverse_process_calms_the_weights():
    spread = {}
    for rate in (1.0, 4.0):
        target = smc.annealed(Q, 3.0, mean=1.2, variance=8.0, gauge=2 / (1 + rate))
        sampler = solvers.linear(target, table(400, solvers.sde_dpmpp, order=1, eta=rate))
        out = ds.sample(KEY, smc.corrected(sampler, particles=512), (16 * 512,))
        spread[rate] = out.log_z.std()
    assert abs(np.log(np.exp(out.log_z + 2.05143).mean())) < 0.15 + spread[4.0]
    assert abs(out.mean((out.x > 0).astype(float)).mean() - 0.98070) < 0.005
    assert spread[4.0] < 0.5 * spread[1.0]  # 0.06 and 0.29


def moved(level):
    """From 1 at high noise to 3 at none."""
    return 1.0 + 2.0 / (1.0 + (level.sigma / level.alpha) ** 2)


def gaussian_density(x, level):
    return ds.exact.Gaussian(1.0, 2.0).log_prob(x, level)[:, None]


@pytest.mark.parametrize(("known", "near"), [(None, 0.03), (gaussian_density, 0.03)])
def test_exponents_that_change_reach_the_last_one(known, near):
    target = smc.annealed(ds.exact.Gaussian(1.0, 2.0), moved, mean=1.0, variance=2.0)
    sampler = solvers.linear(target, table(150, large=True))

    def weights(target):
        return smc.corrector(target, log_density=known)

    out = ds.sample(KEY, smc.corrected(sampler, particles=512, weights=weights), (16 * 512,))
    mean, second = (np.asarray(out.mean(v)) for v in (out.x, (out.x - 1) ** 2))
    assert abs(mean.mean() - 1) < 0.04 and abs(second.mean() - 2 / 3) < 0.05
    assert abs(np.log(np.exp(out.log_z - log_product([1.0], [2.0], [3.0])).mean())) < near


def run_to_the_last_call(fk, steps):
    keys = jax.random.split(KEY, 256)
    state = fk.init(keys, fk.prior(keys, (256,), jnp.float32), None)

    def row(state, row):
        return fk.step(jax.vmap(jax.random.fold_in, (0, None))(keys, row[0]), state, row[1], None), None

    state, _ = jax.lax.scan(row, state, (jnp.arange(steps), fk.steps))
    return state, fk.sampler.view(state.inner).level


def carried_error(rows, steps, **options):
    """Root mean square error of log q carried along plain particles of q."""
    target = smc.annealed(Q, lambda level: jnp.ones(()), mean=1.2, variance=8.0, **options)
    fk = smc.feynman_kac(smc.start_of(solvers.linear(target, rows)), smc.corrector(target), particles=256,
                         policy=smc.never)  # fmt: skip
    state, level = run_to_the_last_call(fk, steps)
    truth = Q.log_prob(state.inner.registers[0], level) + jnp.log(level.alpha)
    return float(jnp.sqrt(jnp.mean((state.memory.log_q[:, 0] - truth) ** 2)))


def test_log_densities_carried_along_the_path_err_as_the_root_of_the_step():
    errors = [carried_error(table(steps, large=True), steps) for steps in (60, 960)]
    assert 2.5 < errors[0] / errors[1] < 6.5  # 4 for 16 times the steps
    assert errors[1] < 0.16  # 0.25 at 1000 steps in specs/smc.md 2.5, without the surrogates


def test_divergences_carry_log_densities_under_noise_of_any_rate():
    tempered = {"order": 1, "eta": 0.5}
    errors = [
        carried_error(table(steps, solvers.sde_dpmpp, **tempered), steps, probes=probes.rademacher)
        for steps in (60, 960)
    ]
    assert 2.5 < errors[0] / errors[1] < 6.5
    assert errors[1] < 0.16


def test_probes_measure_the_divergence_of_each_score(x64):
    level, to = (jax.tree.map(jnp.asarray, VP.level(t)) for t in (0.5, 0.45))
    laws, x = [law(3), law(4)], jax.random.normal(KEY, (3, 2))
    _, exact = call(smc.product(laws, [1.7, 0.6], probes=probes.every_axis), x, level, to)
    measured = np.asarray(exact.divergence)
    for i, q in enumerate(laws):
        slope = jax.vmap(lambda x, q=q: jnp.trace(jax.jacobian(lambda x: q.score(x[None], level)[0])(x)))(x)
        np.testing.assert_allclose(measured[:, i], slope * level.alpha**2, rtol=1e-10)  # in y = x / alpha
    many = jnp.repeat(x, 4000, axis=0)
    _, found = call(smc.product(laws, [1.7, 0.6], probes=probes.rademacher, count=2), many, level, to)
    seen = np.asarray(found.divergence).reshape(3, 4000, 2)
    error = seen.std(axis=1) / np.sqrt(4000)
    assert (np.abs(seen.mean(axis=1) - measured) < 4.5 * error + 1e-12).all() and error.max() > 1e-4


@pytest.mark.parametrize(
    ("solver", "options", "gauge", "weights"),
    [
        (solvers.sde_dpmpp, {"order": 1, "eta": 0.5}, 4 / 3, smc.corrector),  # tempered noise
        (solvers.ddim, {"eta": 1.0}, 1.0, smc.corrector),
        (solvers.sde_dpmpp, {"order": 2}, 0.0, smc.corrector),
        (solvers.euler_maruyama, {}, 0.0, smc.euler_corrector),
        (solvers.ddpm, {"large": True}, 1.0, smc.kernel_corrector),
    ],
)
def test_every_stochastic_table_samples_the_annealed_mixture(solver, options, gauge, weights):
    target = smc.annealed(Q, 2.0, mean=1.2, variance=8.0, gauge=gauge)
    sampler = solvers.linear(target, table(200, solver, **options))
    out = ds.sample(KEY, smc.corrected(sampler, particles=256, weights=weights), (8 * 256,))
    share = np.asarray(out.mean((out.x > 0).astype(float)))
    assert abs(share.mean() - 0.91589) < 0.015 + 4 * share.std() / np.sqrt(8)
    assert abs(np.log(np.exp(out.log_z + 1.19785).mean())) < 0.7


def test_birth_death_resampling_samples_the_annealed_law():
    target = smc.annealed(ds.exact.Gaussian(1.0, 2.0), 2.0, mean=1.0, variance=2.0, gauge=0.0)
    sampler = solvers.linear(target, table(200, large=True))
    fk = smc.corrected(sampler, particles=512, resample=smc.birth_death, policy=smc.always)
    out = ds.sample(KEY, fk, (8 * 512,))
    assert out.diagnostics.unique[:, 2:-1].min() > 0.8 * 512
    assert abs(float(out.mean((out.x - 1) ** 2).mean()) - 1.0) < 0.16  # without weights 0.7
    assert abs(float(out.log_z.mean()) - log_product([1.0], [2.0], [2.0])) < 0.5


def test_weight_window_drops_the_weights_outside():
    def ones(before, after):
        return jnp.full(after.x.shape[:1], 0.5)

    sampler = solvers.linear(Q, table(9))
    fk = smc.feynman_kac(sampler, smc.weight_window(ones, 3, 5), particles=4)
    np.testing.assert_allclose(ds.sample(KEY, fk, (8,)).log_z, 1.5, rtol=1e-6)
    with pytest.raises(ValueError, match="holds no row"):
        smc.weight_window(ones, 5, 3)


def test_guided_law_is_the_product_of_two_conditions():
    law = ds.exact.ClassMixture([0.5, 0.5], [[-1.0], [1.0]], [0.5, 0.5], labels=[0, 1])
    x, cond = jnp.array([[0.3], [0.7]]), jnp.array([0, 1])
    level = jax.tree.map(jnp.asarray, VP.level(0.5))
    point = ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(KEY, 2))
    target = smc.guided(law, 2, 3.0)
    prediction, _ = target(x, point, cond, target.init(x))
    expected = ds.guidance.cfg(law, 2, 3.0)
    other, _ = expected(x, point, cond, expected.init(x))
    np.testing.assert_allclose(prediction.x0, other.x0, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: smc.product([Q, Q2], [1.0, -1.0]), "sum to 0: at high noise"),
        (lambda: smc.product([Q2, Q], [3.0, -2.0], variances=[8.0, 1.0]), "cannot be normalised at t = 0.00"),
        (lambda: smc.annealed(Q, lambda level: level.alpha - 0.5), "must be positive"),
    ],
)
def test_targets_without_a_normaliser_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        solvers.linear(make(), table(10, large=True))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: smc.product([], []), ValueError, "at least one"),
        (lambda: smc.product([Q], [1.0, 2.0]), ValueError, "must be 1 finite"),
        (lambda: smc.product([Q, Q], [1.0, 2.0], means=[0.0]), ValueError, "one entry an expert"),
        (lambda: smc.product([Q], [1.0], variances=[0.0]), ValueError, "must be positive"),
        (lambda: smc.corrector(ANYTHING), TypeError, "got Mixture"),
        (lambda: smc.corrected(solvers.linear(Q, table(5)), particles=4), ValueError, "drives a Mixture"),
        (
            lambda: smc.corrected(solvers.linear(smc.annealed(Q, 2.0), table(5, solvers.sde_dpmpp)), particles=4),
            ValueError,
            "gauge=0.0",
        ),
        (
            lambda: smc.corrected(
                solvers.linear(smc.annealed(Q, moved), table(5, solvers.sde_dpmpp, order=1, eta=0.5)), particles=4
            ),
            ValueError,
            "give log_density",
        ),
        (
            lambda: smc.corrected(solvers.linear(smc.annealed(Q, 2.0), table(5, solvers.ddim)), particles=4),
            ValueError,
            "draws no noise",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, said):
    with pytest.raises(error, match=said):
        make()


FORTY = np.random.default_rng(0).uniform(-40, 40, (40, 2))


def test_forty_modes_to_a_power_is_a_mixture_of_known_weights():
    # specs/smc.md 9.2b: log Z of the square, from pairs of modes
    square = np.logaddexp.reduce(-((FORTY[:, None] - FORTY[None]) ** 2).sum(-1).ravel() / (4 * 2.126928**2))
    exact = square - 2 * np.log(40) - 2 * np.log(2 * np.pi * 2.126928**2) + np.log(np.pi * 2.126928**2)
    assert abs(exact + 7.472079) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "share"), [(3.0, 0.4), (smc.rising(3.0, high=2.0, low=0.6), 0.2)])
def test_correction_of_forty_modes_finds_their_masses_and_the_normaliser(beta, share):
    width, steps, groups, particles = 2.126928, 1000, 8, 1000
    process = ds.VarianceExploding(0.5, 150.0)
    rows = solvers.ddpm(process, ds.times.uniform_logsnr(process, steps), large=True)
    law = ds.exact.Mixture(np.full(40, 1 / 40), FORTY, width**2)
    target = smc.annealed(law, beta, mean=FORTY.mean(0), variance=FORTY.var(0) + width**2)
    out = ds.sample(KEY, smc.corrected(solvers.linear(target, rows), particles=particles), (groups * particles, 2))
    assert abs(float(out.log_z.mean()) + 14.637837) < 0.2  # specs/smc.md 9.2b; deviation of one group 0.11
    apart = ((FORTY[:, None] - FORTY[None]) ** 2).sum(-1)
    log_w = -(apart[:, :, None] + apart[:, None, :] + apart[None]) / (6 * width**2)
    triples = np.random.default_rng(1).choice(40**3, 50_000, p=np.exp(log_w).ravel() / np.exp(log_w).sum())
    centres = (FORTY[triples // 1600] + FORTY[triples // 40 % 40] + FORTY[triples % 40]) / 3

    def masses(x, weights):
        near = ((np.asarray(x)[:, None] - FORTY[None]) ** 2).sum(-1).argmin(1)
        return np.bincount(near, np.asarray(weights).ravel(), minlength=40) / np.sum(weights)

    noise = np.random.default_rng(2).standard_normal((50_000, 2))
    exact = masses(centres + width / np.sqrt(3) * noise, np.ones(50_000))
    plain = smc.start_of(solvers.linear(smc.annealed(law, 3.0, gauge=0.0), rows))
    alone = masses(ds.sample(KEY, plain, (2000, 2)), np.ones(2000))
    found = masses(out.x, out.weights)
    # in total variation 0.37 alone, 0.11 with a fixed exponent
    assert np.abs(found - exact).sum() < share * np.abs(alone - exact).sum()
