import math

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.belief import Belief
from ddpm_nb.bound import bound_terms, discretized_decoder, eps_weight, ledger, simple_loss
from ddpm_nb.denoiser import PARAMETERIZATIONS, NetworkDenoiser
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.recipe import Recipe
from ddpm_nb.schedule import log_snr_schedule

Q = GaussianDiffusion(log_snr_schedule(1000))
GREYS = torch.linspace(-1, 1, 256, dtype=torch.float64)
TIMES = [1, 2, 50, 100, 150, 180, 190, 200, 220, 300, 500, 800, 1000]


def answers(n: int, seed: int, parts: int = 1) -> torch.Tensor:
    """Answers of a network for n pixels, narrow and wide beliefs among them: ``(n, 3 parts + 2, 1, 1)``, float64."""
    y = torch.randn(n, 3 * parts + 2, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y[:, :parts] *= 0.6
    y[:, parts : 2 * parts] = y[:, parts : 2 * parts] * 3 - 3
    return y


def log_belief(belief: Belief, y: torch.Tensor) -> torch.Tensor:
    """log π(g) of every grey level, by its definition: ``(n, 256)``."""
    mu, tau, weight = (part.flatten(1)[..., None] for part in belief.stated(y))
    bumps = (-0.5 * ((GREYS - mu) / tau) ** 2).log_softmax(2) + weight[:, : belief.parts]
    ends = torch.full_like(bumps[:, 0], -math.inf)
    ends[:, 0], ends[:, -1] = weight[:, -2, 0], weight[:, -1, 0]
    return torch.logaddexp(bumps.logsumexp(1), ends)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("t", TIMES)
def test_the_estimate_is_bayes_rule_summed_over_all_grey_levels(t, parts):
    belief, y = Belief(parts=parts), answers(4000, seed=t, parts=parts)
    prior = log_belief(belief, y)
    grey = GREYS[torch.multinomial(prior.exp(), 1, generator=torch.Generator().manual_seed(t))]
    level = Q.schedule.level(t)
    x_t = (
        level.signal * grey + level.noise * torch.randn(grey.shape, generator=torch.Generator().manual_seed(1)).double()
    )
    posterior = (prior - (x_t - level.signal * GREYS) ** 2 / (2 * level.noise_var)).softmax(1)
    found = belief.x_0(Q, y, x_t[:, :, None, None], t).flatten()
    error = (found - posterior @ GREYS).abs() / belief.spacing
    within = (belief.stated(y)[0].abs() <= 1).flatten(1).all(1)
    # Nine levels, or an integral for a sum: the worst is where an end of the grey scale cuts a narrow law. That weighs
    # a part whose mean is outside a little wrongly, which moves the estimate where other parts are far from it.
    assert error.median() < 1e-6 and error[within].max() < 0.01 and error.max() < (0.15 if parts == 1 else 1.0)


def test_with_weight_on_the_ends_only_the_estimate_is_that_of_two_points():
    y = torch.tensor([0.0, 0.0, -1e5, 0.3, -0.4], dtype=torch.float64).reshape(1, 5, 1, 1)
    x_t = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for t in (300, 700, 1000):
        level = Q.schedule.level(t)
        expected = torch.tanh(x_t * level.signal / level.noise_var - 0.35)
        assert_close(Belief().x_0(Q, y.expand(101, -1, -1, -1), x_t, t), expected, rtol=1e-12, atol=1e-12)


def test_where_the_noise_is_narrower_than_a_grey_level_the_estimate_is_a_grey_level():
    grey = GREYS.float().reshape(-1, 1, 1, 1)
    x_1 = Q.diffuse(grey, torch.full_like(grey, 2.0), 1)  # two deviations off, a third of a spacing
    y = torch.tensor([0.0, 0.0, 0.0, -9.0, -9.0]).reshape(1, 5, 1, 1)  # as good as no weight on the ends
    found = Belief().x_0(Q, y.expand(256, -1, -1, -1), x_1, 1)
    assert (found - grey).abs().max() < 0.01 * Belief().spacing
    assert (x_1 - grey).abs().min() > 0.3 * Belief().spacing


def test_the_error_is_that_of_the_noise(draw):
    belief, y = Belief(), answers(50, seed=0)
    x_0, eps = draw(50, 1, 1, 1, seed=1).clamp(-1, 1), draw(50, 1, 1, 1, seed=2)
    t = torch.arange(1, 1000, 20)
    x_t = Q.diffuse(x_0, eps, t)
    error = belief.error(Q, y, x_0, eps, x_t, t)
    assert_close(error, belief.eps(Q, y, x_t, t) - eps, rtol=1e-9, atol=1e-9)
    network = lambda x, steps: y  # noqa: E731
    assert_close(simple_loss(Q, network, x_0, t, eps, belief), error.flatten() ** 2, rtol=1e-12, atol=0.0)


def test_gradients_are_finite_for_any_answer_at_any_noise():
    y = (torch.randn(1000, 5, 1, 1, generator=torch.Generator().manual_seed(0)) * 30).requires_grad_()
    x_0 = torch.rand(1000, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    eps = torch.randn(1000, 1, 1, 1, generator=torch.Generator().manual_seed(2)) * 3
    t = torch.arange(1, 1001)
    loss = simple_loss(Q, lambda x, steps: y, x_0, t, eps, Belief())
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all()) and bool(torch.isfinite(y.grad).all())


def test_on_a_line_of_log_snr_the_simple_loss_is_the_bound_up_to_a_factor():
    weights = eps_weight(Q.schedule, torch.arange(2, 1001))
    step = 19.6 / 999
    assert_close(weights, torch.full_like(weights, math.expm1(step) / 2), rtol=1e-8, atol=0.0)


def test_a_true_belief_pays_the_entropy_and_hardly_more():
    belief = Belief()
    y = torch.tensor([0.3, -2.0, 0.0, -1.0, -3.0]).double().reshape(1, 5, 1, 1)
    prior = log_belief(belief, y).exp()
    entropy = -torch.xlogy(prior, prior).sum().item()
    x_0 = GREYS[torch.multinomial(prior[0], 3000, replacement=True, generator=torch.Generator().manual_seed(0))]
    denoise = NetworkDenoiser(lambda x, t: y.expand(len(x), -1, -1, -1), belief, Q)
    terms = bound_terms(
        Q, denoise, x_0.reshape(-1, 1, 1, 1), torch.Generator().manual_seed(1), discretized_decoder(256)
    )
    book = ledger(terms)
    gap, error = book.total.item() - entropy, book.total_error.item()
    assert -3 * error < gap < 0.03 + 3 * error  # nats; the entropy is about 4
    assert entropy > 3 and book.mean[0] < 0.02 and book.mean[-1] < 0.002
    # A belief that knows nothing pays for it by the relative entropy, and the check above would see that.
    blind = NetworkDenoiser(lambda x, t: torch.zeros(len(x), 5, 1, 1).double(), belief, Q)
    other = bound_terms(Q, blind, x_0.reshape(-1, 1, 1, 1), torch.Generator().manual_seed(1), discretized_decoder(256))
    wrong = log_belief(belief, torch.zeros(1, 5, 1, 1).double())
    divergence = (prior * (prior.log() - wrong)).sum().item()
    extra = ledger(other)
    assert divergence > 0.1
    assert extra.total.item() - entropy == pytest.approx(divergence, abs=0.03 + 3 * extra.total_error.item())


def test_a_belief_about_another_number_of_grey_levels_is_refused():
    with pytest.raises(ValueError, match="a belief about 256 grey levels, but 'digits' has 17; register"):
        Recipe(parameterization="belief")
    with pytest.raises(ValueError, match=r"y of shape \(2, 4, 1, 1\): expected \(batch, 5 · channels"):
        Belief().stated(torch.zeros(2, 4, 1, 1))
    with pytest.raises(ValueError, match="grey_levels = 1: expected"):
        Belief(grey_levels=1)
    assert PARAMETERIZATIONS["belief"] == Belief()
    assert (PARAMETERIZATIONS["belief_3"].parts, PARAMETERIZATIONS["belief_3"].outputs) == (3, 11)


def test_the_parts_of_an_untrained_network_are_not_the_same_one():
    mu, _, weight = Belief(parts=3).stated(torch.zeros(1, 11, 2, 2))
    assert_close(mu[0, :, 0, 0, 0], torch.tensor([-1 / 3, 0.0, 1 / 3]))
    assert_close(weight.exp(), torch.full((1, 5, 2, 2), 0.2).reshape(weight.shape))
    assert Belief().stated(torch.zeros(1, 10, 2, 2))[0].shape == (1, 1, 2, 2, 2)  # two channels
    assert not Belief().stated(torch.zeros(1, 5, 2, 2))[0].any()
