"""Chapter 6. A recipe: every choice that decides which weights a training run on images ends with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_nb.arguments import choose, whole_number
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint
from ddpm_nb.data import DATASETS
from ddpm_nb.denoiser import Parameterization, parameterization
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import UNet, image_unet
from ddpm_nb.pretrained import model_state
from ddpm_nb.schedule import SCHEDULES
from ddpm_nb.training import Ema, Learner, Step, train, warmup_rate
from ddpm_nb.weighting import STEP_DRAWS, WEIGHTINGS

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Two runs of one recipe on one kind of processor end with the same weights, bit for bit.

    Parameters
    ----------
    dataset : 'digits', 'fashion_mnist' or 'mnist'
    steps : optimization steps of the whole run
    batch_size : images of a step, over all processes and microbatches together
    learning_rate : at its highest, after the warm-up
    warmup : steps until then
    schedule, T : of the noise
    parameterization : what the network predicts: 'eps', 'x_0', 'v' or 'score'
    weighting : how much each noise level counts: 'simple', 'bound' or 'min_snr'
    step_draw : 'uniform' or 'stratified'
    ema_decay : highest decay of the moving average
    mixed_precision : 'no', 'bf16' or 'fp16'
    seed : of the first weights and of every draw

    Raises
    ------
    ValueError, TypeError
        If a name is unknown, the nearest named, or a number is out of range.
    """

    dataset: str = "digits"
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 50
    schedule: str = "cosine"
    T: int = 1000
    parameterization: str = "eps"
    weighting: str = "simple"
    step_draw: str = "stratified"
    ema_decay: float = 0.998
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        choose("dataset", self.dataset, DATASETS)
        choose("schedule", self.schedule, SCHEDULES)
        choose("weighting", self.weighting, WEIGHTINGS)
        choose("step_draw", self.step_draw, STEP_DRAWS)
        choose("mixed_precision", self.mixed_precision, dict.fromkeys(("no", "bf16", "fp16")))
        parameterization(self.parameterization)
        for name, least in {"steps": 1, "batch_size": 1, "warmup": 0, "T": 2, "seed": 0}.items():
            whole_number(name, getattr(self, name), least=least)

    @property
    def q(self) -> GaussianDiffusion:
        """The forward process."""
        return GaussianDiffusion(SCHEDULES[self.schedule](self.T))

    @property
    def target(self) -> Parameterization:
        """What the network predicts."""
        return parameterization(self.parameterization)

    def network(self) -> UNet:
        """Return the untrained network, a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return image_unet(DATASETS[self.dataset].side)

    def learner(self, device: torch.device | str = "cpu") -> Learner:
        """Return the network on ``device``, its optimizer and its moving average, before the first step."""
        network = self.network().to(device)
        return Learner(network, torch.optim.AdamW(network.parameters(), weight_decay=0.0), Ema(network, self.ema_decay))

    def run(self, learner: Learner, images: Tensor, accelerator: Accelerator, microbatches: int = 1) -> Iterator[Step]:
        """Yield the steps that are left to ``learner``, which is kept up to date: its average and its losses, too."""
        network, optimizer = accelerator.prepare(learner.network, learner.optimizer)
        run = train(
            network,
            optimizer,
            self.q,
            images,
            steps=self.steps,
            start=len(learner.losses),
            batch_size=self.batch_size,
            seed=self.seed,
            rate=warmup_rate(self.learning_rate, min(self.warmup, self.steps - 1), self.steps),
            parameterization=self.target,
            weighting=WEIGHTINGS[self.weighting],
            draw_steps=STEP_DRAWS[self.step_draw],
            microbatches=microbatches,
            accelerator=accelerator,
        )
        for step in run:
            learner.ema.update(learner.network)
            learner.losses.append(step.loss)
            yield step

    def state(self, learner: Learner) -> dict[str, Any]:
        """Return what a checkpoint of this run holds: the recipe, the model's description, the learner."""
        about = model_state(learner.network, self.schedule, self.T, self.target, self.dataset)
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
            raise CheckpointError(f"{path}: a checkpoint, but not of a training run")
        ours = asdict(self)
        differing = [
            f"{name} is {theirs.get(name)!r} there, {ours[name]!r} here"
            for name in ours
            if theirs.get(name) != ours[name]
        ]
        if differing:
            raise CheckpointError(f"{path}: of a run with another recipe: {'; '.join(differing)}")
        learner.load_state_dict(saved)
