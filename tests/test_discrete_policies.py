"""What policies and correctors ask and decide, against numbers worked out by hand; clocks against the grid's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, exact
from diffsample.discrete.draws import Draws, Keyed
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Place, Policy, Reveal, Selection
from diffsample.struct import pytree

KEY = jax.random.key(7)
MASK = 3


class Asked:
    """Draws that remember what they were asked, and always answer the same."""

    def __init__(self):
        self.coin, self.token, self.order = [], [], []

    def at(self, stream):
        return self

    def coins(self, p):
        self.coin.append(np.asarray(p))
        return p > 2

    def tokens(self, log_p, valid):
        self.token.append(np.exp(np.asarray(log_p)))
        return jnp.argmax(log_p, axis=-1).astype(jnp.int32)

    def ranks(self, log_w):
        self.order.append(np.exp(np.asarray(log_w)))
        rank = jnp.argsort(jnp.argsort(-log_w, axis=1), axis=1)
        return jnp.where(log_w > -jnp.inf, rank, log_w.shape[1])


def asked() -> Any:
    return Asked()


def laws_of(p, x):
    """Laws [L, V] at tokens x [B, L], whatever x is."""
    model = discrete.from_logits(as_params, jnp.log(jnp.asarray(p)), vocab=MASK, mask_id=MASK, hollow=True)
    x = jnp.asarray(x)
    return Laws(model, model(x, jnp.ones(x.shape[0]), None), x)


def as_params(params, x, cond):
    return jnp.broadcast_to(params, (*x.shape, params.shape[-1]))


def place_of(x, frozen=()):
    masked = jnp.asarray(x) == MASK
    free = jnp.ones(masked.shape, bool).at[:, list(frozen)].set(False)
    return Place(masked, free, jnp.ones(masked.shape[0]), jnp.int32(0))


def test_grids_keep_the_share_of_masks_and_mask_again_as_often_as_they_say():
    levels = discrete.levels(discrete.Polynomial(), 20)
    flow = discrete.flow_corrector(levels, 0.5)
    for grid in (
        discrete.ancestral(levels),
        discrete.remask_at_most(levels, 0.1),
        discrete.remask_rescaled(levels, 0.3),
        discrete.forward_backward(levels),
        discrete.remask_loop(20, eta=0.1),
        flow,
    ):
        level = np.append(np.asarray(grid.start), np.asarray(grid.clock))
        back = 0.0 if grid.remask is None else np.asarray(grid.remask)
        after = level[:-1] * (1 - np.asarray(grid.rho)) + (1 - level[:-1]) * back
        np.testing.assert_allclose(after, level[1:], atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(flow.remask), [0.025] * 19 + [0.0], rtol=1e-6
    )  # eta times the step; none in the last
    # at 90 % clean from t = 0.55 to 0.05: of the masks nine in ten are revealed, of the tokens one in ten is masked
    loop = discrete.remask_loop(20, eta=0.1)
    inside = (np.arange(20) >= 9) & (np.arange(20) < 19)
    np.testing.assert_allclose(np.asarray(loop.remask), np.where(inside, 0.1, 0.0), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(loop.rho)[inside], 0.9, rtol=1e-5)
    between = discrete.remask_loop(20, eta=0.1, start=0.53, stop=0.07)  # whole steps inside the times only
    assert np.flatnonzero(np.asarray(between.remask)).tolist() == list(range(10, 18))


def test_euler_reveals_at_the_rate_where_a_step_starts():
    # alpha = 1 - t^2: masks leave at rate 2 / t
    grid = discrete.euler(discrete.Polynomial(2.0), [1.0, 0.9, 0.8, 0.0])
    np.testing.assert_allclose(grid.rho, [0.2, 0.2 / 0.9, 1.0], rtol=1e-6)
    np.testing.assert_allclose(grid.clock, [0.81, 0.64, 0.0], rtol=1e-6)


def test_unsure_tokens_are_masked_again_by_a_softmax_over_what_was_decoded():
    draws, policy = asked(), discrete.remask_unsure([1.0, 0.5, 0.25, 0.0])
    x = jnp.array([[MASK, 0, 1, 2]])
    newest = Reveal(jnp.array([[2, 0]]), jnp.array([[True, False]]), *(jnp.log(jnp.array([[0.7, 0.1]])),) * 3)
    place = place_of(x, frozen=[3])._replace(newest=newest)
    row = jax.tree.map(lambda leaf: leaf[1], policy.steps)  # from half clean to three quarters: sigma_max = 1/2
    chosen, psi = policy.select(draws, laws_of(np.full((4, 3), 1 / 3), x), place, jnp.array([[0.9, 0.2, 0.3, 0]]), row)
    np.testing.assert_allclose(psi, [[0.9, 0.2, 0.7, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(draws.coin[0], [[0.5, 0.5 / (1 + np.exp(-0.5)), 0.5 / (1 + np.exp(0.5)), 0]], rtol=1e-6)
    assert chosen.clock.tolist() == [0.25]
    assert discrete.remask_unsure([0.75, 0.5, 0.0]).init(draws, place)[1].tolist() == [0.75]


def test_sizes_of_groups():
    seven = [int(discrete.equal_sizes(jnp.int32(7), jnp.int32(i), 3)) for i in range(4)]
    assert seven == [0, 3, 5, 7]
    sixteen = [int(discrete.cosine_sizes(jnp.int32(16), jnp.int32(i), 8)) for i in range(9)]
    assert sixteen == [0, 1, 2, 3, 5, 8, 10, 13, 16]  # 16 cos(pi/2 i/8), rounded down, stay
    assert int(discrete.cosine_sizes(jnp.int32(64), jnp.int32(2), 64)) == 2  # where rounding would stop, one at least
    np.testing.assert_allclose(discrete.maskgit(8, 4, temperature=2.0).temperatures, [1.5, 1.0, 0.5, 0.0], atol=2e-6)


def test_scores_decide_how_many_and_in_which_order():
    p = [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.7, 0.2, 0.1]]
    x = np.full((2, 4), MASK)
    laws, place, row = laws_of(p, x), place_of(x), jnp.int32(0)
    bounded = (discrete.threshold(4, np.log(0.1), most=2), discrete.entropy_bounded(4, 99.0, most=2))
    for policy in bounded:
        assert policy.select(asked(), laws, place, (), row)[0].reveal.tolist() == [[False, True, False, True]] * 2
    # a number for each sequence
    passes = discrete.threshold(4, jnp.log(jnp.array([0.65, 0.75])))
    chosen = passes.select(asked(), laws, place, (), row)[0].reveal
    assert chosen.tolist() == [[False, True, False, True], [False, True, False, False]]
    gamma = discrete.entropy_bounded(4, jnp.array([99.0, 0.0]))
    assert gamma.select(asked(), laws, place, (), row)[0].reveal.sum(axis=1).tolist() == [4, 1]
    draws = asked()
    discrete.best_first(4, temperature=jnp.array([0.5, 1.0])).select(draws, laws, place, jnp.array([4, 4]), row)
    np.testing.assert_allclose(draws.order[0], [[0.25, 0.64, 0.36, 0.49], [0.5, 0.8, 0.6, 0.7]], rtol=1e-5)


def test_drafts_are_scored_at_temperature_one():
    p = [[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]]
    policy = discrete.low_confidence(2, proposal=discrete.greedy)
    row = jax.tree.map(lambda leaf: leaf[0], policy.steps)
    x = np.full((1, 2), MASK)
    chosen, _ = policy.select(asked(), laws_of(p, x), place_of(x), jnp.array([2]), row)
    assert chosen.reveal.tolist() == [[False, True]] and np.asarray(chosen.tokens).tolist() == [[0, 0]]


def test_path_planning_masks_the_worst_of_new_and_old_tokens():
    p = [[0.9, 0.05, 0.05], [0.6, 0.2, 0.2], [0.2, 0.8, 0.0], [0.01, 0.5, 0.49]]
    x = np.array([[MASK, MASK, 0, 0]])  # the last is a prompt, however improbable
    for eta, reveal, again in ((1.0, [True, True], True), (0.1, [True, False], False)):
        policy = discrete.path_planning(4, 3, eta=eta, proposal=discrete.greedy)
        place = place_of(x, frozen=[3])
        chosen, _ = policy.select(asked(), laws_of(p, x), place, jnp.array([3]), policy.steps[1])  # one stays masked
        assert chosen.reveal.tolist() == [[*reveal, False, False]] and np.asarray(chosen.remask).tolist() == [
            [False] * 2 + [again, False]
        ]


def test_correctors_redraw_decoded_positions_only():
    p, x = [[0.25, 0.5, 0.25], [0.16, 0.6, 0.24], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]], np.array([[0, 0, MASK, 0]])
    laws, place = laws_of(p, x), place_of(x, frozen=[3])
    draws = asked()
    new = discrete.Gibbs()(draws, laws, place)
    np.testing.assert_allclose(draws.token[0][0, 0], [0.5, 0.5, 0, 0], atol=1e-6)
    assert new.tolist() == [[1, 0, MASK, 0]]
    draws = asked()
    new = discrete.Informed(2, temperature=2.0)(draws, laws, place)
    np.testing.assert_allclose(draws.order[0], [[2.0, 2.5, 0, 0]], rtol=1e-5)  # c^(-1/2)
    assert new.tolist() == [[1, 1, MASK, 0]] and draws.token[0].shape == (1, 2, 3)


@pytest.mark.parametrize("theta, mismatch", [(0.5, 0.3), (0.25, 0.3125)])
def test_trapezoidal_step_extrapolates_between_the_two_halves(theta, mismatch):
    # two tokens that agree four times in five, one step. By hand, theta = 1/2: apart (chance 1/2) they agree by luck;
    # in turn the second is drawn from c_r + (c_r - c_m) / 3 = (.9, .1). theta = 1/4: c_r + 15/17 (c_r - c_m) is (1, 0)
    pair = exact.markov_chain([0.5, 0.5], [[0.8, 0.2], [0.2, 0.8]], 2)
    policy = discrete.trapezoidal(np.array([1.0, 0.0, 0.0]), theta)  # and an idle row
    law = exact.output_law(
        discrete.Decoder(pair.model(), policy, discrete.Extrapolated(linear=True)), np.full(2, 2), rows=16
    )
    assert law.p[law.x[:, 0] != law.x[:, 1]].sum() == pytest.approx(mismatch, abs=1e-6)


def timed(params, x, t, cond):
    """Logits of two tokens that depend on the neighbour and on the time of the call."""
    seen = jnp.where(x[:, ::-1] < 2, x[:, ::-1].astype(t.dtype) - 0.5, 0.0)
    return jnp.stack([jnp.zeros_like(seen), 4 * seen * t[:, None] + 3 * t[:, None] - 1], axis=-1)


def as_it_is(params, h, positions):
    return h


def square(m):
    return m**2


@pytest.mark.usefixtures("x64")
def test_asynchronous_clocks_call_a_timed_network_when_the_grid_does():
    # from a state that is not all masks, so that the first level counts
    model = discrete.MaskedModel(timed, as_it_is, (), vocab=2, mask_id=2, time=square)
    levels = [0.8, 0.4, 0.1, 0.0]
    cap = discrete.remask_at_most(levels, 0.3)
    for grid, clocks in (
        (discrete.ancestral(levels), discrete.asynchronous(levels, 2)),
        (cap, discrete.asynchronous_remasking(cap, 2)),
    ):
        laws = [exact.output_law(discrete.Decoder(model, policy), np.full(2, 2), rows=16) for policy in (grid, clocks)]
        np.testing.assert_allclose(laws[1].p, laws[0].p, atol=1e-12)
        if grid is not cap:  # a call wherever a mask is left, though nothing was revealed: the time has changed
            assert laws[0].calls == pytest.approx(1 + (1 - 0.5**2) + (1 - 0.875**2))


@pytest.mark.usefixtures("x64")
def test_speculative_rows_call_a_timed_network_when_one_by_one_would():
    model = discrete.MaskedModel(timed, as_it_is, (), vocab=2, mask_id=2, time=square)
    one_by_one = exact.output_law(discrete.Decoder(model, discrete.given_order([1, 0, 2])), np.full(3, 2), rows=16)
    sampler = discrete.speculative(model, 3, drafts=3, order=[1, 0, 2])
    np.testing.assert_allclose(exact.output_law(sampler, np.full(3, 2), rows=16).p, one_by_one.p, atol=1e-6)


def test_first_hitting_calls_at_the_order_statistics_of_what_is_masked():
    # n masked: the call before the j-th of them is at the j-th largest of n uniforms, of mean (n + 1 - j) / (n + 1)
    n = 4000
    x = jnp.tile(jnp.array([[MASK] * 4, [MASK, 0, MASK, 0]]), (n, 1))
    sampler = discrete.Decoder(
        exact.markov_chain([0.5, 0.3, 0.2], np.full((3, 3), 1 / 3), 4).model(), discrete.first_hitting(4)
    )
    _, clock = ds.sample(KEY, sampler, x=x, record=lambda view: view.level.t)
    error = 4.5 * 0.29 / np.sqrt(n)
    np.testing.assert_allclose(clock[:, ::2].mean(axis=1), [0.8, 0.6, 0.4, 0.2, 0.0], atol=error)
    np.testing.assert_allclose(clock[:3, 1::2].mean(axis=1), [2 / 3, 1 / 3, 0.0], atol=error)
    jumps = discrete.Decoder(sampler.model, discrete.next_jump(4))  # of rate 1 a position: the same clocks, a row later
    _, clock = ds.sample(KEY, jumps, x=x[::2], record=lambda view: view.level.t)
    np.testing.assert_allclose(clock.mean(axis=1), [1.0, 0.8, 0.6, 0.4, 0.2], atol=error)


class Once(Draws):
    """Draws of zeros, as shapes; each source may be asked once."""

    def __init__(self, seen, path=()):
        self.seen, self.path = seen, path

    def at(self, stream):
        return Once(self.seen, (*self.path, stream if isinstance(stream, int) else repr(stream)))

    def _ask(self, question):
        assert self.path not in self.seen, f"{self.path} is asked twice: {question}"
        self.seen.append(self.path)
        return getattr(Keyed(jax.random.split(KEY, 2)), question)

    def tokens(self, log_p, valid):
        return self._ask("tokens")(log_p, valid)

    def coins(self, p):
        return self._ask("coins")(p)

    def ranks(self, log_w):
        return self._ask("ranks")(log_w)

    def cells(self, edges, valid):
        return self._ask("cells")(edges, valid)

    def clocks(self, count, length):
        return self._ask("clocks")(count, length)

    def waits(self, hazard, since, valid):
        return self._ask("waits")(hazard, since, valid)


def test_every_source_of_randomness_is_asked_once():
    chain, levels = exact.markov_chain([0.5, 0.3, 0.2], np.full((3, 3), 1 / 3), 4), [1.0, 0.5, 0.0]
    cap = discrete.remask_at_most(levels, 0.3)
    policies = [
        discrete.first_hitting(4),
        discrete.asynchronous(levels, 4, most=1),
        discrete.asynchronous_remasking(cap, 4, most=1),
        discrete.blockwise(discrete.asynchronous_remasking(cap, 2), 4, 2),
        discrete.redrawn(discrete.best_first(4, updates=2, temperature=1.0), 1),
        discrete.maskgit(4, 2),
        discrete.path_planning(4, 2),
        discrete.next_jump(4),
        discrete.remask_unsure(levels),
    ]
    samplers = [discrete.Decoder(chain.model(), p, corrector=discrete.Informed(2), corrections=2) for p in policies]
    windowed = discrete.Decoder(
        exact.markov_chain([0.5, 0.5], np.eye(2), 2).model(), discrete.asynchronous_remasking(cap, 2)
    )
    samplers += [discrete.speculative(chain.model(), 4), discrete.sliding_windows(windowed, 4, window=2, stride=1)]
    for sampler in samplers:
        x = jnp.full((2, 4), sampler.model.mask_id)
        state = jax.eval_shape(lambda x, s=sampler: s.init(Once([]), x, None), x)
        row = jax.tree.map(lambda leaf: leaf[0], sampler.steps)
        seen = []
        jax.eval_shape(lambda state, row, s=sampler, seen=seen: s.step(Once(seen), state, row, None), state, row)
        assert seen
    law = jnp.zeros((2, 3, 2, 4))
    jax.eval_shape(lambda law: discrete.select_draft(Once([]), law[:, 0, 0], law[:, 0, 0], jnp.zeros((2, 3), int)), law)
    jax.eval_shape(lambda law: discrete.verify_block(Once([]), law, law[:, :, :1], jnp.zeros((2, 3, 1), int)), law)


def test_the_most_calls_of_a_decoder_are_known_before_it_runs():
    model = exact.golden_chain().model()
    corrected = discrete.Decoder(model, discrete.first_hitting(5), corrector=discrete.Gibbs(), corrections=2)
    windows = discrete.sliding_windows(
        discrete.Decoder(model, discrete.first_hitting(5, updates=2)), 9, window=5, stride=2
    )
    assert (corrected.nfe, windows.nfe, discrete.speculative(model, 5).nfe) == (15, 6, 5)


def test_blocks_start_afresh_and_a_policy_for_fewer_positions_is_refused():
    x = jnp.array([[0, 1, MASK, MASK], [MASK] * 4, [MASK, 0, MASK, MASK]])
    model = exact.markov_chain([0.5, 0.3, 0.2], np.full((3, 3), 1 / 3), 4).model()
    out = ds.sample(KEY, discrete.Decoder(model, discrete.blockwise(discrete.first_hitting(2), 4, 2)), x=x)
    assert out.calls.tolist() == [2, 4, 3] and (out.x < MASK).all()
    with pytest.raises(ValueError, match="at most 2 positions, not block=4"):
        discrete.blockwise(discrete.first_hitting(2), 8, 4)


@pytree
class MasksAll(Policy):
    """Reveals everything and masks everything again, prompts too, once."""

    updates: jax.Array

    @property
    def steps(self):
        return self.updates

    def select(self, draws, laws, place, memory, row):
        everywhere = jnp.ones_like(place.masked)
        return Selection(place.masked, place.clock, remask=everywhere & (row == 0)), memory


def test_a_policy_that_masks_a_prompt_again_is_not_obeyed():
    x = jnp.array([[MASK, 0, 1, MASK]])
    sampler = discrete.Decoder(
        exact.markov_chain([0.5, 0.3, 0.2], np.full((3, 3), 1 / 3), 4).model(), MasksAll(jnp.arange(2))
    )
    _, masked = ds.sample(KEY, sampler, x=x, record=lambda view: view.masked)
    assert masked[:, 0].tolist() == [[True, False, False, True]] * 2 + [[False] * 4]


def by_class(params, x, cond):
    """One possible token, that of the sequence's class; nothing known beside a 2."""
    sure = jnp.where(jnp.arange(3)[None, None] == cond[:, None, None], 0.0, -jnp.inf)
    return jnp.where((x == 2).any(axis=1)[:, None, None], jnp.nan, sure) + jnp.zeros((*x.shape, 3))


