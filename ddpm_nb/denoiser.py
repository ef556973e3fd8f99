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
from ddpm_nb.schedule import Levels, Time, coefficient

__all__ = [
    "EPS",
    "SCORE",
    "STATE",
    "X0",
    "Denoiser",
    "NetworkDenoiser",
    "Parameterization",
    "V",
    "Weights",
    "clipped",
    "estimate",
    "noise_weights",
    "parameterization",
    "predicted_noise",
    "thresholded",
]

Denoiser = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True)
class Parameterization:
    """A target y = a x_0 + b ε. Book: [the family of targets](#eq-parameterization).

    Parameters
    ----------
    name : how notebooks and checkpoints name it
    weights : ``(levels, t) -> (a, b)``, floats or float64 tensors as the levels are, see :class:`Levels`
    """

    name: str
    weights: Callable[[Levels, Time], tuple[float | Tensor, float | Tensor]]

    def __repr__(self) -> str:
        return self.name.upper()

    def target(self, q: GaussianDiffusion, x_0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """y = a x_0 + b ε, what the network should answer. Shape of ``x_0``."""
        a, b = self.weights(q.schedule.at(t, t), t)
        return Weights(a, b).of(x_0, eps)

    def x_0(self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """x̂_0 = (b x_t − √(1−ᾱ) y) / (b √ᾱ − a √(1−ᾱ)). Shape of ``x_t``."""
        return self.x_0_weights(q, t).of(x_t, y)

    def eps(self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """ε̂ = (√ᾱ y − a x_t) / (b √ᾱ − a √(1−ᾱ)). Shape of ``x_t``."""
        a, b, signal, noise = self._system(q, t)
        det = b * signal - a * noise
        return Weights(-a / det, signal / det).of(x_t, y)

    def x_0_weights(self, q: GaussianDiffusion, t: Time) -> Weights:
        """Return the weights of x_t and y in x̂_0."""
        a, b, signal, noise = self._system(q, t)
        det = b * signal - a * noise
        return Weights(b / det, -noise / det)

    def _system(self, q: GaussianDiffusion, t: Time) -> tuple[float | Tensor, ...]:
        levels = q.schedule.at(t, t)
        a, b = self.weights(levels, t)
        return a, b, levels.alpha_bar(t) ** 0.5, levels.one_minus_alpha_bar(t) ** 0.5


@dataclass(eq=False, slots=True)  # frozen ones take twice as long to make, and a step makes half a dozen
class Weights:
    """A combination a x_t + b y, as its two numbers.

    A step of a sampler combines two tensors, the state and what the network answered. x̂_0, ε̂ and the mean are all such
    combinations, so the algebra is done on their weights, and the tensors are read once, at the end, by :meth:`of`.

    Parameters
    ----------
    on_x_t, on_y : floats, or tensors ``(batch,)`` where the step differs from sample to sample
    """

    on_x_t: float | Tensor
    on_y: float | Tensor

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.on_x_t + other.on_x_t, self.on_y + other.on_y)

    def __sub__(self, other: Weights) -> Weights:
        return Weights(self.on_x_t - other.on_x_t, self.on_y - other.on_y)

    def __rmul__(self, factor: float | Tensor) -> Weights:
        return Weights(factor * self.on_x_t, factor * self.on_y)

    def __truediv__(self, divisor: float | Tensor) -> Weights:
        return Weights(self.on_x_t / divisor, self.on_y / divisor)

    def of(self, x_t: Tensor, y: Tensor) -> Tensor:
        """Return a x_t + b y, in two passes over memory."""
        return weighted_sum(coefficient(self.on_x_t, x_t), x_t, coefficient(self.on_y, y), y)


STATE = Weights(1.0, 0.0)
"""x_t itself as a combination."""

EPS = Parameterization("eps", lambda q, t: (0.0, 1.0))
"""The total noise: y = ε."""
X0 = Parameterization("x_0", lambda q, t: (1.0, 0.0))
"""The clean data: y = x_0."""
V = Parameterization("v", lambda q, t: (-(q.one_minus_alpha_bar(t) ** 0.5), q.alpha_bar(t) ** 0.5))
"""The velocity: y = √ᾱ ε − √(1−ᾱ) x_0."""
SCORE = Parameterization("score", lambda q, t: (0.0, -(q.one_minus_alpha_bar(t) ** -0.5)))
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
        x_0, y = self.estimate(x_t, t)
        return x_0.of(x_t, y)

    def estimate(self, x_t: Tensor, t: Time) -> tuple[Weights, Tensor]:
        """Return x̂_0 as the weights of x_t and y, and y, the network's answer."""
        steps = t if torch.is_tensor(t) else torch.full(x_t.shape[:1], t, device=x_t.device)
        return self.parameterization.x_0_weights(self.q, t), self.network(x_t, steps)


def estimate(denoise: Denoiser, x_t: Tensor, t: Time) -> tuple[Weights, Tensor]:
    """Return x̂_0 as weights of x_t and a tensor y: what the network answered, or x̂_0 of any other denoiser."""
    if isinstance(denoise, NetworkDenoiser):
        return denoise.estimate(x_t, t)
    return Weights(0.0, 1.0), denoise(x_t, t)


def noise_weights(q: GaussianDiffusion, x_0: Weights, t: Time) -> Weights:
    """Return ε̂ = (x_t − √ᾱ x̂_0)/√(1−ᾱ) by its weights, from those of x̂_0."""
    level = q.schedule.at(t, t)
    return (STATE - level.alpha_bar(t) ** 0.5 * x_0) / level.one_minus_alpha_bar(t) ** 0.5


def predicted_noise(q: GaussianDiffusion, denoise: Denoiser, x_t: Tensor, t: Time) -> Tensor:
    """Return ε̂ of a denoiser at x_t, for t ≥ 1. Shape of ``x_t``."""
    x_0, y = estimate(denoise, x_t, t)
    return noise_weights(q, x_0, t).of(x_t, y)


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Return the denoiser whose x̂_0 is clipped to the range of the data. Book: [clipping](#eq-clipping)."""
    if not low < high:
        raise ValueError(f"low = {low}, high = {high}: expected low < high")
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)


def thresholded(denoise: Denoiser, share: float = 0.995) -> Denoiser:
    """Return the denoiser whose x̂_0 is clipped to [−m, m] and divided by m = max(1, quantile of the absolute x̂_0).

    ``share`` of an image's pixels lie within its m, so that an estimate in the range of the data is left as it is, and
    one that is too large is scaled rather than saturated (Saharia et al. 2022). Book: [](#eq-m7-thresholding).
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: expected a share of the pixels, above 0 and at most 1")

    def denoise_and_scale(x_t: Tensor, t: Time) -> Tensor:
        x_0 = denoise(x_t, t)
        reach = x_0.abs().flatten(1).quantile(share, dim=1).clamp(min=1.0)
        reach = reach.reshape(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-reach, reach) / reach

    return denoise_and_scale
