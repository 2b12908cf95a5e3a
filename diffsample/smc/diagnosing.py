"""What a particle run notes at every row, and what it raises for afterwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.smc.weights import distinct, log_effective_size


class Diagnostics(NamedTuple):
    """What happened at each of n rows and, last, in the closing update. The group's axis is the first everywhere."""

    ess: Array  # [G, n+1] effective sample size after weighing
    max_weight: Array  # [G, n+1] largest normalised weight
    unique: Array  # [G, n+1] int32 distinct ancestors chosen before the row; K where nothing was resampled
    resampled: Array  # [G, n+1] bool, before the row
    invalid: Array  # [G, n+1] int32 particles whose potential was NaN or +inf, and which got weight 0
    clamped: Array  # [G, n+1] int32 particles whose weight a clamp changed; 0 where none was asked for
    alive: Array  # [G, n+1] int32 particles of positive weight; after 0 the group goes on with equal weights
    eve: Array  # [G, K] int32 the ancestor of each particle at the first row
    ancestors: Array | None  # [G, n+1, K] int32 genealogy, where asked for


def undiagnosed(groups: int, particles: int, rows: int, dtype: Any, genealogy: bool) -> Diagnostics:
    """Before the first row."""
    table, counts = jnp.zeros((groups, rows), dtype), jnp.zeros((groups, rows), jnp.int32)
    own = jnp.broadcast_to(jnp.arange(particles, dtype=jnp.int32)[None], (groups, particles))
    ancestors = jnp.broadcast_to(own[:, None], (groups, rows, particles)) if genealogy else None
    return Diagnostics(table, table, counts + particles, counts > 0, counts, counts, counts, own, ancestors)


def descended(d: Diagnostics, ancestors: Array, do: Array, row: Array) -> Diagnostics:
    """After the groups in `do` were resampled before `row`."""
    return d._replace(
        unique=d.unique.at[:, row].set(jax.vmap(distinct)(ancestors)),
        resampled=d.resampled.at[:, row].set(do),
        eve=jnp.take_along_axis(d.eve, ancestors, axis=1),
        ancestors=None if d.ancestors is None else d.ancestors.at[:, row].set(ancestors),
    )


def weighed(d: Diagnostics, log_w: Array, invalid: Array, moved: Array, alive: Array, row: Array) -> Diagnostics:
    """After the weights of `row`: which were invalid, which a clamp moved [G, K], how many are left [G]."""
    return d._replace(
        ess=d.ess.at[:, row].set(jnp.exp(log_effective_size(log_w))),
        max_weight=d.max_weight.at[:, row].set(jax.nn.softmax(log_w, axis=-1).max(axis=-1)),
        invalid=d.invalid.at[:, row].set(invalid.sum(axis=-1, dtype=jnp.int32)),
        clamped=d.clamped.at[:, row].set(moved.sum(axis=-1, dtype=jnp.int32)),
        alive=d.alive.at[:, row].set(alive),
    )


def refuse_invalid(diagnostics: Diagnostics) -> None:
    """Raise where a potential was NaN or +inf, or a whole group had weight 0, naming the row and the group.

    Raises:
        FloatingPointError: the first such row of all; the closing update counts as the row behind the last.
    """
    seen = jax.tree.map(np.asarray, diagnostics._replace(ancestors=None))
    failed = (seen.alive == 0) | (seen.invalid > 0)
    if not failed.any():
        return
    row, group = np.argwhere(failed.T)[0]
    if seen.invalid[group, row]:
        what = f"a potential returned NaN or +inf for {int(seen.invalid[group, row])} particles"
    else:
        what = "all particles have weight 0 (every potential was -inf), so that nothing is left to resample"
    where = "the closing update" if row == seen.ess.shape[1] - 1 else f"row {row}"
    others = int(failed.any(axis=1).sum()) - 1
    raise FloatingPointError(
        f"{what}, first at {where} in group {group}"
        f"{f' ({others} other groups fail too)' if others else ''}; sample(..., check=False) returns the "
        f"particles with their diagnostics"
    )
