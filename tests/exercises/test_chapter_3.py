"""Exercises of chapter 3: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, linear_schedule

NUMBERS = ("3.1", "3.2", "3.3", "3.4")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def bridge(change: Callable[..., Any]) -> Callable[..., Any]:
    """An answer to 3.1 as a function of the right mean and variance and of all arguments x, y, r, s, t."""

    def answer(x_r: Any, x_t: Any, alpha_bar_r: Any, alpha_bar_s: Any, alpha_bar_t: Any) -> Any:
        mean, var = right_bridge(x_r, x_t, alpha_bar_r, alpha_bar_s, alpha_bar_t)
        return change(mean, var, x_r, x_t, alpha_bar_r, alpha_bar_s, alpha_bar_t)

    return answer


def right_bridge(x: Any, y: Any, r: Any, s: Any, t: Any) -> tuple[Any, Any]:
    """Precisions add: the transition from r and the one to t, seen as a law of x_s (with a variance 0 allowed)."""
    from_r, to_t = 1 - s / r, (1 - t / s) * s / t
    mean = ((s / r) ** 0.5 * x * to_t + y * (s / t) ** 0.5 * from_r) / (from_r + to_t)
    return mean, from_r * to_t / (from_r + to_t)


def weights(on_x_t: Callable[..., Any]) -> Callable[..., Any]:
    """An answer to 3.2 with a weight on x_t, and the weight on x_0 that follows from it."""
    return lambda var, alpha_bar_s, alpha_bar_t: (
        alpha_bar_s.sqrt() - on_x_t(var, alpha_bar_s, alpha_bar_t) * alpha_bar_t.sqrt(),
        on_x_t(var, alpha_bar_s, alpha_bar_t),
    )


def right_weight(var: Any, s: Any, t: Any) -> Any:
    return ((1 - s - var) / (1 - t)).sqrt()


def guess(log_weights: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x_t, points, alpha_bar: log_weights(x_t, points, alpha_bar).softmax(0) @ points


def costs(cost: Callable[[Any], Any], first: int = 2) -> Callable[..., Any]:
    """An answer to 3.4 from the ratios of the exact variance to β_t and to the posterior variance."""

    def answer(v: float, betas: torch.Tensor) -> Any:
        schedule = NoiseSchedule.from_betas(betas)
        t = torch.arange(first, schedule.T + 1)
        r = (1 - schedule.alpha_bar(t - 1) * (1 - v)) / (1 - schedule.alpha_bar(t) * (1 - v))
        return cost(r), cost(r * schedule.beta(t) / posterior_var(*schedule.levels(t - 1, t)))

    return answer


def kl(r: Any) -> Any:
    return 0.5 * (r - 1 - r.log())


def naive(x_t: Any, points: Any, alpha_bar: Any) -> Any:
    density = Gaussian(alpha_bar.sqrt() * points, 1 - alpha_bar).log_prob(x_t).exp()
    return (density[:, None] * points).sum(0) / density.sum()


SLIPS = [
    (
        "3.1",
        lambda x_r, x_t, alpha_bar_r, alpha_bar_s, alpha_bar_t: right_bridge(x_r, x_t, 1.0, alpha_bar_s, alpha_bar_t),
        "treated x_r as clean data",
    ),
    (
        "3.1",
        lambda x_r, x_t, alpha_bar_r, alpha_bar_s, alpha_bar_t: right_bridge(
            x_r / alpha_bar_r.sqrt(), x_t, 1.0, alpha_bar_s, alpha_bar_t
        ),
        "x_r holds noise",
    ),
    ("3.1", bridge(lambda mean, var, x, y, r, s, t: ((s / r).sqrt() * x, var)), "ignores x_t"),
    ("3.1", bridge(lambda mean, var, x, y, r, s, t: (((s - t) * x + (r - s) * y) / (r - t), var)), "the states shrink"),
    ("3.1", bridge(lambda mean, var, x, y, r, s, t: (mean / (s / r).sqrt(), var)), "mean is too large by the factor"),
    (
        "3.1",
        bridge(lambda mean, var, x, y, r, s, t: (mean, right_bridge(x, y, 1.0, s, t)[1])),
        "the variance is .* count since r",
    ),
    ("3.1", bridge(lambda mean, var, x, y, r, s, t: (mean, 1 - s / r)), "x_s given x_r alone. Knowing"),
    ("3.1", bridge(lambda mean, var, x, y, r, s, t: (mean, var.sqrt())), "That is the standard deviation"),
    ("3.1", bridge(lambda mean, var, x, y, r, s, t: (mean, 1 - t / s)), "the step from s to t"),
    (
        "3.2",
        lambda var, alpha_bar_s, alpha_bar_t: (alpha_bar_s.sqrt(), right_weight(var, alpha_bar_s, alpha_bar_t)),
        "x_t brings signal along, too",
    ),
    (
        "3.2",
        lambda var, alpha_bar_s, alpha_bar_t: (
            alpha_bar_s.sqrt() + alpha_bar_t.sqrt() * right_weight(var, alpha_bar_s, alpha_bar_t),
            right_weight(var, alpha_bar_s, alpha_bar_t),
        ),
        "A sign",
    ),
    ("3.2", weights(lambda var, s, t: (1 - s - var).sqrt()), "weight on the noise"),
    ("3.2", weights(lambda var, s, t: ((1 - s - var.sqrt()) / (1 - t)).sqrt()), "subtracted the standard deviation"),
    ("3.2", weights(lambda var, s, t: (1 - s - var) / (1 - t)), "the weight enters it squared"),
    ("3.2", weights(lambda var, s, t: ((1 - s) / (1 - t)).sqrt()), "left out the fresh noise"),
    ("3.2", weights(lambda var, s, t: (t / s).sqrt() * (1 - s) / (1 - t)), "weights of the posterior"),
    (
        "3.2",
        lambda var, alpha_bar_s, alpha_bar_t: weights(right_weight)(var, alpha_bar_s, alpha_bar_t)[::-1],
        "weights are exchanged",
    ),
    ("3.3", guess(lambda x, p, a: -(x - p).square().sum(1) / (2 * (1 - a))), "with the points themselves"),
    ("3.3", guess(lambda x, p, a: -(x - a.sqrt() * p).square().sum(1) / (1 - a)), "factor ½"),
    (
        "3.3",
        guess(lambda x, p, a: -(x - a.sqrt() * p).square().sum(1) / (2 * (1 - a).sqrt())),
        "standard deviation of the noise",
    ),
    ("3.3", guess(lambda x, p, a: -(x - a.sqrt() * p).norm(dim=1) / (2 * (1 - a))), "holds the squared distance"),
    ("3.3", guess(lambda x, p, a: -(x - a.sqrt() * p).square().mean(1) / (2 * (1 - a))), "their log densities add up"),
    ("3.3", guess(lambda x, p, a: -(x / a.sqrt() - p).square().sum(1) / (2 * (1 - a))), "divided x_t by its signal"),
    (
        "3.3",
        lambda x_t, points, alpha_bar: points[(x_t - alpha_bar.sqrt() * points).norm(dim=1).argmin()],
        "chose the nearest point",
    ),
    ("3.3", lambda x_t, points, alpha_bar: points.mean(0), "ignores x_t"),
    ("3.3", naive, "not finite .* below the smallest float64"),
    ("3.4", costs(lambda r: kl(1 / r).sum()), "The other direction"),
    ("3.4", costs(lambda r: 2 * kl(r).sum()), "factor ½"),
    ("3.4", costs(lambda r: kl(r).mean()), "averaged over the steps"),
    ("3.4", costs(lambda r: kl(r.sqrt()).sum()), "compared standard deviations"),
    ("3.4", costs(lambda r: (0.5 * r.log()).sum().abs()), "difference of the entropies"),
    ("3.4", costs(lambda r: kl(r).sum(), first=1), "included t = 1"),
    (
        "3.4",
        lambda v, betas: costs(lambda r: kl(r).sum())(v, betas)[::-1],
        "exchanged",
    ),
]


@pytest.mark.parametrize(("number", "answer", "phrase"), SLIPS)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_the_right_answers_of_these_tests_pass() -> None:
    """They are written independently of the notebook's solutions."""
    assert verdict("3.1", bridge(lambda mean, var, *rest: (mean, var))) is None
    assert verdict("3.4", costs(lambda r: kl(r).sum())) is None


