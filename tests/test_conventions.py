"""Levels of noise translate between conventions without loss, and mean what other code means by them."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from ddpm_nb.conventions import CONVENTIONS, convert
from ddpm_nb.schedule import cosine_schedule, linear_schedule

STEPS = torch.arange(1, 1001)


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule()], ids=["linear", "cosine"])
@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_round_trips(schedule, source, target):
    value = CONVENTIONS[source].variable(schedule.level(STEPS))
    there = convert(value, source, target)
    back = convert(there, target, source)
    torch.testing.assert_close(back, value, rtol=1e-12, atol=1e-12)


def test_levels_are_those_of_other_code():
    schedule = linear_schedule()
    peer = DDPMScheduler()  # 1000 linear steps from 1e-4 to 0.02, 0-based, float32
    torch.testing.assert_close(peer.alphas_cumprod.double(), schedule.alpha_bar(STEPS), rtol=1e-5, atol=0)
    euler = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    sigma = convert(schedule.alpha_bar(STEPS), "ho", "edm")
    euler.set_timesteps(1000)
    torch.testing.assert_close(euler.sigmas[:-1].double().flip(0), sigma, rtol=2e-4, atol=0)


def test_state_of_edm_is_the_data_plus_noise():
    """x̃ = x_0 + σ ε, whereas ours is √ᾱ x_0 + √(1−ᾱ) ε."""
    level, edm = linear_schedule().level(STEPS), CONVENTIONS["edm"]
    torch.testing.assert_close(edm.scale(level) * level.signal, torch.ones(1000).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(edm.scale(level) * level.noise, edm.variable(level), rtol=1e-12, atol=0)


def test_variance_preserving_conventions_in_their_own_words():
    """γ of VDM gives α² = sigmoid(−γ); λ of DPM-Solver is log(√ᾱ/√(1−ᾱ))."""
    schedule = cosine_schedule()
    alpha_bar, noise = schedule.alpha_bar(STEPS), schedule.level(STEPS).noise_var
    torch.testing.assert_close(torch.sigmoid(-convert(alpha_bar, "ho", "vdm")), alpha_bar, rtol=1e-12, atol=0)
    expected = (alpha_bar.sqrt() / noise.sqrt()).log()
    torch.testing.assert_close(convert(alpha_bar, "ho", "dpm_solver"), expected, rtol=1e-11, atol=1e-12)


def test_unknown_convention_names_the_nearest():
    with pytest.raises(ValueError, match=r"target = 'edn'.*did you mean 'edm'"):
        convert(torch.ones(1), "ho", "edn")
