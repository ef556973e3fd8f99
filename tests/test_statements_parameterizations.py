"""Statements of the documents on means, weights and parameterizations that no other test decides.

The coefficients are products of a plain list of β_t, not taken from the package's table.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm_nb.bound import density_decoder, eps_weight, reconstruction_term, reverse_step, step_term, x_0_weight
from ddpm_nb.denoiser import EPS, SCORE, X0, NetworkDenoiser, V
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import expected_quadratic_form
from ddpm_nb.sampling import Ancestral, grid, last, walk
from ddpm_nb.schedule import NoiseSchedule, added_var

F64 = torch.float64
BETAS = [0.02, 0.3, 0.05, 0.5, 0.11, 0.27]
T, D = len(BETAS), 3
Q = GaussianDiffusion(NoiseSchedule.from_betas(BETAS))
BETA_TILDE, BETA = posterior_var, added_var
EXACT = {"rtol": 1e-11, "atol": 1e-11}
EVERY_STEP = pytest.mark.parametrize("t", range(1, T + 1))
LATER_STEPS = pytest.mark.parametrize("t", range(2, T + 1))


def letters(t: int) -> tuple[float, float, float, float]:
    """α_t, β_t, ᾱ_{t−1}, ᾱ_t."""
    before = math.prod(1 - beta for beta in BETAS[: t - 1])
    return 1 - BETAS[t - 1], BETAS[t - 1], before, before * (1 - BETAS[t - 1])


def states(draw, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_0, ε, x_t, an answer ε_θ, and the x̂_0 that the package makes of it."""
    x_0, eps, answer = draw(3, 20, D, seed=t)
    x_t = Q.diffuse(x_0, eps, t)
    return x_0, eps, x_t, answer, NetworkDenoiser(lambda x, steps: answer, EPS, Q)(x_t, t)


def square(x: Tensor) -> Tensor:
    return x.square().sum(1)


def mean_over(mean: Tensor, var: float, f) -> Tensor:
    """E[f(X)] for X ~ N(mean, var), coordinate by coordinate, summed over the coordinates: Gauss–Hermite quadrature."""
    z, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(12))
    return (f(mean[..., None] + math.sqrt(var) * z) @ (weights / weights.sum())).sum(1)


def log_normal(x: Tensor, mean: Tensor, var: float) -> Tensor:
    return -0.5 * math.log(2 * math.pi * var) - (x - mean[..., None]) ** 2 / (2 * var)


# --- the mean ---


@EVERY_STEP
def test_the_clean_state_is_recovered_from_the_noise_and_errors_are_proportional(draw, t):
    _, _, _, after = letters(t)
    x_0, eps, x_t, answer, x_0_hat = states(draw, t)
    assert_close((x_t - math.sqrt(1 - after) * eps) / math.sqrt(after), x_0, **EXACT)
    assert_close((x_t - math.sqrt(1 - after) * answer) / math.sqrt(after), x_0_hat, **EXACT)
    assert_close(x_0_hat - x_0, math.sqrt((1 - after) / after) * (eps - answer), **EXACT)


@EVERY_STEP
def test_every_line_from_the_mean_in_the_clean_state_to_the_mean_in_the_noise(draw, t):
    alpha, beta, before, after = letters(t)
    _, _, x_t, eps, x_0 = states(draw, t)  # the algebra is the same for the true noise and for a prediction
    mean, noise = Q.posterior(x_0, x_t, t - 1, t).mean, math.sqrt(1 - after)
    on_x_t = math.sqrt(alpha) * (1 - before) / (1 - after)
    on_eps = beta / (math.sqrt(alpha) * noise)
    for line in (
        math.sqrt(before) * beta / (1 - after) * x_0 + on_x_t * x_t,
        math.sqrt(before) * beta / (1 - after) * ((x_t - noise * eps) / math.sqrt(after)) + on_x_t * x_t,
        math.sqrt(before) * beta / ((1 - after) * math.sqrt(after)) * x_t
        + on_x_t * x_t
        - noise * math.sqrt(before) * beta / (math.sqrt(after) * (1 - after)) * eps,
        x_t * (math.sqrt(before) * beta / ((1 - after) * math.sqrt(after)) + on_x_t) - on_eps * eps,
        x_t * (beta / ((1 - after) * math.sqrt(alpha)) + on_x_t) - on_eps * eps,
        x_t * ((beta + alpha * (1 - before)) / ((1 - after) * math.sqrt(alpha))) - on_eps * eps,
        x_t * ((1 - alpha + alpha - after) / ((1 - after) * math.sqrt(alpha))) - on_eps * eps,
        x_t / math.sqrt(alpha) - on_eps * eps,
        (x_t - (1 - alpha) / noise * eps) / math.sqrt(alpha),
        # Li's three lines, the last one with its index and its sign put right
        (math.sqrt(alpha) * (1 - before) * x_t + math.sqrt(before) * (1 - alpha) * x_0) / (1 - after),
        on_x_t * x_t
        + (1 - alpha) / ((1 - after) * math.sqrt(alpha)) * x_t
        - (1 - alpha) * noise / ((1 - after) * math.sqrt(alpha)) * eps,
        x_t / math.sqrt(alpha) - (1 - alpha) / (noise * math.sqrt(alpha)) * eps,
    ):
        assert_close(line, mean, **EXACT)
    for variance in (BETA_TILDE, BETA):  # which plays no part
        assert_close(reverse_step(Q, lambda x, t: x_0, x_t, t, variance).mean, mean, **EXACT)


