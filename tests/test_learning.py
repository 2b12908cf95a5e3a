"""Learning schedules: traced tables are the host's, gradients exact, orders kept, held-out errors smaller."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_runner import MEANS, SPREADS, START, WEIGHTS, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.compiles import count_compiles
from diffsample.solvers import Decisions, ModelStatistics, Relaxation, learn, multistep_decisions, reference_loss, usf
from diffsample.solvers.learning import Traced, initial, linearised, stretched
from diffsample.times import custom

VP = ds.VariancePreserving()
LAW = ds.exact.Mixture(WEIGHTS, MEANS, SPREADS**2)
BH2 = Relaxation("bh2")
FINE = solvers.exp_multistep(VP, ds.times.uniform_logsnr(VP, 150, stop=0.01, zero=False))
KINDS = {
    "corrected, mixed": Decisions((1.0, 0.6, 0.3, 0.05), (1, 2, 3), ("data", "noise", "data"),
                                  correctors=("pseudo", "implicit", "none")),
    "bh2 into zero": multistep_decisions((1.0, 0.5, 0.1, 0.0), relaxation=BH2),
    "no first call": dataclasses.replace(multistep_decisions((1.0, 0.6, 0.35, 0.12, 0.01), order=3), first="zero"),
}  # fmt: skip


def steps_of(count, order=2, **options):
    return multistep_decisions(ds.times.uniform_logsnr(VP, count, stop=0.01, zero=False), order=order, **options)


@pytest.mark.parametrize("name", KINDS)
def test_traced_tables_are_those_of_the_host(name, x64):
    linear = linearised(VP, KINDS[name])
    table = Traced(custom(VP, linear.times), linear)
    parameters = jax.tree.map(lambda leaf: leaf + 0.1 * np.sin(1.0 + np.arange(len(leaf))), initial(table.grid, linear))
    traced, settled = jax.jit(table)(parameters), usf(VP, table.settle(parameters))
    for first, second in zip(jax.tree.leaves(traced), jax.tree.leaves(settled), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-11, atol=1e-12)
    as_given = table.settle(initial(table.grid, linear))
    np.testing.assert_allclose(as_given.times, KINDS[name].times, rtol=1e-12)
    np.testing.assert_allclose(run_table(usf(VP, as_given), mixture_x0, START),
                               run_table(usf(VP, KINDS[name]), mixture_x0, START), atol=1e-12)  # fmt: skip


def test_any_gaps_keep_the_times_between_the_ends():
    linear = linearised(VP, KINDS["no first call"])
    table = Traced(custom(VP, linear.times), linear)
    parameters = initial(table.grid, linear)
    larger = table.settle(parameters._replace(gaps=parameters.gaps + 3.0)).times
    np.testing.assert_allclose(larger, linear.times, rtol=1e-12)
    uneven = table.settle(parameters._replace(gaps=np.array([4.0, -4.0, 5.0, -3.0]))).times
    assert uneven[0] == 1.0 and uneven[-1] == 0.01 and (np.diff(uneven) < 0).all()


@pytest.mark.parametrize("name", ["corrected, mixed", "bh2 into zero"])
def test_gradient_is_that_of_the_run(name, x64):
    """Against central differences of the host's table, run in NumPy."""
    linear = linearised(VP, KINDS[name])
    table, goal = Traced(custom(VP, linear.times), linear), np.sin(START)
    parameters = initial(table.grid, linear)

    def loss(parameters):
        run = solvers.linear(LAW, table(parameters))
        return jnp.sum((ds.sample(jax.random.key(0), run, x=jnp.asarray(START), check=False) - goal) ** 2)

    gradient = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, parameters))
    leaves, structure = jax.tree.flatten(parameters)
    for which, leaf in enumerate(leaves):
        for i in range(len(leaf)):

            def at(shift, which=which, i=i):
                moved = [value + shift * (np.arange(len(value)) == i) * (j == which) for j, value in enumerate(leaves)]
                out = run_table(usf(VP, table.settle(structure.unflatten(moved))), mixture_x0, START)
                return np.sum((out - goal) ** 2)

            found = jax.tree.leaves(gradient)[which][i]
            assert abs(found - (at(1e-5) - at(-1e-5)) / 2e-5) < 1e-6 * max(1.0, abs(found))


@functools.cache
def learned():
    """A third-order schedule of five calls, learned from 128 initial states."""
    loss = reference_loss(LAW, FINE, jax.random.normal(jax.random.key(1), (128,)))
    return learn(jax.random.key(0), VP, steps_of(5, order=3), loss, steps=200)


def held_out_error(table, x):
    return float(np.sqrt(np.mean((run_table(table, mixture_x0, x) - run_table(FINE, mixture_x0, x)) ** 2)))


