"""Schedules as data: defaults, JSON, the released layout, and decisions that are refused by step and value."""

import dataclasses
import json

import numpy as np
import pytest
from test_usf import SCHEDULES, any_decisions

import diffsample as ds
from diffsample.solvers import Decisions, Derivative, Relaxation, from_published, multistep_decisions

PLAIN = Decisions((1.0, 0.6, 0.3, 0.1), (1, 2, 3), ("data", "noise", "data"))


def test_defaults_are_multistep_from_the_nearest_outputs():
    assert PLAIN.starts == (-1, -1, -1) and PLAIN.correctors == ("none",) * 3 and PLAIN.first == "call"
    assert [[k.points for k in step] for step in PLAIN.derivatives] == [[], [(-2,)], [(-2, -3), (-2, -3)]]
    inner = Decisions((1.0, 0.6, 0.3, 0.1), (1, 2, 3), ("data",) * 3, starts=(-1, -2, -2))
    assert [[k.points for k in step] for step in inner.derivatives] == [[], [(-1,)], [(-1, -3), (-1, -3)]]


def test_calls_are_counted():
    implicit = multistep_decisions([1.0, 0.6, 0.3, 0.1], corrector="implicit")
    assert (PLAIN.nfe, implicit.nfe, dataclasses.replace(implicit, first="zero").nfe) == (3, 5, 4)


def test_schedules_survive_json_and_are_hashable(tmp_path):
    found = [any_decisions(seed) for seed in range(30)] + [Decisions.load(path) for path in SCHEDULES]
    for schedule in found:
        schedule.save(tmp_path / "schedule.json")
        assert Decisions.load(tmp_path / "schedule.json") == schedule
    assert len(set(found)) == len(found) == len({*found, *map(Decisions.from_json, map(Decisions.to_json, found))})
    with pytest.raises(ValueError, match=r"not a schedule.*got \['a'\]"):
        Decisions.from_json('{"a": 1}')


def test_released_layout_is_read():
    """By hand: a dictionary of the released layout, with an array, a relaxed slope from one point and a corrector."""
    slope = {"estimate": "Difference_1", "active_points": [-2], "relaxation": "linear", "relaxation_coefficient": -0.2}
    bend = {"estimate": "Difference_2", "active_points": [-3, -2], "relaxation": None}
    none = {"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None}
    again = {"estimate": "Difference_1", "active_points": [-1], "relaxation": None}
    found = {
        "timesteps": np.array([1.0, 0.6, 0.3, 0.1]),
        "orders": [1, 2, 3],
        "prediction_types": ["noise_prediction", "data_prediction", "dpmsolver_v3_prediction"],
        "start_points": [-1, -1, -1],
        "derivative_types": [[], {1: {"estimate": "Difference_1", "active_points": None, "relaxation": "unipc-bh1"}},
                             [slope, bend]],
        "corrector_types": [{"type": "pseudo", "start_point": -2, "taylor_order": 2, "derivative_type": [again]}, none,
                            none],
        "afs": "average_x0",
        "skip_coefficients": np.ones(3),
    }  # fmt: skip
    assert from_published(found) == Decisions(
        times=(1.0, 0.6, 0.3, 0.1),
        orders=(1, 2, 3),
        predictions=("noise", "data", "v3"),
        derivatives=((), (Derivative((-2,), Relaxation("bh1")),),
                     (Derivative((-2,), Relaxation("linear", -0.2)), Derivative((-3, -2)))),
        correctors=("pseudo", "none", "none"),
        first="mean",
    )  # fmt: skip
    with pytest.raises(ValueError, match="skip_coefficients"):
        from_published(found | {"skip_coefficients": [0.5]})
    with pytest.raises(TypeError, match="got tuple; a file holds"):
        from_published((found, 2.7))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"has timesteps, orders and prediction_types, got \['orders'\]"):
        from_published({"orders": [1]})
    with pytest.raises(ValueError, match="'noise' is not one of"):
        from_published(found | {"prediction_types": ["noise"] * 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": (1.0, 0.6, 0.6, 0.1)}, r"times\[1\] = 0.6 and times\[2\] = 0.6"),
        ({"times": (1.0, 0.6, 0.3, -0.1)}, r"times\[3\] = -0.1"),
        ({"times": (1.0, 0.5)}, "orders has 3 entries for 1 steps"),
        ({"predictions": ("data", "noise", "score")}, "step 2 expands 'score'"),
        ({"orders": (2, 2, 3)}, "step 0 has order 2"),
        ({"orders": (1, 1, 3)}, "step 1 of order 1 needs 0 derivatives, got 1"),
        ({"starts": (-1, -3, -1)}, "step 1 starts at -3"),
        ({"derivatives": ((), (Derivative((-1,)),), ())}, r"derivative 1 of step 1 uses outputs \(-1,\)"),
        ({"derivatives": ((), (Derivative((-3,)),), ())}, r"derivative 1 of step 1 uses outputs \(-3,\)"),
        (
            {"derivatives": ((), PLAIN.derivatives[1], (Derivative((-2, -3)), Derivative((-2,))))},
            "derivative 2 of step 2",
        ),
        ({"correctors": ("none", "pseudo", "pseudo"), "corrector_orders": ()}, "the last step has corrector 'pseudo'"),
        ({"correctors": ("none", "PECE", "none"), "corrector_orders": ()}, "step 1 has corrector 'PECE'"),
        ({"correctors": ("pseudo", "none", "none"), "corrector_orders": (3, 0, 0)}, "of step 0 has order 3"),
        ({"corrector_relaxations": (None, Relaxation("bh1"), None)}, "step 1 has no corrector to relax"),
        ({"first": "average"}, "first='average'"),
    ],
)
def test_bad_decisions_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": [1, 1.5]}, r"orders=\[1, 1.5\] must be whole numbers"),
        ({"orders": ["1", 2]}, "must be whole numbers"),
        ({"derivatives": [[], 3]}, "not a schedule"),
        ({"derivatives": [[], [{"relaxation": None}]]}, "not a schedule: 'points'"),
        ({"derivatives": [[], [{"points": "-2"}]]}, "points='-2' must be whole numbers"),
        ({"corrector_relaxations": [{"shape": "bh1"}, None]}, "not a schedule"),
        ({"times": None}, "not a schedule"),
        ({"steps": 3}, "needs times, orders and predictions"),
    ],
)
def test_bad_files_are_named(changes, message):
    good = json.loads(Decisions((1.0, 0.5, 0.1), (1, 2), ("data", "noise")).to_json())
    with pytest.raises(ValueError, match=message):
        Decisions.from_json(json.dumps(good | changes))


def test_bad_relaxations_are_named():
    with pytest.raises(ValueError, match="relaxation 'bh3' is not one of"):
        Relaxation("bh3")
    with pytest.raises(ValueError, match="must be finite, and 0 where the relaxation is not"):
        Relaxation("bh1", 0.5)
    with pytest.raises(ValueError, match="power=0"):
        Relaxation("linear", 0.5, power=0)
    with pytest.raises(ValueError, match="leaves no call"):
        Decisions((1.0, 0.5), (1,), ("data",), first="zero")
    with pytest.raises(ValueError, match=r"orders=\[4\] must be 1, 2 or 3"):
        ds.solvers.singlestep_decisions(ds.VariancePreserving(), [1.0, 0.5], orders=[4])
    with pytest.raises(ValueError, match="has no inner points"):
        ds.solvers.singlestep_decisions(ds.VariancePreserving(), [1.0, 0.0], orders=[2])
