"""Statements of the documents about the bound of a diffusion model that no other test decides (register: elbo).

A chain of three steps on the line, so short that whole paths fit on a grid: expectations over them are plain sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm_nb.bound import (
    bound_terms,
    density_decoder,
    prior_term,
    reconstruction_term,
    reverse_step,
    step_term,
)
from ddpm_nb.denoiser import Denoiser
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.schedule import NoiseSchedule, added_var

F64 = torch.float64
BETAS = [0.3, 0.4, 0.5]
Q = GaussianDiffusion(NoiseSchedule.from_betas(BETAS))
T = len(BETAS)
DATA = GaussianMixture([0.35, 0.65], [[-1.2], [0.8]], [0.04, 0.09])
VARIANCES = {"beta_tilde": posterior_var, "beta": added_var}
GRID = torch.linspace(-7, 7, 113, dtype=F64)
N, WIDTH = len(GRID), (GRID[1] - GRID[0]).item()


def poor(x_t: Tensor, t: int) -> Tensor:
    return torch.tanh(x_t) - 0.1 * t


DENOISERS: dict[str, Denoiser] = {"best": DATA.denoiser(Q), "poor": poor}


def log_table(law: Gaussian) -> Tensor:
    """Log density of a law for each row, at every point of the grid."""
    return -0.5 * ((GRID - law.mean) ** 2 / law.var + torch.log(2 * math.pi * law.var))


@dataclass(frozen=True)
class Paths:
    """Every log density along (x_1, x_2, x_3), axes in this order, for one x_0."""

    x_0: float
    denoise: Denoiser
    variance: Callable

    @property
    def start(self) -> Tensor:
        return torch.tensor([[self.x_0]], dtype=F64)

    def _forward(self, t: int) -> Tensor:
        x = self.start if t == 1 else GRID[:, None]
        return log_table(Q.transition(x, t - 1, t))

    @cached_property
    def q_steps(self) -> list[Tensor]:
        """log q(x_t | x_{t−1}), t = 1, 2, 3."""
        first, second, third = (self._forward(t) for t in (1, 2, 3))
        return [first[0][:, None, None], second[:, :, None], third[None]]

    @cached_property
    def q_marginals(self) -> list[Tensor]:
        """log q(x_t | x_0), t = 1, 2, 3."""
        one, two, three = (log_table(Q.marginal(self.start, t))[0] for t in (1, 2, 3))
        return [one[:, None, None], two[None, :, None], three[None, None]]

    @cached_property
    def q_back(self) -> list[Tensor]:
        """log q(x_{t−1} | x_t, x_0), t = 2, 3, from the package's posterior."""
        clean = self.start.expand(N, 1)
        two, three = (log_table(Q.posterior(clean, GRID[:, None], t - 1, t)).mT for t in (2, 3))
        return [two[:, :, None], three[None]]

    @cached_property
    def p_steps(self) -> list[Tensor]:
        """log p(x_{t−1} | x_t), t = 1, 2, 3."""
        laws = [reverse_step(Q, self.denoise, GRID[:, None], t, self.variance) for t in (1, 2, 3)]
        first = laws[0].log_prob(self.start.expand(N, 1))
        return [first[:, None, None], log_table(laws[1]).mT[:, :, None], log_table(laws[2]).mT[None]]

    @cached_property
    def p_top(self) -> Tensor:
        return log_table(Gaussian(torch.zeros(1, 1, dtype=F64), 1.0))[0][None, None]

    @cached_property
    def log_q(self) -> Tensor:
        return sum(self.q_steps)

    @cached_property
    def log_p(self) -> Tensor:
        return self.p_top + sum(self.p_steps)

    @cached_property
    def log_evidence(self) -> float:
        return (self.log_p.exp().sum() * WIDTH**3).log().item()

    @cached_property
    def _mass(self) -> Tensor:
        return self.log_q.exp() * WIDTH**3

    def mean(self, f: Tensor) -> float:
        """E[f] over the forward paths from x_0."""
        return (self._mass * f).sum().item()

    @cached_property
    def bound(self) -> float:
        return self.mean(self.log_p - self.log_q)

    def terms(self) -> list[float]:
        """L_0, E L_1, E L_2, L_T by the package's terms and quadrature."""

        def average(t: int, f: Callable[[Tensor], Tensor]) -> float:
            law = Q.marginal(self.start, t)
            return expectation(GaussianMixture([1.0], law.mean, law.var.reshape(1)), f, 120).item()

        def clean(x: Tensor) -> Tensor:
            return self.start.expand_as(x)

        last = average(1, lambda x: reconstruction_term(Q, self.denoise, clean(x), x, density_decoder))
        steps = [
            average(t, lambda x, t=t: step_term(Q, self.denoise, clean(x), x, t, self.variance))
            for t in range(2, T + 1)
        ]
        return [last, *steps, prior_term(Q, self.start).item()]


