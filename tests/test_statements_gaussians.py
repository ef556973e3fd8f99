"""Statements of the documents about Gaussian laws and divergences that no other test decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor, distributions
from torch.testing import assert_close

from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian, kl_multivariate, observe, product

F64 = torch.float64


def density(law: Gaussian, x: float) -> float:
    return law.log_prob(torch.tensor(x, dtype=F64)).exp().item()


def tables(rng, n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw n random pairs of laws on six values."""
    pairs = torch.rand(n, 2, 6, generator=rng(seed), dtype=F64) + 1e-3
    p, q = (pairs / pairs.sum(2, keepdim=True)).unbind(1)
    return p, q


@pytest.mark.parametrize(("mean", "var"), [(0.0, 1.0), (1.5, 0.49), (-2.0, 9.0)])
def test_the_density_is_symmetric_and_has_mass_one_and_the_stated_moments(mean, var):
    law, root = Gaussian(mean, var), math.sqrt(var)

    def moment(f) -> float:
        return integrate.quad(
            lambda x: f(x) * density(law, x), mean - 14 * root, mean + 14 * root, epsabs=1e-13, points=[mean]
        )[0]

    assert moment(lambda x: 1.0) == pytest.approx(1, abs=1e-11)
    assert moment(lambda x: x - mean) == pytest.approx(0, abs=1e-11)
    assert moment(lambda x: (x - mean) ** 2) == pytest.approx(var, rel=1e-11)
    for shift in (0.3, 1.7, 4.0):
        printed = math.exp(-(shift**2) / (2 * var)) / math.sqrt(2 * math.pi * var)
        assert density(law, mean + shift) == pytest.approx(printed, rel=1e-13)
        assert density(law, mean - shift) == pytest.approx(printed, rel=1e-13)


def test_a_multiple_of_the_identity_makes_the_coordinates_independent(draw):
    mean, x = draw(4, 3, seed=1), 2 * draw(4, 3, seed=2)
    joint = distributions.MultivariateNormal(mean, 0.8 * torch.eye(3, dtype=F64)).log_prob(x)
    each = [Gaussian(mean[:, i], 0.8).log_prob(x[:, i]) for i in range(3)]
    assert_close(Gaussian(mean, 0.8).log_prob(x), joint, rtol=1e-13, atol=1e-13)
    assert_close(sum(each), joint, rtol=1e-13, atol=1e-13)
    # With a covariance off the diagonal the density does not factorize.
    linked = distributions.MultivariateNormal(mean, 0.8 * torch.eye(3, dtype=F64) + 0.1).log_prob(x)
    assert (linked - joint).abs().min() > 1e-3


@pytest.mark.parametrize("constant", [-3.0, 0.0, 5.0])
def test_a_constant_in_the_exponent_is_a_factor_that_changes_no_moment(constant):
    a, b = Gaussian(torch.tensor([0.4], dtype=F64), 0.3), Gaussian(torch.tensor([-1.0], dtype=F64), 1.1)
    law, log_mass = product(a, b)

    def raw(k: int) -> float:
        def integrand(x: float) -> float:
            point = torch.tensor([x], dtype=F64)
            return x**k * math.exp((a.log_prob(point) + b.log_prob(point)).item() + constant)

        return integrate.quad(integrand, -9, 9, epsabs=1e-13, epsrel=1e-13)[0]

    mass, mean = raw(0), raw(1) / raw(0)
    assert mass == pytest.approx(math.exp(constant) * log_mass.exp().item(), rel=1e-10)
    assert mean == pytest.approx(law.mean.item(), rel=1e-10)
    assert math.sqrt(raw(2) / mass - mean**2) == pytest.approx(law.var.sqrt().item(), rel=1e-10)


def test_kl_is_no_metric(draw):
    narrow, wide = Gaussian(0.0, 0.3), Gaussian(0.0, 1.7)
    assert narrow.kl(wide) > 0 and wide.kl(narrow) > 0
    assert wide.kl(narrow) > 2 * narrow.kl(wide)  # not symmetric
    for a in (0.1, 1.0, 8.0):
        start, middle, end = (Gaussian(mean, 1.0) for mean in (0.0, a / 2, a))
        assert start.kl(end).item() == pytest.approx(a**2 / 2, rel=1e-12)
        assert (start.kl(middle) + middle.kl(end)).item() == pytest.approx(a**2 / 4, rel=1e-12)  # the detour is shorter


