"""Chapter 2. The noise schedule: one table, log ᾱ_t for t = 0..T, and the noise level that it gives each step.

Index 0 is the clean data (ᾱ_0 = 1) and the steps are 1..T. Differences of log ᾱ give one step or many; expm1 gives
1 − ᾱ without the cancellation that a cumulative product suffers near t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.precision import Copies
from ddpm_nb.registry import Registry

__all__ = [
    "SCHEDULES",
    "Level",
    "NoiseSchedule",
    "Time",
    "Variance",
    "added_var",
    "coefficient",
    "cosine_schedule",
    "linear_schedule",
    "log_snr_schedule",
    "refined",
    "shifted",
]

Time = int | Tensor  # a step for the whole batch, or an integer tensor (batch,)
Number = float | Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Level:
    """How much of x_t = signal x_0 + noise ε is signal and how much is noise. Book: [](#eq-marginal).

    Floats for one step, tensors ``(batch,)`` for a step of each sample. ``noise_var`` is kept beside its root: squared
    back it would be off by rounding, and the posterior at s = 0 would not be exact.

    Parameters
    ----------
    signal : √ᾱ
    noise : √(1 − ᾱ)
    noise_var : 1 − ᾱ
    log_alpha_bar : log ᾱ
    """

    signal: Any
    noise: Any
    noise_var: Any
    log_alpha_bar: Any

    @classmethod
    def of(cls, log_alpha_bar: Number) -> Level:
        """Return the level at which log ᾱ is ``log_alpha_bar``, a float or a tensor."""
        compute: Any = _functions(log_alpha_bar)
        # Not −expm1(..): a zero with a minus sign makes SNR_0 = −∞.
        noise_var = 0.0 - compute.expm1(log_alpha_bar)
        signal, noise = compute.exp(log_alpha_bar / 2), compute.sqrt(noise_var)
        return cls(signal, noise, noise_var, log_alpha_bar)

    @property
    def alpha_bar(self) -> Any:
        """ᾱ, the part of the power that is signal."""
        return _functions(self.log_alpha_bar).exp(self.log_alpha_bar)

    @property
    def snr(self) -> Any:
        """ᾱ/(1 − ᾱ), the signal-to-noise ratio; infinite at t = 0. Book: [SNR](#eq-snr)."""
        return math.inf if self._is_clean else self.alpha_bar / self.noise_var

    @property
    def log_snr(self) -> Any:
        """Log of the signal-to-noise ratio, in nats."""
        if self._is_clean:
            return math.inf
        log_noise_var = _functions(self.noise_var).log(self.noise_var)
        return self.log_alpha_bar - log_noise_var

    @property
    def sigma(self) -> Any:
        """σ̃ = √((1 − ᾱ)/ᾱ), the noise beside a signal of weight 1."""
        return self.noise / self.signal

    @property
    def _is_clean(self) -> bool:
        return not torch.is_tensor(self.noise_var) and self.noise_var == 0


Variance = Callable[[Level, Level], Any]
"""(level before, level here) → σ², the variance of a step back from here to before: floats, or tensors ``(batch,)``."""


def added_var(before: Level, here: Level) -> Any:
    """1 − ᾱ_t/ᾱ_s, the variance added between the levels of s and t ≥ s; β_t for s = t − 1."""
    lost = here.log_alpha_bar - before.log_alpha_bar
    return -_functions(lost).expm1(lost)


def _functions(value: Number) -> Any:
    """The module whose ``exp`` and ``log`` take ``value``."""
    return torch if isinstance(value, Tensor) else math


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    r"""ᾱ_t = ∏_{i≤t} (1 − β_i), kept as log ᾱ_t in float64. Book: [cumulative signal](#eq-alpha-bar).

    A step is an int, or an integer tensor ``(batch,)``. :meth:`level` answers with floats or tensors, as the step is;
    the symbols ``alpha_bar``, ``alpha``, ``beta`` and ``snr`` always with a float64 tensor of the step's shape.

    Parameters
    ----------
    log_alpha_bars : Tensor ``(T + 1,)``, float64 on the host
        log ᾱ_t for t = 0..T: starts at 0, falls strictly.

    Raises
    ------
    ValueError
        If the table does not start at 0 or does not fall strictly; by every method if a step is out of range.
    TypeError
        If the table is no float64 tensor, or a step is not an integer.
    """

    log_alpha_bars: Tensor

    def __post_init__(self) -> None:
        table = self.log_alpha_bars
        if (
            not torch.is_tensor(table)
            or table.dtype != torch.float64
            or table.device.type != "cpu"
        ):
            raise TypeError(
                "log_alpha_bars: expected a float64 tensor on the CPU; from_betas takes any numbers"
            )
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(
                f"log_alpha_bars of shape {tuple(table.shape)}: expected (T + 1,) with T at least 1"
            )
        if (
            table[0] != 0
            or not bool((table.diff() < 0).all())
            or not bool(torch.isfinite(table).all())
        ):
            raise ValueError(
                "log_alpha_bars: expected finite values that start at 0 (ᾱ_0 = 1) and fall strictly"
            )

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> NoiseSchedule:
        """Build the schedule in which step t adds variance ``betas[t - 1]``, each strictly between 0 and 1."""
        beta = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        beta = beta.detach()
        if beta.ndim != 1 or len(beta) == 0:
            raise ValueError(
                f"betas of shape {tuple(beta.shape)}: expected (T,), β_1 first"
            )
        wrong = torch.nonzero(~((beta > 0) & (beta < 1)))
        if len(wrong):
            t = int(wrong[0]) + 1
            raise ValueError(
                f"β_{t} = {beta[t - 1].item()}: "
                "expected a variance strictly between 0 and 1"
            )
        return cls(torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)]))

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self._levels) - 1

    def level(self, t: Time) -> Level:
        """Return the noise level of step t."""
        if type(t) is int and 0 <= t < len(self._levels):
            return self._levels[t]
        return self._levels_of("t", t, least=0)

    def levels(self, s: Time, t: Time) -> tuple[Level, Level]:
        """Return the levels of an earlier step s and a later one t; ``ValueError`` unless s < t."""
        if type(s) is int and type(t) is int and 0 <= s < t < len(self._levels):
            return self._levels[s], self._levels[t]
        before = self._levels_of("s", s, least=0)
        here = self._levels_of("t", t, least=0)
        _check_order(s, t)
        return before, here

    def alpha_bar(self, t: Time) -> Tensor:
        """ᾱ_t, the signal power left after t steps; 1 at t = 0."""
        return _float64(self.level(t).alpha_bar)

    def alpha(self, t: Time) -> Tensor:
        """α_t = 1 − β_t, for t ≥ 1."""
        before, here = self._step(t)
        one_step = Level.of(here.log_alpha_bar - before.log_alpha_bar)
        return _float64(one_step.alpha_bar)

    def beta(self, t: Time) -> Tensor:
        """β_t, the variance added in step t, for t ≥ 1."""
        return _float64(added_var(*self._step(t)))

    def snr(self, t: Time) -> Tensor:
        """ᾱ_t/(1 − ᾱ_t), the signal-to-noise ratio; infinite at t = 0. Book: [SNR](#eq-snr)."""
        return _float64(self.level(t).snr)

    def _step(self, t: Time) -> tuple[Level, Level]:
        """Return the levels of t − 1 and t ≥ 1."""
        here = self._levels_of("t", t, least=1)
        return self.level(t - 1), here

    @cached_property
    def _levels(self) -> list[Level]:
        """The levels of all steps, as floats: a sampler's step then costs operations on numbers, not on tensors."""
        return [Level.of(log) for log in self.log_alpha_bars.tolist()]

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self.log_alpha_bars)

    def _levels_of(self, name: str, t: Time, least: int) -> Level:
        """Return the levels of ``t``, checked where that does not make the host wait for a GPU."""
        if not torch.is_tensor(t):
            step = whole_number(name, t, least=least)
            if step > self.T:
                raise ValueError(
                    f"{name} = {t}: expected a step from {least} to T = {self.T}"
                )
            return self._levels[step]
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(
                f"{name} of dtype {t.dtype}: expected an integer tensor of steps"
            )
        if t.device.type == "cpu" and t.numel():
            low, high = int(t.min()), int(t.max())
            if low < least or high > self.T:
                wrong = low if low < least else high
                raise ValueError(
                    f"{name} contains {wrong}: expected steps from {least} to T = {self.T}"
                )
        (table,) = self._copies.on(t.device)
        return Level.of(table[t.long()])


