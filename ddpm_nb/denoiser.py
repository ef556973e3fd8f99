"""Chapter 4. What a network predicts, and the one language that samplers speak: a denoiser (x_t, t) → x̂_0.

A parameterization is a pair of numbers: the network's target is y = a x_0 + b ε, while x_t = √ᾱ x_0 + √(1 − ᾱ) ε.
Two linear equations in x_0 and ε; every conversion between ε, x_0, v and the score is their solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.registry import Registry
from ddpm_nb.schedule import Level, NoiseSchedule, Time, refined

__all__ = [
    "EDM",
    "EPS",
    "PARAMETERIZATIONS",
    "SCORE",
    "X0",
    "Clipped",
    "Denoiser",
    "NetworkDenoiser",
    "Parameterization",
    "Thresholded",
    "V",
    "between_steps",
    "check_process",
    "clipped",
    "preconditioned",
    "predicted_noise",
    "thresholded",
]

Denoiser = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True)
class Parameterization:
    """A target y = a x_0 + b ε. Book: [the family of targets](#eq-parameterization).

    Parameters
    ----------
    name : how it is printed
    weights : ``level -> (a, b)``, floats or tensors as those of the level are
    """

    name: str
    weights: Callable[[Level], tuple[Any, Any]]

    def __repr__(self) -> str:
        return self.name.upper()

    def target(
        self, q: GaussianDiffusion, x_0: Tensor, eps: Tensor, t: Time
    ) -> Tensor:
        """y = a x_0 + b ε, what the network should answer. Shape of ``x_0``."""
        a, b = self.weights(q.schedule.level(t))
        return weighted_sum(a, x_0, b, eps)

    def x_0(
        self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time
    ) -> Tensor:
        """x̂_0 = (b x_t − √(1−ᾱ) y)/det with det = b √ᾱ − a √(1−ᾱ). Shape of ``x_t``."""
        level = q.schedule.level(t)
        a, b = self.weights(level)
        det = b * level.signal - a * level.noise
        return weighted_sum(b / det, x_t, -level.noise / det, y)

    def error(
        self,
        q: GaussianDiffusion,
        y: Tensor,
        x_0: Tensor,
        eps: Tensor,
        x_t: Tensor,
        t: Time,
    ) -> Tensor:
        """ŷ − y, what training makes small in the network's answer ``y`` at x_t. Shape of ``x_0``."""
        return y - self.target(q, x_0, eps, t)

    @property
    def outputs(self) -> int:
        """Numbers that the network answers for each pixel and channel."""
        return 1

    def eps(
        self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time
    ) -> Tensor:
        """ε̂ = (√ᾱ y − a x_t)/det with det = b √ᾱ − a √(1−ᾱ). Shape of ``x_t``."""
        level = q.schedule.level(t)
        a, b = self.weights(level)
        det = b * level.signal - a * level.noise
        return weighted_sum(level.signal / det, y, -a / det, x_t)


EPS = Parameterization("eps", lambda level: (0.0, 1.0))
"""The total noise: y = ε."""
X0 = Parameterization("x_0", lambda level: (1.0, 0.0))
"""The clean data: y = x_0."""
V = Parameterization("v", lambda level: (-level.noise, level.signal))
"""The velocity: y = √ᾱ ε − √(1−ᾱ) x_0."""
SCORE = Parameterization("score", lambda level: (0.0, -1 / level.noise))
"""The score of q(x_t | x_0): y = −ε/√(1−ᾱ)."""


def preconditioned(spread: float) -> Parameterization:
    """Return the target of mean square 1 that is uncorrelated with x_t, for data of standard deviation ``spread``.

    y = (√(1−ᾱ) x_0 − s² √ᾱ ε)/(s √(1−ᾱ + s² ᾱ)) with s = ``spread``. The estimate x̂_0 is then the best multiple of x_t,
    x_t s² √ᾱ/(1−ᾱ + s² ᾱ), plus the network's answer times the error that this one leaves. Source: Karras et al.
    (2022), their F_θ, whose σ is √((1−ᾱ)/ᾱ). Book: [](#eq-b4-preconditioned). For s = 1 it is −v.

    Raises
    ------
    ValueError
        If ``spread`` is not positive and finite.
    """
    if not 0 < spread < math.inf:
        raise ValueError(
            f"spread = {spread}: expected the standard deviation of the data, a positive number"
        )

    def weights(level: Level) -> tuple[Any, Any]:
        width = (level.noise_var + spread**2 * level.signal**2) ** 0.5
        return level.noise / (spread * width), -spread * level.signal / width

    return Parameterization("edm", weights)


EDM = preconditioned(0.5)
"""The target of Karras et al. (2022) with their σ_data = 0.5, that of photographs in [−1, 1]."""

PARAMETERIZATIONS: Registry[Parameterization] = Registry(
    "parameterization", {p.name: p for p in (EPS, X0, V, EDM, SCORE)}
)
"""The parameterizations by the names that notebooks and checkpoints use."""


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """x̂_0(x_t, t) from a network that predicts the target of a parameterization. Book: [](#eq-x0-from-eps).

    Parameters
    ----------
    network : ``(x_t, t) -> y`` with ``t`` an integer tensor ``(batch,)``
    parameterization : EPS, X0, V, EDM or SCORE
    q : the forward process the network was trained with
    label : the class of the images, one for all or int64 ``(batch,)``, for a network ``(x_t, t, label) -> y``

    Raises
    ------
    TypeError
        If the arguments come in another order.
    """

    network: Callable[..., Tensor]
    parameterization: Parameterization
    q: GaussianDiffusion
    label: int | Tensor | None = None

    def __post_init__(self) -> None:
        known = isinstance(self.parameterization, Parameterization)
        if not known or not isinstance(self.q, GaussianDiffusion):
            raise TypeError(
                "expected NetworkDenoiser(network, parameterization, q), "
                "as in (net, EPS, q)"
            )

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``."""
        steps = t
        if not isinstance(steps, Tensor):
            steps = x_t.new_full(x_t.shape[:1], steps, dtype=torch.long)
        if self.label is None:
            y = self.network(x_t, steps)
        else:
            label = torch.as_tensor(self.label, device=x_t.device)
            y = self.network(x_t, steps, label.expand(len(x_t)))
        return self.parameterization.x_0(self.q, y, x_t, t)


def between_steps(denoise: NetworkDenoiser, finer: int) -> NetworkDenoiser:
    """Return the denoiser of the chain with every step cut into ``finer``, see :func:`~ddpm_nb.schedule.refined`.

    The network is asked at fractions of the steps that it was trained on: its embedding of time is smooth. The law it
    stands for is another one, of more steps, and its bound is as valid.
    """
    q = GaussianDiffusion(refined(denoise.q.schedule, finer))
    network = denoise.network

    def asked(x_t: Tensor, steps: Tensor, *label: Tensor) -> Tensor:
        return network(x_t, 1 + (steps.to(x_t.dtype) - 1) / finer, *label)

    return NetworkDenoiser(asked, denoise.parameterization, q, denoise.label)


def predicted_noise(
    q: GaussianDiffusion, denoise: Denoiser, x_t: Tensor, t: Time
) -> Tensor:
    """Return ε̂ = (x_t − √ᾱ x̂_0)/√(1−ᾱ) of a denoiser at x_t, for t ≥ 1. Shape of ``x_t``."""
    level = q.schedule.level(t)
    on_x_t, on_x_0 = 1 / level.noise, -level.signal / level.noise
    return weighted_sum(on_x_t, x_t, on_x_0, denoise(x_t, t))


def check_process(
    q: GaussianDiffusion, part: object, what: str = "denoiser"
) -> None:
    """Raise ``ValueError`` if ``part`` knows its own forward process, ``part.q``, and that is another one than ``q``.

    A step would take its levels from one schedule and x̂_0 from another: samples that look fine and are wrong.
    """
    own = getattr(part, "q", None)
    if not isinstance(own, GaussianDiffusion):
        return
    theirs, ours = own.schedule, q.schedule
    if not _same_levels(theirs, ours):
        their_end, our_end = theirs.level(theirs.T), ours.level(ours.T)
        raise ValueError(
            f"q: a schedule of T = {ours.T} steps that ends at √ᾱ_T = {our_end.signal:.3g}, but the {what}'s has "
            f"T = {theirs.T} and √ᾱ_T = {their_end.signal:.3g}; expected the {what}'s own q"
        )


def _same_levels(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    if a is b:
        return True
    # The last digit of a cosine is the processor's: a stored table and one made
    # here may differ in it.
    tables = a.log_alpha_bars, b.log_alpha_bars
    return a.T == b.T and torch.allclose(*tables, rtol=1e-9, atol=0.0)


@dataclass(frozen=True, eq=False)
class _Wrapped:
    """A denoiser around another one, with the forward process of that, where it knows it."""

    denoise: Denoiser

    @property
    def q(self) -> GaussianDiffusion | None:
        """The forward process of the denoiser within."""
        return getattr(self.denoise, "q", None)


@dataclass(frozen=True, eq=False)
class Clipped(_Wrapped):
    """The denoiser whose x̂_0 is clipped to the range of the data: see :func:`clipped`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"low = {self.low}, high = {self.high}: expected low < high"
            )

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``."""
        return self.denoise(x_t, t).clamp(self.low, self.high)


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Clipped:
    """Return the denoiser whose x̂_0 is clipped to the range of the data. Book: [clipping](#eq-clipping)."""
    return Clipped(denoise, low, high)


@dataclass(frozen=True, eq=False)
class Thresholded(_Wrapped):
    """The denoiser whose x̂_0 is scaled into the range of the data: see :func:`thresholded`."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"share = {self.share}: expected a share of the pixels, above 0 and at most 1"
            )

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``."""
        x_0 = self.denoise(x_t, t)
        reach = x_0.abs().flatten(1).quantile(self.share, dim=1).clamp(min=1.0)
        reach = reach.reshape(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-reach, reach) / reach


def thresholded(denoise: Denoiser, share: float = 0.995) -> Thresholded:
    """Return the denoiser whose x̂_0 is clipped to [−m, m] and divided by m = max(1, quantile of the absolute x̂_0).

    ``share`` of an image's pixels lie within its m, so that an estimate in the range of the data is left as it is, and
    one that is too large is scaled rather than saturated (Saharia et al. 2022). Book: [](#eq-m7-thresholding).
    """
    return Thresholded(denoise, share)
