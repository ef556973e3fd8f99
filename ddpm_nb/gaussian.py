"""Chapter 1. Gaussian laws in closed form: density, sampling, entropy, KL divergence, products, conditioning.

Every step of a diffusion model, forward or reverse, is a Gaussian with independent coordinates, so this is the one
law the rest of the package is built from. The few facts that need a full covariance matrix are functions below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm_nb.precision import drawn_on

__all__ = [
    "Gaussian",
    "conditional",
    "convolution",
    "expected_quadratic_form",
    "kl_multivariate",
    "observe",
    "product",
]


def _sum_event(x: Tensor) -> Tensor:
    """Sum over all axes but the first, the batch."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def _broadcasts(var: Tensor, mean: Tensor) -> bool:
    """Whether ``var`` broadcasts to the shape of ``mean``."""
    axes = zip(reversed(var.shape), reversed(mean.shape), strict=False)
    return var.ndim <= mean.ndim and all(v in (1, m) for v, m in axes)


def _on_host(value: float | Tensor) -> bool:
    """Whether ``value`` can be looked at without waiting for a GPU."""
    return not torch.is_tensor(value) or value.device.type == "cpu"


def _has_zero(value: float | Tensor) -> bool:
    if isinstance(value, Tensor):
        return bool((value == 0).any())
    return value == 0


