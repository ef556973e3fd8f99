"""Chapter 6: a moving average's memory, what another loss teaches, a batch in pieces, steps drawn evenly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64, normal
from ddpm_nb.training import Ema

# 6.1: which weights are in the moving average


def _memory(decay: float, k: int) -> Tensor:
    """Feed the package's average with the unit vectors, one for each set of weights."""
    network = nn.Linear(k + 1, 1, bias=False).double()
    units = torch.eye(k + 1, dtype=torch.float64)
    network.weight.data.copy_(units[:1])
    ema = Ema(network, decay)
    for j in range(1, k + 1):
        network.weight.data.copy_(units[j : j + 1])
        ema.update(network)
    return next(ema.network.parameters())[0]


def _exercise_6_1(answer: Any) -> None:
    cases = [
        {"decay": d, "k": k}
        for d, k in ((0.998, 5), (0.3, 4), (0.9, 200), (0.0, 2), (0.999, 0))
    ]

    def slip(
        rule: Callable[[float, int], float], message: str, swapped: bool = False
    ) -> Slip:
        def made(decay: float, k: int) -> Tensor:
            held = f64([rule(decay, j) for j in range(1, k + 1)])
            kept, fresh = (1 - held, held) if swapped else (held, 1 - held)
            one, later = held.new_ones(1), kept.flip(0).cumprod(0).flip(0)
            return torch.cat([one, fresh]) * torch.cat([later, one])

        return Slip(made, message)

    def warm(decay: float, j: int) -> float:
        return min(decay, (1 + j) / (10 + j))

    def with_last_decay(untrained: float, decay: float, k: int) -> Tensor:
        """The weights if all updates had the decay of the last one."""
        d = warm(decay, k)
        shares = [untrained, *[1 - d] * k]
        return f64([share * d ** (k - j) for j, share in enumerate(shares)])

    slips = [
        slip(
            lambda decay, j: decay,
            "You left out that the decay is held lower at first.",
        ),
        slip(
            lambda decay, j: warm(decay, j - 1),
            "Your count of the updates begins at 0; in the package the first is 1.",
        ),
        slip(
            lambda decay, j: max(decay, (1 + j) / (10 + j)),
            "Held lower, not higher: which of the two numbers counts?",
        ),
        slip(
            warm,
            "You exchanged the decay and the share of the new weights.",
            swapped=True,
        ),
        Slip(
            lambda decay, k: _memory(decay, k).flip(0),
            "Your list is in the reverse order: the untrained weights come first.",
        ),
        Slip(
            lambda decay, k: with_last_decay(0.0, decay, k),
            "You used the last decay for all updates, and left the untrained weights out.",
        ),
        Slip(
            lambda decay, k: with_last_decay(1.0, decay, k),
            "You used the decay of the last update for all of them; each update has its own.",
        ),
    ]
    compare(answer, _memory, cases, slips, outputs=("the weight",))


# 6.2: what a network learns from the squared and from the absolute error


