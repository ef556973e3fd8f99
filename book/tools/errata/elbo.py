"""How large the documents' errors on the bound are (chapter 4).

Most sizes are exact averages for data from N(0, 1) on the line and their best denoiser, x̂_0 = √ᾱ_t x_t: there the noise
error is ᾱ_t on average, and the true reverse step is a Gaussian of variance β_t.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import torch
from torch import Tensor

from ddpm_nb.bound import eps_weight, exact_gaps, prior_term, step_term, x_0_weight
from ddpm_nb.data import DATASETS
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, added_var, linear_schedule

F64 = torch.float64
Q = GaussianDiffusion(linear_schedule())
S, T = Q.schedule, Q.schedule.T
STEPS = torch.arange(2, T + 1)
UNIT = GaussianMixture([1.0], [[0.0]], [1.0])
BETA, BETA_TILDE = added_var, posterior_var
ENTROPY = 0.5 * math.log(2 * math.pi * math.e)


@cache
def parts(variance=BETA) -> tuple[float, Tensor, float]:
    """E L_0, E L_{t−1} for t = 2..T, and E L_T for data N(0, 1) with its best denoiser."""
    ratio = posterior_var(*S.levels(STEPS - 1, STEPS)) / variance(*S.levels(STEPS - 1, STEPS))
    steps = eps_weight(S, STEPS, variance) * S.alpha_bar(STEPS) + 0.5 * (ratio - 1 - ratio.log())
    reconstruction = 0.5 * math.log(2 * math.pi * math.e * S.beta(1).item())
    prior = -0.5 * math.log(S.level(T).noise_var)
    return reconstruction, steps, prior


def total(variance=BETA) -> float:
    """E L, which is the entropy of the data for variance β."""
    reconstruction, steps, prior = parts(variance)
    return reconstruction + steps.sum().item() + prior


def model_variance(schedule: NoiseSchedule, variance, factor: Tensor) -> Tensor:
    """Variance of x_0 under the model whose answer is factor times the best one for N(0, 1)."""
    q, one, zero = GaussianDiffusion(schedule), torch.ones(schedule.T, dtype=F64), torch.zeros(schedule.T, dtype=F64)
    t = torch.arange(1, schedule.T + 1)
    on_x_0, on_x_t = q.posterior(one, zero, t - 1, t).mean, q.posterior(zero, one, t - 1, t).mean
    fresh = torch.cat([schedule.beta(1).reshape(1), variance(*schedule.levels(t[1:] - 1, t[1:]))])
    slopes = on_x_0[:, None] * schedule.alpha_bar(t).sqrt()[:, None] * factor + on_x_t[:, None]
    var = torch.ones_like(factor)
    for slope, added in zip(slopes.flip(0), fresh.flip(0), strict=True):
        var = slope**2 * var + added
    return var


def log_likelihood(var: Tensor) -> Tensor:
    """E log N(x_0; 0, var) for x_0 ~ N(0, 1)."""
    return -0.5 * ((2 * math.pi * var).log() + 1 / var)


def gaussian_steps() -> str:
    """What the model's Gaussian steps cost against the true reversal: the gap of the best denoiser."""
    law = GaussianMixture([0.35, 0.65], [[-1.2], [0.8]], [0.04, 0.09])
    gaps = {}
    for n in (10, 40):
        q = GaussianDiffusion(NoiseSchedule(S.log_alpha_bars[:: T // n]))
        gaps[n] = exact_gaps(law, q, law.denoiser(q), BETA, 24).sum().item()
    return (
        f"for the chapter's mixture, its best denoiser and the noise of the linear schedule, Gaussian steps of variance $\\beta_t$ are {gaps[10]:.2f} nats away from "
        f"the true reversal with 10 steps and {gaps[40]:.2f} nats with 40, and exact for no number of steps"
    )


def sign_of_the_decoder_term() -> str:
    """The named parts added up with log p(x_0 | x_1) where its negative belongs."""
    reconstruction, *_ = parts()
    return (
        f"for data from $\\mathcal N(0, 1)$ and the best denoiser the negative bound is {total():.2f} nats and the sum of the named parts "
        f"{total() - 2 * reconstruction:.2f}; each nat that the decoder gains raises that sum by one, where it should lower it"
    )


def bound_is_minimized() -> str:
    """The value of (9) for the best answer and for the answer 0."""
    reconstruction, steps, prior = parts()
    blind = 0.5 * math.log(2 * math.pi * S.beta(1).item()) + 0.5 / S.beta(1).item() + prior
    ratio = posterior_var(*S.levels(STEPS - 1, STEPS)) / S.beta(STEPS)
    error = (S.alpha_bar(STEPS) / S.level(STEPS).noise_var) * eps_weight(S, STEPS, BETA)
    blind += (error + 0.5 * (ratio - 1 - ratio.log())).sum().item()
    return (
        f"for data from $\\mathcal N(0, 1)$ the quantity (9) is {reconstruction + steps.sum().item() + prior:.2f} nats with the best "
        f"denoiser and {blind:.0f} with the answer 0: maximized, it prefers the worse, and has no upper end"
    )


def one_step_for_all() -> str:
    """The short form without its sum, and with the sign outside the coloured term."""
    reconstruction, steps, _ = parts()
    return (
        f"for data from $\\mathcal N(0, 1)$ the largest of the {len(steps)} step terms is {steps.max():.2f} nats, their sum "
        f"{steps.sum():.2f}; the sign of $L_0 = {reconstruction:.2f}$ nats adds {-2 * reconstruction:.2f} more"
    )


def equal_lines() -> str:
    """Jensen's gap in line 4, for variance β̃, and the number that lines 4, 5 and 6 share."""
    likelihood = log_likelihood(model_variance(S, BETA_TILDE, torch.ones(1, dtype=F64))).item()
    return (
        f"for data from $\\mathcal N(0, 1)$ and $\\sigma_t^2 = \\tilde\\beta_t$ the inequality of line 4 costs "
        f"{likelihood + total(BETA_TILDE):.2f} nats; lines 4, 5 and 6 are one number, {-total(BETA_TILDE):.2f} nats, and the two later "
        "signs cost 0"
    )


def slipped_logarithm() -> str:
    """q / log p for log(q / p) at t = T, x_0 = 1."""
    x_0 = torch.ones(1, 1, dtype=F64)
    law = Q.marginal(x_0, T)
    prior = Gaussian(torch.zeros(1, 1, dtype=F64), 1.0)
    encoder = GaussianMixture([1.0], law.mean, law.var.reshape(1))
    printed = expectation(encoder, lambda x: law.log_prob(x).exp() / prior.log_prob(x)).item()
    return (
        f"at $x_0 = 1$ the printed term averages {printed:.3f}, the right one is {prior_term(Q, x_0).item():.0e} nats"
    )


def random_right_side() -> str:
    """Li's right side at one draw of x_t for each divergence, x_0 = 1, against log p_θ(x_0)."""
    x_0, n, g = 1.0, 400, torch.Generator().manual_seed(0)
    signal, noise = S.alpha_bar(STEPS).sqrt()[:, None], S.level(STEPS).noise_var[:, None]
    eps = torch.randn(T - 1, n, generator=g, dtype=F64)
    error = (eps - noise.sqrt() * (signal * x_0 + noise.sqrt() * eps)).square()  # the best ε̂ is √(1 − ᾱ) x_t
    ratio = posterior_var(*S.levels(STEPS - 1, STEPS)) / S.beta(STEPS)
    steps = (eps_weight(S, STEPS, BETA)[:, None] * error + 0.5 * (ratio - 1 - ratio.log())[:, None]).sum(0)
    beta, a = S.beta(1).item(), S.alpha_bar(1).item()
    last = 0.5 * math.log(2 * math.pi * beta) + ((1 - a) ** 2 * x_0**2 + a * beta) / (2 * beta)
    right_side = -last - steps - prior_term(Q, torch.full((1, 1), x_0, dtype=F64))
    var = model_variance(S, BETA, torch.ones(1, dtype=F64)).item()
    exact = Gaussian(torch.zeros(1, 1, dtype=F64), var).log_prob(torch.full((1, 1), x_0, dtype=F64)).item()
    share = (right_side > exact).double().mean().item()
    return (
        f"for data from $\\mathcal N(0, 1)$ and the best denoiser, at $x_0 = 1$, the right side exceeds $\\log p_\\theta(x_0) = {exact:.2f}$ "
        f"nats in {100 * share:.0f} % of draws, with a standard deviation of {right_side.std():.2f} nats"
    )


def terms_left_out() -> str:
    """All of the bound but one divergence."""
    reconstruction, steps, _ = parts()
    middle = steps[498].item()
    return (
        f"for data from $\\mathcal N(0, 1)$ the divergence of step $t = 500$ is {middle:.1e} nats, those of the other steps add up to "
        f"{steps.sum() - middle:.2f} and the reconstruction term is {reconstruction:.2f}"
    )


def likelihood_against_bound() -> str:
    """Ten steps, variance β̃: the factor on the answer that is best for the likelihood, and the one best for the bound."""
    chain = linear_schedule(10, 0.01, 0.99)
    t = torch.arange(2, chain.T + 1)
    factor = torch.linspace(0.8, 1.4, 601, dtype=F64)
    likelihood = log_likelihood(model_variance(chain, BETA_TILDE, factor))
    lost = (x_0_weight(chain, t) * chain.alpha_bar(t)).sum() + chain.alpha_bar(1) / (2 * chain.beta(1))
    k = factor[likelihood.argmax()]  # E L = (its value at 1) + lost · (1 − factor)²
    return (
        f"for data from $\\mathcal N(0, 1)$, 10 steps with $\\beta$ from 0.01 to 0.99 and $\\sigma_t^2 = \\tilde\\beta_t$ the likelihood is best with {k:.2f} times the best "
        f"denoiser's answer; going from there to the answer itself raises the bound by {(lost * (1 - k) ** 2).item():.2f} nats and lowers "
        f"the mean $\\log p_\\theta(x_0)$ by {(likelihood.max() - log_likelihood(model_variance(chain, BETA_TILDE, torch.ones(1, dtype=F64)))).item():.3f}"
    )


def model_moves_encoder_stays() -> str:
    """The divergence of the latents for the answer 0 and for the best answer; q is the same."""
    _, steps, prior = parts(BETA_TILDE)
    blind = x_0_weight(S, STEPS).sum().item()
    return (
        f"for data from $\\mathcal N(0, 1)$ the divergence falls from {blind + prior:.0f} nats with the answer 0 to "
        f"{steps.sum().item() + prior:.2f} with the best one, while $q$, which has 0 parameters, stays as it is"
    )


def two_titles() -> str:
    """Headings of chapter 4 of the document that occur more than once."""
    titles = Counter(["ELBO derivation", "ELBO decomposition", "ELBO decomposition", "Network prediction approaches"])
    return f"one title stands over {max(titles.values())} sections; no formula depends on it"


def forward_kernel_below() -> str:
    """E[log q(z_1 | x) − log p(z_T)]: what (4.6) as printed adds to the bound."""
    ends = -0.5 * math.log(2 * math.pi * math.e * S.beta(1).item()) + ENTROPY
    return (
        f"for data from $\\mathcal N(0, 1)$ the printed value is {ends:.2f} nats above the bound for each dimension, and so "
        f"{ends - ENTROPY:+.2f} nats in all, above any model's mean $\\log p$, which is at most {-ENTROPY:.2f}"
    )


def ratio_for_divergence() -> str:
    """E log p(z_{t−1} | z_t) / q(z_t | z_{t−1}) for a perfect prediction and σ² = β̃: ½ log β / β̃, where the KL is 0."""
    extra = 0.5 * (S.beta(STEPS) / posterior_var(*S.levels(STEPS - 1, STEPS))).log()
    return (
        f"for a perfect prediction, where every divergence is 0, the printed term averages {extra[0]:.2f} nats at $t = 2$ and "
        f"{extra[498]:.1g} at $t = 500$ for each dimension, {extra.sum():.2f} over all steps"
    )


def prior_left_out() -> str:
    """L_T for an image at the edge of its range, and for a schedule cut short."""
    d = DATASETS["mnist"].side ** 2
    image = torch.ones(1, d, dtype=F64)
    full, short = (prior_term(GaussianDiffusion(linear_schedule(n)), image).item() for n in (T, 300))
    return (
        f"for an image of {d} pixels of size 1 the printed value is {full:.2f} nats above the bound with $T = {T}$ and {short:.0f} nats "
        "above it with 300 steps of the same rates"
    )


def cost_of_a_wrong_mean() -> str:
    """KL at t = 500 for the answers 0 and 0.9 where 1 is right: the same Gaussian shape, other means."""
    x_0 = torch.ones(1, 1, dtype=F64)
    x_t = Q.marginal(x_0, 500).mean
    costs = [step_term(Q, lambda x, t, k=k: torch.full_like(x, k), x_0, x_t, 500).item() for k in (1.0, 0.9, 0.0)]
    return (
        f"at $t = 500$ the model's step is a Gaussian of the same variance for every answer; where $x_0 = 1$ is right, the answer 0.9 costs "
        f"{costs[1]:.1e} nats, 0 costs {costs[2]:.1e}, 1 costs {costs[0]:.0f}"
    )
