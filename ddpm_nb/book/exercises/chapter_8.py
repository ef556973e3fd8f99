"""Chapter 8: an adjoint, several exposures, exact guidance, coverage, a weight.

Answers are called by position, so readers may name the arguments as they like.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64, normal
from ddpm_nb.inverse import FullMixture

# 8.1: the adjoint of a mean of three neighbours, every second one kept


def _three_means(m: int) -> Tensor:
    """The matrix (m, 2m), built from the definition entry by entry."""
    matrix = torch.zeros(m, 2 * m, dtype=torch.float64)
    for row in range(m):
        for column in (2 * row - 1, 2 * row, 2 * row + 1):
            matrix[row, max(column, 0)] += 1 / 3
    return matrix


def _exercise_8_1(answer: Any) -> None:
    cases = [
        {"y": y}
        for y in (
            f64([1.0, 0.0, 0.0]),
            f64([0.0, 1.0, 0.0]),
            f64([2.0]),
            normal(6, seed=0),
        )
    ]

    def changed(change: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
        def made(y: Tensor) -> Tensor:
            matrix = _three_means(len(y))
            change(matrix)
            return y @ matrix

        return made

    def no_border(matrix: Tensor) -> None:
        matrix[0, 0] = 1 / 3

    def periodic(matrix: Tensor) -> None:
        no_border(matrix)
        matrix[0, -1] += 1 / 3

    def own_only(matrix: Tensor) -> None:
        row = torch.arange(len(matrix))
        matrix[:] = 0
        matrix[row, 2 * row] = 1 / 3

    def two_only(matrix: Tensor) -> None:
        row = torch.arange(len(matrix))
        own_only(matrix)
        matrix[row, 2 * row + 1] = 1 / 3

    slips = [
        Slip(
            changed(no_border),
            "The border is missing: how often does x[0] enter y[0]?",
        ),
        Slip(
            changed(periodic),
            "You closed the signal to a ring. The operator repeats the first entry instead.",
        ),
        Slip(
            changed(own_only),
            "Each measured number depends on three entries, so it must be sent back to all three.",
        ),
        Slip(
            changed(two_only),
            "An entry between two measured numbers enters both of them.",
        ),
        Slip(
            lambda y: 3 * y @ _three_means(len(y)),
            "The weights of the mean are missing.",
        ),
        Slip(
            lambda y: torch.linalg.pinv(_three_means(len(y))) @ y,
            "That is the pseudoinverse, which undoes the operator as far as it can. The adjoint undoes nothing.",
        ),
        Slip(
            lambda y: y.repeat_interleave(2),
            "That enlarges the picture. A gradient needs the transposed matrix, with its weights.",
        ),
    ]
    compare(
        answer,
        lambda y: y @ _three_means(len(y)),
        cases,
        slips,
        outputs=("the adjoint",),
    )


# 8.2: where the reverse chain begins after several exposures


def _exposed(y: Tensor, gains: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares for the clean signal; its error is the noise of one measurement with gain 1."""
    rows, right = gains / sigmas, y / sigmas[:, None]
    estimate = torch.linalg.lstsq(rows[:, None], right).solution
    alpha_bar = 1 / (1 + 1 / torch.linalg.vector_norm(rows).square())
    return alpha_bar, alpha_bar.sqrt() * estimate[0]


