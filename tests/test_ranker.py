"""The predictor: it ranks schedules that it has not seen, ignores padding, and does not compile as data grow."""

import dataclasses

import jax
import numpy as np
import pytest
from killed_search import SPACE, worth

from diffsample.compiles import count_compiles
from diffsample.search import Ranker, kendall_tau, random_schedule
from diffsample.solvers import Decisions, Relaxation
from diffsample.solvers.decisions import nearest

KEY, LONGEST, ROOM = jax.random.key(0), 5, 300
RANKER = Ranker(hidden=32, width=32, epochs=150, batch=128)


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    return [random_schedule(rng, SPACE, 4) for _ in range(count)]


@pytest.fixture(scope="module")
def weights():
    seen = drawn(300, 0)
    return RANKER.fit(KEY, seen, worth(seen), LONGEST, ROOM)


def test_held_out_schedules_are_ranked(weights):
    held_out = drawn(200, 1)
    assert kendall_tau(RANKER.score(weights, held_out, LONGEST), worth(held_out)) > 0.5


def test_untrained_predictor_ranks_nothing():
    seen, held_out = drawn(300, 0), drawn(200, 1)
    fresh = dataclasses.replace(RANKER, epochs=0).fit(KEY, seen, worth(seen), LONGEST, ROOM)
    assert abs(kendall_tau(RANKER.score(fresh, held_out, LONGEST), worth(held_out))) < 0.35


def test_padding_and_company_do_not_change_a_score(weights):
    some = drawn(300, 2)  # more than are scored at a time
    scores = RANKER.score(weights, some, LONGEST)
    assert {schedule.steps for schedule in some} >= {4, 5}
    np.testing.assert_allclose(RANKER.score(weights, some[-2:], LONGEST + 3), scores[-2:], rtol=1e-4, atol=1e-5)


def test_every_decision_is_read(weights):
    times, mixed = (1.0, 0.6, 0.3, 0.1, 0.01), ("data", "noise", "noise", "data")
    schedule = Decisions(times, (1, 2, 3, 1), mixed)
    relaxed = ((), nearest(2, -1), nearest(3, -1, Relaxation("bh1")), ())
    changed = [
        Decisions((1.0, 0.9, *times[2:]), (1, 2, 3, 1), mixed),
        Decisions(times, (1, 2, 3, 1), ("noise",) * 4),
        Decisions(times, (1, 2, 2, 1), mixed),
        Decisions(times, (1, 2, 3, 1), mixed, correctors=("pseudo", "none", "none", "none")),
        Decisions(times, (1, 2, 3, 1), mixed, first="zero"),
        Decisions(times, (1, 2, 3, 1), mixed, derivatives=relaxed),
    ]  # fmt: skip
    scores = RANKER.score(weights, [schedule, *changed], LONGEST)
    assert (np.abs(scores[1:] - scores[0]) > 1e-3).all()


def test_key_decides_the_weights_and_more_data_compile_nothing(weights):
    seen = drawn(300, 0)
    with count_compiles() as counted:
        again, other = (RANKER.fit(jax.random.key(seed), seen, worth(seen), LONGEST, ROOM) for seed in (0, 1))
        RANKER.fit(KEY, seen[:100], worth(seen[:100]), LONGEST, ROOM)
    assert counted.count == 0
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(again[-1], other[-1])


def test_failed_schedules_are_learned_as_the_worst(weights):
    """Values of infinity do not spoil the fit."""
    seen = drawn(300, 0)
    values = worth(seen)
    values[values > np.quantile(values, 0.9)] = np.inf
    found = RANKER.fit(KEY, seen, values, LONGEST, ROOM)
    held_out = drawn(200, 1)
    assert kendall_tau(RANKER.score(found, held_out, LONGEST), worth(held_out)) > 0.5


def test_kendall_tau_counts_pairs():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 2, 3], [np.inf, 2, 1]) == -1.0


@pytest.mark.parametrize(("count", "values"), [(1, 1), (3, 2), (301, 301)])
def test_bad_sizes_are_named(count, values):
    with pytest.raises(ValueError, match=f"got {count}, {values} and 300"):
        RANKER.fit(KEY, drawn(count, 0), np.zeros(values), LONGEST, ROOM)
