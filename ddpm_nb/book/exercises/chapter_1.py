"""Chapter 1: fusing measurements, the Gaussian nearest to a mixture, KL from log variances, the price of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise, NotYet
from ddpm_nb.book.exercises.compare import Slip, call, compare
from ddpm_nb.book.exercises.tensors import f64, normal

# 1.1: n independent measurements of one number


def _fused(values: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares: the unknown that minimizes the weighted squared residuals, and the inverse Hessian."""
    scale = variances.rsqrt()
    rows, right = scale[:, None], (values * scale)[:, None]
    solution = torch.linalg.lstsq(rows, right).solution
    return solution[0, 0], 1 / torch.linalg.vector_norm(scale).square()


def _weighted(power: float) -> Callable[[Tensor, Tensor], Tensor]:
    def mean(values: Tensor, variances: Tensor) -> Tensor:
        weights = variances**power
        return (weights * values).sum() / weights.sum()

    return mean


def _exercise_1_1(answer: Any) -> None:
    cases = [
        {"values": f64([1.0, 3.0]), "variances": f64([1.0, 0.25])},
        {"values": f64([2.5]), "variances": f64([0.3])},
        {"values": f64([-1.0, 0.5, 4.0]), "variances": f64([2.0, 2.0, 2.0])},
        {"values": normal(20, seed=0), "variances": normal(20, seed=1).exp()},
        {"values": f64([0.0, 1.0]), "variances": f64([1e-8, 1e4])},
    ]
    slips = [
        Slip(
            lambda values, variances: values.mean(),
            "You gave every measurement the same weight; a precise one deserves more.",
        ),
        Slip(
            _weighted(-0.5),
            "You weighted by the inverse standard deviation; a precision is the inverse of something else.",
        ),
        Slip(
            _weighted(1),
            "Your weights grow with the variance: the worst measurement has the most to say.",
        ),
        Slip(
            lambda values, variances: (values / variances).sum(),
            "Your weights do not add up to one.",
        ),
        Slip(
            lambda values, variances: variances.sum(),
            "Variances add for a sum of variables. Here densities are multiplied: each measurement narrows the law.",
            output=1,
        ),
        Slip(
            lambda values, variances: variances.mean() / len(variances),
            "That is the variance of the plain average, not of the weighted one.",
            output=1,
        ),
        Slip(
            lambda values, variances: variances.reciprocal().sum(),
            "That is the precision; the variance was asked for.",
            output=1,
        ),
        Slip(
            lambda values, variances: 1 / variances.reciprocal().mean(),
            "You averaged the precisions, so a second measurement of the same quality would teach nothing.",
            output=1,
        ),
        Slip(
            lambda values, variances: variances.reciprocal().sum().rsqrt(),
            "That is the standard deviation; the variance was asked for.",
            output=1,
        ),
    ]
    compare(answer, _fused, cases, slips, outputs=("the mean", "the variance"))


# 1.2: the Gaussian nearest to a mixture, in the direction KL(mixture ‖ Gaussian)


