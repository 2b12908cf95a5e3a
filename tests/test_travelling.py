"""Time travel on tables: RePaint's counts, the law on the way up, exactness, and what it refuses."""

import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.exact import Moments, output_moments

VP = ds.VariancePreserving()


def test_counts_are_those_of_repaint():
    """T = 250, jumps of 10, 10 passes: 2410 calls, and 2160 renoisings of one level in 216 draws of ten."""
    table = solvers.time_travel(solvers.ddpm(VP, ds.times.uniform(VP, 250)), jump=10, repeats=10)
    assert table.calls == 2410
    rises = np.diff(table.now.t) > 0
    assert rises.sum() == 216
    levels = np.round(np.diff(table.now.t)[rises] * 250) + 1  # the move down before it is part of the row
    assert levels.sum() == 2160
    assert table.now.t.max() == table.now.t[0] and table.next.t[-1] == 0


def test_one_pass_is_the_table_itself():
    table = solvers.ddim(VP, ds.times.uniform(VP, 12), eta=0.3)
    again = solvers.time_travel(table, jump=3, repeats=1)
    for name in ("A", "B", "c", "store", "index"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_the_way_up_is_the_forward_process():
    """A point mass: x_t after each rise is N(alpha_t x0, sigma_t^2), so the row before the call holds that law."""
    process = ds.VarianceExploding(0.1, 10.0)
    table = solvers.time_travel(solvers.ddim(process, [10.0, 5.0, 2.0, 1.0, 0.0]), jump=2, repeats=2)
    assert table.noise == "some"
    rises = np.flatnonzero(np.diff(table.now.t) > 0) + 1
    for row in rises:  # DDIM ends at its own level; the rise adds the variance between
        low, high = table.next.sigma[row - 1], table.now.sigma[row]
        np.testing.assert_allclose(table.c[row, 0] ** 2, high**2 - low**2)
    reached = output_moments(table, Moments(2.0, 0.0), Moments(0.0, 100.0))
    assert reached == Moments(2.0, 0.0)


def test_more_passes_bring_the_law_of_the_data_nearer():
    """Started from a wrong law, the exact denoiser forgets it as stretches are walked again."""
    data, start = Moments(0.5, 1.3), Moments(4.0, 9.0)
    table = solvers.ddpm(VP, ds.times.uniform(VP, 60, start=0.4))
    found = [output_moments(solvers.time_travel(table, jump=20, repeats=r), data, start) for r in (1, 2, 5)]
    misses = [abs(m.mean - data.mean) for m in found]
    assert misses[0] > 1.5 * misses[1] > 3 * misses[2]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (solvers.dpmpp(VP, ds.times.uniform(VP, 6)), {}, "one-step table"),
        (solvers.heun(VP, ds.times.uniform(VP, 6)), {}, "one-step table"),
        (ds.pad(solvers.ddim(VP, ds.times.uniform(VP, 6)), steps=9), {}, "one-step table"),
        (solvers.ddim(VP, ds.times.uniform(VP, 6)), {"jump": 0}, "jump=0"),
        (solvers.ddim(VP, ds.times.uniform(VP, 6)), {"repeats": 0}, "repeats=0"),
    ],
)
def test_bad_input_is_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        solvers.time_travel(table, **options)
