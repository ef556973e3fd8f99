"""What a device computes in: the widest float it has, and the settings with which it trains fastest."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Copies",
    "default_device",
    "drawn_on",
    "emulated",
    "memory_format_for",
    "precision_for",
    "widened",
    "widest",
]


def default_device() -> torch.device:
    """Return the device that a run without a choice takes: this process's GPU, an Apple GPU, or the CPU."""
    from accelerate import PartialState  # seconds to import, needed here only
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


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


def precision_for(device: torch.device) -> str:
    """Return the fastest mixed precision that is safe on ``device``: 'bf16', 'fp16' or 'no'.

    NVIDIA's cards compute in bfloat16 from compute capability 8.0 on (A100, RTX 30); older ones, Colab's T4 among
    them, are fast in float16. Elsewhere float32 keeps results repeatable.
    """
    if device.type != "cuda":
        return "no"
    return "fp16" if emulated("bf16", device) else "bf16"


def emulated(mixed_precision: str, device: torch.device) -> bool:
    """Return whether ``device`` lacks instructions for a mixed precision, and so computes in it slowly.

    A CPU multiplies bfloat16 where it has AVX512-BF16 or AMX, and on ARM; NVIDIA's cards from compute capability 8.0
    on. False where torch does not say.
    """
    if mixed_precision == "no":
        return False
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return mixed_precision == "bf16" and capability < (8, 0)
    if device.type != "cpu" or platform.machine() not in {"x86_64", "AMD64"}:
        return False
    names = {
        "bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        "fp16": ("_is_amx_fp16_supported",),
    }[mixed_precision]
    answers = [getattr(torch.cpu, name, None) for name in names]
    return not any(answer is None or answer() for answer in answers)


def memory_format_for(device: torch.device) -> torch.memory_format:
    """Return how a network of convolutions keeps its weights: channels last for the tensor cores of NVIDIA's cards."""
    if device.type == "cuda":
        return torch.channels_last
    return torch.contiguous_format


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
