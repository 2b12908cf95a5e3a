"""Active diffusion subsampling: what is chosen, what it costs, and a simulation that is what an instrument gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.guidance import operators

KEY = jax.random.key(0)
VE = ds.VarianceExploding(0.002, 80.0)
VARIANCES = np.array([0.01, 12.0, 0.06, 0.3, 2.0])
LAW = ds.exact.Gaussian(np.zeros(5), VARIANCES)
TRUTH = np.array([[1.0, -2.0, 0.5, 1.5, -1.0], [0.0, 1.0, 1.0, -1.0, 2.0]])
WHEN = guidance.acquisition_steps(40, 3, start=20)


def identity(x0):
    return x0


def squares(points, groups=None):
    """[P, P, K] of points [P, m]."""
    points = np.asarray(points, float)
    return jnp.asarray((points[:, None] - points[None]) ** 2)


def rule(y=TRUTH, denoiser: ds.Denoiser = LAW, **options):
    options = {"particles": 8, "scale": 0.5, "sigma": 3.0, "when": WHEN} | options
    when = options.pop("when")
    return guidance.active_sensing(denoiser, identity, np.arange(5), jnp.asarray(y), when, **options)


def driven(rule):
    return solvers.linear(rule, solvers.ddim(VE, ds.times.karras(VE, len(WHEN))))


def run(rule, **options):
    return ds.sample(KEY, driven(rule), (2 * rule.particles, 5), **options)


def memory(view):
    return view.memory.mask, view.memory.newest


def test_belief_entropy_bounds_the_entropy_of_the_mixture(x64):
    """Particles 0, 0, 1, 0.2 of width 0.5: the mixture's entropy 0.975997 lies between the two surrogates."""
    points = squares(np.array([[0.0], [0.0], [1.0], [0.2]]))
    normal = 0.5 * np.log(2 * np.pi * 0.25)
    upper = guidance.belief_entropy(points, 0.5)[0] + normal + 0.5
    lower = guidance.belief_entropy(points, 0.5 * np.sqrt(2))[0] + normal + 0.5 * np.log(2)
    assert upper == pytest.approx(1.158976, abs=1e-6) and lower == pytest.approx(0.843683, abs=1e-6)
    assert lower < 0.975997 < upper


def test_the_released_score_ranks_otherwise_from_three_particles_on(x64):
    four = squares([[0.88, -1.14], [-0.78, 0.09], [-1.55, 0.17], [-0.46, 1.23]])
    assert guidance.belief_entropy(four, 0.5).argmax() == 1
    assert guidance.published_entropy(four, 0.5).argmax() == 0
    pairs = jax.random.normal(KEY, (50, 2, 7))
    for score in (guidance.belief_entropy, guidance.published_entropy):
        chosen = [score((pair[:, None] - pair[None]) ** 2, 0.5).argmax() for pair in np.asarray(pairs)]
        np.testing.assert_array_equal(chosen, jnp.abs(pairs[:, 0] - pairs[:, 1]).argmax(axis=1))
    far = guidance.belief_entropy(squares([[0.0], [1e4]]), 1e-3)  # nothing overflows
    assert far[0] == pytest.approx(np.log(2))


def test_many_posterior_particles_choose_the_largest_marginal_variance():
    """x1 was measured: the posterior variances of a correlated Gaussian, not the prior's, decide."""
    S = np.array([[2.0, 1.9, 0.0], [1.9, 2.0, 0.0], [0.0, 0.0, 0.9]])
    posterior = ds.exact.Gaussian(np.zeros(3), S).posterior([1.0, 0.0, 0.0], 0.3, 0.01)
    sensing = guidance.active_sensing(LAW, identity, np.arange(3), np.zeros((1, 3)), [True, False], particles=500,
                                      sigma=0.3, measured=[True, False, False])  # fmt: skip
    x0 = posterior.sample(KEY, 500)
    mask = jnp.broadcast_to(jnp.array([True, False, False]), (500, 3))
    assert set(sensing.choose(x0, mask).tolist()) == {2}
    prior = ds.exact.Gaussian(np.zeros(3), S).sample(KEY, 500)
    assert set(sensing.choose(prior, mask).tolist()) == {1}


