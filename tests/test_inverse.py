"""Chapter 8: operators and adjoints, exact posteriors, and what each sampler of a posterior gets right."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpm_nb.diffusion import GaussianDiffusion, posterior_mean, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian, conditional, observe
from ddpm_nb.inverse import (
    DPS,
    PGDM,
    FullMixture,
    Likelihood,
    Mask,
    Matrix,
    Measurement,
    Operator,
    RePaint,
    Replacement,
    Separable,
    average_pool,
    blur,
    denoising_level,
    denoising_start,
    exact_posterior,
    gaussian_spread,
    guided,
    measure,
    no_spread,
    posterior_errors,
)
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import Level, NoiseSchedule, added_var, cosine_schedule, linear_schedule

DOUBLE = torch.float64

Q = GaussianDiffusion(linear_schedule())
BOTH = Mask(torch.ones(2, dtype=torch.bool))
FIRST = Mask(torch.tensor([True, False]))
SLANTED = Matrix(torch.tensor([[0.8, -0.5]], dtype=DOUBLE))
PRIOR = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2]),
    torch.tensor([[-1.0, -0.6], [1.0, 0.8], [0.9, -1.0]]),
    torch.tensor([[0.04, 0.09], [0.09, 0.02], [0.02, 0.05]]),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


# Operators


OPERATORS: dict[str, Operator] = {
    "mask": Mask(torch.rand(1, 5, 4, generator=seeded()) < 0.4),
    "matrix": Matrix(normal(3, 7)),
    "blur": blur(6, 0.8),
    "pool": average_pool(8, 2),
    "separable": Separable(normal(3, 5), normal(2, 4, seed=1)),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_adjoint(operator: Operator):
    x, y = normal(6, *operator.event), normal(6, *operator.measured, seed=1)
    left = (operator(x) * y).flatten(1).sum(1)
    right = (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-13)
    assert left.abs().min() > 1e-3  # the identity is not 0 = 0


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_adjoint_is_what_autograd_finds(operator: Operator):
    x, y = normal(2, *operator.event).requires_grad_(), normal(2, *operator.measured, seed=1)
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    torch.testing.assert_close(operator.adjoint(y), gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_matrix_is_the_operator(operator: Operator):
    x = normal(3, *operator.event)
    torch.testing.assert_close(x.flatten(1) @ operator.matrix().mT, operator(x).flatten(1), rtol=0, atol=1e-13)


def test_blur_and_average_pool_against_direct_sums():
    image = normal(1, 1, 6, 6)
    weights = [[math.exp(-0.5 * ((i - j) / 0.8) ** 2) for j in range(6)] for i in range(6)]
    weights = [[w / sum(row) for w in row] for row in weights]
    expected = sum(weights[2][a] * weights[0][b] * image[0, 0, a, b] for a in range(6) for b in range(6))
    assert blur(6, 0.8)(image)[0, 0, 2, 0].item() == pytest.approx(expected.item(), abs=1e-14)
    pooled = torch.nn.functional.avg_pool2d(image, 3)
    torch.testing.assert_close(average_pool(6, 3)(image), pooled, rtol=0, atol=1e-14)


def test_operators_keep_the_dtype_of_the_data():
    assert {operator(normal(1, *operator.event).float()).dtype for operator in OPERATORS.values()} == {torch.float32}


# The measurement


def test_measurement_moments():
    """E[Y] = A m and Cov[Y] = A Σ Aᵀ + σ_y² I, for a law of X with those moments."""
    sigma_y, n = 0.3, 200_000
    A = normal(3, 2, seed=4)
    y = measure(Matrix(A), PRIOR.sample(n, seeded()), sigma_y, seeded(1)).y
    cov = A @ PRIOR.covariance() @ A.mT + sigma_y**2 * torch.eye(3, dtype=DOUBLE)
    z = (y.mean(0) - A @ PRIOR.mean()) / (cov.diagonal() / n).sqrt()
    assert z.abs().max() < 4
    centred = y - A @ PRIOR.mean()
    products = centred[:, :, None] * centred[:, None]
    assert ((products.mean(0) - cov) / (products.std(0) / n**0.5)).abs().max() < 4


def test_brownian_path_ends_at_the_measurement():
    """dX = σ_y dW from A(x): Cov[X_u, X_v] = σ_y² min(u, v), at u = 1 the law of Y given x (Li (2), (3))."""
    sigma_y, steps, n = 0.7, 8, 100_000
    jumps = sigma_y * steps**-0.5 * normal(n, steps)
    path = jumps.cumsum(1)
    u = torch.arange(1, steps + 1, dtype=DOUBLE) / steps
    expected = sigma_y**2 * torch.minimum(u[:, None], u)
    products = path[:, :, None] * path[:, None]
    assert ((products.mean(0) - expected) / (products.std(0) / n**0.5)).abs().max() < 4.5
    # Markov: Cov(u, w) Cov(v, v) = Cov(u, v) Cov(v, w) for u < v < w
    torch.testing.assert_close(expected[1, 6] * expected[4, 4], expected[1, 4] * expected[4, 6], rtol=0, atol=1e-15)


# The exact posterior


@pytest.mark.parametrize("operator", [BOTH, FIRST, SLANTED], ids=["identity", "mask", "slanted"])
@pytest.mark.parametrize("sigma_y", [0.15, 0.6])
def test_exact_posterior_is_bayes_on_a_grid(operator: Operator, sigma_y: float):
    m = measure(operator, torch.tensor([[0.7, -0.3]], dtype=DOUBLE), sigma_y, seeded(3))
    posterior = exact_posterior(PRIOR, m)
    axis = torch.linspace(-5, 5, 1201, dtype=DOUBLE)
    cell = (axis[1] - axis[0]).item() ** 2
    x = torch.cartesian_prod(axis, axis)
    log_likelihood = Gaussian(operator(x), torch.tensor(sigma_y**2, dtype=DOUBLE)).log_prob(m.y)
    joint = (PRIOR.log_prob(x) + log_likelihood).exp()
    evidence = joint.sum() * cell
    density = joint / evidence
    torch.testing.assert_close(posterior.log_prob(x).exp(), density, rtol=0, atol=1e-6)
    mean = (density[:, None] * x).sum(0) * cell
    torch.testing.assert_close(posterior.mean()[0], mean, rtol=0, atol=1e-6)
    centred = x - mean
    torch.testing.assert_close(
        posterior.covariance()[0], (density[:, None] * centred).mT @ centred * cell, rtol=0, atol=1e-6
    )
    found = FullMixture.of(PRIOR).log_evidence(operator.matrix(), m.y, sigma_y**2)
    assert found.item() == pytest.approx(evidence.log().item(), abs=1e-6)


def test_one_part_is_conditioning():
    """k = 1 against the two rules of chapter 1: observe (A = I) and conditional (σ_y = 0)."""
    prior = GaussianMixture(torch.ones(1), torch.tensor([[0.4, -0.2]], dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE))
    y = torch.tensor([[1.1, 0.5]], dtype=DOUBLE)
    law = observe(Gaussian(prior.means, torch.tensor(0.3, dtype=DOUBLE)), 1.0, 0.25, y)
    found = exact_posterior(prior, Measurement(BOTH, y, 0.5))
    torch.testing.assert_close(found.mean(), law.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.covariance()[0], law.var * torch.eye(2, dtype=DOUBLE), rtol=0, atol=1e-9)

    cov = normal(4, 4) @ normal(4, 4).mT + torch.eye(4, dtype=DOUBLE)
    mixture = FullMixture(torch.zeros(1, 1, dtype=DOUBLE), normal(1, 1, 4, seed=5), cov[None])
    value = torch.tensor([0.3, -0.9], dtype=DOUBLE)
    sub = mixture.observe(torch.eye(4, dtype=DOUBLE)[[1, 3]], value[None], 0.0)
    mean, covariance = conditional(mixture.means[0, 0], cov, [1, 3], value)
    torch.testing.assert_close(sub.mean()[0, [0, 2]], mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(sub.covariance()[0][[0, 2]][:, [0, 2]], covariance, rtol=0, atol=1e-12)
    torch.testing.assert_close(sub.mean()[0, [1, 3]], value, rtol=0, atol=1e-12)
    drawn = sub.sample(1, seeded())[0]
    torch.testing.assert_close(drawn[0, [1, 3]], value, rtol=0, atol=1e-7)  # flat directions: the root of rounding


def test_samples_of_the_posterior_have_its_moments():
    n = 100_000
    one = exact_posterior(PRIOR, Measurement(SLANTED, torch.tensor([[-1.0], [0.2]], dtype=DOUBLE), 0.2))
    x = one.sample(n, seeded())[:, 1]
    mean, cov = one.mean()[1], one.covariance()[1]
    assert ((x.mean(0) - mean) / (cov.diagonal() / n).sqrt()).abs().max() < 4
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert ((products.mean(0) - cov) / (products.std(0) / n**0.5)).abs().max() < 4


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 3.0), st.floats(-2, 2), st.integers(0, 1000))
def test_the_null_space_is_the_priors(sigma_y: float, y: float, seed: int):
    """Along a direction that A does not see, log p(x|y) and log p(x) differ by a constant."""
    posterior = exact_posterior(PRIOR, Measurement(SLANTED, torch.tensor([[y]], dtype=DOUBLE), sigma_y))
    unseen = torch.tensor([0.5, 0.8], dtype=DOUBLE)
    x = normal(1, 2, seed=seed) + torch.linspace(-1, 1, 7, dtype=DOUBLE)[:, None] * unseen
    gap = posterior.log_prob(x) - PRIOR.log_prob(x)
    torch.testing.assert_close(gap, gap[:1].expand(7), rtol=0, atol=1e-8)


def test_denoiser_of_the_posterior_is_the_conditional_mean():
    """E[x_0 | x_t, y] by two observations in a row, against both observations at once."""
    t, sigma_y = 300, 0.4
    alpha_bar, noise = Q.schedule.alpha_bar(t), Q.schedule.level(t).noise_var
    x_t, y = normal(5, 2), normal(5, 1, seed=1)
    found = exact_posterior(PRIOR, Measurement(SLANTED, y, sigma_y)).denoiser(Q)(x_t, t)
    scale = noise**0.5 / sigma_y  # brings both noises to one variance
    both = torch.cat([alpha_bar.sqrt() * torch.eye(2, dtype=DOUBLE), scale * SLANTED.entries])
    at_once = FullMixture.of(PRIOR).observe(both, torch.cat([x_t, scale * y], 1), noise).mean()
    torch.testing.assert_close(found, at_once, rtol=0, atol=1e-12)


def test_whatever_knows_another_forward_process_is_refused():
    """Taken from a sampler's parts, whose levels would not be those of x̂_0."""
    other, m = GaussianDiffusion(cosine_schedule(50)), Measurement(FIRST, normal(1, 1), 0.3)
    kernel, denoise = Ancestral(Q, PRIOR.denoiser(Q)), PRIOR.denoiser(Q)
    parts = [
        lambda q: DDIM(q, guided(denoise, Q, m, gaussian_spread())),
        lambda q: DDIM(q, exact_posterior(PRIOR, m).denoiser(Q)),
        lambda q: guided(denoise, q, m, gaussian_spread()),
        lambda q: Replacement(kernel, q, m),
        lambda q: RePaint(kernel, q, 2),
        lambda q: DPS(kernel, PRIOR.denoiser(q), m),
    ]
    for make in parts:
        make(Q)
        with pytest.raises(ValueError, match=r"q: a schedule of T = .*expected the (denoiser|kernel)'s own q"):
            make(other)


