"""Time shift as released: each code's loop written out in NumPy, the base methods without shifts, what is refused."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.process import Level

BETAS = ds.DiscreteBetas.linear()
COSINE = ds.DiscreteBetas.cosine()
GRID = ds.times.trailing(BETAS, 6)
EVEN = ds.times.linspace(BETAS, 6)  # the grid of the ADM code
KEY = jax.random.key(0)
LAW = ds.exact.Mixture([0.4, 0.6], [-1.0, 0.8], [0.3, 0.2])
PNM = {"ddim": solvers.ddim, "spndm": solvers.spndm, "fpndm": solvers.fpndm}


def start(rows=3, size=12):
    return np.asarray(jax.random.normal(jax.random.key(1), (rows, size)))


def index(grid):
    return np.rint(grid.t * 1000 - 1).astype(int)


class Table:
    """abar by index, -1 is clean data, and what the codes do with it."""

    def __init__(self, process):
        self.process = process
        self.abar = process.alpha(process.time(np.arange(1000))) ** 2

    def __call__(self, k):
        """abar, also between two indices."""
        return np.float64(self.process.alpha((k + 1) / 1000)) ** 2

    def eps(self, x, k):
        a = self(k)
        return np.asarray(LAW.predict(jnp.asarray(x)[None], Level(None, np.sqrt(a), np.sqrt(1 - a))).eps)[0]

    def choose(self, x, center, half, values=None):
        near = np.arange(max(center - half, 0), min(center + half, 999) + 1)
        values = 1 - self.abar if values is None else values
        return near[np.argmin((x.var(ddof=1) - values[near]) ** 2)]

    def transfer(self, x, i, j, e):
        a, b = self(i), self(j)
        first = 1 / (np.sqrt(a) * (np.sqrt(a) + np.sqrt(b)))
        second = 1 / (np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b)))
        return x + (b - a) * (first * x - second * e)


def pnm_by_hand(x, method, window, cutoff):
    """pnm_solver.py: `sample`, and the branch of `denoising` that the method takes."""
    table, times, ets, ends = Table(BETAS), index(GRID), [], []
    for n, (i, j) in enumerate(pairwise(times)):
        end = table.choose(x, j, window // 2) if n and j > cutoff else j
        ends.append(end)
        if method == "ddim":
            e = table.eps(x, i)
        elif method == "spndm" and not ets:
            ets.append(table.eps(x, i))
            e = (ets[0] + table.eps(table.transfer(x, i, end, ets[0]), end)) / 2
        elif method == "spndm":
            ets = [ets[-1], table.eps(x, i)]
            e = 0.5 * (3 * ets[-1] - ets[-2])
        elif len(ets) < 3:
            middle, e1 = (i + end) / 2, table.eps(x, i)
            e2 = table.eps(table.transfer(x, i, middle, e1), middle)
            e3 = table.eps(table.transfer(x, i, middle, e2), middle)
            e4 = table.eps(table.transfer(x, i, end, e3), end)
            ets.append(e1)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            ets = [*ets, table.eps(x, i)][-4:]
            e = (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24
        x = table.transfer(x, i, end, e)
    return x, ends


@pytest.mark.parametrize("method", PNM)
def test_pnm_code_written_out(x64, method):
    x, sampler = start(), solvers.shifted_pnm_code(LAW, PNM[method](BETAS, GRID), window=41, cutoff=200)
    out = ds.sample(KEY, sampler, x=jnp.asarray(x))
    expected = [pnm_by_hand(row, method, 41, 200) for row in x]
    np.testing.assert_allclose(out, [found for found, _ in expected], rtol=1e-9, atol=1e-10)
    moves = np.array([ends for _, ends in expected]) - index(GRID)[1:]
    assert not moves[:, 0].any() and np.abs(moves[:, 1:]).max() > 10 and np.ptp(moves, axis=0).any()


def adm_by_hand(x, process, window, cutoff, values):
    """gaussian_diffusion.py: `ddim_sample` with eta = 0 and `get_next_time_window`."""
    table, times, ends = Table(process), index(EVEN), []
    before = np.append(1.0, table.abar[:-1])  # alphas_cumprod_prev_all
    for n, i in enumerate(times[:-1]):
        a, b, e = table.abar[i], table(times[n + 1]), table.eps(x, i)
        if n and i > cutoff:
            k = table.choose(x, i, window // 2, values(table.abar)) - 1000 // (len(times) - 2)
            b = before[k] if k >= 0 else 1.0
            ends.append(k - 1)
        x = np.sqrt(b) * (x - np.sqrt(1 - a) * e) / np.sqrt(a) + np.sqrt(1 - b) * e
    return x, ends


@pytest.mark.parametrize("process", [BETAS, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("flip", [True, False])
def test_adm_code_written_out(x64, process, flip):
    grid = ds.times.linspace(process, 6)
    sampler = solvers.shifted_adm_code(LAW, process, grid, window=81, cutoff=300, reversed_table=flip)
    x = start()
    expected = [adm_by_hand(row, process, 81, 300, lambda a: a[::-1] if flip else 1 - a) for row in x]
    np.testing.assert_allclose(
        ds.sample(KEY, sampler, x=jnp.asarray(x)), [found for found, _ in expected], rtol=1e-9, atol=1e-10
    )
    assert np.ptp([ends for _, ends in expected], axis=0).any()


def test_adm_code_ends_at_clean_data_below_the_table(x64):
    sampler = solvers.shifted_adm_code(LAW, BETAS, EVEN, window=0, cutoff=0)
    t = 1 / 1000 * np.maximum(index(EVEN)[1:5] - 200, 0)
    ends = np.asarray([sampler._target(state, step)[0] for state, step in states(sampler)])
    np.testing.assert_allclose(ends[1:5], t, atol=1e-12)
    assert t[3] == 0.0 and t[2] > 0 and index(EVEN)[4] == 200


def states(sampler):
    """The base's state after every row, and the row."""
    keys = jax.random.split(KEY, 1)
    state = sampler.init(keys, jnp.asarray(start(1)), None)
    for n in range(len(np.asarray(sampler.shifts))):
        row = jax.tree.map(lambda leaf, n=n: jnp.asarray(leaf)[n], sampler.steps)
        state = sampler.step(keys, state, row, None)
        yield state.inner, row


