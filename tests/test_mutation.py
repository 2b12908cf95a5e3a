"""Random schedules, mutation and crossover: always valid, always of the asked number of calls, at the stated rates."""

import dataclasses

import numpy as np
import pytest

from diffsample.search import Evolution, Rates, Space, crossover, mutate, random_schedule
from diffsample.search.proposing import children, predicted_children
from diffsample.solvers import Decisions, Relaxation, multistep_decisions

CALLED = Space(1.0, (0.005, 0.01), first=(("call", 1.0),))
CLEAN = Space(1.0, (0.0, 0.0), predictions=(("noise", 0.3), ("data", 0.3), ("v3", 0.4)))
IMPLICIT = Space(80.0, (0.002, 0.002), correctors=(("none", 0.3), ("pseudo", 0.3), ("implicit", 0.4)))
STILL = Rates(**{field.name: 0.0 for field in dataclasses.fields(Rates)})
PARENT = multistep_decisions([1.0, 0.6, 0.3, 0.1, 0.01], order=3, relaxation=Relaxation("bh2"), corrector="pseudo")
OTHER = Decisions([1.0, 0.7, 0.5, 0.2, 0.01], (1, 1, 2, 1), ("noise",) * 4, first="zero", correctors=("none",) * 4)


@pytest.mark.parametrize("space", [CALLED, CLEAN, IMPLICIT], ids=["called", "clean", "implicit"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10])
def test_every_child_is_valid_and_makes_the_asked_calls(space, nfe):
    rng = np.random.default_rng(nfe)
    pool = [random_schedule(rng, space, nfe) for _ in range(30)]
    for _ in range(200):  # a Decisions that breaks a rule cannot be built
        one, two = (pool[i] for i in rng.integers(len(pool), size=2))
        child = crossover(rng, one, two, space) if one.steps == two.steps and one != two else one
        child = mutate(rng, child, space)
        assert child.nfe == nfe and child.steps <= nfe + 1
        assert child.times[0] == space.start and space.stop[0] <= child.times[-1] <= space.stop[1]
        assert all(child.times[-1] + space.margin < t < space.start - space.margin for t in child.times[1:-1])
        assert child.orders[-1] == 1 or not space.ends_clean
        pool[int(rng.integers(len(pool)))] = child


def test_every_decision_of_the_space_is_reached():
    rng, schedule = np.random.default_rng(0), random_schedule(np.random.default_rng(1), IMPLICIT, 8)
    seen: dict[str, set] = {"orders": set(), "predictions": set(), "correctors": set(), "first": set(), "points": set()}
    kinds = set()
    for _ in range(300):
        schedule = mutate(rng, schedule, IMPLICIT)
        for name in ("orders", "predictions", "correctors"):
            seen[name] |= set(getattr(schedule, name))
        seen["first"].add(schedule.first)
        for step in schedule.derivatives:
            seen["points"] |= {len(derivative.points) for derivative in step[:1]}
            kinds |= {d.relaxation.kind if d.relaxation else None for d in step[:1]}
    assert seen["orders"] == {1, 2, 3, 4} and seen["points"] >= {1, 2}
    assert seen["predictions"] == {"noise", "data"} and seen["first"] == {"call", "zero"}
    assert seen["correctors"] == {"none", "pseudo", "implicit"}
    assert kinds == {None, "bh1", "bh2", "linear"}


def test_nothing_changes_at_rates_of_zero():
    space = Space(1.0, (0.01, 0.01), rates=STILL)
    assert mutate(np.random.default_rng(0), PARENT, space) == PARENT


@pytest.mark.parametrize(
    ("rate", "changed", "probability"),
    [
        ("prediction", lambda child: child.predictions[1] != "data", 0.4 * 0.5),
        ("order", lambda child: child.orders[3] != 3, 0.4 * 0.7),
        ("corrector", lambda child: child.correctors[1] != "pseudo", 0.4 * 0.5),
        ("first", lambda child: child.first != "call", 0.4 * 0.5),
        ("relaxation", lambda child: child.derivatives[1][0].relaxation != Relaxation("bh2"), 0.4 * 0.75),
        ("insert", lambda child: child.times[1:-1] != PARENT.times[1:-1], 0.4 * 0.75),
    ],
)
def test_mutation_has_its_rate(rate, changed, probability):
    """A redraw may give the old choice again; an inserted step is taken away again in one of four cases."""
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, **{rate: 0.4}))
    rng, draws = np.random.default_rng(0), 3000
    share = np.mean([changed(mutate(rng, PARENT, space)) for _ in range(draws)])
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / draws)  # false alarm 6e-5


def test_jitter_is_relative_and_of_its_size():
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, jitter=0.02))
    rng = np.random.default_rng(0)
    factors = np.array([np.divide(mutate(rng, PARENT, space).times[1:-1], PARENT.times[1:-1]) for _ in range(2000)])
    np.testing.assert_allclose(factors.std(axis=0), 0.02, rtol=4 / np.sqrt(2 * 2000))  # false alarm 6e-5 each
    np.testing.assert_allclose(factors.mean(axis=0), 1.0, atol=4 * 0.02 / np.sqrt(2000))


