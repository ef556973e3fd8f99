import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ddpm_nb.denoiser import (
    EDM,
    EPS,
    PARAMETERIZATIONS,
    SCORE,
    X0,
    NetworkDenoiser,
    Parameterization,
    V,
    check_process,
    clipped,
    preconditioned,
    predicted_noise,
    thresholded,
)
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.schedule import NoiseSchedule, cosine_schedule, linear_schedule

ALL = [EPS, X0, V, EDM, SCORE]
EPSILON = torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def q(schedule):
    return GaussianDiffusion(schedule)


def every_step(q, draw):
    """A pair (x_0, ε) for each step t = 1..T, the steps, the levels √ᾱ and √(1−ᾱ) as columns, and x_t."""
    t = torch.arange(1, q.schedule.T + 1)
    x_0, eps = draw(len(t), 3), draw(len(t), 3, seed=1)
    signal = q.schedule.alpha_bar(t).sqrt()[:, None]
    noise = q.schedule.level(t).noise[:, None]
    return x_0, eps, t, signal, noise, signal * x_0 + noise * eps


def test_targets_are_what_their_names_say(q, draw):
    x_0, eps, t, signal, noise, _ = every_step(q, draw)
    assert torch.equal(EPS.target(q, x_0, eps, t), eps)
    assert torch.equal(X0.target(q, x_0, eps, t), x_0)
    assert_close(V.target(q, x_0, eps, t), signal * eps - noise * x_0, rtol=1e-14, atol=1e-14)
    assert_close(SCORE.target(q, x_0, eps, t), -eps / noise, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 3.0])
def test_the_preconditioned_target_has_mean_square_one_and_no_part_along_x_t(q, spread):
    level = q.schedule.level(torch.arange(1, q.schedule.T + 1))
    a, b = preconditioned(spread).weights(level)
    one = torch.ones_like(a)
    assert_close(a**2 * spread**2 + b**2, one, rtol=1e-13, atol=0)
    assert (a * spread**2 * level.signal + b * level.noise).abs().max() < 1e-14 * (1 + spread)


def test_the_preconditioned_target_is_that_of_karras_et_al(q, draw):
    spread = 0.7
    x_0, eps, t, signal, noise, x_t = every_step(q, draw)
    sigma = noise / signal  # of x_t/√ᾱ = x_0 + σ ε
    skip = spread**2 / (sigma**2 + spread**2)
    out = sigma * spread / (sigma**2 + spread**2).sqrt()
    y = preconditioned(spread).target(q, x_0, eps, t)
    assert_close(skip * x_t / signal + out * y, x_0, rtol=1e-10, atol=1e-10)


def test_for_data_of_spread_one_it_is_minus_the_velocity(q, draw):
    x_0, eps, t, *_ = every_step(q, draw)
    assert_close(preconditioned(1.0).target(q, x_0, eps, t), -V.target(q, x_0, eps, t), rtol=1e-13, atol=1e-14)


