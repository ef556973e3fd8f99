"""Train a network on images from the command line, on one device or, by accelerate, on several.

    python -m ddpm_nb --dataset fashion_mnist --steps 20000 --checkpoint fashion.safetensors
    accelerate launch --num_processes 4 -m ddpm_nb --dataset fashion_mnist --mixed-precision bf16

Killed and started again with the same words, a run goes on from its checkpoint. Chapter 7 samples from it, by
``ddpm_nb.pretrained.load_model``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from ddpm_nb.data import load_dataset
from ddpm_nb.recipe import Recipe
from ddpm_nb.training import checkpointed


def options() -> argparse.ArgumentParser:
    """Return a parser with one option for each field of the recipe, and those that do not change the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m ddpm_nb", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for setting in fields(Recipe):
        option = "--" + setting.name.replace("_", "-")
        parser.add_argument(option, type=type(setting.default), default=setting.default, help=f"({setting.default})")
    parser.add_argument("--root", help="folder with the data files (DDPM_NB_DATA, or a download)")
    parser.add_argument("--checkpoint", type=Path, help="where to keep the run (checkpoints/DATASET.safetensors)")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (500)")
    parser.add_argument("--microbatches", type=int, default=1, help="parts of a batch that does not fit in memory (1)")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Train by the words of a command line, those of this process if none are given."""
    given = options().parse_args(words)
    recipe = Recipe(**{setting.name: getattr(given, setting.name) for setting in fields(Recipe)})
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    path = given.checkpoint or Path("checkpoints") / f"{recipe.dataset}.safetensors"
    images = load_dataset(recipe.dataset, given.root).to(accelerator.device)
    learner = recipe.learner(accelerator.device)
    if path.exists():
        recipe.resume(learner, path)

    begin = len(learner.losses)
    parameters = sum(p.numel() for p in learner.network.parameters())
    accelerator.print(
        f"{len(images)} images, {parameters:,} parameters, {accelerator.num_processes} process(es) on "
        f"{accelerator.device}, from step {begin} to {recipe.steps}, checkpoint {path}"
    )
    run = recipe.run(learner, images, accelerator, given.microbatches)
    if accelerator.is_main_process:
        run = checkpointed(run, path, given.save_every, lambda: recipe.state(learner))
    progress = tqdm(run, total=recipe.steps, initial=begin, unit="step", disable=not accelerator.is_main_process)
    for step in progress:
        if step.number % 20 == 0:
            recent = sum(float(loss) for loss in learner.losses[-20:]) / 20
            rate = progress.format_dict["rate"] or 0.0
            progress.set_postfix_str(f"loss {recent:.4f}, {rate * recipe.batch_size:.0f} images/s")
    accelerator.end_training()


if __name__ == "__main__":
    main()
