"""Tables: what the program assembles, what the self-check refuses, padding and stacking."""

import dataclasses

import jax
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.program import Program

VP, VE = ds.VariancePreserving(), ds.VarianceExploding()
GRID = ds.times.uniform(VP, 5)


def program(registers=1):
    return Program(ds.times.custom(VE, [4.0, 2.0, 1.0]), registers)


def test_updates_between_calls_compose_into_one_row():
    p = program()
    (s, t), (_, u) = p.moves()
    first = p.call(s, t, x0=1.0)
    p[0] = 2.0 * p[0] + 3.0 * first
    p[0] = 5.0 * p[0] + 7.0 * first
    second = p.call(t, u, eps=1.0)
    p[0] = p[0] + first - second
    table = p.tableau("test")
    assert (table.A[1, 0, 0], table.B[1, 0, table.slot[0]]) == (10.0, 22.0)
    assert set(table.slot) == {0, 1}  # both outputs are live at the end
    np.testing.assert_array_equal(table.store, [[1, 0], [0, 1]])


def test_outputs_take_the_first_free_slot():
    p = Program(ds.times.custom(VE, [16.0, 8.0, 4.0, 2.0, 1.0]))
    for s, t in p.moves():
        out = p.call(s, t, eps=1.0)
        p[0] = p[0] + out
    assert p.tableau("one").slots == 1


def test_a_register_read_before_a_call_is_stale():
    p = program()
    for s, t in p.moves():
        p[0] = p[0] + p.call(s, t, eps=1.0)  # Python reads p[0] first
    with pytest.raises(ValueError, match="row 1 uses a register read before the call"):
        p.tableau("stale")


def test_independent_draws_of_one_direction_add_in_variance():
    p = program()
    (s, t), (_, u) = p.moves()
    p[0] = p[0] + 3.0 * p.noise() + 4.0 * p.noise()
    p.call(s, t, x0=1.0)
    p.call(t, u, x0=1.0)
    assert p.tableau("test").c[0, 0] == pytest.approx(5.0)


def test_two_registers_share_a_draw_but_not_two():
    p = program(2)
    (s, t), _ = p.moves()
    z = p.noise()
    p[0], p[1] = p[0] + 2.0 * z, p[1] - 1.0 * z
    p.call(s, t, x0=1.0)
    np.testing.assert_allclose(p.tableau("test").c[0], [2.0, -1.0])
    p = program(2)
    p[0], p[1] = p[0] + p.noise(), p[1] + p.noise()
    p.call(s, t, x0=1.0)
    with pytest.raises(ValueError, match="two independent draws"):
        p.tableau("test")


def test_padding_takes_no_noise_away():
    table = solvers.ddpm(ds.VarianceExploding(), [4.0, 2.0, 1.0])
    assert (ds.pad(table).noise, ds.pad(table, noise="some").noise) == ("all", "some")
    for noise in ("never", "sometimes"):
        with pytest.raises(ValueError, match=f"noise='{noise}'"):
            ds.pad(table, noise=noise)


def test_a_call_at_sigma_zero_is_refused():
    p = program()
    p.call(ds.Level(0.0, 1.0, 0.0), ds.Level(0.0, 1.0, 0.0), x0=1.0)
    with pytest.raises(ValueError, match="row 0 calls the network at sigma = 0"):
        p.tableau("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.full((6, 1, 1), np.nan)}, "tableau.A is not finite at row 0"),
        ({"B": np.zeros((6, 2, 1))}, r"tableau.B has shape \(6, 2, 1\), expected \(6, 1, 1\)"),
        ({"slot": np.full(5, 3)}, "addresses"),
        ({"c": np.ones((6, 1))}, "noise='never'"),
    ],
)
def test_self_check_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        solvers.linear(ds.exact.Gaussian(0.0, 1.0), dataclasses.replace(solvers.ddim(VP, GRID), **change))


def test_labels_never_shape_a_program():
    first, second = solvers.ddim(VP, GRID), solvers.euler(VE, ds.times.karras(VE, 5))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert first.about.name == "ddim" and second.about.process == VE


def test_padding_only_grows():
    table = solvers.heun(VP, GRID)
    assert ds.pad(table, steps=20).calls == table.calls
    with pytest.raises(ValueError, match=r"cannot pad a table of .* = \(2, 2, 9\)"):
        ds.pad(table, steps=3)


def test_padded_rows_make_no_call():
    calls = []

    def spy(params, x, t, cond):
        jax.debug.callback(lambda: calls.append(1))
        return x

    sampler = solvers.linear(ds.Network(spy, predicts="data"), ds.pad(solvers.ddim(VP, GRID), steps=40))
    jax.block_until_ready(ds.sample(jax.random.key(0), sampler, (2,)))
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == 5


def test_stack_needs_compatible_tables():
    with pytest.raises(ValueError, match="at least one"):
        ds.stack([])
    moved = dataclasses.replace(solvers.heun(VP, GRID), output=1)
    with pytest.raises(ValueError, match="different registers"):
        ds.stack([solvers.ddim(VP, GRID), moved])


def test_a_deterministic_stack_stays_deterministic():
    tables = [solvers.ddim(VP, GRID), solvers.heun(VP, GRID), solvers.plms(VP, GRID)]
    assert ds.stack(tables).noise == "never"
    assert ds.stack([*tables, solvers.ddpm(VP, GRID)]).noise == "some"


def test_a_table_is_learnable():
    """Gradient of the final error with respect to every coefficient agrees with a finite difference."""
    law, key = ds.exact.Mixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1]), jax.random.key(0)
    table = solvers.dpmpp(VP, GRID)

    def loss(B):
        moved = dataclasses.replace(table, B=B)
        return (ds.sample(key, solvers.linear(law, moved), (16,)) ** 2).mean()

    with jax.enable_x64(True):
        B, direction = np.asarray(table.B), np.random.default_rng(0).normal(size=table.B.shape)
        slope = (jax.grad(loss)(jax.numpy.asarray(B)) * direction).sum()
        step = (loss(B + 1e-4 * direction) - loss(B - 1e-4 * direction)) / 2e-4
    np.testing.assert_allclose(slope, step, rtol=0.02)
