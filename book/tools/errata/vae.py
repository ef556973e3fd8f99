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
from errata import Numbers

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


def exact_likelihood_of_a_flow() -> Numbers:
    """The probability flow, a continuous normalizing flow, gives the log density of data without a bound."""
    law, sde, end = GaussianMixture([0.4, 0.6], [[-0.7], [0.6]], [0.1, 0.2]), linear_sde(), 1e-3
    x = torch.linspace(-1.5, 1.5, 31, dtype=F64)[:, None]
    times = end + (1 - end) * torch.linspace(0, 1, 101, dtype=F64) ** 2
    flow = ode_log_prob(sde, exact_score(sde, law), x, times, sde.law(law, 1.0))
    worst = (flow - sde.law(law, end).log_prob(x)).abs().max().item()
    return {"worst": worst, "points": len(x)}


def direct_density() -> Numbers:
    """Multiplications of an autoregressive linear Gaussian, whose density has mass one by construction."""
    d = DATASETS["mnist"].side ** 2
    return {"d": d, "millions": torch.tril_indices(d, d, -1).shape[1] / 1000000.0, "T": linear_schedule().T}


def draws_for_the_evidence() -> Numbers:
    """Var(p(x | z)) / p(x)² for z from the prior: draws that one per cent of squared relative error needs."""

    def draws(noise: float) -> float:
        # p(x | z)² = N(x; wz, s²/2) / (2 √(π s²)), so its mean is a Gaussian evidence again
        second = Gaussian(torch.zeros(1, 1, dtype=F64), W**2 + noise / 2).log_prob(X).exp()
        second = second / (2 * math.sqrt(math.pi * noise))
        first = Gaussian(torch.zeros(1, 1, dtype=F64), W**2 + noise).log_prob(X).exp()
        return 100 * (second / first**2 - 1).item()

    sixteen = 16 * math.log10(draws(0.01) / 100 + 1) + 2
    return {"wide": draws(0.5), "narrow": draws(0.01), "sixteen": sixteen}


def another_parameter() -> Numbers:
    """The identity with the joint of another model: w = 1.4 for w = 1."""
    gap = ENCODER.kl(POSTERIOR).item()
    off = bound(1.4) + gap - log_evidence(W)
    return {"off": off, "left_over": abs(bound(W) + gap - log_evidence(W))}


def bound_up_likelihood_down() -> Numbers:
    """From the decoder with the best likelihood to the one with the best bound, the encoder fixed."""
    x, m, c = X.item(), ENCODER.mean.item(), ENCODER.var.item()
    low, high = math.sqrt(x**2 - NOISE), x * m / (m**2 + c)
    return {
        "low": low,
        "high": high,
        "gained": bound(high) - bound(low),
        "lost": log_evidence(low) - log_evidence(high),
    }


def pull_of_the_encoder() -> Numbers:
    """What the divergence does: the posterior mean against the answer of the decoder alone, and the two priors."""
    alone = X.item() / W
    return {
        "alone": alone,
        "mean": POSTERIOR.mean.item(),
        "cost": POSTERIOR.kl(PRIOR).item(),
        "free": PRIOR.kl(PRIOR).item(),
    }
