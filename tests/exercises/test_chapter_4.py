"""Exercises of chapter 4: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.bound import eps_weight
from ddpm_nb.denoiser import X0, V
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.schedule import linear_schedule

NUMBERS = ("4.1", "4.2", "4.3", "4.4")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


@pytest.mark.parametrize("number", NUMBERS)
def test_arguments_may_have_any_name(number: str, solution: Any) -> None:
    answer = solution(number)
    names = [f"renamed_{i}" for i in range(len(inspect.signature(answer).parameters))]
    renamed = eval(f"lambda {', '.join(names)}: answer({', '.join(names)})", {"answer": answer})
    assert verdict(number, renamed) is None
    assert "Expected a function" in verdict(number, 0.0)


def drop(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * (s / (1 - s) - t / (1 - t))


def weight(factor: Any) -> Any:
    """A weight: half the drop of the signal-to-noise ratio times a function of 1 − ᾱ_t, ᾱ_t and the determinant."""
    return lambda alpha_bar_s, alpha_bar_t, a, b: (
        drop(alpha_bar_s, alpha_bar_t)
        * factor(1 - alpha_bar_t, alpha_bar_t, b * alpha_bar_t.sqrt() - a * (1 - alpha_bar_t).sqrt())
    )


def shares(value: torch.Tensor) -> torch.Tensor:
    return value / value.sum()


def best(second: torch.Tensor) -> torch.Tensor:
    return shares(second.sqrt())


def spread(cov: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    return alpha_bar * cov + (1 - alpha_bar) * torch.eye(len(cov), dtype=cov.dtype)


def floor(cov: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    return len(cov) - (1 - alpha_bar) * torch.linalg.inv(spread(cov, alpha_bar)).trace()


def bits(offset: Any) -> Any:
    return lambda log_density, d, levels, low, high: -log_density / (d * math.log(2)) + offset(d, levels, high - low)


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("4.1", weight(lambda n, s, D: 1.0), "That is the weight on x_0"),
        ("4.1", weight(lambda n, s, D: (n / D**2) ** 0.5), "when the error is squared"),
        ("4.1", weight(lambda n, s, D: D**2 / n), "upside down"),
        ("4.1", weight(lambda n, s, D: 2 * n / D**2), "factor ½"),
        ("4.1", weight(lambda n, s, D: s / D**2), "reaches ε̂"),
        ("4.1", weight(lambda n, s, D: -n / D**2), "reward errors"),
        (
            "4.1",
            lambda alpha_bar_s, alpha_bar_t, a, b: (
                0.5
                * ((alpha_bar_s / (1 - alpha_bar_s)).sqrt() - (alpha_bar_t / (1 - alpha_bar_t)).sqrt())
                * (1 - alpha_bar_t)
                / (b * alpha_bar_t.sqrt() - a * (1 - alpha_bar_t).sqrt()) ** 2
            ),
            "ratio of powers",
        ),
        (
            "4.1",
            lambda alpha_bar_s, alpha_bar_t, a, b: (
                drop(alpha_bar_s, alpha_bar_t)
                * (1 - alpha_bar_s)
                / (b * alpha_bar_t.sqrt() - a * (1 - alpha_bar_t).sqrt()) ** 2
            ),
            "is that of t",
        ),
        ("4.2", lambda mean, second: (torch.full_like(mean, 1 / len(mean)), 0.0), "probability .* uniform law"),
        ("4.2", lambda mean, second: (shares(mean), 0.0), "if each term is a constant"),
        ("4.2", lambda mean, second: (shares(second), 0.0), "Too eager"),
        ("4.2", lambda mean, second: (shares((second - mean**2).sqrt()), 0.0), "constant term needs draws too"),
        ("4.2", lambda mean, second: (shares(1 / second), 0.0), "drawn least"),
        ("4.2", lambda mean, second: (best(second), second.sqrt().sum() ** 2), "variance is .* mean square of"),
        (
            "4.2",
            lambda mean, second: (best(second), len(mean) * second.sum() - mean.sum() ** 2),
            "for uniform draws",
        ),
        ("4.2", lambda mean, second: (best(second), (second - mean**2).sum()), "every step is computed"),
        (
            "4.2",
            lambda mean, second: (best(second), second.sqrt().sum() ** 2 - (mean**2).sum()),
            "sum of their squares",
        ),
        (
            "4.2",
            lambda mean, second: (best(second), (second.sqrt().sum() ** 2 - mean.sum() ** 2).sqrt()),
            "standard deviation",
        ),
        (
            "4.2",
            lambda mean, second: (best(second), (second / best(second)).sum() - mean.sum() ** 2),
            "not finite .* never drawn",
        ),
        ("4.3", lambda cov, alpha_bar: floor(torch.diag(cov.diag()), alpha_bar), "coordinates as independent"),
        (
            "4.3",
            lambda cov, alpha_bar: floor(torch.eye(len(cov)).double() * cov.diag().mean(), alpha_bar),
            "average variance",
        ),
        (
            "4.3",
            lambda cov, alpha_bar: (1 - alpha_bar) * torch.linalg.solve(spread(cov, alpha_bar), cov).trace(),
            "smallest error of x̂_0",
        ),
        ("4.3", lambda cov, alpha_bar: len(cov) - floor(cov, alpha_bar), "the part that cannot"),
        ("4.3", lambda cov, alpha_bar: floor(cov, alpha_bar) / len(cov), "per coordinate"),
        (
            "4.3",
            lambda cov, alpha_bar: len(cov) - torch.linalg.inv(spread(cov, alpha_bar)).trace(),
            "size of the score",
        ),
        ("4.3", lambda cov, alpha_bar: len(cov), "limit for data with a density"),
        ("4.3", lambda cov, alpha_bar: floor(cov @ cov, alpha_bar), "squared the principal variances"),
        (
            "4.3",
            lambda cov, alpha_bar: (alpha_bar * cov / (alpha_bar * cov + 1 - alpha_bar)).sum(),
            "entry by entry",
        ),
        ("4.4", bits(lambda d, n, w: 0.0), "depends on the scale"),
        ("4.4", bits(lambda d, n, w: math.log2(w / n)), "sign of the constant"),
        ("4.4", bits(lambda d, n, w: math.log2((n - 1) / w)), "with n cells"),
        ("4.4", bits(lambda d, n, w: math.log2(n / w) / d), "pays for its own width"),
        ("4.4", bits(lambda d, n, w: math.log(n / w)), "in nats"),
        ("4.4", bits(lambda d, n, w: 7.0), "Seven is right"),
        ("4.4", bits(lambda d, n, w: math.log2(n)), "left out the range"),
        (
            "4.4",
            lambda log_density, d, levels, low, high: (
                log_density / (d * math.log(2)) + math.log2(levels / (high - low))
            ),
            "shorter code",
        ),
        (
            "4.4",
            lambda log_density, d, levels, low, high: -log_density / d + math.log2(levels / (high - low)),
            "log density is in nats",
        ),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_the_answers_mean_what_the_exercises_say(solution: Any) -> None:
    """The weight is the package's; no other probabilities do better; the floor is reached by the best denoiser."""
    schedule = linear_schedule(50, 0.002, 0.4)
    t = torch.arange(2, 51)
    s, one = schedule.alpha_bar(t - 1), torch.ones(len(t), dtype=torch.float64)
    weights = solution("4.1")(s, schedule.alpha_bar(t), 0 * one, one)
    torch.testing.assert_close(weights, eps_weight(schedule, t), rtol=1e-9, atol=0)
    velocity = solution("4.1")(s, schedule.alpha_bar(t), *V.weights(schedule.level(t)))
    snr = schedule.snr(t)
    torch.testing.assert_close(velocity, weights * snr / (1 + snr), rtol=1e-9, atol=0)

    generator = torch.Generator().manual_seed(0)
    mean, second = torch.tensor([0.5, 1.0, 3.0]).double(), torch.tensor([1.0, 1.5, 10.0]).double()
    p, variance = solution("4.2")(mean, second)
    for _ in range(20):
        other = (p.log() + 0.3 * torch.randn(3, generator=generator, dtype=torch.float64)).softmax(0)
        assert (second / other).sum() - mean.sum() ** 2 > variance - 1e-12

    data = GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.2]]), torch.tensor([[0.5, 2.0]]))
    q = GaussianDiffusion(schedule)
    x_0 = data.sample(20_000, generator)
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = q.diffuse(x_0, eps, 10)
    loss = (eps - X0.eps(q, data.denoiser(q)(x_t, 10), x_t, 10)).square().sum(1)
    expected = solution("4.3")(data.covariance(), schedule.alpha_bar(10))
    assert abs(loss.mean() - expected) < 4 * loss.std() / math.sqrt(len(loss))

    thin = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert solution("4.3")(thin, torch.tensor(1 - 1e-9, dtype=torch.float64)).item() == pytest.approx(1, abs=1e-6)

    zero = torch.zeros((), dtype=torch.float64)
    assert solution("4.4")(zero, 3072, 256, -1.0, 1.0) == pytest.approx(7)
    assert solution("4.4")(zero, 3072, 256, 0.0, 1.0) == pytest.approx(8)
