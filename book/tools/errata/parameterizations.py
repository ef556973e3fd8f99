"""How large the documents' errors on means, weights and parameterizations are (chapter 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_nb.bound import eps_weight, reverse_step, step_term, x_0_weight
from ddpm_nb.denoiser import V
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.gaussian import expected_quadratic_form, kl_multivariate
from ddpm_nb.schedule import added_var, linear_schedule
from errata import Numbers

F64 = torch.float64
Q = GaussianDiffusion(linear_schedule())
S, T = Q.schedule, Q.schedule.T
ONE, ZERO = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)


def letters(t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """α_t, β_t, ᾱ_{t−1}, ᾱ_t."""
    return S.alpha(t), S.beta(t), S.alpha_bar(t - 1), S.alpha_bar(t)


def rms(on_x_0: Tensor, on_eps: Tensor) -> float:
    """Root mean square of on_x_0·x_0 + on_eps·ε for data of variance 1."""
    return (on_x_0.square() + on_eps.square()).sqrt().item()


def mean(x_0: Tensor, eps: Tensor, t: int) -> Tensor:
    """The posterior mean at x_t = √ᾱ x_0 + √(1−ᾱ) ε: linear, so 1 and 0 give its coefficients."""
    return Q.posterior(x_0, Q.diffuse(x_0, eps, t), t - 1, t).mean


def no_choice_of_variance() -> Numbers:
    """Means for both variances, and the variances themselves."""
    x_t, gaps = torch.linspace(-3, 3, 7, dtype=F64)[:, None], []
    for t in (2, 500, T):
        small, large = (reverse_step(Q, lambda x, t: 0.7 * x, x_t, t, v).mean for v in (posterior_var, added_var))
        gaps.append((small - large).abs().max().item())
    ratio = (S.beta(2) / posterior_var(*S.levels(1, 2))).item()
    return {"gap": max(gaps), "T": T, "ratio": ratio}


def division_by_alpha_bar() -> Numbers:
    """Roysdon (15): what V.x_0 returns, divided by ᾱ."""
    factor = {}
    for t in (1, 500, T):
        x_0 = V.x_0(Q, V.target(Q, ONE, ONE, t), Q.diffuse(ONE, ONE, t), t)
        factor[t] = (x_0 / S.alpha_bar(t) / ONE).item()
    return {"factor_1": factor[1], "factor_500": factor[500], "factor_T": factor[T], "T": T}


def exchanged_root() -> Numbers:
    """√ᾱ_t for √α_t in front of x_t: the mean at one step, and a chain of such steps with the best prediction."""
    t = 500
    alpha, _, before, after = letters(t)
    lost = (alpha.sqrt() - after.sqrt()) * (1 - before) / (1 - after)
    noise = posterior_var(*S.levels(t - 1, t)) ** 0.5
    steps = torch.arange(1, T + 1)
    clean, noisy = torch.ones(T, dtype=F64), torch.zeros(T, dtype=F64)
    on_x_0 = Q.posterior(clean, noisy, steps - 1, steps).mean
    on_x_t = Q.posterior(noisy, clean, steps - 1, steps).mean * S.alpha_bar(steps - 1).sqrt()  # as printed
    slopes = on_x_0 * S.alpha_bar(steps).sqrt() + on_x_t  # E[x_0 | x_t] = √ᾱ x_t
    var = 1.0
    for slope, fresh in zip(
        slopes.flip(0).tolist(), posterior_var(*S.levels(steps - 1, steps)).flip(0).tolist(), strict=True
    ):
        var = slope**2 * var + fresh
    return {"printed": before.sqrt().item(), "shift": lost.item(), "deviations": lost.item() / noise, "var": var}


def exchanged_root_cancels() -> Numbers:
    """The same slip in both means of a difference."""
    t = 500
    alpha, beta, before, after = letters(t)
    on_x_0, on_x_t = before.sqrt() * beta / (1 - after), after.sqrt() * (1 - before) / (1 - after)
    x_0, x_0_hat, x_t = (torch.tensor(value, dtype=F64) for value in (0.8, -0.5, 0.3))
    printed = ((on_x_0 * x_0_hat + on_x_t * x_t) - (on_x_0 * x_0 + on_x_t * x_t)).square() / (
        2 * posterior_var(*S.levels(t - 1, t))
    )
    right = step_term(Q, lambda x, t: x_0_hat.reshape(1, 1), x_0.reshape(1, 1), x_t.reshape(1, 1), t)
    lost = ((alpha.sqrt() - after.sqrt()) * (1 - before) / (1 - after)).item()
    return {"lost": lost, "printed": printed.item(), "right": right.item()}


def undefined_bar() -> Numbers:
    """Vilhes (7): the weight if β̄_t is read as one of its neighbours."""
    as_beta = {t: (eps_weight(S, t, added_var) / eps_weight(S, t)).item() for t in (2, 500)}
    as_noise = posterior_var(*S.levels(499, 500)) / S.level(500).noise_var
    return {"as_beta_2": as_beta[2], "as_beta_500": as_beta[500], "as_noise": as_noise}


def product_in_the_prefactor() -> Numbers:
    """Vilhes (8): 1/√ᾱ_t for 1/√α_t."""
    factor = {t: (S.alpha(t) / S.alpha_bar(t)).sqrt().item() for t in (2, 500, T)}
    return {"factor_2": factor[2], "factor_500": factor[500], "factor_T": factor[T], "T": T}


def wrong_centre() -> Numbers:
    """Vilhes 8.5: the printed bracket, with X − μ_θ for X around μ_θ, and the right one."""
    d, var = 3, posterior_var(*S.levels(499, 500))
    eye, model, true = (
        torch.eye(3, dtype=F64),
        torch.full((3,), 0.4, dtype=F64),
        torch.tensor([0.1, -0.2, 0.7], dtype=F64),
    )
    printed, right = (expected_quadratic_form(m, var * eye, m, eye / var).item() for m in (model, true))
    return {"d": d, "printed": printed, "right": right}


def lost_identity() -> Numbers:
    """Vilhes 8.5: a number for a covariance. As β̃ I the divergence is that of the line above it."""
    t, d, eye = 500, 3, torch.eye(3, dtype=F64)
    x_0, x_0_hat, x_t = (
        torch.tensor([values], dtype=F64) for values in ([0.8, -0.3, 0.1], [0.2, 0.4, 0.0], [1.0, -1.0, 0.5])
    )
    var = posterior_var(*S.levels(t - 1, t)) * eye
    true, model = (Q.posterior(x, x_t, t - 1, t).mean[0] for x in (x_0, x_0_hat))
    full = kl_multivariate(true, var, model, var)
    weighted = x_0_weight(S, t) * (x_0_hat - x_0).square().sum()
    return {"d": d, "distance": (x_0_hat - x_0).norm(), "full": full, "weighted": weighted}


def product_in_the_weight() -> Numbers:
    """Vilhes 8.5: ᾱ_t for α_t in the last two lines of the noise chain."""
    factor = {t: (S.alpha(t) / S.alpha_bar(t)).item() for t in (2, 500, T)}
    return {"factor_2": factor[2], "factor_500": factor[500], "factor_T": factor[T], "T": T}


def product_and_bar_in_the_weight() -> Numbers:
    """Vilhes 8.5, last line: ᾱ_t for α_t, and β̄_t read as β_t."""
    factor = {
        t: (eps_weight(S, t, added_var) / eps_weight(S, t) * S.alpha(t) / S.alpha_bar(t)).item() for t in (2, 500, T)
    }
    return {
        "factor_2": factor[2],
        "factor_500": factor[500],
        "factor_T": factor[T],
        "T": T,
        "from_the_bar": (S.alpha(500) / S.alpha_bar(500)).item(),
    }


def noise_of_one_step() -> Numbers:
    """Correlation of the step's noise with the total noise, and the mean with the one for the other."""
    shares = {t: (S.beta(t) / S.level(t).noise_var).sqrt().item() for t in (1, 2, 500)}
    factor = (S.beta(500) / (S.alpha(500) * S.level(500).noise_var).sqrt()).item()
    off = factor * (2 - 2 * shares[500]) ** 0.5
    std = posterior_var(*S.levels(499, 500)) ** 0.5
    return {
        "shares_1": shares[1],
        "shares_2": shares[2],
        "shares_500": shares[500],
        "off": off,
        "deviations": off / std,
    }


