"""Statements of the documents on training that no other test decides (register: training)."""

import math

import pytest
import torch

from ddpm_nb.bound import bound_terms, simple_loss
from ddpm_nb.denoiser import EPS, SCORE
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import MLP
from ddpm_nb.schedule import linear_schedule
from ddpm_nb.training import Objective, Plan, batch_of_step, constant_rate

T = 20
Q = GaussianDiffusion(linear_schedule(T, 0.01, 0.4))


def test_the_noise_target_is_standard_normal_at_every_step(draw):
    data, n = draw(100, 2), 60_000
    x_0, t, eps = batch_of_step(Objective(Q), Plan(1, n, constant_rate(0.1)), data, 0)
    spread = {}
    for p in (EPS, SCORE):
        y = p.target(Q, x_0, eps, t)
        spread[p] = torch.stack([y[t == step].std() for step in range(1, T + 1)])
        for step in range(1, T + 1):
            of_step = y[t == step] / (1 / Q.schedule.level(step).noise if p is SCORE else 1.0)
            m = of_step.numel()
            assert abs(of_step.mean()) < 4 / math.sqrt(m)
            assert abs(of_step.var() - 1) < 4 * math.sqrt(2 / m)
    assert spread[SCORE].max() > 5 * spread[SCORE].min()  # which is not so for every target


def test_a_random_step_times_T_estimates_the_sum_over_the_steps(draw):
    # A network that answers t/10 whatever it sees: ‖ε − t/10‖² has the mean 2 (1 + t²/100) in the plane.
    data, n = draw(100, 2), 60_000
    x_0, t, eps = batch_of_step(Objective(Q), Plan(1, n, constant_rate(0.1), seed=1), data, 0)
    loss = T * simple_loss(Q, lambda x, t: (t[:, None] / 10).expand_as(x).double(), x_0, t, eps)
    whole = sum(2 * (1 + step**2 / 100) for step in range(1, T + 1))
    error = loss.std().item() / math.sqrt(n)
    assert error < 0.01 * whole
    assert abs(loss.mean().item() - whole) < 4 * error


@pytest.mark.parametrize("sign", [1, -1])
def test_the_error_falls_along_the_simple_loss_and_rises_along_its_negative(draw, sign):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(d=2, width=16, depth=1).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    batch = batch_of_step(Objective(Q), Plan(1, 2000, constant_rate(0.1)), 0.5 * draw(200, 2), 0)
    errors = []
    for _ in range(8):
        error = simple_loss(Q, network, *batch).mean()
        assert error > 0
        errors.append(error.item())
        optimizer.zero_grad()
        (sign * error).backward()
        optimizer.step()
    assert sign * (errors[0] - errors[-1]) > 0.1 * errors[0]


def test_only_the_reverse_chain_has_anything_to_learn(draw, rng):
    x_0 = draw(50, 2)
    one, other = (bound_terms(Q, lambda x_t, t, a=a: a * x_t, x_0, rng(0)) for a in (0.7, 0.2))
    assert torch.equal(one.prior, other.prior)
    assert (one.steps != other.steps).all()
    assert (one.reconstruction != other.reconstruction).all()
