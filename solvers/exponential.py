"""Exponential multistep integrators: their weights, and the one loop that all of them share.

With h = gain in half log-SNR, a step s -> t from outputs F_j kept at places r_j (0 is s, 1 is t, below 0 the past) is

    x_t = carry x_s + total sum_j w_j F_j + up z,      sum_j w_j = 1,

where (carry, total) make it exact for a constant F: x0 in the data form, eps in the noise form. The exact weights
solve sum_j w_j r_j^i / i! = phi_{i+1}(z) / phi_1(z), i = 0, 1, ...; z = -h (data), h (noise) or -(1 + tau^2) h (reverse
SDE of strength tau). Nothing here forms a log-SNR at sigma = 0 or alpha = 0: a step of infinite h is first order, and a
past level that lies infinitely far away is left out.
"""

from collections.abc import Callable, Collection, Sequence
from math import exp, expm1, factorial, inf, sqrt
from typing import NamedTuple

import numpy as np

from diffsample.grid import Grid
from diffsample.process import Level
from diffsample.program import Program, Vector
from diffsample.solvers.levels import between
from diffsample.solvers.moves import decay, gain, rescaled_noise


class Move(NamedTuple):
    """One step: x_t = carry x_s + total (weighted average of outputs) + up z."""

    carry: float
    total: float
    z: float  # argument of the phi functions
    up: float = 0.0


class Form(NamedTuple):
    """What a method keeps of a call, x0 * (predicted x0) + eps * (predicted eps), and how it steps with it."""

    x0: float
    eps: float
    move: Callable[[Level, Level], Move]


INVERSE_FACTORIALS = [1 / factorial(j) for j in range(40)]
Weigh = Callable[[Sequence[Level], Level, Level], list[float]]  # (levels of the outputs, s, t) -> weights of sum 1


def data_move(s: Level, t: Level, rate: float = 0.0) -> Move:
    """The step of the data form; rate = tau^2, 0 on the ODE and 1 on the reverse SDE."""
    keep = decay(s, t) ** rate
    carry = keep * t.sigma / s.sigma
    return Move(carry, t.alpha - carry * s.alpha, -(1 + rate) * gain(s, t), t.sigma * sqrt(1 - keep**2))


def noise_move(s: Level, t: Level) -> Move:
    """The step of the noise form, which cannot start at alpha = 0."""
    rescaled_noise(s)
    carry = t.alpha / s.alpha
    return Move(carry, t.sigma - carry * s.sigma, gain(s, t))


