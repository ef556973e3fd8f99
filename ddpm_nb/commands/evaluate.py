"""``ddpm-nb evaluate``, ``bits`` and ``judge``: how good a model is, and how good anybody's images are."""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_nb.arguments import whole_number
from ddpm_nb.bound import fixed_variance
from ddpm_nb.commands.sample import drawn
from ddpm_nb.commands.words import CommandError, Parser
from ddpm_nb.data import (
    DATASETS,
    Dataset,
    card_of,
    load_dataset,
    load_labels,
)
from ddpm_nb.denoiser import between_steps, clipped
from ddpm_nb.evaluation import Bits, bits_of_images, weights_digest
from ddpm_nb.hardware import default_device
from ddpm_nb.kernels import grid
from ddpm_nb.pretrained import (
    FeatureSpace,
    Model,
    feature_space,
    load_model,
)
from ddpm_nb.quality import images_from, judged, report, told_apart
from ddpm_nb.solvers import SAMPLERS

__all__ = ["add"]

_BATCH = 250  # images of the bound at a time
_EPOCHS = 6  # of the classifier behind the features
_MODEL = "a checkpoint, or the name of a shipped model, such as digits"


def add(parser: Parser) -> None:
    """Declare the three commands."""
    evaluate = parser.command(
        "evaluate",
        "measure how good a model is, beside real images",
        "Measure how good a model is: bits per pixel and colour of the images that were\n"
        "kept from training, and samples compared with them in the features of a small\n"
        "classifier. Real images stand in the line below, since they do not reach the\n"
        "best figures either. One half is the best for told apart.",
        "evaluate checkpoints/photos.safetensors --images 2000",
    )
    evaluate.add_argument("model", metavar="MODEL", help=_MODEL)
    evaluate.option(
        "--images",
        1000,
        "images to draw, and to measure the bound on; at most half of the training images are drawn",
    )
    evaluate.option(
        "--draws",
        2,
        "draws of step and noise for each image, at least 2, for the bound",
    )
    evaluate.option("--sampler", "ddim", "how to draw the images", SAMPLERS)
    evaluate.option("--steps", 50, "steps of the sampler")
    evaluate.option("--seed", 0, "number behind every draw")
    evaluate.option(
        "--dataset",
        None,
        "where the packed file of the model's images is now",
        shown="where it was",
        type=str,
        metavar="FILE",
    )
    evaluate.root()
    evaluate.set_defaults(do=_evaluate)

    bits = parser.command(
        "bits",
        "estimate the bits that a model needs for each pixel",
        "Estimate the bits per pixel and colour that a model needs for the test images:\n"
        "an upper bound. Stopped and started again with the same words, it goes on.",
        "bits checkpoints/photos.safetensors --draws 8",
    )
    bits.add_argument("model", metavar="MODEL", help=_MODEL)
    bits.root()
    bits.option(
        "--images",
        None,
        "the first so many test images",
        shown="all",
        type=int,
    )
    bits.option("--draws", 8, "draws of step and noise for each image")
    bits.option(
        "--finer",
        1,
        "steps in the place of each: 100 is near the limit of many",
    )
    bits.option("--seed", 0, "number behind the draws")
    bits.option(
        "--out",
        None,
        "where to keep what is done",
        shown="bits/MODEL.safetensors",
        type=Path,
    )
    bits.set_defaults(do=_bits)

    judge = parser.command(
        "judge",
        "judge images, from wherever they are, as samples",
        "Judge images, from wherever they are, as samples of a data set, in the features\n"
        "of a small classifier; real images stand in the line below.",
        "judge drawn --dataset photos.safetensors",
    )
    judge.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="a folder of .png files, or a .npy or .npz file of uint8 images",
    )
    judge.option(
        "--dataset",
        "fashion_mnist",
        "the data they should look like: the path of a packed file, or a name",
        DATASETS,
    )
    judge.root()
    judge.option("--parts", 4, "equal parts of the images, for the errors")
    judge.option(
        "--seed", 0, "number behind the order of the images and the classifier"
    )
    judge.set_defaults(do=_judge)