CASES = [(denoiser, variance, x_0) for denoiser in DENOISERS for variance, x_0 in zip(VARIANCES, (0.7, -1.0))]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def paths(request) -> Paths:
    denoiser, variance, x_0 = request.param
    return Paths(x_0, DENOISERS[denoiser], VARIANCES[variance])


# --- the model ---


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_models_step_is_a_gaussian_with_the_stated_moments(name, t):
    before, after = math.prod(1 - b for b in BETAS[: t - 1]), math.prod(1 - b for b in BETAS[:t])
    beta = BETAS[t - 1]
    var = beta if name == "beta" or t == 1 else beta * (1 - before) / (1 - after)
    fine, wide = torch.linspace(-9, 9, 3601, dtype=F64), 0.005
    for x_t in (-1.3, 0.2, 2.0):
        state = torch.tensor([[x_t]], dtype=F64)
        law = reverse_step(Q, poor, state, t, VARIANCES[name])
        density = Gaussian(law.mean.expand(len(fine), 1), law.var).log_prob(fine[:, None]).exp()
        mean = (math.sqrt(before) * beta * poor(state, t).item() + math.sqrt(1 - beta) * (1 - before) * x_t) / (
            1 - after
        )
        assert density.sum().item() * wide == pytest.approx(1, abs=1e-12)
        assert (density * fine).sum().item() * wide == pytest.approx(mean, abs=1e-12)
        assert (density * (fine - mean) ** 2).sum().item() * wide == pytest.approx(var, rel=1e-11)


def test_a_step_with_a_learned_diagonal_covariance_is_normalized_with_its_moments():
    """Σ_θ(x_t, t) that depends on state and coordinate: still a law, coordinate by coordinate."""
    x_t = torch.tensor([[0.4, -1.1]], dtype=F64)
    mean, var = torch.tanh(x_t), 0.1 + x_t.square() / 4
    fine = torch.linspace(-7, 7, 281, dtype=F64)
    points = torch.cartesian_prod(fine, fine)
    density = Gaussian(mean.expand_as(points), var.expand_as(points)).log_prob(points).exp() * 0.05**2
    assert density.sum().item() == pytest.approx(1, abs=1e-10)
    assert_close(density @ points, mean[0], rtol=0, atol=1e-10)
    shift = points - mean
    assert_close(shift.mT @ (density[:, None] * shift), torch.diag(var[0]), rtol=0, atol=1e-10)


def test_the_joint_law_of_the_model_has_mass_one_and_marginalizes_step_by_step(paths):
    """∫ p(x_{0:T}) dx_{1:T} on whole paths is the density that one reverse step after the other delivers."""
    density = paths.p_top[0, 0].exp()
    for t in (3, 2):
        density = WIDTH * density @ log_table(reverse_step(Q, paths.denoise, GRID[:, None], t, paths.variance)).exp()
    last = reverse_step(Q, paths.denoise, GRID[:, None], 1, paths.variance)
    at_x_0 = WIDTH * density @ last.log_prob(paths.start.expand(N, 1)).exp()
    assert math.log(at_x_0.item()) == pytest.approx(paths.log_evidence, abs=1e-11)
    over_all_x_0 = WIDTH**2 * (density @ log_table(last).exp()).sum()
    assert over_all_x_0.item() == pytest.approx(1, abs=1e-6)