def test_windows_and_speculation_keep_classes_apart_and_name_the_position_of_the_whole():
    model, cond = discrete.from_logits(by_class, (), 3, MASK), jnp.array([0, 1])
    windows = discrete.sliding_windows(discrete.Decoder(model, discrete.first_hitting(3)), 5, window=3, stride=2)
    for sampler in (windows, discrete.speculative(model, 5, drafts=3)):
        assert ds.sample(KEY, sampler, (2, 5), cond=cond).x.tolist() == [[0] * 5, [1] * 5]
    x = jnp.array([[MASK] * 5, [MASK, MASK, MASK, MASK, 2]])
    assert ds.sample(KEY, windows, x=x, cond=cond, check=False).fault.tolist() == [-1, 3]


def unsure_beside_tokens(params, x, cond):
    """NaN wherever anything is observed, at every position but the first."""
    known = (x != MASK).any(axis=1)[:, None, None] & (jnp.arange(x.shape[1]) > 0)[None, :, None]
    return jnp.where(known, jnp.nan, 0.0) + jnp.zeros((*x.shape, 3))


def test_no_draw_from_no_law_goes_unreported():
    model = discrete.from_logits(unsure_beside_tokens, (), 3, MASK, hollow=True)
    impossible = discrete.Temperature(jnp.float32(0.0))
    sure = discrete.from_logits(as_params, jnp.zeros((4, 3)), 3, MASK)
    for sampler, faults in (
        (discrete.speculative(model, 4, order=[0, 1, 2, 3]), [1, 1]),  # met in the verification
        (discrete.Decoder(model, discrete.given_order([0, 1, 1, 1])), [1, 1]),  # the first of several
        (discrete.Decoder(sure, discrete.first_hitting(4, updates=1), impossible), [0, 0]),
        (discrete.Decoder(sure, discrete.low_confidence(4, proposal=impossible)), [0, 0]),
    ):
        assert ds.sample(KEY, sampler, (2, 4), check=False).fault.tolist() == faults
        with pytest.raises(FloatingPointError, match="sequence 0 went wrong"):
            ds.sample(KEY, sampler, (2, 4))
    known = jnp.array([[MASK, 0, 0, 1]])
    for corrector in (discrete.Gibbs(), discrete.Informed(1)):
        place = place_of(known, frozen=[0])._replace(masked=known == 9)
        laws = Laws(model, model(known, jnp.ones(1), None), known)
        assert (corrector(Keyed(jax.random.split(KEY, 1)), laws, place) == MASK).sum() == 2  # one more


