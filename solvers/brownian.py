"""One Brownian path for every step count: the draws of a table as increments of a path that does not know the grid.

The path W runs on the clock (alpha / sigma)^2, on which ancestral sampling is dy = E[x0|y] dtau + dW, y = alpha x /
sigma^2. A row's draw is the increment of W over the noise levels that the row crosses, divided by its standard
deviation. W is refined by bridges on one dyadic tree over half log-SNR. In normalised increments a bridge is a
rotation: a cell with the normal e, cut where its clock has the share rho, has the parts

    left = sqrt(rho) e + sqrt(1 - rho) z        right = sqrt(1 - rho) e - sqrt(rho) z

with z the draw that belongs to the cell, so the draws of a run are exactly standard normal and independent. Cells are
halved at their middle while they hold more than `FEW` ends of rows, then at the ends themselves, at about 4/3 draws a
row. The host lays out these cuts; the scan runs them on a stack of open cells.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.process import Process
from diffsample.sampler import fold, normal
from diffsample.struct import pytree, static
from diffsample.tableau import Tableau, is_concrete

PATH_STREAM = 2**32 - 3  # a row number that no table has
FEW = 3  # ends of rows in a cell from which it is cut at them: more draws for more exact agreement between step counts
DEPTH = 31  # a cell's number 2^depth + index is one 32-bit word
NEAR = 1e-9  # of a cell: an end this close to the middle is the middle


class Cut(NamedTuple):
    """One operation on the open cells, of which `Walk.head` is the first; arrays of m in a plan."""

    cell: Any  # number of the cell that is cut in two, whose draw is used; 0 cuts nothing
    keep: Any  # sqrt(rho); 1 where nothing is cut
    mix: Any  # sqrt(1 - rho)
    share: Any  # weight of the left part in the row's draw; 0 where it is cut further or lies between no rows
    push: Any  # slot that receives the right part
    pop: Any  # slot of the cell that follows the left part
    done: Any  # whether the left part is not cut further


class Span(NamedTuple):
    """The operations that make one row's draw."""

    first: Any
    last: Any
    fresh: Any  # number of a draw beside the path, from 1, on rows that make no progress; 0 on the others


class Walk(NamedTuple):
    """A sample's place on its path: the normalised increments of the open cells."""

    keys: Array  # [B]
    head: Array  # [B, size] of the first cell
    rest: Array  # [B, depth, size] of the others, the last one first


@pytree
class BrownianPath:
    """A table's draws laid out on the path; made by `brownian_path`, run by the sampler."""

    cuts: Cut  # [m]
    spans: Span  # [n+1], the last of the closing update
    depth: int = static()
    strays: bool = static()  # whether some rows draw beside the path

    def init(self, keys: Array, x: Array) -> Walk:
        """The whole path as one open cell; keys are those of the samples."""
        keys, size = fold(keys, PATH_STREAM), max(1, math.prod(x.shape[1:]))
        root = normal(fold(keys, 0), (len(x), size), x.dtype)
        return Walk(keys, root, jnp.zeros((len(x), self.depth, size), x.dtype))

    def draw(self, walk: Walk, span: Span, shape: tuple[int, ...]) -> tuple[Array, Walk]:
        """(z, the walk after it): z [B, ...] is standard normal; zero on rows that draw nothing."""
        keys, dtype, zero = walk.keys, walk.head.dtype, jnp.zeros_like(walk.head)
        cuts, head, rest = jax.tree.map(jax.lax.stop_gradient, (self.cuts, walk.head, walk.rest))

        def z_of(cell: Array) -> Array:
            return normal(fold(keys, cell), zero.shape, dtype)

        def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            z, head, rest = carry
            cut = jax.tree.map(lambda leaf: leaf[i], cuts)
            keep, mix, share = (jnp.asarray(v, dtype) for v in (cut.keep, cut.mix, cut.share))
            new = jax.lax.cond(cut.cell > 0, z_of, lambda _: zero, cut.cell)
            left, right = keep * head + mix * new, mix * head - keep * new
            rest = jax.lax.dynamic_update_index_in_dim(rest, right, cut.push, 1)
            following = jax.lax.dynamic_index_in_dim(rest, cut.pop, 1, keepdims=False)
            return z + share * left, jnp.where(cut.done, following, left), rest

        def beside(_: Array) -> Array:
            return normal(fold(fold(keys, PATH_STREAM), span.fresh), zero.shape, dtype)

        start = jax.lax.cond(span.fresh > 0, beside, lambda _: zero, span.fresh) if self.strays else zero
        z, head, rest = jax.lax.fori_loop(span.first, span.last, body, (start, head, rest))
        return z.reshape(shape), Walk(keys, head, rest)


