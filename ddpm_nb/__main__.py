"""Train a network on images from the command line, on one device or, by accelerate, on several; draw and judge.

    python -m ddpm_nb train --dataset fashion_mnist --steps 20000 --checkpoint fashion.safetensors
    accelerate launch --num_processes 4 -m ddpm_nb train --dataset fashion_mnist --mixed-precision bf16
    python -m ddpm_nb sample fashion.safetensors --sampler ddim --steps 50 --out samples.png
    python -m ddpm_nb bits fashion.safetensors --draws 8
    python -m ddpm_nb judge FOLDER --dataset fashion_mnist

Killed and started again with the same words, a run goes on from its checkpoint. With --extension FILE.py your own
schedules, data sets, networks and samplers are known by their names; see ddpm_nb.registry. Options without a command
are those of train.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from ddpm_nb.arguments import whole_number
from ddpm_nb.bound import fixed_variance
from ddpm_nb.data import DATASETS, load_dataset
from ddpm_nb.denoiser import between_steps, clipped
from ddpm_nb.evaluation import bits_of_images, weights_digest
from ddpm_nb.kernels import GRIDS, last, walk
from ddpm_nb.pictures import picture
from ddpm_nb.precision import default_device
from ddpm_nb.pretrained import load_features, load_model
from ddpm_nb.quality import images_from, judged, report
from ddpm_nb.recipe import Recipe
from ddpm_nb.registry import load_extension
from ddpm_nb.solvers import SAMPLERS
from ddpm_nb.training import checkpointed


def options() -> argparse.ArgumentParser:
    """Return a parser of all commands: of ``train`` with one option for each field of the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m ddpm_nb",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--extension",
        default="",
        help="a .py file, or a module, that registers entries of your own",
    )

    training = commands.add_parser(
        "train", parents=[own], help="train, or go on from the run's checkpoint"
    )
    for setting in fields(Recipe):
        option = "--" + setting.name.replace("_", "-")
        if isinstance(setting.default, bool):
            training.add_argument(option, action="store_true", help="(no)")
        else:
            kind = type(setting.default)
            training.add_argument(
                option,
                type=kind,
                default=setting.default,
                help=f"({setting.default})",
            )
    training.add_argument(
        "--root",
        help="folder with the data files (DDPM_NB_DATA, or a download)",
    )
    training.add_argument(
        "--checkpoint",
        type=Path,
        help="where to keep the run (checkpoints/DATASET.safetensors)",
    )
    training.add_argument(
        "--save-every",
        type=int,
        default=500,
        help="steps between checkpoints (500)",
    )
    training.add_argument(
        "--microbatches",
        type=int,
        default=1,
        help="parts of a batch too large for memory (1)",
    )

    sampling = commands.add_parser(
        "sample", parents=[own], help="draw samples from a model into a PNG"
    )
    sampling.add_argument(
        "model", help="a shipped model's name, such as digits, or a checkpoint"
    )
    sampling.add_argument("--sampler", default="ddim", help="(ddim)")
    sampling.add_argument("--steps", type=int, default=50, help="(50)")
    sampling.add_argument(
        "--grid",
        default="t",
        help="what the steps are even in: t, log_snr or sigma (t)",
    )
    sampling.add_argument("--images", type=int, default=64, help="(64)")
    sampling.add_argument("--seed", type=int, default=0, help="(0)")
    sampling.add_argument(
        "--out", type=Path, default=Path("samples.png"), help="(samples.png)"
    )

    bits = commands.add_parser(
        "bits",
        parents=[own],
        help="bits per dimension of the test images under a model",
    )
    bits.add_argument(
        "model", help="a shipped model's name, such as digits, or a checkpoint"
    )
    bits.add_argument(
        "--root",
        help="folder with the data files (DDPM_NB_DATA, or a download)",
    )
    bits.add_argument(
        "--images", type=int, help="the first so many test images (all)"
    )
    bits.add_argument(
        "--draws",
        type=int,
        default=8,
        help="draws of step and noise for each image (8)",
    )
    bits.add_argument(
        "--finer",
        type=int,
        default=1,
        help="steps in the place of each: 100 is the limit of many (1)",
    )
    bits.add_argument("--seed", type=int, default=0, help="(0)")
    bits.add_argument(
        "--out",
        type=Path,
        help="where to keep what is done (bits/MODEL.safetensors)",
    )

    judging = commands.add_parser(
        "judge",
        parents=[own],
        help="judge images, from wherever they are, as samples",
    )
    judging.add_argument(
        "images",
        type=Path,
        help="a folder of PNG files, or a .npy or .npz file of uint8 images",
    )
    judging.add_argument(
        "--dataset",
        default="fashion_mnist",
        help="the data they should look like (fashion_mnist)",
    )
    judging.add_argument(
        "--root",
        help="folder with the data files (DDPM_NB_DATA, or a download)",
    )
    judging.add_argument(
        "--parts",
        type=int,
        default=4,
        help="equal parts of the images, for the errors (4)",
    )
    judging.add_argument("--seed", type=int, default=0, help="(0)")
    return parser