# Denoising


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule(200)], ids=["linear", "cosine"])
def test_level_of_a_measurement(schedule: NoiseSchedule):
    for t in (0, 1, 2, schedule.T // 2, schedule.T - 1):
        sigma_y = math.exp(-0.5 * schedule.level(t).log_snr) if t else 0.0
        assert denoising_level(schedule, sigma_y) == t
        if t:  # the nearest step, on both sides
            gap = sigma_y - math.exp(-0.5 * schedule.level(t - 1).log_snr) * (t > 1)
            assert denoising_level(schedule, sigma_y - 0.49 * gap) == t
            assert denoising_level(schedule, sigma_y - 0.51 * gap) == t - 1


def test_scaled_measurement_has_the_law_of_its_level():
    sigma_y = 0.5
    y = normal(3, 2)
    start = denoising_start(Q.schedule, Measurement(BOTH, y, sigma_y))
    alpha_bar = Q.schedule.alpha_bar(start.t)
    torch.testing.assert_close(start.x, alpha_bar.sqrt() * y, rtol=0, atol=1e-15)
    # √ᾱ y = √ᾱ x_0 + √ᾱ σ_y z: its noise is the level's, up to the spacing of the levels
    spacing = Q.schedule.level(start.t - 1).log_snr - Q.schedule.level(start.t).log_snr
    assert abs(math.log(alpha_bar * sigma_y**2 / Q.schedule.level(start.t).noise_var)) < 0.55 * spacing


def test_denoising_walk_of_a_gaussian_is_its_posterior():
    """For one Gaussian the exact reverse steps are affine: follow mean and variance through the walk, no sampling."""
    v, t = 0.4, 200
    prior = GaussianMixture(torch.ones(1), torch.full((1, 1), 0.3), torch.full((1,), v, dtype=DOUBLE))

    def exact_variance(before: Level, here: Level) -> float:
        on_x_0, _ = posterior_mean(before, here)
        return posterior_var(before, here) + on_x_0**2 * gaussian_spread(v)(here)

    def follow(start: int, y: float) -> tuple[float, float]:
        kernel = Ancestral(Q, prior.denoiser(Q), exact_variance)
        mean, var = math.sqrt(Q.schedule.alpha_bar(start)) * y, 0.0
        for now in range(start, 0, -1):
            law = kernel(torch.tensor([[mean], [mean + 1.0]], dtype=DOUBLE), now - 1, now)
            slope = (law.mean[1] - law.mean[0]).item()
            mean, var = law.mean[0].item(), slope**2 * var + law.var.item()
        # the last step answers the mean of x_0 given x_1 and leaves out its variance
        return mean, var + gaussian_spread(v)(Q.schedule.level(1))

    sigma_y = Q.schedule.snr(t).rsqrt().item()
    y = torch.tensor([[1.2]], dtype=DOUBLE)
    exact = exact_posterior(prior, Measurement(Mask(torch.ones(1, dtype=torch.bool)), y, sigma_y))
    expected = (exact.mean().item(), exact.covariance().item())
    assert follow(t, 1.2) == pytest.approx(expected, abs=1e-11)
    for wrong in (t - 1, t + 1):  # one step of a thousand away
        errors = [abs(a - b) for a, b in zip(follow(wrong, 1.2), expected, strict=True)]
        assert min(errors) > 5e-4


def residual_z(y: Tensor, x: Tensor, sigma_y: float) -> float:
    """Mean of ‖y − x‖²/(d σ_y²) less 1 in standard errors: N(0, 1) for y = x_0 + σ_y z and x from its posterior."""
    ratio = (y - x).square().mean(1) / sigma_y**2
    return ((ratio.mean() - 1) / (ratio.std() / len(ratio) ** 0.5)).item()


def test_denoising_walk_samples_the_posterior():
    """Right at the level; wrong one step of a hundred-step ladder (ten of a thousand) to either side."""
    t, n = 89, 20_000
    sigma_y = Q.schedule.snr(t).rsqrt().item()
    m = measure(BOTH, PRIOR.sample(n, seeded()), sigma_y, seeded(1))
    kernel = Ancestral(Q, PRIOR.denoiser(Q), added_var)

    def z(level: int) -> float:
        x = Q.schedule.alpha_bar(level).sqrt() * m.y
        return residual_z(m.y, last(walk(kernel, x, range(level, -1, -1), seeded(2))).x, sigma_y)

    assert denoising_start(Q.schedule, m).t == t
    assert abs(z(t)) < 4
    assert z(t - 10) < -10
    assert z(t + 10) > 10


def test_denoising_walk_adds_no_noise_at_the_last_step():
    """Parts far narrower than √β_1, from which noise in the last step would move every sample away."""
    prior = GaussianMixture(PRIOR.weights, PRIOR.means, torch.full((3,), 1e-6))
    t, n = 300, 4_000
    sigma_y = Q.schedule.snr(t).rsqrt().item()
    m = measure(BOTH, prior.sample(n, seeded()), sigma_y, seeded(1))
    exact, start = exact_posterior(prior, m), denoising_start(Q.schedule, m)
    kernel = Ancestral(Q, prior.denoiser(Q))

    def noisy_end(x_t: Tensor, s: int, t: int) -> Gaussian:
        return Gaussian(kernel(x_t, s, t).mean, Q.schedule.beta(t))

    times = range(start.t, -1, -1)
    right = last(walk(kernel, start.x, times, seeded(2))).x
    wrong = last(walk(noisy_end, start.x, times, seeded(2))).x

    def excess(x: Tensor) -> float:
        """Mean squared distance to the nearest part per coordinate, in its variances, less the exact law's 1."""
        return (torch.cdist(x, prior.means).min(1).values.square().mean() / 2 / 1e-6).item() - 1

    assert abs(excess(exact.sample(1, seeded(3))[0])) < 0.1
    assert -1 <= excess(right) < 0.1  # x̂_0 leaves out at most the variance of a part
    assert excess(wrong) > 90  # β_1 is a hundred of them
    hit, drawn = (torch.cdist(x, prior.means).argmin(1) for x in (right, exact.sample(1, seeded(4))[0]))
    for k in range(3):  # and the parts come with the posterior's shares
        gap = (hit == k).double() - (drawn == k).double()
        assert abs(gap.mean()) < 4 * gap.std() / n**0.5


# Methods for a general A


def test_guidance_is_exact_for_one_gaussian():
    """x_0 given x_t is N(x̂_0, r² I) exactly: guided denoiser = E[x_0 | x_t, y] to rounding."""
    v = 0.4
    prior = GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.5]]), torch.tensor([v], dtype=DOUBLE))
    m = Measurement(SLANTED, normal(6, 1), 0.2)
    x_t = normal(6, 2, seed=1)
    exact = exact_posterior(prior, m).denoiser(Q)
    right = guided(prior.denoiser(Q), Q, m, gaussian_spread(v))
    for t in (1, 100, 500, 1000):
        torch.testing.assert_close(right(x_t, t), exact(x_t, t), rtol=0, atol=1e-9)
    for spread in (no_spread, gaussian_spread(1.0)):  # DPS and ΠGDM assume another variance
        assert (guided(prior.denoiser(Q), Q, m, spread)(x_t, 300) - exact(x_t, 300)).abs().max() > 1e-2


