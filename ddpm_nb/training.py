"""Chapter 6. Training as an iterator: one optimization step, then the caller's turn.

The randomness of a step (which images, which t, which ε) is a function of the seed and the number of the step alone.
So a run that was cut anywhere goes on exactly as if it had not been, with nothing to restore but the weights and the
optimizer's state; and several processes share one global batch by each taking its slice of the same draw.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_nb.arguments import whole_number
from ddpm_nb.bound import simple_loss
from ddpm_nb.denoiser import EPS, Parameterization
from ddpm_nb.diffusion import GaussianDiffusion

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Ema", "Step", "batch_of_step", "constant_rate", "train", "warmup_rate"]


@dataclass(frozen=True, eq=False)
class Step:
    """What a step of training did.

    Parameters
    ----------
    number : steps done so far, this one included
    loss : mean squared error per dimension over the batch, before the update; a detached 0-d tensor
    """

    number: int
    loss: Tensor


class Ema:
    """Exponential moving average of a network's weights: w̄ ← d w̄ + (1 − d) w after every step.

    Book: [moving average](#eq-ema). ``network`` is the averaged copy, in eval mode and without gradients. Early on,
    when there is little to average, d is held down to (1 + n)/(10 + n) at the n-th update.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay = {decay}: expected a number from 0 up to but not including 1")
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present weights; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for mean, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            mean.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.updates = state["updates"]
        self.network.load_state_dict(state["network"])


def constant_rate(learning_rate: float) -> Callable[[int], float]:
    """Return the learning rate ``step -> learning_rate``."""
    return lambda step: learning_rate


def warmup_rate(learning_rate: float, warmup: int, steps: int) -> Callable[[int], float]:
    """Return the rate that rises linearly over ``warmup`` steps and falls as a half cosine to 0 at ``steps``."""
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup = {warmup}: expected fewer steps than steps = {steps}")

    def rate(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        return learning_rate * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / (steps - warmup))))

    return rate


def batch_of_step(
    q: GaussianDiffusion, data: Tensor, step: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x_0, t, ε) of a step: images drawn with replacement, t uniform on 1..T, ε ~ N(0, I).

    A function of ``seed`` and ``step`` only; ε is drawn where the data are.
    """
    words = np.random.SeedSequence([seed, step]).generate_state(2)
    generator = torch.Generator().manual_seed(int(words[0]))
    rows = torch.randint(len(data), (batch_size,), generator=generator).to(data.device)
    t = torch.randint(1, q.schedule.T + 1, (batch_size,), generator=generator).to(data.device)
    generator = torch.Generator(data.device).manual_seed(int(words[1]))
    eps = torch.randn((batch_size, *data.shape[1:]), generator=generator, device=data.device, dtype=data.dtype)
    return data[rows], t, eps


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    q: GaussianDiffusion,
    data: Tensor,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    rate: Callable[[int], float],
    start: int = 0,
    parameterization: Parameterization = EPS,
    max_grad_norm: float = 1.0,
    accelerator: Accelerator | None = None,
) -> Iterator[Step]:
    """Minimize the simple loss by gradient steps, yielding after each: Roysdon 1.10, Vilhes Algorithm 1.

    Moving averages, progress, checkpoints and early stopping are lines in the caller's loop. Book:
    [the training loop](#eq-training-step).

    Parameters
    ----------
    network, optimizer : as ``accelerator.prepare`` returns them, or plain ones
    data : images ``(n, *event)`` in [−1, 1], where the network is
    steps : number of the last step; a run resumed at ``start`` does ``steps − start`` more
    batch_size : images of a step, over all processes together
    rate : step number (from 0) -> learning rate
    max_grad_norm : longer gradients are shortened to this norm
    accelerator : an ``accelerate.Accelerator``, for mixed precision or several processes

    Raises
    ------
    ValueError
        Before any work, if a number is out of range.
    FloatingPointError
        If the loss is not finite; it names the step and the learning rate. On a CPU every step is checked and the
        weights are those before it; on a GPU, which would have to be waited for, every fiftieth.
    """
    if whole_number("seed", seed, least=0) >= 2**32:
        raise ValueError(f"seed = {seed}: expected less than 2^32, so that no two runs share their draws")
    whole_number("batch_size", batch_size, least=1)
    if whole_number("steps", steps, least=1) < whole_number("start", start, least=0):
        raise ValueError(f"start = {start}: expected at most steps = {steps}")
    if accelerator is None:
        from accelerate import Accelerator  # a second to import, needed here only

        accelerator = Accelerator()
    if batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size = {batch_size}: expected a multiple of the {accelerator.num_processes} processes")
    share = slice(accelerator.process_index, None, accelerator.num_processes)

    def run(accelerator: Accelerator) -> Iterator[Step]:
        network.train()
        for number in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(number)
            x_0, t, eps = (part[share] for part in batch_of_step(q, data, number, batch_size, seed))
            loss = simple_loss(q, network, x_0, t, eps, parameterization).mean() / x_0[0].numel()
            if (loss.device.type == "cpu" or number % 50 == 0) and not bool(torch.isfinite(loss)):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {number} with learning rate {rate(number):.3g}; "
                    "expected a finite number: try a smaller learning rate, or resume from the last checkpoint"
                )
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), max_grad_norm)
            optimizer.step()
            yield Step(number + 1, accelerator.reduce(loss.detach(), "mean"))

    return run(accelerator)
