"""Statements of the documents about the forward chain and its schedules that no other test decides.

The coefficients are computed here from plain lists of β_t, not from the package's table.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, distributions
from torch.testing import assert_close

from ddpm_nb.bound import prior_term, reverse_step
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian, conditional, convolution
from ddpm_nb.schedule import NoiseSchedule, cosine_schedule, linear_schedule

F64 = torch.float64
BETAS = {
    "linear": [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)],
    "coarse": [0.02 + 0.48 * i / 19 for i in range(20)],
    "uneven": [1e-7, 0.9, 0.01, 0.5, 1e-4],
}
EXACT = {"rtol": 1e-11, "atol": 1e-11}
DATA = GaussianMixture([0.3, 0.7], [[-1.2], [0.9]], [0.02, 0.1])


@pytest.fixture(params=BETAS)
def betas(request: pytest.FixtureRequest) -> list[float]:
    return BETAS[request.param]


def chain(betas: list[float]) -> GaussianDiffusion:
    return GaussianDiffusion(NoiseSchedule.from_betas(betas))


def powers(betas: list[float]) -> list[float]:
    """ᾱ_0..ᾱ_T by multiplication."""
    return [math.prod(1 - beta for beta in betas[:t]) for t in range(len(betas) + 1)]


def steps(T: int) -> list[int]:
    return sorted({1, 2, 3, T // 2, T - 1, T} - {0})


def step(q: GaussianDiffusion, x: Tensor, eps: Tensor, t: int) -> Tensor:
    """Return x_t from x_{t-1} and the noise of the step."""
    law = q.transition(x, t - 1, t)
    return law.mean + law.var.sqrt() * eps


def kl_to_noise(law: GaussianMixture) -> float:
    x = torch.linspace(-9, 9, 1201, dtype=F64)[:, None]
    log_q = law.log_prob(x)
    ratio = log_q - Gaussian(torch.zeros_like(x), 1.0).log_prob(x)
    return torch.trapezoid(log_q.exp() * ratio, x[:, 0]).item()


def test_one_step_shrinks_by_a_root_and_adds_noise_of_variance_beta(betas, draw, rng):
    q, x = chain(betas), draw(4, 3)
    for t in steps(len(betas)):
        beta = betas[t - 1]
        law = q.transition(x, t - 1, t)
        assert_close(law.mean, math.sqrt(1 - beta) * x, rtol=1e-13, atol=1e-13)
        assert law.var.item() == pytest.approx(beta, rel=1e-9)
        # As a draw: the noise is multiplied by the standard deviation √β, not by the variance.
        noise = torch.randn(4, 3, generator=rng(t), dtype=F64)
        assert_close(law.sample(rng(t)), math.sqrt(1 - beta) * x + math.sqrt(beta) * noise, **EXACT)


def test_noise_gets_variance_beta_and_unit_variance_is_kept(betas):
    for beta in betas[:5]:
        q = chain([beta])
        assert q.transition(torch.zeros(1, 1, dtype=F64), 0, 1).var.item() == pytest.approx(beta, rel=1e-9)
        for var in (0.3, 1.0, 2.5):
            after = GaussianMixture([1.0], [[2.0]], [var]).diffused(q, 1)
            assert after.variances.item() == pytest.approx(1 + (1 - beta) * (var - 1), rel=1e-13)
            assert after.means.item() == pytest.approx(2 * math.sqrt(1 - beta), rel=1e-13)


def test_the_chain_of_steps_is_one_jump_with_the_total_noise(betas, draw):
    T, q, abar = len(betas), chain(betas), powers(betas)
    x_0, noises = draw(4, 3), draw(T, 4, 3, seed=1)
    x = x_0
    for t in range(1, T + 1):
        x = step(q, x, noises[t - 1], t)
        if t in steps(T):
            weights = [math.sqrt(betas[i - 1] * abar[t] / abar[i] / (1 - abar[t])) for i in range(1, t + 1)]
            assert math.fsum(w * w for w in weights) == pytest.approx(1, abs=1e-8)  # so the sum is standard normal
            total = torch.einsum("i,i...->...", torch.tensor(weights, dtype=F64), noises[:t])
            printed = math.sqrt(abar[t]) * x_0 + math.sqrt(1 - abar[t]) * total
            assert_close(x, printed, rtol=1e-10, atol=1e-10)
            assert_close(q.diffuse(x_0, total, t), printed, rtol=1e-8, atol=1e-8)


def test_variances_may_come_in_any_order(draw, rng):
    # The usual schedules increase, and nothing needs them to.
    for schedule in (linear_schedule(), cosine_schedule()):
        assert (schedule.beta(torch.arange(1, 1001)).diff() > 0).all()
    order = torch.randperm(1000, generator=rng(0)).tolist()
    betas = [BETAS["linear"][i] for i in order]
    q, x, var = chain(betas), draw(2, 2), 0.0
    mean = x
    for t, beta in enumerate(betas, start=1):
        mean, var = math.sqrt(1 - beta) * mean, (1 - beta) * var + beta
        if t in steps(1000):
            assert_close(q.marginal(x, t).mean, mean, rtol=1e-12, atol=1e-12)
            assert q.marginal(x, t).var.item() == pytest.approx(var, rel=1e-12)


def test_the_density_after_t_steps_by_numerical_integration():
    q = chain([0.3, 0.05, 0.4, 0.2, 0.6])
    x_0, grid = torch.tensor([1.3], dtype=F64), torch.linspace(-8, 8, 801, dtype=F64)
    density = q.transition(x_0, 0, 1).log_prob(grid).exp()
    for t in range(2, 6):
        kernel = q.transition(grid, t - 1, t)  # row: x_t, column: x_{t-1}
        kernel = Gaussian(kernel.mean.repeat(801), kernel.var).log_prob(grid.repeat_interleave(801)).exp()
        density = torch.trapezoid(kernel.reshape(801, 801) * density, grid, dim=1)
        abar = powers([0.3, 0.05, 0.4, 0.2, 0.6])[t]
        exponent = -((grid - math.sqrt(abar) * 1.3) ** 2) / (2 * (1 - abar))
        assert_close(density, exponent.exp() / math.sqrt(2 * math.pi * (1 - abar)), rtol=0, atol=1e-11)
        assert_close(q.marginal(x_0, t).log_prob(grid).exp(), density, rtol=0, atol=1e-11)


def test_the_first_three_steps_unrolled(draw):
    a_1, a_2, a_3 = 0.7, 0.95, 0.6
    q = chain([1 - a_1, 1 - a_2, 1 - a_3])
    x_0, e_1, e_2, e_3 = draw(4, 5, 3)
    x_1 = step(q, x_0, e_1, 1)
    assert_close(x_1, math.sqrt(a_1) * x_0 + math.sqrt(1 - a_1) * e_1, **EXACT)
    assert_close(q.diffuse(x_0, e_1, 1), x_1, **EXACT)  # ᾱ_1 = α_1
    x_2 = step(q, x_1, e_2, 2)
    apart = math.sqrt(a_2 * a_1) * x_0 + math.sqrt(a_2 * (1 - a_1)) * e_1 + math.sqrt(1 - a_2) * e_2
    assert_close(x_2, apart, **EXACT)
    merged = a_2 * (1 - a_1) + (1 - a_2)
    assert merged == pytest.approx(1 - a_1 * a_2, rel=1e-14)
    assert q.marginal(x_0, 2).var.item() == pytest.approx(merged, rel=1e-13)
    bar_2 = (math.sqrt(a_2 * (1 - a_1)) * e_1 + math.sqrt(1 - a_2) * e_2) / math.sqrt(merged)
    assert_close(math.sqrt(a_1 * a_2) * x_0 + math.sqrt(1 - a_1 * a_2) * bar_2, x_2, **EXACT)
    assert_close(q.diffuse(x_0, bar_2, 2), x_2, **EXACT)
    x_3 = step(q, x_2, e_3, 3)
    apart = math.sqrt(a_3 * a_2 * a_1) * x_0 + math.sqrt(a_3 * (1 - a_1 * a_2)) * bar_2 + math.sqrt(1 - a_3) * e_3
    assert_close(x_3, apart, **EXACT)
    merged = a_3 * (1 - a_1 * a_2) + (1 - a_3)
    assert merged == pytest.approx(1 - a_1 * a_2 * a_3, rel=1e-14)
    assert q.marginal(x_0, 3).var.item() == pytest.approx(merged, rel=1e-13)
    bar_3 = (math.sqrt(a_3 * (1 - a_1 * a_2)) * bar_2 + math.sqrt(1 - a_3) * e_3) / math.sqrt(merged)
    assert_close(q.diffuse(x_0, bar_3, 3), x_3, **EXACT)


def test_two_neighbouring_steps_merge(betas, draw, rng):
    q = chain(betas)
    old, older, newer = draw(3, 4, 3)
    for t in sorted(set(steps(len(betas))) - {1}):
        a, before = 1 - betas[t - 1], 1 - betas[t - 2]
        x_t = step(q, step(q, old, older, t - 1), newer, t)
        c_older, c_newer = math.sqrt(a - a * before), math.sqrt(1 - a)
        assert_close(x_t, math.sqrt(a * before) * old + c_older * older + c_newer * newer, **EXACT)
        laws = [Gaussian(torch.zeros(4, 3, dtype=F64), c * c) for c in (c_older, c_newer)]
        for law, c in zip(laws, (c_older, c_newer)):  # a scaled standard draw is a draw of the stated law
            noise = torch.randn(4, 3, generator=rng(t), dtype=F64)
            assert_close(law.sample(rng(t)), c * noise, **EXACT)
        merged = convolution(*laws)
        assert merged.var.item() == pytest.approx(1 - a * before, rel=1e-12)
        assert q.transition(old, t - 2, t).var.item() == pytest.approx(merged.var.item(), rel=1e-9)
        star = (c_older * older + c_newer * newer) / math.sqrt(1 - a * before)
        at_once = q.transition(old, t - 2, t)
        assert_close(at_once.mean + at_once.var.sqrt() * star, x_t, rtol=1e-9, atol=1e-9)


def test_the_induction_step_on_paths_and_in_variances(betas, draw):
    q, abar = chain(betas), powers(betas)
    x_0, eps, fresh = draw(3, 4, 3)
    for t in sorted(set(steps(len(betas))) - {len(betas)}):
        a = 1 - betas[t]
        x_next = step(q, q.diffuse(x_0, eps, t), fresh, t + 1)
        old, new = math.sqrt(a) * math.sqrt(1 - abar[t]), math.sqrt(1 - a)
        assert_close(x_next, math.sqrt(abar[t + 1]) * x_0 + old * eps + new * fresh, rtol=1e-8, atol=1e-8)
        before, kernel = q.marginal(x_0, t), q.transition(x_0, t, t + 1)
        shrink = ((q.transition(x_0 + 1, t, t + 1).mean - kernel.mean)[0, 0]).item()
        noises = Gaussian(0.0, shrink**2 * before.var.item()), Gaussian(0.0, kernel.var.item())
        assert noises[0].var.item() == pytest.approx(a * (1 - abar[t]), rel=1e-8)
        assert noises[1].var.item() == pytest.approx(1 - a, rel=1e-8)
        assert convolution(*noises).var.item() == pytest.approx(1 - abar[t + 1], rel=1e-8)
        assert q.marginal(x_0, t + 1).var.item() == pytest.approx(1 - abar[t + 1], rel=1e-8)


def test_a_bar_too_many_in_the_induction_changes_the_variance():
    q, abar, beta = chain(BETAS["linear"]), powers(BETAS["linear"]), BETAS["linear"]
    x = torch.zeros(1, 1, dtype=F64)
    for t in (1, 100, 500, 999):
        true = q.marginal(x, t + 1).var.item()
        assert (1 - beta[t]) * (1 - abar[t]) + beta[t] == pytest.approx(true, rel=1e-9)
        printed = abar[t + 1] * (1 - abar[t]) + beta[t]
        assert abs(printed / true - 1) > (1e-5 if t == 1 else 0.05)


def test_the_merged_noise_is_a_new_variable(betas, draw):
    q, abar = chain(betas), powers(betas)
    x_0 = draw(4, 3)
    eps, fresh = draw(2, 4, 3, seed=1).requires_grad_()
    for t in sorted(set(steps(len(betas))) - {len(betas)}):
        law = q.marginal(x_0, t + 1)
        new = (step(q, q.diffuse(x_0, eps, t), fresh, t + 1) - law.mean) / law.var.sqrt()
        on_old, on_fresh = (slope[0, 0].item() for slope in torch.autograd.grad(new.sum(), (eps, fresh)))
        assert on_old**2 + on_fresh**2 == pytest.approx(1, rel=1e-12)  # the law is right, N(0, I)
        assert on_old == pytest.approx(math.sqrt((1 - betas[t]) * (1 - abar[t]) / (1 - abar[t + 1])), rel=1e-8)
        assert on_old < 1  # but it is not the old noise


def test_the_noise_of_a_step_is_not_the_total_noise(betas, draw):
    q, abar = chain(betas), powers(betas)
    x_0 = draw(2, 3)
    for t in steps(len(betas)):
        fresh = draw(2, 3, seed=t).requires_grad_()
        x_t = step(q, q.marginal(x_0, t - 1).mean, fresh, t)
        law = q.marginal(x_0, t)
        total = (x_t - law.mean) / law.var.sqrt()
        (slope,) = torch.autograd.grad(total.sum(), fresh)  # of two unit variances, so it is their correlation
        assert slope[0, 0].item() == pytest.approx(math.sqrt(betas[t - 1] / (1 - abar[t])), rel=1e-8)
        assert slope[0, 0].item() == pytest.approx(1, abs=1e-12) if t == 1 else slope[0, 0].item() < 1 - 1e-9


def test_the_path_law_is_the_product_of_its_steps(draw):
    betas = [0.1, 0.3, 0.05, 0.4, 0.2]
    q, abar, x_0 = chain(betas), powers(betas), 0.7
    path = torch.cat([torch.tensor([x_0], dtype=F64), draw(5)])
    product = sum(q.transition(path[t - 1 : t], t - 1, t).log_prob(path[t : t + 1]) for t in range(1, 6))
    mean = torch.tensor([math.sqrt(abar[t]) * x_0 for t in range(1, 6)], dtype=F64)
    cov = torch.tensor(
        [
            [math.sqrt(abar[max(s, t)] / abar[min(s, t)]) * (1 - abar[min(s, t)]) for t in range(1, 6)]
            for s in range(1, 6)
        ],
        dtype=F64,
    )
    joint = distributions.MultivariateNormal(mean, cov).log_prob(path[1:])
    assert product.item() == pytest.approx(joint.item(), abs=1e-11)
    precision = torch.linalg.inv(cov)
    assert (precision.triu(2).abs() < 1e-10).all()  # only neighbours are linked


def test_given_the_present_the_past_says_nothing():
    betas = [0.1, 0.3, 0.05, 0.4]
    q, abar = chain(betas), powers(betas)
    var = [abar[t] * 2.5 + 1 - abar[t] for t in range(5)]  # x_0 ~ N(0.4, 2.5)
    cov = torch.tensor(
        [[math.sqrt(abar[max(s, t)] / abar[min(s, t)]) * var[min(s, t)] for t in range(5)] for s in range(5)], dtype=F64
    )
    mean = torch.tensor([math.sqrt(a) * 0.4 for a in abar], dtype=F64)
    value = torch.tensor([1.1, -0.3, 0.8, 0.2], dtype=F64)
    whole_past, var_whole = conditional(mean, cov, [0, 1, 2, 3], value)
    present, var_present = conditional(mean[[3, 4]], cov[[3, 4]][:, [3, 4]], [0], value[3:])
    law = q.transition(value[3:], 3, 4)
    for m, v in ((whole_past, var_whole), (present, var_present)):
        assert_close(m, law.mean, **EXACT)
        assert_close(v[0, 0], law.var, **EXACT)


def test_every_transition_is_a_density_and_only_the_schedule_enters(draw):
    assert [field.name for field in dataclasses.fields(GaussianDiffusion)] == ["schedule"]
    learnt = torch.tensor([0.3, 0.2, 0.4], dtype=F64, requires_grad=True)
    q, x = chain(learnt), draw(2, 3)
    for law in (q.transition(x, 0, 1), q.marginal(x, 3)):
        assert not law.mean.requires_grad and not law.var.requires_grad
    assert not prior_term(q, x).requires_grad  # so it is constant in training
    grid = torch.linspace(-9, 9, 601, dtype=F64)
    for start in (-1.5, 0.4):
        first = q.transition(torch.tensor([start], dtype=F64), 0, 1).log_prob(grid).exp()
        second = q.transition(grid, 1, 2)
        second = Gaussian(second.mean.repeat_interleave(601), second.var).log_prob(grid.repeat(601)).exp()
        mass = torch.trapezoid(first * torch.trapezoid(second.reshape(601, 601), grid, dim=1), grid)
        assert mass.item() == pytest.approx(1, abs=1e-11)


def test_one_jump_needs_one_draw_and_has_the_law_of_all_steps(rng, draw):
    betas, x_0 = BETAS["coarse"], draw(4, 3)
    q, abar = chain(betas), powers(betas)
    mean, var = x_0, 0.0
    for t, beta in enumerate(betas, start=1):
        law = q.transition(mean, t - 1, t)
        mean, var = law.mean, (1 - beta) * var + law.var.item()
    assert_close(q.marginal(x_0, 20).mean, mean, **EXACT)
    assert_close(mean, math.sqrt(abar[20]) * x_0, **EXACT)
    assert q.marginal(x_0, 20).var.item() == pytest.approx(var, rel=1e-12)

    def state_after(draws: int) -> Tensor:
        generator = rng(0)
        for _ in range(draws):
            torch.randn(4, 3, generator=generator, dtype=F64)
        return generator.get_state()

    jump, slow, x = rng(0), rng(0), x_0
    q.marginal(x_0, 20).sample(jump)
    for t in range(1, 21):
        x = q.transition(x, t - 1, t).sample(slow)
    assert torch.equal(jump.get_state(), state_after(1))
    assert torch.equal(slow.get_state(), state_after(20))
    assert not torch.equal(state_after(1), state_after(20))


def test_data_pushed_step_by_step_follow_the_diffused_law(rng):
    q, n, generator = chain([0.1, 0.3, 0.05, 0.4, 0.2]), 20_000, rng(0)
    x = DATA.sample(n, generator)
    for t in range(1, 6):
        x = q.transition(x, t - 1, t).sample(generator)
        law = DATA.diffused(q, t)
        ordered = x[:, 0].sort().values
        parts = zip(law.weights, law.means[:, 0], law.variances.sqrt(), strict=True)
        cdf = sum(weight * torch.special.ndtr((ordered - mean) / root) for weight, mean, root in parts)
        gap = (cdf - (torch.arange(n, dtype=F64) + 0.5) / n).abs().max().item()
        assert gap * math.sqrt(n) < 2.0  # Kolmogorov and Smirnov: once in 1500 at random


def test_every_step_moves_the_state_towards_noise(betas):
    q, T = chain(betas), len(betas)
    times = torch.arange(1, T + 1)
    assert (q.schedule.snr(times).diff() < 0).all()
    given = [
        q.marginal(torch.tensor([[0.8]], dtype=F64), t).kl(Gaussian(torch.zeros(1, 1, dtype=F64), 1.0)).item()
        for t in range(1, T + 1)
    ]
    assert all(later < earlier for earlier, later in pairwise(given))
    whole = [kl_to_noise(DATA)] + [kl_to_noise(DATA.diffused(q, t)) for t in range(1, T + 1, 1 if T < 100 else 20)]
    assert all(later < earlier for earlier, later in pairwise(whole))
    assert whole[-1] < (0.05 if T < 10 else 1e-3) * whole[0]


def test_the_end_is_near_noise_and_not_at_it(draw):
    for schedule in (linear_schedule(), cosine_schedule()):
        q, x_0 = GaussianDiffusion(schedule), draw(3, 5)
        abar = schedule.alpha_bar(1000).item()
        formula = 0.5 * (abar * x_0.square().sum(1) - 5 * abar - 5 * math.log1p(-abar))
        assert_close(prior_term(q, x_0), formula, rtol=1e-9, atol=1e-18)
        assert (prior_term(q, x_0) > 0).all() and (prior_term(q, x_0) < 1e-3).all()
        assert q.marginal(x_0, 1000).mean.abs().min() > 0  # a trace of the data is left
        end = DATA.diffused(q, 1000)
        assert end.mean().item() == pytest.approx(math.sqrt(abar) * DATA.mean().item(), rel=1e-9)
        unit = GaussianMixture([1.0], [[0.0]], [1.0]).diffused(q, 1000)  # the one law for which the end is noise
        assert unit.means.item() == 0 and unit.variances.item() == pytest.approx(1, rel=1e-15)
    assert linear_schedule().alpha_bar(1000).item() == pytest.approx(powers(BETAS["linear"])[1000], rel=1e-11)


def test_a_chain_forgets_its_start_only_if_its_variances_add_up_to_infinity():
    x_0 = torch.ones(1, 1, dtype=F64)
    far = {}
    for name, power in (("diverges", 1), ("converges", 2)):
        for T in (100, 10_000):
            q = chain(torch.arange(2, T + 2, dtype=F64) ** -power)
            far[name, T] = prior_term(q, x_0).item()
            abar = 1 / (T + 1) if power == 1 else (T + 2) / (2 * (T + 1))
            assert q.schedule.alpha_bar(T).item() == pytest.approx(abar, rel=1e-9)
    assert far["diverges", 10_000] < 0.02 * far["diverges", 100]
    assert far["converges", 10_000] > 0.98 * far["converges", 100] > 0.1


def test_the_usual_linear_schedule():
    schedule = linear_schedule()
    beta = schedule.beta(torch.arange(1, 1001))
    assert schedule.T == 1000
    assert beta[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert beta[-1].item() == pytest.approx(0.02, rel=1e-9)
    assert_close(beta.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=F64), rtol=1e-6, atol=0)
    assert beta.sum().item() == pytest.approx(10.05, rel=1e-9)
    assert schedule.alpha_bar(1000).item() == pytest.approx(4.04e-5, abs=5e-8)


def test_the_schedule_sets_the_pace():
    half = {}
    for name, schedule in (("linear", linear_schedule()), ("cosine", cosine_schedule())):
        half[name] = int((schedule.alpha_bar(torch.arange(1001)) < 0.5).nonzero()[0])
        assert schedule.alpha_bar(half[name]) < 0.5 < schedule.alpha_bar(half[name] - 1)
    assert 200 < half["linear"] < 300
    assert 450 < half["cosine"] < 550


def test_the_linear_schedule_loses_its_signal_early_not_late():
    abar = linear_schedule().alpha_bar(torch.arange(1001))
    assert abar[0] - abar[500] > 0.9
    assert abar[750] - abar[1000] < 0.005
    assert int((abar < 0.01).nonzero()[0]) == 674
    assert int((-abar.diff()).argmax()) < 250 < int((-abar.sqrt().diff()).argmax()) < 500  # the fastest steps


def test_the_cosine_schedule_keeps_the_signal_longer_and_loses_it_more_evenly():
    linear, cosine = (make().alpha_bar(torch.arange(1001)) for make in (linear_schedule, cosine_schedule))
    assert (cosine[1:996] > linear[1:996]).all()
    assert cosine.diff().abs().max() < 0.7 * linear.diff().abs().max()
    assert cosine.sqrt().diff().abs().max() < linear.sqrt().diff().abs().max()


def test_the_offset_keeps_the_first_variance_from_being_tiny():
    with_offset, without = cosine_schedule().beta(1).item(), cosine_schedule(offset=0.0).beta(1).item()
    assert without == pytest.approx(1 - math.cos(math.pi / 2000) ** 2, rel=1e-9)
    u = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 1)]
    assert with_offset == pytest.approx(1 - u[1] / u[0], rel=1e-9)
    assert with_offset > 15 * without


def test_weights_of_signal_and_noise(betas):
    q, abar, T = chain(betas), powers(betas), len(betas)
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    faded = one
    for t in range(1, T + 1):
        faded = q.transition(faded, t - 1, t).mean  # √α_t at each step
        if t in steps(T):
            signal, noise = q.diffuse(one, zero, t).item(), q.diffuse(zero, one, t).item()
            assert signal == pytest.approx(math.sqrt(abar[t]), rel=1e-9)
            assert faded.item() == pytest.approx(signal, rel=1e-11)
            assert noise == pytest.approx(math.sqrt(1 - abar[t]), rel=1e-8)
            assert signal**2 + noise**2 == pytest.approx(1, rel=1e-14)


def test_layers_of_noise_add_up_after_they_are_worn_down(betas):
    q, T = chain(betas), len(betas)
    for t in steps(T):
        s = torch.arange(1, t + 1)
        layers = q.schedule.beta(s) * q.schedule.alpha_bar(t) / q.schedule.alpha_bar(s)
        var = q.marginal(torch.zeros(1, 1, dtype=F64), t).var.item()
        assert layers.sum().item() == pytest.approx(var, rel=1e-9)
        raw = math.fsum(betas[:t])
        assert raw == pytest.approx(var, rel=1e-9) if t == 1 else raw > var * (1 + 1e-9)


def test_the_summary_of_variables(betas, draw):
    q, abar = chain(betas), powers(betas)
    x_0, x_t = draw(2, 4, 3)
    for t in sorted(set(steps(len(betas))) - {1}):
        beta, alpha = betas[t - 1], 1 - betas[t - 1]
        assert q.schedule.beta(t).item() == pytest.approx(beta, rel=1e-9)
        assert q.schedule.alpha(t).item() == pytest.approx(alpha, rel=1e-9)
        assert q.schedule.alpha_bar(t).item() == pytest.approx(abar[t], rel=1e-9)
        assert_close(q.marginal(x_0, t).mean, math.sqrt(abar[t]) * x_0, **EXACT)
        assert q.marginal(x_0, t).var.item() == pytest.approx(1 - abar[t], rel=1e-8)
        on_x_0 = math.sqrt(abar[t - 1]) * beta / (1 - abar[t])
        on_x_t = math.sqrt(alpha) * (1 - abar[t - 1]) / (1 - abar[t])
        tilde = (1 - abar[t - 1]) / (1 - abar[t]) * beta
        law = q.posterior(x_0, x_t, t - 1, t)
        assert_close(law.mean, on_x_0 * x_0 + on_x_t * x_t, rtol=1e-8, atol=1e-8)
        assert law.var.item() == pytest.approx(tilde, rel=1e-8)
        model = reverse_step(q, lambda x, _: 0.5 * x, x_t, t)  # a Gaussian step of stated mean and variance
        assert_close(model.mean, (0.5 * on_x_0 + on_x_t) * x_t, rtol=1e-8, atol=1e-8)
        assert model.var.item() == pytest.approx(tilde, rel=1e-8)