def dpm_by_hand(x, grid, window, cutoff):
    """dpm_solver_utils.py: `sample` with order 2, multistep, lower_order_final, solver_type dpm_solver, on eps."""
    table, times = Table(BETAS), index(grid)
    levels, outputs = [times[0]], [table.eps(x, times[0])]

    def half_logsnr(k):
        return 0.5 * np.log(table(k) / (1 - table(k)))

    for n, j in enumerate(times[1:]):
        last = n == len(times) - 2
        end = table.choose(outputs[-1], j, window // 2) if n and j > cutoff else j
        s, mean = levels[-1], outputs[-1]
        if n and not last:
            before, now, after = (half_logsnr(k) for k in (levels[-2], s, end))
            mean = mean + 0.5 * (after - now) / (now - before) * (outputs[-1] - outputs[-2])
        x = table.transfer(x, s, end, mean)
        levels.append(end)
        if not last:
            outputs.append(table.eps(x, end))
    return x, levels[:-1]


@pytest.mark.parametrize("zero", [True, False])
def test_dpm_code_written_out(x64, zero):
    grid, x = ds.times.trailing(BETAS, 6, zero=zero), start()
    sampler = solvers.shifted_dpm_code(LAW, BETAS, grid, window=31, cutoff=300)
    out, t = ds.sample(KEY, sampler, x=jnp.asarray(x), record=lambda v: v.level.t)
    for i, row in enumerate(x):
        expected, levels = dpm_by_hand(row, grid, 31, 300)
        np.testing.assert_array_equal(np.rint(np.asarray(t)[:, i] * 1000 - 1), levels)
        np.testing.assert_allclose(out[i], expected, rtol=1e-9, atol=1e-10)
    shift = np.rint(np.asarray(t) * 1000 - 1) - index(grid)[:-1, None]
    assert np.ptp(shift[2:4]) > 0 and not shift[:2].any()


def deis_by_hand(x, tableau, window, cutoff):
    """deis_sampler.py: `apply_time_shift` before every call; the update is the table's, on eps."""
    table, past, asked = Table(BETAS), np.zeros((tableau.slots, len(x))), []
    for n in range(tableau.rows):
        x = tableau.A[n, 0, 0] * x + tableau.B[n, 0] @ past
        i = int(np.rint(tableau.now.t[n] * 1000 - 1))
        asked.append(table.choose(x, i, window) if i > cutoff else i)
        past[tableau.slot[n]] = table.eps(x, asked[-1])
    return tableau.A[-1, 0, 0] * x + tableau.B[-1, 0] @ past, asked


@pytest.mark.parametrize("method", [solvers.deis_t, solvers.ipndm])
def test_deis_code_written_out(x64, method):
    tableau, x = method(BETAS, GRID, order=3), start()
    sampler = solvers.shifted_deis_code(LAW, tableau, window=20, cutoff=300)
    np.testing.assert_array_equal(tableau.store, np.tile([0.0, 1.0], (6, 1)))
    expected = [deis_by_hand(row, tableau, 20, 300) for row in x]
    np.testing.assert_allclose(
        ds.sample(KEY, sampler, x=jnp.asarray(x)), [found for found, _ in expected], rtol=1e-9, atol=1e-10
    )
    assert np.ptp([asked for _, asked in expected], axis=0).any()


def test_deis_code_on_a_table_of_x0_is_that_on_eps(x64):
    """ddim remembers x0, plms of order 1 eps: one method, so the shifted query must be told apart from its level."""
    x = jnp.asarray(start())
    out = [
        ds.sample(KEY, solvers.shifted_deis_code(LAW, table, window=30, cutoff=100), x=x)
        for table in (solvers.ddim(BETAS, GRID), solvers.plms(BETAS, GRID, order=1))
    ]
    np.testing.assert_allclose(out[0], out[1], rtol=1e-9, atol=1e-10)
    plain = ds.sample(KEY, solvers.linear(LAW, solvers.ddim(BETAS, GRID)), x=x)
    assert np.abs(out[0] - plain).max() > 1e-3


BASES = {**PNM, "ddpm": solvers.ddpm, "adm": lambda p, g: solvers.ddim(p, g, eta=0.5), "dpm": solvers.dpm_multistep,
         "deis": solvers.deis_t}  # fmt: skip


def shifted(name, **options):
    if name == "adm":
        return solvers.shifted_adm_code(LAW, BETAS, GRID, eta=0.5, **options)
    if name == "dpm":
        return solvers.shifted_dpm_code(LAW, BETAS, GRID, **options)
    make = solvers.shifted_deis_code if name == "deis" else solvers.shifted_pnm_code
    return make(LAW, BASES[name](BETAS, GRID), **options)


@pytest.mark.parametrize("name", BASES)
def test_no_window_or_a_high_cutoff_is_the_base_method(x64, name):
    table, x = BASES[name](BETAS, GRID), jnp.asarray(start(2, 5))

    def seen(view):
        return view.x, jnp.broadcast_to(view.gain, 2), jnp.broadcast_to(view.std, 2)

    expected, path = ds.sample(KEY, solvers.linear(LAW, table), x=x, record=seen)
    for window, cutoff in ((0, 0), (50, 1000)):
        out, found = ds.sample(KEY, shifted(name, window=window, cutoff=cutoff), x=x, record=seen)
        if name == "adm" and window == 0:  # its targets are a stride and one index away, whatever the window
            assert np.abs(out - expected).max() > 1e-3
            continue
        np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found[0], path[0], rtol=1e-10, atol=1e-10)
        if table.registers == 1:
            np.testing.assert_allclose(found[1:], path[1:], rtol=1e-10, atol=1e-10)


