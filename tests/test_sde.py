"""Chapter 5: the SDE of a chain, its reverse family, the equations of their densities, the orders of the solvers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from ddpm_nb.denoiser import EPS, SCORE
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import CorrelatedGaussian, GaussianMixture
from ddpm_nb.gaussian import Gaussian, convolution
from ddpm_nb.kernels import follow, last
from ddpm_nb.schedule import NoiseSchedule, cosine_schedule, linear_schedule
from ddpm_nb.sde import (
    VPSDE,
    PredictorCorrector,
    Process,
    chain_sde,
    cosine_sde,
    euler,
    euler_maruyama,
    euler_maruyama_kernel,
    euler_maruyama_step,
    exact_score,
    fokker_planck_residual,
    heun,
    langevin_step,
    linear_sde,
    observed,
    solve_ode,
)

DATA = GaussianMixture(torch.tensor([0.35, 0.65]), torch.tensor([[-1.0], [0.8]]), torch.tensor([0.04, 0.09]))
PLANE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, -0.5], [0.9, 0.4]]), torch.tensor([[0.06, 0.1], [0.2, 0.08]])
)
SDE = linear_sde()
SCORE_OF_DATA = exact_score(SDE, DATA)
RATES = {"linear": linear_sde(), "cosine": cosine_sde(), "cut": cosine_sde(max_rate=5.0), "constant": linear_sde(3, 3)}
CHAINS = {
    "linear": linear_schedule(1000),
    "cosine": cosine_schedule(50),
    "one step": NoiseSchedule.from_betas([0.4]),
    "uneven": NoiseSchedule.from_betas([0.9, 1e-6, 0.3, 0.999, 1e-3, 0.5, 0.2]),
}


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def times(u: float, v: float, n: int) -> torch.Tensor:
    return torch.linspace(u, v, n + 1, dtype=torch.float64)


def end(steps):
    *_, (_, x) = steps
    return x


def power(sizes, errors) -> float:
    return float(stats.linregress(np.log(sizes), np.log(errors)).slope)


def cdf(law: GaussianMixture, x) -> np.ndarray:
    return sum(
        w * stats.norm.cdf(x, m, v**0.5)
        for w, m, v in zip(law.weights.tolist(), law.means[:, 0].tolist(), law.variances.tolist(), strict=True)
    )


# --- the forward equation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_chain_sde_observed_at_whole_steps_is_the_chain(name):
    schedule = CHAINS[name]
    q, sde, T = GaussianDiffusion(schedule), chain_sde(schedule), schedule.T
    x = column(1.7)
    for t in range(1, T + 1):
        pairs = [
            (sde.marginal(x, t / T), q.marginal(x, t)),
            (sde.transition(x, (t - 1) / T, t / T), q.transition(x, t - 1, t)),
            (sde.transition(x, (t // 2) / T, t / T), q.transition(x, t // 2, t)),
        ]
        for ours, chain in pairs:
            torch.testing.assert_close(ours.mean, chain.mean, rtol=1e-10, atol=0)
            torch.testing.assert_close(ours.var, chain.var, rtol=1e-9, atol=0)
        # β_t = 1 − exp(−∫ rate): the rate is constant within the step.
        for u in ((t - 0.999) / T, (t - 0.5) / T, t / T):
            assert -math.expm1(-sde.rate(u) / T) == pytest.approx(schedule.beta(t).item(), rel=1e-9)


@pytest.mark.parametrize("name", [*RATES, *(f"chain {name}" for name in CHAINS)])
def test_log_alpha_bar_is_minus_the_integral_of_the_rate(name):
    sde = RATES.get(name) or chain_sde(CHAINS[name.removeprefix("chain ")])
    breaks = np.linspace(0, 1, 1 + CHAINS[name.removeprefix("chain ")].T) if name.startswith("chain") else [0.0, 1.0]
    assert sde.log_alpha_bar(0.0) == 0.0
    for u in (0.05, 0.37, 0.5, 0.83, 0.99):
        edges = [b for b in breaks if b < u] + [u]
        pieces = [integrate.quad(sde.rate, a, b, limit=200)[0] for a, b in pairwise(edges)]
        assert sde.log_alpha_bar(u) == pytest.approx(-math.fsum(pieces), rel=1e-7)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_observed_on_its_sde_is_the_chain(name):
    schedule = CHAINS[name]
    back = observed(chain_sde(schedule), [t / schedule.T for t in range(1, schedule.T + 1)])
    torch.testing.assert_close(back.log_alpha_bars, schedule.log_alpha_bars, rtol=1e-12, atol=1e-15)
    uneven = GaussianDiffusion(observed(SDE, [0.1, 0.2, 0.7]))
    torch.testing.assert_close(
        uneven.transition(column(1.5), 1, 3).mean, SDE.transition(column(1.5), 0.1, 0.7).mean, rtol=1e-12, atol=0
    )


def test_cut_cosine_rate_goes_on_at_its_maximum():
    free, cut = cosine_sde(), cosine_sde(max_rate=5.0)
    assert cut.rate(0.3) == free.rate(0.3) < 5.0
    assert cut.rate(0.9) == cut.rate(1.0) == 5.0 < free.rate(0.9)
    assert cut.log_alpha_bar(1.0) - cut.log_alpha_bar(0.9) == pytest.approx(-0.5)
    assert cosine_sde(max_rate=1e-3).log_alpha_bar(1.0) == pytest.approx(-1e-3)


@pytest.mark.parametrize("name", RATES)
def test_transition_has_the_moments_of_the_sde(name):
    """R-17: m' = −½βm and v' = −βv + β, integrated by SciPy."""
    sde, x = RATES[name], 1.5
    for u, v in ((0.0, 0.5), (0.2, 0.7), (0.6, 0.95)):
        moments = integrate.solve_ivp(
            lambda u, m: [-0.5 * sde.rate(u) * m[0], sde.rate(u) * (1 - m[1])],
            (u, v),
            [x, 0.0],
            rtol=1e-9,
            atol=1e-12,
            max_step=0.01,
        ).y[:, -1]
        law = sde.transition(column(x), u, v)
        assert law.mean.item() == pytest.approx(moments[0], rel=1e-6)
        assert law.var.item() == pytest.approx(moments[1], rel=1e-6)


def test_transitions_compose_and_keep_unit_variance():
    x, unit = column(0.3, -2.0), GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    for sde in RATES.values():
        first, second = sde.transition(x, 0.1, 0.4), sde.transition(x, 0.4, 0.8)
        factor = (second.mean / x)[0]
        whole = sde.transition(x, 0.1, 0.8)
        torch.testing.assert_close(whole.mean, factor * first.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(whole.var, factor[0] ** 2 * first.var + second.var, rtol=1e-12, atol=0)
        for u in (0.0, 0.3, 1.0):
            assert sde.law(unit, u).covariance().item() == pytest.approx(1.0, abs=1e-14)


def test_law_and_score_are_those_of_the_chain():
    q = GaussianDiffusion(CHAINS["cosine"])
    sde, T = chain_sde(q.schedule), q.schedule.T
    x = PLANE.sample(50, torch.Generator().manual_seed(0))
    for t in (1, 7, 25, T):
        ours, chain = sde.law(PLANE, t / T), PLANE.diffused(q, t)
        torch.testing.assert_close(ours.means, chain.means, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.variances, chain.variances, rtol=1e-9, atol=1e-12)
        # Tweedie's formula is another closed form; it loses 1/(1 − ᾱ) digits.
        torch.testing.assert_close(exact_score(sde, PLANE)(x, t / T), PLANE.score(q, x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("data", [DATA, PLANE], ids=["line", "plane"])
@pytest.mark.parametrize("u", [0.0, 0.2, 1.0])
def test_exact_score_is_the_gradient_of_the_log_density(data, u):
    x = data.sample(40, torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(SDE.law(data, u).log_prob(x).sum(), x)
    torch.testing.assert_close(exact_score(SDE, data)(x.detach(), u), gradient, rtol=1e-10, atol=1e-10)
    assert exact_score(SDE, data)(x.detach().float(), u).dtype == torch.float32


def test_law_and_score_of_many_correlated_coordinates():
    root = torch.randn(784, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 28
    cov, mean = root @ root.mT + 0.1 * torch.eye(784, dtype=torch.float64), root[0]
    data, u = CorrelatedGaussian.of(mean, cov), 0.3
    x = data.sample(3, torch.Generator().manual_seed(1))
    signal = math.exp(SDE.log_alpha_bar(u))
    noisy = signal * cov + (1 - signal) * torch.eye(784, dtype=torch.float64)
    expected = torch.linalg.solve(noisy, (math.sqrt(signal) * mean - x).mT).mT
    torch.testing.assert_close(exact_score(SDE, data)(x, u), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(SDE.law(data, u).covariance(), noisy, rtol=1e-10, atol=1e-10)
    assert SDE.law(data, 0.0) is data


@pytest.mark.parametrize(
    ("sde", "schedule_of"),
    [(linear_sde(), lambda T: linear_schedule(T, 0.1 / T, 20 / T)), (cosine_sde(), cosine_schedule)],
    ids=["linear", "cosine"],
)
def test_rescaled_schedule_tends_to_the_rate_like_one_over_T(sde, schedule_of):
    """L-vpsde: β(u) = lim T β_t at u = t/T."""
    sizes, errors = [100, 200, 400, 800, 1600], []
    for T in sizes:
        t = torch.arange(1, int(0.8 * T) + 1)
        rate = torch.tensor([sde.rate(k / T) for k in t.tolist()], dtype=torch.float64)
        errors.append(float((T * schedule_of(T).beta(t) - rate).abs().max()))
    assert power(sizes, errors) == pytest.approx(-1, abs=0.05)


# --- Euler–Maruyama ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrow", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_euler_maruyama_step_is_its_formula(arrow, dtype):
    process = Process(lambda x, u: 3 * x + u, lambda u: 2 + u, arrow)
    x, u, v = torch.tensor([[1.0, -2.0]], dtype=dtype), 0.5, 0.5 + 0.25 * arrow
    (found,) = euler_maruyama(process, x, torch.tensor([u, v]), torch.Generator().manual_seed(3))
    z = torch.randn(1, 2, dtype=dtype, generator=torch.Generator().manual_seed(3))
    assert found[0] == v and found[1].dtype == dtype
    torch.testing.assert_close(found[1], x + (3 * x + u) * (v - u) + (2 + u) * 0.5 * z)


@pytest.mark.parametrize("wrong", [times(0, 1, 4), torch.tensor([1.0, 0.5, 0.5]), torch.tensor([1.0, 0.4, 0.6])])
def test_a_process_refuses_times_against_its_arrow(wrong):
    with pytest.raises(ValueError, match="expected them to fall"):
        end(euler_maruyama(SDE.reverse(SCORE_OF_DATA), column(0.0), wrong))
    with pytest.raises(ValueError, match="expected them to rise"):
        end(euler_maruyama(SDE.forward(), column(0.0), wrong.flip(0)))


def scheme_moments(process: Process, law: GaussianMixture, grid: torch.Tensor) -> tuple[float, float]:
    """Mean and variance of Euler–Maruyama for a drift linear in x, by recursion and without sampling."""
    mean, var = law.mean(), law.covariance().squeeze()
    for u, v in pairwise(grid.tolist()):
        low, high = process.drift(column(0.0, 1.0), u).flatten()
        mean = mean + (low + (high - low) * mean) * (v - u)
        var = var * (1 + (high - low) * (v - u)) ** 2 + process.diffusion(u) ** 2 * abs(v - u)
    return mean.item(), var.item()


@pytest.mark.parametrize("noise", [None, 0.0, 0.5, 1.0, 1.5])
def test_euler_maruyama_converges_to_the_law_at_first_order(noise):
    """Gaussian data, whose reverse drift is linear: the whole family, with no sampling error."""
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.7]]), torch.tensor([0.3]))
    process = SDE.forward() if noise is None else SDE.reverse(exact_score(SDE, data), noise)
    start, stop = (0.0, 0.5) if noise is None else (0.9, 0.0)
    exact = SDE.law(data, stop)
    sizes, errors = [200, 400, 800, 1600], []
    for n in sizes:
        mean, var = scheme_moments(process, SDE.law(data, start), times(start, stop, n))
        errors.append(math.hypot(mean - exact.mean().item(), var - exact.covariance().item()))
    assert errors[-1] < 0.01
    assert power(sizes, errors) == pytest.approx(-1, abs=0.1)


def test_euler_maruyama_samples_follow_its_own_moments():
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.7]]), torch.tensor([0.3]))
    process, grid, n = SDE.reverse(exact_score(SDE, data)), times(0.6, 0.1, 10), 20000
    generator = torch.Generator().manual_seed(0)
    x = end(euler_maruyama(process, SDE.law(data, 0.6).sample(n, generator), grid, generator))
    mean, var = scheme_moments(process, SDE.law(data, 0.6), grid)
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(var / n)
    assert abs(x.var().item() / var - 1) < 4 * math.sqrt(2 / n)


# --- the density of a process -----------------------------------------------------------------------------------


def density(x: torch.Tensor, u: float) -> torch.Tensor:
    return SDE.law(DATA, u).log_prob(x).exp()[:, None]


@pytest.mark.parametrize("noise", [None, 0.0, 0.5, 1.0, 2.0])
def test_fokker_planck_residual_vanishes_at_second_order(noise):
    """L-fp, L-rev-fp2: the closed-form density solves the equation of the process, forwards and backwards."""
    process = SDE.forward() if noise is None else SDE.reverse(SCORE_OF_DATA, noise)
    x, widths = column(*np.linspace(-2.5, 2.5, 60)), 0.02 / 2 ** np.arange(5)
    for u in (0.1, 0.3, 0.7):
        residual = [float(fokker_planck_residual(process, density, x, u, h).abs().max()) for h in widths]
        assert residual[-1] < 1e-3
        assert power(widths, residual) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("noise", [None, 0.0, 1.0])
def test_fokker_planck_residual_vanishes_at_second_order_in_the_plane(noise):
    process = SDE.forward() if noise is None else SDE.reverse(exact_score(SDE, PLANE), noise)

    def density(x, u):
        return SDE.law(PLANE, u).log_prob(x).exp()[:, None]

    side = torch.linspace(-2, 2, 15, dtype=torch.float64)
    x, widths = torch.cartesian_prod(side, side), 0.02 / 2 ** np.arange(5)
    residual = [float(fokker_planck_residual(process, density, x, 0.3, h).abs().max()) for h in widths]
    assert residual[-1] < 1e-3
    assert power(widths, residual) == pytest.approx(2, abs=0.05)
    # One coordinate's drift alone is not enough: what is left is a divergence of order one.
    half = Process(lambda y, u: process.drift(y, u) * torch.tensor([1.0, 0.0]), process.diffusion, process.arrow)
    assert fokker_planck_residual(half, density, x, 0.3, 1e-3).abs().max() > 0.1


@pytest.mark.parametrize(("a", "b"), [(-1, 1), (1, -1), (-1, -1), (1, 0.5), (1, 2)])
@pytest.mark.parametrize("arrow", [1, -1])
def test_fokker_planck_residual_of_a_wrong_drift_stays(a, b, arrow):
    """L-therefore, L-frev: of the signs of drift and score one choice solves the equation, per direction of time."""
    wrong = Process(
        lambda x, u: -arrow * (a * SDE.drift(x, u) - b * SDE.rate(u) * SCORE_OF_DATA(x, u)), SDE.diffusion, arrow
    )
    residual = fokker_planck_residual(wrong, density, column(*np.linspace(-2.5, 2.5, 60)), 0.3, 1e-3)
    assert residual.abs().max() > 0.2


# --- backwards ---------------------------------------------------------------------------------------------------


def p_value_of_recovery(process: Process, u: float = 0.0, n: int = 8000) -> float:
    """Two-sample Kolmogorov–Smirnov test of 300 Euler–Maruyama steps against fresh exact draws of the law at u."""
    generator = torch.Generator().manual_seed(0)
    x = SDE.law(DATA, 1.0).sample(n, generator)
    x = end(euler_maruyama(process, x, times(1, u, round(300 * (1 - u))), generator))
    return stats.ks_2samp(x[:, 0].numpy(), SDE.law(DATA, u).sample(n, generator)[:, 0].numpy()).pvalue


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("u", [0.6, 0.3, 0.0])
def test_reverse_processes_have_the_forward_marginals(noise, u):
    assert p_value_of_recovery(SDE.reverse(SCORE_OF_DATA, noise), u) > 1e-3


@pytest.mark.parametrize(
    ("a", "b", "g"),
    [(-1, 1, 1), (1, -1, 1), (-1, -1, 1), (1, 0.5, 1), (1, 2, 1), (1, 1, 2**0.5), (0.5, 1, 1), (1, 1, 0)],
    ids=["sign of f", "sign of score", "both signs", "half the score", "twice the score", "twice g²", "half f", "no g"],
)
def test_the_statistic_rejects_every_wrong_coefficient(a, b, g):
    """R-18, L-rsde: a f − b g² score with noise g, for falling u, is right for a = b = g = 1 only."""
    wrong = Process(
        lambda x, u: a * SDE.drift(x, u) - b * SDE.rate(u) * SCORE_OF_DATA(x, u), lambda u: g * SDE.diffusion(u), -1
    )
    assert p_value_of_recovery(wrong) < 1e-6


def test_the_right_drift_on_a_rising_clock_explodes():
    """f − g² score read with dτ > 0, as the slides print it."""
    falling = SDE.reverse(SCORE_OF_DATA)
    rising = Process(lambda y, tau: falling.drift(y, 1 - tau), lambda tau: falling.diffusion(1 - tau), 1)
    x = SDE.law(DATA, 1.0).sample(500, torch.Generator().manual_seed(0))
    assert end(euler_maruyama(rising, x, times(0, 1, 300), torch.Generator().manual_seed(1))).std() > 100


def test_only_anderson_reverses_the_joint_law():
    """E[X_u X_0] = √ᾱ(u) E[X_0²] forwards; a reverse process with other noise shares the marginals, not this."""
    n, u = 8000, 0.2
    exact = math.exp(SDE.log_alpha_bar(u) / 2) * (DATA.covariance() + DATA.mean() ** 2).item()
    for noise, same in ((1.0, True), (0.0, False), (2.0, False)):
        generator = torch.Generator().manual_seed(4)
        x_u = SDE.law(DATA, u).sample(n, generator)
        x_0 = end(euler_maruyama(SDE.reverse(SCORE_OF_DATA, noise), x_u, times(u, 0, 200), generator))
        product = (x_u * x_0)[:, 0]
        z = (product.mean().item() - exact) / (product.std().item() / math.sqrt(n))
        assert abs(z) < 4 if same else abs(z) > 6


def test_ancestral_step_is_euler_maruyama_to_first_order():
    """R-16-EM: at a fixed time, means and variances of one step differ by O(β²)."""
    u, x = 0.4, DATA.sample(100, torch.Generator().manual_seed(0))
    reverse, betas, gaps = SDE.reverse(SCORE_OF_DATA), [], []
    for length in 0.01 / 2 ** np.arange(5):
        schedule = observed(SDE, [u - length, u])
        q = GaussianDiffusion(schedule)
        step = q.posterior(SCORE.x_0(q, SCORE_OF_DATA(x, u), x, 2), x, 1, 2)
        mean, var = x - reverse.drift(x, u) * length, reverse.diffusion(u) ** 2 * length
        betas.append(schedule.beta(2).item())
        gaps.append([float((step.mean - mean).abs().max()), abs(step.var.item() - var)])
    for gap in np.transpose(gaps):
        assert power(betas, gap) == pytest.approx(2, abs=0.05)
    assert posterior_var(*linear_schedule().levels(0, 1)) == 0.0  # near the data they differ at leading order


def test_ancestral_step_is_the_reverse_sde_with_a_frozen_estimate():
    """R-16-EM: with x̂_0 held fixed the reverse SDE is linear; SciPy's moments of it are the posterior."""
    x_0, x, u, v = 0.8, -0.5, 0.6, 0.2

    def kernel_score(y, u):
        law = SDE.marginal(torch.full_like(y, x_0), u)
        return (law.mean - y) / law.var

    reverse = SDE.reverse(kernel_score)

    def slopes(u, moments):
        low, high = reverse.drift(column(0.0, 1.0), u).flatten().tolist()
        return [low + (high - low) * moments[0], 2 * (high - low) * moments[1] - reverse.diffusion(u) ** 2]

    found = integrate.solve_ivp(slopes, (u, v), [x, 0.0], rtol=1e-9, atol=1e-12).y[:, -1]
    q = GaussianDiffusion(observed(SDE, [v, u]))
    posterior = q.posterior(column(x_0), column(x), 1, 2)
    assert found == pytest.approx([posterior.mean.item(), posterior.var.item()], rel=1e-6)


