"""Measurements y = A(x0) + sigma_y n: what an operator offers, how rules apply it to a batch, what is checked.

An operator maps one clean sample to one measurement; rules map it over the batch. Its adjoint is its own VJP.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.guidance.schedules import ONE_A_SAMPLE, value_at
from diffsample.process import Level, Process
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete
from diffsample.wrapping import Wrapper

Operator: TypeAlias = Callable[[Array], Array]  # one sample [...] -> one measurement [...], real, of any shape


@runtime_checkable
class Invertible(Protocol):
    """A linear operator with a pseudo-inverse A+."""

    def __call__(self, x0: Array) -> Array: ...

    def pinv(self, y: Array) -> Array:
        """A+ y, shaped like one sample."""
        ...


@runtime_checkable
class Spectral(Invertible, Protocol):
    """A linear operator with its singular value decomposition A = U diag(s) V'.

    Axes may be laid out in any shape and be complex (a Fourier basis), as long as `from_axes` inverts `to_axes` and
    both keep norms.
    """

    shape: tuple[int, ...]  # of one sample

    @property
    def singular_values(self) -> Any:
        """s, of the rank of the axes; exactly 0 along axes that are not measured."""
        ...

    def to_axes(self, x0: Array) -> Array:
        """V' x0."""
        ...

    def from_axes(self, c: Array) -> Array:
        """V c."""
        ...

    def measured(self, y: Array) -> Array:
        """U' y, laid out like V' x0 and 0 along axes that are not measured."""
        ...

    def pinv(self, y: Array) -> Array:
        """V diag(1/s) U' y over the measured axes."""
        s = jnp.asarray(self.singular_values, y.dtype)
        return self.from_axes(jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1), 0) * self.measured(y))


@pytree
class Function:
    """A plain function as an operator; what it closes over is a constant of the program."""

    apply: Callable[..., Array] = static()

    def __call__(self, *arrays: Any) -> Array:
        return self.apply(*arrays)


@pytree
class PerSample:
    """One operator a sample: every leaf of `operator` has the batch axis first."""

    operator: Any


def as_operator(operator: Any) -> Any:
    """The door of every rule: pytrees that can be called pass, a plain function becomes a `Function`.

    Raises:
        TypeError: it cannot be called.
    """
    if isinstance(operator, PerSample):
        return operator
    if not callable(operator):
        raise TypeError(f"an operator must be callable, one sample -> one measurement; got {operator!r}"
                        f"{': wrap a matrix as operators.matrix(A)' if hasattr(operator, 'ndim') else ''}")  # fmt: skip
    plain: Any = operator
    return Function(plain) if jax.tree_util.all_leaves([operator]) else operator


def each(operator: Any, function: Callable[..., Any], *arrays: Array) -> Any:
    """function(operator, *arrays of one sample) over the batch axis of the arrays, and of a `PerSample` operator."""
    if isinstance(operator, PerSample):
        return jax.vmap(function)(operator.operator, *arrays)
    return jax.vmap(partial(function, operator))(*arrays)


def apply(operator: Any, x0: Array) -> Array:
    """A(x0) over the batch."""
    return each(operator, lambda A, x0: A(x0), x0)


def pinv(operator: Any, y: Array) -> Array:
    """A+ y over the batch."""
    return each(operator, lambda A, y: A.pinv(y), y)


def spread(hyper: Any, level: Level, x: Array) -> Array:
    """A hyperparameter at a level (a number, [B], or a schedule) as [B], in x's dtype."""
    return jnp.broadcast_to(value_at(hyper, level, x).reshape(-1), x.shape[:1])


