"""Exercises of chapter 5: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.likelihood import hutchinson, signs
from ddpm_nb.sde import euler_maruyama, exact_score, linear_sde

NUMBERS = ("5.1", "5.2", "5.3", "5.4", "5.5")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def level(log_alpha_bar: torch.Tensor) -> torch.Tensor:
    return torch.expm1(-log_alpha_bar).sqrt()


def slope(change: Any) -> Any:
    """The right σ, and a derivative as a function of rate, ᾱ and σ."""
    return lambda rate, log_alpha_bar: (
        level(log_alpha_bar),
        change(rate, log_alpha_bar.exp(), level(log_alpha_bar)),
    )


def signal(sigma: torch.Tensor) -> torch.Tensor:
    return (1 + sigma**2) ** -0.5


def correlation(change: Any) -> Any:
    """A function of the forward correlation, the noise factor, ᾱ_u/ᾱ_s, and the variances at s and u."""

    def answer(alpha_bar_s: Any, alpha_bar_u: Any, var: Any, noise: Any) -> Any:
        v_s, v_u = 1 + (var - 1) * alpha_bar_s, 1 + (var - 1) * alpha_bar_u
        ratio = alpha_bar_u / alpha_bar_s
        return change((ratio * v_s / v_u).sqrt(), noise, ratio, v_s, v_u)

    return answer


def part(J: torch.Tensor) -> torch.Tensor:
    """The symmetric part."""
    return (J + J.mT) / 2


def off(J: torch.Tensor) -> torch.Tensor:
    """Sum of the squares off the diagonal."""
    return J.square().sum() - J.diagonal().square().sum()


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("5.1", lambda rate, log_alpha_bar: ((1 - log_alpha_bar.exp()).sqrt(), 0.0), "σ is .* noise of X"),
        ("5.1", lambda rate, log_alpha_bar: (level(log_alpha_bar) ** 2, 0.0), "That is the variance"),
        ("5.1", lambda rate, log_alpha_bar: (1 / level(log_alpha_bar), 0.0), "Upside down"),
        ("5.1", lambda rate, log_alpha_bar: ((-log_alpha_bar / 2).exp(), 0.0), "must start at 0"),
        ("5.1", slope(lambda r, a, s: r * (1 + s**2) / s), "its derivative is .* factor of two of the published"),
        ("5.1", slope(lambda r, a, s: r * (1 + s**2) / (4 * s)), "in the other direction"),
        ("5.1", slope(lambda r, a, s: r / a), "derivative of σ², not of σ"),
        ("5.1", slope(lambda r, a, s: (r / a).sqrt()), "diffusion of X/√ᾱ"),
        ("5.1", slope(lambda r, a, s: r / (2 * s)), "not the rate alone"),
        ("5.1", slope(lambda r, a, s: r * a / (2 * (1 - a).sqrt())), "the noise of X"),
        ("5.1", slope(lambda r, a, s: -r * (1 + s**2) / (2 * s)), "noise rises"),
        (
            "5.1",
            lambda rate, log_alpha_bar: (
                (s := (1 / log_alpha_bar.exp() - 1).sqrt()),
                rate * (1 + s**2) / (2 * s),
            ),
            "Shortly after u = 0.* σ is off",
        ),
        ("5.2", lambda score, y, sigma: score(signal(sigma) * y, signal(sigma) ** 2), "nor is its slope"),
        (
            "5.2",
            lambda score, y, sigma: score(signal(sigma) * y, signal(sigma) ** 2) / signal(sigma),
            "the wrong way round",
        ),
        ("5.2", lambda score, y, sigma: signal(sigma) * score(y, signal(sigma) ** 2), "asked at x"),
        ("5.2", lambda score, y, sigma: score(y, signal(sigma) ** 2), "which x belongs"),
        (
            "5.2",
            lambda score, y, sigma: signal(sigma) * score(y / signal(sigma), signal(sigma) ** 2),
            "smaller than x̃, not larger",
        ),
        (
            "5.2",
            lambda score, y, sigma: signal(sigma) ** 2 * score(signal(sigma) * y, signal(sigma) ** 2),
            "dx/dx̃ once",
        ),
        (
            "5.2",
            lambda score, y, sigma: signal(sigma).sqrt() * score(signal(sigma).sqrt() * y, signal(sigma)),
            "√ᾱ for ᾱ",
        ),
        (
            "5.2",
            lambda score, y, sigma: signal(sigma.sqrt()) * score(signal(sigma.sqrt()) * y, 1 / (1 + sigma)),
            "σ is a standard deviation",
        ),
        ("5.2", lambda score, y, sigma: score(y, 1 - sigma**2), r"expected a number in \(0, 1\]"),
        ("5.3", lambda b, noise: 1.0, "what the equation keeps"),
        ("5.3", lambda b, noise: 1 / (1 - b / 4), "Drift and noise both"),
        ("5.3", lambda b, noise: 1 / (1 - noise * b / 4), "factor squared"),
        ("5.3", lambda b, noise: 1 + noise**2 * b / 4, "first order"),
        ("5.3", lambda b, noise: 1 / (1 + noise**2 * b / 4), "too large, not too small"),
        ("5.3", lambda b, noise: 1 / (1 - noise**2 * b / 2), "half of something"),
        ("5.3", lambda b, noise: noise**2 * b / (1 - (1 - (1 + noise**2) * b / 2) ** 2), "left the drift f out"),
        ("5.3", lambda b, noise: noise**2 * b / (1 - (1 - (2 + noise**2) * b / 2) ** 2), "sign of rising time"),
        ("5.3", lambda b, noise: (1 - noise**2 * b / 4) ** -0.5, "standard deviation"),
        ("5.3", lambda b, noise: noise**2 * b / (1 - (1 - noise**2 * b / 2) ** 2), "not finite .* Without it"),
        ("5.3", lambda b, noise: 1 / (1 - noise**2 * b / 4), "b = 5.0, .* grows without end"),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: rho), "one member only"),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: rho**noise), "enters as a variance"),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: rho ** ((1 + noise**2) / 2)), "works against the score"),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: rho ** (2 * noise**2)), "A root is missing"),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: ratio ** (noise**2 / 2)), "data of variance 1"),
        (
            "5.4",
            correlation(lambda rho, noise, ratio, v, w: rho ** (noise**2) * (v / w).sqrt()),
            "in the mean of x_s",
        ),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: rho ** (noise**2) * (v * w).sqrt()), "the covariance"),
        ("5.4", correlation(lambda rho, noise, ratio, v, w: torch.ones_like(rho)), "forgets nothing"),
        ("5.5", lambda J: (2 * off(J), 0.0), "for signs is .* symmetric matrix"),
        ("5.5", lambda J: (2 * off(part(J)) + 2 * J.diagonal().square().sum(), 0.0), "A sign squared is 1"),
        ("5.5", lambda J: (off(part(J)), 0.0), "occurs twice"),
        ("5.5", lambda J: (4 * off(part(J)), 0.0), "counts every pair twice"),
        ("5.5", lambda J: ((2 * off(part(J))).sqrt(), 0.0), "standard deviation"),
        ("5.5", lambda J: (2 * off(part(J)), 2 * J.square().sum()), "normal entries is .* symmetric matrix"),
        ("5.5", lambda J: (2 * off(part(J)), part(J).square().sum()), "has variance 2"),
        ("5.5", lambda J: (2 * off(part(J)), 2 * off(part(J))), "random squares"),
        ("5.5", lambda J: (2 * off(part(J)), 3 * part(J).square().sum()), "fourth moment"),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


@pytest.mark.parametrize("number", NUMBERS)
def test_arguments_may_have_any_name(number: str, solution: Any) -> None:
    answer = solution(number)
    names = [f"renamed_{i}" for i in range(len(inspect.signature(answer).parameters))]
    renamed = eval(f"lambda {', '.join(names)}: answer({', '.join(names)})", {"answer": answer})
    assert verdict(number, renamed) is None


def test_the_answers_mean_what_the_exercises_say(solution: Any) -> None:
    """σ' is the slope of σ along a schedule; the scheme and the package's reverse process do what was computed."""
    sde, u, h = linear_sde(), 0.4, 1e-5
    sigma, rise = solution("5.1")(
        torch.tensor(sde.rate(u), dtype=torch.float64), torch.tensor(sde.log_alpha_bar(u), dtype=torch.float64)
    )
    later, earlier = (math.sqrt(math.expm1(-sde.log_alpha_bar(v))) for v in (u + h, u - h))
    assert rise.item() == pytest.approx((later - earlier) / (2 * h), rel=1e-6)
    assert sigma.item() == pytest.approx(math.sqrt(math.expm1(-sde.log_alpha_bar(u))))

    generator = torch.Generator().manual_seed(0)
    n, var, noise, start, stop = 20_000, 0.4, 0.7, 0.5, 0.2
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([var]))
    begin = sde.law(data, start).sample(n, generator)
    times = torch.linspace(start, stop, 201, dtype=torch.float64)
    *_, (_, end) = euler_maruyama(sde.reverse(exact_score(sde, data), noise), begin, times, generator)
    values = [math.exp(sde.log_alpha_bar(stop)), math.exp(sde.log_alpha_bar(start)), data.variances.item(), noise]
    expected = solution("5.4")(*(torch.tensor(value, dtype=torch.float64) for value in values)).item()
    found = torch.corrcoef(torch.cat([begin, end], 1).mT)[0, 1].item()
    assert abs(math.atanh(found) - math.atanh(expected)) < 4 / math.sqrt(n) + 0.005  # the rest is for the steps

    standard = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    steep = linear_sde(20.0, 20.0)
    *_, (_, settled) = euler_maruyama(
        steep.reverse(exact_score(steep, standard), 1.5),
        standard.sample(n, generator),
        torch.linspace(1, 0, 21, dtype=torch.float64),
        generator,
    )
    limit = solution("5.3")(torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)).item()
    assert abs(settled.var().item() / limit - 1) < 4 * math.sqrt(2 / n)


def test_signs_and_normal_probes_have_the_variances_of_the_exercise(solution: Any) -> None:
    """The package's estimate of the divergence of x ↦ Jx, over many probes of both kinds."""
    generator, n = torch.Generator().manual_seed(0), 200_000
    J = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    x = torch.zeros(n, 3, dtype=torch.float64)
    probes = signs(x, generator), torch.randn(x.shape, dtype=torch.float64, generator=generator)
    for probe, expected in zip(probes, solution("5.5")(J)):
        values = hutchinson(probe)(lambda y, u: y @ J.mT, x, 0.0)
        spread = (values - values.mean()).square()
        assert abs(spread.mean().item() - expected.item()) < 4 * spread.std().item() / math.sqrt(n)
        assert abs(values.mean().item() - J.trace().item()) < 4 * values.std().item() / math.sqrt(n)
