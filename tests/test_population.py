"""Populations of schedules: the values of one at a time, from shared noise, in one program; and what they are worth."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import metrics, search, solvers
from diffsample.compiles import count_compiles
from diffsample.search import Population, Space, random_schedule

PROCESS = ds.VariancePreserving()
WEIGHTS, MEANS, SPREADS = np.array([0.3, 0.45, 0.25]), np.array([-1.0, 0.3, 1.1]), np.array([0.35, 0.25, 0.4])
MIXTURE = ds.exact.Mixture(WEIGHTS, MEANS, SPREADS**2)
SPACE = Space(1.0, (0.01, 0.01), correctors=(("none", 0.4), ("pseudo", 0.4), ("implicit", 0.2)))
X = jax.random.normal(jax.random.key(0), (16,))
CHUNK = 8
ON_FOUR_DEVICES = """
import json, jax, test_population as t
population = t.Population(t.MIXTURE, t.PROCESS, t.X, t.root_mean_square, chunk=2)
parts = [part for part, _ in population._chunks(t.schedules(10), None)]
print(json.dumps([population(t.schedules(10)).tolist(), [len(part.sharding.device_set) for part in parts],
                  [part.shape[0] for part in parts]]))
"""


def x0_given(x, level):
    """E[x0 | x_t] of the mixture, in NumPy."""
    var = level.alpha**2 * SPREADS**2 + level.sigma**2
    apart = x[:, None] - level.alpha * MEANS
    share = WEIGHTS * np.exp(-(apart**2) / (2 * var)) / np.sqrt(var)
    return (share / share.sum(axis=1, keepdims=True) * (MEANS + level.alpha * SPREADS**2 / var * apart)).sum(axis=1)


def schedules(count, seed=0, nfe=5):
    rng = np.random.default_rng(seed)
    return [random_schedule(rng, SPACE, nfe) for _ in range(count)]


def root_mean_square(samples):
    return jnp.sqrt(jnp.mean(samples**2))


@pytest.fixture(scope="module")
def population():
    return Population(MIXTURE, PROCESS, X, root_mean_square, chunk=CHUNK)


def test_values_are_those_of_each_schedule_alone(population):
    """In NumPy, by the tables' own rows; schedules of six steps that begin without a call are among them."""
    some = schedules(12)
    assert {schedule.steps for schedule in some} >= {4, 5, 6}
    tables = [solvers.usf(PROCESS, schedule) for schedule in some]
    assert len({(table.registers, table.slots) for table in tables}) > 2
    ends = [ds.exact.run_on_host(table, x0_given, np.asarray(X, np.float64)) for table in tables]
    exact = np.array([np.sqrt(np.mean(end**2)) for end in ends])
    wild = np.array([np.abs(table.B).max() for table in tables])  # weights up to 604 multiply the rounding of float32
    assert (np.abs(population(some) / exact - 1) < 2e-5 + 2e-7 * wild).all()


def test_noise_is_shared_and_neighbours_do_not_matter(population):
    some = schedules(12)
    values = population(some)
    np.testing.assert_array_equal(population([*some[::-1], some[0]]), [*values[::-1], values[0]])
    assert len(set(values)) == 12


def test_generations_share_one_program(population):
    population(schedules(16))
    with count_compiles() as counted:
        for seed in (1, 2, 3):
            population(schedules(16, seed))
    assert counted.count == 0


def test_another_reference_and_other_noise_share_it_too():
    first = Population(MIXTURE, PROCESS, X, search.ReferenceDistance(X), chunk=CHUNK)
    first(schedules(8))
    again = dataclasses.replace(first, x=X + 0.1, objective=search.ReferenceDistance(2 * X))
    with count_compiles() as counted:
        assert not np.allclose(again(schedules(8)), first(schedules(8)))
    assert counted.count <= 2  # the two sums above


def test_values_that_are_not_finite_are_infinite():
    broken = Population(MIXTURE, PROCESS, X, lambda samples: jnp.log(samples[0] - 100.0), chunk=CHUNK)
    assert (broken(schedules(8)) == np.inf).all()


