"""The exact world: laws of data for which every quantity of the book is known in closed form.

Noise turns a mixture of Gaussians into a mixture of Gaussians. So its marginals, scores and denoisers need no
network, and whatever the book claims can be asserted on it: on the line and in the plane by mixtures with few parts, in
many dimensions by one Gaussian with correlated coordinates, and for a finite set of data by one atom for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian, observe
from ddpm_nb.precision import widened, widest
from ddpm_nb.schedule import Time, added_var, coefficient

__all__ = [
    "BestDenoiser",
    "CorrelatedGaussian",
    "GaussianMixture",
    "empirical",
    "expectation",
    "hermite",
]


class _Known(Protocol):
    """A law of data whose denoiser is known in closed form."""

    def posterior_mean(
        self, q: GaussianDiffusion, x_t: Tensor, t: Time
    ) -> Tensor:
        """E[x_0 | x_t], of the shape of ``x_t``."""


@dataclass(frozen=True, eq=False)
class BestDenoiser:
    """The best denoiser there is, (x_t, t) ↦ E[x_0 | x_t], for data of a known law. Book: [](#eq-mixture-denoiser).

    Parameters
    ----------
    law : of the data
    q : the forward process
    """

    law: _Known
    q: GaussianDiffusion

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return E[x_0 | x_t], of the shape of ``x_t``."""
        return self.law.posterior_mean(self.q, x_t, t)


class _Movable:
    """A law whose fields are tensors, and which can be had on any device."""

    @cached_property
    def _copies(self) -> dict[torch.device, Self]:
        return {}

    def to(self, device: torch.device) -> Self:
        """Return the law on a device; it is copied there once."""
        parts = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        if parts[0].device == device:
            return self
        if device not in self._copies:
            self._copies[device] = type(self)(
                *(part.to(device, widest(device)) for part in parts)
            )
        return self._copies[device]


@dataclass(frozen=True, eq=False)
class GaussianMixture(_Movable):
    """Σ_k weights[k] N(means[k], variances[k] I). Book: [the mixture](#eq-mixture).

    Data are ``(batch, *event)`` with d numbers in the event. The arithmetic is float64, results have the data's dtype.

    Parameters
    ----------
    weights : Tensor ``(k,)``, positive; normalized here
    means : Tensor ``(k, d)``
    variances : Tensor ``(k,)`` for isotropic parts, or ``(k, d)`` for independent coordinates; at least 0, where 0
        is an atom, which has no density before it is diffused

    Raises
    ------
    ValueError
        If shapes do not match, a weight is not positive or a variance negative; by what needs a density, at an atom.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        weights, means, variances = (
            widened(value)
            for value in (self.weights, self.means, self.variances)
        )
        if (
            means.ndim != 2
            or weights.shape != means.shape[:1]
            or variances.shape not in (means.shape[:1], means.shape)
        ):
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, variances {tuple(variances.shape)}: "
                "expected (k,), (k, d) and (k,) or (k, d)"
            )
        if weights.device.type == "cpu":  # a GPU would have to be waited for
            if not bool((weights > 0).all()):
                raise ValueError(
                    f"weights: expected positive numbers, the smallest is {weights.min().item()}"
                )
            if not bool((variances >= 0).all()):
                raise ValueError(
                    f"variances: expected numbers of at least 0, the smallest is {variances.min().item()}"
                )
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "variances", variances)

    def _variances(self) -> Tensor:
        """Variances with a last axis that broadcasts over coordinates."""
        if self.variances.ndim == 2:
            return self.variances
        return self.variances[:, None]

    def mean(self) -> Tensor:
        """E[X], shape ``(d,)``, float64."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Cov[X] = E[Cov within] + Cov of the means, shape ``(d, d)``, float64."""
        weights, centred = self.weights[:, None], self.means - self.mean()
        within = (weights * self._variances().expand_as(self.means)).sum(0)
        return torch.diag(within) + (weights * centred).mT @ centred

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``(n, d)`` independent samples, float64."""
        parts = torch.multinomial(
            self.weights, n, replacement=True, generator=generator
        )
        noise = torch.randn(
            n, self.means.shape[1], dtype=torch.float64, generator=generator
        )
        return self.means[parts] + self._variances().sqrt()[parts] * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, shape ``(batch,)``."""
        law = self.to(x.device)
        signal = torch.ones_like(law.means[:1, :1])
        log_joint = law._log_joint(x, signal, law._variances()[None])
        return log_joint.logsumexp(1).to(x.dtype)

    def grad_log_prob(self, x: Tensor) -> Tensor:
        """∇ log density at x ``(batch, d)``: Σ_k p(k | x) (m_k − x)/v_k. Book: [](#eq-s5-score)."""
        law = self.to(x.device)
        var = law._variances().expand_as(law.means)
        shift = law.means - x[:, None, :].to(law.means)
        surprise = (shift.square() / var + var.log()).sum(2)
        part = (law.weights.log() - 0.5 * surprise).softmax(1)
        return (part[:, :, None] * shift / var).sum(1).to(x.dtype)

    def entropy(self, nodes: int = 64) -> Tensor:
        """−E[log density] in nats, 0-d, by quadrature, for up to three coordinates. Book: [](#eq-s5-entropy)."""
        return expectation(self, lambda x: -self.log_prob(x), nodes)

    def diffused(self, q: GaussianDiffusion, t: int) -> GaussianMixture:
        """Return the law of x_t, a mixture with means √ᾱ m_k and variances ᾱ v_k + 1 − ᾱ.

        Book: [the diffused mixture](#eq-mixture-marginal).
        """
        level = q.schedule.level(t)
        means = level.signal * self.means
        variances = level.alpha_bar * self.variances + level.noise_var
        return GaussianMixture(self.weights, means, variances)

    def reverse_kernel(
        self, q: GaussianDiffusion, x_t: Tensor, s: int, t: int
    ) -> GaussianMixture:
        """Return q(x_s | x_t), s < t, exactly, for one state x_t ``(d,)``: a mixture, no Gaussian in general.

        Given part k, x_s is Gaussian and x_t observes it with noise, so each part follows Bayes' rule for Gaussians.
        Parts whose weight underflows are left out. ``ValueError`` if x_t is not a single state. Book: [the reverse
        kernel of a mixture](#eq-p3-mixture-kernel).
        """
        if x_t.shape != self.means.shape[1:]:
            raise ValueError(
                f"x_t of shape {tuple(x_t.shape)}: expected one state, "
                f"{tuple(self.means.shape[1:])}"
            )
        x_t, earlier = x_t.double(), self.diffused(q, s)
        before = Gaussian(earlier.means, earlier._variances())
        step = q.transition(before.mean, s, t)
        factor = q.schedule.level(t).signal / q.schedule.level(s).signal
        # Each part predicts x_t by a Gaussian: the better, the more it weighs.
        seen = Gaussian(step.mean, factor**2 * before.var + step.var)
        weights = (self.weights.log() + seen.log_prob(x_t)).softmax(0)
        after = observe(before, factor, step.var, x_t)
        variances = after.var.reshape(self.variances.shape)
        likely = weights > 0
        return GaussianMixture(
            weights[likely], after.mean[likely], variances[likely]
        )

    def denoiser(self, q: GaussianDiffusion) -> BestDenoiser:
        """Return the best denoiser there is, (x_t, t) ↦ E[x_0 | x_t]. Book: [](#eq-mixture-denoiser)."""
        return BestDenoiser(self, q)

    def score(self, q: GaussianDiffusion, x_t: Tensor, t: Time) -> Tensor:
        """∇ log q(x_t) = (√ᾱ E[x_0 | x_t] − x_t)/(1 − ᾱ), for t ≥ 1. Book: [Tweedie](#eq-tweedie)."""
        level, x = q.schedule.level(t), widened(x_t)
        signal = coefficient(level.signal, x)
        noise_var = coefficient(level.noise_var, x)
        score = (signal * self.posterior_mean(q, x, t) - x) / noise_var
        return score.to(x_t.dtype)

    def _log_joint(self, x: Tensor, signal: Tensor, var: Tensor) -> Tensor:
        """log (weights[k] · N(x; signal means[k], var[k])), ``(batch, k)``, with ``var`` ``(batch | 1, k, d | 1)``."""
        x = x.flatten(1).to(self.means)
        d = self.means.shape[1]
        if x.shape[1] != d:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: expected (batch, {d}) like the mixture's means"
            )
        if var.device.type == "cpu" and not bool((var > 0).all()):
            raise ValueError(
                "variances: an atom has no density; diffuse the law to a step t of at least 1 first"
            )
        means, log_weights = self.means, self.weights.log()
        if var.shape[2] == 1:
            # Products of matrices keep the memory at (batch, k) where the parts
            # are isotropic: k may be the number of training images.
            var = var[:, :, 0]
            squares = (
                x.square().sum(1)[:, None]
                + signal**2 * means.square().sum(1)
                - 2 * signal * (x @ means.mT)
            ).clamp(min=0)
            surprise = squares / var + d * torch.log(2 * math.pi * var)
            return log_weights - 0.5 * surprise
        shift = x[:, None, :] - signal[:, :, None] * means
        surprise = (shift.square() / var + torch.log(2 * math.pi * var)).sum(2)
        return log_weights - 0.5 * surprise

    def posterior_mean(
        self, q: GaussianDiffusion, x_t: Tensor, t: Time
    ) -> Tensor:
        """E[x_0 | x_t], of the shape of ``x_t``. Book: [](#eq-mixture-denoiser)."""
        law = self.to(x_t.device)
        x, level = x_t.flatten(1).to(law.means), q.schedule.level(t)
        signal = _column(level.signal, x)
        noise_var = _column(level.noise_var, x)
        prior_var, means = law._variances(), law.means
        var = signal[:, :, None] ** 2 * prior_var + noise_var[:, :, None]
        # The law of k, the part that x_t came from.
        part = law._log_joint(x, signal, var).softmax(1)
        gain = signal[:, :, None] * prior_var / var
        # Given x_t and k, x_0 has the mean m_k + gain_k (x_t − √ᾱ m_k). It is
        # averaged over k, for isotropic parts by products of matrices.
        if var.shape[2] == 1:
            on_x = part * gain[:, :, 0]
            mean = (part - signal * on_x) @ means
            mean = mean + on_x.sum(1, keepdim=True) * x
        else:
            residual = x[:, None, :] - signal[:, :, None] * means
            mean = (part[:, :, None] * (means + gain * residual)).sum(1)
        return mean.reshape(x_t.shape).to(x_t.dtype)


