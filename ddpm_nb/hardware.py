"""Chapter 6. How a device trains fastest: in which numbers, with weights in which order, a batch in how many parts.

This is the one place that knows kinds of devices; recipes, notebooks and commands ask it.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_nb.arguments import whole_number

__all__ = [
    "default_device",
    "emulated",
    "fewest_parts",
    "memory_format_for",
    "precision_for",
    "step_memory",
    "training_room",
]

_COPIES = 5  # weights, gradients, two averages of AdamW, moving average


def default_device() -> torch.device:
    """Return the device that a run without a choice takes: this process's GPU, an Apple GPU, or the CPU."""
    from accelerate import PartialState  # seconds to import, needed here only
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


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


def training_room(device: torch.device) -> int:
    """Return how many bytes a run may fill: nine tenths of a GPU's memory, half of the machine's for other devices.

    Of all the memory, not of what is free now: a run is cut into the same parts whenever it is started.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return total * 9 // 10
    if device.type == "mps":
        return torch.mps.recommended_max_memory() * 9 // 10
    import psutil  # comes with accelerate

    return psutil.virtual_memory().total // 2


def step_memory(
    network: nn.Module, event: tuple[int, ...], batch_size: int
) -> int:
    """Return about how many bytes a training step in float32 holds at once, counted without doing it.

    Five copies of the weights, and what the network keeps of each layer for its gradient. To be called where tensors
    are only pretended, see ``torch._subclasses.FakeTensorMode``; kernels may take some more.
    """
    kept: dict[int, Any] = {}  # the storages stay alive, so that ids differ

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)
        return tensor

    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    x_t = torch.zeros(batch_size, *event)
    t = torch.ones(batch_size, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        network(x_t, t)
    layers = sum(s.nbytes() for key, s in kept.items() if key not in weights)
    return layers + _COPIES * 4 * sum(p.numel() for p in network.parameters())


def fewest_parts(
    memory: Callable[[int], int], batch_size: int, room: int
) -> int:
    """Return into how few equal parts a batch must be cut for each to fit into ``room`` bytes.

    Parameters
    ----------
    memory : images of a part -> bytes that a step on them holds, growing by the same amount with each
    batch_size : images of the batch, at least 1
    room : bytes, see :func:`training_room`

    Warns
    -----
    UserWarning
        If not even one image fits.
    """
    whole_number("batch_size", batch_size, least=1)
    first, second = memory(1), memory(2)
    for parts in range(1, batch_size + 1):
        held = first + (batch_size // parts - 1) * (second - first)
        if batch_size % parts == 0 and held <= room:
            return parts
    warnings.warn(
        f"a step on one image holds about {first / 2**30:.1f} GiB, but {room / 2**30:.1f} GiB are there; expected a "
        "smaller network or smaller images",
        stacklevel=2,
    )
    return batch_size
