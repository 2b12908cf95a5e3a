"""What every guidance rule keeps, whatever the network predicts: one row a rule in methods.py, one test a law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import GUIDANCE, counted, two_logits

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.guidance.spaces import DATA, NOISE, VELOCITY, V

KINDS = ("noise", "data", "v", "velocity", "score")
LEVEL, NEXT = (ds.Level(*map(jnp.float32, numbers)) for numbers in ((0.5, 0.6, 0.8), (0.4, 0.8, 0.6)))
LABELS = jnp.array([0, 1, 1, 0])
X = jax.random.normal(jax.random.key(1), (4, 6, 6, 1))
KEYS = jax.random.split(jax.random.key(2), 4)
TRACES = []


def answer(kind, params, x, t, cond):
    """One and the same function of (x, condition), as the output of a network of this kind at LEVEL."""
    TRACES.append(1)
    tilt = 0.3 * cond.reshape(-1, 1, 1, 1).astype(x.dtype)
    ramp = jnp.linspace(-1.0, 1.0, 6, dtype=x.dtype).reshape(1, 6, 1, 1)
    eps = jnp.tanh(params * x + tilt * ramp) + tilt * ramp
    prediction = ds.Prediction((x - LEVEL.sigma * eps) / LEVEL.alpha, eps)
    if kind == "score":
        return -eps / LEVEL.sigma
    space = {"noise": NOISE, "data": DATA, "v": V, "velocity": VELOCITY}[kind]
    return space.output(prediction, LEVEL)


APPLY = {kind: functools.partial(answer, kind) for kind in KINDS}  # one function a kind, so that nothing traces anew


def network(kind="noise"):
    return ds.Network(APPLY[kind], jnp.float32(0.8), predicts=kind)


def point(stage=0, keys=KEYS):
    return ds.Point(LEVEL, NEXT, jnp.int32(2), jnp.int32(stage), keys)


def eager(rule, x, labels, keys):
    return rule(x, point(keys=keys), labels, rule.init(x))


call = jax.jit(eager)


def rules():
    return pytest.mark.parametrize("row", GUIDANCE.values(), ids=GUIDANCE)


def assert_close(actual, expected, tolerance=3e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max()), actual, expected)


@rules()
def test_the_prediction_does_not_depend_on_what_the_network_predicts(row):
    expected, _ = call(row.build(network(), 2.5), X, LABELS, KEYS)
    for kind in KINDS[1:]:
        found, _ = eager(row.build(network(kind), 2.5), X, LABELS, KEYS)  # one operation at a time: little to compile
        assert_close(found, expected, 1e-5)


@rules()
def test_rows_of_a_batch_do_not_see_each_other(row):
    rule, order = row.build(network(), 2.5), jnp.array([2, 0, 3, 1])
    prediction, state = call(rule, X, LABELS, KEYS)
    moved, _ = call(rule, X[order], LABELS[order], KEYS[order])
    assert_close(moved, jax.tree.map(lambda leaf: leaf[order], prediction), 1e-6)
    other, _ = call(rule, X.at[0].multiply(9.0), LABELS, KEYS)
    assert_close(other.x0[1:], prediction.x0[1:], 1e-6)
    assert all(leaf.shape[:1] == X.shape[:1] for leaf in jax.tree.leaves(state))


@rules()
def test_the_neutral_number_is_the_conditional_model_bit_for_bit(row):
    if row.neutral is None:
        pytest.skip("has none")
    neutral, _ = call(row.build(network(), row.neutral), X, LABELS, KEYS)
    plain, _ = call(network(), X, LABELS, KEYS)
    np.testing.assert_array_equal(neutral.x0, plain.x0)
    other, _ = call(row.build(network(), 2.5), X, LABELS, KEYS)
    assert np.abs(other.x0 - plain.x0).max() > 1e-2


@rules()
def test_a_coupled_rule_keeps_the_state(row):
    rule = row.build(network(), 2.5)
    assert rule.coupled == row.coupled
    prediction, _ = call(rule, X, LABELS, KEYS)
    apart = np.abs(LEVEL.alpha * prediction.x0 + LEVEL.sigma * prediction.eps - X).max()
    assert apart < 2e-5 if row.coupled else apart > 1e-2


@rules()
def test_memory_keeps_its_structure_and_another_number_traces_nothing(row):
    for stage in (0, 1):
        rule = row.build(network(), 2.5)
        before = jax.eval_shape(rule.init, X)
        after = jax.eval_shape(lambda x, rule=rule, stage=stage: rule(x, point(stage), LABELS, rule.init(x))[1], X)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), after
        )
    call(row.build(network(), 2.5), X, LABELS, KEYS)
    count = len(TRACES)
    call(row.build(network(), 3.5), X, LABELS, KEYS)
    assert len(TRACES) == count


@rules()
def test_samples_may_stand_at_steps_of_their_own(row):
    """Levels, index and stage [B], as speculative sampling gives them, alone and in the branches of CFG."""
    own = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.broadcast_to(leaf, 4), point())
    rule = row.build(network(), 2.5)
    for denoiser in (rule, guidance.cfg(rule, 2, 2.0)):
        asked = (X, own, LABELS, jax.eval_shape(denoiser.init, X))
        prediction, state = jax.eval_shape(denoiser, *asked)
        assert prediction.x0.shape == prediction.eps.shape == X.shape
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, asked[-1])


def test_steps_of_their_own_decide_for_each_sample():
    """CFG-Zero* holds still, APG-mix is CFG, and APG keeps its sum, each where that sample's step says so."""
    own = point()._replace(index=jnp.array([0, 1, 5, 2]), stage=jnp.array([0, 1, 0, 1]))
    for build in (
        lambda: guidance.cfg_zero(network(), 2, 3.0, zero_steps=2),
        lambda: guidance.apg_mix(network(), 2, 3.0, 5.0, cfg_steps=2, momentum=-0.5),
        lambda: guidance.elucd_nudge(network(), two_logits, 9, size=0.5),
    ):
        rule = build()
        found, state = rule(X, own, LABELS, rule.init(X))
        for i in range(4):
            same = own._replace(index=own.index[i], stage=own.stage[i])
            expected, kept = rule(X, same, LABELS, rule.init(X))
            assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], (found, state)),
                         jax.tree.map(lambda leaf, i=i: leaf[i], (expected, kept)))  # fmt: skip


@rules()
def test_a_number_a_sample(row):
    each = jnp.array([2.5, 1.5, 2.5, 1.5])
    mixed, _ = call(row.build(network(), each), X, LABELS, KEYS)
    for first, number in enumerate((2.5, 1.5)):
        plain, _ = call(row.build(network(), number), X, LABELS, KEYS)
        assert_close(mixed.x0[first::2], plain.x0[first::2], 1e-6)
        assert_close(mixed.eps[first::2], plain.eps[first::2], 1e-6)


@rules()
def test_no_more_evaluations_than_declared_and_the_scan_is_the_loop(row):
    model, count = counted()
    process = ds.VariancePreserving()
    rule = row.build(model, 1.5)
    sampler = solvers.linear(rule, solvers.heun(process, [0.5, 0.4, 0.3]))

    def run(**options):
        return ds.sample(jax.random.key(0), sampler, X.shape, cond=LABELS, **options)

    assert sampler.nfe == 4 * row.cost == count(run)
    assert_close(run(debug=True), run(), 5e-6)
