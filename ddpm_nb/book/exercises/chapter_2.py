"""Chapter 2: a schedule without noise, a chain with fewer steps, data of another scale, the shortest chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64
from ddpm_nb.schedule import linear_schedule

# 2.1: variances whose square roots lie on a line


def _quadratic_betas(T: int, beta_1: float, beta_T: float) -> Tensor:
    first, last = math.sqrt(beta_1), math.sqrt(beta_T)
    roots = [
        first + (last - first) * (t - 1) / max(T - 1, 1)
        for t in range(1, T + 1)
    ]
    return f64([root**2 for root in roots])


def _line(start: float, end: float, T: int) -> Tensor:
    return torch.linspace(start, end, T, dtype=torch.float64)


def _exercise_2_1(answer: Any) -> None:
    cases = [
        {"T": 200, "beta_1": 1e-4, "beta_T": 0.02},
        {"T": 1000, "beta_1": 1e-4, "beta_T": 0.02},
        {"T": 7, "beta_1": 0.01, "beta_T": 0.64},
        {"T": 2, "beta_1": 0.1, "beta_T": 0.2},
        {"T": 1, "beta_1": 0.25, "beta_T": 0.81},
    ]
    slips = [
        Slip(
            lambda T, beta_1, beta_T: _line(beta_1**2, beta_T**2, T) ** 2,
            "This is the published line. At T = 200 it leaves ᾱ_T above 0.9999: the chain adds no noise. Which power "
            "of β is to lie on a line, and what turns that power back into β?",
        ),
        Slip(
            lambda T, beta_1, beta_T: _line(beta_1, beta_T, T) ** 2,
            "The ends are not β_1 and β_T: you squared a line between the variances themselves.",
        ),
        Slip(
            lambda T, beta_1, beta_T: _line(
                math.sqrt(beta_1), math.sqrt(beta_T), T
            ),
            "Those are the standard deviations of the steps; the variances were asked for.",
        ),
        Slip(
            lambda T, beta_1, beta_T: _line(beta_1**2, beta_T**2, T).sqrt(),
            "The ends are right, but you put the squares on a line: most of the chain is noisier than it should be.",
        ),
        Slip(
            lambda T, beta_1, beta_T: _line(beta_1, beta_T, T),
            "That is the linear schedule: the variances lie on a line, their square roots do not.",
        ),
    ]
    compare(answer, _quadratic_betas, cases, slips, outputs=("β",))


# 2.2: a chain that visits only some of the steps


def _respaced_betas(alpha_bars: Tensor, kept: list[int]) -> Tensor:
    """Solve the recursion of the variance, v' = (1 − β) v + β, for the β that leads to the next kept level."""
    levels = [1 - alpha_bars[t].item() for t in [0, *kept]]
    betas = [(after - v) / (1 - v) for v, after in pairwise(levels)]
    return f64(betas)


def _slip_2_2(
    value: Callable[[Tensor, int, int], Tensor], message: str
) -> Slip:
    """A slip in one new β, which leads from the kept step s to the kept step t."""
    return Slip(
        lambda alpha_bars, kept: torch.stack(
            [value(alpha_bars, s, t) for s, t in zip([0, *kept], kept)]
        ),
        message,
    )


def _exercise_2_2(answer: Any) -> None:
    linear = linear_schedule(1000).log_alpha_bars.exp()
    few = f64([1.0, 0.9, 0.6, 0.5, 0.2, 0.05])
    cases = [
        {"alpha_bars": few, "kept": [2, 5]},
        {"alpha_bars": few, "kept": [1, 2, 3, 4, 5]},
        {"alpha_bars": few, "kept": [4]},
        {"alpha_bars": linear, "kept": list(range(20, 1001, 20))},
        {"alpha_bars": linear, "kept": [1, 3, 10, 200, 900]},
    ]
    slips = [
        _slip_2_2(
            lambda a, s, t: 1 - a[t] / a[t - 1],
            "You kept the old variances of the kept steps: the noise of the steps between is lost, and the chain ends "
            "far from noise.",
        ),
        _slip_2_2(
            lambda a, s, t: (1 - a[s + 1 : t + 1] / a[s:t]).sum(),
            "You added up the variances of the merged steps; the later ones wear down the noise of the earlier.",
        ),
        _slip_2_2(
            lambda a, s, t: 1 - a[t],
            "That is all the noise since x_0. A step adds only what came since the kept step before it.",
        ),
        _slip_2_2(
            lambda a, s, t: a[s] - a[t],
            "That is the power lost, measured against the power of x_0; the step starts from what is left by then.",
        ),
        _slip_2_2(
            lambda a, s, t: 1 - (a[t] / a[s]).sqrt(),
            "You took the root: α scales a variance, its root scales the state.",
        ),
        _slip_2_2(
            lambda a, s, t: a[t] / a[s],
            "That is the signal kept by the step; the noise it adds was asked for.",
        ),
    ]
    compare(answer, _respaced_betas, cases, slips, outputs=("the new β",))


# 2.3: data of another scale


