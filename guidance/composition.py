"""Putting rules together: one after the other, and one in an interval of noise levels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.process import Level, Process
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

SLACK = 1 + 1e-6  # a level that equals an edge up to float32 rounding lies on it


class DuringState(NamedTuple):
    guided: PyTree
    plain: PyTree
    inside: Array | None  # [B] bool, whether the present step is inside; None where each call looks for itself


@pytree
class During(Denoiser):
    """One denoiser inside an interval of noise levels and another outside; see `during`."""

    guided: Denoiser
    plain: Denoiser
    low: Any
    high: Any
    whole_steps: bool = static(default=False)

    @property
    def evaluations(self) -> int:
        """Both: what a call costs where samples differ in level. `Linear.nfe` counts what its table really calls."""
        return self.guided.evaluations + self.plain.evaluations

    @property
    def vjps(self) -> int:
        return self.guided.vjps + self.plain.vjps

    @property
    def coupled(self) -> bool:
        return self.guided.coupled and self.plain.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        self.guided.check(process, levels)
        self.plain.check(process, levels)

    def branch_at(self, level: Level, began: Level) -> Denoiser:
        """The one that is called, on the host (`diffsample.counting`)."""
        return self.guided if bool(self._inside(began if self.whole_steps else level, np)) else self.plain

    def init(self, x: Array) -> DuringState:
        inside = jnp.zeros(x.shape[:1], bool) if self.whole_steps else None
        return DuringState(self.guided.init(x), self.plain.init(x), inside)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: DuringState) -> tuple[Prediction, DuringState]:
        inside = self._inside(at.now, jnp)
        if state.inside is not None:
            begun = state.inside if jnp.ndim(inside) else state.inside[0]
            inside = jnp.where(at.stage == 0, inside, begun)
            state = state._replace(inside=jnp.broadcast_to(inside, x.shape[:1]))

        def guide() -> tuple[Prediction, DuringState]:
            prediction, memory = self.guided(x, at, cond, state.guided)
            return prediction, state._replace(guided=memory)

        def leave() -> tuple[Prediction, DuringState]:
            prediction, memory = self.plain(x, at, cond, state.plain)
            return prediction, state._replace(plain=memory)

        if not jnp.ndim(inside):
            return jax.lax.cond(inside, guide, leave)
        return jax.tree.map(lambda a, b: jnp.where(_expand_mask(inside, a), a, b), guide(), leave())

    def _inside(self, level: Level, xp: Any) -> Any:
        with np.errstate(divide="ignore"):
            rho = xp.asarray(level.sigma) / xp.asarray(level.alpha)
        return xp.logical_and(xp.asarray(self.low) * SLACK < rho, rho <= xp.asarray(self.high) * SLACK)


def during(guided: Denoiser, plain: Denoiser, low: Any, high: Any, *, whole_steps: bool = False) -> During:
    """Guidance in an interval: `guided` where low < sigma / alpha <= high, `plain` elsewhere.

    Only the one that is asked is called: outside the interval CFG makes no unconditional call, and `Linear.nfe` counts
    so. Where samples differ in level (Time-Shift), under `vmap` and in adaptive solvers both are computed and one is
    chosen. Each memory advances only where its denoiser is called.

    Args:
        guided: inside; for example `cfg(network, ...)`.
        plain: outside; for example the network.
        low, high: noise over signal, numbers or [B]; a level within 1e-6 of an edge lies on it.
        whole_steps: all calls of a step (Heun makes two) follow the level of its first, as in the released code;
            False asks at every call, which keeps the denoiser a function of x and the level.

    Raises:
        ValueError: an empty or negative interval.

    Reference: Kynkaanniemi et al. 2024, arXiv 2404.07724.

    >>> import diffsample as ds
    >>> law = ds.exact.Gaussian(0.0, 1.0)
    >>> some = during(ds.guidance.cfg(law, 0, 2.0), law, low=0.19, high=1.61)
    >>> ds.solvers.linear(some, ds.solvers.ddim(ds.VarianceExploding(), [80.0, 1.0, 0.1, 0.0])).nfe
    4
    """
    if is_concrete((low, high)) and not np.all((np.asarray(low) >= 0) & (np.asarray(low) < np.asarray(high))):
        raise ValueError(f"during needs 0 <= low < high in units of sigma / alpha, got low={low}, high={high}")
    return During(guided, plain, low, high, whole_steps)


def chain(denoiser: Denoiser, *rules: Callable[[Denoiser], Denoiser]) -> Denoiser:
    """Rules put around a denoiser, the first next to it: chain(d, f, g) = g(f(d)); chain(d) = d.

    Args:
        denoiser: the innermost.
        rules: functions from a denoiser to a denoiser, for example `partial(cfg, null=10, scale=2.0)`.

    Raises:
        TypeError: a rule gave something that is not a denoiser.

    >>> import diffsample as ds
    >>> from functools import partial
    >>> law, twice = ds.exact.Gaussian(0.0, 1.0), partial(ds.guidance.cfg, null=0, scale=2.0)
    >>> chain(law, twice, ds.guidance.clip).evaluations, chain(law) is law
    (2, True)
    """
    for rule in rules:
        denoiser = rule(denoiser)
        if not callable(denoiser) or not hasattr(denoiser, "init"):
            raise TypeError(f"chain: {rule!r} returned a {type(denoiser).__name__}, not a denoiser")
    return denoiser


def _expand_mask(mask: Array, leaf: Array) -> Array:
    """A mask [B] shaped to broadcast against a leaf [B, ...]."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