def test_a_network_that_says_zero_gives_the_best_linear_estimate(q, draw):
    spread, (_, _, t, signal, noise, x_t) = 0.3, every_step(q, draw)
    found = preconditioned(spread).x_0(q, torch.zeros_like(x_t), x_t, t)
    assert_close(found, spread**2 * signal / (noise**2 + spread**2 * signal**2) * x_t, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spread", [0.0, -1.0, math.inf, math.nan])
def test_a_spread_that_is_none_is_refused(spread):
    with pytest.raises(ValueError, match=r"spread = .*: expected the standard deviation of the data"):
        preconditioned(spread)


def test_the_score_target_is_the_gradient_of_the_log_marginal(q, draw):
    x_0, eps, t, _, _, x_t = every_step(q, draw)
    x_t.requires_grad_()
    (score,) = torch.autograd.grad(q.marginal(x_0, t).log_prob(x_t).sum(), x_t)
    assert_close(SCORE.target(q, x_0, eps, t), score, rtol=1e-8, atol=1e-8)  # x_t cancels against its mean


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_round_trip_at_every_step(q, draw, p):
    x_0, eps, t, signal, noise, x_t = every_step(q, draw)
    y = p.target(q, x_0, eps, t)
    # Noise predictions cannot see x_0 better than rounding / √ᾱ, nor x_0 predictions ε better than rounding / √(1−ᾱ).
    one = torch.ones_like(signal)
    lost_x_0 = {EPS: 1 / signal, SCORE: 1 / signal, X0: one, V: one, EDM: one}[p]
    lost_eps = {EPS: one, SCORE: one, X0: 1 / noise, V: one, EDM: 2 * one}[p]
    assert ((p.x_0(q, y, x_t, t) - x_0).abs() < 40 * EPSILON * lost_x_0).all()
    assert ((p.eps(q, y, x_t, t) - eps).abs() < 40 * EPSILON * lost_eps).all()


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_both_estimates_explain_x_t_and_y_whatever_the_network_says(q, draw, p):
    _, _, t, signal, noise, x_t = every_step(q, draw)
    y = draw(len(t), 3, seed=5)
    x_0, eps = p.x_0(q, y, x_t, t), p.eps(q, y, x_t, t)
    size = 1 + x_0.abs() + eps.abs()
    assert ((signal * x_0 + noise * eps - x_t).abs() < 20 * EPSILON * size).all()
    scale = 1 / noise if p is SCORE else 1.0
    assert ((p.target(q, x_0, eps, t) - y).abs() < 40 * EPSILON * size * scale).all()


def test_recovery_formulas_of_the_documents(q, draw):
    _, _, t, signal, noise, x_t = every_step(q, draw)
    y = draw(len(t), 3, seed=5)
    expected = {
        EPS: (x_t - noise * y) / signal,
        X0: y,
        V: signal * x_t - noise * y,
        SCORE: (x_t + noise**2 * y) / signal,
    }
    for p, x_0 in expected.items():
        assert_close(p.x_0(q, y, x_t, t), x_0, rtol=1e-12, atol=1e-12 / signal.min().item())
    assert_close(V.eps(q, y, x_t, t), signal * y + noise * x_t, rtol=1e-13, atol=1e-13)


@given(st.integers(1, 300), st.integers(0, 1000), st.sampled_from([(), (2,), (1, 2, 2)]))
def test_v_is_exact_over_the_whole_cosine_schedule(draw, T, seed, event):
    q = GaussianDiffusion(cosine_schedule(T))
    t = torch.tensor([1, T, (T + 1) // 2])
    x_0, eps = draw(3, *event, seed=seed), draw(3, *event, seed=seed + 1)
    x_t, v = q.diffuse(x_0, eps, t), V.target(q, x_0, eps, t)
    assert_close(V.x_0(q, v, x_t, t), x_0, rtol=1e-14, atol=1e-14)
    assert_close(V.eps(q, v, x_t, t), eps, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("p", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_for_each_sample_gives_what_each_int_gives(q, draw, p, dtype):
    t = torch.tensor([1, q.schedule.T, 2])
    x, y = draw(3, 1, 2, 2, dtype=dtype), draw(3, 1, 2, 2, seed=1, dtype=dtype)
    for convert in (p.target, p.x_0, p.eps):
        together = convert(q, y, x, t)
        each = torch.cat([convert(q, y[i : i + 1], x[i : i + 1], int(t[i])) for i in range(3)])
        assert together.dtype == each.dtype == dtype
        scale = each.abs().amax(dim=(1, 2, 3), keepdim=True) + 1
        assert ((together - each).abs() < 8 * torch.finfo(dtype).eps * scale).all()


def test_float32_keeps_six_digits_where_the_terms_are_of_order_one(draw):
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.3, 0.3]))
    x, y = draw(3, 2), draw(3, 2, seed=1)
    for p in ALL:
        assert_close(p.x_0(q, y.float(), x.float(), 2).double(), p.x_0(q, y, x, 2), rtol=2e-6, atol=2e-6)


class Recorder:
    """A network that depends on x and t and remembers what it was asked."""

    def __init__(self):
        self.steps = []

    def __call__(self, x_t, t):
        self.steps.append(t)
        return torch.tanh(x_t) + 0.1 * t.to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_the_network_is_asked_at_the_step_itself(q, draw, p):
    network, x_t = Recorder(), draw(4, 2)
    denoise = NetworkDenoiser(network, p, q)
    for t in (1, 2, q.schedule.T):
        answer = denoise(x_t, t)
        (steps,) = network.steps
        assert torch.equal(steps, torch.full((4,), t))
        assert_close(answer, p.x_0(q, torch.tanh(x_t) + 0.1 * t, x_t, t), rtol=1e-13, atol=0.0)
        network.steps.clear()
    steps = torch.tensor([1, 2, q.schedule.T, 1])
    assert_close(denoise(x_t, steps)[2:3], denoise(x_t[2:3], q.schedule.T), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_a_network_that_knows_the_target_denoises_exactly(draw, p):
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.1, 0.4, 0.6]))
    x_0, eps = draw(5, 2), draw(5, 2, seed=1)
    for t in (1, 2, 3):
        denoise = NetworkDenoiser(lambda x_t, steps: p.target(q, x_0, eps, steps), p, q)
        assert_close(denoise(q.diffuse(x_0, eps, t), t), x_0, rtol=1e-13, atol=1e-13)


