"""How often a classifier is right."""

import jax.numpy as jnp
from jax import Array


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of rows whose largest logit is at the label.

    Args:
        logits: [N, K]; labels: integer [N].

    Returns: float32 scalar.

    >>> float(accuracy(jnp.array([[0.0, 1.0], [2.0, 0.0]]), jnp.array([1, 1])))
    0.5
    """
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
