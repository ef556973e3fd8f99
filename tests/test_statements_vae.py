"""Statements of the documents about latent variable models that no other test decides (register: vae)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy import integrate
from torch import Tensor
from torch.testing import assert_close

from ddpm_nb.bound import density_decoder, reverse_step
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture, expectation
from ddpm_nb.gaussian import Gaussian, conditional, observe
from ddpm_nb.schedule import NoiseSchedule, added_var

F64 = torch.float64
NODES = 150


def column(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=F64)


@dataclass(frozen=True)
class Model:
    """Prior N(a, b), decoder x | z ~ N(f(z), s2); posterior and evidence at x from sources of their own."""

    prior: tuple[float, float]
    decode: Callable[[Tensor], Tensor]
    s2: float
    x: float

    def log_prior(self, z: Tensor) -> Tensor:
        return Gaussian(torch.full_like(z, self.prior[0]), self.prior[1]).log_prob(z)

    def log_decoder(self, z: Tensor) -> Tensor:
        return Gaussian(self.decode(z), self.s2).log_prob(torch.full_like(z, self.x))

    def log_joint(self, z: Tensor) -> Tensor:
        return self.log_prior(z) + self.log_decoder(z)

    def log_evidence(self) -> float:
        def joint(z: float) -> float:
            return self.log_joint(column(z)).exp().item()

        points = [-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0]
        return math.log(integrate.quad(joint, -14, 14, points=points, epsabs=1e-15, epsrel=1e-13, limit=500)[0])

    def log_posterior(self, z: Tensor) -> Tensor:
        """Joint divided by its own sum over a grid: a density by construction, whatever the evidence."""
        grid = torch.linspace(-14, 14, 28_001, dtype=F64)[:, None]
        return self.log_joint(z) - self.log_joint(grid).logsumexp(0) - math.log(0.001)


W, NOISE, X = 0.9, 0.5, 1.5
LINEAR = Model((0.0, 1.0), lambda z: W * z, NOISE, X)
SINE = Model((0.0, 1.0), lambda z: torch.sin(2 * z) + z / 2, 0.3, 0.7)
OTHER_PRIOR = Model((0.4, 2.0), lambda z: torch.sin(2 * z) + z / 2, 0.3, 0.7)
MODELS = {"linear": LINEAR, "sine": SINE, "other_prior": OTHER_PRIOR}
ENCODERS = [(0.4, 0.25), (-0.6, 0.09), (1.1, 0.6)]
with_model = pytest.mark.parametrize("name", MODELS)
with_encoder = pytest.mark.parametrize(("m", "c"), ENCODERS)


def average(m: float, c: float, f: Callable[[Tensor], Tensor]) -> float:
    """E[f(Z)] for Z from the encoder N(m, c)."""
    return expectation(GaussianMixture([1.0], [[m]], [c]), f, NODES).item()


def log_encoder(m: float, c: float) -> Callable[[Tensor], Tensor]:
    return lambda z: Gaussian(torch.full_like(z, m), c).log_prob(z)


def bound(model: Model, m: float, c: float) -> float:
    log_q = log_encoder(m, c)
    return average(m, c, lambda z: model.log_joint(z) - log_q(z))


def test_evidence_and_posterior_of_a_linear_model_are_the_closed_forms():
    """∫ p(x | z) p(z) dz is N(x; 0, w² + s²), and Bayes' rule gives the law that `observe` returns."""
    closed = Gaussian(column(0.0), W**2 + NOISE).log_prob(column(X)).item()
    assert LINEAR.log_evidence() == pytest.approx(closed, abs=1e-12)
    posterior = observe(Gaussian(column(0.0), 1.0), W, NOISE, column(X))
    z = torch.linspace(-3, 4, 50, dtype=F64)[:, None]
    bayes = LINEAR.log_decoder(z) + LINEAR.log_prior(z) - closed
    assert_close(Gaussian(posterior.mean.expand_as(z), posterior.var).log_prob(z), bayes, rtol=0, atol=1e-12)