def test_distances_add_up_inside_a_group():
    """Two channels and a column are one group; entries of group -1 count nowhere."""
    groups = np.array([[0, 1, 1], [0, 1, -1]])
    z = np.random.default_rng(0).normal(size=(4, 2, 3))
    sensing = guidance.active_sensing(LAW, identity, groups, np.zeros((1, 2, 3)), [True, False], particles=4)
    found = sensing._distances(jnp.asarray(z.reshape(4, 6), jnp.float32))
    expected = np.stack([((z[:, None] - z[None]) ** 2)[..., groups == k].sum(-1) for k in (0, 1)], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    entries = sensing.entries(jnp.array([[False, True]]))
    np.testing.assert_array_equal(entries[0], groups == 1)


def test_a_simulation_measures_the_uncertain_first_and_nothing_twice():
    x, (mask, newest) = run(rule(), record=memory)
    for scene in (slice(0, 8), slice(8, 16)):
        order = newest[:, scene]
        assert (order == order[:, :1]).all()
        assert order[order[:, 0] >= 0, 0].tolist() == [1, 4, 3]  # falling variance
        assert mask[-1, scene].sum(axis=1).tolist() == [3] * 8
    measured = np.abs(np.asarray(x).reshape(2, 8, 5) - TRUTH[:, None])[..., [1, 3, 4]].mean()
    free = np.abs(run(rule(scale=0.0)).reshape(2, 8, 5) - TRUTH[:, None])[..., [1, 3, 4]].mean()
    assert measured < 0.3 * free


def test_groups_measured_before_are_read_and_never_chosen():
    known = np.array([False, True, False, False, False])
    _, (mask, newest) = run(rule(measured=known, when=guidance.acquisition_steps(40, 4)), record=memory)
    assert sorted(newest[newest[:, 0] >= 0, 0].tolist()) == [0, 2, 3, 4]
    assert mask[-1].all() and mask[0, :, 1].all()


def test_what_is_not_measured_is_not_read():
    x, (mask, _) = run(rule(), record=memory)
    hidden = np.where(np.asarray(mask[-1])[[0, 8]], TRUTH, np.nan)
    np.testing.assert_array_equal(run(rule(hidden)), x)


def test_scenes_do_not_see_each_other():
    alone = ds.sample(KEY, driven(rule(TRUTH[1:])), (8, 5), first=8)
    np.testing.assert_allclose(alone, run(rule())[8:], rtol=1e-5, atol=1e-5)


def test_an_instrument_gives_what_the_simulation_gave_bit_for_bit():
    simulated = guidance.sense(KEY, driven(rule()), (16, 5))
    x, (mask, newest) = run(rule(), record=memory)
    np.testing.assert_allclose(simulated.x, x, rtol=1e-4, atol=1e-5)
    asked = []

    def acquire(groups):
        asked.append(groups.tolist())
        return np.where(np.arange(5) == groups[:, None], TRUTH, 777.0)  # only the chosen group is read

    found = guidance.sense(KEY, driven(rule(np.zeros((2, 5)))), (16, 5), acquire)
    for ours, theirs in zip(found, simulated, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found.mask, mask[-1][::8])
    np.testing.assert_array_equal(found.y, np.where(found.mask, TRUTH, 0).astype(np.float32))
    assert asked == found.order.T.tolist() == newest[newest[:, 0] >= 0][:, ::8].tolist()


def test_an_instrument_that_errs_is_reported():
    sampler = driven(rule(np.zeros((2, 5))))
    with pytest.raises(ValueError, match=r"acquire returned shape \(5,\)"):
        guidance.sense(KEY, sampler, (16, 5), lambda groups: np.zeros(5))
    with pytest.raises(ValueError, match="not finite"):
        guidance.sense(KEY, sampler, (16, 5), lambda groups: np.full((2, 5), np.nan))
    with pytest.raises(ds.NonFiniteError):
        guidance.sense(KEY, driven(rule(scale=np.inf)), (16, 5))
    plain = solvers.linear(LAW, solvers.ddim(VE, [80.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="found 0"):
        guidance.sense(KEY, plain, (16, 5), lambda groups: TRUTH)


def test_one_norm_over_all_particles_weakens_each_by_about_the_root_of_their_number():
    known = np.ones(5, bool)
    x = 0.01 * jax.random.normal(KEY, (16, 5))
    at = ds.Point(VE.level(1.0), VE.level(0.5), jnp.int32(0), jnp.int32(0), jax.random.split(KEY, 16))
    shift = {}
    for joint in (False, True):
        sensing = rule(measured=known, when=np.zeros(2, bool), joint=joint)
        shift[joint] = sensing(x, at, None, sensing.init(x))[0].x0 - LAW.predict(x, at.now).x0
    np.testing.assert_allclose(shift[False] / shift[True], np.sqrt(8), rtol=0.05)


def test_active_sensing_costs_what_dps_costs():
    forward, backward = [], []

    @jax.custom_vjp
    def network(x):
        jax.debug.callback(lambda: forward.append(1))
        return 0.5 * x

    def pull(_, g):
        jax.debug.callback(lambda: backward.append(1))
        return (0.5 * g,)

    network.defvjp(lambda x: (network(x), None), pull)
    counted = rule(denoiser=ds.Network(lambda p, x, t, c: network(x), predicts="data"))
    jax.block_until_ready(run(counted))
    jax.effects_barrier()
    assert len(forward) == 40 * counted.evaluations == 40
    assert len(backward) == 40 * counted.vjps == 40


def test_numbers_of_active_sensing_are_leaves():
    traces = []

    def field(params, x, t, cond):
        traces.append(1)
        return 0.5 * x

    network = ds.Network(field, predicts="data")
    run(rule(denoiser=network))
    count = len(traces)
    run(rule(3 * TRUTH, network, scale=0.1, sigma=2.0, when=guidance.acquisition_steps(40, 5)))
    assert len(traces) == count


def test_columns_of_the_fourier_transform_are_groups():
    shape = (4, 6, 1)
    columns = np.broadcast_to(np.arange(6)[None, :, None, None], (4, 6, 1, 2))
    transform = operators.fourier(shape, np.ones((4, 6)))
    truth = jax.random.normal(KEY, (1, *shape))
    sensing = guidance.active_sensing(
        ds.exact.Gaussian(np.zeros(shape), 1.0), transform, columns, transform(truth[0])[None],
        guidance.acquisition_steps(30, 6), particles=3)  # fmt: skip
    sampler = solvers.linear(sensing, solvers.ddim(VE, ds.times.karras(VE, 30)))
    x, (mask, newest) = ds.sample(KEY, sampler, (3, *shape), record=memory)
    assert mask[-1].all() and sorted(newest[newest[:, 0] >= 0, 0].tolist()) == list(range(6))
    assert jnp.abs(x - truth).mean() < 0.5 * jnp.abs(truth).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"when": np.ones(6, bool)}, "False at the last"),
        ({"when": [True] * 6 + [False]}, "6 choices"),
        ({"particles": 0}, "particles=0"),
        ({"measured": [True]}, "5 groups"),
    ],
)
def test_bad_numbers_of_active_sensing_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        rule(**change)


def test_bad_shapes_of_active_sensing_are_named():
    for sensing, message in ((rule(TRUTH[:1]), r"y has shape \(1, 5\)"), (rule(particles=5), "no multiple")):
        sampler = driven(sensing)
        with pytest.raises(ValueError, match=message):
            ds.sample(KEY, sampler, (16, 5))
    with pytest.raises(ValueError, match="when has 41 steps, the sampler 40 calls"):
        driven(rule(when=np.zeros(41, bool)))
    with pytest.raises(TypeError, match="integers"):
        guidance.active_sensing(LAW, identity, np.zeros(5), TRUTH, WHEN)
    with pytest.raises(ValueError, match="do not fit"):
        guidance.acquisition_steps(10, 10)
