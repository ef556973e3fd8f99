"""Measurements that are not linear: Y = h(X) + σ_y Z, for guidance and weighted particles.

A map that loses the sign or saturates has no adjoint. Its place is taken by its Jacobian at the estimate x̂_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpm_nb.denoiser import Denoiser, check_process
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.inverse.guidance import Guess, Spread, _estimate
from ddpm_nb.inverse.measurement import standard_deviation
from ddpm_nb.precision import Copies, widest
from ddpm_nb.schedule import Time

__all__ = ["Observation", "ObservationLikelihood", "observe"]


@dataclass(frozen=True, eq=False)
class Observation:
    """Y = h(X) + σ_y Z, Z ~ N(0, I), with any differentiable h. Book: [the measurement](#eq-i8-measurement).

    Parameters
    ----------
    h : ``(batch, *event) -> (batch, m)``, row by row and by operations that autograd follows
    y : Tensor ``(batch, m)``, row by row for the samples of a walk, or ``(1, m)`` for all of them
    sigma_y : standard deviation of the noise, at least 0

    Raises
    ------
    TypeError
        If ``h`` cannot be called.
    ValueError
        If ``y`` is not a matrix, or ``sigma_y`` is negative; by ``residual``, if h returns another shape, or values
        without a gradient where one is asked.
    """

    h: Callable[[Tensor], Tensor]
    y: Tensor
    sigma_y: float

    def __post_init__(self) -> None:
        standard_deviation(self.sigma_y)
        if not callable(self.h):
            raise TypeError(
                f"h: expected a function of x, got {type(self.h).__name__}"
            )
        if self.y.ndim != 2:
            raise ValueError(
                f"y of shape {tuple(self.y.shape)}: expected (batch, m)"
            )

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self.y)

    def residual(self, x: Tensor) -> Tensor:
        """Return y − h(x), ``(batch, m)``."""
        (y,) = self._copies.beside(x)
        values = self.h(x)
        wanted = len(x), y.shape[1]
        if tuple(values.shape) != wanted:
            raise ValueError(
                f"h(x) of shape {tuple(values.shape)}: expected {wanted}"
            )
        if x.requires_grad and not values.requires_grad:
            raise ValueError(
                "h: expected a map that autograd can follow, got values without a gradient"
            )
        return y - values


def observe(
    h: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma_y: float,
    generator: torch.Generator | None = None,
) -> Observation:
    """Draw Y = h(x) + σ_y Z for every row of ``x`` ``(batch, *event)``. Book: [](#eq-i8-measurement)."""
    law = Gaussian(h(x), float(standard_deviation(sigma_y) ** 2))
    return Observation(h, law.sample(generator), sigma_y)


@dataclass(frozen=True, eq=False)
class ObservationLikelihood:
    """The assumed p̃(y | x_t) = N(y; h(x̂_0), r_t² H Hᵀ + σ_y² I), H = ∂h/∂x at x̂_0. Book: [](#eq-i8-linearized).

    Exact if x_0 given x_t is N(x̂_0, r_t² I) and h is linear; at t = 0 it is the likelihood itself for every h. The
    gradient is that of the whole expression, through the mean and through H. For a linear h it is a
    :class:`~ddpm_nb.inverse.guidance.Likelihood`, and it serves wherever one does.

    Parameters
    ----------
    denoise : the prior's ``(x_t, t) -> x̂_0``
    q : the forward process
    observation : what was observed, with a positive ``sigma_y``
    spread : ``level -> r_t²``
    """

    denoise: Denoiser
    q: GaussianDiffusion
    observation: Observation
    spread: Spread

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)
        if not self.observation.sigma_y > 0:  # H may be 0, as at saturation
            raise ValueError(
                f"sigma_y = {self.observation.sigma_y}: expected a positive number"
            )

    def __call__(self, x_t: Tensor, t: Time) -> Guess:
        """Return x̂_0, log p̃(y | x_t) and its gradient."""
        if torch.is_tensor(t):
            raise TypeError("t: expected one int for the whole batch")
        r_squared = self.spread(self.q.schedule.level(t)) if t else 0.0
        with torch.enable_grad():  # a walk runs without gradients
            x, x_0 = _estimate(self.denoise, x_t, t)
            residual = self.observation.residual(x_0)
            H = _jacobian(residual, x_0, r_squared > 0)
            log_prob = self._log_density(residual, H, r_squared)
            gradient = torch.autograd.grad(log_prob.sum(), x)[0]
        return Guess(x_0.detach(), log_prob.detach(), gradient)

    def _log_density(
        self, residual: Tensor, H: Tensor, r_squared: float
    ) -> Tensor:
        """Log density of N(0, r² H Hᵀ + σ_y² I) at the residual, in the widest float."""
        wide, m = widest(residual.device), residual.shape[1]
        residual, H = residual.to(wide), H.to(wide)
        eye = torch.eye(m, dtype=wide, device=residual.device)
        cov = r_squared * H @ H.mT + self.observation.sigma_y**2 * eye
        # Its eigenvalues are at least σ_y²: nothing to check.
        factor = torch.linalg.cholesky_ex(cov).L
        white = torch.linalg.solve_triangular(
            factor, residual[..., None], upper=False
        )
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        square = white.square().sum((1, 2))
        return -0.5 * square - log_det - 0.5 * m * math.log(2 * math.pi)


def _jacobian(residual: Tensor, x_0: Tensor, wanted: bool) -> Tensor:
    """∂h/∂x at x̂_0 ``(batch, m, d)``, itself differentiable; zeros where r = 0 makes it needless."""
    if not wanted:
        return x_0.new_zeros(len(x_0), residual.shape[1], 1)
    rows = [
        torch.autograd.grad(
            column.sum(), x_0, create_graph=True, materialize_grads=True
        )[0].flatten(1)
        for column in residual.unbind(1)
    ]
    return -torch.stack(rows, 1)
