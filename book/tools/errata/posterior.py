"""How large the documents' errors on the forward posterior are (chapter 3)."""

from __future__ import annotations

import math

import torch

from ddpm_nb.data import DATASETS
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import cosine_schedule, linear_schedule
from errata import Numbers

F64 = torch.float64
Q = GaussianDiffusion(linear_schedule())
T = Q.schedule.T
ONE, ZERO = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
THREE_MODES = GaussianMixture([0.3, 0.45, 0.25], [[-1.38], [0.24], [1.22]], [0.01, 0.02, 0.03])


def exchanged_root() -> Numbers:
    """√ᾱ_t for √α_t in front of x_t: the printed mean over the true one at x_0 = 0, and the chain that uses it."""
    factor = {t: Q.schedule.alpha_bar(t - 1).sqrt().item() for t in (500, T)}
    t = torch.arange(1, T + 1)
    clean, noisy = torch.ones(T, dtype=F64), torch.zeros(T, dtype=F64)
    on_x_0, on_x_t = Q.posterior(clean, noisy, t - 1, t).mean, Q.posterior(noisy, clean, t - 1, t).mean
    gain = (
        on_x_0 * Q.schedule.alpha_bar(t).sqrt() + on_x_t * Q.schedule.alpha_bar(t - 1).sqrt()
    )  # E[x_0 | x_t] = √ᾱ x_t
    var = 1.0
    for slope, fresh in zip(
        gain.flip(0).tolist(), posterior_var(*Q.schedule.levels(t - 1, t)).flip(0).tolist(), strict=True
    ):
        var = slope**2 * var + fresh
    return {"factor_500": factor[500], "factor_T": factor[T], "T": T, "var": var}


def lost_inverse() -> Numbers:
    """The precision printed where the variance belongs."""
    var = posterior_var(*Q.schedule.levels(499, 500))
    return {"precision": 1 / var, "var": var, "factor": var ** (-2)}


def wrong_argument() -> Numbers:
    """x_t for x_{t−1} in the prior factor: only the likelihood is left to depend on x_{t−1}, with variance β/α."""
    factor = {
        t: (Q.schedule.beta(t) / Q.schedule.alpha(t) / posterior_var(*Q.schedule.levels(t - 1, t))).item()
        for t in (2, 500)
    }
    return {"factor_2": factor[2], "factor_500": factor[500]}


def early_bracket() -> Numbers:
    """−½ over the first quotient only: the coefficient of x_{t−1}² has the wrong sign, or the wrong size."""
    t = torch.arange(2, T + 1)
    leading = -0.5 * Q.schedule.alpha(t) / Q.schedule.beta(t) + 1 / Q.schedule.level(t - 1).noise_var
    without = t[leading >= 0].tolist()
    var = {
        step: (-0.5 / leading[step - 2] / posterior_var(*Q.schedule.levels(step - 1, step))).item() for step in (4, T)
    }
    return {"steps": without, "var_4": var[4], "T": T, "var_T": var[T]}


def renamed_constant() -> Numbers:
    """One letter for C inside the bracket and −C/2 outside it."""
    x_0, x_t = torch.tensor([0.7], dtype=F64), torch.tensor([0.69], dtype=F64)
    law = Q.posterior(x_0, x_t, 1, 2)
    inside = (law.mean.square() / law.var).item()  # C = B²/A
    return {"inside": inside, "outside": -inside / 2}


def early_denominator() -> Numbers:
    """1 − ᾱ_{t−1} for 1 − ᾱ_t, in the mean and in the variance alike."""
    factor = {t: Q.schedule.level(t).noise_var / Q.schedule.level(t - 1).noise_var for t in (2, 11, 500)}
    return {"factor_2": factor[2], "factor_11": factor[11], "factor_500": factor[500]}


def information() -> Numbers:
    """I(x_{t−1}; x_0 | x_t): how far the known posterior is from the best kernel that sees x_t alone."""
    line = torch.linspace(-6, 6, 4801, dtype=F64)

    def about_the_data(t: int) -> float:
        density = THREE_MODES.diffused(Q, t).log_prob(line[:, None])
        entropy = -torch.trapezoid(density.exp() * density, line).item()
        return entropy - 0.5 * math.log(2 * math.pi * math.e * Q.schedule.level(t).noise_var)

    lost = {t: about_the_data(t - 1) - about_the_data(t) for t in (2, 500)}
    whole = about_the_data(1) - about_the_data(T)
    return {"lost_2": lost[2], "lost_500": lost[500], "whole": whole, "T": T}


def not_gaussian() -> Numbers:
    """KL of the exact reverse kernel from the Gaussian of the same mean and variance."""

    def divergence(law: GaussianMixture, x_t: float, s: int, t: int) -> float:
        kernel = law.reverse_kernel(Q, torch.tensor([x_t], dtype=F64), s, t)
        sd = kernel.covariance()[0].sqrt()
        x_s = kernel.mean() + sd * torch.linspace(-9, 9, 6001, dtype=F64)
        log = kernel.log_prob(x_s[:, None])
        return torch.trapezoid(log.exp() * (log - Gaussian(kernel.mean(), sd**2).log_prob(x_s)), x_s).item()

    few, many = divergence(THREE_MODES, 0.3, 490, 500), divergence(THREE_MODES, 0.3, 25, 500)
    pair = GaussianMixture([1.0, 1.0], [[-0.025], [0.025]], [1e-12, 1e-12])
    return {"few": few, "many": many, "pair": divergence(pair, 0.0, 1, 2)}


def short_weights() -> Numbers:
    """How far the weights of the posterior mean fall short of summing to one."""

    def total(q: GaussianDiffusion, t: int) -> float:
        return (q.posterior(ONE, ZERO, t - 1, t).mean + q.posterior(ZERO, ONE, t - 1, t).mean).item()

    cosine = GaussianDiffusion(cosine_schedule())
    return {
        "linear_500": total(Q, 500),
        "linear_T": total(Q, T),
        "T": T,
        "cosine_990": total(cosine, 990),
        "cosine_T": total(cosine, T),
    }


def cost_of_the_kernel() -> Numbers:
    """Multiplications of one exact reverse step for a list of images."""
    n, d = 60_000, DATASETS["fashion_mnist"].side ** 2
    return {"n": n, "d": d, "millions": n * d / 1000000.0}
