"""Chapter 6. How much each noise level counts in the loss, and how the steps of a batch are drawn.

A weight is stated once, on ‖x_0 − x̂_0‖², and carried over to whatever the network predicts: at a given x_t an error δ
of x̂_0 is the error (a − b √SNR) δ of the target y = a x_0 + b ε.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_nb.denoiser import Parameterization
from ddpm_nb.registry import Registry
from ddpm_nb.schedule import Level, NoiseSchedule

__all__ = [
    "STEP_DRAWS",
    "WEIGHTINGS",
    "StepDraw",
    "Weighting",
    "bound_weight",
    "min_snr_weight",
    "simple_weight",
    "stratified_steps",
    "uniform_steps",
]

Weighting = Callable[[NoiseSchedule, Parameterization, Tensor], Tensor]
"""(schedule, what the network predicts, steps t ``(batch,)``) → weight of ‖y − ŷ‖², float64 ``(batch,)``."""

StepDraw = Callable[[int, int, torch.Generator], Tensor]
"""(T, batch size, generator) → steps t in 1..T, int64 ``(batch,)``."""


def simple_weight(
    schedule: NoiseSchedule, target: Parameterization, t: Tensor
) -> Tensor:
    """Weight 1 on ‖y − ŷ‖² at every step, as in Ho et al. (14). Book: [the simple loss](#eq-simple-loss)."""
    return torch.ones_like(schedule.level(t).noise_var)


def bound_weight(
    schedule: NoiseSchedule, target: Parameterization, t: Tensor
) -> Tensor:
    """T times the weight of the bound, so that the mean over uniform steps estimates its sum, in nats.

    On ‖x_0 − x̂_0‖² that is ½ (SNR_{t−1} − SNR_t) for t ≥ 2 and, with a Gaussian decoder of variance β_1, 1/(2 β_1) at
    t = 1. Book: [weights on the clean image](#eq-t6-weightings).
    """
    before, here = schedule.level((t - 1).clamp(min=1)), schedule.level(t)
    decoder = 0.5 / schedule.level(1).noise_var  # β_1 = 1 − ᾱ_1
    on_x_0 = torch.where(t == 1, decoder, 0.5 * (before.snr - here.snr))
    return schedule.T * _on_target(target, here, on_x_0)


def min_snr_weight(gamma: float = 5.0) -> Weighting:
    """Return the weight min(SNR_t, γ) on ‖x_0 − x̂_0‖² (Hang et al. 2023). Book: [](#eq-t6-weightings).

    For ε that is the weight 1, held down where SNR_t > γ. ``ValueError`` unless γ is positive.
    """
    if not gamma > 0:
        raise ValueError(
            f"gamma = {gamma}: expected a positive signal-to-noise ratio"
        )

    def weight(
        schedule: NoiseSchedule, target: Parameterization, t: Tensor
    ) -> Tensor:
        level = schedule.level(t)
        return _on_target(target, level, level.snr.clamp(max=gamma))

    return weight


def _on_target(
    target: Parameterization, level: Level, on_x_0: Tensor
) -> Tensor:
    """Turn a weight on ‖x_0 − x̂_0‖² into the equal one on ‖y − ŷ‖². Book: [](#eq-t6-error-of-target)."""
    a, b = target.weights(level)
    return on_x_0 / (a - b * level.signal / level.noise) ** 2


def uniform_steps(
    T: int, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Draw steps independently and uniformly from 1..T."""
    return torch.randint(1, T + 1, (batch_size,), generator=generator)


def stratified_steps(
    T: int, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Draw one step from each of ``batch_size`` equal parts of 1..T: each alone uniform, together spread evenly.

    t_i = 1 + ⌊T (i + w)/B⌋ with one w ~ U[0, 1) for the batch, after Kingma et al. 2021. Book: [](#eq-t6-stratified).
    """
    w = torch.rand((), generator=generator, dtype=torch.float64)
    position = (torch.arange(batch_size, dtype=torch.float64) + w) / batch_size
    return 1 + (T * position).long().clamp(max=T - 1)


WEIGHTINGS: Registry[Weighting] = Registry(
    "weighting",
    {
        "simple": simple_weight,
        "bound": bound_weight,
        "min_snr": min_snr_weight(),
    },
)
"""The weightings by the names that notebooks and commands use."""

STEP_DRAWS: Registry[StepDraw] = Registry(
    "step_draw", {"uniform": uniform_steps, "stratified": stratified_steps}
)
"""The draws of steps by name."""
