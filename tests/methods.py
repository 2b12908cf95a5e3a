"""The shared table of methods: one row a solver or guidance rule, and every contract test runs over all rows.

A solver's row is a function (process, grid) -> Tableau; `OTHER` changes its hyperparameter at equal shapes.
A guidance rule's row is a function (denoiser, scale) -> denoiser, with null condition 2.
"""

from diffsample import guidance, solvers

SOLVERS = {
    "ddim": solvers.ddim,
    "ddim-eta": lambda p, g: solvers.ddim(p, g, eta=0.7),
    "ddpm": solvers.ddpm,
    "ddpm-large": lambda p, g: solvers.ddpm(p, g, large=True),
    "euler": solvers.euler,
    "heun": solvers.heun,
    "heun-churn": lambda p, g: solvers.heun(p, g, churn=4.0, churn_max=50.0),
    "dpmpp": solvers.dpmpp,
    "dpmpp-taylor": lambda p, g: solvers.dpmpp(p, g, taylor=True),
    "plms2": lambda p, g: solvers.plms(p, g, order=2),
    "plms4": solvers.plms,
    "hb0.9-plms4": lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.9),
    "hb0.9-dpmpp": lambda p, g: solvers.heavy_ball(solvers.dpmpp(p, g), 0.9),
    "ghvb0.8": lambda p, g: solvers.ghvb(p, g, order=1, beta=0.8),
    "ghvb1.8": solvers.ghvb,
    "ghvb3.8": lambda p, g: solvers.ghvb(p, g, order=4),
    "dpmpp3": lambda p, g: solvers.dpmpp(p, g, order=3),
    "exp3-noise-start": lambda p, g: solvers.exp_multistep(p, g, noise_form=True, singlestep_start=True),
    "dpm2": solvers.dpm_multistep,
    "lms4": solvers.lms,
    "unipc3": lambda p, g: solvers.unipc(p, g, order=3),
    "deis-t": solvers.deis_t,
    "sde-dpmpp": solvers.sde_dpmpp,
    "sa-solver": solvers.sa_solver,
    "dpm2-ancestral": lambda p, g: solvers.dpm2(p, g, eta=1.0),
    "dpmpp-singlestep": lambda p, g: solvers.dpmpp_singlestep(p, g, r1=0.6),
    "dpmpp-sde": solvers.dpmpp_sde,
    "seeds2": lambda p, g: solvers.seeds2(p, g, c2=0.3),
    "spndm": solvers.spndm,
    "consistency": solvers.consistency_multistep,
}
OTHER = {
    "ddim-eta": lambda p, g: solvers.ddim(p, g, eta=0.2),
    "heun-churn": lambda p, g: solvers.heun(p, g, churn=2.0, churn_max=50.0),
    "hb0.9-plms4": lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.3),
    "hb0.9-dpmpp": lambda p, g: solvers.heavy_ball(solvers.dpmpp(p, g), 1.0),
    "dpmpp": lambda p, g: solvers.dpmpp(p, g, taylor=True),
    "ghvb1.8": lambda p, g: solvers.ghvb(p, g, beta=1.0),
    "ddim": solvers.euler,
    "dpmpp3": solvers.exp_multistep,
    "exp3-noise-start": lambda p, g: solvers.exp_multistep(p, g, singlestep_start=True),
    "lms4": solvers.plms,
    "unipc3": lambda p, g: solvers.unipc(p, g, order=3, bh1=True),
    "deis-t": solvers.deis_log_rho,
    "sde-dpmpp": lambda p, g: solvers.sde_dpmpp(p, g, eta=0.3, heun=True),
    "sa-solver": lambda p, g: solvers.sa_solver(p, g, tau=0.6),
    "dpm2-ancestral": lambda p, g: solvers.dpm2(p, g, eta=0.5),
    "dpmpp-singlestep": lambda p, g: solvers.dpmpp_singlestep(p, g, r1=0.8),
    "dpmpp-sde": solvers.seeds2,
    "seeds2": lambda p, g: solvers.seeds2(p, g, c2=0.4),
}
GUIDANCE = {
    "cfg": lambda d, scale: guidance.cfg(d, 2, scale),
    "cfg-sequential": lambda d, scale: guidance.cfg(d, 2, scale, batched=False),
    "apg": lambda d, scale: guidance.apg(d, 2, scale, radius=0.7, momentum=-0.5),
    "apg-sequential": lambda d, scale: guidance.apg(d, 2, scale, radius=0.7, momentum=-0.5, batched=False),
}
