"""Whole numbers as users give them: Python's and NumPy's, no truth values and no floats."""

from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number.

    >>> is_whole(3), is_whole(np.int64(3)), is_whole(3.0), is_whole(True)
    (True, True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def positive(name: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it is none.

    >>> positive("n", np.int64(3))
    3
    """
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return int(value)
