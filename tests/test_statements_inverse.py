"""Chapter 8: statements of the documents about a measurement, its noise as a diffusion, and the reverse of that."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.inverse import Matrix, Measurement, exact_posterior, measure
from ddpm_nb.sde import Process, euler_maruyama, fokker_planck_residual

DOUBLE = torch.float64
SIGMA = 0.4
SLANTED = Matrix(torch.tensor([[0.8, -0.6]], dtype=DOUBLE))
PRIOR = GaussianMixture(
    torch.tensor([0.6, 0.4]), torch.tensor([[-1.0, 0.3], [0.9, -0.7]]), torch.tensor([[0.05, 0.1], [0.08, 0.04]])
)
PATH = Process(lambda x, u: torch.zeros_like(x), lambda u: SIGMA, arrow=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(u: float, v: float, n: int) -> torch.Tensor:
    return torch.linspace(u, v, n + 1, dtype=DOUBLE)


def law(u: float, prior: GaussianMixture = PRIOR) -> GaussianMixture:
    """The law of A(X) + σ_y W_u: A m_k and A C_k Aᵀ + σ_y² u."""
    A = SLANTED.entries
    clean = (A.square() * prior.variances.reshape(len(prior.means), -1)).sum(1)
    return GaussianMixture(prior.weights, prior.means @ A.mT, clean + SIGMA**2 * u)


def p_value(x: torch.Tensor, exact: GaussianMixture) -> float:
    def cdf(values):
        parts = zip(exact.weights.tolist(), exact.means[:, 0].tolist(), exact.variances.tolist(), strict=True)
        return sum(w * stats.norm.cdf(values, mean, var**0.5) for w, mean, var in parts)

    return stats.kstest(x[:, 0].numpy(), cdf).pvalue


def test_the_path_of_the_noise_obeys_the_heat_equation():
    """L-inv-sde: without drift and with g = σ_y the density of A(X) + σ_y W_u solves Fokker–Planck."""

    def density(x, u):
        return law(u).log_prob(x).exp()[:, None]

    x, widths = torch.linspace(-2.5, 2.5, 40, dtype=DOUBLE)[:, None], 0.02 / 2 ** np.arange(5)
    for u in (0.2, 0.9):
        residual = [float(fokker_planck_residual(PATH, density, x, u, h).abs().max()) for h in widths]
        assert stats.linregress(np.log(widths), np.log(residual)).slope == pytest.approx(2, abs=0.05)
        wrong = Process(PATH.drift, lambda u: 1.1 * SIGMA, arrow=1)
        assert fokker_planck_residual(wrong, density, x, u, 1e-3).abs().max() > 100 * residual[-1]


def test_the_path_ends_in_the_law_of_the_measurement():
    """L-inv-end: both against the distribution function of A(X) + N(0, σ_y²), and half of the path is not enough."""
    n = 20_000
    x = PRIOR.sample(n, seeded())
    path = dict(euler_maruyama(PATH, SLANTED(x), times(0, 1, 8), seeded(1)))
    for y in (path[1.0], measure(SLANTED, x, SIGMA, seeded(2)).y):
        assert p_value(y, law(1.0)) > 1e-3
        noise = (y - SLANTED(x)) / SIGMA
        assert stats.kstest(noise[:, 0].numpy(), "norm").pvalue > 1e-3
        assert abs(noise.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert p_value(path[0.5], law(1.0)) < 1e-6
    assert p_value(path[0.5], law(0.5)) > 1e-3


def test_the_noise_on_the_path_grows_in_time_and_is_markov():
    """L-inv-dial: Cov = σ_y² min(u, v); of two earlier times only the later one helps to predict."""
    n = 100_000
    steps = euler_maruyama(PATH, torch.zeros(n, 1, dtype=DOUBLE), times(0, 1, 8), seeded())
    path = torch.cat([x for _, x in steps], dim=1)
    u = times(0, 1, 8)[1:]
    products = path[:, :, None] * path[:, None]
    gap = products.mean(0) - SIGMA**2 * torch.minimum(u[:, None], u)
    assert (gap / (products.std(0) / n**0.5)).abs().max() < 4.5

    def coefficients(late):
        """Of the regression of ``late`` on the times 2/8 and 5/8, with their standard errors."""
        earlier = path[:, [1, 4]]
        inverse = torch.linalg.inv(earlier.mT @ earlier)
        found = inverse @ earlier.mT @ late
        return found, ((late - earlier @ found).var() * inverse.diagonal()).sqrt()

    found, error = coefficients(path[:, 7])
    assert ((found - torch.tensor([0.0, 1.0], dtype=DOUBLE)).abs() / error).max() < 4
    found, error = coefficients(path[:, 7] + path[:, 0])  # a state that remembers the first step
    assert found[0] / error[0] > 10


def test_the_reversed_path_removes_the_noise_and_does_not_invert_the_operator():
    """L-inv-rev: it ends in the law of A(X) given y, by moments; across, the posterior has the prior's spread."""
    v, y = 0.3, 0.9
    prior = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -0.2]], dtype=DOUBLE), torch.tensor([v], dtype=DOUBLE))
    seen, unseen = SLANTED.entries[0], torch.tensor([0.6, 0.8], dtype=DOUBLE)
    posterior = exact_posterior(prior, Measurement(SLANTED, torch.tensor([[y]], dtype=DOUBLE), SIGMA))
    mean, cov = posterior.mean()[0], posterior.covariance()[0]
    exact = (seen @ mean).item(), (seen @ cov @ seen).item()

    def drift(x, u):  # f − g² ∇log p_u with f = 0, for du < 0
        one = law(u, prior)
        return -(SIGMA**2) * (one.means - x) / one.variances

    sizes, errors = [50, 100, 200, 400], []
    for n in sizes:
        at, var = y, 0.0
        for u, w in pairwise(times(1, 0, n).tolist()):
            low, high = drift(torch.tensor([[0.0], [1.0]], dtype=DOUBLE), u).flatten().tolist()
            at, var = at + (low + (high - low) * at) * (w - u), var * (1 + (high - low) * (w - u)) ** 2
            var += SIGMA**2 * (u - w)
        errors.append(math.hypot(at - exact[0], var - exact[1]))
    assert errors[-1] < 1e-3
    assert stats.linregress(np.log(sizes), np.log(errors)).slope == pytest.approx(-1, abs=0.1)

    across = Gaussian((unseen @ mean).item(), (unseen @ cov @ unseen).item())
    assert across.mean.item() == pytest.approx(float(unseen @ prior.means[0]), abs=1e-12)
    assert across.var.item() == pytest.approx(v, abs=1e-12)
    assert exact[1] < 0.5 * v
