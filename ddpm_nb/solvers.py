"""Chapter 7. Kernels that reach the data in fewer steps: Heun's method, DPM-Solver++(2M), Langevin corrections.

They are walked by :func:`ddpm_nb.sampling.walk` like any other kernel. The first two solve the probability flow, whose
first-order scheme is DDIM with η = 0; the third adds draws at a fixed noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import Denoiser, predicted_noise
from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.sampling import Law, Move, Multistep
from ddpm_nb.sde import langevin_step

__all__ = ["Corrected", "DPMSolver2M", "Draws", "Heun"]


@dataclass(frozen=True, eq=False)
class Heun:
    """x_s = √(ᾱ_s/ᾱ_t) x_t + √ᾱ_s (σ̃_s − σ̃_t) (ε̂_t + ε̂_s)/2 with σ̃ = √((1 − ᾱ)/ᾱ): order 2, two calls of the denoiser.

    ε̂_s is predicted where the step with ε̂_t alone, which is that of DDIM, arrives. At s = 0 there is no noise left to
    predict and the step is that of DDIM. Source: Karras et al. 2022, Algorithm 1 without churn. Book: [](#eq-m7-heun).
    """

    q: GaussianDiffusion
    denoise: Denoiser

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the point mass at x_s."""
        level = self.q.schedule.at(s, t)
        keep = level.alpha_between(s, t) ** -0.5
        push = level.one_minus_alpha_bar(s) ** 0.5 - keep * level.one_minus_alpha_bar(t) ** 0.5
        eps = predicted_noise(self.q, self.denoise, x_t, t)
        x_s = weighted_sum(keep, x_t, push, eps)
        if s > 0:
            eps = (eps + predicted_noise(self.q, self.denoise, x_s, s)) / 2
            x_s = weighted_sum(keep, x_t, push, eps)
        return Gaussian(x_s, torch.zeros(()))


@dataclass(frozen=True, eq=False)
class DPMSolver2M(Multistep):
    """x_s = √((1−ᾱ_s)/(1−ᾱ_t)) x_t + √ᾱ_s (1 − e^{−h}) D, h = λ_s − λ_t, λ = ½ log SNR: order 2, one call a step.

    D = x̂_0 + (h/2h′)(x̂_0 − x̂_0′) continues the line through this estimate and that of the step before, a distance h′ in
    λ away. At the first step there is none before, at s = 0 the distance is infinite; there D = x̂_0, which is DDIM.
    Source: Lu et al. 2022, DPM-Solver++(2M). Book: [](#eq-m7-2m).

    The memory is a value: :meth:`advance` leaves this kernel as it is and returns the one that knows the estimate.

    Parameters
    ----------
    q : the forward process
    denoise : ``(x_t, t) -> x̂_0``
    before : the step that was left last and the estimate made there; ``None`` at the start of a walk
    """

    q: GaussianDiffusion
    denoise: Denoiser
    before: tuple[int, Tensor] | None = None

    def advance(self, x_t: Tensor, s: int, t: int) -> tuple[Gaussian, DPMSolver2M]:
        """Return the point mass at x_s, and the kernel of the next step."""
        level = self.q.schedule.at(s, t)
        x_0 = direction = self.denoise(x_t, t)
        if s > 0 and self.before is not None:
            earlier, x_0_earlier = self.before
            ratio = (self._half_log_snr(s) - self._half_log_snr(t)) / (
                self._half_log_snr(t) - self._half_log_snr(earlier)
            )
            direction = weighted_sum(1 + ratio / 2, x_0, -ratio / 2, x_0_earlier)
        keep = (level.one_minus_alpha_bar(s) / level.one_minus_alpha_bar(t)) ** 0.5
        # √ᾱ_s (1 − e^{−h}) with e^{−h} = keep · √(ᾱ_t/ᾱ_s), which holds at s = 0 too, where h is infinite
        push = level.alpha_bar(s) ** 0.5 - keep * level.alpha_bar(t) ** 0.5
        x_s = weighted_sum(keep, x_t, push, direction)
        return Gaussian(x_s, torch.zeros(())), replace(self, before=(t, x_0))

    def _half_log_snr(self, t: int) -> float:
        level = self.q.schedule.at(t, t)
        return 0.5 * (level.log_alpha_bar(t) - math.log(level.one_minus_alpha_bar(t)))


@dataclass(frozen=True, eq=False)
class Draws:
    """The law of the last of several draws: one from ``first``, then one from ``move`` of the one before, and so on."""

    first: Law
    move: Callable[[Tensor], Law]
    moves: int

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw them all and return the last."""
        x = self.first.sample(generator)
        for _ in range(self.moves):
            x = self.move(x).sample(generator)
        return x


@dataclass(frozen=True, eq=False)
class Corrected:
    """A predictor's step from t to s, then ``corrections`` Langevin steps at s, which draw x_s nearer to the law q_s.

    Each is N(x + ½ δ score, δ I) with the score −ε̂/√(1−ᾱ_s) and δ = ``ratio`` · (1 − ᾱ_s), a part of the noise that is
    there. Nothing is corrected at s = 0. Source: Song et al. 2021, Algorithm 1. Book: [](#eq-m7-corrector).

    Parameters
    ----------
    predictor : any kernel
    q, denoise : the forward process, and the denoiser that gives the score
    ratio : size of a Langevin step, positive
    corrections : Langevin steps after each step of the predictor
    """

    predictor: Move
    q: GaussianDiffusion
    denoise: Denoiser
    ratio: float = 0.1
    corrections: int = 1

    def __post_init__(self) -> None:
        whole_number("corrections", self.corrections, least=0)
        if not self.ratio > 0:
            raise ValueError(f"ratio = {self.ratio}: expected a positive number")

    def __call__(self, x_t: Tensor, s: int, t: int) -> Law:
        """Return the law of x_s; it can be drawn from, but is no Gaussian."""
        first = self.predictor(x_t, s, t)
        if s == 0:
            return first
        noise = self.q.schedule.at(s, s).one_minus_alpha_bar(s)

        def score(x: Tensor, step: float) -> Tensor:
            return predicted_noise(self.q, self.denoise, x, int(step)) * -(noise**-0.5)

        return Draws(first, lambda x: langevin_step(score, x, s, self.ratio * noise), self.corrections)
