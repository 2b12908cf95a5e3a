"""The methods that ship with the library, and the README's table of them, measured.

    python -m diffsample.catalogue                  prints the table
    python -m diffsample.catalogue README.md        writes it between the markers of a file

A row of METHODS is a solver as it is called, and a function (process, times) -> Tableau. What the table says of it is
measured by `certificate`; only its first line is taken from the docstring.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from diffsample import solvers
from diffsample.certify import Certificate, certificate
from diffsample.orders import Solver
from diffsample.process import FlowMatching, Process, VariancePreserving

METHODS: dict[str, Solver] = {
    "ddim": solvers.ddim,
    "ddim(eta=0.7)": lambda p, g: solvers.ddim(p, g, eta=0.7),
    "ddpm": solvers.ddpm,
    "ddpm(large=True)": lambda p, g: solvers.ddpm(p, g, large=True),
    "euler": solvers.euler,
    "euler(churn=4, churn_max=50)": lambda p, g: solvers.euler(p, g, churn=4, churn_max=50),
    "euler_ancestral": solvers.euler_ancestral,
    "consistency_multistep": solvers.consistency_multistep,
    "heun": solvers.heun,
    "heun(churn=4, churn_max=50)": lambda p, g: solvers.heun(p, g, churn=4, churn_max=50),
    "restart(segments=[(2 + steps // 4, 2, 0.3, 0.6)])": lambda p, g: solvers.restart(
        p, g, segments=[(2 + g.steps // 4, 2, 0.3, 0.6)]
    ),
    "dpm2": solvers.dpm2,
    "dpm2(eta=1)": lambda p, g: solvers.dpm2(p, g, eta=1),
    "kutta3": solvers.kutta3,
    "rk4": solvers.rk4,
    "flow_heun": lambda p, g: solvers.flow_heun(FlowMatching(), g),
    "plms(order=2)": lambda p, g: solvers.plms(p, g, order=2),
    "plms": solvers.plms,
    "ipndm": solvers.ipndm,
    "lms": solvers.lms,
    "fpndm": solvers.fpndm,
    "spndm": solvers.spndm,
    "deis_t": solvers.deis_t,
    "deis_rho": solvers.deis_rho,
    "deis_log_rho": solvers.deis_log_rho,
    "dpm_multistep": solvers.dpm_multistep,
    "dpm_multistep(order=3)": lambda p, g: solvers.dpm_multistep(p, g, order=3),
    "dpm_singlestep": solvers.dpm_singlestep,
    "dpm_singlestep(orders=3)": lambda p, g: solvers.dpm_singlestep(p, g, orders=3),
    "dpmpp": solvers.dpmpp,
    "dpmpp(taylor=True)": lambda p, g: solvers.dpmpp(p, g, taylor=True),
    "dpmpp(order=3)": lambda p, g: solvers.dpmpp(p, g, order=3),
    "dpmpp_singlestep": solvers.dpmpp_singlestep,
    "dpmpp_singlestep(orders=3)": lambda p, g: solvers.dpmpp_singlestep(p, g, orders=3),
    "exp_multistep": solvers.exp_multistep,
    "exp_multistep(singlestep_start=True)": lambda p, g: solvers.exp_multistep(p, g, singlestep_start=True),
    "exp_multistep(order=4, singlestep_start=True)": lambda p, g: solvers.exp_multistep(
        p, g, order=4, singlestep_start=True
    ),
    "unipc": solvers.unipc,
    "unipc(order=3)": lambda p, g: solvers.unipc(p, g, order=3),
    "unipc(order=4)": lambda p, g: solvers.unipc(p, g, order=4),
    "unipc(order=3, corrector=False)": lambda p, g: solvers.unipc(p, g, order=3, corrector=False),
    "heavy_ball(plms, 0.9)": lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.9),
    "heavy_ball(dpmpp, 0.9)": lambda p, g: solvers.heavy_ball(solvers.dpmpp(p, g), 0.9),
    "heavy_ball(plms, 0.9, nesterov=True)": lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.9, nesterov=True),
    "ghvb(order=1)": lambda p, g: solvers.ghvb(p, g, order=1),
    "ghvb": solvers.ghvb,
    "ghvb(order=4)": lambda p, g: solvers.ghvb(p, g, order=4),
    "dpmpp_2s_ancestral": solvers.dpmpp_2s_ancestral,
    "dpmpp_sde": solvers.dpmpp_sde,
    "seeds2": solvers.seeds2,
    "seeds2(c2=0.3)": lambda p, g: solvers.seeds2(p, g, c2=0.3),
    "sde_dpmpp(order=1)": lambda p, g: solvers.sde_dpmpp(p, g, order=1),
    "sde_dpmpp": solvers.sde_dpmpp,
    "sde_dpmpp(heun=True)": lambda p, g: solvers.sde_dpmpp(p, g, heun=True),
    "sde_dpmpp(order=3)": lambda p, g: solvers.sde_dpmpp(p, g, order=3),
    "sa_solver": solvers.sa_solver,
    "sa_solver(tau=0)": lambda p, g: solvers.sa_solver(p, g, tau=0),
    "euler_maruyama": solvers.euler_maruyama,
    "reverse_diffusion": solvers.reverse_diffusion,
    "ancestral_sampling": solvers.ancestral_sampling,
    "ald(corrections=5)": lambda p, g: solvers.ald(p, g, corrections=5),
    "time_travel(ddpm, jump=2, repeats=2)": lambda p, g: solvers.time_travel(solvers.ddpm(p, g), jump=2, repeats=2),
}
PROCESSES: dict[str, Process] = {"flow_heun": FlowMatching()}  # of methods that know one process only
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
HEAD = ("method", "what it is", "order: measured, declared", "measured from sigma/alpha = 2", "calls a step",
        "on 10 moves", "registers, slots", "draws noise", "exact on", "reference")  # fmt: skip


def certify_method(label: str, compiled: bool = False) -> Certificate:
    """The certificate of a row of METHODS.

    >>> certify_method("ddim").calls
    10
    """
    process = PROCESSES.get(label, VariancePreserving())
    return certificate(METHODS[label], process, name=label, compiled=compiled)


def methods_table(certificates: Iterable[Certificate] | None = None) -> str:
    """The README's table in Markdown, one line a certificate named by its row of METHODS; None measures all of them."""
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [table_row(found) for found in certificates or map(certify_method, METHODS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def table_row(found: Certificate) -> tuple[str, ...]:
    """The cells of one line."""
    function, *arguments = found.name.partition("(")
    what, reference = described(getattr(solvers, function).__doc__)
    declared = "no claim" if found.declared is None else f"{found.declared}{' in law' * found.stochastic}"
    return (
        f"`{function}`{''.join(arguments)}",
        what,
        f"{found.order:.2f}, {declared}",
        "" if found.midway is None else f"{found.midway:.2f}",
        f"{found.calls_per_step:g}",
        str(found.calls),
        f"{found.registers}, {found.slots}",
        "yes" if found.stochastic else "no",
        found.exact_on(),
        reference,
    )


def described(docstring: str) -> tuple[str, str]:
    """What a method is called in words, and its reference: the two that a docstring of the house has.

    >>> described(solvers.seeds2.__doc__)
    ('SEEDS-2 in the data form', 'Gonzalez et al. 2023, arXiv 2305.14267')
    """
    text = inspect.cleandoc(docstring)
    what = re.split(r"[:;,.]| in the coordinates", text, maxsplit=1)[0]
    found = re.search(r"Reference: (.*?)(?=\n\n|$)", text, re.DOTALL)
    whole = " ".join(found[1].split()) if found else ""
    return what, re.split(r"(?<=\d\d\d\d\.\d\d\d\d\d)|;|, (?=eq|alg|section|append)", whole, maxsplit=1)[0].rstrip(
        ",. "
    )


def write_block(
    arguments: Sequence[str] | None, program: str, table: Callable[[], str], markers: tuple[str, str]
) -> None:
    """Print a table, or write it between the markers of the file that the arguments name."""
    parser = argparse.ArgumentParser(prog=program, description=table.__doc__)
    parser.add_argument("file", nargs="?", type=Path, help=f"a file with the markers {' and '.join(markers)}")
    path = parser.parse_args(arguments).file
    if path is None:
        print(table())
        return
    before, begin, rest = path.read_text().partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise SystemExit(f"{path} has no block between {' and '.join(markers)}")
    path.write_text(f"{before}{begin}\n{table()}\n{end}{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it between the markers of a file."""
    write_block(arguments, "python -m diffsample.catalogue", methods_table, (BEGIN, END))


if __name__ == "__main__":
    main()
