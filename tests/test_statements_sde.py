"""Chapter 5: statements of the documents about the SDE that the tests of the package do not decide on their own."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian, observe
from ddpm_nb.likelihood import divergence
from ddpm_nb.sampling import Ancestral
from ddpm_nb.schedule import NoiseSchedule, linear_schedule
from ddpm_nb.sde import (
    Process,
    chain_sde,
    cosine_sde,
    euler_maruyama,
    exact_score,
    fokker_planck_residual,
    heun,
    linear_sde,
    observed,
    solve_ode,
)

DOUBLE = torch.float64
SDE = linear_sde()
LINE = GaussianMixture(torch.tensor([0.35, 0.65]), torch.tensor([[-1.0], [0.8]]), torch.tensor([0.04, 0.09]))
PLANE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, -0.5], [0.9, 0.4]]), torch.tensor([[0.06, 0.1], [0.2, 0.08]])
)
ONE = GaussianMixture(torch.ones(1), torch.tensor([[0.7]]), torch.tensor([0.3]))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)[:, None]


def times(u: float, v: float, n: int) -> torch.Tensor:
    return torch.linspace(u, v, n + 1, dtype=DOUBLE)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def end(steps):
    *_, (_, x) = steps
    return x


def power(sizes, errors) -> float:
    return float(stats.linregress(np.log(sizes), np.log(errors)).slope)


def affine(function) -> tuple[float, float]:
    """Value at 0 and slope of a map that is affine in x."""
    low, high = function(column(0.0, 1.0)).flatten().tolist()
    return low, high - low


def moments(process: Process, mean: float, var: float, grid: torch.Tensor) -> tuple[float, float]:
    """Mean and variance of Euler–Maruyama for an affine drift, by recursion and without sampling."""
    for u, v in pairwise(grid.tolist()):
        shift, slope = affine(lambda x, u=u: process.drift(x, u))
        mean += (shift + slope * mean) * (v - u)
        var = var * (1 + slope * (v - u)) ** 2 + process.diffusion(u) ** 2 * abs(v - u)
    return mean, var


# --- the forward equation and its limit ---------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [linear_sde(), cosine_sde(), linear_sde(3, 3)], ids=["linear", "cosine", "constant"])
def test_drift_and_noise_of_the_vp_sde_balance_at_unit_variance_only(sde):
    """R-17: dv/du = 2 (slope of f) v + g² is β (1 − v)."""
    process = sde.forward()
    for u in (0.0, 0.3, 0.9):
        shift, slope = affine(lambda x, u=u: process.drift(x, u))
        assert shift == 0
        for v in (0.2, 1.0, 3.0):
            change = 2 * slope * v + process.diffusion(u) ** 2
            assert change == pytest.approx(sde.rate(u) * (1 - v), rel=1e-12, abs=1e-12)


def benes(x_0: float, u: float) -> GaussianMixture:
    """The law of dX = tanh(X) du + dW from x_0: cosh(x)/cosh(x_0) e^(−u/2) N(x; x_0, u), two Gaussian parts."""
    weights = torch.tensor([math.exp(x_0), math.exp(-x_0)], dtype=DOUBLE)
    return GaussianMixture(weights, column(x_0 + u, x_0 - u), torch.tensor([u, u], dtype=DOUBLE))


def test_a_process_with_any_drift_has_the_density_of_its_equation():
    """L-sde, L-fp, L-rsde for a drift that is not linear and whose density is known."""
    x_0, n = 0.4, 20_000
    process = Process(lambda x, u: x.tanh(), lambda u: 1.0, arrow=1)

    def score(x, u):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(benes(x_0, u).log_prob(x).sum(), x)[0]

    back = Process(lambda x, u: x.tanh() - score(x, u), lambda u: 1.0, arrow=-1)
    x, widths = column(*np.linspace(-3, 3, 40)), 0.02 / 2 ** np.arange(5)
    for right in (process, back):
        residual = [
            float(
                fokker_planck_residual(right, lambda x, u: benes(x_0, u).log_prob(x).exp()[:, None], x, 0.8, h)
                .abs()
                .max()
            )
            for h in widths
        ]
        assert power(widths, residual) == pytest.approx(2, abs=0.05)
        assert residual[-1] < 1e-4
    for sign, fits in ((1, True), (-1, False)):
        drawn = Process(lambda x, u, sign=sign: sign * x.tanh(), lambda u: 1.0, arrow=1)
        x = end(euler_maruyama(drawn, torch.full((n, 1), x_0, dtype=DOUBLE), times(0, 1, 100), seeded()))
        law = benes(x_0, 1.0)
        z = (x.var() / law.covariance().item() - 1) / math.sqrt(2 / n)
        z_mean = (x.mean() - law.mean().item()) / math.sqrt(law.covariance().item() / n)
        assert (abs(z) < 4 and abs(z_mean) < 4) if fits else (z < -10 and z_mean < -10)


def test_the_drift_alone_shrinks_every_point():
    """L-ode: dx = f du takes x_0 to √ᾱ(u) x_0, whatever g is."""
    x_0 = column(-1.3, 0.2, 2.0)
    for sde, u in ((SDE, 0.6), (cosine_sde(), 0.8)):
        exact = math.exp(sde.log_alpha_bar(u) / 2) * x_0
        sizes = [50, 100, 200, 400]
        errors = [float((end(solve_ode(heun, sde.drift, x_0, times(0, u, n))) - exact).abs().max()) for n in sizes]
        assert errors[-1] < 1e-4
        assert power(sizes, errors) == pytest.approx(-2, abs=0.1)


def test_wiener_increments_are_independent_with_the_variance_of_the_time():
    """L-wiener: with no drift and g = 1, W at uneven times has Cov = min(s, t), and its increments are Gaussian."""
    n, grid = 100_000, torch.tensor([0.0, 0.1, 0.15, 0.5, 0.6, 1.0], dtype=DOUBLE)
    still = Process(lambda x, u: torch.zeros_like(x), lambda u: 1.0, arrow=1)
    path = torch.cat([x for _, x in euler_maruyama(still, torch.zeros(n, 1, dtype=DOUBLE), grid, seeded())], dim=1)
    u = grid[1:]
    products = path[:, :, None] * path[:, None]

    def z(expected):
        return float(((products.mean(0) - expected) / (products.std(0) / n**0.5)).abs().max())

    assert z(torch.minimum(u[:, None], u)) < 4.5
    assert z(torch.sqrt(u[:, None] * u)) > 20  # the same variances, but one common draw
    increments = path.diff(dim=1, prepend=torch.zeros(n, 1, dtype=DOUBLE)) / grid.diff().sqrt()
    kurtosis = increments.pow(4).mean(0)
    assert ((kurtosis - 3) / math.sqrt(96 / n)).abs().max() < 4.5


def test_euler_step_of_the_vp_sde_is_the_step_of_the_chain_to_first_order_only():
    """L-taylor, R-17-disc: 1 − β/2 exceeds √(1 − β) by β²/8 and more; the exact transition has no remainder."""
    for beta in 0.1 / 2 ** np.arange(6):
        schedule, sde = NoiseSchedule.from_betas([beta]), linear_sde(beta, beta)
        chain = GaussianDiffusion(schedule).transition(column(1.0), 0, 1)
        factor = 1 + sde.drift(column(1.0), 0.0).item()
        assert sde.diffusion(0.0) ** 2 == pytest.approx(chain.var.item(), rel=1e-12)
        remainder = factor - chain.mean.item()
        assert beta**2 / 8 < remainder < beta**2 / 8 * (1 + beta)
        exact = chain_sde(schedule).transition(column(1.0), 0.0, 1.0)
        assert exact.mean.item() == pytest.approx(chain.mean.item(), rel=1e-14)
        assert exact.var.item() == pytest.approx(chain.var.item(), rel=1e-12)


def test_step_of_the_chain_has_the_rate_at_its_end():
    """L-limit-step, L-sde-incr: exact with β(u + Δu), an error of order Δu^(3/2) with β(u) or without the root."""
    u, x, eps = 0.5, column(1.3, -0.4), column(0.7, -1.1)
    sizes, printed, increment = [400, 800, 1600, 3200], [], []
    for T in sizes:
        h, t = 1 / T, T // 2 + 1
        schedule = NoiseSchedule.from_betas([SDE.rate(k / T) / T for k in range(1, T + 1)])
        law = GaussianDiffusion(schedule).transition(x, t - 1, t)
        step = law.mean + law.var.sqrt() * eps

        def with_rate(beta, h=h):
            return math.sqrt(1 - beta * h) * x + math.sqrt(beta * h) * eps

        assert_close(step, with_rate(SDE.rate(u + h)), rtol=1e-11, atol=1e-12)
        printed.append(float((step - with_rate(SDE.rate(u))).abs().max()))
        noise = SDE.diffusion(u) * math.sqrt(h) * eps
        increment.append(float((step - x - SDE.drift(x, u) * h - noise).abs().max()))
    assert power(sizes, printed) == pytest.approx(-1.5, abs=0.05)
    assert power(sizes, increment) == pytest.approx(-1.5, abs=0.06)


@pytest.mark.parametrize("sde", [linear_sde(), cosine_sde()], ids=["linear", "cosine"])
def test_the_rate_changes_in_proportion_to_a_short_time(sde):
    """L-delta: β(u + δ) − β(u) is of order δ and not zero."""
    widths = 0.01 / 2 ** np.arange(6)
    for u in (0.1, 0.5, 0.8):
        gaps = [sde.rate(u + h) - sde.rate(u) for h in widths]
        assert min(gaps) > 0
        assert power(widths, gaps) == pytest.approx(1, abs=0.05)


def test_states_of_the_chain_tend_to_those_of_the_sde():
    """L-limit-map: x_i → X(i/T); marginals at two times and the transition between them, like 1/T."""
    x, sizes = column(1.5), [100, 200, 400, 800]
    for s, t in ((0.1, 0.3), (0.3, 0.6)):
        gaps = []
        for T in sizes:
            q = GaussianDiffusion(linear_schedule(T, 0.1 / T, 20 / T))
            i, j = round(s * T), round(t * T)
            pairs = (
                (q.marginal(x, i), SDE.marginal(x, s)),
                (q.marginal(x, j), SDE.marginal(x, t)),
                (q.transition(x, i, j), SDE.transition(x, s, t)),
            )
            gaps.append(max(float((a.mean - b.mean).abs() + (a.var - b.var).abs()) for a, b in pairs))
        assert power(sizes, gaps) == pytest.approx(-1, abs=0.05)


# --- densities ----------------------------------------------------------------------------------------------------


def test_the_marginal_is_a_density_and_no_probability():
    """L-pr: Pr{x ≤ X < x + h} = q(x) h + o(h), so a point has probability 0; the density may exceed 1."""
    law = SDE.law(LINE, 0.02)

    def probability(x, h):
        deviations = law.variances.sqrt().numpy()
        ends = [stats.norm.cdf(y, law.means[:, 0].numpy(), deviations) for y in (x, x + h)]
        return float(law.weights.numpy() @ (ends[1] - ends[0]))

    widths = 0.02 / 2 ** np.arange(8)
    for x in (-1.1, 0.5, 0.7):
        density = law.log_prob(column(x)).exp().item()
        chances = np.array([probability(x, h) for h in widths])
        assert power(widths, chances) == pytest.approx(1, abs=0.03)
        assert power(widths, np.abs(chances / widths - density)) == pytest.approx(1, abs=0.1)
    narrow = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([0.01]))
    assert SDE.law(narrow, 0.01).log_prob(column(0.0)).exp() > 1


def plane_density(x: torch.Tensor, u: float) -> torch.Tensor:
    return SDE.law(PLANE, u).log_prob(x).exp()[:, None]


def gradient(x: torch.Tensor, u: float) -> torch.Tensor:
    return torch.autograd.grad(plane_density(x, u).sum(), x, create_graph=True)[0]


def change_in_time(x: torch.Tensor, u: float) -> torch.Tensor:
    """∂_u q_u(x) in closed form: each part's mean and variance obey m' = −½βm and v' = β(1 − v)."""
    law, beta = SDE.law(PLANE, u), SDE.rate(u)
    shift = x[:, None] - law.means
    part = law.weights * (-0.5 * (shift.square() / law.variances + torch.log(2 * math.pi * law.variances)).sum(2)).exp()
    by_mean = -0.5 * beta * law.means * shift / law.variances
    by_variance = 0.5 * beta * (1 - law.variances) * (shift.square() / law.variances - 1) / law.variances
    return (part * (by_mean + by_variance).sum(2)).sum(1)


