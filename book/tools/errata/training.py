"""How large the documents' errors on training are (chapter 6)."""

from __future__ import annotations

import torch

from ddpm_nb.bound import eps_weight
from ddpm_nb.schedule import added_var, linear_schedule
from errata import Numbers

SCHEDULE = linear_schedule()
T = SCHEDULE.T
STEPS = torch.arange(2, T + 1)


def weights_of_the_bound() -> Numbers:
    """w_t for σ² = β̃_t, which the simple loss replaces by one number."""
    weight = eps_weight(SCHEDULE, STEPS)
    return {"weight_0": weight[0], "weight_498": weight[498], "ratio": weight[0] / weight[498]}


def weights_for_beta() -> Numbers:
    """w_t for σ² = β_t, the document's choice, from t = 1 on."""
    weights = eps_weight(SCHEDULE, torch.arange(1, T + 1), added_var)
    least = int(weights.argmin())
    return {
        "first": weights[0],
        "least": weights[least],
        "at": least + 1,
        "final": weights[-1],
        "T": T,
        "ratio": weights.max() / weights.min(),
    }


def reversed_sign() -> Numbers:
    """The printed sum at the best prediction and at the answer 0, for data of variance 1: Var(ε | x_t) = ᾱ_t."""
    best = SCHEDULE.alpha_bar(torch.arange(1, T + 1)).sum().item()
    return {"T": T, "lowest": -best, "worst": -T}


def scale_of_the_target() -> Numbers:
    """What is well behaved: the target's scale, not the weights of the bound."""
    weight = eps_weight(SCHEDULE, STEPS)
    return {"T": T, "ratio": weight.max() / weight.min()}