def test_the_answers_mean_what_the_exercises_say(solution: Any) -> None:
    """The bridge from x_0 is the posterior; any variance keeps the marginal; the guess is the package's denoiser."""
    q = GaussianDiffusion(linear_schedule(10, 0.1, 0.5))
    a_s, a_t = q.schedule.alpha_bar(4), q.schedule.alpha_bar(9)
    x_0, x_t = (torch.tensor(x, dtype=torch.float64) for x in (0.7, -1.2))
    one, posterior = torch.ones((), dtype=torch.float64), q.posterior(x_0, x_t, 4, 9)
    for found, expected in zip(solution("3.1")(x_0, x_t, one, a_s, a_t), (posterior.mean, posterior.var)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    for var in (0.0, posterior.var, 0.1, 1 - a_s):
        w_0, w_t = solution("3.2")(var, a_s, a_t)
        after = Gaussian((w_0 + w_t * a_t.sqrt()) * x_0, w_t**2 * (1 - a_t) + var)
        torch.testing.assert_close(after.mean, q.marginal(x_0, 4).mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(after.var, q.marginal(x_0, 4).var, rtol=1e-12, atol=0)
    w_0, w_t = solution("3.2")(posterior.var, a_s, a_t)
    torch.testing.assert_close(w_0 * x_0 + w_t * x_t, posterior.mean, rtol=1e-12, atol=0)

    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = GaussianMixture(torch.ones(6), points, torch.full((6,), 1e-15, dtype=torch.float64))
    state = torch.tensor([[0.2, -0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(solution("3.3")(state[0], points, a_s), law.denoiser(q)(state, 4)[0])


def test_the_prediction_of_the_last_solution_holds(solution: Any) -> None:
    """For v = 0.25 the forward variance is better, by the first steps; for v near β_1 the posterior variance is."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    forward, posterior = solution("3.4")(0.25, betas)
    assert forward < 0.01 * posterior
    assert solution("3.4")(0.25, betas[:20])[1] > 0.9 * posterior
    forward, posterior = solution("3.4")(1e-4, betas)
    assert posterior < 0.5 * forward
