"""Every resampler: unbiased copies, the variances of the reference table, zero weights, hazards of float32, orders."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc
from diffsample.discrete.categorical import invert
from diffsample.smc.resamplers.ordering import hilbert_index
from diffsample.smc.resamplers.resampling import cumulated, inverse_cdf

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, REPEATS = 64, 4000
LOG_W = 1.5 * RNG.standard_normal(N)
PHI = RNG.standard_normal(N)
W = np.exp(LOG_W) / np.exp(LOG_W).sum()

# specs/smc.md 1.3: N Var of the average of phi, mean number of distinct ancestors, bound on |copies - N W|
TABLE = {
    "multinomial": (smc.multinomial, 0.748, 26.7, None),
    "killing": (smc.killing, 0.709, 26.8, None),
    "rejection": (smc.rejection, 0.713, 26.8, None),
    "metropolis": (smc.metropolis(32), 0.737, 26.7, None),
    "residual": (smc.residual, 0.408, 28.9, None),
    "systematic": (smc.systematic, 0.258, 32.0, 1),
    "rotated": (smc.rotated, 0.258, 32.0, 1),
    "stratified": (smc.stratified, 0.230, 30.4, 2),
    "ssp": (smc.ssp, 0.185, 31.9, 1),
    "residual_systematic": (smc.residual_systematic, None, None, 1),
    "in_place(systematic)": (smc.in_place(smc.systematic), 0.258, 32.0, 1),
}
UNBIASED = [name for name in TABLE if name != "metropolis"]


def counts(resample: Any, log_w: Any, repeats: int, key: Any = KEY) -> np.ndarray:
    """Copies of each particle, [repeats, K]."""
    ancestors = jax.jit(jax.vmap(resample, (0, None)))(jax.random.split(key, repeats), log_w)
    assert ancestors.dtype == jnp.int32
    return np.asarray(jax.vmap(lambda a: jnp.zeros(len(log_w), jnp.int32).at[a].add(1))(ancestors))


def test_reference_weights_are_those_of_the_table():
    assert abs(1 / (W**2).sum() / N - 0.322) < 5e-4 and abs(N * W.max() - 7.15) < 5e-3
    assert abs((W * (PHI - W @ PHI) ** 2).sum() - 0.743) < 5e-4


@pytest.mark.parametrize("name", TABLE)
def test_resampler_meets_its_row_of_the_reference_table(name):
    resample, variance, unique, bound = TABLE[name]
    copies = counts(resample, jnp.asarray(LOG_W, jnp.float32), REPEATS)
    assert (copies.sum(axis=1) == N).all()
    if name in UNBIASED:  # 4 sigma on 64 means: 0.4 % false alarms; a bounded number of copies varies less
        limit = 4.5 * np.sqrt(np.maximum(N * W * (1 - W), 1e-12) / REPEATS) + 1e-3
        assert (np.abs(copies.mean(axis=0) - N * W) < limit).all()
    if bound:
        assert (np.abs(copies - N * W) < bound + 1e-4).all()
    if variance:
        estimates = copies @ PHI / N
        spread = variance * np.sqrt(2 / REPEATS)  # 4 sigma of a variance; the table's own error is 0.7 %
        assert abs(N * estimates.var() - variance) < 4 * spread + 0.02 * variance
        distinct = (copies > 0).sum(axis=1)
        assert abs(distinct.mean() - unique) < 4 * distinct.std() / np.sqrt(REPEATS) + 0.05


@pytest.mark.parametrize("name", UNBIASED)
def test_particles_of_weight_zero_are_never_chosen(name):
    # 2 of 8 are alive, among them neither the first nor the last, so that U = 0 and U -> 1 would show
    log_w = jnp.full(8, -jnp.inf).at[jnp.array([2, 5])].set(jnp.array([-3.0, -2.0]))
    copies = counts(TABLE[name][0], log_w, 100_000)
    assert set(np.flatnonzero(copies.sum(axis=0))) == {2, 5}


@pytest.mark.parametrize("name", TABLE)
def test_one_particle_with_all_the_weight_is_the_only_ancestor(name):
    log_w = jnp.full(16, -200.0).at[11].set(500.0)
    assert (counts(TABLE[name][0], log_w, 50)[:, 11] == 16).all() or name == "metropolis"


@pytest.mark.parametrize("name", ["systematic", "rotated", "stratified", "residual", "residual_systematic", "ssp"])
def test_equal_weights_give_each_particle_one_copy(name):
    assert (counts(TABLE[name][0], jnp.full(49, -7.0), 200) == 1).all()


@pytest.mark.parametrize("name", TABLE)
def test_weights_that_are_all_zero_end_in_some_particle(name):
    # a device that lost all its particles resamples too, and its weight stays 0
    ancestors = jax.jit(TABLE[name][0])(KEY, jnp.full(8, -jnp.inf))
    assert ancestors.shape == (8,) and ((0 <= ancestors) & (ancestors < 8)).all()


def test_smallest_and_largest_uniforms_respect_weight_zero():
    cumulated = jnp.array([0.0, 0.5, 0.5, 1.0, 1.0])
    u = jnp.array([0.0, 0.5, 1.0 - 2**-24, 1.0])
    assert inverse_cdf(cumulated, u).tolist() == [1, 3, 3, 3]


def test_a_million_float32_weights_stay_in_range_and_in_order():
    log_w = jax.random.normal(KEY, (2**20,))
    ancestors = jax.jit(smc.systematic)(jax.random.key(1), log_w)
    assert (jnp.diff(ancestors) >= 0).all() and ancestors[-1] < 2**20
    copies = np.bincount(np.asarray(ancestors), minlength=2**20)
    w = np.exp(np.asarray(log_w, np.float64))
    expected = 2**20 * w / w.sum()
    assert abs(copies - expected).max() < 2 and np.abs(np.cumsum(copies - expected)).max() < 2.5


@pytest.mark.parametrize("find", ["resampling", "tokens"])
def test_a_weight_of_zero_has_no_room_in_float32_sums(find):
    # a parallel sum moves at weights of 0: points between its two values are what would choose them
    alive, log_w = jax.random.bernoulli(KEY, 0.5, (2**16,)), jax.random.normal(jax.random.key(1), (2**16,))
    w = jnp.where(alive, jnp.exp(log_w), 0.0)
    sums = jnp.cumsum(w)
    u = jnp.clip(sums / sums.max(), 0.0, 1 - 2.0**-24)
    if find == "tokens":
        some = u[:: 2**8]
        chosen = invert(jnp.broadcast_to(w, (len(some), len(w))), some)
    else:
        chosen = inverse_cdf(cumulated(w), u)
    assert (w[chosen] > 0).all()
    after = jnp.argmax(alive)  # u = 0 takes the first with a weight
    assert (inverse_cdf(cumulated(w), jnp.zeros(1)) == after).all() and invert(w[None], jnp.zeros(1))[0] == after


def test_every_slot_of_rotated_systematic_has_the_law_of_the_weights():
    keys = jax.random.split(KEY, 40_000)
    first = np.asarray(jax.jit(jax.vmap(lambda key: smc.rotated(key, jnp.asarray(LOG_W, jnp.float32))[0]))(keys))
    share = np.bincount(first, minlength=N) / len(keys)
    assert (np.abs(share - W) < 4.5 * np.sqrt(W / len(keys))).all()


def test_in_place_moves_only_surplus_copies():
    resample, log_w = smc.in_place(smc.multinomial), jnp.asarray(LOG_W, jnp.float32)
    pair = jax.jit(lambda key: (resample(key, log_w), smc.multinomial(key, log_w)))
    for key in jax.random.split(KEY, 20):
        ancestors, chosen = map(np.asarray, pair(key))
        np.testing.assert_array_equal(np.sort(ancestors), chosen)
        np.testing.assert_array_equal(ancestors[np.unique(chosen)], np.unique(chosen))


@pytest.mark.parametrize("name", ["rotated", "residual", "ssp", "rejection"])
def test_resampler_is_the_same_alone_and_under_vmap(name):
    keys, log_w = jax.random.split(KEY, 3), jnp.asarray(LOG_W[:48].reshape(3, 16), jnp.float32)
    together = jax.jit(jax.vmap(TABLE[name][0]))(keys, log_w)
    alone = [jax.jit(TABLE[name][0])(key, row) for key, row in zip(keys, log_w, strict=True)]
    np.testing.assert_array_equal(together, jnp.stack(alone))


@pytest.mark.parametrize(("d", "bits"), [(1, 5), (2, 4), (3, 3), (4, 2)])
def test_hilbert_curve_visits_every_cell_once_in_steps_of_one(d, bits):
    cells = np.array(list(itertools.product(range(2**bits), repeat=d)), np.uint32)
    index = np.asarray(hilbert_index(jnp.asarray(cells), bits))
    np.testing.assert_array_equal(np.sort(index), np.arange(len(cells)))
    path = cells[np.argsort(index)].astype(int)
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()


def view_of(x: jax.Array) -> ds.View:
    zero = jnp.zeros(())
    level = ds.Level(zero, zero, zero)
    return ds.View(x, level, ds.Prediction(x, x), (), zero, zero, zero, zero, jnp.ones((), bool))


def moved(resample: Any, x: jax.Array, log_w: jax.Array, repeats: int) -> tuple[np.ndarray, ...]:
    """Clouds [repeats, K, ...] after a resampler with `move`, and the weights they are left with [repeats, K]."""
    many, logs = jnp.tile(x[None], (repeats, *(1,) * x.ndim)), jnp.tile(log_w[None], (repeats, 1))
    keys = jax.random.split(KEY, repeats)
    out = jax.jit(resample.move)(keys, logs, [many], view_of(many.reshape(-1, *x.shape[1:])))
    return np.asarray(out.cloud[0]), np.asarray(out.log_w), np.asarray(out.ancestors)


def test_sorted_systematic_beats_unsorted_on_a_smooth_function():
    x, log_w = jnp.asarray(PHI[:, None], jnp.float32), jnp.asarray(LOG_W, jnp.float32)
    clouds, left, ancestors = moved(smc.sorted_by(lambda view: view.x[:, 0]), x, log_w, 2000)
    np.testing.assert_array_equal(clouds, np.asarray(x)[ancestors])
    assert (left == 0).all()
    means = clouds[..., 0].mean(axis=1)
    assert abs(means.mean() - W @ PHI) < 4.5 * means.std() / np.sqrt(2000) + 1e-4
    assert N * means.var() < 0.05  # unsorted: 0.258


def test_hilbert_resampling_beats_unsorted_in_two_dimensions():
    x = np.random.default_rng(1).standard_normal((N, 2))
    log_w = jnp.asarray(LOG_W, jnp.float32)
    clouds, _, _ = moved(smc.hilbert(), jnp.asarray(x, jnp.float32), log_w, 2000)
    unsorted = counts(smc.systematic, log_w, 2000) @ x / N
    means = clouds.mean(axis=1)
    assert (np.abs(means.mean(axis=0) - W @ x) < 4.5 * means.std(axis=0) / np.sqrt(2000) + 1e-3).all()
    assert means.var(axis=0).sum() < 0.4 * unsorted.var(axis=0).sum()


def test_hilbert_refuses_more_coordinates_than_bits():
    with pytest.raises(ValueError, match="0 bits for each of 64 coordinates"):
        moved(smc.hilbert(), jnp.zeros((4, 64)), jnp.zeros(4), 2)


@pytest.mark.parametrize("mix", [0.3, 1.0])
def test_soft_resampling_is_unbiased_with_the_weights_it_leaves(mix):
    x, log_w = jnp.asarray(PHI[:, None], jnp.float32), jnp.asarray(LOG_W, jnp.float32)
    clouds, left, _ = moved(smc.soft(mix, smc.multinomial), x, log_w, 4000)
    for value, truth in ((np.exp(left).mean(axis=1), 1.0), ((np.exp(left) * clouds[..., 0]).mean(axis=1), W @ PHI)):
        assert abs(value.mean() - truth) < 4 * value.std() / np.sqrt(4000) + 1e-5
    assert (np.abs(left).max() < 1e-5) == (mix == 1.0)


@pytest.mark.parametrize("bad", [0.0, 1.5])
def test_soft_refuses_a_mix_outside_its_range(bad):
    with pytest.raises(ValueError, match=f"mix={bad}"):
        smc.soft(bad)


def test_optimal_transport_keeps_the_weighted_mean_exactly(x64):
    pytest.importorskip("ott")
    x = np.random.default_rng(2).standard_normal((N, 2))
    clouds, left, _ = moved(smc.transport(0.05), jnp.asarray(x), jnp.asarray(LOG_W), 1)
    np.testing.assert_allclose(clouds[0].mean(axis=0), W @ x, atol=1e-12)
    assert (left == 0).all()
    # a permutation of a sharp plan for uniform weights gives the particles back
    same, _, _ = moved(smc.transport(1e-3), jnp.asarray(x), jnp.zeros(N), 1)
    np.testing.assert_allclose(same[0], x, atol=2e-2)  # the blur of epsilon
    weighted_var = W @ (x - W @ x) ** 2
    assert (clouds[0].var(axis=0) > 0.7 * weighted_var).all() and (clouds[0].var(axis=0) < weighted_var).all()


def test_optimal_transport_refuses_tokens_and_bad_epsilon():
    pytest.importorskip("ott")
    with pytest.raises(ValueError, match="epsilon=0"):
        smc.transport(0)
    with pytest.raises(ValueError, match=r"hold .'int32'"):
        moved_tokens = [jnp.zeros((1, 4, 2), jnp.int32)]
        smc.transport(0.1).move(KEY, jnp.zeros((1, 4)), moved_tokens, view_of(jnp.zeros((4, 2))))


@pytest.mark.parametrize(("steps", "said"), [(0, "steps=0"), (-3, "steps=-3")])
def test_metropolis_refuses_chains_without_steps(steps, said):
    with pytest.raises(ValueError, match=said):
        smc.metropolis(steps)
    with pytest.raises(ValueError, match="1/K"):
        smc.metropolis_steps(1.5, 4)


def test_metropolis_steps_bound_the_distance_to_the_weights():
    steps = smc.metropolis_steps(W.max(), N)
    assert steps == 31
    for chain, near in ((steps, True), (2, False)):
        copies = counts(smc.metropolis(chain), jnp.asarray(LOG_W, jnp.float32), 2000)
        distance = 0.5 * np.abs(copies.mean(axis=0) / N - W).sum()
        assert (distance < 0.02) == near
