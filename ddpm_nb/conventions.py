"""How papers and code bases write one noise level, and how to get from each to every other.

Everything is a function of log ᾱ, so two functions for each convention translate between all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_nb.arguments import choose

__all__ = ["CONVENTIONS", "Convention", "convert"]


@dataclass(frozen=True)
class Convention:
    """How one source writes the level of noise at step t.

    Parameters
    ----------
    source : paper or code base
    symbol : its variable, in TeX
    level : log ᾱ ↦ its variable
    log_alpha_bar : the inverse
    scale : log ᾱ ↦ factor from our state x_t to its state
    index : what it calls our step t, in TeX
    """

    source: str
    symbol: str
    level: Callable[[Tensor], Tensor]
    log_alpha_bar: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor]
    index: str


def _log_snr(log_alpha_bar: Tensor) -> Tensor:
    return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))


CONVENTIONS: dict[str, Convention] = {
    "ho": Convention(
        "Ho et al. 2020, and this book", r"$\bar\alpha_t$", torch.exp, torch.log, torch.ones_like, "$t = 1, .., T$"
    ),
    "improved": Convention(
        r"Nichol & Dhariwal 2021, code", "`alphas_cumprod[i]`", torch.exp, torch.log, torch.ones_like, "$i = t - 1$"
    ),
    "vdm": Convention(
        "VDM, Kingma et al. 2021",
        r"$\gamma = -\log \mathrm{SNR}$",
        lambda log: -_log_snr(log),
        lambda gamma: F.logsigmoid(-gamma),
        torch.ones_like,
        "$u = t/T$",
    ),
    "score_sde": Convention(
        "Score SDE, Song et al. 2021, code",
        r"`log_mean_coeff` $= \tfrac12 \log\bar\alpha$",
        lambda log: log / 2,
        lambda mean: 2 * mean,
        torch.ones_like,
        "$u = t/T$",
    ),
    "edm": Convention(
        "EDM, Karras et al. 2022",
        r"$\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}$",
        lambda log: (-_log_snr(log) / 2).exp(),
        lambda sigma: -torch.log1p(sigma**2),
        lambda log: (-log / 2).exp(),
        r"$\sigma$ itself",
    ),
    "dpm_solver": Convention(
        "DPM-Solver, Lu et al. 2022",
        r"$\lambda = \tfrac12 \log \mathrm{SNR}$",
        lambda log: _log_snr(log) / 2,
        lambda half: F.logsigmoid(2 * half),
        torch.ones_like,
        "$u = t/T$",
    ),
    "diffusers": Convention(
        "diffusers, DDPM and DDIM schedulers",
        "`alphas_cumprod[timestep]`",
        torch.exp,
        torch.log,
        torch.ones_like,
        "`timestep` $= t - 1$",
    ),
}
"""The conventions by a short name."""


def convert(value: Tensor, source: str, target: str) -> Tensor:
    """Return the level ``value`` of one convention in another's variable; float64 keeps 12 digits or more.

    Raises ``ValueError`` for an unknown convention; the message names the nearest.
    """
    log_alpha_bar = choose("source", source, CONVENTIONS).log_alpha_bar(value)
    return choose("target", target, CONVENTIONS).level(log_alpha_bar)
