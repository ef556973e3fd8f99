"""Chapter 7. The sampling loops of the documents, line by line as printed, to be held against the package's kernels.

Each takes x_T, the betas (β_1 first), ``predict(x, t) -> ε̂`` and the noise z of every step, ``z[t - 1]`` for the step
that leaves t, and returns x_0. Letters and order are the documents'; Li's slides print no loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["fireflies", "malhotra", "malhotra_as_printed", "roysdon", "vilhes"]

Predict = Callable[[Tensor, int], Tensor]


def roysdon(x: Tensor, betas: Tensor, predict: Predict, z: Tensor) -> Tensor:
    """Roysdon 1.8 and 1.10, update (16): variance β̃_t, no noise at t = 1. Book: [](#eq-m7-noise-form)."""
    alpha = 1 - betas
    alpha_bar = torch.cumprod(alpha, 0)
    before = torch.cat([torch.ones(1, dtype=betas.dtype), alpha_bar[:-1]])
    beta_tilde = (1 - before) / (1 - alpha_bar) * betas
    for t in range(len(betas), 0, -1):
        i = t - 1
        weight = betas[i] / (1 - alpha_bar[i]).sqrt()
        mean = (x - weight * predict(x, t)) / alpha[i].sqrt()
        x = mean + beta_tilde[i].sqrt() * z[i] if t > 1 else mean
    return x


def vilhes(x: Tensor, betas: Tensor, predict: Predict, z: Tensor) -> Tensor:
    """Vilhes 6, Algorithm 2: variance β_t, z = 0 at t = 1. Book: [](#eq-m7-noise-form)."""
    alpha = 1 - betas
    alpha_bar = torch.cumprod(alpha, 0)
    for t in range(len(betas), 0, -1):
        i = t - 1
        noise = z[i] if t > 1 else torch.zeros_like(x)
        weight = betas[i] / (1 - alpha_bar[i]).sqrt()
        mean = (x - weight * predict(x, t)) / alpha[i].sqrt()
        x = mean + betas[i].sqrt() * noise
    return x


def fireflies(x: Tensor, betas: Tensor, predict: Predict, z: Tensor) -> Tensor:
    """Fireflies, "Practical Implementation": x̂_0, clipped to [−1, 1], in the posterior mean; variance β̃_t.

    The displays are missing in the text; this is what its prose describes. Book: [](#eq-clipping).
    """
    alpha = 1 - betas
    alpha_bar = torch.cumprod(alpha, 0)
    before = torch.cat([torch.ones(1, dtype=betas.dtype), alpha_bar[:-1]])
    for t in range(len(betas), 0, -1):
        i = t - 1
        noise = (1 - alpha_bar[i]).sqrt() * predict(x, t)
        x_0 = ((x - noise) / alpha_bar[i].sqrt()).clamp(-1, 1)
        on_x_0 = before[i].sqrt() * betas[i]
        on_x = alpha[i].sqrt() * (1 - before[i])
        mean = (on_x_0 * x_0 + on_x * x) / (1 - alpha_bar[i])
        sigma = ((1 - before[i]) / (1 - alpha_bar[i]) * betas[i]).sqrt()
        x = mean + (sigma * z[i] if t > 1 else 0.0)
    return x


def malhotra(x: Tensor, betas: Tensor, predict: Predict, z: Tensor) -> Tensor:
    """Malhotra 5.1, Algorithm 2, with the last step asked at t = 1 and its ᾱ_1: variance β_t. His α_t is our ᾱ_t."""
    return _malhotra(x, betas, predict, z, last=1)


def malhotra_as_printed(
    x: Tensor, betas: Tensor, predict: Predict, z: Tensor
) -> Tensor:
    """Malhotra 5.1, Algorithm 2, to the letter: after the loop t and α_t still are those of t = 2. See the errata."""
    return _malhotra(x, betas, predict, z, last=2)


def _malhotra(
    x: Tensor, betas: Tensor, predict: Predict, z: Tensor, last: int
) -> Tensor:
    """Algorithm 2, whose line after the loop finds the value ``last`` in t."""
    for t in range(len(betas), 1, -1):
        alpha, beta = torch.prod(1 - betas[:t]), betas[t - 1]
        weight = beta / (1 - alpha).sqrt()
        mu = (x - weight * predict(x, t)) / (1 - beta).sqrt()
        x = mu + beta.sqrt() * z[t - 1]
    alpha, beta = torch.prod(1 - betas[:last]), betas[0]
    weight = beta / (1 - alpha).sqrt()
    return (x - weight * predict(x, last)) / (1 - beta).sqrt()
