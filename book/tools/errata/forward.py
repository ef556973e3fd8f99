"""How large the errors about the forward chain and its schedules are; linear schedule with T = 1000 unless said."""

from __future__ import annotations

import torch

from ddpm_nb.bound import prior_term
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, linear_schedule
from errata import Numbers

SCHEDULE = linear_schedule()
T = SCHEDULE.T
MIDDLE = T // 2


def _alpha_bars() -> torch.Tensor:
    """Return ᾱ_0..ᾱ_T."""
    return SCHEDULE.alpha_bar(torch.arange(T + 1))


def distance_from_noise() -> Numbers:
    """Return the divergence of the last state from pure noise."""
    x_0 = torch.ones(1, 784, dtype=torch.float64)
    nats = prior_term(GaussianDiffusion(SCHEDULE), x_0).item()
    return {"T": T, "nats": nats}


def law_at_the_end() -> Numbers:
    """Return mean and divergence of the last marginal for Gaussian data."""
    data = GaussianMixture([1.0], [[1.0]], [0.25]).diffused(GaussianDiffusion(SCHEDULE), T)
    law = Gaussian(data.means, data.variances[:, None])
    nats = law.kl(Gaussian(torch.zeros(1, 1, dtype=torch.float64), 1.0)).item()
    return {"T": T, "mean": law.mean.item(), "nats": nats}


def a_chain_that_never_forgets() -> Numbers:
    """Return how far from noise a chain stays whose variances have a finite sum."""
    steps = 100_000
    schedule = NoiseSchedule.from_betas(torch.arange(2, steps + 2, dtype=torch.float64) ** -2)
    nats = prior_term(GaussianDiffusion(schedule), torch.ones(1, 1, dtype=torch.float64)).item()
    return {"abar": schedule.alpha_bar(steps).item(), "steps": steps, "nats": nats}


def bar_too_many() -> Numbers:
    """Return the variance that the printed coefficient gives and the true one."""
    true = SCHEDULE.level(MIDDLE + 1).noise_var
    before = SCHEDULE.level(MIDDLE).noise_var
    printed = SCHEDULE.alpha_bar(MIDDLE + 1).item() * before + SCHEDULE.beta(MIDDLE + 1).item()
    return {"MIDDLE": MIDDLE, "printed": printed, "true": true}


def one_letter_for_two_noises() -> Numbers:
    """Return the correlation of the noise before and after the merge."""

    def correlation(t: int) -> float:
        kept = SCHEDULE.alpha(t + 1) * SCHEDULE.level(t).noise_var / SCHEDULE.level(t + 1).noise_var
        return kept.sqrt().item()

    return {"first": correlation(1), "middle": correlation(MIDDLE), "MIDDLE": MIDDLE}


def noise_scaled_by_its_variance() -> Numbers:
    """Return what scaling the noise by the variance does to one step and to the whole chain."""
    beta = SCHEDULE.beta(MIDDLE).item()
    steps = torch.arange(1, T + 1)
    left = SCHEDULE.alpha_bar(T) / SCHEDULE.alpha_bar(steps)
    total, true = (SCHEDULE.beta(steps) ** 2 * left).sum().item(), SCHEDULE.level(T).noise_var
    return {"MIDDLE": MIDDLE, "beta": beta, "deviation": beta**0.5, "total": total, "true": true}


def variances_simply_added() -> Numbers:
    """Return the sum of the variances as they are and the true noise variance."""
    steps = torch.arange(1, T + 1)
    middle, end = SCHEDULE.beta(steps[:MIDDLE]).sum().item(), SCHEDULE.beta(steps).sum().item()
    true = SCHEDULE.level(torch.tensor([MIDDLE, T])).noise_var.tolist()
    return {"middle": middle, "MIDDLE": MIDDLE, "end": end, "T": T, "true_0": true[0], "true_1": true[1]}


def power_lost_by_quarter() -> Numbers:
    """Return when the linear schedule destroys the signal."""
    abar = _alpha_bars()
    early, late = (abar[0] - abar[MIDDLE]).item(), (abar[3 * T // 4] - abar[T]).item()
    below = int((abar < 0.01).nonzero()[0])
    return {"early_percent": 100 * early, "late_percent": 100 * late, "below": below}


def missing_brackets() -> Numbers:
    """Return an eigenvalue of the printed covariance, read literally."""
    abar = SCHEDULE.alpha_bar(MIDDLE)
    printed = torch.ones(3, 3, dtype=torch.float64) - abar * torch.eye(3, dtype=torch.float64)
    lowest = torch.linalg.eigvalsh(printed)[0].item()
    return {"MIDDLE": MIDDLE, "lowest": lowest, "right": 1 - abar.item()}


def two_noises() -> Numbers:
    """Return the correlation of the noise of a step with the total noise."""
    values = {t: (SCHEDULE.beta(t) / SCHEDULE.level(t).noise_var).sqrt().item() for t in (1, 2, MIDDLE)}
    return {"values_1": values[1], "values_2": values[2], "values_MIDDLE": values[MIDDLE], "MIDDLE": MIDDLE}
