"""How large the documents' errors on sampling are (chapter 7)."""

from __future__ import annotations

import math

import torch

from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.sampling import grid
from ddpm_nb.schedule import added_var, cosine_schedule, linear_schedule
from errata import Numbers

F64 = torch.float64
Q = GaussianDiffusion(linear_schedule())
COSINE = GaussianDiffusion(cosine_schedule())
T = Q.schedule.T


def _delivered(v: float, steps: int, variance: str) -> float:
    """Variance of the samples of an ancestral walk or of DDIM for data N(0, v) with their exact denoiser, over v."""
    times = torch.tensor(grid(T, steps))
    t, s = times[:-1], times[1:]
    one, zero = torch.ones(len(t), dtype=F64), torch.zeros(len(t), dtype=F64)
    signal, noise = Q.schedule.alpha_bar(t).sqrt(), Q.schedule.level(t).noise_var
    estimate = signal * v / (signal**2 * v + noise)  # E[x_0 | x_t] = estimate · x_t
    if variance == "ddim":
        eps = (1 - signal * estimate) / noise.sqrt()
        slope = Q.schedule.alpha_bar(s).sqrt() * estimate + Q.schedule.level(s).noise * eps
        fresh = zero
    else:
        slope = Q.posterior(one, zero, s, t).mean * estimate + Q.posterior(zero, one, s, t).mean
        choice = {"beta": added_var, "beta_tilde": posterior_var}[variance]
        fresh = choice(*Q.schedule.levels(s, t)) * (s > 0)
    var = 1.0
    for a, b in zip(slope.tolist(), fresh.tolist(), strict=True):
        var = a**2 * var + b
    return var / v


def _gain(q: GaussianDiffusion, t: int) -> float:
    """β_t/√(α_t (1 − ᾱ_t)): how far an error 1 of the predicted noise moves the mean of the step."""
    s = q.schedule
    return (s.beta(t) / (s.alpha(t) * s.level(t).noise_var).sqrt()).item()


def unstable_term() -> Numbers:
    """How far an error of the predicted noise moves the mean, at the start of the walk."""
    return {
        "T": T,
        "cosine": _gain(COSINE, T),
        "linear": _gain(Q, T),
        "next_step": T - 1,
        "cosine_next": _gain(COSINE, T - 1),
    }


def smaller_variance() -> Numbers:
    """β̃_t over β_t."""
    ratio = {t: (posterior_var(*Q.schedule.levels(t - 1, t)) / Q.schedule.beta(t)).item() for t in (2, 10, 500)}
    return {"ratio_2": ratio[2], "ratio_10": ratio[10], "ratio_500": ratio[500]}


def stale_step() -> Numbers:
    """Last step for data at one point, the network asked with t = 2: the noise that is left in the sample."""
    s = Q.schedule
    noise = {t: s.level(t).noise for t in (1, 2)}
    # x_1 = √ᾱ_1 c + √(1−ᾱ_1) n; the exact noise prediction of step 2 divides by √(1−ᾱ_2)
    left = noise[1] * (1 - s.beta(1).item() / (noise[1] * noise[2])) / math.sqrt(s.alpha(1).item())
    return {"left": left, "grey_levels": left / (2 / 255)}


def stale_alpha() -> Numbers:
    """Last step with ᾱ_2 where ᾱ_1 belongs."""
    ratio = Q.schedule.level(1).noise / Q.schedule.level(2).noise
    return {"ratio": ratio}


def skipped_steps() -> Numbers:
    """Delivered variance of DDIM in fifty steps, and of the whole walk."""
    return {
        "ddim_50": _delivered(0.25, 50, "ddim"),
        "ddim_200": _delivered(0.25, 200, "ddim"),
        "T": T,
        "ancestral_T": _delivered(0.25, T, "beta_tilde"),
    }
