"""How large the errors about the stochastic differential equation are."""

from __future__ import annotations

import math

import torch

from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.likelihood import divergence
from ddpm_nb.schedule import NoiseSchedule, linear_schedule
from ddpm_nb.sde import cosine_sde, euler, linear_sde, solve_ode
from errata import Numbers

T, t = 1000, 500
SCHEDULE, SDE = linear_schedule(T), linear_sde()
ENDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


def euler_step_against_the_chain() -> Numbers:
    """Return how the factors of one Euler–Maruyama step and one step of the chain differ, and what becomes of it."""
    beta = SCHEDULE.beta(torch.arange(1, T + 1))
    once = (1 - beta[t - 1] / 2 - (1 - beta[t - 1]).sqrt()).item()
    remainder = once / beta[t - 1].item() ** 2
    total = torch.log1p(-beta / 2).sum() - 0.5 * SCHEDULE.level(T).log_alpha_bar
    return {"t": t, "once": once, "remainder": remainder, "T": T, "percent": 100 * math.expm1(total)}


def sampler_against_euler_step() -> Numbers:
    """Return the ratio of the two variances at three steps and the difference of the factors on the state."""
    ratios = [(posterior_var(*SCHEDULE.levels(step - 1, step)) / SCHEDULE.beta(step)).item() for step in (1, 2, t)]
    beta = SCHEDULE.beta(t).item()
    factor = 1 / math.sqrt(1 - beta) - (1 + beta / 2)
    return {"ratios_0": ratios[0], "ratios_1": ratios[1], "ratios_2": ratios[2], "t": t, "factor": factor}


def samplers_after_all_steps() -> Numbers:
    """Return the variances with which the sampler and Euler–Maruyama end, for Gaussian data."""
    v, steps = 0.25, torch.arange(1, T + 1)
    beta, law = SCHEDULE.beta(steps), SCHEDULE.alpha_bar(steps) * v + SCHEDULE.level(steps).noise_var
    schemes = {  # factor on the state with the exact score -x / law, and variance added
        "sampler": ((1 - beta / law) / (1 - beta).sqrt(), posterior_var(*SCHEDULE.levels(steps - 1, steps))),
        "scheme": (1 + beta / 2 - beta / law, beta),
    }
    sampler, scheme = (_last_variance(law[-1].item(), *pair) for pair in schemes.values())
    return {"v": v, "T": T, "sampler_percent": 100 * (sampler / v - 1), "scheme_percent": 100 * (scheme / v - 1)}


def _last_variance(var: float, factors: torch.Tensor, added: torch.Tensor) -> float:
    for factor, more in zip(factors.flip(0).tolist(), added.flip(0).tolist(), strict=True):
        var = factor**2 * var + more
    return var


def redrawn_state() -> Numbers:
    """Return the spread of what the reverse process makes of one noisy state."""
    unit, q = GaussianMixture([1.0], [[0.0]], [1.0]), GaussianDiffusion(SCHEDULE)
    law = unit.reverse_kernel(q, torch.ones(1, dtype=torch.float64), 0, t)
    return {"t": t, "deviation": law.covariance().sqrt().item(), "mean": law.mean().item()}


def density_of_a_point() -> Numbers:
    """Return a value of the density that no probability can have."""
    narrow = GaussianMixture([1.0], [[0.0]], [0.01]).diffused(GaussianDiffusion(SCHEDULE), 10)
    value = narrow.log_prob(ENDS[:1]).exp().item()
    return {"value": value}


def lost_sign() -> Numbers:
    """Return both sides of the printed equation at one point, for data N(0, 1)."""
    u, unit = t / T, GaussianMixture([1.0], [[0.0]], [1.0])

    def density(x: torch.Tensor, u: float) -> torch.Tensor:
        return SDE.law(unit, u).log_prob(x).exp()[:, None]

    def gradient(x: torch.Tensor, u: float) -> torch.Tensor:
        return torch.autograd.grad(density(x, u).sum(), x, create_graph=True)[0]

    transport = divergence(lambda x, u: SDE.drift(x, u) * density(x, u), ENDS[:1], u).item()
    spread = SDE.rate(u) * divergence(gradient, ENDS[:1], u).item()
    return {"t": t, "right": transport - spread, "printed": spread - transport}


def wrong_reverse_drift() -> Numbers:
    """Return the spread with which the printed drift ends in the clock of its derivation, for data N(0, 1)."""
    printed = SDE.reverse(lambda x, u: -x).drift  # of the score of N(0, 1), at every time

    def change(v: torch.Tensor, tau: float) -> torch.Tensor:
        u = 1 - tau
        return 2 * printed(torch.ones_like(v), u) * v + SDE.rate(u)

    clock = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    *_, (_, var) = solve_ode(euler, change, torch.ones(1, dtype=torch.float64), clock)
    return {"T": T, "deviation": var.sqrt().item()}


def index_of_a_state() -> Numbers:
    """Return what the state with the right index agrees with."""
    chain, limit = SCHEDULE.alpha_bar(t).item(), math.exp(SDE.log_alpha_bar(t / T))
    return {"t": t, "T": T, "chain": chain, "limit": limit}


def rate_at_the_wrong_end() -> Numbers:
    """Return how the variance of one step and the signal left at the end change."""
    start, end = (
        torch.tensor([SDE.rate((k + shift) / T) / T for k in range(T)], dtype=torch.float64) for shift in (0, 1)
    )
    ratio = (NoiseSchedule.from_betas(start).alpha_bar(T) / NoiseSchedule.from_betas(end).alpha_bar(T)).item()
    return {
        "t": t,
        "step_percent": 100 * (1 - start[t - 1] / end[t - 1]).item(),
        "T": T,
        "chain_percent": 100 * (ratio - 1),
    }


def rate_over_one_step() -> Numbers:
    """Return the relative change of the rate over one step of a thousand, in the middle and near the end."""
    early, late = (
        sde.rate(u + 1 / T) / sde.rate(u) - 1 for sde, u in ((SDE, t / T), (cosine_sde(max_rate=1e9), 1 - 2 / T))
    )
    return {"T": T, "early_percent": 100 * early, "t": t, "late_percent": 100 * late, "late_step": T - 2}
