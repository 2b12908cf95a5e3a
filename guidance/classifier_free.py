"""Classifier-free guidance: one network, with and without its condition, extrapolated."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.guidance.branches import Branches, TwoBranches, both, evaluate, null_like
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


@pytree
class ClassifierFree(TwoBranches):
    """D_c + (scale - 1)(D_c - D_u); see `cfg`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    batched: bool = static(default=True)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        (c, u), state = both(self.denoiser, x, at, cond, self.null, state, self.batched)
        extra = value_at(self.scale, at.now, x) - 1
        return jax.tree.map(lambda c, u: c + extra * (c - u), c, u), state


@pytree
class CFGPlusPlus(TwoBranches):
    """x0 between the branches, eps of the unconditional one; see `cfg_pp`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    batched: bool = static(default=True)

    @property
    def coupled(self) -> bool:
        """Never: the state follows the pair."""
        return False

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        (c, u), state = both(self.denoiser, x, at, cond, self.null, state, self.batched)
        return Prediction(u.x0 + value_at(self.scale, at.now, x) * (c.x0 - u.x0), u.eps), state


@pytree
class Composable(Wrapper):
    """The condition and any number of others, each with a weight; see `composable`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    conditions: tuple[PyTree, ...]
    weights: tuple[Any, ...]
    batched: bool = static(default=True)

    @property
    def evaluations(self) -> int:
        """One for the sample's condition, one for none, one for each other condition."""
        return (2 + len(self.conditions)) * self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        return (2 + len(self.conditions)) * self.denoiser.vjps

    def init(self, x: Array) -> tuple[PyTree, ...]:
        return tuple(self.denoiser.init(x) for _ in range(2 + len(self.conditions)))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        blank = [null_like(other, cond) for other in (self.null, *self.conditions)]
        (c, u, *others), states = evaluate(self.denoiser, x, at, (cond, *blank), state, self.batched)
        total = _step(c, c, u, value_at(self.scale, at.now, x) - 1)
        for other, weight in zip(others, self.weights, strict=True):
            total = _step(total, other, u, value_at(weight, at.now, x))
        return total, tuple(states)


def cfg(denoiser: Denoiser, null: PyTree, scale: Any, *, batched: bool = True) -> ClassifierFree:
    """CFG, classifier-free guidance: D_c + (scale - 1)(D_c - D_u).

    Two network evaluations a call. scale = 1 is the conditional model, bit for bit; the same in x0, eps, v or velocity.
    It does not sample the tilted law p_c^scale p_u^(1 - scale).

    Args:
        denoiser: what is guided.
        null: the unconditional (or negative) condition: a pytree like the condition, broadcast to its shapes.
        scale: guidance scale in the Imagen convention (1 = conditional, 0 = unconditional), a number, [B]
            or a schedule (as all numbers of guidance rules; `piecewise_linear`, `piecewise_constant`).
        batched: one network call of twice the batch; False makes two calls, with half the memory.

    Reference: Ho & Salimans 2022, arXiv 2207.12598, eq. 6, whose w is scale - 1.

    >>> import diffsample as ds
    >>> ds.guidance.cfg(ds.exact.Gaussian(0.0, 1.0), null=10, scale=2.0).evaluations
    2
    """
    return ClassifierFree(denoiser, null, scheduled(scale), batched)


def cfg_pp(denoiser: Denoiser, null: PyTree, scale: Any = 0.6, *, batched: bool = True) -> CFGPlusPlus:
    """CFG++: x0 = D_u + scale (D_c - D_u), with the noise that the unconditional model predicts.

    Two network evaluations a call. The move is alpha_s x0 + sigma_s eps_u: under a one-step solver it is CFG of scale
    `scale` rho_t / (rho_t - rho_s), rho = sigma / alpha. Under a multistep solver the first-order part is this, and the
    history holds guided x0, or eps_u where the table keeps eps (the released DPM++ 2M keeps the unconditional x0).

    Args:
        denoiser, null, batched: as for `cfg`.
        scale: 0 unconditional, 1 conditional x0; between, as published.

    Reference: Chung et al. 2024, arXiv 2406.08070.

    >>> import diffsample as ds
    >>> ds.guidance.cfg_pp(ds.exact.Gaussian(0.0, 1.0), null=10).coupled
    False
    """
    return CFGPlusPlus(denoiser, null, scheduled(scale), batched)


def composable(
    denoiser: Denoiser,
    null: PyTree,
    scale: Any,
    conditions: Sequence[PyTree],
    weights: Sequence[Any],
    *,
    batched: bool = True,
) -> Composable:
    """Composable conditions: D_u + scale (D_c - D_u) + sum_i weights[i] (D_i - D_u).

    2 + n network evaluations a call for n further conditions. A negative weight steers away from its condition (a
    negative prompt apart from the unconditional branch); no further condition is `cfg`.

    Args:
        denoiser, null, scale, batched: as for `cfg`; batched makes one call of 2 + n times the batch.
        conditions: n pytrees like the condition, broadcast to its shapes.
        weights: n numbers, [B] or schedules.

    Raises:
        ValueError: another number of weights than of conditions.

    Reference: Liu et al. 2022, arXiv 2206.01714.

    >>> import diffsample as ds
    >>> composable(ds.exact.Gaussian(0.0, 1.0), 10, 2.0, conditions=[3, 4], weights=[1.5, -1.0]).evaluations
    4
    """
    if len(conditions) != len(weights):
        raise ValueError(f"composable got {len(conditions)} conditions and {len(weights)} weights")
    return Composable(denoiser, null, scheduled(scale), tuple(conditions), tuple(map(scheduled, weights)), batched)


def _step(base: Prediction, to: Prediction, start: Prediction, weight: Array) -> Prediction:
    """base + weight (to - start), of both x0 and eps."""
    return jax.tree.map(lambda base, to, start: base + weight * (to - start), base, to, start)