@with_model
def test_bayes_rule_makes_the_posterior_a_density(name):
    model = MODELS[name]
    log_evidence = model.log_evidence()

    def posterior(z: float) -> float:
        z = column(z)
        return (model.log_decoder(z) + model.log_prior(z) - log_evidence).exp().item()

    mass = integrate.quad(posterior, -14, 14, points=[-2.0, -1.0, 0.0, 1.0, 2.0], epsabs=1e-13, limit=500)[0]
    assert mass == pytest.approx(1, abs=1e-10)


def test_drawing_the_latent_and_decoding_it_draws_from_the_marginal(rng):
    """Moments of x = f(z) + noise against those of ∫ p(x | z) p(z) dz, with four standard errors."""
    n, g = 100_000, rng(0)
    z = Gaussian(torch.zeros(n, 1, dtype=F64), 1.0).sample(g)
    x = Gaussian(SINE.decode(z), SINE.s2).sample(g)[:, 0]
    unit = GaussianMixture([1.0], [[0.0]], [1.0])
    second = expectation(unit, lambda z: (SINE.decode(z) ** 2)[:, 0], NODES) + SINE.s2
    assert abs(x.mean()) < 4 * x.std() / math.sqrt(n)  # the decoder is odd
    assert abs(x.square().mean() - second) < 4 * x.square().std() / math.sqrt(n)
    for edge in (-0.5, 0.7):
        below = expectation(
            unit, lambda z, e=edge: torch.special.ndtr((e - SINE.decode(z)) / SINE.s2**0.5)[:, 0], NODES
        )
        assert abs((x < edge).double().mean() - below) < 4 * (below * (1 - below) / n).sqrt()


@with_encoder
@with_model
def test_log_evidence_is_bound_plus_gap_line_by_line(name, m, c):
    """Li (1)-(7): every line of the derivation equals log p(x), for every encoder."""
    model, log_q = MODELS[name], log_encoder(m, c)
    log_evidence = model.log_evidence()
    joint, posterior = model.log_joint, model.log_posterior
    lines = {
        1: log_evidence * average(m, c, lambda z: torch.ones_like(z[:, 0])),
        2: integrate.quad(lambda z: log_evidence * log_q(column(z)).exp().item(), m - 9 * c**0.5, m + 9 * c**0.5)[0],
        3: average(m, c, lambda z: torch.full_like(z[:, 0], log_evidence)),
        4: average(m, c, lambda z: joint(z) - posterior(z)),
        5: average(m, c, lambda z: (joint(z) - posterior(z)) + (log_q(z) - log_q(z))),
        6: average(m, c, lambda z: joint(z) - log_q(z)) + average(m, c, lambda z: log_q(z) - posterior(z)),
    }
    for number, value in lines.items():
        assert value == pytest.approx(log_evidence, abs=1e-9), number
    grid = torch.linspace(-12, 12, 24_001, dtype=F64)[:, None]  # (7): the divergence by an integral of its own
    divergence = torch.trapezoid(log_q(grid).exp() * (log_q(grid) - posterior(grid)), grid[:, 0]).item()
    assert divergence > 0
    assert bound(model, m, c) + divergence == pytest.approx(log_evidence, abs=1e-9)


@with_encoder
def test_the_divergence_to_the_posterior_is_the_gap_in_closed_form(m, c):
    posterior = observe(Gaussian(column(0.0), 1.0), W, NOISE, column(X))
    gap = Gaussian(column(m), c).kl(posterior).item()
    assert LINEAR.log_evidence() - bound(LINEAR, m, c) == pytest.approx(gap, abs=1e-10)


@with_encoder
def test_the_identity_fails_if_the_two_densities_belong_to_another_model(m, c):
    """The parameter that is missing in print: a joint and a posterior of another θ do not give log p_θ(x)."""
    log_q = log_encoder(m, c)
    other = Model(LINEAR.prior, lambda z: 1.4 * z, NOISE, X)
    log_evidence = LINEAR.log_evidence()
    mixed = bound(other, m, c) + average(m, c, lambda z: log_q(z) - LINEAR.log_posterior(z))
    split = bound(LINEAR, m, c) + average(m, c, lambda z: log_q(z) - other.log_posterior(z))
    assert abs(mixed - log_evidence) > 0.01
    assert abs(split - log_evidence) > 0.01


