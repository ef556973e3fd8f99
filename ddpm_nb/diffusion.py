"""Chapters 2 and 3. The forward process q: transition, marginal and posterior, each between any two steps s < t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import (
    Level,
    NoiseSchedule,
    Number,
    Time,
    added_var,
    coefficient,
)

__all__ = [
    "GaussianDiffusion",
    "posterior_mean",
    "posterior_var",
    "weighted_sum",
]


def posterior_mean(before: Level, here: Level) -> tuple[Any, Any]:
    """Return the weights of x_0 and x_t in the mean of q(x_s | x_t, x_0), exactly 1 and 0 at s = 0.

    √ᾱ_s (1 − ᾱ_t/ᾱ_s)/(1 − ᾱ_t) and √(ᾱ_t/ᾱ_s) (1 − ᾱ_s)/(1 − ᾱ_t). Book: [posterior](#eq-posterior).
    """
    on_x_0 = before.signal * added_var(before, here) / here.noise_var
    on_x_t = here.signal / before.signal * before.noise_var / here.noise_var
    return on_x_0, on_x_t


def posterior_var(before: Level, here: Level) -> Any:
    """(1 − ᾱ_t/ᾱ_s)(1 − ᾱ_s)/(1 − ᾱ_t), the variance of x_s given x_t and x_0; β̃_t for s = t − 1, 0 at s = 0.

    Book: [posterior variance](#eq-posterior-var).
    """
    return added_var(before, here) * before.noise_var / here.noise_var


@dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    """The fixed Markov chain that turns data x_0 into noise x_T.

    Tensors are ``(batch, *event)``; steps are ints or integer tensors ``(batch,)`` with 0 ≤ s < t ≤ T. Every law is a
    :class:`~ddpm_nb.gaussian.Gaussian` with the dtype of the data. Methods raise ``ValueError`` for steps out of
    order or range and ``TypeError`` for steps that are not integers.
    """

    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(
                "schedule: expected a NoiseSchedule such as linear_schedule(), "
                f"got {type(self.schedule).__name__}"
            )

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Gaussian:
        """q(x_t | x_s) = N(√(ᾱ_t/ᾱ_s) x_s, (1 − ᾱ_t/ᾱ_s) I).

        Source: Roysdon (1), Malhotra (2.2), for s = t − 1. Book: [one step](#eq-transition).
        """
        before, here = self.schedule.levels(s, t)
        factor = coefficient(here.signal / before.signal, x_s)
        return Gaussian(factor * x_s, coefficient(added_var(before, here), x_s))

    def marginal(self, x_0: Tensor, t: Time) -> Gaussian:
        """q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I), at t = 0 a point mass.

        Source: Roysdon (2), Malhotra (2.4). Book: [t steps at once](#eq-marginal).
        """
        level = self.schedule.level(t)
        mean = coefficient(level.signal, x_0) * x_0
        return Gaussian(mean, coefficient(level.noise_var, x_0))

    def posterior(self, x_0: Tensor, x_t: Tensor, s: Time, t: Time) -> Gaussian:
        """q(x_s | x_t, x_0), by Bayes' rule on the transition and the marginal; at s = 0 exactly a point mass at x_0.

        Source: Roysdon (5)-(7), Vilhes (4), for s = t − 1. Book: [posterior](#eq-posterior).
        """
        before, here = self.schedule.levels(s, t)
        on_x_0, on_x_t = posterior_mean(before, here)
        mean = weighted_sum(on_x_0, x_0, on_x_t, x_t)
        return Gaussian(mean, coefficient(posterior_var(before, here), x_t))

    def diffuse(self, x_0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, a draw from the marginal by its noise. Book: [](#eq-reparameterization)."""
        level = self.schedule.level(t)
        return weighted_sum(level.signal, x_0, level.noise, eps)


def weighted_sum(a: Number, x: Tensor, b: Number, y: Tensor) -> Tensor:
    """Return a·x + b·y in two passes over memory; a and b are floats, or one number for each sample."""
    scaled = x * coefficient(a, x)
    if isinstance(b, Tensor):
        return torch.addcmul(scaled, coefficient(b, y), y)
    if scaled.shape == y.shape and scaled.dtype == y.dtype:
        # Adding in place moves a third less memory.
        return scaled.add_(y, alpha=b)
    return torch.add(scaled, y, alpha=b)
