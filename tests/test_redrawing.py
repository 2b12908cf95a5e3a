"""Predictor-corrector decoding of groups, and windows that slide past the model's length: exact laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, exact

PI, P = [0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]
double = pytest.mark.usefixtures("x64")


def chain(length: int) -> exact.MarkovChain:
    return exact.markov_chain(PI, P, length)


def law_of(policy, length, **parts):
    return exact.output_law(discrete.Decoder(chain(length).model(), policy, **parts), np.full(length, 3))


@double
def test_masking_again_is_the_gibbs_step_of_a_hollow_network_on_the_last_group():
    groups = discrete.given_order([0, 1, 1])
    masked = law_of(discrete.redrawn(groups, 1), 3)
    hollow = law_of(groups, 3, corrector=discrete.LastGroup(discrete.Gibbs()))
    np.testing.assert_allclose(masked.p, hollow.p, atol=1e-12)
    assert masked.calls == pytest.approx(3.0)  # two groups, one redraw of the second


@double
def test_redraws_bring_groups_to_the_exact_law_and_leave_it_alone():
    tv = []
    for redraws in (0, 1, 2, 6):
        groups = discrete.first_hitting(3, sizes=[3])
        law = law_of(discrete.redrawn(groups, redraws) if redraws else groups, 3)
        tv.append(law.total_variation(chain(3).log_prob))
        assert law.calls == pytest.approx(1 + redraws)
    assert tv[0] > 0.2 and tv[1] < 0.7 * tv[0] and tv[2] < 0.5 * tv[1] and tv[3] < 0.1 * tv[2]
    one_by_one = law_of(discrete.redrawn(discrete.first_hitting(3), 2), 3)
    assert one_by_one.total_variation(chain(3).log_prob) < 1e-12
    assert one_by_one.calls == pytest.approx(3.0)  # groups of one get no correction
    end_points = law_of(discrete.redrawn(discrete.given_order([1, 0, 1]), 2), 3)
    assert end_points.total_variation(chain(3).log_prob) < 1e-12  # exact before, exact after


def test_redrawing_samples_belong_to_their_keys_and_prompts_stay():
    sampler = discrete.Decoder(chain(5).model(), discrete.redrawn(discrete.first_hitting(5, updates=2), 2))
    x = jnp.array([[3, 1, 3, 3, 0], [0, 1, 2, 1, 0], [3, 3, 3, 3, 3]])
    out = ds.sample(jax.random.key(0), sampler, x=x)
    assert (out.x[x != 3] == x[x != 3]).all() and (out.x != 3).all() and out.calls.tolist() == [4, 0, 6]
    alone = ds.sample(jax.random.key(0), sampler, x=x[2:], first=2)
    np.testing.assert_array_equal(alone.x[0], out.x[2])
    for policy, redraws, message in (
        (discrete.first_hitting(5), 0, "redraws=0"),
        (discrete.remask_at_most([1.0, 0.5, 0.0], 0.1), 1, "masks again itself"),
    ):
        with pytest.raises(ValueError, match=message):
            discrete.redrawn(policy, redraws)
    with pytest.raises(ValueError, match="hollow"):
        discrete.Decoder(discrete.from_logits(none, (), 3, 3), discrete.first_hitting(5),
                         corrector=discrete.LastGroup(discrete.Gibbs()))  # fmt: skip


def none(params, x, cond):
    return jnp.zeros((*x.shape, 3))


@double
def test_windows_of_a_markov_chain_are_the_longer_chain():
    for window, stride, policy in ((3, 2, discrete.first_hitting(3)), (2, 1, discrete.given_order([1, 0]))):
        inner = discrete.Decoder(chain(window).model(), policy)
        sampler = discrete.sliding_windows(inner, 5, window=window, stride=stride)
        law = exact.output_law(sampler, np.full(5, 3))
        assert law.total_variation(chain(5).log_prob) < 1e-12
        assert law.calls == pytest.approx(5.0)
    prompt = np.array([3, 1, 3, 3, 0])  # the last token is seen by the last window only
    given = exact.output_law(sampler, prompt)
    assert (given.x[:, [1, 4]] == [1, 0]).all()


def test_windows_keep_prompts_and_count_all_calls():
    inner = discrete.Decoder(chain(4).model(), discrete.first_hitting(4, updates=2))
    sampler = discrete.sliding_windows(inner, 8, window=4, stride=2)
    x = jnp.full((3, 8), 3).at[0].set(0).at[1, 5].set(2)
    out = ds.sample(jax.random.key(0), sampler, x=x)
    assert (out.x < 3).all() and out.calls.tolist() == [0, 5, 6] and out.x[1, 5] == 2 and (out.x[0] == 0).all()
    alone = ds.sample(jax.random.key(0), sampler, x=x[2:], first=2)
    np.testing.assert_array_equal(alone.x[0], out.x[2])


def test_windows_that_do_not_fit_are_refused():
    inner = discrete.Decoder(chain(4).model(), discrete.first_hitting(4))
    for arguments, message in (
        ((inner, 9, 4, 2), "do not end at total=9; 10 would do"),
        ((inner, 8, 4, 5), "stride=5"),
        ((inner, 10, 6, 2), "planned for at most 4"),
    ):
        decoder, total, window, stride = arguments
        with pytest.raises(ValueError, match=message):
            discrete.sliding_windows(decoder, total, window=window, stride=stride)
    with pytest.raises(ValueError, match="cover 8 positions and x has 6"):
        ds.sample(jax.random.key(0), discrete.sliding_windows(inner, 8, window=4, stride=2), (1, 6))