def test_numbers_that_mean_nothing_are_refused_with_the_remedy():
    model, uniform = discrete.from_logits(as_params, jnp.zeros((5, 3)), 3, MASK), [1.0, 0.5, 0.0]
    inside = discrete.from_logits(as_params, jnp.zeros((5, 3)), 3, 0)
    for call, message in (
        (lambda: discrete.from_logits(as_params, (), 1, 0), "vocab=1 with mask_id=0 leaves no token"),
        (lambda: discrete.ancestral(discrete.Polynomial()), r"discrete.levels\(schedule, steps\) makes them"),
        (lambda: discrete.euler(discrete.Polynomial(), [1.5, 0.0]), r"inside \[0, 1\]"),
        (lambda: discrete.asynchronous(uniform, 2.5), "length=2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: discrete.threshold(5, -0.1, most=0), "most=0"),
        (lambda: discrete.entropy_bounded(5, float("nan")), "gamma=nan"),
        (lambda: discrete.best_first(5, temperature=0.0), "None takes the best"),
        (lambda: discrete.TopK(2.5), "whole number"),
        (lambda: discrete.Informed(0), "k=0"),
        (lambda: discrete.Informed(2, temperature=0.0), "must be positive"),
        (lambda: discrete.Decoder(model, discrete.first_hitting(5), chunk=0), "chunk=0"),
        (lambda: ds.sample(KEY, discrete.Decoder(model, uniform), (2, 5)), "needs a policy.*got a list"),  # pyright: ignore
        (
            lambda: ds.sample(KEY, discrete.Decoder(model, discrete.first_hitting(5)), (2, 5), dtype=jnp.float32),
            "float32",
        ),
        (lambda: ds.sample(KEY, discrete.uniform_ancestral(inside, uniform), (2, 5)), "mask_id=vocab"),
        (
            lambda: ds.sample(KEY, discrete.uniform_ancestral(model, uniform), x=jnp.full((2, 5), MASK)),
            "or from a shape",
        ),
        (
            lambda: ds.sample(KEY, discrete.Decoder(model, discrete.redrawn(discrete.low_confidence(5), 1)), (2, 5)),
            "draws its",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()

    def flat(params, x, cond):
        return jnp.zeros((x.shape[1], 3))

    laws = jnp.zeros((2, 3)), jnp.zeros((2, 4))
    for call, message in (
        (
            lambda: discrete.from_logits(flat, (), 3, MASK)(jnp.zeros((2, 5), int), jnp.ones(2), None),
            r"be \[B, L, vocab\]",
        ),
        (lambda: discrete.Temperature(jnp.ones(2))(jnp.zeros((3, 1, 3))), r"shape \(2,\) in a batch of 3"),
        (lambda: discrete.select_draft(asked(), *laws, jnp.zeros((2, 1), int)), "need two laws"),
        (
            lambda: exact.output_law(discrete.Decoder(model, discrete.dyadic(5)), np.full((1, 5), MASK)),
            r"one sequence \[L\]",
        ),
        (lambda: discrete.log_likelihood(model, jnp.zeros(5, int)), "integer tokens"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    ids: Any = np.int64(3), np.int64(MASK)
    assert discrete.from_logits(as_params, (), *ids).vocab == 3
    assert discrete.margin(jnp.zeros((2, 1))).tolist() == [1.0, 1.0]  # no second token to compare with
