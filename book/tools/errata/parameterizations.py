"""How large the documents' errors on means, weights and parameterizations are (chapter 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_nb.bound import eps_weight, reverse_step, step_term, x_0_weight
from ddpm_nb.denoiser import EPS, V
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.gaussian import expected_quadratic_form, kl_multivariate
from ddpm_nb.schedule import added_var, linear_schedule

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


def no_choice_of_variance() -> str:
    """Means for both variances, and the variances themselves."""
    x_t, gaps = torch.linspace(-3, 3, 7, dtype=F64)[:, None], []
    for t in (2, 500, T):
        small, large = (reverse_step(Q, lambda x, t: 0.7 * x, x_t, t, v).mean for v in (posterior_var, added_var))
        gaps.append((small - large).abs().max().item())
    ratio = (S.beta(2) / posterior_var(*S.levels(1, 2))).item()
    return (
        f"the means for $\\sigma_t^2=\\tilde\\beta_t$ and $\\sigma_t^2=\\beta_t$ differ by {max(gaps):.0f} at $t = 2$, 500 and "
        f"{T}, while the variances differ by a factor of {ratio:.2f} at $t = 2$"
    )


def division_by_alpha_bar() -> str:
    """Roysdon (15): what V.x_0 returns, divided by ᾱ."""
    factor = {}
    for t in (1, 500, T):
        x_0 = V.x_0(Q, V.target(Q, ONE, ONE, t), Q.diffuse(ONE, ONE, t), t)
        factor[t] = (x_0 / S.alpha_bar(t) / ONE).item()
    return (
        f"the recovered clean state is {factor[1]:.4f} times the true one at $t = 1$, {factor[500]:.1f} times at $t = 500$ and "
        f"{factor[T]:.0f} times at $t = {T}$"
    )


def exchanged_root() -> str:
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
    return (
        f"at $t = 500$ the factor of $x_t$ is {before.sqrt().item():.2f} of the true one; the mean is off by {lost.item():.2f} (root mean "
        f"square, data of variance 1), {lost.item() / noise:.0f} times the deviation of the step, and sampling with it and the best "
        f"$x_\\theta$ delivers variance {var:.2g}"
    )


def exchanged_root_cancels() -> str:
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
    return (
        f"at $t = 500$ each of the two means is off by {lost:.2f} $x_t$; for $x_0 = 0.8$, "
        f"$x_\\theta = -0.5$ and $x_t = 0.3$ the printed divergence is {printed.item():.6f} nats and the true one {right.item():.6f}"
    )


def undefined_bar() -> str:
    """Vilhes (7): the weight if β̄_t is read as one of its neighbours."""
    as_beta = {t: (eps_weight(S, t, added_var) / eps_weight(S, t)).item() for t in (2, 500)}
    as_noise = posterior_var(*S.levels(499, 500)) / S.level(500).noise_var
    return (
        f"read as $\\beta_t$, the weight at $t = 2$ is {as_beta[2]:.2f} of the true one, at $t = 500$ {as_beta[500]:.4f} of it; read "
        f"as $1-\\bar\\alpha_t$, at $t = 500$ {as_noise:.3f} of it"
    )


def product_in_the_prefactor() -> str:
    """Vilhes (8): 1/√ᾱ_t for 1/√α_t."""
    factor = {t: (S.alpha(t) / S.alpha_bar(t)).sqrt().item() for t in (2, 500, T)}
    return (
        f"the printed mean is {factor[2]:.5f} times the true one at $t = 2$, {factor[500]:.1f} times at $t = 500$ and {factor[T]:.0f} "
        f"times at $t = {T}$"
    )


def wrong_centre() -> str:
    """Vilhes 8.5: the printed bracket, with X − μ_θ for X around μ_θ, and the right one."""
    d, var = 3, posterior_var(*S.levels(499, 500))
    eye, model, true = (
        torch.eye(3, dtype=F64),
        torch.full((3,), 0.4, dtype=F64),
        torch.tensor([0.1, -0.2, 0.7], dtype=F64),
    )
    printed, right = (expected_quadratic_form(m, var * eye, m, eye / var).item() for m in (model, true))
    return f"in $d = {d}$ dimensions, at $t = 500$, the printed bracket is {printed:.6g} and the right one {right:.6g}"


def lost_identity() -> str:
    """Vilhes 8.5: a number for a covariance. As β̃ I the divergence is that of the line above it."""
    t, d, eye = 500, 3, torch.eye(3, dtype=F64)
    x_0, x_0_hat, x_t = (
        torch.tensor([values], dtype=F64) for values in ([0.8, -0.3, 0.1], [0.2, 0.4, 0.0], [1.0, -1.0, 0.5])
    )
    var = posterior_var(*S.levels(t - 1, t)) * eye
    true, model = (Q.posterior(x, x_t, t - 1, t).mean[0] for x in (x_0, x_0_hat))
    full = kl_multivariate(true, var, model, var)
    weighted = x_0_weight(S, t) * (x_0_hat - x_0).square().sum()
    return (
        f"a number is no covariance in $d = {d}$; as $\\tilde\\beta_tI$ the divergence at $t = 500$ for an error of length "
        f"{(x_0_hat - x_0).norm():.2f} is {full:.5f} nats, and the next line gives {weighted:.5f}"
    )


def product_in_the_weight() -> str:
    """Vilhes 8.5: ᾱ_t for α_t in the last two lines of the noise chain."""
    factor = {t: (S.alpha(t) / S.alpha_bar(t)).item() for t in (2, 500, T)}
    return (
        f"the printed weight is {factor[2]:.4f} times the true one at $t = 2$, {factor[500]:.1f} times at $t = 500$ and "
        f"{factor[T]:.0f} times at $t = {T}$"
    )


def product_and_bar_in_the_weight() -> str:
    """Vilhes 8.5, last line: ᾱ_t for α_t, and β̄_t read as β_t."""
    factor = {
        t: (eps_weight(S, t, added_var) / eps_weight(S, t) * S.alpha(t) / S.alpha_bar(t)).item() for t in (2, 500, T)
    }
    return (
        f"with $\\bar\\beta_t$ read as $\\beta_t$ the printed weight is {factor[2]:.2f} times the true one at $t = 2$, "
        f"{factor[500]:.1f} times at $t = 500$ and {factor[T]:.0f} times at $t = {T}$; with $\\tilde\\beta_t$ it is "
        f"{(S.alpha(500) / S.alpha_bar(500)).item():.1f} times the true one at $t = 500$"
    )


def heading_only() -> str:
    """Vilhes 8.6: the last line under the heading against the mean."""
    t, eps = 500, -0.6 * ONE
    right = Q.posterior(EPS.x_0(Q, eps, ONE, t), ONE, t - 1, t).mean.item()
    printed = ((1 - S.beta(t) / S.level(t).noise * eps) / S.alpha(t).sqrt()).item()
    return (
        f"no formula depends on it: at $t = 500$, for $x_t = 1$ and $\\epsilon_\\theta = -0.6$, the section ends in {printed:.6f}, and "
        f"the mean is {right:.6f}"
    )


def noise_of_one_step() -> str:
    """Correlation of the step's noise with the total noise, and the mean with the one for the other."""
    shares = {t: (S.beta(t) / S.level(t).noise_var).sqrt().item() for t in (1, 2, 500)}
    factor = (S.beta(500) / (S.alpha(500) * S.level(500).noise_var).sqrt()).item()
    off = factor * (2 - 2 * shares[500]) ** 0.5
    std = posterior_var(*S.levels(499, 500)) ** 0.5
    return (
        f"the correlation of the two noises is {shares[1]:.2f} at $t = 1$, {shares[2]:.2f} at $t = 2$ and {shares[500]:.2f} at $t = 500$, "
        f"where the noise of the step in the place of the total noise moves the mean by {off:.3f} (root mean square), "
        f"{off / std:.2f} of the deviation of the step"
    )