def _best(
    x_t: Tensor, points: Tensor, weights: Tensor, alpha_bar: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimize both expected losses: the first by least squares, the second over the noises that are possible."""
    eps = (x_t - alpha_bar.sqrt() * points) / (1 - alpha_bar).sqrt()
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    log_weights = weights.log() + normal.log_prob(eps)
    chance = (log_weights - log_weights.logsumexp(0)).exp()
    root = chance.sqrt()[:, None]
    squared = torch.linalg.lstsq(root, root * eps[:, None]).solution
    absolute = (chance * (eps[:, None] - eps).abs()).sum(1)
    return squared[0, 0], eps[absolute.argmin()]


def _median(values: Tensor, chance: Tensor) -> Tensor:
    order = values.argsort()
    return values[order][(chance[order].cumsum(0) < 0.5 * chance.sum()).sum()]


def _exercise_6_2(answer: Any) -> None:
    cases = [
        {
            "x_t": f64(x_t),
            "points": points,
            "weights": weights,
            "alpha_bar": f64(alpha_bar),
        }
        for x_t, points, weights, alpha_bar in (
            (0.1, f64([-1.0, 1.0]), f64([0.5, 0.5]), 0.2),
            (0.3, f64([-1.0, 0.2, 1.0]), f64([0.7, 0.1, 0.2]), 0.5),
            (-0.4, normal(9, seed=0), normal(9, seed=1).softmax(0), 0.05),
            (0.7, normal(9, seed=2), normal(9, seed=3).softmax(0), 0.9),
            (0.5, normal(15, seed=4), normal(15, seed=5).softmax(0), 0.3),
            (8.0, f64([-1.0, 1.0]), f64([0.5, 0.5]), 0.99),
        )
    ]

    def slip(
        output: int,
        change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        message: str,
    ) -> Slip:
        """A slip as a function of the possible noises, their probabilities, the points and their weights."""

        def made(
            x_t: Tensor, points: Tensor, weights: Tensor, alpha_bar: Tensor
        ) -> Tensor:
            eps = (x_t - alpha_bar.sqrt() * points) / (1 - alpha_bar).sqrt()
            chance = (weights.log() - eps**2 / 2).softmax(0)
            return change(eps, chance, points, weights)

        return Slip(made, message, output)

    slips = [
        slip(
            0,
            lambda eps, chance, points, weights: (weights * eps).sum(),
            "You weighted by the probabilities before x_t was seen.",
        ),
        slip(
            0,
            lambda eps, chance, points, weights: eps[chance.argmax()],
            "That is the likeliest noise.",
        ),
        slip(
            0,
            lambda eps, chance, points, weights: (chance * points).sum(),
            "That is the best guess of x_0; the network answers with the noise.",
        ),
        slip(
            0,
            lambda eps, chance, points, weights: (
                (-(eps**2) / 2).softmax(0) * eps
            ).sum(),
            "The weights of the points are missing: likelihood alone is no posterior.",
        ),
        slip(
            0,
            lambda eps, chance, points, weights: (
                weights
                * (-(eps**2) / 2).exp()
                * eps
                / (weights * (-(eps**2) / 2).exp()).sum()
            ).sum(),
            "Every density underflows here: work with logarithms.",
        ),
        slip(
            1,
            lambda eps, chance, points, weights: (chance * eps).sum(),
            "The mean is best for the squared error. Which number has as much probability on its left as on its right?",
        ),
        slip(
            1,
            lambda eps, chance, points, weights: _median(eps, weights),
            "That is the median before x_t was seen.",
        ),
        slip(
            1,
            lambda eps, chance, points, weights: _median(
                eps, torch.ones_like(eps)
            ),
            "You took the middle one of the list; the noises are not equally likely.",
        ),
        slip(
            1,
            lambda eps, chance, points, weights: eps[chance.argmax()],
            "That is the likeliest noise. It is best for a loss that counts misses, whatever their size.",
        ),
        slip(
            1,
            lambda eps, chance, points, weights: _median(points, chance),
            "That is the best guess of x_0; the network answers with the noise.",
        ),
    ]
    outputs = (
        "the answer for the squared error",
        "the answer for the absolute error",
    )
    compare(answer, _best, cases, slips, outputs=outputs)


# 6.3: the gradient of a batch that is computed in pieces


def _in_pieces(gradients: Tensor, sizes: Tensor, max_norm: float) -> Tensor:
    """One row for each image, their mean, and a direction times a length."""
    whole = gradients.repeat_interleave(sizes.long(), dim=0).mean(0)
    length = torch.linalg.vector_norm(whole)
    return nn.functional.normalize(whole, dim=0) * length.clamp(max=max_norm)


def _shortened(gradient: Tensor, max_norm: float) -> Tensor:
    norm = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return gradient * (max_norm / norm).clamp(max=1)


def _exercise_6_3(answer: Any) -> None:
    cases = [
        {"gradients": gradients, "sizes": f64(sizes), "max_norm": max_norm}
        for gradients, sizes, max_norm in (
            (normal(3, 4, seed=0), [64.0, 64.0, 10.0], 1000.0),
            (normal(2, 5, seed=1), [3.0, 1.0], 0.5),
            (normal(1, 3, seed=2), [7.0], 1.0),
            (f64([[1.0, -2.0], [-1.0, 2.0]]), [8.0, 8.0], 1.0),
            (30 * normal(4, 6, seed=3), [5.0, 5.0, 5.0, 2.0], 1.0),
        )
    ]

    def weighted(gradients: Tensor, sizes: Tensor) -> Tensor:
        return (sizes[:, None] * gradients).sum(0) / sizes.sum()

    slips = [
        Slip(
            lambda gradients, sizes, max_norm: _shortened(
                gradients.mean(0), max_norm
            ),
            "You averaged the pieces. An image in a small piece then counts more than one in a large piece.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: _shortened(
                gradients.sum(0), max_norm
            ),
            "You added the pieces: the result would grow with their number, like a larger learning rate.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: _shortened(
                (sizes[:, None] * gradients).sum(0), max_norm
            ),
            "That is the gradient of the summed loss; the batch's loss is a mean.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: weighted(
                _shortened(gradients, max_norm), sizes
            ),
            "You shortened every piece. The batch as a whole has one length, known when all pieces are in.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: weighted(gradients, sizes).clamp(
                -max_norm, max_norm
            ),
            "You cut every coordinate by itself, which changes the direction.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: (
                max_norm
                * nn.functional.normalize(weighted(gradients, sizes), dim=0)
            ),
            "A gradient that is short enough stays as it is.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: weighted(gradients, sizes),
            "You did not shorten the gradient where it is longer than max_norm.",
        ),
        Slip(
            lambda gradients, sizes, max_norm: (
                weighted(gradients, sizes)
                / weighted(gradients, sizes).norm()
                * weighted(gradients, sizes).norm().clamp(max=max_norm)
            ),
            "Right, except for a gradient of length 0, which has no direction: 0/0.",
        ),
    ]
    compare(answer, _in_pieces, cases, slips, outputs=("the gradient",))


# 6.4: the steps of a batch, spread evenly


def _even_steps(zeta: float, batch_size: int, T: int) -> Tensor:
    """Count the borders of the T parts that lie at or below each point."""
    borders = torch.arange(T, dtype=torch.float64) / T
    shares = torch.arange(batch_size, dtype=torch.float64) / batch_size
    points = (zeta + shares) % 1
    return (borders <= points[:, None]).sum(1).double().sort().values


def _exercise_6_4(answer: Any) -> None:
    cases = [
        {"zeta": zeta, "batch_size": batch_size, "T": T}
        for zeta, batch_size, T in (
            (0.377, 4, 10),
            (0.0, 4, 10),
            (0.9993, 64, 1000),
            (0.513, 7, 3),
            (0.21, 1, 1000),
        )
    ]

    def ordered(function: Any) -> Any:
        """The order within the batch does not matter."""

        def steps(zeta: float, batch_size: int, T: int) -> Any:
            found = function(zeta, batch_size, T)
            if found is None:
                return None
            found = torch.as_tensor(found, dtype=torch.float64)
            return found.flatten().sort().values

        return steps if callable(function) else function

    def slip(
        change: Callable[[Tensor, int], Tensor], message: str, wrap: bool = True
    ) -> Slip:
        def made(zeta: float, batch_size: int, T: int) -> Tensor:
            i = torch.arange(batch_size, dtype=torch.float64)
            points = zeta + i / batch_size
            return change(points % 1 if wrap else points, T)

        return Slip(ordered(made), message)

    def spaced(zeta: float, batch_size: int, T: int) -> Tensor:
        i = torch.arange(batch_size, dtype=torch.float64)
        points = (zeta + i / max(batch_size - 1, 1)) % 1
        return (T * points).floor() + 1

    def made_apart(zeta: float, batch_size: int, T: int) -> Tensor:
        i = torch.arange(batch_size, dtype=torch.float64)
        return (T * (zeta + i) / batch_size).floor() + 1

    slips = [
        Slip(
            ordered(spaced),
            "Your first and last points coincide on the circle: how many gaps do B points leave?",
        ),
        Slip(
            ordered(made_apart),
            "You gave every point a part of its own; that is even too, but here the first point sits at zeta.",
        ),
        slip(
            lambda points, T: (T * points).floor(),
            "Your steps run from 0 to T − 1; x_0 is not a noisy image.",
        ),
        slip(
            lambda points, T: (T * points).round(),
            "By rounding, the steps at the ends are drawn half as often, and 0 is one.",
        ),
        slip(
            lambda points, T: (T * points).round().clamp(min=1),
            "By rounding, the steps are not equally likely.",
        ),
        slip(
            lambda points, T: ((T - 1) * points).round() + 1,
            "By rounding, the first and the last step are drawn half as often as the others.",
        ),
        slip(
            lambda points, T: ((T - 1) * points).floor() + 1,
            "Step T is never drawn.",
        ),
        slip(
            lambda points, T: (T * points).ceil(),
            "A point on a border belongs to the part that it begins; zeta may be 0.",
        ),
        slip(
            lambda points, T: (T * points).floor() + 1,
            "Points beyond 1 go round the circle.",
            wrap=False,
        ),
        slip(
            lambda points, T: ((T * points).floor() + 1).clamp(max=T),
            "You pushed all points beyond 1 to step T. They go round the circle.",
            wrap=False,
        ),
    ]
    compare(
        ordered(answer), _even_steps, cases, slips, outputs=("the sorted step",)
    )


EXERCISES: dict[str, Exercise] = {
    "6.1": _exercise_6_1,
    "6.2": _exercise_6_2,
    "6.3": _exercise_6_3,
    "6.4": _exercise_6_4,
}
