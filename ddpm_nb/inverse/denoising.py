"""What reverse diffusion solves as it is: noise is removed from its level on; replacement carries that to masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import check_process
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.inverse.measurement import Mask, Measurement, standard_deviation
from ddpm_nb.kernels import GaussianKernel, State
from ddpm_nb.precision import Copies
from ddpm_nb.schedule import NoiseSchedule

__all__ = ["RePaint", "Replacement", "denoising_level", "denoising_start"]


def denoising_level(schedule: NoiseSchedule, sigma_y: float) -> int:
    """Return the step t whose 1/SNR_t = (1 − ᾱ_t)/ᾱ_t is nearest to σ_y², both as standard deviations.

    There √ᾱ_t y is a draw of x_t. Book: [the level of a measurement](#eq-i8-denoising-level). ``ValueError`` if
    the schedule nowhere is as noisy as the measurement.
    """
    sigmas = schedule.level(torch.arange(schedule.T + 1)).sigma
    if standard_deviation(sigma_y) > sigmas[-1]:
        raise ValueError(
            f"sigma_y = {sigma_y}: expected at most {sigmas[-1]:.3g}, "
            "the schedule's noise at T"
        )
    return int((sigmas - sigma_y).abs().argmin())


def denoising_start(schedule: NoiseSchedule, measurement: Measurement) -> State:
    """Return √ᾱ_t y at its level t, where the reverse chain takes over. Book: [](#eq-i8-denoising-level).

    ``TypeError`` unless the operator is a ``Mask`` that keeps everything: A(x) = x.
    """
    mask = measurement.operator
    if not isinstance(mask, Mask) or not bool(mask.keep.all()):
        raise TypeError(
            "operator: expected a Mask that keeps every entry; "
            "reverse diffusion removes noise, not A"
        )
    t = denoising_level(schedule, measurement.sigma_y)
    return State(schedule.level(t).signal * mask.adjoint(measurement.y), t)


@dataclass(frozen=True, eq=False)
class Replacement:
    """After every step, write a noised measurement over the measured entries (Song et al. 2021). Biased.

    Entries of x_s become √ᾱ_s y plus noise up to the level's 1 − ᾱ_s, down to the level of y itself; below it the
    chain runs alone. Book: [replacement](#eq-i8-replacement).

    Parameters
    ----------
    kernel : ``(x_t, s, t) -> Gaussian`` of the prior alone
    q : the forward process
    measurement : its operator must be a ``Mask``
    """

    kernel: GaussianKernel
    q: GaussianDiffusion
    measurement: Measurement

    def __post_init__(self) -> None:
        if not isinstance(self.measurement.operator, Mask):
            raise TypeError(
                f"operator: expected a Mask, got {type(self.measurement.operator).__name__}"
            )
        check_process(self.q, self.kernel, "kernel")

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        law = self.kernel(x_t, s, t)
        if s < self._lowest:
            return law
        level, sigma_y = self.q.schedule.level(s), self.measurement.sigma_y
        keep, written = self._copies.beside(x_t)
        missing = max(level.noise_var - level.alpha_bar * sigma_y**2, 0.0)
        mean = torch.where(keep, level.signal * written, law.mean)
        # A variance that all entries share is a number on the host.
        var = law.var if law.var.ndim else x_t.new_full((), law.var.item())
        return Gaussian(mean, torch.where(keep, missing, var))

    @cached_property
    def _lowest(self) -> int:
        """The level of the measurement, below which the chain runs alone."""
        return denoising_level(self.q.schedule, self.measurement.sigma_y)

    @cached_property
    def _copies(self) -> Copies:
        """Which entries are measured, and Aᵀ y."""
        mask = self.measurement.operator
        return Copies(mask.keep, mask.adjoint(self.measurement.y))  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class RePaint:
    """Every step ``rounds`` times: down to s, up again to t by the forward process (Lugmayr et al. 2022). Biased.

    The way up carries what was written over the measured entries into the others. With one round it is the kernel
    itself. Book: [rounds](#eq-i8-repaint).

    Parameters
    ----------
    kernel : ``(x_t, s, t) -> Gaussian``, a ``Replacement``
    q : the forward process
    rounds : how often each step is taken, at least 1
    generator : draws the states between the rounds
    """

    kernel: GaussianKernel
    q: GaussianDiffusion
    rounds: int
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        whole_number("rounds", self.rounds, least=1)
        check_process(self.q, self.kernel, "kernel")

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s in the last round."""
        law = self.kernel(x_t, s, t)
        for _ in range(self.rounds - 1):
            x_s = law.sample(self.generator)
            x_t = self.q.transition(x_s, s, t).sample(self.generator)
            law = self.kernel(x_t, s, t)
        return law
