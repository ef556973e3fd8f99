"""Chapter 7. Sampling: a kernel (x_t, s, t) → law of x_s, walked down a list of times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import STATE, Denoiser, estimate, noise_weights
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import Levels

__all__ = [
    "DDIM",
    "Ancestral",
    "Kernel",
    "Law",
    "Move",
    "Multistep",
    "State",
    "falling",
    "grid",
    "last",
    "variance_between",
    "walk",
]


class Law(Protocol):
    """What a step needs of the law of x_s: that one can draw from it."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw x_s."""


Move = Callable[[Tensor, int, int], Law]  # what a walk asks of a kernel
Kernel = Callable[[Tensor, int, int], Gaussian]
Variance = Callable[[Levels[Any], int, int], Any]  # floats from plain levels, tensors from tensors


class Multistep(ABC):
    """A kernel with a memory: with the law of x_s it gives the kernel of the next step, which holds what to remember.

    So the memory belongs to the walk that made it. A kernel never changes, and may start any number of walks.
    """

    @abstractmethod
    def advance(self, x_t: Tensor, s: int, t: int) -> tuple[Law, Multistep]:
        """Return the law of x_s, and the kernel of the next step."""

    def __call__(self, x_t: Tensor, s: int, t: int) -> Law:
        """Return the law of x_s."""
        return self.advance(x_t, s, t)[0]


@dataclass(frozen=True, eq=False)
class Ancestral:
    """p(x_s | x_t) = q(x_s | x_t, x̂_0): the posterior with the denoiser's estimate in place of the data.

    Source: Roysdon (16), Malhotra Algorithm 2. Book: [ancestral sampling](#eq-ancestral).

    Parameters
    ----------
    q : the forward process
    denoise : ``(x_t, t) -> x̂_0``
    variance : ``(levels, s, t) -> σ²`` for s ≥ 1; ``NoiseSchedule.posterior_var`` (β̃_t, the default),
        ``NoiseSchedule.beta_between`` (β_t) or :func:`variance_between`. The step to s = 0 adds no noise, whatever
        the choice.
    """

    q: GaussianDiffusion
    denoise: Denoiser
    variance: Variance = Levels.posterior_var

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        x_0, y = estimate(self.denoise, x_t, t)
        on_x_0, on_x_t = self.q.posterior_weights(s, t)
        mean = (on_x_0 * x_0 + on_x_t * STATE).of(x_t, y)
        var = self.variance(self.q.schedule.at(s, t), s, t) if s > 0 else 0.0
        return Gaussian(mean, torch.full((), var, dtype=x_t.dtype))


def variance_between(share: float) -> Variance:
    """Return the choice β_t^share β̃_t^(1−share) of σ², from β̃ at 0 to β at 1, even in the logarithm.

    Source: Nichol & Dhariwal 2021, (15). Book: [](#eq-m7-between).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: expected a number from 0 (β̃) to 1 (β)")
    return lambda levels, s, t: levels.beta_between(s, t) ** share * levels.posterior_var(s, t) ** (1 - share)


@dataclass(frozen=True, eq=False)
class DDIM:
    """x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − σ²) ε̂ + σ z with σ² = η² β̃ (Song et al. 2020, eq. 12).

    η = 0 draws no noise; η = 1 is ancestral sampling with β̃. Book: [DDIM](#eq-ddim).
    """

    q: GaussianDiffusion
    denoise: Denoiser
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta = {self.eta}: expected a number from 0 (no noise) to 1 (ancestral)")

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the law of x_s."""
        level = self.q.schedule.at(s, t)
        x_0, y = estimate(self.denoise, x_t, t)
        eps = noise_weights(self.q, x_0, t)
        var = self.eta**2 * level.posterior_var(s, t)
        direction = max(level.one_minus_alpha_bar(s) - var, 0.0) ** 0.5
        mean = (level.alpha_bar(s) ** 0.5 * x_0 + direction * eps).of(x_t, y)
        return Gaussian(mean, torch.full((), var, dtype=x_t.dtype))


@dataclass(frozen=True, eq=False)
class State:
    """Where a walk is: the sample ``x`` ``(batch, *event)`` at step ``t``."""

    x: Tensor
    t: int


def grid(T: int, steps: int) -> list[int]:
    """Return ``steps + 1`` falling times from T to 0, as evenly spaced as whole numbers allow."""
    steps = whole_number("steps", steps, least=1)
    if steps > whole_number("T", T, least=1):
        raise ValueError(f"steps = {steps}: expected at most T = {T}")
    return [(T * (steps - i) + steps // 2) // steps for i in range(steps + 1)]


def walk(kernel: Move, x_T: Tensor, times: Sequence[int], generator: torch.Generator | None = None) -> Iterator[State]:
    """Yield the state after each step of ``kernel`` down ``times`` (T, ..., 0, any stride), without gradients.

    Raises ``ValueError`` before any work if the times do not fall strictly or there are fewer than two.
    """
    return _walk(kernel, x_T, falling(times), generator)


def _walk(kernel: Move, x: Tensor, times: list[int], generator: torch.Generator | None) -> Iterator[State]:
    quiet = torch.no_grad()
    for t, s in pairwise(times):
        with quiet:
            law, kernel = kernel.advance(x, s, t) if isinstance(kernel, Multistep) else (kernel(x, s, t), kernel)
            x = law.sample(generator)
        yield State(x, s)


def falling(times: Sequence[int]) -> list[int]:
    """Return ``times`` as a list of ints; ``ValueError`` if they do not fall strictly or are fewer than two."""
    times = [whole_number("times", t, least=0) for t in times]
    if len(times) < 2 or any(t <= s for t, s in pairwise(times)):
        raise ValueError(f"times = {times!r:.80}: expected at least two strictly falling steps, such as grid(T, 50)")
    return times


def last(states: Iterator[State]) -> State:
    """Return the last state of a walk, keeping no other in memory."""
    tail = deque(states, maxlen=1)
    if not tail:
        raise ValueError("states: expected at least one")
    return tail.pop()
