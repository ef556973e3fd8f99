"""What a device computes in: the widest float it has, and constants that lie there once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Copies",
    "drawn_on",
    "widened",
    "widest",
]


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64: Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(value: Any) -> Tensor:
    """Return a tensor in the widest float of its device; numbers and lists of them as float64 on the host."""
    if isinstance(value, Tensor):
        return value.to(widest(value.device))
    return torch.as_tensor(value, dtype=torch.float64)


def drawn_on(generator: torch.Generator | None, x: Tensor) -> torch.device:
    """Return where to draw for ``x``: with the generator, so that its numbers are the same wherever x lives."""
    return x.device if generator is None else generator.device


_Place = tuple[torch.device, torch.dtype]


class Copies:
    """Tensors beside whatever they are used with: each goes to a device in a dtype once, and is kept there."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._kept: dict[_Place, tuple[Tensor, ...]] = {}

    def beside(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them on the device of ``x`` and, those that hold floats, in its dtype."""
        return self.on(x.device, x.dtype)

    def on(
        self, device: torch.device, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, ...]:
        """Return them on a device in a dtype, by default the widest it has."""
        dtype = widest(device) if dtype is None else dtype
        if (device, dtype) not in self._kept:
            self._kept[device, dtype] = tuple(
                tensor.to(device, dtype)
                if tensor.is_floating_point()
                else tensor.to(device)
                for tensor in self._tensors
            )
        return self._kept[device, dtype]
