"""Closed-form laws against the stored numbers of specs/guidance.md section 1, quadrature, SciPy and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffsample.denoiser import Denoiser, Point
from diffsample.exact import ClassMixture, Gaussian, Mixture, PointMass, Switch
from diffsample.process import Level

double = pytest.mark.usefixtures("x64")

S = np.array([[1.0, 0.8], [0.8, 1.0]])
TB_B = Gaussian([0.0, 0.0], S)
TB_C = Mixture([0.5, 0.5], [-2.0, 2.0], [0.25, 0.25])
P1 = Mixture([0.3, 0.45, 0.25], [-1.0, 0.3, 1.1], np.square([0.35, 0.25, 0.4]))
FULL = Mixture(
    [0.2, 0.5, 0.3],
    [[0.0, 1.0], [2.0, -1.0], [-1.0, -1.0]],
    np.array([S, [[0.5, -0.2], [-0.2, 0.3]], [[2.0, 0.0], [0.0, 0.1]]]),
)
# In three dimensions the axes of a covariance are no symmetric matrix, as they are in two.
BOX = np.array(
    [[[2.0, 0.6, -0.3], [0.6, 1.0, 0.4], [-0.3, 0.4, 0.5]], [[0.3, 0.1, 0.2], [0.1, 1.5, -0.6], [0.2, -0.6, 0.9]]]
)
CORNERS = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]])
SOLID = [Gaussian(CORNERS[0], BOX[0]), Mixture([0.4, 0.6], CORNERS, BOX[:1]), Mixture([0.4, 0.6], CORNERS, BOX)]
LAWS = {
    "isotropic": Gaussian([1.0, -2.0], 0.3),
    "diagonal": Gaussian([1.0, -2.0], [0.3, 2.0]),
    "full": Gaussian([1.0, -2.0], S),
    "scalar": Gaussian(0.5, 0.3),
    "scalar mixture": P1,
    "isotropic mixture": Mixture([0.2, 0.8], [[0.0, 1.0], [2.0, -1.0]], [0.3, 2.0]),
    "diagonal mixture": Mixture([0.2, 0.3, 0.5], [[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]], [[0.3, 2.0]] * 3),
    "shared full mixture": Mixture([0.2, 0.3, 0.5], [[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]], S[None]),
    "full mixture": FULL,
}
LEVELS = {
    "ve": Level(0.3, 1.0, 0.3),
    "ve noisy": Level(20.0, 1.0, 20.0),
    "vp": Level(0.5, 0.6, 0.8),
    "flow": Level(0.7, 0.3, 0.7),
    "no signal": Level(1.0, 0.0, 1.0),
    "a level a sample": Level(None, np.array([1.0, 0.6, 0.3]), np.array([0.1, 0.8, 0.7])),
}
X = np.array([[0.3, -0.7], [1.9, 0.2], [-2.5, 4.0]])


@jax.jit
def predict(law, x, level):
    return law.predict(x, level)


@jax.jit
def denoise(law, x, level, cond):
    return law(x, at(level), cond, law.init(x))


@jax.jit
def score_and_gradient(law, x, level):
    return law.score(x, level), jax.grad(lambda x: law.log_prob(x, level).sum())(x)


@jax.jit
def denoise_one(law, x, level):
    one = lambda x: law.predict(x[None], level).x0[0]  # noqa: E731
    return one(x), jax.jacobian(one)(x)


every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
every_level = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())


def at(level):
    index, keys = jnp.int32(0), jax.random.split(jax.random.key(0), 3)
    return Point(level, level, index, index, keys)


def probability_flow(predict, x, sigmas):
    """RK4 in log sigma for dx/dsigma = (x - D)/sigma, in variance-exploding coordinates."""

    def slope(x, log_sigma):
        sigma = jnp.exp(log_sigma)
        return x - predict(x, Level(sigma, 1.0, sigma)).x0

    def step(x, ends):
        start, h = ends[0], ends[1] - ends[0]
        k1 = slope(x, start)
        k2 = slope(x + h / 2 * k1, start + h / 2)
        k3 = slope(x + h / 2 * k2, start + h / 2)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, start + h)), None

    logs = jnp.log(sigmas)
    return jax.jit(lambda x: jax.lax.scan(step, x, jnp.stack([logs[:-1], logs[1:]], axis=1))[0])(x)


# Stored numbers


@double
@pytest.mark.parametrize(
    ("scale", "mean", "variance"), [(1, 0.993750, 0.249990), (2, 1.373923, 0.062505), (4, 1.514440, 0.003907)]
)
def test_switch_under_guidance_reproduces_tb_a(scale, mean, variance):
    pair = Switch((Gaussian(0.0, 1.0), Gaussian(1.0, 0.25)))

    def guided(x, level):
        free, bound = (pair.predict(x, level, jnp.full(2, c)) for c in (0, 1))
        return free._replace(x0=free.x0 + scale * (bound.x0 - free.x0))

    ends = probability_flow(guided, jnp.array([0.0, 80.0]), jnp.geomspace(80.0, 1e-5, 4001))
    np.testing.assert_allclose([ends[0], (ends[1] - ends[0]) ** 2], [mean, variance], atol=1e-6)


@double
def test_flow_reproduces_the_unguided_row_of_tb_a():
    ends = Gaussian(1.0, 0.25).flow(jnp.array([0.0, 80.0]), Level(None, 1.0, 80.0), Level(None, 1.0, 0.0))
    np.testing.assert_allclose([ends[0], (ends[1] - ends[0]) ** 2], [0.993750, 0.249990], atol=1e-6)


@double
def test_gaussian_reproduces_tb_b():
    x, level, noise = jnp.array([[0.7, -0.4]]), Level(1.3, 1.0, 1.3), 0.25
    bound = TB_B.posterior([1.0, 0.0], 1.0, noise)
    np.testing.assert_allclose(bound.mean, [0.8, 0.64], atol=1e-14)
    np.testing.assert_allclose(bound.cov.dense()[0], [[0.20, 0.16], [0.16, 0.488]], atol=1e-14)
    np.testing.assert_allclose(predict(TB_B, x, level).x0, [[0.135565, 0.019163]], atol=1e-6)
    np.testing.assert_allclose(bound.predict(x, level).x0, [[0.721234, 0.405419]], atol=1e-6)
    x0, jacobian = denoise_one(TB_B, x[0], level)
    gradient = jacobian.T @ jnp.array([1.0 - x0[0], 0.0])
    np.testing.assert_allclose(x0 + 1.69 * gradient / (1.69 / 2.69 + noise), [0.652536, 0.360112], atol=1e-6)
    np.testing.assert_allclose(x0 + 1.69 * gradient / noise, [1.951690, 1.216919], atol=1e-6)
    np.testing.assert_allclose(-gradient / jnp.abs(1.0 - x0[0]), [-0.310790, -0.204970], atol=1e-6)


@double
def test_mixture_posterior_reproduces_tb_c():
    bound = TB_C.posterior(1.0, 1.5, 1.0)
    np.testing.assert_allclose(bound.weights, [0.00816257, 0.99183743], atol=1e-8)
    np.testing.assert_allclose(bound.means, [-1.3, 1.9], atol=1e-14)
    np.testing.assert_allclose(bound.covs.dense().ravel(), [0.2, 0.2], atol=1e-14)
    mean, cov = bound.moments()
    np.testing.assert_allclose([mean, cov[0, 0]], [1.873880, 0.282902], atol=1e-6)
    np.testing.assert_allclose(bound.predict(jnp.array([0.5]), Level(2.0, 1.0, 2.0)).x0, [1.811948], atol=1e-6)


@double
def test_mixture_reproduces_tb_c():
    level = Level(2.0, 1.0, 2.0)
    scalar = [lambda z: TB_C.score(z[None], level)[0]]
    scalar += [jax.grad(scalar[0])]
    scalar += [jax.grad(scalar[1])]
    np.testing.assert_allclose(
        [jax.jit(f)(jnp.array(0.5)) for f in scalar], [-0.008920, -0.025663, -0.045585], atol=1e-6
    )
    x0, slope = jax.jit(jax.value_and_grad(lambda z: TB_C.predict(z[None], level).x0[0]))(jnp.array(0.5))
    np.testing.assert_allclose([x0, slope], [0.464322, 0.897350], atol=1e-6)
    approximations = [x0 + 4 * slope * (1.5 - x0) / v for v in (4 * slope + 1, 4 / 5 + 1, 1)]
    np.testing.assert_allclose(approximations, [1.274333, 2.529579, 4.181785], atol=1e-6)
    np.testing.assert_allclose(TB_C.responsibilities(jnp.array([0.5]), level)[0, 1], 0.615523, atol=1e-6)
    classes = ClassMixture([0.5, 0.5], [-2.0, 2.0], 0.25, labels=[0, 1])
    np.testing.assert_allclose(classes.score(jnp.array([0.5]), level, 1), [0.352941], atol=1e-6)


@double
def test_scalar_mixture_on_a_vector_reproduces_the_reference_trajectory_of_p1():
    """Of solvers.md 10.1, from t = 1 to t = 0.01 of the VP process with beta from 0.1 to 20."""
    integral = np.array([0.1 * t + 19.9 * t**2 / 2 for t in (1.0, 0.01)])
    ratios, alphas = np.sqrt(np.expm1(integral)), np.exp(-integral / 2)
    start = jnp.linspace(-2.0, 2.0, 9) / alphas[0]
    end = alphas[1] * probability_flow(P1.predict, start, np.geomspace(ratios[0], ratios[1], 3001))
    reference = [-1.50468158969, -1.26837427271, -0.974010084416, -0.195109153447, 0.257420320936]
    reference += [0.536259588252, 0.967900825656, 1.34827317552, 1.63515951352]
    np.testing.assert_allclose(end, reference, atol=1e-9)


@double
@pytest.mark.parametrize(("sigma", "trace"), [(1.0, 0.8333), (0.1, 1.970491), (0.01, 1.999700)])
def test_singular_gaussian_has_the_denoiser_trace_of_its_subspace(sigma, trace):
    """Specs/guidance.md section 13: variances (1, 0.5, 0, 0, 0) along rotated axes."""
    axes = scipy.stats.ortho_group.rvs(5, random_state=0)
    law = Gaussian(np.zeros(5), axes @ np.diag([1.0, 0.5, 0.0, 0.0, 0.0]) @ axes.T)
    jacobian = jax.jacobian(lambda x: law.predict(x[None], Level(None, 1.0, sigma)).x0[0])(jnp.ones(5))
    np.testing.assert_allclose(jnp.trace(jacobian), trace, atol=5e-5)
    flow = jax.jacobian(lambda x: law.flow(x[None], Level(None, 1.0, 80.0), Level(None, 1.0, 0.0))[0])(jnp.ones(5))
    np.testing.assert_allclose(jnp.linalg.svd(flow)[1], [0.012499, 0.008838, 0, 0, 0], atol=1e-6)


# Closed forms against each other and against other sources


@double
@every_law
@every_level
def test_score_is_the_gradient_of_log_prob_and_the_prediction_agrees_with_it(law, level):
    x = jnp.array(X)
    score, gradient = score_and_gradient(law, x, level)
    found = predict(law, x, level)
    alpha, sigma = (np.broadcast_to(scale, 3)[:, None] for scale in (level.alpha, level.sigma))
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(score, -found.eps / sigma, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, X, rtol=1e-12, atol=1e-12)


@double
@pytest.mark.parametrize("law", [*SOLID, LAWS["diagonal"], FULL], ids=["full", "shared", "own", "diagonal", "plane"])
@pytest.mark.parametrize("name", ["ve", "vp", "flow"])
def test_denoiser_and_its_jacobian_are_the_moments_of_the_law_given_x_t(law, name):
    """The noisy state is a linear measurement, and by Tweedie Cov[x0|x_t] = sigma^2/alpha dD/dx_t."""
    d = law.means.shape[1] if isinstance(law, Mixture) else law.mean.size
    level, x = LEVELS[name], jnp.array([0.4, 1.3, -0.2])[:d]
    bound = law.posterior(level.alpha * np.eye(len(x)), x, level.sigma**2)
    mean, cov = bound.moments() if isinstance(bound, Mixture) else (bound.mean, bound.cov.dense()[0])
    x0, jacobian = denoise_one(law, x, level)
    np.testing.assert_allclose(x0, mean, rtol=1e-10)
    np.testing.assert_allclose(level.sigma**2 / level.alpha * jacobian, cov, rtol=1e-9, atol=1e-12)


@double
@every_law
def test_log_prob_of_the_data_agrees_with_scipy(law):
    mixed = isinstance(law, Mixture)
    weights, means, covs = (law.weights, law.means, law.covs) if mixed else (np.ones(1), law.mean[None], law.cov)
    dense = np.broadcast_to(covs.dense(), (len(weights), *covs.dense().shape[1:]))
    points = X if means.ndim == 2 else X[:, :1]
    parts = zip(weights, means, dense, strict=True)
    density = sum(w * scipy.stats.multivariate_normal.pdf(points, np.atleast_1d(m), c) for w, m, c in parts)
    x = jnp.array(points if means.ndim == 2 else points[:, 0])
    np.testing.assert_allclose(law.log_prob(x), np.log(density), rtol=1e-10)


@double
@pytest.mark.parametrize("level", [Level(2.0, 1.0, 2.0), Level(0.5, 0.6, 0.8), Level(None, 0.1, 0.3)])
def test_scalar_mixture_posterior_agrees_with_quadrature(level):
    grid = np.linspace(-8.0, 8.0, 40001)
    normal = scipy.stats.norm.pdf
    prior = sum(w * normal(grid, m, s) for w, m, s in [(0.3, -1, 0.35), (0.45, 0.3, 0.25), (0.25, 1.1, 0.4)])
    joint = prior * normal(0.4, level.alpha * grid, level.sigma)
    bound = joint * normal(-0.2, 0.5 * grid, 0.6)
    x, law = jnp.array([0.4]), P1.posterior(0.5, -0.2, 0.36)
    np.testing.assert_allclose(P1.predict(x, level).x0, [(grid * joint).sum() / joint.sum()], atol=1e-10)
    np.testing.assert_allclose(law.predict(x, level).x0, [(grid * bound).sum() / bound.sum()], atol=1e-10)
    np.testing.assert_allclose(P1.log_prob(x, level), [np.log(joint.sum() * (grid[1] - grid[0]))], atol=1e-10)


@double
def test_full_mixture_posterior_agrees_with_quadrature():
    axis = np.linspace(-9.0, 9.0, 601)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    parts = [([0, 1], S), ([2, -1], [[0.5, -0.2], [-0.2, 0.3]]), ([-1, -1], [[2.0, 0.0], [0.0, 0.1]])]
    prior = sum(w * scipy.stats.multivariate_normal.pdf(grid, *p) for w, p in zip([0.2, 0.5, 0.3], parts, strict=True))
    level, x, operator, y, noise = LEVELS["vp"], np.array([0.4, -0.3]), np.array([[1.0, -0.5]]), 0.7, 0.4
    bound = prior * scipy.stats.norm.pdf(y, grid @ operator[0], np.sqrt(noise))
    bound = bound * scipy.stats.norm.pdf(0.6 * grid, x, 0.8).prod(-1)
    expected = (grid * bound[..., None]).sum((0, 1)) / bound.sum()
    np.testing.assert_allclose(
        FULL.posterior(operator, y, noise).predict(jnp.array(x)[None], level).x0[0], expected, atol=1e-9
    )


@double
@pytest.mark.parametrize("law", [LAWS["full"], LAWS["diagonal"], LAWS["scalar"]], ids=["full", "diagonal", "scalar"])
def test_flow_solves_the_probability_flow(law):
    x, sigmas = jnp.array(X), jnp.geomspace(5.0, 0.1, 2001)
    coarse = probability_flow(law.predict, x, sigmas)
    np.testing.assert_allclose(law.flow(x, Level(5.0, 1.0, 5.0), Level(0.1, 1.0, 0.1)), coarse, atol=1e-11)


@double
def test_flow_in_other_coordinates_is_the_flow_rescaled():
    law, x = LAWS["full"], jnp.array(X)
    other = law.flow(0.6 * x, LEVELS["vp"], LEVELS["flow"])
    np.testing.assert_allclose(
        other / 0.3, law.flow(x, Level(None, 1.0, 0.8 / 0.6), Level(None, 1.0, 0.7 / 0.3)), rtol=1e-12
    )


@double
@every_level
def test_class_laws_average_to_the_unconditional_one(level):
    labels = np.array([0, 1, 0])
    law = ClassMixture(FULL.weights, FULL.means, FULL.covs.dense(), labels)
    x = jnp.array(X)
    members = FULL.responsibilities(x, level)
    average = sum(
        members[:, labels == c].sum(1, keepdims=True) * law.predict(x, level, jnp.full(3, c)).x0 for c in range(2)
    )
    np.testing.assert_allclose(average, FULL.predict(x, level).x0, rtol=1e-10)
    np.testing.assert_allclose(law.predict(x, level, law.null).x0, FULL.predict(x, level).x0, rtol=1e-12)


@double
def test_class_law_is_the_mixture_of_its_components_sample_by_sample():
    law, level = ClassMixture(FULL.weights, FULL.means, FULL.covs.dense(), [0, 1, 0]), LEVELS["vp"]
    alone = Mixture([0.4, 0.6], FULL.means[[0, 2]], FULL.covs.dense()[[0, 2]])
    x = jnp.array(X)
    mixed = law.predict(x, level, jnp.array([1, 0, law.null]))
    np.testing.assert_allclose(mixed.x0[1], alone.predict(x, level).x0[1], rtol=1e-12)
    np.testing.assert_allclose(mixed.x0[0], Gaussian(FULL.means[1], FULL.covs.dense()[1]).predict(x, level).x0[0])
    np.testing.assert_allclose(law.log_prob(x, level, 0), alone.log_prob(x, level), rtol=1e-12)
    bound = law.posterior([1.0, 0.0], 0.3, 0.5)
    expected = alone.posterior([1.0, 0.0], 0.3, 0.5).predict(x, level).x0
    np.testing.assert_allclose(bound.predict(x, level, 0).x0, expected, rtol=1e-10)


@double
def test_one_component_mixture_is_the_gaussian():
    x, level = jnp.array(X), LEVELS["a level a sample"]
    np.testing.assert_allclose(Mixture([1.0], TB_B.mean[None], S[None]).predict(x, level).x0, TB_B.predict(x, level).x0)


# Samples: standard errors of 20000 draws; five of them give a false alarm once in 1.7 million numbers


@pytest.mark.parametrize("law", [LAWS["full"], LAWS["diagonal"], FULL], ids=["full", "diagonal", "mixture"])
def test_samples_have_the_moments_of_the_law(law):
    n = 20000
    draws = np.asarray(law.sample(jax.random.key(1), n), np.float64)
    mean, cov = law.moments() if isinstance(law, Mixture) else (law.mean, law.cov.dense()[0])
    assert draws.shape == (n, 2)
    assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.diag(cov) / n)).all()
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    assert (np.abs(products.mean(0) - cov) < 5 * products.std(0) / np.sqrt(n)).all()


def test_class_samples_come_from_their_class():
    law = ClassMixture([0.25, 0.25, 0.5], [-5.0, 5.0, 0.0], 1e-4, labels=[0, 0, 1])
    draws = law.sample(jax.random.key(2), 19998, jnp.arange(19998) % 3)
    centre = np.round(np.asarray(draws)).reshape(6666, 3)
    assert (np.abs(centre[:, 0]) == 5).all() and (centre[:, 1] == 0).all()
    assert abs((centre[:, 2] == 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(6666)


# Extremes, in float32


@every_law
def test_prediction_survives_extreme_levels(law):
    x = jnp.array(X, jnp.float32)
    silent = predict(law, x, Level(1.0, 0.0, 1.0))
    mean = law.moments()[0] if isinstance(law, Mixture) else law.mean
    np.testing.assert_allclose(silent.x0, np.broadcast_to(mean, x.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(silent.eps, X, rtol=1e-6)
    np.testing.assert_allclose(predict(law, 1e6 * x, Level(None, 1.0, 1e6)).eps, X, rtol=1e-4)
    np.testing.assert_allclose(predict(law, x, Level(None, 0.5, 0.0)).x0, 2 * X, rtol=1e-5)
    assert np.isfinite(predict(law, 1e6 * x, Level(None, 1.0, 1e-6)).eps).all()


def test_noise_is_accurate_at_small_sigma():
    """In float32, where (x - alpha x0)/sigma would lose every digit: exact value -sigma score = 1e-6 * 2."""
    eps = Gaussian(0.0, 1.0).predict(jnp.array([2.0]), Level(None, 1.0, 1e-6)).eps
    np.testing.assert_allclose(eps, [2e-6], rtol=1e-6)


def test_mixture_of_points_picks_the_nearest_as_noise_vanishes():
    law = Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.0)
    x = jnp.array([[-0.7, 0.1], [0.2, 5.0]])
    for sigma in (1e-3, 1e-8, 0.0):
        np.testing.assert_array_equal(law.predict(x, Level(None, 1.0, sigma)).x0, [[-1.0, 0.0], [1.0, 0.0]])


def test_point_mass_predicts_its_point_and_the_noise_that_hides_it():
    law, x0, eps = PointMass([[1.0, 2.0], [3.0, 4.0]]), np.arange(1.0, 5.0).reshape(2, 2), np.ones((3, 2, 2))
    for level in (Level(None, 0.6, 0.8), Level(None, 1.0, 100.0), Level(None, 0.0, 1.0)):
        found = law.predict(jnp.array(level.alpha * x0 + level.sigma * eps, jnp.float32), level)
        np.testing.assert_array_equal(found.x0, np.broadcast_to(x0, eps.shape))
        np.testing.assert_allclose(found.eps, eps, rtol=1e-5)


# Contracts


SOME = ("full", "diagonal", "scalar mixture", "full mixture")
ALL = {**{name: LAWS[name] for name in SOME}, "point": PointMass([1.0, 2.0])} | {
    "classes": ClassMixture([0.2, 0.5, 0.3], FULL.means, FULL.covs.dense(), [0, 1, 0]),
    "switch": Switch((LAWS["full"], FULL, PointMass(0.0))),
}
every_denoiser = pytest.mark.parametrize("law", ALL.values(), ids=ALL.keys())


@every_denoiser
def test_law_is_a_denoiser_without_memory(law):
    x, level, cond = jnp.array(X, jnp.float32), LEVELS["vp"], jnp.array([0, 1, 2])
    assert isinstance(law, Denoiser) and law.evaluations == 1
    found, state = denoise(law, x, level, cond)
    direct = law.predict(x, level, cond) if isinstance(law, ClassMixture | Switch) else predict(law, x, level)
    np.testing.assert_allclose(found.x0, direct.x0, rtol=1e-5)
    np.testing.assert_allclose(found.eps, direct.eps, rtol=1e-4, atol=1e-6)
    assert state == ()


@every_denoiser
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_prediction_keeps_the_dtype_of_x(law, dtype):
    x, cond = jnp.array(X, dtype), jnp.array([0, 1, 2])
    found, _ = denoise(law, x, LEVELS["vp"], cond)
    exact, _ = denoise(law, jnp.array(x, jnp.float32), LEVELS["vp"], cond)
    assert found.x0.dtype == found.eps.dtype == dtype
    np.testing.assert_allclose(np.asarray(found.x0, np.float32), exact.x0, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)


@every_denoiser
def test_rows_of_a_batch_do_not_see_each_other(law):
    levels, cond = LEVELS["a level a sample"], jnp.array([0, 1, 2])
    x = jnp.array(X, jnp.float32)
    whole, _ = denoise(law, x, levels, cond)
    for i in range(3):
        level = Level(None, levels.alpha[i], levels.sigma[i])
        row, _ = denoise(law, x[i : i + 1], level, cond[i : i + 1])
        np.testing.assert_allclose(row.x0[0], whole.x0[i], rtol=1e-5, atol=1e-6)


@every_denoiser
def test_law_passes_through_jax_transformations_and_other_numbers_do_not_retrace(law):
    traces = []

    @jax.jit
    def total(law, x):
        traces.append(1)
        return law(x, at(LEVELS["vp"]), jnp.array([0, 1, 2]), ())[0].x0.sum()

    x = jnp.array(X, jnp.float32)
    for factor in (1.0, 0.9):
        total(jax.tree.map(lambda leaf, factor=factor: leaf * factor, law), x)
    assert len(traces) == 1
    gradient = jax.grad(total)(law, x)
    assert type(gradient) is type(law) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), law)
    np.testing.assert_allclose(jax.vmap(total, (0, None))(stacked, x), [total(law, x)] * 2, rtol=1e-5)
    treedef = jax.tree.structure(law)
    treedef.unflatten([object()] * treedef.num_leaves)


@every_law
def test_axes_before_the_event_are_independent_copies(law):
    x = jnp.array(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    level = LEVELS["a level a sample"]
    for copy in range(4):
        alone = predict(law, x[:, copy], level).x0
        np.testing.assert_allclose(predict(law, x, level).x0[:, copy], alone, rtol=1e-5, atol=1e-6)
    each = [law.log_prob(x[:, copy], level) for copy in range(4)]
    np.testing.assert_allclose(law.log_prob(x, level), sum(each), rtol=1e-5)


@double
def test_image_shaped_law_is_the_flat_one_reshaped():
    rng = np.random.default_rng(0)
    root, x, means = rng.normal(size=(6, 6)), rng.normal(size=(3, 2, 3)), rng.normal(size=(2, 2, 3))
    flat = Mixture([0.4, 0.6], means.reshape(2, 6), (root @ root.T)[None])
    image = Mixture([0.4, 0.6], means, (root @ root.T)[None])
    level, operator = LEVELS["vp"], rng.normal(size=(2, 6))
    found = image.posterior(operator, [0.1, 0.2], [0.5, 0.6]).predict(jnp.array(x), level).x0
    expected = flat.posterior(operator, [0.1, 0.2], np.diag([0.5, 0.6])).predict(jnp.array(x.reshape(3, 6)), level).x0
    np.testing.assert_allclose(found.reshape(3, 6), expected, rtol=1e-9)


@double
def test_posterior_under_jit_is_the_posterior_outside():
    predict = lambda y: FULL.posterior([1.0, 0.3], y, 0.4).predict(jnp.array(X), LEVELS["vp"]).x0  # noqa: E731
    np.testing.assert_allclose(jax.jit(predict)(jnp.array(0.7)), predict(0.7), rtol=1e-10)
    batch = jax.vmap(predict)(jnp.array([0.7, -3.0]))
    np.testing.assert_allclose(batch[1], predict(-3.0), rtol=1e-10)


def test_posterior_of_far_evidence_keeps_its_weights():
    """log-evidence of about -5e5: the nearer component takes all, without 0/0, and a dead one stays dead."""
    law = Mixture([0.5, 0.5, 0.0], [-1.0, 1.0, 900.0], 0.01).posterior(1.0, 1000.0, 1.0)
    np.testing.assert_allclose(law.weights, [0.0, 1.0, 0.0], atol=1e-30)


def test_unknown_condition_gives_nan():
    x, level = jnp.zeros(2), LEVELS["vp"]
    for law in (ClassMixture([0.5, 0.5], [-1.0, 1.0], 1.0, [0, 1]), Switch((Gaussian(0.0, 1.0), PointMass(1.0)))):
        assert np.isnan(law.predict(x, level, jnp.array([3, -1])).x0).all()
        assert np.isfinite(law.predict(x, level, jnp.array([0, 1])).x0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian([0.0, 0.0], [1.0, 1.0, 1.0]), r"cov has shape \(1, 3\)"),
        (lambda: Gaussian(0.0, -0.5), "-0.5"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "eigenvalue is -1"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.2, 1.0]]), "transpose by 0.3"),
        (lambda: Gaussian(np.nan, 1.0), "mean must be finite, got nan"),
        (lambda: Mixture([0.5, 0.6], [0.0, 1.0], 1.0), "sum 1.1"),
        (lambda: Mixture([-0.5, 1.5], [0.0, 1.0], 1.0), r"nonnegative.*-0.5"),
        (lambda: Mixture([1.0], [0.0, 1.0], 1.0), r"weights \(1,\) and means \(2,\)"),
        (lambda: Mixture([0.5, 0.5], [[0.0], [1.0]], np.ones((3, 1))), r"cov has shape \(3, 1\)"),
        (lambda: ClassMixture([0.5, 0.5], [0.0, 1.0], 1.0, [0]), r"2 integers.*\[0\]"),
        (lambda: ClassMixture([0.5, 0.5], [0.0, 1.0], 1.0, [0, 2]), r"every class.*\[0, 2\]"),
        (lambda: TB_B.posterior([1.0, 0.0, 0.0], 1.0, 1.0), r"operator \(1, 3\)"),
        (lambda: TB_B.predict(jnp.zeros((4, 3)), LEVELS["vp"]), r"x has shape \(4, 3\)"),
        (lambda: TB_B.predict(jnp.zeros((4, 2)), LEVELS["a level a sample"]), r"shape \(3,\)"),
    ],
)
def test_impossible_inputs_are_refused_by_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("cond", [None, 0.5, True])
def test_condition_must_be_an_integer(cond):
    with pytest.raises(TypeError, match=f"cond must be .* got {cond}"):
        ClassMixture([1.0], [0.0], 1.0, [0]).predict(jnp.zeros(2), LEVELS["vp"], cond)
