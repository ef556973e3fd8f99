"""Chapter 3: a bridge between two states, steps back of any variance, the best guess from a list, which variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64
from ddpm_nb.diffusion import posterior_var
from ddpm_nb.gaussian import Gaussian, conditional, observe
from ddpm_nb.schedule import NoiseSchedule

# 3.1: the state between two known states


def _bridge(
    x_r: Tensor,
    x_t: Tensor,
    alpha_bar_r: Tensor,
    alpha_bar_s: Tensor,
    alpha_bar_t: Tensor,
) -> Any:
    """Condition the joint Gaussian of (x_s, x_t) given x_r on x_t."""
    factor = (alpha_bar_t / alpha_bar_s).sqrt()
    var_s, var_t = 1 - alpha_bar_s / alpha_bar_r, 1 - alpha_bar_t / alpha_bar_r
    cov = torch.stack([var_s, factor * var_s, factor * var_s, var_t])
    center = (alpha_bar_s / alpha_bar_r).sqrt() * x_r
    both = torch.stack([center, factor * center])
    mean, var = conditional(both, cov.reshape(2, 2), [1], x_t[None])
    return mean[0], var[0, 0]


def _exercise_3_1(answer: Any) -> None:
    def case(
        x_r: float, x_t: float, r: float, s: float, t: float
    ) -> dict[str, Tensor]:
        values = {
            "x_r": x_r,
            "x_t": x_t,
            "alpha_bar_r": r,
            "alpha_bar_s": s,
            "alpha_bar_t": t,
        }
        return {name: f64(value) for name, value in values.items()}

    cases = [
        case(1.0, -0.5, 0.8, 0.5, 0.2),
        case(-2.0, 1.0, 0.3, 0.29, 0.01),
        case(0.7, 0.4, 1.0, 0.9, 0.6),
        case(0.0, 3.0, 0.6, 0.1, 0.05),
        case(1.5, -1.0, 0.7, 0.7, 0.3),
    ]

    def slip(
        change: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
        message: str,
        output: int = 0,
    ) -> Slip:
        def made(
            x_r: Tensor,
            x_t: Tensor,
            alpha_bar_r: Tensor,
            alpha_bar_s: Tensor,
            alpha_bar_t: Tensor,
        ) -> Tensor:
            return change(x_r, x_t, alpha_bar_r, alpha_bar_s, alpha_bar_t)

        return Slip(made, message, output)

    one = f64(1.0)
    slips = [
        slip(
            lambda x, y, r, s, t: _bridge(x, y, one, s, t)[0],
            "You treated x_r as clean data. The chain from r on begins at x_r: how much signal does it keep since r?",
        ),
        slip(
            lambda x, y, r, s, t: _bridge(x / r.sqrt(), y, one, s, t)[0],
            "You put x_r / √ᾱ_r where x_0 belongs, but x_r holds noise, which stays in x_s too. Start the chain at r.",
        ),
        slip(
            lambda x, y, r, s, t: (s / r).sqrt() * x,
            "Your mean ignores x_t: it is the mean of x_s given x_r alone.",
        ),
        slip(
            lambda x, y, r, s, t: ((s - t) * x + (r - s) * y) / (r - t),
            "A linear interpolation in ᾱ ignores that the states shrink as they become noisier.",
        ),
        slip(
            lambda x, y, r, s, t: _bridge(x, y, r, s, t)[0] / (s / r).sqrt(),
            "The mean is too large by the factor by which the signal has shrunk between r and s.",
        ),
        slip(
            lambda x, y, r, s, t: _bridge(x, y, one, s, t)[1],
            "The mean is right; in the variance you count the noise since the clean data. x_r is known: count since r.",
            output=1,
        ),
        slip(
            lambda x, y, r, s, t: 1 - s / r,
            "The mean is right; the variance is that of x_s given x_r alone. Knowing x_t as well narrows it.",
            output=1,
        ),
        slip(
            lambda x, y, r, s, t: _bridge(x, y, r, s, t)[1].sqrt(),
            "That is the standard deviation; the variance was asked for.",
            output=1,
        ),
        slip(
            lambda x, y, r, s, t: 1 - t / s,
            "The mean is right; the variance is that of the step from s to t. Knowing both neighbours narrows it.",
            output=1,
        ),
    ]
    compare(answer, _bridge, cases, slips, outputs=("the mean", "the variance"))


# 3.2: weights that keep the marginals, for any variance of the step back


def _weights(
    var: Tensor, alpha_bar_s: Tensor, alpha_bar_t: Tensor
) -> tuple[Tensor, Tensor]:
    on_x_t = ((1 - alpha_bar_s - var).clamp(min=0) / (1 - alpha_bar_t)).sqrt()
    return alpha_bar_s.sqrt() - on_x_t * alpha_bar_t.sqrt(), on_x_t


def _exercise_3_2(answer: Any) -> None:
    def case(
        var: float, alpha_bar_s: float, alpha_bar_t: float
    ) -> dict[str, Tensor]:
        return {
            "var": f64(var),
            "alpha_bar_s": f64(alpha_bar_s),
            "alpha_bar_t": f64(alpha_bar_t),
        }

    posterior = (1 - 0.6) / (1 - 0.3) * (1 - 0.3 / 0.6)
    cases = [
        case(0.1, 0.6, 0.3),
        case(posterior, 0.6, 0.3),
        case(0.0, 0.9, 0.2),
        case(0.75, 0.25, 0.01),
        case(0.004, 0.99, 0.98),
        case(0.0, 1.0, 0.5),
    ]

    def slip(
        wrong: Callable[[Tensor, Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        """A slip in the weight on x_t, recognized by the weight on x_0 that follows from it."""

        def on_x_0(
            var: Tensor, alpha_bar_s: Tensor, alpha_bar_t: Tensor
        ) -> Tensor:
            on_x_t = wrong(var, alpha_bar_s, alpha_bar_t)
            return alpha_bar_s.sqrt() - on_x_t * alpha_bar_t.sqrt()

        return Slip(on_x_0, message)

    slips = [
        Slip(
            lambda var, alpha_bar_s, alpha_bar_t: alpha_bar_s.sqrt(),
            "x_t brings signal along, too: the signal of both terms together has to be √ᾱ_s.",
        ),
        Slip(
            lambda var, alpha_bar_s, alpha_bar_t: (
                alpha_bar_s.sqrt()
                + _weights(var, alpha_bar_s, alpha_bar_t)[1]
                * alpha_bar_t.sqrt()
            ),
            "A sign: the signal that x_t brings along has to be taken off, not added.",
        ),
        slip(
            lambda var, s, t: (1 - s - var).sqrt(),
            "You have the weight on the noise ε in x_t. x_t contains ε with a factor: divide by it, then see what "
            "that does to the signal.",
        ),
        slip(
            lambda var, s, t: (1 - s - var.sqrt()).sqrt() / (1 - t).sqrt(),
            "You subtracted the standard deviation; variances add up.",
        ),
        slip(
            lambda var, s, t: (1 - s - var) / (1 - t),
            "The equation for the noise is one of variances: the weight enters it squared.",
        ),
        slip(
            lambda var, s, t: (1 - s).sqrt() / (1 - t).sqrt(),
            "You left out the fresh noise: x_s would have too much noise in all.",
        ),
        slip(
            lambda var, s, t: (t / s).sqrt() * (1 - s) / (1 - t),
            "Those are the weights of the posterior, whatever the variance. They are right for one variance only.",
        ),
        Slip(
            lambda var, alpha_bar_s, alpha_bar_t: _weights(
                var, alpha_bar_s, alpha_bar_t
            )[1],
            "The two weights are exchanged: the weight on x_0 comes first.",
        ),
    ]
    compare(
        answer,
        _weights,
        cases,
        slips,
        outputs=("the weight on x_0", "the weight on x_t"),
    )


# 3.3: the best guess of the clean image, from a list of images


def _best_guess(x_t: Tensor, points: Tensor, alpha_bar: Tensor) -> Tensor:
    """Average the points in plain Python, with weights relative to the largest."""
    signal, noise = math.sqrt(alpha_bar.item()), 1 - alpha_bar.item()
    rows, state = points.tolist(), x_t.tolist()
    squares = [
        math.fsum((a - signal * b) ** 2 for a, b in zip(state, row))
        for row in rows
    ]
    weights = [
        math.exp((min(squares) - square) / (2 * noise)) for square in squares
    ]
    total = math.fsum(weights)
    sums = [
        math.fsum(w * value for w, value in zip(weights, column))
        for column in zip(*rows)
    ]
    return f64([value / total for value in sums])


def _exercise_3_3(answer: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    line = f64([-1.7, -0.9, 0.5, 1.6])[:, None]
    plane = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    images = torch.randn(20, 64, generator=generator, dtype=torch.float64)
    noise = torch.randn(64, generator=generator, dtype=torch.float64)
    cases = [
        {"x_t": f64([-0.2]), "points": line, "alpha_bar": f64(0.4)},
        {"x_t": 0.5 * plane[0] + 0.3, "points": plane, "alpha_bar": f64(0.25)},
        {"x_t": f64([0.7]), "points": line[:1], "alpha_bar": f64(0.5)},
        {"x_t": f64([2.0]), "points": line, "alpha_bar": f64(0.0)},
    ]
    early = {
        "x_t": 0.995 * images[3] + 0.1 * noise,
        "points": images,
        "alpha_bar": f64(0.99),
    }

    def slip(
        log_weights: Callable[[Tensor, Tensor, Tensor], Tensor], message: str
    ) -> Slip:
        return Slip(
            lambda x_t, points, alpha_bar: (
                log_weights(x_t, points, alpha_bar).softmax(0) @ points
            ),
            message,
        )

    def naive(x_t: Tensor, points: Tensor, alpha_bar: Tensor) -> Tensor:
        squares = (x_t - alpha_bar.sqrt() * points).square().sum(1)
        weights = (-squares / (2 * (1 - alpha_bar))).exp()
        return (weights / weights.sum()) @ points

    def nearest(x_t: Tensor, points: Tensor, alpha_bar: Tensor) -> Tensor:
        squares = (x_t - alpha_bar.sqrt() * points).square().sum(1)
        return points[squares.argmin()]

    slips = [
        slip(
            lambda x, p, a: -(x - p).square().sum(1) / (2 * (1 - a)),
            "You compared x_t with the points themselves. Where does the marginal of a point have its centre?",
        ),
        slip(
            lambda x, p, a: -(x - a.sqrt() * p).square().sum(1) / (1 - a),
            "A factor ½ is missing in the exponent of the density.",
        ),
        slip(
            lambda x, p, a: (
                -(x - a.sqrt() * p).square().sum(1) / (2 * (1 - a).sqrt())
            ),
            "You divided by the standard deviation of the noise where its variance belongs.",
        ),
        slip(
            lambda x, p, a: (
                -(x - a.sqrt() * p).square().sum(1).sqrt() / (2 * (1 - a))
            ),
            "The exponent holds the squared distance.",
        ),
        slip(
            lambda x, p, a: (
                -(x - a.sqrt() * p).square().mean(1) / (2 * (1 - a))
            ),
            "You averaged over the coordinates; their log densities add up.",
        ),
        slip(
            lambda x, p, a: -(x / a.sqrt() - p).square().sum(1) / (2 * (1 - a)),
            "You divided x_t by its signal weight; its noise has then another variance.",
        ),
        Slip(
            nearest,
            "You chose the nearest point; the expectation weighs all of them.",
        ),
        Slip(
            lambda x_t, points, alpha_bar: points.mean(0),
            "Your guess ignores x_t: it is the mean of the data.",
        ),
        Slip(
            lambda x_t, points, alpha_bar: (
                alpha_bar.sqrt() * _best_guess(x_t, points, alpha_bar)
            ),
            "That is the expected centre of x_t. The clean image was asked for.",
        ),
    ]
    compare(answer, _best_guess, cases, slips, outputs=("the guess",))
    underflow = Slip(
        naive,
        "Right in strong noise. Here every density is below the smallest float64, and you divide 0 by 0: what changes "
        "if all weights are multiplied by the same large number?",
    )
    far = {"x_t": f64([9.0]), "points": line, "alpha_bar": f64(0.99)}
    compare(
        answer, _best_guess, [early, far], [underflow], outputs=("the guess",)
    )


# 3.4: what the choice of the variance costs


def _terms(v: float, betas: Tensor) -> tuple[Gaussian, Gaussian, Gaussian]:
    """The exact law of the step back for t = 2..T, seen from x_t = 0, and the two models with its mean."""
    schedule = NoiseSchedule.from_betas(betas)
    t = torch.arange(2, schedule.T + 1)
    zero = torch.zeros(len(t), dtype=torch.float64)
    before = Gaussian(zero, 1 - schedule.alpha_bar(t - 1) * (1 - v))
    factor, forward = schedule.alpha(t).sqrt(), schedule.beta(t)
    exact = observe(before, factor, forward, zero)
    posterior = posterior_var(*schedule.levels(t - 1, t))
    return exact, Gaussian(exact.mean, forward), Gaussian(exact.mean, posterior)


def _price(v: float, betas: Tensor) -> tuple[Tensor, Tensor]:
    exact, forward, posterior = _terms(v, betas)
    return exact.kl(forward).sum(), exact.kl(posterior).sum()


def _exercise_3_4(answer: Any) -> None:
    long = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    coarse = torch.linspace(0.1, 0.5, 8, dtype=torch.float64)
    cases = [
        {"v": 0.25, "betas": coarse},
        {"v": 0.25, "betas": long},
        {"v": 1e-4, "betas": long},
        {"v": 1.0, "betas": coarse},
        {"v": 0.0, "betas": long},
        {"v": 9.0, "betas": coarse},
    ]

    def ratios(v: float, betas: Tensor, output: int) -> Tensor:
        exact, *models = _terms(v, betas)
        return exact.var / models[output].var

    def slip(cost: Callable[[Tensor], Tensor], message: str) -> list[Slip]:
        """The same slip in both outputs, as a function of the ratios of the exact variance to the model's."""
        return [
            Slip(
                lambda v, betas, output=output: cost(ratios(v, betas, output)),
                message,
                output,
            )
            for output in (0, 1)
        ]

    def kl(r: Tensor) -> Tensor:
        return 0.5 * (r - 1 - r.log())

    slips = [
        *slip(
            lambda r: kl(1 / r).sum(),
            "The other direction: the expectation is over the exact law, not over the model.",
        ),
        *slip(lambda r: 2 * kl(r).sum(), "A factor ½ is missing."),
        *slip(
            lambda r: kl(r).mean(),
            "You averaged over the steps; their divergences add up along the chain.",
        ),
        *slip(
            lambda r: kl(r.sqrt()).sum(),
            "You compared standard deviations; the divergence takes variances.",
        ),
        *slip(
            lambda r: (0.5 * r.log()).sum().abs(),
            "That is the difference of the entropies only.",
        ),
        Slip(
            lambda v, betas: (
                _price(v, betas)[0] + kl(v / (v + betas[0] - betas[0] * v))
            ),
            "You included t = 1, which is the decoder's step: there the posterior has variance 0.",
        ),
        Slip(
            lambda v, betas: _price(v, betas)[1],
            "The two costs are exchanged: that of β_t comes first.",
        ),
    ]
    compare(
        answer,
        _price,
        cases,
        slips,
        outputs=("the cost of β_t", "the cost of the posterior variance"),
        tolerance=1e-7,
        floor=1e-10,
    )


EXERCISES: dict[str, Exercise] = {
    "3.1": _exercise_3_1,
    "3.2": _exercise_3_2,
    "3.3": _exercise_3_3,
    "3.4": _exercise_3_4,
}
