"""Chapter 6. A recipe: every choice that decides which weights a training run on images ends with."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_nb.arguments import choose, whole_number
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint
from ddpm_nb.data import DATASETS
from ddpm_nb.denoiser import PARAMETERIZATIONS, Parameterization
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import NETWORKS, built
from ddpm_nb.optimizers import OPTIMIZERS
from ddpm_nb.precision import default_device, memory_format_for, precision_for
from ddpm_nb.pretrained import model_state
from ddpm_nb.schedule import SCHEDULES
from ddpm_nb.training import (
    Ema,
    Learner,
    Objective,
    Plan,
    Step,
    train,
    warmup_rate,
)
from ddpm_nb.weighting import STEP_DRAWS, WEIGHTINGS

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Recipe"]

_LARGEST_PRIOR_GAP = 1e-3  # nats for each pixel, 0.0014 bits


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Two runs of one recipe on one kind of processor end with the same weights, bit for bit.

    Parameters
    ----------
    dataset, network, schedule, parameterization, weighting, step_draw, optimizer : names in ``DATASETS``,
        ``NETWORKS``, ``SCHEDULES``, ``PARAMETERIZATIONS``, ``WEIGHTINGS``, ``STEP_DRAWS``, ``OPTIMIZERS``; your own by
        their ``register``
    steps : optimization steps of the whole run
    batch_size : images of a step, over all processes and microbatches together
    learning_rate : at its highest, after the warm-up
    warmup : steps until then
    T : steps of the diffusion
    ema_decay : highest decay of the moving average
    mixed_precision : 'no', 'bf16', 'fp16', or 'auto': the fastest that is safe, see :meth:`on`
    compiled : whether torch.compile fuses the network's operations: a minute to start, worth it in long runs on a GPU
    seed : of the first weights and of every draw

    Raises
    ------
    ValueError, TypeError
        If a name is unknown, the nearest named, or a number is out of range.

    Warns
    -----
    UserWarning
        If the schedule ends before the data are noise: samplers begin with pure noise, which the network never saw.
    """

    dataset: str = "digits"
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 50
    network: str = "unet"
    schedule: str = "cosine"
    T: int = 1000
    parameterization: str = "eps"
    weighting: str = "simple"
    step_draw: str = "stratified"
    optimizer: str = "adamw"
    ema_decay: float = 0.998
    mixed_precision: str = "auto"
    compiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for registry in (
            DATASETS,
            NETWORKS,
            SCHEDULES,
            PARAMETERIZATIONS,
            WEIGHTINGS,
            STEP_DRAWS,
            OPTIMIZERS,
        ):
            choose(registry.kind, getattr(self, registry.kind), registry)
        grey = getattr(self.target, "grey_levels", None)
        if grey is not None and grey != DATASETS[self.dataset].levels:
            raise ValueError(
                f"parameterization = {self.parameterization!r}: a belief about {grey} grey levels, but "
                f"{self.dataset!r} has {DATASETS[self.dataset].levels}; register ddpm_nb.belief.Belief with that number"
            )
        precisions = dict.fromkeys(("auto", "no", "bf16", "fp16"))
        choose("mixed_precision", self.mixed_precision, precisions)
        smallest = {"steps": 1, "batch_size": 1, "warmup": 0, "T": 2, "seed": 0}
        for name, least in smallest.items():
            whole_number(name, getattr(self, name), least=least)
        end = self.q.schedule.level(self.T)
        gap = -0.5 * math.log(end.noise_var)  # L_T of a pixel at ±1
        if gap > _LARGEST_PRIOR_GAP:
            warnings.warn(
                f"schedule = {self.schedule!r}, T = {self.T}: the chain ends with √ᾱ_T = {end.signal:.3g}, "
                f"so that L_T is up to {gap:.2g} nats for each pixel; expected less than {_LARGEST_PRIOR_GAP:g}. "
                "Samples will begin with noise that the network never saw",
                stacklevel=3,
            )

    def on(self, device: torch.device) -> Recipe:
        """Return the recipe with its precision decided for ``device``: what a run and its checkpoint then hold."""
        if self.mixed_precision != "auto":
            return self
        return replace(self, mixed_precision=precision_for(device))

    @property
    def q(self) -> GaussianDiffusion:
        """The forward process."""
        return GaussianDiffusion(SCHEDULES[self.schedule](self.T))

    @property
    def target(self) -> Parameterization:
        """What the network predicts."""
        return PARAMETERIZATIONS[self.parameterization]

    @property
    def objective(self) -> Objective:
        """What is minimized."""
        return Objective(
            self.q,
            self.target,
            WEIGHTINGS[self.weighting],
            STEP_DRAWS[self.step_draw],
        )

    def plan(self, microbatches: int = 1) -> Plan:
        """Return how it is minimized, in so many parts of a batch."""
        rate = warmup_rate(
            self.learning_rate, min(self.warmup, self.steps - 1), self.steps
        )
        return Plan(self.steps, self.batch_size, rate, self.seed, microbatches)

    def untrained(self) -> nn.Module:
        """Return the network before the first step, a function of the seed."""
        card, outputs = DATASETS[self.dataset], self.target.outputs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return built(self.network, card.channels, card.side, outputs)

    def accelerator(self) -> Accelerator:
        """Return the accelerator of a run, in its precision, compiled or not. It fixes both for the whole process."""
        from accelerate import Accelerator  # seconds to import

        return Accelerator(
            mixed_precision=self.on(default_device()).mixed_precision,
            dynamo_backend="inductor" if self.compiled else None,
        )

    def learner(self, device: torch.device | str = "cpu") -> Learner:
        """Return the network on ``device``, its optimizer and its moving average, before the first step."""
        device = torch.device(device)
        layout = memory_format_for(device)
        network = self.untrained().to(device)
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = OPTIMIZERS[self.optimizer](network)
        return Learner(network, optimizer, Ema(network, self.ema_decay))

    def run(
        self,
        learner: Learner,
        images: Tensor,
        accelerator: Accelerator,
        microbatches: int = 1,
    ) -> Iterator[Step]:
        """Yield the steps that are left to ``learner``, which is kept up to date: its average and its losses, too."""
        network, optimizer = accelerator.prepare(
            learner.network, learner.optimizer
        )
        run = train(
            network,
            optimizer,
            self.objective,
            images,
            self.plan(microbatches),
            start=len(learner.losses),
            accelerator=accelerator,
        )
        for step in run:
            learner.ema.update(learner.network)
            learner.losses.append(step.loss)
            yield step

    def state(self, learner: Learner) -> dict[str, Any]:
        """Return what a checkpoint of this run holds: the recipe, the model's description, the learner."""
        about = model_state(
            self.network,
            DATASETS[self.dataset].event,
            self.parameterization,
            self.q,
            self.dataset,
        )
        return {"recipe": asdict(self), "model": about, **learner.state_dict()}

    def resume(self, learner: Learner, path: str | os.PathLike[str]) -> None:
        """Make ``learner`` go on from the checkpoint at ``path``.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged, or of a run with another recipe; the settings that differ are named.
        """
        saved = load_checkpoint(path)
        theirs = saved.get("recipe")
        if not isinstance(theirs, dict):
            raise CheckpointError(
                f"{path}: a checkpoint, but not of a training run"
            )
        ours = asdict(self)
        # A setting that is younger than the checkpoint had its default.
        theirs = {**asdict(Recipe()), **theirs}
        differing = [
            f"{name} is {theirs.get(name)!r} there, {ours[name]!r} here"
            for name in ours
            if theirs.get(name) != ours[name]
        ]
        if differing:
            raise CheckpointError(
                f"{path}: of a run with another recipe: {'; '.join(differing)}"
            )
        learner.load_state_dict(saved)
