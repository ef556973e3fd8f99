"""``ddpm-nb train``: a run from a recipe, on one device or, by accelerate, on several; it goes on where it was stopped.

``extend`` uses the same run.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_nb.arguments import choose, whole_number
from ddpm_nb.aside import aside
from ddpm_nb.checkpoint import save_checkpoint
from ddpm_nb.commands.journal import Journal, check_name
from ddpm_nb.commands.sample import drawn
from ddpm_nb.commands.words import (
    PROGRAM,
    CommandError,
    Parser,
    Stopped,
    settings,
)
from ddpm_nb.data import card_of, load_pixels
from ddpm_nb.hardware import default_device
from ddpm_nb.pictures import picture
from ddpm_nb.pretrained import Model
from ddpm_nb.recipe import Recipe
from ddpm_nb.training import Learner, checkpointed

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["add", "check_run", "run_options", "trained"]

_LOOK = 20  # steps between looks at the loss, which wait for a GPU
_ROW = 8  # images of a row of a sheet
_ROWS = 16  # of a sheet, at most
_TRACKERS = (
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)


def add(parser: Parser) -> None:
    """Declare the command."""
    train = parser.command(
        "train",
        "train a network, or go on from the run's checkpoint",
        "Train a network on images. Killed and started again with the same words, a run\n"
        "goes on from its checkpoint; Ctrl-C writes one first. For several devices put\n"
        "accelerate launch -m ddpm_nb in the place of ddpm-nb.",
        "train --dataset photos.safetensors --conditional --steps 20000",
    )
    settings(train)
    train.option(
        "--checkpoint",
        None,
        "where to keep the run; if the file is there, the run goes on from it",
        shown="checkpoints/DATASET.safetensors",
        type=Path,
    )
    run_options(train)
    train.set_defaults(do=_train)


def run_options(parser: Parser) -> None:
    """Add the options that change no weight: where data and outputs are, and how often."""
    parser.root()
    parser.option(
        "--save-every", 500, "steps between two writings of the checkpoint"
    )
    parser.option(
        "--microbatches",
        None,
        "parts that each process cuts its images of a step into",
        shown="as few as the device's memory allows",
        type=int,
    )
    parser.option(
        "--sheet-every",
        0,
        "steps between two sheets of samples, NAME-000500.png beside the checkpoint, all from the same noise; one row "
        "a class if the run is conditional",
        shown="0, none",
    )
    parser.option(
        "--log",
        None,
        "a .csv or .jsonl file with a row for each step: loss, learning rate, images/s",
        shown="none",
        type=Path,
    )
    parser.option(
        "--log-with",
        None,
        "a package that keeps runs, which must be installed; its files lie beside the checkpoint",
        _TRACKERS,
        shown="none",
    )


def check_run(given: argparse.Namespace) -> None:
    """Refuse a wrong number or name among :func:`run_options`, before any work."""
    whole_number("save-every", given.save_every, least=1)
    if given.microbatches is not None:
        whole_number("microbatches", given.microbatches, least=1)
    whole_number("sheet-every", given.sheet_every, least=0)
    if given.log is not None:
        check_name(given.log)
    if given.log_with is not None:
        choose("log-with", given.log_with, dict.fromkeys(_TRACKERS))
        from accelerate.tracking import get_available_trackers

        if given.log_with not in map(str, get_available_trackers()):
            package = given.log_with.replace("_", "-")
            raise CommandError(
                f"log-with = {given.log_with!r}: that package is not installed: pip install {package}"
            )


def _train(given: argparse.Namespace) -> None:
    names = [setting.name for setting in fields(Recipe)]
    recipe = Recipe(**{name: getattr(given, name) for name in names})
    check_run(given)
    recipe = recipe.on(default_device())
    default = f"{Path(recipe.dataset).name.removesuffix('.safetensors')}"
    path = given.checkpoint or Path("checkpoints") / f"{default}.safetensors"
    accelerator = accelerator_for(recipe, given, path)
    learner = recipe.learner(accelerator.device)
    if path.exists():
        recipe.resume(learner, path)
    trained(recipe, learner, path, given, accelerator)


def accelerator_for(
    recipe: Recipe, given: argparse.Namespace, path: Path
) -> Accelerator:
    """Return the accelerator of a run whose checkpoint is at ``path``."""
    if given.log_with is None:
        return recipe.accelerator()
    folder = path.parent / f"{path.stem}-{given.log_with}"
    return recipe.accelerator(log_with=given.log_with, project_dir=str(folder))


def trained(
    recipe: Recipe,
    learner: Learner,
    path: Path,
    given: argparse.Namespace,
    accelerator: Accelerator,
) -> None:
    """Do the steps that are left to ``learner``, and keep them at ``path``.

    Raises
    ------
    Stopped
        After Ctrl-C, when the checkpoint is written.
    """
    images, labels = load_pixels(recipe.dataset, given.root)
    if images.is_floating_point():
        images = images.to(accelerator.device)
    say, parts = accelerator.print, given.microbatches
    if parts is None:
        device, processes = accelerator.device, accelerator.num_processes
        parts = recipe.microbatches(device, processes)
    for line in _chosen(recipe, learner, images, path, accelerator, parts):
        say(line)
    begin, is_main = len(learner.losses), accelerator.is_main_process
    if begin == recipe.steps:
        say(f"all {begin} steps are done; {PROGRAM} extend adds more")
    journal = None
    if given.log is not None and is_main:
        journal = Journal(
            given.log, learner.losses, recipe.rate, recipe.batch_size
        )
    if given.log_with is not None:
        accelerator.init_trackers(path.stem)
    run = recipe.run(learner, images, accelerator, parts, labels)
    if is_main:
        run = checkpointed(
            run, path, given.save_every, lambda: recipe.state(learner)
        )
    progress = tqdm(
        run,
        total=recipe.steps,
        initial=begin,
        unit="step",
        disable=not is_main,
    )
    stopped = 0
    with _ctrl_c() as asked, progress:
        for step in progress:
            if journal is not None:
                journal.add(step.number, step.loss)
            if step.number % _LOOK == 0:
                recent = torch.stack(learner.losses[-_LOOK:]).mean().item()
                rate = progress.format_dict["rate"] or 0.0
                pace = rate * recipe.batch_size
                progress.set_postfix_str(
                    f"loss {recent:.4f}, {pace:.0f} images/s"
                )
                if given.log_with is not None:
                    accelerator.log(
                        {
                            "loss": recent,
                            "learning_rate": recipe.rate(step.number - 1),
                            "images_per_second": pace,
                        },
                        step=step.number,
                    )
                if journal is not None:
                    journal.write()
            if is_main and given.sheet_every:
                last = step.number == recipe.steps
                if step.number % given.sheet_every == 0 or last:
                    sheet(recipe, learner, path)
            if asked.is_set() and step.number < recipe.steps:
                stopped = step.number
                if is_main:
                    save_checkpoint(path, recipe.state(learner))
                break
    if journal is not None:
        journal.write()
    accelerator.end_training()
    if stopped:
        again = shlex.join([PROGRAM, *given.words])
        raise Stopped(
            f"stopped after step {stopped} of {recipe.steps}, kept in {path}; the same words go on: {again}"
        )
    say(f"{recipe.steps} steps, {path}")


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Lend an event that the first Ctrl-C sets, so that a step is never cut; the second one is as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _chosen(
    recipe: Recipe,
    learner: Learner,
    images: Tensor,
    path: Path,
    accelerator: Accelerator,
    parts: int,
) -> list[str]:
    """Return what a run chose, in three lines."""
    card, begin = card_of(recipe.dataset), len(learner.losses)
    parameters = sum(p.numel() for p in learner.network.parameters())
    numbers = {"no": "float32"}.get(
        recipe.mixed_precision, recipe.mixed_precision
    )
    compiled = "compiled" if recipe.compiled else "not compiled"
    told = "told to the network" if recipe.conditional else "not told"
    few = len(card.classes) > 1
    classes = f"{len(card.classes)} classes ({told})" if few else "no classes"
    images_at_once = -(-recipe.batch_size // accelerator.num_processes // parts)
    held = math.ceil(recipe.step_memory(images_at_once) / 2**20)
    cut = f", each in {parts} parts" if parts > 1 else ""
    return [
        f"{accelerator.device}, {accelerator.num_processes} process(es), {numbers}, {compiled}; {recipe.network} of "
        f"{parameters:,} parameters",
        f"{len(images):,} images of {recipe.dataset}, {card.side} x {card.side} pixels, {card.channels} channel(s), "
        f"{classes}",
        f"from step {begin} to {recipe.steps} in batches of {recipe.batch_size}{cut}, about {held:,} MiB for a step, "
        f"checkpoint {path}",
    ]


def sheet(recipe: Recipe, learner: Learner, path: Path) -> Path:
    """Write samples of the averaged weights beside the checkpoint, the same noise at every call; return the file.

    Nothing that training draws or changes is touched.
    """
    card = card_of(recipe.dataset)
    model = Model(
        learner.ema.network,
        recipe.target,
        recipe.q,
        card.event,
        recipe.dataset,
        len(learner.losses),
        recipe.classes,
    )
    rows, labels = 4, None
    if recipe.classes:
        rows = min(len(recipe.classes), _ROWS)
        labels = torch.arange(rows).repeat_interleave(_ROW)
    images = drawn(
        model,
        rows * _ROW,
        steps=min(20, recipe.T),
        labels=labels,
        quiet=True,
    )
    out = path.with_name(f"{path.stem}-{model.step:06d}.png")
    with aside(out) as beside:
        picture(images, columns=_ROW).save(beside, format="PNG")
    return out