def train(given: argparse.Namespace) -> None:
    """Train by the words of a command line."""
    device = default_device()
    names = [setting.name for setting in fields(Recipe)]
    recipe = Recipe(**{name: getattr(given, name) for name in names}).on(device)
    accelerator = recipe.accelerator()
    default = Path("checkpoints") / f"{recipe.dataset}.safetensors"
    path = given.checkpoint or default
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
        run = checkpointed(
            run, path, given.save_every, lambda: recipe.state(learner)
        )
    progress = tqdm(
        run,
        total=recipe.steps,
        initial=begin,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    for step in progress:
        if step.number % 20 == 0:
            recent = torch.stack(learner.losses[-20:]).mean().item()
            pace = (progress.format_dict["rate"] or 0.0) * recipe.batch_size
            progress.set_postfix_str(f"loss {recent:.4f}, {pace:.0f} images/s")
    accelerator.end_training()


def sample(given: argparse.Namespace) -> None:
    """Draw samples by the words of a command line and write them as one picture, aside first."""
    whole_number("images", given.images, least=1)
    make_kernel, model = SAMPLERS[given.sampler], load_model(given.model)
    if model.event[0] not in (1, 3):
        raise ValueError(
            f"model = {given.model!r}: images of {model.event[0]} channels; a PNG has 1 or 3"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    device = default_device()
    times = GRIDS[given.grid](model.q.schedule, given.steps)
    model.network.to(device)
    generator = torch.Generator().manual_seed(given.seed)
    x_T = torch.randn(given.images, *model.event, generator=generator)
    kernel = make_kernel(model.q, clipped(model.denoiser))
    states = walk(kernel, x_T.to(device), times, generator)
    images = last(tqdm(states, total=given.steps, unit="step")).x
    aside = given.out.with_name(f".{given.out.name}.tmp")
    picture(images, columns=16).save(aside, format="PNG")
    aside.replace(given.out)
    print(
        f"{given.images} samples of {given.model} by {given.sampler} in {given.steps} steps: {given.out}"
    )


def bits(given: argparse.Namespace) -> None:
    """Estimate the bound of test images by the words of a command line, or go on where it was stopped."""
    model, device = load_model(given.model), default_device()
    card = DATASETS[model.dataset]
    images = load_dataset(model.dataset, given.root, split="test")
    images = images[: given.images]
    model.network.to(device)
    finer = f"-{given.finer}" if given.finer > 1 else ""
    name = Path(given.model).stem + finer
    path = given.out or Path("bits") / f"{name}.safetensors"
    about = {
        "dataset": model.dataset,
        "split": "test",
        "weights": weights_digest(model.network),
    }
    about |= {"finer": str(given.finer)} if given.finer > 1 else {}
    denoise = between_steps(model.denoiser, given.finer)
    reverse = fixed_variance(denoise.q, clipped(denoise))
    run = bits_of_images(
        denoise.q,
        reverse,
        images.to(device),
        card.levels,
        given.draws,
        path,
        about,
        given.seed,
    )
    total = given.draws * -(-len(images) // 250) + 1
    *_, found = tqdm(run, total=total, unit="batch")
    print(
        f"{given.model}: {found.mean:.4f} bits/dim on {len(images)} test images of {model.dataset}, "
        f"bound of {denoise.q.schedule.T} steps; standard error {found.error_of_estimate:.4f} of the estimate "
        f"({given.draws} draws), {found.error_over_images:.4f} over images"
    )


def judge(given: argparse.Namespace) -> None:
    """Compare somebody's images with a data set by the words of a command line."""
    card = DATASETS[given.dataset]
    images = images_from(given.images, (card.channels, card.side, card.side))
    space = load_features(given.dataset)
    train, test = (
        load_dataset(given.dataset, given.root, split=split)
        for split in ("train", "test")
    )
    verdict = judged(images, space, train, test, given.parts, given.seed)
    print(report(verdict, given.parts))


def main(words: Sequence[str] | None = None) -> None:
    """Do what the words of a command line say, those of this process if none are given."""
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        words = ["train", *words]  # options alone are those of train
    given = options().parse_args(words)
    load_extension(given.extension)
    commands = {"train": train, "sample": sample, "bits": bits, "judge": judge}
    commands[given.command](given)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        # A wrong name, number or file: the message says what was expected.
        sys.exit(f"python -m ddpm_nb: {error}")