def test_multivariate_kl_is_the_mean_log_ratio(draw):
    # The log ratio is a quadratic polynomial: four Gauss-Hermite nodes a side integrate it exactly.
    mean_1, mean_2, roots = draw(3, seed=1), draw(3, seed=2), draw(2, 3, 3, seed=3)
    cov_1, cov_2 = roots @ roots.mT + 0.2 * torch.eye(3, dtype=F64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    z = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(-1, 3))
    w = torch.from_numpy(np.einsum("i,j,k->ijk", weights, weights, weights).reshape(-1)) / (2 * math.pi) ** 1.5
    x = (mean_1 + z @ torch.linalg.cholesky(cov_1).mT).numpy()
    ratio = stats.multivariate_normal(mean_1, cov_1).logpdf(x) - stats.multivariate_normal(mean_2, cov_2).logpdf(x)
    expected = (w * torch.from_numpy(ratio)).sum()
    assert_close(kl_multivariate(mean_1, cov_1, mean_2, cov_2), expected, rtol=1e-11, atol=1e-11)


def test_the_gaussian_has_the_highest_entropy_at_its_variance():
    unit, root = Gaussian(0.0, 1.0), math.sqrt(3)
    part = stats.norm(0.9, math.sqrt(1 - 0.81))
    others = {
        "logistic": (stats.logistic(scale=root / math.pi).pdf, -25, 25),
        "Laplace": (stats.laplace(scale=1 / math.sqrt(2)).pdf, -25, 25),
        "uniform": (stats.uniform(-root, 2 * root).pdf, -root, root),
        "two modes": (lambda x: (part.pdf(x) + part.pdf(-x)) / 2, -6, 6),
        "exponential": (stats.expon(-1).pdf, -1, 40),
    }
    for name, (pdf, low, high) in others.items():
        x = np.linspace(low, high, 60_001)
        p = pdf(x)
        log_p, log_g = np.log(np.maximum(p, 1e-300)), unit.log_prob(torch.from_numpy(x)).numpy()
        var, entropy, kl = (integrate.simpson(p * value, x=x) for value in (x**2, -log_p, log_p - log_g))
        assert var == pytest.approx(1, abs=1e-5), name
        assert entropy < unit.entropy().item() - 0.01, name
        assert entropy + kl == pytest.approx(unit.entropy().item(), abs=1e-5), name  # what is lacking is the KL


def test_an_expectation_is_an_integral_or_a_sum_and_the_width_belongs_to_the_first_only():
    law = GaussianMixture([0.3, 0.7], [[-1.0], [2.0]], [0.5, 0.2])

    def integral(g) -> float:
        return integrate.quad(
            lambda x: g(x) * law.log_prob(torch.tensor([[x]], dtype=F64)).exp().item(), -8, 8, points=[-1.0, 2.0]
        )[0]

    assert integral(lambda x: x) == pytest.approx(law.mean().item(), rel=1e-9)
    grid = torch.arange(-8, 8, 0.01, dtype=F64)[:, None]
    bare = (grid[:, 0] * law.log_prob(grid).exp()).sum().item()
    assert bare * 0.01 == pytest.approx(law.mean().item(), rel=1e-9)
    assert bare == pytest.approx(100 * law.mean().item(), rel=1e-9)  # without the width the grid's spacing counts
    # For a law on a countable set a width would spoil the sum: a fair die's mean is 7/2 as it stands.
    draws = torch.randint(1, 7, (40_000,), generator=torch.Generator().manual_seed(0)).double()
    die = sum(face / 6 for face in range(1, 7))
    assert abs(draws.mean() - die) < 4 * draws.std() / math.sqrt(len(draws))


@pytest.mark.parametrize("g", [torch.cos, torch.exp, torch.square])
def test_the_mean_of_a_function_needs_no_law_of_its_values(g):
    law = GaussianMixture([0.3, 0.7], [[-1.0], [2.0]], [0.5, 0.2])
    by_sum = expectation(law, lambda x: g(x[:, 0])).item()

    def integrand(x: float) -> float:
        point = torch.tensor([[x]], dtype=F64)
        return (g(point[0, 0]) * law.log_prob(point).exp()).item()

    by_integral = integrate.quad(integrand, -9, 9, points=[-1.0, 2.0], epsabs=1e-12)[0]
    values = g(law.sample(40_000, torch.Generator().manual_seed(1))[:, 0])  # draws of g(X), averaged as they are
    assert by_sum == pytest.approx(by_integral, rel=1e-9)
    assert abs(values.mean() - by_integral) < 4 * values.std() / math.sqrt(len(values))