@pytest.mark.parametrize("operator", [FIRST, SLANTED, BOTH], ids=["mask", "slanted", "identity"])
def test_guidance_is_the_gradient_it_says(operator: Operator):
    """Against autograd of log N(y; A x̂_0(x), r² A Aᵀ + σ² I) written with torch.distributions."""
    t, sigma_y, denoise = 250, 0.3, PRIOR.denoiser(Q)
    A, x = operator.matrix(), normal(4, 2).requires_grad_()
    m = Measurement(operator, normal(4, len(A), seed=2), sigma_y)
    noise = Q.schedule.level(t).noise_var
    for spread, r2 in ((no_spread, 0.0), (gaussian_spread(), noise)):
        law = torch.distributions.MultivariateNormal(
            denoise(x, t) @ A.mT, r2 * A @ A.mT + sigma_y**2 * torch.eye(len(A), dtype=DOUBLE)
        )
        (gradient,) = torch.autograd.grad(law.log_prob(m.y).sum(), x)
        expected = denoise(x, t) + noise / Q.schedule.alpha_bar(t).sqrt() * gradient
        torch.testing.assert_close(guided(denoise, Q, m, spread)(x, t), expected, rtol=0, atol=1e-10)


def test_dps_step_is_the_gradient_of_the_residual():
    s, t, step, denoise = 240, 250, 0.7, PRIOR.denoiser(Q)
    m = Measurement(SLANTED, normal(4, 1, seed=2), 0.3)
    x = normal(4, 2).requires_grad_()
    squares = (m.y - SLANTED(denoise(x, t))).square().sum(1)
    (gradient,) = torch.autograd.grad(squares.sum(), x)
    kernel = Ancestral(Q, denoise)
    law = DPS(kernel, denoise, m, step)(x, s, t)
    expected = kernel(x, s, t).mean - step * gradient / squares.sqrt()[:, None]
    torch.testing.assert_close(law.mean, expected, rtol=0, atol=1e-12)
    assert torch.equal(law.var, kernel(x, s, t).var)


