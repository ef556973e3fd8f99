"""Chapter 7. Sampling: the kernels of DDPM and DDIM, for :func:`~ddpm_nb.kernels.walk`."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from ddpm_nb.denoiser import Denoiser, check_process
from ddpm_nb.diffusion import (
    GaussianDiffusion,
    posterior_mean,
    posterior_var,
    weighted_sum,
)
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import State, grid, last, walk
from ddpm_nb.schedule import Level, Variance, added_var

__all__ = [
    "DDIM",
    "Ancestral",
    "State",
    "grid",
    "last",
    "variance_between",
    "walk",
]


@dataclass(frozen=True, eq=False)
class Ancestral:
    """p(x_s | x_t) = q(x_s | x_t, x̂_0): the posterior with the denoiser's estimate in place of the data.

    Source: Roysdon (16), Malhotra Algorithm 2. Book: [ancestral sampling](#eq-ancestral).

    Parameters
    ----------
    q : the forward process, that of the denoiser (``ValueError`` if it knows another)
    denoise : ``(x_t, t) -> x̂_0``
    variance : ``(level before, level here) -> σ²`` for s ≥ 1: ``posterior_var`` (β̃_t, the default), ``added_var``
        (β_t) or :func:`variance_between`. The step to s = 0 adds no noise, whatever the choice.
    """

    q: GaussianDiffusion
    denoise: Denoiser
    variance: Variance = posterior_var

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        before, here = self.q.schedule.levels(s, t)
        on_x_0, on_x_t = posterior_mean(before, here)
        mean = weighted_sum(on_x_0, self.denoise(x_t, t), on_x_t, x_t)
        return Gaussian(mean, self.variance(before, here) if s > 0 else 0.0)


def variance_between(share: float) -> Variance:
    """Return the choice β_t^share β̃_t^(1−share) of σ², from β̃ at 0 to β at 1, even in the logarithm.

    Source: Nichol & Dhariwal 2021, (15). Book: [](#eq-m7-between).
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"share = {share}: expected a number from 0 (β̃) to 1 (β)"
        )

    def variance(before: Level, here: Level) -> Tensor | float:
        beta, beta_tilde = added_var(before, here), posterior_var(before, here)
        return beta**share * beta_tilde ** (1 - share)

    return variance


@dataclass(frozen=True, eq=False)
class DDIM:
    """x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − σ²) ε̂ + σ z with σ² = η² β̃ (Song et al. 2020, eq. 12).

    With ε̂ = (x_t − √ᾱ_t x̂_0)/√(1 − ᾱ_t) it is written in x̂_0 and x_t. η = 0 draws no noise; η = 1 is ancestral
    sampling with β̃. Book: [DDIM](#eq-ddim).

    Parameters
    ----------
    q : the forward process, that of the denoiser (``ValueError`` if it knows another)
    denoise : ``(x_t, t) -> x̂_0``
    eta : η, from 0 to 1
    """

    q: GaussianDiffusion
    denoise: Denoiser
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(
                f"eta = {self.eta}: expected a number from 0 (no noise) to 1 (ancestral)"
            )

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        before, here = self.q.schedule.levels(s, t)
        var = self.eta**2 * posterior_var(before, here)
        direction = sqrt(max(before.noise_var - var, 0.0)) / here.noise
        on_x_0 = before.signal - direction * here.signal
        mean = weighted_sum(on_x_0, self.denoise(x_t, t), direction, x_t)
        return Gaussian(mean, var)
