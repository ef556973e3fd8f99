"""Guidance: the gradient of an assumed likelihood of the measurement bends the walk of the prior towards it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm_nb.denoiser import Denoiser, check_process
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.inverse.measurement import Measurement
from ddpm_nb.kernels import GaussianKernel
from ddpm_nb.precision import Copies
from ddpm_nb.sampling import DDIM
from ddpm_nb.schedule import Level, Time

__all__ = [
    "DPS",
    "PGDM",
    "Guess",
    "Guided",
    "Likelihood",
    "Twist",
    "gaussian_spread",
    "guided",
    "no_spread",
]

# level -> r², the assumed variance of x_0 given x_t
Spread = Callable[[Level], float]


def no_spread(level: Level) -> float:
    """r² = 0: x_0 is taken to be x̂_0 (Chung et al. 2023)."""
    return 0.0


def gaussian_spread(prior_var: float = 1.0) -> Spread:
    """r² = v (1 − ᾱ)/(ᾱ v + 1 − ᾱ), right for data N(m, v I); 1 − ᾱ for v = 1 (Song et al. 2023)."""
    if not prior_var > 0:
        raise ValueError(
            f"prior_var = {prior_var}: expected a positive variance"
        )

    def spread(level: Level) -> float:
        var = level.alpha_bar * prior_var + level.noise_var  # that of x_t
        return prior_var * level.noise_var / var

    return spread


class Guess(NamedTuple):
    """What x_t says of x_0 and of y, one row for each sample.

    x_0 : Tensor ``(batch, *event)``, the denoiser's x̂_0
    log_prob : Tensor ``(batch,)``, log p̃(y | x_t) in nats, float64 where there is one
    gradient : Tensor ``(batch, *event)``, ∇ log p̃(y | x_t) in x_t
    """

    x_0: Tensor
    log_prob: Tensor
    gradient: Tensor


class Twist(Protocol):
    """What bends a walk: ``(x_t, t) -> Guess``, with the forward process ``q``. A :class:`Likelihood` is one."""

    @property
    def q(self) -> GaussianDiffusion:
        """The forward process."""

    def __call__(self, x_t: Tensor, t: Time) -> Guess:
        """Return x̂_0, log p̃(y | x_t) and its gradient."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The assumed p̃(y | x_t) = N(y; A x̂_0, r_t² A Aᵀ + σ_y² I). Book: [guidance](#eq-i8-guidance).

    Exact if x_0 given x_t is N(x̂_0, r_t² I). ``spread=no_spread`` is the likelihood of DPS, ``gaussian_spread()`` that
    of ΠGDM (pseudoinverse guidance). At t = 0 it is the likelihood itself, N(y; A x_0, σ_y² I).

    Parameters
    ----------
    denoise : the prior's ``(x_t, t) -> x̂_0``
    q : the forward process
    measurement : what was observed
    spread : ``level -> r_t²``
    """

    denoise: Denoiser
    q: GaussianDiffusion
    measurement: Measurement
    spread: Spread

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of A Aᵀ, float64: along them the noises are independent."""
        A = self.measurement.operator.matrix()
        values, vectors = torch.linalg.eigh(A @ A.mT)
        return values.clamp(min=0), vectors

    @cached_property
    def _narrowest(self) -> float:
        """The smallest eigenvalue, read once."""
        return self._axes[0].min().item()

    @cached_property
    def _copies(self) -> Copies:
        return Copies(*self._axes)

    def __call__(self, x_t: Tensor, t: Time) -> Guess:
        """Return x̂_0, log p̃(y | x_t) and its gradient; ``ValueError`` where the covariance is singular."""
        if torch.is_tensor(t):
            raise TypeError("t: expected one int for the whole batch")
        values, vectors = self._copies.on(x_t.device)
        sigma_y = self.measurement.sigma_y
        spread = self.spread(self.q.schedule.level(t))
        if not spread * self._narrowest + sigma_y**2 > 0:
            raise ValueError(
                f"sigma_y = {sigma_y}: expected a positive number "
                "where the spread is 0"
            )
        var = spread * values + sigma_y**2
        x_0, residual, pull_back = _linearized(
            self.denoise, self.measurement, x_t, t
        )
        along = residual.flatten(1).to(vectors) @ vectors
        surprise = along.square() / var + var.log() + math.log(2 * math.pi)
        log_prob = -0.5 * surprise.sum(1)
        direction = ((along / var) @ vectors.mT).reshape(residual.shape)
        return Guess(x_0, log_prob, pull_back(direction.to(residual)))