def test_half_the_step_of_dps_is_its_released_code():
    """The code steps along ∇‖r‖ where the paper has ∇‖r‖²/‖r‖, twice as long, for the same ζ."""
    s, t, step, denoise = 240, 250, 0.7, PRIOR.denoiser(Q)
    m = Measurement(SLANTED, normal(4, 1, seed=2), 0.3)
    x = normal(4, 2).requires_grad_()
    (gradient,) = torch.autograd.grad((m.y - SLANTED(denoise(x, t))).norm(dim=1).sum(), x)
    kernel = Ancestral(Q, denoise)
    expected = kernel(x, s, t).mean - step * gradient
    torch.testing.assert_close(DPS(kernel, denoise, m, step / 2)(x, s, t).mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_step_of_pgdm_without_noise_pulls_through_the_pseudoinverse(eta: float):
    """σ_y = 0: DDIM plus √ᾱ_s √ᾱ_t ∇ ⟨A⁺(y − A x̂_0), x̂_0⟩ with the first factor held fixed, as its authors' code."""
    s, t, denoise = 240, 250, PRIOR.denoiser(Q)
    A = Matrix(normal(1, 2, seed=6))
    m = Measurement(A, normal(4, 1, seed=2), 0.0)
    x = normal(4, 2).requires_grad_()
    x_0 = denoise(x, t)
    back = (m.y - A(x_0)) @ torch.linalg.pinv(A.entries).mT
    (gradient,) = torch.autograd.grad((back.detach() * x_0).sum(), x)
    alone = DDIM(Q, denoise, eta)(x.detach(), s, t)
    law = PGDM(Likelihood(denoise, Q, m, gaussian_spread()), eta)(x.detach(), s, t)
    weight = (Q.schedule.alpha_bar(s) * Q.schedule.alpha_bar(t)).sqrt()
    torch.testing.assert_close(law.mean, alone.mean + weight * gradient, rtol=0, atol=1e-12)
    assert torch.equal(law.var, alone.var)


def test_dps_without_a_residual_is_the_kernel():
    x, denoise = normal(3, 2).float(), PRIOR.denoiser(Q)
    m = Measurement(SLANTED, SLANTED(denoise(x, 250)), 0.3)
    law = DPS(Ancestral(Q, denoise), denoise, m)(x, 240, 250)
    assert torch.equal(law.mean, Ancestral(Q, denoise)(x, 240, 250).mean)


def test_methods_keep_the_dtype_of_the_state():
    """float32 states and measurements give float32 answers, equal to float64's within its rounding."""
    m = Measurement(FIRST, normal(4, 1), 0.3)
    denoise, x = PRIOR.denoiser(Q), normal(4, 2, seed=1)
    kernel = Ancestral(Q, denoise)
    for method in (
        Replacement(kernel, Q, m),
        DPS(kernel, denoise, m),
        Ancestral(Q, guided(denoise, Q, m, gaussian_spread())),
        Ancestral(Q, exact_posterior(PRIOR, m).denoiser(Q)),
    ):
        single, double = method(x.float(), 300, 400), method(x, 300, 400)
        assert single.mean.dtype == torch.float32
        torch.testing.assert_close(single.mean.double(), double.mean, rtol=0, atol=3e-6)


def test_guided_denoiser_walks_under_no_grad():
    m = Measurement(SLANTED, normal(4, 1), 0.3)
    kernel = Ancestral(Q, guided(PRIOR.denoiser(Q), Q, m, gaussian_spread()))
    x = last(walk(kernel, normal(4, 2), grid(1000, 20), seeded())).x
    assert not x.requires_grad
    # 20 coarse steps already bring A x near y: the guidance acts
    assert (SLANTED(x) - m.y).abs().mean() < (SLANTED(normal(4, 2)) - m.y).abs().mean()


def test_replacement_writes_the_level_of_the_measurement():
    """Measured entries of x_s have the law N(√ᾱ_s x_0, 1 − ᾱ_s) given x_0; the rest is the kernel's."""
    sigma_y = 0.2
    level = denoising_level(Q.schedule, sigma_y)
    kernel = Ancestral(Q, PRIOR.denoiser(Q))
    m = Measurement(FIRST, torch.tensor([[0.9]], dtype=DOUBLE), sigma_y)
    x_t = normal(3, 2)
    law, free = Replacement(kernel, Q, m)(x_t, 400, 410), kernel(x_t, 400, 410)
    alpha_bar = Q.schedule.alpha_bar(400)
    torch.testing.assert_close(law.mean[:, 0], (alpha_bar.sqrt() * 0.9).expand(3), rtol=0, atol=1e-15)
    total = law.var[0].item() + alpha_bar * sigma_y**2  # the noise written in, and the noise in y
    assert total.item() == pytest.approx(Q.schedule.level(400).noise_var, abs=1e-15)
    assert torch.equal(law.mean[:, 1], free.mean[:, 1]) and law.var[1] == free.var
    below = Replacement(kernel, Q, m)(x_t, level - 1, level)
    assert torch.equal(below.mean, kernel(x_t, level - 1, level).mean)


def test_replacement_of_everything_is_denoising():
    t = 171
    m = Measurement(BOTH, normal(3, 2), Q.schedule.snr(t).rsqrt().item())
    law = Replacement(Ancestral(Q, PRIOR.denoiser(Q)), Q, m)(normal(3, 2, seed=1), t, t + 1)
    torch.testing.assert_close(law.mean, denoising_start(Q.schedule, m).x, rtol=0, atol=1e-15)
    assert law.var.max() < 1e-15


def test_replacement_is_biased_however_fine_the_steps():
    """Two equal parts, one coordinate seen: the exact posterior weights are missed by far more than their error."""
    prior = GaussianMixture(torch.ones(2), torch.tensor([[-0.6, -1.0], [0.6, 1.0]]), torch.full((2,), 0.05))
    n, sigma_y = 4_000, 0.05
    m = Measurement(FIRST, torch.full((n, 1), 0.1, dtype=DOUBLE), sigma_y)
    exact = exact_posterior(prior, Measurement(FIRST, m.y[:1], sigma_y)).log_weights[0, 1].exp().item()
    x_T = normal(n, 2)

    def share(kernel) -> float:
        return (last(walk(kernel, x_T, grid(1000, 500), seeded(1))).x[:, 1] > 0).double().mean().item()

    se = (exact * (1 - exact) / n) ** 0.5
    replaced = share(Replacement(Ancestral(Q, prior.denoiser(Q)), Q, m))
    oracle = share(Ancestral(Q, exact_posterior(prior, m).denoiser(Q)))
    assert abs(oracle - exact) < 4 * se
    assert abs(replaced - exact) > 10 * se


def test_rounds_of_repaint_by_hand():
    """Two rounds: one step down, the forward process up again, one step down; one round is the kernel itself."""
    s, t, x_t = 240, 250, normal(5, 2)
    kernel = Replacement(Ancestral(Q, PRIOR.denoiser(Q)), Q, Measurement(FIRST, normal(5, 1, seed=1), 0.2))
    again = seeded(7)
    x_s = kernel(x_t, s, t).sample(again)
    up = Q.transition(x_s, s, t).sample(again)
    found, once = RePaint(kernel, Q, 2, seeded(7))(x_t, s, t), RePaint(kernel, Q, 1)(x_t, s, t)
    torch.testing.assert_close(found.mean, kernel(up, s, t).mean, rtol=0, atol=1e-14)
    assert torch.equal(once.mean, kernel(x_t, s, t).mean)


def test_rounds_reduce_the_bias_of_replacement_and_do_not_remove_it():
    prior = GaussianMixture(torch.ones(2), torch.tensor([[-0.6, -1.0], [0.6, 1.0]]), torch.full((2,), 0.05))
    n, sigma_y = 4_000, 0.1
    m = Measurement(FIRST, torch.full((n, 1), 0.1, dtype=DOUBLE), sigma_y)
    exact = exact_posterior(prior, Measurement(FIRST, m.y[:1], sigma_y)).log_weights[0, 1].exp().item()
    kernel = Replacement(Ancestral(Q, prior.denoiser(Q)), Q, m)

    def gap(rounds: int) -> float:
        x = last(walk(RePaint(kernel, Q, rounds, seeded(1)), normal(n, 2), grid(1000, 50), seeded(2))).x
        return exact - (x[:, 1] > 0).double().mean().item()

    once, often, se = gap(1), gap(10), (exact * (1 - exact) / n) ** 0.5
    assert once - often > 5 * se
    assert often > 20 * se


def test_errors_of_a_method():
    """Floor 0 for exact samples; a known shift and a known widening come out as what they are."""
    b, n = 2_000, 39
    x_0 = PRIOR.sample(b, seeded())
    exact = exact_posterior(PRIOR, measure(SLANTED, x_0, 0.2, seeded(1)))
    mean, cov = exact.mean(), exact.covariance()
    trace = cov.diagonal(dim1=1, dim2=2).sum(1).mean()
    drawn = exact.sample(n, seeded(2))
    shift = torch.tensor([0.4, -0.3], dtype=DOUBLE)
    stretch = (cov.square().sum((1, 2)) * 0.44**2).mean() / cov.square().sum((1, 2)).mean()
    cases = {
        "exact": (drawn, {"mean": 0.0, "spread": 0.0, "covariance": 0.0, "coverage": 0.9}),
        "shifted": (drawn + shift, {"mean": (0.25 / trace).item(), "spread": 0.0, "covariance": 0.0}),
        "widened": (mean + 1.2 * (drawn - mean), {"mean": 0.0, "spread": 0.44, "covariance": stretch.item()}),
    }
    for name, (samples, expected) in cases.items():
        found = posterior_errors(samples, exact, x_0)
        for key, value in expected.items():
            error = found[key].std() / b**0.5
            assert abs(found[key].mean() - value) < 4 * error, (name, key)


@pytest.mark.parametrize("operator", [BOTH, FIRST, SLANTED], ids=["identity", "mask", "slanted"])
def test_residual_and_claim_of_posterior_samples(operator: Operator):
    """E‖Y − A X'‖² = m σ_y², and E‖x̄ − X‖² = (1 + 1/n) E tr S for truths from the prior; both see a wrong posterior."""
    sigma_y, n, b = 0.3, 4, 20_000
    truth = PRIOR.sample(b, seeded())
    m = measure(operator, truth, sigma_y, seeded(1))

    def z(assumed: float) -> tuple[float, float]:
        x = exact_posterior(PRIOR, Measurement(operator, m.y, assumed)).sample(n, seeded(2))
        residual = (m.y - operator(x[0])).square().mean(1) / sigma_y**2 - 1
        gap = (x.mean(0) - truth).square().sum(1) - (1 + 1 / n) * x.var(0).sum(1)
        first, second = ((v.mean() / (v.std() / b**0.5)).item() for v in (residual, gap))
        return first, second

    assert max(map(abs, z(sigma_y))) < 4
    assert z(0.15)[0] < -10 < 10 < z(0.6)[0]  # noise taken for signal; the measurement half ignored
    assert z(0.15)[1] > 4  # samples of a measurement believed too much claim too much


# Errors


def stay(x_t: Tensor, s: int, t: int) -> Gaussian:
    return Gaussian(x_t, torch.ones(()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: measure(BOTH, normal(1, 2), -0.1), ValueError, r"sigma_y = -0\.1: expected a standard deviation"),
        (lambda: Measurement(BOTH, normal(1, 2), math.nan), ValueError, "sigma_y = nan: expected"),
        (lambda: denoising_level(Q.schedule, -1.0), ValueError, r"sigma_y = -1\.0: expected"),
        (lambda: denoising_level(Q.schedule, 500.0), ValueError, r"sigma_y = 500\.0: expected at most 157"),
        (lambda: BOTH(normal(4, 3)), ValueError, r"x of shape \(4, 3\): expected \(batch, 2\)"),
        (lambda: FIRST.adjoint(normal(4, 2)), ValueError, r"y of shape \(4, 2\): expected \(batch, 1\)"),
        (lambda: blur(8, 1.0)(normal(4, 8, 8)), ValueError, r"expected \(batch, 1, 8, 8\)"),
        (lambda: Measurement(FIRST, normal(3, 2), 0.1), ValueError, r"y of shape \(3, 2\): expected \(batch, 1\)"),
        (lambda: Mask(torch.ones(3)), ValueError, "keep of dtype torch.float32: expected a bool tensor"),
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), ValueError, "keep of .* at least one True"),
        (lambda: Matrix(torch.ones(3)), ValueError, r"entries of shape \(3,\): expected \(m, d\)"),
        (
            lambda: posterior_errors(normal(9, 3, 2), FullMixture.of(PRIOR), normal(3, 2)),
            ValueError,
            r"samples of shape \(9, 3, 2\), .* 1 exact laws: expected \(n, batch, d\)",
        ),
        (lambda: blur(8, 0.0), ValueError, r"width = 0\.0: expected a positive number"),
        (lambda: average_pool(8, 3), ValueError, "factor = 3: expected a divisor of side = 8"),
        (lambda: RePaint(stay, Q, 0), ValueError, r"rounds = 0: expected .* at least 1"),
        (lambda: gaussian_spread(0.0), ValueError, r"prior_var = 0\.0: expected a positive"),
        (
            lambda: DPS(stay, lambda x, t: x, Measurement(FIRST, normal(1, 1), 0.1), 0.0),
            ValueError,
            r"step = 0\.0: expected a positive",
        ),
        (
            lambda: denoising_start(Q.schedule, Measurement(FIRST, normal(1, 1), 0.1)),
            TypeError,
            "operator: expected a Mask that keeps every entry",
        ),
        (
            lambda: Replacement(stay, Q, Measurement(SLANTED, normal(1, 1), 0.1)),
            TypeError,
            "operator: expected a Mask, got Matrix",
        ),
        (
            lambda: exact_posterior(PRIOR, Measurement(blur(8, 1.0), normal(1, 1, 8, 8), 0.1)),
            ValueError,
            r"operator on events of shape \(1, 8, 8\): expected 2 numbers",
        ),
        (
            lambda: exact_posterior(
                PRIOR, Measurement(Matrix(torch.eye(2).double()[:, [0]] * torch.eye(2).double()), normal(1, 2), 0.0)
            ),
            ValueError,
            r"sigma_y² = 0\.0: expected a larger one",
        ),
        (
            lambda: guided(PRIOR.denoiser(Q), Q, Measurement(FIRST, normal(1, 1), 0.0), no_spread)(normal(1, 2), 5),
            ValueError,
            r"sigma_y = 0\.0: expected a positive number",
        ),
        (
            lambda: exact_posterior(PRIOR, Measurement(FIRST, normal(1, 1), 0.1)).denoiser(Q)(
                normal(1, 2), torch.ones(1)
            ),
            TypeError,
            "t: expected one int",
        ),
    ],
)
def test_errors_name_argument_value_and_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()