def test_gamma_moves_from_where_it_is():
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, gamma=1.0, gamma_std=0.03))
    parent = multistep_decisions([1.0, 0.3, 0.01], order=2, relaxation=Relaxation("linear", 0.5))
    rng = np.random.default_rng(0)
    moved = (mutate(rng, parent, space).derivatives[1][0].relaxation for _ in range(400))
    gammas = [relaxation.gamma for relaxation in moved if relaxation is not None]
    assert abs(np.mean(gammas) - 0.5) < 4 * 0.03 / 20  # false alarm 6e-5
    np.testing.assert_allclose(np.std(gammas), 0.03, rtol=4 / np.sqrt(800))


def test_crossover_takes_whole_decisions_from_both_parents():
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, stepwise=0.0))
    rng, one = np.random.default_rng(0), dataclasses.replace(PARENT, first="mean")
    children = [crossover(rng, one, OTHER, space) for _ in range(400)]
    for child in children:
        for name in ("times", "predictions", "orders", "first"):
            assert getattr(child, name) in (getattr(one, name), getattr(OTHER, name))
        assert child not in (one, OTHER)
    assert len({(c.times, c.predictions, c.orders, c.correctors, c.first) for c in children}) == 2**5 - 2


def test_stepwise_crossover_mixes_within_a_decision():
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, stepwise=1.0))
    rng, one = np.random.default_rng(0), dataclasses.replace(PARENT, first="zero")
    mixed = {crossover(rng, one, OTHER, space).predictions for _ in range(200)}
    assert len(mixed) == 2**4


def test_correctors_keep_their_orders_where_both_parents_have_the_steps():
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, stepwise=0.0))
    low = dataclasses.replace(PARENT, corrector_orders=(2, 2, 2, 0), predictions=("noise",) * 4)
    rng = np.random.default_rng(0)
    found = {crossover(rng, PARENT, low, space).corrector_orders for _ in range(50)}
    assert found == {PARENT.corrector_orders, (2, 2, 2, 0)}


def test_random_times_are_uniform_in_their_power_and_end_anywhere_in_the_range():
    space = Space(1.0, (0.01, 0.05), first=(("call", 1.0),), warp=(2.0, 2.0), rates=STILL)
    rng = np.random.default_rng(0)
    drawn = [random_schedule(rng, space, 4) for _ in range(100)]
    for schedule in drawn:
        inner = np.sqrt(schedule.times[:-1])
        np.testing.assert_allclose(np.diff(inner), np.diff(inner)[0], rtol=1e-9)
        assert 0.01 < (inner[-1] + np.diff(inner)[0]) ** 2 < 0.05
    ends = np.array([mutate(rng, schedule, space).times[-1] for schedule in drawn])
    assert ends.min() < 0.015 and ends.max() > 0.045  # each missed with probability (7/8)^100 = 2e-6


JITTERED = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, jitter=0.1))


def first_move(schedules):
    return np.array([schedule.times[1] for schedule in schedules])


def kind_of(schedule):
    """What jitter leaves as it is."""
    return dataclasses.replace(schedule, times=tuple(np.linspace(1.0, 0.01, schedule.steps + 1)))


def test_predicted_children_are_the_favourites_of_the_predictors_own_evolution():
    """The predictor likes early second times; every round starts from the best so far, so each gains some 10 %."""
    rng, sizes = np.random.default_rng(0), Evolution(elite=2, population=5, children=20, rounds=6, explore=0.25)
    parents = sorted((random_schedule(rng, JITTERED, 5) for _ in range(40)), key=lambda s: s.times[1])[::-1]
    found = predicted_children(rng, parents, first_move, JITTERED, 12, set(parents), sizes)
    assert len(set(found)) == 12 and not set(found) & set(parents)
    chosen, plain = first_move(found[:9]), found[9:]
    assert (np.diff(chosen) >= 0).all() and chosen.max() < 0.7 * first_move(parents).min()
    assert {kind_of(schedule) for schedule in plain} <= {kind_of(schedule) for schedule in parents[:2]}


def test_children_of_two_parents_are_crossed_at_their_rate():
    one, other = dataclasses.replace(PARENT, first="zero"), OTHER
    space = Space(1.0, (0.01, 0.01), rates=dataclasses.replace(STILL, crossover=1.0, jitter=0.01))
    fresh = children(np.random.default_rng(0), [one, other], space, 20, set())
    kinds = {kind_of(one), kind_of(other)}
    assert sum(kind_of(child) in kinds for child in fresh) < 10  # times alone are crossed in 2 of 30 ways


def test_one_seed_is_one_child():
    space = Space(1.0, (0.01, 0.01))
    first, again, other = (mutate(np.random.default_rng(seed), PARENT, space) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Space(1.0, (0.2, 0.1)), r"stop=\(0.2, 0.1\)"),
        (lambda: Space(1.0, (1.0, 1.0)), "between 0 and start=1.0"),
        (lambda: Space(1.0, (0.0, 0.0), predictions=(("epsilon", 1.0),)), "'epsilon', which is not one of"),
        (lambda: Space(1.0, (0.0, 0.0), orders=((1, 0.0),)), "leaves nothing to choose"),
        (lambda: Space(1.0, (0.0, 0.0), orders=((1, -1.0),)), "must not be negative"),
        (lambda: Rates(insert=1.5), "insert=1.5"),
        (lambda: random_schedule(np.random.default_rng(0), CLEAN, 0), "nfe=0"),
        (lambda: crossover(np.random.default_rng(0), PARENT, OTHER, CLEAN), "4 and 3 calls"),
    ],
)
def test_bad_input_is_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()