# --- correctors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("u", [0.0, 0.3])
def test_langevin_steps_settle_near_the_law_with_an_error_of_the_order_of_the_step(u):
    """Gaussian data: v = (1 − ½ size/V)² v + size has the fixed point V/(1 − size/(4V)), found here by repetition."""
    data = GaussianMixture(torch.ones(1), torch.tensor([[0.7]]), torch.tensor([0.3]))
    score, exact = exact_score(SDE, data), SDE.law(data, u)
    sizes, errors = np.array([0.2, 0.1, 0.05, 0.025]), []
    for size in sizes:
        mean, var = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        low, high = langevin_step(score, column(0.0, 1.0), u, size).mean.flatten()
        for _ in range(2000):
            mean, var = low + (high - low) * mean, (high - low) ** 2 * var + size
        assert mean.item() == pytest.approx(exact.mean().item(), abs=1e-9)
        errors.append(var.item() - exact.covariance().item())
        assert errors[-1] == pytest.approx(size / 4, rel=size / exact.covariance().item())
    assert power(sizes, errors) == pytest.approx(1, abs=0.1)


def test_a_langevin_step_is_one_step_of_the_reverse_sde_beyond_the_flow():
    """Reverse step with noise λ = Euler step of the flow + Langevin of size λ² g² |Δu|, scores at the same point."""
    x, u, v, noise = DATA.sample(50, torch.Generator().manual_seed(0)), 0.4, 0.37, 1.7
    size = noise**2 * SDE.rate(u) * (u - v)
    whole = euler_maruyama_step(SDE.reverse(SCORE_OF_DATA, noise), x, u, v)
    flow = euler_maruyama_step(SDE.reverse(SCORE_OF_DATA, 0.0), x, u, v)
    kick = langevin_step(SCORE_OF_DATA, x, u, size)
    parts = convolution(flow, Gaussian(kick.mean - x, kick.var))
    torch.testing.assert_close(whole.mean, parts.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.var, parts.var, rtol=1e-12, atol=0)


