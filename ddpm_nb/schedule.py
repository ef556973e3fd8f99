"""Chapter 2. The noise schedule: one table, log ᾱ_t for t = 0..T, from which everything else follows.

Index 0 is the clean data (ᾱ_0 = 1) and the steps are 1..T. Differences of log ᾱ give one step or many; expm1 gives
1 − ᾱ without the cancellation that a cumulative product suffers near t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number

__all__ = [
    "SCHEDULES",
    "Levels",
    "NoiseSchedule",
    "PlainLevels",
    "Time",
    "coefficient",
    "cosine_schedule",
    "linear_schedule",
]

Time = int | Tensor  # a step for the whole batch, or an integer tensor (batch,)
Number = TypeVar("Number", float, Tensor)


class Levels(Generic[Number]):
    """What follows from log ᾱ_t, written once for float64 tensors and for plain floats.

    :class:`NoiseSchedule` answers with tensors, :class:`PlainLevels` with floats.
    """

    _exp: Callable[[Number], Number]
    _expm1: Callable[[Number], Number]

    def log_alpha_bar(self, t: Time) -> Number:
        """Log of the signal power left after t steps; 0 at t = 0."""
        raise NotImplementedError

    def alpha_bar(self, t: Time) -> Number:
        """ᾱ_t, the signal power left after t steps; 1 at t = 0."""
        return self._exp(self.log_alpha_bar(t))

    def one_minus_alpha_bar(self, t: Time) -> Number:
        """1 − ᾱ_t, the noise power after t steps, accurate to rounding where ᾱ_t is near 1; 0 at t = 0."""
        return 0.0 - self._expm1(self.log_alpha_bar(t))  # not -expm1: a zero with a minus sign makes SNR_0 = −∞

    def alpha_between(self, s: Time, t: Time) -> Number:
        """ᾱ_t / ᾱ_s, the part of the signal power at step s that is left at step t ≥ s."""
        return self._exp(self.log_alpha_bar(t) - self.log_alpha_bar(s))

    def beta_between(self, s: Time, t: Time) -> Number:
        """1 − ᾱ_t / ᾱ_s, the variance added between steps s and t ≥ s."""
        return -self._expm1(self.log_alpha_bar(t) - self.log_alpha_bar(s))

    def posterior_var(self, s: Time, t: Time) -> Number:
        """Variance of x_s given x_t and x_0; β̃_t for s = t − 1. Book: [posterior variance](#eq-posterior-var)."""
        return self.beta_between(s, t) * self.one_minus_alpha_bar(s) / self.one_minus_alpha_bar(t)


@dataclass(frozen=True, eq=False)
class PlainLevels(Levels[float]):
    """The levels of a schedule as Python's floats: a sampler's step costs a few operations on numbers, not on tensors.

    Steps are ints only; ``ValueError`` for one out of range.
    """

    table: Sequence[float]
    _exp = staticmethod(math.exp)
    _expm1 = staticmethod(math.expm1)

    def log_alpha_bar(self, t: Time) -> float:
        """Log of the signal power left after t steps; 0 at t = 0."""
        return self.table[_whole_step("t", t, 0, len(self.table) - 1)]


@dataclass(frozen=True, eq=False)
class NoiseSchedule(Levels[Tensor]):
    r"""ᾱ_t = ∏_{i≤t} (1 − β_i), kept as log ᾱ_t in float64. Book: [cumulative signal](#eq-alpha-bar).

    Every method takes a step (int, or an integer tensor ``(batch,)``) and returns float64 of that shape.

    Parameters
    ----------
    log_alpha_bars : Tensor ``(T + 1,)``
        log ᾱ_t for t = 0..T: starts at 0, falls strictly.

    Raises
    ------
    ValueError
        If the table does not start at 0 or does not fall strictly; by every method if a step is out of range.
    TypeError
        If a step is not an integer.
    """

    log_alpha_bars: Tensor
    _exp = staticmethod(torch.exp)
    _expm1 = staticmethod(torch.expm1)

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.log_alpha_bars, dtype=torch.float64, device="cpu").detach()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"log_alpha_bars of shape {tuple(table.shape)}: expected (T + 1,) with T at least 1")
        if table[0] != 0 or not bool((table.diff() < 0).all()) or not bool(torch.isfinite(table).all()):
            raise ValueError("log_alpha_bars: expected finite values that start at 0 (ᾱ_0 = 1) and fall strictly")
        object.__setattr__(self, "log_alpha_bars", table)
        object.__setattr__(self, "_copies", {"cpu": table})
        object.__setattr__(self, "_entries", table.unbind())
        object.__setattr__(self, "_plain", PlainLevels(table.tolist()))

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> NoiseSchedule:
        """Build the schedule in which step t adds variance ``betas[t - 1]``, each strictly between 0 and 1."""
        beta = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach()
        if beta.ndim != 1 or len(beta) == 0:
            raise ValueError(f"betas of shape {tuple(beta.shape)}: expected (T,), β_1 first")
        wrong = torch.nonzero(~((beta > 0) & (beta < 1)))
        if len(wrong):
            t = int(wrong[0]) + 1
            raise ValueError(f"β_{t} = {beta[t - 1].item()}: expected a variance strictly between 0 and 1")
        return cls(torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)]))

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self._entries) - 1  # type: ignore[attr-defined]

    def log_alpha_bar(self, t: Time) -> Tensor:
        """Log of the signal power left after t steps; 0 at t = 0."""
        step = self._step("t", t, least=0)
        # A sampler asks some twenty times per step: an entry made beforehand costs a tenth of indexing the table.
        return self._entries[step] if isinstance(step, int) else self._table(t)[step]  # type: ignore[attr-defined]

    @overload
    def at(self, s: int, t: int) -> Levels[float]: ...

    @overload
    def at(self, s: Time, t: Time) -> Levels[float] | Levels[Tensor]: ...

    def at(self, s: Time, t: Time) -> Levels[float] | Levels[Tensor]:
        """Return the levels to compute with for a step from t to s: plain floats where both are ints."""
        return self if torch.is_tensor(s) or torch.is_tensor(t) else self._plain  # type: ignore[attr-defined]

    def alpha(self, t: Time) -> Tensor:
        """α_t = 1 − β_t, for t ≥ 1."""
        return self.alpha_between(self._step("t", t, least=1) - 1, t)

    def beta(self, t: Time) -> Tensor:
        """β_t, the variance added in step t, for t ≥ 1."""
        return self.beta_between(self._step("t", t, least=1) - 1, t)

    def snr(self, t: Time) -> Tensor:
        """ᾱ_t / (1 − ᾱ_t), the signal-to-noise ratio; infinite at t = 0. Book: [SNR](#eq-snr)."""
        return self.alpha_bar(t) / self.one_minus_alpha_bar(t)

    def log_snr(self, t: Time) -> Tensor:
        """Log of the signal-to-noise ratio, in nats."""
        return self.log_alpha_bar(t) - self.one_minus_alpha_bar(t).log()

    def _table(self, t: Time) -> Tensor:
        """Return the table where ``t`` lives, copied there once; MPS has no float64 and is served from the host."""
        copies: dict[str, Tensor] = self._copies  # type: ignore[attr-defined]
        device = str(t.device) if torch.is_tensor(t) and t.device.type != "mps" else "cpu"
        if device not in copies:
            copies[device] = self.log_alpha_bars.to(device)
        return copies[device]

    def _step(self, name: str, t: Time, least: int) -> Time:
        """Return ``t`` as an index, checked where that does not make the host wait for a GPU."""
        if not torch.is_tensor(t):
            return _whole_step(name, t, least, self.T)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"{name} of dtype {t.dtype}: expected an integer tensor of steps")
        if t.device.type == "mps":
            t = t.cpu()
        if t.device.type == "cpu" and t.numel():
            low, high = int(t.min()), int(t.max())
            if low < least or high > self.T:
                wrong = low if low < least else high
                raise ValueError(f"{name} contains {wrong}: expected steps from {least} to T = {self.T}")
        return t.long()


