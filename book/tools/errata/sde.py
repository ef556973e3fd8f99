"""How large the errors about the stochastic differential equation are."""

from __future__ import annotations

import math

import torch

from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.likelihood import divergence
from ddpm_nb.schedule import NoiseSchedule, linear_schedule
from ddpm_nb.sde import cosine_sde, euler, linear_sde, solve_ode

T, t = 1000, 500
SCHEDULE, SDE = linear_schedule(T), linear_sde()
ENDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


def euler_step_against_the_chain() -> str:
    """Return how the factors of one Euler–Maruyama step and one step of the chain differ, and what becomes of it."""
    beta = SCHEDULE.beta(torch.arange(1, T + 1))
    once = (1 - beta[t - 1] / 2 - (1 - beta[t - 1]).sqrt()).item()
    remainder = once / beta[t - 1].item() ** 2
    total = torch.log1p(-beta / 2).sum() - 0.5 * SCHEDULE.level(T).log_alpha_bar
    return (
        f"at $t = {t}$ the factor on the state is too large by {once:.2g}, which is {remainder:.3f} $\\beta_t^2$; over all "
        f"{T} steps the product of the factors is {100 * math.expm1(total):.1f} % too large"
    )


def sampler_against_euler_step() -> str:
    """Return the ratio of the two variances at three steps and the difference of the factors on the state."""
    ratios = [(posterior_var(*SCHEDULE.levels(step - 1, step)) / SCHEDULE.beta(step)).item() for step in (1, 2, t)]
    beta = SCHEDULE.beta(t).item()
    factor = 1 / math.sqrt(1 - beta) - (1 + beta / 2)
    return (
        f"the sampler adds {ratios[0]:.0f}, {ratios[1]:.2f} and {ratios[2]:.4f} times the variance of the Euler–Maruyama "
        f"step at $t = 1$, $2$ and ${t}$; the factors on the state differ by {factor:.2g} at $t = {t}$"
    )


def samplers_after_all_steps() -> str:
    """Return the variances with which the sampler and Euler–Maruyama end, for Gaussian data."""
    v, steps = 0.25, torch.arange(1, T + 1)
    beta, law = SCHEDULE.beta(steps), SCHEDULE.alpha_bar(steps) * v + SCHEDULE.level(steps).noise_var
    schemes = {  # factor on the state with the exact score -x / law, and variance added
        "sampler": ((1 - beta / law) / (1 - beta).sqrt(), posterior_var(*SCHEDULE.levels(steps - 1, steps))),
        "scheme": (1 + beta / 2 - beta / law, beta),
    }
    sampler, scheme = (_last_variance(law[-1].item(), *pair) for pair in schemes.values())
    return (
        f"for data $\\mathcal{{N}}(0,\\,{v})$ and the exact score, {T} steps of the sampler end with "
        f"{100 * (sampler / v - 1):+.1f} % of error in the variance and {T} Euler–Maruyama steps with "
        f"{100 * (scheme / v - 1):+.1f} %"
    )


def _last_variance(var: float, factors: torch.Tensor, added: torch.Tensor) -> float:
    for factor, more in zip(factors.flip(0).tolist(), added.flip(0).tolist(), strict=True):
        var = factor**2 * var + more
    return var


def redrawn_state() -> str:
    """Return the spread of what the reverse process makes of one noisy state."""
    unit, q = GaussianMixture([1.0], [[0.0]], [1.0]), GaussianDiffusion(SCHEDULE)
    law = unit.reverse_kernel(q, torch.ones(1, dtype=torch.float64), 0, t)
    return (
        f"for data $\\mathcal{{N}}(0,1)$ and the state $x_t = 1$ at $t = {t}$ the reverse process ends with standard "
        f"deviation {law.covariance().sqrt().item():.2f} about {law.mean().item():.2f}; a reconstruction would have 0"
    )


