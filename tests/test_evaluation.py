import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.__main__ import main
from ddpm_nb.bound import bound_draw, bound_terms, density_decoder, exact_gaps, fixed_variance
from ddpm_nb.checkpoint import CheckpointError
from ddpm_nb.denoiser import X0, NetworkDenoiser, between_steps
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.evaluation import Bits, bits_of_images
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.schedule import added_var, linear_schedule, log_snr_schedule

Q = GaussianDiffusion(linear_schedule(30, 1e-3, 0.3))
LAW = GaussianMixture([0.4, 0.6], torch.tensor([[-0.5, 0.2], [0.4, 0.1]]), torch.tensor([0.05, 0.02]))


def test_one_term_of_each_sample_has_the_mean_of_all_terms():
    x_0, denoise = LAW.sample(40_000, torch.Generator().manual_seed(0)), LAW.denoiser(Q)
    for variance in (None, added_var):
        chosen = {} if variance is None else {"variance": variance}
        whole = bound_terms(Q, denoise, x_0[:4000], torch.Generator().manual_seed(1), **chosen).total
        reverse = fixed_variance(Q, denoise, **chosen)
        drawn = bound_draw(Q, reverse, x_0, torch.Generator().manual_seed(2), density_decoder).total
        error = math.hypot(whole.std() / 4000**0.5, drawn.std() / 40_000**0.5)
        assert abs(whole.mean() - drawn.mean()) < 4 * error
        assert abs(whole.mean() + whole.std() - drawn.mean()) > 4 * error  # a mean that is off would be seen


def test_the_steps_of_a_batch_are_spread_over_all_of_them():
    asked = []

    def denoise(x, t):
        asked.append(t)
        return x

    x_0 = torch.zeros(290, 2, dtype=torch.float64)
    bound_draw(Q, fixed_variance(Q, denoise), x_0, torch.Generator().manual_seed(0), density_decoder)
    assert asked[0].bincount().tolist()[2:] == [10] * 29 and asked[1] == 1
    assert not torch.equal(asked[0], asked[0].sort().values)


def images(n: int = 60) -> torch.Tensor:
    levels = torch.randint(17, (n, 1, 2, 2), generator=torch.Generator().manual_seed(3))
    return levels.float() / 8 - 1


def evaluate(path, stop=None, calls=None, **changed):
    def denoise(x, t):
        if calls is not None:
            calls.append(len(x))
        return x.clamp(-1, 1)

    settings = {"levels": 17, "draws": 3, "about": {"model": "a"}, "batch": 20} | changed
    run = bits_of_images(Q, fixed_variance(Q, denoise), images(), path=path, **settings)
    *_, found = itertools.islice(run, stop)
    return found


def test_a_stopped_evaluation_ends_with_the_same_table(tmp_path):
    whole = evaluate(tmp_path / "a.safetensors")
    assert whole.table.shape == (3, 60) and not whole.table.isnan().any()
    assert evaluate(tmp_path / "b.safetensors", stop=4) is None
    calls = []
    again = evaluate(tmp_path / "b.safetensors", calls=calls)
    assert torch.equal(again.table, whole.table)
    assert len(calls) == 2 * (9 - 4)  # what was done is not done again
    more = evaluate(tmp_path / "b.safetensors", draws=4)
    assert torch.equal(more.table[:3], whole.table)
    assert torch.equal(evaluate(tmp_path / "b.safetensors", draws=2, calls=calls).table, whole.table[:2])
    assert torch.equal(evaluate(tmp_path / "b.safetensors", draws=4, calls=calls).table, more.table)
    assert len(calls) == 10
    with pytest.raises(CheckpointError, match="name another file"):
        evaluate(tmp_path / "b.safetensors", about={"model": "b"})


def test_the_two_errors_are_of_different_things():
    generator = torch.Generator().manual_seed(0)
    of_image = torch.randn(5000, generator=generator, dtype=torch.float64)
    of_draw = 0.1 * torch.randn(50, 1, generator=generator, dtype=torch.float64)
    bits = Bits(3 + of_image + of_draw.expand(50, 5000))
    assert bits.mean == pytest.approx(3, abs=0.06)
    assert bits.error_of_estimate == pytest.approx(0.1 / 50**0.5, rel=0.3)
    assert bits.error_over_images == pytest.approx(1 / 5000**0.5, rel=0.05)
    assert_close(bits.table.mean(), torch.tensor(bits.mean, dtype=torch.float64))


def test_a_number_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="draws = 1: expected a whole number of at least 2"):
        evaluate(tmp_path / "a", draws=1)
    with pytest.raises(ValueError, match="1 images: expected at least two"):
        next(bits_of_images(Q, fixed_variance(Q, lambda x, t: x), images()[:1], 17, 2, tmp_path / "a", {}))


def test_the_command_says_both_errors_and_goes_on(tmp_path, capsys):
    words = ["bits", "digits", "--images", "40", "--draws", "2", "--out", str(tmp_path / "bits.safetensors")]
    main(words)
    first = capsys.readouterr().out
    assert "bits/dim on 40 test images of digits" in first and "of the estimate (2 draws)" in first
    main(words)
    assert capsys.readouterr().out == first
    with pytest.raises(CheckpointError, match="name another file"):
        main([*words, "--seed", "1"])
    with pytest.raises(CheckpointError, match="name another file"):
        main([*words, "--finer", "3"])
    main([*words[:-1], str(tmp_path / "finer.safetensors"), "--finer", "3"])
    assert "bound of 2998 steps" in capsys.readouterr().out


def test_more_steps_in_between_come_down_to_the_bound_of_infinitely_many():
    # Data N(m, v): what the exact denoiser's bound pays beyond the entropy comes of the steps, but for L_T.
    mean, v = torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.04
    law, coarse = (
        GaussianMixture([1.0], mean, torch.tensor([v], dtype=torch.float64)),
        GaussianDiffusion(log_snr_schedule(12, 6.0, -7.0)),
    )

    class Exact(torch.nn.Module):
        """Answers x̂_0 at any level between two steps, as a network does: it looks at the step alone."""

        def forward(self, x_t, steps):
            log_snr = 6.0 + (steps.double() - 1) / 11 * -13.0
            alpha_bar = log_snr.sigmoid()[:, None]
            seen = alpha_bar.sqrt() * v / (alpha_bar * v + 1 - alpha_bar)
            return mean + seen * (x_t - alpha_bar.sqrt() * mean)

    denoise, x_0 = NetworkDenoiser(Exact(), X0, coarse), law.sample(4000, torch.Generator().manual_seed(1))
    gaps = []
    for finer in (1, 4, 16):
        fine = between_steps(denoise, finer)
        assert 1 + 11 * finer == fine.q.schedule.T
        by_law = law.denoiser(fine.q)
        x_t = fine.q.marginal(x_0, 1 + 5 * finer).sample(torch.Generator().manual_seed(0))
        assert_close(fine(x_t, 1 + 5 * finer), by_law(x_t, 1 + 5 * finer), rtol=1e-9, atol=1e-9)
        line = GaussianMixture([1.0], mean[:, :1], torch.tensor([v], dtype=torch.float64))
        gaps.append(exact_gaps(line, fine.q, line.denoiser(fine.q)).sum().item())
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0  # the excess falls like one over the number of steps
    assert torch.equal(between_steps(denoise, 1)(x_0, 3), denoise(x_0, 3))