class Gaussian:
    r"""N(mean, var I), coordinates independent. Book: [the Gaussian density](#eq-gaussian-density).

    Parameters
    ----------
    mean : Tensor ``(batch, *event)``, or a single number
    var : float for a variance that all share, or a Tensor that broadcasts to ``mean``; at least 0, where 0 is a point
        mass at the mean. A shared one is kept as a float, so that a step of a sampler makes no tensor for it; read
        back it is a 0-d tensor on the host, which mixes with tensors of any device.

    Raises
    ------
    TypeError
        If ``mean`` is not a floating-point tensor.
    ValueError
        If ``var`` does not broadcast to ``mean``, or a variance readable on the host is negative.
    """

    __slots__ = ("_mean", "_var")

    def __init__(self, mean: Tensor | float, var: Tensor | float) -> None:
        if not isinstance(mean, Tensor):
            mean = torch.tensor(mean, dtype=torch.float64)
        if not mean.is_floating_point():
            raise TypeError(
                f"mean of dtype {mean.dtype}: expected a floating-point tensor"
            )
        self._mean = mean
        shared = type(var) is float and var >= 0
        self._var = var if shared else _variance(var, mean)

    @property
    def mean(self) -> Tensor:
        """The expectation, ``(batch, *event)``."""
        return self._mean

    @property
    def var(self) -> Tensor:
        """The variance of each coordinate, in the dtype of ``mean``; 0-d on the host where all share it."""
        if isinstance(self._var, Tensor):
            return self._var
        return torch.tensor(self._var, dtype=self._mean.dtype)

    def __repr__(self) -> str:
        mean, var = f"mean of shape {tuple(self._mean.shape)}", self._var
        if isinstance(var, Tensor):
            return f"Gaussian({mean}, var of shape {tuple(var.shape)})"
        return f"Gaussian({mean}, var {var:.6g})"

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + √var z, z ~ N(0, I). Shape of ``mean``. A variance of 0 shared by the batch draws nothing."""
        mean, var = self._mean, self._var
        if not isinstance(var, Tensor) and var == 0.0:
            return mean
        device = drawn_on(generator, mean)
        z = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=device
        )
        return self.from_noise(z.to(mean.device))

    def from_noise(self, z: Tensor) -> Tensor:
        """Return mean + √var z, the draw that belongs to the noise z. Book: [](#eq-reparameterization)."""
        if isinstance(self._var, Tensor):
            return torch.addcmul(self._mean, self._var.sqrt(), z)
        return torch.add(self._mean, z, alpha=math.sqrt(self._var))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, summed over the event: shape ``(batch,)``. A point mass has none: ``ValueError``."""
        var = self._positive_var()
        distance = (x - self._mean) ** 2 / var
        return _sum_event(-0.5 * (distance + _log(2 * math.pi * var)))

    def entropy(self) -> Tensor:
        """½ log(2πe var) summed over the event, in nats: shape ``(batch,)``. Book: [entropy](#eq-gaussian-entropy)."""
        each = 0.5 * _log(2 * math.pi * math.e * self._positive_var())
        return _sum_event(each + torch.zeros_like(self._mean))

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other) in nats, summed over the event: shape ``(batch,)``.

        Source: Vilhes 8.5 (proof of 5), Li's KL slide. Book: [KL between Gaussians](#eq-kl-gaussians). Infinite if
        ``self`` is a point mass, undefined (``ValueError``) if ``other`` is one.
        """
        var = other._positive_var()
        # With r the ratio of the variances, the excess is r − 1. Taken from
        # their difference, it keeps the digits of r − 1 − log r near r = 1.
        excess = (self._var - var) / var
        distance = (self._mean - other._mean) ** 2 / var
        return _sum_event(0.5 * (distance + (excess - _log1p(excess))))

    def _positive_var(self) -> Tensor | float:
        """The variance, checked where the host can see it: a GPU would have to be waited for."""
        var = self._var
        if _on_host(var) and _has_zero(var):
            raise ValueError(
                "var = 0: a point mass has no density; at s = 0 use the decoder term of the bound instead"
            )
        return var


def _variance(var: Tensor | float, mean: Tensor) -> Tensor | float:
    """Return ``var`` as a float if all share it and the host can see it, else as a tensor beside ``mean``; checked."""
    if torch.is_tensor(var):
        if var.ndim and not _broadcasts(var, mean):
            raise ValueError(
                f"var of shape {tuple(var.shape)}: expected one that broadcasts to mean's {tuple(mean.shape)}"
            )
        smallest = var.min().item() if _on_host(var) and var.numel() else 0.0
        shared = var.ndim == 0 and _on_host(var) and not var.requires_grad
        var = var.item() if shared else var.to(mean)
    else:
        var = smallest = float(var)
    if not smallest >= 0:
        raise ValueError(
            f"var = {smallest}: expected variances of at least 0 (a standard deviation?)"
        )
    return var


def _log(value: Tensor | float) -> Tensor | float:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _log1p(value: Tensor | float) -> Tensor | float:
    if isinstance(value, Tensor):
        return value.log1p()
    return math.log1p(value) if value > -1 else -math.inf


def convolution(a: Gaussian, b: Gaussian) -> Gaussian:
    """Return the law of X + Y for independent X ~ a, Y ~ b. Book: [sum of Gaussians](#eq-gaussian-sum)."""
    return Gaussian(a.mean + b.mean, a.var + b.var)


def product(a: Gaussian, b: Gaussian) -> tuple[Gaussian, Tensor]:
    """Return the law proportional to the product of two densities, and the log of its mass in nats, ``(batch,)``.

    Precisions add and means average with precision weights. Book: [product of densities](#eq-gaussian-product).
    """
    total = a.var + b.var
    mean = (a.mean * b.var + b.mean * a.var) / total
    law = Gaussian(mean, a.var * b.var / total)
    return law, Gaussian(a.mean, total).log_prob(b.mean)


def observe(
    prior: Gaussian,
    factor: float | Tensor,
    noise_var: float | Tensor,
    y: Tensor,
) -> Gaussian:
    """Return the law of X given factor·X + N(0, noise_var I) = y, for X ~ prior: Bayes' rule in one line.

    Book: [Bayes' rule for Gaussians](#eq-gaussian-bayes). Both variances 0 is contradictory: ``ValueError``.
    """
    evidence = factor**2 * prior.var + noise_var
    if _on_host(evidence) and _has_zero(evidence):
        raise ValueError(
            "prior.var and noise_var are both 0: an exact prior cannot be "
            "updated by an exact observation"
        )
    gain = factor * prior.var / evidence
    mean = prior.mean + gain * (y - factor * prior.mean)
    return Gaussian(mean, prior.var * noise_var / evidence)


def _covariance(name: str, cov: Tensor, d: int) -> Tensor:
    """Return the lower Cholesky factor of ``cov``; the error names the argument that is not a covariance."""
    if cov.shape != (d, d):
        raise ValueError(
            f"{name} of shape {tuple(cov.shape)}: expected ({d}, {d})"
        )
    factor, info = torch.linalg.cholesky_ex(cov)
    if info.item() or not torch.allclose(cov, cov.mT):
        raise ValueError(
            f"{name}: expected a symmetric positive definite matrix"
        )
    return factor


def kl_multivariate(
    mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor
) -> Tensor:
    """KL(N(mean_1, cov_1) ‖ N(mean_2, cov_2)) in nats, a 0-d tensor. Book: [multivariate KL](#eq-kl-multivariate).

    Means are ``(d,)``, covariances ``(d, d)``; ``ValueError`` for a matrix that is not a covariance.
    """
    d = mean_1.shape[0]
    chol_1 = _covariance("cov_1", cov_1, d)
    chol_2 = _covariance("cov_2", cov_2, d)
    apart = (mean_2 - mean_1)[:, None]
    ratio = torch.linalg.solve_triangular(chol_2, chol_1, upper=False)
    shift = torch.linalg.solve_triangular(chol_2, apart, upper=False)
    half_log_det_1 = chol_1.diagonal().log().sum()
    half_log_det_2 = chol_2.diagonal().log().sum()
    log_det = 2 * (half_log_det_2 - half_log_det_1)
    return 0.5 * (ratio.square().sum() + shift.square().sum() - d + log_det)


def conditional(
    mean: Tensor, cov: Tensor, observed: list[int], value: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the coordinates not in ``observed``, given that those in it equal ``value``.

    μ_a + Σ_ab Σ_bb⁻¹ (b − μ_b) and Σ_aa − Σ_ab Σ_bb⁻¹ Σ_ba (Roysdon 1.5). Book:
    [conditioning](#eq-gaussian-conditioning). ``mean`` is ``(d,)``, ``cov`` ``(d, d)``, ``value`` ``(len(observed),)``.
    """
    b = torch.tensor(observed)
    a = torch.tensor([i for i in range(len(mean)) if i not in set(observed)])
    gain = torch.linalg.solve(cov[b][:, b], cov[b][:, a]).mT
    mean_given_b = mean[a] + gain @ (value - mean[b])
    return mean_given_b, cov[a][:, a] - gain @ cov[b][:, a]


def expected_quadratic_form(
    mean: Tensor, cov: Tensor, u: Tensor, A: Tensor
) -> Tensor:
    """E[(X − u)ᵀ A (X − u)] = (μ − u)ᵀ A (μ − u) + tr(A Σ). Source: Vilhes (9). Book: [](#eq-quadratic-form)."""
    return (mean - u) @ A @ (mean - u) + torch.trace(A @ cov)