def _float64(value: Number) -> Tensor:
    if torch.is_tensor(value):
        return value
    return torch.tensor(value, dtype=torch.float64)


def _check_order(s: Time, t: Time) -> None:
    if torch.is_tensor(s) or torch.is_tensor(t):
        earlier, later = torch.as_tensor(s), torch.as_tensor(t)
        if any(steps.device.type != "cpu" for steps in (earlier, later)):
            return  # reading a GPU's steps would make the host wait for it
        if bool((earlier >= later).any()):
            raise ValueError(
                f"s = {s}, t = {t}: expected s < t for every sample, the earlier step first"
            )
    elif s >= t:
        raise ValueError(
            f"s = {s}, t = {t}: expected s < t, the earlier step first"
        )


def linear_schedule(
    T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02
) -> NoiseSchedule:
    """β_t on a line from β_1 to β_T (Ho et al. 2020; Vilhes 5.2). Book: [linear schedule](#eq-linear-schedule).

    The ends are those of one step, so that for another T they give another amount of noise: see :data:`SCHEDULES`.
    """
    T = whole_number("T", T, least=1)
    beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    return NoiseSchedule.from_betas(beta)


def _linear_shape(T: int) -> NoiseSchedule:
    """β_t on a line from 0.1/T to 20/T: the linear schedule of T = 1000, at any T from 21 on."""
    return linear_schedule(whole_number("T", T, least=21), 0.1 / T, 20 / T)


