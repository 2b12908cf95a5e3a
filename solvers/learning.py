"""Learning a schedule by gradient: its times and the relaxations of its derivatives, at the order that it declares.

A derivative k of an expansion of order q may be scaled by 1 + gamma h^(q - k) without loss of order, whatever gamma is,
and times may lie anywhere: so the order conditions hold by construction and the optimiser is not constrained. The q - 1
gammas of a step, on derivatives from the same outputs, reach every set of weights of sum 1 on these. The table is
traced, built by the code that builds it on the host, so that the gradient is that of the run itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import ArrayLike

from diffsample.denoiser import Denoiser, PyTree
from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.sampling import sample
from diffsample.solvers.decisions import Decisions, Derivative, Relaxation
from diffsample.solvers.expansion import DATA_KIND, NOISE_KIND, Kind, distance, relaxed
from diffsample.solvers.liveness import start_level
from diffsample.solvers.model_statistics import ModelStatistics
from diffsample.solvers.scheduled import assemble
from diffsample.solvers.tabular import linear
from diffsample.tableau import Tableau

Loss: TypeAlias = Callable[[Tableau, Array], Array]  # (table, key of the step) -> scalar, differentiable


class Parameters(NamedTuple):
    """What is learned; the numbers are free."""

    gaps: Any  # [N] log steps in half log-SNR, up to a common scale where the end is fixed; (): times stay
    gammas: Any  # [K] of the relaxations


class Learned(NamedTuple):
    """A learned schedule."""

    decisions: Decisions
    losses: np.ndarray  # [steps + 1] before each step, and of the last


def learn(
    key: Array,
    process: Process,
    decisions: Decisions,
    loss: Loss,
    *,
    steps: int = 300,
    optimiser: optax.GradientTransformation | None = None,
    times: bool = True,
    mean: ArrayLike | None = None,
    statistics: ModelStatistics | None = None,
) -> Learned:
    """Gradient descent from a schedule, on its inner times and on a gamma for every derivative.

    The declared order and the number of calls stay. The first time stays, and so does the last; before a last time of
    zero the others are free. The published relaxations become the linear ones that are equal on the schedule's times.
    All steps are one compiled program; the schedule with the lowest loss is returned.

    Args:
        key: split among the steps, for losses that draw.
        process, mean, statistics: as for `usf`.
        decisions: where to start, for example a fixed solver's or a search's best.
        loss: of a table and a key, for example `reference_loss(...)`.
        steps: of the optimiser.
        optimiser: None is Adam at 0.03, decayed to zero by a cosine.
        times: False keeps the times and learns the relaxations alone.

    Raises:
        ValueError: times to be learned of a schedule with "v3" predictions, whose statistics are tables on the host, or
            with infinite log-SNR at the start; nothing to learn; a loss that is not finite at the start.

    Reference: Tong et al. 2024, arXiv 2405.15506, learn times from an accurate run; relaxations are this library's.

    >>> import diffsample as ds
    >>> process, law = ds.VariancePreserving(), ds.exact.Mixture([0.5, 0.5], [-1.0, 1.0], 0.1)
    >>> start = ds.solvers.multistep_decisions(ds.times.uniform_logsnr(process, 4, stop=0.01, zero=False))
    >>> fine = ds.solvers.dpmpp(process, ds.times.uniform_logsnr(process, 50, stop=0.01, zero=False))
    >>> loss = reference_loss(law, fine, jnp.linspace(-2.0, 2.0, 9))
    >>> found = learn(jax.random.key(0), process, start, loss, steps=50)
    >>> bool(found.losses.min() < 0.5 * found.losses[0])
    True
    """
    grid = as_grid(process, decisions.times)
    decisions = linearised(process, decisions)
    parameters = initial(grid, decisions, times)
    if not sum(len(leaf) for leaf in parameters):
        raise ValueError("nothing to learn: times=False, and no step has a derivative to relax; use order 2 or higher")
    table = Traced(grid, decisions, mean, statistics)
    optimiser = optimiser or optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def descend(carry: tuple, key: Array) -> tuple[tuple, Array]:
        parameters, state, best, lowest = carry
        value, gradient = jax.value_and_grad(lambda p: loss(table(p), key))(parameters)
        better = value < lowest
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), parameters, best)
        updates, state = optimiser.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state, best, jnp.minimum(value, lowest)), value

    @jax.jit
    def run(parameters: Parameters, keys: Array) -> tuple[Parameters, Array]:
        first = (parameters, optimiser.init(parameters), parameters, jnp.inf)
        (_, _, best, _), losses = jax.lax.scan(descend, first, keys)
        return best, losses

    best, losses = run(jax.tree.map(jnp.asarray, parameters), jax.random.split(key, steps + 1))
    losses = np.asarray(losses)
    if not np.isfinite(losses[0]):
        raise ValueError(f"the loss is {losses[0]} at the start; run the schedule itself to see why")
    return Learned(table.settle(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), best)), losses)


def reference_loss(
    denoiser: Denoiser,
    reference: Tableau,
    x: Array,
    *,
    cond: PyTree = None,
    batch: int | None = None,
) -> Loss:
    """The mean square distance to where an accurate table takes the same initial states.

    Args:
        denoiser: both runs' model, guidance included.
        reference: a fine deterministic table with the schedule's first and last time; it is run once, here.
        x: [M, ...] initial states.
        cond: [M, ...] conditions, as for `sample`.
        batch: of states drawn at each step; None takes all.

    Returns: a loss for `learn`.

    Raises:
        ValueError: a reference that draws noise, or a batch larger than M.
    """
    if reference.noise != "never":
        raise ValueError(f"{reference.about.name} draws noise; the reference must be deterministic, for example dpmpp")
    if batch is not None and not 0 < batch <= len(x):
        raise ValueError(f"batch={batch} must be 1 to {len(x)}, the number of initial states")
    still = jax.random.key(0)  # deterministic runs ask for a key and draw nothing
    target = sample(still, linear(denoiser, reference), x=x, cond=cond)

    def loss(table: Tableau, key: Array) -> Array:
        start, goal, given = x, target, cond
        if batch is not None:
            rows = jax.random.choice(key, len(x), (batch,), replace=False)
            start, goal, given = jax.tree.map(lambda leaf: leaf[rows], (start, goal, given))
        reached = sample(still, linear(denoiser, table), x=start, cond=given, check=False)
        return jnp.mean(jnp.square(reached - goal).astype(jnp.promote_types(reached.dtype, jnp.float32)))

    return loss


@dataclasses.dataclass(frozen=True)
class Traced:
    """A schedule as a function of its parameters: traced to a table, or settled on the host.

    Args:
        grid: the times to start from.
        decisions: linearised.
        mean, statistics: as for `usf`.
    """

    grid: Grid
    decisions: Decisions
    mean: ArrayLike | None = None
    statistics: ModelStatistics | None = None

    def __call__(self, parameters: Parameters) -> Tableau:
        """The table, traced where the parameters are."""
        kinds: dict[str, Kind] = {"noise": NOISE_KIND, "data": DATA_KIND}
        if self.statistics is not None:
            kinds["v3"] = self.statistics
        gammas = dict(zip(places(self.decisions), parameters.gammas, strict=True))
        return assemble(self.grid, self.decisions, self.levels(parameters.gaps), kinds, self.mean, gammas)

    def levels(self, gaps: Any) -> list[Level]:
        """[N + 1] levels; those that are not learned are numbers."""
        levels = _levels(self.grid)
        if not len(gaps):
            return levels
        process = self.grid.process
        inner = process.level(process.t_from_half_logsnr(self._half_logsnr(jnp, gaps)))
        for i in range(1, len(levels) - 1):
            levels[i] = Level(*(field[i - 1] for field in inner))
        return levels

    def settle(self, parameters: Parameters) -> Decisions:
        """The schedule, in float64."""
        times = list(self.decisions.times)
        if len(parameters.gaps):
            times[1:-1] = map(float, self.grid.process.t_from_half_logsnr(self._half_logsnr(np, parameters.gaps)))
        return with_gammas(dataclasses.replace(self.decisions, times=tuple(times)), parameters.gammas)

    def _half_logsnr(self, xp: Any, gaps: Any) -> Any:
        """Of the inner levels: the shares of the whole way, or without a finite end the steps themselves."""
        start, end = (float(value) for value in self.grid.half_logsnr[[0, -1]])
        steps = xp.exp(gaps)
        scale = (end - start) / xp.sum(steps) if np.isfinite(end) else 1.0
        return start + xp.cumsum(scale * steps)[: self.decisions.steps - 1]


def initial(grid: Grid, decisions: Decisions, times: bool = True) -> Parameters:
    """The parameters of a schedule as it is."""
    if times and "v3" in decisions.predictions:
        raise ValueError("times of steps that expand 'v3' cannot be learned, since its statistics are tables on the "
                         "host; pass times=False, which learns the relaxations")  # fmt: skip
    if times and not np.isfinite(grid.half_logsnr[0]):
        raise ValueError(f"times can be learned from a start of finite log-SNR, got t = {grid.t[0]:g} where alpha = 0; "
                         f"start the schedule later, or pass times=False")  # fmt: skip
    gaps = np.diff(grid.half_logsnr)
    gaps = np.log(gaps[np.isfinite(gaps)]) if times and decisions.steps > 1 else np.zeros(0)
    return Parameters(gaps, np.array([_relaxation(decisions, *place).gamma for place in places(decisions)]))


def linearised(process: Process, decisions: Decisions) -> Decisions:
    """The same table with linear relaxations everywhere, of the highest power that the order allows, or lower as given.

    >>> from diffsample.process import VariancePreserving
    >>> plain = Decisions((1.0, 0.5, 0.1), (1, 2), ("data", "data"))
    >>> linearised(VariancePreserving(), plain).derivatives[1][0].relaxation
    Relaxation(kind='linear', gamma=0.0, power=1)
    """
    levels = _levels(as_grid(process, decisions.times))

    def linear_of(i: int, k: int, order: int, old: Relaxation | None) -> Relaxation:
        if old is None or old.kind == "linear":
            return old or Relaxation("linear", 0.0, order - k)
        h = distance(levels[start_level(decisions, i)], levels[i + 1])
        if not np.isfinite(h):
            return Relaxation("linear")
        z = -h if decisions.predictions[i] == "data" else h
        return Relaxation("linear", (relaxed(old, z, h) - 1) / h)

    derivatives = [
        [Derivative(d.points, linear_of(i, k, decisions.orders[i], d.relaxation)) for k, d in enumerate(step, 1)]
        for i, step in enumerate(decisions.derivatives)
    ]
    correctors = [
        linear_of(i, 1, order, decisions.corrector_relaxations[i]) if order else None
        for i, order in enumerate(decisions.corrector_orders)
    ]
    return dataclasses.replace(decisions, derivatives=tuple(derivatives), corrector_relaxations=tuple(correctors))


def places(decisions: Decisions) -> list[tuple[int, int]]:
    """(step, derivative) of every gamma; derivative 0 is a corrector's first."""
    predicted = [(i, k) for i, step in enumerate(decisions.derivatives) for k in range(1, len(step) + 1)]
    return predicted + [(i, 0) for i, kind in enumerate(decisions.correctors) if kind != "none"]


