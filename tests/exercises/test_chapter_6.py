"""Exercises of chapter 6: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ddpm_nb.book.exercises import verdict

NUMBERS = ("6.1", "6.2", "6.3", "6.4")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def warm(decay: float, k: int) -> float:
    return min(decay, (1 + k) / (10 + k))


def memory(rule: Any = lambda decay, k, n: warm(decay, k), end: Any = lambda w: w, swap: bool = False) -> Any:
    """An answer to 6.1: what enters at k times the product of the later decays."""

    def answer(decay: float, n: int) -> Any:
        kept = [rule(decay, k, n) for k in range(1, n + 1)]
        kept = [1 - d for d in kept] if swap else kept
        return end([(1 - kept[k - 1] if k else 1.0) * math.prod(kept[k:]) for k in range(n + 1)])

    return answer


def middle(values: Any, chance: Any) -> Any:
    """The median by the subgradient: the value with less than half of the mass on either side."""
    total = chance.sum()
    for value in values:
        if chance[values < value].sum() < total / 2 and chance[values > value].sum() <= total / 2:
            return value
    return None


def best(first: Any = lambda e, c, x, w: (c * e).sum(), second: Any = lambda e, c, x, w: middle(e, c)) -> Any:
    """An answer to 6.2 from the possible noises, their probabilities, the points and their weights."""

    def answer(x_t: Any, points: Any, weights: Any, alpha_bar: Any) -> Any:
        eps = (x_t - alpha_bar**0.5 * points) / (1 - alpha_bar) ** 0.5
        size = -(eps**2) / 2
        chance = weights * (size - size.max()).exp()
        chance = chance / chance.sum()
        return first(eps, chance, points, weights), second(eps, chance, points, weights)

    return answer


def short(g: Any, m: float) -> Any:
    norm = g.square().sum(-1, keepdim=True).sqrt()
    return torch.where(norm > m, g * m / norm.clamp(min=1e-30), g)


def whole(g: Any, sizes: Any) -> Any:
    return torch.einsum("k,kp->p", sizes / sizes.sum(), g)


def steps(change: Any, gap: Any = lambda B: 1 / B, wrap: bool = True) -> Any:
    """An answer to 6.4, in the reverse order."""

    def answer(u: float, batch_size: int, T: int) -> Any:
        places = [u + i * gap(batch_size) for i in reversed(range(batch_size))]
        return torch.tensor([change(place % 1 if wrap else place, T) for place in places])

    return answer


@pytest.mark.parametrize(
    ("number", "answer", "phrase"),
    [
        ("6.1", memory(lambda d, k, n: d), "held lower at first"),
        ("6.1", memory(lambda d, k, n: warm(d, k - 1)), "begins at 0"),
        ("6.1", memory(lambda d, k, n: max(d, (1 + k) / (10 + k))), "not higher"),
        ("6.1", memory(swap=True), "exchanged"),
        ("6.1", memory(end=lambda w: w[::-1]), "reverse order"),
        ("6.1", memory(lambda d, k, n: warm(d, n)), "each update has its own"),
        ("6.1", memory(lambda d, k, n: warm(d, n), end=lambda w: [0.0, *w[1:]]), "left the untrained weights out"),
        ("6.2", best(lambda e, c, x, w: (w * e).sum()), "before x_t was seen"),
        ("6.2", best(lambda e, c, x, w: e[c.argmax()]), "the likeliest noise"),
        ("6.2", best(lambda e, c, x, w: (c * x).sum()), "best guess of x_0"),
        ("6.2", best(lambda e, c, x, w: ((-(e**2) / 2).softmax(0) * e).sum()), "no posterior"),
        (
            "6.2",
            best(lambda e, c, x, w: (w * (-(e**2) / 2).exp() * e).sum() / (w * (-(e**2) / 2).exp()).sum()),
            "work with logarithms",
        ),
        ("6.2", best(second=lambda e, c, x, w: (c * e).sum()), "mean is best for the squared error"),
        ("6.2", best(second=lambda e, c, x, w: middle(e, w)), "median before x_t"),
        ("6.2", best(second=lambda e, c, x, w: e.median()), "noises are not equally likely"),
        ("6.2", best(second=lambda e, c, x, w: e[c.argmax()]), "counts misses"),
        ("6.2", best(second=lambda e, c, x, w: middle(x, c)), "best guess of x_0"),
        ("6.3", lambda gradients, sizes, max_norm: short(gradients.mean(0), max_norm), "counts more than"),
        ("6.3", lambda gradients, sizes, max_norm: short(gradients.sum(0), max_norm), "grow with their number"),
        ("6.3", lambda gradients, sizes, max_norm: short(sizes @ gradients, max_norm), "summed loss"),
        ("6.3", lambda gradients, sizes, max_norm: whole(short(gradients, max_norm), sizes), "every piece"),
        ("6.3", lambda gradients, sizes, max_norm: whole(gradients, sizes).clamp(-max_norm, max_norm), "direction"),
        (
            "6.3",
            lambda gradients, sizes, max_norm: torch.nn.functional.normalize(whole(gradients, sizes), dim=0) * max_norm,
            "stays as it is",
        ),
        ("6.3", lambda gradients, sizes, max_norm: whole(gradients, sizes), "did not shorten"),
        (
            "6.3",
            lambda gradients, sizes, max_norm: (
                whole(gradients, sizes)
                / whole(gradients, sizes).norm()
                * whole(gradients, sizes).norm().clamp(max=max_norm)
            ),
            "not finite .* no direction",
        ),
        ("6.4", steps(lambda p, T: int(T * p)), "from 0 to T"),
        ("6.4", steps(lambda p, T: round(T * p)), "half as often, and 0 is one"),
        ("6.4", steps(lambda p, T: max(1, round(T * p))), "not equally likely"),
        ("6.4", steps(lambda p, T: 1 + round((T - 1) * p)), "first and the last step"),
        ("6.4", steps(lambda p, T: 1 + int((T - 1) * p)), "never drawn"),
        ("6.4", steps(lambda p, T: math.ceil(T * p)), "zeta may be 0"),
        ("6.4", steps(lambda p, T: 1 + int(T * p), wrap=False), "go round"),
        ("6.4", steps(lambda p, T: min(T, 1 + int(T * p)), wrap=False), "pushed all points"),
        ("6.4", steps(lambda p, T: 1 + int(T * p), lambda B: 1 / max(B - 1, 1)), "how many gaps"),
        (
            "6.4",
            lambda u, batch_size, T: [1 + int(T * (u + i) / batch_size) for i in range(batch_size)],
            "part of its own",
        ),
    ],
)
def test_a_slip_is_told_where_to_look(slip_is_told: Any, number: str, answer: Any, phrase: str) -> None:
    slip_is_told(number, answer, phrase)


def test_the_right_answers_of_these_tests_pass() -> None:
    """They are written independently of the notebook's solutions."""
    answers = {
        "6.1": memory(),
        "6.2": best(),
        "6.3": lambda gradients, sizes, max_norm: short(whole(gradients, sizes), max_norm),
        "6.4": steps(lambda p, T: 1 + int(T * p)),
    }
    for number, answer in answers.items():
        assert verdict(number, answer) is None


def test_the_claims_of_the_solutions_hold(solution: Any) -> None:
    """Nearly a third is left without warm-up, nothing with it; the median jumps; every step is equally likely."""
    assert 0.29 < 0.998**600 < 1 / 3
    assert solution("6.1")(0.998, 48)[0] < 1e-6

    points, weights = torch.tensor([-1.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double()
    level = torch.tensor(0.2, dtype=torch.float64)
    left, right = (solution("6.2")(torch.tensor(x).double(), points, weights, level) for x in (-1e-6, 1e-6))
    assert abs(right[0] - left[0]) < 1e-5
    assert abs(right[1] - left[1]) == pytest.approx(2 * math.sqrt(0.2 / 0.8), rel=1e-4)

    draws = torch.cat([solution("6.4")((i + 0.5) / 4000, 8, 20) for i in range(4000)])
    assert draws.bincount(minlength=21).tolist() == [0] + [8 * 4000 // 20] * 20
    generator = torch.Generator().manual_seed(0)
    even = torch.stack([solution("6.4")(i / 200, 8, 20).double().mean() for i in range(200)])
    free = torch.randint(1, 21, (200, 8), generator=generator).double().mean(1)
    assert even.std() < 0.5 * free.std()
