"""Remasking on asynchronous clocks: the grid's law, fewer calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffsample as ds
from diffsample import discrete, exact
from diffsample.compiles import count_compiles

LEVELS = discrete.levels(discrete.Polynomial(), 3)
GRIDS = {
    "cap": lambda: discrete.remask_at_most(LEVELS, 0.3),
    "forward_backward": lambda: discrete.forward_backward(LEVELS),
    "flow": lambda: discrete.flow_corrector(LEVELS, 1.5),
    "none": lambda: discrete.ancestral(LEVELS),
}


def three() -> exact.MarkovChain:
    return exact.markov_chain([0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], 3)


def revealing_calls(grid, length: int) -> float:
    """Expected steps that reveal something: P(masked) is the level, whatever is masked again."""
    before = np.append(np.asarray(grid.start), np.asarray(grid.clock)[:-1])
    return float(np.sum(1 - (1 - before * np.asarray(grid.rho)) ** length))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", GRIDS)
def test_law_is_that_of_the_grid_and_calls_are_no_more_than_the_steps_that_reveal(name):
    model, grid = three().model(), GRIDS[name]()
    laws = [
        exact.output_law(discrete.Decoder(model, policy), np.full(3, 3))
        for policy in (grid, discrete.asynchronous_remasking(grid, 3))
    ]
    np.testing.assert_array_equal(laws[0].x, laws[1].x)
    np.testing.assert_allclose(laws[1].p, laws[0].p, atol=1e-12)
    assert laws[1].calls <= laws[0].calls + 1e-9
    if name == "none":
        assert laws[1].calls == pytest.approx(revealing_calls(grid, 3))
    if name == "cap":  # a token that is masked again before the next call leaves x, and its features, as they were
        assert laws[1].calls < revealing_calls(grid, 3) < laws[0].calls


@pytest.mark.usefixtures("x64")
def test_bound_on_a_step_finishes_it_in_the_next_update():
    # one step in groups of one is token by token: exact
    policy = discrete.asynchronous_remasking(discrete.ancestral([1.0, 0.0]), 3, most=1)
    chain = three()
    law = exact.output_law(discrete.Decoder(chain.model(), policy), np.full(3, 3))
    assert law.total_variation(chain.log_prob) < 1e-12 and law.calls == pytest.approx(3.0)


def test_sequences_belong_to_their_keys_prompts_stay_and_nothing_recompiles():
    x = jnp.array([[3, 1, 3, 3, 0], [0, 1, 2, 1, 0], [3, 3, 3, 3, 3]])

    def run(key, eta, x, first=0):
        grid = discrete.remask_at_most(discrete.levels(discrete.Polynomial(), 16), eta)
        policy = discrete.asynchronous_remasking(grid, 5)
        return ds.sample(key, discrete.Decoder(exact.golden_chain().model(), policy), x=x, first=first)

    out = run(jax.random.key(0), 0.2, x)
    assert (out.x[x != 3] == x[x != 3]).all() and (out.x != 3).all() and out.calls[1] == 0
    alone = run(jax.random.key(0), 0.2, x[2:], first=2)
    np.testing.assert_array_equal(alone.x[0], out.x[2])
    other = x[::-1]
    with count_compiles() as compiles:
        run(jax.random.key(1), 0.05, other)
    assert compiles.count == 0


@pytest.mark.slow
def test_cap_at_eight_steps_by_two_hundred_thousand_samples():
    # G-test against the law of the grid by enumeration: fails a correct decoder once in 10^6 keys
    grid, n = discrete.remask_at_most(discrete.levels(discrete.Polynomial(), 8), 0.1), 200000
    model = exact.golden_chain().model()
    law = exact.output_law(discrete.Decoder(model, grid), np.full(5, 3))
    out = ds.sample(jax.random.key(5), discrete.Decoder(model, discrete.asynchronous_remasking(grid, 5)), (n, 5))
    counts = np.bincount(np.asarray(out.x) @ 3 ** np.arange(5)[::-1], minlength=243)
    g = 2 * np.sum(counts[counts > 0] * np.log(counts[counts > 0] / (n * law.p[counts > 0])))
    assert g < scipy.stats.chi2.ppf(1 - 1e-6, 242)
    assert revealing_calls(grid, 5) == pytest.approx(4.58, abs=0.005)
    assert 4.4 < np.mean(out.calls) < 4.58  # fewer: a token revealed and masked again between two calls needs none
    fine = discrete.remask_at_most(discrete.levels(discrete.Polynomial(), 32), 0.1)
    assert revealing_calls(fine, 5) == pytest.approx(10.0, abs=0.05)


def test_rules_that_depend_on_the_sequence_are_refused():
    with pytest.raises(TypeError, match="do not depend on the sequence"):
        discrete.asynchronous_remasking(discrete.remask_unsure(LEVELS), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="halves"):
        discrete.asynchronous_remasking(discrete.trapezoidal(LEVELS), 3)
