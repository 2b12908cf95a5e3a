"""Schedules: values at known levels, under jit, and no compilation when their numbers change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.compiles import count_compiles

VE, KEY, LABELS = ds.VarianceExploding(), jax.random.key(0), jnp.array([0, 1, 0])
PAIR = ds.exact.Switch((ds.exact.Gaussian(1.0, 0.25), ds.exact.Gaussian(-1.0, 0.5), ds.exact.Gaussian(0.0, 1.0)))
TABLE = solvers.ddim(VE, [10.0, 4.0, 1.0, 0.3, 0.0])
RULES = {
    "cfg": lambda number: guidance.cfg(PAIR, 2, number),
    "apg": lambda number: guidance.apg(PAIR, 2, number, radius=number, momentum=number, eta=number),
    "clip": lambda number: guidance.clip(PAIR, low=number, high=9.0),
    "dynamic_threshold": lambda number: guidance.dynamic_threshold(PAIR, 0.9, bound=number, largest=number),
}


def level(rho, alpha=1.0):
    return ds.Level(None, alpha, rho * alpha)


def drawn(rule):
    return ds.sample(KEY, solvers.linear(rule, TABLE), (3, 2), cond=LABELS)


def test_piecewise_linear_is_linear_in_log_rho_on_any_process():
    schedule = guidance.piecewise_linear([0.01, 1.0, 100.0], [0.0, 2.0, 3.0])
    for rho, value in ((1e-4, 0.0), (0.1, 1.0), (1.0, 2.0), (10.0, 2.5), (1e5, 3.0)):
        for alpha in (1.0, 0.3):
            assert float(schedule(level(rho, alpha))) == pytest.approx(value, abs=1e-6)
    assert float(schedule(ds.Level(None, jnp.float32(0.0), jnp.float32(1.0)))) == 3.0  # pure noise
    found = schedule(ds.Level(None, jnp.ones(2), jnp.array([0.1, 10.0])))
    np.testing.assert_allclose(found, [1.0, 2.5], rtol=1e-6)


def test_piecewise_constant_owns_its_upper_edges():
    schedule = guidance.piecewise_constant([0.5, 2.0], [1.0, 5.0, 7.0])
    found = schedule(ds.Level(None, jnp.ones(5), jnp.array([0.1, 0.5, 0.6, 2.0, 2.1])))
    np.testing.assert_array_equal(found, [1.0, 1.0, 5.0, 5.0, 7.0])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_number_an_array_and_a_constant_schedule_agree(rule):
    plain = drawn(rule(1.5))
    flat = guidance.piecewise_linear([1.0, 2.0], [1.5, 1.5])
    for same in (jnp.full(3, 1.5), flat, lambda level: 1.5 + 0 * level.sigma):
        np.testing.assert_allclose(drawn(rule(same)), plain, rtol=1e-6)
    mixed = drawn(rule(jnp.array([1.5, 0.9, 1.5])))
    np.testing.assert_allclose(mixed[::2], plain[::2], rtol=1e-6)
    assert not np.allclose(mixed[1], plain[1], rtol=1e-3)


def test_another_schedule_compiles_nothing():
    drawn(RULES["apg"](guidance.piecewise_linear([1.0, 2.0], [1.5, 1.5])))
    with count_compiles() as compiles:
        other = RULES["apg"](guidance.piecewise_linear([0.5, 2.5], [1.5, 0.5]))
        made = compiles.count  # a schedule itself may run an eager operation
        drawn(other)
    assert compiles.count == made


def test_a_schedule_acts_at_its_levels():
    """DDIM's last move returns D at 0.3: the scale there counts, on the x that the scale above led to."""
    late = drawn(RULES["cfg"](guidance.piecewise_constant([0.5], [3.0, 1.0])))
    x = ds.sample(KEY, solvers.linear(PAIR, solvers.ddim(VE, [10.0, 4.0, 1.0, 0.3])), (3, 2), cond=LABELS)
    c, u = (PAIR.predict(x, level(0.3), cond).x0 for cond in (LABELS, 2))
    np.testing.assert_allclose(late, 3 * c - 2 * u, rtol=1e-4)


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match=r"rise, got \[2.0, 1.0\]"):
        guidance.piecewise_linear([2.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="3 values"):
        guidance.piecewise_constant([1.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"shape \(2,\) in a batch of 3"):
        drawn(RULES["cfg"](jnp.ones(2)))
