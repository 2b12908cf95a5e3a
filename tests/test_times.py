"""Time grids: published numbers, exact ends, and what grids and builders refuse."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import times
from diffsample.betas import DiscreteBetas
from diffsample.process import Cosine, FlowMatching, SubVP, VarianceExploding, VariancePreserving

LINEAR = DiscreteBetas.linear()
SD = DiscreteBetas.scaled_linear()
ZERO_TERMINAL = SD.zero_terminal_snr()
FLOW, VE, VP = FlowMatching(), VarianceExploding(), VariancePreserving()
PROCESSES = [VP, SubVP(), Cosine(), VE, FLOW, LINEAR, SD, ZERO_TERMINAL, DiscreteBetas.cosine()]
IN_TIME = [times.uniform, times.quadratic]
IN_LOGSNR = [times.uniform_logsnr, times.polyexponential, times.karras]
SPACINGS = [times.leading, times.linspace, times.trailing]

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{type(p).__name__}-{p.t_start:g}")
every_builder = pytest.mark.parametrize("build", IN_TIME + IN_LOGSNR, ids=lambda f: f.__name__)
every_spacing = pytest.mark.parametrize("build", SPACINGS, ids=lambda f: f.__name__)


def indices(grid):
    """Table indices of a grid that ends at clean data, which is left out."""
    assert grid.t[-1] == 0
    return (grid.t[:-1] * 1000 - 1).round(9).tolist()


@every_process
@every_builder
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_builders_keep_both_ends_exactly(build, process, steps):
    first = process.t_start if build in IN_LOGSNR else process.t_max
    to_zero, to_stop = build(process, steps), build(process, steps, zero=False)
    assert (len(to_zero), to_zero.t[0], to_zero.t[-1]) == (steps + 1, first, 0.0)
    assert (len(to_stop), to_stop.t[0], to_stop.t[-1]) == (steps + 1, first, process.t_min)
    assert steps == 1 or to_zero.t[-2] == process.t_min
    assert np.array_equal(build(process, steps + 1).t[:-1], to_stop.t)


@every_process
@every_builder
def test_given_ends_replace_the_defaults_exactly(build, process):
    start, stop = process.t_max * 0.7, process.t_max * 0.1
    grid = build(process, 5, start=start, stop=stop, zero=False)
    assert (grid.t[0], grid.t[-1], grid.steps) == (start, stop, 5)


@every_process
def test_builders_are_evenly_spaced_in_their_own_variable(process):
    for build, variable in [
        (times.uniform, lambda g: g.t),
        (times.quadratic, lambda g: np.sqrt(g.t)),
        (times.uniform_logsnr, lambda g: g.half_logsnr),
        (times.karras, lambda g: (g.sigma / g.alpha) ** (1 / 7)),
    ]:
        moves = np.diff(variable(build(process, 9, zero=False)))
        np.testing.assert_allclose(moves, moves[0], rtol=1e-9)


def test_karras_reproduces_the_edm_table():
    grid = times.karras(VE, 18)
    expected = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817]
    expected += [0.585348, 0.296442, 0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002]
    np.testing.assert_allclose(grid.t[:-1], expected, rtol=1e-5)
    assert (grid.t[0], grid.t[-2], grid.t[-1]) == (80.0, 0.002, 0.0)


def test_karras_tends_to_uniform_logsnr_for_large_rho():
    np.testing.assert_allclose(times.karras(VP, 8, rho=1e6).t, times.uniform_logsnr(VP, 8).t, rtol=1e-4)


def test_karras_gives_the_same_levels_on_every_process():
    on_ve = times.karras(VE, 6, start=10.0, stop=0.1, zero=False)
    for process in (VP, Cosine(), FLOW, SD):
        ends = process.t_from_half_logsnr(-np.log([10.0, 0.1]))
        grid = times.karras(process, 6, start=ends[0], stop=ends[1], zero=False)
        np.testing.assert_allclose(grid.half_logsnr, on_ve.half_logsnr, atol=1e-12)


def test_polyexponential_follows_its_power():
    grid = times.polyexponential(VE, 4, rho=3.0, start=math.exp(4), stop=math.exp(-4), zero=False)
    np.testing.assert_allclose(np.log(grid.t), [4, -0.625, -3, -3.875, -4], atol=1e-12)
    assert times.polyexponential(VP, 9) == times.uniform_logsnr(VP, 9)


def test_quadratic_squares_even_roots():
    grid = times.quadratic(VP, 5, start=0.81, stop=0.01, zero=False)
    np.testing.assert_allclose(grid.t, [0.81, 0.5476, 0.3364, 0.1764, 0.0676, 0.01], rtol=1e-13)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (times.leading(LINEAR, 10), range(900, -1, -100)),
        (times.leading(LINEAR, 10, offset=1), range(901, 0, -100)),
        (times.leading(LINEAR, 10, drop_last=True), range(900, 0, -90)),
        (times.linspace(LINEAR, 10), range(999, -1, -111)),
        (times.linspace(LINEAR, 10, drop_last=True), [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]),
        (times.linspace(LINEAR, 1), [999]),
        (times.trailing(LINEAR, 10), range(999, 0, -100)),
        (times.trailing(LINEAR, 3), [999, 666, 332]),
        (times.trailing(LINEAR, 1000), range(999, -1, -1)),
    ],
)
def test_spacings_give_the_published_indices(grid, expected):
    assert indices(grid) == list(expected)


def test_spacings_end_at_index_zero_when_zero_is_false():
    for grid in (
        times.leading(LINEAR, 10, offset=1, zero=False),
        times.leading(LINEAR, 10, drop_last=True, zero=False),
        times.linspace(LINEAR, 10, zero=False),
        times.trailing(LINEAR, 10, zero=False),
    ):
        assert (grid.steps, grid.t[-1]) == (10, LINEAR.t_min)


@pytest.mark.parametrize(
    ("table", "sigma", "index"),
    [
        (
            times.SD15,
            [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0],
            [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        ),
        (
            times.SDXL,
            [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0],
            [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
        ),
    ],
)
def test_ays_at_ten_steps_is_the_published_table(table, sigma, index):
    np.testing.assert_allclose(times.ays(VE, 10, table=table).t, sigma, rtol=1e-14)
    grid = times.ays(SD, 10, table=table)
    np.testing.assert_allclose(indices(grid), index, atol=0.6)  # the table's own indices, rounded
    assert grid.t[0] == 1.0


def test_ays_svd_at_ten_steps_is_the_published_table():
    sigma = [700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0]
    np.testing.assert_allclose(times.ays(VarianceExploding(0.002, 700.0), 10, table=times.SVD).t, sigma, rtol=1e-14)


def test_ays_interpolates_the_levels_log_linearly():
    table = (16.0, 4.0, 0.25)
    np.testing.assert_allclose(times.ays(VE, 4, table=table, zero=False).t, [16, 8, 4, 1, 0.25], rtol=1e-14)
    np.testing.assert_allclose(times.ays(VE, 4, table=table).t, [16, 8, 4, 1, 0], rtol=1e-14)
    np.testing.assert_allclose(times.ays(VE, 1).t, [14.615, 0], rtol=1e-14)
    np.testing.assert_array_equal(times.ays(VE, 20).t[::2], times.ays(VE, 10).t)


def test_ays_maps_levels_to_any_process():
    for process in (VP, FLOW, ZERO_TERMINAL, LINEAR):
        grid = times.ays(process, 10, zero=False)
        np.testing.assert_allclose(np.exp(-grid.half_logsnr), times.SD15, rtol=1e-12)


def test_shift_of_flow_matching_moves_the_middle_and_keeps_the_ends():
    grid = times.uniform(FLOW, 4, stop=0, zero=False)
    moved = times.shift(grid, 3.0)
    np.testing.assert_allclose(moved.t, [1, 0.9, 0.75, 0.5, 0], rtol=1e-14)
    assert (moved.t[0], moved.t[-1]) == (1.0, 0.0)
    np.testing.assert_allclose(times.shift(moved, 1 / 3).t, grid.t, rtol=1e-14)


def test_shift_is_applied_once_at_the_last_positive_level():
    assert times.shift(times.custom(FLOW, [1, 0.001, 0]), 3.0).t[1] == pytest.approx(0.00299, abs=5e-6)


@pytest.mark.parametrize("process", [VP, VE, SD, ZERO_TERMINAL], ids=["vp", "ve", "sd", "zero-terminal"])
def test_shift_multiplies_the_noise_to_signal_ratio_on_every_process(process):
    grid = times.uniform(process, 6, start=process.t_max / 3, zero=False)
    np.testing.assert_allclose(times.shift(grid, 1.5).half_logsnr - grid.half_logsnr, -math.log(1.5), atol=1e-11)


def test_shift_by_one_changes_nothing():
    for process in PROCESSES:
        grid = times.uniform(process, 5)
        assert times.shift(grid, 1.0) == grid


@pytest.mark.parametrize(("tokens", "log_factor"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_dynamic_shift_is_log_linear_in_the_tokens(tokens, log_factor):
    assert math.log(times.dynamic_shift(tokens)) == pytest.approx(log_factor, abs=1e-14)


def test_grid_is_a_read_only_float64_copy():
    given = np.array([1.0, 0.5, 0.25], np.float32)
    grid = times.custom(VP, given)
    given[0] = 7
    assert grid.t.dtype == np.float64 and grid.t[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.t[0] = 0.9
    assert np.asarray(grid, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.asarray(grid), [1, 0.5, 0.25])
    assert list(grid) == [1, 0.5, 0.25]


def test_grid_levels_are_those_of_the_process():
    grid = times.custom(FLOW, [1.0, 0.75, 0.0])
    np.testing.assert_array_equal(np.stack(grid.levels), [[1, 0.75, 0], [0, 0.25, 1], [1, 0.75, 0]])
    np.testing.assert_array_equal(grid.alpha, [0, 0.25, 1])
    np.testing.assert_array_equal(grid.sigma, [1, 0.75, 0])
    np.testing.assert_allclose(grid.half_logsnr, [-np.inf, -math.log(3), np.inf])
    assert (len(grid), grid.steps) == (3, 2)


def test_slice_of_a_grid_is_a_grid():
    grid = times.uniform(VP, 10)
    assert grid[2:5] == times.custom(VP, grid.t[2:5])
    assert grid[:] == grid and grid[:6].steps + grid[5:].steps == grid.steps
    with pytest.raises(TypeError, match=r"slice, as in grid\[2:5\], got 3"):
        grid[3]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"at least two times, got shape \(1,\)"):
        grid[3:4]


def test_grids_compare_by_process_and_times():
    grid, twin = times.uniform(VP, 4), times.uniform(VariancePreserving(), 4)
    assert grid == twin and hash(grid) == hash(twin)
    assert grid != times.uniform(VP, 5) and grid != times.karras(VP, 4)
    assert times.custom(VP, [1, 0.5]) != times.custom(FLOW, [1, 0.5])


def test_grid_prints_the_table_it_uses():
    lines = str(times.custom(FLOW, [1.0, 0.25, 0.0])).splitlines()
    assert lines[0] == "2 steps of FlowMatching()"
    assert lines[1].split() == ["i", "t", "alpha", "sigma", "half_logsnr"]
    assert [line.split() for line in lines[2:]] == [
        ["0", "1", "0", "1", "-inf"],
        ["1", "0.25", "0.75", "0.25", "1.09861"],
        ["2", "0", "1", "0", "inf"],
    ]
    assert repr(times.uniform(VP, 3)) == str(times.uniform(VP, 3))


def test_long_grid_prints_its_ends_only():
    lines = repr(times.trailing(LINEAR, 1000)).splitlines()
    assert len(lines) == 43 and lines[22].strip() == "... 961 more ..."
    assert lines[21].split()[0] == "19" and lines[23].split()[0] == "981" and lines[-1].split()[0] == "1000"


def test_as_grid_passes_grids_of_the_same_process_and_wraps_times():
    grid = times.uniform(VP, 4)
    assert times.as_grid(VariancePreserving(), grid) is grid
    for given in (grid.t.tolist(), grid.t, tuple(grid.t)):
        assert times.as_grid(VP, given) == grid
    assert times.as_grid(VP, jnp.array([1.0, 0.5, 0.0])) == times.custom(VP, [1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: times.as_grid(VE, times.uniform(VP, 2)), r"mismatched process: .*VariancePreserving.*VarianceExplod"),
        (lambda: times.custom(VP, [0.5]), r"at least two times, got shape \(1,\)"),
        (lambda: times.custom(VP, [[1.0, 0.5]]), r"flat list of at least two times, got shape \(1, 2\)"),
        (lambda: times.custom(VP, [1.0, 0.5, 0.5, 0.2]), r"strictly decreasing, got t\[1\] = 0.5 and t\[2\] = 0.5"),
        (lambda: times.custom(VP, [0.1, 0.5]), r"got t\[0\] = 0.1 and t\[1\] = 0.5"),
        (lambda: times.custom(VP, [1.0, float("nan"), 0.0]), r"must be finite, got t\[1\] = nan"),
        (lambda: times.custom(VP, [float("inf"), 0.0]), r"must be finite, got t\[0\] = inf"),
        (lambda: times.custom(VP, [1.5, 0.5]), r"lie in \[0, 1.0\] for VariancePreserving.*, got 1.5"),
        (lambda: times.custom(VP, [0.5, -0.1]), r"lie in \[0, 1.0\] for VariancePreserving.*, got -0.1"),
        (lambda: times.uniform(VP, 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: times.karras(VP, -3), "steps must be a whole number of at least 1, got -3"),
        (lambda: times.trailing(LINEAR, 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: times.ays(VP, 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: times.uniform(VP, True), "steps must be a whole number of at least 1, got True"),
        (lambda: times.uniform(VP, 4, start=1.5), r"0 <= stop < start <= 1.0, got start=1.5, stop=0.001"),
        (lambda: times.uniform(VP, 4, start=0.2, stop=0.3), "got start=0.2, stop=0.3"),
        (lambda: times.uniform(VP, 4, stop=-0.1), "got start=1.0, stop=-0.1"),
        (lambda: times.karras(VP, 4, start=float("nan")), "got start=nan"),
        (lambda: times.uniform(VP, 4, stop=0), "zero=True appends t = 0 after stop, .* or pass zero=False"),
        (lambda: times.karras(VP, 4, stop=0), "log-SNR is infinite at stop=0.0; stop at a positive time"),
        (lambda: times.uniform_logsnr(FLOW, 4, start=1.0), "infinite at start=1.0; start at 0.999 or lower"),
        (lambda: times.karras(ZERO_TERMINAL, 4, start=1.0), "infinite at start=1.0; start at 0.999 or lower"),
        (lambda: times.karras(VP, 4, rho=0.0), "rho must be positive and finite, got 0.0"),
        (lambda: times.polyexponential(VP, 4, rho=-1.0), "rho must be positive and finite, got -1.0"),
        (lambda: times.trailing(LINEAR, 1001), r"steps=1001 exceeds the 1000 entries of DiscreteBetas\(1000"),
        (lambda: times.leading(LINEAR, 1000, offset=1), "indices 1000 to 1 leave the table .* lower steps or offset"),
        (lambda: times.leading(LINEAR, 10, offset=-1), "indices 899 to -1 leave the table"),
        (lambda: times.leading(LINEAR, 10, zero=False), "offset=1 or drop_last=True"),
        (
            lambda: times.ays(SD, 10, table=times.SVD),
            "starts at sigma/alpha = 700, but .* ends at 14.6146; choose another",
        ),
        (lambda: times.ays(VE, 10, table=(1.0, 2.0)), r"strictly decreasing positive levels, got \(1.0, 2.0\)"),
        (lambda: times.ays(VE, 10, table=(1.0, 0.0)), r"strictly decreasing positive levels, got \(1.0, 0.0\)"),
        (lambda: times.shift(times.uniform(VE, 4), 3.0), "factor=3.0 moves t=80 to 240, beyond t_max=80.0"),
        (lambda: times.shift(times.uniform(FLOW, 4), 0.0), "factor must be positive and finite, got 0.0"),
        (lambda: times.custom(VP, 10), "got shape .*times.uniform"),  # type: ignore[arg-type]
        (lambda: times.dynamic_shift(0), "tokens must be a whole number of at least 1, got 0"),
    ],
)
def test_impossible_grids_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@every_builder
def test_a_class_is_no_process(build):
    with pytest.raises(TypeError, match=r"is a class; .*VariancePreserving\(\)"):
        build(VariancePreserving, 4)


@every_builder
def test_fractional_steps_are_refused(build):
    with pytest.raises(TypeError, match=r"steps must be a whole number, got 2\.5"):
        build(VP, 2.5)


@every_spacing
def test_index_spacings_need_a_beta_table(build):
    with pytest.raises(TypeError, match=r"exist on DiscreteBetas only, got VariancePreserving.*use uniform"):
        build(VP, 10)
