"""``ddpm-nb extend``: more steps of a finished run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ddpm_nb.arguments import whole_number
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint
from ddpm_nb.commands.train import (
    accelerator_for,
    check_run,
    run_options,
    trained,
)
from ddpm_nb.commands.words import Parser, command_line, recipe_in
from ddpm_nb.recipe import Recipe

__all__ = ["add"]


def add(parser: Parser) -> None:
    """Declare the command."""
    extend = parser.command(
        "extend",
        "do more steps of a finished run",
        "Do more steps of a finished run. Its learning rate warms up again and falls as\n"
        "a half cosine to zero at the new end. Killed and started again with the same\n"
        "words, the extension goes on from its checkpoint.",
        "extend checkpoints/photos.safetensors --steps 10000",
    )
    extend.add_argument(
        "source",
        type=Path,
        metavar="CHECKPOINT",
        help="of a run that did all its steps",
    )
    extend.add_argument(
        "--steps",
        type=int,
        required=True,
        metavar="N",
        help="steps to add (must be given)",
    )
    extend.option(
        "--learning-rate",
        None,
        "learning rate at its highest, after the new warm-up",
        shown="that of the run",
        type=float,
    )
    extend.option(
        "--checkpoint",
        None,
        "where to keep the extended run",
        shown="NAME-extended.safetensors beside the other",
        type=Path,
    )
    extend.option(
        "--in-place", False, "write over CHECKPOINT, which is kept otherwise"
    )
    extend.option(
        "--dataset",
        None,
        "where the packed file of the run's images is now",
        shown="where it was",
        type=str,
        metavar="FILE",
    )
    run_options(extend)
    extend.set_defaults(do=_extend)


def _extend(given: argparse.Namespace) -> None:
    whole_number("steps", given.steps, least=1)
    check_run(given)
    if given.in_place and given.checkpoint is not None:
        raise ValueError(
            "--in-place and --checkpoint: expected one of them, each says where to write"
        )
    source, path = given.source, given.checkpoint
    if given.in_place:
        path = source
    elif path is None:
        path = source.with_name(f"{source.stem}-extended.safetensors")
    elif path.resolve() == source.resolve():
        raise ValueError(
            f"checkpoint = {str(path)!r}: expected another file than {source}, or --in-place"
        )
    saved = load_checkpoint(source)
    old, step = recipe_in(saved, source), saved["step"]
    if given.dataset is not None:
        old = replace(old, dataset=given.dataset)
    asked = old.learning_rate
    if given.learning_rate is not None:
        asked = given.learning_rate
    began = old.restart and old.restart + given.steps == old.steps
    same = began and asked == old.learning_rate
    if given.in_place and step < old.steps and same:
        new = old  # the same words again
    elif step < old.steps:
        raise CheckpointError(
            f"{source}: {step} of {old.steps} steps are done; finish the run first: {command_line(old, source)}"
        )
    else:
        steps = old.steps + given.steps
        new = replace(old, steps=steps, restart=old.steps, learning_rate=asked)
    accelerator = accelerator_for(new, given, path)
    learner = new.learner(accelerator.device)
    if path != source and path.exists():
        new.resume(learner, path)
    else:
        old.resume(learner, source)
    accelerator.print(_plan(new))
    trained(new, learner, path, given, accelerator)


def _plan(recipe: Recipe) -> str:
    first, last = recipe.restart + 1, recipe.steps
    warmup = min(recipe.warmup, last - first)
    return (
        f"steps {first} to {last}: the learning rate warms up again to {recipe.learning_rate:g} in {warmup} steps and "
        f"falls as a half cosine to zero at step {last}"
    )
