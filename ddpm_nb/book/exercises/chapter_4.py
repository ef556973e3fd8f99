"""Chapter 4: the weight of any target, which steps to draw, the floor of correlated data, bits of scaled levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64, normal
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule

# 4.1: the bound's weight on the error of any target, for a stride from t to s


def _target_weight(
    alpha_bar_s: Tensor, alpha_bar_t: Tensor, a: Tensor, b: Tensor
) -> Tensor:
    """The divergence itself, at x_t = 0, for a target that is 0 and an answer that is 1."""
    log_1 = alpha_bar_s.new_zeros(())
    table = torch.stack([log_1, alpha_bar_s.log(), alpha_bar_t.log()])
    q = GaussianDiffusion(NoiseSchedule(table))
    signal, noise = alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt()
    system = torch.stack([signal, noise, a, b]).reshape(2, 2)
    x_0_hat, _ = torch.linalg.solve(system, f64([0.0, 1.0]))
    zero = f64([[0.0]])
    right, wrong = (
        q.posterior(x_0, zero, 1, 2) for x_0 in (zero, x_0_hat.reshape(1, 1))
    )
    return right.kl(Gaussian(wrong.mean, right.var))[0]


def _exercise_4_1(answer: Any) -> None:
    levels = [(0.9, 0.8), (0.5, 0.48), (0.6, 0.02)]
    targets: list[Callable[[float], tuple[float, float]]] = [
        lambda t: (0.0, 1.0),
        lambda t: (1.0, 0.0),
        lambda t: (-math.sqrt(1 - t), math.sqrt(t)),
        lambda t: (0.0, -1 / math.sqrt(1 - t)),
        lambda t: (-1.0, 1.0),
    ]
    names = ("alpha_bar_s", "alpha_bar_t", "a", "b")
    cases = [
        dict(zip(names, map(f64, (s, t, *target(t)))))
        for target in targets
        for s, t in levels
    ]

    def drop(s: Tensor, t: Tensor) -> Tensor:
        return s / (1 - s) - t / (1 - t)

    def slip(
        change: Callable[[Tensor, Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        """A slip in the weight as a function of the two levels and of the determinant at t."""

        def made(
            alpha_bar_s: Tensor, alpha_bar_t: Tensor, a: Tensor, b: Tensor
        ) -> Tensor:
            det = b * alpha_bar_t.sqrt() - a * (1 - alpha_bar_t).sqrt()
            return change(alpha_bar_s, alpha_bar_t, det)

        return Slip(made, message)

    slips = [
        slip(
            lambda s, t, D: drop(s, t) / 2,
            "That is the weight on x_0. How large an error of x̂_0 does an error of the target cause?",
        ),
        slip(
            lambda s, t, D: drop(s, t) / 2 * (1 - t).sqrt() / D.abs(),
            "The loss is a squared error: what happens to the magnification when the error is squared?",
        ),
        slip(
            lambda s, t, D: drop(s, t) / 2 * D**2 / (1 - t),
            "The magnification is upside down: it takes an error of the target to an error of x̂_0, not back.",
        ),
        slip(
            lambda s, t, D: drop(s, t) * (1 - t) / D**2,
            "A factor ½ is missing.",
        ),
        slip(
            lambda s, t, D: drop(s, t) / 2 * t / D**2,
            "That is how an error reaches ε̂. The drop of the signal-to-noise ratio is the weight on the clean state.",
        ),
        slip(
            lambda s, t, D: drop(t, s) / 2 * (1 - t) / D**2,
            "A weight below zero would reward errors: which of the two signal-to-noise ratios is the larger?",
        ),
        slip(
            lambda s, t, D: (
                ((s / (1 - s)).sqrt() - (t / (1 - t)).sqrt())
                / 2
                * (1 - t)
                / D**2
            ),
            "A signal-to-noise ratio is a ratio of powers, not of amplitudes.",
        ),
        slip(
            lambda s, t, D: drop(s, t) / 2 * (1 - s) / D**2,
            "The network answers at x_t: the noise that turns its error into an error of x̂_0 is that of t.",
        ),
    ]
    compare(answer, _target_weight, cases, slips, outputs=("the weight",))


# 4.2: with which probabilities to draw the one step of a training draw


def _drawn_steps(mean: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """By pairs: of two steps the optimum puts √second on each; Lagrange's identity for what is left."""
    size = second.sqrt()
    shares = torch.stack([size[i] / size.sum() for i in range(len(size))])
    cross = sum(
        (2 * size[i] * size[j] for i in range(len(size)) for j in range(i)),
        start=second.sum(),
    )
    return shares, cross - mean.sum() ** 2


