"""``ddpm-nb pack``: a folder of images becomes one file that train takes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch

from ddpm_nb.commands.words import PROGRAM, Parser, file_size
from ddpm_nb.data import load_pixels

__all__ = ["add"]


def add(parser: Parser) -> None:
    """Declare the command."""
    pack = parser.command(
        "pack",
        "pack a folder of images into one file that train takes",
        "Pack images into one file that train takes. Each is cropped to the square in\n"
        "its centre and made SIDE x SIDE pixels. A folder of folders has a class for\n"
        "each of them.",
        "pack photos --side 32 --skip-broken",
    )
    pack.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of .png, .jpg and .webp files, or of one folder of them for each class; a .npy or .npz file of "
        "uint8 images; cifar10; openmoji; or hf:NAME, of the library datasets",
    )
    pack.add_argument(
        "--side",
        type=int,
        required=True,
        metavar="N",
        help="pixels along each side of an image, 8 to 256: an even number, from 16 on a multiple of 4, from 33 on of "
        "8, from 65 on of 16 (must be given)",
    )
    pack.option(
        "--channels",
        None,
        "1 for grey images, 3 for colour",
        shown="3 if any image has a colour",
        type=int,
    )
    pack.option(
        "--test-share",
        0.1,
        "share of each class that is kept from training, to judge by, above 0 and at most 0.5",
    )
    pack.option(
        "--seed", 0, "number behind the draw of the images that are kept"
    )
    pack.option(
        "--skip-broken",
        False,
        "leave out files that cannot be read, instead of stopping at them",
    )
    pack.option(
        "--out",
        None,
        "the file to write",
        shown="SOURCE.safetensors, where you are",
        type=Path,
        metavar="NAME.safetensors",
    )
    pack.set_defaults(do=_pack)


def _pack(given: argparse.Namespace) -> None:
    from ddpm_nb.packing import pack

    stem = given.source.removeprefix("hf:")
    out = given.out or Path(f"{Path(stem).resolve().name}.safetensors")
    packed = pack(
        given.source,
        out,
        given.side,
        given.channels,
        given.test_share,
        given.seed,
        given.skip_broken,
    )
    colours = {1: "grey", 3: "colour"}[packed.channels]
    print(
        f"{packed.path}: {packed.train + packed.test:,} images, {packed.side} x {packed.side} pixels, {colours}, "
        f"{file_size(packed.path.stat().st_size)}; {packed.train:,} to train with, {packed.test:,} kept to judge by"
    )
    if len(packed.classes) > 1:
        counts = torch.zeros(len(packed.classes), dtype=torch.long)
        for split in ("train", "test"):
            labels = load_pixels(str(packed.path), split=split)[1]
            counts += labels.bincount(minlength=len(counts))
        listed = zip(packed.classes, counts.tolist(), strict=True)
        print(
            f"{len(packed.classes)} classes: "
            + ", ".join(f"{name} {count:,}" for name, count in listed)
        )
    if packed.left_out:
        print(
            f"left out, since they cannot be read: {', '.join(packed.left_out)}"
        )
    print(
        f"next: {PROGRAM} train --dataset {shlex.quote(str(packed.path))}"
        + (" --conditional" if len(packed.classes) > 1 else "")
    )
