"""The exact posterior of a mixture prior, and how far samples are from it.

For a mixture of Gaussians and a linear operator the posterior is a mixture again: every method's error can be measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import BestDenoiser, GaussianMixture
from ddpm_nb.inverse.measurement import Measurement
from ddpm_nb.schedule import Time

__all__ = ["FullMixture", "exact_posterior", "posterior_errors"]


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
        variances = prior.variances.reshape(len(prior.means), -1)
        covariances = variances.expand_as(prior.means).diag_embed()
        return cls(prior.weights.log()[None], prior.means[None], covariances)

    def observe(self, A: Tensor, y: Tensor, noise_var: float) -> FullMixture:
        """Return the law of X given A X + N(0, noise_var I) = y: Bayes' rule part by part.

        Book: [the exact posterior](#eq-i8-exact-posterior). ``A`` is ``(m, d)``, ``y`` ``(batch, m)``.
        """
        log_joint, gain, residual = self._evidence(A, y, noise_var)
        means = self.means + torch.einsum("kdm,bkm->bkd", gain, residual)
        covariances = self.covariances - gain @ (A @ self.covariances)
        # Rounding leaves them not quite symmetric.
        covariances = 0.5 * (covariances + covariances.mT)
        return FullMixture(log_joint.log_softmax(1), means, covariances)

    def log_evidence(self, A: Tensor, y: Tensor, noise_var: float) -> Tensor:
        """Log density of A X + N(0, noise_var I) at ``y``, in nats, ``(batch,)``."""
        return self._evidence(A, y, noise_var)[0].logsumexp(1)

    def _evidence(
        self, A: Tensor, y: Tensor, noise_var: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log (weight · N(y; A mean, S)) ``(batch, k)``, gains C Aᵀ S⁻¹ and residuals, S = A C Aᵀ + noise_var I."""
        m = A.shape[0]
        crossed = A @ self.covariances
        S = crossed @ A.mT + noise_var * torch.eye(m, dtype=A.dtype)
        factor, info = torch.linalg.cholesky_ex(S)
        if bool(info.any()):
            raise ValueError(
                f"sigma_y² = {noise_var}: expected a larger one, "
                "some A C Aᵀ + sigma_y² I is singular"
            )
        residual = y[:, None] - self.means @ A.mT
        white = torch.linalg.solve_triangular(
            factor, residual.permute(1, 2, 0), upper=False
        )
        square = white.square().sum(1).mT
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_density = -0.5 * square - log_det - 0.5 * m * math.log(2 * math.pi)
        gain = torch.cholesky_solve(crossed, factor).mT
        return self.log_weights + log_density, gain, residual

    def mean(self) -> Tensor:
        """E[X], ``(batch, d)``."""
        return torch.einsum("bk,bkd->bd", self.log_weights.exp(), self.means)

    def covariance(self) -> Tensor:
        """Cov[X] = E[Cov within] + Cov of the means, ``(batch, d, d)``."""
        weights = self.log_weights.exp()
        centred = self.means - self.mean()[:, None]
        within = torch.einsum("bk,kde->bde", weights, self.covariances)
        among = torch.einsum("bk,bkd,bke->bde", weights, centred, centred)
        return within + among

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at ``x`` ``(n, d)``, with n the batch, or either of them 1: ``(n,)``."""
        identity = torch.eye(x.shape[1], dtype=torch.float64)
        return self.log_evidence(identity, x, 0.0)

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n independent samples for each row, ``(n, batch, d)``, float64."""
        parts = torch.multinomial(
            self.log_weights.exp(), n, replacement=True, generator=generator
        ).mT
        used, place = parts.unique(return_inverse=True)
        # A Cholesky factor would need positive variances, exact data have flat
        # directions.
        values, vectors = torch.linalg.eigh(self.covariances[used])
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        means = self.means[torch.arange(parts.shape[1]), parts]
        noise = torch.randn(
            means.shape, dtype=torch.float64, generator=generator
        )
        return means + torch.einsum("nbde,nbe->nbd", root[place], noise)

    def denoiser(self, q: GaussianDiffusion) -> BestDenoiser:
        """Return (x_t, t) ↦ E[x_0 | x_t] under row i's law for row i: for a posterior, E[x_0 | x_t, y]."""
        return BestDenoiser(self, q)

    def posterior_mean(
        self, q: GaussianDiffusion, x_t: Tensor, t: Time
    ) -> Tensor:
        """E[x_0 | x_t] under row i's law for row i, of the shape of ``x_t``; one step t for the whole batch."""
        if torch.is_tensor(t):
            raise TypeError("t: expected one int for the whole batch")
        level = q.schedule.level(t)
        d, x = self.means.shape[2], x_t.flatten(1).double()
        signal = level.signal * torch.eye(d, dtype=torch.float64)
        x_0 = self.observe(signal, x, level.noise_var).mean()
        return x_0.reshape(x_t.shape).to(x_t.dtype)


def exact_posterior(
    prior: GaussianMixture, measurement: Measurement
) -> FullMixture:
    """p(x | y) for a mixture prior and linear A: a mixture again. Book: [](#eq-i8-exact-posterior).

    Weights w_k N(y; A m_k, S_k), means m_k + C_k Aᵀ S_k⁻¹ (y − A m_k), covariances C_k − C_k Aᵀ S_k⁻¹ A C_k with
    S_k = A C_k Aᵀ + σ_y² I. Float64; one law for each row of y.
    """
    A, d = measurement.operator.matrix(), prior.means.shape[1]
    if A.shape[1] != d:
        raise ValueError(
            f"operator on events of shape {measurement.operator.event}: expected {d} numbers, the prior's"
        )
    y = measurement.y.flatten(1).double()
    return FullMixture.of(prior).observe(A, y, measurement.sigma_y**2)


def posterior_errors(
    samples: Tensor, exact: FullMixture, x_0: Tensor, level: float = 0.9
) -> dict[str, Tensor]:
    """Errors of ``samples`` ``(n, batch, d)`` for one problem in each row, ``(batch,)`` each; average over problems.

    mean : squared error of the mean over the average tr Σ; spread : tr S − tr Σ over the average tr Σ; covariance :
    squared Frobenius error of S over the average ‖Σ‖²; coverage : share of coordinates of the truth ``x_0`` ``(batch,
    d)`` with a central share ``level`` of ranks, which is ``level`` for exact samples if it is a multiple of
    2/(n + 1). The squares are products of two independent halves, so that exact samples have expectation 0. Book:
    [](#eq-i8-halves).
    """
    n, batch, d = samples.shape
    if n < 4 or x_0.shape != (batch, d) or len(exact.means) != batch:
        raise ValueError(
            f"samples of shape {tuple(samples.shape)}, "
            f"x_0 of shape {tuple(x_0.shape)}, {len(exact.means)} exact laws: "
            "expected (n, batch, d) with n at least 4, (batch, d) and batch"
        )
    mean, cov = exact.mean(), exact.covariance()
    trace = cov.diagonal(dim1=1, dim2=2).sum(1)
    total, square = trace.mean(), cov.square().sum((1, 2)).mean()
    off_mean, off_cov = [], []
    for half in (samples[: n // 2], samples[n // 2 :]):
        centred = half - half.mean(0)
        products = torch.einsum("nbd,nbe->bde", centred, centred)
        off_mean.append(half.mean(0) - mean)
        off_cov.append(products / (len(half) - 1) - cov)
    rank = (samples < x_0).sum(0)
    low = round((1 - level) / 2 * (n + 1))
    inside = (rank >= low) & (rank <= n - low)
    return {
        "mean": (off_mean[0] * off_mean[1]).sum(1) / total,
        "spread": samples.var(0).sum(1) / total - trace / total,
        "covariance": (off_cov[0] * off_cov[1]).sum((1, 2)) / square,
        "coverage": inside.double().mean(1),
    }