def test_the_prior_term_is_the_same_for_every_model(rng):
    x_0 = DATA.sample(50, rng(0))
    best, other = (
        bound_terms(Q, denoise, x_0, rng(1), variance=variance)
        for denoise, variance in zip(DENOISERS.values(), VARIANCES.values())
    )
    assert torch.equal(best.prior, other.prior)
    assert (best.steps - other.steps).abs().min() > 0
    assert (best.reconstruction - other.reconstruction).abs().min() > 0


# --- the bound ---


def test_the_likelihood_is_the_mean_importance_weight_of_forward_paths(paths, rng):
    assert paths.mean(torch.ones_like(paths.log_q)) == pytest.approx(1, abs=1e-8)
    assert paths.mean((paths.log_p - paths.log_q).exp()) == pytest.approx(math.exp(paths.log_evidence), rel=1e-6)
    if paths.variance is VARIANCES["beta"]:  # the other one's weights have heavy tails: sums decide it, draws do not
        n, g = 40_000, rng(2)
        x_s, log_weight = paths.start.expand(n, 1), torch.zeros(n, dtype=F64)
        for t in range(1, T + 1):
            ahead = Q.transition(x_s, t - 1, t)
            x_t = ahead.sample(g)
            step = reverse_step(Q, paths.denoise, x_t, t, paths.variance)
            log_weight += step.log_prob(x_s) - ahead.log_prob(x_t)
            x_s = x_t
        weight = (log_weight + Gaussian(torch.zeros(n, 1, dtype=F64), 1.0).log_prob(x_s)).exp()
        error = weight.std().item() / math.sqrt(n)
        assert abs(weight.mean().item() - math.exp(paths.log_evidence)) < 4 * error
        assert error < 0.02 * weight.mean()


def test_the_bound_is_below_the_likelihood_by_the_divergence_to_the_models_own_paths(paths):
    posterior = paths.log_p - paths.log_evidence  # log p(x_{1:T} | x_0)
    gap = paths.mean(paths.log_q - posterior)
    assert gap > 1e-3
    assert paths.log_evidence - paths.bound == pytest.approx(gap, abs=1e-7)
    assert paths.bound < paths.log_evidence


def test_jensens_inequality_is_the_only_inequality_of_the_proof():
    """Vilhes 8.2 for data on two values: lines 1-3 are equal, lines 4-6 are equal, and 3 exceeds 4."""
    weights = (0.4, 0.6)
    both = [Paths(x_0, DENOISERS["best"], VARIANCES["beta"]) for x_0 in (-1.0, 0.7)]
    evidence = sum(w * p.log_evidence for w, p in zip(weights, both))
    by_weight = sum(w * math.log(p.mean((p.log_p - p.log_q).exp())) for w, p in zip(weights, both))
    nested = sum(w * p.mean(p.log_p - p.log_q) for w, p in zip(weights, both))
    mass = torch.stack([w * p.log_q.exp() for w, p in zip(weights, both)]) * WIDTH**3  # q(x_{0:T})
    ratio = torch.stack([p.log_p - p.log_q for p in both])
    assert by_weight == pytest.approx(evidence, abs=1e-6)
    assert (mass * ratio).sum().item() == pytest.approx(nested, abs=1e-12)
    assert -(mass * -ratio).sum().item() == pytest.approx(nested, abs=1e-12)
    assert evidence > nested + 1e-3


def test_the_two_products_written_as_sums_are_the_negative_bound(paths):
    """Roysdon (8), Malhotra (4.4): sums of log densities over the steps."""
    written_out = paths.mean(paths.p_top) + sum(paths.mean(f) for f in paths.p_steps)
    written_out -= sum(paths.mean(f) for f in paths.q_steps)
    assert written_out == pytest.approx(paths.bound, abs=1e-10)
    joint_minus_encoder = paths.mean(paths.log_p) - paths.mean(paths.log_q)
    assert joint_minus_encoder == pytest.approx(paths.bound, abs=1e-10)


