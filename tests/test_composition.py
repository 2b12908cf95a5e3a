"""Chains of rules, and guidance in an interval: values, memory, and network evaluations counted while running."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import counted

import diffsample as ds
from diffsample import guidance, solvers

VE, KEY, LABELS = ds.VarianceExploding(), jax.random.key(0), jnp.array([0, 1, 0])
GRID = [80.0, 10.0, 3.0, 1.0, 0.2, 0.0]


def guided(network, low, high, **options):
    return guidance.during(guidance.cfg(network, 2, 3.0), network, low, high, **options)


def drawn(denoiser, table, **options):
    return ds.sample(KEY, solvers.linear(denoiser, table), (3, 2), cond=LABELS, **options)


WINDOWS = {  # low, high, whole steps -> evaluations of ddim and of heun on GRID
    "some levels": (1.0, 10.0, False, 5 + 2, 9 + 4),
    "whole steps": (1.0, 10.0, True, 5 + 2, 9 + 4),
    "one level": (0.9, 1.0, False, 5 + 1, 9 + 2),
    "one step": (0.9, 1.0, True, 5 + 1, 9 + 2),
    "first level": (11.0, 80.0, False, 5 + 1, 9 + 1),
    "first step": (11.0, 80.0, True, 5 + 1, 9 + 2),
    "nowhere": (80.0, 90.0, False, 5, 9),
    "everywhere": (0.0, np.inf, False, 10, 18),
}


@pytest.mark.parametrize(("low", "high", "whole", "ddim", "heun"), WINDOWS.values(), ids=WINDOWS)
def test_no_unconditional_call_is_made_outside_the_interval(low, high, whole, ddim, heun):
    network, count = counted()
    for solver, expected in ((solvers.ddim, ddim), (solvers.heun, heun)):
        sampler = solvers.linear(guided(network, low, high, whole_steps=whole), solver(VE, GRID))
        assert sampler.nfe == expected
        assert count(lambda s=sampler: ds.sample(KEY, s, (3, 2), cond=LABELS)) == expected


def test_whole_steps_follow_the_first_call_of_a_step():
    """Heun calls at 3 as the second call of the step from 10 and as the first of the step to 1."""
    network, _ = counted()

    def record(view):
        at = ds.Point(view.level, view.level, view.index, view.stage, jax.random.split(KEY, 3))
        return view.x0 - network(view.x, at, LABELS, ())[0].x0

    for whole, expected in ((False, [0, 0, 0, 1, 1, 0, 0, 0, 0]), (True, [0, 0, 0, 0, 1, 1, 0, 0, 0])):
        rule = guided(network, 1.0, 3.0, whole_steps=whole)
        _, shifts = drawn(rule, solvers.heun(VE, GRID), record=record)
        np.testing.assert_array_equal((np.abs(shifts) > 1e-5).all(axis=(1, 2)), expected)


def test_inside_is_guidance_and_outside_is_the_plain_denoiser_bit_for_bit():
    network, _ = counted()
    table = solvers.ddim(VE, GRID)
    everywhere = drawn(guided(network, 0.0, np.inf), table)
    np.testing.assert_array_equal(everywhere, drawn(guidance.cfg(network, 2, 3.0), table))
    np.testing.assert_array_equal(drawn(guided(network, 80.0, 90.0), table), drawn(network, table))


def test_each_sample_has_its_own_interval_and_level():
    network, _ = counted()
    table = solvers.ddim(VE, GRID)
    mixed = drawn(guided(network, 0.5, jnp.array([80.0, 0.6, 5.0])), table)
    for i, high in enumerate((80.0, 0.6, 5.0)):
        np.testing.assert_allclose(mixed[i], drawn(guided(network, 0.5, high), table)[i], rtol=1e-5)
    sigma = jnp.array([0.4, 2.0, 6.0])
    levels = ds.Level(sigma, jnp.ones(3), sigma)
    x = jnp.ones((3, 2))
    at = ds.Point(levels, levels, jnp.int32(0), jnp.int32(0), jax.random.split(KEY, 3))
    rule = guided(network, 0.5, 5.0)
    found, _ = rule(x, at, LABELS, rule.init(x))
    for i, part in enumerate((network, guidance.cfg(network, 2, 3.0), network)):
        np.testing.assert_allclose(found.x0[i], part(x, at, LABELS, part.init(x))[0].x0[i], rtol=1e-6)


def test_memory_advances_only_inside():
    network, _ = counted()
    rule = guidance.during(guidance.apg(network, 2, 3.0, momentum=-0.5), network, 1.0, 10.0)

    def record(view):
        return view.memory.guided.average

    _, average = drawn(rule, solvers.ddim(VE, GRID), record=record)
    changed = np.abs(np.diff(average, axis=0, prepend=0)).max(axis=(1, 2)) > 1e-6
    np.testing.assert_array_equal(changed, [False, True, True, False, False])


def test_choices_inside_other_rules_are_counted():
    network, count = counted()
    inner = guided(network, 0.5, 5.0)  # two evaluations at 3 and at 1
    outer = guidance.during(guidance.clip(guidance.cfg(inner, 2, 1.5)), inner, 2.0, 20.0)  # doubled at 10 and at 3
    sampler = solvers.linear(outer, solvers.ddim(VE, GRID))
    assert sampler.nfe == 1 + 2 + 4 + 2 + 1
    assert count(lambda: ds.sample(KEY, sampler, (3, 2), cond=LABELS)) == sampler.nfe


def test_padding_is_not_counted():
    network, count = counted()
    table = ds.pad(solvers.ddim(VE, GRID), steps=9)
    sampler = solvers.linear(guided(network, 0.0, 1.0), table)
    assert sampler.nfe == 5 + 2
    assert count(lambda: ds.sample(KEY, sampler, (3, 2), cond=LABELS)) == sampler.nfe


def test_chain_puts_the_first_rule_next_to_the_network():
    network, _ = counted()
    assert guidance.chain(network) is network
    built = guidance.chain(network, partial(guidance.cfg, null=2, scale=3.0), guidance.clip)
    table = solvers.ddim(VE, GRID)
    np.testing.assert_array_equal(drawn(built, table), drawn(guidance.clip(guidance.cfg(network, 2, 3.0)), table))


def test_bad_compositions_are_named():
    network, _ = counted()
    with pytest.raises(ValueError, match=r"low=2\.0, high=1\.0"):
        guided(network, 2.0, 1.0)
    with pytest.raises(TypeError, match="returned a float"):
        guidance.chain(network, lambda denoiser: 3.0)  # pyright: ignore[reportArgumentType]
