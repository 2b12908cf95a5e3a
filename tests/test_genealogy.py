"""Paths of the survivors, and clamps: opt-in, counted, and what they say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers
from diffsample.compiles import count_compiles
from diffsample.struct import pytree

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
LAW = ds.exact.Gaussian(0.0, 1.0)
WRONG: Any = 0.5


def sampler(steps: int = 9, padding: int = 0) -> solvers.Linear:
    table = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, steps), large=True)
    return solvers.linear(LAW, ds.pad(table, slots=table.slots, steps=table.rows + padding))


def upwards(before, after):
    return after.x0 - before.x0


@pytree
class Given(smc.Potential):
    """The same log G [B] at every row, nothing at the start and at the end."""

    log_g: Any

    def __call__(self, transition: smc.Transition, memory: Any) -> tuple[jax.Array, Any]:
        return self.log_g, memory


@pytest.mark.parametrize("padding", [0, 2])
def test_lineage_and_lagged_states_are_the_same_paths_of_the_survivors(padding):
    # one goes back through the ancestors after the run, the other gathers the states in it
    around = smc.lagged(sampler(padding=padding), 9, lambda view: (view.x, view.x0))
    fk = smc.feynman_kac(around, upwards, particles=8, policy=smc.always, genealogy=True)
    out, seen = ds.sample(KEY, fk, (16,), record=ds.Stack(lambda view: (view.x, view.x0)))
    slots = smc.lineage(out)
    assert int(out.diagnostics.unique.min()) < 8
    rows = np.flatnonzero(np.diff(seen[0], axis=0, prepend=np.nan).any(axis=1))  # the others are padding
    assert len(rows) == 9
    for got, kept in zip(seen, out.inner.recent, strict=True):
        grouped = np.asarray(got).reshape(-1, 2, 8)
        paths = np.stack([np.take_along_axis(grouped[j], np.asarray(slots[:, j]), axis=1) for j in rows], axis=-1)
        np.testing.assert_array_equal(paths.reshape(16, 9), kept)
    np.testing.assert_array_equal(slots[:, 0], out.diagnostics.eve)


def test_a_lagged_sampler_draws_the_samplers_samples_and_keeps_the_last_rows():
    plain, seen = ds.sample(KEY, sampler(), (5,), record=ds.Stack(lambda view: view.x))
    short, longer = (ds.sample(KEY, smc.lagged(sampler(), lag), (5,)) for lag in (3, 11))
    np.testing.assert_array_equal(short.x, plain)
    np.testing.assert_array_equal(short.recent, seen[-3:].T)
    np.testing.assert_array_equal(longer.recent, np.concatenate([np.zeros((2, 5)), seen]).T)


def test_lagged_composes_with_kernels_correctors_and_decoders():
    target = smc.annealed(LAW, 2.0)
    table = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 9), large=True)
    plain, kept = (
        ds.sample(KEY, smc.corrected(around, particles=8, weights=smc.kernel_corrector), (16,))
        for around in (solvers.linear(target, table), smc.lagged(solvers.linear(target, table), 2))
    )
    np.testing.assert_array_equal(plain.x, kept.x)
    np.testing.assert_array_equal(plain.log_z, kept.log_z)
    chain = ds.exact.golden_chain()
    decoder = ds.discrete.Decoder(chain.model(), ds.discrete.first_hitting(5))
    out = ds.sample(KEY, smc.lagged(decoder, 2), (6, 5))
    np.testing.assert_array_equal(out.x, ds.sample(KEY, decoder, (6, 5)).x)
    np.testing.assert_array_equal(out.recent[:, -1], out.x)
    assert (np.asarray(out.recent[:, -2] == decoder.model.mask_id).sum(axis=1) == 1).all()


def test_selection_counts_and_reports_through_lagged_as_without():
    decoder = ds.discrete.Decoder(ds.exact.golden_chain().model(), ds.discrete.first_hitting(5))

    def zeros(view, cond):
        return (view.x == 0).sum(axis=1).astype(jnp.float32)

    def broken(view, cond):
        return jnp.full(len(view.x), jnp.nan)

    plain, kept = (
        ds.sample(KEY, smc.svdd(around, zeros, 0.5, candidates=3), (4, 5))
        for around in (decoder, smc.lagged(decoder, 2))
    )
    np.testing.assert_array_equal(plain.x, kept.x)
    np.testing.assert_array_equal(plain.calls, kept.inner.calls)
    np.testing.assert_array_equal(plain.calls, 1 + 3 * 4)
    for around in (decoder, smc.lagged(decoder, 2)):
        with pytest.raises(FloatingPointError, match="went wrong at position 0"):
            ds.sample(KEY, smc.svdd(around, broken, 0.5, candidates=3), (4, 5))
    with pytest.raises(ds.NonFiniteError):
        ds.sample(KEY, smc.svdd(smc.lagged(sampler(), 2), broken, 0.5, candidates=3), (4,))


@pytest.mark.parametrize(
    ("clamp", "held"),
    [
        (smc.about_mean(1.0), [1.0, 2.0, 2.5, 3.0]),
        (smc.within(2.0), [-2.0, 2.0, 2.0, 2.0]),
        (smc.below_quantile(0.5), [-3.0, 2.0, 2.0, 2.0]),
        (lambda log_g: jnp.maximum(log_g, 0.0), [0.0, 2.0, 2.5, 6.5]),
    ],
)
def test_a_clamp_holds_the_weights_of_each_group_and_is_counted(clamp, held):
    log_g = np.array([[-3.0, 2.0, 2.5, 6.5], [-0.1, 0.1, 0.05, -0.05]], np.float32)
    potential = Given(jnp.asarray(log_g.reshape(-1)))
    fk = smc.feynman_kac(sampler(5), potential, particles=4, policy=smc.never, clamp=clamp)
    out = ds.sample(KEY, fk, (8,))
    np.testing.assert_allclose(out.log_w[0], 4 * np.asarray(held), rtol=1e-6)  # the first call is weighed by `start`
    moved = int((np.asarray(held) != log_g[0]).sum())
    np.testing.assert_array_equal(out.diagnostics.clamped[0], [0] + 4 * [moved] + [0])
    free = ds.sample(KEY, smc.feynman_kac(sampler(5), potential, particles=4, policy=smc.never), (8,))
    np.testing.assert_allclose(free.log_w, 4 * log_g, rtol=1e-6)
    assert not free.diagnostics.clamped.any()


@pytest.mark.parametrize(
    ("clamp", "moved"), [(smc.about_mean(1.0), 0), (smc.within(2.0), 0), (smc.below_quantile(0.5), 1)]
)
def test_a_clamp_revives_no_dead_particle_and_hides_no_broken_potential(clamp, moved):
    log_g = jnp.array([-jnp.inf, -jnp.inf, -jnp.inf, 1.0, jnp.nan, 0.0, 0.1, 0.2])
    fk = smc.feynman_kac(sampler(3), Given(log_g), particles=4, policy=smc.never, clamp=clamp)
    out = ds.sample(KEY, fk, (8,), check=False)
    np.testing.assert_array_equal(out.log_w == -jnp.inf, [[True, True, True, False], [True, False, False, False]])
    assert np.isfinite(out.log_z).all()
    assert int(out.diagnostics.invalid.sum()) == 2  # NaN is broken at every row, and not something that was clamped
    np.testing.assert_array_equal(out.diagnostics.clamped, [[0, 0, 0, 0], [0, moved, moved, 0]])
    with pytest.raises(FloatingPointError, match="row 1 in group 1"):
        ds.sample(KEY, fk, (8,))
    none = smc.feynman_kac(sampler(3), Given(jnp.full(8, -jnp.inf)), particles=4, policy=smc.never, clamp=clamp)
    with pytest.raises(FloatingPointError, match="all particles have weight 0"):
        ds.sample(KEY, none, (8,))


def test_clamps_of_other_bounds_share_one_program_and_reach_the_correctors():
    target = solvers.linear(smc.annealed(LAW, 2.0, variance=4.0), solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 9)))

    def draw(bound):
        return ds.sample(KEY, smc.corrected(target, particles=8, clamp=smc.about_mean(bound)), (16,))

    draw(1.0)
    with count_compiles() as compiles:
        tight, loose = draw(1e-6), draw(1e6)
    assert compiles.count == 0
    assert int(tight.diagnostics.clamped.sum()) > int(loose.diagnostics.clamped.sum()) == 0
    np.testing.assert_allclose(tight.log_w, tight.log_w.mean(axis=1, keepdims=True) + np.zeros((1, 8)), atol=1e-4)
    plain = ds.sample(KEY, smc.corrected(target, particles=8), (16,))
    np.testing.assert_allclose(loose.log_z, plain.log_z, rtol=1e-6)


def test_best_of_n_is_the_largest_reward_of_independent_draws():
    fk = smc.feynman_kac(sampler(), upwards, particles=8, policy=smc.never)
    out = ds.sample(KEY, fk, (32,))
    draws = ds.sample(KEY, sampler(), (32,)).reshape(4, 8)
    np.testing.assert_array_equal(
        smc.select_best(out, -((out.x - 1) ** 2)), draws[np.arange(4), abs(draws - 1).argmin(1)]
    )
    np.testing.assert_array_equal(smc.select_best(out, out.log_w), draws[np.arange(4), np.asarray(out.log_w).argmax(1)])
    dead = out._replace(log_w=jnp.full((4, 8), -jnp.inf).at[:, 2].set(0.0))
    np.testing.assert_array_equal(smc.select_best(dead, out.x), draws[:, 2])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: smc.about_mean(0.0), ValueError, r"about_mean\(bound=0.0\)"),
        (lambda: smc.within(-1.0), ValueError, r"within\(bound=-1.0\)"),
        (lambda: smc.below_quantile(90), ValueError, r"below_quantile\(share=90\)"),
        (lambda: smc.feynman_kac(sampler(), upwards, particles=4, clamp=WRONG), TypeError, "about_mean"),
        (lambda: smc.lagged(sampler(), 0), ValueError, "lag=0"),
        (lambda: smc.lagged(sampler(), 2, WRONG), TypeError, "function of the view"),
        (lambda: ds.sample(KEY, smc.lagged(sampler(), 2, lambda view: view.x.sum()), (4,)), ValueError, "batch axis"),
        (
            lambda: ds.sample(KEY, smc.feynman_kac(sampler(), upwards, particles=4, clamp=jnp.sum), (4,)),
            ValueError,
            "as many particles",
        ),
        (
            lambda: smc.lineage(ds.sample(KEY, smc.feynman_kac(sampler(), upwards, particles=4), (4,))),
            ValueError,
            "genealogy=True",
        ),
        (
            lambda: smc.select_best(
                ds.sample(KEY, smc.feynman_kac(sampler(), upwards, particles=4), (4,)), jnp.ones(3)
            ),
            ValueError,
            r"\(3,\) for 4 particles",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, said):
    with pytest.raises(error, match=said):
        make()
