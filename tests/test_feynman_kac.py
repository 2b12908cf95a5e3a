"""The particle filter: exact normalisers, everything gathered, one program, refusals by row and group."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_space import LOG_EVIDENCE, OBSERVED, Bootstrap, Observation

import diffsample as ds
from diffsample import smc, solvers
from diffsample.compiles import count_compiles
from diffsample.struct import pytree

VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 12)
KEY = jax.random.key(0)
NOT_A_SAMPLER: Any = 3.0
WRONG: Any = 0.5


def sampler(steps: int = 12) -> solvers.Linear:
    """Data N(0, 1) on a VP process, for which the large-variance DDPM step is the exact reverse kernel."""
    return solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddpm(VP, ds.times.uniform_logsnr(VP, steps), large=True))


@pytree
class Tilt(smc.Potential):
    """Intermediate rewards on x0-hat that telescope to rate * reward(x): the exact tilt at any number of steps."""

    rate: Any = 1.0

    def reward(self, x: jax.Array) -> jax.Array:
        return self.rate * (-2.0) * (x - 2.0) ** 2

    def start(self, view: ds.View) -> tuple[jax.Array, jax.Array]:
        return self.reward(view.x0), self.reward(view.x0)

    def __call__(self, transition: smc.Transition, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = self.reward(transition.after.x0)
        return new - memory, new

    def finish(self, closing: smc.Closing, memory: jax.Array) -> jax.Array:
        return self.reward(closing.x) - memory


def test_reward_tilt_of_a_gaussian_has_the_closed_form_normaliser_and_moments():
    # x0 ~ N(0, 1), reward -(x - 2)^2 / 0.5: Z = 0.0902909, posterior N(1.6, 0.2) (specs/smc.md 9.3)
    out = ds.sample(KEY, smc.feynman_kac(sampler(25), Tilt(), particles=256), (128 * 256,))
    z = np.exp(out.log_z) / 0.0902909
    mean = np.asarray(out.mean(out.x))
    second = np.asarray(out.mean((out.x - 1.6) ** 2))
    assert z.std() < 0.6 and out.diagnostics.resampled.any()
    # exp(log_z) times a weighted mean is unbiased for Z times the mean, the weighted mean alone only up to O(1/K)
    for values, truth in ((z, 1.0), (z * (mean - 1.6), 0.0), (z * (second - 0.2), 0.0)):
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))  # false alarms: 6e-5 each


def quarter(before: ds.View, after: ds.View) -> jax.Array:
    return jnp.full(after.x.shape[:1], 0.25)


@pytest.mark.parametrize(("policy", "resamplings"), [(smc.ess(0.5), 0), (smc.always, 11), (smc.every(3), 3)])
def test_constant_potential_adds_up_in_log_z_and_leaves_weights_uniform(policy, resamplings):
    out = ds.sample(KEY, smc.feynman_kac(sampler(), quarter, particles=5, policy=policy), (10,))
    np.testing.assert_allclose(out.log_z, 11 * 0.25, rtol=1e-6)
    np.testing.assert_allclose(out.weights, 0.2, rtol=1e-6)
    # equal weights leave one copy of each, but for last bits (jax 0.12)
    np.testing.assert_allclose(out.x, ds.sample(KEY, sampler(), (10,)), rtol=1e-6)
    assert (out.diagnostics.resampled.sum(axis=1) == resamplings).all()


def test_a_constant_in_the_potential_changes_log_z_alone():
    tilted, lifted = (
        ds.sample(KEY, smc.feynman_kac(sampler(), potential, particles=5), (15,))
        for potential in (Tilt(), smc.combine(Tilt(), quarter))
    )
    assert tilted.diagnostics.resampled.any()
    np.testing.assert_allclose(lifted.log_z - tilted.log_z, 11 * 0.25, rtol=1e-4)
    np.testing.assert_allclose(lifted.weights, tilted.weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(lifted.diagnostics.eve, tilted.diagnostics.eve)
    np.testing.assert_allclose(lifted.x, tilted.x, rtol=1e-6)


def test_without_resampling_it_is_importance_sampling_of_the_samplers_own_samples():
    fk = smc.feynman_kac(sampler(), Tilt(), particles=8, policy=smc.never)
    out = ds.sample(KEY, fk, (16,))
    x = ds.sample(KEY, sampler(), (16,))
    np.testing.assert_array_equal(out.x, x)
    np.testing.assert_allclose(out.log_w.ravel(), Tilt().reward(x), atol=1e-4)
    np.testing.assert_allclose(np.exp(out.log_z), np.exp(Tilt().reward(x)).reshape(2, 8).mean(1), rtol=1e-4)


def stepped(fk, keys, x):
    """The particles of given keys and first states, row by row."""
    rows = jnp.arange(len(fk.steps.number))

    def row(state, at):
        number, step = at
        return fk.step(jax.vmap(jax.random.fold_in, (0, None))(keys, number), state, step, None), None

    state, _ = jax.jit(lambda x: jax.lax.scan(row, fk.init(keys, x, None), (rows, fk.steps)))(x)
    return fk.finish(keys, state, None)


@pytest.mark.parametrize("policy", [smc.never, smc.ess(0.9)])
def test_particles_permuted_with_their_keys_are_permuted_particles(policy):
    # without resampling any order, with it whole groups
    fk = smc.feynman_kac(sampler(), Tilt(), particles=4, policy=policy)
    keys, x = jax.random.split(KEY, 12), jax.random.normal(KEY, (12,))
    order = jnp.arange(12).reshape(3, 4)[jnp.array([2, 0, 1])]
    order = order[:, jnp.array([3, 1, 0, 2])].ravel() if policy is smc.never else order.ravel()
    plain, moved = stepped(fk, keys, x), stepped(fk, keys[order], x[order])
    np.testing.assert_allclose(moved.x, plain.x[order], rtol=1e-6)
    np.testing.assert_allclose(moved.log_w.ravel(), plain.log_w.ravel()[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved.log_z, plain.log_z[jnp.array([2, 0, 1])], rtol=1e-5)
    assert plain.diagnostics.resampled.any() == (policy is not smc.never)


def test_four_times_the_particles_halve_the_deviation_of_the_normaliser():
    spread = []
    for particles in (64, 256):  # specs/smc.md 9.5; the deviation of 800 is known to 2.5 %
        fk = smc.feynman_kac(Bootstrap(OBSERVED), Observation(OBSERVED), particles=particles)
        spread.append(np.exp(ds.sample(KEY, fk, (800 * particles,)).log_z - LOG_EVIDENCE).std())
    assert 1.7 < spread[0] / spread[1] < 2.4


def test_group_is_the_same_in_any_batch_and_chunk_and_step_by_step():
    fk = smc.feynman_kac(sampler(), Tilt(), particles=8, policy=smc.ess(0.9))
    full = ds.sample(KEY, fk, (24,))
    assert full.diagnostics.resampled.any(axis=1).all()
    alone = ds.sample(KEY, fk, (8,), first=8)
    chunks = ds.sample(KEY, fk, (24,), chunk=16)
    debug = ds.sample(KEY, fk, (24,), debug=True)
    for whole, one in zip(jax.tree.leaves(full), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(whole[len(one) : 2 * len(one)], one, rtol=2e-6, atol=1e-6)
    for other in (chunks, debug):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), full, other)


def test_thresholds_and_exponents_and_keys_share_one_program():
    def run(seed: int, rate: float, threshold: float) -> smc.Particles:
        fk = smc.feynman_kac(sampler(), Tilt(rate), particles=8, policy=smc.ess(threshold))
        return ds.sample(jax.random.key(seed), fk, (16,))

    run(0, 1.0, 0.5)
    with count_compiles() as compiles:
        other = run(1, 0.3, 0.9)
    assert compiles.count == 0 and jnp.isfinite(other.log_z).all()


@pytest.mark.parametrize(
    ("resample", "policy"),
    [
        (smc.systematic, smc.ess(0.5)),
        (smc.systematic, smc.every(2)),
        (smc.multinomial, smc.always),
        (smc.multinomial, smc.window(2, 4, smc.always)),
    ],
)
def test_bootstrap_filter_estimates_the_evidence_of_a_linear_gaussian_model_without_bias(resample, policy):
    fk = smc.feynman_kac(Bootstrap(OBSERVED), Observation(OBSERVED), particles=64, resample=resample, policy=policy)
    out = ds.sample(KEY, fk, (1500 * 64,))
    z = np.exp(out.log_z - LOG_EVIDENCE)
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(len(z))  # false alarms: 6e-5 a case
    assert z.std() < 1.5
    np.testing.assert_allclose(out.x[:, 0], out.x[:, 1], atol=1e-4)  # all that belongs to a particle moved with it
    error = z * (np.asarray(out.mean(out.x[:, 0])) - 1.4623250)  # unbiased, unlike the mean of the filtered means
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))


def test_genealogy_leads_from_the_last_row_to_the_eves():
    fk = smc.feynman_kac(Bootstrap(OBSERVED), Observation(OBSERVED), particles=16, genealogy=True)
    d = ds.sample(KEY, fk, (32,)).diagnostics
    for group, last in itertools.product(range(2), range(16)):
        at = last
        for row in reversed(range(d.ess.shape[1])):
            at = int(d.ancestors[group, row, at])
        assert at == d.eve[group, last]
    assert int(d.unique.min()) < 16
    np.testing.assert_array_equal(d.resampled.any(axis=1), [True, True])
    for group, row in zip(*np.nonzero(np.asarray(d.resampled)), strict=True):
        assert len(np.unique(d.ancestors[group, row])) == d.unique[group, row]


def test_padding_changes_no_particle():
    table = solvers.ddpm(VP, GRID, large=True)
    padded = ds.pad(table, slots=table.slots + 1, steps=table.rows + 3)
    one, two = (
        ds.sample(KEY, smc.feynman_kac(solvers.linear(ds.exact.Gaussian(0.0, 1.0), t), Tilt(), particles=8), (16,))
        for t in (table, padded)
    )
    np.testing.assert_allclose(one.x, two.x, rtol=1e-5)
    np.testing.assert_allclose(one.log_z, two.log_z, rtol=1e-5)


def test_history_of_a_multistep_method_is_gathered_with_the_particles():
    table = solvers.sde_dpmpp(VP, GRID)
    fk = smc.feynman_kac(solvers.linear(ds.exact.Gaussian(0.0, 0.3), table), Tilt(), particles=8, policy=smc.always)
    keys = jax.random.split(KEY, 8)
    state, steps = fk.init(keys, fk.prior(keys, (8,), jnp.float32), None), fk.steps
    step = jax.jit(lambda keys, state, row: fk.step(keys, state, row, None))
    for j in range(4):
        row = jax.tree.map(lambda leaf, j=j: jnp.asarray(leaf)[j], steps)
        state = step(jax.vmap(jax.random.fold_in, (0, None))(keys, j), state, row)
    state = state._replace(log_w=jnp.full((1, 8), -jnp.inf).at[0, 3].set(0.0))
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[4], steps)
    copied = jax.jit(lambda state, row: fk._resample(keys, state, row, None))(state, row).inner
    for leaf in jax.tree.leaves((copied.registers, copied.past, copied.prediction)):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[3], leaf.shape))
    assert copied.past.shape[1] > 1 and not np.array_equal(state.inner.past, copied.past)


def test_kernel_of_the_coming_row_is_the_law_that_x_is_drawn_from(x64):
    seen = []

    @pytree
    class Probe(smc.Potential):
        def __call__(self, transition: smc.Transition, memory: Any) -> tuple[Any, Any]:
            kernel = transition.kernel()
            shift = transition.before.gain  # of a mean whose x0 is one larger
            z = (transition.after.x - kernel.mean) / kernel.std
            seen.append(shift)
            return z, memory

        def finish(self, closing: smc.Closing, memory: Any) -> Any:
            return closing.kernel().mean - closing.x + closing.kernel().std

    fk = smc.feynman_kac(sampler(), Probe(), particles=2, policy=smc.never)
    out = ds.sample(KEY, fk, x=jnp.linspace(-1.0, 1.0, 4000))
    rows = 11
    # the sum of the rows' standardised draws; the closing update draws nothing
    assert abs(np.asarray(out.log_w).std() / np.sqrt(rows) - 1) < 4 / np.sqrt(2 * 4000)
    assert abs(np.asarray(out.log_w).mean()) < 4 * np.sqrt(rows / 4000)


@pytree
class Broken(smc.Potential):
    """`value` for the particles numbered `which` of each batch, at one row."""

    value: Any
    row: Any
    which: Any

    def __call__(self, transition: smc.Transition, memory: Any) -> tuple[Any, Any]:
        here = (transition.after.index == self.row) & jnp.isin(jnp.arange(len(transition.after.x)), self.which)
        return jnp.where(here, self.value, 0.0), memory


@pytest.mark.parametrize(
    ("value", "which", "said"),
    [
        (jnp.nan, [9], "NaN or .inf for 1 particles, first at row 5 in group 2"),
        (jnp.inf, [4, 5], "NaN or .inf for 2 particles, first at row 5 in group 1"),
        (-jnp.inf, [4, 5, 6, 7], "all particles have weight 0 .* first at row 5 in group 1;"),
    ],
)
def test_broken_potential_is_reported_with_row_and_group(value, which, said):
    fk = smc.feynman_kac(sampler(), Broken(value, 5, jnp.array(which)), particles=4)
    with pytest.raises(FloatingPointError, match=said):
        ds.sample(KEY, fk, (12,))
    out = ds.sample(KEY, fk, (12,), check=False)
    assert jnp.isfinite(out.log_w).any() and jnp.isfinite(out.x).all()
    assert int(out.diagnostics.invalid.sum()) == (0 if value == -jnp.inf else len(which))
    np.testing.assert_array_equal(out.log_z == -jnp.inf, [False, value == -jnp.inf, False])


def test_the_first_failure_of_a_run_is_the_one_that_is_named():
    first, later = Broken(-jnp.inf, 4, jnp.arange(4)), Broken(jnp.nan, 7, jnp.array([5]))
    with pytest.raises(FloatingPointError, match=r"weight 0 .* first at row 4 in group 0 .1 other groups fail too"):
        ds.sample(KEY, smc.feynman_kac(sampler(), smc.combine(first, later), particles=4), (12,))


def test_a_constraint_on_guesses_is_reported_and_one_on_results_is_exact():
    def constraint(x0: jax.Array, cond: Any) -> jax.Array:
        return jnp.where(x0 > 0.0, 0.0, -jnp.inf)

    with pytest.raises(FloatingPointError, match=r"NaN or .inf for .* first at row 0"):
        ds.sample(KEY, smc.feynman_kac(sampler(), smc.fk_difference(constraint), particles=8, policy=smc.always), (8,))
    soft = smc.fk_difference(constraint, value=lambda view, cond: jnp.minimum(view.x0, 0.0))
    out = ds.sample(KEY, smc.feynman_kac(sampler(), soft, particles=64), (200 * 64,))
    z = 2 * np.exp(out.log_z)
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(200) and z.std() < 0.5  # P(x > 0) = 1/2
    assert (out.x[out.log_w.ravel() > -jnp.inf] > 0).all()


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: smc.feynman_kac(sampler(), Tilt(), particles=1), ValueError, "particles=1 must"),
        (lambda: smc.feynman_kac(NOT_A_SAMPLER, Tilt(), particles=4), TypeError, "needs a sampler"),
        (lambda: smc.feynman_kac(sampler(), 3.0, particles=4), TypeError, "a potential is"),
        (lambda: smc.feynman_kac(sampler(), smc.Potential, particles=4), TypeError, "a potential is"),
        (
            lambda: smc.feynman_kac(sampler(), Tilt(), particles=4, policy=WRONG),
            TypeError,
            r"such as ess.0.5., got 0.5",
        ),
        (lambda: smc.ess(1.5), ValueError, "threshold=1.5"),
        (lambda: smc.every(0), ValueError, "every.m=0"),
        (lambda: smc.every(2.5), ValueError, "every.m=2.5"),
        (lambda: smc.window(3, 2, smc.always), ValueError, "holds no row"),
    ],
)
def test_bad_arguments_are_named(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    ("potential", "resample", "said"),
    [
        (lambda before, after: after.x.sum(), smc.systematic, r"log G of shape \(\), expected \(8,\)"),
        (Tilt(), lambda key, log_w: log_w, "must return 4 ancestors"),
        (Tilt(), lambda key, log_w: jnp.arange(3), "must return 4 ancestors"),
    ],
)
def test_what_does_not_fit_the_particles_is_named(potential, resample, said):
    with pytest.raises(ValueError, match=said):
        ds.sample(KEY, smc.feynman_kac(sampler(), potential, particles=4, resample=resample), (8,))


def test_a_potential_may_count():
    def counted(before: ds.View, after: ds.View) -> jax.Array:
        return (after.x0 > 0).astype(int) - (before.x0 > 0)

    whole, real = (
        ds.sample(KEY, smc.feynman_kac(sampler(), potential, particles=4), (8,))
        for potential in (counted, lambda before, after: counted(before, after) * 1.0)
    )
    np.testing.assert_array_equal(whole.log_z, real.log_z)
    assert whole.log_w.dtype == jnp.float32 and (whole.log_z != 0).all()


@pytest.mark.parametrize("table", [solvers.ddim(VP, GRID), solvers.dpmpp(VP, GRID), solvers.heun(VP, GRID)])
def test_deterministic_sampler_is_refused_unless_it_never_resamples(table):
    linear = solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    with pytest.raises(ValueError, match="draws no noise"):
        smc.feynman_kac(linear, Tilt(), particles=4)
    assert ds.sample(KEY, smc.feynman_kac(linear, Tilt(), particles=4, policy=smc.never), (4,)).x.shape == (4,)


def test_resampling_waits_for_a_row_that_draws_noise():
    table = solvers.euler(VP, GRID, churn=4.0, churn_min=0.1, churn_max=5.0)
    linear = solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    out = ds.sample(KEY, smc.feynman_kac(linear, Tilt(), particles=4, policy=smc.always), (8,))
    drawing = (table.c[:-1] != 0).any(axis=1)
    assert 2 < drawing.sum() < 10 and not drawing[0]
    np.testing.assert_array_equal(out.diagnostics.resampled[:, :-1], np.stack([drawing, drawing]))
    assert len(np.unique(np.asarray(out.x))) == 8  # no copy stayed a copy


def test_batch_that_is_no_multiple_of_the_particles_is_refused():
    with pytest.raises(ValueError, match="batch of 10 is no whole number of groups of 4"):
        ds.sample(KEY, smc.feynman_kac(sampler(), Tilt(), particles=4), (10,))


def test_brownian_path_and_several_registers_are_refused():
    table = solvers.ddpm(VP, GRID)
    path = solvers.brownian_path(table)
    walking = solvers.linear(ds.exact.Gaussian(0.0, 1.0), table, path=path)
    with pytest.raises(ValueError, match="holds keys"):
        ds.sample(KEY, smc.feynman_kac(walking, Tilt(), particles=4), (4,))
    several = solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.pad(table, registers=2))
    with pytest.raises(ValueError, match="2 registers"):
        several.kernel(several.init(jax.random.split(KEY, 2), jnp.zeros(2), None), None)


def test_one_sample_a_group_has_the_law_of_the_weights():
    no_diagnostics: Any = None
    log_w = jnp.log(jnp.array([0.1, 0.6, 0.3]))
    cloud = smc.Particles(jnp.tile(jnp.arange(3), 20000), jnp.tile(log_w, (20000, 1)), jnp.zeros(20000), no_diagnostics)
    for drawn in (smc.select_one(KEY, cloud), smc.final_resample(KEY, cloud).x[::3]):
        share = np.bincount(np.asarray(drawn), minlength=3) / 20000
        np.testing.assert_allclose(share, [0.1, 0.6, 0.3], atol=4 * np.sqrt(0.24 / 20000))


def test_repeat_gives_each_particle_its_groups_condition():
    np.testing.assert_array_equal(smc.repeat({"y": jnp.arange(2)}, 3)["y"], [0, 0, 0, 1, 1, 1])


def test_stop_gradient_resampling_gives_the_evidence_an_unbiased_gradient():
    # y ~ N(0, S) with S from the recursion x_t = 0.9 x_{t-1} + 0.7 z, so that the gradient of log Z is -S^-1 y
    variances = [1.0]
    for _ in range(5):
        variances.append(0.81 * variances[-1] + 0.49)
    cov = np.array([[0.9 ** abs(i - j) * variances[min(i, j)] for j in range(6)] for i in range(6)])
    truth = -np.linalg.solve(cov + 0.25 * np.eye(6), np.asarray(OBSERVED, np.float64))

    def relative(observed, key, resample):
        rules = {"particles": 32, "resample": resample, "policy": smc.always}
        fk = smc.feynman_kac(Bootstrap(OBSERVED), Observation(observed), **rules)
        return jnp.exp(ds.sample(key, fk, (50 * 32,), check=False).log_z - LOG_EVIDENCE).mean()

    errors = {}
    for name, resample in (("stop", smc.stop_gradient()), ("plain", smc.multinomial)):
        slope = jax.jit(jax.vmap(jax.grad(lambda y, key, r=resample: relative(y, key, r)), (None, 0)))
        found = np.asarray(slope(OBSERVED, jax.random.split(KEY, 60)))
        errors[name] = np.abs(found.mean(axis=0) - truth) / (found.std(axis=0) / np.sqrt(60))
    assert (errors["stop"] < 4.5).all()
    assert errors["plain"].max() > 8  # what the gradient misses without