def denominator_of_the_mean() -> str:
    """Li (1): 1 − ᾱ_{t−1} for 1 − ᾱ_t."""
    factor = {t: S.level(t).noise_var / S.level(t - 1).noise_var for t in (2, 500)}
    return (
        f"the printed mean is {factor[2]:.2f} times the true one at $t = 2$ and {factor[500]:.4f} times at $t = 500$; at $t = 1$ it "
        "divides by 0"
    )


def denominator_of_the_difference() -> str:
    """Li (2), lines 2 and 3: the same denominators, squared."""
    factor = {t: (S.level(t).noise_var / S.level(t - 1).noise_var) ** 2 for t in (2, 500)}
    return f"the printed divergence is {factor[2]:.1f} times the true one at $t = 2$ and {factor[500]:.4f} times at $t = 500$"


def factor_not_squared() -> str:
    """Li (2), line 4: the printed weight over the true one."""
    factor = {}
    for t in (2, 500, T):
        _, beta, before, _ = letters(t)
        printed = before.sqrt() * beta / S.level(t - 1).noise_var / (2 * posterior_var(*S.levels(t - 1, t)))
        factor[t] = (printed / x_0_weight(S, t)).item()
    return (
        f"the printed weight is {factor[2]:.1f} times the true one at $t = 2$, {factor[500]:.0f} times at $t = 500$ and "
        f"{factor[T]:.0f} times at $t = {T}$"
    )