TIMES = pytest.mark.parametrize("u", [0.05, 0.3, 0.7])
POINTS = PLANE.sample(60, seeded(2)) * 1.3
SCORE = exact_score(SDE, PLANE)


def transport(field, u: float) -> torch.Tensor:
    """∇·(field q_u) at the points, by automatic differentiation."""
    return divergence(lambda x, u: field(x, u) * plane_density(x, u), POINTS, u)


@TIMES
def test_laplacian_is_the_divergence_of_density_times_score(u):
    """L-lap, with the score in closed form and ∇q by automatic differentiation."""
    laplacian = divergence(gradient, POINTS, u)
    assert laplacian.abs().max() > 0.1
    assert_close(transport(SCORE, u), laplacian, rtol=1e-9, atol=1e-10)


@TIMES
def test_density_equations_hold_on_both_clocks(u):
    """L-fp, L-rev-fp, L-rev-fp2, L-rev-equate: forwards; in τ; in τ for the reverse SDE; and the last two equated."""
    forward, diffuse = transport(SDE.drift, u), 0.5 * SDE.rate(u) * divergence(gradient, POINTS, u)
    change = change_in_time(POINTS, u)
    assert change.abs().max() > 0.01
    assert_close(change, -forward + diffuse, rtol=1e-9, atol=1e-10)
    reverse = SDE.reverse(SCORE)  # its drift belongs to du < 0, so f_rev is its negative

    def f_rev(x, u):
        return -reverse.drift(x, u)

    in_tau = forward - diffuse
    assert_close(-change, in_tau, rtol=1e-9, atol=1e-10)
    assert_close(-change, -transport(f_rev, u) + diffuse, rtol=1e-9, atol=1e-10)
    assert_close(in_tau, -transport(f_rev, u) + diffuse, rtol=1e-9, atol=1e-10)


