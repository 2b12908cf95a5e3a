"""What a table keeps on the device: the dtype of the state, and gradients that are those of the numbers it holds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Network
from diffsample.exact import run_on_host
from diffsample.process import Level
from diffsample.sampling import sample
from diffsample.solvers import linear
from diffsample.tableau import Tableau, pad

Apply: TypeAlias = Callable[[Array, Array, Array, None], Array]

SCALE = 0.8  # the network is eps = tanh(scale x)
START = np.linspace(-3.0, 3.0, 6).reshape(3, 2)
SHAPE = (3, 6, 24)  # registers, slots, and a multiple of rows: so that most tables share one program


def keeps_dtypes(tableau: Tableau) -> bool:
    """Whether states in float32 and in bfloat16 come out as they went in. Traces, compiles nothing.

    >>> import diffsample as ds
    >>> keeps_dtypes(ds.solvers.ddim(ds.VariancePreserving(), [0.9, 0.5, 0.0]))
    True
    """
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.ShapeDtypeStruct(START.shape, dtype)
        found.append(jax.eval_shape(lambda x: _run(_eps, tableau, x, jnp.float32(SCALE)), x).dtype == dtype)
    return all(found)


def gradient_error(tableau: Tableau) -> float:
    """Relative error of JAX's gradients against finite differences of the table in NumPy float64; nan if not finite.

    The loss is the sum of squares of the output; the gradients are by the weight of a network and along one direction
    in the coefficients. Noise is left out.

    >>> import diffsample as ds
    >>> gradient_error(ds.solvers.ddim(ds.VariancePreserving(), [0.9, 0.5, 0.0])) < 1e-3
    True
    """
    silent = dataclasses.replace(tableau, c=np.zeros_like(tableau.c))
    registers, slots, rows = SHAPE
    rows *= -(-silent.rows // rows)
    padded = pad(silent, max(registers, silent.registers), max(slots, silent.slots), rows, noise="some")
    directions = _direction(padded.A), _direction(padded.B)
    found = np.array(_gradients(_eps, padded, jnp.asarray(START, jnp.float32), directions), np.float64)
    expected = np.array([(_loss(padded, *h) - _loss(padded, *-h)) / 2e-5 for h in 1e-5 * np.eye(2)])
    return float(np.abs(found / expected - 1).max())


@functools.partial(jax.jit, static_argnums=0)
def _gradients(eps: Apply, tableau: Tableau, x: Array, directions: tuple[Any, Any]) -> tuple[Array, Array]:
    def loss(weight: Array, shift: Array) -> Array:
        A, B = (
            jnp.asarray(value, jnp.float32) * (1 + shift * jnp.asarray(direction, jnp.float32))
            for value, direction in zip((tableau.A, tableau.B), directions, strict=True)
        )
        return (_run(eps, dataclasses.replace(tableau, A=A, B=B), x, weight) ** 2).sum()

    return jax.grad(loss, argnums=(0, 1))(jnp.float32(SCALE), jnp.float32(0))


def _run(eps: Apply, tableau: Tableau, x: Array, weight: Array) -> Array:
    return sample(jax.random.key(0), linear(Network(eps, weight, predicts="noise"), tableau), x=x, check=False)


def _eps(weight: Array, x: Array, t: Array, cond: None) -> Array:
    return jnp.tanh(weight.astype(x.dtype) * x)


def _loss(tableau: Tableau, weight: float, shift: float) -> float:
    def x0(x: np.ndarray, level: Level) -> np.ndarray:
        return (x - level.sigma * np.tanh((SCALE + weight) * x)) / level.alpha

    A, B = (value * (1 + shift * _direction(value)) for value in (tableau.A, tableau.B))
    return float((run_on_host(dataclasses.replace(tableau, A=A, B=B), x0, START) ** 2).sum())


def _direction(values: np.ndarray) -> np.ndarray:
    """A fixed perturbation of every coefficient, relative, of no pattern that a table has."""
    return np.cos(1.0 + 2.0 * np.arange(values.size)).reshape(values.shape)
