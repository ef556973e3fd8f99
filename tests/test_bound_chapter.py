"""Chapter 4's ledger: what each term of the bound costs, and how much of it is the gap to the data's own law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.bound import (
    BoundTerms,
    bound_terms,
    exact_gaps,
    gap_terms,
    ledger,
    prior_term,
    reverse_step,
    step_gap,
    step_term,
)
from ddpm_nb.denoiser import EPS, X0, NetworkDenoiser, V
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.sampling import Ancestral
from ddpm_nb.schedule import NoiseSchedule, added_var, cosine_schedule, linear_schedule

F64 = torch.float64
VARIANCES = pytest.mark.parametrize("variance", [posterior_var, added_var], ids=["beta_tilde", "beta"])


def chain(T=6):
    return GaussianDiffusion(NoiseSchedule.from_betas(torch.linspace(0.1, 0.6, T, dtype=F64)))


def mixture():
    weights, means, variances = [0.35, 0.65], [[-1.2], [0.8]], [0.04, 0.09]
    return GaussianMixture(*(torch.tensor(value, dtype=F64) for value in (weights, means, variances)))


def one_gaussian():
    return GaussianMixture(torch.ones(1), torch.tensor([[0.7]], dtype=F64), torch.tensor([0.3], dtype=F64))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_density(x, mean, var):
    return np.exp(-0.5 * (x - mean) ** 2 / var) / np.sqrt(2 * np.pi * var)


def mixture_density(law, x):
    parts = zip(law.weights.tolist(), law.means[:, 0].tolist(), law.variances.tolist(), strict=True)
    return sum(w * normal_density(x, m, v) for w, m, v in parts)


# --- the ledger ---


def test_a_ledger_orders_the_terms_by_their_index_and_averages_them():
    terms = BoundTerms(
        prior=torch.tensor([1.0, 3.0], dtype=F64),
        steps=torch.tensor([[10.0, 14.0], [20.0, 20.0]], dtype=F64),
        reconstruction=torch.tensor([-5.0, -4.0], dtype=F64),
    )
    book = ledger(terms)
    assert_close(book.mean, torch.tensor([-4.5, 12.0, 20.0, 2.0], dtype=F64))
    # of two numbers a and b the standard error of the mean is |a - b| / 2
    assert_close(book.error, torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=F64))
    assert_close(book.total, torch.tensor(29.5, dtype=F64))
    assert_close(book.total_error, torch.tensor(3.5, dtype=F64))  # 26 and 33: the terms of a sample move together


def test_a_ledger_of_one_sample_has_no_error_and_is_refused():
    one = BoundTerms(torch.zeros(1), torch.zeros(2, 1), torch.zeros(1))
    with pytest.raises(ValueError, match="1 samples: expected at least two"):
        ledger(one)


def test_the_error_of_a_ledger_covers_repeated_runs():
    law, q = mixture(), chain()
    denoise = law.denoiser(q)
    books = [ledger(bound_terms(q, denoise, law.sample(400, generator(s)), generator(1000 + s))) for s in range(60)]
    spread = torch.stack([book.total for book in books]).std()
    claimed = torch.stack([book.total_error for book in books]).mean()
    assert abs(spread / claimed - 1) < 4 / math.sqrt(2 * 59)  # relative error of a standard deviation from 60 values


# --- the model's step ---


@VARIANCES
def test_the_step_that_the_bound_scores_is_the_one_the_sampler_takes(variance):
    law, q = mixture(), chain()
    x_t = law.sample(50, generator())
    for t in range(2, q.schedule.T + 1):
        scored = reverse_step(q, law.denoiser(q), x_t, t, variance)
        taken = Ancestral(q, law.denoiser(q), variance)(x_t, t - 1, t)
        assert_close(scored.mean, taken.mean, rtol=1e-14, atol=1e-15)
        assert_close(scored.var, taken.var, rtol=1e-14, atol=0)


@VARIANCES
def test_the_last_step_is_scored_with_mean_x_0_hat_and_variance_beta_1(variance):
    law, q = mixture(), chain()
    x_1 = law.sample(50, generator())
    scored = reverse_step(q, law.denoiser(q), x_1, 1, variance)
    assert_close(scored.mean, law.denoiser(q)(x_1, 1), rtol=0, atol=0)
    assert_close(scored.var.item(), 0.1, rtol=1e-14, atol=0)


# --- quadrature ---


def test_expectations_of_polynomials_are_the_moments_of_the_mixture():
    law = mixture()
    w, m, v = law.weights, law.means[:, 0], law.variances
    assert_close(expectation(law, lambda x: x[:, 0] ** 2), (w * (m**2 + v)).sum(), rtol=1e-13, atol=0)
    fourth = (w * (m**4 + 6 * m**2 * v + 3 * v**2)).sum()
    assert_close(expectation(law, lambda x: x[:, 0] ** 4), fourth, rtol=1e-12, atol=0)


def test_the_entropy_of_a_gaussian_by_quadrature_is_its_formula():
    law = one_gaussian()
    entropy = expectation(law, lambda x: -law.log_prob(x))
    assert_close(entropy.item(), 0.5 * math.log(2 * math.pi * math.e * 0.3), rtol=1e-13, atol=0)


# --- the gap ---


@pytest.mark.parametrize("t", [1, 2, 4])
def test_the_true_step_integrates_to_one_and_has_the_denoisers_mean(t):
    """Removing p from the gap leaves log q(x_s | x_t); as a density of x_s it is normalized, for a mixture too."""
    law, q = mixture(), chain()
    x_s = torch.linspace(-6, 6, 6001, dtype=F64)[:, None]
    x_t = torch.full_like(x_s, -0.3)
    log_p = reverse_step(q, law.denoiser(q), x_t, t).log_prob(x_s)
    true = (step_gap(law, q, law.denoiser(q), x_s, x_t, t) + log_p).exp()
    assert_close(torch.trapezoid(true, x_s[:, 0]).item(), 1.0, rtol=0, atol=1e-9)
    mean = q.posterior(law.denoiser(q)(x_t, t), x_t, t - 1, t).mean[0, 0]
    assert_close(torch.trapezoid(true * x_s[:, 0], x_s[:, 0]), mean, rtol=0, atol=1e-9)


@VARIANCES
def test_gaussian_data_have_gaussian_reverse_steps_and_gaps_in_closed_form(variance):
    """Step t is N(x_s; best mean, V) with 1/V = 1/var(x_s) + α_t/β_t; the gap is a divergence of equal means."""
    law, q = one_gaussian(), chain()
    S, v = q.schedule, law.variances[0]
    expected = []
    for t in range(1, S.T + 1):
        var_s = S.alpha_bar(t - 1) * v + 1 - S.alpha_bar(t - 1)
        true = 1 / (1 / var_s + S.alpha(t) / S.beta(t))
        model = S.beta(1) if t == 1 else variance(*S.levels(t - 1, t))
        expected.append(0.5 * (true / model - 1 - (true / model).log()))
    mean_T, var_T = S.alpha_bar(S.T).sqrt() * law.means[0, 0], S.alpha_bar(S.T) * v + 1 - S.alpha_bar(S.T)
    expected.append(0.5 * (var_T + mean_T**2 - 1 - var_T.log()))
    gaps = exact_gaps(law, q, law.denoiser(q), variance)
    assert_close(gaps, torch.stack(expected), rtol=0, atol=1e-11)


@VARIANCES
def test_gaps_by_quadrature_are_integrals_on_a_plain_grid(variance):
    """Oracle in NumPy: the joint density of (x_s, x_t) on a grid, and the definition of the divergence."""
    law, q = mixture(), chain(4)
    S, denoise = q.schedule, law.denoiser(q)
    grid = np.linspace(-6, 6, 1601)
    points = torch.from_numpy(grid)[:, None]
    width = grid[1] - grid[0]
    gaps = exact_gaps(law, q, denoise, variance, nodes=120)
    for t in range(1, S.T + 1):
        alpha, beta = S.alpha(t).item(), S.beta(t).item()
        ahead = normal_density(grid[None, :], math.sqrt(alpha) * grid[:, None], beta)  # q(x_t | x_s): rows are x_s
        joint = mixture_density(law.diffused(q, t - 1), grid)[:, None] * ahead
        marginal = joint.sum(0) * width
        true = joint / marginal
        on_x_0 = math.sqrt(S.alpha_bar(t - 1).item()) * beta / (1 - S.alpha_bar(t).item())
        on_x_t = math.sqrt(alpha) * (1 - S.alpha_bar(t - 1).item()) / (1 - S.alpha_bar(t).item())
        mean = on_x_0 * denoise(points, t)[:, 0].numpy() + on_x_t * grid
        var = beta if t == 1 else variance(*S.levels(t - 1, t))
        model = normal_density(grid[:, None], mean[None, :], var)
        inside = joint > 1e-250
        kl = np.sum(joint[inside] * (np.log(true[inside]) - np.log(model[inside]))) * width**2
        assert abs(gaps[t - 1].item() - kl) < 2e-6


def test_the_gap_along_a_path_is_the_log_ratio_of_the_two_path_laws():
    """Total = log q(x_0) + log q(x_{1:T} | x_0) − log p(x_{0:T}), on the same path drawn again by hand."""
    law, q = mixture(), chain()
    denoise, x_0 = law.denoiser(q), mixture().sample(100, generator(3))
    total = gap_terms(law, q, denoise, x_0, generator(4)).total
    g, x_s, ratio = generator(4), x_0, law.log_prob(x_0)
    for t in range(1, q.schedule.T + 1):
        law_t = q.transition(x_s, t - 1, t)
        x_t = law_t.sample(g)
        ratio = ratio + law_t.log_prob(x_t) - reverse_step(q, denoise, x_t, t).log_prob(x_s)
        x_s = x_t
    ratio = ratio - Gaussian(torch.zeros_like(x_s), 1.0).log_prob(x_s)
    assert_close(total, ratio, rtol=0, atol=1e-10)


@VARIANCES
def test_sampled_gaps_average_to_the_quadrature_term_by_term(variance):
    law, q = mixture(), chain()
    book = ledger(gap_terms(law, q, law.denoiser(q), law.sample(20_000, generator(5)), generator(6), variance))
    exact = exact_gaps(law, q, law.denoiser(q), variance)
    assert ((book.mean - exact).abs() < 4 * book.error + 1e-12).all()
    assert (book.total - exact.sum()).abs() < 3 * book.total_error


@VARIANCES
@pytest.mark.parametrize("shrink", [1.0, 0.8])
def test_the_ledger_closes(variance, shrink):
    """E[L] − entropy = sum of the step divergences, for the best denoiser and for a poor one."""
    law, q = mixture(), chain()
    best = law.denoiser(q)

    def denoise(x_t, t):
        return shrink * best(x_t, t)

    x_0 = law.sample(20_000, generator(7))
    excess = bound_terms(q, denoise, x_0, generator(8), variance=variance).total + law.log_prob(x_0)
    exact = exact_gaps(law, q, denoise, variance)
    assert (exact > -1e-9).all()  # each one is a divergence
    assert (excess.mean() - exact.sum()).abs() < 3 * excess.std() / math.sqrt(len(excess))


def random_schedule(seed):
    """Twelve variances drawn between 0.02 and 0.6, in no order."""
    return NoiseSchedule.from_betas(0.02 + 0.58 * torch.rand(12, generator=generator(seed), dtype=F64))


@pytest.mark.parametrize("target", [EPS, X0, V])
@pytest.mark.parametrize(
    "schedule",
    [linear_schedule(12, 0.01, 0.6), cosine_schedule(12), random_schedule(1), random_schedule(2)],
    ids=["linear", "cosine", "random 1", "random 2"],
)
def test_the_ledger_closes_for_every_schedule_and_parameterization(schedule, target):
    """A network with an error of its own, whatever it predicts: E[L] − entropy = the sum of the step divergences."""
    law, q = mixture(), GaussianDiffusion(schedule)
    best = law.denoiser(q)

    def network(x_t, t):
        x_0 = best(x_t, t) + 0.1 * torch.sin(3 * x_t + t[:, None])
        return target.target(q, x_0, X0.eps(q, x_0, x_t, t), t)

    denoise = NetworkDenoiser(network, target, q)
    draws = generator(7)
    x_0 = law.sample(20_000, draws)
    excess = bound_terms(q, denoise, x_0, draws, variance=added_var).total + law.log_prob(x_0)
    exact = exact_gaps(law, q, denoise, added_var)
    assert exact.sum() > 0.01  # the error costs something
    assert (excess.mean() - exact.sum()).abs() < 3 * excess.std() / math.sqrt(len(excess))
    assert excess.mean() > -3 * excess.std() / math.sqrt(len(excess))  # on average never below the exact −log p


def test_each_term_is_information_plus_gap():
    """E[L_{t−1}] = I(x_0; x_{t−1}) − I(x_0; x_t) + gap, with the informations from entropies."""
    law, q = mixture(), chain()
    S, denoise = q.schedule, law.denoiser(q)

    def information(t):
        diffused = law.diffused(q, t)
        noise = 0.5 * math.log(2 * math.pi * math.e * S.level(t).noise_var)
        return expectation(diffused, lambda x: -diffused.log_prob(x), 120) - noise

    gaps = exact_gaps(law, q, denoise, nodes=120)
    x_0 = law.sample(40_000, generator(9))
    for t in range(2, S.T + 1):
        term = step_term(q, denoise, x_0, q.marginal(x_0, t).sample(generator(20 + t)), t)
        expected = information(t - 1) - information(t) + gaps[t - 1]
        assert (term.mean() - expected).abs() < 4 * term.std() / math.sqrt(len(term))
    prior = prior_term(q, x_0)
    assert (prior.mean() - information(S.T) - gaps[-1]).abs() < 4 * prior.std() / math.sqrt(len(prior))


def test_more_steps_close_the_gap_in_proportion_for_variance_beta():
    law = mixture()
    gaps = []
    for T in (100, 200):
        q = GaussianDiffusion(linear_schedule(T, 0.1 / T, 20 / T))
        gaps.append(exact_gaps(law, q, law.denoiser(q), added_var, nodes=40).sum().item())
    assert 1.9 < gaps[0] / gaps[1] < 2.1


@VARIANCES
def test_the_bound_is_never_below_the_models_negative_log_likelihood(variance):
    """The model's density on the line: the prior, then one reverse step after the other on a grid."""
    law, q = mixture(), chain()
    denoise = law.denoiser(q)
    grid = torch.linspace(-6, 6, 1201, dtype=F64)[:, None]
    density = Gaussian(torch.zeros_like(grid), 1.0).log_prob(grid).exp()
    for t in range(q.schedule.T, 0, -1):
        step = reverse_step(q, denoise, grid, t, variance)
        kernel = torch.exp(-0.5 * (grid.mT - step.mean) ** 2 / step.var) / (2 * math.pi * step.var).sqrt()
        density = 0.01 * (density @ kernel)
    assert_close(0.01 * density.sum().item(), 1.0, rtol=0, atol=1e-4)
    draws, shown = 2000, torch.arange(350, 851, 25)
    terms = bound_terms(q, denoise, grid[shown].repeat_interleave(draws, 0), generator(10), variance=variance)
    bound = terms.total.reshape(-1, draws)
    assert (bound.mean(1) + density[shown].log() > -4 * bound.std(1) / math.sqrt(draws)).all()
