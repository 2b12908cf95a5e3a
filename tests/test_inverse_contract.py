"""What every inverse-problem rule keeps, one row a rule in methods.py: its cost, its leaves, one sample apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap
from methods import INVERSE

import diffsample as ds
from diffsample import guidance, solvers

VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 4)
TABLES = [ds.pad(solver(VP, GRID), 2, 2, 8, "some") for solver in (solvers.ddim, solvers.dpmpp, solvers.heun)]
KEY = jax.random.key(3)
Y = jnp.array([0.5, 0.0, -0.8])
MANY, WEIGHTS = jnp.stack([Y, 2 * Y, -Y, 0.1 * Y]), jnp.array([0.2, 0.4, 0.6, 0.8])
TRACES, COUNTS = [], {"evaluations": 0, "vjps": 0}


def field(scale, x, t, cond):
    TRACES.append(1)
    return jnp.tanh(scale.astype(x.dtype) * x) + 0.2 * jnp.roll(x, 1, axis=1)


NETWORK = ds.Network(field, jnp.float32(0.8), predicts="noise")


def run(name, table=TABLES[0], y=MANY, weight=WEIGHTS, **options):
    sampler = solvers.linear(INVERSE[name](NETWORK, y, weight), table)
    return ds.sample(KEY, sampler, (len(y), 3), **options)


@pytest.mark.parametrize("name", INVERSE)
def test_rule_runs_under_every_kind_of_solver_and_its_numbers_are_leaves(name):
    out = run(name)
    count = len(TRACES)
    others = [run(name, table) for table in TABLES[1:]]
    heavier = run(name, weight=WEIGHTS[::-1])
    assert not np.allclose(heavier, out, atol=1e-4)
    for other in others:
        assert np.isfinite(other).all()
        assert name == "red_diff" or not np.allclose(other, out, atol=1e-5)  # which only reads the levels
    if name not in ("loss_guidance", "lgd_mc"):  # whose target is inside the loss
        assert not np.allclose(run(name, y=-MANY), out, atol=1e-3)
    assert len(TRACES) == count, "another solver, weight or y of equal shapes compiled anew"


@pytest.mark.parametrize("name", INVERSE)
def test_samples_do_not_depend_on_each_other(name):
    """Norms, solves and draws are per sample: change y and weight of the others, and nothing changes, bit for bit."""
    others = jnp.array([1.0, 1.0, 0.0, 1.0])
    changed = run(name, y=MANY + 0.3 * others[:, None] * Y[None], weight=WEIGHTS + 0.1 * others)
    np.testing.assert_array_equal(changed[2], run(name)[2])
    assert not np.allclose(changed[1], run(name)[1], atol=1e-4)


@jax.custom_vjp
def counted(x):
    """The identity; counts its calls and the vectors pulled back through it, while it runs."""
    COUNTS["evaluations"] += 1
    return x


@custom_vmap
def tick(cotangent):
    COUNTS["vjps"] += 1
    return cotangent


@tick.def_vmap
def _(axis_size, in_batched, cotangent):
    COUNTS["vjps"] += axis_size - 1  # the body, traced once, has counted one
    return cotangent, in_batched[0]


counted.defvjp(lambda x: (counted(x), None), lambda _, cotangent: (tick(cotangent),))


def counting_field(scale, x, t, cond):
    return counted(field(scale, x, t, cond))


@pytest.mark.parametrize("name", INVERSE)
def test_cost_is_the_declared_one(name):
    """Counted on the host in an uncompiled call, where every evaluation and every pullback is a Python call."""
    network = ds.Network(counting_field, jnp.float32(0.8), predicts="noise")
    rule = INVERSE[name](network, Y, 0.4)
    x, keys = jax.random.normal(KEY, (2, 3)), jax.random.split(KEY, 2)
    now, ahead = (ds.Level(*map(jnp.float32, VP.level(t))) for t in (0.5, 0.4))
    at = ds.Point(now, ahead, jnp.int32(0), jnp.int32(0), keys)
    state = rule.init(x)
    COUNTS.update(evaluations=0, vjps=0)
    with jax.disable_jit():
        rule(x, at, None, state)
    assert COUNTS == {"evaluations": rule.evaluations, "vjps": rule.vjps}


@pytest.mark.parametrize("name", [name for name in INVERSE if name != "red_diff"])  # whose memory is made from y
def test_memory_can_be_laid_out_for_any_batch(name):
    """Particle methods ask for the memory of twice the batch; y belongs to the call."""
    rule = INVERSE[name](NETWORK, MANY, WEIGHTS)
    for batch in (4, 8):
        shapes = jax.eval_shape(rule.init, jax.ShapeDtypeStruct((batch, 3), jnp.float32))
        assert all(leaf.shape[0] == batch for leaf in jax.tree.leaves(shapes))


def test_every_group_of_particles_has_its_own_measurement():
    def reward(before, view):
        return -(view.prediction.x0**2).sum(axis=1)

    def cloud(y):
        rule = guidance.dps(NETWORK, guidance.operators.mask([1.0, 0.0, 1.0]), ds.smc.repeat(y, 2), 0.4)
        sampler = ds.smc.feynman_kac(solvers.linear(rule, solvers.ddpm(VP, GRID)), reward, particles=2)
        return ds.sample(KEY, sampler, (4, 3)).x

    both, other = cloud(MANY[:2]), cloud(MANY[:2].at[1].multiply(-1.0))
    np.testing.assert_array_equal(both[:2], other[:2])
    assert np.abs(both[2:] - other[2:]).max() > 1e-2


def test_cost_of_rules_around_rules_adds_up():
    """DPS around CFG pulls back through both branches; MMPS around DPS through DPS's evaluation, twice."""
    law = ds.exact.Switch((ds.exact.Gaussian(0.0, 1.0), ds.exact.Gaussian(1.0, 1.0)))
    guided = guidance.dps(guidance.cfg(law, 1, 2.0), lambda x0: x0, 0.0)
    assert (guided.evaluations, guided.vjps) == (2, 2)
    assert guidance.clip(guided).vjps == 2
    assert guidance.cfg(guidance.dps(law, lambda x0: x0, 0.0), 1, 2.0).vjps == 2
    assert guidance.mmps(guided, lambda x0: x0, 0.0, 1.0, iterations=3).vjps == 8
