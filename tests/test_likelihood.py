"""Chapter 5: divergences, the density of the probability-flow model, the continuous bound and dequantization."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.testing import assert_close

from ddpm_nb.bound import bound_terms, density_decoder, discretized_decoder
from ddpm_nb.denoiser import EPS, SCORE, V
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import CorrelatedGaussian, GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.likelihood import (
    adaptively,
    continuous_bound,
    dequantized,
    divergence,
    hutchinson,
    network_eps,
    ode_log_prob,
    score_of_eps,
    signs,
)
from ddpm_nb.nets import time_embedding
from ddpm_nb.schedule import cosine_schedule
from ddpm_nb.sde import cosine_sde, exact_score, linear_sde, observed

DATA = GaussianMixture(torch.tensor([0.35, 0.65]), torch.tensor([[-1.0], [0.8]]), torch.tensor([0.04, 0.09]))
PLANE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, -0.5], [0.9, 0.4]]), torch.tensor([[0.06, 0.1], [0.2, 0.08]])
)
SDE = linear_sde()


def times(u: float, v: float, n: int) -> torch.Tensor:
    return torch.linspace(u, v, n + 1, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def power(sizes, errors) -> float:
    return float(stats.linregress(np.log(sizes), np.log(errors)).slope)


def test_divergence_is_the_trace_of_the_jacobian():
    def field(x, u):
        return torch.stack(
            [x[:, 0] ** 2 * x[:, 1], u * x[:, 0] + x[:, 1].sin() * x[:, 2], x[:, 0] - x[:, 2] ** 3], dim=1
        )

    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = 2 * x[:, 0] * x[:, 1] + x[:, 1].cos() * x[:, 2] - 3 * x[:, 2] ** 2
    with torch.no_grad():
        torch.testing.assert_close(divergence(field, x, 0.3), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("data", [DATA, PLANE], ids=["line", "plane"])
def test_log_density_of_the_flow_is_that_of_the_mixture(data):
    x, score = data.sample(50, torch.Generator().manual_seed(2)), exact_score(SDE, data)
    sizes, errors = [64, 128, 256], []
    for n in sizes:
        found = ode_log_prob(SDE, score, x, times(0, 1, n), prior=SDE.law(data, 1.0))
        errors.append((found - data.log_prob(x)).abs().mean().item())
    assert errors[-1] < 1e-3
    assert power(sizes, errors) == pytest.approx(-2, abs=0.25)
    standard = Gaussian(torch.zeros(1, data.means.shape[1], dtype=torch.float64), 1.0)
    assert (ode_log_prob(SDE, score, x, times(0, 1, 256), standard) - data.log_prob(x)).abs().max() < 0.05


# --- Hutchinson's estimate and adaptive steps ---------------------------------------------------------------------


def bent(x: torch.Tensor, u: float) -> torch.Tensor:
    """A field whose Jacobian is full and depends on x."""
    a, b, c = x.unbind(1)
    return torch.stack([a**2 * b + c.sin(), u * a + b.sin() * c, a * b - c**3], dim=1)


def test_hutchinson_averaged_over_all_signs_is_the_divergence():
    x = torch.randn(5, 3, dtype=torch.float64, generator=seeded())
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    found = torch.stack([hutchinson(probe.expand(5, 3))(bent, x, 0.3) for probe in every])
    assert_close(found.mean(0), divergence(bent, x, 0.3), rtol=1e-12, atol=1e-12)
    assert (found.std(0) > 0.1).all()  # each alone is not


def test_signs_are_fair_and_independent():
    probe = signs(torch.zeros(40_000, 3, dtype=torch.float32), seeded())
    assert probe.dtype == torch.float32
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    assert (probe.mean(0).abs() < 4 / 200).all()
    products = torch.stack([probe[:, 0] * probe[:, 1], probe[:, 1] * probe[:, 2]])
    assert (products.mean(1).abs() < 4 / 200).all()


def test_divergence_of_images_is_that_of_their_vectors():
    weight = torch.randn(8, 8, dtype=torch.float64, generator=seeded())
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, generator=seeded(1))

    def field(x, u):
        return (x.flatten(1) @ weight).sin().reshape(x.shape)

    flat = divergence(lambda y, u: field(y.reshape(x.shape), u).flatten(1), x.flatten(1), 0.0)
    assert_close(divergence(field, x, 0.0), flat, rtol=1e-12, atol=1e-12)
    assert hutchinson(signs(x))(field, x, 0.0).shape == (2,)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
def test_adaptive_steps_reach_their_tolerance_in_both_directions(start, stop):
    x, exact = torch.ones(1, 1, dtype=torch.float64), math.exp(10 * (stop**2 - start**2) / 2)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = adaptively(tolerance)(lambda x, u: 10 * u * x, x, times(start, stop, 1)).item()
        errors.append(abs(found / exact - 1))
        assert errors[-1] < 20 * tolerance * max(1, 1 / exact)
    assert errors[-1] < errors[0]
    with pytest.raises(ValueError, match="tolerance = 0"):
        adaptively(0.0)


@pytest.mark.parametrize("data", [DATA, PLANE], ids=["line", "plane"])
def test_adaptive_log_density_is_that_of_the_mixture(data):
    x, score = data.sample(50, seeded(2)), exact_score(SDE, data)
    prior = SDE.law(data, 1.0)
    found = ode_log_prob(SDE, score, x, times(0, 1, 1), prior, solve=adaptively(1e-8))
    assert (found - data.log_prob(x)).abs().max() < 1e-6
    # With random probes the error has mean 0: on a line there is nothing to estimate.
    rows = x.repeat(40, 1)
    guess = ode_log_prob(SDE, score, rows, times(0, 1, 1), prior, hutchinson(signs(rows, seeded())), adaptively(1e-6))
    error = (guess - data.log_prob(rows)).reshape(40, 50)
    if data is DATA:
        assert error.abs().max() < 1e-4
    else:
        assert error.std() > 0.01
        means = error.mean(0)
        assert abs(means.mean().item()) < 4 * error.std().item() / math.sqrt(error.numel())


def test_log_density_in_784_dimensions_by_one_probe_for_each_sample():
    root = torch.randn(784, 784, dtype=torch.float64, generator=seeded()) / 28
    data = CorrelatedGaussian.of(root[0], root @ root.mT + 0.1 * torch.eye(784, dtype=torch.float64))
    x, score = data.sample(32, seeded(1)), exact_score(SDE, data)
    probe = signs(x, seeded(2))
    found = ode_log_prob(SDE, score, x, times(0, 1, 100), SDE.law(data, 1.0), hutchinson(probe))
    error = found - data.log_prob(x)
    assert abs(error.mean().item()) < 4 * error.std().item() / math.sqrt(32)
    assert error.std().item() < 40  # of the size of the off-diagonal entries, not of the dimension


# --- networks between their steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [EPS, V, SCORE], ids=str)
def test_a_network_is_asked_at_uT_and_its_answer_is_converted_at_u(target):
    T, sde = 50, cosine_sde()
    data = PLANE

    def network(x, t):
        assert_close(t, torch.full_like(t, float(t[0])))
        chain = GaussianDiffusion(observed(sde, [t[0].item() / T]))
        x_0 = data.denoiser(chain)(x, 1)
        signal, noise = chain.schedule.alpha_bar(1).sqrt(), chain.schedule.level(1).noise
        return target.target(chain, x_0, (x - signal * x_0) / noise, 1)

    eps = network_eps(sde, network, target, T)
    x = PLANE.sample(20, seeded())
    for u in (0.1, 0.333, 0.98):
        assert_close(score_of_eps(sde, eps)(x, u), exact_score(sde, data)(x, u), rtol=1e-7, atol=1e-7)


def test_between_two_steps_the_embedding_lies_between_them():
    whole, between = time_embedding(torch.tensor([7.0, 8.0]), 32), time_embedding(torch.tensor([7.5]), 32)
    assert_close(time_embedding(torch.tensor([7, 8]), 32), whole)
    assert (between - whole.mean(0)).norm() < 0.3 * (whole[0] - whole[1]).norm()


# --- the bound of infinitely many steps -----------------------------------------------------------------------------


def quadratic_grid(u: float, v: float, n: int) -> torch.Tensor:
    return torch.linspace(math.sqrt(u), math.sqrt(v), n + 1, dtype=torch.float64) ** 2


def exact_eps(data: GaussianMixture):
    score = exact_score(SDE, data)
    return lambda x, u: -math.sqrt(-math.expm1(SDE.log_alpha_bar(u))) * score(x, u)


def test_the_diffusion_term_of_gaussian_data_is_its_integral():
    """For N(0, V) the least noise error is V ᾱ/(V ᾱ + 1 − ᾱ) = 1/(1 + e^γ/V): ½ ∫ dγ of it in closed form."""
    V_0, u, v, n = 0.3, 0.05, 0.9, 4000
    data = GaussianMixture([1.0], [[0.0]], [V_0])
    terms = continuous_bound(
        SDE, exact_eps(data), data.sample(n, seeded()), quadratic_grid(u, v, 200), density_decoder, seeded(1)
    )

    def primitive(u):
        lost = SDE.log_alpha_bar(u)
        gamma = math.log(-math.expm1(lost)) - lost
        return gamma - math.log(V_0 + math.exp(gamma))

    exact = 0.5 * (primitive(v) - primitive(u))
    found = terms.steps.sum(0)
    assert abs(found.mean().item() - exact) < 4 * found.std().item() / math.sqrt(n) + 1e-3


def test_the_continuous_bound_is_the_limit_of_the_discrete_ones_and_lies_below_them():
    """Same ends, the chain ever finer: the excess over the limit falls like one over the number of steps."""
    n, start, stop = 20_000, 0.05, 1.0
    x_0, eps, found = DATA.sample(n, seeded()), exact_eps(DATA), []
    terms = continuous_bound(SDE, eps, x_0, quadratic_grid(start, stop, 200), density_decoder, seeded(1))
    limit = terms.total.mean().item()
    error = terms.total.std().item() / math.sqrt(n)
    sizes = (20, 40, 80)
    for size in sizes:
        q = GaussianDiffusion(observed(SDE, quadratic_grid(start, stop, size).tolist()))
        found.append(bound_terms(q, DATA.denoiser(q), x_0, seeded(2), density_decoder).total.mean().item() - limit)
    assert found[-1] > 4 * error
    assert power(sizes, found) == pytest.approx(-1, abs=0.25)
    entropy = DATA.entropy(120).item()
    assert limit > entropy - 4 * error


def test_the_bound_depends_on_the_schedule_through_its_ends_only():
    """Another rate between the same levels of noise changes no term."""
    n, x_0 = 20_000, DATA.sample(20_000, seeded())
    cosine = cosine_sde()

    def at(sde, level):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sde.log_alpha_bar(middle) > level else (low, middle)
        return low

    totals = []
    for sde in (SDE, cosine):
        score = exact_score(sde, DATA)
        ends = at(sde, -0.05), at(sde, -8.0)
        terms = continuous_bound(
            sde,
            lambda x, u, s=sde, f=score: -math.sqrt(-math.expm1(s.log_alpha_bar(u))) * f(x, u),
            x_0,
            quadratic_grid(*ends, 300),
            density_decoder,
            seeded(1),
        )
        totals.append(terms.total)
    gap = totals[0] - totals[1]
    assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(n) + 2e-3


def test_the_reconstruction_and_the_prior_are_those_of_chapter_4():
    q = GaussianDiffusion(cosine_schedule(100))
    sde = cosine_sde()
    grey = torch.randint(0, 17, (6, 1, 2, 2), generator=seeded()).double() / 8 - 1

    def eps(x, u):
        return torch.zeros_like(x)

    decoder = discretized_decoder(17)
    ours = continuous_bound(sde, eps, grey, times(0.01, 0.99, 5), decoder, seeded(1))
    last = GaussianDiffusion(observed(sde, [0.99]))
    chain = bound_terms(last, lambda x, t: x, grey, seeded(1))
    assert_close(ours.prior, chain.prior)
    generator = seeded(1)
    noise = [torch.randn(grey.shape, dtype=torch.float64, generator=generator) for _ in range(6)][-1]
    x_1 = q.diffuse(grey, noise, 1)
    assert_close(
        ours.reconstruction, -decoder(grey, Gaussian(x_1 / q.schedule.alpha_bar(1).sqrt(), q.schedule.beta(1)))
    )


# --- data with a few levels -----------------------------------------------------------------------------------------


def test_dequantized_values_fill_their_cells_evenly():
    grey = torch.linspace(-1, 1, 17, dtype=torch.float64).repeat(2000)[:, None]
    spread, log_volume = dequantized(grey, 17, seeded())
    assert log_volume == pytest.approx(math.log(1 / 8))
    offset = ((spread - grey) / (1 / 8) + 0.5)[:, 0].numpy()
    assert stats.kstest(offset, "uniform").pvalue > 1e-3
    assert dequantized(grey.reshape(-1, 2, 17), 17)[1] == pytest.approx(34 * math.log(1 / 8))
    with pytest.raises(ValueError, match="levels = 1"):
        dequantized(grey, 1)


def test_the_cost_of_spread_values_is_above_that_of_the_cells_by_jensen():
    """With the exact density: E[−log p(y) − log width] against −Σ P log P of the cells, by quadrature."""
    levels, width = 9, 0.25
    law = GaussianMixture([0.5, 0.5], [[-0.4], [0.3]], [0.05, 0.02])
    values = np.linspace(-1, 1, levels)

    def density(y):
        return law.log_prob(torch.tensor([[y]], dtype=torch.float64)).exp().item()

    masses = np.array([integrate.quad(density, v - width / 2, v + width / 2)[0] for v in values])
    picked = torch.tensor(np.random.default_rng(0).choice(values, 40_000, p=masses / masses.sum()))[:, None]
    spread, log_volume = dequantized(picked, levels, seeded())
    cost = -law.log_prob(spread) - log_volume
    cells = -(masses / masses.sum() * np.log(masses)).sum()
    curves = [integrate.quad(lambda y: -math.log(density(y)) / width, v - width / 2, v + width / 2)[0] for v in values]
    exact = (masses / masses.sum() * (np.array(curves) - math.log(width))).sum()
    assert abs(cost.mean().item() - exact) < 4 * cost.std().item() / 200
    assert exact > cells + 0.01