def test_learning_improves_the_held_out_error_tenfold():
    """From 0.25 to 0.014, on problem P1 at five calls; the best fixed solver of as many calls has 0.043."""
    x = np.random.default_rng(7).standard_normal(512)
    found = learned()
    assert held_out_error(usf(VP, found.decisions), x) < 0.1 * held_out_error(usf(VP, steps_of(5, order=3)), x)
    grids = [
        make(VP, 5, stop=0.01, zero=False) for make in (ds.times.uniform_logsnr, ds.times.uniform, ds.times.karras)
    ]
    fixed = [solvers.ddim, solvers.dpmpp, solvers.unipc, lambda p, g: solvers.unipc(p, g, order=3)]
    best = min(held_out_error(solver(VP, grid), x) for solver in fixed for grid in grids)
    assert held_out_error(usf(VP, found.decisions), x) < 0.5 * best
    assert len(found.losses) == 201 and found.decisions.nfe == 5


def test_learned_schedule_keeps_its_order():
    """What was learned, repeated on finer grids, is certified to be of the order of the start."""
    decisions = learned().decisions
    relaxations = [k.relaxation for step in decisions.derivatives for k in step if k.relaxation]
    assert [relaxation.power for relaxation in relaxations] == [1, 2, 1, 2, 1, 2, 1]
    assert min(abs(relaxation.gamma) for relaxation in relaxations) > 1e-3
    certificate = ds.certificate(lambda p, g: usf(p, stretched(decisions, g)), compiled=False, check=True)
    assert certificate.declared == 3


@pytest.mark.slow
def test_learning_refines_the_winner_of_a_search():
    """Over two searches at five calls the held-out error fell from 0.0112 to 0.0064 and from 0.0135 to 0.0059."""
    x, held = (np.random.default_rng(seed).standard_normal(n) for seed, n in ((1, 64), (7, 512)))
    starts = [steps_of(5, order=order, corrector=kind) for order in (1, 2, 3) for kind in ("none", "pseudo")]
    winner = ds.search.search(
        jax.random.key(0),
        lambda schedules: np.array([held_out_error(usf(VP, schedule), x) for schedule in schedules]),
        5,
        space=ds.search.Space(1.0, (0.01, 0.01)),
        start=starts,
        stages=ds.search.Stages(generations=15, batch=40),
        ranker=None,
    ).best
    refined = learn(jax.random.key(0), VP, winner, reference_loss(LAW, FINE, jnp.asarray(x, jnp.float32))).decisions
    assert refined.nfe == 5 and held_out_error(usf(VP, refined), held) < 0.75 * held_out_error(usf(VP, winner), held)


def test_steps_of_learning_compile_nothing():
    loss = reference_loss(LAW, FINE, jnp.asarray(START), batch=4)
    counts = []
    for steps in (2, 20):
        with count_compiles() as compiles:
            learn(jax.random.key(0), VP, steps_of(2), loss, steps=steps)
        counts.append(compiles.count)
    assert counts[1] <= counts[0]


def test_relaxations_of_dpm_solver_v3_are_learned_with_its_times_kept():
    knots = np.linspace(-6.0, 5.0, 12)
    statistics = ModelStatistics(knots, 0.8 + 0.02 * knots, 0 * knots - 0.1, 0 * knots + 0.05)
    start = dataclasses.replace(steps_of(3), predictions=("v3", "v3", "data"))
    loss = reference_loss(LAW, FINE, jnp.asarray(START))
    found = learn(jax.random.key(0), VP, start, loss, steps=60, times=False, statistics=statistics)
    assert found.decisions.times == start.times and found.losses.min() < 0.9 * found.losses[0]
    with pytest.raises(ValueError, match="pass times=False"):
        learn(jax.random.key(0), VP, start, loss, statistics=statistics)


def test_bad_arguments_of_learning_are_named():
    loss = reference_loss(LAW, FINE, jnp.asarray(START))
    with pytest.raises(ValueError, match="nothing to learn"):
        learn(jax.random.key(0), VP, steps_of(3, order=1), loss, times=False)
    with pytest.raises(ValueError, match="finite log-SNR, got t = 1"):
        learn(jax.random.key(0), ds.FlowMatching(), multistep_decisions((1.0, 0.5, 0.1)), loss)
    with pytest.raises(ValueError, match="the loss is nan"):
        learn(jax.random.key(0), VP, steps_of(2), lambda table, key: jnp.nan * table.A.sum(), steps=1)
    with pytest.raises(ValueError, match="draws noise; the reference must be deterministic"):
        reference_loss(LAW, solvers.ddpm(VP, [1.0, 0.5]), jnp.asarray(START))
    with pytest.raises(ValueError, match="batch=10 must be 1 to 9"):
        reference_loss(LAW, FINE, jnp.asarray(START), batch=10)
    with pytest.raises(ValueError, match="2 steps from 5"):
        stretched(steps_of(5), (1.0, 0.5, 0.1))
