"""The methods that ship with the library, and the README's table of them, measured.

    python -m diffsample.catalogue                  prints the table
    python -m diffsample.catalogue README.md        writes it between the markers of a file

A row of METHODS is a solver as it is called, and a function (process, times) -> Tableau. What the table says of it is
measured by `certificate`; only its first line is taken from the docstring.
"""

from diffsample import solvers
from diffsample.certify import Solver

METHODS: dict[str, Solver] = {
    "ddim": solvers.ddim,
    "ddim(eta=0.7)": lambda p, g: solvers.ddim(p, g, eta=0.7),
    "ddpm": solvers.ddpm,
    "ddpm(large=True)": lambda p, g: solvers.ddpm(p, g, large=True),
    "euler": solvers.euler,
    "euler(churn=4)": lambda p, g: solvers.euler(p, g, churn=4, churn_max=50),
    "euler_ancestral": solvers.euler_ancestral,
    "consistency_multistep": solvers.consistency_multistep,
    "heun": solvers.heun,
    "heun(churn=4)": lambda p, g: solvers.heun(p, g, churn=4, churn_max=50),
    "restart": lambda p, g: solvers.restart(p, g, segments=[(3, 2, 0.14, 0.30)]),
    "dpm2": solvers.dpm2,
    "dpm2(eta=1)": lambda p, g: solvers.dpm2(p, g, eta=1),
    "kutta3": solvers.kutta3,
    "rk4": solvers.rk4,
    "flow_heun": solvers.flow_heun,
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
    "reverse_diffusion(corrections=1)": lambda p, g: solvers.reverse_diffusion(p, g, corrections=1),
    "ancestral_sampling": solvers.ancestral_sampling,
    "ald": lambda p, g: solvers.ald(p, g, corrections=5),
}
