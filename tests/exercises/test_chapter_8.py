"""Exercises of chapter 8: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.inverse import Likelihood, Matrix, Measurement, denoising_level, gaussian_spread, guided, twisted_walk
from ddpm_nb.schedule import linear_schedule

NUMBERS = ("8.1", "8.2", "8.3", "8.4", "8.5")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def operator(x: Any) -> Any:
    """The operator of 8.1 on the last dimension."""
    padded = torch.cat([x[..., :1], x], -1)
    return (padded[..., 0:-1:2] + padded[..., 1::2] + padded[..., 2::2]) / 3


def sent_back(y: Any, places: Any, weight: float = 1 / 3) -> Any:
    """Each measured number added to the listed places, given as a function of its index and of the length."""
    x = [0.0] * (2 * len(y))
    for i, value in enumerate(y.tolist()):
        for place in places(i, len(x)):
            x[place] += weight * value
    return x


def exposed(ratio: Any, alpha_bar: Any = lambda r: r / (1 + r), state: Any = None) -> Any:
    """An answer to 8.2 from a signal-to-noise ratio of gains and deviations, and a state of y, c, s and ᾱ."""

    def answer(y: Any, gains: Any, sigmas: Any) -> Any:
        level = alpha_bar(ratio(gains, sigmas))
        if state is None:
            return level, y[0]
        return level, state(y, gains[:, None], sigmas[:, None], level)

    return answer


def powers(gains: Any, sigmas: Any) -> Any:
    return (gains**2 / sigmas**2).sum()


def estimate(y: Any, c: Any, s: Any) -> Any:
    return (c * y / s**2).sum(0) / (c**2 / s**2).sum()


def left(cov: Any, a: Any) -> Any:
    """The covariance of x_0 given x_t by conditioning, with the subtraction."""
    return cov - a * cov @ torch.linalg.solve(a * cov + (1 - a) * torch.eye(len(cov)).double(), cov)


def informed(matrix: Any = left, guess: Any = None) -> Any:
    """An answer to 8.3 from a matrix, and a guess from x̂_0, the right matrix and everything else."""

    def answer(x_t: Any, y: Any, mean: Any, cov: Any, A: Any, alpha_bar: Any, sigma_y: float) -> Any:
        eye = torch.eye(len(cov)).double()
        x_0 = kalman(mean, cov, alpha_bar.sqrt() * eye, x_t, 1 - alpha_bar)
        R = left(cov, alpha_bar)
        found = kalman(x_0, R, A, y, sigma_y**2) if guess is None else guess(x_0, R, A, y, sigma_y, mean, cov)
        return matrix(cov, alpha_bar), found

    return answer


def kalman(mean: Any, cov: Any, A: Any, y: Any, var: Any) -> Any:
    gain = cov @ A.mT @ torch.linalg.inv(A @ cov @ A.mT + var * torch.eye(len(y)).double())
    return mean + gain @ (y - A @ mean)


def normal(x: Any) -> Any:
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def covered(half: Any = lambda c, z, level: c * z, shift: Any = lambda b, c: b, end: Any = lambda p, level: p) -> Any:
    """An answer to 8.4 from half the width of the interval, its shift, and a last change."""

    def answer(bias: Any, spread: Any, level: Any) -> Any:
        h, b = half(spread, torch.special.ndtri((1 + level) / 2), level), shift(bias, spread)
        return end(normal(b + h) - normal(b - h), level)

    return answer


def weighed(
    change: Any = lambda drift, square, before, after: square - drift + after - before, total: Any = torch.sum
) -> Any:
    """An answer to 8.5 from ⟨g, x − μ⟩, σ²‖g‖²/2 and the two guesses."""

    def answer(x_s: Any, mean: Any, var: Any, gradient: Any, before: Any, after: Any) -> Any:
        drift, square = gradient * x_s - gradient * mean, gradient * gradient * var / 2
        return change(total(drift, 1), total(square, 1), before, after)

    return answer


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("8.1", lambda y: sent_back(y, lambda i, n: [j for j in (2 * i - 1, 2 * i, 2 * i + 1) if j >= 0]), "border"),
        ("8.1", lambda y: sent_back(y, lambda i, n: [(2 * i - 1) % n, 2 * i, 2 * i + 1]), "to a ring"),
        ("8.1", lambda y: sent_back(y, lambda i, n: [2 * i]), "sent back to all three"),
        ("8.1", lambda y: sent_back(y, lambda i, n: [2 * i, 2 * i + 1]), "enters both"),
        ("8.1", lambda y: sent_back(y, lambda i, n: [max(2 * i - 1, 0), 2 * i, 2 * i + 1], 1), "weights of the mean"),
        ("8.1", lambda y: torch.linalg.pinv(operator(torch.eye(2 * len(y)).double()).mT) @ y, "the pseudoinverse"),
        ("8.1", lambda y: sent_back(y, lambda i, n: [2 * i, 2 * i + 1], 1), "enlarges"),
        ("8.2", exposed(lambda c, s: (c.abs() / s).sum()), "ratio of powers"),
        ("8.2", exposed(lambda c, s: (s**-2).sum()), "gains are missing"),
        ("8.2", exposed(lambda c, s: (c**2 / s**2).mean()), "averaged the ratios"),
        ("8.2", exposed(lambda c, s: (c**2).sum() / (s**2).sum()), "plain sum of powers"),
        ("8.2", exposed(lambda c, s: c.sum() ** 2 / (s**2).sum()), "level of the sum"),
        ("8.2", exposed(powers, lambda r: r), "Which ᾱ has it"),
        ("8.2", exposed(powers, lambda r: 1 / (1 + r)), "share of the noise"),
        ("8.2", exposed(powers, state=lambda y, c, s, a: estimate(y, c, s)), "state is smaller"),
        ("8.2", exposed(powers, state=lambda y, c, s, a: a * estimate(y, c, s)), "where its root belongs"),
        ("8.2", exposed(powers, state=lambda y, c, s, a: a.sqrt() * y.mean(0)), "plain mean"),
        ("8.2", exposed(powers, state=lambda y, c, s, a: a.sqrt() * (c * y / s**2).sum(0)), "come out scaled"),
        ("8.3", informed(lambda cov, a: (1 - a) * torch.eye(len(cov))), "ΠGDM's choice"),
        ("8.3", informed(lambda cov, a: torch.zeros_like(cov)), "DPS's choice"),
        ("8.3", informed(lambda cov, a: left(torch.diag(cov.diag()), a)), "as independent"),
        ("8.3", informed(lambda cov, a: left(torch.eye(len(cov)).double() * cov.diag().mean(), a)), "average variance"),
        ("8.3", informed(lambda cov, a: cov), "before x_t was seen"),
        ("8.3", informed(lambda cov, a: left(cov, a) * a.sqrt() / (1 - a)), "Jacobian"),
        ("8.3", informed(lambda cov, a: (1 - a) * cov / (a * cov + 1 - a)), "entry by entry"),
        ("8.3", informed(guess=lambda x, R, A, y, s, m, C: x), "from x_t alone"),
        ("8.3", informed(guess=lambda x, R, A, y, s, m, C: kalman(m, C, A, y, s**2)), "from y alone"),
        ("8.3", informed(guess=lambda x, R, A, y, s, m, C: kalman(x, R, A, y, s)), "where the variance belongs"),
        ("8.3", informed(guess=lambda x, R, A, y, s, m, C: kalman(x, C, A, y, s**2)), "counted the prior twice"),
        ("8.3", informed(guess=lambda x, R, A, y, s, m, C: x + R @ A.mT @ (y - A @ x) / s**2), "that of r = 0"),
        ("8.4", covered(lambda c, z, level: c * torch.special.ndtri(level)), "check the quantile"),
        ("8.4", covered(lambda c, z, level: c**2 * z), "standard deviation already"),
        ("8.4", covered(lambda c, z, level: c**0.5 * z), "not a variance"),
        ("8.4", covered(lambda c, z, level: z / c), "wider interval must cover more"),
        ("8.4", covered(shift=lambda b, c: 0 * b), "bias is missing"),
        ("8.4", covered(shift=lambda b, c: b * c), "does not grow with the spread"),
        (
            "8.4",
            lambda bias, spread, level: 2 * normal(spread * torch.special.ndtri((1 + level) / 2) - bias.abs()) - 1,
            "falls short twice",
        ),
        ("8.4", covered(end=lambda p, level: level), "nominal level"),
        ("8.4", covered(end=lambda p, level: 1 - p), "share of misses"),
        ("8.5", weighed(lambda d, s, b, a: a - b), "drawn from the prior"),
        ("8.5", weighed(lambda d, s, b, a: d - s + a - b), "upside down"),
        ("8.5", weighed(lambda d, s, b, a: s - d + a), "cancel along the walk"),
        ("8.5", weighed(lambda d, s, b, a: s - d + b - a), "guess at t divides"),
        ("8.5", weighed(lambda d, s, b, a: s - d), "guesses at both ends"),
        ("8.5", weighed(lambda d, s, b, a: a - b - d), "to first order"),
        ("8.5", weighed(lambda d, s, b, a: 2 * s - d + a - b), "by which factor"),
        ("8.5", weighed(total=torch.mean), "took their mean"),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_the_right_answers_of_these_tests_pass() -> None:
    """They are written independently of the notebook's solutions."""
    answers = {
        "8.1": lambda y: sent_back(y, lambda i, n: [max(2 * i - 1, 0), 2 * i, 2 * i + 1]),
        "8.2": exposed(powers, state=lambda y, c, s, a: a.sqrt() * estimate(y, c, s)),
        "8.3": informed(),
        "8.4": covered(),
        "8.5": weighed(),
    }
    for number, answer in answers.items():
        assert verdict(number, answer) is None


