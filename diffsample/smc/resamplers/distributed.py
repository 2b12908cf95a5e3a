"""One cloud over several devices: global, local, ring, butterfly and island resampling through `shard_map`.

Groups that stay whole on a device need none of this: shard the batch axis by groups, and nothing is communicated. Here
the K particles of a group lie over the D devices of a mesh axis, k = K / D on each. All schemes are cases of one:
slot i draws its ancestor in proportion to a_ij W_j with a doubly stochastic matrix a, and carries the weight
sum_j a_ij W_j; so exp(log_z) is unbiased under each (Whiteley, Lee, Heine 2016, arXiv 1309.2918).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp
from jax.sharding import Mesh, PartitionSpec

from diffsample.placing import auto
from diffsample.sampler import View, fold
from diffsample.smc.functions import as_pytree
from diffsample.smc.particles import gather
from diffsample.smc.policies import ess
from diffsample.smc.resamplers.resampling import Moved, Resampler, systematic
from diffsample.smc.weights import log_mean
from diffsample.struct import pytree, static

Block = tuple[list[Array], Array, Array]  # cloud [G, k, ...], log_w [G, k], ancestors [G, k] among all K


@pytree
class Distributed:
    """A scheme of this module over one axis of a mesh."""

    scheme: Any
    mesh: Mesh = static()
    axis: str = static()

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        devices, k = self.mesh.shape[self.axis], log_w.shape[1]
        if k % devices:
            raise ValueError(f"{k} particles do not divide over the {devices} devices of axis {self.axis!r}")
        over, everywhere = PartitionSpec(None, self.axis), PartitionSpec()

        def local(keys: Array, row: Array, block: Block) -> Block:
            return self.scheme(Place(self.axis, devices), keys, row, block)

        own = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None], log_w.shape)
        specs = {"in_specs": (everywhere, everywhere, over), "out_specs": over, "check_vma": False}
        relative = log_w - log_mean(log_w)[:, None]
        run = jax.shard_map(local, mesh=self.mesh, **specs)
        cloud, log_w, ancestors = run(keys, jnp.asarray(view.index), (cloud, relative, own))
        return Moved(cloud, log_w, ancestors)


class Place:
    """Where a block lies: the axis of the mesh and the number of devices along it."""

    def __init__(self, axis: str, devices: int):
        self.axis, self.devices = axis, devices

    def keys(self, keys: Array) -> Array:
        """Keys of this device, one a group."""
        return fold(keys, jax.lax.axis_index(self.axis))

    def all(self, leaf: Array) -> Array:
        """The blocks of all devices side by side, [G, D * k, ...]."""
        return jax.lax.all_gather(leaf, self.axis, axis=1, tiled=True)

    def sent(self, block: Block, to: Callable[[int], int]) -> Block:
        """The block of the device that sends to this one."""
        pairs = [(source, to(source)) for source in range(self.devices)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.axis, pairs), block)


@pytree
class Global:
    """All weights everywhere, one decision, particles fetched from where they are."""

    resample: Any

    def __call__(self, place: Place, keys: Array, row: Array, block: Block) -> Block:
        cloud, log_w, own = block
        chosen = jax.vmap(self.resample)(keys, place.all(log_w)).astype(jnp.int32)  # the same on every device
        mine = jax.lax.dynamic_slice_in_dim(chosen, jax.lax.axis_index(place.axis) * own.shape[1], own.shape[1], 1)
        return gather([place.all(leaf) for leaf in cloud], mine), jnp.zeros_like(log_w), mine


@pytree
class Local:
    """Every device resamples its own."""

    resample: Any

    def __call__(self, place: Place, keys: Array, row: Array, block: Block) -> Block:
        return _resampled(self.resample, place.keys(keys), block)


@pytree
class Ring:
    """Local, then the first `slots` particles go to the next device, with their weights."""

    resample: Any
    slots: int = static()

    def __call__(self, place: Place, keys: Array, row: Array, block: Block) -> Block:
        block = _resampled(self.resample, place.keys(keys), block)
        sent = place.sent(jax.tree.map(lambda leaf: leaf[:, : self.slots], block), lambda d: (d + 1) % place.devices)
        return jax.tree.map(lambda new, old: jnp.concatenate([old[:, self.slots :], new], axis=1), sent, block)


@pytree
class Butterfly:
    """Devices pool with the partner whose number differs in one bit, and keep half of the pool each."""

    resample: Any
    every_stage: bool = static(default=True)

    def __call__(self, place: Place, keys: Array, row: Array, block: Block) -> Block:
        stages = place.devices.bit_length() - 1
        if 2**stages != place.devices or not stages:
            raise ValueError(f"a butterfly needs a power of 2 of devices, at least 2, got {place.devices}")
        steps = [lambda block, s=s: self._stage(place, fold(place.keys(keys), s), block, s) for s in range(stages)]
        if not self.every_stage:
            return jax.lax.switch(row % stages, steps, block)
        for step in steps:
            block = step(block)
        return block

    def _stage(self, place: Place, keys: Array, block: Block, stage: int) -> Block:
        other = place.sent(block, lambda device: device ^ (1 << stage))
        first = (jax.lax.axis_index(place.axis) >> stage) % 2 == 0  # both pool in the same order
        pool = jax.tree.map(
            lambda a, b: jnp.concatenate([jnp.where(first, a, b), jnp.where(first, b, a)], axis=1), block, other
        )
        return _resampled(self.resample, keys, pool, block[1].shape[1])


@pytree
class Island:
    """Local; then whole devices are resampled where the weights of devices have become unequal."""

    resample: Any
    policy: Any

    def __call__(self, place: Place, keys: Array, row: Array, block: Block) -> Block:
        block = _resampled(self.resample, place.keys(keys), block)
        log_w = place.all(block[1][:, :1])  # [G, D], the mean weight of each device
        do = jax.vmap(self.policy, (0, None))(log_w, row)
        chosen = jax.vmap(self.resample)(fold(keys, place.devices), log_w)
        chosen = jnp.where(do[:, None], chosen, jnp.arange(place.devices, dtype=chosen.dtype)[None])
        mine = jax.lax.dynamic_slice_in_dim(chosen, jax.lax.axis_index(place.axis), 1, 1)[:, 0]

        def fetched(leaf: Array) -> Array:
            islands = jax.lax.all_gather(leaf, place.axis, axis=1)  # [G, D, k, ...]
            return jax.vmap(lambda part, index: part[index])(islands, mine)

        cloud, _, ancestors = jax.lax.cond(do.any(), lambda b: jax.tree.map(fetched, b), lambda b: b, block)
        return cloud, jnp.where(do[:, None], jnp.zeros_like(block[1]), block[1]), ancestors


def global_(mesh: Mesh, axis: str, resample: Resampler = systematic) -> Distributed:
    """Global resampling: every device sees all weights, decides alike, and gathers the particles of all.

    As `resample` on one device, bit for bit. Communication: K weights and K particles to every device.

    Args:
        mesh: devices, for example `jax.make_mesh((8,), ("particles",))`.
        axis: name of the axis that the particles of a group lie along.
        resample: function (key, log_w) -> ancestors.

    Reference: Bolic, Djuric, Hong 2005, IEEE Trans. Signal Process. 53.

    >>> global_(jax.make_mesh((1,), ("particles",)), "particles").axis
    'particles'
    """
    return Distributed(Global(as_pytree(resample)), auto(mesh), axis)


def local(mesh: Mesh, axis: str, resample: Resampler = systematic) -> Distributed:
    """Local resampling: every device resamples its own k particles, which all get the device's mean weight.

    No particle moves; devices may come to differ in weight for good, for which there are `ring` and `butterfly`.

    Args, Reference: as for `global_`.

    >>> local(jax.make_mesh((1,), ("particles",)), "particles").axis
    'particles'
    """
    return Distributed(Local(as_pytree(resample)), auto(mesh), axis)


def ring(mesh: Mesh, axis: str, slots: int, resample: Resampler = systematic) -> Distributed:
    """Ring resampling (RNA): `local`, then a fixed block of particles goes to the next device with its weights.

    Args:
        mesh, axis, resample: as for `global_`.
        slots: particles that each device sends on, at least 1 and fewer than k.

    Raises:
        ValueError: fewer than 1 slot.

    Reference: Bolic, Djuric, Hong 2005, IEEE Trans. Signal Process. 53 (resampling with non-proportional allocation).

    >>> ring(jax.make_mesh((1,), ("particles",)), "particles", 4).scheme.slots
    4
    """
    if slots < 1:
        raise ValueError(f"ring(slots={slots}) must send at least 1 particle; without any it is `local`")
    return Distributed(Ring(as_pytree(resample), slots), auto(mesh), axis)


def butterfly(mesh: Mesh, axis: str, resample: Resampler = systematic, *, every_stage: bool = True) -> Distributed:
    """Butterfly resampling: log2 D stages; at each a device and its partner pool 2k particles and keep k each.

    After all stages the weights are equal; particles travel log2 D times. One stage a row, in turn, is nearly as good.

    Args:
        mesh, axis, resample: as for `global_`. The number of devices must be a power of 2.
        every_stage: False does one stage a resampling, that of the step's number modulo log2 D.

    Raises:
        ValueError: at trace time, a number of devices that is no power of 2.

    Reference: Heine, Whiteley, Cemgil 2020, arXiv 1812.01502.

    >>> butterfly(jax.make_mesh((1,), ("particles",)), "particles").scheme.every_stage
    True
    """
    return Distributed(Butterfly(as_pytree(resample), every_stage), auto(mesh), axis)


def island(mesh: Mesh, axis: str, policy: Any = None, resample: Resampler = systematic) -> Distributed:
    """Island resampling (double bootstrap): `local`, and whole devices are resampled where the policy says so.

    Args:
        mesh, axis, resample: as for `global_`.
        policy: function (log_w [D] of the devices, step) -> bool; `ess(0.5)` by default.

    Reference: Verge, Dubarry, Del Moral, Moulines 2015, arXiv 1306.3911.

    >>> island(jax.make_mesh((1,), ("particles",)), "particles").scheme.policy.threshold
    0.5
    """
    return Distributed(Island(as_pytree(resample), as_pytree(ess(0.5) if policy is None else policy)), auto(mesh), axis)


def _resampled(resample: Resampler, keys: Array, block: Block, k: int | None = None) -> Block:
    """A block (or k slots of it, at equal strides from a random one) resampled; all get the block's mean weight."""
    cloud, log_w, own = block
    chosen = jax.vmap(resample)(keys, log_w)
    if k is not None:
        stride = log_w.shape[1] // k
        offset = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, stride))(keys)
        taken = offset[:, None] + stride * jnp.arange(k)[None]
        chosen = jnp.take_along_axis(chosen, taken, axis=1)
    mean = (logsumexp(log_w, axis=1) - jnp.log(jnp.asarray(log_w.shape[1], log_w.dtype)))[:, None]
    return gather(cloud, chosen), jnp.broadcast_to(mean, chosen.shape), jnp.take_along_axis(own, chosen, axis=1)