def _moments(
    weights: Tensor, means: Tensor, variances: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the mixture by Gauss-Hermite cubature in every part, exact for polynomials."""
    nodes = math.sqrt(3) * f64([-1.0, 0.0, 1.0])
    share = weights[:, None] * f64([1 / 6, 2 / 3, 1 / 6])
    x = means[:, None] + variances.sqrt()[:, None] * nodes
    mean = (share * x).sum()
    return mean, (share * (x - mean).square()).sum()


def _exercise_1_2(answer: Any) -> None:
    cases = [
        {
            "weights": f64([0.5, 0.5]),
            "means": f64([-2.0, 2.0]),
            "variances": f64([0.25, 0.25]),
        },
        {
            "weights": f64([0.3, 0.7]),
            "means": f64([0.0, 1.0]),
            "variances": f64([1.0, 0.1]),
        },
        {"weights": f64([1.0]), "means": f64([0.4]), "variances": f64([0.6])},
        {
            "weights": f64([0.2, 0.5, 0.3]),
            "means": f64([-1.0, 0.5, 3.0]),
            "variances": f64([0.0, 0.0, 0.0]),
        },
        {
            "weights": normal(8, seed=2).softmax(0),
            "means": normal(8, seed=3),
            "variances": normal(8, seed=4).exp(),
        },
    ]
    slips = [
        Slip(
            lambda weights, means, variances: means.mean(),
            "You left out the weights: the parts do not all hold the same mass.",
        ),
        Slip(
            lambda weights, means, variances: means[weights.argmax()],
            "That is one part only, which is what the other direction of the divergence tends to choose.",
        ),
        Slip(
            lambda weights, means, variances: (weights * variances).sum(),
            "You averaged the variances of the parts; that the parts sit in different places spreads the law as well.",
            output=1,
        ),
        Slip(
            lambda weights, means, variances: (
                weights * (means - (weights * means).sum()) ** 2
            ).sum(),
            "You have the spread of the centres; each part is itself spread around its centre.",
            output=1,
        ),
        Slip(
            lambda weights, means, variances: (
                weights * (variances + means**2)
            ).sum(),
            "That is the second moment about 0; the variance is measured from the mean.",
            output=1,
        ),
        Slip(
            lambda weights, means, variances: (weights**2 * variances).sum(),
            "That is the variance of a weighted sum of independent variables; a draw from a mixture is from one part.",
            output=1,
        ),
        Slip(
            lambda weights, means, variances: (
                (weights * variances.sqrt()).sum() ** 2
            ),
            "Standard deviations do not average: work with squares.",
            output=1,
        ),
    ]
    compare(
        answer, _moments, cases, slips, outputs=("the mean", "the variance")
    )


# 1.3: KL from log variances


def _kl_log_var(
    mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor
) -> Tensor:
    """½ (e^δ − 1 − δ) and the squared distance; the first by its series where it would lose digits."""
    delta = (log_var_1 - log_var_2).item()
    series = sum(delta**k / math.factorial(k) for k in range(2, 30))
    excess = series if abs(delta) < 0.5 else math.exp(delta) - 1 - delta
    return 0.5 * (excess + (mean_1 - mean_2) ** 2 * (-log_var_2).exp())


def _slip_1_3(
    change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], message: str
) -> Slip:
    return Slip(
        lambda mean_1, log_var_1, mean_2, log_var_2: change(
            mean_1, log_var_1, mean_2, log_var_2
        ),
        message,
    )


def _exercise_1_3(answer: Any) -> None:
    def case(
        mean_1: float, log_var_1: float, mean_2: float, log_var_2: float
    ) -> dict[str, Tensor]:
        values = {
            "mean_1": mean_1,
            "log_var_1": log_var_1,
            "mean_2": mean_2,
            "log_var_2": log_var_2,
        }
        return {name: f64(value) for name, value in values.items()}

    cases = [
        case(0.5, 0.0, -1.0, 0.7),
        case(0.0, -3.0, 0.0, 1.0),
        case(2.0, 1.5, 2.0, -0.5),
        case(1.0, -8.0, 0.9, -8.2),
        case(0.3, 0.4, 0.3, 0.4),
    ]
    slips = [
        _slip_1_3(
            lambda a, u, b, w: _kl_log_var(b, w, a, u),
            "That is the divergence in the other direction.",
        ),
        _slip_1_3(
            lambda a, u, b, w: (
                0.5 * ((u / w) - 1 - (u / w).log() + (a - b) ** 2 / w)
            ),
            "You used the log variance as if it were the variance: the slip that a bad name invites.",
        ),
        _slip_1_3(
            lambda a, u, b, w: _kl_log_var(a, 2 * u, b, 2 * w),
            "You used the exponential of the log variance as a standard deviation.",
        ),
        _slip_1_3(
            lambda a, u, b, w: (
                _kl_log_var(a, u, b, w)
                + 0.5 * (a - b) ** 2 * ((-u).exp() - (-w).exp())
            ),
            "The distance of the means is measured in units of the wrong law: the mean is taken under the first.",
        ),
        _slip_1_3(
            lambda a, u, b, w: 2 * _kl_log_var(a, u, b, w),
            "A factor ½ is missing.",
        ),
        _slip_1_3(
            lambda a, u, b, w: _kl_log_var(a, u, b, w) + (u - w),
            "The sign of the difference of log variances is the wrong one.",
        ),
        _slip_1_3(
            lambda a, u, b, w: _kl_log_var(a, u, b, w) + 0.5,
            "The divergence of a law from itself is not 0: a constant is missing.",
        ),
    ]
    compare(answer, _kl_log_var, cases, slips, floor=1e-15)

    close = case(0.0, 1e-6, 0.0, 0.0)
    (found,), expected = call(answer, close), _kl_log_var(**close).item()
    if not abs(found / expected - 1) < 1e-6:  # in this form also for nan
        raise NotYet(
            f"Right for laws that differ. For log variances 1e-6 apart, a divergence of {expected:.0e} nats, yours is "
            f"off by a relative {abs(found / expected - 1):.0e}: somewhere 1 is subtracted from a number near 1. "
            "Mathematical libraries have a function that avoids it."
        )
    narrow = case(0.0, -800.0, 0.0, 0.0)
    (found,), expected = call(answer, narrow), _kl_log_var(**narrow).item()
    if not abs(found / expected - 1) < 1e-9:
        raise NotYet(
            f"Right for ordinary laws. For log variances of -800 and 0 the divergence is an ordinary number, yours is "
            f"{found:.3g}: exp(-800) is below the smallest float64, so its logarithm is lost. Do you have to take it?"
        )


# 1.4: how many draws a sampled KL needs


def _draws_needed(
    mean_1: Tensor, mean_2: Tensor, var: Tensor, relative: Tensor
) -> Tensor:
    """(sd of the log ratio / (relative · KL))², both moments by Gauss-Hermite cubature along the line of the means."""
    nodes = f64([-math.sqrt(3), 0.0, math.sqrt(3)])
    weights = f64([1 / 6, 2 / 3, 1 / 6])
    gap = torch.linalg.vector_norm(mean_1 - mean_2)
    x = var.sqrt() * nodes
    log_ratio = ((x - gap) ** 2 - x**2) / (2 * var)
    mean = (weights * log_ratio).sum()
    return (weights * (log_ratio - mean) ** 2).sum() / (relative * mean) ** 2


def _exercise_1_4(answer: Any) -> None:
    cases = [
        {
            "mean_1": f64([1.0]),
            "mean_2": f64([0.0]),
            "var": f64(1.0),
            "relative": f64(0.01),
        },
        {
            "mean_1": f64([0.3]),
            "mean_2": f64([0.31]),
            "var": f64(0.5),
            "relative": f64(0.1),
        },
        {
            "mean_1": normal(5, seed=5),
            "mean_2": normal(5, seed=6),
            "var": f64(2.0),
            "relative": f64(0.05),
        },
        {
            "mean_1": normal(64, seed=7),
            "mean_2": normal(64, seed=8),
            "var": f64(0.01),
            "relative": f64(0.5),
        },
    ]

    def scaled(power: float, factor: float = 1.0) -> Callable[..., Tensor]:
        """The wrong counts are right ones times a power of the distance or of the tolerance."""

        def wrong(
            mean_1: Tensor, mean_2: Tensor, var: Tensor, relative: Tensor
        ) -> Tensor:
            distance = (mean_1 - mean_2).square().sum() / var
            right = _draws_needed(mean_1, mean_2, var, relative)
            return factor * right * distance**power

        return wrong

    slips = [
        Slip(
            lambda mean_1, mean_2, var, relative: _draws_needed(
                mean_1, mean_2, var, relative
            ).sqrt(),
            "The square is missing: ten times the accuracy takes a hundred times the draws.",
        ),
        Slip(
            lambda mean_1, mean_2, var, relative: (
                _draws_needed(mean_1, mean_2, var, relative) * relative
            ),
            "The standard error falls with the square root of the number of draws: the tolerance enters squared.",
        ),
        Slip(
            scaled(2, 0.25),
            "That is the count for an absolute error; the tolerance is relative to the divergence itself.",
        ),
        Slip(
            lambda mean_1, mean_2, var, relative: _draws_needed(
                mean_1, mean_2, var**2, relative
            ),
            "You used the variance as a standard deviation.",
        ),
        Slip(
            scaled(0, 0.5),
            "You took the variance of the log ratio to be its mean; it is not.",
        ),
        Slip(
            scaled(0, 0.25),
            "Check the ½ of the divergence: you divide by the squared distance without it.",
        ),
        Slip(
            scaled(1),
            "The standard deviation of the log ratio grows with the distance, not with its square.",
        ),
        Slip(
            lambda mean_1, mean_2, var, relative: (
                _draws_needed(mean_1, mean_2, var, relative)
                * (mean_1 - mean_2).square().sum()
                / (mean_1 - mean_2).sum() ** 2
            ),
            "In several coordinates the squares of the differences add up, not the differences.",
        ),
    ]
    compare(
        answer, _draws_needed, cases, slips, outputs=("the number of draws",)
    )


EXERCISES: dict[str, Exercise] = {
    "1.1": _exercise_1_1,
    "1.2": _exercise_1_2,
    "1.3": _exercise_1_3,
    "1.4": _exercise_1_4,
}
