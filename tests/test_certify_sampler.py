"""Certificates of samplers: ours keep their claims and the README says so, broken ones are refused by name."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_certify import assert_same_line

import diffsample as ds
from diffsample import solvers
from diffsample.catalogue import METHODS
from diffsample.running import order_along_path, order_in_law, order_on_flow, returns_its_dtype, sampler_degrees
from diffsample.sampler_catalogue import BEGIN, END, SAMPLERS, certify_sampler, samplers_table

VP = ds.VariancePreserving()
README = (Path(__file__).parents[1] / "README.md").read_text()
QUICK = ("shifted(ddim)", "predictor_corrector(reverse_diffusion)")  # the others compile for seconds each
TOOLS = {"linear", "from_diffusers", "equal_error_grid", "measure_local_error", "singlestep_orders",
         "per_sample_ratio", "batch_mean_ratio", "multistep_decisions", "singlestep_decisions", "from_published",
         "learn", "reference_loss", "stretched"}  # no samplers  # fmt: skip

# `speculative` exactly, its calls depend on the noise; `usf` as its decisions say: certified in tests of their own
LAW_OF_ITS_TABLE = {"speculative", "usf"}


def readme_rows():
    block = README.partition(BEGIN)[2].partition(END)[0]
    return {name + arguments: line for line, name, arguments in re.findall(r"(?m)^(\| `(\w+)`(.*?) \|.*)$", block)}


rows = [pytest.param(label, marks=[] if label in QUICK else pytest.mark.slow) for label in SAMPLERS]


@pytest.mark.parametrize("label", rows)
def test_sampler_keeps_its_claim_and_the_readme_says_so(label):
    found = certify_sampler(label).verify()
    (line,) = samplers_table([found]).splitlines()[2:]
    assert_same_line(re.sub(r"± [\d.]+", "±", readme_rows()[label]), re.sub(r"± [\d.]+", "±", line))


def test_readme_has_every_sampler_once():
    assert [*readme_rows()] == [*SAMPLERS]


def test_every_function_of_the_solvers_is_certified_or_no_solver():
    certified = {label.partition("(")[0] for label in (*METHODS, *SAMPLERS)}
    without = {name for name in solvers.__all__ if name[0].islower()} - certified - TOOLS - LAW_OF_ITS_TABLE
    assert not without, f"{without} need a row in METHODS or SAMPLERS, or a place among the tools of this test"


def of_table(solver):
    """A table as a sampler, of which nothing is read off."""
    return lambda denoiser, grid: solvers.linear(denoiser, solver(grid.process, grid))


@functools.cache
def card():
    """Of DPM-Solver++, claimed to be of order 2."""
    return ds.sampler_certificate(of_table(solvers.dpmpp), VP, name="mine", declared=2, check=True)


def test_card_of_a_users_sampler_says_what_that_of_its_table_says():
    table = ds.certificate(solvers.dpmpp, compiled=False)
    found = card()
    assert found.order is not None and found.gradient is not None
    assert found.order.value == pytest.approx(table.order, abs=0.1)
    assert (found.calls, found.calls_per_step, found.nfe) == (table.calls, table.calls_per_step, 10)
    assert found.exact_on() == table.exact_on() == "point mass"
    assert found.alone and found.dtypes and not found.stochastic and 0 < found.gradient < 1e-6
    assert "2.0" in str(found) and "does not depend" in str(found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"declared": 3}, r"mine measures order 2.0\d and declares 3"),
        ({"nfe": 9}, "mine makes 10 network calls and declares nfe=9"),
        ({"dtypes": False}, "mine returns another dtype"),
        ({"gradient": 0.5}, "mine has gradients that are off by 0.5"),
        ({"gradient": float("nan")}, "mine has gradients that are off by nan"),
    ],
)
def test_broken_claim_is_refused_by_name(changed, message):
    with pytest.raises(ds.CertificateError, match=message):
        card()._replace(**changed).verify()


def test_orders_are_told_apart(x64):
    law = order_in_law(of_table(solvers.ddpm), VP)
    assert law.value == pytest.approx(1, abs=0.2) and 0 < law.spread < 0.05
    assert order_on_flow(of_table(solvers.heun), VP).value == pytest.approx(2, abs=0.1)


def test_order_along_one_path_needs_the_path(x64):
    """Fresh draws at every step count stay as far apart, however fine the grids."""
    assert SAMPLERS["brownian_path(ddpm)"].measure is order_along_path
    assert abs(order_along_path(of_table(solvers.ddpm), VP).value) < 0.25


def test_polynomials_are_exact_up_to_the_degree_in_the_books(x64):
    assert sampler_degrees(of_table(solvers.exp_multistep), VP) == (2, 0, 0)


def wider(denoiser, grid):
    return lambda key, x: x.astype(jnp.float32)


def test_dtype_that_changes_is_seen():
    grid = ds.times.uniform_logsnr(VP, 4)
    assert not returns_its_dtype(wider, grid) and returns_its_dtype(of_table(solvers.ddim), grid)


def test_lying_nfe_and_stopped_gradients_are_measured(x64):
    @dataclasses.dataclass(frozen=True)
    class Lying(solvers.Linear):
        @property
        def nfe(self):
            return 3

    jax.tree_util.register_dataclass(Lying)

    def lying(denoiser, grid):
        sampler = solvers.linear(denoiser, solvers.ddim(grid.process, grid))
        return Lying(jax.lax.stop_gradient(sampler.denoiser), sampler.tableau)

    with pytest.raises(ds.CertificateError) as caught:
        ds.sampler_certificate(lying, VP, name="liar", check=True)
    assert "makes 10 network calls and declares nfe=3" in str(caught.value)
    assert "gradients that are off by 1" in str(caught.value)