@dataclass(frozen=True, eq=False)
class Guided:
    """The denoiser x̂_0 + (1 − ᾱ)/√ᾱ ∇ log p̃(y | x_t): see :func:`guided`."""

    likelihood: Twist

    @property
    def q(self) -> GaussianDiffusion:
        """The forward process."""
        return self.likelihood.q

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return x̂_0 given y, of the shape of ``x_t``; ``ValueError`` where the covariance of y is singular."""
        guess, level = self.likelihood(x_t, t), self.q.schedule.level(t)
        return guess.x_0 + level.noise_var / level.signal * guess.gradient


def guided(
    denoise: Denoiser,
    q: GaussianDiffusion,
    measurement: Measurement,
    spread: Spread,
) -> Guided:
    """x̂_0 + (1 − ᾱ)/√ᾱ ∇ log p̃(y | x_t), the gradient of a :class:`Likelihood`. Book: [](#eq-i8-guidance).

    It is E[x_0 | x_t, y] if x_0 given x_t is N(x̂_0, r² I).
    """
    return Guided(Likelihood(denoise, q, measurement, spread))


@dataclass(frozen=True, eq=False)
class PGDM:
    """ΠGDM with its published step: DDIM, plus √ᾱ_s √ᾱ_t r_t² ∇ log p̃(y | x_t) with r_t² = 1 − ᾱ_t.

    Source: Song et al. 2023; the factors are those of its authors' code, where σ_y = 0 and r_t² (r_t² A Aᵀ)⁻¹ makes A⁺.
    Book: [the step of ΠGDM](#eq-i8-pgdm).

    Parameters
    ----------
    likelihood : the assumed p̃(y | x_t), with ``gaussian_spread()``
    eta : DDIM's η; 1, the default, draws as much noise as ancestral sampling
    """

    likelihood: Likelihood
    eta: float = 1.0

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        q, guess = self.likelihood.q, self.likelihood(x_t, t)
        law = DDIM(q, lambda x, t: guess.x_0, self.eta)(x_t, s, t)
        before, here = q.schedule.levels(s, t)
        weight = before.signal * here.signal * self.likelihood.spread(here)
        return Gaussian(law.mean + weight * guess.gradient, law.var)


class Seen(Protocol):
    """What was observed, as far as the step of DPS looks: a measurement, linear or not."""

    def residual(self, x: Tensor) -> Tensor:
        """Return y less what would be observed of ``x`` ``(batch, *event)``, one row for each sample."""


@dataclass(frozen=True, eq=False)
class DPS:
    """Diffusion posterior sampling with its published step: mean − (ζ/‖r‖) ∇‖r‖², r = y − A x̂_0(x_t).

    For an :class:`~ddpm_nb.inverse.nonlinear.Observation` h(x̂_0) stands in the place of A x̂_0. Source: Chung et al.
    2023, Algorithm 1 with ζ_t = ζ/‖r‖. Book: [the DPS step](#eq-i8-dps).

    Parameters
    ----------
    kernel : ``(x_t, s, t) -> Gaussian`` of the prior alone
    denoise : the denoiser of the same prior
    measurement : what was observed
    step : ζ, a positive number
    """

    kernel: GaussianKernel
    denoise: Denoiser
    measurement: Seen
    step: float = 1.0

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ValueError(f"step = {self.step}: expected a positive number")
        own = getattr(self.kernel, "q", None)
        if isinstance(own, GaussianDiffusion):
            check_process(own, self.denoise)

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        law = self.kernel(x_t, s, t)
        with torch.enable_grad():  # a walk runs without gradients
            x, x_0 = _estimate(self.denoise, x_t, t)
            residual = self.measurement.residual(x_0).flatten(1)
            norm = residual.norm(dim=1)  # its gradient at 0 is 0
            (gradient,) = torch.autograd.grad(norm.sum(), x)
        # ∇‖r‖²/‖r‖ = 2 ∇‖r‖
        return Gaussian(law.mean - 2 * self.step * gradient, law.var)


def _estimate(denoise: Denoiser, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """x_t as the start of a graph, and x̂_0 in it, to be differentiated."""
    x = x_t.detach().requires_grad_()
    return x, denoise(x, t) if int(t) else x  # clean data stay as they are


def _linearized(
    denoise: Denoiser, measurement: Measurement, x_t: Tensor, t: Time
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """x̂_0, the residual y − A x̂_0, and the map w ↦ Jᵀ Aᵀ w with J = ∂x̂_0/∂x_t, for one use."""
    operator = measurement.operator
    with torch.enable_grad():  # a walk runs without gradients
        x, x_0 = _estimate(denoise, x_t, t)

    def pull_back(w: Tensor) -> Tensor:
        return torch.autograd.grad(x_0, x, operator.adjoint(w))[0]

    value = x_0.detach()
    return value, measurement.residual(value), pull_back
