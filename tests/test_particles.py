"""Chapter 8: the particle walk is right in the limit whatever it assumes, and its weights are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.inverse import (
    Likelihood,
    Mask,
    Matrix,
    Measurement,
    Particles,
    exact_posterior,
    gaussian_spread,
    no_spread,
    twisted_walk,
)
from ddpm_nb.inverse.guidance import Spread
from ddpm_nb.inverse.particles import _resampled
from ddpm_nb.sampling import grid
from ddpm_nb.schedule import linear_schedule

DOUBLE = torch.float64
Q = GaussianDiffusion(linear_schedule())
COARSE = GaussianDiffusion(linear_schedule(T=20, beta_1=0.02, beta_T=0.5))
FIRST = Mask(torch.tensor([True, False]))
SLANTED = Matrix(torch.tensor([[0.8, -0.5]], dtype=DOUBLE))
PAIR = GaussianMixture(torch.ones(2), torch.tensor([[-0.6, -1.0], [0.6, 1.0]]), torch.full((2,), 0.05))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


def final(likelihood: Likelihood, x_T: Tensor, times, particles: int, seed: int = 1) -> Particles:
    *_, cloud = twisted_walk(likelihood, x_T, times, particles, seeded(seed))
    return cloud


def law_of_the_chain(q: GaussianDiffusion, prior: GaussianMixture) -> tuple[Tensor, float]:
    """Mean and variance of ancestral samples for one Gaussian: the steps are affine, so no sampling is needed."""
    denoise, mean, var = prior.denoiser(q), torch.zeros(1, 2, dtype=DOUBLE), 1.0
    for t in range(q.schedule.T, 0, -1):
        step = q.posterior(denoise(torch.cat([mean, mean + 1.0]), t), torch.cat([mean, mean + 1.0]), t - 1, t)
        slope = (step.mean[1, 0] - step.mean[0, 0]).item()
        mean, var = step.mean[:1], slope**2 * var + step.var.item()
    return mean, var


@pytest.mark.parametrize(("v", "sigma_y"), [(0.4, 0.1), (1.0, 0.1), (0.05, 0.2)], ids=["right", "wide", "narrow"])
def test_evidence_and_posterior_are_those_of_the_chain(v: float, sigma_y: float):
    """Twenty coarse steps do not draw from the prior; the particles condition what they do draw from, whatever r is."""
    problems, particles = 4000, 32
    prior = GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.5]]), torch.tensor([0.4], dtype=DOUBLE))
    mean, var = law_of_the_chain(COARSE, prior)
    assert abs(var / 0.4 - 1) > 0.05  # far enough from the prior to tell the two apart
    m = Measurement(SLANTED, torch.tensor([[1.3]], dtype=DOUBLE), sigma_y)
    chain = GaussianMixture(torch.ones(1), mean, torch.tensor([var], dtype=DOUBLE))
    S = SLANTED.entries @ SLANTED.entries.mT * var + sigma_y**2
    log_evidence = torch.distributions.Normal(SLANTED(mean), S.sqrt()).log_prob(m.y).item()
    x_T = normal(particles * problems, 2)
    cloud = final(Likelihood(prior.denoiser(COARSE), COARSE, m, gaussian_spread(v)), x_T, range(20, -1, -1), particles)

    ratio = (cloud.log_evidence - log_evidence).exp()  # unbiased for any number of particles
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / problems**0.5
    assert ratio.std() / problems**0.5 < 0.015
    # Weighted by the evidence the particles estimate moments without bias: a ratio of two unbiased means
    exact = exact_posterior(chain, m)
    x = cloud.x.reshape(particles, problems, 2)
    for value, wanted in (
        (x, exact.mean()[0]),
        ((x - exact.mean()) ** 2, exact.covariance()[0].diagonal()),
    ):
        total = ratio[:, None] * (torch.einsum("pb,pbd->bd", cloud.log_weights.exp(), value) - wanted)
        assert (total.mean(0).abs() < 4 * total.std(0) / problems**0.5).all()
        assert (total.std(0) / problems**0.5 < 0.015).all()


def test_weights_are_the_densities_of_target_over_proposal():
    """One step, against torch.distributions: p(x_s|x_t) p̃(y|x_s) / (p̃(y|x_t) p̃(x_s|x_t, y))."""
    t, s, particles = 400, 350, 6
    m = Measurement(SLANTED, torch.tensor([[0.7]], dtype=DOUBLE), 0.3)
    likelihood = Likelihood(PAIR.denoiser(Q), Q, m, gaussian_spread())
    x_t = normal(1, 2).expand(particles, 2)  # equal weights at the start: nothing is resampled
    (cloud,) = twisted_walk(likelihood, x_t, [t, s], particles, seeded(1))
    before, after = likelihood(x_t, t), likelihood(cloud.x, s)
    law = Q.posterior(before.x_0, x_t, s, t)
    prior_step = torch.distributions.Normal(law.mean, law.var.sqrt())
    proposal = torch.distributions.Normal(law.mean + law.var * before.gradient, law.var.sqrt())
    weights = (prior_step.log_prob(cloud.x) - proposal.log_prob(cloud.x)).sum(1) + after.log_prob
    torch.testing.assert_close(cloud.log_weights[:, 0], weights.log_softmax(0), rtol=0, atol=1e-11)
    evidence = weights.logsumexp(0) - math.log(particles)
    assert cloud.log_evidence.item() == pytest.approx(evidence.item(), abs=1e-11)


@pytest.mark.parametrize("spread", [no_spread, gaussian_spread()], ids=["none", "unit"])
def test_likelihood_against_a_multivariate_normal(spread: Spread):
    """Its density at any level, and at t = 0 that of the measurement itself."""
    A = Matrix(normal(3, 2, seed=4))
    m, x = Measurement(A, normal(5, 3), 0.3), normal(5, 2, seed=1)
    denoise, likelihood = PAIR.denoiser(Q), Likelihood(PAIR.denoiser(Q), Q, m, spread)
    for t, x_0 in ((0, x), (1, denoise(x, 1)), (400, denoise(x, 400))):
        cov = spread(Q.schedule.level(t)) * A.entries @ A.entries.mT + 0.09 * torch.eye(3, dtype=DOUBLE)
        expected = torch.distributions.MultivariateNormal(A(x_0), cov).log_prob(m.y)
        torch.testing.assert_close(likelihood(x, t).log_prob, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(likelihood(x, t).x_0, x_0, rtol=0, atol=0)
    at_the_end = (m.y - A(x)) @ A.entries / 0.09
    torch.testing.assert_close(likelihood(x, 0).gradient, at_the_end, rtol=1e-12, atol=0)


def test_particles_find_the_weights_that_replacement_misses():
    """Two equal parts, one coordinate seen: the share of each part is the exact posterior's."""
    sigma_y, problems, particles = 0.1, 100, 40
    m = Measurement(FIRST, torch.full((1, 1), 0.1, dtype=DOUBLE), sigma_y)
    exact = exact_posterior(PAIR, m).log_weights[0, 1].exp()
    likelihood = Likelihood(PAIR.denoiser(Q), Q, m, gaussian_spread())
    cloud = final(likelihood, normal(particles * problems, 2), grid(1000, 100), particles)
    share = ((cloud.x[:, 1] > 0).reshape(particles, -1) * cloud.log_weights.exp()).sum(0)
    assert abs(share.mean() - exact) < 4 * share.std() / problems**0.5
    assert share.std() / problems**0.5 < 0.02


