"""Chapter 9: two conventions of the weight, a tilted law, guided variances.

Answers are called by position, so readers may name the arguments as they like.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64, normal


def _exercise_9_1(answer: Any) -> None:
    cases = [
        {
            "eps_class": normal(5, 2, seed=i),
            "eps_none": normal(5, 2, seed=10 + i),
            "w_paper": w,
        }
        for i, w in enumerate((0.0, -1.0, 0.5, 3.0))
    ]

    def truth(given: Tensor, none: Tensor, w: float) -> Tensor:
        return given + w * (given - none)

    slips = [
        Slip(
            lambda eps_class, eps_none, w_paper: (
                eps_none + w_paper * (eps_class - eps_none)
            ),
            "That is this book's weight. With the paper's, w' = 0 is the conditional model.",
        ),
        Slip(
            lambda eps_class, eps_none, w_paper: (
                (1 + w_paper) * eps_none - w_paper * eps_class
            ),
            "The two predictions have changed places: which of them should the weight favour?",
        ),
        Slip(
            lambda eps_class, eps_none, w_paper: (
                (1 + w_paper) * eps_class + w_paper * eps_none
            ),
            "The two weights should sum to one, so that equal predictions stay as they are.",
        ),
    ]
    compare(answer, truth, cases, slips)


def _exercise_9_2(answer: Any) -> None:
    cases = [
        {"p": f64(p), "class_given_x": f64(given), "w": w}
        for p, given in (
            ([0.5, 0.3, 0.2], [0.9, 0.5, 0.1]),
            ([0.1, 0.2, 0.3, 0.4], [0.25, 1.0, 0.5, 0.0]),
        )
        for w in (1.0, 2.0, 5.0)
    ]

    def enumerated(
        p: Tensor, class_given_x: Tensor, w: float
    ) -> tuple[Tensor, Tensor]:
        """By the proposals: each value, how often it comes, and how often it is kept."""
        proposed = p * class_given_x
        proposed = proposed / proposed.sum()
        kept = proposed * class_given_x ** (w - 1)
        return kept / kept.sum(), kept.sum()

    def unnormalized(p: Tensor, class_given_x: Tensor, w: float) -> Tensor:
        return p * class_given_x**w

    def posterior_power(p: Tensor, class_given_x: Tensor, w: float) -> Tensor:
        mass = (p * class_given_x) ** w
        return mass / mass.sum()

    def rate(p: Tensor, class_given_x: Tensor, w: float) -> Tensor:
        return (p * class_given_x**w).sum()

    slips = [
        Slip(unnormalized, "A law sums to one: divide by the normalizer."),
        Slip(
            posterior_power,
            "Only p(y | x) is raised to the power w; p(x) stays as it is.",
        ),
        Slip(
            rate,
            "Proposals are drawn from p(x | y), whose normalizer is p(y).",
            output=1,
        ),
    ]
    compare(
        answer,
        enumerated,
        cases,
        slips,
        outputs=("tilted law", "acceptance rate"),
    )


def _exercise_9_3(answer: Any) -> None:
    cases = [
        {"tau": tau, "w": w, "alpha_bar_T": alpha_bar}
        for tau, w, alpha_bar in (
            (0.8, 1.0, 1e-4),
            (0.8, 3.0, 1e-4),
            (0.5, 5.0, 0.1),
            (2.0, 2.0, 0.3),
        )
    ]

    def integrated(
        tau: float, w: float, alpha_bar_T: float
    ) -> tuple[float, float]:
        """By quadrature of the rate of the linear flow in log u."""
        U = 1 / alpha_bar_T
        top = torch.tensor(U, dtype=torch.float64).log()
        nodes = torch.linspace(0, 1, 200_001, dtype=torch.float64) * top
        u = nodes.exp()
        rate = (1 - w) / u + w * (1 + tau**2) / ((1 + tau**2) * u - 1)
        shrunk = torch.trapezoid(rate * u, nodes)
        guided = U * (-shrunk).exp().item()
        return guided, 1 / (1 + w / tau**2)

    slips = [
        Slip(
            lambda tau, w, alpha_bar_T: (tau**2 / (1 + tau**2)) ** w,
            "That is the limit. Where does the noise at the start enter?",
        ),
        Slip(
            lambda tau, w, alpha_bar_T: tau**2 / (1 + tau**2 - alpha_bar_T),
            "The weight is missing: that is the conditional model.",
        ),
        Slip(
            lambda tau, w, alpha_bar_T: tau**2 / (1 + tau**2),
            "The precision of the measurement counts w times.",
            output=1,
        ),
    ]
    compare(
        answer,
        integrated,
        cases,
        slips,
        outputs=("variance of the guided samples", "tilted variance"),
        tolerance=1e-6,
    )


EXERCISES: dict[str, Exercise] = {
    "9.1": _exercise_9_1,
    "9.2": _exercise_9_2,
    "9.3": _exercise_9_3,
}
