"""Chapter 5: the noise level of another SDE and its score, how far a step goes, what a path remembers, probes.

Answers are called by position, so readers may name the arguments as they like.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise, NotYet
from ddpm_nb.book.exercises.compare import Slip, call, compare
from ddpm_nb.book.exercises.tensors import f64
from ddpm_nb.exact import GaussianMixture

# 5.1: the noise level of the variance-exploding form, and its derivative


def _noise_level(rate: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative by automatic differentiation in u, along which log ᾱ falls at the given rate."""
    u = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        level = torch.expm1(rate * u - log_alpha_bar).sqrt()
        (slope,) = torch.autograd.grad(level, u)
    return level.detach(), slope


def _exercise_5_1(answer: Any) -> None:
    outputs = ("σ", "its derivative")
    cases = [
        {"rate": f64(rate), "log_alpha_bar": f64(value)}
        for rate, value in (
            (5.0, -0.7),
            (20.0, -10.05),
            (0.1, -0.001),
            (999.0, -20.0),
        )
    ]

    def slip(
        change: Callable[[Tensor, Tensor], Tensor],
        message: str,
        output: int = 0,
    ) -> Slip:
        """A slip as a function of the rate and ᾱ."""
        return Slip(
            lambda rate, log_alpha_bar: change(rate, log_alpha_bar.exp()),
            message,
            output,
        )

    slips = [
        slip(
            lambda r, a: (1 - a).sqrt(),
            "That is the noise of X. It is divided by √ᾱ along with X.",
        ),
        slip(
            lambda r, a: (1 - a) / a,
            "That is the variance; σ is a standard deviation.",
        ),
        slip(
            lambda r, a: (a / (1 - a)).sqrt(),
            "Upside down: σ is small where the signal is strong.",
        ),
        slip(
            lambda r, a: a.rsqrt(),
            "At u = 0 there is no noise, so σ must start at 0.",
        ),
        slip(
            lambda r, a: r / a / (1 / a - 1).sqrt(),
            "The factor of two of the published code: differentiate σ² by the chain rule.",
            output=1,
        ),
        slip(
            lambda r, a: r / a / (1 / a - 1).sqrt() / 4,
            "A factor of two is missing in the other direction: differentiate σ² by the chain rule.",
            output=1,
        ),
        slip(
            lambda r, a: r / a,
            "That is the derivative of σ², not of σ.",
            output=1,
        ),
        slip(
            lambda r, a: (r / a).sqrt(),
            "That is the diffusion of X/√ᾱ, the root of the derivative of σ². It is not the derivative of σ.",
            output=1,
        ),
        slip(
            lambda r, a: r / 2 / (1 / a - 1).sqrt(),
            "The derivative of 1/ᾱ is not the rate alone: ᾱ is in it.",
            output=1,
        ),
        slip(
            lambda r, a: r * a / 2 / (1 - a).sqrt(),
            "That is the derivative of √(1 − ᾱ), the noise of X.",
            output=1,
        ),
        slip(
            lambda r, a: -r / a / (1 / a - 1).sqrt() / 2,
            "The noise rises with u: log ᾱ has the derivative minus the rate.",
            output=1,
        ),
    ]
    compare(answer, _noise_level, cases, slips, outputs=outputs)

    early: dict[str, Any] = {"rate": f64(0.1), "log_alpha_bar": f64(-1e-12)}
    for found, expected, name in zip(
        call(answer, early, outputs),
        call(_noise_level, early, outputs),
        outputs,
    ):
        error = abs(found.item() / expected.item() - 1)
        if not error < 1e-9:  # in this form also for nan
            raise NotYet(
                f"Right in the middle of time. Shortly after u = 0, at log ᾱ = -1e-12, {name} is off by a relative "
                f"{error:.0e}: somewhere 1 is subtracted from a number near 1. There is a function that avoids it."
            )


# 5.2: the score of the variance-exploding form from that of the variance-preserving one


def _mixture_score(
    data: GaussianMixture, x: Tensor, signal: float, noise_var: float
) -> Tensor:
    """∇ log of the density of signal · X_0 + √noise_var · z, by automatic differentiation."""
    variances = signal**2 * data.variances + noise_var
    law = GaussianMixture(data.weights, signal * data.means, variances)
    with torch.enable_grad():
        at = x.detach().double().requires_grad_()
        (slope,) = torch.autograd.grad(law.log_prob(at).sum(), at)
    return slope