def test_three_parts_are_the_negative_bound(paths):
    """Roysdon (9), Vilhes (3): the package's terms, averaged by quadrature, against the definition on whole paths."""
    terms = paths.terms()
    assert sum(terms) == pytest.approx(-paths.bound, abs=1e-7)
    assert min(terms[1:]) > 0
    assert -paths.bound > -paths.log_evidence


def test_sampled_terms_average_to_the_negative_bound(paths, rng):
    n = 20_000
    total = bound_terms(Q, paths.denoise, paths.start.expand(n, 1), rng(3), variance=paths.variance).total
    assert abs(total.mean().item() + paths.bound) < 4 * total.std().item() / math.sqrt(n)


def test_every_line_of_the_telescoping_holds_path_by_path(draw):
    """Vilhes 8.3 before any expectation, for paths that are not even drawn from q, in two dimensions."""
    x = [2 * draw(30, 2, seed=t) for t in range(T + 1)]
    q = [None, *(Q.transition(x[t - 1], t - 1, t).log_prob(x[t]) for t in range(1, T + 1))]
    p = [None, *(reverse_step(Q, poor, x[t], t).log_prob(x[t - 1]) for t in range(1, T + 1))]
    marginal = [None, *(Q.marginal(x[0], t).log_prob(x[t]) for t in range(1, T + 1))]
    back = [None, None, *(Q.posterior(x[0], x[t], t - 1, t).log_prob(x[t - 1]) for t in range(2, T + 1))]
    top = Gaussian(torch.zeros(30, 2, dtype=F64), 1.0).log_prob(x[T])
    later = range(2, T + 1)
    start = sum(q[1:]) - (top + sum(p[1:]))
    lines = [
        -top + sum(q[t] - p[t] for t in range(1, T + 1)),
        -top + sum(q[t] - p[t] for t in later) + q[1] - p[1],
        -top + sum(back[t] - p[t] + marginal[t] - marginal[t - 1] for t in later) + q[1] - p[1],
        -top + sum(back[t] - p[t] for t in later) + marginal[T] - marginal[1] + q[1] - p[1],
        marginal[T] - top + sum(back[t] - p[t] for t in later) - marginal[1] + q[1] - p[1],
        marginal[T] - top + sum(back[t] - p[t] for t in later) - p[1],
    ]
    for line in lines:
        assert_close(line, start, rtol=1e-11, atol=1e-10)
    slipped = lines[-1] - (marginal[T] - top) + marginal[T].exp() / top  # q / log p, as printed
    assert (slipped - start).abs().min() > 1e-3


def test_reconstruction_minus_one_divergence_of_paths(paths):
    """Malhotra (4.5) with all latents as one: the divergence is L_T plus the steps, and trains p since q is fixed."""
    latents = paths.p_top + paths.p_steps[1] + paths.p_steps[2]
    divergence = paths.mean(paths.log_q - latents)
    assert paths.mean(paths.p_steps[0]) - divergence == pytest.approx(paths.bound, abs=1e-10)
    _, *steps, top = paths.terms()
    assert divergence == pytest.approx(sum(steps) + top, abs=1e-7)
    # another model, the same q: only the steps move
    other = Paths(paths.x_0, lambda x_t, t: 0.5 * x_t, paths.variance)
    assert torch.equal(other.log_q, paths.log_q)
    _, *other_steps, other_top = other.terms()
    assert other_top == top
    assert abs(sum(other_steps) - sum(steps)) > 1e-3


