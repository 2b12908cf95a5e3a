"""Particle methods on whole paths: conditional SMC, PaRIS, particle Gibbs, rewards of unfinished paths."""