def with_gammas(decisions: Decisions, gammas: ArrayLike) -> Decisions:
    """Linearised decisions with other gammas, in the order of `places`."""
    new = {place: float(gamma) for place, gamma in zip(places(decisions), np.asarray(gammas), strict=True)}

    def relax(i: int, k: int) -> Relaxation:
        return dataclasses.replace(_relaxation(decisions, i, k), gamma=new[i, k])

    derivatives = [
        tuple(Derivative(d.points, relax(i, k)) for k, d in enumerate(step, 1))
        for i, step in enumerate(decisions.derivatives)
    ]
    correctors = [relax(i, 0) if kind != "none" else None for i, kind in enumerate(decisions.correctors)]
    return dataclasses.replace(decisions, derivatives=tuple(derivatives), corrector_relaxations=tuple(correctors))


def stretched(decisions: Decisions, times: Grid | ArrayLike) -> Decisions:
    """The decisions of a multistep schedule on a longer grid: what a certificate of its order repeats.

    Steps whose order rises at the start, and the last one, stay single; those between are repeated evenly.

    Args:
        decisions: all starts -1.
        times: [n + 1], n at least the schedule's steps.

    Raises:
        ValueError: a singlestep schedule, or a shorter grid.

    >>> stretched(Decisions((1.0, 0.5, 0.2, 0.1), (1, 2, 1), ("data",) * 3), [1.0, 0.8, 0.6, 0.4, 0.2, 0.1]).orders
    (1, 2, 2, 2, 1)
    """
    t = tuple(float(value) for value in np.asarray(times))
    n, count = len(t) - 1, decisions.steps
    if set(decisions.starts) != {-1} or n < count:
        raise ValueError(f"a multistep schedule stretches to as many steps or more, got starts {decisions.starts} and "
                         f"{n} steps from {count}")  # fmt: skip
    rises = next((i for i, order in enumerate(decisions.orders) if order != i + 1 or order == max(decisions.orders)), 0)
    middle = np.arange(rises, n - 1)
    share = (count - 1 - rises) / max(n - 1 - rises, 1)
    chosen = [*range(rises), *(rises + np.floor((middle - rises) * share)).astype(int).tolist(), count - 1]
    fields = (
        "orders",
        "predictions",
        "starts",
        "derivatives",
        "correctors",
        "corrector_orders",
        "corrector_relaxations",
    )
    return dataclasses.replace(
        decisions, times=t, **{name: tuple(getattr(decisions, name)[i] for i in chosen[:n]) for name in fields}
    )


def _relaxation(decisions: Decisions, i: int, k: int) -> Relaxation:
    found = decisions.derivatives[i][k - 1].relaxation if k else decisions.corrector_relaxations[i]
    assert found is not None, "decisions are linearised first"
    return found


def _levels(grid: Grid) -> list[Level]:
    return [Level(*map(float, level)) for level in zip(*grid.levels, strict=True)]
