"""Chapter 6. The optimizers of a network's weights, by name: AdamW, and Muon for the kernels inside the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_nb.registry import Registry

__all__ = ["OPTIMIZERS", "Muon", "adamw", "muon", "orthogonalized"]


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices ``(*, m, n)`` with the same singular vectors and singular values near 1, in their dtype.

    X ← a X + (b A + c A²) X with A = X Xᵀ, five times, the quintic Newton–Schulz iteration of Jordan et al. (2024),
    whose coefficients take every singular value from 0.01 on into [0.68, 1.13]. On a GPU the products are in bfloat16,
    on a CPU in the dtype of ``matrices``: many processors only emulate bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x if x.device.type == "cpu" else x.bfloat16()
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is orthogonalized before it is added: all directions of a kernel learn at one pace.

    A kernel ``(out, in, height, width)`` is the matrix ``(out, in · height · width)``. torch's own Muon takes matrices
    only, and this one takes kernels. Its steps have the size of AdamW's, so that both share a learning rate: the root
    mean square of an update is about 0.3 of it. Source: Jordan et al. (2024); the scale after Liu et al. (2025).

    Parameters
    ----------
    kernels : parameters with two or more dimensions
    others : parameters that AdamW updates: biases, norms, the first and last layers
    lr : learning rate of both
    """

    def __init__(
        self,
        kernels: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 1e-3,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(kernels), "orthogonal": True},
            {"params": list(others), "orthogonal": False},
        ]
        adam = {"betas": (0.9, 0.999), "eps": 1e-8}
        super().__init__(groups, {"lr": lr, "momentum": 0.95, **adam})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, all of a kind at once: many small operations make a GPU wait."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                update = self._orthogonal if group["orthogonal"] else self._adam
                updates = update(moved, [p.grad for p in moved], group)
                torch._foreach_add_(moved, updates, alpha=-group["lr"])

    def _orthogonal(
        self,
        moved: list[Tensor],
        gradients: list[Tensor],
        group: dict[str, Any],
    ) -> list[Tensor]:
        means = self._averages("mean", moved)
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        # Nesterov's look ahead.
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])
        alike: dict[torch.Size, list[int]] = {}
        for place, kernel in enumerate(moved):
            alike.setdefault(kernel.shape, []).append(place)
        updates = list(ahead)
        for shape, places in alike.items():
            flat = torch.stack([ahead[place].flatten(1) for place in places])
            scale = 0.3 * max(flat.shape[1:]) ** 0.5
            matrices = orthogonalized(flat) * scale
            for place, matrix in zip(places, matrices, strict=True):
                updates[place] = matrix.reshape(shape)
        return updates

    def _adam(
        self,
        moved: list[Tensor],
        gradients: list[Tensor],
        group: dict[str, Any],
    ) -> list[Tensor]:
        keep_mean, keep_square = group["betas"]
        means = self._averages("mean", moved)
        squares = self._averages("square", moved)
        squared = torch._foreach_mul(gradients, gradients)
        torch._foreach_lerp_(means, gradients, 1 - keep_mean)
        torch._foreach_lerp_(squares, squared, 1 - keep_square)
        counts = [self.state[p].get("updates", 0) + 1 for p in moved]
        for p, count in zip(moved, counts, strict=True):
            self.state[p]["updates"] = count
        # The averages began at 0: of their weights this share is filled.
        mean_share = [1 - keep_mean**count for count in counts]
        square_share = [1 - keep_square**count for count in counts]
        lengths = torch._foreach_sqrt(torch._foreach_div(squares, square_share))
        torch._foreach_add_(lengths, group["eps"])
        updates = torch._foreach_div(means, mean_share)
        torch._foreach_div_(updates, lengths)
        return list(updates)

    def _averages(self, name: str, moved: list[Tensor]) -> list[Tensor]:
        """Return a moving average of each parameter, zeros at first."""
        return [
            self.state[p].setdefault(name, torch.zeros_like(p)) for p in moved
        ]


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW without decay of the weights."""
    return torch.optim.AdamW(network.parameters(), weight_decay=0.0)


def muon(network: nn.Module) -> Muon:
    """Return Muon for the kernels between the first and the last layer, AdamW for the rest."""
    named = list(network.named_parameters())
    inside = {
        name
        for name, p in named
        if p.ndim >= 2
        and not name.startswith(("inward", "outward", "time", "label"))
    }
    return Muon(
        (p for name, p in named if name in inside),
        (p for name, p in named if name not in inside),
    )


OPTIMIZERS: Registry[Callable[[nn.Module], torch.optim.Optimizer]] = Registry(
    "optimizer", {"adamw": adamw, "muon": muon}
)
"""network ↦ an optimizer of its parameters, by the names in recipes. The plan sets the rate before each step."""
