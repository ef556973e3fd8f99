"""Exercises of chapter 1: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict
from ddpm_nb.gaussian import Gaussian

NUMBERS = ("1.1", "1.2", "1.3", "1.4")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def fused_var(variances: torch.Tensor) -> torch.Tensor:
    return 1 / (1 / variances).sum()


def fused(values: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    return (values / variances).sum() * fused_var(variances)


def divergence(mean_1: Any, log_var_1: Any, mean_2: Any, log_var_2: Any) -> Any:
    delta = log_var_1 - log_var_2
    return 0.5 * (torch.expm1(delta) - delta + (mean_1 - mean_2) ** 2 * torch.exp(-log_var_2))


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("1.1", lambda values, variances: (values.mean(), fused_var(variances)), "the mean is .* same weight"),
        (
            "1.1",
            lambda values, variances: ((values / variances.sqrt()).sum() / variances.rsqrt().sum(), 1.0),
            "inverse standard deviation",
        ),
        (
            "1.1",
            lambda values, variances: ((values * variances).sum() / variances.sum(), 1.0),
            "the worst measurement has the most to say",
        ),
        ("1.1", lambda values, variances: ((values / variances).sum(), 1.0), "do not add up to one"),
        (
            "1.1",
            lambda values, variances: (fused(values, variances), variances.sum()),
            "the variance is .* too large .* Variances add for a sum",
        ),
        (
            "1.1",
            lambda values, variances: (fused(values, variances), variances.sum() / len(variances) ** 2),
            "plain average",
        ),
        (
            "1.1",
            lambda values, variances: (fused(values, variances), 1 / fused_var(variances)),
            "That is the precision",
        ),
        (
            "1.1",
            lambda values, variances: (fused(values, variances), len(values) * fused_var(variances)),
            "averaged the precisions",
        ),
        (
            "1.1",
            lambda values, variances: (fused(values, variances), fused_var(variances) ** 0.5),
            "That is the standard deviation",
        ),
        ("1.1", lambda values, variances: fused(values, variances), "one value, expected 2"),
        ("1.1", lambda values, variances: (values, variances), r"shape \(2,\), expected \(\)"),
        ("1.2", lambda weights, means, variances: (means.mean(), variances.mean()), "left out the weights"),
        (
            "1.2",
            lambda weights, means, variances: (means[weights.argmax()], variances[weights.argmax()]),
            "one part only",
        ),
        (
            "1.2",
            lambda weights, means, variances: ((weights * means).sum(), (weights * variances).sum()),
            "different places",
        ),
        (
            "1.2",
            lambda weights, means, variances: (
                (weights * means).sum(),
                (weights * means**2).sum() - (weights * means).sum() ** 2,
            ),
            "each part is itself spread",
        ),
        (
            "1.2",
            lambda weights, means, variances: ((weights * means).sum(), (weights * (variances + means**2)).sum()),
            "second moment about 0",
        ),
        (
            "1.2",
            lambda weights, means, variances: ((weights * means).sum(), (weights**2 * variances).sum()),
            "from one part",
        ),
        (
            "1.2",
            lambda weights, means, variances: ((weights * means).sum(), (weights * variances.sqrt()).sum() ** 2),
            "Standard deviations do not average",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: divergence(mean_2, log_var_2, mean_1, log_var_1),
            "other direction",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: (
                0.5 * ((mean_1 - mean_2) ** 2 / log_var_2 + log_var_1 / log_var_2 - 1 - (log_var_1 / log_var_2).log())
            ),
            "as if it were the variance",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: divergence(mean_1, 2 * log_var_1, mean_2, 2 * log_var_2),
            "as a standard deviation",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: (
                divergence(0, log_var_1, 0, log_var_2) + 0.5 * (mean_1 - mean_2) ** 2 / log_var_1.exp()
            ),
            "units of the wrong law",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: 2 * divergence(mean_1, log_var_1, mean_2, log_var_2),
            "factor ½",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: (
                divergence(mean_1, log_var_1, mean_2, log_var_2) + log_var_1 - log_var_2
            ),
            "The sign",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: divergence(mean_1, log_var_1, mean_2, log_var_2) + 0.5,
            "a constant is missing",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: (
                0.5
                * (
                    (log_var_1 - log_var_2).exp()
                    - 1
                    - (log_var_1 - log_var_2)
                    + (mean_1 - mean_2) ** 2 / log_var_2.exp()
                )
            ),
            "log variances 1e-6 apart",
        ),
        (
            "1.3",
            lambda mean_1, log_var_1, mean_2, log_var_2: Gaussian(mean_1, log_var_1.exp()).kl(
                Gaussian(mean_2, log_var_2.exp())
            ),
            "below the smallest float64",
        ),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: 2 / relative * (var / (mean_1 - mean_2).square().sum()).sqrt(),
            "square is missing",
        ),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: 4 * var / (mean_1 - mean_2).square().sum() / relative,
            "tolerance enters squared",
        ),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: (mean_1 - mean_2).square().sum() / var / relative**2,
            "absolute error",
        ),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: 4 * var**2 / (mean_1 - mean_2).square().sum() / relative**2,
            "variance as a standard deviation",
        ),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: 2 * var / (mean_1 - mean_2).square().sum() / relative**2,
            "variance of the log ratio to be its mean",
        ),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: var / (mean_1 - mean_2).square().sum() / relative**2,
            "Check the ½",
        ),
        ("1.4", lambda mean_1, mean_2, var, relative: 4 / relative**2, "not with its square"),
        (
            "1.4",
            lambda mean_1, mean_2, var, relative: 4 * var / (mean_1 - mean_2).sum() ** 2 / relative**2,
            "squares of the differences add up",
        ),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_other_right_answers_pass() -> None:
    """Sequential updates, numbers instead of tensors, and a KL that rounds once more than the solution."""

    def one_by_one(values: torch.Tensor, variances: torch.Tensor) -> tuple[float, float]:
        mean, var = values[0].item(), variances[0].item()
        for value, other in zip(values[1:].tolist(), variances[1:].tolist()):
            mean, var = (mean * other + value * var) / (var + other), var * other / (var + other)
        return mean, var

    def by_log1p(mean_1: Any, log_var_1: Any, mean_2: Any, log_var_2: Any) -> float:
        excess = math.expm1(log_var_1 - log_var_2)
        return 0.5 * (excess - (log_var_1 - log_var_2) + (mean_1 - mean_2) ** 2 / math.exp(log_var_2))

    assert verdict("1.1", one_by_one) is None
    assert verdict("1.3", by_log1p) is None


def test_a_nearly_right_answer_and_a_value_instead_of_a_function_are_named() -> None:
    def in_single_precision(values: torch.Tensor, variances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fused(values.float(), variances.float()), fused_var(variances.float())

    assert "single-precision" in verdict("1.1", in_single_precision)
    assert "expected a function" in verdict("1.1", 3.0).lower()
    assert "ZeroDivisionError" in verdict("1.1", lambda values, variances: 1 / 0)
