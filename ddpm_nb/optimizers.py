"""Chapter 6. The optimizers of a network's weights, by name: AdamW, and Muon for the kernels inside the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_nb.registry import Registry

__all__ = ["OPTIMIZERS", "Muon", "adamw", "muon", "orthogonalized"]


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return a matrix with the singular vectors of ``matrix`` and singular values near 1, in its dtype.

    X ← a X + (b A + c A²) X with A = X Xᵀ, five times, the quintic Newton–Schulz iteration of Jordan et al. (2024),
    whose coefficients take every singular value from 0.01 on into [0.68, 1.13].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


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

    def __init__(self, kernels: Iterable[Tensor], others: Iterable[Tensor], lr: float = 1e-3) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(kernels), "orthogonal": True},
            {"params": list(others), "orthogonal": False},
        ]
        super().__init__(groups, {"lr": lr, "momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            update = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(update(parameter, parameter.grad, group), alpha=-group["lr"])

    def _orthogonal(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state, momentum = self.state[parameter], group["momentum"]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(gradient, 1 - momentum)
        ahead = gradient.lerp(mean, momentum).flatten(1)  # Nesterov's look ahead
        return (orthogonalized(ahead) * (0.3 * max(ahead.shape) ** 0.5)).reshape(parameter.shape)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state, (keep_mean, keep_square) = self.state[parameter], group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        state["updates"] = state.get("updates", 0) + 1
        mean.lerp_(gradient, 1 - keep_mean)
        square.lerp_(gradient.square(), 1 - keep_square)
        unbiased = (square / (1 - keep_square ** state["updates"])).sqrt_().add_(group["eps"])
        return mean / (1 - keep_mean ** state["updates"]) / unbiased


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW without decay of the weights."""
    return torch.optim.AdamW(network.parameters(), weight_decay=0.0)


def muon(network: nn.Module) -> Muon:
    """Return Muon for the kernels between the first and the last layer, AdamW for the rest."""
    named = list(network.named_parameters())
    inside = {name for name, p in named if p.ndim >= 2 and not name.startswith(("inward", "outward", "time"))}
    return Muon((p for name, p in named if name in inside), (p for name, p in named if name not in inside))


OPTIMIZERS: Registry[Callable[[nn.Module], torch.optim.Optimizer]] = Registry(
    "optimizer", {"adamw": adamw, "muon": muon}
)
"""network ↦ an optimizer of its parameters, by the names in recipes. The plan sets the rate before each step."""