def _whole_step(name: str, t: object, least: int, T: int) -> int:
    if type(t) is int and least <= t <= T:
        return t
    step = whole_number(name, t, least=least)
    if step > T:
        raise ValueError(f"{name} = {t}: expected a step from {least} to T = {T}")
    return step


def linear_schedule(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> NoiseSchedule:
    """β_t on a line from β_1 to β_T (Ho et al. 2020; Vilhes 5.2). Book: [linear schedule](#eq-linear-schedule)."""
    return NoiseSchedule.from_betas(torch.linspace(beta_1, beta_T, whole_number("T", T, least=1), dtype=torch.float64))


def cosine_schedule(T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """ᾱ_t ∝ cos²(π/2 · (t/T + offset)/(1 + offset)), β_t ≤ max_beta (Nichol & Dhariwal 2021, Fireflies).

    Book: [cosine schedule](#eq-cosine-schedule).
    """
    if not offset >= 0:
        raise ValueError(f"offset = {offset}: expected a number of at least 0")
    u = torch.arange(whole_number("T", T, least=1) + 1, dtype=torch.float64) / T
    signal = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
    return NoiseSchedule.from_betas((1 - signal[1:] / signal[:-1]).clamp(max=max_beta))


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule}
"""The schedules by the names that notebooks and checkpoints use."""


def coefficient(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Make a schedule's value multiply ``x`` ``(batch, *event)``: a float, or shape ``(batch, 1, ..)`` in x's dtype.

    The arithmetic before this point is float64; the cast comes last.
    """
    if not torch.is_tensor(value):
        return value
    if value.ndim == 0 and value.device.type == "cpu":
        return value.item()
    if value.ndim == 1 and value.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"t of shape {tuple(value.shape)}: expected ({x.shape[0]},), one step for each sample")
    return value.to(device=x.device, dtype=x.dtype).reshape(value.shape + (1,) * (x.ndim - value.ndim))
