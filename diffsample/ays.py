"""Align Your Steps: noise levels optimised for sampling three published models in ten steps (`times.ays` uses them).

Each table lists sigma/alpha at the start of every step and, last, the smallest level of the model's own schedule.

Reference: Sabour et al. 2024, arXiv:2404.14507, and its published tables.
"""

import numpy as np

SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0291672)  # Stable Diffusion 1.5
SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0291672)  # Stable Diffusion XL
SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)  # Stable Video Diffusion

ROUNDING = 1e-4  # relative; the tables are printed to a few digits, and 14.615 stands for 14.6146


def interpolate(table: tuple[float, ...], steps: int) -> np.ndarray:
    """The steps + 1 levels of a table, log-linear in between; its own levels where they are as many.

    Args:
        table: two or more strictly decreasing positive levels.
        steps: number of moves, at least 1.

    Returns:
        sigma/alpha, float64 [steps + 1].

    Raises:
        ValueError: levels that are not positive and strictly decreasing.

    >>> print(interpolate((8.0, 2.0, 0.5), 4))
    [8.  4.  2.  1.  0.5]
    """
    levels = np.asarray(table, np.float64)
    if levels.ndim != 1 or levels.size < 2 or not (levels[-1] > 0 and (np.diff(levels) < 0).all()):
        raise ValueError(f"a table holds two or more strictly decreasing positive levels, got {table}")
    places = np.linspace(0, levels.size - 1, steps + 1)
    return np.exp(np.interp(places, np.arange(levels.size), np.log(levels)))