def _equivalent_alpha_bar(alpha_bar: Tensor, c: Tensor) -> Tensor:
    """A scale of the data shifts the logarithm of the signal-to-noise ratio."""
    return torch.sigmoid(torch.logit(alpha_bar) + 2 * c.log())


def _exercise_2_3(answer: Any) -> None:
    levels = f64([0.9, 0.5, 0.1, 1e-4])
    cases = [
        {"alpha_bar": levels, "c": f64(0.5)},
        {"alpha_bar": levels, "c": f64(4.0)},
        {"alpha_bar": levels, "c": f64(1.0)},
        {"alpha_bar": f64([1.0, 0.0]), "c": f64(0.3)},
    ]

    def ratio(signal: Tensor, noise: Tensor) -> Tensor:
        return signal / (signal + noise)

    slips = [
        Slip(
            lambda alpha_bar, c: c**2 * alpha_bar,
            "Signal and noise do not add up to one: after scaling the data the whole state has to be rescaled.",
        ),
        Slip(
            lambda alpha_bar, c: c * alpha_bar,
            "You scaled the power by c, and signal and noise do not add up to one.",
        ),
        Slip(
            lambda alpha_bar, c: ratio(c * alpha_bar, 1 - alpha_bar),
            "ᾱ is a power: how does a power change when the amplitude is multiplied by c?",
        ),
        Slip(
            lambda alpha_bar, c: ratio(alpha_bar, c**2 * (1 - alpha_bar)),
            "The direction is the opposite one: data of smaller contrast drown in noise sooner.",
        ),
        Slip(
            lambda alpha_bar, c: ratio(
                c * alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            ),
            "You added amplitudes; powers, that is variances, add up.",
        ),
        Slip(
            lambda alpha_bar, c: (
                (alpha_bar / (1 - alpha_bar) * c**2)
                / (1 + alpha_bar / (1 - alpha_bar) * c**2)  # inf / inf at ᾱ = 1
            ),
            "Right between 0 and 1. For clean data the signal-to-noise ratio is infinite: multiply out by the noise.",
        ),
    ]
    compare(answer, _equivalent_alpha_bar, cases, slips, outputs=("ᾱ'",))


# 2.4: the shortest chain that ends close enough to noise


@cache
def _ends() -> Tensor:
    """ᾱ_T of the linear schedule with unchanged ends, for T = 1, 2, .., 1200."""
    return torch.stack(
        [torch.log1p(-_line(1e-4, 0.02, T)).sum().exp() for T in range(1, 1201)]
    )


def _first(loss: Callable[[Tensor], Tensor], limit: float) -> int:
    """The smallest T at which the loss, as a function of ᾱ_T, is at most the limit; 0 if there is none."""
    below = (loss(_ends()) <= limit).nonzero()
    return int(below[0]) + 1 if len(below) else 0


def _nats(alpha_bar: Tensor, power: float) -> Tensor:
    return 0.5 * (alpha_bar * (power - 1) - torch.log1p(-alpha_bar))


def _shortest_chain(limit: float, power: float) -> int:
    return _first(lambda a: _nats(a, power) / math.log(2), limit)


def _exercise_2_4(answer: Any) -> None:
    cases = [
        {"limit": 0.01, "power": 1.0},
        {"limit": 0.025, "power": 0.3},
        {"limit": 0.002, "power": 0.65},
        {"limit": 0.5, "power": 2.0},
        {"limit": 1.5, "power": 0.0},
    ]
    slips = [
        Slip(
            lambda limit, power: _first(lambda a: _nats(a, power), limit),
            "You compared nats with a limit in bits.",
        ),
        Slip(
            lambda limit, power: _first(
                lambda a: _nats(a, power) * math.log(2), limit
            ),
            "From nats to bits one divides by log 2: a bit is less than a nat.",
        ),
        Slip(
            lambda limit, power: _first(
                lambda a: _nats(a, 1.0) / math.log(2), limit
            ),
            "The answer does not depend on the data: bright data are further from noise.",
        ),
        Slip(
            lambda limit, power: _first(
                lambda a: 0.5 * power * a / math.log(2), limit
            ),
            "You used the approximation for small ᾱ_T; a limit this generous is reached where ᾱ_T is not small.",
        ),
        Slip(
            lambda limit, power: _first(
                lambda a: 2 * _nats(a, power) / math.log(2), limit
            ),
            "A factor ½ of the divergence is missing.",
        ),
        Slip(
            lambda limit, power: _shortest_chain(limit, power) - 1,
            "One step short: there the limit is still exceeded.",
        ),
        Slip(
            lambda limit, power: _shortest_chain(limit, power) + 1,
            "One step too many: the smallest T was asked for.",
        ),
        Slip(
            lambda limit, power: _first(
                lambda a: _nats(a.sqrt(), power) / math.log(2), limit
            ),
            "You put the amplitude √ᾱ_T where the power ᾱ_T belongs.",
        ),
    ]
    compare(answer, _shortest_chain, cases, slips, outputs=("T",))


EXERCISES: dict[str, Exercise] = {
    "2.1": _exercise_2_1,
    "2.2": _exercise_2_2,
    "2.3": _exercise_2_3,
    "2.4": _exercise_2_4,
}
