"""What a rule around one denoiser says of itself where it adds nothing of its own."""

from typing import Protocol

from jax import Array

from diffsample.denoiser import Denoiser, PyTree
from diffsample.process import Level, Process


class Wrapper(Denoiser, Protocol):
    """A rule that calls its denoiser once: costs, memory and refusals are those of the denoiser."""

    denoiser: Denoiser

    @property
    def evaluations(self) -> int:
        """Those of the denoiser."""
        return self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """Those of the denoiser."""
        return self.denoiser.vjps

    @property
    def coupled(self) -> bool:
        """Whether x = alpha x0 + sigma eps holds: where it does for the denoiser."""
        return self.denoiser.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses."""
        self.denoiser.check(process, levels)

    def init(self, x: Array) -> PyTree:
        """The denoiser's memory."""
        return self.denoiser.init(x)
