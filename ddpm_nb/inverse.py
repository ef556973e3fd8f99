"""Chapter 8. Inverse problems: Y = A(X) + σ_y Z, sampled by reverse diffusion and checked against exact posteriors.

A measurement is one object; what solves it wraps a denoiser or a kernel and is walked like any other. For a mixture of
Gaussians and a linear operator the posterior is a mixture again, so every method's error can be measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import Denoiser
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.sampling import Kernel, State
from ddpm_nb.schedule import NoiseSchedule, Time, coefficient

__all__ = [
    "DPS",
    "FullMixture",
    "Mask",
    "Matrix",
    "Measurement",
    "Operator",
    "Replacement",
    "Separable",
    "average_pool",
    "blur",
    "denoising_level",
    "denoising_start",
    "exact_posterior",
    "gaussian_spread",
    "guided",
    "measure",
    "no_spread",
    "posterior_errors",
]


class Operator(ABC):
    """A linear A with its transpose, between tensors ``(batch, *event)`` and ``(batch, *measured)``."""

    event: tuple[int, ...]
    measured: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x, shape ``(batch, *measured)``."""
        return self._apply(_batched("x", x, self.event))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y, shape ``(batch, *event)``: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩. Book: [the adjoint](#eq-i8-adjoint)."""
        return self._adjoint(_batched("y", y, self.measured))

    def matrix(self) -> Tensor:
        """Return A as a float64 matrix ``(m, d)`` between flattened events."""
        d = math.prod(self.event)
        return self(torch.eye(d, dtype=torch.float64).reshape(d, *self.event)).flatten(1).mT

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """Keep the entries where ``keep`` (bool, the event's shape) is true, as a flat vector: inpainting.

    With every entry kept it is the identity: denoising.
    """

    keep: Tensor

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or not bool(self.keep.any()):
            raise ValueError(f"keep of dtype {self.keep.dtype}: expected a bool tensor with at least one True")
        object.__setattr__(self, "event", tuple(self.keep.shape))
        object.__setattr__(self, "measured", (int(self.keep.sum()),))

    def _apply(self, x: Tensor) -> Tensor:
        return x[:, self.keep.to(x.device)]

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(y.shape[0], *self.event)
        x[:, self.keep.to(y.device)] = y
        return x


@dataclass(frozen=True, eq=False)
class Matrix(Operator):
    """A dense matrix ``(m, d)`` on flat events."""

    entries: Tensor

    def __post_init__(self) -> None:
        if self.entries.ndim != 2:
            raise ValueError(f"entries of shape {tuple(self.entries.shape)}: expected (m, d)")
        object.__setattr__(self, "event", (self.entries.shape[1],))
        object.__setattr__(self, "measured", (self.entries.shape[0],))

    def _apply(self, x: Tensor) -> Tensor:
        return x @ self.entries.to(x).mT

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.entries.to(y)


@dataclass(frozen=True, eq=False)
class Separable(Operator):
    """Images ``(batch, 1, h, w)`` to L x Rᵀ, one matrix for the rows and one for the columns; its adjoint is Lᵀ y R."""

    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", (1, self.rows.shape[1], self.columns.shape[1]))
        object.__setattr__(self, "measured", (1, self.rows.shape[0], self.columns.shape[0]))

    def _apply(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y).mT @ y @ self.columns.to(y)


def blur(side: int, width: float) -> Separable:
    """Gaussian blur of standard deviation ``width`` pixels; weights sum to 1 at every pixel, also near the edge."""
    if not width > 0:
        raise ValueError(f"width = {width}: expected a positive number of pixels")
    place = torch.arange(whole_number("side", side, least=1), dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    return Separable(weights, weights)


def average_pool(side: int, factor: int) -> Separable:
    """Average over blocks of ``factor × factor`` pixels: what super-resolution has to undo."""
    if whole_number("side", side, least=1) % whole_number("factor", factor, least=1):
        raise ValueError(f"factor = {factor}: expected a divisor of side = {side}")
    weights = torch.eye(side // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor
    return Separable(weights, weights)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Y = A(X) + σ_y Z, Z ~ N(0, I) (Li, inverse problem (1)). Book: [the measurement](#eq-i8-measurement).

    Parameters
    ----------
    operator : the linear A
    y : Tensor ``(batch, *measured)``, row by row for the samples of a walk, or ``(1, *measured)`` for all of them
    sigma_y : standard deviation of the noise, at least 0

    Raises
    ------
    ValueError
        If ``y`` has another shape than A's values, or ``sigma_y`` is negative.
    """

    operator: Operator
    y: Tensor
    sigma_y: float

    def __post_init__(self) -> None:
        _standard_deviation(self.sigma_y)
        _batched("y", self.y, self.operator.measured)


def measure(operator: Operator, x: Tensor, sigma_y: float, generator: torch.Generator | None = None) -> Measurement:
    """Draw Y = A(x) + σ_y Z for every row of ``x`` ``(batch, *event)``. Book: [](#eq-i8-measurement)."""
    values = operator(x)
    law = Gaussian(values, torch.tensor(_standard_deviation(sigma_y) ** 2, dtype=values.dtype))
    return Measurement(operator, law.sample(generator), sigma_y)


def denoising_level(schedule: NoiseSchedule, sigma_y: float) -> int:
    """Return the step t whose 1/SNR_t = (1 − ᾱ_t)/ᾱ_t is nearest to σ_y², both as standard deviations.

    There √ᾱ_t y is a draw of x_t. Book: [the level of a measurement](#eq-i8-denoising-level). ``ValueError`` if
    the schedule nowhere is as noisy as the measurement.
    """
    levels = schedule.snr(torch.arange(schedule.T + 1)).rsqrt()
    if _standard_deviation(sigma_y) > levels[-1]:
        raise ValueError(f"sigma_y = {sigma_y}: expected at most {levels[-1]:.3g}, the schedule's noise at T")
    return int((levels - sigma_y).abs().argmin())


def denoising_start(schedule: NoiseSchedule, measurement: Measurement) -> State:
    """Return √ᾱ_t y at its level t, where the reverse chain takes over. Book: [](#eq-i8-denoising-level).

    ``TypeError`` unless the operator is a ``Mask`` that keeps everything: A(x) = x.
    """
    mask = measurement.operator
    if not isinstance(mask, Mask) or not bool(mask.keep.all()):
        raise TypeError("operator: expected a Mask that keeps every entry; reverse diffusion removes noise, not A")
    t = denoising_level(schedule, measurement.sigma_y)
    return State(coefficient(schedule.alpha_bar(t).sqrt(), measurement.y) * mask.adjoint(measurement.y), t)


@dataclass(frozen=True, eq=False)
class FullMixture:
    """Mixtures of Gaussians with full covariances, one mixture for each row of a batch.

    Parameters
    ----------
    log_weights : Tensor ``(batch, k)``, normalized
    means : Tensor ``(batch, k, d)``
    covariances : Tensor ``(k, d, d)``: those of a posterior do not depend on the measured values
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, prior: GaussianMixture) -> FullMixture:
        """Return the same law with batch 1."""
        covariances = prior.variances.reshape(len(prior.means), -1).expand_as(prior.means).diag_embed()
        return cls(prior.weights.log()[None], prior.means[None], covariances)

    def observe(self, A: Tensor, y: Tensor, noise_var: float) -> FullMixture:
        """Return the law of X given A X + N(0, noise_var I) = y: Bayes' rule part by part.

        Book: [the exact posterior](#eq-i8-exact-posterior). ``A`` is ``(m, d)``, ``y`` ``(batch, m)``.
        """
        log_joint, gain, residual = self._evidence(A, y, noise_var)
        means = self.means + torch.einsum("kdm,bkm->bkd", gain, residual)
        covariances = self.covariances - gain @ (A @ self.covariances)
        return FullMixture(log_joint.log_softmax(1), means, 0.5 * (covariances + covariances.mT))

    def log_evidence(self, A: Tensor, y: Tensor, noise_var: float) -> Tensor:
        """Log density of A X + N(0, noise_var I) at ``y``, in nats, ``(batch,)``."""
        return self._evidence(A, y, noise_var)[0].logsumexp(1)

    def _evidence(self, A: Tensor, y: Tensor, noise_var: float) -> tuple[Tensor, Tensor, Tensor]:
        """log (weight · N(y; A mean, S)) ``(batch, k)``, gains C Aᵀ S⁻¹ and residuals, S = A C Aᵀ + noise_var I."""
        m = A.shape[0]
        crossed = A @ self.covariances
        factor, info = torch.linalg.cholesky_ex(crossed @ A.mT + noise_var * torch.eye(m, dtype=A.dtype))
        if bool(info.any()):
            raise ValueError(f"sigma_y² = {noise_var}: expected a larger one, some A C Aᵀ + sigma_y² I is singular")
        residual = y[:, None] - self.means @ A.mT
        white = torch.linalg.solve_triangular(factor, residual.permute(1, 2, 0), upper=False)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_density = -0.5 * white.square().sum(1).mT - log_det - 0.5 * m * math.log(2 * math.pi)
        return self.log_weights + log_density, torch.cholesky_solve(crossed, factor).mT, residual

    def mean(self) -> Tensor:
        """E[X], ``(batch, d)``."""
        return torch.einsum("bk,bkd->bd", self.log_weights.exp(), self.means)

    def covariance(self) -> Tensor:
        """Cov[X] = E[Cov within] + Cov of the means, ``(batch, d, d)``."""
        weights, centred = self.log_weights.exp(), self.means - self.mean()[:, None]
        within = torch.einsum("bk,kde->bde", weights, self.covariances)
        return within + torch.einsum("bk,bkd,bke->bde", weights, centred, centred)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at ``x`` ``(n, d)``, with n the batch, or either of them 1: ``(n,)``."""
        return self.log_evidence(torch.eye(x.shape[1], dtype=torch.float64), x, 0.0)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n independent samples for each row, ``(n, batch, d)``, float64."""
        parts = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator).mT
        used, place = parts.unique(return_inverse=True)
        values, vectors = torch.linalg.eigh(self.covariances[used])  # also for the flat directions of exact data
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        means = self.means[torch.arange(parts.shape[1]), parts]
        noise = torch.randn(means.shape, dtype=torch.float64, generator=generator)
        return means + torch.einsum("nbde,nbe->nbd", root[place], noise)

    def denoiser(self, q: GaussianDiffusion) -> Denoiser:
        """Return (x_t, t) ↦ E[x_0 | x_t] under row i's law for row i: for a posterior, E[x_0 | x_t, y]."""

        def denoise(x_t: Tensor, t: Time) -> Tensor:
            if torch.is_tensor(t):
                raise TypeError("t: expected one int for the whole batch")
            signal = q.schedule.alpha_bar(t).sqrt() * torch.eye(self.means.shape[2], dtype=torch.float64)
            noise = q.schedule.one_minus_alpha_bar(t).item()
            x_0 = self.observe(signal, x_t.flatten(1).double(), noise).mean()
            return x_0.reshape(x_t.shape).to(x_t.dtype)

        return denoise


def exact_posterior(prior: GaussianMixture, measurement: Measurement) -> FullMixture:
    """p(x | y) for a mixture prior and linear A: a mixture again. Book: [](#eq-i8-exact-posterior).

    Weights w_k N(y; A m_k, S_k), means m_k + C_k Aᵀ S_k⁻¹ (y − A m_k), covariances C_k − C_k Aᵀ S_k⁻¹ A C_k with
    S_k = A C_k Aᵀ + σ_y² I. Float64; one law for each row of y.
    """
    A, d = measurement.operator.matrix(), prior.means.shape[1]
    if A.shape[1] != d:
        raise ValueError(f"operator on events of shape {measurement.operator.event}: expected {d} numbers, the prior's")
    return FullMixture.of(prior).observe(A, measurement.y.flatten(1).double(), measurement.sigma_y**2)


def posterior_errors(samples: Tensor, exact: FullMixture, x_0: Tensor, level: float = 0.9) -> dict[str, Tensor]:
    """Errors of ``samples`` ``(n, batch, d)`` for one problem in each row, ``(batch,)`` each; average over problems.

    mean : squared error of the mean over the average tr Σ; spread : tr S / tr Σ − 1; covariance : squared Frobenius
    error of S over the average ‖Σ‖²; coverage : share of coordinates of the truth ``x_0`` ``(batch, d)`` with a central
    share ``level`` of ranks, which is ``level`` for exact samples if it is a multiple of 2/(n + 1). The squares are
    products of two independent halves, so that exact samples have expectation 0. Book: [](#eq-i8-halves).
    """
    n, batch, d = samples.shape
    if n < 4 or x_0.shape != (batch, d) or len(exact.means) != batch:
        raise ValueError(
            f"samples of shape {tuple(samples.shape)}, x_0 of shape {tuple(x_0.shape)}, {len(exact.means)} exact laws: "
            "expected (n, batch, d) with n at least 4, (batch, d) and batch"
        )
    mean, cov = exact.mean(), exact.covariance()
    total, square = cov.diagonal(dim1=1, dim2=2).sum(1).mean(), cov.square().sum((1, 2)).mean()
    off_mean, off_cov = [], []
    for half in (samples[: n // 2], samples[n // 2 :]):
        centred = half - half.mean(0)
        off_mean.append(half.mean(0) - mean)
        off_cov.append(torch.einsum("nbd,nbe->bde", centred, centred) / (len(half) - 1) - cov)
    rank = (samples < x_0).sum(0)
    low = round((1 - level) / 2 * (n + 1))
    return {
        "mean": (off_mean[0] * off_mean[1]).sum(1) / total,
        "spread": samples.var(0).sum(1) / total - cov.diagonal(dim1=1, dim2=2).sum(1) / total,
        "covariance": (off_cov[0] * off_cov[1]).sum((1, 2)) / square,
        "coverage": ((rank >= low) & (rank <= n - low)).double().mean(1),
    }


@dataclass(frozen=True, eq=False)
class Replacement:
    """After every step, write a noised measurement over the measured entries (Song et al. 2021). Biased.

    Entries of x_s become √ᾱ_s y plus noise up to the level's 1 − ᾱ_s, down to the level of y itself; below it the
    chain runs alone. Book: [replacement](#eq-i8-replacement).

    Parameters
    ----------
    kernel : ``(x_t, s, t) -> Gaussian`` of the prior alone
    q : the forward process
    measurement : its operator must be a ``Mask``
    """

    kernel: Kernel
    q: GaussianDiffusion
    measurement: Measurement

    def __post_init__(self) -> None:
        if not isinstance(self.measurement.operator, Mask):
            raise TypeError(f"operator: expected a Mask, got {type(self.measurement.operator).__name__}")

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        law, schedule, sigma_y = self.kernel(x_t, s, t), self.q.schedule, self.measurement.sigma_y
        if s < denoising_level(schedule, sigma_y):
            return law
        mask, y = self.measurement.operator, self.measurement.y.to(x_t)
        alpha_bar = schedule.alpha_bar(s)
        missing = (schedule.one_minus_alpha_bar(s) - alpha_bar * sigma_y**2).clamp(min=0)
        keep = mask.keep.to(x_t.device)  # type: ignore[attr-defined]
        mean = torch.where(keep, alpha_bar.sqrt().item() * mask.adjoint(y), law.mean)
        return Gaussian(mean, torch.where(keep, missing.to(x_t), law.var.to(x_t)))


Spread = Callable[[NoiseSchedule, int], Tensor]  # (schedule, t) -> r², the assumed variance of x_0 given x_t


def no_spread(schedule: NoiseSchedule, t: int) -> Tensor:
    """r² = 0: x_0 is taken to be x̂_0 (Chung et al. 2023)."""
    return torch.zeros(())


def gaussian_spread(prior_var: float = 1.0) -> Spread:
    """r² = v (1 − ᾱ)/(ᾱ v + 1 − ᾱ), right for data N(m, v I); 1 − ᾱ for v = 1 (Song et al. 2023)."""
    if not prior_var > 0:
        raise ValueError(f"prior_var = {prior_var}: expected a positive variance")

    def spread(schedule: NoiseSchedule, t: int) -> Tensor:
        noise = schedule.one_minus_alpha_bar(t)
        return prior_var * noise / (schedule.alpha_bar(t) * prior_var + noise)

    return spread


def guided(denoise: Denoiser, q: GaussianDiffusion, measurement: Measurement, spread: Spread) -> Denoiser:
    """x̂_0 + (1 − ᾱ)/√ᾱ ∇ log N(y; A x̂_0, r² A Aᵀ + σ_y² I), gradient in x_t through the denoiser.

    Exact if x_0 given x_t is N(x̂_0, r² I). ``spread=no_spread`` is the likelihood of DPS, ``gaussian_spread()`` that of
    ΠGDM (pseudoinverse guidance). Book: [guidance](#eq-i8-guidance). ``ValueError`` where the covariance is singular.
    """
    A = measurement.operator.matrix()
    values, vectors = torch.linalg.eigh(A @ A.mT)

    def denoise_given_y(x_t: Tensor, t: Time) -> Tensor:
        var = spread(q.schedule, int(t)) * values.clamp(min=0) + measurement.sigma_y**2
        if not bool((var > 0).all()):
            raise ValueError(f"sigma_y = {measurement.sigma_y}: expected a positive number where the spread is 0")
        precision = ((vectors / var) @ vectors.mT).to(x_t)
        x_0, residual, pull_back = _linearized(denoise, measurement, x_t, t)
        direction = (residual.flatten(1) @ precision).reshape(residual.shape)
        alpha_bar = q.schedule.alpha_bar(t)
        scale = coefficient(q.schedule.one_minus_alpha_bar(t) / alpha_bar.sqrt(), x_t)
        return x_0 + scale * pull_back(direction)

    return denoise_given_y


@dataclass(frozen=True, eq=False)
class DPS:
    """Diffusion posterior sampling with its published step: mean − (ζ/‖r‖) ∇‖r‖², r = y − A x̂_0(x_t).

    Source: Chung et al. 2023, Algorithm 1 with ζ_t = ζ/‖r‖. Book: [the DPS step](#eq-i8-dps).

    Parameters
    ----------
    kernel : ``(x_t, s, t) -> Gaussian`` of the prior alone
    denoise : the denoiser of the same prior
    measurement : what was observed
    step : ζ, a positive number
    """

    kernel: Kernel
    denoise: Denoiser
    measurement: Measurement
    step: float = 1.0

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ValueError(f"step = {self.step}: expected a positive number")

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        law = self.kernel(x_t, s, t)
        _, residual, pull_back = _linearized(self.denoise, self.measurement, x_t, t)
        norm = residual.flatten(1).norm(dim=1).reshape(-1, *[1] * (residual.ndim - 1))
        unit = residual / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # a residual of exactly 0 pulls nowhere
        return Gaussian(law.mean + 2 * self.step * pull_back(unit), law.var)  # ∇‖r‖² = −2 Jᵀ Aᵀ r


def _linearized(
    denoise: Denoiser, measurement: Measurement, x_t: Tensor, t: Time
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """x̂_0, the residual y − A x̂_0, and the map w ↦ Jᵀ Aᵀ w with J = ∂x̂_0/∂x_t, for one use."""
    operator = measurement.operator
    with torch.enable_grad():  # a walk runs without gradients
        x = x_t.detach().requires_grad_()
        x_0 = denoise(x, t)

    def pull_back(w: Tensor) -> Tensor:
        return torch.autograd.grad(x_0, x, operator.adjoint(w))[0]

    value = x_0.detach()
    return value, measurement.y.to(value) - operator(value), pull_back


def _batched(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) != shape or x.ndim != len(shape) + 1:
        expected = ", ".join(["batch", *map(str, shape)])
        raise ValueError(f"{name} of shape {tuple(x.shape)}: expected ({expected})")
    return x


def _standard_deviation(sigma_y: float) -> float:
    if not 0 <= sigma_y < math.inf:
        raise ValueError(f"sigma_y = {sigma_y}: expected a standard deviation of at least 0")
    return sigma_y
