import math
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import distributions
from torch.testing import assert_close

from ddpm_nb.bound import (
    bits_per_dim,
    bound_terms,
    density_decoder,
    discretized_decoder,
    eps_weight,
    prior_term,
    reconstruction_term,
    simple_loss,
    step_term,
    x_0_weight,
)
from ddpm_nb.denoiser import EPS, SCORE, X0, V
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian, kl_multivariate
from ddpm_nb.schedule import NoiseSchedule, added_var, linear_schedule

VARIANCES = {"beta_tilde": posterior_var, "beta": added_var}


@pytest.fixture(scope="module")
def q(schedule):
    return GaussianDiffusion(schedule)


def wrong_denoiser(x_t, t):
    return torch.tanh(x_t) + 0.01 * t


def later_steps(q):
    """Every step from 2 on, up to a hundred of them."""
    return range(2, q.schedule.T + 1, max(1, q.schedule.T // 100))


def test_x_0_weight_times_the_error_is_the_step_term(q, draw):
    x_0, x_t = draw(4, 3), draw(4, 3, seed=1)
    for t in later_steps(q):
        error = (x_0 - wrong_denoiser(x_t, t)).square().sum(1)
        expected = step_term(q, wrong_denoiser, x_0, x_t, t)
        # A difference of SNRs: it loses what ½ (SNR_s - SNR_t) loses against SNR_s.
        loss = (q.schedule.snr(t - 1) / x_0_weight(q.schedule, t)).item()
        assert_close(x_0_weight(q.schedule, t) * error, expected, rtol=1e-12 * (10 + loss), atol=0.0)


@pytest.mark.parametrize("name", VARIANCES)
def test_eps_weight_times_the_error_is_the_step_term_above_its_floor(q, draw, name):
    x_0, x_t, variance = draw(4, 3), draw(4, 3, seed=1), VARIANCES[name]
    for t in later_steps(q):
        error = X0.eps(q, x_0, x_t, t) - X0.eps(q, wrong_denoiser(x_t, t), x_t, t)
        floor = step_term(q, lambda x, t: x_0, x_0, x_t, t, variance)  # a variance other than the posterior's costs
        assert name == "beta" or torch.equal(floor, torch.zeros_like(floor))
        expected = step_term(q, wrong_denoiser, x_0, x_t, t, variance) - floor
        weighted = eps_weight(q.schedule, t, variance) * error.square().sum(1)
        assert_close(weighted, expected, rtol=1e-9, atol=1e-11 * (1 + floor.max().item()))


def test_weights_for_a_tensor_of_steps(q):
    t = torch.tensor([2, q.schedule.T, 3])
    for weight in (x_0_weight, eps_weight):
        each = torch.stack([weight(q.schedule, int(i)) for i in t])
        assert_close(weight(q.schedule, t), each, rtol=1e-11, atol=0.0)  # a difference of nearly equal SNRs


def test_step_term_is_the_divergence_of_torch_distributions(draw):
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.1, 0.2, 0.3]))
    x_0, x_t = draw(4, 3), draw(4, 3, seed=1)
    for variance in VARIANCES.values():
        true = q.posterior(x_0, x_t, 1, 2)
        mean = q.posterior(wrong_denoiser(x_t, 2), x_t, 1, 2).mean
        model = distributions.Normal(mean, variance(*q.schedule.levels(1, 2)) ** 0.5)
        oracle = distributions.kl_divergence(distributions.Normal(true.mean, true.var.sqrt()), model).sum(1)
        assert_close(step_term(q, wrong_denoiser, x_0, x_t, 2, variance), oracle, rtol=1e-12, atol=1e-13)


def test_prior_term_is_the_divergence_from_the_unit_gaussian(q, draw):
    x_0, T = draw(4, 2, 3), q.schedule.T
    alpha_bar = q.schedule.alpha_bar(T)
    law = distributions.Normal(alpha_bar.sqrt() * x_0, (1 - alpha_bar).sqrt())
    oracle = distributions.kl_divergence(law, distributions.Normal(0.0, 1.0)).sum((1, 2))
    assert_close(prior_term(q, x_0), oracle, rtol=1e-6, atol=1e-12)  # the oracle cancels near 0


def test_a_short_schedule_of_the_usual_betas_leaves_a_large_prior_term():
    # T = 300 or 200 with the betas of T = 1000, as in two well-known tutorials: the price is L_T.
    image = torch.full((1, 784), 0.5, dtype=torch.float64)
    prior = [prior_term(GaussianDiffusion(linear_schedule(T)), image).item() for T in (1000, 300, 200)]
    assert prior[0] < 0.02
    assert prior[1] > 4
    assert prior[2] > 3 * prior[1] / 2