def test_bayes_rule_for_events_and_the_conditional_probability_as_a_share(rng):
    # A: X > 0.5, B: Y > 1, for X ~ N(0.2, 0.8) and Y = 0.7 X + N(0, 0.3).
    prior, factor, noise = Gaussian(0.2, 0.8), 0.7, 0.3

    def beyond(law: Gaussian, edge: float) -> float:
        return float(special.ndtr((law.mean.item() - edge) / law.var.sqrt().item()))

    def likelihood(x: float) -> float:
        return beyond(Gaussian(factor * x, noise), 1.0)

    def posterior(y: float) -> float:
        return beyond(observe(prior, factor, noise, torch.tensor(y, dtype=F64)), 0.5)

    evidence = Gaussian(factor * 0.2, factor**2 * 0.8 + noise)
    p_a, p_b = beyond(prior, 0.5), beyond(evidence, 1.0)
    from_a = integrate.quad(lambda x: density(prior, x) * likelihood(x), 0.5, 12, epsabs=1e-13)[0]
    from_b = integrate.quad(lambda y: density(evidence, y) * posterior(y), 1.0, 12, epsabs=1e-13)[0]
    b_given_a, a_given_b = from_a / p_a, from_b / p_b
    assert a_given_b == pytest.approx(b_given_a * p_a / p_b, rel=1e-10)

    n = 100_000
    x = Gaussian(torch.full((n,), 0.2, dtype=F64), 0.8).sample(rng(0))
    in_a, in_b = x > 0.5, Gaussian(factor * x, noise).sample(rng(1)) > 1.0
    for share, condition, expected in ((in_a, in_b, a_given_b), (in_b, in_a, b_given_a)):
        found, trials = share[condition].double().mean().item(), int(condition.sum())
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / trials)
        both = (in_a & in_b).double().mean() / condition.double().mean()
        assert found == pytest.approx(both.item(), rel=1e-12)


def test_discrete_kl_is_the_sum_and_tends_to_the_integral_as_bins_shrink(rng):
    p, q = tables(rng)
    printed = (p * (p / q).log()).sum(1)
    oracle = distributions.kl_divergence(distributions.Categorical(p), distributions.Categorical(q))
    assert_close(printed, oracle, rtol=1e-12, atol=1e-13)
    a, b = Gaussian(0.3, 0.5), Gaussian(-0.2, 0.9)
    gaps = []
    for bins in (8, 80, 800):
        edges = np.linspace(-8, 8, bins + 1)
        mass_a, mass_b = (np.diff(special.ndtr((edges - law.mean.item()) / law.var.sqrt().item())) for law in (a, b))
        gaps.append(a.kl(b).item() - special.rel_entr(mass_a, mass_b).sum())
    assert gaps[0] > gaps[1] > gaps[2] > 0  # coarser bins know less
    assert gaps[2] < 1e-4


def test_kl_is_cross_entropy_minus_entropy(rng):
    p, q = tables(rng, seed=1)
    kl = torch.from_numpy(special.rel_entr(p.numpy(), q.numpy()).sum(1))
    entropy = distributions.Categorical(p).entropy()
    assert_close(-(p * q.log()).sum(1) - entropy, kl, rtol=1e-12, atol=1e-13)
    a, b = Gaussian(0.3, 0.5), Gaussian(-0.2, 0.9)
    log_b = integrate.quad(lambda x: density(a, x) * b.log_prob(torch.tensor(x, dtype=F64)).item(), -9, 9, epsabs=1e-13)
    assert -log_b[0] - a.entropy().item() == pytest.approx(a.kl(b).item(), rel=1e-10)


def test_kl_is_never_negative_and_zero_only_between_equals(rng, draw):
    p, q = tables(rng, seed=2)
    assert special.rel_entr(p.numpy(), q.numpy()).sum(1).min() > 0
    assert special.rel_entr(p.numpy(), p.numpy()).sum(1).max() == 0
    a = Gaussian(draw(200, 2, seed=1), draw(200, 2, seed=2).exp())
    b = Gaussian(draw(200, 2, seed=3), draw(200, 2, seed=4).exp())
    assert a.kl(b).min() > 0
    assert a.kl(a).abs().max() == 0
    assert a.kl(Gaussian(a.mean, a.var * (1 + 1e-6))).min() > 0  # even the smallest difference shows
