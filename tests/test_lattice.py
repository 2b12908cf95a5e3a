"""The enumerated Ising lattice, and discrete correctors that anneal it, against all of its states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc
from diffsample.exact import ising


def test_concrete_scores_are_those_of_spins_flipped_at_random(x64):
    model, t = ising(2, 0.4), 0.6
    x = (jnp.arange(16)[:, None] >> jnp.arange(4)[None]) & 1
    np.testing.assert_array_equal(model.number(x), np.arange(16))
    stay = (1 + np.exp(-2 * t)) / 2
    apart = (np.asarray(x)[:, None] != np.asarray(x)[None]).sum(axis=-1)
    law = np.exp(np.asarray(model.log_p)) @ (stay ** (4 - apart) * (1 - stay) ** apart)
    np.testing.assert_allclose(model.log_noised(t), np.log(law), atol=1e-12)
    ratios = np.asarray(model.log_ratios(x, t))
    for n in range(16):
        for place in range(4):
            other = n ^ (1 << place)
            assert ratios[n, place, 1 - int(x[n, place])] == pytest.approx(np.log(law[other] / law[n]), abs=1e-12)
            assert ratios[n, place, int(x[n, place])] == 0


def test_energy_counts_every_bond_of_the_periodic_lattice():
    model = ising(4, 0.3)
    assert float(model.energy[0]) == -32 and float(model.energy[1]) == -24  # two bonds a spin; one spin turned
    assert float(model.magnetisation[-1]) == 1
    with pytest.raises(ValueError, match="side=5"):
        ising(5, 0.3)


def test_corrected_jumps_anneal_the_lattice_to_its_exact_law():
    """Coupling 0.3 to 0.44: energy, magnetisation, normaliser over 65,536 states. Steps are of first order: at 250 of
    them the energy is 0.27 off, at 1000 not measurably; the jumps alone are 0.9 off, or 1.2."""
    model, beta, (start, stop), groups = ising(4, 0.3), 0.44 / 0.3, (3.0, 1e-3), 24

    def rates(x, t, cond):
        flips = (x[..., None] != jnp.arange(2)[None, None]).astype(float)
        return smc.corrected_jumps(flips, flips, model.log_ratios(x, t)[None], jnp.array([beta]))

    def log_start(x):
        return beta * model.log_noised(start)[model.number(x)] + 16 * np.log(2.0)

    sampler = smc.jump_process(rates, np.geomspace(start, stop, 251), vocab=2)
    fk = smc.feynman_kac(sampler, smc.Growth(log_start), particles=256)
    out = ds.sample(jax.random.key(0), fk, (groups * 256, 16))
    alone = ds.sample(jax.random.key(1), sampler, (6144, 16))
    law, number = np.exp(beta * np.asarray(model.log_noised(stop), np.float64)), model.number(out.x)

    def exact(table):
        return np.asarray(table, np.float64) @ law / law.sum()

    for table, step_error in ((model.energy, 0.35), (model.magnetisation**2, 0.015)):
        found = np.asarray(out.mean(table[number]))
        assert abs(found.mean() - exact(table)) < 4 * found.std() / groups**0.5 + step_error
    plain = np.asarray(model.energy[model.number(alone)])
    assert exact(model.energy) - plain.mean() > 0.5 + 3 * plain.std() / len(plain) ** 0.5
    z = np.exp(np.asarray(out.log_z) - np.log(law.sum()))
    assert abs(z.mean() - 1) < 4 * z.std() / groups**0.5 + 0.05
    assert z.std() < 0.5