def test_clipping_wraps_a_denoiser(draw):
    x = 3 * draw(50, 2)
    double = clipped(lambda x_t, t: t * x_t)
    assert torch.equal(double(x, 2), torch.maximum(torch.minimum(2 * x, torch.tensor(1.0)), torch.tensor(-1.0)))
    assert clipped(lambda x_t, t: x_t, 0.0, 0.5)(x, 1).unique().tolist()[0] == 0.0
    inside = x[(x.abs() < 1).all(1)]
    assert torch.equal(clipped(lambda x_t, t: x_t)(inside, 1), inside)
    with pytest.raises(ValueError, match=r"low = 1\.0, high = -1\.0: expected low < high"):
        clipped(double, 1.0, -1.0)


def test_thresholding_scales_an_estimate_that_is_too_large_and_leaves_the_others(draw):
    x = torch.stack([0.3 * torch.ones(100), torch.linspace(-2, 2, 101)[:100], 4 * torch.ones(100)]).double()
    x[0, 0] = 5.0  # one pixel in a hundred is no reason to scale
    found = thresholded(lambda x_t, t: x_t, 0.98)(x.reshape(3, 1, 10, 10), 5).reshape(3, 100)
    assert torch.equal(found[0], x[0].clamp(-1, 1))
    reach = x[1].abs().quantile(0.98)
    assert_close(found[1], x[1].clamp(-reach, reach) / reach)
    assert torch.equal(found[2], torch.ones(100, dtype=torch.float64))
    small = draw(5, 3).clamp(-1, 1)
    assert torch.equal(thresholded(lambda x_t, t: x_t)(small, 1), small)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"share = {share}: expected a share of the pixels"):
            thresholded(lambda x_t, t: x_t, share)


@pytest.mark.parametrize("p", ALL, ids=repr)
def test_an_estimate_and_its_noise_explain_x_t(q, draw, p):
    x_t, y = draw(4, 3), draw(4, 3, seed=1)
    denoise = NetworkDenoiser(lambda x, t: y, p, q)
    for t in (1, 2, q.schedule.T):
        level = q.schedule.level(t)
        x_0, eps = denoise(x_t, t), predicted_noise(q, denoise, x_t, t)
        scale = (1 + x_0.abs().max() + eps.abs().max()).item()
        assert_close(level.signal * x_0 + level.noise * eps, x_t, rtol=0.0, atol=1e-14 * scale)
        # ε̂ by way of x̂_0 divides its rounding by √(1 − ᾱ).
        assert_close(eps, p.eps(q, y, x_t, t), rtol=1e-9, atol=1e-15 * scale / level.noise)


@pytest.mark.parametrize("wrap", [lambda d: d, clipped, thresholded, lambda d: clipped(thresholded(d))])
def test_a_denoiser_of_another_forward_process_is_refused(wrap):
    ours, same, theirs = (GaussianDiffusion(cosine_schedule(T)) for T in (20, 20, 21))
    denoise = wrap(NetworkDenoiser(Recorder(), EPS, ours))
    check_process(same, denoise)
    last_digit = ours.schedule.log_alpha_bars * (1 + torch.finfo(torch.float64).eps)  # as another processor has it
    check_process(GaussianDiffusion(NoiseSchedule(last_digit)), denoise)
    check_process(theirs, lambda x_t, t: x_t)  # it knows no process of its own
    with pytest.raises(ValueError, match=r"q: a schedule of T = 21 steps .* the denoiser's has T = 20"):
        check_process(theirs, denoise)
    with pytest.raises(ValueError, match="expected the denoiser's own q"):
        check_process(GaussianDiffusion(linear_schedule(20)), denoise)


def test_parameterizations_by_name():
    assert [PARAMETERIZATIONS[p.name] for p in ALL] == ALL
    assert [repr(p) for p in ALL] == ["EPS", "X_0", "V", "EDM", "SCORE"]
    with pytest.raises(ValueError, match=r"parameterization = 'x0': expected one of .*did you mean 'x_0'"):
        PARAMETERIZATIONS["x0"]


def test_arguments_in_another_order_are_refused(q):
    for wrong in ((Recorder(), q, EPS), (EPS, Recorder(), q)):
        with pytest.raises(TypeError, match=r"expected NetworkDenoiser\(network, parameterization, q\)"):
            NetworkDenoiser(*wrong)


def test_a_new_target_is_two_numbers(draw):
    # Half of each: y = (x_0 + ε)/2 is solvable wherever signal and noise differ.
    half = Parameterization("half", lambda level: (0.5, 0.5))
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.1, 0.7]))
    x_0, eps = draw(4, 2), draw(4, 2, seed=1)
    for t in (1, 2):
        y = half.target(q, x_0, eps, t)
        assert_close(y, (x_0 + eps) / 2, rtol=1e-14, atol=1e-14)
        assert_close(half.x_0(q, y, q.diffuse(x_0, eps, t), t), x_0, rtol=1e-12, atol=1e-12)
    assert math.isclose(q.schedule.alpha_bar(2).item(), 0.27, rel_tol=1e-14)