def denominator_of_the_mean() -> Numbers:
    """Li (1): 1 − ᾱ_{t−1} for 1 − ᾱ_t."""
    factor = {t: S.level(t).noise_var / S.level(t - 1).noise_var for t in (2, 500)}
    return {"factor_2": factor[2], "factor_500": factor[500]}


def denominator_of_the_difference() -> Numbers:
    """Li (2), lines 2 and 3: the same denominators, squared."""
    factor = {t: (S.level(t).noise_var / S.level(t - 1).noise_var) ** 2 for t in (2, 500)}
    return {"factor_2": factor[2], "factor_500": factor[500]}


def factor_not_squared() -> Numbers:
    """Li (2), line 4: the printed weight over the true one."""
    factor = {}
    for t in (2, 500, T):
        _, beta, before, _ = letters(t)
        printed = before.sqrt() * beta / S.level(t - 1).noise_var / (2 * posterior_var(*S.levels(t - 1, t)))
        factor[t] = (printed / x_0_weight(S, t)).item()
    return {"factor_2": factor[2], "factor_500": factor[500], "factor_T": factor[T], "T": T}


def expanded_mean() -> Numbers:
    """Li (3), line 3: α_{t−1} for α_t twice, and a sign."""
    t = 500
    alpha, _, before, after = letters(t)
    earlier, noise = S.beta(t - 1), (1 - after).sqrt()
    on_x_t = alpha.sqrt() * (1 - before) / (1 - after) + earlier / ((1 - after) * alpha.sqrt())
    on_eps = earlier * noise / ((1 - after) * alpha.sqrt())
    off = rms(on_x_t * after.sqrt() - mean(ONE, ZERO, t)[0], on_x_t * noise + on_eps - mean(ZERO, ONE, t)[0])
    std = posterior_var(*S.levels(t - 1, t)) ** 0.5
    return {"off": off, "deviations": off / std}


