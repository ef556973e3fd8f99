"""Exercises of chapter 7: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.book.exercises.chapter_7 import _TwoModes
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.sampling import DDIM, grid, last, walk
from ddpm_nb.schedule import linear_schedule

NUMBERS = ("7.1", "7.2", "7.3")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    first = "Three slips are left" if number == "7.1" else "replace the line with the dots"
    assert first in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def draw(level: int = 0, size: Any = lambda b, a, c: b**0.5, last_noise: int = 2) -> Any:
    """An answer to 7.1: the posterior mean from x̂_0, asked at t − level, with noise from step last_noise on."""

    def answer(x_T: Any, betas: Any, predict_eps: Any, noise: Any) -> Any:
        levels = [1.0]
        for beta in betas.tolist():
            levels.append(levels[-1] * (1 - beta))
        x = x_T
        for t in reversed(range(1, len(levels))):
            a_s, a_t, beta = levels[t - 1], levels[t], betas[t - 1].item()
            x_0 = (x - math.sqrt(1 - a_t) * predict_eps(x, t - level)) / math.sqrt(a_t)
            x = (math.sqrt(a_s) * beta * x_0 + math.sqrt(1 - beta) * (1 - a_s) * x) / (1 - a_t)
            x = x + (t >= last_noise) * size(beta, a_s, a_t) * noise[t - 1]
        return x

    return answer


def variance(
    start: Any = lambda v, a: 1.0,
    fresh: Any = lambda eta, p: eta**2 * p,
    square: Any = lambda a, b: (a + b) ** 2,
    end: Any = lambda x: x,
    data: Any = lambda v: v,
    kept: float = 1.0,
) -> Any:
    """An answer to 7.2."""

    def answer(v: Any, eta: Any, alpha_bars: Any) -> Any:
        levels, w = alpha_bars.tolist(), data(v.item())
        var = start(v.item(), levels[0])
        for a_t, a_s in pairwise(levels):
            sigma = fresh(eta.item(), (1 - a_s) * (1 - a_t / a_s) / (1 - a_t))
            x_0, total = a_t**0.5 * w, a_t * w + 1 - a_t
            rest = max(1 - a_s - sigma, 0) ** 0.5 * (1 - a_t) ** 0.5
            var = square(a_s**0.5 * x_0 / total, rest / total) * var + kept * sigma
        return end(var)

    return answer


def heun(place: Any = lambda x, y, a, b: (y, b), weight: float = 0.5, straight: bool = True, end: Any = None) -> Any:
    """An answer to 7.3 in the coordinates x/√ᾱ and √((1 − ᾱ)/ᾱ)."""

    def answer(x_t: Any, alpha_bar_t: Any, alpha_bar_s: Any, predict_eps: Any) -> Any:
        root_t, root_s = (a.sqrt() if straight else torch.ones(()).double() for a in (alpha_bar_t, alpha_bar_s))
        gap = (1 - alpha_bar_s).sqrt() / root_s - (1 - alpha_bar_t).sqrt() / root_t
        eps = predict_eps(x_t, alpha_bar_t)
        x_s = root_s * (x_t / root_t + gap * eps)
        if alpha_bar_s < 1 and weight:
            again = predict_eps(*place(x_t, x_s, alpha_bar_t, alpha_bar_s))
            x_s = root_s * (x_t / root_t + gap * ((1 - weight) * eps + weight * again))
        return x_s if end is None else end(x_s, alpha_bar_s)

    return answer


def beta_itself(beta: float, a_s: float, a_t: float) -> float:
    return beta


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("7.1", draw(level=1), r"is \S+, too \w+ by \S+ The network is asked about another"),
        ("7.1", draw(size=beta_itself), "multiplied by a variance"),
        ("7.1", draw(last_noise=1), "added in the last step too"),
        ("7.1", draw(level=1, size=beta_itself), "Two slips are left"),
        ("7.1", draw(size=beta_itself, last_noise=1), "Two slips are left"),
        ("7.1", draw(level=1, last_noise=1), "Two slips are left"),
        ("7.1", draw(size=lambda b, a, c: (b * (1 - a) / (1 - c)) ** 0.5), "smaller variance of the posterior"),
        ("7.1", draw(last_noise=3), "from 2 to 1 has its noise"),
        ("7.1", draw(last_noise=99), "no noise at all"),
        ("7.1", draw(size=lambda b, a, c: (b / (1 - b)) ** 0.5), "divide the noise by"),
        ("7.1", draw(level=-1), "expected a step from 0 to T"),
        ("7.2", variance(start=lambda v, a: a * v + 1 - a), "how does it begin"),
        ("7.2", variance(square=lambda a, b: a**2 + b**2), "add before squaring"),
        ("7.2", variance(fresh=lambda eta, p: eta * p), "another power"),
        ("7.2", variance(fresh=lambda eta, p: (eta * p) ** 0.5), "standard deviation stands where"),
        ("7.2", variance(kept=0), "left out the fresh noise"),
        ("7.2", variance(data=lambda v: 1.0), "data with variance 1"),
        ("7.2", variance(end=lambda x: x**0.5), "the variance was asked for"),
        ("7.2", lambda v, eta, alpha_bars: v, "limit of many steps"),
        ("7.3", heun(weight=0), "That is DDIM"),
        ("7.3", heun(weight=1), "second prediction alone"),
        ("7.3", heun(lambda x, y, a, b: (x, b)), "made from x_t"),
        ("7.3", heun(lambda x, y, a, b: (y, a)), "is told that of t"),
        ("7.3", heun(lambda x, y, a, b: (y / b.sqrt(), b)), "trained on the state itself"),
        ("7.3", heun(straight=False), "you drew it for x itself"),
        ("7.3", heun(end=lambda x, b: x / b.sqrt()), "return the state divided"),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_a_prediction_where_no_noise_is_left_is_refused() -> None:
    def greedy(x_t: Any, alpha_bar_t: Any, alpha_bar_s: Any, predict_eps: Callable[..., Any]) -> Any:
        return predict_eps(x_t, alpha_bar_s)

    message = verdict("7.3", greedy)
    assert message is not None
    assert "there is noise to predict only between 0 and 1" in message


def test_the_right_answers_of_these_tests_pass() -> None:
    """They are written independently of the notebook's solutions."""
    for number, answer in (("7.1", draw()), ("7.2", variance()), ("7.3", heun())):
        assert verdict(number, answer) is None


