"""Chapter 5. The chain as a stochastic differential equation, forwards and backwards in time u = t/T.

dX = −½ β(u) X du + √β(u) dW. With the rate constant between the steps of a chain, −T log(1 − β_t), the equation
observed at u = t/T *is* the chain: no discretization error. There is one clock, u, and a process says which way it
runs along it, so that a drift cannot be used in the wrong direction of time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule

__all__ = [
    "VPSDE",
    "Process",
    "chain_sde",
    "cosine_sde",
    "divergence",
    "euler",
    "euler_maruyama",
    "exact_score",
    "fokker_planck_residual",
    "heun",
    "linear_sde",
    "ode_log_prob",
    "solve_ode",
]

Field = Callable[[Tensor, float], Tensor]  # (x, u) -> a vector at x: a drift or a score, of the shape of x


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
            raise ValueError(f"u = {u}, v = {v}: expected 0 <= u <= v <= 1, the earlier time first")
        lost = self.log_alpha_bar(v) - self.log_alpha_bar(u)
        return Gaussian(math.exp(lost / 2) * x, torch.tensor(-math.expm1(lost), dtype=x.dtype))

    def marginal(self, x_0: Tensor, u: float) -> Gaussian:
        """q(x_u | x_0) = N(√ᾱ(u) x_0, (1 − ᾱ(u)) I), the transition from time 0. Book: [](#eq-sde-marginal)."""
        return self.transition(x_0, 0.0, u)

    def law(self, data: GaussianMixture, u: float) -> GaussianMixture:
        """q_u, the law of X_u for X_0 ~ data. Book: [the diffused mixture](#eq-mixture-marginal)."""
        kernel = self.marginal(data.means, u)
        return GaussianMixture(data.weights, kernel.mean, math.exp(self.log_alpha_bar(u)) * data.variances + kernel.var)

    def forward(self) -> Process:
        """Return the process from data to noise."""
        return Process(self.drift, self.diffusion, arrow=1)

    def reverse(self, score: Field, noise: float = 1.0) -> Process:
        """Return the process from noise to data, drift f − ½(1 + noise²) g² score and diffusion noise·g, with du < 0.

        noise = 1 is Anderson's reverse SDE (Roysdon (18)), noise = 0 the probability-flow ODE; every value has the
        marginals of the forward process. Book: [the reverse family](#eq-reverse-family).
        """
        if not noise >= 0:
            raise ValueError(f"noise = {noise}: expected a factor of at least 0 (0: ODE, 1: Anderson's SDE)")

        def drift(x: Tensor, u: float) -> Tensor:
            return self.drift(x, u) - 0.5 * (1 + noise**2) * self.rate(u) * score(x, u)

        return Process(drift, lambda u: noise * self.diffusion(u), arrow=-1)


def linear_sde(rate_0: float = 0.1, rate_1: float = 20.0) -> VPSDE:
    """β(u) on a line from ``rate_0`` to ``rate_1``, the linear schedule for T → ∞. Book: [](#eq-s5-linear-rate)."""
    if not 0 < rate_0 <= rate_1:
        raise ValueError(f"rate_0 = {rate_0}, rate_1 = {rate_1}: expected 0 < rate_0 <= rate_1")
    return VPSDE(lambda u: rate_0 + u * (rate_1 - rate_0), lambda u: -(rate_0 * u + 0.5 * (rate_1 - rate_0) * u**2))


def cosine_sde(offset: float = 0.008, max_rate: float = 999.0) -> VPSDE:
    """β(u) = π/(1 + offset) · tan(π/2 · (u + offset)/(1 + offset)), the cosine schedule for T → ∞, cut at ``max_rate``.

    Uncut, the rate is infinite at u = 1. Book: [](#eq-s5-cosine-rate).
    """
    if not (offset >= 0 and max_rate > 0):
        raise ValueError(f"offset = {offset}, max_rate = {max_rate}: expected offset >= 0 and max_rate > 0")
    slope = math.pi / (1 + offset)
    cut = max(math.atan(max_rate / slope) / (slope / 2) - offset, 0.0)  # where the rate reaches max_rate

    def log_alpha_bar(u: float) -> float:
        free = min(u, cut)
        signal = math.cos(slope / 2 * (free + offset)) / math.cos(slope / 2 * offset)
        return 2 * math.log(signal) - max_rate * (u - free)

    return VPSDE(lambda u: max_rate if u >= cut else slope * math.tan(slope / 2 * (u + offset)), log_alpha_bar)


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

    def log_alpha_bar(u: float) -> float:
        t = step(u)
        return table[t] + (table[t] - table[t - 1]) * (u * T - t)

    return VPSDE(lambda u: T * (table[step(u) - 1] - table[step(u)]), log_alpha_bar)


def exact_score(sde: VPSDE, data: GaussianMixture) -> Field:
    """Return (x, u) ↦ ∇ log q_u(x) for X_0 ~ data, x ``(batch, d)``: Σ_k p(k | x) (m_k − x)/v_k of the law q_u.

    Unlike Tweedie's form it holds at u = 0 too. Book: [](#eq-s5-score).
    """

    def score(x: Tensor, u: float) -> Tensor:
        law = sde.law(data, u)
        variances = law.variances.reshape(len(law.weights), -1).expand_as(law.means)
        log_weights, means, var = (value.to(x.device) for value in (law.weights.log(), law.means, variances))
        shift = means - x[:, None, :].double()
        part = (log_weights - 0.5 * (shift.square() / var + var.log()).sum(2)).softmax(1)
        return (part[:, :, None] * shift / var).sum(1).to(x.dtype)

    return score


def euler_maruyama(
    process: Process, x: Tensor, times: Tensor, generator: torch.Generator | None = None
) -> Iterator[tuple[float, Tensor]]:
    """Yield (u, x) after each step x ← x + drift Δu + diffusion √|Δu| z. Book: [](#eq-euler-maruyama).

    Raises ``ValueError`` where ``times`` run against the process: a drift is right for one direction of time only.
    """
    for u, v in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        if not process.arrow * (v - u) > 0:
            raise ValueError(f"times go from {u} to {v}: expected them to {'rise' if process.arrow > 0 else 'fall'}")
        with torch.no_grad():
            var = torch.tensor(process.diffusion(u) ** 2 * abs(v - u), dtype=x.dtype)
            x = Gaussian(x + process.drift(x, u) * (v - u), var).sample(generator)
        yield v, x


def euler(field: Field, x: Tensor, u: float, v: float) -> Tensor:
    """One step of Euler's method for dx/du = field(x, u) from time u to time v, of order 1."""
    return x + (v - u) * field(x, u)


def heun(field: Field, x: Tensor, u: float, v: float) -> Tensor:
    """One step of Heun's method, the mean of the slopes at both ends: order 2. Book: [](#eq-s5-heun)."""
    slope = field(x, u)
    return x + 0.5 * (v - u) * (slope + field(x + (v - u) * slope, v))


def solve_ode(
    step: Callable[[Field, Tensor, float, float], Tensor], field: Field, x: Tensor, times: Tensor
) -> Iterator[tuple[float, Tensor]]:
    """Yield (u, x) after each step of dx/du = field(x, u); ``times`` may rise or fall, an ODE runs both ways."""
    for u, v in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        with torch.no_grad():
            x = step(field, x, u, v)
        yield v, x


def divergence(field: Field, x: Tensor, u: float) -> Tensor:
    """Σ_i ∂ field_i / ∂ x_i, the exact trace by d backward passes: ``(batch,)`` for x ``(batch, d)``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        columns = field(x, u).sum(0)
        diagonal = [torch.autograd.grad(c, x, retain_graph=True)[0][:, i] for i, c in enumerate(columns)]
    return torch.stack(diagonal).sum(0)


def ode_log_prob(sde: VPSDE, score: Field, x: Tensor, times: Tensor, prior: GaussianMixture | Gaussian) -> Tensor:
    """Log density of the probability-flow model at x ``(batch, d)``, in nats, ``(batch,)``, by Heun's method.

    log p(x) = log prior(x at the last time) + ∫ div du along the flow; ``times`` rise from the data's time to the
    prior's. Book: [](#eq-s5-log-density).
    """
    flow = sde.reverse(score, noise=0.0).drift

    def with_divergence(state: Tensor, u: float) -> Tensor:
        return torch.cat([flow(state[:, :-1], u), divergence(flow, state[:, :-1], u)[:, None]], dim=1)

    state = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    _, state = deque(solve_ode(heun, with_divergence, state, times), maxlen=1).pop()
    return prior.log_prob(state[:, :-1]) + state[:, -1]


def fokker_planck_residual(process: Process, density: Field, x: Tensor, u: float, h: float) -> Tensor:
    """∂_u q + ∂_x(drift q) − arrow ½ diffusion² ∂²_x q at x ``(n, 1)`` by central differences of width h: ``(n, 1)``.

    ``density`` is (x, u) ↦ q_u(x), ``(n, 1)``. Zero, up to O(h²), for the density of the process.
    Book: [Fokker–Planck](#eq-s5-fokker-planck).
    """
    left, here, right = (density(y, u) for y in (x - h, x, x + h))
    in_time = (density(x, u + h) - density(x, u - h)) / (2 * h)
    transport = (process.drift(x + h, u) * right - process.drift(x - h, u) * left) / (2 * h)
    spread = (right - 2 * here + left) / h**2
    return in_time + transport - process.arrow * 0.5 * process.diffusion(u) ** 2 * spread