@LATER_STEPS
def test_the_means_as_printed_are_off_by_the_stated_amounts(draw, t):
    alpha, beta, before, after = letters(t)
    _, _, x_t, eps, x_0 = states(draw, t)
    mean, noise = Q.posterior(x_0, x_t, t - 1, t).mean, math.sqrt(1 - after)
    first = math.sqrt(before) * beta / (1 - after) * x_0
    exchanged = first + math.sqrt(after) * (1 - before) / (1 - after) * x_t  # Vilhes 3, 8.5 and 8.6
    lost = math.sqrt(alpha) * (1 - math.sqrt(before)) * (1 - before) / (1 - after)
    assert_close(mean - exchanged, lost * x_t, **EXACT)
    product = (x_t - (1 - alpha) / noise * eps) / math.sqrt(after)  # Vilhes (8)
    assert_close(product, mean / math.sqrt(before), **EXACT)
    wrong_bar = (math.sqrt(alpha) * (1 - before) * x_t + math.sqrt(before) * (1 - alpha) * x_0) / (1 - before)  # Li
    assert_close(wrong_bar, mean * (1 - after) / (1 - before), **EXACT)
    earlier = 1 - letters(t - 1)[0]
    expanded = (  # Li's third slide on MSE objectives
        math.sqrt(alpha) * (1 - before) / (1 - after) * x_t
        + earlier / ((1 - after) * math.sqrt(alpha)) * x_t
        + earlier * noise / ((1 - after) * math.sqrt(alpha)) * eps
    )
    clean = (x_t - noise * eps) / math.sqrt(after)  # Malhotra (4.12)
    assert_close(clean, x_0, **EXACT)
    for wrong in (exchanged, product, wrong_bar, expanded, clean):
        assert (wrong - mean).square().mean().sqrt() > 1e-4


@EVERY_STEP
def test_the_noise_in_the_mean_is_the_total_noise_and_not_that_of_the_step(draw, t):
    alpha, beta, before, after = letters(t)
    x_0, earlier, fresh = draw(3, 50, D, seed=t)
    x_s = math.sqrt(before) * x_0 + math.sqrt(1 - before) * earlier
    law = Q.transition(x_s, t - 1, t)
    x_t = law.mean + law.var.sqrt() * fresh
    total = (math.sqrt(alpha * (1 - before)) * earlier + math.sqrt(beta) * fresh) / math.sqrt(1 - after)
    assert_close(Q.diffuse(x_0, total, t), x_t, **EXACT)
    assert_close(X0.eps(Q, x_0, x_t, t), total, **EXACT)
    mean = Q.posterior(x_0, x_t, t - 1, t).mean
    assert_close((x_t - beta / math.sqrt(1 - after) * total) / math.sqrt(alpha), mean, **EXACT)
    wrong = (x_t - beta / math.sqrt(1 - after) * fresh) / math.sqrt(alpha)
    off = (wrong - mean).abs().mean()
    assert off < 1e-12 if t == 1 else off > 0.01


# --- the divergence of a step ---


