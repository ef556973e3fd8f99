"""How large the documents' errors on training are (chapter 6)."""

from __future__ import annotations

import torch

from ddpm_nb.bound import eps_weight
from ddpm_nb.data import DATASETS
from ddpm_nb.schedule import added_var, linear_schedule

SCHEDULE = linear_schedule()
T = SCHEDULE.T
STEPS = torch.arange(2, T + 1)


def weights_of_the_bound() -> str:
    """w_t for σ² = β̃_t, which the simple loss replaces by one number."""
    weight = eps_weight(SCHEDULE, STEPS)
    return (
        f"the weight falls from $w_2 = {weight[0]:.2f}$ to $w_{{500}} = {weight[498]:.4f}$, by a factor of "
        f"{weight[0] / weight[498]:.0f}, where the simple loss gives both steps the same; at $t = 1$ it is infinite"
    )


def weights_for_beta() -> str:
    """w_t for σ² = β_t, the document's choice, from t = 1 on."""
    first, middle, final = (eps_weight(SCHEDULE, t, added_var).item() for t in (1, 500, T))
    return (
        f"the dropped factor is {first:.2f} at $t = 1$, {middle:.4f} at $t = 500$ and {final:.4f} at $t = {T}$: it varies by a "
        f"factor of {first / middle:.0f}"
    )


def reversed_sign() -> str:
    """The printed sum at the best prediction and at the answer 0, for data of variance 1: Var(ε | x_t) = ᾱ_t."""
    best = SCHEDULE.alpha_bar(torch.arange(1, T + 1)).sum().item()
    return (
        f"for data of variance 1 the printed sum over $t = 1..{T}$ is {-best:.0f} for each dimension at the best prediction "
        f"and {-T} at the answer 0: minimized, it prefers the worse, and has no lower end"
    )


def wrong_name_of_the_data() -> str:
    """Classes of the data set that are digits."""
    classes = DATASETS["fashion_mnist"].classes
    digits = [name for name in classes if name in DATASETS["mnist"].classes]
    return f"{len(digits)} of the {len(classes)} classes of Fashion-MNIST are digits; no formula depends on it"


def missing_reference() -> str:
    """Works cited without an entry in the list of references."""
    cited, listed = {"1", "2", "3", "4", "unet"}, {"1", "2", "3", "4"}
    return f"{len(cited - listed)} of the {len(cited)} cited works has no entry; no formula depends on it"


def scale_of_the_target() -> str:
    """What is well behaved: the target's scale, not the weights of the bound."""
    weight = eps_weight(SCHEDULE, STEPS)
    return (
        f"the noise target has variance 1 at every step, but the weights of the bound, $t = 2..{T}$, vary by a factor of "
        f"{weight.max() / weight.min():.0f}: dropping them is what puts the steps on one scale"
    )
