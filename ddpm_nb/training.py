"""Chapter 6. Training as an iterator: one optimization step, then the caller's turn.

The randomness of a step (which images, which t, which ε) is a function of the seed and the number of the step alone.
So a run that was cut anywhere goes on exactly as if it had not been, with nothing to restore but the weights and the
optimizer's state; and several processes share one global batch by each taking its slice of the same draw.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_nb.arguments import whole_number
from ddpm_nb.bound import simple_loss
from ddpm_nb.checkpoint import save_checkpoint
from ddpm_nb.data import from_levels
from ddpm_nb.denoiser import EPS, Parameterization
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.weighting import StepDraw, Weighting, simple_weight, uniform_steps

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Ema",
    "Learner",
    "Objective",
    "Plan",
    "Step",
    "batch_of_step",
    "checkpointed",
    "constant_rate",
    "half_life_decay",
    "labels_of_step",
    "train",
    "warmup_rate",
]


@dataclass(frozen=True, eq=False)
class Step:
    """What a step of training did.

    Parameters
    ----------
    number : steps done so far, this one included
    loss : weighted mean squared error per dimension over the batch, before the update; a detached 0-d tensor
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
            raise ValueError(
                f"decay = {decay}: expected a number from 0 up to but not including 1"
            )
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present weights; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, list(network.parameters()), 1 - decay)
        buffers = zip(self.network.buffers(), network.buffers(), strict=True)
        for kept, present in buffers:
            kept.copy_(present)

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.updates = state["updates"]
        self.network.load_state_dict(state["network"])


def half_life_decay(half_life: int, batch_size: int) -> float:
    """Return the decay d of an average that forgets half of what it was within ``half_life`` images.

    d = 2^(−batch_size / half_life), so runs with other batches average over the same images.
    Source: Karras et al. (2022), table 7. Book: [](#eq-ema).
    """
    whole_number("half_life", half_life, least=1)
    whole_number("batch_size", batch_size, least=1)
    return 0.5 ** (batch_size / half_life)


def constant_rate(learning_rate: float) -> Callable[[int], float]:
    """Return the learning rate ``step -> learning_rate``."""
    return lambda step: learning_rate