def _column(value: float | Tensor, x: Tensor) -> Tensor:
    """``value``, one number or one for each row of ``x``, as ``(1 | batch, 1)``."""
    if torch.is_tensor(value):
        return coefficient(value, x)
    return x.new_full((1, 1), value)


def empirical(x_0: Tensor) -> GaussianMixture:
    """Return the law that draws one of the n rows of ``x_0`` ``(n, *event)``, each as likely: a mixture of n atoms.

    Its denoiser is what a network that knows its training set by heart computes. Book: [](#eq-s5-empirical).
    """
    n = len(x_0)
    return GaussianMixture(x_0.new_ones(n), x_0.flatten(1), x_0.new_zeros(n))


@dataclass(frozen=True, eq=False)
class CorrelatedGaussian(_Movable):
    """N(mean, axes diag(variances) axesᵀ): noise adds to every variance and turns no axis. Book: [](#eq-s5-correlated).

    Along its axes the law is a Gaussian with independent coordinates, so that all of the book is known in closed form
    at the cost of two products with a matrix, in hundreds of dimensions. Data are ``(batch, d)``; the arithmetic is
    float64, results have the data's dtype.

    Parameters
    ----------
    mean : Tensor ``(d,)``
    variances : Tensor ``(d,)``, positive, one for each axis
    axes : Tensor ``(d, d)``, orthonormal columns
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> CorrelatedGaussian:
        """Build the law from a covariance ``(d, d)``; ``ValueError`` if that is not symmetric positive definite."""
        mean, covariance = (
            torch.as_tensor(value, dtype=torch.float64)
            for value in (mean, covariance)
        )
        if (
            mean.ndim != 1
            or covariance.shape != 2 * mean.shape
            or not torch.allclose(covariance, covariance.mT)
        ):
            raise ValueError(
                f"mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}: expected (d,) and a symmetric (d, d)"
            )
        variances, axes = torch.linalg.eigh(covariance)
        if not bool(variances[0] > 0):
            raise ValueError(
                f"covariance: expected positive eigenvalues, the smallest is {variances[0].item():.3g}"
            )
        return cls(mean, variances, axes)

    def covariance(self) -> Tensor:
        """Shape ``(d, d)``, float64."""
        return self.axes * self.variances @ self.axes.mT

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``(n, d)`` independent samples, float64."""
        noise = torch.randn(
            n, len(self.mean), dtype=torch.float64, generator=generator
        )
        return self.mean + self.variances.sqrt() * noise @ self.axes.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, shape ``(batch,)``."""
        law = self.to(x.device)
        return law._along().log_prob(law._turned(x)).to(x.dtype)

    def grad_log_prob(self, x: Tensor) -> Tensor:
        """∇ log density = −covariance⁻¹ (x − mean), shape of x."""
        law = self.to(x.device)
        along = (law._along().mean - law._turned(x)) / law.variances
        return (along @ law.axes.mT).to(x.dtype)

    def entropy(self) -> Tensor:
        """½ Σ_i log(2πe variances_i) in nats, 0-d."""
        return self._along().entropy()[0]

    def diffused(self, q: GaussianDiffusion, t: int) -> CorrelatedGaussian:
        """Return the law of x_t, with the same axes and the variances ᾱ v_i + 1 − ᾱ."""
        level = q.schedule.level(t)
        variances = level.alpha_bar * self.variances + level.noise_var
        mean = level.signal * self.mean
        return CorrelatedGaussian(mean, variances, self.axes)

    def reverse_kernel(
        self, q: GaussianDiffusion, x_t: Tensor, s: int, t: int
    ) -> CorrelatedGaussian:
        """Return q(x_s | x_t), s < t, exactly, for one state x_t ``(d,)``: Bayes' rule along every axis."""
        before, here = q.schedule.levels(s, t)
        factor, added = here.signal / before.signal, added_var(before, here)
        prior = self.diffused(q, s)._along()
        after = observe(prior, factor, added, self._turned(x_t[None]))
        mean = self.axes @ after.mean[0]
        return CorrelatedGaussian(mean, after.var[0], self.axes)

    def denoiser(self, q: GaussianDiffusion) -> BestDenoiser:
        """Return (x_t, t) ↦ E[x_0 | x_t], which is linear in x_t."""
        return BestDenoiser(self, q)

    def posterior_mean(
        self, q: GaussianDiffusion, x_t: Tensor, t: Time
    ) -> Tensor:
        """E[x_0 | x_t], of the shape of ``x_t``."""
        law, level = self.to(x_t.device), q.schedule.level(t)
        x = law._turned(x_t)
        signal = coefficient(level.signal, x)
        noise_var = coefficient(level.noise_var, x)
        after = observe(law._along(), signal, noise_var, x)
        return (after.mean @ law.axes.mT).to(x_t.dtype)

    def score(self, q: GaussianDiffusion, x_t: Tensor, t: int) -> Tensor:
        """∇ log q(x_t), shape of x_t."""
        return self.to(x_t.device).diffused(q, t).grad_log_prob(x_t)

    def _along(self) -> Gaussian:
        """The law in the coordinates of the axes, a batch of one."""
        return Gaussian((self.mean @ self.axes)[None], self.variances[None])

    def _turned(self, x: Tensor) -> Tensor:
        """Coordinates of x ``(batch, d)`` along the axes."""
        if x.shape[1:] != self.mean.shape:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: expected (batch, {len(self.mean)}) like the law's mean"
            )
        return x.to(self.axes) @ self.axes


def expectation(
    law: GaussianMixture, f: Callable[[Tensor], Tensor], nodes: int = 64
) -> Tensor:
    """E[f(X)] for X ~ law by Gauss–Hermite quadrature in each part; f maps ``(n, d)`` to ``(n,)``.

    There are nodes^d points for each part: ``ValueError`` for more than three coordinates.
    """
    d = law.means.shape[1]
    if d > 3:
        raise ValueError(
            f"means of {d} coordinates: expected at most 3, "
            f"quadrature takes {nodes}^{d} points"
        )
    line, weights = hermite(nodes)
    z = torch.cartesian_prod(*[line] * d).reshape(-1, d)
    mass = torch.cartesian_prod(*[weights] * d).reshape(-1, d).prod(1)
    x = law.means[:, None] + law._variances().sqrt()[:, None] * z
    return law.weights @ (f(x.reshape(-1, d)).reshape(x.shape[:2]) @ mass)


def hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights with Σ weight f(node) = E[f(Z)], Z ~ N(0, 1), both ``(nodes,)`` and float64."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(z), torch.from_numpy(weights / weights.sum())
