"""Tables in NumPy float64: no compilation, so that orders and identities are measured in milliseconds."""

import numpy as np

import diffsample as ds
from diffsample.exact import run_on_host as run_table

# Problem P1 of specs/solvers.md, 10.1: DOP853 in log-SNR at tolerance 1e-13, VP from t = 1 to 0.01.
START = np.linspace(-2, 2, 9)
REFERENCE = np.array([-1.50468158969, -1.26837427271, -0.974010084416, -0.195109153447, 0.257420320936, 0.536259588252,
                      0.967900825656, 1.34827317552, 1.63515951352])  # fmt: skip
WEIGHTS, MEANS, SPREADS = np.array([0.3, 0.45, 0.25]), np.array([-1.0, 0.3, 1.1]), np.array([0.35, 0.25, 0.4])


def mixture_x0(x, level):
    """E[x0 | x_t] of problem P1's mixture, elementwise."""
    var = level.alpha**2 * SPREADS**2 + level.sigma**2
    u = x[..., None] - level.alpha * MEANS
    log_r = np.log(WEIGHTS / np.sqrt(var)) - u**2 / (2 * var)
    r = np.exp(log_r - log_r.max(-1, keepdims=True))
    return (r / r.sum(-1, keepdims=True) * (MEANS + level.alpha * SPREADS**2 / var * u)).sum(-1)


def p1_error(tableau):
    """Largest error on problem P1."""
    return np.abs(run_table(tableau, mixture_x0, START) - REFERENCE).max()


def coordinate_gap(solver):
    """Largest difference in x / alpha between VP and VE at the same sigma / alpha, with the same draws."""
    preserving, exploding = ds.VariancePreserving(), ds.VarianceExploding(0.002, 80.0)
    levels = np.geomspace(20.0, 0.05, 8)
    times = preserving.t_from_half_logsnr(-np.log(levels))
    table, other = solver(preserving, times), solver(exploding, levels)
    draws = np.random.default_rng(0).standard_normal((table.rows + 1, START.size))
    ends = preserving.alpha(times[[0, -1]])
    out = run_table(table, mixture_x0, 20 * START * ends[0], draws) / ends[1]
    return np.abs(out - run_table(other, mixture_x0, 20 * START, draws)).max()