def brownian_path(tableau: Tableau, start: float | None = None, stop: float | None = None) -> BrownianPath:
    """The same Brownian path at every step count: `linear(denoiser, tableau, path=brownian_path(tableau))`.

    Runs with one key, at any number of steps, on any grid, by any stochastic method see one path of the noise, as far
    as they resolve it: their difference is that of the solvers, and shrinks as the grid refines. Every row's draw
    is still exactly standard normal and independent of the others. Grids that visit only dyadic points of the half
    log-SNR between start and stop (`times.uniform_logsnr(process, 2**k, zero=False)`) use exactly the same
    increments; others agree at the cells of the tree that hold more than three of their points.

    About 4/3 draws a row, and a stack of some ten states. Rows that make no progress towards the data (the way up of a
    restart, Langevin steps) take the first, second, ... draw of a stream of their own. Gradients do not flow into the
    path. Not for particle methods: copies of a sample would share their future noise.

    Args:
        tableau: any stochastic solver of concrete numbers, whose levels are known.
        start, stop: half log-SNR from and to which the tree is linear; they must be the same for all runs compared. By
            default those of t_start and t_min of the table's process. Levels outside are covered as well.

    Raises:
        ValueError: a table without noise, without a process where start or stop is left out, or traced.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 10))
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(1.0), table, path=ds.solvers.brownian_path(table))
    >>> ds.sample(jax.random.key(0), sampler, (2,)).tolist()
    [1.0, 1.0]
    """
    if not is_concrete(tableau) or np.ndim(tableau.index) != 1:
        raise ValueError("brownian_path plans on the host: give it one table of concrete numbers, outside jit and vmap")
    if tableau.noise == "never":
        raise ValueError(f"{tableau.about.name} draws no noise, so it has no path")
    start, stop = _ends(tableau.about.process, start, stop)
    ends, pieces, fresh = _progress(tableau)
    cuts, bounds, depth = _lay(ends, start, stop)
    spans = [Span(*(bounds[k] if k is not None else (0, 0)), f) for k, f in zip(pieces, fresh, strict=True)]
    room = max(len(cuts), 4 * (tableau.rows + 8))  # of one size for all grids of a length, so that they share programs
    cuts += [Cut(0, 1.0, 0.0, 0.0, 0, 0, False)] * (room - len(cuts))
    dtypes = Cut(np.uint32, np.float64, np.float64, np.float64, np.int32, np.int32, np.bool_)
    columns = Cut(*(np.array(column, dtype) for column, dtype in zip(zip(*cuts, strict=True), dtypes, strict=True)))
    rows = Span(*(np.array(column, np.int32) for column in zip(*spans, strict=True)))
    return jax.tree.map(jnp.asarray, BrownianPath(columns, rows, -(-max(depth, 8) // 4) * 4, any(fresh)))


def _ends(process: Process | None, start: float | None, stop: float | None) -> tuple[float, float]:
    if process is None and (start is None or stop is None):
        raise ValueError("a table that names no process needs start and stop, the half log-SNR that the path spans")
    start = float(process.half_logsnr(process.t_start)) if start is None and process else start
    stop = float(process.half_logsnr(process.t_min)) if stop is None and process else stop
    if start is None or stop is None or not -math.inf < start < stop < math.inf:
        raise ValueError(f"brownian_path needs finite start < stop in half log-SNR, got {start=}, {stop=}")
    return start, stop


def _progress(tableau: Tableau) -> tuple[list[float], list[int | None], list[int]]:
    """Half log-SNRs e_0 < e_1 < ..., and for each of n+1 rows the interval that it draws over, or its fresh draw."""
    with np.errstate(divide="ignore"):
        now, to = (np.log(np.asarray(v.alpha)) - np.log(np.asarray(v.sigma)) for v in (tableau.now, tableau.next))
    drawing = (np.asarray(tableau.c) != 0).any(axis=1)
    ends, pieces, fresh, extra = [float(now[0])], [], [], 0
    for reached, draws in zip([*now, to[-1]], drawing, strict=True):
        onward = bool(draws) and reached > ends[-1]
        extra += bool(draws) and not onward
        pieces.append(len(ends) - 1 if onward else None)
        fresh.append(extra if draws and not onward else 0)
        if onward:
            ends.append(float(reached))
    return ends, pieces, fresh


class _Step(NamedTuple):
    """A cell of the tree, met in the order of the path: cut at `at`, or a leaf where `at` is None."""

    number: int
    low: float
    at: float | None
    high: float
    top: int  # number of open cells after it


def _lay(ends: list[float], start: float, stop: float) -> tuple[list[Cut], list[tuple[int, int]], int]:
    """Cuts in the order of the path, the range of them that every interval between two ends uses, and the depth."""
    places = [_place(end, start, stop) for end in ends]
    if any(low >= high for low, high in itertools.pairwise(places)):
        raise ValueError(f"levels at half log-SNR {ends} lie too close, or too far beyond the path's {start=}, {stop=}")
    clock = {0.0: 0.0, 1.0: math.inf} | {p: _clock(end) for p, end in zip(places, ends, strict=True)}

    def tau(place: float) -> float:
        return clock[place] if place in clock else _clock(_half_logsnr(place, start, stop))

    cuts: list[Cut] = []
    bounds, first, deepest, reached, joins = [], 0, 1, -1, False
    for cell in _in_order(1, 0.0, 1.0, [p for p in places if 0 < p < 1], 0):
        reached += reached + 1 < len(places) and cell.low == places[reached + 1] and cell.at is None
        if reached == len(places) - 1:
            break
        if cell.at is not None:
            rho = _share(tau(cell.low), tau(cell.at), tau(cell.high))
            cuts.append(Cut(cell.number, math.sqrt(rho), math.sqrt(1 - rho), 0.0, cell.top, cell.top, False))
            deepest, joins = max(deepest, cell.top + 1), True
            continue
        share = 0.0 if reached < 0 else _part(tau, cell, places[reached], places[reached + 1])
        if joins:  # the left part of the cut just made
            cuts[-1] = cuts[-1]._replace(share=share, done=True)
        else:
            deepest = max(deepest, cell.top + 1)  # its empty right part goes to a free slot
            cuts.append(Cut(0, 1.0, 0.0, share, cell.top, max(cell.top - 1, 0), True))
        joins = False
        if reached >= 0 and cell.high == places[reached + 1]:
            bounds.append((first, len(cuts)))
            first = len(cuts)
    return cuts, bounds, deepest


def _in_order(number: int, low: float, high: float, inside: list[float], top: int) -> Iterator[_Step]:
    """The cells of the tree that the ends inside ask for, each before its parts, left before right."""
    if not inside:
        yield _Step(number, low, None, high, top)
        return
    if number >= 2**DEPTH:
        raise ValueError(f"more than {FEW} levels lie within {high - low:g} of the path; use a coarser grid")
    middle = 0.5 * (low + high)
    at = min(inside, key=lambda place: abs(place - middle))
    if len(inside) > FEW and abs(at - middle) > NEAR * (high - low):
        at = middle
    yield _Step(number, low, at, high, top)
    yield from _in_order(2 * number, low, at, [p for p in inside if p < at], top + 1)
    yield from _in_order(2 * number + 1, at, high, [p for p in inside if p > at], top)


def _share(low: float, at: float, high: float) -> float:
    """(at - low) / (high - low), also where high is infinite."""
    return 0.0 if math.isinf(high) else (at - low) / (high - low)


def _part(tau: Callable[[float], float], cell: _Step, start: float, stop: float) -> float:
    """Weight of a leaf's normal in the normal of the interval that it is part of."""
    if math.isinf(tau(stop)):
        return float(math.isinf(tau(cell.high)))
    return math.sqrt((tau(cell.high) - tau(cell.low)) / (tau(stop) - tau(start)))


def _clock(half_logsnr: float) -> float:
    """(alpha / sigma)^2."""
    return math.exp(2 * half_logsnr)


def _place(half_logsnr: float, start: float, stop: float) -> float:
    """Where a level lies on the tree: start at 1/4, stop at 3/4, pure noise at 0, clean data at 1."""
    if half_logsnr < start:
        return 0.25 * math.exp(half_logsnr - start)
    if half_logsnr > stop:
        return 1 - 0.25 * math.exp(stop - half_logsnr)
    return 0.25 + 0.5 * (half_logsnr - start) / (stop - start)


def _half_logsnr(place: float, start: float, stop: float) -> float:
    """The inverse of `_place`."""
    if place < 0.25:
        return start + math.log(4 * place)
    if place > 0.75:
        return stop - math.log(4 * (1 - place))
    return start + (stop - start) * (place - 0.25) * 2