@pytest.mark.parametrize("number", NUMBERS)
def test_arguments_may_have_any_name(number: str, solution: Any) -> None:
    answer = solution(number)
    names = [f"renamed_{i}" for i in range(len(inspect.signature(answer).parameters))]
    renamed = eval(f"lambda {', '.join(names)}: answer({', '.join(names)})", {"answer": answer})
    assert verdict(number, renamed) is None


def test_the_answers_mean_what_the_exercises_say(solution: Any) -> None:
    """The adjoint's inner products; the package's level; its guidance where the covariance is a multiple of I."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (10, 5))
    torch.testing.assert_close(operator(x) @ y, x @ solution("8.1")(y), rtol=1e-12, atol=1e-14)

    q = GaussianDiffusion(linear_schedule())
    one, sigma = torch.ones(2, dtype=torch.float64), torch.full((2,), 0.6, dtype=torch.float64)
    alpha_bar, state = solution("8.2")(x.reshape(2, 5), one, sigma)
    t = denoising_level(q.schedule, 0.6 / math.sqrt(2))
    assert q.schedule.alpha_bar(t + 1) < alpha_bar < q.schedule.alpha_bar(t - 1)
    torch.testing.assert_close(state, alpha_bar.sqrt() * x.reshape(2, 5).mean(0), rtol=1e-12, atol=0)

    mean, A = torch.tensor([0.3, -1.0]).double(), torch.tensor([[0.8, 0.6]]).double()
    data = GaussianMixture(torch.ones(1), mean[None], torch.tensor([0.5]))
    measured = Measurement(Matrix(A), y[None, :1], 0.2)
    guess = guided(data.denoiser(q), q, measured, gaussian_spread(0.5))(x[None, :2], 300)
    arguments = (x[:2], y[:1], mean, 0.5 * torch.eye(2).double(), A, q.schedule.alpha_bar(300), 0.2)
    matrix, found = solution("8.3")(*arguments)
    torch.testing.assert_close(found, guess[0], rtol=1e-9, atol=1e-12)
    spread = gaussian_spread(0.5)(q.schedule.level(300))
    torch.testing.assert_close(matrix, spread * torch.eye(2).double(), rtol=1e-9, atol=1e-12)


def test_the_weight_of_a_particle_is_the_packages(solution: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    q = GaussianDiffusion(linear_schedule())
    data = GaussianMixture(torch.ones(2), torch.eye(2), torch.tensor([0.1, 0.2]))
    m = Measurement(Matrix(torch.tensor([[0.8, 0.6]]).double()), torch.tensor([[0.4]]).double(), 0.2)
    likelihood = Likelihood(data.denoiser(q), q, m, gaussian_spread())
    x_t = torch.randn(1, 2, generator=generator, dtype=torch.float64).expand(5, 2)
    for t, s in ((400, 300), (1, 0)):
        (cloud,) = twisted_walk(likelihood, x_t, [t, s], 5, generator)
        before, after = likelihood(x_t, t), likelihood(cloud.x, s)
        step = q.posterior(before.x_0, x_t, s, t)
        gain = solution("8.5")(cloud.x, step.mean, step.var.item(), before.gradient, before.log_prob, after.log_prob)
        weights = (before.log_prob + gain).log_softmax(0)
        torch.testing.assert_close(cloud.log_weights[:, 0], weights, rtol=0, atol=1e-10)


def test_the_prediction_of_the_solution_on_coverage_holds(solution: Any) -> None:
    """An eighth more spread hides half a standard deviation of bias at 90 %; drawn truths agree."""
    half, level = torch.tensor([0.5, 0.9], dtype=torch.float64)
    low, high = (solution("8.4")(half, torch.tensor(c, dtype=torch.float64), level) for c in (1.11, 1.14))
    assert low < level < high

    n = 200_000
    truth = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = 0.7 + 0.6 * torch.special.ndtri(torch.tensor([0.05, 0.95], dtype=torch.float64))
    share = ((truth > ends[0]) & (truth < ends[1])).double().mean()
    expected = solution("8.4")(*torch.tensor([0.7, 0.6, 0.9], dtype=torch.float64))
    assert abs(share - expected) < 4 * math.sqrt(0.25 / n)