def test_predictor_corrector_alternates_a_step_in_time_and_steps_at_the_new_time():
    process, grid = SDE.reverse(SCORE_OF_DATA), times(0.6, 0.2, 2)
    ours, generator = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    x = column(0.4, -1.0, 2.0)
    predictor = euler_maruyama_kernel(process)
    kernel = PredictorCorrector(predictor, SCORE_OF_DATA, lambda v: v / 10, 2)
    for (found, v), (u, expected_v) in zip(
        follow(kernel, x, grid.tolist(), ours), pairwise(grid.tolist()), strict=True
    ):
        x = euler_maruyama_step(process, x, u, expected_v).sample(generator)
        for _ in range(2):
            x = langevin_step(SCORE_OF_DATA, x, expected_v, expected_v / 10).sample(generator)
        assert v == expected_v
        assert torch.equal(found, x)
    plain = euler_maruyama(process, column(0.4), grid, torch.Generator().manual_seed(5))
    none = PredictorCorrector(predictor, SCORE_OF_DATA, lambda v: 0.1, 0)
    walked = follow(none, column(0.4), grid.tolist(), torch.Generator().manual_seed(5))
    assert torch.equal(end(plain), last(walked).x)


# --- the flow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2)])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
def test_ode_solvers_have_their_order_in_both_directions(step, order, start, stop):
    """dx/du = u x has the solution exp(u²/2)."""
    sizes = [20, 40, 80, 160]
    exact = math.exp((stop**2 - start**2) / 2)
    errors = [
        abs(end(solve_ode(step, lambda x, u: u * x, column(1.0), times(start, stop, n))).item() - exact) for n in sizes
    ]
    assert power(sizes, errors) == pytest.approx(-order, abs=0.06)