DATA, NOISE = Form(1.0, 0.0, data_move), Form(0.0, 1.0, noise_move)


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum_j z^j / (j + k)!, that is exp(z), (exp(z) - 1) / z, ...

    >>> phi(0, 0.0), phi(1, 0.0), phi(2, 0.0)
    (1.0, 1.0, 0.5)
    """
    if abs(z) < 1:
        value = 0.0
        for term in reversed(INVERSE_FACTORIALS[k : k + 20]):
            value = value * z + term
        return value
    value = exp(z)
    for j in range(k):
        value = (value - 1 / factorial(j)) / z
    return value


def shares(z: float, places: Sequence[float], curvature: float = 1.0) -> list[float]:
    """Weights on the places, normalised to sum 1, of the exponential integral of the interpolating polynomial.

    curvature scales the second derivative: 1 is exact, the published third-order multistep methods have 1/2.

    >>> [round(w, 6) for w in shares(0.0, [0.0, -1.0])]  # z = 0 is Adams-Bashforth
    [1.5, -0.5]
    """
    n = len(places)
    if n == 1:
        return [1.0]
    moments = np.array([phi(i + 1, z) / phi(1, z) for i in range(n)])
    moments[2:3] *= curvature
    matrix = np.array([np.power(places, i) / factorial(i) for i in range(n)])
    return np.linalg.solve(matrix, moments).tolist()


def midpoint(places: Sequence[float], scale: float = 1.0) -> list[float]:
    """Weights on two places, one of them 0, with scale / 2 in place of the exact phi_2(z) / phi_1(z)."""
    slope = scale / (2 * sum(places))
    return [slope if r else 1 - slope for r in places]


def bh1_scale(z: float) -> float:
    """Factor on the midpoint rule in the methods that write h for exp(h) - 1."""
    return z / expm1(z)


def places(past: Sequence[Level], s: Level, t: Level) -> list[float]:
    """Where levels lie on the axis of log-SNR on which the step s -> t goes from 0 to 1, up to the first at -infinity.

    A step of infinite gain knows the one place 0.
    """
    h, found = gain(s, t), []
    if h == inf:
        return [0.0]
    for level in past:
        distance = gain(level, s)
        if distance == inf:
            break
        found.append(-distance / h)
    return found


def exact(form: Form, curvature: float = 1.0) -> Weigh:
    """Exact exponential weights."""
    return lambda past, s, t: shares(form.move(s, t).z, places(past, s, t), curvature)


def combine(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """sum_i weights[i] vectors[i], newest first; older vectors than there are weights stay unused."""
    return sum((w * v for w, v in zip(weights, vectors, strict=False)), Vector({}))


def check_order(order: int, highest: int, name: str) -> None:
    """Raise ValueError unless order is the whole number 1, ..., or highest."""
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or not 1 <= order <= highest:
        raise ValueError(f"{name} has orders 1 to {highest}, got order={order!r}")


def explicit(grid: Grid, form: Form, kept: int, weigh: Weigh, stages: int = 0) -> Program:
    """The loop of an explicit method that keeps the outputs of `kept` levels; its first steps have fewer.

    stages > 0 makes that many extra calls inside the first step, at equal parts of its log-SNR: a Runge-Kutta start.
    """
    program, outputs, past = Program(grid, registers=1 + (stages > 0)), [], []
    for i, (s, t) in enumerate(program.moves()):
        output = program.call(s, t, x0=form.x0, eps=form.eps)
        outputs, past = [output, *outputs][:kept], [s, *past][:kept]
        for level in _inner(grid, s, t, stages if i == 0 else 0):
            advance(program, form.move(s, level), weigh(past, s, level), outputs, into=1)
            outputs.insert(0, program.call(level, t, x0=form.x0, eps=form.eps, register=1, stage=len(past)))
            past.insert(0, level)
        advance(program, form.move(s, t), weigh(past, s, t), outputs)
        if i == 0 and stages:  # earlier stages are of too low an order to be remembered
            del outputs[1:-1], past[1:-1]
    return program


def corrected(
    grid: Grid, form: Form, kept: int, predict: Weigh, correct: Weigh, uncorrected: Collection[int] = ()
) -> Program:
    """The loop of a predictor-corrector method, PEC: the call at the predicted state also corrects the step to it.

    Register 0 is the predicted state, where the network is called; register 1 what the corrector starts from, the
    state carried with its noise, so that predictor and corrector share one draw. The last step stays uncorrected, and
    so does a step of infinite gain, and those whose numbers are in `uncorrected`. One call a step.
    """
    program, outputs, past = Program(grid, registers=2), [], []
    for i, (s, t) in enumerate(program.moves()):
        output = program.call(s, t, x0=form.x0, eps=form.eps)
        if past and i - 1 not in uncorrected and gain(past[0], s) < inf:
            weights = correct([s, *past], past[0], s)
            program[0] = program[1] + form.move(past[0], s).total * combine(weights, [output, *outputs])
        outputs, past = [output, *outputs][:kept], [s, *past][:kept]
        move = form.move(s, t)
        advance(program, move._replace(total=0.0), [], outputs)
        program[1] = program[0]
        program[0] += move.total * combine(predict(past, s, t), outputs)
    return program


def advance(program: Program, move: Move, weights: Sequence[float], outputs: Sequence[Vector], into: int = 0) -> None:
    """Put the state that a move reaches from register 0 into a register."""
    program[into] = move.carry * program[0] + move.total * combine(weights, outputs)
    if move.up:
        program[into] += move.up * program.noise()


def _inner(grid: Grid, s: Level, t: Level, count: int) -> list[Level]:
    """Levels that part the step s -> t equally in log-SNR."""
    if count and gain(s, t) == inf:
        raise ValueError(
            f"a Runge-Kutta start needs finite log-SNR at both ends of the first step, got t = {s.t:g} to {t.t:g}; "
            f"start the grid later"
        )
    return [between(grid.process, s, t, k / (count + 1)) for k in range(1, count + 1)]
