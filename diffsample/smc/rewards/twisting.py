"""Twisted proposals and the one weight that they all share.

A twist psi_t(x) > 0 guesses how good a state will turn out. The proposal is the sampler's own kernel p with a shifted
mean, K; the weight of a row is

    log w = log p(x'|x) - log K(x'|x) + log psi'(x') - log psi(x),        psi of the result = the true weight,

exact for any twist, any shift and any number of steps. psi = 1 until the end is importance sampling, K = p is FK
steering by differences, a shift by the gradient is TDS and DAS, half of it the reward part of Feynman-Kac correctors.
The shift happens to x0, by (sigma^2 / alpha) grad log psi, so a twist is a denoiser and any one-register table moves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.process import Level, Process
from diffsample.sampler import Kernel, Sampler, View
from diffsample.smc.functions import as_pytree
from diffsample.smc.potentials import Closing, Potential, Transition
from diffsample.smc.products.master import total
from diffsample.smc.rewards.twists import Look, full
from diffsample.struct import pytree
from diffsample.tableau import is_concrete


class Twist(NamedTuple):
    """Memory of a twisted denoiser."""

    log_psi: Array  # [B]
    shift: Array | None  # [B, ...] of x0, None where nothing is shifted
    inner: PyTree


@pytree
class Twisted(Denoiser):
    """x0 + guide (sigma^2 / alpha) grad log psi; see `twisted`."""

    denoiser: Denoiser
    log_twist: Any
    strength: Any
    guide: Any = None

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """One through the guided denoiser where there is guidance."""
        return self.denoiser.vjps + (0 if self.guide is None else self.denoiser.evaluations)

    @property
    def coupled(self) -> bool:
        return self.denoiser.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        self.denoiser.check(process, levels)

    def init(self, x: Array) -> Twist:
        shift = None if self.guide is None else jnp.zeros_like(x)
        return Twist(jnp.zeros(x.shape[:1], x.dtype), shift, self.denoiser.init(x))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Twist) -> tuple[Prediction, Twist]:
        now, coming = (jnp.asarray(self.strength(at.index + i), x.dtype) for i in (0, 1))

        def value(x: Array) -> tuple[Array, tuple[Array, Prediction, PyTree]]:
            def predict(x: Array) -> tuple[Array, tuple[Prediction, PyTree]]:
                prediction, inner = self.denoiser(x, at, cond, state.inner)
                return prediction.x0, (prediction, inner)

            x0, pull, kept = jax.vjp(predict, x, has_aux=True)
            log_psi = self.log_twist(Look(x0, at.now, lambda v: pull(v)[0], kept[1]), cond)
            if jnp.shape(log_psi) != x.shape[:1]:
                raise ValueError(
                    f"the log-twist has shape {jnp.shape(log_psi)}; it must be one a sample, {x.shape[:1]}"
                )
            return log_psi.sum(), (log_psi, *kept)

        if self.guide is None:
            _, (log_psi, prediction, inner) = value(x)
            return prediction, Twist(now * log_psi, None, inner)
        (_, (log_psi, prediction, inner)), gradient = _differentiated(value, x)
        # the closing move into clean data draws nothing, so that a shift there would have no density
        noisy = jnp.asarray(at.next.sigma, x.dtype) > 0
        size = jnp.where(noisy, jnp.asarray(self.guide, x.dtype) * coming, 0.0)
        alpha, sigma = expand(at.now.alpha, x), expand(at.now.sigma, x)
        shift = expand(size, x) * sigma**2 / alpha * gradient
        pair = Prediction(prediction.x0 + shift, prediction.eps - alpha / sigma * shift)
        return pair, Twist(now * log_psi, shift, inner)


@pytree
class TwistRatio(Potential):
    """The weight that all twisted proposals share; see `twist_ratio`."""

    log_final: Any  # (x, condition) -> [B]
    base: Any = None

    def check(self, sampler: Sampler) -> None:
        table = getattr(sampler, "tableau", None)
        if table is not None and is_concrete(table):
            silent = (np.asarray(sampler.steps.std) == 0) & (np.asarray(table.next.sigma) > 0)
            if silent.any() and getattr(getattr(sampler, "denoiser", None), "guide", None) is not None:
                raise ValueError(
                    f"{table.about.name} draws no noise in the move after call {int(np.argmax(silent))}, so that a "
                    f"shifted proposal has no density: use ddpm or ddim(eta > 0)"
                )
        if self.base is not None:
            self.base.check(sampler)

    def start(self, view: View) -> tuple[Array, PyTree]:
        log_g = _twist(view).log_psi
        if self.base is None:
            return log_g, ()
        base, memory = self.base.start(_plain(view))
        return log_g + base, memory

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        before, after, kernel = transition
        log_g = _twist(after).log_psi - _twist(before).log_psi + _kernel_ratio(before, after.x, kernel)
        if self.base is None:
            return log_g, memory
        inner = Transition(_plain(before), _plain(after), lambda: _unshifted(before, kernel()))
        base, memory = self.base(inner, memory)
        return log_g + base, memory

    def finish(self, closing: Closing, memory: PyTree) -> Array:
        before, x, kernel = closing
        log_g = self.log_final(x, before.cond) - _twist(before).log_psi + _kernel_ratio(before, x, kernel)
        if self.base is None:
            return log_g
        return log_g + self.base.finish(Closing(_plain(before), x, lambda: _unshifted(before, kernel())), memory)


def twisted(
    denoiser: Denoiser, log_twist: Callable[[Look, PyTree], Array], *, strength: Any = None, guide: Any = 1.0
) -> Twisted:
    """A denoiser pulled towards large psi: x0 + guide strength (sigma^2 / alpha) grad log psi, gradient through it.

    Under a table it shifts the mean of a move by (step variance) grad log psi; alone that is plain guidance, under
    `twist_ratio` an exact proposal. One call and one vector-Jacobian product a call; nothing is shifted in a move into
    sigma = 0.

    Args:
        denoiser: what proposes.
        log_twist: (look, condition) -> log psi [B]; `on_x0(reward)` for one that reads the prediction only. The
            prediction of a product of experts is no posterior mean: read its experts', look.memory.x0 [B, E, ...].
        strength: function of the step's number -> lambda, psi^lambda is the twist; the shift uses that of the next
            level. None: 1; `tempered(rate)`.
        guide: multiple of the shift, a leaf; None takes no gradient at all, for rewards that have none.

    Raises:
        ValueError: at trace time: a twist that is not one number a sample, or has no gradient where one is asked for.

    >>> import diffsample as ds
    >>> ds.smc.twisted(ds.exact.Gaussian(0.0, 1.0), ds.smc.on_x0(lambda x0, cond: x0)).vjps
    1
    """
    if not callable(log_twist):
        raise TypeError(f"log_twist must be a function (look, condition) -> [batch], got {log_twist!r}")
    return Twisted(denoiser, as_pytree(log_twist), as_pytree(full if strength is None else strength), guide)


def twist_ratio(log_final: Callable[[Array, PyTree], Array], *, base: Any = None) -> TwistRatio:
    """log p - log K + log psi' - log psi for a sampler that drives `twisted`; the true log-weight of x in the end.

    Args:
        log_final: (x, condition) -> log-weight [B] of the result: lambda r(x), or log p(y | x).
        base: potential of the untwisted sampler, for a twist around a product of experts: `corrector(target)`.

    Reference: Wu et al. 2023, arXiv 2306.17775, eq. 8.

    >>> twist_ratio(lambda x, cond: x).base is None
    True
    """
    return TwistRatio(as_pytree(log_final), base)


def _differentiated(value: Callable[[Array], Any], x: Array) -> Any:
    try:
        return jax.value_and_grad(value, has_aux=True)(x)
    except ValueError as error:
        if "callback" not in str(error).lower():
            raise
        raise ValueError("this twist needs a gradient, and its reward runs on the host, where there is none: give "
                         "guide=None, or use fk_difference or svdd") from error  # fmt: skip


def _twist(view: View) -> Twist:
    if not isinstance(view.memory, Twist):
        raise ValueError(f"twist_ratio reads the memory of a twisted denoiser, and found {type(view.memory).__name__}: "
                         f"drive the table by smc.twisted(...)")  # fmt: skip
    return view.memory


def _shift(view: View) -> Array:
    """Of the mean of the coming move."""
    shift = _twist(view).shift
    return jnp.zeros_like(view.x) if shift is None else expand(view.gain, view.x) * shift


def _kernel_ratio(before: View, x: Array, kernel: Callable[[], Kernel]) -> Array:
    """log p(x'|x) - log K(x'|x) as one product, which loses nothing in high dimension; 0 where nothing was drawn."""
    if _twist(before).shift is None:
        return jnp.zeros(x.shape[:1], x.dtype)
    law, moved = kernel(), _shift(before)
    std = expand(law.std, x)
    ratio = -total(moved * (x - law.mean + 0.5 * moved) / jnp.where(std > 0, std, 1.0) ** 2)
    return jnp.where(jnp.broadcast_to(std.reshape(-1), ratio.shape) > 0, ratio, 0.0)


def _unshifted(before: View, law: Kernel) -> Kernel:
    return law._replace(mean=law.mean - _shift(before))


def _plain(view: View) -> View:
    """The view of the untwisted denoiser."""
    twist, pair = _twist(view), view.prediction
    if twist.shift is not None:
        ratio = expand(view.level.alpha, view.x) / expand(view.level.sigma, view.x)
        pair = Prediction(pair.x0 - twist.shift, pair.eps + ratio * twist.shift)
    return view._replace(prediction=pair, memory=twist.inner)