@pytest.mark.parametrize("variance", [BETA_TILDE, BETA, lambda before, here: 0.7])
@LATER_STEPS
def test_a_step_costs_the_squared_distance_of_the_means_over_twice_its_variance(draw, t, variance):
    _, beta, before, after = letters(t)
    x_0, _, x_t, _, x_0_hat = states(draw, t)
    true, model = (Q.posterior(x, x_t, t - 1, t).mean for x in (x_0, x_0_hat))
    narrow, var = beta * (1 - before) / (1 - after), variance(*Q.schedule.levels(t - 1, t))
    kl = mean_over(true, narrow, lambda x: log_normal(x, true, narrow) - log_normal(x, model, var))
    constant = D / 2 * (narrow / var - 1 - math.log(narrow / var))
    assert_close(step_term(Q, lambda x, t: x_0_hat, x_0, x_t, t, variance), kl, **EXACT)
    assert_close(kl, square(true - model) / (2 * var) + constant, **EXACT)
    at_best = step_term(Q, lambda x, t: x_0, x_0, x_t, t, variance)
    assert_close(at_best, torch.full((20,), constant, dtype=F64), **EXACT)
    assert abs(constant) < 1e-12 if variance is BETA_TILDE else constant > 1e-4
    assert (kl > constant).all()  # so the best mean is the posterior's


@LATER_STEPS
def test_every_line_of_the_proof_of_the_three_weights(draw, t):
    alpha, beta, before, after = letters(t)
    x_0, eps, x_t, answer, x_0_hat = states(draw, t)
    kl = step_term(Q, lambda x, t: x_0_hat, x_0, x_t, t)
    true, model = (Q.posterior(x, x_t, t - 1, t).mean for x in (x_0, x_0_hat))
    var = beta * (1 - before) / (1 - after)

    def quadratic(centre: Tensor) -> Tensor:
        return mean_over(true, var, lambda x: (x - centre[..., None]) ** 2 / var)

    identity = torch.eye(D, dtype=F64)
    by_property = [expected_quadratic_form(true[0], var * identity, u, identity / var) for u in (model[0], true[0])]
    assert_close(quadratic(model)[0], by_property[0], **EXACT)
    assert_close(quadratic(true), torch.full((20,), D, dtype=F64), **EXACT)  # the J of the last two lines, and the N
    assert by_property[1].item() == pytest.approx(D, rel=1e-12)
    factor, on_x_0 = (1 - after) / (beta * (1 - before)), math.sqrt(before) * beta / (1 - after)
    on_x_t = math.sqrt(alpha) * (1 - before) / (1 - after)
    weight = before * beta / ((1 - before) * (1 - after))
    noise = math.sqrt(1 - after)
    inverted = [(x_t - noise * e) / math.sqrt(after) for e in (answer, eps)]
    error = square(eps - answer)
    for line in (
        mean_over(true, var, lambda x: log_normal(x, true, var) - log_normal(x, model, var)),
        0.5 * mean_over(true, var, lambda x: ((x - model[..., None]) ** 2 - (x - true[..., None]) ** 2) / var),
        0.5 * quadratic(model) - 0.5 * quadratic(true),
        0.5 * (square(true - model) / var + D) - 0.5 * D,
        square(true - model) / (2 * var),
        0.5 * factor * square(model - true),  # (5)
        0.5 * factor * square(on_x_0 * x_0_hat + on_x_t * x_t - on_x_0 * x_0 - on_x_t * x_t),
        0.5 * factor * square(on_x_0 * x_0_hat - on_x_0 * x_0),
        0.5 * factor * square(on_x_0 * (x_0_hat - x_0)),
        0.5 * weight * square(x_0_hat - x_0),  # (6)
        x_0_weight(Q.schedule, t) * square(x_0_hat - x_0),
        0.5 * weight * square(inverted[0] - inverted[1]),
        0.5 * weight * square(noise / math.sqrt(after) * (eps - answer)),
        0.5 * beta**2 * before * (1 - after) / (beta * (1 - after) * (1 - before) * after) * error,
        0.5 * (1 - after) * beta**2 / (beta * (1 - before) * (1 - after) * alpha) * error,
        0.5 * beta**2 / (var * (1 - after) * alpha) * error,  # (7)
        eps_weight(Q.schedule, t) * error,
    ):
        assert_close(line, kl, **EXACT)
    # Li's lines: the same through σ_q², which is β̃_t
    distance = square(math.sqrt(before) * (1 - alpha) / (1 - after) * (x_0_hat - x_0))
    assert_close(distance / (2 * var), kl, **EXACT)
    assert_close(before * (1 - alpha) ** 2 / (1 - after) ** 2 / (2 * var) * square(x_0_hat - x_0), kl, **EXACT)
    on_eps = (1 - alpha) / (noise * math.sqrt(alpha))
    difference = x_t / math.sqrt(alpha) - on_eps * answer - x_t / math.sqrt(alpha) + on_eps * eps
    assert_close(square(difference) / (2 * var), kl, **EXACT)
    assert_close((1 - alpha) ** 2 / ((1 - after) * alpha) / (2 * var) * error, kl, **EXACT)