@pytest.mark.parametrize("p", [EPS, X0, V, SCORE], ids=repr)
def test_simple_loss_is_the_squared_error_of_the_target(draw, p):
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.1, 0.2, 0.3]))
    x_0, eps, t = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1), torch.tensor([1, 3, 2])

    def network(x_t, t):
        return torch.tanh(x_t) * t[:, None, None, None]

    expected = []
    for i in range(3):
        alpha_bar = math.prod([0.9, 0.8, 0.7][: int(t[i])])
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        y = {EPS: eps[i], X0: x_0[i], V: signal * eps[i] - noise * x_0[i], SCORE: -eps[i] / noise}[p]
        expected.append(((torch.tanh(signal * x_0[i] + noise * eps[i]) * t[i] - y) ** 2).sum())
    assert_close(simple_loss(q, network, x_0, t, eps, p), torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(simple_loss(q, lambda x, t: p.target(q, x_0, eps, t), x_0, t, eps, p), torch.zeros(3).double())


def test_terms_stand_in_their_places(draw, rng):
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.1, 0.2, 0.3, 0.4]))
    x_0 = draw(5, 2)
    terms = bound_terms(q, wrong_denoiser, x_0, rng(3))
    generator = rng(3)
    for row, t in enumerate((2, 3, 4)):
        x_t = q.marginal(x_0, t).sample(generator)
        assert_close(terms.steps[row], step_term(q, wrong_denoiser, x_0, x_t, t), rtol=1e-13, atol=0.0)
    x_1 = q.marginal(x_0, 1).sample(generator)
    oracle = distributions.Normal(wrong_denoiser(x_1, 1), math.sqrt(0.1)).log_prob(x_0).sum(1)
    assert_close(terms.reconstruction, -oracle, rtol=1e-13, atol=1e-13)
    assert torch.equal(terms.prior, prior_term(q, x_0))
    assert_close(terms.total, terms.prior + terms.steps.sum(0) - oracle, rtol=1e-13, atol=1e-13)


def test_the_bound_of_one_step_has_no_middle(draw):
    q, x_0 = GaussianDiffusion(NoiseSchedule.from_betas([0.3])), draw(5, 2)
    terms = bound_terms(q, wrong_denoiser, x_0, torch.Generator().manual_seed(0))
    assert terms.steps.shape == (0, 5)
    assert torch.equal(terms.total, terms.prior + terms.reconstruction)


