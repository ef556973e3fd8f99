"""Statements of the documents on the forward posterior that no other test decides (register: posterior)."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian, conditional
from ddpm_nb.schedule import NoiseSchedule

F64 = torch.float64
BETAS = [0.02, 0.3, 0.05, 0.5, 0.11, 0.27]
Q = GaussianDiffusion(NoiseSchedule.from_betas(BETAS))


def letters(t: int) -> tuple[float, float, float, float]:
    """α_t, β_t, ᾱ_{t−1}, ᾱ_t as products of the betas."""
    before = math.prod(1 - beta for beta in BETAS[: t - 1])
    return 1 - BETAS[t - 1], BETAS[t - 1], before, before * (1 - BETAS[t - 1])


@pytest.mark.parametrize("t", range(2, 7))
def test_three_factors_of_bayes_rule_are_the_densities_written_out(draw, t):
    _, beta, before, after = letters(t)
    x_0, x_s, x_t = draw(3, 20, seed=t)
    factors = [
        (Q.transition(x_s, t - 1, t), x_t, math.sqrt(1 - beta) * x_s, beta),
        (Q.marginal(x_0, t - 1), x_s, math.sqrt(before) * x_0, 1 - before),
        (Q.marginal(x_0, t), x_t, math.sqrt(after) * x_0, 1 - after),
    ]
    for law, x, mean, var in factors:
        written_out = torch.from_numpy(stats.norm.logpdf(x.numpy(), mean.numpy(), math.sqrt(var)))
        assert_close(law.log_prob(x), written_out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", range(2, 7))
def test_exponent_of_the_three_densities_is_the_square_of_the_posterior(draw, t):
    alpha, beta, before, after = letters(t)
    x_0, x_s, x_t = draw(3, 50, seed=t)
    exponent = (
        (x_t - math.sqrt(alpha) * x_s) ** 2 / beta
        + (x_s - math.sqrt(before) * x_0) ** 2 / (1 - before)
        - (x_t - math.sqrt(after) * x_0) ** 2 / (1 - after)
    )
    quadratic = alpha / beta + 1 / (1 - before)
    linear = math.sqrt(alpha) * x_t / beta + math.sqrt(before) * x_0 / (1 - before)
    free = x_t**2 / beta + before * x_0**2 / (1 - before) - (x_t - math.sqrt(after) * x_0) ** 2 / (1 - after)
    close = {"rtol": 1e-10, "atol": 1e-10}
    assert_close(exponent, quadratic * x_s**2 - 2 * linear * x_s + free, **close)
    assert_close(free, linear**2 / quadratic, **close)  # no remainder, so the law below is normalized
    law = Q.posterior(x_0, x_t, t - 1, t)
    assert_close(exponent, (x_s - law.mean) ** 2 / law.var, **close)
    assert_close(law.mean, linear / quadratic, **close)
    assert 1 / law.var.item() == pytest.approx(quadratic, rel=1e-12)


@pytest.mark.parametrize("t", range(2, 7))
def test_every_line_of_the_proof_of_the_posteriors_variance_and_mean(draw, t):
    alpha, beta, before, after = letters(t)
    x_0, x_t = draw(2, 50, seed=t)
    law = Q.posterior(x_0, x_t, t - 1, t)
    var = law.var.item()
    for line in (
        1 / (alpha / (1 - alpha) + 1 / (1 - before)),
        1 / ((alpha - alpha * before + 1 - alpha) / ((1 - alpha) * (1 - before))),
        1 / ((1 - after) / (beta * (1 - before))),
        beta * (1 - before) / (1 - after),
    ):
        assert line == pytest.approx(var, rel=1e-12)
    both = math.sqrt(alpha) * x_t / (1 - alpha) + math.sqrt(before) * x_0 / (1 - before)
    ratio = (1 - before) / (1 - after)
    for line in (
        both * var,
        both * beta * ratio,
        ratio * beta * math.sqrt(alpha) * x_t / (1 - alpha) + ratio * beta * math.sqrt(before) * x_0 / (1 - before),
        ratio * math.sqrt(alpha) * x_t + math.sqrt(before) * x_0 / (1 - after) * beta,
        math.sqrt(alpha) * (1 - before) / (1 - after) * x_t + beta * math.sqrt(before) / (1 - after) * x_0,
    ):
        assert_close(line, law.mean, rtol=1e-12, atol=1e-12)


def test_consecutive_states_are_jointly_gaussian_with_the_covariance_of_their_noises():
    # x_1..x_6 given x_0 as a matrix times the six independent noises of the steps: no product of alphas by hand.
    x_0, T = 0.7, len(BETAS)
    noises, start = torch.zeros(T + 1, T, dtype=F64), torch.ones(T + 1, dtype=F64)
    for t, beta in enumerate(BETAS, 1):
        noises[t], start[t] = math.sqrt(1 - beta) * noises[t - 1], math.sqrt(1 - beta) * start[t - 1]
        noises[t, t - 1] = math.sqrt(beta)
    cov, mean = noises @ noises.mT, x_0 * start
    for t in range(1, T + 1):
        alpha, _, before, after = letters(t)
        assert cov[t - 1, t].item() == pytest.approx(math.sqrt(alpha) * (1 - before), rel=1e-12, abs=1e-15)
        assert cov[t, t].item() == pytest.approx(1 - after, rel=1e-12)
        pair, seen = [t - 1, t], torch.tensor([-0.4], dtype=F64)
        centre, var = conditional(mean[pair], cov[pair][:, pair], [1], seen)
        law = Q.posterior(torch.tensor([x_0], dtype=F64), seen, t - 1, t)
        assert_close(centre, law.mean, rtol=0, atol=1e-13)
        assert_close(var[0, 0], law.var, rtol=0, atol=1e-13)


@pytest.mark.parametrize("t", [2, 4, 6])
def test_kernel_of_a_list_of_examples_is_their_mixture_of_posteriors(t):
    examples = torch.tensor([[-1.7], [-0.9], [0.5], [1.6]], dtype=F64)
    state = torch.tensor([-0.2], dtype=F64)
    x_s = torch.linspace(-9, 9, 9001, dtype=F64)[:, None]
    parts = Q.posterior(examples, state.expand_as(examples), t - 1, t)
    weights = Q.marginal(examples, t).log_prob(state).softmax(0)
    kernel = GaussianMixture(weights, parts.mean, parts.var.expand(4)).log_prob(x_s)
    # Bayes' rule with the marginal of the list, an average over its examples
    before = torch.stack([Q.marginal(x, t - 1).log_prob(x_s) for x in examples]).logsumexp(0) - math.log(4)
    after = Q.marginal(examples, t).log_prob(state).logsumexp(0) - math.log(4)
    assert_close(kernel, before + Q.transition(x_s, t - 1, t).log_prob(state) - after, rtol=1e-9, atol=1e-9)
    narrow = GaussianMixture(torch.ones(4), examples, torch.full((4,), 1e-12)).reverse_kernel(Q, state, t - 1, t)
    near = kernel > -50
    assert_close(narrow.log_prob(x_s)[near], kernel[near], rtol=1e-6, atol=1e-6)


def test_a_model_that_sees_x_t_alone_can_at_best_equal_the_averaged_kernel():
    examples, t = torch.tensor([[-1.7], [-0.9], [0.5], [1.6]], dtype=F64), 4
    state, x_s = torch.tensor([-0.2], dtype=F64), torch.linspace(-12, 12, 24001, dtype=F64)
    parts = Q.posterior(examples, state.expand_as(examples), t - 1, t)
    weights = Q.marginal(examples, t).log_prob(state).softmax(0)
    kernel = GaussianMixture(weights, parts.mean, parts.var.expand(4))
    log_kernel = kernel.log_prob(x_s[:, None])
    information = -torch.trapezoid(log_kernel.exp() * log_kernel, x_s) - parts.entropy()[0]
    assert information > 0.1  # so the posterior itself is out of every such model's reach
    best = Gaussian(kernel.mean(), kernel.covariance()[0])
    divergences = []
    for model in (best, Gaussian(torch.zeros(1, dtype=F64), 0.7), Gaussian(best.mean + 0.1, best.var)):
        from_posterior = weights @ parts.kl(Gaussian(model.mean.expand(4, 1), model.var))
        from_kernel = torch.trapezoid(log_kernel.exp() * (log_kernel - model.log_prob(x_s)), x_s)
        assert (from_posterior - from_kernel).item() == pytest.approx(information.item(), abs=1e-9)
        divergences.append(from_posterior.item())
    assert divergences[0] == min(divergences)