def _exercise_4_2(answer: Any) -> None:
    mean = normal(12, seed=0).exp()
    cases = [
        {"mean": f64([1.0, 3.0]), "second": f64([4.0, 9.0])},
        {"mean": f64([2.0]), "second": f64([5.0])},
        {"mean": mean, "second": mean**2 * (1 + normal(12, seed=1).exp())},
        {"mean": f64([2.0, 2.0, 2.0]), "second": f64([4.0, 4.0, 4.0])},
        {"mean": f64([0.0, 1.0, 2.0]), "second": f64([0.0, 4.0, 5.0])},
    ]

    def share(weights: Tensor) -> Tensor:
        return weights / weights.sum()

    slips = [
        Slip(
            lambda mean, second: torch.full_like(mean, 1 / len(mean)),
            "That is the uniform law of the simple loss: it draws a step that contributes nothing as often as any.",
        ),
        Slip(
            lambda mean, second: share(mean),
            "Right only if each term is a constant. A term that varies deserves more draws than its mean says.",
        ),
        Slip(
            lambda mean, second: share(second),
            "Too eager: minimize Σ second/p with Σ p fixed. Its derivative in p has p squared in it.",
        ),
        Slip(
            lambda mean, second: share((second - mean**2).clamp(min=0).sqrt()),
            "You used the standard deviation of each term. A constant term needs draws too: a step that is never drawn "
            "is missing from the sum.",
        ),
        Slip(
            lambda mean, second: share(second.reciprocal()),
            "The steps that contribute most are drawn least: an inverse variance is a weight for averaging "
            "measurements of one number, not for a sum of different ones.",
        ),
        Slip(
            lambda mean, second: second.sqrt().sum() ** 2,
            "That is the mean square of the estimate; its variance was asked for.",
            output=1,
        ),
        Slip(
            lambda mean, second: len(mean) * second.sum() - mean.sum() ** 2,
            "That is the variance for uniform draws.",
            output=1,
        ),
        Slip(
            lambda mean, second: (second - mean**2).sum(),
            "That is the variance if every step is computed. Here one is drawn, which adds noise of its own.",
            output=1,
        ),
        Slip(
            lambda mean, second: second.sqrt().sum() ** 2 - mean.square().sum(),
            "The mean of the estimate is the sum of the means; you subtracted the sum of their squares.",
            output=1,
        ),
        Slip(
            lambda mean, second: (
                (second.sqrt().sum() ** 2 - mean.sum() ** 2).clamp(min=0).sqrt()
            ),
            "That is the standard deviation; the variance was asked for.",
            output=1,
        ),
        Slip(
            lambda mean, second: (
                (second / share(second.sqrt())).sum() - mean.sum() ** 2
            ),
            "Right where all steps contribute. One that is always zero is never drawn: 0/0. Simplify before computing.",
            output=1,
        ),
    ]
    compare(
        answer,
        _drawn_steps,
        cases,
        slips,
        outputs=("the probability", "the variance"),
    )


# 4.3: the floor of the simple loss for Gaussian data with correlated coordinates


def _gaussian_floor(cov: Tensor, alpha_bar: Tensor) -> Tensor:
    """One dimension for each principal axis."""
    along = torch.linalg.eigvalsh(cov).clamp(min=0)
    return (alpha_bar * along / (alpha_bar * along + 1 - alpha_bar)).sum()


def _exercise_4_3(answer: Any) -> None:
    root = normal(6, 6, seed=2)
    thin = normal(5, 2, seed=3)
    cases = [
        {"cov": cov, "alpha_bar": f64(alpha_bar)}
        for cov in (
            f64([[1.0, 0.9], [0.9, 1.0]]),
            f64([[0.3]]),
            root @ root.mT,
            thin @ thin.mT,
            torch.zeros(3, 3),
        )
        for alpha_bar in (0.999, 0.6, 0.01)
    ]
    cases = [
        {"cov": case["cov"].double(), "alpha_bar": case["alpha_bar"]}
        for case in cases
    ]

    def floor(cov: Tensor, alpha_bar: Tensor) -> Tensor:
        return _gaussian_floor(cov, alpha_bar)

    slips = [
        Slip(
            lambda cov, alpha_bar: floor(torch.diag(cov.diagonal()), alpha_bar),
            "You took the coordinates as independent. A neighbour that is correlated tells something about the noise.",
        ),
        Slip(
            lambda cov, alpha_bar: floor(
                torch.eye(len(cov)).double() * cov.diagonal().mean(), alpha_bar
            ),
            "You put the average variance everywhere; the floor is not linear in the variances.",
        ),
        Slip(
            lambda cov, alpha_bar: (
                floor(cov, alpha_bar) * (1 - alpha_bar) / alpha_bar
            ),
            "That is the smallest error of x̂_0; the loss on the noise was asked for.",
        ),
        Slip(
            lambda cov, alpha_bar: len(cov) - floor(cov, alpha_bar),
            "That is the part of the noise that can be known; the floor is the part that cannot.",
        ),
        Slip(
            lambda cov, alpha_bar: floor(cov, alpha_bar) / len(cov),
            "That is the floor per coordinate; the loss is summed over the coordinates.",
        ),
        Slip(
            lambda cov, alpha_bar: (
                len(cov)
                - torch.linalg.inv(
                    alpha_bar * cov
                    + (1 - alpha_bar) * torch.eye(len(cov)).double()
                ).trace()
            ),
            "The size of the score is not that of the noise: a power of the noise level lies between them.",
        ),
        Slip(
            lambda cov, alpha_bar: f64(float(len(cov))),
            "That is its limit for data with a density and little noise.",
        ),
        Slip(
            lambda cov, alpha_bar: floor(cov @ cov, alpha_bar),
            "You squared the principal variances: a covariance has variances on its axes, not standard deviations.",
        ),
        Slip(
            lambda cov, alpha_bar: (
                alpha_bar * cov / (alpha_bar * cov + 1 - alpha_bar)
            ).sum(),
            "You divided entry by entry; the quotient of two matrices is a product with an inverse.",
        ),
    ]
    compare(
        answer,
        _gaussian_floor,
        cases,
        slips,
        outputs=("the floor",),
        floor=1e-11,
    )


