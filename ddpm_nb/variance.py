"""Chapter 7. The best variance of a reverse step: what the estimate of x_0 does not know, measured.

Given x_t the true x_s has the variance β̃ + κ² Var[x_0 | x_t], where κ is the weight of x_0 in the posterior's mean. A
fixed variance leaves the second part out, or replaces it by a bound. Here it is the mean squared error of the estimate
on training images, for each step, and for each range of the estimate's value if that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import Denoiser, check_process
from ddpm_nb.diffusion import (
    GaussianDiffusion,
    posterior_mean,
    posterior_var,
    weighted_sum,
)
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.precision import drawn_on
from ddpm_nb.schedule import Time, coefficient

__all__ = ["BestVariance", "Errors", "fitted_errors"]

_TRUST = 100.0  # pixels in a range before its own error outweighs that of the whole step


@dataclass(frozen=True, eq=False)
class Errors:
    """E[(x_0 − x̂_0)²] of a pixel by the step and by the value of its estimate. Book: [](#eq-m7-error-table).

    Parameters
    ----------
    table : ``(T + 1, ranges)``, float64, row t of step t; the ranges of x̂_0 divide [−1, 1] evenly
    """

    table: Tensor

    def __call__(self, x_0_hat: Tensor, t: Time) -> Tensor:
        """Return the expected squared error of each pixel of an estimate at step t. Shape and dtype of ``x_0_hat``."""
        ranges = self.table.shape[1]
        step = t
        if isinstance(step, Tensor):
            step = step.reshape(-1, *[1] * (x_0_hat.ndim - 1))
        table = self.table.to(x_0_hat.device, x_0_hat.dtype)
        return table.flatten()[step * ranges + _range(x_0_hat, ranges)]


def _range(x_0_hat: Tensor, ranges: int) -> Tensor:
    return ((x_0_hat + 1) / 2 * ranges).long().clamp(0, ranges - 1)


def fitted_errors(
    q: GaussianDiffusion,
    denoise: Denoiser,
    images: Tensor,
    ranges: int = 1,
    rounds: int = 1,
    generator: torch.Generator | None = None,
    batch: int = 250,
) -> Errors:
    """Measure the errors of an estimate on images, those that the network was trained on. Book: [](#eq-m7-error-table).

    Every image is noised ``rounds`` times, to a step that is even in log t: the first steps, where the error is most of
    the variance, are seen most. A range with few pixels takes the error of its whole step.

    Raises
    ------
    ValueError, TypeError
        If the denoiser knows another forward process, or a number is out of range.
    """
    check_process(q, denoise)
    whole_number("ranges", ranges, least=1)
    whole_number("rounds", rounds, least=1)
    n, T = len(images), q.schedule.T
    total, count = torch.zeros(2, (T + 1) * ranges, dtype=torch.float64)
    for _ in range(rounds):
        place = torch.rand(n, generator=generator, device="cpu")
        place = torch.arange(n) + place
        place = place[torch.randperm(n, generator=generator)] / n
        steps = (place * math.log(T + 1)).exp().long().clamp(1, T)
        for rows in torch.arange(n).split(batch):
            x_0, t = images[rows], steps[rows].to(images.device)
            eps = torch.randn(
                x_0.shape,
                generator=generator,
                device=drawn_on(generator, x_0),
                dtype=x_0.dtype,
            )
            with torch.no_grad():
                estimate = denoise(q.diffuse(x_0, eps.to(x_0.device), t), t)
            row = t.reshape(-1, *[1] * (x_0.ndim - 1)) * ranges
            cell = (row + _range(estimate, ranges)).flatten().cpu()
            error = (x_0 - estimate).double().square().flatten().cpu()
            total += cell.bincount(error, minlength=len(total))
            count += cell.bincount(minlength=len(total))
    total, count = total.reshape(T + 1, ranges), count.reshape(T + 1, ranges)
    step = _filled(total.sum(1), count.sum(1))[:, None]
    return Errors((total + _TRUST * step) / (count + _TRUST))


def _filled(total: Tensor, count: Tensor) -> Tensor:
    """Mean of each step, and between two steps that were seen the one before it that was."""
    step, none = torch.arange(len(count)), torch.zeros((), dtype=torch.long)
    seen = step.where(count > 0, none).cummax(0).values
    first = int((count > 0).nonzero()[0])
    return (total / count.clamp(min=1))[seen.clamp(min=first)]


@dataclass(frozen=True, eq=False)
class BestVariance:
    """Ancestral sampling with σ² = β̃ + κ² E[(x_0 − x̂_0)²], the best for the estimate. Book: [](#eq-m7-best-var).

    For steps of any length. Source: Bao et al. (2022), with one number for each step.

    Parameters
    ----------
    q : the forward process, that of the denoiser (``ValueError`` if it knows another)
    denoise : ``(x_t, t) -> x̂_0``
    errors : (x̂_0, t) -> E[(x_0 − x̂_0)²], such as :func:`fitted_errors`, or the exact variance of x_0 given x_t
    """

    q: GaussianDiffusion
    denoise: Denoiser
    errors: Callable[[Tensor, Time], Any]

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s for a walk: the step to s = 0 adds no noise."""
        law = self._law(x_t, s, t)
        return law if s > 0 else Gaussian(law.mean, 0.0)

    def reverse(self, x_t: Tensor, t: Time) -> Gaussian:
        """Return p(x_{t−1} | x_t) for the bound: at t = 1 its variance is that of the data given x_1."""
        return self._law(x_t, t - 1, t)

    def _law(self, x_t: Tensor, s: Time, t: Time) -> Gaussian:
        before, here = self.q.schedule.levels(s, t)
        estimate = self.denoise(x_t, t)
        on_x_0, on_x_t = posterior_mean(before, here)
        unknown = coefficient(on_x_0**2, x_t) * self.errors(estimate, t)
        known = coefficient(posterior_var(before, here), x_t)
        mean = weighted_sum(on_x_0, estimate, on_x_t, x_t)
        return Gaussian(mean, known + unknown)
