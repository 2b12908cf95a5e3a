"""Samplers around samplers: what the one inside refuses, draws and reports is the whole's, whatever it moves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, smc, solvers
from diffsample.struct import pytree

KEY = jax.random.key(0)


def uniform_logits(params: None, x: jax.Array, cond: Any) -> jax.Array:
    return jnp.zeros((*x.shape, 3))


MODEL = discrete.from_logits(uniform_logits, (), vocab=3, mask_id=3)
DECODER = discrete.Decoder(MODEL, discrete.first_hitting(4))
TOKENS = {
    "decoder": (DECODER, 4),
    "windows": (discrete.sliding_windows(DECODER, 6, window=4, stride=2), 6),
    "speculative": (discrete.speculative(MODEL, 4, drafts=2), 4),
    "uniform": (discrete.uniform_ancestral(MODEL, [1.0, 0.5, 0.0]), 4),
}


def zeros_of(view: Any, cond: Any = None) -> jax.Array:
    return (view.x == 0).sum(axis=1) * 0.5


def more_zeros(before: Any, after: Any) -> jax.Array:
    return zeros_of(after) - zeros_of(before)


def masks(keys: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.full(shape, 3, dtype)


AROUND = {
    "particles": lambda sampler: smc.feynman_kac(sampler, more_zeros, particles=2),
    "selected": lambda sampler: smc.svdd(sampler, zeros_of, 1.0, candidates=2),
    "started": lambda sampler: smc.started(sampler, masks),
    "particles of selected": lambda sampler: smc.feynman_kac(AROUND["selected"](sampler), more_zeros, particles=2),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_a_decoder_refuses_is_refused_before_the_run(name):
    sampler = AROUND[name](DECODER)
    assert sampler.dtype == jnp.int32
    for check in (True, False):
        with pytest.raises(ValueError, match=r"x\[1, 2\] = 7 is no token" if check else "5 positions"):
            ds.sample(KEY, sampler, x=jnp.full((2, 4 if check else 5), 3).at[1, 2].set(7), check=check)
    with pytest.raises(TypeError, match="integer tokens"):
        ds.sample(KEY, sampler, x=jnp.zeros((2, 4)))


@pytest.mark.parametrize("name", ["windows", "speculative", "uniform"])
def test_particles_tilt_every_sampler_of_tokens(name):
    sampler, length = TOKENS[name]
    fk = smc.feynman_kac(sampler, more_zeros, particles=4)
    out = ds.sample(KEY, fk, (2000 * 4, length))
    # exp(0.5 times the zeros that came), token by token; masks are not zeros, and uniform tokens start as one in 3
    came = 1 if name != "uniform" else (2 + np.exp(-0.5)) / 3
    z = np.exp(out.log_z) / ((2 + np.exp(0.5)) / 3 * came) ** length
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(len(z)) and 0 < z.std() < 1  # false alarms: 6e-5 each
    assert out.diagnostics.resampled.any() and out.inner.fault.max() == -1
    best = ds.sample(KEY, smc.svdd(sampler, zeros_of, 0.0, candidates=16), (64, length))
    assert (best.x == 0).mean() > 0.6 and (best.calls > 16).all()


class Bare(NamedTuple):
    """The least that a view may have."""

    x: jax.Array
    fresh: jax.Array


@pytree
class Walk:
    """Five normal steps; none of the members that a sampler may lack."""

    nfe: int = 0

    @property
    def steps(self) -> jax.Array:
        return jnp.arange(5)

    def prior(self, keys: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros(shape, dtype)

    def init(self, keys: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
        return x

    def step(self, keys: jax.Array, state: jax.Array, step: Any, cond: Any) -> jax.Array:
        return state + jax.vmap(jax.random.normal)(keys)

    def finish(self, keys: jax.Array, state: jax.Array, cond: Any) -> jax.Array:
        return state

    def view(self, state: jax.Array) -> Bare:
        return Bare(state, jnp.ones((), bool))


def test_a_sampler_with_the_least_members_is_weighed():
    ones = smc.started(Walk(), lambda keys, shape, dtype: jnp.ones(shape, dtype))
    fk = smc.feynman_kac(ones, lambda before, after: after.x - before.x, particles=4, policy=smc.never)
    x = np.asarray(ds.sample(KEY, ones, (8,)))
    first = 1 + np.asarray(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(KEY, i), 0)))(
        jnp.arange(8)))  # fmt: skip
    out = ds.sample(KEY, fk, (8,))
    np.testing.assert_allclose(out.log_w.ravel(), x - first, atol=1e-5)  # the first call is the start's
    assert not hasattr(ones, "kernel") and not hasattr(ones, "draws") and not hasattr(fk, "admit")


def test_a_selecting_sampler_says_which_rows_draw_and_a_shifted_target_that_none_does():
    process = ds.DiscreteBetas.cosine()
    grid = ds.times.linspace(process, 6)
    law = ds.exact.Gaussian(0.0, 1.0)
    sampler = solvers.linear(law, solvers.euler(process, grid, churn=3.0, churn_min=0.1, churn_max=5.0))
    chosen = smc.svdd(sampler, lambda view, cond: view.x0, 1.0, candidates=2)
    np.testing.assert_array_equal(chosen.draws, sampler.draws)
    assert not hasattr(chosen, "kernel")  # the law of what is kept is another
    quiet = solvers.shifted_adm_code(law, process, grid, window=80, cutoff=300)
    with pytest.raises(ValueError, match="draws no noise"):
        smc.feynman_kac(quiet, lambda before, after: after.x0, particles=2)