def expanded_mean() -> str:
    """Li (3), line 3: α_{t−1} for α_t twice, and a sign."""
    t = 500
    alpha, _, before, after = letters(t)
    earlier, noise = S.beta(t - 1), (1 - after).sqrt()
    on_x_t = alpha.sqrt() * (1 - before) / (1 - after) + earlier / ((1 - after) * alpha.sqrt())
    on_eps = earlier * noise / ((1 - after) * alpha.sqrt())
    off = rms(on_x_t * after.sqrt() - mean(ONE, ZERO, t)[0], on_x_t * noise + on_eps - mean(ZERO, ONE, t)[0])
    std = posterior_var(*S.levels(t - 1, t)) ** 0.5
    return (
        f"at $t = 500$ the printed line is off by {off:.3f} (root mean square, data of variance 1), {off / std:.2f} of the deviation of "
        "the step, nearly all of it from the sign; at $t = 1$ it needs an $\\alpha_0$, which does not exist"
    )


def argument_of_the_model() -> str:
    """What the steps cost a model that sees x_0, and the best one that does not: data of variance 1."""
    t = torch.arange(2, T + 1)
    floor = S.alpha_bar(t)  # Var(ε | x_t) for data of variance 1
    cost = (eps_weight(S, t) * floor).sum().item()
    sees = step_term(Q, lambda x, t: ONE.reshape(1, 1), ONE.reshape(1, 1), 0.5 * ONE.reshape(1, 1), 500).item()
    return (
        f"the right side holds no $x_0$; if it did, every step would cost {sees:.0f} nats, while the best model of $x_t$ alone pays "
        f"{cost:.2f} nats for each dimension over $t = 2..{T}$, for data of variance 1"
    )


def lost_bar_in_the_weight() -> str:
    """Li (5): 1 − α_t for 1 − ᾱ_t."""
    factor = {t: (S.level(t).noise_var / S.beta(t)).item() for t in (2, 500, T)}
    return (
        f"the printed weight is {factor[2]:.2f} times the true one at $t = 2$, {factor[500]:.0f} times at $t = 500$ and "
        f"{factor[T]:.0f} times at $t = {T}$"
    )


def estimate_called_mean() -> str:
    """Malhotra (4.12): x̂_0 for the mean of the step, with the true noise and with an error in it."""
    off = {t: rms(1 - mean(ONE, ZERO, t)[0], mean(ZERO, ONE, t)[0]) for t in (1, 500)}
    std = posterior_var(*S.levels(499, 500)) ** 0.5
    in_x_0 = (S.level(T).noise_var / S.alpha_bar(T)).sqrt().item()
    in_mean = (S.beta(T) / (S.alpha(T) * S.level(T).noise_var).sqrt()).item()
    return (
        f"with the true noise the two are {off[500]:.2f} apart at $t = 500$ (root mean square, data of variance 1), {off[500] / std:.0f} "
        f"deviations of the step, and equal at $t = 1$ ({off[1]:.0f}); at $t = {T}$ an error of 0.01 in the noise is one of "
        f"{0.01 * in_x_0:.2f} in $\\hat x_0$ and {0.01 * in_mean:.5f} in the mean"
    )
