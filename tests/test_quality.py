import hashlib
import math
import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import ddpm_nb
from ddpm_nb.book.printed import fireflies, malhotra, malhotra_as_printed, roysdon, vilhes
from ddpm_nb.bound import fixed_variance
from ddpm_nb.convergence import delivered_variance
from ddpm_nb.data import load_dataset
from ddpm_nb.denoiser import EPS, NetworkDenoiser, clipped
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.evaluation import bits_of_images, weights_digest
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.measured import frechet_after, likelihoods, measured
from ddpm_nb.metrics import Moments
from ddpm_nb.pretrained import SHIPPED, load_features, load_model
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import NoiseSchedule, added_var, linear_schedule

BETAS = torch.tensor([0.02, 0.3, 0.05, 0.5, 0.11, 0.27], dtype=torch.float64)
Q = GaussianDiffusion(NoiseSchedule.from_betas(BETAS))


def network(x, t):
    steps = torch.as_tensor(t).to(x.dtype).reshape(-1, 1)
    return torch.tanh(1.3 * x) * torch.cos(0.7 * steps) + 0.2 * steps


def walked(kernel, x, z):
    """A walk with given noise; z[0] is that of the last step."""
    return last(walk(kernel, x, grid(len(BETAS), len(BETAS)), noise=z.flip(0))).x


@pytest.mark.parametrize(
    ("printed", "variance", "clip"),
    [
        (roysdon, posterior_var, False),
        (vilhes, added_var, False),
        (malhotra, added_var, False),
        (fireflies, posterior_var, True),
    ],
)
def test_the_printed_loops_are_walks_of_the_ancestral_kernel(draw, printed, variance, clip):
    denoise = NetworkDenoiser(network, EPS, Q)
    kernel = Ancestral(Q, clipped(denoise) if clip else denoise, variance)
    x, z = draw(5, 2), draw(len(BETAS), 5, 2, seed=1)
    assert_close(printed(x, BETAS, network, z), walked(kernel, x, z), rtol=1e-11, atol=1e-11)


def test_to_the_letter_the_last_step_of_malhotra_leaves_noise_in_a_single_data_point(draw):
    # Exact noise for data at 0.3: x = √ᾱ 0.3 + √(1−ᾱ) ε. Asked at the right step every loop returns the point.
    def predict(x, t):
        return (x - Q.schedule.alpha_bar(t).sqrt() * 0.3) / Q.schedule.level(t).noise

    x, z = draw(5, 2), draw(len(BETAS), 5, 2, seed=1)
    for loop in (roysdon, vilhes, malhotra, fireflies):
        assert_close(loop(x, BETAS, predict, z), torch.full_like(x, 0.3), rtol=1e-12, atol=1e-12)
    assert (malhotra_as_printed(x, BETAS, predict, z) - 0.3).abs().max() > 0.05


def test_the_delivered_variance_is_that_of_samples(rng):
    v = torch.tensor([[0.04, 1.0, 4.0]], dtype=torch.float64)
    denoise = GaussianMixture([1.0], torch.zeros(1, 3), v).denoiser(Q)
    for kernel in (Ancestral(Q, denoise), DDIM(Q, denoise), Ancestral(Q, denoise, added_var)):
        exact = delivered_variance(kernel, grid(6, 3), 3)
        x = last(walk(kernel, torch.randn(40_000, 3, generator=rng(1), dtype=torch.float64), grid(6, 3), rng(2))).x
        assert_close(x.var(0), exact, rtol=5 * (2 / 40_000) ** 0.5, atol=0.0)


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_with_the_exact_denoiser_the_larger_variance_is_the_nearer_whatever_the_variance_of_the_data(steps):
    q = GaussianDiffusion(linear_schedule())
    v = torch.tensor([[1e-4, 0.01, 0.25, 1.0, 4.0, 16.0]], dtype=torch.float64)
    denoise = GaussianMixture([1.0], torch.zeros(1, 6), v).denoiser(q)
    small, large = (
        delivered_variance(Ancestral(q, denoise, choice), grid(1000, steps), 6) / v[0]
        for choice in (posterior_var, added_var)
    )
    assert ((large - 1).abs() < (small - 1).abs()).all()
    assert (small < 1).all()
    last_level = q.schedule.alpha_bar(grid(1000, steps)[-2]).item()  # at unit variance only the last step costs
    assert large[3].item() == pytest.approx(last_level, rel=1e-9)


def test_the_distance_of_a_walk_is_that_of_its_clipped_samples(draw):
    space = load_features("digits")
    point = draw(1, 1, 8, 8, dtype=torch.float32)
    kernel = Ancestral(Q, lambda x_t, t: 3 * point + 0.1 * x_t)
    found = frechet_after(kernel, draw(20, 1, 8, 8, dtype=torch.float32), grid(6, 6), space, torch.Generator())
    images = last(walk(kernel, draw(20, 1, 8, 8, dtype=torch.float32), grid(6, 6), torch.Generator())).x.clamp(-1, 1)
    assert found == pytest.approx(Moments.of(space(images)).frechet_distance(space.train), rel=1e-6)


def test_the_stored_figures_are_those_of_the_shipped_model():
    # A new model needs `python book/tools/measure_samplers.py fashion_mnist` again.
    stored = measured("fashion_mnist")
    file = Path(ddpm_nb.__file__).parent / "weights" / "fashion_mnist.safetensors"
    assert stored.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    seeds = len(stored.floor)
    assert all(len(values) == seeds for row in stored.rows.values() for values in row.values())
    assert len({tuple(row) for row in stored.rows.values()}) == 1
    with pytest.raises(ValueError, match=r"dataset = 'fashion': expected one of .*did you mean 'fashion_mnist'"):
        measured("fashion")


REAL = Path(os.environ.get("DDPM_NB_TEST_DATA", Path(__file__).parents[2] / "shared" / "data" / "fashion-mnist"))


def test_the_stored_bits_are_those_of_the_shipped_models_and_add_up():
    # New weights need `python book/tools/measure_likelihood.py` again.
    stored = likelihoods()
    assert {"fashion_mnist", "fashion_mnist_likelihood"} <= set(stored)
    for name, row in stored.items():
        if name in SHIPPED:
            assert row["weights"] == weights_digest(load_model(name).network)
        assert row["bits"]["images"] == row["limit"]["images"] == 10_000
        assert row["limit"]["mean"] < row["bits"]["mean"]
        # The sum over the terms, on few images, is the bound on all of them within its error.
        assert sum(row["spent"]["terms"]) == pytest.approx(row["bits"]["mean"], abs=4 * row["spent"]["error"])
        # What knows nothing of diffusion needs more bits than any of the models.
        assert min(row["baselines"].values()) > row["bits"]["mean"] + 0.5


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no folder with the real Fashion-MNIST files; name one by DDPM_NB_TEST_DATA"
)
def test_the_bits_of_some_test_images_agree_with_the_stored_ones_of_all(tmp_path):
    test = load_dataset("fashion_mnist", REAL, split="test")
    some = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[:100]]
    model, row = load_model("fashion_mnist_likelihood"), likelihoods()["fashion_mnist_likelihood"]["bits"]
    reverse = fixed_variance(model.q, clipped(model.denoiser))
    *_, found = bits_of_images(model.q, reverse, some, 256, 2, tmp_path / "bits", {"model": "a"}, batch=100)
    allowed = 4 * math.hypot(found.error_over_images, row["error_over_images"])
    assert abs(found.mean - row["mean"]) < allowed
    assert allowed < 0.5 * abs(row["mean"] - 4.5)  # independent pixels, at 4.59, would be seen