@LATER_STEPS
def test_the_weights_as_printed_are_off_by_the_stated_factors(t):
    alpha, beta, before, after = letters(t)
    var = beta * (1 - before) / (1 - after)
    on_eps, on_x_0 = eps_weight(Q.schedule, t).item(), x_0_weight(Q.schedule, t).item()

    def off(printed: float, right: float, factor: float) -> bool:
        return printed / right == pytest.approx(factor, rel=1e-10) and abs(factor - 1) > 0.01

    line_5 = 0.5 * (1 - after) * beta**2 / (beta * (1 - before) * (1 - after) * after)  # Vilhes 8.5
    assert off(line_5, on_eps, 1 / before)
    assert off(0.5 * beta**2 / (var * (1 - after) * after), on_eps, 1 / before)
    assert off(0.5 * beta**2 / (beta * (1 - after) * alpha), on_eps, (1 - before) / (1 - after))  # (7) with β_t
    inserted = before * (1 - alpha) ** 2 / (1 - before) ** 2 / (2 * var)  # Li (2), lines 2 and 3
    assert off(inserted, on_x_0, ((1 - after) / (1 - before)) ** 2)
    pulled_out = math.sqrt(before) * (1 - alpha) / (1 - before) / (2 * var)  # line 4
    assert off(pulled_out, on_x_0, (1 - after) ** 2 / (math.sqrt(before) * beta * (1 - before)))
    assert off((1 - alpha) ** 2 / ((1 - alpha) * alpha) / (2 * var), on_eps, (1 - after) / (1 - alpha))  # Li (5)


@LATER_STEPS
def test_the_weight_of_the_noise_for_either_variance(draw, t):
    alpha, beta, before, after = letters(t)
    x_0, eps, x_t, answer, x_0_hat = states(draw, t)
    error, costs = square(eps - answer), []
    for variance, weight in (
        (BETA_TILDE, beta / (2 * alpha * (1 - before))),
        (BETA, beta / (2 * (1 - after) * (1 - beta))),  # Malhotra (4.15)
    ):
        assert eps_weight(Q.schedule, t, variance).item() == pytest.approx(weight, rel=1e-12)
        rest = step_term(Q, lambda x, t: x_0_hat, x_0, x_t, t, variance) - weight * error
        assert_close(rest, rest[:1].expand(20), **EXACT)  # a constant
        costs.append(rest[0].item())
    assert abs(costs[0]) < 1e-11 < costs[1]
    ratio = eps_weight(Q.schedule, t) / eps_weight(Q.schedule, t, BETA)
    assert ratio.item() == pytest.approx((1 - after) / (1 - before), rel=1e-12)


def test_the_reconstruction_term_is_a_squared_error_of_the_noise(draw):
    beta = BETAS[0]
    x_0, eps, x_1, answer, x_0_hat = states(draw, 1)
    log_p = -reconstruction_term(Q, lambda x, t: x_0_hat, x_0, x_1, density_decoder)
    constant = -D / 2 * math.log(2 * math.pi * beta)
    assert_close(log_p, -square(eps - answer) / (2 * (1 - beta)) + constant, **EXACT)
    assert eps_weight(Q.schedule, 1, BETA).item() == pytest.approx(1 / (2 * (1 - beta)), rel=1e-12)
    assert posterior_var(*Q.schedule.levels(0, 1)) == 0  # with which there is no density


@LATER_STEPS
def test_the_best_variance_lies_between_the_two_choices_and_depends_on_the_data(t):
    def best(v: float) -> float:
        law = GaussianMixture([1.0], [[0.0]], [v])
        return law.reverse_kernel(Q, torch.tensor([0.4], dtype=F64), t - 1, t).variances.item()

    small, large = (variance(*Q.schedule.levels(t - 1, t)) for variance in (BETA_TILDE, BETA))
    assert best(1e-13) == pytest.approx(small, rel=1e-9)  # the data are one point
    assert best(1.0) == pytest.approx(large, rel=1e-12)
    assert small < best(0.1) < best(0.5) < large < best(2.0)


# --- four questions with one answer ---


def estimate(x_t: Tensor, t: int | Tensor) -> Tensor:
    return torch.tanh(1.3 * x_t) + 0.1 * torch.as_tensor(t, dtype=F64).reshape(-1, 1)


def network(p, x_t: Tensor, steps: Tensor) -> Tensor:
    """What a network asked for p has to answer to estimate the data as above, by hand."""
    after = torch.tensor([letters(int(t))[3] for t in steps], dtype=F64)[:, None]
    x_0 = estimate(x_t, steps)
    eps = (x_t - after.sqrt() * x_0) / (1 - after).sqrt()
    v = after.sqrt() * eps - (1 - after).sqrt() * x_0
    return {EPS: eps, X0: x_0, V: v, SCORE: -eps / (1 - after).sqrt()}[p]