@dataclass(frozen=True, eq=False)
class _Score:
    """(x, ᾱ) ↦ ∇ log q(x), the score of the variance-preserving process for the data of a mixture."""

    data: GaussianMixture

    def __call__(self, x: Tensor, alpha_bar: Tensor | float) -> Tensor:
        level = float(alpha_bar)
        if not 0 < level <= 1:
            raise NotYet(
                f"The score was asked for at alpha_bar = {level:.3g}: expected a number in (0, 1]. What is σ²?"
            )
        return _mixture_score(self.data, x, math.sqrt(level), 1 - level)

    def __str__(self) -> str:
        return f"the score for {len(self.data.weights)} parts"


def _exploding_score(score: _Score, x_tilde: Tensor, sigma: Tensor) -> Tensor:
    return _mixture_score(score.data, x_tilde, 1.0, sigma.item() ** 2)


def _exercise_5_2(answer: Any) -> None:
    one = _Score(GaussianMixture(f64([1.0]), f64([[0.4]]), f64([0.3])))
    two = _Score(
        GaussianMixture(
            f64([0.35, 0.65]), f64([[-1.0], [0.8]]), f64([0.04, 0.09])
        )
    )
    plane = _Score(
        GaussianMixture(
            f64([0.5, 0.5]),
            f64([[1.0, 0.0], [0.0, -1.0]]),
            f64([[0.2, 0.1], [0.3, 1.0]]),
        )
    )
    line = f64([[-2.0], [-0.3], [0.0], [0.7], [5.0]])
    points = f64([[0.1, 0.2], [-3.0, 4.0]])
    cases = [
        {"score": score, "x_tilde": x_tilde, "sigma": f64(sigma)}
        for score, x_tilde in ((one, line), (two, line), (plane, points))
        for sigma in (0.3, 1.0, 8.0)
    ]

    def slip(
        change: Callable[[_Score, Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        """A slip as a function of the score, x̃ and ᾱ."""
        return Slip(
            lambda score, x_tilde, sigma: change(
                score, x_tilde, 1 / (1 + sigma**2)
            ),
            message,
        )

    slips = [
        slip(
            lambda score, y, a: score(a.sqrt() * y, a),
            "The point is right. But the density of x̃ is not that of x at the corresponding point, nor is its slope: "
            "by how much does x move when x̃ moves?",
        ),
        slip(
            lambda score, y, a: score(a.sqrt() * y, a) / a.sqrt(),
            "The factor is the wrong way round: x̃ is spread wider than x, so the slope of its log density is smaller.",
        ),
        slip(
            lambda score, y, a: a.sqrt() * score(y, a),
            "The network's score has to be asked at x, which is not x̃.",
        ),
        slip(
            lambda score, y, a: score(y, a),
            "x and x̃ are different variables: which x belongs to this x̃?",
        ),
        slip(
            lambda score, y, a: a.sqrt() * score(y / a.sqrt(), a),
            "x̃ = x/√ᾱ: the x that belongs to x̃ is smaller than x̃, not larger.",
        ),
        slip(
            lambda score, y, a: a * score(a.sqrt() * y, a),
            "The chain rule gives the factor dx/dx̃ once. (A second derivative would have it squared.)",
        ),
        Slip(
            lambda score, x_tilde, sigma: (
                (1 + sigma**2) ** -0.25
                * score(
                    (1 + sigma**2) ** -0.25 * x_tilde, (1 + sigma**2) ** -0.5
                )
            ),
            "You took √ᾱ for ᾱ: σ² = (1 − ᾱ)/ᾱ is a ratio of variances.",
        ),
        Slip(
            lambda score, x_tilde, sigma: (
                (1 + sigma) ** -0.5
                * score((1 + sigma) ** -0.5 * x_tilde, 1 / (1 + sigma))
            ),
            "σ is a standard deviation: the ratio of noise to signal in ᾱ is one of variances.",
        ),
    ]
    compare(
        answer,
        _exploding_score,
        cases,
        slips,
        outputs=("the score",),
    )


# 5.3: the variance at which Euler–Maruyama settles


def _settled_variance(b: Tensor, noise: Tensor) -> Tensor:
    """Repeat v ↦ shrink² v + noise² b, from v = 1, two to the 60 times, by doubling."""
    power = noise.item() ** 2
    scale, shift = (1 - power * b.item() / 2) ** 2, power * b.item()
    for _ in range(60):
        if scale >= 1 and shift > 0:
            return f64(math.inf)
        scale, shift = scale**2, shift + scale * shift
    return f64(scale + shift)


def _exercise_5_3(answer: Any) -> None:
    cases = [
        {"b": f64(b), "noise": f64(noise)}
        for b, noise in (
            (0.01, 1.0),
            (0.5, 1.0),
            (3.0, 1.0),
            (0.5, 2.0),
            (8.0, 0.5),
            (0.3, 0.0),
            (2.0, 0.7),
        )
    ]

    def fixed(shrink: Tensor, added: Tensor) -> Tensor:
        return added / (1 - shrink**2)

    slips = [
        Slip(
            lambda b, noise: torch.ones_like(b),
            "That is what the equation keeps. The scheme does not: square its factor, without leaving a term out.",
        ),
        Slip(
            lambda b, noise: 1 / (1 - b / 4),
            "Right for the factor 1. Drift and noise both depend on it.",
        ),
        Slip(
            lambda b, noise: 1 / (1 - noise * b / 4),
            "The noise enters as noise·g: its variance has the factor squared.",
        ),
        Slip(
            lambda b, noise: 1 + noise**2 * b / 4,
            "Right to first order in b. Solve for the variance that a step leaves unchanged.",
        ),
        Slip(
            lambda b, noise: 1 / (1 + noise**2 * b / 4),
            "The variance is too large, not too small: check the sign of the square's last term.",
        ),
        Slip(
            lambda b, noise: 1 / (1 - noise**2 * b / 2),
            "A square (1 - c)² has the last term c², with c a half of something.",
        ),
        Slip(
            lambda b, noise: fixed(1 - (1 + noise**2) * b / 2, noise**2 * b),
            "You left the drift f out: it pulls outwards when time runs backwards.",
        ),
        Slip(
            lambda b, noise: fixed(1 - (2 + noise**2) * b / 2, noise**2 * b),
            "The drift f has the sign of rising time: backwards, it pulls outwards.",
        ),
        Slip(
            lambda b, noise: (1 - noise**2 * b / 4).rsqrt(),
            "That is the standard deviation; the variance was asked for.",
        ),
        Slip(
            lambda b, noise: fixed(1 - noise**2 * b / 2, noise**2 * b),
            "Right with noise. Without it every step leaves every variance as it is: 0/0. Simplify before computing.",
        ),
    ]
    compare(
        answer,
        _settled_variance,
        cases,
        slips,
        outputs=("the variance",),
    )
    for b, noise in ((4.0, 1.0), (5.0, 1.0), (1.5, 2.0)):
        (found,) = call(answer, {"b": f64(b), "noise": f64(noise)})
        if found.item() != math.inf:
            raise NotYet(
                f"Right where the scheme settles. At b = {b}, noise = {noise} yours is {found.item():.3g}, but a step "
                "there multiplies x by a number of size at least 1 and adds noise: the variance grows without end. "
                "Return math.inf."
            )


# 5.4: what a path of the reverse family remembers


def _remembered(
    alpha_bar_s: Tensor, alpha_bar_u: Tensor, var: Tensor, noise: Tensor
) -> Tensor:
    """Integrate the reverse drift, linear for Gaussian data, in −log ᾱ by Gauss–Legendre quadrature."""
    nodes, weights = (
        torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(80)
    )
    early, late = -alpha_bar_s.log(), -alpha_bar_u.log()
    at = early + (late - early) * (1 + nodes) / 2

    def variance(lost: Tensor) -> Tensor:
        return 1 + (var - 1) * (-lost).exp()

    slope = 0.5 - 0.5 * (1 + noise**2) / variance(at)
    growth = (weights * slope).sum() * (late - early) / 2
    return growth.exp() * (variance(late) / variance(early)).sqrt()


def _exercise_5_4(answer: Any) -> None:
    levels = [(0.9, 0.3), (0.5, 0.02), (1.0, 0.4)]
    names = ("alpha_bar_s", "alpha_bar_u", "var", "noise")
    cases = [
        dict(zip(names, map(f64, (s, u, var, noise))))
        for s, u in levels
        for var, noise in (
            (1.0, 1.0),
            (0.3, 1.0),
            (4.0, 2.0),
            (0.3, 0.5),
            (4.0, 0.0),
        )
    ]

    def slip(
        change: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
        message: str,
    ) -> Slip:
        """A slip as a function of the forward correlation, the noise factor, ᾱ_u/ᾱ_s and the variances at s and u."""

        def made(
            alpha_bar_s: Tensor, alpha_bar_u: Tensor, var: Tensor, noise: Tensor
        ) -> Tensor:
            v_s = 1 + (var - 1) * alpha_bar_s
            v_u = 1 + (var - 1) * alpha_bar_u
            ratio = alpha_bar_u / alpha_bar_s
            return change((ratio * v_s / v_u).sqrt(), noise, ratio, v_s, v_u)

        return Slip(made, message)

    slips = [
        slip(
            lambda rho, noise, ratio, v, w: rho,
            "That is the forward process, which has the same pairs as one member only. What does a flow remember?",
        ),
        slip(
            lambda rho, noise, ratio, v, w: rho**noise,
            "The noise factor enters as a variance, g² times its square.",
        ),
        slip(
            lambda rho, noise, ratio, v, w: rho ** ((1 + noise**2) / 2),
            "Right for 0.5 (1 + noise²) alone: the drift f acts as well, and it works against the score.",
        ),
        slip(
            lambda rho, noise, ratio, v, w: rho ** (2 * noise**2),
            "A root is missing: the forward process keeps √(ᾱ_u/ᾱ_s) of the state.",
        ),
        slip(
            lambda rho, noise, ratio, v, w: ratio ** (noise**2 / 2),
            "Right for data of variance 1. The variance of the data is in the score.",
        ),
        slip(
            lambda rho, noise, ratio, v, w: rho ** (noise**2) * (v / w).sqrt(),
            "That is the factor of x_u in the mean of x_s; a correlation is divided by both standard deviations.",
        ),
        slip(
            lambda rho, noise, ratio, v, w: rho ** (noise**2) * (v * w).sqrt(),
            "That is the covariance; divide by both standard deviations.",
        ),
        slip(
            lambda rho, noise, ratio, v, w: torch.ones_like(rho),
            "That is the flow, which forgets nothing. With noise, paths mix.",
        ),
    ]
    compare(
        answer,
        _remembered,
        cases,
        slips,
        outputs=("the correlation",),
    )


# 5.5: the variance of Hutchinson's estimate


def _probe_variances(J: Tensor) -> tuple[Tensor, Tensor]:
    """Signs: over all of them. Normal entries: by fourth moments, E[ζ_i ζ_j ζ_k ζ_l] J_ij J_kl − (tr J)²."""
    d = len(J)
    signs = torch.cartesian_prod(*[f64([-1.0, 1.0])] * d).reshape(-1, d)
    values = torch.einsum("ni,ij,nj->n", signs, J, signs)
    pairs = torch.eye(d, dtype=torch.float64)
    # Isserlis' theorem: a sum over the three ways to pair four entries.
    fourth = sum(
        torch.einsum(rule, pairs, pairs)
        for rule in ("ij,kl->ijkl", "ik,jl->ijkl", "il,jk->ijkl")
    )
    normal = torch.einsum("ij,kl,ijkl->", J, J, fourth) - J.trace() ** 2
    return values.var(correction=0), normal


def _exercise_5_5(answer: Any) -> None:
    outputs = ("the variance for signs", "the variance for normal entries")
    matrices = [
        [[1.5]],
        [[1.0, 0.7], [0.7, -2.0]],
        [[0.5, 2.0, -0.3], [0.1, 1.0, 0.8], [-0.6, 0.2, 3.0]],
        [
            [0.0, 1.0, 0.0, 2.0],
            [-1.0, 0.0, 0.4, 0.0],
            [0.3, 0.0, 0.0, -0.5],
            [0.0, 1.2, 0.0, 0.0],
        ],
    ]
    cases = [{"J": f64(matrix)} for matrix in matrices]

    def diagonal(J: Tensor) -> Tensor:
        return J.diagonal().square().sum()

    def both(J: Tensor) -> Tensor:
        """Σ_ij S_ij², for the symmetric part S."""
        return (J + J.mT).square().sum() / 4

    slips = [
        Slip(
            lambda J: 2 * (J.square().sum() - diagonal(J)),
            "Right for a symmetric matrix. Take the general one apart.",
        ),
        Slip(
            lambda J: 2 * both(J),
            "A sign squared is 1: what does the diagonal contribute to the variance?",
        ),
        Slip(
            lambda J: both(J) - diagonal(J),
            "A factor of two: ζ_i ζ_j occurs twice, so its weight is squared after adding, and pairs i < j count once.",
        ),
        Slip(
            lambda J: 4 * (both(J) - diagonal(J)),
            "A factor of two: the sum over all i and j counts every pair twice.",
        ),
        Slip(
            lambda J: (2 * (both(J) - diagonal(J))).sqrt(),
            "That is the standard deviation.",
        ),
        Slip(
            lambda J: 2 * J.square().sum(),
            "Right for a symmetric matrix. Take the general one apart.",
            output=1,
        ),
        Slip(
            lambda J: both(J),
            "The square of a standard normal number has variance 2.",
            output=1,
        ),
        Slip(
            lambda J: 2 * (both(J) - diagonal(J)),
            "That is the variance for signs: normal numbers have random squares too.",
            output=1,
        ),
        Slip(
            lambda J: 3 * both(J),
            "3 is the fourth moment of a normal number. Its square has the variance 3 - 1.",
            output=1,
        ),
    ]
    compare(answer, _probe_variances, cases, slips, outputs=outputs)


EXERCISES: dict[str, Exercise] = {
    "5.1": _exercise_5_1,
    "5.2": _exercise_5_2,
    "5.3": _exercise_5_3,
    "5.4": _exercise_5_4,
    "5.5": _exercise_5_5,
}