@with_encoder
@with_model
def test_the_bound_is_reconstruction_minus_divergence_to_the_prior(name, m, c):
    """Li (8)-(12), with the divergence in closed form; the prior may be any fixed Gaussian."""
    model, log_q = MODELS[name], log_encoder(m, c)
    reconstruction = average(m, c, model.log_decoder)
    divergence = Gaussian(column(m), c).kl(Gaussian(column(model.prior[0]), model.prior[1])).item()
    lines = {
        8: average(m, c, lambda z: model.log_decoder(z) + model.log_prior(z) - log_q(z)),
        9: reconstruction + average(m, c, lambda z: model.log_prior(z) - log_q(z)),
        10: reconstruction - divergence,
    }
    for number, value in lines.items():
        assert value == pytest.approx(bound(model, m, c), abs=1e-10), number


@with_model
def test_the_bound_is_below_log_evidence_for_every_encoder(name):
    model = MODELS[name]
    log_evidence = model.log_evidence()
    for m in (-1.5, -0.3, 0.0, 0.6, 1.4):
        for c in (0.02, 0.2, 1.0):
            assert bound(model, m, c) < log_evidence


def test_the_bound_touches_log_evidence_at_the_posterior_only():
    posterior = observe(Gaussian(column(0.0), 1.0), W, NOISE, column(X))
    m, c = posterior.mean.item(), posterior.var.item()
    assert bound(LINEAR, m, c) == pytest.approx(LINEAR.log_evidence(), abs=1e-12)
    for off in (bound(LINEAR, m + 0.05, c), bound(LINEAR, m - 0.05, c), bound(LINEAR, m, 1.1 * c)):
        assert LINEAR.log_evidence() - off > 1e-3


def linear_bound(m: float, c: float, w: float) -> float:
    """The bound of the linear model in closed form."""
    reconstruction = -0.5 * math.log(2 * math.pi * NOISE) - ((X - w * m) ** 2 + w**2 * c) / (2 * NOISE)
    return reconstruction - 0.5 * (m**2 + c - 1 - math.log(c))


def test_maximizing_over_the_encoder_closes_the_gap_and_over_the_decoder_need_not_raise_the_likelihood():
    m, c = 0.5, 0.1
    assert linear_bound(m, c, W) == pytest.approx(bound(LINEAR, m, c), abs=1e-12)

    def log_evidence(w: float) -> float:
        return Gaussian(column(0.0), w**2 + NOISE).log_prob(column(X)).item()

    # Over the encoder: log p does not move, so every rise of the bound is a fall of the gap.
    prior = Gaussian(column(0.0), 1.0)
    posterior = observe(prior, W, NOISE, column(X))
    gain = bound(LINEAR, 0.8, 0.2) - bound(LINEAR, m, c)
    fall = Gaussian(column(m), c).kl(posterior).item() - Gaussian(column(0.8), 0.2).kl(posterior).item()
    assert gain == pytest.approx(fall, abs=1e-10)
    # Over the decoder: from the best likelihood to the best bound, one rises and the other falls.
    best_likelihood = math.sqrt(X**2 - NOISE)
    best_bound = X * m / (m**2 + c)
    assert linear_bound(m, c, best_bound) > linear_bound(m, c, best_likelihood) + 0.1
    assert log_evidence(best_bound) < log_evidence(best_likelihood) - 0.01


def test_the_divergence_pulls_the_encoder_to_the_prior_and_moves_no_prior():
    """The best encoder under a factor on the divergence: from the data's own answer to the prior."""
    answers = []
    for factor in (1e-6, 0.5, 1.0, 4.0, 1e6):
        # maximise E log p(x | z) − factor KL(q ‖ p): a Gaussian with precision w²/s² / factor + 1
        precision = W**2 / NOISE / factor + 1
        m, c = W * X / NOISE / factor / precision, 1 / precision

        def objective(m: float, c: float, factor: float = factor) -> float:
            divergence = Gaussian(column(m), c).kl(Gaussian(column(0.0), 1.0)).item()
            return -((X - W * m) ** 2 + W**2 * c) / (2 * NOISE) - factor * divergence

        best = objective(m, c)
        assert all(best >= objective(m + dm, c * dc) for dm in (-0.05, 0, 0.05) for dc in (0.9, 1, 1.1))
        answers.append((m, c))
    assert answers[0][0] == pytest.approx(X / W, abs=1e-5)  # no divergence: the latent that decodes to x
    assert answers[-1] == pytest.approx((0.0, 1.0), abs=1e-5)  # nothing but divergence: the prior
    assert [m for m, _ in answers] == sorted((m for m, _ in answers), reverse=True)


