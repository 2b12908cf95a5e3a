"""Statistics of token sequences: entropy and n-grams. On the host, exact counts, entropies in nats."""

import numpy as np
from jax.typing import ArrayLike


def token_entropy(x: ArrayLike, ignore: int | None = None) -> float:
    """Mean over sequences of the entropy of the tokens that occur in one: low where a sampler repeats itself.

    Args:
        x: integers [N, L].
        ignore: a token that does not count, such as padding or the mask.

    Returns: nats, 0 .. log L.

    Raises:
        ValueError: not [N, L], or a sequence without a token that counts.

    >>> round(token_entropy(np.array([[5, 5, 5, 5], [1, 1, 2, 2]])), 6)  # log(2) / 2
    0.346574
    """
    return float(np.mean([_entropy(np.unique(row, return_counts=True)[1]) for row in _sequences(x, ignore)]))


def ngram_counts(x: ArrayLike, n: int, ignore: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every n-gram that occurs, and how often.

    Args:
        x: integers [N, L]; n-grams do not reach from one sequence into another.
        n: tokens in a row, 1 .. L.
        ignore: a token whose n-grams do not count.

    Returns: n-grams [K, n], sorted, and counts [K].

    Raises:
        ValueError: n out of range, or no n-gram left.

    >>> ngram_counts(np.array([[0, 1, 0, 1]]), 2)
    (array([[0, 1], [1, 0]]), array([2, 1]))
    """
    tokens = _tokens(x)
    if not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n={n} must lie in 1 .. {tokens.shape[1]}, the length of the sequences")
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1).reshape(-1, n)
    if ignore is not None:
        grams = grams[(grams != ignore).all(axis=1)]
    if not len(grams):
        raise ValueError(f"every {n}-gram holds the token {ignore} that does not count")
    return np.unique(grams, axis=0, return_counts=True)


def ngram_entropy(x: ArrayLike, n: int, ignore: int | None = None) -> float:
    """Entropy of the n-gram frequencies of all sequences together, in nats. Arguments as for `ngram_counts`."""
    return _entropy(ngram_counts(x, n, ignore)[1])


def distinct_ngrams(x: ArrayLike, n: int, ignore: int | None = None) -> float:
    """Different n-grams over all n-grams, the diversity of Li et al. 2016, arXiv 1510.03055. Arguments as there.

    >>> distinct_ngrams(np.array([[0, 1, 0, 1, 0]]), 2)
    0.5
    """
    counts = ngram_counts(x, n, ignore)[1]
    return len(counts) / int(counts.sum())


def ngram_divergence(x: ArrayLike, y: ArrayLike, n: int, ignore: int | None = None) -> float:
    """Jensen-Shannon divergence between the n-gram frequencies of two sets, in nats.

    Args:
        x: integers [N, L] and y: integers [M, L'].
        n, ignore: as for `ngram_counts`.

    Returns: 0 where the frequencies agree, log 2 where no n-gram occurs in both.

    Reference: Lin 1991, IEEE Trans. Inf. Theory 37, eq. 3.6.

    >>> round(ngram_divergence(np.array([[0, 0]]), np.array([[1, 1]]), 1), 6)  # log 2
    0.693147
    """
    (grams_x, counts_x), (grams_y, counts_y) = (ngram_counts(tokens, n, ignore) for tokens in (x, y))
    _, place = np.unique(np.concatenate([grams_x, grams_y]), axis=0, return_inverse=True)
    place = place.reshape(-1)  # NumPy 2.0 alone returns a column
    p, q = np.zeros((2, place.max() + 1))
    p[place[: len(grams_x)]], q[place[len(grams_x) :]] = counts_x / counts_x.sum(), counts_y / counts_y.sum()
    return max(0.0, _entropy(p + q) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(counts: np.ndarray) -> float:
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum()) + 0.0


def _sequences(x: ArrayLike, ignore: int | None) -> list[np.ndarray]:
    rows = [row if ignore is None else row[row != ignore] for row in _tokens(x)]
    for i, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"sequence {i} has no token besides {ignore}, which does not count")
    return rows


def _tokens(x: ArrayLike) -> np.ndarray:
    tokens = np.asarray(x)
    if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers [N, L], got {tokens.dtype} of shape {tokens.shape}")
    return tokens
