"""``ddpm-nb sample``: images drawn from a model, as one sheet, a folder of files or an array."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_nb.arguments import nearest, whole_number
from ddpm_nb.aside import aside
from ddpm_nb.commands.words import Parser, check_free
from ddpm_nb.denoiser import Denoiser, clipped
from ddpm_nb.guidance import classifier_free
from ddpm_nb.hardware import default_device
from ddpm_nb.kernels import GRIDS, walk
from ddpm_nb.pictures import picture
from ddpm_nb.pretrained import Model, load_model
from ddpm_nb.solvers import SAMPLERS

__all__ = ["add", "chosen_labels", "drawn", "levels_of"]

_AT_ONCE = 500  # images, so that the memory stays bounded


def add(parser: Parser) -> None:
    """Declare the command."""
    sample = parser.command(
        "sample",
        "draw images from a model",
        "Draw images from a model: as one sheet (.png), as single files (a folder), or\n"
        "as an array of uint8 (.npy). The same words draw the same images.",
        "sample checkpoints/photos.safetensors --class all --guidance 2",
    )
    sample.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint, or the name of a shipped model, such as digits",
    )
    sample.option(
        "--sampler",
        "ddim",
        "how to walk from noise to an image",
        SAMPLERS,
    )
    sample.option(
        "--steps",
        50,
        "steps of the walk, at most those of the model's diffusion; more take longer and are more exact",
    )
    sample.option(
        "--grid",
        "t",
        "what the steps are even in",
        GRIDS,
    )
    sample.option(
        "--images",
        None,
        "images in all",
        shown="64; with several classes 8 of each",
        type=int,
    )
    sample.option("--seed", 0, "number behind the noise")
    sample.option(
        "--class",
        None,
        "what to draw, of a model that was trained with --conditional: the name or the number of a class, or all for "
        "one row of each; may be given several times",
        shown="any class",
        dest="classes",
        action="append",
        metavar="NAME",
    )
    sample.option(
        "--guidance",
        1.0,
        "how strongly to follow the class: 0 ignores it, 1 is the model as it was trained, more is more typical and "
        "less varied",
    )
    sample.option(
        "--out",
        Path("samples.png"),
        "where to write: a .png file gets all images as one sheet, a .npy file an array of uint8, a folder one .png "
        "file for each image",
        metavar="OUT",
    )
    sample.set_defaults(do=_sample)


def chosen_labels(model: Model, names: Sequence[str]) -> list[int]:
    """Return the labels of classes by name or number; 'all' stands for every class.

    Raises
    ------
    ValueError
        If the model has no classes, or not that one; the nearest is named.
    """
    if names and not model.classes:
        raise ValueError(
            f"class = {names[0]!r}: this model of {model.dataset} was trained without classes; train one with "
            "--conditional"
        )
    labels: list[int] = []
    for name in names:
        if name in model.classes:
            labels.append(model.classes.index(name))
        elif name == "all":
            labels += range(len(model.classes))
        elif name.isdecimal() and int(name) < len(model.classes):
            labels.append(int(name))
        else:
            known = ", ".join(map(repr, model.classes[:20]))
            more = ", .." if len(model.classes) > 20 else ""
            raise ValueError(
                f"class = {name!r}: expected one of {known}{more}, a number from 0 to {len(model.classes) - 1}, or "
                f"'all'{nearest(name, model.classes)}"
            )
    return labels


def _denoiser(model: Model, labels: Tensor | None, w: float) -> Denoiser:
    if labels is None:
        return model.denoiser
    return classifier_free(model.given(labels), model.given(-1), w)


def drawn(
    model: Model,
    count: int,
    sampler: str = "ddim",
    steps: int = 50,
    grid: str = "t",
    seed: int = 0,
    labels: Tensor | None = None,
    w: float = 1.0,
    quiet: bool = False,
) -> Tensor:
    """Return images ``(count, *event)`` of a model in [−1, 1], drawn where its network is, on the CPU.

    Parameters
    ----------
    sampler, grid : names in ``SAMPLERS`` and ``GRIDS``
    steps : of the walk
    seed : of the noise, which is drawn on the CPU: the same on every device
    labels : int64 ``(count,)``, the class of each image
    w : weight of guidance towards the class, 1 for none
    quiet : whether to show no progress

    Raises
    ------
    ValueError
        If a name is unknown, or a number is out of range.
    """
    make_kernel = SAMPLERS[sampler]
    times = GRIDS[grid](model.q.schedule, steps)
    device = next(model.network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(count, *model.event, generator=generator)
    parts = []
    progress = tqdm(
        total=steps * math.ceil(count / _AT_ONCE), unit="step", disable=quiet
    )
    with progress:
        for start in range(0, count, _AT_ONCE):
            x = x_T[start : start + _AT_ONCE].to(device)
            part = None
            if labels is not None:
                part = labels[start : start + _AT_ONCE].to(device)
            denoise = clipped(_denoiser(model, part, w))
            kernel = make_kernel(model.q, denoise)
            for state in walk(kernel, x, times, generator):
                x = state.x
                progress.update()
            parts.append(x.clamp(-1, 1).cpu())
    return torch.cat(parts)


def levels_of(images: Tensor) -> np.ndarray:
    """Return images ``(n, channels, h, w)`` in [−1, 1] as uint8 ``(n, h, w)``, of colour ``(n, h, w, channels)``."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = levels.permute(0, 2, 3, 1).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def _sample(given: argparse.Namespace) -> None:
    if given.images is not None:
        whole_number("images", given.images, least=1)
    model, out = load_model(given.model), given.out
    classes = chosen_labels(model, given.classes or ())
    if given.guidance != 1 and not classes:
        raise ValueError(
            f"guidance = {given.guidance:g}: expected a --class to follow"
        )
    if not abs(given.guidance) < math.inf:
        raise ValueError(
            f"guidance = {given.guidance}: expected a finite number"
        )
    kind = "folder" if out.is_dir() or not out.suffix else out.suffix.lower()
    if kind not in ("folder", ".png", ".npy"):
        raise ValueError(
            f"out = {str(out)!r}: expected a .png or .npy file, or a folder"
        )
    check_free(out)
    if model.event[0] not in (1, 3) and kind != ".npy":
        raise ValueError(
            f"model = {given.model!r}: images of {model.event[0]} channels; a PNG has 1 or 3"
        )
    count, labels = given.images, None
    if classes:
        count = count or (8 * len(classes) if len(classes) > 1 else 64)
        if count % len(classes):
            raise ValueError(
                f"images = {count}: expected a multiple of the {len(classes)} classes, such as "
                f"{math.ceil(count / len(classes)) * len(classes)}"
            )
        each = count // len(classes)
        labels = torch.tensor(classes).repeat_interleave(each)
    count = count or 64
    model.network.to(default_device())
    images = drawn(
        model,
        count,
        given.sampler,
        given.steps,
        given.grid,
        given.seed,
        labels,
        given.guidance,
    )
    rows = len(classes) > 1 and count // len(classes) <= 32
    columns = count // len(classes) if rows else min(16, count)
    with aside(out) as path:
        if kind == ".png":
            picture(images, columns).save(path, format="PNG")
        elif kind == ".npy":
            with open(path, "wb") as file:
                np.save(file, levels_of(images))
        else:
            _write_files(path, images, model, labels)
    what = given.model
    if classes:
        names = [model.classes[label] for label in classes]
        listed = ", ".join(names[:10]) + (", .." if len(names) > 10 else "")
        what += f" ({listed}; guidance {given.guidance:g})"
    print(
        f"{count} samples of {what} by {given.sampler} in {given.steps} steps: {out}"
    )


def _write_files(
    folder: Path, images: Tensor, model: Model, labels: Tensor | None
) -> None:
    """Write one file for each image, those of a class in a folder of its name, as pack reads them."""
    from PIL import Image

    for number, levels in enumerate(levels_of(images)):
        place = folder
        if labels is not None:
            name = model.classes[int(labels[number])]
            place /= name.replace("/", "_").strip(".") or "_"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(place / f"{number:05d}.png")