def test_more_particles_less_bias():
    """A likelihood that is wrong on the way is repaired by weights: the error of the share falls with their number."""
    m = Measurement(FIRST, torch.full((1, 1), 0.1, dtype=DOUBLE), 0.3)
    exact = exact_posterior(PAIR, m).log_weights[0, 1].exp()
    likelihood = Likelihood(PAIR.denoiser(Q), Q, m, gaussian_spread(0.2))
    errors = []
    for particles in (2, 8, 64):
        cloud = final(likelihood, normal(12800, 2), grid(1000, 50), particles)
        share = ((cloud.x[:, 1] > 0).reshape(particles, -1) * cloud.log_weights.exp()).sum(0)
        errors.append((share.mean() - exact).item())
    spread = share.std().item() / len(share) ** 0.5
    assert abs(errors[2]) < 4 * spread < abs(errors[0])
    assert abs(errors[0]) > abs(errors[1])


def test_resampling_keeps_every_particle_its_share():
    n, problems = 16, 4000
    log_weights = (2 * normal(n, 1)).expand(n, problems).log_softmax(0)
    rows, after = _resampled(log_weights, seeded())
    rows = rows.reshape(n, problems)
    assert torch.equal(rows % problems, torch.arange(problems).expand(n, problems))  # nobody changes the problem
    counts = torch.stack([(rows // problems == k).sum(0) for k in range(n)])
    expected = n * log_weights.exp()
    assert ((counts == expected.floor()) | (counts == expected.ceil())).all()
    assert ((counts - expected).double().mean(1).abs() < 4 * 0.5 / problems**0.5).all()
    torch.testing.assert_close(after.exp(), torch.full((n, problems), 1 / n, dtype=DOUBLE))


def test_resampling_leaves_good_weights_alone():
    good, bad = torch.tensor([0.3, 0.2, 0.3, 0.2]), torch.tensor([0.97, 0.01, 0.01, 0.01])
    log_weights = torch.stack([good, bad], 1).double().log()
    rows, after = _resampled(log_weights, seeded())
    rows = rows.reshape(4, 2)
    assert rows[:, 0].tolist() == [0, 2, 4, 6] and torch.equal(after[:, 0], log_weights[:, 0])
    assert (rows[:3, 1] == 1).all() and torch.allclose(after[:, 1].exp(), torch.full((4,), 0.25).double())


def test_a_cloud_counts_and_draws_by_weight():
    weights = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.0, 0.25], [0.0, 0.25]], dtype=DOUBLE)
    x = torch.arange(8.0).reshape(8, 1)  # particle p of problem i is row 2 p + i
    cloud = Particles(x, 0, weights.log(), torch.zeros(2))
    torch.testing.assert_close(cloud.effective(), torch.tensor([2.0, 4.0], dtype=DOUBLE))
    drawn = cloud.draw(4000, seeded())
    assert drawn.shape == (4000, 2, 1)
    assert set(drawn[:, 0, 0].tolist()) == {0.0, 2.0} and set(drawn[:, 1, 0].tolist()) == {1.0, 3.0, 5.0, 7.0}
    assert abs((drawn[:, 0] == 2).double().mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_single_precision_particles_follow_double():
    m = Measurement(FIRST, torch.full((1, 1), 0.1), 0.3)
    x_T = normal(8, 2)
    laws = [Likelihood(PAIR.denoiser(Q), Q, m, gaussian_spread())(x, 400) for x in (x_T.float(), x_T)]
    assert laws[0].gradient.dtype == torch.float32 and laws[0].log_prob.dtype == DOUBLE
    torch.testing.assert_close(laws[0].log_prob, laws[1].log_prob, rtol=1e-5, atol=1e-5)


def test_the_number_of_particles_must_divide_the_rows():
    likelihood = Likelihood(PAIR.denoiser(Q), Q, Measurement(FIRST, normal(1, 1), 0.1), gaussian_spread())
    with pytest.raises(ValueError, match="particles = 3: expected a divisor of the 8 rows of x_T"):
        twisted_walk(likelihood, normal(8, 2), grid(1000, 10), 3)
    with pytest.raises(ValueError, match=r"particles = 1: expected .* at least 2"):
        twisted_walk(likelihood, normal(8, 2), grid(1000, 10), 1)