def warmup_rate(
    learning_rate: float, warmup: int, steps: int
) -> Callable[[int], float]:
    """Return the rate that rises linearly over ``warmup`` steps and falls as a half cosine to 0 at ``steps``."""
    if not 0 <= warmup < steps:
        raise ValueError(
            f"warmup = {warmup}: expected fewer steps than steps = {steps}"
        )

    def rate(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        angle = np.pi * (step - warmup) / (steps - warmup)
        return learning_rate * 0.5 * (1 + float(np.cos(angle)))

    return rate


@dataclass(frozen=True, eq=False)
class Learner:
    """All that a run changes as it goes on, and so all that a checkpoint must hold beside the data and the settings.

    Parameters
    ----------
    network, optimizer : the plain network, and the optimizer of its parameters
    ema : the average of the network's weights
    losses : the loss of every step done so far, 0-d tensors
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    losses: list[Tensor] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on, with the number of steps done as ``step``.

        ``FloatingPointError`` if a weight is not finite: on a GPU, where not every step is looked at, and after a
        change by the caller, a checkpoint of such weights would replace the last good one.
        """
        parameters = dict(self.network.named_parameters())
        checks = [torch.isfinite(value).all() for value in parameters.values()]
        finite = torch.stack(checks).tolist()  # waits for a GPU only once
        if not all(finite):
            broken = list(parameters)[finite.index(False)]
            raise FloatingPointError(
                f"after step {len(self.losses)} the weights {broken!r} are not finite"
            )
        losses = torch.zeros(0)
        if self.losses:
            losses = torch.stack(self.losses).cpu()
        return {
            "step": len(self.losses),
            "losses": losses,
            "weights": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the network and the optimizer must be of the kind that was saved."""
        self.network.load_state_dict(state["weights"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = next(self.network.parameters()).device
        self.losses[:] = state["losses"].to(device).unbind()


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimized: E[w_t ‖y − network(x_t, t)‖²] per dimension. Book: [the training loop](#eq-training-step).

    Parameters
    ----------
    q : the forward process
    parameterization : what the network predicts
    weighting : w_t, see :mod:`ddpm_nb.weighting`
    draw_steps : how the steps t of a batch are drawn
    """

    q: GaussianDiffusion
    parameterization: Parameterization = EPS
    weighting: Weighting = simple_weight
    draw_steps: StepDraw = uniform_steps

    def loss(
        self,
        network: Callable[..., Tensor],
        x_0: Tensor,
        t: Tensor,
        eps: Tensor,
        *label: Tensor,
    ) -> Tensor:
        """Return the mean of the weighted squared errors of a batch, per dimension, 0-d.

        With a ``label`` ``(batch,)`` the network is asked for ``network(x_t, t, label)``.
        """
        q, target, d = self.q, self.parameterization, x_0[0].numel()

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return network(x_t, t, *label)

        error = simple_loss(q, predict, x_0, t, eps, target) / d
        weight = self.weighting(q.schedule, target, t).to(error)
        return (weight * error).mean()


@dataclass(frozen=True, eq=False)
class Plan:
    """How an objective is minimized.

    Parameters
    ----------
    steps : number of the last step; a run resumed at n does ``steps − n`` more
    batch_size : images of a step, over all processes and microbatches together
    rate : step number (from 0) -> learning rate
    seed : of every draw
    microbatches : parts whose gradients are added up before the step, where a batch does not fit into memory
    max_grad_norm : longer gradients are shortened to this norm
    flip : whether every other image, by chance, is mirrored left to right
    label_dropout : share of the labels that are replaced by -1, none, where there are labels

    Raises
    ------
    ValueError, TypeError
        If a number is out of range.
    """

    steps: int
    batch_size: int
    rate: Callable[[int], float]
    seed: int = 0
    microbatches: int = 1
    max_grad_norm: float = 1.0
    flip: bool = False
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        smallest = {"steps": 1, "batch_size": 1, "seed": 0, "microbatches": 1}
        for name, least in smallest.items():
            whole_number(name, getattr(self, name), least=least)
        if self.seed >= 2**32:
            raise ValueError(
                f"seed = {self.seed}: expected less than 2^32, so that no two runs share their draws"
            )
        if not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm = {self.max_grad_norm}: expected a positive number"
            )
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(
                f"label_dropout = {self.label_dropout}: expected a share from 0 to 1"
            )


def _words(plan: Plan, number: int) -> list[int]:
    """Return the seeds of a step's draws: rows and t, ε, labels that are dropped, images that are mirrored, dropout."""
    state = np.random.SeedSequence([plan.seed, number]).generate_state(5)
    return [int(word) for word in state]


def _rows(
    plan: Plan, count: int, number: int
) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(_words(plan, number)[0])
    rows = torch.randint(count, (plan.batch_size,), generator=generator)
    return rows, generator


def batch_of_step(
    objective: Objective,
    plan: Plan,
    data: Tensor,
    number: int,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x_0, t, ε) of step ``number``: images drawn with replacement, t in 1..T, ε ~ N(0, I).

    A function of the plan's seed and the number only. All are on ``device``, by default that of the data; ε is drawn
    there. Images stored as uint8, 0 to 255, become float32 in [−1, 1].
    """
    device = data.device if device is None else device
    T, n, words = objective.q.schedule.T, plan.batch_size, _words(plan, number)
    rows, generator = _rows(plan, len(data), number)
    t = objective.draw_steps(T, n, generator)
    x_0 = data[rows.to(data.device, non_blocking=True)]
    x_0 = x_0.to(device, non_blocking=True)
    if x_0.dtype == torch.uint8:
        x_0 = from_levels(x_0)
    if plan.flip:
        coin = torch.Generator().manual_seed(words[3])
        heads = torch.rand(n, generator=coin) < 0.5
        heads = heads.to(device)[:, *[None] * (x_0.ndim - 1)]
        x_0 = torch.where(heads, x_0.flip(-1), x_0)
    generator = torch.Generator(device).manual_seed(words[1])
    eps = torch.randn(
        x_0.shape, generator=generator, device=device, dtype=x_0.dtype
    )
    return x_0, t.to(device, non_blocking=True), eps


def labels_of_step(plan: Plan, labels: Tensor, number: int) -> Tensor:
    """Return the labels of the images of :func:`batch_of_step`, a share of them replaced by -1: int64 ``(batch,)``.

    One network learns both denoisers, that of each class and that of all data, from batches in which some images come
    without their label. Source: Ho & Salimans (2022), Algorithm 1. Book: [](#eq-g9-label-dropout).
    """
    rows, _ = _rows(plan, len(labels), number)
    generator = torch.Generator().manual_seed(_words(plan, number)[2])
    drop = torch.rand(plan.batch_size, generator=generator) < plan.label_dropout
    device = labels.device
    chosen = labels[rows.to(device, non_blocking=True)]
    return chosen.masked_fill(drop.to(device, non_blocking=True), -1)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    data: Tensor,
    plan: Plan,
    start: int = 0,
    accelerator: Accelerator | _Alone | None = None,
    labels: Tensor | None = None,
) -> Iterator[Step]:
    """Minimize the objective by gradient steps, yielding after each: Roysdon 1.10, Vilhes Algorithm 1.

    Moving averages, progress, checkpoints and early stopping are lines in the caller's loop. Book:
    [the training loop](#eq-training-step).

    Parameters
    ----------
    network, optimizer : as ``accelerator.prepare`` returns them, or plain ones
    data : images ``(n, *event)``, floats in [−1, 1] where the network is, or uint8 anywhere, such as in a file
    start : steps done already, by a run that is resumed
    accelerator : an ``accelerate.Accelerator``, for mixed precision or several processes; without one, neither
    labels : int64 ``(n,)`` for a network ``(x_t, t, label)``, see :func:`labels_of_step`

    Raises
    ------
    ValueError, TypeError
        Before any work, if a number is out of range, the parts do not fit, the data are neither floats nor uint8, or
        there are not as many labels as images.
    FloatingPointError
        If the loss or its gradient is not finite; it names the step and the learning rate. On a CPU every step is
        checked and the weights are those before it; on a GPU, which would have to be waited for, every fiftieth.
    """
    known = data.is_floating_point() or data.dtype == torch.uint8
    if not known or not len(data):
        raise TypeError(
            f"data of shape {tuple(data.shape)} and dtype {data.dtype}: expected floats or uint8, at least one row"
        )
    if labels is not None and labels.shape != data.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}: expected ({len(data)},), one for each image"
        )
    if plan.steps < whole_number("start", start, least=0):
        raise ValueError(
            f"start = {start}: expected at most steps = {plan.steps}"
        )
    accelerator = accelerator or _Alone()
    parts = accelerator.num_processes * plan.microbatches
    if plan.batch_size % parts:
        raise ValueError(
            f"batch_size = {plan.batch_size}: expected a multiple of {parts}, "
            f"for {accelerator.num_processes} process(es) of {plan.microbatches} microbatch(es)"
        )
    return _train(
        network, optimizer, objective, data, plan, start, accelerator, labels
    )


def _train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    data: Tensor,
    plan: Plan,
    start: int,
    accelerator: Accelerator | _Alone,
    labels: Tensor | None,
) -> Iterator[Step]:
    parts = accelerator.num_processes * plan.microbatches
    device = next(network.parameters()).device
    # Saving torch's generators would cost a network that draws nothing.
    draws = any(
        getattr(m, "dropout", 0) or isinstance(m, nn.Dropout)
        for m in network.modules()
    )
    network.train()
    for number in range(start, plan.steps):
        rate = plan.rate(number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch: tuple[Tensor, ...]
        batch = batch_of_step(objective, plan, data, number, device)
        if labels is not None:
            known = labels_of_step(plan, labels, number).to(device)
            batch = (*batch, known)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in range(plan.microbatches):
            first = accelerator.process_index + part * accelerator.num_processes
            own = slice(first, None, parts)
            mine = [tensor[own] for tensor in batch]
            # Only the last part's gradients are sent to the other processes.
            is_last = part == plan.microbatches - 1
            with (
                nullcontext() if is_last else accelerator.no_sync(network),
                _dropout_of(plan, number, first, device)
                if draws
                else nullcontext(),
            ):
                loss = objective.loss(network, *mine) / plan.microbatches
                accelerator.backward(loss)
            losses.append(loss.detach())
        loss = torch.stack(losses).sum()
        norm = accelerator.clip_grad_norm_(
            network.parameters(), plan.max_grad_norm
        )
        # On a GPU the check waits for the step to end, so it is made rarely.
        if loss.device.type == "cpu" or number % 50 == 0:
            precision = accelerator.mixed_precision
            _check_finite(loss, norm, number, rate, precision)
        optimizer.step()
        yield Step(number + 1, accelerator.reduce(loss, "mean"))


@contextmanager
def _dropout_of(
    plan: Plan, number: int, part: int, device: torch.device
) -> Iterator[None]:
    """Draw what the network itself draws, dropout, from the step's own seed, and leave torch's generators alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_words(plan, number)[4] + part)
        yield


class _Alone:
    """What ``train`` asks of an accelerator, for one process in full precision.

    A real one, made here, would fix the precision of every later ``Accelerator`` in the process.
    """

    process_index, num_processes, mixed_precision = 0, 1, "no"

    def no_sync(self, network: nn.Module) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(
        self, parameters: Iterable[nn.Parameter], norm: float
    ) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, norm)

    def reduce(self, loss: Tensor, kind: str) -> Tensor:
        return loss


def _check_finite(
    loss: Tensor,
    norm: Tensor,
    number: int,
    learning_rate: float,
    precision: str,
) -> None:
    # In fp16 an infinite gradient is how the loss scale is found; accelerate then
    # skips the step by itself.
    quantities = {"loss": loss}
    if precision != "fp16":
        quantities["norm of the gradient"] = norm
    for name, value in quantities.items():
        if not bool(torch.isfinite(value)):
            raise FloatingPointError(
                f"the {name} is {float(value)} at step {number} with learning rate {learning_rate:.3g}; "
                "expected a finite number: try a smaller learning rate, or resume from the last checkpoint"
            )


def checkpointed(
    run: Iterator[Step],
    path: str | os.PathLike[str],
    every: int,
    state: Callable[[], Mapping[str, Any]],
) -> Iterator[Step]:
    """Yield the steps of ``run`` and save ``state()`` after every ``every``-th and the last, once the caller is done.

    "Done" is the caller's next turn: what its loop does with a step, such as a moving average, is in the checkpoint.
    An interrupted run keeps the last one.

    Raises
    ------
    FloatingPointError
        Of ``run``, with the last good checkpoint named.
    """
    whole_number("every", every, least=1)
    saved = "none was written by this run"
    number, kept = 0, 0
    try:
        for step in run:
            yield step
            number = step.number
            if number % every == 0:
                save_checkpoint(path, state())
                saved, kept = f"{path}, of step {number}", number
        if number != kept:
            save_checkpoint(path, state())
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}; the last good checkpoint: {saved}"
        ) from error