# 4.4: from the log density of scaled, dequantized images to bits per dimension


def _level_bits(
    log_density: Tensor, d: int, levels: int, low: float, high: float
) -> Tensor:
    """What no model costs, less what the model gains over the flat density."""
    gain = log_density + d * math.log(high - low)
    return math.log2(levels) - gain / (d * math.log(2))


def _exercise_4_4(answer: Any) -> None:
    cases = [
        {
            "log_density": f64(9000.0),
            "d": 3072,
            "levels": 256,
            "low": -1.0,
            "high": 1.0,
        },
        {
            "log_density": f64(9000.0),
            "d": 3072,
            "levels": 256,
            "low": 0.0,
            "high": 1.0,
        },
        {
            "log_density": f64(-20.0),
            "d": 64,
            "levels": 17,
            "low": -1.0,
            "high": 1.0,
        },
        {"log_density": f64(0.0), "d": 1, "levels": 2, "low": 0.0, "high": 1.0},
        {
            "log_density": f64(-3.0),
            "d": 5,
            "levels": 256,
            "low": 0.0,
            "high": 256.0,
        },
        {
            "log_density": f64(1.0),
            "d": 2,
            "levels": 4,
            "low": -0.5,
            "high": 3.0,
        },
    ]

    def slip(offset: Callable[[int, int, float], float], message: str) -> Slip:
        """A slip in the constant, as a function of d, the number of levels and the width of the range."""

        def made(
            log_density: Tensor, d: int, levels: int, low: float, high: float
        ) -> Tensor:
            constant = offset(d, levels, high - low)
            return -log_density / (d * math.log(2)) + constant

        return Slip(made, message)

    slips = [
        slip(
            lambda d, n, w: 0.0,
            "That is minus the log density in bits per coordinate. It depends on the scale of the pixels, which the "
            "probability of a level does not.",
        ),
        slip(
            lambda d, n, w: math.log2(w / n),
            "The sign of the constant is the other one: a level collects density times the width of its cell.",
        ),
        slip(
            lambda d, n, w: math.log2((n - 1) / w),
            "The cells are narrower: n levels with noise from 0 to 1 fill the range with n cells.",
        ),
        slip(
            lambda d, n, w: math.log2(n / w) / d,
            "The volume of a cell in d dimensions is a power: every coordinate pays for its own width.",
        ),
        slip(lambda d, n, w: math.log(n / w), "The constant is in nats."),
        slip(
            lambda d, n, w: 7.0,
            "Seven is right for 256 levels between -1 and 1 only.",
        ),
        slip(
            lambda d, n, w: math.log2(n),
            "You left out the range: the cells are 1/n of its width, not 1/n.",
        ),
        Slip(
            lambda log_density, d, levels, low, high: (
                log_density / (d * math.log(2))
                + math.log2(levels / (high - low))
            ),
            "A higher density is a shorter code.",
        ),
        Slip(
            lambda log_density, d, levels, low, high: (
                -log_density / d + math.log2(levels / (high - low))
            ),
            "The log density is in nats.",
        ),
    ]
    compare(
        answer,
        _level_bits,
        cases,
        slips,
        outputs=("the number of bits",),
    )


EXERCISES: dict[str, Exercise] = {
    "4.1": _exercise_4_1,
    "4.2": _exercise_4_2,
    "4.3": _exercise_4_3,
    "4.4": _exercise_4_4,
}
