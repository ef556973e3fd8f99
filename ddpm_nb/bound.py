"""Chapter 4. The variational bound, term by term in nats, and the simple loss that reweights it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_nb.denoiser import EPS, Denoiser, Parameterization, check_process
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture, expectation, hermite
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import (
    NoiseSchedule,
    Time,
    Variance,
    added_var,
    coefficient,
)

__all__ = [
    "BoundTerms",
    "Ledger",
    "Reverse",
    "bits_per_dim",
    "bound_draw",
    "bound_terms",
    "density_decoder",
    "discretized_decoder",
    "eps_weight",
    "exact_gaps",
    "fixed_variance",
    "gap_terms",
    "ledger",
    "prior_term",
    "reconstruction_term",
    "reverse_step",
    "simple_loss",
    "step_gap",
    "step_term",
    "x_0_weight",
]

# (x_0, p(x_0 | x_1)) -> log probability in nats, (batch,)
Decoder = Callable[[Tensor, Gaussian], Tensor]
# (x_t, t) -> p(x_{t−1} | x_t); t is 1, or a tensor of steps from 2 on
Reverse = Callable[[Tensor, Time], Gaussian]


def simple_loss(
    q: GaussianDiffusion,
    network: Callable[[Tensor, Tensor], Tensor],
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    parameterization: Parameterization = EPS,
) -> Tensor:
    """‖y − network(x_t, t)‖² at x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, summed over the event: ``(batch,)``.

    Source: Roysdon (13), Ho et al. (14), for y = ε. Book: [the simple loss](#eq-simple-loss).
    """
    x_t = q.diffuse(x_0, eps, t)
    error = parameterization.error(q, network(x_t, t), x_0, eps, x_t, t)
    return error.square().flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class BoundTerms:
    """The negative bound on log p(x_0) in nats, sample by sample. Book: [the bound in three parts](#eq-bound-terms).

    Parameters
    ----------
    prior : L_T, ``(batch,)``
    steps : L_{t−1} for t = 2..T, ``(T − 1, batch)``, t = 2 first
    reconstruction : L_0, ``(batch,)``
    """

    prior: Tensor
    steps: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """L = L_T + Σ L_{t−1} + L_0 ≥ −log p(x_0), ``(batch,)``."""
        return self.prior + self.steps.sum(0) + self.reconstruction


def prior_term(q: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)), ``(batch,)``: no parameter in it. Book: [](#eq-prior-term)."""
    prior = Gaussian(torch.zeros_like(x_0), 1.0)
    return q.marginal(x_0, q.schedule.T).kl(prior)


def step_term(
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_0: Tensor,
    x_t: Tensor,
    t: int,
    variance: Variance = posterior_var,
) -> Tensor:
    """L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), ``(batch,)``, for t ≥ 2. Book: [](#eq-step-term)."""
    model = reverse_step(q, denoise, x_t, t, variance)
    return q.posterior(x_0, x_t, t - 1, t).kl(model)


def reconstruction_term(
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_0: Tensor,
    x_1: Tensor,
    decoder: Decoder,
) -> Tensor:
    """L_0 = −log p(x_0 | x_1), ``(batch,)``, with p's mean x̂_0 and variance β_1 handed to ``decoder``."""
    return -decoder(x_0, reverse_step(q, denoise, x_1, 1))


def bound_terms(
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    variance: Variance = posterior_var,
) -> BoundTerms:
    """L_T, every L_{t−1}, and L_0 for each sample, with one draw of x_t ~ q(x_t | x_0) for every t.

    T calls of the denoiser. Source: Roysdon (9), Vilhes (3). Book: [the bound](#eq-bound-terms).

    Parameters
    ----------
    decoder : ``(x_0, Gaussian) -> log p(x_0 | x_1)``; the default is the density, :func:`density_decoder`
    variance : ``(level before, level here) -> σ_t²`` of the reverse step, ``posterior_var`` (β̃) or ``added_var`` (β)
    """
    check_process(q, denoise)
    decoder = density_decoder if decoder is None else decoder
    steps = [x_0.new_zeros(0, x_0.shape[0])]
    with torch.no_grad():
        for t in range(2, q.schedule.T + 1):
            x_t = q.marginal(x_0, t).sample(generator)
            steps.append(step_term(q, denoise, x_0, x_t, t, variance)[None])
        x_1 = q.marginal(x_0, 1).sample(generator)
        return BoundTerms(
            prior_term(q, x_0),
            torch.cat(steps),
            reconstruction_term(q, denoise, x_0, x_1, decoder),
        )


def fixed_variance(
    q: GaussianDiffusion, denoise: Denoiser, variance: Variance = posterior_var
) -> Reverse:
    """Return (x_t, t) ↦ p(x_{t−1} | x_t), :func:`reverse_step`: its variance is that of the two levels alone."""
    check_process(q, denoise)
    return lambda x_t, t: reverse_step(q, denoise, x_t, t, variance)


def bound_draw(
    q: GaussianDiffusion,
    reverse: Reverse,
    x_0: Tensor,
    generator: torch.Generator,
    decoder: Decoder,
) -> BoundTerms:
    """L_T, L_0, and *one* step term of each sample, times T − 1: on average :attr:`BoundTerms.total` is the bound.

    Two calls of the denoiser instead of T. The steps t = 2..T of the batch are spread evenly and dealt out at random.
    ``steps`` has one row. Book: [even steps](#eq-t6-stratified).
    """
    n, T = len(x_0), q.schedule.T
    place = (torch.arange(n) + torch.rand((), generator=generator)) / n
    place = place[torch.randperm(n, generator=generator)]
    t = 2 + ((T - 1) * place).long().clamp(max=T - 2).to(x_0.device)
    with torch.no_grad():
        x_t = q.marginal(x_0, t).sample(generator)
        step = q.posterior(x_0, x_t, t - 1, t).kl(reverse(x_t, t))
        x_1 = q.marginal(x_0, 1).sample(generator)
        return BoundTerms(
            prior_term(q, x_0),
            (T - 1) * step[None],
            -decoder(x_0, reverse(x_1, 1)),
        )


def x_0_weight(schedule: NoiseSchedule, t: Time) -> Tensor:
    """Factor of ‖x_0 − x̂_0‖² in L_{t−1}: ½ (SNR_{t−1} − SNR_t), for t ≥ 2 and σ² = β̃.

    Source: Vilhes (6). Book: [the weight on x_0](#eq-x0-weight).
    """
    before, here = schedule.levels(t - 1, t)
    return torch.as_tensor(0.5 * (before.snr - here.snr), dtype=torch.float64)


def eps_weight(
    schedule: NoiseSchedule, t: Time, variance: Variance = posterior_var
) -> Tensor:
    """Factor of ‖ε − ε̂‖² in L_{t−1}: β_t² / (2 σ_t² α_t (1 − ᾱ_t)), for t ≥ 2 where σ² = β̃.

    Source: Ho et al. (12), Vilhes (7). Book: [the weight on the noise](#eq-eps-weight).
    """
    before, here = schedule.levels(t - 1, t)
    beta, alpha = added_var(before, here), here.alpha_bar / before.alpha_bar
    var = variance(before, here)
    weight = beta**2 / (2 * var * alpha * here.noise_var)
    return torch.as_tensor(weight, dtype=torch.float64)


def density_decoder(x_0: Tensor, law: Gaussian) -> Tensor:
    """Log density of x_0 in nats, ``(batch,)``: for data on a continuum."""
    return law.log_prob(x_0)


def discretized_decoder(levels: int) -> Decoder:
    """Log probability in nats of data on ``levels`` equally spaced values in [−1, 1] (Ho et al. 3.3).

    A value collects the Gaussian's mass within half a spacing; the outermost ones collect the tails, so that the
    probabilities of all values sum to 1. Book: [the discretized decoder](#eq-discretized-decoder).
    """
    if levels < 2:
        raise ValueError(f"levels = {levels}: expected at least 2")
    half = 1.0 / (levels - 1)

    def log_prob(x_0: Tensor, law: Gaussian) -> Tensor:
        std = law.var.sqrt()
        upper = (x_0 + half - law.mean) / std
        upper = torch.where(x_0 > 1 - half, math.inf, upper)
        lower = (x_0 - half - law.mean) / std
        lower = torch.where(x_0 < -1 + half, -math.inf, lower)
        # Mirror intervals of the upper tail to the lower one, where differences
        # of the distribution function keep their digits.
        flip = lower + upper > 0
        low = torch.where(flip, -upper, lower)
        high = torch.where(flip, -lower, upper)
        log_low = torch.special.log_ndtr(low)
        log_high = torch.special.log_ndtr(high)
        log_mass = log_high + torch.log(-torch.expm1(log_low - log_high))
        return log_mass.flatten(1).sum(1)

    return log_prob


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats per sample to bits per dimension: divide by d log 2. Book: [bits per dimension](#eq-bits-per-dim)."""
    return nats / (dimensions * math.log(2))


@dataclass(frozen=True, eq=False)
class Ledger:
    """What each term of the bound costs on average, in nats. Book: [the ledger](#eq-b4-ledger).

    Parameters
    ----------
    mean, error : mean over the samples and its standard error, ``(T + 1,)``; entry i is L_i, so L_0 first, L_T last
    total, total_error : of the sum of the terms, 0-d. The terms of a sample share its x_0: errors do not add in squares
    """

    mean: Tensor
    error: Tensor
    total: Tensor
    total_error: Tensor


def ledger(terms: BoundTerms) -> Ledger:
    """Average the terms over their batch; ``ValueError`` for fewer than two samples."""
    n = terms.prior.shape[0]
    if n < 2:
        raise ValueError(
            f"{n} samples: expected at least two, a standard error needs them"
        )
    first, last = terms.reconstruction[None], terms.prior[None]
    rows, total = torch.cat([first, terms.steps, last]), terms.total
    return Ledger(
        rows.mean(1),
        rows.std(1) / math.sqrt(n),
        total.mean(),
        total.std() / math.sqrt(n),
    )


def reverse_step(
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_t: Tensor,
    t: Time,
    variance: Variance = posterior_var,
) -> Gaussian:
    """p(x_{t−1} | x_t), the model's step as the bound scores it: at t = 1, where β̃_1 = 0, its variance is β_1.

    A tensor of steps holds none of them 1.
    """
    before, here = q.schedule.levels(t - 1, t)
    mean = q.posterior(denoise(x_t, t), x_t, t - 1, t).mean
    first = not isinstance(t, Tensor) and t == 1
    var = added_var(before, here) if first else variance(before, here)
    return Gaussian(mean, coefficient(var, x_t))


def step_gap(
    law: GaussianMixture,
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_s: Tensor,
    x_t: Tensor,
    t: int,
    variance: Variance = posterior_var,
) -> Tensor:
    """log q(x_s | x_t) − log p(x_s | x_t) in nats at s = t − 1, ``(batch,)``, for data of a known law.

    The true reverse kernel is Bayes' rule on the marginals: q(x_s) q(x_t | x_s) / q(x_t). Its mean over q is the KL
    between the true step and the model's. Book: [the true reverse step](#eq-b4-true-step).
    """
    s = t - 1
    log_q_s = law.diffused(q, s).log_prob(x_s)
    log_q_t = law.diffused(q, t).log_prob(x_t)
    log_step = q.transition(x_s, s, t).log_prob(x_t)
    true = log_q_s + log_step - log_q_t
    return true - reverse_step(q, denoise, x_t, t, variance).log_prob(x_s)


def _prior_gap(
    law: GaussianMixture, q: GaussianDiffusion, x_T: Tensor
) -> Tensor:
    """log q(x_T) − log p(x_T), ``(batch,)``."""
    prior = Gaussian(torch.zeros_like(x_T), 1.0)
    return law.diffused(q, q.schedule.T).log_prob(x_T) - prior.log_prob(x_T)


def gap_terms(
    law: GaussianMixture,
    q: GaussianDiffusion,
    denoise: Denoiser,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    variance: Variance = posterior_var,
) -> BoundTerms:
    """log q(x_{0:T}) − log p(x_{0:T}), step by step along one path from each x_0 ~ law, in the rows of the bound.

    The means of the rows are what the bound pays beyond the entropy of the data, and where: E[L] − H = E[total].
    Book: [where the bound is lost](#eq-b4-gap).
    """
    steps, x_s, law = [], x_0, law.to(x_0.device)
    with torch.no_grad():
        for t in range(1, q.schedule.T + 1):
            x_t = q.transition(x_s, t - 1, t).sample(generator)
            steps.append(step_gap(law, q, denoise, x_s, x_t, t, variance))
            x_s = x_t
        prior = _prior_gap(law, q, x_s)
        return BoundTerms(prior, torch.stack(steps)[1:], steps[0])


def exact_gaps(
    law: GaussianMixture,
    q: GaussianDiffusion,
    denoise: Denoiser,
    variance: Variance = posterior_var,
    nodes: int = 64,
) -> Tensor:
    """Return the means of :func:`gap_terms` without sampling, for data on the line: ``(T + 1,)`` as in a ledger."""
    z, weights = hermite(nodes)

    def kl(t: int) -> Tensor:
        def given(x_s: Tensor) -> Tensor:
            ahead = q.transition(x_s, t - 1, t)
            x_t = ahead.from_noise(z)
            pairs = x_s.expand_as(x_t).reshape(-1, 1), x_t.reshape(-1, 1)
            gaps = step_gap(law, q, denoise, *pairs, t, variance)
            return gaps.reshape(x_t.shape) @ weights

        return expectation(law.diffused(q, t - 1), given, nodes)

    T = q.schedule.T
    q_T = law.diffused(q, T)
    prior = expectation(q_T, lambda x_T: _prior_gap(law, q, x_T), nodes)
    return torch.stack([*(kl(t) for t in range(1, T + 1)), prior])