def gaussian_paths(q: GaussianDiffusion, v: float, variance) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariances of (x_0, .., x_T) under q and under p, for data N(0, v) and its exact denoiser."""
    T = q.schedule.T
    alpha_bar = [q.schedule.alpha_bar(t).item() for t in range(T + 1)]
    forward = torch.zeros(T + 1, T + 1, dtype=torch.float64)
    for s in range(T + 1):
        for t in range(s, T + 1):
            forward[s, t] = forward[t, s] = math.sqrt(alpha_bar[t] / alpha_bar[s]) * (
                alpha_bar[s] * v + 1 - alpha_bar[s]
            )
    # x_{t-1} = slope x_t + N(0, spread), x_T ~ N(0, 1): each row of the path is linear in T + 1 unit normals.
    rows = torch.zeros(T + 1, T + 1, dtype=torch.float64)
    rows[T, T] = 1.0
    for t in range(T, 0, -1):
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        best = math.sqrt(alpha_bar[t]) * v / (alpha_bar[t] * v + 1 - alpha_bar[t])
        on_x_0 = math.sqrt(alpha_bar[t - 1]) * beta / (1 - alpha_bar[t])
        on_x_t = math.sqrt(1 - beta) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        spread = beta if t == 1 else variance(*q.schedule.levels(t - 1, t))
        rows[t - 1] = (on_x_0 * best + on_x_t) * rows[t]
        rows[t - 1, t - 1] = math.sqrt(spread)
    return forward, rows @ rows.mT


@pytest.mark.parametrize("name", VARIANCES)
def test_the_mean_bound_is_entropy_plus_the_divergence_of_the_paths(rng, name):
    # E[L] = H(x_0) + KL(q(x_0..x_T) ‖ p(x_0..x_T)): for a Gaussian law both paths are Gaussian vectors.
    q, v, n = GaussianDiffusion(NoiseSchedule.from_betas([0.05, 0.1, 0.3, 0.5, 0.7])), 0.4, 40_000
    law = GaussianMixture([1.0], [[0.0]], [v])
    forward, backward = gaussian_paths(q, v, VARIANCES[name])
    zero = torch.zeros(6, dtype=torch.float64)
    entropy = 0.5 * math.log(2 * math.pi * math.e * v)
    exact = entropy + kl_multivariate(zero, forward, zero, backward).item()
    nll_of_model = 0.5 * (math.log(2 * math.pi * backward[0, 0]) + v / backward[0, 0].item())
    assert entropy < nll_of_model < exact

    total = bound_terms(q, law.denoiser(q), law.sample(n, rng(0)), rng(1), variance=VARIANCES[name]).total
    error = total.std().item() / math.sqrt(n)
    assert error < 0.2 * (exact - nll_of_model)
    assert abs(total.mean().item() - exact) < 4 * error


def strided(steps: int) -> GaussianDiffusion:
    """The noise of the usual thousand steps in fewer, larger ones."""
    return GaussianDiffusion(NoiseSchedule(linear_schedule().log_alpha_bars[:: 1000 // steps]))


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("T", [1, 5, 20])
def test_the_bound_lies_above_the_exact_negative_log_likelihood(rng, T, name):
    law, n = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.4]], [0.05, 0.15]), 10_000
    x_0, q = law.sample(n, rng(0)), strided(T)

    def gap(denoise):
        return bound_terms(q, denoise, x_0, rng(1), variance=VARIANCES[name]).total + law.log_prob(x_0)

    best, blind = gap(law.denoiser(q)), gap(lambda x_t, t: law.mean().expand_as(x_t))
    assert best.mean() > 4 * best.std() / math.sqrt(n)
    difference = blind - best
    assert T == 1 or difference.mean() > 4 * difference.std() / math.sqrt(n)


def test_more_steps_tighten_the_bound(rng):
    # With σ² = β: β̃ is too small for data that are not a point, and stays so however small the steps.
    law, n = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.15]), 20_000
    x_0 = law.sample(n, rng(0))
    nll = -law.log_prob(x_0)
    gaps = []
    for T in (5, 10, 20, 40):
        q = strided(T)
        gaps.append(bound_terms(q, law.denoiser(q), x_0, rng(1), variance=added_var).total - nll)
    for coarse, fine in pairwise(gaps):
        difference = coarse - fine
        assert difference.mean() > 4 * difference.std() / math.sqrt(n)
    assert gaps[-1].mean() > 4 * gaps[-1].std() / math.sqrt(n)


@given(st.floats(-1.5, 1.5), st.floats(-6.0, 1.5), st.sampled_from([2, 3, 17, 256]))
@example(0.0, -6.0, 256)  # on the edge between two levels
def test_probabilities_of_all_levels_sum_to_one(mean, log10_std, levels):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    std = 10**log10_std
    log_prob = discretized_decoder(levels)(x, Gaussian(torch.full_like(x, mean), std**2))
    # Two neighbours compute their common edge each for itself: what lies between is rounding of 1, in units of std.
    assert abs(log_prob.logsumexp(0).item()) < 1e-13 + 4e-16 / std


@pytest.mark.parametrize("std", [3.0, 0.1, 0.01, 1e-3])
def test_discretized_decoder_is_a_difference_of_error_functions(std):
    levels, means = 256, (0.0, 0.3, 1.2)
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    for mean in means:
        ours = discretized_decoder(levels)(x, Gaussian(torch.full_like(x, mean), std**2))
        with mpmath.workdps(60):

            def cdf(edge, mean=mean):
                return mpmath.erfc((mpmath.mpf(mean) - edge) / (mpmath.mpf(std) * mpmath.sqrt(2))) / 2

            for i in (0, 1, 100, 166, 200, 254, 255):
                # Where the value is many deviations away, 60 digits are needed to subtract.
                low = mpmath.mpf(0) if i == 0 else cdf(mpmath.mpf(2 * i - 1) / 255 - 1)
                high = mpmath.mpf(1) if i == 255 else cdf(mpmath.mpf(2 * i + 1) / 255 - 1)
                if high - low > mpmath.mpf(10) ** -40:
                    assert ours[i].item() == pytest.approx(float(mpmath.log(high - low)), rel=1e-9, abs=1e-12)


def test_discretized_decoder_adds_over_the_event(draw):
    x = torch.randint(0, 17, (4, 1, 2, 2), generator=torch.Generator().manual_seed(0)) / 8.0 - 1
    mean = draw(4, 1, 2, 2, dtype=torch.float32)
    decode = discretized_decoder(17)
    each = decode(x.reshape(-1, 1), Gaussian(mean.reshape(-1, 1), 0.01)).reshape(4, 4).sum(1)
    assert_close(decode(x, Gaussian(mean, 0.01)), each, rtol=1e-6, atol=0.0)
    double = decode(x.double(), Gaussian(mean.double(), 0.01))
    assert_close(decode(x, Gaussian(mean, 0.01)).double(), double, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="levels = 1: expected at least 2"):
        discretized_decoder(1)


def test_decoders_enter_through_the_reconstruction_term(draw):
    q, x_0, x_1 = GaussianDiffusion(NoiseSchedule.from_betas([0.04])), draw(3, 2), draw(3, 2, seed=1)
    law = Gaussian(wrong_denoiser(x_1, 1), 0.04)
    assert_close(reconstruction_term(q, wrong_denoiser, x_0, x_1, density_decoder), -law.log_prob(x_0))
    levels = (x_0.clamp(-1, 1) * 8).round() / 8
    by_level = reconstruction_term(q, wrong_denoiser, levels, x_1, discretized_decoder(17))
    assert_close(by_level, -discretized_decoder(17)(levels, law))


def test_a_fair_choice_of_256_values_costs_eight_bits():
    nats = torch.tensor([784 * math.log(256)], dtype=torch.float64)
    assert_close(bits_per_dim(nats, 784), torch.tensor([8.0]).double(), rtol=1e-14, atol=0.0)
