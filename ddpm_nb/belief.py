"""Chapter 4. A network that states a belief about each pixel; Bayes' rule makes the estimate x̂_0 of it.

A pixel has one of finitely many grey levels g. The network answers a law π(g) for each pixel, and x_t is Gaussian
around √ᾱ_t g. So p(g | x_t) ∝ π(g) N(x_t; √ᾱ_t g, 1 − ᾱ_t), and x̂_0 is the mean of that law. Where the noise is
narrower than a grey level the rule rounds to the level by itself, and no network has to learn it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import EPS, PARAMETERIZATIONS, X0, Parameterization
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.schedule import Level, Time, coefficient

__all__ = ["Belief"]

_REACH = 4  # levels on each side of the nearest one: more than four deviations of a posterior narrower than a level


@dataclass(frozen=True, repr=False)
class Belief(Parameterization):
    """π(g) of each pixel: Gaussians N(μ_k, τ_k²) restricted to the grey levels, and extra weights for the two ends.

    Its training error is that of the noise, ε̂ − ε = √SNR (x_0 − x̂_0), so that it has the weights of ``EPS``. Bayes'
    rule for a Gaussian is the product of two Gaussians, as in chapter 1; then it weighs the parts. Source: Kingma et
    al. (2021) for the bound, Graves et al. (2023) for a belief that is a law on grey levels.

    Parameters
    ----------
    grey_levels : number of equally spaced values of a pixel in [−1, 1], both ends included
    parts : number of Gaussians
    """

    name: str = "belief"
    weights: Callable[[Level], tuple[Any, Any]] = EPS.weights
    grey_levels: int = 256
    parts: int = 1

    def __post_init__(self) -> None:
        whole_number("grey_levels", self.grey_levels, least=2)
        whole_number("parts", self.parts, least=1)

    @property
    def outputs(self) -> int:
        """Numbers that the network answers for each pixel: μ_k and τ_k of each part, and the log weights of all."""
        return 3 * self.parts + 2

    @property
    def spacing(self) -> float:
        """The distance of neighbouring grey levels."""
        return 2.0 / (self.grey_levels - 1)

    def stated(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return μ_k, τ_k and the log weights of (the Gaussians, −1, 1) from an answer of a network.

        τ_k is at least one spacing: a belief that is surer than that says so by an end's weight or not at all. An
        answer of zeros has its Gaussians evenly between −½ and ½, or its only one at 0. ``y`` has shape ``(batch,
        outputs · channels, *side)``, the result ``(batch, parts, channels, *side)`` twice and ``(batch, parts + 2,
        channels, *side)``, in float32 or wider.
        """
        if y.shape[1] % self.outputs:
            raise ValueError(
                f"y of shape {tuple(y.shape)}: expected (batch, {self.outputs} · channels, ...)"
            )
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        channels = y.shape[1] // self.outputs
        y = y.reshape(y.shape[0], self.outputs, channels, *y.shape[2:])
        mu, tau, weight = y.tensor_split([self.parts, 2 * self.parts], dim=1)
        k = torch.arange(self.parts, device=y.device, dtype=y.dtype)
        apart = (k + 0.5) / self.parts - 0.5
        mu = mu + apart.reshape(-1, *[1] * (y.ndim - 2))
        return mu, self.spacing + F.softplus(tau - 1.0), weight.log_softmax(1)

    def x_0(
        self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time
    ) -> Tensor:
        """x̂_0 = Σ_g g p(g | x_t), t ≥ 1. Shape and dtype of ``x_t``. Book: [the belief](#eq-b4-belief)."""
        level = q.schedule.level(t)
        mu, tau, weight = self.stated(y)
        x = x_t.to(mu)
        # What is seen, x_t/√ᾱ, is the clean image plus σ̃ ε.
        seen = x * coefficient(1 / level.signal, x)
        sigma = coefficient(level.sigma, seen)
        seen, sigma = seen[:, None], (torch.zeros_like(seen) + sigma)[:, None]
        # As densities in g, N(g; μ, τ²) N(seen; g, σ̃²) is the number
        # N(seen; μ, τ² + σ̃²) times N(g; centre, deviation²).
        var = tau.square() + sigma.square()
        centre = torch.lerp(mu, seen, tau.square() / var)
        deviation = tau * sigma * var.rsqrt()
        log_mass, mean = self._on_levels(centre, deviation, sigma)
        log_prior_mass, _ = _on_line(mu, tau, self.spacing)
        misfit = (seen - mu).square() / (2 * var)
        log_gaussians = log_mass - log_prior_mass - misfit
        log_low, log_high = (
            -(seen - end).square() / (2 * sigma.square()) for end in (-1.0, 1.0)
        )
        log_likelihood = torch.cat([log_gaussians, log_low, log_high], 1)
        posterior = (weight + log_likelihood).softmax(1)
        K = self.parts
        inside, low, high = posterior.tensor_split([K, K + 1], dim=1)
        x_0 = (inside * mean).sum(1) - low[:, 0] + high[:, 0]
        return x_0.to(x_t.dtype)

    def eps(
        self, q: GaussianDiffusion, y: Tensor, x_t: Tensor, t: Time
    ) -> Tensor:
        """ε̂ = (x_t − √ᾱ x̂_0)/√(1−ᾱ). Shape of ``x_t``."""
        return X0.eps(q, self.x_0(q, y, x_t, t), x_t, t)

    def error(
        self,
        q: GaussianDiffusion,
        y: Tensor,
        x_0: Tensor,
        eps: Tensor,
        x_t: Tensor,
        t: Time,
    ) -> Tensor:
        """ε̂ − ε = √SNR (x_0 − x̂_0), without the cancellation of a difference of noises. Shape of ``x_0``."""
        level = q.schedule.level(t)
        sqrt_snr = coefficient(level.signal / level.noise, x_0)
        return sqrt_snr * (x_0 - self.x_0(q, y, x_t, t))

    def _on_levels(
        self, centre: Tensor, deviation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log Σ_g exp(−(g − centre)²/2 deviation²) and that law's mean, by sums where the noise is narrow."""
        few = _near(centre, deviation, self.spacing, self.grey_levels)
        # The deviation is at least spacing/√2 where the noise is not narrow,
        # for τ is at least spacing: there nothing is cut off here.
        wide = deviation.clamp(min=self.spacing / 2)
        many = _on_line(centre, wide, self.spacing)
        narrow = noise < self.spacing
        log_mass = torch.where(narrow, few[0], many[0])
        return log_mass, torch.where(narrow, few[1], many[1])


def _near(
    centre: Tensor, deviation: Tensor, spacing: float, grey_levels: int
) -> tuple[Tensor, Tensor]:
    """Sum over the nine levels around ``centre``: a law narrower than a spacing has no other in float32."""
    place = (centre + 1) / spacing
    nearest = place.detach().round().clamp(0, grey_levels - 1)
    steps = torch.arange(
        -_REACH, _REACH + 1, dtype=centre.dtype, device=centre.device
    )
    level = nearest[..., None] + steps
    off = (level - place[..., None]) * (spacing / deviation)[..., None]
    outside = (level < 0) | (level > grey_levels - 1)
    power = (-0.5 * off.square()).masked_fill(outside, -math.inf)
    log_mass = power.logsumexp(-1)
    share = (power - log_mass[..., None]).exp()
    return log_mass, (nearest + share @ steps) * spacing - 1


def _on_line(
    centre: Tensor, deviation: Tensor, spacing: float
) -> tuple[Tensor, Tensor]:
    """The same sum as an integral over all cells, [−1 − spacing/2, 1 + spacing/2], in closed form.

    Euler and Maclaurin's first correction, spacing²/24 times the slopes at the two ends, counts where an end cuts the
    law. It is held down far outside the grey scale, where the law falls too fast for it.
    """
    edge = 1 + spacing / 2
    low, high = (-edge - centre) / deviation, (edge - centre) / deviation
    # Mirror intervals of the upper tail to the lower one, where differences of
    # the distribution function keep their digits.
    flip = low + high > 0
    log_low = torch.special.log_ndtr(torch.where(flip, -high, low))
    log_high = torch.special.log_ndtr(torch.where(flip, -low, high))
    log_share = log_high + torch.log(-torch.expm1(log_low - log_high))
    at_low, at_high = (
        torch.exp(-0.5 * z.square() - log_share) / math.sqrt(2 * math.pi)
        for z in (low, high)
    )
    cell = (spacing / deviation).square() / 24
    more = (cell * (high * at_high - low * at_low)).clamp(-0.3, 0.3)
    bend = at_high * (1 - high.square()) - at_low * (1 - low.square())
    shift = at_low - at_high - cell * bend
    mean = (centre + deviation * shift / (1 + more)).clamp(-1, 1)
    log_peak = torch.log(deviation * (math.sqrt(2 * math.pi) / spacing))
    return log_share + torch.log1p(more) + log_peak, mean


PARAMETERIZATIONS.register("belief", Belief())
PARAMETERIZATIONS.register("belief_3", Belief("belief_3", parts=3))
