"""How large the documents' errors on latent variable models are (chapter 4)."""

from __future__ import annotations

import math

import torch

from ddpm_nb.data import DATASETS
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian, observe
from ddpm_nb.likelihood import ode_log_prob
from ddpm_nb.schedule import linear_schedule
from ddpm_nb.sde import exact_score, linear_sde

F64 = torch.float64
W, NOISE = 1.0, 0.5  # the chapter's linear model: z ~ N(0, 1), x | z ~ N(w z, 0.5), at x = 1.5
X = torch.tensor([[1.5]], dtype=F64)
PRIOR = Gaussian(torch.zeros(1, 1, dtype=F64), 1.0)
POSTERIOR = observe(PRIOR, W, NOISE, X)
ENCODER = Gaussian(torch.full((1, 1), 0.5, dtype=F64), 0.1)


def log_evidence(w: float) -> float:
    return Gaussian(torch.zeros(1, 1, dtype=F64), w**2 + NOISE).log_prob(X).item()


def bound(w: float) -> float:
    """Reconstruction minus divergence to the prior, for the encoder N(0.5, 0.1)."""
    law = GaussianMixture([1.0], ENCODER.mean, ENCODER.var.reshape(1))
    reconstruction = expectation(law, lambda z: Gaussian(w * z, NOISE).log_prob(X.expand_as(z)), 8)
    return (reconstruction - ENCODER.kl(PRIOR)).item()


def exact_likelihood_of_a_flow() -> str:
    """The probability flow, a continuous normalizing flow, gives the log density of data without a bound."""
    law, sde, end = GaussianMixture([0.4, 0.6], [[-0.7], [0.6]], [0.1, 0.2]), linear_sde(), 1e-3
    x = torch.linspace(-1.5, 1.5, 31, dtype=F64)[:, None]
    times = end + (1 - end) * torch.linspace(0, 1, 101, dtype=F64) ** 2
    flow = ode_log_prob(sde, exact_score(sde, law), x, times, sde.law(law, 1.0))
    worst = (flow - sde.law(law, end).log_prob(x)).abs().max().item()
    return (
        f"the flow of chapter 5, integrated in 100 steps of Heun's method, gives the log density of a mixture to within "
        f"{worst:.1g} nats at {len(x)} points: a likelihood, with no regression in it"
    )


def direct_density() -> str:
    """Multiplications of an autoregressive linear Gaussian, whose density has mass one by construction."""
    d = DATASETS["mnist"].side ** 2
    return (
        f"for $d = {d}$ pixels an autoregressive Gaussian gives the exact log density of an image in "
        f"$d(d-1)/2 = {torch.tril_indices(d, d, -1).shape[1] / 1e6:.2f}$ million multiplications; the bound of a diffusion "
        f"model with the linear schedule takes {linear_schedule().T} evaluations of a network"
    )


def draws_for_the_evidence() -> str:
    """Var(p(x | z)) / p(x)² for z from the prior: draws that one per cent of squared relative error needs."""

    def draws(noise: float) -> float:
        # p(x | z)² = N(x; wz, s²/2) / (2 √(π s²)), so its mean is a Gaussian evidence again
        second = Gaussian(torch.zeros(1, 1, dtype=F64), W**2 + noise / 2).log_prob(X).exp()
        second = second / (2 * math.sqrt(math.pi * noise))
        first = Gaussian(torch.zeros(1, 1, dtype=F64), W**2 + noise).log_prob(X).exp()
        return 100 * (second / first**2 - 1).item()

    sixteen = 16 * math.log10(draws(0.01) / 100 + 1) + 2
    return (
        "the decoder costs one evaluation; the evidence, as an average of the decoder over the prior, takes "
        f"{draws(0.5):.0f} draws for an error of 10 % in the chapter's linear model, {draws(0.01):.0f} for the decoder variance 0.01, "
        f"and $10^{{{sixteen:.0f}}}$ for 16 such coordinates"
    )


def another_parameter() -> str:
    """The identity with the joint of another model: w = 1.4 for w = 1."""
    gap = ENCODER.kl(POSTERIOR).item()
    off = bound(1.4) + gap - log_evidence(W)
    return (
        f"in the chapter's linear model with $x = 1.5$ and encoder $\\mathcal N(0.5, 0.1)$ the identity is off by "
        f"{off:.2f} nats if the unnamed density has $w = 1.4$ for $w = 1$, and by {abs(bound(W) + gap - log_evidence(W)):.2f} for one $w$"
    )


def bound_up_likelihood_down() -> str:
    """From the decoder with the best likelihood to the one with the best bound, the encoder fixed."""
    x, m, c = X.item(), ENCODER.mean.item(), ENCODER.var.item()
    low, high = math.sqrt(x**2 - NOISE), x * m / (m**2 + c)
    return (
        f"in the chapter's linear model with the encoder fixed at $\\mathcal N(0.5, 0.1)$, moving the decoder from $w = {low:.2f}$ to "
        f"$w = {high:.2f}$ raises the bound by {bound(high) - bound(low):.2f} nats and lowers $\\log p_\\theta(x)$ by "
        f"{log_evidence(low) - log_evidence(high):.2f}"
    )


def pull_of_the_encoder() -> str:
    """What the divergence does: the posterior mean against the answer of the decoder alone, and the two priors."""
    alone = X.item() / W
    return (
        f"in the chapter's linear model the decoder alone would answer $z = {alone:.2f}$, with the pull to the prior it is "
        f"$z = {POSTERIOR.mean.item():.2f}$, at a divergence of {POSTERIOR.kl(PRIOR).item():.2f} nats; between the two priors it is "
        f"{PRIOR.kl(PRIOR).item():.0f}, since there is only one"
    )
