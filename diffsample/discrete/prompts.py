"""Prompts of different lengths as one batch, and a look at a model's logits before a run.

A decoder keeps whatever is not a mask: prompts and padding are the observed positions of x. So a batch of ragged
prompts is one integer array with masks where tokens are wanted.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.masked_sampler import refuse_ids
from diffsample.discrete.model import MaskedModel

PyTree: TypeAlias = Any


class Prompts(NamedTuple):
    """A batch that a decoder can start from."""

    x: Array  # int32 [B, L], prompts, masks and padding
    frozen: Array  # bool [B, L], positions that stay as they are: prompt and padding
    padding: Array  # bool [B, L], positions that belong to no sequence; for the network's attention mask, through cond


def aligned_left(
    prompts: Sequence[Sequence[int]],
    length: int,
    mask_id: int,
    *,
    answer: int | Sequence[int] | None = None,
    pad_id: int | None = None,
) -> Prompts:
    """Every prompt starts at position 0 and masks follow, up to the length or to an answer's; then padding.

    Args:
        prompts: a list of lists of ids; one may be empty, and holes to fill in are masks inside it.
        length: L of the batch.
        mask_id: id of the mask.
        answer: tokens wanted after each prompt, one number or one each; None fills all of the length.
        pad_id: id of the padding, needed where there is any; the network should not attend to it.

    Raises:
        ValueError, TypeError: a prompt, or prompt and answer, longer than the length; ids that are no integers.

    >>> aligned_left([[5, 6], [7]], 4, mask_id=9).x.tolist()
    [[5, 6, 9, 9], [7, 9, 9, 9]]
    >>> aligned_left([[5, 6], [7]], 4, mask_id=9, answer=2, pad_id=0).x.tolist()
    [[5, 6, 9, 9], [7, 9, 9, 0]]
    """
    rows = _checked(prompts, length)
    room = np.array([length - len(row) for row in rows])
    wanted = room if answer is None else np.broadcast_to(np.asarray(answer), room.shape)
    if (wanted < 0).any() or (wanted > room).any():
        i = int(np.flatnonzero((wanted < 0) | (wanted > room))[0])
        raise ValueError(f"answer={int(wanted[i])} to prompts[{i}] of {len(rows[i])} tokens must lie in 0 .. "
                         f"{int(room[i])}, the room left in length={length}")  # fmt: skip
    return _filled(rows, np.zeros(len(rows), int), np.asarray(wanted), length, mask_id, pad_id)


def aligned_right(prompts: Sequence[Sequence[int]], length: int, mask_id: int, *, pad_id: int | None = None) -> Prompts:
    """Every prompt ends where the longest one does, after padding, and masks fill the rest of the length.

    All answers then start at the same position, which decoding in blocks (`blockwise`) needs.

    Args and raises: as for `aligned_left`.

    >>> aligned_right([[5, 6], [7]], 4, mask_id=9, pad_id=0).x.tolist()
    [[5, 6, 9, 9], [0, 7, 9, 9]]
    """
    rows = _checked(prompts, length)
    longest = max(len(row) for row in rows)
    starts = np.array([longest - len(row) for row in rows])
    return _filled(rows, starts, np.full(len(rows), length - longest), length, mask_id, pad_id)


def _checked(prompts: Sequence[Sequence[int]], length: int) -> list[np.ndarray]:
    """Prompts as arrays, none longer than the length."""
    if len(prompts) == 0:
        raise ValueError("prompts is empty: give one list of ids a sequence, itself empty for none")
    rows = []
    for i, prompt in enumerate(prompts):
        row = np.asarray(prompt)
        row = row.astype(np.int32) if row.size == 0 else row
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise TypeError(f"prompts[{i}] must be a list of integer ids, got {prompt!r}")
        if len(row) > length:
            raise ValueError(f"prompts[{i}] has {len(row)} tokens, more than length={length}")
        rows.append(row)
    return rows


def _filled(
    rows: list[np.ndarray], starts: np.ndarray, wanted: np.ndarray, length: int, mask_id: int, pad_id: int | None
) -> Prompts:
    stops = np.array([start + len(row) for start, row in zip(starts, rows, strict=True)])
    at = np.arange(length)[None, :]
    padding = (at < starts[:, None]) | (at >= (stops + wanted)[:, None])
    if padding.any() and pad_id is None:
        i = int(np.flatnonzero(padding.any(axis=1))[0])
        raise ValueError(f"sequence {i} needs padding at position {int(np.argmax(padding[i]))}: give pad_id")
    if pad_id == mask_id:
        raise ValueError(f"pad_id={pad_id} is the mask's id: padding would be decoded")
    x = np.where(padding, 0 if pad_id is None else pad_id, mask_id).astype(np.int32)
    for i, row in enumerate(rows):
        x[i, starts[i] : stops[i]] = row
    return Prompts(jnp.asarray(x), jnp.asarray(x != mask_id), jnp.asarray(padding))


def examine(model: MaskedModel, x: Array, cond: PyTree = None) -> None:
    """One call of a model on concrete tokens, and an error that names the first logit that makes no law.

    A run reports such a position after it, since only the device sees the logits; this looks before it, at x. Logits of
    all positions exist at once here.

    Args:
        model: what the decoder calls. x: int32 [B, L]. cond: condition, batch first.

    Raises:
        ValueError, TypeError: a NaN or +inf logit, or a position where every token has -inf; ids that are no tokens.

    >>> from diffsample.discrete import from_logits
    >>> bad = from_logits(lambda p, x, cond: jnp.full((*x.shape, 3), -jnp.inf), (), vocab=3, mask_id=3)
    >>> examine(bad, jnp.full((1, 2), 3))
    Traceback (most recent call last):
    ValueError: logits[0, 0] are -inf for every token: no token is possible there
    """
    x = jnp.asarray(x)
    refuse_ids(x, model)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape)
    clock = jnp.mean(x == model.mask_id, axis=1, dtype=jnp.float32)
    read = getattr(model, "logits", model.log_probs)  # rules around models may have laws only, NaN where broken
    logits = np.asarray(read(model(x, clock, cond), positions))
    wrong = np.argwhere(np.isnan(logits) | (logits == np.inf))
    if len(wrong):
        at = wrong[0].tolist()
        raise ValueError(f"logits{at} = {logits[tuple(at)]}, and {len(wrong) - 1} others are not finite either")
    empty = np.argwhere((logits == -np.inf).all(axis=-1))
    if len(empty):
        raise ValueError(f"logits{empty[0].tolist()} are -inf for every token: no token is possible there")