def batch_of(operator: Any, y: Array, x: Array) -> Array:
    """y as [B, ...] in x's dtype, where B is the batch of x.

    Raises:
        ValueError: y is not shaped like A(x0), with or without the batch axis; the operator cannot take x.
        TypeError: y or A(x0) is not real.
    """
    y = jnp.asarray(y)
    try:
        out = jax.eval_shape(partial(apply, operator), jax.ShapeDtypeStruct(x.shape, x.dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the operator fails on one sample of shape {x.shape[1:]}: {error}") from error
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"the operator must return one real array, got {out}; stack real and imaginary parts")
    if jnp.iscomplexobj(y):
        raise TypeError(f"y must be real like the operator's output, got {y.dtype}; stack real and imaginary parts")
    if y.shape not in (out.shape, out.shape[1:]):
        raise ValueError(f"y has shape {y.shape}; for x of shape {x.shape} the operator gives {out.shape[1:]}, so "
                         f"y must be {out.shape[1:]} or {out.shape} (one a sample: {ONE_A_SAMPLE})")  # fmt: skip
    return jnp.broadcast_to(jnp.asarray(y, x.dtype), out.shape)


class Measured(Wrapper, Protocol):
    """A rule over a denoiser, an operator and a measurement."""

    operator: Any
    y: Any

    @property
    def coupled(self) -> bool:
        """No: eps is kept, or made anew, while x0 moves."""
        return False


class Differentiated(Measured, Protocol):
    """A rule that pulls one vector a call back through the denoiser, and through the operator."""

    @property
    def vjps(self) -> int:
        """One through every evaluation, and the denoiser's own."""
        return self.denoiser.evaluations + self.denoiser.vjps

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses, and alpha = 0, by which the rule divides."""
        self.denoiser.check(process, levels)
        refuse_pure_noise(levels)


def refuse_pure_noise(levels: Level) -> None:
    """Raise ValueError where some level has alpha = 0."""
    pure = np.asarray(levels.alpha) == 0
    if pure.any():
        raise ValueError(f"the rule divides by alpha, and alpha = 0 at t = {np.asarray(levels.t)[pure][0]:g}: start "
                         f"the grid a little later, for example at t = 0.999")  # fmt: skip


def differentiable_batch_of(operator: Any, y: Any, x: Array) -> Array:
    """`batch_of`, for a rule that needs the operator's gradient.

    Raises:
        ValueError, TypeError: as `batch_of`; no gradient flows through the operator at samples like x.
    """
    y = batch_of(operator, y, x)
    require_gradient(operator, y, x)
    return y


def require_gradient(operator: Any, y: Any, x: Any) -> None:
    """Raise unless gradients flow from y through the operator at samples like x; traces it, computes nothing.

    Args:
        y, x: batches of measurements and of samples, or their shapes.
    """

    def pulled(x: Array, y: Array) -> Array:
        return jax.vjp(partial(apply, operator), x)[1](y)[0]

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, y)]
    try:
        graph = jax.make_jaxpr(pulled)(*shapes).jaxpr
    except Exception as error:  # whatever JAX says of callbacks, while loops, custom rules
        raise ValueError(f"this rule needs the operator's gradient, and JAX cannot form it: {error}") from error
    reached = {graph.invars[1]}
    for equation in graph.eqns:
        if any(v in reached for v in equation.invars if not hasattr(v, "val")):  # literals have a val
            reached.update(equation.outvars)
    if graph.outvars[0] not in reached:
        raise ValueError("this rule needs the operator's gradient, which is zero everywhere (rounding, sign, argmax?); "
                         "use a rule without gradients, or a differentiable stand-in")  # fmt: skip


def one_a_sample(what: str, values: Array, x: Array) -> Array:
    """The values; raises ValueError unless they are [B], one for each of the samples x."""
    if jnp.shape(values) != x.shape[:1]:
        raise ValueError(f"{what} must return one number a sample, {x.shape[:1]}, got shape {jnp.shape(values)}")
    return values


def check_noise(sigma_y: Any, positive: bool = False) -> None:
    """Raise ValueError for a measurement noise that is negative, or zero where the rule divides by it."""
    if callable(sigma_y):
        return
    if is_concrete(sigma_y) and not np.all(np.asarray(sigma_y) > 0 if positive else np.asarray(sigma_y) >= 0):
        raise ValueError(f"sigma_y={sigma_y} must {'be positive' if positive else 'not be negative'}")
    if jnp.ndim(sigma_y) > 1:
        raise ValueError(f"sigma_y must be a number or one a sample [B], got shape {jnp.shape(sigma_y)}")


def invertible(operator: Any) -> Any:
    """`as_operator` of one with a pseudo-inverse; TypeError where it has none."""
    return _offering(as_operator(operator), Invertible, "a pseudo-inverse")


def spectral(operator: Any) -> Any:
    """`as_operator` of one with its singular value decomposition; TypeError where it has none."""
    return _offering(as_operator(operator), Spectral, "a singular value decomposition")


def _offering(operator: Any, kind: type, what: str) -> Any:
    inside = operator.operator if isinstance(operator, PerSample) else operator
    if not isinstance(inside, kind):
        raise TypeError(
            f"this rule needs an operator with {what}, got {type(inside).__name__}: use one of guidance.operators, "
            f"for example operators.matrix(A), or add the methods of {kind.__name__}"
        )
    return operator


def check_in_range(operator: Any, y: Any, tolerance: float = 1e-3) -> None:
    """Raise ValueError where a noiseless y is no measurement of anything: A A+ y is not y. Traced numbers pass."""
    if not is_concrete((operator, y)):
        return
    y = jnp.asarray(y, float)
    batched = isinstance(operator, PerSample) or (isinstance(operator, Spectral) and y.ndim > _rank(operator))

    def again(A: Any, y: Array) -> Array:
        return A(A.pinv(y))

    try:
        found = each(operator, again, y) if batched else again(operator, y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y of shape {y.shape} does not fit the operator: {error}") from error
    miss = float(jnp.abs(found - y).max())
    if miss > tolerance * max(float(jnp.abs(y).max()), 1e-30):
        raise ValueError(f"y lies outside the range of the operator: |A A+ y - y| = {miss:.3g}; a rule without noise "
                         f"needs y = A(x0) for some x0 (for a mask, zeros where nothing is measured)")  # fmt: skip


def _rank(operator: Spectral) -> int:
    return jax.eval_shape(operator, jax.ShapeDtypeStruct(operator.shape, jnp.float32)).ndim
