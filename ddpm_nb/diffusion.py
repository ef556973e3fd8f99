"""Chapters 2 and 3. The forward process q: transition, marginal and posterior, each between any two steps s < t."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, Time, coefficient

__all__ = ["GaussianDiffusion"]


@dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    """The fixed Markov chain that turns data x_0 into noise x_T.

    Tensors are ``(batch, *event)``; steps are ints or integer tensors ``(batch,)`` with 0 ≤ s < t ≤ T. Every method
    returns a :class:`~ddpm_nb.gaussian.Gaussian` with the dtype of the data, and raises ``ValueError`` for steps out
    of order or range and ``TypeError`` for steps that are not integers.
    """

    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(
                f"schedule: expected a NoiseSchedule such as linear_schedule(), got {type(self.schedule).__name__}"
            )

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Gaussian:
        """q(x_t | x_s) = N(√(ᾱ_t/ᾱ_s) x_s, (1 − ᾱ_t/ᾱ_s) I).

        Source: Roysdon (1), Malhotra (2.2), for s = t − 1. Book: [one step](#eq-transition).
        """
        _check_order(s, t)
        factor = coefficient(self.schedule.alpha_between(s, t).sqrt(), x_s)
        return Gaussian(factor * x_s, _var(self.schedule.beta_between(s, t), x_s))

    def marginal(self, x_0: Tensor, t: Time) -> Gaussian:
        """q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I), at t = 0 a point mass.

        Source: Roysdon (2), Malhotra (2.4). Book: [t steps at once](#eq-marginal).
        """
        factor = coefficient(self.schedule.alpha_bar(t).sqrt(), x_0)
        return Gaussian(factor * x_0, _var(self.schedule.one_minus_alpha_bar(t), x_0))

    def posterior(self, x_0: Tensor, x_t: Tensor, s: Time, t: Time) -> Gaussian:
        """q(x_s | x_t, x_0), by Bayes' rule on the transition and the marginal; at s = 0 exactly a point mass at x_0.

        Source: Roysdon (5)-(7), Vilhes (4), for s = t − 1. Book: [posterior](#eq-posterior).
        """
        on_x_0, on_x_t = (coefficient(weight, x_t) for weight in self.posterior_weights(s, t))
        var = _var(self.schedule.posterior_var(s, t), x_t)
        return Gaussian(weighted_sum(on_x_0, x_0, on_x_t, x_t), var)

    def posterior_weights(self, s: Time, t: Time) -> tuple[float, float] | tuple[Tensor, Tensor]:
        """Return the weights of x_0 and x_t in the posterior mean, exactly 1 and 0 at s = 0; floats for ints.

        Book: [posterior](#eq-posterior).
        """
        _check_order(s, t)
        q = self.schedule.at(s, t)
        left, added, noise = q.alpha_between(s, t), q.beta_between(s, t), q.one_minus_alpha_bar(t)
        return q.alpha_bar(s) ** 0.5 * added / noise, left**0.5 * q.one_minus_alpha_bar(s) / noise

    def diffuse(self, x_0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, a draw from the marginal by its noise. Book: [](#eq-reparameterization)."""
        signal = coefficient(self.schedule.alpha_bar(t).sqrt(), x_0)
        noise = coefficient(self.schedule.one_minus_alpha_bar(t).sqrt(), x_0)
        return weighted_sum(signal, x_0, noise, eps)


def weighted_sum(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """Return a·x + b·y in two passes over memory."""
    scaled = a * x
    return torch.add(scaled, y, alpha=b) if isinstance(b, float) else torch.addcmul(scaled, b, y)


def _var(value: Tensor, x: Tensor) -> Tensor:
    """Return a schedule's variance in the dtype of ``x``, ready to broadcast against it."""
    scaled = coefficient(value, x)
    return torch.tensor(scaled, dtype=x.dtype) if isinstance(scaled, float) else scaled


def _check_order(s: Time, t: Time) -> None:
    if torch.is_tensor(s) or torch.is_tensor(t):
        if any(torch.is_tensor(time) and time.device.type != "cpu" for time in (s, t)):
            return  # reading a GPU's steps would make the host wait for it
        if bool((torch.as_tensor(s) >= torch.as_tensor(t)).any()):
            raise ValueError(f"s = {s}, t = {t}: expected s < t for every sample, the earlier step first")
    elif s >= t:
        raise ValueError(f"s = {s}, t = {t}: expected s < t, the earlier step first")
