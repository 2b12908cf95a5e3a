"""The masked engine: keys, batches, prompts, calls, compiles, faults, and the buffers of its compiled program."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffsample as ds
from diffsample import discrete, exact
from diffsample.compiles import count_compiles

KEY = jax.random.key(3)
LEVELS = discrete.levels(discrete.Polynomial(), 4)
POLICIES = {
    "first_hitting": discrete.first_hitting(5),
    "groups": discrete.first_hitting(5, updates=2),
    "ancestral": discrete.ancestral(LEVELS),
    "asynchronous": discrete.asynchronous(LEVELS, 5),
    "best_first": discrete.best_first(5, discrete.margin, updates=3, temperature=0.1),
    "maskgit": discrete.maskgit(5, 3, temperature=1.0),
    "remask_at_most": discrete.remask_at_most(LEVELS, 0.3),
}
OTHERS = {
    "entropy_bounded": discrete.entropy_bounded(5, 1.0),
    "low_confidence": discrete.low_confidence(5, updates=3),
    "path_planning": discrete.path_planning(5, 4),
    "blockwise": discrete.blockwise(discrete.threshold(2, -0.5), 6, 2),
    "remask_unsure": discrete.remask_unsure(LEVELS),
    "remask_loop": discrete.remask_loop(8),
    "forward_backward": discrete.forward_backward(LEVELS),
    "flow_corrector": discrete.flow_corrector(LEVELS, 2.0),
}


def decoder(policy, **parts):
    return discrete.Decoder(exact.golden_chain().model(), policy, **parts)


@pytest.mark.parametrize("name", POLICIES)
def test_sequence_of_a_batch_is_the_sequence_alone(name):
    sampler = decoder(POLICIES[name])
    together = ds.sample(KEY, sampler, (6, 5))
    alone = ds.sample(KEY, sampler, (1, 5), first=4)
    chunked = ds.sample(KEY, sampler, (6, 5), chunk=4)
    assert (together.x != 3).all() and together.x.dtype == jnp.int32
    for one, many, parts in zip(alone, together, chunked, strict=True):
        np.testing.assert_array_equal(one[0], many[4])
        np.testing.assert_array_equal(parts, many)


@pytest.mark.parametrize("name", POLICIES)
def test_samples_have_the_exact_law(name):
    # G-test against the law by enumeration: 2 n KL is chi-squared; it fails a correct decoder once in 10^6 keys
    sampler, n = decoder(POLICIES[name]), 20000
    law = exact.output_law(sampler, np.full(5, 3))
    x = np.asarray(ds.sample(KEY, sampler, (n, 5)).x)
    index = {tuple(s): i for i, s in enumerate(law.x.tolist())}
    counts = np.bincount([index[tuple(s)] for s in x.tolist()], minlength=len(law.p))
    seen = counts > 0
    g = 2 * np.sum(counts[seen] * np.log(counts[seen] / (n * law.p[seen])))
    # rare cells make G smaller than chi-squared on average, so the upper tail stays a bound
    assert g < scipy.stats.chi2.ppf(1 - 1e-6, len(law.p) - 1)


def test_prompts_and_padding_stay_and_a_full_input_makes_no_call():
    x = jnp.array([[3, 1, 3, 3, 0], [0, 1, 2, 1, 0], [3, 3, 3, 0, 0]])
    every = {name: policy for name, policy in (POLICIES | OTHERS).items() if name != "blockwise"}
    for name, policy in every.items():
        out, executed = ds.sample(KEY, decoder(policy), x=x, record=executions)
        assert (out.x[x != 3] == x[x != 3]).all() and (out.x != 3).all(), name
        assert out.calls[1] == 0 and out.calls.max() == executed.max() <= 8
        full, executed = ds.sample(KEY, decoder(policy), x=x[jnp.array([1, 1, 1])], record=executions)
        assert executed.max() == 0
        np.testing.assert_array_equal(full.x, x[jnp.array([1, 1, 1])])


def test_blocks_finish_one_after_another():
    chain = exact.markov_chain([0.5, 0.3, 0.2], np.full((3, 3), 1 / 3), 6)
    sampler = discrete.Decoder(chain.model(), OTHERS["blockwise"])
    _, masked = ds.sample(KEY, sampler, (50, 6), record=lambda view: view.masked)
    blocks = masked.reshape(-1, 50, 3, 2).any(axis=-1)
    assert (blocks[..., 1] | ~blocks[..., 0]).all() and (blocks[..., 2] | ~blocks[..., 1]).all()
    assert not masked[-1].any()


def test_path_planning_masks_as_many_as_planned():
    _, masked = ds.sample(KEY, decoder(OTHERS["path_planning"]), (20, 5), record=lambda view: view.masked)
    planned = np.floor([[5.0], [3.75], [2.5], [1.25], [0.0]])
    np.testing.assert_array_equal(masked.sum(axis=-1), np.broadcast_to(planned, (5, 20)))
    moved = (masked[1:] & ~masked[:-1]).any()
    assert moved  # some tokens were masked again
    _, masked = ds.sample(KEY, decoder(discrete.path_planning(5, 4, eta=0.0)), (20, 5), record=lambda view: view.masked)
    assert not (masked[1:] & ~masked[:-1]).any()


def test_masks_are_binomial_whatever_is_masked_again():
    # P(masked at level m) = m for every sigma, at every step; within 4.5 standard errors
    n = 20000
    for policy in (POLICIES["remask_at_most"], OTHERS["forward_backward"], discrete.remask_rescaled(LEVELS, 1.0)):
        _, masked = ds.sample(KEY, decoder(policy), (n, 5), record=lambda view: view.masked)
        counts = masked.sum(axis=-1)
        for j, m in enumerate(LEVELS):
            law = scipy.stats.binom.pmf(np.arange(6), 5, m)
            found = np.bincount(counts[j], minlength=6) / n
            np.testing.assert_array_less(np.abs(found - law), 4.5 * np.sqrt(law * (1 - law) / n) + 1e-12)


def test_any_mask_id_and_any_order_of_ids():
    # the reference chain with ids 0, 2, 3 for its tokens and 1 for the mask
    chain, ids = exact.golden_chain(), jnp.array([0, 2, 3, 1])
    back = jnp.array([0, 3, 1, 2])

    def logits(params, x, cond):
        law = params.law(back[x])
        spread = jnp.zeros((*x.shape, 4)).at[..., ids[:3]].set(jnp.log(law))
        return spread.at[..., 1].set(99.0)  # the mask's own logit must not count

    model = discrete.from_logits(logits, chain, vocab=4, mask_id=1)
    named = ds.sample(KEY, discrete.Decoder(model, discrete.first_hitting(5)), (500, 5)).x
    assert (named != 1).all()
    plain = ds.sample(KEY, decoder(discrete.first_hitting(5)), (500, 5)).x
    np.testing.assert_array_equal(ids[plain], named)


def test_calls_equal_the_formula_of_caching():
    # E-NFE(N, L) = N (1 - (1 - 1/N)^L), within 4 standard errors (one in 16000)
    length, n, batch = 64, 64, 400
    model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 2)), (), 2, 2)
    policy = discrete.asynchronous(discrete.levels(discrete.Polynomial(), n), length)
    out, executed = ds.sample(KEY, discrete.Decoder(model, policy), (batch, length), record=ds.Fold(executed_calls, 0))
    calls = np.asarray(out.calls)
    wanted = n * (1 - (1 - 1 / n) ** length)
    assert abs(calls.mean() - wanted) < 4 * calls.std() / np.sqrt(batch)
    assert int(executed) == calls.max()


@pytest.mark.slow
def test_batches_on_their_own_clocks_need_hardly_more_calls_than_one_sequence():
    model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 2)), (), 2, 2)
    for n, formula in ((1024, 647.48), (4096, 906.13)):
        policy = discrete.asynchronous(discrete.levels(discrete.Polynomial(), n), 1024)
        out = ds.sample(KEY, discrete.Decoder(model, policy), (64, 1024))
        calls = np.asarray(out.calls)
        assert abs(calls.mean() - formula) < 4 * calls.std() / 8
        assert calls.max() < 1.05 * calls.mean()


def test_one_compile_over_keys_prompts_grids_temperatures_and_weights():
    def run(key, power, temperature, p, prompt, params):
        model = discrete.from_logits(weighted, params, vocab=3, mask_id=3)
        levels = discrete.levels(discrete.Polynomial(power), 4)
        proposal = discrete.chain(discrete.Temperature(temperature), discrete.TopP(p))
        return ds.sample(key, discrete.Decoder(model, discrete.ancestral(levels), proposal), x=prompt).x

    first = (KEY, 1.0, 1.0, 0.9, jnp.array([[3] * 5] * 2), jnp.zeros(3))
    second = (jax.random.key(9), 2.0, 0.7, 0.5, jnp.array([[3, 1, 3, 3, 0], [0, 3, 3, 3, 3]]), jnp.ones(3))
    run(*first)
    with count_compiles() as compiles:
        run(*second)
    assert compiles.count == 0


def weighted(params, x, cond):
    return jnp.broadcast_to(params, (*x.shape, 3))


def test_time_conditioned_network_sees_the_clock_of_each_sequence():
    # logits that reveal the time they were made at: token = floor(10 t)
    def features(params, x, t, cond):
        return jnp.broadcast_to(t[:, None], x.shape)[..., None]

    def head(params, h, positions):
        return jnp.where(jnp.arange(11)[None, None, :] == jnp.floor(10 * h + 0.01).astype(int), 0.0, -jnp.inf)

    schedule = discrete.Polynomial(2.0)
    model = discrete.MaskedModel(features, head, (), vocab=11, mask_id=11, time=schedule.time)
    levels = discrete.levels(schedule, 5)
    out = ds.sample(KEY, discrete.Decoder(model, discrete.ancestral(levels)), (50, 8))
    assert set(np.unique(out.x)) == {2, 4, 6, 8, 10}
    slow = ds.sample(KEY, discrete.Decoder(model, discrete.asynchronous(levels, 8)), (50, 8))
    assert set(np.unique(slow.x)) == {2, 4, 6, 8, 10}
    hitting = np.sort(np.asarray(ds.sample(KEY, discrete.Decoder(model, discrete.first_hitting(8)), (400, 8)).x), 1)
    # the largest of 8 uniforms has mean 8/9 and is t^2; floor(10 t) averages 0.5 lower than 10 E[t]
    mean = 10 * 16 / 17 - 0.5
    assert abs(hitting[:, -1].mean() - mean) < 4 * 0.6 / np.sqrt(400) + 0.05


@pytest.mark.parametrize(
    "name", ["first_hitting", "asynchronous", "remasking", "redrawn", "ancestral", "euler", "grid remasking"]
)
def test_program_holds_no_logits_of_all_positions(name):
    batch, length, vocab, width = 2, 48, 1000, 8
    policy = {
        "first_hitting": discrete.first_hitting(length, updates=12),
        "asynchronous": discrete.asynchronous(discrete.levels(discrete.Polynomial(), 64), length, most=4),
        "remasking": discrete.asynchronous_remasking(
            discrete.remask_at_most(discrete.levels(discrete.Polynomial(), 64), 0.02), length, most=4
        ),
        "redrawn": discrete.redrawn(discrete.first_hitting(length, updates=12), 1),
        "ancestral": discrete.ancestral(discrete.levels(discrete.Polynomial(), 12)),
        "euler": discrete.euler(discrete.LogLinear(), np.linspace(1.0, 0.0, 13)),
        "grid remasking": discrete.remask_at_most(discrete.levels(discrete.Polynomial(), 12), 0.02),
    }[name]
    model = discrete.MaskedModel(embed, project, jnp.ones((vocab + 1, width)), vocab, vocab)
    sampler = discrete.Decoder(model, policy, chunk=8)
    text: Any = (
        jax.jit(lambda key: ds.sample(key, sampler, (batch, length), check=False)).lower(KEY).compile().as_text()
    )
    sizes = [np.prod([int(d) for d in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert batch * 4 * vocab <= max(sizes) < batch * length * vocab / 4  # only those of the few revealed at once


def certain(table, x, cond):
    return jnp.broadcast_to(table, (*x.shape, table.shape[-1]))


@pytest.mark.parametrize("steps", [1, 4])
def test_many_revealed_at_once_are_drawn_in_pieces_of_slots(steps):
    policy, length = discrete.ancestral(discrete.levels(discrete.Polynomial(), steps)), 7
    each_its_own = jnp.where(jnp.eye(length, dtype=bool), 0.0, -jnp.inf)
    model = discrete.from_logits(certain, each_its_own, length, length)
    out = ds.sample(KEY, discrete.Decoder(model, policy, chunk=2), (20, length))
    assert (np.asarray(out.x) == np.arange(length)).all()

    broken = discrete.from_logits(certain, each_its_own.at[5].set(-jnp.inf), length, length)
    with pytest.raises(FloatingPointError, match="position 5"):
        ds.sample(KEY, discrete.Decoder(broken, policy, chunk=2), (20, length))

    free = discrete.from_logits(certain, jnp.zeros((length, 3)), 3, 3)
    x = np.asarray(ds.sample(KEY, discrete.Decoder(free, policy, chunk=2), (9000, length)).x)
    error = np.sqrt(2 / 9 / 9000)  # of a share of 1/3; 42 shares below: 3e-4 false alarms at 4.5
    for token in range(3):
        np.testing.assert_array_less(np.abs((x == token).mean(axis=0) - 1 / 3), 4.5 * error)
    for i, j in itertools.combinations(range(length), 2):  # no piece repeats the draws of another
        assert abs((x[:, i] == x[:, j]).mean() - 1 / 3) < 4.5 * error, (i, j)


def executions(view: Any):
    return view.executed


def executed_calls(_, view: Any):
    return view.executed


def embed(params, x, t, cond):
    return params[x]


def project(params, h, positions):
    return h @ params[:-1].T


def test_low_precision_logits_are_drawn_in_float32():
    model = discrete.from_logits(low_precision, jnp.array([0.98, 0.01, 0.006, 0.004]), 4, 4)
    x = ds.sample(KEY, discrete.Decoder(model, discrete.first_hitting(4, updates=1)), (20000, 4)).x
    share = np.bincount(np.asarray(x).ravel(), minlength=4) / x.size
    rounded = np.exp(np.asarray(jnp.log(jnp.array([0.98, 0.01, 0.006, 0.004])).astype(jnp.bfloat16), np.float64))
    rounded /= rounded.sum()
    # noise drawn in bfloat16 gives .0046 and .0024 for the last two: more than 7 standard errors away
    np.testing.assert_array_less(np.abs(share - rounded), 4.5 * np.sqrt(rounded / x.size))


def low_precision(params, x, cond):
    return jnp.broadcast_to(jnp.log(params).astype(jnp.bfloat16), (*x.shape, 4))


def test_faults_are_reported_with_their_position():
    def broken(params, x, cond):
        return jnp.where(jnp.arange(5)[None, :, None] == 2, params, 0.0) + jnp.zeros((*x.shape, 3))

    for value in (jnp.nan, -jnp.inf):
        sampler = discrete.Decoder(discrete.from_logits(broken, value, 3, 3), discrete.first_hitting(5))
        with pytest.raises(FloatingPointError, match="position 2"):
            ds.sample(KEY, sampler, (3, 5))
        assert (ds.sample(KEY, sampler, (3, 5), check=False).fault == 2).all()
    with pytest.raises(FloatingPointError, match="NaN, or are -inf"):
        ds.sample(KEY, sampler, (3, 5))


@pytest.mark.parametrize(
    ("model", "said"),
    [(exact.golden_chain(), r"MarkovChain.*no mask_id.*\.model\(\)"), (jnp.tanh, "no vocab.*from_logits")],
)
def test_what_is_no_masked_model_is_refused_by_name(model, said):
    for sampler in (discrete.Decoder(model, discrete.first_hitting(5)), discrete.speculative(model, 5, drafts=2)):
        with pytest.raises(TypeError, match=said):
            ds.sample(KEY, sampler, (2, 5))


def test_ids_that_are_no_tokens_are_refused_before_the_run_and_reported_after_it_where_traced():
    x = jnp.array([[3, 3, 3, 3, 0], [3, 3, -1, 3, 7]])
    calls = []

    def counted(params, x, cond):
        calls.append(x)
        return jnp.zeros((*x.shape, 3))

    model = discrete.from_logits(counted, (), 3, 3)
    for sampler in (discrete.Decoder(model, discrete.first_hitting(5)), discrete.speculative(model, 5, drafts=2)):
        with pytest.raises(ValueError, match=r"x\[1, 2\] = -1 is no token, nor are 1 others.*0 .. 2, and 3 is"):
            ds.sample(KEY, sampler, x=x)
        assert not calls  # nothing was even traced
        out = jax.jit(lambda x, sampler=sampler: ds.sample(KEY, sampler, x=x))(x)
        assert out.fault.tolist() == [-1, 2]
        with pytest.raises(FloatingPointError, match=r"sequence 1.*position 2 \(token -1\).*outside"):
            sampler.verify(out)
        calls.clear()


def test_bad_input_is_refused():
    model = exact.golden_chain().model()
    for call, message in (
        (lambda: discrete.MaskedModel(embed, project, (), 5, None), "mask_id=None"),  # pyright: ignore
        (lambda: discrete.ancestral([1.0, 0.5, 0.1]), "masks would be left"),
        (lambda: discrete.ancestral([0.5, 0.7, 0.0]), "falling"),
        (lambda: discrete.first_hitting(5, sizes=[2, 2]), "sum to length=5"),
        (lambda: discrete.first_hitting(5, updates=6), "1 .. length=5"),
        (lambda: discrete.given_order([0, 2]), "every number"),
        (lambda: discrete.Temperature(0.0), "greedy"),
        (lambda: discrete.TopP(1.5), r"\(0, 1\]"),
        (lambda: discrete.CoarseGumbel(24), "23"),
        (lambda: ds.sample(KEY, discrete.Decoder(model, POLICIES["groups"]), x=jnp.zeros((2, 5))), "integer tokens"),
        (lambda: ds.sample(KEY, discrete.Decoder(model, discrete.dyadic(4)), (2, 5)), "order is of 4"),
        (lambda: ds.sample(KEY, discrete.speculative(model, 4), (2, 5)), "length=5"),
        (lambda: ds.sample(KEY, discrete.Decoder(model, discrete.threshold(4, -1.0)), (2, 5)), "sliding_windows"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
