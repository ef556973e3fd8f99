"""How large the errors about inverse problems are."""

from __future__ import annotations

import torch

from ddpm_nb.exact import GaussianMixture
from ddpm_nb.inverse import Matrix, Measurement, exact_posterior
from errata import Numbers


def operator_not_inverted() -> Numbers:
    """Return what is left of the uncertainty along a measured direction and along one that is lost."""
    sigma_y, y = 0.1, torch.zeros(1, 1, dtype=torch.float64)
    seen, lost = (torch.tensor([pair], dtype=torch.float64) for pair in ((0.8, 0.6), (-0.6, 0.8)))
    unit = GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    cov = exact_posterior(unit, Measurement(Matrix(seen), y, sigma_y)).covariance()[0]
    kept, free = ((direction @ cov @ direction.mT).sqrt().item() for direction in (seen, lost))
    return {"sigma_y": sigma_y, "kept": kept, "free": free}
