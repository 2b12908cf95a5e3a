"""The samplers of the library that are not tables, and the README's table of them, measured by running.

python -m diffsample.sampler_catalogue              prints the table; minutes
python -m diffsample.sampler_catalogue README.md    writes it between the markers of a file
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
from jax import Array

from diffsample import solvers
from diffsample.betas import DiscreteBetas
from diffsample.catalogue import described, write_block
from diffsample.certify_sampler import SamplerCertificate, sampler_certificate
from diffsample.denoiser import Denoiser
from diffsample.grid import Grid
from diffsample.orders import FROM_MIDWAY
from diffsample.process import Process, VariancePreserving
from diffsample.running import Build, Measure, order_along_path, order_on_flow

BEGIN, END = "<!-- samplers:begin -->", "<!-- samplers:end -->"
HEAD = ("sampler", "what it is", "order: measured, declared", "calls a step", "on 10 moves", "draws noise", "exact on",
        "error on Gaussian data", "sample depends on batch", "reference")  # fmt: skip


class Row(NamedTuple):
    """A sampler as it is built, and what it claims: arguments of `sampler_certificate`."""

    build: Build
    process: Process = VariancePreserving()
    declared: float | None = None
    measure: Measure | None = None
    gradient: bool = True


def adaptive(solve: Callable[..., Any], denoiser: Denoiser, grid: Grid, stepped: bool = False) -> Any:
    """`solve_ode` or `solve_sde` over a grid, whose moves are its steps or just its two ends.

    Where the grid goes on to clean data, the last move is the call whose x0 is returned.
    """
    clean = bool(grid.t[-1] == 0)
    t = grid.t[:-1] if clean else grid.t
    steps = jnp.asarray([float(grid.process.half_logsnr(float(time))) for time in t])
    options = {"controller": diffrax.StepTo(steps)} if stepped else {}

    def run(key: Array, x: Array) -> Array:
        return solve(key, denoiser, grid.process, x, start=float(t[0]), stop=float(t[-1]), denoise=clean, **options).x

    return run


def ddpm_on_a_path(denoiser: Denoiser, grid: Grid) -> solvers.Linear:
    """Ancestral sampling whose draws are increments of one path, between the two ends of the grid."""
    table = solvers.ddpm(grid.process, grid)
    last = grid.half_logsnr[-1 - (grid.t[-1] == 0)]
    path = solvers.brownian_path(table, start=float(grid.half_logsnr[0]), stop=float(last))
    return solvers.linear(denoiser, table, path=path)


BETAS = DiscreteBetas.linear()
WINDOW, CUTOFF = 40, 300
SAMPLERS: dict[str, Row] = {
    "predictor_corrector(reverse_diffusion)": Row(
        lambda d, g: solvers.predictor_corrector(d, solvers.reverse_diffusion(g.process, g))
    ),
    "predictor_corrector(reverse_diffusion, ratio=batch_mean_ratio)": Row(
        lambda d, g: solvers.predictor_corrector(
            d, solvers.reverse_diffusion(g.process, g), ratio=solvers.batch_mean_ratio
        )
    ),
    "annealed_langevin(corrections=5)": Row(lambda d, g: solvers.annealed_langevin(d, g.process, g, corrections=5)),
    "shifted(ddim)": Row(lambda d, g: solvers.shifted(d, solvers.ddim(BETAS, g), window=WINDOW, cutoff=CUTOFF), BETAS),
    "shifted_exponential": Row(
        lambda d, g: solvers.shifted_exponential(d, BETAS, g, window=WINDOW, cutoff=CUTOFF), BETAS
    ),
    "shifted_pnm_code(ddim)": Row(
        lambda d, g: solvers.shifted_pnm_code(d, solvers.ddim(BETAS, g), window=WINDOW, cutoff=CUTOFF), BETAS
    ),
    "shifted_adm_code": Row(lambda d, g: solvers.shifted_adm_code(d, BETAS, g, window=WINDOW, cutoff=CUTOFF), BETAS),
    "shifted_dpm_code": Row(lambda d, g: solvers.shifted_dpm_code(d, BETAS, g, window=WINDOW, cutoff=CUTOFF), BETAS),
    "shifted_deis_code(deis_t)": Row(
        lambda d, g: solvers.shifted_deis_code(d, solvers.deis_t(BETAS, g), window=WINDOW, cutoff=CUTOFF), BETAS
    ),
    "solve_ode": Row(lambda d, g: adaptive(solvers.solve_ode, d, g)),
    "solve_ode(controller=StepTo(grid))": Row(
        lambda d, g: adaptive(solvers.solve_ode, d, g, stepped=True),
        declared=5,
        measure=partial(order_on_flow, flow=FROM_MIDWAY._replace(steps=(16, 32, 64))),
    ),
    "solve_sde": Row(lambda d, g: adaptive(solvers.solve_sde, d, g), gradient=False),
    "solve_sde(controller=StepTo(grid))": Row(
        lambda d, g: adaptive(solvers.solve_sde, d, g, stepped=True),
        declared=1.5,
        measure=order_along_path,
    ),
    "brownian_path(ddpm)": Row(ddpm_on_a_path, declared=1, measure=order_along_path),
}


def certify_sampler(label: str) -> SamplerCertificate:
    """The certificate of a row of SAMPLERS."""
    row = SAMPLERS[label]
    return sampler_certificate(row.build, row.process, name=label, declared=row.declared, measure=row.measure,
                               gradient=row.gradient)  # fmt: skip


def samplers_table(certificates: Iterable[SamplerCertificate] | None = None) -> str:
    """The README's table in Markdown, one line a certificate named by its row; None measures all of them."""
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [table_row(found) for found in certificates or map(certify_sampler, SAMPLERS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def table_row(found: SamplerCertificate) -> tuple[str, ...]:
    """The cells of one line."""
    function, *arguments = found.name.partition("(")
    what, reference = described(getattr(solvers, function).__doc__)
    return (
        f"`{function}`{''.join(arguments)}",
        what,
        found.orders(),
        f"{found.calls_per_step:g}" if found.calls_per_step else "its own",
        str(found.calls),
        "yes" if found.stochastic else "no",
        found.exact_on(),
        found.moments(),
        "no" if found.alone else "yes",
        reference,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it between the markers of a file."""
    write_block(arguments, "python -m diffsample.sampler_catalogue", samplers_table, (BEGIN, END))


if __name__ == "__main__":
    main()