def cosine_schedule(
    T: int = 1000, offset: float = 0.008, max_beta: float = 0.999
) -> NoiseSchedule:
    """ᾱ_t ∝ cos²(π/2 · (t/T + offset)/(1 + offset)), β_t ≤ max_beta (Nichol & Dhariwal 2021, Fireflies).

    Book: [cosine schedule](#eq-cosine-schedule).
    """
    if not offset >= 0:
        raise ValueError(f"offset = {offset}: expected a number of at least 0")
    u = torch.arange(whole_number("T", T, least=1) + 1, dtype=torch.float64) / T
    signal = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
    beta = 1 - signal[1:] / signal[:-1]
    return NoiseSchedule.from_betas(beta.clamp(max=max_beta))


def log_snr_schedule(
    T: int = 1000, first: float = 13.3, last: float = -6.3
) -> NoiseSchedule:
    """log SNR_t on a line from ``first`` at t = 1 to ``last`` at t = T (Kingma et al. 2021).

    The default ends leave nothing to L_0 for 256 grey levels, whose spacing is six times the noise of step 1, and
    nothing to L_T. ``ValueError`` unless first > last.
    """
    if not first > last:
        raise ValueError(
            f"first = {first}, last = {last}: expected first > last, the log SNR falls"
        )
    T = whole_number("T", T, least=2)
    log_snr = torch.linspace(first, last, T, dtype=torch.float64)
    table = torch.nn.functional.logsigmoid(log_snr)
    return NoiseSchedule(torch.cat([table.new_zeros(1), table]))


def refined(schedule: NoiseSchedule, finer: int) -> NoiseSchedule:
    """Return the schedule with every step from the second on cut into ``finer`` parts, even in log SNR.

    Step t of the old one is step 1 + finer (t − 1) of the new one; the first step, the decoder's, stays. Book:
    [](#eq-m7-limit).
    """
    whole_number("finer", finer, least=1)
    old = [schedule.level(t).log_snr for t in range(1, schedule.T + 1)]
    log_snr = torch.tensor(old, dtype=torch.float64)
    share = torch.arange(finer, dtype=torch.float64) / finer
    between = torch.lerp(log_snr[:-1, None], log_snr[1:, None], share).flatten()
    table = torch.nn.functional.logsigmoid(torch.cat([between, log_snr[-1:]]))
    return NoiseSchedule(torch.cat([schedule.log_alpha_bars[:1], table]))


def shifted(schedule: NoiseSchedule, factor: float) -> NoiseSchedule:
    """Return the schedule whose SNR_t is that of the old one over ``factor``², for images ``factor`` times as wide.

    What can be known of the coarse content of an image is then the same at every step as before it was enlarged.
    Source: Hoogeboom et al. (2023), their shift of log SNR by 2 log(64/side). Book: [](#eq-f2-shift).

    Raises
    ------
    ValueError
        If ``factor`` is not positive and finite.
    """
    if not 0 < factor < math.inf:
        raise ValueError(
            f"factor = {factor}: expected how many times as wide the images are, a positive number"
        )
    log_snr = schedule.level(torch.arange(1, schedule.T + 1)).log_snr
    table = torch.nn.functional.logsigmoid(log_snr - 2 * math.log(factor))
    return NoiseSchedule(torch.cat([table.new_zeros(1), table]))


SCHEDULES: Registry[Callable[[int], NoiseSchedule]] = Registry(
    "schedule",
    {
        "linear": _linear_shape,
        "cosine": cosine_schedule,
        "log_snr": log_snr_schedule,
    },
)
"""T ↦ the schedule of a shape with T steps, by name. A shape ends with the same noise at every T."""


def coefficient(value: Any, x: Tensor) -> Any:
    """Make a number of each sample multiply ``x`` ``(batch, *event)``: shape ``(batch, 1, ..)`` in x's dtype.

    A float stays as it is. The arithmetic before this point is float64; the cast comes last.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1 and value.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"t of shape {tuple(value.shape)}: expected ({x.shape[0]},), "
            "one step for each sample"
        )
    value = value.to(device=x.device, dtype=x.dtype)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))
