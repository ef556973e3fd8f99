"""How papers and code bases write one noise level, and how to get from each to every other.

Everything is a function of log ᾱ, the level, so two functions for each convention translate between all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_nb.arguments import choose
from ddpm_nb.schedule import Level

__all__ = ["CONVENTIONS", "Convention", "convert"]


@dataclass(frozen=True)
class Convention:
    """How one source writes the level of noise at step t.

    Parameters
    ----------
    source : paper or code base
    symbol : its variable, in TeX
    variable : level ↦ its variable
    log_alpha_bar : its variable ↦ log ᾱ
    scale : level ↦ factor from our state x_t to its state
    index : what it calls our step t, in TeX
    """

    source: str
    symbol: str
    variable: Callable[[Level], Tensor]
    log_alpha_bar: Callable[[Tensor], Tensor]
    scale: Callable[[Level], Tensor]
    index: str


def _same_state(level: Level) -> Tensor:
    return torch.ones_like(level.log_alpha_bar)


CONVENTIONS: dict[str, Convention] = {
    "ho": Convention(
        "Ho et al. 2020, and this book",
        r"$\bar\alpha_t$",
        lambda level: level.alpha_bar,
        torch.log,
        _same_state,
        "$t = 1, .., T$",
    ),
    "improved": Convention(
        "Nichol & Dhariwal 2021, code",
        "`alphas_cumprod[i]`",
        lambda level: level.alpha_bar,
        torch.log,
        _same_state,
        "$i = t - 1$",
    ),
    "vdm": Convention(
        "VDM, Kingma et al. 2021",
        r"$\gamma = -\log \mathrm{SNR}$",
        lambda level: -level.log_snr,
        lambda gamma: F.logsigmoid(-gamma),
        _same_state,
        "$u = t/T$",
    ),
    "score_sde": Convention(
        "Score SDE, Song et al. 2021, code",
        r"`log_mean_coeff` $= \tfrac12 \log\bar\alpha$",
        lambda level: level.log_alpha_bar / 2,
        lambda mean: 2 * mean,
        _same_state,
        "$u = t/T$",
    ),
    "edm": Convention(
        "EDM, Karras et al. 2022",
        r"$\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}$",
        lambda level: level.sigma,
        lambda sigma: -torch.log1p(sigma**2),
        lambda level: 1 / level.signal,
        r"$\sigma$ itself",
    ),
    "dpm_solver": Convention(
        "DPM-Solver, Lu et al. 2022",
        r"$\lambda = \tfrac12 \log \mathrm{SNR}$",
        lambda level: level.log_snr / 2,
        lambda half: F.logsigmoid(2 * half),
        _same_state,
        "$u = t/T$",
    ),
    "diffusers": Convention(
        "diffusers, DDPM and DDIM schedulers",
        "`alphas_cumprod[timestep]`",
        lambda level: level.alpha_bar,
        torch.log,
        _same_state,
        "`timestep` $= t - 1$",
    ),
}
"""The conventions by a short name."""


def convert(value: Tensor, source: str, target: str) -> Tensor:
    """Return the level ``value`` of one convention in another's variable; float64 keeps 12 digits or more.

    Raises ``ValueError`` for an unknown convention; the message names the nearest.
    """
    log_alpha_bar = choose("source", source, CONVENTIONS).log_alpha_bar(value)
    level = Level.of(log_alpha_bar)
    return choose("target", target, CONVENTIONS).variable(level)