def density_of_a_point() -> str:
    """Return a value of the density that no probability can have."""
    narrow = GaussianMixture([1.0], [[0.0]], [0.01]).diffused(GaussianDiffusion(SCHEDULE), 10)
    value = narrow.log_prob(ENDS[:1]).exp().item()
    return (
        "in wording only: the probability of a point is 0, and the density is no probability: for data "
        f"$\\mathcal{{N}}(0,\\,0.01)$ it is {value:.2f} per unit of length at $x = 0$, $t = 10$"
    )


def lost_sign() -> str:
    """Return both sides of the printed equation at one point, for data N(0, 1)."""
    u, unit = t / T, GaussianMixture([1.0], [[0.0]], [1.0])

    def density(x: torch.Tensor, u: float) -> torch.Tensor:
        return SDE.law(unit, u).log_prob(x).exp()[:, None]

    def gradient(x: torch.Tensor, u: float) -> torch.Tensor:
        return torch.autograd.grad(density(x, u).sum(), x, create_graph=True)[0]

    transport = divergence(lambda x, u: SDE.drift(x, u) * density(x, u), ENDS[:1], u).item()
    spread = SDE.rate(u) * divergence(gradient, ENDS[:1], u).item()
    return (
        f"for data $\\mathcal{{N}}(0,1)$ at $x = 0$, $t = {t}$ the printed right side is {transport - spread:+.2f} per "
        f"unit of length and time where {spread - transport:+.2f} is needed"
    )


def wrong_reverse_drift() -> str:
    """Return the spread with which the printed drift ends in the clock of its derivation, for data N(0, 1)."""
    printed = SDE.reverse(lambda x, u: -x).drift  # of the score of N(0, 1), at every time

    def change(v: torch.Tensor, tau: float) -> torch.Tensor:
        u = 1 - tau
        return 2 * printed(torch.ones_like(v), u) * v + SDE.rate(u)

    clock = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    *_, (_, var) = solve_ode(euler, change, torch.ones(1, dtype=torch.float64), clock)
    return (
        f"for data $\\mathcal{{N}}(0,1)$ the printed drift, run from noise in the rising clock $\\tau$ in {T} steps, ends "
        f"with standard deviation {var.sqrt().item():.0f} in place of 1"
    )


def index_of_a_state() -> str:
    """Return what the state with the right index agrees with."""
    chain, limit = SCHEDULE.alpha_bar(t).item(), math.exp(SDE.log_alpha_bar(t / T))
    return (
        f"none, it is the index of a symbol: read as it must be, $x_i$ at $i = {t}$ of $N = {T}$ steps has "
        f"$\\bar\\alpha_i = {chain:.4f}$ and $X(i/N)$ has ${limit:.4f}$"
    )


def rate_at_the_wrong_end() -> str:
    """Return how the variance of one step and the signal left at the end change."""
    start, end = (
        torch.tensor([SDE.rate((k + shift) / T) / T for k in range(T)], dtype=torch.float64) for shift in (0, 1)
    )
    ratio = (NoiseSchedule.from_betas(start).alpha_bar(T) / NoiseSchedule.from_betas(end).alpha_bar(T)).item()
    return (
        f"at $t = {t}$ the variance of the step is {100 * (1 - start[t - 1] / end[t - 1]).item():.2f} % too small, and over "
        f"all {T} steps $\\bar\\alpha_T$ becomes {100 * (ratio - 1):.1f} % too large; both vanish like $1/T$"
    )


def rate_over_one_step() -> str:
    """Return the relative change of the rate over one step of a thousand, in the middle and near the end."""
    early, late = (
        sde.rate(u + 1 / T) / sde.rate(u) - 1 for sde, u in ((SDE, t / T), (cosine_sde(max_rate=1e9), 1 - 2 / T))
    )
    return (
        f"over one step of {T} the linear rate rises by {100 * early:.2f} % at $t = {t}$, the cosine rate by "
        f"{100 * late:.0f} % at $t = {T - 2}$"
    )