def test_the_bound_needs_the_posterior_in_the_denominator_and_its_prior_term(paths):
    """Malhotra (4.6), (4.7), (4.9) as they should be, and by how much the printed forms are off."""
    _, *steps, top = paths.terms()
    ratios = [paths.mean(paths.p_steps[t - 1] - paths.q_back[t - 2]) for t in (2, 3)]
    assert ratios == pytest.approx([-kl for kl in steps], abs=1e-7)
    decoder = paths.mean(paths.p_steps[0])
    assert decoder + sum(ratios) + paths.mean(paths.p_top - paths.q_marginals[2]) == pytest.approx(
        paths.bound, abs=1e-7
    )
    assert decoder - sum(steps) - top == pytest.approx(paths.bound, abs=1e-7)
    # without its prior term: above the bound by exactly that term
    assert decoder - sum(steps) - paths.bound == pytest.approx(top, abs=1e-7)
    assert top > 0.01
    # with the forward kernel in the denominator and the ends left out: above it by E log q(x_1 | x_0) / p(x_T)
    printed = decoder + sum(paths.mean(paths.p_steps[t - 1] - paths.q_steps[t - 1]) for t in (2, 3))
    last = Q.marginal(paths.start, T)
    ends = -0.5 * math.log(math.e * BETAS[0]) + 0.5 * (last.mean.item() ** 2 + last.var.item())
    assert printed - paths.bound == pytest.approx(ends, abs=1e-7)
    assert printed > paths.log_evidence


def test_a_divergence_outside_the_expectation_is_random_and_may_exceed_the_likelihood(rng):
    paths = Paths(0.7, DENOISERS["best"], VARIANCES["beta"])
    last, *_, top = paths.terms()
    n, g = 20_000, rng(4)
    clean = paths.start.expand(n, 1)
    states = {t: Q.marginal(clean, t).sample(g) for t in (2, 3)}
    steps = sum(step_term(Q, paths.denoise, clean, x_t, t, paths.variance) for t, x_t in states.items())
    right_side = -last - steps - top
    assert (right_side > paths.log_evidence).double().mean() > 0.05
    assert abs(right_side.mean().item() - paths.bound) < 4 * right_side.std().item() / math.sqrt(n)
    assert paths.bound < paths.log_evidence


def test_lowering_one_divergence_is_not_raising_the_bound():
    best = Paths(0.7, DENOISERS["best"], VARIANCES["beta"])
    one_step_only = Paths(0.7, lambda x_t, t: torch.full_like(x_t, 0.7 if t == 2 else -1.0), VARIANCES["beta"])
    assert one_step_only.terms()[1] < best.terms()[1]
    assert sum(one_step_only.terms()) > sum(best.terms()) + 0.1


def test_with_a_fixed_encoder_the_bound_may_rise_while_the_likelihood_falls():
    """One step, x̂_0 = k x_1: both as functions of the model's only parameter k."""
    q, x_0 = GaussianDiffusion(NoiseSchedule.from_betas([0.6])), torch.tensor([[1.5]], dtype=F64)
    law = q.marginal(x_0, 1)
    encoder = GaussianMixture([1.0], law.mean, law.var.reshape(1))
    unit = GaussianMixture([1.0], [[0.0]], [1.0])

    def bound(k: float) -> float:
        def term(x_1: Tensor) -> Tensor:
            return reconstruction_term(q, lambda x, t: k * x, x_0.expand_as(x_1), x_1, density_decoder)

        return -(expectation(encoder, term) + prior_term(q, x_0)[0]).item()

    def log_evidence(k: float) -> float:
        def density(x_1: Tensor) -> Tensor:
            return reverse_step(q, lambda x, t: k * x, x_1, 1).log_prob(x_0.expand_as(x_1)).exp()

        return expectation(unit, density, 100).log().item()

    for k in (0.5, 1.0, 2.0):
        assert log_evidence(k) == pytest.approx(
            Gaussian(torch.zeros(1, 1, dtype=F64), k**2 + 0.6).log_prob(x_0).item(), abs=1e-9
        )
        assert bound(k) < log_evidence(k)
    best_bound = (x_0 * law.mean / (law.mean**2 + law.var)).item()
    best_likelihood = math.sqrt(x_0.item() ** 2 - 0.6)
    assert bound(best_bound) > bound(best_likelihood) + 0.01
    assert log_evidence(best_bound) < log_evidence(best_likelihood) - 0.01