def argument_of_the_model() -> Numbers:
    """What the steps cost a model that sees x_0, and the best one that does not: data of variance 1."""
    t = torch.arange(2, T + 1)
    floor = S.alpha_bar(t)  # Var(ε | x_t) for data of variance 1
    cost = (eps_weight(S, t) * floor).sum().item()
    sees = step_term(Q, lambda x, t: ONE.reshape(1, 1), ONE.reshape(1, 1), 0.5 * ONE.reshape(1, 1), 500).item()
    return {"sees": sees, "cost": cost, "T": T}


def lost_bar_in_the_weight() -> Numbers:
    """Li (5): 1 − α_t for 1 − ᾱ_t."""
    factor = {t: (S.level(t).noise_var / S.beta(t)).item() for t in (2, 500, T)}
    return {"factor_2": factor[2], "factor_500": factor[500], "factor_T": factor[T], "T": T}


def estimate_called_mean() -> Numbers:
    """Malhotra (4.12): x̂_0 for the mean of the step, with the true noise and with an error in it."""
    off = {t: rms(1 - mean(ONE, ZERO, t)[0], mean(ZERO, ONE, t)[0]) for t in (1, 500)}
    std = posterior_var(*S.levels(499, 500)) ** 0.5
    in_x_0 = (S.level(T).noise_var / S.alpha_bar(T)).sqrt().item()
    in_mean = (S.beta(T) / (S.alpha(T) * S.level(T).noise_var).sqrt()).item()
    return {
        "off_500": off[500],
        "deviations": off[500] / std,
        "off_1": off[1],
        "T": T,
        "in_x_0": 0.01 * in_x_0,
        "in_mean": 0.01 * in_mean,
    }
