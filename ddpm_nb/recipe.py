"""Chapter 6. A recipe: every choice that decides which weights a training run on images ends with."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_nb.arguments import choose, whole_number
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint
from ddpm_nb.data import DATASETS, PackedFile, card_of
from ddpm_nb.denoiser import PARAMETERIZATIONS, Parameterization
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.hardware import (
    default_device,
    emulated,
    fewest_parts,
    memory_format_for,
    precision_for,
    step_memory,
    training_room,
)
from ddpm_nb.nets import NETWORKS, built
from ddpm_nb.optimizers import OPTIMIZERS
from ddpm_nb.pretrained import model_state
from ddpm_nb.schedule import SCHEDULES, shifted
from ddpm_nb.training import (
    Ema,
    Learner,
    Objective,
    Plan,
    Step,
    half_life_decay,
    train,
    warmup_rate,
)
from ddpm_nb.weighting import STEP_DRAWS, WEIGHTINGS

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Recipe", "stored_settings"]

_LARGEST_PRIOR_GAP = 1e-3  # nats for each pixel, 0.0014 bits
_PRECISIONS = dict.fromkeys(("auto", "no", "bf16", "fp16"))


def _setting(
    default: Any, meaning: str, choices: Mapping[str, Any] | None = None
) -> Any:
    """Return a field of the recipe, with what the command line and its page say of it."""
    about = {"meaning": meaning, "choices": choices}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Two runs of one recipe on one kind of processor end with the same weights, bit for bit.

    Parameters
    ----------
    dataset : a name in ``DATASETS``, or the path of a packed file, see ``ddpm_nb.packing``
    network, schedule, parameterization, weighting, step_draw, optimizer : names in ``NETWORKS``,
        ``SCHEDULES``, ``PARAMETERIZATIONS``, ``WEIGHTINGS``, ``STEP_DRAWS``, ``OPTIMIZERS``; your own by
        their ``register``
    steps : optimization steps of the whole run
    batch_size : images of a step, over all processes and microbatches together
    learning_rate : at its highest, after the warm-up
    warmup : steps until then
    T : steps of the diffusion
    ema_decay : highest decay of the moving average
    ema_half_life : images after which the moving average has forgotten half of what it was, whatever the batch, in
        place of ``ema_decay``, see ``ddpm_nb.training.half_life_decay``; 0 for ``ema_decay``
    mixed_precision : 'no', 'bf16', 'fp16', or 'auto': the fastest that is safe, see :meth:`on`
    compiled : whether torch.compile fuses the network's operations: a minute to start, worth it in long runs on a GPU
    seed : of the first weights and of every draw
    conditional : whether the network is told the class of an image
    label_dropout : share of the images whose class it is not told, so that it learns to do without; guidance needs it
    flip : whether half of the images, by chance, are mirrored left to right
    dropout : share of the numbers within the network's blocks that training leaves out
    schedule_side : side of the images that the schedule was made for; for others its SNR is divided by the square of
        the ratio, see ``ddpm_nb.schedule.shifted``; 0 for the schedule as it is
    restart : the step, less than ``steps``, at which the plan of the learning rate begins anew with another warm-up,
        after one that ended there; 0 for one plan. A run that was extended twice, or with another learning rate,
        is described by its last part alone: the steps before that are in its checkpoint only

    Raises
    ------
    ValueError, TypeError
        If a name is unknown, the nearest named, or a number is out of range.

    Warns
    -----
    UserWarning
        If the schedule ends before the data are noise: samplers begin with pure noise, which the network never saw.
    """

    dataset: str = _setting(
        "digits",
        "the images: a name, or the path of a file that pack wrote",
        DATASETS,
    )
    steps: int = _setting(500, "optimization steps of the whole run")
    batch_size: int = _setting(
        64, "images of a step, over all processes and microbatches together"
    )
    learning_rate: float = _setting(
        2e-3, "learning rate at its highest, after the warm-up"
    )
    warmup: int = _setting(50, "steps until the learning rate is that high")
    network: str = _setting(
        "unet", "the network that is trained, by name", NETWORKS
    )
    schedule: str = _setting(
        "cosine", "how much noise each step of the diffusion adds", SCHEDULES
    )
    T: int = _setting(1000, "steps of the diffusion, at least 2")
    parameterization: str = _setting(
        "eps",
        "what the network predicts: the noise, the image, or a mixture of both",
        PARAMETERIZATIONS,
    )
    weighting: str = _setting(
        "simple", "how much each noise level counts in the loss", WEIGHTINGS
    )
    step_draw: str = _setting(
        "stratified", "how the noise levels of a batch are drawn", STEP_DRAWS
    )
    optimizer: str = _setting(
        "adamw", "what turns gradients into steps of the weights", OPTIMIZERS
    )
    ema_decay: float = _setting(
        0.998, "highest decay of the moving average of the weights, below 1"
    )
    ema_half_life: int = _setting(
        0,
        "images after which that average has forgotten half of what it was, in place of the decay; 0: the decay",
    )
    mixed_precision: str = _setting(
        "auto",
        "numbers to compute in; auto takes the fastest that is safe here, no is float32",
        _PRECISIONS,
    )
    compiled: bool = _setting(
        False,
        "let torch.compile fuse the network's operations: a minute to start, worth it in long runs on a GPU",
    )
    seed: int = _setting(0, "number behind the first weights and every draw")
    conditional: bool = _setting(
        False, "tell the network the class of an image, so that sample can ask"
    )
    label_dropout: float = _setting(
        0.1,
        "share of the images whose class is not told, from 0 to 1; guidance needs some",
    )
    flip: bool = _setting(
        False, "mirror half of the images, by chance, left to right"
    )
    dropout: float = _setting(
        0.0,
        "share of the numbers within the network's blocks that training leaves out, below 1",
    )
    schedule_side: int = _setting(
        0,
        "side of the images that the schedule was made for; it is shifted for larger and smaller ones. 0: as it is",
    )
    restart: int = _setting(
        0,
        "step at which the plan of the learning rate begins anew, as extend asks; 0 for one plan",
    )

    def __post_init__(self) -> None:
        for registry in (
            NETWORKS,
            SCHEDULES,
            PARAMETERIZATIONS,
            WEIGHTINGS,
            STEP_DRAWS,
            OPTIMIZERS,
        ):
            choose(registry.kind, getattr(self, registry.kind), registry)
        card = card_of(self.dataset)
        grey = getattr(self.target, "grey_levels", None)
        if grey is not None and grey != card.levels:
            raise ValueError(
                f"parameterization = {self.parameterization!r}: a belief about {grey} grey levels, but "
                f"{self.dataset!r} has {card.levels}; register ddpm_nb.belief.Belief with that number"
            )
        choose("mixed_precision", self.mixed_precision, _PRECISIONS)
        smallest = {
            "steps": 1,
            "batch_size": 1,
            "warmup": 0,
            "T": 2,
            "seed": 0,
            "ema_half_life": 0,
            "schedule_side": 0,
            "restart": 0,
        }
        for name, least in smallest.items():
            whole_number(name, getattr(self, name), least=least)
        if self.restart >= self.steps:
            raise ValueError(
                f"restart = {self.restart}: expected less than steps = {self.steps}"
            )
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
        """Return the recipe with its precision decided for ``device``: what a run and its checkpoint then hold.

        Warns (``UserWarning``) if it asks for numbers that the device only emulates, some times slower than float32.
        """
        if self.mixed_precision != "auto":
            if emulated(self.mixed_precision, device):
                warnings.warn(
                    f"mixed_precision = {self.mixed_precision!r}: this {device.type} has no instructions for it and "
                    "emulates them, which is slow; expected 'no' (float32), or 'auto' to have it chosen",
                    stacklevel=2,
                )
            return self
        return replace(self, mixed_precision=precision_for(device))

    @property
    def q(self) -> GaussianDiffusion:
        """The forward process."""
        schedule = SCHEDULES[self.schedule](self.T)
        if self.schedule_side:
            ratio = card_of(self.dataset).side / self.schedule_side
            schedule = shifted(schedule, ratio)
        return GaussianDiffusion(schedule)

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
        return Plan(
            self.steps,
            self.batch_size,
            self.rate,
            self.seed,
            microbatches,
            flip=self.flip,
            label_dropout=self.label_dropout,
        )

    @property
    def rate(self) -> Callable[[int], float]:
        """The learning rate, step number (from 0) -> rate: a warm-up and a half cosine to 0, twice with a restart."""

        def part(steps: int) -> Callable[[int], float]:
            warmup = min(self.warmup, steps - 1)
            return warmup_rate(self.learning_rate, warmup, steps)

        last = part(self.steps - self.restart)
        if not self.restart:
            return last
        first = part(self.restart)

        def rate(step: int) -> float:
            if step < self.restart:
                return first(step)
            return last(step - self.restart)

        return rate

    def untrained(self) -> nn.Module:
        """Return the network before the first step, a function of the seed."""
        card = card_of(self.dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return built(
                self.network,
                card.channels,
                card.side,
                self.target.outputs,
                len(self.classes),
                self.dropout,
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels that the network is told, none for a network without."""
        return card_of(self.dataset).classes if self.conditional else ()

    def accelerator(self, **options: Any) -> Accelerator:
        """Return the accelerator of a run, in its precision, compiled or not. It fixes both for the whole process.

        ``options`` are further arguments of ``accelerate.Accelerator``, such as ``log_with``.
        """
        from accelerate import Accelerator  # seconds to import

        return Accelerator(
            mixed_precision=self.on(default_device()).mixed_precision,
            dynamo_backend="inductor" if self.compiled else None,
            **options,
        )

    def step_memory(self, images: int) -> int:
        """Return about how many bytes a step on so many images holds at once, see ``ddpm_nb.hardware``."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        event = card_of(self.dataset).event
        with FakeTensorMode():  # shapes alone: nothing is allocated
            return step_memory(self.untrained(), event, images)

    def microbatches(self, device: torch.device, processes: int = 1) -> int:
        """Return into how few parts each process must cut its images of a batch, so that a step fits into memory.

        Warns (``UserWarning``) if not even one image fits.
        """
        own = max(1, self.batch_size // processes)
        return fewest_parts(self.step_memory, own, training_room(device))

    def learner(self, device: torch.device | str = "cpu") -> Learner:
        """Return the network on ``device``, its optimizer and its moving average, before the first step."""
        device = torch.device(device)
        layout = memory_format_for(device)
        network = self.untrained().to(device)
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = OPTIMIZERS[self.optimizer](network)
        decay = self.ema_decay
        if self.ema_half_life:
            decay = half_life_decay(self.ema_half_life, self.batch_size)
        return Learner(network, optimizer, Ema(network, decay))

    def run(
        self,
        learner: Learner,
        images: Tensor,
        accelerator: Accelerator,
        microbatches: int = 1,
        labels: Tensor | None = None,
    ) -> Iterator[Step]:
        """Yield the steps that are left to ``learner``, which is kept up to date: its average and its losses, too.

        ``labels`` ``(n,)`` are those of the images; a recipe without ``conditional`` ignores them, one with it needs
        them (``ValueError``).
        """
        if self.conditional and labels is None:
            raise ValueError(
                "labels = None: expected those of the images, "
                "since the recipe is conditional"
            )
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
            labels=labels if self.conditional else None,
        )
        for step in run:
            learner.ema.update(learner.network)
            learner.losses.append(step.loss)
            yield step

    def state(self, learner: Learner) -> dict[str, Any]:
        """Return what a checkpoint of this run holds: the recipe, the model's description, the learner.

        Of a packed file also the SHA-256 of its images, as ``data``: by that :meth:`resume` knows them.
        """
        card = card_of(self.dataset)
        about = model_state(
            self.network,
            card.event,
            self.parameterization,
            self.q,
            self.dataset,
            self.classes,
        )
        digest = _digest_of_data(self.dataset)
        return {
            "recipe": asdict(self),
            "model": about,
            **({} if digest is None else {"data": digest}),
            **learner.state_dict(),
        }

    def resume(self, learner: Learner, path: str | os.PathLike[str]) -> None:
        """Make ``learner`` go on from the checkpoint at ``path``.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged, or of a run with another recipe or other images; the settings that differ
            are named. A packed file is known by its content, wherever it lies.
        """
        saved = load_checkpoint(path)
        ours = asdict(self)
        # A setting that is younger than the checkpoint had its default.
        theirs = {**asdict(Recipe()), **stored_settings(saved, path)}
        there, here = saved.get("data"), _digest_of_data(self.dataset)
        if there and here:
            if there != here:
                raise CheckpointError(
                    f"{path}: of a run on other images than those of {self.dataset!r}: SHA-256 {there[:12]}.. there, "
                    f"{here[:12]}.. here; name the file that it began with, or another checkpoint"
                )
            theirs["dataset"] = self.dataset
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


def stored_settings(
    saved: Mapping[str, Any], path: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return the recipe's settings in a checkpoint that was read from ``path``; ``CheckpointError`` if it has none."""
    stored = saved.get("recipe")
    if not isinstance(stored, dict):
        raise CheckpointError(
            f"{path}: a checkpoint, but not of a training run"
        )
    return stored


def _digest_of_data(dataset: str) -> str | None:
    """Return the SHA-256 of a packed file's content, which its loader verifies; None for other data sets."""
    load = card_of(dataset).load
    return load.sha256 if isinstance(load, PackedFile) else None
