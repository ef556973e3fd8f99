import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.bound import bound_draw, density_decoder, fixed_variance
from ddpm_nb.convergence import delivered_variance
from ddpm_nb.data import load_dataset
from ddpm_nb.denoiser import clipped
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.kernels import grid
from ddpm_nb.pretrained import load_model
from ddpm_nb.sampling import Ancestral
from ddpm_nb.schedule import added_var, coefficient, linear_schedule
from ddpm_nb.variance import BestVariance, Errors, fitted_errors

Q = GaussianDiffusion(linear_schedule(50, 1e-3, 0.2))
V = torch.tensor([[0.04, 1.0, 4.0]], dtype=torch.float64)
LAW = GaussianMixture([1.0], torch.zeros(1, 3, dtype=torch.float64), V)


def unknown(x_0_hat, t):
    """Var[x_0 | x_t] of LAW, exactly: v (1 − ᾱ)/(ᾱ v + 1 − ᾱ)."""
    alpha_bar = Q.schedule.alpha_bar(t).reshape(-1, 1) if torch.is_tensor(t) else Q.schedule.alpha_bar(t)
    return (V * (1 - alpha_bar) / (alpha_bar * V + 1 - alpha_bar)).expand_as(x_0_hat)


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_with_the_exact_variance_few_steps_deliver_the_law_up_to_the_first(steps):
    times = grid(50, steps)
    kernel = BestVariance(Q, LAW.denoiser(Q), unknown)
    found = delivered_variance(kernel, times, 3)
    # Only the step to 0 adds no noise: what x_0 keeps unknown there is missing, and the start's N(0, 1) remains.
    missing = unknown(V, times[-2])
    start = Q.schedule.alpha_bar(50) * (V - 1)
    assert ((found + missing - V).abs() <= 1.0001 * start.abs() + 1e-12).all()
    for other in (Ancestral(Q, LAW.denoiser(Q)), Ancestral(Q, LAW.denoiser(Q), added_var)):
        assert ((delivered_variance(other, times, 3) + missing - V).abs() > 2 * start.abs()).any()


def test_the_exact_variance_is_the_best_for_the_bound():
    x_0, denoise = LAW.sample(20_000, torch.Generator().manual_seed(0)), LAW.denoiser(Q)

    def bound(reverse):
        return bound_draw(Q, reverse, x_0, torch.Generator().manual_seed(1), density_decoder).total

    best = bound(BestVariance(Q, denoise, unknown).reverse)
    entropy = 0.5 * (2 * torch.pi * torch.e * V).log().sum()
    assert abs(best.mean() - entropy) < 4 * best.std() / len(x_0) ** 0.5 + 0.01  # 0.01: the start is not quite N(0, 1)
    fixed = [fixed_variance(Q, denoise), fixed_variance(Q, denoise, added_var)]
    off = [BestVariance(Q, denoise, lambda x, t, f=f: f * unknown(x, t)).reverse for f in (0.7, 1.4)]
    for other in (*fixed, *off):
        gap = bound(other) - best
        assert gap.mean() > 4 * gap.std() / len(x_0) ** 0.5


def test_fitted_errors_are_those_of_the_law_by_step_and_by_value():
    # Every pixel −1 or 1: where the estimate is near either it is sure. Var[x_0 | x_t] = 1 − x̂_0².
    images = 2.0 * torch.randint(2, (2000, 64), generator=torch.Generator().manual_seed(0)) - 1

    def denoise(x_t, t):
        level = Q.schedule.level(t)
        return torch.tanh(coefficient(level.signal / level.noise_var, x_t) * x_t)

    errors = fitted_errors(Q, denoise, images, ranges=8, rounds=10, generator=torch.Generator().manual_seed(1))
    assert errors.table.shape == (51, 8)
    middle = torch.linspace(-1, 1, 17)[1::2].double()
    for t in (15, 20, 25):
        found = errors(middle[:, None], t)[:, 0]
        assert_close(found[1:-1], (1 - middle**2)[1:-1], rtol=0.2, atol=0.03)
    assert torch.equal(errors(middle[:, None], torch.full((8,), 20)), errors(middle[:, None], 20))
    one = fitted_errors(Q, denoise, images, rounds=1, generator=torch.Generator().manual_seed(1))
    assert one.table.shape == (51, 1)
    assert one.table[40] > 3 * one.table[5]


def test_a_step_that_no_image_was_noised_to_takes_the_error_of_its_neighbour():
    few = fitted_errors(Q, lambda x, t: 0 * x, torch.ones(10, 1), generator=torch.Generator().manual_seed(0))
    assert_close(few.table, torch.ones_like(few.table))


def test_the_fitted_variance_lowers_the_bound_of_the_shipped_digits_on_images_it_did_not_see():
    model = load_model("digits")
    denoise, test = clipped(model.denoiser), load_dataset("digits", split="test")
    train = load_dataset("digits")
    values = {}
    for ranges in (None, 1, 13):
        reverse = fixed_variance(model.q, denoise)
        if ranges:
            errors = fitted_errors(model.q, denoise, train, ranges, 2, torch.Generator().manual_seed(0))
            reverse = BestVariance(model.q, denoise, errors).reverse
        values[ranges] = bound_draw(model.q, reverse, test, torch.Generator().manual_seed(1), density_decoder).total
    assert (values[None] - values[1]).mean() > 5
    assert (values[1] - values[13]).mean() > 5


def test_a_wrong_number_or_another_process_is_refused():
    with pytest.raises(ValueError, match="ranges = 0"):
        fitted_errors(Q, lambda x, t: x, torch.zeros(4, 1), ranges=0)
    with pytest.raises(ValueError, match="expected the denoiser's own q"):
        BestVariance(Q, load_model("digits").denoiser, Errors(torch.ones(51, 1)))
