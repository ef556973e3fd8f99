"""Statements of the documents on sampling that no other test decides (register: sampling)."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.denoiser import EPS, X0, NetworkDenoiser, clipped
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import NoiseSchedule, added_var, cosine_schedule, linear_schedule

BETA, BETA_TILDE = added_var, posterior_var
BETAS = [0.02, 0.3, 0.05, 0.5, 0.11, 0.27]
LINEAR = GaussianDiffusion(linear_schedule())


def network(x_t, t):
    return torch.tanh(1.3 * x_t) * torch.cos(0.7 * t.to(x_t.dtype))[:, None] + 0.2 * t.to(x_t.dtype)[:, None]


V = torch.tensor([[0.04, 0.25, 1.0]], dtype=torch.float64)  # variances of the data, one for each coordinate


def delivered(kernel, steps: int) -> torch.Tensor:
    """Variance of the samples over that of the data N(0, diag V), exact denoiser: every kernel is affine."""
    step = kernel(LINEAR, GaussianMixture([1.0], [[0.0, 0.0, 0.0]], V).denoiser(LINEAR))
    var = torch.ones(1, 3, dtype=torch.float64)
    for t, s in pairwise(grid(1000, steps)):
        law = step(torch.ones_like(V), s, t)
        var = law.mean.square() * var + law.var
    return (var / V)[0]


@pytest.mark.parametrize("variance", [BETA, BETA_TILDE])
def test_an_ancestral_step_is_the_noise_form_of_the_documents(draw, variance):
    q = GaussianDiffusion(NoiseSchedule.from_betas(BETAS))
    kernel = Ancestral(q, NetworkDenoiser(network, EPS, q), variance)
    for t, beta in enumerate(BETAS, 1):
        x_t, alpha_bar = draw(5, 2, seed=t), math.prod(1 - b for b in BETAS[:t])
        eps = network(x_t, torch.full((5,), t))
        law = kernel(x_t, t - 1, t)
        mean = (x_t - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(1 - beta)
        assert_close(law.mean, mean, rtol=1e-12, atol=1e-12)
        small = (1 - alpha_bar / (1 - beta)) / (1 - alpha_bar) * beta
        expected = {BETA: beta, BETA_TILDE: small}[variance] if t > 1 else 0.0
        assert law.var.item() == pytest.approx(expected, rel=1e-12)
        assert small <= beta and (small > 0) == (t > 1)  # at t = 1 the smaller variance vanishes by itself


@pytest.mark.parametrize("variance", [BETA, BETA_TILDE])
def test_the_loop_returns_a_single_data_point_exactly(draw, rng, variance):
    point = draw(1, 3)
    kernel = Ancestral(LINEAR, lambda x_t, t: point.expand_as(x_t), variance)
    assert torch.equal(last(walk(kernel, draw(4, 3, seed=1), grid(1000, 1000), rng(0))).x, point.expand(4, 3))


def test_on_the_long_chain_both_variances_deliver_the_data_and_beta_is_the_nearer():
    def both(steps):
        return [delivered(lambda q, d, choice=choice: Ancestral(q, d, choice), steps) for choice in (BETA_TILDE, BETA)]

    small, large = both(1000)
    assert ((large - 1).abs() < 0.01).all()
    assert ((small > 0.96) & (small < 0.995)).all()  # too narrow, by more than the other is off
    assert ((large - 1).abs() < (small - 1).abs()).all()
    few = both(7)
    assert (few[1] > 4 / 3 * few[0]).all()  # with seven steps the choice matters


def test_without_fresh_noise_the_ancestral_mean_loses_the_spread_of_the_data():
    def silent(q, denoise):
        return lambda x_t, s, t: Gaussian(Ancestral(q, denoise)(x_t, s, t).mean, 0.0)

    assert (delivered(silent, 1000) < 1e-4).all()
    assert (delivered(DDIM, 1000) > 0.9).all()  # a walk made for no noise keeps it


def test_an_error_of_the_noise_reaches_the_mean_with_the_printed_factor():
    def factor(q: GaussianDiffusion, t: int) -> float:
        x_t = torch.zeros(1, 1, dtype=torch.float64)
        right, wrong = (
            Ancestral(q, NetworkDenoiser(lambda x, t, eps=eps: torch.full_like(x, eps), EPS, q))(x_t, t - 1, t).mean
            for eps in (0.0, 1.0)
        )
        return (right - wrong).item()

    cosine = GaussianDiffusion(cosine_schedule())
    for q in (LINEAR, cosine):
        for t in (1, 2, 500, 1000):
            s = q.schedule
            printed = (s.beta(t) / (s.alpha(t) * s.level(t).noise_var).sqrt()).item()
            assert factor(q, t) == pytest.approx(printed, rel=1e-8)
        assert factor(q, 1) == pytest.approx((q.schedule.beta(1) / q.schedule.alpha(1)).sqrt().item(), rel=1e-8)
        assert factor(q, 1) < 0.011  # nothing explodes at the end of the walk
    t = torch.arange(1, 1001)
    everywhere = LINEAR.schedule.beta(t) / (LINEAR.schedule.alpha(t) * LINEAR.schedule.level(t).noise_var).sqrt()
    assert everywhere.max() < 0.021
    assert factor(cosine, 1000) > 30


def test_clipping_never_moves_the_estimate_away_from_data_in_the_range(draw):
    x_0, x_t = draw(200, 3).clamp(-1, 1), draw(200, 3, seed=1)
    q = GaussianDiffusion(cosine_schedule())

    def wrong(x, t):
        return x_0 + 2 * draw(200, 3, seed=2)

    error, after = (wrong(x_t, 5) - x_0).abs(), (clipped(wrong)(x_t, 5) - x_0).abs()
    assert (after <= error).all() and (after < error).any()
    # at the clipped end of the cosine schedule, for a small error of the predicted noise
    almost = NetworkDenoiser(lambda x, t: X0.eps(q, x_0, x, 1000) + 0.05, EPS, q)
    right = q.posterior(x_0, x_t, 999, 1000).mean
    assert (Ancestral(q, almost)(x_t, 999, 1000).mean - right).abs().min() > 1.5
    assert (Ancestral(q, clipped(almost))(x_t, 999, 1000).mean - right).abs().max() < 0.004


def test_the_clipped_estimate_enters_the_posterior_mean(draw):
    q = GaussianDiffusion(NoiseSchedule.from_betas(BETAS))
    denoise = NetworkDenoiser(network, EPS, q)
    for t in range(2, 7):
        x_t, beta, after = 2 * draw(20, 2, seed=t), BETAS[t - 1], math.prod(1 - b for b in BETAS[:t])
        before = after / (1 - beta)
        estimate = ((x_t - math.sqrt(1 - after) * network(x_t, torch.full((20,), t))) / math.sqrt(after)).clamp(-1, 1)
        assert (estimate.abs() == 1).any()
        mean = (
            math.sqrt(1 - beta) * (1 - before) / (1 - after) * x_t + math.sqrt(before) * beta / (1 - after) * estimate
        )
        assert_close(Ancestral(q, clipped(denoise))(x_t, t - 1, t).mean, mean, rtol=1e-12, atol=1e-12)