@TIMES
@pytest.mark.parametrize(("a", "b"), [(-1, 1), (1, -1), (1, 1), (-1, -1)])
def test_of_four_reverse_drifts_one_solves_the_equation_on_the_rising_clock(u, a, b):
    """L-therefore, L-frev: f_rev = a f + b g² score; printed is (1, −1), right is (−1, 1)."""

    def f_rev(x, u):
        return a * SDE.drift(x, u) + b * SDE.rate(u) * SCORE(x, u)

    forward, laplacian = transport(SDE.drift, u), divergence(gradient, POINTS, u)
    g2 = SDE.rate(u)
    gap = (-change_in_time(POINTS, u) - (-transport(f_rev, u) + 0.5 * g2 * laplacian)).abs().max()
    solved = (transport(f_rev, u) - (-forward + g2 * laplacian)).abs().max()
    if (a, b) == (-1, 1):
        assert max(gap, solved) < 1e-9
    else:
        assert min(gap, solved) > 0.05


def test_reversing_the_clock_flips_the_derivative():
    """L-rev-tau: differences of q_{1−τ} in τ against the closed form of −∂_u q, with the error of the differences."""
    widths = 0.02 / 2 ** np.arange(5)
    for tau in (0.3, 0.8):
        exact = -change_in_time(POINTS, 1 - tau)
        gaps = []
        for h in widths:
            later, earlier = plane_density(POINTS, 1 - (tau + h)), plane_density(POINTS, 1 - (tau - h))
            gaps.append(float(((later - earlier)[:, 0] / (2 * h) - exact).abs().max()))
        assert power(widths, gaps) == pytest.approx(2, abs=0.05)
        assert gaps[-1] < 0.01 * exact.abs().max()