def test_the_decoder_can_be_evaluated_while_the_evidence_is_an_integral(draw):
    x, z = draw(5, 3), draw(5, 3, seed=1)
    mean, var = torch.sin(2 * z) + z / 2, 0.3
    written_out = -0.5 * ((x - mean).square().sum(1) / var + 3 * math.log(2 * math.pi * var))
    assert_close(density_decoder(x, Gaussian(mean, var)), written_out, rtol=1e-13, atol=1e-13)
    # One value of the decoder is no estimate of the evidence: it depends on z, which the evidence does not.
    assert density_decoder(x[:1], Gaussian(mean, var)).std() > 1


@pytest.mark.parametrize("d", [2, 12])
def test_a_law_can_be_written_down_directly_as_a_product_of_conditionals(draw, d):
    """An autoregressive Gaussian: one conditional for each coordinate, no latent, no integral, mass one."""
    root = draw(d, d) / math.sqrt(d) + torch.eye(d, dtype=F64)
    mean, cov, x = draw(d, seed=1), root @ root.mT, draw(d, seed=2)
    total = Gaussian(mean[:1], cov[0, 0]).log_prob(x[:1])
    for i in range(1, d):
        m, v = conditional(mean[: i + 1], cov[: i + 1, : i + 1], list(range(i)), x[:i])
        total = total + Gaussian(m, v[0]).log_prob(x[i : i + 1])
    exact = torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
    assert_close(total[0], exact, rtol=1e-10, atol=1e-10)


# --- the ladder ---

LADDER = GaussianDiffusion(NoiseSchedule.from_betas([0.3, 0.4]))
GRID = torch.linspace(-7, 7, 141, dtype=F64)
WIDTH = (GRID[1] - GRID[0]).item()


def table(step: Callable[[Tensor], Gaussian]) -> Tensor:
    """Density of a step on the grid, from row to column."""
    law = step(GRID[:, None])
    return torch.exp(-0.5 * (GRID - law.mean) ** 2 / law.var) / (2 * math.pi * law.var).sqrt()


def down(t: int) -> Tensor:
    return table(lambda x: reverse_step(LADDER, lambda x_t, _: torch.tanh(2 * x_t), x, t, added_var))


def test_the_generative_ladder_has_mass_one_and_each_level_sees_only_the_level_above():
    top = Gaussian(torch.zeros(141, 1, dtype=F64), 1.0).log_prob(GRID[:, None]).exp()
    joint = top[:, None, None] * down(2)[:, :, None] * down(1)[None]  # z_2, z_1, x
    assert joint.sum().item() * WIDTH**3 == pytest.approx(1, abs=1e-6)
    x_given_both = joint / joint.sum(2, keepdim=True)
    likely = joint.sum(2) > 1e-12
    spread = (x_given_both - down(1)[None] / down(1).sum(1)[None, :, None]).abs().sum(2)
    assert spread[likely].max() < 1e-9  # p(x | z_1, z_2) = p(x | z_1)


def test_the_encoder_ladder_has_mass_one_and_its_levels_are_the_marginals():
    x_0 = column(0.8)
    first = LADDER.transition(x_0, 0, 1)
    bottom = Gaussian(first.mean.expand(141, 1), first.var).log_prob(GRID[:, None]).exp()
    joint = bottom[:, None] * table(lambda x: LADDER.transition(x, 1, 2))  # z_1, z_2
    assert joint.sum().item() * WIDTH**2 == pytest.approx(1, abs=1e-10)
    marginal = LADDER.marginal(x_0, 2)
    expected = Gaussian(marginal.mean.expand(141, 1), marginal.var).log_prob(GRID[:, None]).exp()
    assert_close(joint.sum(0) * WIDTH, expected, rtol=0, atol=1e-10)