@pytest.fixture(scope="module")
def flow_map():
    """Points at u = 1 and where the flow takes them at u = 0: on a line it keeps ranks, Q_0(x_0) = Q_1(x_1)."""
    x_1 = np.linspace(-2, 2, 41)
    ranks = cdf(SDE.law(DATA, 1.0), x_1)
    x_0 = [optimize.brentq(lambda x, p=p: cdf(SDE.law(DATA, 0.0), x) - p, -4, 4, xtol=1e-14) for p in ranks]
    return column(*x_1), column(*x_0)


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2)])
def test_probability_flow_converges_to_the_exact_map_at_the_order_of_the_solver(flow_map, step, order):
    """R-18-ode: the ODE carries q_1 to the data."""
    x_1, x_0 = flow_map
    flow, sizes = SDE.reverse(SCORE_OF_DATA, noise=0.0).drift, [128, 256, 512]
    errors = [(end(solve_ode(step, flow, x_1, times(1, 0, n))) - x_0).abs().mean().item() for n in sizes]
    assert errors[-1] < (1e-3 if order == 1 else 3e-5)
    assert power(sizes, errors) == pytest.approx(-order, abs=0.12)


def test_flow_without_noise_is_reversible(flow_map):
    x_1, x_0 = flow_map
    there = end(solve_ode(heun, SDE.reverse(SCORE_OF_DATA, noise=0.0).drift, x_0, times(0, 1, 512)))
    torch.testing.assert_close(there, x_1, rtol=0, atol=1e-3)


