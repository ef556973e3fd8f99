"""How large the documents' errors on sampling are (chapter 7)."""

from __future__ import annotations

import math

import torch

from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.sampling import grid
from ddpm_nb.schedule import added_var, cosine_schedule, linear_schedule

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


def better_variance() -> str:
    """Delivered variance with β̃ and with β, for data of three variances."""
    off = [
        f"{100 * (_delivered(v, T, 'beta_tilde') - 1):+.2f} and {100 * (_delivered(v, T, 'beta') - 1):+.2f} percent "
        f"for data of variance {v}"
        for v in (0.04, 0.25, 1.0)
    ]
    return (
        f"with the exact denoiser and $T = {T}$ steps $\\tilde\\beta_t$ and $\\beta_t$ deliver variances that are off by "
        + "; ".join(off)
    )


def unstable_term() -> str:
    """How far an error of the predicted noise moves the mean, at the start of the walk."""
    return (
        f"an error of the predicted noise moves the mean at $t = {T}$ by {_gain(COSINE, T):.1f} times its size with the "
        f"cosine schedule, but by {_gain(Q, T):.4f} times with the linear one; at $t = {T - 1}$ the cosine factor is down to "
        f"{_gain(COSINE, T - 1):.1f}"
    )


def noise_weight() -> str:
    """The weight of the noise in the mean at the end of the walk, and the factor that does explode, at its start."""
    weight = {t: (Q.schedule.beta(t) / Q.schedule.level(t).noise).item() for t in (1, T)}
    explodes = {t: Q.schedule.snr(t).rsqrt().item() for t in (1, T)}
    return (
        f"$\\beta_t/\\sqrt{{1-\\bar\\alpha_t}}$ is {weight[T]:.3f} at $t = {T}$ and {weight[1]:.3f} at $t = 1$, where the walk "
        f"ends; the factor of the noise in $\\hat x_0$ is {explodes[T]:.0f} at $t = {T}$ and {explodes[1]:.2f} at $t = 1$"
    )


def smaller_variance() -> str:
    """β̃_t over β_t."""
    ratio = {t: (posterior_var(*Q.schedule.levels(t - 1, t)) / Q.schedule.beta(t)).item() for t in (2, 10, 500)}
    return (
        f"the posterior variance is {ratio[2]:.2f} of the forward variance at $t = 2$, {ratio[10]:.2f} of it at $t = 10$ and "
        f"{ratio[500]:.4f} of it at $t = 500$; at $t = 1$ it is 0"
    )


def stale_step() -> str:
    """Last step for data at one point, the network asked with t = 2: the noise that is left in the sample."""
    s = Q.schedule
    noise = {t: s.level(t).noise for t in (1, 2)}
    # x_1 = √ᾱ_1 c + √(1−ᾱ_1) n; the exact noise prediction of step 2 divides by √(1−ᾱ_2)
    left = noise[1] * (1 - s.beta(1).item() / (noise[1] * noise[2])) / math.sqrt(s.alpha(1).item())
    return (
        f"with the value $t = 2$ that the loop leaves behind, a data point comes back with noise of standard deviation {left:.4f} "
        f"instead of none: {left / (2 / 255):.2f} of the distance of two grey values on $[-1, 1]$"
    )


def stale_alpha() -> str:
    """Last step with ᾱ_2 where ᾱ_1 belongs."""
    ratio = Q.schedule.level(1).noise / Q.schedule.level(2).noise
    return (
        f"with $\\bar\\alpha_2$, the value that the loop leaves behind, the last step removes only {ratio:.2f} of the noise "
        "that it should"
    )


def skipped_steps() -> str:
    """Delivered variance of DDIM in fifty steps, and of the whole walk."""
    return (
        f"for data of variance 0.25 and their exact denoiser DDIM delivers {_delivered(0.25, 50, 'ddim'):.2f} of the variance with "
        f"50 calls of the network and {_delivered(0.25, 200, 'ddim'):.2f} with 200, the walk over all {T} steps "
        f"{_delivered(0.25, T, 'beta_tilde'):.2f}"
    )