def _bound(
    model: Model,
    images: Tensor,
    card: Dataset,
    draws: int,
    path: Path,
    finer: int = 1,
    seed: int = 0,
) -> tuple[Bits, int]:
    """Return the bound of images and the steps of its chain; ``path`` keeps what is done."""
    device = default_device()
    model.network.to(device)
    about = {
        "dataset": model.dataset,
        "split": "test",
        "weights": weights_digest(model.network),
    }
    about |= {"finer": str(finer)} if finer > 1 else {}
    denoise = between_steps(model.denoiser, finer)
    run = bits_of_images(
        denoise.q,
        fixed_variance(denoise.q, clipped(denoise)),
        images.to(device),
        card.levels,
        draws,
        path,
        about,
        seed,
    )
    total = draws * -(-len(images) // _BATCH) + 1
    *_, found = tqdm(run, total=total, unit="batch")
    return found, denoise.q.schedule.T


def _sentence(
    found: Bits, steps: int, name: str, dataset: str, draws: int
) -> str:
    return (
        f"{name}: {found.mean:.4f} bits/dim on {found.table.shape[1]} test images of {dataset}, "
        f"bound of {steps} steps; standard error {found.error_of_estimate:.4f} of the estimate "
        f"({draws} draws), {found.error_over_images:.4f} over images"
    )


def _bits(given: argparse.Namespace) -> None:
    if given.images is not None:
        whole_number("images", given.images, least=2)
    model = load_model(given.model)
    card = card_of(model.dataset)
    images = load_dataset(model.dataset, given.root, split="test")
    images = images[: given.images]
    finer = f"-{given.finer}" if given.finer > 1 else ""
    name = Path(given.model).stem + finer
    path = given.out or Path("bits") / f"{name}.safetensors"
    found, steps = _bound(
        model, images, card, given.draws, path, given.finer, given.seed
    )
    print(_sentence(found, steps, given.model, model.dataset, given.draws))


def _judge(given: argparse.Namespace) -> None:
    card = card_of(given.dataset)
    images = _images(given.images, card)
    train, test = _splits(given.dataset, given.root)
    space = _space(given.dataset, given.root, train, test, given.seed)
    verdict = judged(images, space, train, test, given.parts, given.seed)
    print(report(verdict, given.parts))


def _evaluate(given: argparse.Namespace) -> None:
    whole_number("images", given.images, least=16)
    whole_number("draws", given.draws, least=2)
    model = load_model(given.model)
    SAMPLERS[given.sampler]  # an unknown name is an error before any work
    grid(model.q.schedule.T, given.steps)
    if given.dataset is not None:
        model = replace(model, dataset=given.dataset)
    card = card_of(model.dataset)
    if card.event != model.event:
        raise CommandError(
            f"dataset = {model.dataset!r}: images of {card.event}; expected {model.event}, those of the model"
        )
    train, test = _splits(model.dataset, given.root)
    with tempfile.TemporaryDirectory() as folder:
        found, steps = _bound(
            model,
            test[: given.images],
            card,
            given.draws,
            Path(folder) / "bits.safetensors",
            seed=given.seed,
        )
    print(_sentence(found, steps, given.model, model.dataset, given.draws))

    count = min(given.images, len(train) // 2)
    parts = 4 if count >= 32 else 2
    count -= count % parts
    if count < 16:
        print(
            f"no samples are judged: {len(train)} training images; expected at least 32"
        )
        return
    labels = None
    if model.classes:  # as often as in the data
        known = load_labels(model.dataset, given.root)
        generator = torch.Generator().manual_seed(given.seed)
        labels = known[torch.randint(len(known), (count,), generator=generator)]
    images = drawn(
        model,
        count,
        given.sampler,
        given.steps,
        seed=given.seed,
        labels=labels,
    )
    top = card.levels - 1  # onto the grey levels of the data
    images = ((images + 1) / 2 * top).round() / top * 2 - 1
    print(
        f"{count} samples by {given.sampler} in {given.steps} steps, and as many real images:"
    )
    try:
        space = _space(model.dataset, given.root, train, test, given.seed)
        verdict = judged(images, space, train, test, parts, given.seed)
    except ValueError as error:
        _only_apart(images, train, given.seed)
        print(f"no figures in features: {error}")
        return
    print(
        f"features of a classifier that is right on {space.accuracy:.1%} of the test images"
    )
    print(report(verdict, parts))


def _only_apart(images: Tensor, train: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    held, others = train[order[: len(images)]], train[order[len(images) :]]
    for name, some in (("images", images), ("real", held)):
        share, error = told_apart(others, some, seed)
        print(f"{name:9s}told apart {share:.3f} ± {error:.3f}")


def _splits(dataset: str, root: str | None) -> tuple[Tensor, Tensor]:
    return (
        load_dataset(dataset, root, split="train"),
        load_dataset(dataset, root, split="test"),
    )


def _space(
    dataset: str, root: str | None, train: Tensor, test: Tensor, seed: int
) -> FeatureSpace:
    """Return the features shipped for a data set, or those of a classifier that is trained now on its labels."""
    classes = card_of(dataset).classes
    if len(classes) < 2:
        raise ValueError(
            f"dataset = {dataset!r}: one class only, and the features are those of a classifier, which needs two; pack "
            "a folder with one folder for each class"
        )
    return feature_space(
        dataset,
        (train, load_labels(dataset, root)),
        (test, load_labels(dataset, root, split="test")),
        _EPOCHS,
        seed,
        len(train),
    )


def _images(source: Path, card: Dataset) -> Tensor:
    with _of_file(source):
        return images_from(source, card.event)


@contextmanager
def _of_file(source: Path) -> Iterator[None]:
    """Say which file is wrong, as what it is: a failure, and no wrong word."""
    if not source.exists():
        raise CommandError(f"images = {str(source)!r}: no such file or folder")
    try:
        yield
    except (EOFError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
        raise CommandError(str(error) or f"{source}: damaged") from error