def _exercise_8_2(answer: Any) -> None:
    settings = [
        ([0.5], [0.3]),
        ([1.0, 1.0], [0.4, 0.4]),
        ([1.0, 0.25, 0.0], [0.5, 0.1, 2.0]),
        ([-2.0, 0.7], [3.0, 1.5]),
    ]
    cases = [
        {
            "y": normal(len(gains), 4, seed=seed),
            "gains": f64(gains),
            "sigmas": f64(sigmas),
        }
        for seed, (gains, sigmas) in enumerate(settings)
    ]

    def level(
        precision: Callable[[Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        def made(y: Tensor, gains: Tensor, sigmas: Tensor) -> Tensor:
            snr = precision(gains, sigmas)
            return snr / (1 + snr)

        return Slip(made, message)

    def state(
        change: Callable[[Tensor, Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        return Slip(
            lambda y, gains, sigmas: change(y, gains, sigmas), message, output=1
        )

    slips = [
        level(
            lambda c, s: (c.abs() / s).sum(),
            "A signal-to-noise ratio is a ratio of powers: gains and standard deviations enter squared.",
        ),
        level(
            lambda c, s: (1 / s**2).sum(),
            "The gains are missing: a dim exposure with the same noise tells less.",
        ),
        level(
            lambda c, s: (c**2 / s**2).mean(),
            "You averaged the ratios, so that a second exposure would not help.",
        ),
        level(
            lambda c, s: (c**2).sum() / (s**2).sum(),
            "That is the ratio for the plain sum of powers. A noisy exposure spoils a good one there; weigh them.",
        ),
        level(
            lambda c, s: c.sum() ** 2 / (s**2).sum(),
            "That is the level of the sum of the exposures. There is a better combination.",
        ),
        Slip(
            lambda y, gains, sigmas: (gains**2 / sigmas**2).sum(),
            "That is the signal-to-noise ratio. Which ᾱ has it?",
        ),
        Slip(
            lambda y, gains, sigmas: 1 / (1 + (gains**2 / sigmas**2).sum()),
            "That is the share of the noise, 1 − ᾱ.",
        ),
        state(
            lambda y, c, s: _exposed(y, c, s)[1] / _exposed(y, c, s)[0].sqrt(),
            "That is the estimate of the clean signal. The chain's state is smaller: by which factor?",
        ),
        state(
            lambda y, c, s: _exposed(y, c, s)[1] * _exposed(y, c, s)[0].sqrt(),
            "You multiplied by ᾱ where its root belongs.",
        ),
        state(
            lambda y, c, s: _exposed(y, c, s)[0].sqrt() * y.mean(0),
            "That is the plain mean of the exposures, dim ones included.",
        ),
        state(
            lambda y, c, s: (
                _exposed(y, c, s)[0].sqrt()
                * (c[:, None] * y / s[:, None] ** 2).sum(0)
            ),
            "Your weights do not bring the gain of the combination to one: a noise-free signal would come out scaled.",
        ),
    ]
    compare(answer, _exposed, cases, slips, outputs=("ᾱ", "x_t"))


# 8.3: guidance that is exact for a Gaussian with correlations


def _informed(
    x_t: Tensor,
    y: Tensor,
    mean: Tensor,
    cov: Tensor,
    A: Tensor,
    alpha_bar: Tensor,
    sigma_y: float,
) -> tuple[Tensor, Tensor]:
    """The package's conditioning, for the matrix on x_t alone and for the guess on y first and x_t second."""
    log_weight = torch.zeros(1, 1, dtype=torch.float64)
    prior = FullMixture(log_weight, mean[None, None], cov[None])
    signal = alpha_bar.sqrt() * torch.eye(len(mean), dtype=torch.float64)
    noise = (1 - alpha_bar).item()
    left = prior.observe(signal, x_t[None], noise).covariances[0]
    given_y = prior.observe(A, y[None], sigma_y**2)
    return left, given_y.observe(signal, x_t[None], noise).mean()[0]


def _update(
    mean: Tensor, cov: Tensor, A: Tensor, y: Tensor, noise_var: float
) -> Tensor:
    seen = A @ cov @ A.mT + noise_var * torch.eye(len(y), dtype=torch.float64)
    return mean + cov @ A.mT @ torch.linalg.solve(seen, y - A @ mean)


def _exercise_8_3(answer: Any) -> None:
    root = normal(4, 4, seed=0)
    line = f64([[1.0], [2.0]])
    priors = [
        (f64([0.5, -1.0]), f64([[1.0, 0.9], [0.9, 1.0]])),
        (normal(4, seed=1), root @ root.mT),
        (f64([0.0, 1.0]), line @ line.mT),
    ]
    cases: list[dict[str, Any]] = [
        {
            "x_t": normal(len(mean), seed=2),
            "y": normal(m, seed=3),
            "mean": mean,
            "cov": cov,
            "A": normal(m, len(mean), seed=4),
            "alpha_bar": f64(alpha_bar),
            "sigma_y": sigma_y,
        }
        for mean, cov in priors
        for m, alpha_bar, sigma_y in (
            (1, 0.9, 0.1),
            (2, 0.3, 2.0),
            (1, 1e-6, 0.5),
        )
    ]

    def eye(cov: Tensor) -> Tensor:
        return torch.eye(len(cov), dtype=torch.float64)

    def shrunk(cov: Tensor, alpha_bar: Tensor) -> Tensor:
        seen = alpha_bar * cov + (1 - alpha_bar) * eye(cov)
        return (1 - alpha_bar) * cov @ torch.linalg.inv(seen)

    def matrix(
        change: Callable[[Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        def made(
            x_t: Tensor,
            y: Tensor,
            mean: Tensor,
            cov: Tensor,
            A: Tensor,
            alpha_bar: Tensor,
            sigma_y: float,
        ) -> Tensor:
            return change(cov, alpha_bar)

        return Slip(made, message)

    def guess(change: Callable[..., Tensor], message: str) -> Slip:
        def made(
            x_t: Tensor,
            y: Tensor,
            mean: Tensor,
            cov: Tensor,
            A: Tensor,
            alpha_bar: Tensor,
            sigma_y: float,
        ) -> Tensor:
            R, residual = shrunk(cov, alpha_bar), x_t - alpha_bar.sqrt() * mean
            x_0 = mean + alpha_bar.sqrt() / (1 - alpha_bar) * R @ residual
            return change(x_0, R, A, y, sigma_y, mean, cov)

        return Slip(made, message, output=1)

    slips = [
        matrix(
            lambda cov, a: (1 - a) * eye(cov),
            "That is ΠGDM's choice, right for data of covariance I only.",
        ),
        matrix(
            lambda cov, a: 0 * cov,
            "That is DPS's choice: it takes the estimate for the truth.",
        ),
        matrix(
            lambda cov, a: shrunk(torch.diag(cov.diagonal()), a),
            "You took the coordinates as independent: the correlations of the data are missing.",
        ),
        matrix(
            lambda cov, a: shrunk(cov.diagonal().mean() * eye(cov), a),
            "You put the average variance everywhere; R is not a multiple of the identity.",
        ),
        matrix(
            lambda cov, a: cov, "That is the covariance before x_t was seen."
        ),
        matrix(
            lambda cov, a: a.sqrt() / (1 - a) * shrunk(cov, a),
            "That is the Jacobian of the denoiser. R is proportional to it; which factor gives it units of a variance?",
        ),
        matrix(
            lambda cov, a: (1 - a) * cov / (a * cov + 1 - a),
            "You divided entry by entry; the quotient of two matrices is a product with an inverse.",
        ),
        guess(
            lambda x_0, R, A, y, sigma, mean, cov: x_0,
            "That is the guess from x_t alone; y has something to add.",
        ),
        guess(
            lambda x_0, R, A, y, sigma, mean, cov: _update(
                mean, cov, A, y, sigma**2
            ),
            "That is the guess from y alone; x_t has something to add.",
        ),
        guess(
            lambda x_0, R, A, y, sigma, mean, cov: _update(x_0, R, A, y, sigma),
            "The noise of the measurement enters with its standard deviation where the variance belongs.",
        ),
        guess(
            lambda x_0, R, A, y, sigma, mean, cov: _update(
                x_0, cov, A, y, sigma**2
            ),
            "You updated the guess from x_t with the covariance of the prior, and so counted the prior twice.",
        ),
        guess(
            lambda x_0, R, A, y, sigma, mean, cov: (
                x_0 + R @ A.mT @ (y - A @ x_0) / sigma**2
            ),
            "Your pull is that of r = 0: it ignores that x_0 itself is uncertain.",
        ),
    ]
    compare(
        answer,
        _informed,
        cases,
        slips,
        outputs=("the matrix", "the guess"),
        tolerance=1e-8,
        floor=1e-10,
    )


# 8.4: the coverage of a biased sampler


def _covered(bias: Tensor, spread: Tensor, level: Tensor) -> Tensor:
    """By the error function and its inverse, one side after the other."""
    half = spread * torch.erfinv(level)
    shift = bias / math.sqrt(2)
    return 0.5 * (torch.erf(half + shift) + torch.erf(half - shift))


def _exercise_8_4(answer: Any) -> None:
    cases = [
        {"bias": f64(bias), "spread": f64(spread), "level": f64(level)}
        for bias, spread, level in (
            (0.0, 1.0, 0.9),
            (0.0, 0.5, 0.9),
            (0.5, 1.0, 0.9),
            (-0.7, 1.6, 0.5),
            (2.0, 0.0, 0.9),
            (1.0, 3.0, 0.99),
        )
    ]

    def two_sided(
        half: Callable[[Tensor, Tensor], Tensor],
        shift: Callable[[Tensor, Tensor], Tensor],
    ) -> Any:
        def made(bias: Tensor, spread: Tensor, level: Tensor) -> Tensor:
            z, b = half(spread, level), shift(bias, spread)
            return torch.special.ndtr(b + z) - torch.special.ndtr(b - z)

        return made

    def central(spread: Tensor, level: Tensor) -> Tensor:
        return spread * torch.special.ndtri((1 + level) / 2)

    def given(bias: Tensor, spread: Tensor) -> Tensor:
        return bias

    slips = [
        Slip(
            two_sided(lambda c, level: c * torch.special.ndtri(level), given),
            "Half of what a central interval leaves out lies on each side: check the quantile.",
        ),
        Slip(
            two_sided(lambda c, level: central(c**2, level), given),
            "The spread is a standard deviation already.",
        ),
        Slip(
            two_sided(lambda c, level: central(c.sqrt(), level), given),
            "The spread is not a variance: no root.",
        ),
        Slip(
            two_sided(lambda c, level: central(1 / c, level), given),
            "A wider interval must cover more. Who is random here, the truth or the end of the interval?",
        ),
        Slip(
            two_sided(central, lambda b, c: 0 * b),
            "The bias is missing: the interval is not centred on the truth.",
        ),
        Slip(
            two_sided(central, lambda b, c: b * c),
            "The bias is in units of the exact standard deviation; it does not grow with the spread.",
        ),
        Slip(
            lambda bias, spread, level: (
                2 * torch.special.ndtr(central(spread, level) - bias.abs()) - 1
            ),
            "You counted the side on which the interval falls short twice; the other side has room to spare.",
        ),
        Slip(
            lambda bias, spread, level: level,
            "That is the nominal level; it holds for exact samples.",
        ),
        Slip(
            lambda bias, spread, level: 1 - _covered(bias, spread, level),
            "That is the share of misses.",
        ),
    ]
    compare(answer, _covered, cases, slips, outputs=("the coverage",))


# 8.5: the weight of a particle


def _gained(
    x_s: Tensor,
    mean: Tensor,
    var: float,
    gradient: Tensor,
    before: Tensor,
    after: Tensor,
) -> Tensor:
    """By the two densities; at variance 0 both are the same point mass."""
    if var == 0:
        return after - before
    target, drawn_from = (
        torch.distributions.Normal(m, math.sqrt(var))
        for m in (mean, mean + var * gradient)
    )
    log_ratio = target.log_prob(x_s) - drawn_from.log_prob(x_s)
    return log_ratio.sum(1) + after - before


def _exercise_8_5(answer: Any) -> None:
    def case(var: float, seed: int) -> dict[str, Any]:
        mean, gradient, noise = (normal(4, 3, seed=seed + k) for k in range(3))
        return {
            "x_s": mean + var * gradient + math.sqrt(var) * noise,
            "mean": mean,
            "var": var,
            "gradient": gradient,
            "before": normal(4, seed=seed + 3),
            "after": normal(4, seed=seed + 4),
        }

    def changed(change: Callable[..., Tensor], message: str) -> Slip:
        def made(
            x_s: Tensor,
            mean: Tensor,
            var: float,
            gradient: Tensor,
            before: Tensor,
            after: Tensor,
        ) -> Tensor:
            moved = (gradient * (x_s - mean)).sum(1)
            size = var * gradient.square().sum(1)
            return change(moved, size, before, after)

        return Slip(made, message)

    slips = [
        changed(
            lambda moved, size, before, after: after - before,
            "That is the weight of a step drawn from the prior. Yours was moved along the gradient; pay for that.",
        ),
        changed(
            lambda moved, size, before, after: (
                moved - size / 2 + after - before
            ),
            "Your ratio of the two steps is upside down: what was drawn from belongs below the line.",
        ),
        changed(
            lambda moved, size, before, after: size / 2 - moved + after,
            "The guesses have to cancel along the walk: each one enters twice, with opposite signs.",
        ),
        changed(
            lambda moved, size, before, after: (
                size / 2 - moved + before - after
            ),
            "The guess at s multiplies and the guess at t divides.",
        ),
        changed(
            lambda moved, size, before, after: size / 2 - moved,
            "That is the ratio of the two steps; the guesses at both ends belong to it.",
        ),
        changed(
            lambda moved, size, before, after: -moved + after - before,
            "You compared the two exponents to first order; the square of the move is missing.",
        ),
        changed(
            lambda moved, size, before, after: size - moved + after - before,
            "Expand both squares once more: by which factor is the square of the move divided?",
        ),
        Slip(
            lambda x_s, mean, var, gradient, before, after: (
                (var * gradient.square() / 2 - gradient * (x_s - mean)).mean(1)
                + after
                - before
            ),
            "Log densities add over the coordinates; you took their mean.",
        ),
    ]
    cases = [case(0.3, 0), case(2.0, 10), case(1e-3, 20), case(0.0, 30)]
    compare(
        answer,
        _gained,
        cases,
        slips,
        outputs=("the gain of the log weight",),
        tolerance=1e-8,
        floor=1e-10,
    )


EXERCISES: dict[str, Exercise] = {
    "8.1": _exercise_8_1,
    "8.2": _exercise_8_2,
    "8.3": _exercise_8_3,
    "8.4": _exercise_8_4,
    "8.5": _exercise_8_5,
}
