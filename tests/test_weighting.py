import math

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.bound import eps_weight, x_0_weight
from ddpm_nb.denoiser import EPS, SCORE, X0, V
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.schedule import added_var
from ddpm_nb.weighting import (
    STEP_DRAWS,
    WEIGHTINGS,
    bound_weight,
    min_snr_weight,
    simple_weight,
    stratified_steps,
    uniform_steps,
)

TARGETS = (EPS, X0, V, SCORE)


@pytest.mark.parametrize("name", ["bound", "min_snr"])
def test_a_weighting_is_the_same_loss_whatever_is_predicted(schedule, draw, name):
    # One guess x̂_0 at each step, told in four languages: the weighted errors are equal.
    q, n = GaussianDiffusion(schedule), schedule.T
    t = torch.arange(1, n + 1)
    x_0, eps, guess = (draw(n, 3, seed=seed) for seed in range(3))
    x_t = q.diffuse(x_0, eps, t)
    weighted = []
    for target in TARGETS:
        answer = target.target(q, guess, X0.eps(q, guess, x_t, t), t)
        error = (answer - target.target(q, x_0, eps, t)).square().sum(1)
        weighted.append(WEIGHTINGS[name](schedule, target, t) * error)
    for other in weighted[1:]:
        assert_close(other, weighted[0], rtol=1e-6, atol=0)  # near t = 1 the targets are differences of near numbers


def test_the_bound_weight_is_that_of_the_bound(schedule):
    t = torch.arange(2, schedule.T + 1)
    assert_close(bound_weight(schedule, X0, t), schedule.T * x_0_weight(schedule, t), rtol=1e-10, atol=0)
    assert_close(bound_weight(schedule, EPS, t), schedule.T * eps_weight(schedule, t), rtol=1e-6, atol=0)
    first = torch.ones(1, dtype=torch.long)
    assert_close(bound_weight(schedule, X0, first), schedule.T * 0.5 / schedule.beta(first), rtol=1e-12, atol=0)
    # At t = 1 the variance of the step is β_1, as in the package's bound.
    by_beta = schedule.T * eps_weight(schedule, first, added_var)
    assert_close(bound_weight(schedule, EPS, first), by_beta, rtol=1e-6, atol=0)


def test_min_snr_in_the_letters_of_its_authors(schedule):
    t, gamma = torch.arange(1, schedule.T + 1), 5.0
    snr = schedule.snr(t)
    held = torch.minimum(snr, torch.full_like(snr, gamma))
    weight = min_snr_weight(gamma)
    assert_close(weight(schedule, EPS, t), held / snr, rtol=1e-10, atol=0)
    assert_close(weight(schedule, V, t), held / (snr + 1), rtol=1e-6, atol=0)
    assert_close(weight(schedule, X0, t), held, rtol=1e-10, atol=0)
    for gamma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"gamma = {gamma}: expected a positive signal-to-noise ratio"):
            min_snr_weight(gamma)


def test_the_simple_weight_is_one_for_every_target(schedule):
    t = torch.arange(1, schedule.T + 1)
    assert all(torch.equal(simple_weight(schedule, target, t), torch.ones(schedule.T).double()) for target in TARGETS)


@pytest.mark.parametrize("name", STEP_DRAWS)
@pytest.mark.parametrize(("T", "batch"), [(20, 16), (1000, 64), (7, 64), (1, 3)])
def test_each_step_is_uniform(rng, name, T, batch):
    generator, rounds = rng(0), 4000
    t = torch.stack([STEP_DRAWS[name](T, batch, generator) for _ in range(rounds)])
    assert t.dtype == torch.int64
    assert t.min() >= 1
    assert t.max() <= T
    share = t.flatten().bincount(minlength=T + 1)[1:] / t.numel()
    # A stratified batch hits a step ⌊B/T⌋ or ⌈B/T⌉ times, which varies less than independent draws do.
    error = math.sqrt((1 / T) * (1 - 1 / T) / t.numel())
    assert ((share - 1 / T).abs() <= 5 * error + 1e-6).all()


def test_a_stratified_batch_leaves_no_gap(rng):
    T, batch, generator = 1000, 64, rng(1)
    for _ in range(200):
        gaps = stratified_steps(T, batch, generator).diff()
        assert gaps.min() >= math.floor(T / batch)
        assert gaps.max() <= math.ceil(T / batch)
    independent = torch.stack([uniform_steps(T, batch, generator).sort().values.diff().max() for _ in range(200)])
    assert independent.double().mean() > 3 * T / batch


def test_stratified_steps_estimate_a_mean_over_steps_with_less_noise(schedule, rng):
    # The loss depends smoothly on t; here it is the floor of ε for data of variance ½.
    T, batch, generator = schedule.T, 32, rng(2)
    alpha_bar = schedule.alpha_bar(torch.arange(1, T + 1))
    loss = 0.5 * alpha_bar / (1 - 0.5 * alpha_bar)
    found = {
        name: torch.stack([loss[draw(T, batch, generator) - 1].mean() for _ in range(2000)])
        for name, draw in STEP_DRAWS.items()
    }
    for values in found.values():
        assert abs(values.mean() - loss.mean()) < 4.5 * values.std() / math.sqrt(len(values)) + 1e-12
    assert found["stratified"].std() < 0.5 * found["uniform"].std()
