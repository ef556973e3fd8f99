"""How large the documents' errors on the bound are (chapter 4).

Most sizes are exact averages for data from N(0, 1) on the line and their best denoiser, x̂_0 = √ᾱ_t x_t: there the noise
error is ᾱ_t on average, and the true reverse step is a Gaussian of variance β_t.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ddpm_nb.bound import eps_weight, exact_gaps, prior_term, step_term, x_0_weight
from ddpm_nb.data import DATASETS
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, added_var, linear_schedule
from errata import Numbers

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


def gaussian_steps() -> Numbers:
    """What the model's Gaussian steps cost against the true reversal: the gap of the best denoiser."""
    law = GaussianMixture([0.35, 0.65], [[-1.2], [0.8]], [0.04, 0.09])
    gaps = {}
    for n in (10, 40):
        q = GaussianDiffusion(NoiseSchedule(S.log_alpha_bars[:: T // n]))
        gaps[n] = exact_gaps(law, q, law.denoiser(q), BETA, 24).sum().item()
    return {"gaps_10": gaps[10], "gaps_40": gaps[40]}


def sign_of_the_decoder_term() -> Numbers:
    """The named parts added up with log p(x_0 | x_1) where its negative belongs."""
    reconstruction, *_ = parts()
    return {"bound": total(), "with_the_other_sign": total() - 2 * reconstruction}


def bound_is_minimized() -> Numbers:
    """The value of (9) for the best answer and for the answer 0."""
    reconstruction, steps, prior = parts()
    blind = 0.5 * math.log(2 * math.pi * S.beta(1).item()) + 0.5 / S.beta(1).item() + prior
    ratio = posterior_var(*S.levels(STEPS - 1, STEPS)) / S.beta(STEPS)
    error = (S.alpha_bar(STEPS) / S.level(STEPS).noise_var) * eps_weight(S, STEPS, BETA)
    blind += (error + 0.5 * (ratio - 1 - ratio.log())).sum().item()
    return {"best": reconstruction + steps.sum().item() + prior, "blind": blind}


def one_step_for_all() -> Numbers:
    """The short form without its sum, and with the sign outside the coloured term."""
    reconstruction, steps, _ = parts()
    return {
        "count": len(steps),
        "largest": steps.max(),
        "all_of_them": steps.sum(),
        "reconstruction": reconstruction,
        "change": -2 * reconstruction,
    }


def equal_lines() -> Numbers:
    """Jensen's gap in line 4, for variance β̃, and the number that lines 4, 5 and 6 share."""
    likelihood = log_likelihood(model_variance(S, BETA_TILDE, torch.ones(1, dtype=F64))).item()
    return {"gap": likelihood + total(BETA_TILDE), "lower_bound": -total(BETA_TILDE)}


def slipped_logarithm() -> Numbers:
    """q / log p for log(q / p) at t = T, x_0 = 1."""
    x_0 = torch.ones(1, 1, dtype=F64)
    law = Q.marginal(x_0, T)
    prior = Gaussian(torch.zeros(1, 1, dtype=F64), 1.0)
    encoder = GaussianMixture([1.0], law.mean, law.var.reshape(1))
    printed = expectation(encoder, lambda x: law.log_prob(x).exp() / prior.log_prob(x)).item()
    return {"printed": printed, "right": prior_term(Q, x_0).item()}


def random_right_side() -> Numbers:
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
    return {"exact": exact, "percent": 100 * share, "deviation": right_side.std()}


def terms_left_out() -> Numbers:
    """All of the bound but one divergence."""
    reconstruction, steps, _ = parts()
    middle = steps[498].item()
    return {"middle": middle, "others": steps.sum() - middle, "reconstruction": reconstruction}


def likelihood_against_bound() -> Numbers:
    """Ten steps, variance β̃: the factor on the answer that is best for the likelihood, and the one best for the bound."""
    chain = linear_schedule(10, 0.01, 0.99)
    t = torch.arange(2, chain.T + 1)
    factor = torch.linspace(0.8, 1.4, 601, dtype=F64)
    likelihood = log_likelihood(model_variance(chain, BETA_TILDE, factor))
    lost = (x_0_weight(chain, t) * chain.alpha_bar(t)).sum() + chain.alpha_bar(1) / (2 * chain.beta(1))
    k = factor[likelihood.argmax()]  # E L = (its value at 1) + lost · (1 − factor)²
    return {
        "k": k,
        "bound_lost": (lost * (1 - k) ** 2).item(),
        "likelihood_gained": (
            likelihood.max() - log_likelihood(model_variance(chain, BETA_TILDE, torch.ones(1, dtype=F64)))
        ).item(),
    }


def model_moves_encoder_stays() -> Numbers:
    """The divergence of the latents for the answer 0 and for the best answer; q is the same."""
    _, steps, prior = parts(BETA_TILDE)
    blind = x_0_weight(S, STEPS).sum().item()
    return {"before": blind + prior, "after": steps.sum().item() + prior}


def forward_kernel_below() -> Numbers:
    """E[log q(z_1 | x) − log p(z_T)]: what (4.6) as printed adds to the bound."""
    ends = -0.5 * math.log(2 * math.pi * math.e * S.beta(1).item()) + ENTROPY
    return {"ends": ends, "printed": ends - ENTROPY, "right": -ENTROPY}


def ratio_for_divergence() -> Numbers:
    """E log p(z_{t−1} | z_t) / q(z_t | z_{t−1}) for a perfect prediction and σ² = β̃: ½ log β / β̃, where the KL is 0."""
    extra = 0.5 * (S.beta(STEPS) / posterior_var(*S.levels(STEPS - 1, STEPS))).log()
    return {"extra_0": extra[0], "extra_498": extra[498], "extra_in_all": extra.sum()}


def prior_left_out() -> Numbers:
    """L_T for an image at the edge of its range, and for a schedule cut short."""
    d = DATASETS["mnist"].side ** 2
    image = torch.ones(1, d, dtype=F64)
    full, short = (prior_term(GaussianDiffusion(linear_schedule(n)), image).item() for n in (T, 300))
    return {"d": d, "full": full, "T": T, "short": short}


def cost_of_a_wrong_mean() -> Numbers:
    """KL at t = 500 for the answers 0 and 0.9 where 1 is right: the same Gaussian shape, other means."""
    x_0 = torch.ones(1, 1, dtype=F64)
    x_t = Q.marginal(x_0, 500).mean
    costs = [step_term(Q, lambda x, t, k=k: torch.full_like(x, k), x_0, x_t, 500).item() for k in (1.0, 0.9, 0.0)]
    return {"costs_1": costs[1], "costs_2": costs[2], "costs_0": costs[0]}
