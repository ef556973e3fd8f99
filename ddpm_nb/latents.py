"""Chapter 7. The noise that belongs to an image: the way back of DDIM, and the points between two latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import Denoiser, check_process, predicted_noise
from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.kernels import State, decreasing_times

__all__ = ["encode", "great_circle"]


def encode(
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_0: Tensor,
    times: Sequence[int],
    iterations: int = 20,
) -> Iterator[State]:
    """Yield the states that DDIM with η = 0 leaves on its way down ``times`` to ``x_0``, from the last to the first.

    The step down is x_s = (x_t − b ε̂(x_t, t))/a; the step up solves it for x_t by repeating x_t ← a x_s + b ε̂(x_t, t).
    An error shrinks each time by b ‖∂ε̂/∂x‖, which is small where steps are; with one iteration this is the usual
    encoder, of first order. Book: [](#eq-m7-encode).

    Parameters
    ----------
    q, denoise : as for DDIM
    x_0 : the images, or whatever state belongs to the last of ``times``
    times : those of the walk that is undone: decreasing
    iterations : calls of the denoiser in each step
    """
    times = decreasing_times(times)
    check_process(q, denoise)
    whole_number("iterations", iterations, least=1)
    return _encode(q, denoise, x_0, times, iterations)


def _encode(
    q: GaussianDiffusion,
    denoise: Denoiser,
    x: Tensor,
    times: list[int],
    iterations: int,
) -> Iterator[State]:
    for s, t in pairwise(reversed(times)):
        before, here = q.schedule.levels(s, t)
        keep = here.signal / before.signal
        push = here.noise - keep * before.noise
        with torch.no_grad():
            x_s, x = x, keep * x
            for _ in range(iterations):
                eps = predicted_noise(q, denoise, x, t)
                x = weighted_sum(keep, x_s, push, eps)
        yield State(x, t)


def great_circle(a: Tensor, b: Tensor, shares: Sequence[float]) -> Tensor:
    """(sin((1−w)θ) a + sin(wθ) b)/sin θ for each share w, θ the angle between a and b: ``(len(shares), *event)``.

    Points on the arc keep the length that latents have, on a straight line they would be too short: too little noise.
    ``ValueError`` for latents on one line. Book: [](#eq-m7-great-circle).
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    if not cosine.abs() < 1 - 1e-6:
        raise ValueError(
            "a, b: expected two latents that are not multiples of each other"
        )
    angle = torch.arccos(cosine)

    def between(w: float) -> Tensor:
        on_a, on_b = torch.sin((1 - w) * angle), torch.sin(w * angle)
        return (on_a * a + on_b * b) / torch.sin(angle)

    return torch.stack([between(w) for w in shares])
