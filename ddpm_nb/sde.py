"""Chapter 5. The chain as a stochastic differential equation, forwards and backwards in time u = t/T.

dX = −½ β(u) X du + √β(u) dW. With the rate constant between the steps of a chain, −T log(1 − β_t), the equation
observed at u = t/T *is* the chain: no discretization error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule

__all__ = ["VPSDE", "chain_sde", "euler_maruyama", "linear_sde", "reverse_drift"]

Score = Callable[[Tensor, float], Tensor]  # (x, u) -> ∇ log q_u(x)
Drift = Callable[[Tensor, float], Tensor]


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
        return self.rate(u) ** 0.5

    def marginal(self, x_0: Tensor, u: float) -> Gaussian:
        """q(x_u | x_0) = N(√ᾱ(u) x_0, (1 − ᾱ(u)) I), solved exactly. Book: [](#eq-sde-marginal)."""
        log_alpha_bar = torch.tensor(self.log_alpha_bar(u), dtype=torch.float64)
        return Gaussian((log_alpha_bar / 2).exp().item() * x_0, -torch.expm1(log_alpha_bar))


def linear_sde(rate_0: float = 0.1, rate_1: float = 20.0) -> VPSDE:
    """β(u) on a line from ``rate_0`` to ``rate_1``, the limit of the linear schedule for T → ∞."""
    if not 0 < rate_0 <= rate_1:
        raise ValueError(f"rate_0 = {rate_0}, rate_1 = {rate_1}: expected 0 < rate_0 <= rate_1")
    return VPSDE(lambda u: rate_0 + u * (rate_1 - rate_0), lambda u: -(rate_0 * u + 0.5 * (rate_1 - rate_0) * u**2))


def chain_sde(schedule: NoiseSchedule) -> VPSDE:
    """Return the SDE that passes through the chain: rate −T log(1 − β_t) for (t−1)/T < u ≤ t/T.

    Book: [the chain is an SDE](#eq-chain-rate).
    """
    T, table = schedule.T, schedule.log_alpha_bars

    def step(u: float) -> int:
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"u = {u}: expected a time from 0 to 1")
        # u = t/T must find step t, also when t/T·T rounds to just above t.
        return min(max(int(-(-(u * T - 1e-9) // 1)), 1), T)

    def log_alpha_bar(u: float) -> float:
        t = step(u)
        return float(torch.lerp(table[t - 1], table[t], u * T - (t - 1)))

    return VPSDE(lambda u: float(T * (table[step(u) - 1] - table[step(u)])), log_alpha_bar)


def reverse_drift(sde: VPSDE, score: Score, noise: float = 1.0) -> Drift:
    """Drift of the process run backwards in u with diffusion noise·g, for u falling: f − ½(1 + noise²) g² score.

    noise = 1 is Anderson's reverse SDE (Roysdon (18)), noise = 0 the probability-flow ODE; every value has the same
    marginals. Book: [the reverse family](#eq-reverse-family).
    """
    if not noise >= 0:
        raise ValueError(f"noise = {noise}: expected a factor of at least 0 (0: ODE, 1: Anderson's SDE)")
    return lambda x, u: sde.drift(x, u) - 0.5 * (1 + noise**2) * sde.rate(u) * score(x, u)


def euler_maruyama(
    drift: Drift,
    diffusion: Callable[[float], float],
    x: Tensor,
    times: Tensor,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Yield (u, x) after each step x ← x + drift Δu + diffusion √|Δu| z; ``times`` may rise or fall.

    Book: [Euler–Maruyama](#eq-euler-maruyama).
    """
    for u, following in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        with torch.no_grad():
            change = following - u
            x = Gaussian(x + drift(x, u) * change, torch.tensor(diffusion(u) ** 2 * abs(change))).sample(generator)
        yield following, x
