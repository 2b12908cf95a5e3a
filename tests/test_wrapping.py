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


VP = ds.VariancePreserving()
TABLE = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 4), large=True)
LAW = ds.exact.Gaussian([0.0, 0.0, 0.0], 1.0)
DDPM = solvers.linear(LAW, TABLE)
ON_A_PATH = solvers.linear(LAW, TABLE, path=solvers.brownian_path(TABLE))
TARGETS = jnp.arange(24.0).reshape(8, 3) / 24


def squares(x0: jax.Array, cond: Any) -> jax.Array:
    return -((x0 - (TARGETS if cond is None else cond)) ** 2).sum(axis=1)


def sums(before: Any, after: Any) -> jax.Array:
    return (after.x0 - before.x0).sum(axis=1)


def test_numbers_one_a_particle_stand_in_a_reward_as_in_the_condition():
    """What a closure holds fits this batch alone, so that particles cannot be told from the rest by another batch."""
    for reward, scale in ((squares, 0.5), (squares, jnp.full(8, 0.5))):
        fk = smc.feynman_kac(DDPM, smc.fk_difference(reward, scale), particles=4, policy=smc.always)
        held, given = ds.sample(KEY, fk, (8, 3)), ds.sample(KEY, fk, (8, 3), cond=TARGETS)
        np.testing.assert_allclose(held.x, given.x, atol=1e-6)
        assert held.diagnostics.resampled.any()


def test_each_sample_selects_at_its_own_temperature():
    def chosen(alpha: Any) -> np.ndarray:
        return np.asarray(ds.sample(KEY, smc.svdd(DDPM, smc.posterior_mean(squares), alpha, candidates=4), (8, 3)))

    mixed, cold, warm = chosen(jnp.where(jnp.arange(8) < 4, 0.0, 2.0)), chosen(0.0), chosen(2.0)
    np.testing.assert_allclose(mixed[:4], cold[:4], atol=1e-6)
    np.testing.assert_allclose(mixed[4:], warm[4:], atol=1e-6)
    assert abs(cold - warm).max() > 1e-3
    with pytest.raises(ValueError, match=r"alpha has shape \(3,\) in a batch of 8"):
        chosen(jnp.ones(3))


def test_rows_of_padding_are_not_counted_for_candidates():
    value = smc.posterior_mean(squares)
    padded = solvers.linear(LAW, ds.pad(TABLE, steps=9))
    for sampler in (DDPM, padded, smc.lagged(padded, 2)):
        assert smc.svdd(sampler, value, 1.0, candidates=3).nfe == 1 + 3 * 3


def test_a_network_called_in_pieces_may_carry_memory_of_all_samples():
    tilted = smc.annealed(LAW, jnp.float32(1.5))  # its memory holds the exponents, which belong to no sample
    whole, cut = (ds.sample(KEY, solvers.linear(d, TABLE), (5, 3)) for d in (tilted, smc.in_chunks(tilted, 2)))
    np.testing.assert_allclose(whole, cut, atol=1e-6)
    both = smc.product([LAW, ds.exact.Gaussian([1.0, 1.0, 1.0], 1.0)], [0.5, 0.5])  # as many experts as samples
    whole, cut = (ds.sample(KEY, solvers.linear(d, TABLE), (2, 3)) for d in (both, smc.in_chunks(both, 1)))
    np.testing.assert_allclose(whole, cut, atol=1e-6)


def test_a_wrapped_sampler_is_twisted_as_the_one_inside():
    twist, ends = smc.on_x0(squares), squares
    plain = ds.sample(KEY, smc.tds(DDPM, twist, ends, particles=4), (8, 3))
    out = ds.sample(KEY, smc.tds(smc.lagged(DDPM, 2), twist, ends, particles=4), (8, 3))
    np.testing.assert_allclose(out.x, plain.x, atol=1e-6)
    assert out.inner.recent.shape == (8, 2, 3)
    with pytest.raises(TypeError, match="found a Selecting"):
        smc.tds(smc.svdd(DDPM, smc.posterior_mean(squares), 1.0, candidates=2), twist, ends, particles=4)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: smc.svdd(ON_A_PATH, smc.posterior_mean(squares), 1.0, candidates=2), ValueError, "all candidates"),
        (lambda: smc.svdd(smc.lagged(ON_A_PATH, 2), zeros_of, 1.0, candidates=2), ValueError, "a Brownian path"),
        (lambda: smc.feynman_kac(solvers.speculative(DDPM), sums, particles=4), ValueError, "without speculative"),
        (lambda: smc.dcps(ON_A_PATH, squares), ValueError, "path=None"),
        (lambda: smc.dcps(smc.lagged(DDPM, 2), squares), TypeError, "not a Lagged"),
        (lambda: smc.dcps(solvers.linear(LAW, ds.pad(TABLE, steps=9)), squares), ValueError, "5 rows of padding"),
        (
            lambda: smc.fps(solvers.linear(LAW, ds.pad(TABLE, steps=9)), np.eye(3), [0, 0, 0], 1.0, KEY, particles=4),
            ValueError,
            "the path of y",
        ),
        (
            lambda: smc.mcgdiff(smc.started(DDPM, masks), np.eye(3), [0, 0, 0], 1.0, particles=4),
            TypeError,
            "wrap what comes out",
        ),
        (lambda: smc.linear_twist(ds.guidance.operators.mask([1.0, 0.0, 1.0]), [0, 0], 1.0), TypeError, "got a Mask"),
    ],
)
def test_what_cannot_be_wrapped_says_so(make, error, said):
    with pytest.raises(error, match=said):
        ds.sample(KEY, make(), (8, 3))
