"""Chapter 5. The chain as a stochastic differential equation, forwards and backwards in time u = t/T.

dX = −½ β(u) X du + √β(u) dW. With the rate constant between the steps of a chain, −T log(1 − β_t), the equation
observed at u = t/T *is* the chain: no discretization error. There is one clock, u, and a process says which way it
runs along it, so that a drift cannot be used in the wrong direction of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import CorrelatedGaussian, GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import GaussianKernel, Kernel, Law, follow
from ddpm_nb.schedule import Level, NoiseSchedule

__all__ = [
    "VPSDE",
    "PredictorCorrector",
    "Process",
    "chain_sde",
    "cosine_sde",
    "euler",
    "euler_maruyama",
    "euler_maruyama_kernel",
    "euler_maruyama_step",
    "exact_score",
    "fokker_planck_residual",
    "heun",
    "langevin_step",
    "linear_sde",
    "log_snr_sde",
    "observed",
    "solve_ode",
]

# (x, u) -> a vector at x: a drift or a score, of the shape of x
Field = Callable[[Tensor, float], Tensor]
Data = TypeVar("Data", GaussianMixture, CorrelatedGaussian)


@dataclass(frozen=True, eq=False)
class Process:
    """dX = drift du + diffusion dW, run along ``arrow``: 1 where u rises, −1 where u falls (du < 0).

    Book: [](#eq-s5-process).
    """

    drift: Field
    diffusion: Callable[[float], float]
    arrow: int


@dataclass(frozen=True, eq=False)
class VPSDE:
    """dX = −½ β(u) X du + √β(u) dW on 0 ≤ u ≤ 1 (Roysdon (17), Song et al. 2021). Book: [VP-SDE](#eq-vp-sde).

    Parameters
    ----------
    rate : u ↦ β(u), per unit of u
    log_alpha_bar : u ↦ log ᾱ(u) = −∫₀ᵘ β
    """

    rate: Callable[[float], float]
    log_alpha_bar: Callable[[float], float]

    def drift(self, x: Tensor, u: float) -> Tensor:
        """f(x, u) = −½ β(u) x."""
        return -0.5 * self.rate(u) * x

    def diffusion(self, u: float) -> float:
        """g(u) = √β(u)."""
        return math.sqrt(self.rate(u))

    def transition(self, x: Tensor, u: float, v: float) -> Gaussian:
        """q(x_v | x_u) = N(√(ᾱ(v)/ᾱ(u)) x_u, (1 − ᾱ(v)/ᾱ(u)) I) for u ≤ v, exact. Book: [](#eq-s5-transition)."""
        if not 0 <= u <= v <= 1:
            raise ValueError(
                f"u = {u}, v = {v}: expected 0 <= u <= v <= 1, "
                "the earlier time first"
            )
        step = Level.of(self.log_alpha_bar(v) - self.log_alpha_bar(u))
        return Gaussian(step.signal * x, step.noise_var)

    def level(self, u: float) -> Level:
        """Return the noise level at time u."""
        return Level.of(self.log_alpha_bar(u))

    def marginal(self, x_0: Tensor, u: float) -> Gaussian:
        """q(x_u | x_0) = N(√ᾱ(u) x_0, (1 − ᾱ(u)) I), the transition from time 0. Book: [](#eq-sde-marginal)."""
        return self.transition(x_0, 0.0, u)

    def law(self, data: Data, u: float) -> Data:
        """q_u, the law of X_u for X_0 ~ data. Book: [the diffused mixture](#eq-mixture-marginal)."""
        if u == 0:
            return data
        one_step = GaussianDiffusion(observed(self, [u]))
        return data.diffused(one_step, 1)

    def forward(self) -> Process:
        """Return the process from data to noise."""
        return Process(self.drift, self.diffusion, arrow=1)

    def reverse(self, score: Field, noise: float = 1.0) -> Process:
        """Return the process from noise to data, drift f − ½(1 + noise²) g² score and diffusion noise·g, with du < 0.

        noise = 1 is Anderson's reverse SDE (Roysdon (18)), noise = 0 the probability-flow ODE; every value has the
        marginals of the forward process. Book: [the reverse family](#eq-reverse-family).
        """
        if not noise >= 0:
            raise ValueError(
                f"noise = {noise}: expected a factor of at least 0 "
                "(0: ODE, 1: Anderson's SDE)"
            )

        def drift(x: Tensor, u: float) -> Tensor:
            weight = 0.5 * (1 + noise**2) * self.rate(u)
            return self.drift(x, u) - weight * score(x, u)

        return Process(drift, lambda u: noise * self.diffusion(u), arrow=-1)


def linear_sde(rate_0: float = 0.1, rate_1: float = 20.0) -> VPSDE:
    """β(u) on a line from ``rate_0`` to ``rate_1``, the linear schedule for T → ∞. Book: [](#eq-s5-linear-rate)."""
    if not 0 < rate_0 <= rate_1:
        raise ValueError(
            f"rate_0 = {rate_0}, rate_1 = {rate_1}: "
            "expected 0 < rate_0 <= rate_1"
        )
    return VPSDE(
        lambda u: rate_0 + u * (rate_1 - rate_0),
        lambda u: -(rate_0 * u + 0.5 * (rate_1 - rate_0) * u**2),
    )


def cosine_sde(offset: float = 0.008, max_rate: float = 999.0) -> VPSDE:
    """β(u) = π/(1 + offset) · tan(π/2 · (u + offset)/(1 + offset)), the cosine schedule for T → ∞, cut at ``max_rate``.

    Uncut, the rate is infinite at u = 1. Book: [](#eq-s5-cosine-rate).
    """
    if not (offset >= 0 and max_rate > 0):
        raise ValueError(
            f"offset = {offset}, max_rate = {max_rate}: "
            "expected offset >= 0 and max_rate > 0"
        )
    slope = math.pi / (1 + offset)
    # The rate reaches max_rate at the time `cut` and stays there.
    cut = max(math.atan(max_rate / slope) / (slope / 2) - offset, 0.0)

    def rate(u: float) -> float:
        if u >= cut:
            return max_rate
        return slope * math.tan(slope / 2 * (u + offset))

    def log_alpha_bar(u: float) -> float:
        free = min(u, cut)
        start = math.cos(slope / 2 * offset)
        signal = math.cos(slope / 2 * (free + offset)) / start
        return 2 * math.log(signal) - max_rate * (u - free)

    return VPSDE(rate, log_alpha_bar)


def log_snr_sde(
    T: int = 1000, first: float = 13.3, last: float = -6.3
) -> VPSDE:
    """log SNR on a line from ``first`` at u = 1/T to ``last`` at u = 1, as in the chain of T steps with these ends.

    The rate is the slope of −log SNR times 1 − ᾱ, smooth in u. Before 1/T the line goes on: data begin with the noise
    of e^first, which is too little to matter and not 0. ``ValueError`` unless first > last. Book: [](#eq-m7-limit).
    """
    if not first > last:
        raise ValueError(
            f"first = {first}, last = {last}: expected first > last, the log SNR falls"
        )
    slope = (first - last) / (1 - 1 / T)

    def log_snr(u: float) -> float:
        return first - slope * (u - 1 / T)

    return VPSDE(
        lambda u: slope / (1 + math.exp(log_snr(u))),
        lambda u: -math.log1p(math.exp(-log_snr(u))),
    )


def chain_sde(schedule: NoiseSchedule) -> VPSDE:
    """Return the SDE that passes through the chain: rate −T log(1 − β_t) for (t−1)/T < u ≤ t/T.

    Book: [the chain is an SDE](#eq-chain-rate).
    """
    T, table = schedule.T, schedule.log_alpha_bars.tolist()

    def step(u: float) -> int:
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"u = {u}: expected a time from 0 to 1")
        # u = t/T must find step t, also when t/T·T rounds to just above t.
        return min(max(math.ceil(u * T - 1e-9), 1), T)

    def rate(u: float) -> float:
        t = step(u)
        return T * (table[t - 1] - table[t])

    def log_alpha_bar(u: float) -> float:
        t = step(u)
        return table[t] + (table[t] - table[t - 1]) * (u * T - t)

    return VPSDE(rate, log_alpha_bar)


def observed(sde: VPSDE, times: Sequence[float]) -> NoiseSchedule:
    """Return the chain whose step t is the SDE at ``times[t − 1]``, rising from above 0: the way back from an SDE.

    ``observed(chain_sde(schedule), [1/T, ..., 1])`` is ``schedule``. Book: [the chain is an SDE](#eq-chain-rate).
    """
    table = [0.0, *map(sde.log_alpha_bar, times)]
    return NoiseSchedule(torch.tensor(table, dtype=torch.float64))


def exact_score(sde: VPSDE, data: Data) -> Field:
    """Return (x, u) ↦ ∇ log q_u(x) for X_0 ~ data, x ``(batch, d)``.

    Unlike Tweedie's form it holds at u = 0 too. Book: [](#eq-s5-score).
    """
    return lambda x, u: sde.law(data.to(x.device), u).grad_log_prob(x)


def euler_maruyama_step(
    process: Process, x: Tensor, u: float, v: float
) -> Gaussian:
    """N(x + drift Δu, diffusion² abs(Δu) I), the law of a step from u to v = u + Δu. Book: [](#eq-euler-maruyama).

    Raises ``ValueError`` for a step against the process: a drift is right for one direction of time only.
    """
    if not process.arrow * (v - u) > 0:
        raise ValueError(
            f"times go from {u} to {v}: expected them to {'rise' if process.arrow > 0 else 'fall'}"
        )
    mean = x + process.drift(x, u) * (v - u)
    return Gaussian(mean, process.diffusion(u) ** 2 * abs(v - u))


def euler_maruyama_kernel(process: Process) -> GaussianKernel:
    """Return (x, v, u) ↦ the law of the step from time u to time v, for a walk."""
    return lambda x, v, u: euler_maruyama_step(process, x, u, v)


def euler_maruyama(
    process: Process,
    x: Tensor,
    times: Tensor,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Yield (u, x) after each step x ← x + drift Δu + diffusion √|Δu| z. Book: [](#eq-euler-maruyama).

    Raises ``ValueError`` where ``times`` run against the process.
    """
    kernel = euler_maruyama_kernel(process)
    for state in follow(kernel, x, times.tolist(), generator):
        yield state.t, state.x


def langevin_step(score: Field, x: Tensor, u: float, size: float) -> Gaussian:
    """N(x + ½ size · score(x, u), size I), one step at a fixed time: it keeps q_u, up to an error of order ``size``.

    Book: [Langevin dynamics](#eq-s5-langevin). Raises ``ValueError`` unless ``size`` is at least 0.
    """
    if not size >= 0:
        raise ValueError(
            f"size = {size}: expected at least 0, "
            "the variance that the step adds"
        )
    return Gaussian(x + 0.5 * size * score(x, u), float(size))


@dataclass(frozen=True, eq=False)
class PredictorCorrector:
    """A predictor's step to a new time, then ``corrections`` Langevin steps there, which draw x nearer to its law.

    Source: Song et al. 2021, Algorithm 1. Book: [](#eq-s5-corrector).

    Parameters
    ----------
    predictor : any kernel, such as :func:`euler_maruyama_kernel`
    score : ``(x, time) -> ∇ log q(x)``
    size : time -> size of a Langevin step; where it is 0 nothing is corrected
    corrections : Langevin steps after each step of the predictor
    """

    predictor: Kernel
    score: Callable[[Tensor, Any], Tensor]
    size: Callable[[Any], float]
    corrections: int = 1

    def __post_init__(self) -> None:
        whole_number("corrections", self.corrections, least=0)

    def __call__(self, x: Tensor, after: Any, before: Any) -> Law:
        """Return the law of the state at the time ``after``; it can be drawn from, but is no Gaussian."""
        first, size = self.predictor(x, after, before), self.size(after)
        if size == 0 or self.corrections == 0:
            return first

        def move(x: Tensor) -> Law:
            return langevin_step(self.score, x, after, size)

        return _Corrected(first, move, self.corrections)


@dataclass(frozen=True, eq=False)
class _Corrected:
    """The law of the last of several draws: one from ``first``, then each from ``move`` of the one before."""

    first: Law
    move: Callable[[Tensor], Law]
    moves: int

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        x = self.first.sample(generator)
        for _ in range(self.moves):
            x = self.move(x).sample(generator)
        return x


def euler(field: Field, x: Tensor, u: float, v: float) -> Tensor:
    """One step of Euler's method for dx/du = field(x, u) from time u to time v, of order 1."""
    return x + (v - u) * field(x, u)


def heun(field: Field, x: Tensor, u: float, v: float) -> Tensor:
    """One step of Heun's method, the mean of the slopes at both ends: order 2. Book: [](#eq-s5-heun)."""
    slope = field(x, u)
    return x + 0.5 * (v - u) * (slope + field(x + (v - u) * slope, v))


def solve_ode(
    step: Callable[[Field, Tensor, float, float], Tensor],
    field: Field,
    x: Tensor,
    times: Tensor,
) -> Iterator[tuple[float, Tensor]]:
    """Yield (u, x) after each step of dx/du = field(x, u); ``times`` may rise or fall, an ODE runs both ways."""
    for u, v in pairwise(times.tolist()):
        with torch.no_grad():
            x = step(field, x, u, v)
        yield v, x


def fokker_planck_residual(
    process: Process, density: Field, x: Tensor, u: float, h: float
) -> Tensor:
    """∂_u q + ∇·(drift q) − arrow ½ diffusion² Δq at x ``(n, d)`` by central differences of width h: ``(n, 1)``.

    ``density`` is (x, u) ↦ q_u(x), ``(n, 1)``. Zero, up to O(h²), for the density of the process.
    Book: [Fokker–Planck](#eq-s5-fokker-planck).
    """
    here = density(x, u)
    diffusivity = process.arrow * 0.5 * process.diffusion(u) ** 2
    residual = (density(x, u + h) - density(x, u - h)) / (2 * h)
    shifts = h * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for i, shift in enumerate(shifts):
        left, right = x - shift, x + shift
        q_left, q_right = density(left, u), density(right, u)
        flow_left = process.drift(left, u)[:, [i]] * q_left
        flow_right = process.drift(right, u)[:, [i]] * q_right
        transport = flow_right - flow_left
        spread = q_right - 2 * here + q_left
        residual = residual + transport / (2 * h) - diffusivity * spread / h**2
    return residual
