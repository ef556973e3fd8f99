"""The numbers that the checks are made of: float64 tensors, given or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def f64(value: float | Sequence[Any]) -> Tensor:
    """Return a number, or a list of them, as a float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    """Draw float64 standard normal numbers that depend on shape and seed only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
