"""What every sampler over tokens shares: its state's dtype, its start, what it refuses before a run and reports after
one.
"""

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.model import MaskedModel
from diffsample.tableau import is_concrete


class TokenSampler(Protocol):
    """A sampler over int32 [B, L] that calls a masked model."""

    model: Any

    @property
    def dtype(self) -> Any:
        """Of the state."""
        return jnp.int32

    @property
    def longest(self) -> int | None:
        """The longest sequences that it was planned for, if there is a limit."""
        return None

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """All masks."""
        return jnp.full(shape, self.model.mask_id, jnp.int32)

    def admit(self, shape: tuple[int, ...], x: Array | None) -> None:
        """Raise before a run of no masked model, or from sequences that are too long or hold what is no token."""
        refuse_other_models(self.model)
        refuse_length(shape, self.longest)
        if x is not None:
            refuse_ids(x, self.model)

    def verify(self, out: Any) -> None:
        """Raise where the model gave no law or a mask is left."""
        refuse_faults(self.model, out.x, out.fault)


def refuse_other_models(model: Any) -> None:
    """Raise TypeError for what is no masked model: a bare function, a law, a network of continuous states."""
    missing = [name for name in ("vocab", "mask_id", "evaluations") if not hasattr(model, name)]
    if missing:
        make = (
            ".model() of this law"
            if hasattr(model, "model")
            else "discrete.from_logits(function, params, vocab, mask_id)"
        )
        raise TypeError(f"a decoder needs a MaskedModel, got a {type(model).__name__}, which has no "
                        f"{' and no '.join(missing)}; {make} makes one")  # fmt: skip


def refuse_length(shape: tuple[int, ...], longest: int | None) -> None:
    """Raise ValueError for sequences [B, L] that are longer than what was planned."""
    if longest is not None and len(shape) == 2 and shape[1] > longest:
        raise ValueError(f"x has {shape[1]} positions and the decoder was planned for at most {longest}: plan it for "
                         f"length={shape[1]}, or decode in windows (discrete.sliding_windows)")  # fmt: skip


def refuse_ids(x: Array, model: MaskedModel) -> None:
    """Raise where concrete tokens are no integers [B, L] or hold an id that the model does not know."""
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"a decoder needs integer tokens [batch, length], got {x.dtype} of shape {x.shape}")
    if not is_concrete(x):
        return
    outside = np.argwhere(np.asarray(unknown(x, model)))
    if len(outside):
        i, j = outside[0].tolist()
        raise ValueError(f"x[{i}, {j}] = {int(x[i, j])} is no token, nor are {len(outside) - 1} others: the model's "
                         f"ids are 0 .. {model.vocab - 1}, and {model.mask_id} is its mask")  # fmt: skip


def unknown(x: Array, model: MaskedModel) -> Array:
    """Which ids are neither tokens nor the mask, bool like x."""
    return (x < 0) | ((x >= model.vocab) & (x != model.mask_id))


def first_bad(bad: Array, otherwise: Array) -> Array:
    """The first bad position of each row of bool [B, L], -1 if none; or what is known of the row otherwise [B]."""
    found = jnp.where(jnp.any(bad, axis=1), jnp.argmax(bad, axis=1).astype(jnp.int32), -1)
    return jnp.where(otherwise >= 0, otherwise, found)


def first_bad_slot(bad: Array, positions: Array, otherwise: Array) -> Array:
    """The same for slots [B, k] that hold positions, in any order."""
    lowest = jnp.min(jnp.where(bad, positions, jnp.iinfo(jnp.int32).max), axis=1)
    return jnp.where((otherwise >= 0) | ~jnp.any(bad, axis=1), otherwise, lowest)


def refuse_faults(model: MaskedModel, x: Array, fault: Array) -> None:
    """Raise FloatingPointError where a sequence went wrong, naming the first, its position and the reason."""
    faults = np.asarray(fault)
    if not (faults >= 0).any():
        return
    sample = int(np.flatnonzero(faults >= 0)[0])
    at = int(faults[sample])
    token = int(x[sample, at])
    if token == model.mask_id:
        reason = (
            "is still the mask: the policy ended before everything was revealed, or a law that it drew from held NaN"
        )
    elif not 0 <= token < model.vocab:
        reason = f"is outside the model's ids 0 .. {model.vocab - 1}"
    else:
        reason = ("was drawn from no law: the model's logits there hold NaN, or are -inf for every token "
                  "(discrete.examine(model, x) says which), or the proposal left none")  # fmt: skip
    raise FloatingPointError(
        f"sequence {sample} went wrong at position {at} (token {token}), as did {int((faults >= 0).sum())} of "
        f"{len(faults)}: the token {reason}"
    )
