"""Chapters 5 and 7. A kernel (x_t, s, t) → law of x_s, and its walk down a list of times.

Times are the steps of a chain or the times of an equation: a walk hands them on as they are.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.registry import Registry
from ddpm_nb.schedule import Level, NoiseSchedule

__all__ = [
    "GRIDS",
    "GaussianKernel",
    "Kernel",
    "Law",
    "Multistep",
    "State",
    "decreasing_times",
    "follow",
    "grid",
    "last",
    "spaced",
    "walk",
]


class Law(Protocol):
    """What a walk needs of the law of x_s: that one can draw from it."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw x_s."""


# (x_t, s, t) -> law of x_s
Kernel = Callable[[Tensor, Any, Any], Law]
# the same, where mean and variance are known
GaussianKernel = Callable[[Tensor, Any, Any], Gaussian]


class Multistep:
    """A kernel with a memory: with the law of x_s it gives the kernel of the next step, which holds what to remember.

    So the memory belongs to the walk that made it. A kernel never changes, and may start any number of walks.
    """

    def advance(self, x_t: Tensor, s: int, t: int) -> tuple[Law, Multistep]:
        """Return the law of x_s, and the kernel of the next step."""
        raise NotImplementedError

    def __call__(self, x_t: Tensor, s: int, t: int) -> Law:
        """Return the law of x_s."""
        return self.advance(x_t, s, t)[0]


class State(NamedTuple):
    """Where a walk is: the sample ``x`` ``(batch, *event)`` at time ``t``, a step of a chain or a time of an SDE."""

    x: Tensor
    t: Any


def grid(T: int, steps: int) -> list[int]:
    """Return ``steps + 1`` decreasing times from T to 0, as evenly spaced as whole numbers allow."""
    steps = whole_number("steps", steps, least=1)
    if steps > whole_number("T", T, least=1):
        raise ValueError(f"steps = {steps}: expected at most T = {T}")
    return [(T * (steps - i) + steps // 2) // steps for i in range(steps + 1)]


def spaced(
    schedule: NoiseSchedule, steps: int, measure: Callable[[Level], float]
) -> list[int]:
    """Return ``steps + 1`` decreasing times T, .., t ≥ 1, 0 whose levels from T to 1 are even in ``measure``.

    As even as whole steps allow. ``measure`` is monotone in t, and finite for t ≥ 1: the last step, to the clean data,
    has no size in it. ``ValueError`` for more steps than the schedule has. Book: [](#eq-m7-grid).
    """
    T = schedule.T
    grid(T, steps)  # checks the number
    values = [measure(schedule.level(t)) for t in range(1, T + 1)]
    if values[0] > values[-1]:
        values = [-value for value in values]
    times = [T]
    for i in range(1, steps):
        wanted = values[-1] + (values[0] - values[-1]) * i / (steps - 1)
        right = min(max(bisect.bisect_left(values, wanted), 1), T - 1)
        above, below = values[right] - wanted, wanted - values[right - 1]
        nearest = right + 1 if above < below else right
        # Each time is lower than the one before and leaves room for the rest.
        times.append(max(min(nearest, times[-1] - 1), steps - i))
    return [*times, 0]


GRIDS: Registry[Callable[[NoiseSchedule, int], list[int]]] = Registry(
    "grid",
    {
        "t": lambda schedule, steps: grid(schedule.T, steps),
        "log_snr": lambda schedule, steps: spaced(
            schedule, steps, lambda level: level.log_snr
        ),
        "sigma": lambda schedule, steps: spaced(
            schedule, steps, lambda level: level.sigma ** (1 / 7)
        ),
    },
)
"""(schedule, steps) ↦ times of a walk, even in t, in log SNR (Lu et al. 2022) or in σ̃^(1/7) (Karras et al. 2022)."""


def walk(
    kernel: Kernel,
    x_T: Tensor,
    times: Sequence[int],
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | Tensor | None = None,
) -> Iterator[State]:
    """Yield the state after each step of ``kernel`` down ``times`` (T, ..., 0, any stride), without gradients.

    Parameters
    ----------
    x_T : Tensor ``(batch, *event)``, floating point: the state at the first of the times
    times : decreasing steps
    generator : of the draws
    noise : instead of a generator, the standard normal z of every step, in the order of the walk: x_s = mean + √var z

    Raises
    ------
    ValueError, TypeError
        Before any work, if the times do not decrease strictly or are fewer than two, if ``x_T`` holds no floats, or
        if there is not one noise for each step.
    """
    times = decreasing_times(times)
    if not x_T.is_floating_point():
        raise TypeError(
            f"x_T of dtype {x_T.dtype}: expected a floating-point tensor"
        )
    if noise is not None and len(noise) != len(times) - 1:
        raise ValueError(
            f"noise of length {len(noise)}: expected one for each of the {len(times) - 1} steps"
        )
    return follow(kernel, x_T, times, generator, noise)


def follow(
    kernel: Kernel,
    x: Tensor,
    times: Iterable[Any],
    generator: torch.Generator | None = None,
    noise: Iterable[Tensor] | None = None,
) -> Iterator[State]:
    """Yield the states of a walk along any times, unchecked: those of an SDE may rise. See :func:`walk`."""
    draws = None if noise is None else iter(noise)
    quiet = torch.no_grad()
    for t, s in pairwise(times):
        with quiet:
            if isinstance(kernel, Multistep):
                law, kernel = kernel.advance(x, s, t)
            else:
                law = kernel(x, s, t)
            if draws is None:
                x = law.sample(generator)
            else:
                z = next(draws)
                x = _gaussian(law).from_noise(z)
        yield State(x, s)


def _gaussian(law: Law) -> Gaussian:
    if not isinstance(law, Gaussian):
        raise TypeError(
            f"noise: expected a kernel whose laws are Gaussian, this one gives a {type(law).__name__}"
        )
    return law


def decreasing_times(times: Sequence[int]) -> list[int]:
    """Return ``times`` as ints; ``ValueError`` if they do not decrease strictly or are fewer than two."""
    times = [whole_number("times", t, least=0) for t in times]
    if len(times) < 2 or any(t <= s for t, s in pairwise(times)):
        raise ValueError(
            f"times = {times!r:.80}: expected at least two strictly decreasing steps, such as grid(T, 50)"
        )
    return times


def last(states: Iterator[State]) -> State:
    """Return the last state of a walk, keeping no other in memory."""
    tail = deque(states, maxlen=1)
    if not tail:
        raise ValueError("states: expected at least one")
    return tail.pop()
