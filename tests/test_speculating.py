"""Exact speculative sampling: the law of the plain chain at every window, and what a round costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers

VE = ds.VarianceExploding(0.002, 80.0)
VP = ds.VariancePreserving()
PRIOR = ds.exact.Gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
TERMINAL = {50: [0.811, 0.654, 0.811], 200: [0.948, 0.760, 0.948]}  # exact affine recursion of the plain chain
ROUNDS = {(50, 4): 14.3, (50, 8): 9.7, (200, 4): 51.7, (200, 8): 28.7}  # frozen draft, refreshed every round
EVALUATIONS = {(50, 8): 68.6, (200, 8): 224}
N = 4000


def chain(steps, denoiser: ds.Denoiser = PRIOR):
    return solvers.linear(denoiser, solvers.ddpm(VE, ds.times.karras(VE, steps)))


def effort_so_far(view):
    return view.memory


def newest_effort(_, view):
    return view.memory


def speculate(sampler, n=N, key=0, **options):
    total = ds.Fold(newest_effort, solvers.Effort(jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)))
    return ds.sample(jax.random.key(key), solvers.speculative(sampler, **options), (n, 2), record=total)


def covariance(x):
    return np.cov(np.asarray(x, np.float64).T)[[0, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize(("steps", "window"), ROUNDS)
def test_speculative_has_the_law_and_the_published_rounds(steps, window):
    x, effort = speculate(chain(steps), window=window, refresh=True)
    expected = TERMINAL[steps]
    np.testing.assert_allclose(covariance(x), expected, atol=4.5 * expected[0] * np.sqrt(2 / N))
    np.testing.assert_allclose(x.mean(0), 0, atol=4.5 * np.sqrt(expected[0] / N))
    assert effort.rounds.mean() == pytest.approx(ROUNDS[steps, window], abs=0.06)
    if (steps, window) in EVALUATIONS:
        assert effort.evaluations.mean() == pytest.approx(EVALUATIONS[steps, window], abs=0.6)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_speculative_with_one_call_a_round_has_the_law(window):
    x, effort = speculate(chain(50), window=window)
    np.testing.assert_allclose(covariance(x), TERMINAL[50], atol=4.5 * 0.811 * np.sqrt(2 / N))
    assert (effort.rounds >= -(-50 // window)).all()
    assert effort.rounds.mean() < {1: 51, 3: 22, 8: 12.5}[window]


def test_speculative_with_a_draft_denoiser_has_the_law_of_the_target():
    """A draft that is wrong everywhere (another prior) costs rounds, not correctness; a perfect one costs none."""
    wrong = ds.exact.Gaussian([0.4, 0.0], [[0.7, 0.0], [0.0, 1.4]])
    x, effort = speculate(chain(50), window=5, draft=wrong)
    np.testing.assert_allclose(covariance(x), TERMINAL[50], atol=4.5 * 0.811 * np.sqrt(2 / N))
    np.testing.assert_allclose(x.mean(0), 0, atol=4.5 * np.sqrt(0.811 / N))
    assert 11 < effort.rounds.mean() < 49
    perfect, effort = speculate(chain(50), window=5, draft=PRIOR, n=64)
    assert effort.rounds.max() <= 11  # ten windows; rounding may refuse the last step, which has no noise
    plain = ds.sample(jax.random.key(0), chain(50), (64, 2))
    np.testing.assert_allclose(perfect, plain, rtol=1e-4, atol=1e-5)


TABLES = {
    "ddpm": lambda grid: solvers.ddpm(VP, grid),
    "ddim": lambda grid: solvers.ddim(VP, grid, eta=0.6),
    "large": lambda grid: solvers.ddpm(VP, grid, large=True),
    "euler_maruyama": lambda grid: solvers.euler_maruyama(VP, grid, denoise=False),
    "churn": lambda grid: solvers.euler(VP, ds.times.uniform_logsnr(VP, 12, start=0.9), churn=6.0),
    "ald": lambda grid: solvers.ald(VP, grid, corrections=2, denoise=False),
}


@pytest.mark.parametrize("name", TABLES)
def test_window_of_one_is_the_plain_chain_draw_for_draw(name):
    """Draws belong to the sample and the row: the first step from a fresh prediction is that of the sampler itself."""
    sampler = solvers.linear(PRIOR, TABLES[name](ds.times.uniform_logsnr(VP, 12)))
    x, effort = speculate(sampler, n=16, window=1, refresh=True)
    np.testing.assert_allclose(x, ds.sample(jax.random.key(0), sampler, (16, 2)), rtol=2e-5, atol=2e-6)
    assert (effort.rounds == sampler.tableau.rows).all() and (effort.evaluations == sampler.nfe).all()


def test_sample_of_a_batch_is_the_sample_drawn_alone():
    batch, effort = speculate(chain(50), n=12, window=4)
    alone, own = ds.sample(jax.random.key(0), solvers.speculative(chain(50), window=4), (1, 2), first=7,
                           record=effort_so_far)  # fmt: skip
    np.testing.assert_allclose(alone[0], batch[7], rtol=1e-4, atol=1e-5)
    assert own.rounds[-1, 0] == effort.rounds[7]


def test_speculative_keeps_a_condition_and_a_rule_that_moves_the_state():
    """Conditions follow their sample into the window; a pair that does not add up to x moves the mean."""
    laws = ds.exact.Switch((ds.exact.Gaussian([3.0, 0.0], 0.5), ds.exact.Gaussian([-3.0, 1.0], 0.1)))
    cond = jnp.arange(600) % 2
    sampler = solvers.speculative(chain(50, ds.guidance.clip(laws, -2.5, 2.5, keep_eps=True)), window=4)
    x, plain = (ds.sample(jax.random.key(k), s, (600, 2), cond=cond) for k, s in ((1, sampler), (2, sampler.sampler)))
    for c in (0, 1):
        ours, theirs = np.asarray(x[cond == c]), np.asarray(plain[cond == c])
        spread = np.sqrt((ours.var(0) + theirs.var(0)) / 300)
        assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * spread + 1e-6).all()
        np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=4 / np.sqrt(300), atol=1e-6)


def test_numbers_of_each_sample_stay_with_it():
    """A guidance scale a sample: each row of the batch is the sample drawn alone with its own scale."""
    laws = ds.exact.Switch((ds.exact.Gaussian([3.0, 0.0], 0.5), PRIOR))
    scales = jnp.array([0.0, 1.0, 2.5])

    def run(scale, first, n):
        sampler = solvers.speculative(chain(30, ds.guidance.cfg(laws, 1, scale)), window=3)
        return ds.sample(jax.random.key(0), sampler, (n, 2), cond=jnp.zeros(n, int), first=first)

    batch = run(scales, 0, 3)
    np.testing.assert_allclose(run(scales[2:], 2, 1)[0], batch[2], rtol=1e-4, atol=1e-5)


def test_a_round_is_one_call_of_the_whole_window_and_none_is_made_after_the_last():
    shapes = []

    def host(x):
        shapes.append(x.shape)
        return x

    def spy(params, x, t, cond):
        x = jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")
        return x * (1 / (1 + t[:, None] ** 2))

    sampler = chain(20, ds.Network(spy, predicts="data"))
    _, effort = speculate(sampler, n=6, window=4)
    assert shapes == [(4, 6, 2)] * int(effort.rounds.max()) and effort.rounds.max() < 20
    shapes.clear()
    _, effort = speculate(sampler, n=6, window=4, refresh=True)
    assert shapes == [(6, 2), (3, 6, 2)] * int(effort.rounds.max())
    assert effort.evaluations.max() <= solvers.speculative(sampler, window=4).nfe


def test_speculative_compiles_once_a_size():
    traces = []

    def field(params, x, t, cond):
        traces.append(1)
        return params * x

    def run(steps, scale):
        sampler = chain(steps, ds.Network(field, jnp.float32(scale), predicts="noise"))
        return speculate(sampler, n=3, window=2)[0]

    run(9, 0.5)
    count = len(traces)
    run(9, 0.7)
    assert len(traces) == count


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (solvers.ddim(VE, [80.0, 1.0, 0.0]), "draws no noise"),
        (solvers.sde_dpmpp(VE, [80.0, 10.0, 1.0, 0.0]), "2 slots"),
        (solvers.heun(VE, [80.0, 10.0, 1.0, 0.0], churn=2.0, churn_max=50.0), "2 registers"),
        (ds.pad(solvers.ddpm(VE, [80.0, 1.0, 0.0]), steps=5), "padded=True"),
    ],
)
def test_tables_that_are_no_gaussian_chain_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        solvers.speculative(solvers.linear(PRIOR, table))


def test_what_cannot_be_drafted_is_refused():
    with pytest.raises(ValueError, match="window=0"):
        solvers.speculative(chain(5), window=0)
    with pytest.raises(ValueError, match="refresh"):
        solvers.speculative(chain(5), draft=PRIOR, refresh=True)
    with pytest.raises(TypeError, match="Gaussian"):
        solvers.speculative(PRIOR)  # pyright: ignore[reportArgumentType]
    table = solvers.ddpm(VE, ds.times.karras(VE, 5))
    with pytest.raises(ValueError, match="Brownian"):
        solvers.speculative(solvers.linear(PRIOR, table, path=solvers.brownian_path(table)))
    remembering = ds.guidance.apg(ds.exact.Switch((PRIOR, PRIOR)), 1, 2.0, momentum=-0.5)
    with pytest.raises(ValueError, match="memory"):
        sampler = solvers.speculative(chain(5, remembering))
        ds.sample(jax.random.key(0), sampler, (4, 2), cond=jnp.zeros(4, int))
