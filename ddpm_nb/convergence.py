"""Chapter 5. What a scheme does to a law, without sampling noise, and the power of the step with which it errs.

On a line a density is a vector on a fine grid. A random step moves it by a sum over Gaussians, the Fokker–Planck
equation by finite differences, and a flow keeps ranks. So errors can be computed, and orders of convergence read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ddpm_nb.exact import GaussianMixture, hermite
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import GaussianKernel
from ddpm_nb.sde import VPSDE, Process

__all__ = [
    "PowerLaw",
    "coarsened",
    "delivered_variance",
    "expected_after",
    "finite_differences",
    "flow_map",
    "power_law",
]


@dataclass(frozen=True)
class PowerLaw:
    """error ∝ size^exponent, with half the width of the exponent's 95 % interval."""

    exponent: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.half_width:.2f}"


def power_law(sizes: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """Fit a line to (log size, log error); three points or more. Book: [](#eq-s5-order).

    The interval is that of the fitted slope: it measures the scatter about the line, not a curve in the points.
    """
    if len(sizes) < 3:
        raise ValueError(
            f"{len(sizes)} sizes: expected at least 3, an interval needs them"
        )
    line = stats.linregress(np.log(sizes), np.log(errors))
    quantile = stats.t.ppf(0.975, len(sizes) - 2)
    return PowerLaw(float(line.slope), float(quantile * line.stderr))


def expected_after(
    tests: Callable[[Tensor], Tensor],
    kernel: GaussianKernel,
    line: Tensor,
    p: Tensor,
    times: Sequence[int],
) -> Tensor:
    """E[tests(x)] after a walk of ``kernel`` down ``times``, for a start with density p on the grid: ``(m,)``.

    Every step but the last needs noise that is wider than the grid's spacing. Book: [](#eq-s5-transport).

    Parameters
    ----------
    tests : ``(n, 1) -> (n, m)``
    line : evenly spaced points ``(n, 1)`` that hold nearly all of the mass at every time
    p : density at ``line``, ``(n,)``
    """
    spacing = line[1, 0] - line[0, 0]
    for t, s in pairwise(times[:-1]):
        p = spacing * p @ _densities(kernel(line, s, t), line)
    z, weights = hermite(16)
    ends = kernel(line, times[-1], times[-2]).from_noise(z)
    values = tests(ends.reshape(-1, 1)).reshape(*ends.shape, -1)
    return spacing * torch.einsum("n,nzm,z->m", p, values, weights)


def _densities(law: Gaussian, line: Tensor) -> Tensor:
    """Density at ``line`` of a step from each of its points, ``(from, to)``."""
    spacing = (line[1, 0] - line[0, 0]).item()
    narrowest = law.var.min().sqrt().item()
    if not spacing < narrowest:
        raise ValueError(
            f"line: its spacing {spacing:.3g} is too wide for a standard deviation of {narrowest:.3g}"
        )
    z = (line.mT - law.mean) / law.var.sqrt()
    return (-0.5 * z.square()).exp() / (2 * torch.pi * law.var).sqrt()


def finite_differences(
    process: Process, line: Tensor, p: Tensor, times: Tensor
) -> Iterator[tuple[float, Tensor]]:
    """Yield (u, density at ``line``) after each step of the Fokker–Planck equation of the process, from density p.

    Central differences on the grid ``(n, 1)`` and the trapezoidal rule in time (Crank–Nicolson): the error is of second
    order in both. Book: [Fokker–Planck](#eq-s5-fokker-planck).
    """
    h = (line[1, 0] - line[0, 0]).item()
    identity = torch.eye(len(line), dtype=line.dtype)
    above, below = identity.roll(1, 1).triu(), identity.roll(-1, 1).tril()
    first = (above - below) / (2 * h)
    second = (above - 2 * identity + below) / h**2
    for u, v in pairwise(times.tolist()):
        middle = (u + v) / 2
        spread = process.arrow * 0.5 * process.diffusion(middle) ** 2 * second
        transport = first * process.drift(line, middle)[:, 0]
        half = 0.5 * (v - u) * (spread - transport)
        p = torch.linalg.solve(identity - half, p + half @ p)
        yield v, p


def flow_map(
    sde: VPSDE, data: GaussianMixture, x: Tensor, u: float, v: float
) -> Tensor:
    """Where the probability flow takes the points x ``(n, 1)`` from time u to time v, for data on a line.

    Paths do not cross, so a point keeps its rank: Q_v(x_v) = Q_u(x_u), solved by bisection. Book: [](#eq-s5-rank).
    """

    def rank(x: Tensor, u: float) -> Tensor:
        law = sde.law(data, u)
        z = (x - law.means[:, 0]) / law.variances.reshape(-1).sqrt()
        return (law.weights * torch.special.ndtr(z)).sum(1, keepdim=True)

    reach = 2 * x.abs().max() + data.means.abs().max() + 1
    low, high = -reach * torch.ones_like(x), reach * torch.ones_like(x)
    wanted = rank(x, u)
    for _ in range(60):
        middle = (low + high) / 2
        below = rank(middle, v) < wanted
        low = torch.where(below, middle, low)
        high = torch.where(below, high, middle)
    return (low + high) / 2


def delivered_variance(
    kernel: GaussianKernel, times: Sequence[int], d: int = 1
) -> Tensor:
    """Variance of x_0 after a walk from N(0, I), for a kernel that is linear and odd in x: ``(d,)``, without sampling.

    With the denoiser of N(0, diag v) one step is x_s = c x_t + σ z in each coordinate, so that a variance V becomes
    c² V + σ². Book: [](#eq-m7-delivered).
    """
    one = torch.ones(1, d, dtype=torch.float64)
    var = one
    for t, s in pairwise(times):
        law = kernel(one, s, t)
        var = law.mean.square() * var + law.var
    return var[0]


def coarsened(z: Tensor, factor: int) -> Tensor:
    """Return the noise of the same Brownian path over steps ``factor`` times as long: sums of z, over √factor."""
    if len(z) % factor:
        raise ValueError(
            f"factor = {factor}: expected a divisor of the {len(z)} steps"
        )
    return z.reshape(-1, factor, *z.shape[1:]).sum(1) / factor**0.5
