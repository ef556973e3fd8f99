"""How large the errors about Gaussian laws and divergences are."""

from __future__ import annotations

import torch

from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian

SPACING = 0.1


def divergence_is_no_metric() -> str:
    """Return by how much symmetry and the triangle inequality fail."""
    start, middle, end = (Gaussian(mean, 1.0) for mean in (0.0, 1.0, 2.0))
    direct, detour = start.kl(end).item(), (start.kl(middle) + middle.kl(end)).item()
    narrow = Gaussian(0.0, 0.25)
    there, back = start.kl(narrow).item(), narrow.kl(start).item()
    return (
        f"for the means 0, 1, 2 and unit variance the direct way costs {direct:.2f} nats and the detour {detour:.2f} "
        f"nats; between the variances 1 and 0.25 one direction is {there:.3f} nats and the other {back:.3f} nats"
    )


def _density_sum(power: int) -> tuple[float, float]:
    """Return Σ x^power p(x) without the width and E[X^power], for X ~ N(1.5, 0.49) on a grid."""
    law = GaussianMixture([1.0], [[1.5]], [0.49])
    grid = torch.arange(-6, 9, SPACING, dtype=torch.float64)[:, None]
    bare = (grid[:, 0] ** power * law.log_prob(grid).exp()).sum().item()
    return bare, expectation(law, lambda x: x[:, 0] ** power).item()


def sum_with_a_width() -> str:
    """Return what the two readings of the printed sum make of a mean."""
    bare, mean = _density_sum(1)
    die = sum(face / 6 for face in range(1, 7))
    return (
        f"for $\\mathcal{{N}}(1.5,\\,0.49)$ on a grid of spacing {SPACING} a sum without the width is {bare / mean:.1f} "
        f"times the mean; for a die, whose mean is {die:.2f}, a width of {SPACING} would make it {die * SPACING:.2f}"
    )


def sum_of_a_function_with_a_width() -> str:
    """Return what the two readings of the printed sum make of a second moment."""
    bare, second = _density_sum(2)
    die = sum(face**2 / 6 for face in range(1, 7))
    return (
        f"for $g(x)=x^2$ and $\\mathcal{{N}}(1.5,\\,0.49)$ on a grid of spacing {SPACING} a sum without the width is "
        f"{bare:.1f} instead of {second:.2f}; for a die a width of {SPACING} would give {die * SPACING:.2f} instead of {die:.2f}"
    )
