"""Chapter 7. Samples of any origin, judged: figures with standard errors, and real images in the same number.

Every figure has the line of real training images beside it. The set of samples is cut into equal parts, each judged by
itself, so that the errors are those of independent samples and not of the same ones used again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.metrics import (
    Moments,
    density_coverage,
    nearest_neighbours,
    precision_recall,
    train_classifier,
)
from ddpm_nb.pretrained import FeatureSpace

__all__ = [
    "Figures",
    "Verdict",
    "figures",
    "images_from",
    "judged",
    "report",
    "told_apart",
]

# the share of test images that are nearer to a training image than a copy is
_COPY = 0.01


@dataclass(frozen=True)
class Figures:
    """What is said of one set of images.

    Parameters
    ----------
    frechet : squared distance of Gaussians fitted to the features of the images and of the whole test set
    precision, recall, density, coverage : against as many test images, see :mod:`ddpm_nb.metrics`
    copies : share of the images nearer to a training image than 99 of 100 test images are to theirs
    """

    frechet: float
    precision: float
    recall: float
    density: float
    coverage: float
    copies: float


def figures(
    images: Tensor,
    space: FeatureSpace,
    train: Tensor,
    test_features: Tensor,
    near: float,
) -> Figures:
    """Judge one set of images ``(n, channels, side, side)``; ``near`` is the distance below which one is a copy."""
    found, real = space(images), test_features[: len(images)]
    distance, _ = nearest_neighbours(images, train)
    copies = (distance < near).double().mean().item()
    frechet = Moments.of(found).frechet_distance(space.test)
    return Figures(
        frechet,
        *precision_recall(real, found),
        *density_coverage(real, found),
        copies,
    )


def told_apart(
    real: Tensor, drawn: Tensor, seed: int = 0, epochs: int = 6
) -> tuple[float, float]:
    """Accuracy of a classifier that tells real from drawn images, on a quarter that it did not see, and its error.

    ½ is the best for samples: nobody can tell them from real images. The standard error is that of a share of
    independent images. Source: Lopez-Paz & Oquab (2017). Book: [](#eq-m7-told-apart).
    """
    n = min(len(real), len(drawn))
    if n < 8:
        raise ValueError(
            f"{len(real)} and {len(drawn)} images: expected at least 8 of each"
        )
    images = torch.cat([real[:n], drawn[:n]])
    labels = torch.arange(2).repeat_interleave(n)
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))
    seen, held_out = order[n // 2 :], order[: n // 2]
    classifier = train_classifier(
        images[seen], labels[seen], epochs=epochs, seed=seed
    )
    with torch.no_grad():
        batches = images[held_out].split(500)
        told = torch.cat([classifier(batch).argmax(1) for batch in batches])
    share = (told == labels[held_out]).double().mean().item()
    return share, math.sqrt(share * (1 - share) / len(held_out))


@dataclass(frozen=True)
class Verdict:
    """The figures of each part of the images and of real images, and how well either is told from other real images.

    Parameters
    ----------
    drawn, real : one for each part, of equally many images
    drawn_apart, real_apart : accuracy and standard error of :func:`told_apart`
    each : images of a part
    """

    drawn: tuple[Figures, ...]
    real: tuple[Figures, ...]
    drawn_apart: tuple[float, float]
    real_apart: tuple[float, float]
    each: int


def judged(
    images: Tensor,
    space: FeatureSpace,
    train: Tensor,
    test: Tensor,
    parts: int = 4,
    seed: int = 0,
) -> Verdict:
    """Judge images against a data set, and as many real training images with them. Tensors ``(n, *event)`` in [−1, 1].

    Raises
    ------
    ValueError, TypeError
        If ``parts`` is less than 2, or there are fewer than 8 images for each part or more than the data set has.
    """
    each = len(images) // whole_number("parts", parts, least=2)
    if each < 8 or 2 * parts * each > len(train):
        raise ValueError(
            f"{len(images)} images in parts = {parts}: expected at least 8 for each part, and at most "
            f"{len(train) // 2} in all, half of the training images"
        )
    generator = torch.Generator().manual_seed(seed)
    mixed = images[torch.randperm(len(images), generator=generator)]
    order = torch.randperm(len(train), generator=generator)
    held, others = train[order[: parts * each]], train[order[parts * each :]]
    test = test[torch.randperm(len(test), generator=generator)]
    features = space(test)
    near = nearest_neighbours(test, train)[0].quantile(_COPY).item()

    def judge(sets: Tensor, reference: Tensor) -> tuple[Figures, ...]:
        return tuple(
            figures(part, space, reference, features, near)
            for part in sets.split(each)
        )

    return Verdict(
        judge(mixed[: parts * each], train),
        judge(held, others),
        told_apart(others, mixed, seed),
        told_apart(others, held, seed),
        each,
    )


def report(verdict: Verdict, parts: int) -> str:
    """Return a verdict as a table of plain text, mean ± standard error over the parts."""
    names = [field.name for field in fields(Figures)]
    heads = "".join(f"{name:>18s}" for name in [*names, "told apart"])
    lines = [
        f"{parts} parts of {verdict.each} images each; "
        "mean ± standard error over the parts",
        f"{'':9s}{heads}",
    ]
    rows = {
        "images": (verdict.drawn, verdict.drawn_apart),
        "real": (verdict.real, verdict.real_apart),
    }
    for row, (found, apart) in rows.items():
        table = np.array(
            [[getattr(part, name) for name in names] for part in found]
        )
        errors = table.std(0, ddof=1) / math.sqrt(len(table))
        pairs = [*zip(table.mean(0), errors, strict=True), apart]
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in pairs]
        lines.append(f"{row:9s}" + "".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)


def images_from(source: Path, event: tuple[int, int, int]) -> Tensor:
    """Read a folder of PNG files or a ``.npy``/``.npz`` file of uint8 images: float32 ``(n, *event)`` in [−1, 1].

    An array is ``(n, side, side)``, ``(n, channels, side, side)`` or ``(n, side, side, channels)``; of several in an
    ``.npz`` file the first is taken. Nothing is unpickled.

    Raises
    ------
    ValueError
        If the source is neither, or an image has another size or kind of number; the file is named.
    """
    if source.is_dir():
        array = _folder(source, event)
    elif source.suffix in (".npy", ".npz"):
        loaded = np.load(source, allow_pickle=False)
        array = loaded[loaded.files[0]] if source.suffix == ".npz" else loaded
    else:
        raise ValueError(
            f"images = {str(source)!r}: expected a folder of PNG files, or a .npy or .npz file"
        )
    if array.dtype != np.uint8:
        raise ValueError(
            f"{source}: numbers of type {array.dtype}; expected uint8, the grey levels 0 to 255"
        )
    channels, side, _ = event
    if array.shape[1:] == (side, side, channels):
        array = np.moveaxis(array, -1, 1)
    elif array.shape[1:] == (side, side) and channels == 1:
        array = array[:, None]
    if array.shape[1:] != event:
        raise ValueError(
            f"{source}: images of shape {array.shape[1:]}; expected {event}, those of the data set"
        )
    return torch.from_numpy(array.astype(np.float32)) / 127.5 - 1


def _folder(source: Path, event: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    files = sorted(source.rglob("*.png"))
    if not files:
        raise ValueError(
            f"images = {str(source)!r}: a folder without a .png file"
        )
    channels, side, _ = event
    mode = "L" if channels == 1 else "RGB"
    rows = []
    for file in files:
        with Image.open(file) as image:
            if image.size != (side, side):
                raise ValueError(
                    f"{file}: {image.size[0]} x {image.size[1]} pixels; expected {side} x {side}"
                )
            rows.append(np.asarray(image.convert(mode)))
    return np.stack(rows)
