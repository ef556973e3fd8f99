import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian, observe
from ddpm_nb.schedule import NoiseSchedule, added_var, linear_schedule

BETAS = st.lists(st.floats(1e-4, 0.99), min_size=3, max_size=8)


@pytest.fixture(scope="module")
def q(schedule):
    return GaussianDiffusion(schedule)


def pairs(T: int) -> list[tuple[int, int]]:
    """Single steps and strides, early, late and across, all with s ≥ 1."""
    return sorted({(1, 2), (1, T), (T - 1, T), (T // 2, T), (T // 2, T // 2 + 1), (2, 3)})


def test_posterior_times_marginal_is_transition_times_marginal(q, draw):
    for s, t in pairs(q.schedule.T):
        x_0 = draw(6, 3, seed=s)
        x_s = q.marginal(x_0, s).mean + q.marginal(x_0, s).var.sqrt() * draw(6, 3, seed=t)
        x_t = q.transition(x_s, s, t).mean + q.transition(x_s, s, t).var.sqrt() * draw(6, 3, seed=s + t)
        backward = q.posterior(x_0, x_t, s, t).log_prob(x_s) + q.marginal(x_0, t).log_prob(x_t)
        forward = q.transition(x_s, s, t).log_prob(x_t) + q.marginal(x_0, s).log_prob(x_s)
        assert_close(backward, forward, rtol=1e-11, atol=1e-11)


@given(BETAS, st.data(), st.integers(0, 1000))
def test_transitions_marginals_and_posteriors_compose(draw, betas, data, seed):
    q = GaussianDiffusion(NoiseSchedule.from_betas(betas))
    r, s, t = sorted(data.draw(st.lists(st.integers(0, len(betas)), min_size=3, max_size=3, unique=True)))
    x, y = draw(2, 3, seed=seed), draw(2, 3, seed=seed + 1)

    def then(first: Gaussian, kernel, factor) -> Gaussian:
        """Law of the second state when ``kernel`` (mean affine in its argument, with this slope) follows ``first``."""
        second = kernel(first.mean)
        return Gaussian(second.mean, factor**2 * first.var + second.var)

    def slope(kernel) -> torch.Tensor:
        return (kernel(x + 1.0).mean - kernel(x).mean)[0, 0]

    def transition(x_s):
        return q.transition(x_s, s, t)

    def posterior(x_s):
        return q.posterior(y, x_s, r, s)

    two = then(q.transition(x, r, s), transition, slope(transition))
    from_data = then(q.marginal(x, s), transition, slope(transition))
    back = then(q.posterior(y, x, s, t), posterior, slope(posterior))
    for composed, at_once in (
        (two, q.transition(x, r, t)),
        (from_data, q.marginal(x, t)),
        (back, q.posterior(y, x, r, t)),
    ):
        assert_close(composed.mean, at_once.mean, rtol=1e-11, atol=1e-11)
        assert_close(composed.var, at_once.var, rtol=1e-11, atol=1e-14)


def test_marginal_is_the_transition_from_step_0(q, draw):
    x_0, T = draw(4, 2), q.schedule.T
    for t in (1, T // 2, T):
        assert torch.equal(q.marginal(x_0, t).mean, q.transition(x_0, 0, t).mean)
        assert torch.equal(q.marginal(x_0, t).var, q.transition(x_0, 0, t).var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posterior_at_step_0_is_exactly_the_data(q, draw, dtype):
    x_0, x_t = draw(4, 2, dtype=dtype), draw(4, 2, seed=1, dtype=dtype)
    for t in (1, 2, q.schedule.T // 2, q.schedule.T):
        law = q.posterior(x_0, x_t, 0, t)
        assert torch.equal(law.mean, x_0)  # coefficients 1 and 0, without rounding
        assert law.var == 0
    steps = torch.tensor([1, 2, q.schedule.T // 2, q.schedule.T])
    law = q.posterior(x_0, x_t, torch.zeros(4, dtype=torch.int64), steps)
    assert torch.equal(law.mean, x_0)
    assert torch.equal(law.var, torch.zeros(4, 1, dtype=dtype))


def test_posterior_is_bayes_rule_on_the_marginal(q, draw):
    x_0, x_t = draw(4, 2), draw(4, 2, seed=1)
    for s, t in pairs(q.schedule.T):
        before, here = q.schedule.levels(s, t)
        expected = observe(q.marginal(x_0, s), here.signal / before.signal, added_var(before, here), x_t)
        assert_close(q.posterior(x_0, x_t, s, t).mean, expected.mean, rtol=1e-11, atol=1e-11)
        assert_close(q.posterior(x_0, x_t, s, t).var, expected.var, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("t", [2, 3, 7, 20])
def test_one_step_posterior_in_the_letters_of_the_documents(draw, t):
    beta = [0.02 + 0.48 * i / 19 for i in range(20)]
    q = GaussianDiffusion(linear_schedule(20, 0.02, 0.5))
    alpha_bar = math.prod(1 - b for b in beta[:t])
    before, b = alpha_bar / (1 - beta[t - 1]), beta[t - 1]
    x_0, x_t = draw(3, 2), draw(3, 2, seed=1)
    mean = math.sqrt(before) * b / (1 - alpha_bar) * x_0 + math.sqrt(1 - b) * (1 - before) / (1 - alpha_bar) * x_t
    law = q.posterior(x_0, x_t, t - 1, t)
    assert_close(law.mean, mean, rtol=1e-12, atol=1e-13)
    assert law.var.item() == pytest.approx((1 - before) / (1 - alpha_bar) * b, rel=1e-12)


@pytest.mark.parametrize(("s", "t"), [(1, 2), (3, 4), (5, 15), (19, 20)])
def test_posterior_moments_on_a_grid(s, t):
    q = GaussianDiffusion(linear_schedule(20, 0.02, 0.5))
    x_0, x_t = torch.tensor([[0.8]]).double(), torch.tensor([[-0.3]]).double()
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    mass = (q.transition(grid, s, t).log_prob(x_t) + q.marginal(x_0, s).log_prob(grid)).softmax(0)
    mean = mass @ grid[:, 0]
    law = q.posterior(x_0, x_t, s, t)
    assert law.mean.item() == pytest.approx(mean.item(), abs=1e-10)
    assert law.var.item() == pytest.approx((mass @ (grid[:, 0] - mean) ** 2).item(), rel=1e-8)


def test_diffuse_is_a_draw_from_the_marginal(q, draw, rng):
    x_0 = draw(5, 3)
    for t in (0, 1, q.schedule.T // 2, q.schedule.T):
        law = q.marginal(x_0, t)
        eps = torch.randn(5, 3, generator=rng(3), dtype=torch.float64)
        assert_close(q.diffuse(x_0, eps, t), law.mean + law.var.sqrt() * eps, rtol=1e-14, atol=1e-14)
        assert_close(q.diffuse(x_0, eps, t), law.sample(rng(3)), rtol=1e-14, atol=1e-14)


def test_diffused_noise_of_unit_variance_keeps_unit_variance(q, draw):
    # Variance preserving, and the published slip of 1 - ᾱ for its root would give ᾱ + (1 - ᾱ)².
    n, t = 20_000, q.schedule.T // 2 or 1
    var = q.diffuse(draw(n, 1), draw(n, 1, seed=1), t).var().item()
    assert abs(var - 1) < 5 * math.sqrt(2 / n)


def test_a_chain_of_single_steps_has_the_moments_of_the_marginal(rng):
    q, n = GaussianDiffusion(NoiseSchedule.from_betas([0.3, 0.05, 0.4, 0.2])), 40_000
    x = torch.full((n, 1), 1.5, dtype=torch.float64)
    generator = rng(1)
    for t in range(1, 5):
        x = q.transition(x, t - 1, t).sample(generator)
    mean, var = 1.5 * math.sqrt(0.7 * 0.95 * 0.6 * 0.8), 1 - 0.7 * 0.95 * 0.6 * 0.8
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(var / n)
    assert abs(x.var().item() - var) < 4 * var * math.sqrt(2 / n)


def test_marginal_at_step_0_is_the_data(q, draw):
    x_0 = draw(4, 2)
    assert torch.equal(q.marginal(x_0, 0).mean, x_0)
    assert q.marginal(x_0, 0).var == 0
    assert torch.equal(q.diffuse(x_0, draw(4, 2, seed=1), 0), x_0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(), (3,), (1, 4, 4)])
def test_a_step_for_each_sample_gives_what_each_int_gives(q, draw, dtype, event):
    T = q.schedule.T
    s, t = torch.tensor([0, 1, T - 1, 0, 2]), torch.tensor([1, T, T, T, 3])
    x, y = draw(5, *event, dtype=dtype), draw(5, *event, seed=1, dtype=dtype)
    together = [q.transition(x, s, t), q.marginal(x, t), q.posterior(x, y, s, t)]
    for i in range(5):
        one, other, s_i, t_i = x[i : i + 1], y[i : i + 1], int(s[i]), int(t[i])
        alone = [q.transition(one, s_i, t_i), q.marginal(one, t_i), q.posterior(one, other, s_i, t_i)]
        for law, part in zip(alone, together):
            tolerance = 4 * torch.finfo(dtype).eps
            assert law.mean.dtype == law.var.dtype == part.mean.dtype == part.var.dtype == dtype
            assert_close(part.mean[i : i + 1], law.mean, rtol=tolerance, atol=tolerance)
            assert_close(part.var.expand(x.shape)[i : i + 1], law.var.expand(one.shape), rtol=tolerance, atol=0.0)
        assert_close(q.diffuse(x, y, t)[i : i + 1], q.diffuse(one, other, t_i), rtol=tolerance, atol=tolerance)


def test_float32_is_float64_to_rounding(q, draw):
    x, y = draw(4, 3), draw(4, 3, seed=1)
    for s, t in pairs(q.schedule.T):
        for double, single in (
            (q.transition(x, s, t), q.transition(x.float(), s, t)),
            (q.posterior(x, y, s, t), q.posterior(x.float(), y.float(), s, t)),
        ):
            assert_close(single.mean.double(), double.mean, rtol=5e-7, atol=5e-7)
            assert_close(single.var.double(), double.var, rtol=1.2e-7, atol=0.0)


def test_one_step_chain(draw):
    q, x_0, x_1 = GaussianDiffusion(NoiseSchedule.from_betas([0.3])), draw(3, 2), draw(3, 2, seed=1)
    assert_close(q.marginal(x_0, 1).mean, math.sqrt(0.7) * x_0, rtol=1e-15, atol=1e-15)
    assert q.marginal(x_0, 1).var.item() == pytest.approx(0.3, rel=1e-15)
    assert torch.equal(q.posterior(x_0, x_1, 0, 1).mean, x_0)


@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        (lambda q, x: q.transition(x, 2, 2), ValueError, "s = 2, t = 2: expected s < t"),
        (lambda q, x: q.posterior(x, x, 3, 2), ValueError, "s = 3, t = 2: expected s < t"),
        (lambda q, x: q.transition(x, torch.tensor([1, 2]), torch.tensor([3, 2])), ValueError, "expected s < t"),
        (lambda q, x: q.transition(x, torch.tensor([1, 2]), 2), ValueError, "expected s < t"),
        (lambda q, x: q.transition(x, -1, 2), ValueError, "-1"),
        (lambda q, x: q.marginal(x, 6), ValueError, "t = 6: expected a step from 0 to T = 5"),
        (lambda q, x: q.marginal(x, torch.tensor([1, 6])), ValueError, "t contains 6"),
        (lambda q, x: q.marginal(x, 2.0), TypeError, "t = 2.0: expected a whole number"),
        (lambda q, x: q.diffuse(x, x, torch.tensor([1.0, 2.0])), TypeError, "expected an integer tensor"),
        (lambda q, x: q.marginal(x, torch.tensor([1, 2, 3])), ValueError, r"t of shape \(3,\): expected \(2,\)"),
        (lambda q, x: GaussianDiffusion([0.1, 0.2]), TypeError, "schedule: expected a NoiseSchedule"),
    ],
)
def test_errors_name_argument_value_and_what_was_expected(draw, fails, kind, message):
    with pytest.raises(kind, match=message):
        fails(GaussianDiffusion(NoiseSchedule.from_betas([0.1] * 5)), draw(2, 3))