def test_reference_distance_is_the_error_of_paired_samples(population):
    reference = search.accurate_samples(MIXTURE, PROCESS, X, 1.0, 0.01, steps=60)
    distance = dataclasses.replace(population, objective=search.ReferenceDistance(reference))
    grid = ds.times.uniform_logsnr(PROCESS, 5, start=1.0, stop=0.01, zero=False)
    coarse, fine = (solvers.multistep_decisions(grid, order=q, prediction="noise") for q in (1, 2))
    values = distance([coarse, fine] * 4)
    out = distance.samples([coarse, fine] * 4)
    np.testing.assert_allclose(values[:2], np.sqrt(np.mean((out[:2] - reference[None]) ** 2, axis=1)), rtol=1e-5)
    assert values[1] < values[0] / 2


def test_objectives_are_the_metrics_of_the_samples(population):
    some, data = schedules(8), MIXTURE.sample(jax.random.key(3), 16)
    samples = population.samples(some)
    key = jax.random.key(1)
    median = search.Discrepancy.of(data)
    cases = [
        (search.Frechet.of(data), lambda s: metrics.frechet_distance(*metrics.moments(s), *metrics.moments(data))),
        (search.Frechet.of(data, _two), lambda s: metrics.frechet_distance(
            *metrics.moments(_two(s)), *metrics.moments(_two(data)))),
        (median, lambda s: metrics.mmd(s, data, median.bandwidth)),
        (search.SlicedWasserstein(key, data, slices=4), lambda s: metrics.sliced_wasserstein(key, s, data, slices=4)),
        (search.OnHost(np.ptp), np.ptp),
    ]  # fmt: skip
    for objective, metric in cases:
        values = dataclasses.replace(population, objective=objective)(some)
        np.testing.assert_allclose(values, [float(metric(s)) for s in samples], rtol=2e-4, atol=2e-6)


def _two(samples):
    """Features that are not the pixels."""
    return jnp.stack([samples, samples**2], axis=1)


def test_sinkhorn_is_an_objective_where_ott_is_installed(population):
    pytest.importorskip("ott")
    data, some = MIXTURE.sample(jax.random.key(3), 16), schedules(8)
    values = dataclasses.replace(population, objective=search.Sinkhorn(data, 0.05))(some)
    expected = [float(metrics.sinkhorn_wasserstein(s, data, 0.05)) for s in population.samples(some)[:3]]
    np.testing.assert_allclose(values[:3], expected, rtol=1e-4)


def test_mean_image_of_the_first_step_is_a_shift_in_the_stack(population):
    """Beside schedules that have none."""
    plain = schedules(3)
    meant = [dataclasses.replace(s, first="mean") for s in schedules(40, nfe=5) if s.first == "zero"][:3]
    shifted = dataclasses.replace(population, build=_with_mean)
    values = shifted([*plain, *meant, *plain[:2]])
    ends = [ds.exact.run_on_host(_with_mean(PROCESS, m), x0_given, np.asarray(X, np.float64)) for m in meant]
    np.testing.assert_allclose(values[3:6], [np.sqrt(np.mean(end**2)) for end in ends], rtol=2e-5)
    np.testing.assert_allclose(values[:3], population(plain), rtol=1e-6)


def _with_mean(process, schedule):
    return solvers.usf(process, schedule, mean=0.2 if schedule.first == "mean" else None)


def test_population_is_split_over_devices(population):
    """Two schedules a device and chunk; the last chunk is filled up."""
    tests = Path(__file__).resolve().parent
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }
    command = [sys.executable, "-c", ON_FOUR_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values, devices, sizes = json.loads(done.stdout)
    np.testing.assert_allclose(values, population(schedules(10)), rtol=1e-6)
    assert devices == [4, 4] and sizes == [8, 8]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda p: p([]), "at least one schedule"),
        (lambda p: p([*schedules(1), *schedules(1, nfe=4)]), "5 and 4 calls"),
        (lambda p: dataclasses.replace(p, registers=1, slots=1)(schedules(8)), "does not fit in registers=1, slots=1"),
        (lambda p: dataclasses.replace(p, chunk=0), "chunk=0"),
    ],
)
def test_bad_input_is_named(act, said, population):
    with pytest.raises(ValueError, match=said):
        act(population)


def test_objective_that_is_no_function_is_named():
    with pytest.raises(TypeError, match="an objective is a function"):
        Population(MIXTURE, PROCESS, X, 3.0)
