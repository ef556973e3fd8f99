"""Exercises of chapter 2: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, cosine_schedule, linear_schedule

NUMBERS = ("2.1", "2.2", "2.3", "2.4")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    hint = "This is the published line" if number == "2.1" else "replace the line with the dots"
    assert hint in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def line(start: float, end: float, T: int) -> torch.Tensor:
    return torch.linspace(start, end, T, dtype=torch.float64)


def stride(value: Callable[[torch.Tensor, int, int], Any]) -> Callable[..., torch.Tensor]:
    return lambda alpha_bars, kept: torch.tensor(
        [float(value(alpha_bars, s, t)) for s, t in zip([0, *kept], kept)], dtype=torch.float64
    )


def shortest(bits: Callable[[float, float], float]) -> Callable[[float, float], int]:
    """The first T at which ``bits(ᾱ_T, power)`` is at most the limit."""

    def answer(limit: float, power: float) -> int:
        T, alpha_bar = 0, 1.0
        while T == 0 or bits(alpha_bar, power) > limit:
            T += 1
            alpha_bar = float((1 - line(1e-4, 0.02, T)).prod())
        return T

    return answer


def bits(alpha_bar: float, power: float) -> float:
    return 0.5 * (alpha_bar * (power - 1) - math.log(1 - alpha_bar)) / math.log(2)


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("2.1", lambda T, beta_1, beta_T: line(beta_1, beta_T, T) ** 2, "The ends are not"),
        ("2.1", lambda T, beta_1, beta_T: line(beta_1**0.5, beta_T**0.5, T), "standard deviations of the steps"),
        ("2.1", lambda T, beta_1, beta_T: line(beta_1**2, beta_T**2, T) ** 0.5, "squares on a line"),
        ("2.1", lambda T, beta_1, beta_T: line(beta_1, beta_T, T), "That is the linear schedule"),
        ("2.1", lambda T, beta_1, beta_T: line(beta_1**0.5, beta_T**0.5, T + 1) ** 2, r"shape \(201,\), expected"),
        ("2.2", stride(lambda a, s, t: 1 - a[t] / a[t - 1]), "kept the old variances"),
        ("2.2", stride(lambda a, s, t: sum(1 - a[i] / a[i - 1] for i in range(s + 1, t + 1))), "wear down"),
        ("2.2", stride(lambda a, s, t: 1 - a[t]), "all the noise since x_0"),
        ("2.2", stride(lambda a, s, t: a[s] - a[t]), "what is left by then"),
        ("2.2", stride(lambda a, s, t: 1 - math.sqrt(a[t] / a[s])), "You took the root"),
        ("2.2", stride(lambda a, s, t: a[t] / a[s]), "signal kept by the step"),
        ("2.2", lambda alpha_bars, kept: 1 - alpha_bars[kept][1:] / alpha_bars[kept][:-1], r"shape \(1,\), expected"),
        ("2.3", lambda alpha_bar, c: c**2 * alpha_bar, "do not add up to one"),
        ("2.3", lambda alpha_bar, c: c * alpha_bar, "scaled the power by c"),
        ("2.3", lambda alpha_bar, c: c * alpha_bar / (c * alpha_bar + 1 - alpha_bar), "how does a power change"),
        (
            "2.3",
            lambda alpha_bar, c: alpha_bar / (alpha_bar + c**2 * (1 - alpha_bar)),
            "direction is the opposite",
        ),
        (
            "2.3",
            lambda alpha_bar, c: c * alpha_bar**0.5 / (c * alpha_bar**0.5 + (1 - alpha_bar) ** 0.5),
            "You added amplitudes",
        ),
        (
            "2.3",
            lambda alpha_bar, c: (
                (snr := c**2 * alpha_bar / (1 - alpha_bar)) / (1 + snr)  # nan for clean data
            ),
            "not finite .*the signal-to-noise ratio is infinite",
        ),
        ("2.4", shortest(lambda a, p: bits(a, p) * math.log(2)), "compared nats"),
        ("2.4", shortest(lambda a, p: bits(a, p) * math.log(2) ** 2), "divides by log 2"),
        ("2.4", shortest(lambda a, p: bits(a, 1.0)), "does not depend on the data"),
        ("2.4", shortest(lambda a, p: 0.5 * a * p / math.log(2)), "approximation for small"),
        ("2.4", shortest(lambda a, p: 2 * bits(a, p)), "factor ½"),
        ("2.4", shortest(lambda a, p: bits(math.sqrt(a), p)), "amplitude"),
        ("2.4", lambda limit, power: shortest(bits)(limit, power) - 1, "One step short"),
        ("2.4", lambda limit, power: shortest(bits)(limit, power) + 1, "One step too many"),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_the_answers_mean_what_the_exercises_say(solution: Any) -> None:
    """The repaired schedule reaches noise; a respaced chain has the long chain's marginals; L_T meets its limit."""
    repaired = NoiseSchedule.from_betas(solution("2.1")(1000, 1e-4, 0.02))
    assert repaired.alpha_bar(1000) < 1e-2

    one, kept = torch.ones(1, dtype=torch.float64), [1, 7, 40, 100]
    long = GaussianDiffusion(cosine_schedule(100))
    respaced = solution("2.2")(long.schedule.alpha_bar(torch.arange(101)), kept)
    short = GaussianDiffusion(NoiseSchedule.from_betas(respaced))
    for i, t in enumerate(kept, 1):
        torch.testing.assert_close(short.marginal(one, i).mean, long.marginal(one, t).mean, rtol=1e-9, atol=0)
        torch.testing.assert_close(short.marginal(one, i).var, long.marginal(one, t).var, rtol=1e-9, atol=0)

    T = solution("2.4")(0.01, 0.8)
    x_0 = torch.tensor([[math.sqrt(0.8)]], dtype=torch.float64)
    pure = Gaussian(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    cost = [GaussianDiffusion(linear_schedule(n)).marginal(x_0, n).kl(pure) / math.log(2) for n in (T - 1, T)]
    assert cost[0] > 0.01 >= cost[1]
