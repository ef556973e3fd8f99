"""Chapter 5: errors without sampling noise, and the order with which each scheme makes them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.convergence import (
    coarsened,
    expected_after,
    finite_differences,
    flow_map,
    power_law,
)
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import last, walk
from ddpm_nb.sampling import DDIM, Ancestral
from ddpm_nb.sde import VPSDE, Process, euler_maruyama_step, exact_score, heun, langevin_step, linear_sde, observed

# Wide modes: where they are narrow, paths near the ridge between them hide the order until the steps are very short.
DATA = GaussianMixture([0.35, 0.65], [[-0.8], [0.6]], [0.15, 0.25])
SDE = linear_sde()
SCORE = exact_score(SDE, DATA)
LINE = torch.linspace(-6, 6, 721, dtype=torch.float64)[:, None]
SPACING = (LINE[1] - LINE[0]).item()
STOP = 0.1
FEW, MANY = (20, 40, 80, 160), (20, 40, 80, 160, 320)


def observables(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x**2, (2 * x).cos(), (3 * x).sin()], 1)


def density(u: float, sde: VPSDE = SDE) -> torch.Tensor:
    return sde.law(DATA, u).log_prob(LINE).exp()


def exact_values(u: float, sde: VPSDE = SDE) -> torch.Tensor:
    return torch.stack([expectation(sde.law(DATA, u), lambda x, i=i: observables(x)[:, i], 120) for i in range(4)])


def scheme(name: str, n: int, stop: float = STOP, sde: VPSDE = SDE):
    """Kernel and times of a scheme with n steps from u = 1 to ``stop``; step t of the chain is at ``clock[t]``."""
    clock = [0.0, *(stop + (1 - stop) * k / n for k in range(0 if stop else 1, n + 1))]
    q, score = GaussianDiffusion(observed(sde, clock[1:])), exact_score(sde, DATA)
    reverse, flow = sde.reverse(score), sde.reverse(score, noise=0.0)
    kernels = {
        "Euler–Maruyama": lambda x, s, t: euler_maruyama_step(reverse, x, clock[t], clock[s]),
        "ancestral": Ancestral(q, DATA.denoiser(q)),
        "DDIM": DDIM(q, DATA.denoiser(q)),
        "Heun": lambda x, s, t: Gaussian(heun(flow.drift, x, clock[t], clock[s]), 0.0),
    }
    return kernels[name], list(range(len(clock) - 1, 0 if stop else -1, -1))


def weak_error(name: str, n: int, stop: float = STOP, sde: VPSDE = SDE) -> float:
    kernel, times = scheme(name, n, stop, sde)
    if name in ("DDIM", "Heun"):
        ends = last(walk(kernel, LINE, times, noise=torch.zeros(n))).x
        found = SPACING * density(1.0, sde) @ observables(ends)
    else:
        found = expected_after(observables, kernel, LINE, density(1.0, sde), times)
    return (found - exact_values(stop, sde)).square().mean().sqrt().item()


def strong_errors(name: str, sizes, stop: float = STOP, sde: VPSDE = SDE) -> list[float]:
    """Root mean square error at the end: against the exact map of a flow, or against twice the steps on one path."""

    def end(n: int, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        kernel, times = scheme(name, n, stop, sde)
        return last(walk(kernel, x, times, noise=z)).x

    if name in ("DDIM", "Heun"):
        exact, mass = flow_map(sde, DATA, LINE, 1.0, stop), SPACING * density(1.0, sde)
        return [(mass @ (end(n, LINE, torch.zeros(n)) - exact).square()).sqrt().item() for n in sizes]
    generator = torch.Generator().manual_seed(0)
    x, finest = sde.law(DATA, 1.0).sample(2000, generator), 2 * sizes[-1]
    z = torch.randn(finest, 2000, 1, dtype=torch.float64, generator=generator)
    ends = [end(n, x, coarsened(z, finest // n)) for n in (*sizes, finest)]
    return [(a - b).square().mean().sqrt().item() for a, b in pairwise(ends)]


# --- the tools ------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_power_covers_the_truth_as_often_as_it_says():
    sizes, generator, hits = np.array([10, 20, 40, 80, 160]), np.random.default_rng(0), 0
    for _ in range(2000):
        law = power_law(sizes, 3 * sizes**-1.5 * np.exp(0.1 * generator.standard_normal(5)))
        hits += abs(law.exponent + 1.5) < law.half_width
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)
    assert str(power_law(sizes, 1 / sizes)) == "-1.00 ± 0.00"
    with pytest.raises(ValueError, match="2 sizes: expected at least 3"):
        power_law([1, 2], [1, 2])


def test_a_walk_of_exact_kernels_ends_in_the_exact_law():
    """Forward transitions of the SDE, run as a walk, move q_0.1 to q_0.5; the last step may be without noise."""
    clock = [0.5, 0.3, 0.2, 0.1]
    found = expected_after(
        observables, lambda x, s, t: SDE.transition(x, clock[t], clock[s]), LINE, density(0.1), [3, 2, 1, 0]
    )
    assert_close(found, exact_values(0.5), rtol=0, atol=1e-6)
    still = expected_after(observables, lambda x, s, t: Gaussian(x, 0.0), LINE, density(0.1), [1, 0])
    assert_close(still, exact_values(0.1), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"line: its spacing 0\.0167 is too wide for a standard deviation of 0"):
        expected_after(observables, lambda x, s, t: Gaussian(x, 0.0), LINE, density(0.1), [2, 1, 0])


def test_the_flow_keeps_ranks():
    """Gaussian data: the flow is x ↦ mean_v + (x − mean_u) √(V_v/V_u)."""
    one = GaussianMixture([1.0], [[0.7]], [0.3])
    early, late = SDE.law(one, 0.2), SDE.law(one, 0.8)
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None]
    expected = early.means[0] + (x - late.means[0]) * (early.variances / late.variances).sqrt()
    assert_close(flow_map(SDE, one, x, 0.8, 0.2), expected, rtol=0, atol=1e-9)
    there = flow_map(SDE, DATA, x, 0.3, 0.9)
    assert_close(flow_map(SDE, DATA, there, 0.9, 0.3), x, rtol=0, atol=1e-7)


def test_coarse_noise_is_the_fine_noise_summed():
    """Two schemes for dX = dW on one path end in the same point; the coarse noise has unit variance."""
    z = torch.randn(64, 20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    coarse = coarsened(z, 16)
    assert coarse.shape == (4, 20_000, 1)
    assert abs(coarse.var().item() - 1) < 4 * math.sqrt(2 / 80_000)

    def end(noise):
        n = len(noise)
        start = torch.zeros(20_000, 1, dtype=torch.float64)
        return last(walk(lambda x, s, t: Gaussian(x, 1 / n), start, range(n, -1, -1), noise=noise)).x

    assert_close(end(z), end(coarse), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="factor = 5: expected a divisor of the 64 steps"):
        coarsened(z, 5)


# --- the density by finite differences ------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "u", "v"), [(None, 0.0, 0.5), (0.0, 0.5, 0.1), (1.0, 0.5, 0.1), (2.0, 0.5, 0.1)])
def test_the_density_by_finite_differences_converges_to_the_closed_form_at_second_order(noise, u, v):
    """L-fp, L-rev-fp2: forwards, and backwards for every member of the reverse family."""
    process = SDE.forward() if noise is None else SDE.reverse(SCORE, noise)
    sizes, errors = (75, 150, 300), []
    for n in sizes:
        line = torch.linspace(-5, 5, n + 1, dtype=torch.float64)[:, None]
        start, exact = (SDE.law(DATA, time).log_prob(line).exp() for time in (u, v))
        *_, (last, p) = finite_differences(process, line, start, torch.linspace(u, v, n // 3 + 1, dtype=torch.float64))
        errors.append((p - exact).abs().max().item())
        assert last == pytest.approx(v)
        assert p.sum().item() * (line[1] - line[0]).item() == pytest.approx(1, abs=1e-4)
    assert errors[-1] < 2e-3
    assert power_law(sizes, errors).exponent == pytest.approx(-2, abs=0.15)


def test_the_density_by_finite_differences_knows_the_direction_of_time():
    """The reverse drift on the rising clock, as the slides print it, moves the density elsewhere."""
    backward, line = SDE.reverse(SCORE), torch.linspace(-5, 5, 151, dtype=torch.float64)[:, None]
    rising = Process(lambda y, tau: backward.drift(y, 1 - tau), lambda tau: backward.diffusion(1 - tau), 1)
    start, exact = (SDE.law(DATA, time).log_prob(line).exp() for time in (0.5, 0.3))
    *_, (_, p) = finite_differences(rising, line, start, torch.linspace(0.5, 0.7, 51, dtype=torch.float64))
    assert (p - exact).abs().max() > 0.2


# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order", "largest"), [("Euler–Maruyama", 1, 4e-3), ("ancestral", 1, 0.02), ("DDIM", 1, 7e-3)]
)
def test_weak_orders_down_to_a_fixed_time(name, order, largest):
    errors = [weak_error(name, n) for n in FEW]
    assert errors[-1] < largest
    assert power_law(FEW, errors).exponent == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize(
    ("name", "order", "largest"),
    [("Euler–Maruyama", 1, 4e-3), ("ancestral", 1, 5e-3), ("DDIM", 1, 4e-3), ("Heun", 2, 1e-5)],
)
def test_strong_orders_down_to_a_fixed_time(name, order, largest):
    """Euler–Maruyama has order 1 and not ½, because the noise is additive."""
    errors = strong_errors(name, MANY)
    assert errors[-1] < largest
    assert power_law(MANY, errors).exponent == pytest.approx(-order, abs=0.1)


def test_heun_has_weak_order_two():
    sizes = (10, 20, 40, 80)
    assert power_law(sizes, [weak_error("Heun", n) for n in sizes]).exponent == pytest.approx(-2, abs=0.15)


def test_down_to_the_data_paths_of_the_ancestral_sampler_have_order_one_half():
    """β̃/β is (t − 1)/t near the data: noises differ by √(β/n)/t or so, whose sum of squares is of order 1/n."""
    steady, sizes = linear_sde(3.0, 3.0), (10, 20, 40, 80, 160)
    ancestral = strong_errors("ancestral", sizes, stop=0.0, sde=steady)
    assert power_law(sizes, ancestral).exponent == pytest.approx(-0.5, abs=0.1)
    last = [math.sqrt(n) * error for n, error in zip(sizes[-2:], ancestral[-2:])]
    assert last[1] / last[0] == pytest.approx(1, abs=0.05)
    plain = strong_errors("Euler–Maruyama", sizes, stop=0.0, sde=steady)
    assert power_law(sizes, plain).exponent == pytest.approx(-1, abs=0.1)


def test_down_to_the_data_the_law_of_the_ancestral_sampler_errs_like_log_n_over_n():
    """n times the error grows with every doubling; for Euler–Maruyama it settles."""
    steady, sizes = linear_sde(3.0, 3.0), (20, 40, 80, 160)
    scaled = {
        name: np.array([n * weak_error(name, n, stop=0.0, sde=steady) for n in sizes])
        for name in ("ancestral", "Euler–Maruyama")
    }
    growth = np.diff(scaled["ancestral"])
    assert (growth > 0.5).all()
    assert growth.max() < 1.5 * growth.min()
    assert abs(np.diff(scaled["Euler–Maruyama"])[-1]) < 0.05


def test_ancestral_noise_near_the_data_is_short_by_one_over_t():
    schedule = observed(SDE, [k / 1000 for k in range(1, 1001)])
    for t in (1, 2, 3, 5, 10):
        ratio = (posterior_var(*schedule.levels(t - 1, t)) / schedule.beta(t)).item()
        assert ratio == pytest.approx((t - 1) / t, abs=0.06)


def corrected_error(n: int, factor: float) -> float:
    """Weak error with one Langevin step of size factor · g² |Δu| after each step in time: even times, then odd ones."""
    predictor, times = scheme("Euler–Maruyama", n)
    clock = [0.0, *(STOP + (1 - STOP) * k / n for k in range(n + 1))]

    def alternating(x, s, t):
        step, corrects = divmod(t, 2)
        size = factor * SDE.rate(clock[step]) * (1 - STOP) / n
        return langevin_step(SCORE, x, clock[step], size) if corrects else predictor(x, step - 1, step)

    twice = list(range(2 * times[0], 1, -1))
    found = expected_after(observables, alternating, LINE, density(1.0), twice)
    return (found - exact_values(STOP)).square().mean().sqrt().item()


def test_correctors_lower_the_error_if_their_steps_are_small_and_keep_its_order():
    plain = [weak_error("Euler–Maruyama", n) for n in (20, 40, 80)]
    good = [corrected_error(n, 1.0) for n in (20, 40, 80)]
    assert all(0.5 < b / a < 0.75 for a, b in zip(plain, good))
    assert power_law((20, 40, 80), good).exponent == pytest.approx(-1, abs=0.1)
    assert corrected_error(40, 4.0) > 1.3 * plain[1]  # too large a step has too large an error of its own
