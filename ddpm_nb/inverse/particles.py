"""A posterior without bias in the limit: many guided walks at once, weighted by what guidance got wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.diffusion import posterior_var
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.inverse.guidance import Guess, Twist
from ddpm_nb.kernels import decreasing_times
from ddpm_nb.precision import drawn_on
from ddpm_nb.schedule import Variance

__all__ = ["Particles", "twisted_walk"]


@dataclass(frozen=True, eq=False)
class Particles:
    """The particles of several problems at step t: p of problem i is row p · problems + i.

    Parameters
    ----------
    x : Tensor ``(particles · problems, *event)``
    t : their step
    log_weights : Tensor ``(particles, problems)``, float64 where there is one; those of a problem sum to 1
    log_evidence : Tensor ``(problems,)``, float64; at t = 0 the log of an unbiased estimate of p(y), in nats
    """

    x: Tensor
    t: int
    log_weights: Tensor
    log_evidence: Tensor

    def effective(self) -> Tensor:
        """1/Σ w², the number of equally weighted particles that would be as good, ``(problems,)``."""
        return 1 / self.log_weights.exp().square().sum(0)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n particles of each problem by their weights, ``(n, problems, *event)``; one may come several times."""
        chosen = torch.multinomial(
            self.log_weights.exp().mT, n, replacement=True, generator=generator
        ).mT
        problem = torch.arange(chosen.shape[1], device=chosen.device)
        return self.x.unflatten(0, self.log_weights.shape)[chosen, problem]


def twisted_walk(
    likelihood: Twist,
    x_T: Tensor,
    times: Sequence[int],
    particles: int,
    generator: torch.Generator | None = None,
    variance: Variance = posterior_var,
) -> Iterator[Particles]:
    """Yield the particles after each step down ``times``: guided ancestral steps, weighted and resampled.

    Source: Wu et al. 2023 (twisted diffusion sampler). Particles are drawn from N(μ + σ² ∇ log p̃(y | x_t), σ²), where
    the prior's ancestral step has mean μ and variance σ², and weighted by [](#eq-i8-twisted). As their number grows,
    they follow p(x_0) p(y | x_0)/p(y) with p(x_0) the law of ancestral samples along ``times``, whatever p̃ says.

    Parameters
    ----------
    likelihood : p̃(y | x_t); its measurement has one y for all, or one in each row of x_T
    x_T : Tensor ``(particles · problems, *event)``, normal draws; problem i is in every row p · problems + i
    times : T, ..., 0, any stride
    particles : how many share one problem, at least 2
    variance : ``(level before, level here) -> σ²`` for s ≥ 1, as in :class:`~ddpm_nb.sampling.Ancestral`

    Raises
    ------
    ValueError
        If the rows of x_T are not a multiple of ``particles``.
    """
    if len(x_T) % whole_number("particles", particles, least=2):
        raise ValueError(
            f"particles = {particles}: expected a divisor of the {len(x_T)} rows of x_T"
        )
    return _twisted_walk(
        likelihood, x_T, decreasing_times(times), particles, generator, variance
    )


def _twisted_walk(
    likelihood: Twist,
    x: Tensor,
    times: Sequence[int],
    particles: int,
    generator: torch.Generator | None,
    variance: Variance,
) -> Iterator[Particles]:
    guess = likelihood(x, times[0])
    gained = guess.log_prob.reshape(particles, -1) - math.log(particles)
    log_weights, log_evidence = gained.log_softmax(0), gained.logsumexp(0)
    for t, s in pairwise(times):
        rows, log_weights = _resampled(log_weights, generator)
        x, guess = x[rows], Guess(*(part[rows] for part in guess))
        mean = likelihood.q.posterior(guess.x_0, x, s, t).mean
        var = variance(*likelihood.q.schedule.levels(s, t)) if s > 0 else 0.0
        push = var * guess.gradient
        x = Gaussian(mean + push, var).sample(generator)
        # The log density of the proposal less log p(x_s | x_t), written without
        # a division by σ², which is 0 at s = 0.
        lost = guess.gradient * (x - mean - 0.5 * push)
        lost = lost.to(guess.log_prob).flatten(1).sum(1)
        before, guess = guess, likelihood(x, s)
        change = guess.log_prob - before.log_prob - lost
        gained = log_weights + change.reshape(particles, -1)
        log_evidence = log_evidence + gained.logsumexp(0)
        log_weights = gained.log_softmax(0)
        yield Particles(x, s, log_weights, log_evidence)


def _resampled(
    log_weights: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Rows to go on from and their weights: drawn anew where fewer than half the particles count, kept elsewhere.

    Systematic resampling: a particle of weight w comes ⌊n w⌋ or ⌈n w⌉ times, n w times on average.
    """
    n, problems = log_weights.shape
    weights = log_weights.exp()
    place = torch.arange(n, device=log_weights.device)[:, None]
    device = drawn_on(generator, log_weights)
    uniform = torch.rand(
        problems, dtype=log_weights.dtype, generator=generator, device=device
    )
    ticks = (place + uniform.to(log_weights.device)) / n
    edges = weights.cumsum(0).mT.contiguous()
    drawn = torch.searchsorted(edges, ticks.mT.contiguous()).mT
    drawn = drawn.clamp(max=n - 1)
    few = weights.square().sum(0) > 2 / n
    problem = torch.arange(problems, device=place.device)
    rows = torch.where(few, drawn, place) * problems + problem
    return rows.flatten(), torch.where(few, -math.log(n), log_weights)
