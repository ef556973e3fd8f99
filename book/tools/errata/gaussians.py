"""How large the errors about Gaussian laws and divergences are."""

from __future__ import annotations

import torch

from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian
from errata import Numbers

SPACING = 0.1


def divergence_is_no_metric() -> Numbers:
    """Return by how much symmetry and the triangle inequality fail."""
    start, middle, end = (Gaussian(mean, 1.0) for mean in (0.0, 1.0, 2.0))
    direct, detour = start.kl(end).item(), (start.kl(middle) + middle.kl(end)).item()
    narrow = Gaussian(0.0, 0.25)
    there, back = start.kl(narrow).item(), narrow.kl(start).item()
    return {"direct": direct, "detour": detour, "there": there, "back": back}


def _density_sum(power: int) -> tuple[float, float]:
    """Return Σ x^power p(x) without the width and E[X^power], for X ~ N(1.5, 0.49) on a grid."""
    law = GaussianMixture([1.0], [[1.5]], [0.49])
    grid = torch.arange(-6, 9, SPACING, dtype=torch.float64)[:, None]
    bare = (grid[:, 0] ** power * law.log_prob(grid).exp()).sum().item()
    return bare, expectation(law, lambda x: x[:, 0] ** power).item()


def sum_with_a_width() -> Numbers:
    """Return what the two readings of the printed sum make of a mean."""
    bare, mean = _density_sum(1)
    die = sum(face / 6 for face in range(1, 7))
    return {"SPACING": SPACING, "factor": bare / mean, "die": die, "die_with_width": die * SPACING}


def sum_of_a_function_with_a_width() -> Numbers:
    """Return what the two readings of the printed sum make of a second moment."""
    bare, second = _density_sum(2)
    die = sum(face**2 / 6 for face in range(1, 7))
    return {"SPACING": SPACING, "bare": bare, "second": second, "die_with_width": die * SPACING, "die": die}