# --- learning the score -----------------------------------------------------------------------------------------


def test_kernel_objective_differs_from_the_score_objective_by_a_constant():
    """J_kernel − J_score = d/(1 − ᾱ) − E‖score‖², for any candidate; and it is the noise error over 1 − ᾱ."""
    q, t = GaussianDiffusion(linear_schedule(100, 1e-3, 0.2)), 25
    noise_power = q.schedule.level(t).noise_var
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    grid = torch.tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    mass = torch.tensor(np.outer(weights, weights).reshape(-1)) / (2 * math.pi)
    x_0 = torch.cat([m + v.sqrt() * grid[:, :1] for m, v in zip(DATA.means, DATA.variances, strict=True)])
    mass = torch.cat([w * mass for w in DATA.weights])
    eps = grid[:, 1:].repeat(2, 1)
    x_t = q.diffuse(x_0, eps, t)
    score = DATA.score(q, x_t, t)
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    information = (mass @ score.square()).item()
    assert information < 0.9 / noise_power  # the constant is far from 0
    for guess in (score, -x_t, torch.zeros_like(x_t), x_t.sin()):
        kernel_error = (guess - SCORE.target(q, x_0, eps, t)).square()
        gap = (mass @ (kernel_error - (guess - score).square())).item()
        assert gap == pytest.approx(1 / noise_power - information, abs=1e-6)
        noise_error = (EPS.target(q, x_0, eps, t) - SCORE.eps(q, guess, x_t, t)).square()
        torch.testing.assert_close(noise_error, noise_power * kernel_error, rtol=1e-9, atol=1e-9)


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_sde(0.0, 1.0), "rate_0 = 0.0"),
        (lambda: linear_sde(2.0, 1.0), "rate_1 = 1.0"),
        (lambda: cosine_sde(offset=-1.0), "offset = -1.0"),
        (lambda: cosine_sde(max_rate=0.0), "max_rate = 0.0"),
        (lambda: SDE.reverse(SCORE_OF_DATA, noise=-0.1), "noise = -0.1"),
        (lambda: SDE.reverse(SCORE_OF_DATA, noise=math.nan), "noise = nan"),
        (lambda: SDE.transition(column(0.0), 0.5, 0.4), "the earlier time first"),
        (lambda: SDE.marginal(column(0.0), 1.1), "v = 1.1"),
        (lambda: chain_sde(CHAINS["uneven"]).rate(1.01), "from 0 to 1"),
        (lambda: langevin_step(SCORE_OF_DATA, column(0.0), 0.5, -0.1), "size = -0.1"),
        (
            lambda: PredictorCorrector(euler_maruyama_kernel(SDE.forward()), SCORE_OF_DATA, lambda v: 0.1)(
                column(0.0), 0.5, 0.6
            ),
            "rise",
        ),
        (lambda: VPSDE(lambda u: 1.0, lambda u: -u).marginal(column(0.0), -0.1), "v = -0.1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
