"""Chapter 4. What a network predicts, and the one language that samplers speak: a denoiser (x_t, t) → x̂_0.

A parameterization is a pair of numbers: the network's target is y = a x_0 + b ε, while x_t = √ᾱ x_0 + √(1 − ᾱ) ε.
Two linear equations in x_0 and ε; every conversion between ε, x_0, v and the score is their solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.arguments import choose
from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.schedule import NoiseSchedule, Time, coefficient

__all__ = [
    "EPS",
    "SCORE",
    "X0",
    "Denoiser",
    "NetworkDenoiser",
    "Parameterization",
    "V",
    "clipped",
    "parameterization",
]

Denoiser = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True)
class Parameterization:
    """A target y = a x_0 + b ε. Book: [the family of targets](#eq-parameterization).

    Parameters
    ----------
    name : how notebooks and checkpoints name it
    weights : ``(schedule, t) -> (a, b)``, float64
    """

    name: str
    weights: Callable[[NoiseSchedule, Time], tuple[Tensor, Tensor]]

    def __repr__(self) -> str:
        return self.name.upper()

    def target(self, q: GaussianDiffusion, x_0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """y = a x_0 + b ε, what the network should answer. Shape of ``x_0``."""
        a, b = self.weights(q.schedule, t)
        return weighted_sum(coefficient(a, x_0), x_0, coefficient(b, x_0), eps)

    def x_0(self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """x̂_0 = (b x_t − √(1−ᾱ) y) / (b √ᾱ − a √(1−ᾱ)). Shape of ``x_t``."""
        a, b, signal, noise = self._system(q, t)
        det = b * signal - a * noise
        return weighted_sum(coefficient(b / det, x_t), x_t, coefficient(-noise / det, x_t), y)

    def eps(self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """ε̂ = (√ᾱ y − a x_t) / (b √ᾱ − a √(1−ᾱ)). Shape of ``x_t``."""
        a, b, signal, noise = self._system(q, t)
        det = b * signal - a * noise
        return weighted_sum(coefficient(-a / det, x_t), x_t, coefficient(signal / det, x_t), y)

    def _system(self, q: GaussianDiffusion, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b = self.weights(q.schedule, t)
        return a, b, q.schedule.alpha_bar(t).sqrt(), q.schedule.one_minus_alpha_bar(t).sqrt()


def _constant(value: float, schedule: NoiseSchedule, t: Time) -> Tensor:
    return torch.full_like(schedule.log_alpha_bar(t), value)


EPS = Parameterization("eps", lambda q, t: (_constant(0.0, q, t), _constant(1.0, q, t)))
"""The total noise: y = ε."""
X0 = Parameterization("x_0", lambda q, t: (_constant(1.0, q, t), _constant(0.0, q, t)))
"""The clean data: y = x_0."""
V = Parameterization("v", lambda q, t: (-q.one_minus_alpha_bar(t).sqrt(), q.alpha_bar(t).sqrt()))
"""The velocity: y = √ᾱ ε − √(1−ᾱ) x_0."""
SCORE = Parameterization("score", lambda q, t: (_constant(0.0, q, t), -q.one_minus_alpha_bar(t).rsqrt()))
"""The score of q(x_t | x_0): y = −ε/√(1−ᾱ)."""

_BY_NAME = {p.name: p for p in (EPS, X0, V, SCORE)}


def parameterization(name: str) -> Parameterization:
    """Return the parameterization called 'eps', 'x_0', 'v' or 'score'; ``ValueError`` names the nearest one."""
    return choose("parameterization", name, _BY_NAME)


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """x̂_0(x_t, t) from a network that predicts the target of a parameterization. Book: [](#eq-x0-from-eps).

    Parameters
    ----------
    network : ``(x_t, t) -> y`` with ``t`` an integer tensor ``(batch,)``
    parameterization : EPS, X0, V or SCORE
    q : the forward process the network was trained with

    Raises
    ------
    TypeError
        If the arguments come in another order.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    parameterization: Parameterization
    q: GaussianDiffusion

    def __post_init__(self) -> None:
        if not isinstance(self.parameterization, Parameterization) or not isinstance(self.q, GaussianDiffusion):
            raise TypeError("expected NetworkDenoiser(network, parameterization, q), as in (net, EPS, q)")

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``."""
        steps = t if torch.is_tensor(t) else torch.full(x_t.shape[:1], t, device=x_t.device)
        return self.parameterization.x_0(self.q, self.network(x_t, steps), x_t, t)


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Return the denoiser whose x̂_0 is clipped to the range of the data. Book: [clipping](#eq-clipping)."""
    if not low < high:
        raise ValueError(f"low = {low}, high = {high}: expected low < high")
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)