def test_the_predictions_of_the_solutions_hold(solution: Any) -> None:
    """Few steps are too narrow, the more so with noise; many lead to v; drawn samples have the computed variance."""
    q = GaussianDiffusion(linear_schedule())
    v = torch.tensor(0.25, dtype=torch.float64)

    def spread(eta: float, steps: int) -> float:
        levels = q.schedule.alpha_bar(torch.tensor(grid(1000, steps)))
        return solution("7.2")(v, torch.tensor(eta, dtype=torch.float64), levels).item()

    five = [spread(eta, 5) for eta in (0.0, 0.3, 0.7, 1.0)]
    assert all(left > right for left, right in zip([v.item(), *five], five))
    assert all(abs(spread(eta, 1000) / v - 1) < 0.02 for eta in (0.0, 1.0))

    generator = torch.Generator().manual_seed(0)
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), v.reshape(1))
    x_T = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    x = last(walk(DDIM(q, data.denoiser(q), 0.7), x_T, grid(1000, 5), generator)).x
    assert abs(x.var().item() / spread(0.7, 5) - 1) < 4 * math.sqrt(2 / len(x))


def test_the_corrected_step_is_of_second_order(solution: Any) -> None:
    """Halving the step divides the error by about four, and DDIM's by about two; along σ the levels are even."""
    predict, x = _TwoModes(0.5), torch.tensor([0.3, 1.4], dtype=torch.float64)

    def walked(step: Any, steps: int) -> Any:
        levels = 1 / (1 + torch.linspace(3, 0.2, steps + 1, dtype=torch.float64) ** 2)
        state = x
        for a_t, a_s in pairwise(levels):
            state = step(state, a_t, a_s, predict)
        return state

    reference = walked(solution("7.3"), 2000)
    for step, ratio in ((solution("7.3"), 4), (heun(weight=0), 2)):
        coarse, fine = ((walked(step, n) - reference).abs().max() for n in (40, 80))
        assert coarse / fine == pytest.approx(ratio, rel=0.15)
