"""Ragged prompts as a batch, and the look at a model before a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, exact

MASK = 3
RAGGED = [[1, 0], [], [2, MASK, 1, 0, 2]]


def test_prompts_on_the_left_leave_masks_to_the_end():
    batch = discrete.aligned_left(RAGGED, 5, MASK)
    assert batch.x.tolist() == [[1, 0, 3, 3, 3], [3, 3, 3, 3, 3], [2, 3, 1, 0, 2]]
    np.testing.assert_array_equal(batch.frozen, batch.x != MASK)
    assert not batch.padding.any()


def test_answers_of_a_given_length_are_followed_by_padding():
    batch = discrete.aligned_left(RAGGED, 6, MASK, answer=[1, 2, 0], pad_id=0)
    assert batch.x.tolist() == [[1, 0, 3, 0, 0, 0], [3, 3, 0, 0, 0, 0], [2, 3, 1, 0, 2, 0]]
    assert batch.padding.sum(axis=1).tolist() == [3, 4, 1]


def test_prompts_on_the_right_end_together_so_that_answers_begin_together():
    batch = discrete.aligned_right(RAGGED, 7, MASK, pad_id=0)
    assert batch.x.tolist() == [[0, 0, 0, 1, 0, 3, 3], [0, 0, 0, 0, 0, 3, 3], [2, 3, 1, 0, 2, 3, 3]]
    assert batch.padding[:, :5].sum(axis=1).tolist() == [3, 5, 0] and not batch.padding[:, 5:].any()


def test_decoding_keeps_every_prompt_and_fills_the_rest():
    batch = discrete.aligned_left(RAGGED, 5, MASK)
    sampler = discrete.Decoder(exact.golden_chain().model(), discrete.first_hitting(5))
    out = ds.sample(jax.random.key(0), sampler, x=batch.x)
    np.testing.assert_array_equal(jnp.where(batch.frozen, out.x, MASK), batch.x)
    assert (out.x < MASK).all() and out.calls.tolist() == [3, 5, 1]


def test_prompts_that_do_not_fit_are_refused():
    for call, message in (
        (lambda: discrete.aligned_left([[0], [1] * 6], 5, MASK), r"prompts\[1\] has 6 tokens, more than length=5"),
        (lambda: discrete.aligned_right([[0], [1] * 6], 5, MASK, pad_id=0), r"prompts\[1\] has 6 tokens"),
        (lambda: discrete.aligned_left([[0], [1] * 4], 5, MASK, answer=2), r"answer=2 to prompts\[1\].*0 .. 1"),
        (lambda: discrete.aligned_right([[0], [1, 1]], 5, MASK), "sequence 0 needs padding at position 0: give pad_id"),
        (lambda: discrete.aligned_right([[0], [1, 1]], 5, MASK, pad_id=MASK), "pad_id=3 is the mask"),
        (lambda: discrete.aligned_left([], 5, MASK), "empty"),
        (lambda: discrete.aligned_left([[0.5]], 5, MASK), r"prompts\[0\] must be a list of integer"),  # pyright: ignore
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_a_look_before_the_run_names_the_logit():
    def logits(params, x, cond):
        return jnp.zeros((*x.shape, 3)).at[1, 4].set(params)

    x = jnp.full((2, 5), MASK)
    for row, message in (
        ([0.0, jnp.nan, 0.0], r"logits\[1, 4, 1\] = nan, and 0 others"),
        ([jnp.inf, 0.0, jnp.nan], r"logits\[1, 4, 0\] = inf, and 1 others"),
        ([-jnp.inf] * 3, r"logits\[1, 4\] are -inf for every token"),
    ):
        with pytest.raises(ValueError, match=message):
            discrete.examine(discrete.from_logits(logits, jnp.array(row), 3, MASK), x)
    discrete.examine(discrete.from_logits(logits, jnp.array([0.0, -jnp.inf, 0.0]), 3, MASK), x)
