"""Chapter 3: the identities of the forward posterior, and the exact reverse kernel of a mixture."""

import math
from itertools import pairwise

import pytest
import torch

from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian, conditional
from ddpm_nb.schedule import added_var, cosine_schedule, linear_schedule

F64 = torch.float64
CHAINS = [linear_schedule(1000), cosine_schedule(1000), linear_schedule(7, 0.1, 0.6)]
ISOTROPIC = GaussianMixture(
    torch.tensor([0.5, 0.2, 0.3]),
    torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.1, -1.4]]),
    torch.tensor([0.05, 0.3, 0.01]),
)
AXES = GaussianMixture(ISOTROPIC.weights, ISOTROPIC.means, torch.tensor([[0.05, 0.2], [0.3, 0.01], [0.02, 0.4]]))


def numbers(*values):
    return [torch.tensor(v, dtype=F64) for v in values]


@pytest.mark.parametrize("schedule", CHAINS)
def test_posterior_is_bayes_rule_on_a_grid(schedule):
    q = GaussianDiffusion(schedule)
    x_0, x_t = numbers(0.7, -0.4)
    x_s = torch.linspace(-9, 9, 90001, dtype=F64)
    for s, t in [(1, 2), (1, schedule.T), (schedule.T // 2, schedule.T), (schedule.T - 1, schedule.T)]:
        log_joint = q.transition(x_s, s, t).log_prob(x_t) + q.marginal(x_0, s).log_prob(x_s)
        joint = (log_joint - log_joint.max()).exp()
        density = joint / torch.trapezoid(joint, x_s)
        law = q.posterior(x_0, x_t, s, t)
        assert (density - law.log_prob(x_s).exp()).abs().max() < 1e-9 * density.max()


@pytest.mark.parametrize("schedule", CHAINS)
def test_posterior_conditions_the_joint_gaussian_of_the_pair(schedule):
    q = GaussianDiffusion(schedule)
    x_0, x_t = numbers(0.7, -0.4)
    for s, t in [(0, 1), (1, 2), (0, schedule.T), (2, schedule.T - 1), (schedule.T - 1, schedule.T)]:
        before, here = schedule.levels(s, t)
        shared = here.signal / before.signal * before.noise_var
        cov = torch.tensor([before.noise_var, shared, shared, here.noise_var], dtype=F64)
        means = torch.stack([q.marginal(x_0, s).mean, q.marginal(x_0, t).mean])
        mean, var = conditional(means, cov.reshape(2, 2), [1], x_t[None])
        law = q.posterior(x_0, x_t, s, t)
        torch.testing.assert_close(law.mean, mean[0], rtol=0, atol=1e-13)
        torch.testing.assert_close(law.var, var[0, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posterior_at_the_data_is_the_data_to_the_last_bit(schedule, dtype):
    q = GaussianDiffusion(schedule)
    x_0, x_t = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for t in (1, 2, schedule.T):
        law = q.posterior(x_0, x_t, 0, t)
        assert torch.equal(law.mean, x_0) and law.var == 0


@pytest.mark.parametrize("schedule", CHAINS)
def test_weights_of_the_posterior_mean(schedule):
    q, t = GaussianDiffusion(schedule), torch.arange(1, schedule.T + 1)
    one, zero = torch.ones(schedule.T, dtype=F64), torch.zeros(schedule.T, dtype=F64)
    on_x_0, on_x_t = q.posterior(one, zero, t - 1, t).mean, q.posterior(zero, one, t - 1, t).mean
    a, b = schedule.alpha(t).sqrt(), schedule.alpha_bar(t - 1).sqrt()
    torch.testing.assert_close(on_x_0 + on_x_t, (a + b) / (1 + a * b), rtol=1e-12, atol=0)
    torch.testing.assert_close(1 - on_x_0 - on_x_t, (1 - a) * (1 - b) / (1 + a * b), rtol=0, atol=1e-13)
    torch.testing.assert_close(on_x_0 + schedule.alpha_bar(t).sqrt() * on_x_t, b, rtol=1e-12, atol=0)
    noise = on_x_t**2 * schedule.level(t).noise_var + posterior_var(*schedule.levels(t - 1, t))
    torch.testing.assert_close(noise, schedule.level(t - 1).noise_var, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("schedule", CHAINS)
def test_posterior_mean_written_in_the_noise(schedule):
    q = GaussianDiffusion(schedule)
    x_0, eps = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for s, t in [(0, 1), (1, 2), (0, 4), (3, 6), (schedule.T // 2, schedule.T // 2 + 1)]:
        x_t = q.diffuse(x_0, eps, t)
        before, here = schedule.levels(s, t)
        mean = (x_t - added_var(before, here) / here.noise * eps) * before.signal / here.signal
        torch.testing.assert_close(q.posterior(x_0, x_t, s, t).mean, mean, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", CHAINS)
def test_joint_law_factors_both_ways_and_entropies_follow(schedule):
    q = GaussianDiffusion(schedule)
    x_0, z_s, z_t = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(2), dtype=F64)
    for s, t in [(1, 2), (2, 5), (1, schedule.T), (schedule.T - 1, schedule.T)]:
        before = q.marginal(x_0, s)
        x_s = before.mean + before.var.sqrt() * z_s
        step = q.transition(x_s, s, t)
        x_t = step.mean + step.var.sqrt() * z_t
        after, back = q.marginal(x_0, t), q.posterior(x_0, x_t, s, t)
        forward = before.log_prob(x_s) + step.log_prob(x_t)
        torch.testing.assert_close(forward, after.log_prob(x_t) + back.log_prob(x_s), rtol=0, atol=1e-9)
        entropy = before.entropy() + step.entropy() - after.entropy()
        torch.testing.assert_close(back.entropy(), entropy, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", CHAINS)
def test_posteriors_compose_over_an_intermediate_step(schedule):
    q = GaussianDiffusion(schedule)
    x_0, x_t = numbers(0.7, -0.4)
    for r, s, t in [(0, 1, 2), (1, 3, 5), (2, schedule.T // 2, schedule.T)]:
        middle, direct = q.posterior(x_0, x_t, s, t), q.posterior(x_0, x_t, r, t)
        composed = q.posterior(x_0, middle.mean, r, s)
        gain = q.posterior(torch.zeros_like(x_0), torch.ones_like(x_0), r, s).mean
        torch.testing.assert_close(composed.mean, direct.mean, rtol=0, atol=1e-13)
        torch.testing.assert_close(composed.var + gain**2 * middle.var, direct.var, rtol=0, atol=1e-13)


@pytest.mark.parametrize("law", [ISOTROPIC, AXES])
@pytest.mark.parametrize("schedule", CHAINS)
def test_reverse_kernel_is_bayes_rule_on_densities(law, schedule):
    q = GaussianDiffusion(schedule)
    x_s = torch.randn(30, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    x_t = torch.tensor([0.3, -0.6], dtype=F64)
    for s, t in [(0, 3), (2, 5), (schedule.T // 2, schedule.T - 1), (schedule.T - 1, schedule.T)]:
        # x_s where the kernel lives: as far from x_t/√α as the step is wide
        before, here = schedule.levels(s, t)
        near = x_t * before.signal / here.signal + added_var(before, here) ** 0.5 * x_s
        bayes = law.diffused(q, s).log_prob(near) - law.diffused(q, t).log_prob(x_t[None])
        bayes = bayes + q.transition(near, s, t).log_prob(x_t)
        torch.testing.assert_close(law.reverse_kernel(q, x_t, s, t).log_prob(near), bayes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("law", [ISOTROPIC, AXES])
def test_reverse_kernel_moments_come_from_those_of_the_data(law):
    schedule = CHAINS[0]
    q, x_t = GaussianDiffusion(schedule), torch.tensor([0.3, -0.6], dtype=F64)
    for s, t in [(99, 100), (299, 500)]:
        kernel, data = law.reverse_kernel(q, x_t, s, t), law.reverse_kernel(q, x_t, 0, t)
        best = law.denoiser(q)(x_t[None], t)
        torch.testing.assert_close(data.mean(), best[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(kernel.mean(), q.posterior(best, x_t[None], s, t).mean[0], rtol=0, atol=1e-11)
        weight = q.posterior(torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64), s, t).mean
        total = posterior_var(*schedule.levels(s, t)) * torch.eye(2, dtype=F64) + weight**2 * data.covariance()
        torch.testing.assert_close(kernel.covariance(), total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", CHAINS)
def test_variance_of_the_reverse_kernel_of_gaussian_data(schedule):
    q, x_t = GaussianDiffusion(schedule), torch.tensor([0.3], dtype=F64)
    for s, t in [(1, 2), (2, 6), (schedule.T - 1, schedule.T)]:
        expected = {1e-14: posterior_var(*schedule.levels(s, t)), 1.0: added_var(*schedule.levels(s, t))}
        before, here = schedule.levels(s, t)
        expected[1e12] = added_var(before, here) * (before.signal / here.signal) ** 2  # beyond β: v is not bounded by 1
        for v, var in expected.items():
            if v == 1e12 and schedule.alpha_bar(t) < 1e-3:
                continue  # v too small a number next to so much noise
            law = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([v], dtype=F64))
            assert law.reverse_kernel(q, x_t, s, t).covariance().item() == pytest.approx(var, rel=1e-8)


def test_reverse_kernel_becomes_gaussian_with_the_third_power_of_the_step():
    q = GaussianDiffusion(CHAINS[0])
    law = GaussianMixture(torch.ones(3), torch.tensor([[-1.5], [0.2], [1.3]]), torch.full((3,), 0.01))
    grid, t = torch.linspace(-6, 6, 60001, dtype=F64), 500
    points = []
    for stride in (1, 2, 4):
        kernel = law.reverse_kernel(q, torch.tensor([0.3], dtype=F64), t - stride, t)
        log = kernel.log_prob(grid[:, None])
        gap = log - Gaussian(kernel.mean(), kernel.covariance()[0]).log_prob(grid)
        kl = torch.trapezoid(log.exp() * gap, grid)
        points.append((math.log(added_var(*q.schedule.levels(t - stride, t))), math.log(kl)))
    slopes = [(d[1] - c[1]) / (d[0] - c[0]) for c, d in pairwise(points)]
    assert slopes == pytest.approx([3, 3], abs=0.15)


def test_reverse_kernel_drops_parts_that_underflow_and_refuses_several_states():
    q = GaussianDiffusion(CHAINS[0])
    far = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [900.0]]), torch.tensor([0.01, 0.02]))
    kernel = far.reverse_kernel(q, torch.tensor([-1.0]), 9, 10)
    assert kernel.weights.shape == (1,)
    alone = GaussianMixture(torch.ones(1), torch.tensor([[-1.0]]), torch.tensor([0.01]))
    expected = alone.reverse_kernel(q, torch.tensor([-1.0]), 9, 10)
    torch.testing.assert_close((kernel.means, kernel.variances), (expected.means, expected.variances))
    with pytest.raises(ValueError, match="one state"):
        far.reverse_kernel(q, torch.zeros(2, 1), 9, 10)
    with pytest.raises(ValueError, match="s < t"):
        far.reverse_kernel(q, torch.zeros(1), 10, 10)
