"""Chapter 8: measurements by maps that are not linear, against the linear classes, autograd's rivals and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.inverse import (
    DPS,
    Guided,
    Likelihood,
    Matrix,
    Measurement,
    Observation,
    ObservationLikelihood,
    gaussian_spread,
    guided,
    no_spread,
    observe,
    twisted_walk,
)
from ddpm_nb.inverse.guidance import Spread
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import linear_schedule

DOUBLE = torch.float64
Q = GaussianDiffusion(linear_schedule())
PAIR = GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0, -0.6], [0.9, 0.7]]), torch.full((2,), 0.06))
LEVELS = (0, 1, 50, 400, 900)
SPREADS = pytest.mark.parametrize("spread", [no_spread, gaussian_spread()], ids=["none", "unit"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


def without_phase(x: Tensor) -> Tensor:
    return x[:, :1].abs()


def distance(x: Tensor) -> Tensor:
    return x.norm(dim=1, keepdim=True)


def saturated(x: Tensor) -> Tensor:
    return torch.tanh(2 * x @ torch.tensor([[0.8], [0.6]], dtype=x.dtype))


def several(x: Tensor) -> Tensor:
    """Three values of two numbers, with a Jacobian of rank two that moves with x."""
    return torch.stack([x[:, 0] * x[:, 1], x[:, 0].sin(), (x**2).sum(1)], 1)


MAPS = pytest.mark.parametrize("h", [without_phase, distance, saturated, several])


def linear_pair(m: int, sigma_y: float = 0.3) -> tuple[Measurement, Observation]:
    A = Matrix(normal(m, 2, seed=4))
    y = normal(6, m, seed=5)
    return Measurement(A, y, sigma_y), Observation(lambda x: A(x), y, sigma_y)


@SPREADS
@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_linear_map_gives_the_linear_likelihood(spread: Spread, m: int):
    measurement, observation = linear_pair(m)
    denoise, x = PAIR.denoiser(Q), normal(6, 2, seed=1)
    linear = Likelihood(denoise, Q, measurement, spread)
    other = ObservationLikelihood(denoise, Q, observation, spread)
    for t in LEVELS:
        for found, wanted in zip(other(x, t), linear(x, t), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
            assert not found.requires_grad
        if t:
            wanted = guided(denoise, Q, measurement, spread)(x, t)
            torch.testing.assert_close(Guided(other)(x, t), wanted, rtol=1e-10, atol=1e-10)


def test_a_linear_map_gives_the_linear_dps_and_the_linear_particles():
    measurement, observation = linear_pair(1)
    denoise, x = PAIR.denoiser(Q), normal(6, 2, seed=1)
    chain = Ancestral(Q, denoise)
    for t in LEVELS[1:]:
        found = DPS(chain, denoise, observation, 0.2)(x, t - 1, t)
        wanted = DPS(chain, denoise, measurement, 0.2)(x, t - 1, t)
        torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.var, wanted.var, rtol=0, atol=0)
    measurement = Measurement(measurement.operator, measurement.y[:1], 0.3)
    observation = Observation(observation.h, observation.y[:1], 0.3)
    clouds = [
        last(twisted_walk(likelihood, normal(24, 2), grid(1000, 20), 4, seeded()))
        for likelihood in (
            Likelihood(denoise, Q, measurement, gaussian_spread()),
            ObservationLikelihood(denoise, Q, observation, gaussian_spread()),
        )
    ]
    torch.testing.assert_close(clouds[0].x, clouds[1].x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(clouds[0].log_weights, clouds[1].log_weights, rtol=1e-8, atol=1e-8)


@SPREADS
@MAPS
def test_density_is_a_multivariate_normal_with_the_jacobian_of_the_map(h, spread: Spread):
    """Against torch.distributions, with the Jacobian from torch.func: another road to it."""
    x, m = normal(6, 2, seed=1), h(normal(1, 2)).shape[1]
    denoise, observation = PAIR.denoiser(Q), Observation(h, normal(6, m, seed=5), 0.3)
    likelihood = ObservationLikelihood(denoise, Q, observation, spread)
    for t in LEVELS:
        x_0 = denoise(x, t) if t else x
        H = torch.func.vmap(torch.func.jacrev(lambda one: h(one[None])[0]))(x_0)
        r_squared = spread(Q.schedule.level(t)) if t else 0.0
        cov = r_squared * H @ H.mT + 0.09 * torch.eye(m, dtype=DOUBLE)
        wanted = torch.distributions.MultivariateNormal(h(x_0), cov).log_prob(observation.y)
        guess = likelihood(x, t)
        torch.testing.assert_close(guess.log_prob, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guess.x_0, x_0, rtol=0, atol=0)


@SPREADS
@MAPS
def test_gradient_against_finite_differences(h, spread: Spread):
    """Of the whole log density, through the mean and through the covariance."""
    x, step = normal(6, 2, seed=1), 1e-5
    observation = Observation(h, normal(6, h(x).shape[1], seed=5), 0.3)
    likelihood = ObservationLikelihood(PAIR.denoiser(Q), Q, observation, spread)
    for t in (0, 50, 400):
        gradient = likelihood(x, t).gradient
        for i, e in enumerate(torch.eye(2, dtype=DOUBLE)):
            up, down = (likelihood(x + sign * step * e, t).log_prob for sign in (1, -1))
            torch.testing.assert_close(gradient[:, i], (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


def test_at_the_end_it_is_the_likelihood_itself_whatever_the_spread():
    """What the weights of the particles need: a spread that does not vanish is ignored at t = 0."""
    x, observation = normal(6, 2), Observation(saturated, normal(6, 1, seed=5), 0.3)
    wanted = torch.distributions.Normal(saturated(x), torch.tensor(0.3, dtype=DOUBLE)).log_prob(observation.y)[:, 0]
    found = ObservationLikelihood(PAIR.denoiser(Q), Q, observation, lambda level: 0.5)(x, 0).log_prob
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@MAPS
def test_the_dps_step_descends_the_residual(h):
    x, step, t = normal(6, 2, seed=1), 1e-5, 300
    denoise = PAIR.denoiser(Q)
    chain, observation = Ancestral(Q, denoise), Observation(h, normal(6, h(x).shape[1], seed=5), 0.3)
    moved = DPS(chain, denoise, observation, 0.2)(x, t - 1, t).mean - chain(x, t - 1, t).mean

    def square(z: Tensor) -> Tensor:
        return observation.residual(denoise(z, t)).square().sum(1)

    for i, e in enumerate(torch.eye(2, dtype=DOUBLE)):
        slope = (square(x + step * e) - square(x - step * e)) / (2 * step)
        torch.testing.assert_close(moved[:, i], -0.2 * slope / square(x).sqrt(), rtol=1e-5, atol=1e-7)


def test_no_residual_pulls_nowhere():
    x = normal(3, 2)
    observation = Observation(without_phase, without_phase(x), 0.1)
    # At t = 0 the clean state is its own estimate.
    step = DPS(lambda x_t, s, t: Q.posterior(x_t, x_t, 0, 1), lambda x_t, t: x_t, observation)(x, 0, 1)
    torch.testing.assert_close(step.mean, Q.posterior(x, x, 0, 1).mean, rtol=0, atol=0)


def test_where_the_map_is_flat_nothing_pulls_and_the_noise_alone_is_left():
    x = torch.tensor([[2.0, 0.0], [0.1, 0.0]], dtype=DOUBLE)
    observation = Observation(lambda z: z[:, :1].clamp(-0.5, 0.5), torch.tensor([[0.4]], dtype=DOUBLE), 0.1)
    guess = ObservationLikelihood(lambda x_t, t: x_t, Q, observation, gaussian_spread())(x, 400)
    assert not guess.gradient[0].any() and guess.gradient[1, 0] > 0
    flat = torch.distributions.Normal(torch.tensor(0.5, dtype=DOUBLE), 0.1).log_prob(observation.y)
    assert guess.log_prob[0].item() == pytest.approx(flat.item(), abs=1e-12)
    constant = Observation(lambda z: 0 * z[:, :1] + 0.5, torch.tensor([[0.4]], dtype=DOUBLE), 0.1)
    nowhere = ObservationLikelihood(lambda x_t, t: x_t, Q, constant, gaussian_spread())(x, 400)
    assert not nowhere.gradient.any()


def by_quadrature(h, y: float, sigma_y: float) -> tuple[float, Tensor]:
    """Share of x_1 > 0 and mean of the posterior, by the sum over a fine grid."""
    axis = torch.linspace(-3, 3, 602, dtype=DOUBLE)  # no point on an axis
    cells = torch.cartesian_prod(axis, axis)
    weights = (PAIR.log_prob(cells) - 0.5 * ((y - h(cells)[:, 0]) / sigma_y) ** 2).softmax(0)
    return weights[cells[:, 0] > 0].sum().item(), weights @ cells


@pytest.mark.parametrize(("h", "y"), [(without_phase, 0.9), (distance, 1.1), (saturated, -0.2)])
def test_particles_converge_to_the_exact_posterior(h, y: float):
    """80 clouds of 8 and of 200 particles, seeds 0 and 1; the statistic is the average of their weighted means."""
    problems, sigma_y = 80, 0.2
    share, mean = by_quadrature(h, y, sigma_y)
    observation = Observation(h, torch.full((1, 1), y, dtype=DOUBLE), sigma_y)
    likelihood = ObservationLikelihood(PAIR.denoiser(Q), Q, observation, gaussian_spread())
    spreads = []
    for particles in (8, 200):
        x_T = normal(particles * problems, 2)
        cloud = last(twisted_walk(likelihood, x_T, grid(1000, 200), particles, seeded(1)))
        x, weights = cloud.x.reshape(particles, problems, 2), cloud.log_weights.exp()
        shares = ((x[..., 0] > 0) * weights).sum(0)
        means = (x * weights[..., None]).sum(0)
        spreads.append((shares - share).square().mean().sqrt().item())
    # A ratio of unbiased averages has a bias of order 1/N, far below these.
    assert abs(shares.mean() - share) < 4 * shares.std() / problems**0.5
    assert ((means.mean(0) - mean).abs() < 4 * means.std(0) / problems**0.5).all()
    assert means.std(0).max() / problems**0.5 < 0.03
    assert spreads[1] < spreads[0]


def test_the_evidence_is_that_of_the_quadrature():
    problems, particles, y, sigma_y = 200, 64, 0.9, 0.2
    axis = torch.linspace(-3, 3, 602, dtype=DOUBLE)
    cells, area = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2
    noise = torch.distributions.Normal(without_phase(cells)[:, 0], sigma_y)
    log_evidence = (PAIR.log_prob(cells) + noise.log_prob(torch.tensor(y, dtype=DOUBLE))).logsumexp(0) + math.log(area)
    observation = Observation(without_phase, torch.full((1, 1), y, dtype=DOUBLE), sigma_y)
    likelihood = ObservationLikelihood(PAIR.denoiser(Q), Q, observation, gaussian_spread())
    cloud = last(twisted_walk(likelihood, normal(particles * problems, 2), grid(1000, 200), particles, seeded(1)))
    ratio = (cloud.log_evidence - log_evidence).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / problems**0.5
    assert ratio.std() / problems**0.5 < 0.05


def test_an_observation_is_the_map_plus_noise():
    x = normal(1, 2).expand(20000, 2)
    y = observe(distance, x, 0.3, seeded()).y
    assert y.shape == (20000, 1)
    assert abs(y.mean() - distance(x)[0]) < 4 * 0.3 / 20000**0.5
    assert abs(y.std() / 0.3 - 1) < 4 / 40000**0.5
    again = observe(distance, x, 0.0)
    assert not again.residual(x).any()


def test_images_and_single_precision():
    """Events of any shape; the walk stays in its dtype, the log density is in float64."""
    x = normal(4, 1, 3, 3, seed=2).float()
    observation = observe(lambda z: z.flatten(1)[:, :5].tanh(), x, 0.3, seeded())
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 9), torch.ones(1))
    likelihood = ObservationLikelihood(law.denoiser(Q), Q, observation, gaussian_spread())
    single, double = likelihood(x, 300), likelihood(x.double(), 300)
    assert single.gradient.shape == x.shape and single.gradient.dtype == single.x_0.dtype == torch.float32
    assert single.log_prob.dtype == DOUBLE
    torch.testing.assert_close(single.log_prob, double.log_prob, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        end = last(walk(DDIM(Q, Guided(likelihood), 1.0), x, grid(1000, 4), seeded())).x
    assert end.shape == x.shape and end.dtype == torch.float32


def test_bad_arguments_are_named():
    y = normal(3, 1)
    with pytest.raises(TypeError, match="h: expected a function of x, got Tensor"):
        Observation(y, y, 0.1)
    with pytest.raises(ValueError, match=r"y of shape \(3,\): expected \(batch, m\)"):
        Observation(distance, y[:, 0], 0.1)
    with pytest.raises(ValueError, match=r"sigma_y = -0.1: expected a standard deviation"):
        Observation(distance, y, -0.1)
    with pytest.raises(ValueError, match=r"h\(x\) of shape \(3,\): expected \(3, 1\)"):
        Observation(lambda x: x[:, 0], y, 0.1).residual(normal(3, 2))
    denoise = PAIR.denoiser(Q)
    with pytest.raises(ValueError, match=r"sigma_y = 0.0: expected a positive number"):
        ObservationLikelihood(denoise, Q, Observation(distance, y, 0.0), no_spread)
    likelihood = ObservationLikelihood(denoise, Q, Observation(distance, y, 0.1), no_spread)
    with pytest.raises(TypeError, match="t: expected one int for the whole batch"):
        likelihood(normal(3, 2), torch.tensor([1, 2, 3]))
    detached = Observation(lambda x: distance(x).detach(), y, 0.1)
    with pytest.raises(ValueError, match="h: expected a map that autograd can follow"):
        ObservationLikelihood(denoise, Q, detached, no_spread)(normal(3, 2), 10)
    with pytest.raises(ValueError, match="step = 0: expected a positive number"):
        DPS(Ancestral(Q, denoise), denoise, Observation(distance, y, 0.1), 0)
    coarse = GaussianDiffusion(linear_schedule(T=20))
    with pytest.raises(ValueError, match="expected the denoiser's own q"):
        ObservationLikelihood(PAIR.denoiser(coarse), Q, Observation(distance, y, 0.1), no_spread)