# --- backwards ----------------------------------------------------------------------------------------------------


def test_reverse_sde_is_right_for_one_direction_of_time():
    """R-18, L-rev-sde-form, L-rsde, L-score-sde: f − g² score for du < 0, both signs flipped for dτ > 0."""
    start, sizes, errors = 0.9, [200, 400, 800], []
    falling = SDE.reverse(exact_score(SDE, ONE))
    flipped = Process(lambda y, tau: -falling.drift(y, 1 - tau), lambda tau: falling.diffusion(1 - tau), arrow=1)
    printed = Process(lambda y, tau: falling.drift(y, 1 - tau), lambda tau: falling.diffusion(1 - tau), arrow=1)
    law = SDE.law(ONE, start)
    first = law.mean().item(), law.covariance().item()
    for n in sizes:
        mean, var = moments(falling, *first, times(start, 0, n))
        errors.append(math.hypot(mean - 0.7, var - 0.3))
        assert moments(flipped, *first, times(1 - start, 1, n)) == pytest.approx((mean, var), rel=1e-9)
        assert moments(printed, *first, times(1 - start, 1, n))[1] > 100
    assert errors[-1] < 0.01
    assert power(sizes, errors) == pytest.approx(-1, abs=0.1)


def test_reverse_sde_redraws_the_data_and_does_not_return_it():
    """L-recon: from one x_u it ends in p(x_0 | x_u), whose spread is no error of the steps."""
    u, x_u = 0.3, 0.4
    kernel = SDE.marginal(column(0.0), u)
    exact = observe(Gaussian(column(0.7), 0.3), math.exp(SDE.log_alpha_bar(u) / 2), kernel.var, column(x_u))
    sizes, errors = [200, 400, 800], []
    for n in sizes:
        mean, var = moments(SDE.reverse(exact_score(SDE, ONE)), x_u, 0.0, times(u, 0, n))
        errors.append(abs(mean - exact.mean.item()) + abs(var - exact.var.item()))
    assert errors[-1] < 0.01 < 0.1 < exact.var.item()
    assert power(sizes, errors) == pytest.approx(-1, abs=0.1)

    n, x_u = 5000, -0.15
    x = torch.full((n, 1), x_u, dtype=DOUBLE)
    drawn = end(euler_maruyama(SDE.reverse(exact_score(SDE, LINE)), x, times(u, 0, 300), seeded()))[:, 0]
    one_step = GaussianDiffusion(observed(SDE, [u]))
    posterior = LINE.reverse_kernel(one_step, torch.tensor([x_u], dtype=DOUBLE), 0, 1)
    assert stats.ks_2samp(drawn, posterior.sample(n, seeded(1))[:, 0]).pvalue > 1e-3
    assert stats.ks_2samp(drawn, LINE.sample(n, seeded(2))[:, 0]).pvalue < 1e-6
    assert drawn.std() > 0.5


def test_whole_sampler_and_euler_maruyama_agree_in_the_limit_only():
    """R-sum-EM: for Gaussian data the variances at the end differ by a share that falls like 1/T."""
    v, sizes, gaps, errors = 0.25, [125, 250, 500], [], []
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([v]))
    for T in sizes:
        q = GaussianDiffusion(linear_schedule(T, 0.1 / T, 20 / T))
        ancestral = Ancestral(q, data.denoiser(q))
        sampler = scheme = data.diffused(q, T).covariance().item()
        for t in range(T, 0, -1):
            law = ancestral(column(0.0, 1.0), t - 1, t)
            sampler = float(law.mean[1] - law.mean[0]) ** 2 * sampler + law.var.item()
            beta = q.schedule.beta(t).item()
            _, score = affine(lambda x, t=t, q=q: data.score(q, x, t))
            scheme = (1 + 0.5 * beta + beta * score) ** 2 * scheme + beta
        gaps.append(abs(scheme - sampler) / v)
        errors.append((abs(scheme / v - 1), abs(sampler / v - 1)))
    assert gaps[-1] > 0.01
    assert max(errors[-1]) < 0.04
    assert power(sizes, gaps) == pytest.approx(-1, abs=0.1)
