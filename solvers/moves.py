"""What solvers say of one step s -> t: ratios that stay finite at sigma = 0 and alpha = 0."""

from math import inf, log, sqrt

from diffsample.process import Level


def decay(s: Level, t: Level) -> float:
    """exp(-h) = alpha_s sigma_t / (alpha_t sigma_s), h = gain in half log-SNR; 0 at sigma_t = 0 or alpha_s = 0."""
    return s.alpha * t.sigma / (t.alpha * s.sigma)


def gain(s: Level, t: Level) -> float:
    """h = half_logsnr(t) - half_logsnr(s); infinite at sigma_t = 0 or alpha_s = 0."""
    ratio = decay(s, t)
    return -log(ratio) if ratio else inf


def rescaled_noise(level: Level) -> float:
    """sigma / alpha, the noise scale of x / alpha."""
    if not level.alpha:
        raise ValueError(
            f"this solver works on x / alpha and cannot start at alpha = 0 (t = {level.t:g}); use ddim or dpmpp, "
            f"or start the grid later"
        )
    return level.sigma / level.alpha


def ancestral(s: Level, t: Level, eta: float) -> tuple[float, float]:
    """(down, up): the step goes to noise `down` deterministically, then adds `up`; down^2 + up^2 = sigma_t^2.

    eta = 0 is deterministic, eta = 1 samples the exact posterior of the forward process (Song et al. 2021,
    arXiv 2010.02502, eq. 16, for any alpha and sigma).
    """
    up = eta * t.sigma * sqrt(max(0.0, 1.0 - decay(s, t) ** 2))
    if up > t.sigma:
        raise ValueError(f"eta={eta} asks for more noise than the level sigma={t.sigma:g} holds; use eta <= 1")
    return sqrt(t.sigma**2 - up**2), up
