import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.convergence import flow_map
from ddpm_nb.denoiser import EPS, NetworkDenoiser, predicted_noise
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.latents import encode, great_circle
from ddpm_nb.sampling import DDIM, grid, last, walk
from ddpm_nb.schedule import linear_schedule
from ddpm_nb.sde import chain_sde

Q = GaussianDiffusion(linear_schedule())
LAW = GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], [0.1, 0.2])


def gentle(x, t):
    """A network whose prediction depends on both arguments and bends little."""
    return torch.tanh(0.5 * x + 0.01 * t.to(x.dtype)[:, None])


def test_decoding_what_was_encoded_returns_the_data(draw):
    x_0, times = draw(20, 1), grid(1000, 50)
    for denoise in (LAW.denoiser(Q), NetworkDenoiser(gentle, EPS, Q)):
        x_T = last(encode(Q, denoise, x_0, times, iterations=60)).x
        assert_close(last(walk(DDIM(Q, denoise), x_T, times)).x, x_0, rtol=1e-10, atol=1e-10)


def test_encoding_visits_the_states_of_the_walk_in_the_other_order(draw):
    denoise, times, x_T = LAW.denoiser(Q), grid(1000, 50), draw(20, 1)
    down = [(state.t, state.x) for state in walk(DDIM(Q, denoise), x_T, times)]
    up = [(state.t, state.x) for state in encode(Q, denoise, down[-1][1], times, iterations=60)]
    assert [t for t, _ in up] == [t for t, _ in reversed(down[:-1])] + [1000]
    for (_, a), (_, b) in zip(up, [*reversed(down[:-1]), (1000, x_T)]):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_iterations_shrink_the_error_and_one_of_them_is_the_explicit_step(draw):
    denoise, x_0 = LAW.denoiser(Q), draw(20, 1)

    def loss(iterations, steps=50):
        times = grid(1000, steps)
        x_T = last(encode(Q, denoise, x_0, times, iterations)).x
        return (last(walk(DDIM(Q, denoise), x_T, times)).x - x_0).abs().max().item()

    losses = [loss(n) for n in (1, 2, 4, 8)]
    assert all(b < 0.6 * a for a, b in pairwise(losses))
    assert loss(1, 200) < 0.6 * loss(1, 50)  # of first order, by itself
    level = Q.schedule.level(30)
    (state,) = encode(Q, denoise, x_0, [30, 0], iterations=1)
    guess = level.signal * x_0
    expected = guess + level.noise * predicted_noise(Q, denoise, guess, 30)
    assert_close(state.x, expected, rtol=1e-12, atol=1e-12)


def test_the_latent_is_that_of_the_probability_flow(draw):
    x_0 = LAW.sample(50, torch.Generator().manual_seed(1))
    right = flow_map(chain_sde(Q.schedule), LAW, x_0, 0.0, 1.0)
    errors = [(last(encode(Q, LAW.denoiser(Q), x_0, grid(1000, n))).x - right).abs().mean().item() for n in (100, 400)]
    assert errors[1] < 0.02
    assert 0.8 < math.log(errors[0] / errors[1], 4) < 1.2  # DDIM is of first order


def test_the_arc_keeps_length_and_ends(draw):
    a, b = draw(1, 4, 4), draw(1, 4, 4, seed=1)
    b = b * a.norm() / b.norm()
    arc = great_circle(a, b, [0.0, 0.25, 0.5, 1.0])
    assert_close(arc[0], a)
    assert_close(arc[-1], b)
    assert_close(arc.flatten(1).norm(dim=1), a.norm().expand(4), rtol=1e-12, atol=0.0)
    angles = torch.arccos((arc.flatten(1) @ a.flatten()) / a.norm() ** 2)
    assert angles[1:] == pytest.approx((torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64) * angles[-1]).tolist())


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda x: great_circle(x, 2 * x, [0.5]), "a, b: expected two latents that are not multiples"),
        (lambda x: great_circle(x, 0 * x, [0.5]), "a, b: expected two latents that are not multiples"),
        (
            lambda x: encode(Q, LAW.denoiser(Q), x, [0, 5]),
            r"times = \[0, 5\]: expected at least two strictly decreasing",
        ),
        (lambda x: encode(Q, LAW.denoiser(Q), x, [5, 0], 0), "iterations = 0: expected a whole number of at least 1"),
    ],
)
def test_errors_come_before_any_work_and_name_the_argument(draw, fails, message):
    with pytest.raises(ValueError, match=message):
        fails(draw(2, 1))