def test_gain_is_that_of_the_shifted_move(x64):
    """At fixed x and history, raising x0 by d and eps with it moves the next x by gain * d."""
    sampler = solvers.shifted_pnm_code(LAW, solvers.ddim(BETAS, GRID), window=101, cutoff=0)
    paths = ds.sample(KEY, sampler, x=jnp.asarray(start()), record=lambda v: (v.x, v.x0, v.std, v.gain))[1]
    x, x0, std, gain = (np.asarray(leaf) for leaf in paths)
    keep = (x[1:] - gain[:-1, :, None] * x0[:-1]) / x[:-1]  # a DDIM step is gain x0 + keep x
    np.testing.assert_allclose(keep, np.broadcast_to(keep[..., :1], keep.shape), rtol=1e-8)
    assert not std.any()


def test_a_sample_does_not_depend_on_its_batch_and_dtype_is_kept():
    sampler = solvers.shifted_dpm_code(LAW, BETAS, GRID, window=40, cutoff=0)
    whole = ds.sample(KEY, sampler, (5, 7))
    np.testing.assert_allclose(ds.sample(KEY, sampler, (2, 7), first=2), whole[2:4], rtol=1e-4, atol=1e-5)
    assert ds.sample(KEY, sampler, (2, 7), dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_what_they_refuse():
    ddim, vp = solvers.ddim(BETAS, GRID), ds.VariancePreserving()
    with pytest.raises(ValueError, match="window=-1"):
        solvers.shifted_pnm_code(LAW, ddim, window=-1, cutoff=0)
    with pytest.raises(ValueError, match="window=-2"):
        solvers.shifted_deis_code(LAW, ddim, window=-2, cutoff=0)
    with pytest.raises(TypeError, match="DiscreteBetas"):
        solvers.shifted_deis_code(LAW, solvers.ddim(vp, [1.0, 0.5, 0.1]), window=4, cutoff=0)
    with pytest.raises(ValueError, match="table times"):
        solvers.shifted_deis_code(LAW, solvers.deis_t(BETAS, ds.times.uniform(BETAS, 7)), window=4, cutoff=0)
    with pytest.raises(ValueError, match="two calls"):
        solvers.shifted_adm_code(LAW, BETAS, [1.0, 0.0], window=4, cutoff=0)
    with pytest.raises(ValueError, match="two numbers"):
        ds.sample(KEY, solvers.shifted_pnm_code(LAW, ddim, window=4, cutoff=0), (4,))