def test_every_question_gives_the_same_mean_and_the_same_samples(draw, rng):
    start = draw(30, D)
    whole = last(walk(Ancestral(Q, estimate), start, grid(T, T), rng(0))).x
    for p in (EPS, X0, V, SCORE):
        denoise = NetworkDenoiser(lambda x, steps, p=p: network(p, x, steps), p, Q)
        for t in range(1, T + 1):
            mean = Q.posterior(estimate(start, t), start, t - 1, t).mean
            assert_close(reverse_step(Q, denoise, start, t).mean, mean, rtol=1e-12, atol=1e-12)
            y, other = draw(2, 30, D, seed=t)
            both = [p.x_0(Q, answer, start, t) for answer in (y, other, 0.3 * y + 0.7 * other)]
            assert_close(0.3 * both[0] + 0.7 * both[1], both[2], **EXACT)  # affine in the answer
        assert_close(last(walk(Ancestral(Q, denoise), start, grid(T, T), rng(0))).x, whole, **EXACT)


@EVERY_STEP
def test_the_velocity_is_a_rotation_and_needs_no_division(draw, t):
    _, _, _, after = letters(t)
    x_0, eps, x_t, _, _ = states(draw, t)
    cos, sin = math.sqrt(after), math.sqrt(1 - after)
    rotation = torch.tensor([[cos, sin], [-sin, cos]], dtype=F64)
    pair = torch.einsum("ij,jbd->ibd", rotation, torch.stack([x_0, eps]))
    assert_close(pair, torch.stack([x_t, V.target(Q, x_0, eps, t)]), **EXACT)
    assert_close(rotation.mT @ rotation, torch.eye(2, dtype=F64), **EXACT)
    assert_close(torch.einsum("ij,jbd->ibd", rotation.mT, pair), torch.stack([x_0, eps]), **EXACT)
    v = pair[1]
    assert_close(V.x_0(Q, v, x_t, t), x_0, **EXACT)
    printed = (cos * x_t - sin * v) / after  # Roysdon (15)
    assert_close(printed, x_0 / after, **EXACT)
    assert (printed - x_0).abs().mean() > 0.01


# --- the score ---


@EVERY_STEP
def test_the_noise_error_is_the_scaled_error_of_the_conditional_score(draw, t):
    _, _, _, after = letters(t)
    x_0, eps, x_t, answer, _ = states(draw, t)
    x = x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad(Q.marginal(x_0, t).log_prob(x).sum(), x)
    assert_close(score, -eps / math.sqrt(1 - after), **EXACT)
    assert_close(SCORE.target(Q, x_0, eps, t), score, **EXACT)
    assert_close(score, -(x_t - math.sqrt(after) * x_0) / (1 - after), **EXACT)
    assert_close(square(eps - answer), (1 - after) * square(score + answer / math.sqrt(1 - after)), **EXACT)


@EVERY_STEP
def test_the_best_noise_prediction_is_the_score_of_the_marginal_up_to_a_factor_of_the_step(t):
    _, _, _, after = letters(t)
    weights, means, stds = [0.3, 0.7], [-1.0, 0.8], [0.25, 0.4]
    x_0 = torch.linspace(-5, 5, 20_001, dtype=F64)
    parts = [w / s * torch.exp(-0.5 * ((x_0 - m) / s) ** 2) for w, m, s in zip(weights, means, stds)]
    x_t = torch.linspace(-2, 2, 9, dtype=F64)[:, None].requires_grad_()
    joint = sum(parts) * torch.exp(-0.5 * (x_t - math.sqrt(after) * x_0) ** 2 / (1 - after))
    (score,) = torch.autograd.grad(joint.sum(1).log().sum(), x_t)  # of the density of x_t, by integration
    eps = (x_t - math.sqrt(after) * x_0) / math.sqrt(1 - after)
    best = ((eps * joint).sum(1) / joint.sum(1)).detach()[:, None]
    assert_close(-best / math.sqrt(1 - after), score, rtol=1e-9, atol=1e-9)
    data = GaussianMixture(weights, [[m] for m in means], [s**2 for s in stds])
    answer = X0.eps(Q, data.denoiser(Q)(x_t.detach(), t), x_t.detach(), t)
    assert_close(answer, best, rtol=1e-9, atol=1e-9)
    assert_close(data.score(Q, x_t.detach(), t), score, rtol=1e-9, atol=1e-9)
