"""How large the errors about the forward chain and its schedules are; linear schedule with T = 1000 unless said."""

from __future__ import annotations

import torch

from ddpm_nb.bound import prior_term
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, linear_schedule

SCHEDULE = linear_schedule()
T = SCHEDULE.T
MIDDLE = T // 2


def _alpha_bars() -> torch.Tensor:
    """Return ᾱ_0..ᾱ_T."""
    return SCHEDULE.alpha_bar(torch.arange(T + 1))


def distance_from_noise() -> str:
    """Return the divergence of the last state from pure noise."""
    x_0 = torch.ones(1, 784, dtype=torch.float64)
    nats = prior_term(GaussianDiffusion(SCHEDULE), x_0).item()
    return f"for an image of 784 pixels that are all 1, $x_T$ at $T = {T}$ is {nats:.3f} nats away from pure noise"


def signal_left() -> str:
    """Return what is left of the signal at the end of the chain."""
    abar = SCHEDULE.alpha_bar(T).item()
    return (
        f"at $t = T = {T}$ the power $\\bar\\alpha_T$ is {abar:.2e} and the factor of $x_0$ is {abar**0.5:.4f}, not 0"
    )


def law_at_the_end() -> str:
    """Return mean and divergence of the last marginal for Gaussian data."""
    data = GaussianMixture([1.0], [[1.0]], [0.25]).diffused(GaussianDiffusion(SCHEDULE), T)
    law = Gaussian(data.means, data.variances[:, None])
    nats = law.kl(Gaussian(torch.zeros(1, 1, dtype=torch.float64), 1.0)).item()
    return (
        f"for data $\\mathcal{{N}}(1,\\,0.25)$ the last state at $T = {T}$ has the mean {law.mean.item():.4f} instead of 0 "
        f"and the divergence {nats:.1e} nats from $\\mathcal{{N}}(0,\\,1)$"
    )


def a_chain_that_never_forgets() -> str:
    """Return how far from noise a chain stays whose variances have a finite sum."""
    steps = 100_000
    schedule = NoiseSchedule.from_betas(torch.arange(2, steps + 2, dtype=torch.float64) ** -2)
    nats = prior_term(GaussianDiffusion(schedule), torch.ones(1, 1, dtype=torch.float64)).item()
    return (
        f"with $\\beta_t = 1/(t+1)^2$ the power $\\bar\\alpha_T$ is {schedule.alpha_bar(steps).item():.3f} at $T = {steps}$ "
        f"and $q(x_T\\mid x_0 = 1)$ is {nats:.2f} nats away from noise"
    )


def bar_too_many() -> str:
    """Return the variance that the printed coefficient gives and the true one."""
    true = SCHEDULE.level(MIDDLE + 1).noise_var
    before = SCHEDULE.level(MIDDLE).noise_var
    printed = SCHEDULE.alpha_bar(MIDDLE + 1).item() * before + SCHEDULE.beta(MIDDLE + 1).item()
    return f"at $t = {MIDDLE}$ the printed line gives $x_{{t+1}}$ the variance {printed:.3f} instead of {true:.3f}"


def one_letter_for_two_noises() -> str:
    """Return the correlation of the noise before and after the merge."""

    def correlation(t: int) -> float:
        kept = SCHEDULE.alpha(t + 1) * SCHEDULE.level(t).noise_var / SCHEDULE.level(t + 1).noise_var
        return kept.sqrt().item()

    return (
        f"the correlation of the merged noise with $\\epsilon$ is {correlation(1):.2f} at $t = 1$ and "
        f"{correlation(MIDDLE):.3f} at $t = {MIDDLE}$, not 1"
    )


def noise_scaled_by_its_variance() -> str:
    """Return what scaling the noise by the variance does to one step and to the whole chain."""
    beta = SCHEDULE.beta(MIDDLE).item()
    steps = torch.arange(1, T + 1)
    left = SCHEDULE.alpha_bar(T) / SCHEDULE.alpha_bar(steps)
    total, true = (SCHEDULE.beta(steps) ** 2 * left).sum().item(), SCHEDULE.level(T).noise_var
    return (
        f"at $t = {MIDDLE}$ the noise would have the standard deviation {beta:.3f} instead of {beta**0.5:.3f}, and $x_T$ "
        f"the noise variance {total:.3f} instead of {true:.5f}"
    )


def variances_simply_added() -> str:
    """Return the sum of the variances as they are and the true noise variance."""
    steps = torch.arange(1, T + 1)
    middle, end = SCHEDULE.beta(steps[:MIDDLE]).sum().item(), SCHEDULE.beta(steps).sum().item()
    true = SCHEDULE.level(torch.tensor([MIDDLE, T])).noise_var.tolist()
    return (
        f"added as they are, the $\\beta_s$ come to {middle:.2f} at $t = {MIDDLE}$ and {end:.2f} at $t = {T}$; the noise "
        f"variances are {true[0]:.3f} and {true[1]:.5f}"
    )


def power_lost_by_quarter() -> str:
    """Return when the linear schedule destroys the signal."""
    abar = _alpha_bars()
    early, late = (abar[0] - abar[MIDDLE]).item(), (abar[3 * T // 4] - abar[T]).item()
    below = int((abar < 0.01).nonzero()[0])
    return (
        f"the first half of the steps removes {100 * early:.0f} % of the signal power and the last quarter {100 * late:.1f} %; "
        f"less than 1 % is left from $t = {below}$"
    )


def missing_brackets() -> str:
    """Return an eigenvalue of the printed covariance, read literally."""
    abar = SCHEDULE.alpha_bar(MIDDLE)
    printed = torch.ones(3, 3, dtype=torch.float64) - abar * torch.eye(3, dtype=torch.float64)
    lowest = torch.linalg.eigvalsh(printed)[0].item()
    return (
        f"at $t = {MIDDLE}$ and $d = 3$ the printed matrix, with 1 read as the matrix of ones, has the eigenvalue "
        f"{lowest:.3f} and is no covariance; the variance meant is {1 - abar.item():.3f}"
    )


def two_noises() -> str:
    """Return the correlation of the noise of a step with the total noise."""
    values = {t: (SCHEDULE.beta(t) / SCHEDULE.level(t).noise_var).sqrt().item() for t in (1, 2, MIDDLE)}
    listed = ", ".join(f"{value:.2f} at $t = {t}$" for t, value in values.items())
    return f"the correlation of the two is {listed}"
