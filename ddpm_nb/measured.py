"""Chapter 7. How near a sampler's images are to the data, in Fréchet distance, and how many bits a model needs.

The measurements that take too long for a page are stored in the package, with the program that made them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from ddpm_nb.arguments import choose
from ddpm_nb.kernels import Kernel, last, walk
from ddpm_nb.metrics import Moments
from ddpm_nb.pretrained import FeatureSpace

__all__ = [
    "GuidanceFigures",
    "Measured",
    "frechet_after",
    "guidance_figures",
    "likelihoods",
    "measured",
]

_QUALITY = Path(__file__).parent / "weights" / "quality"
_LIKELIHOOD = _QUALITY / "likelihood.json"
_GUIDANCE = _QUALITY / "guidance.json"
_STORED = {
    path.stem: path
    for path in sorted(_QUALITY.glob("*.json"))
    if path not in (_LIKELIHOOD, _GUIDANCE)
}


def frechet_after(
    kernel: Kernel,
    x_T: Tensor,
    times: Sequence[int],
    space: FeatureSpace,
    generator: Generator | None = None,
) -> float:
    """Fréchet distance of the samples of a walk, clipped to [−1, 1], to the training images. Book: [](#eq-frechet)."""
    images = last(walk(kernel, x_T, times, generator)).x.clamp(-1, 1).cpu()
    return Moments.of(space(images)).frechet_distance(space.train)


@dataclass(frozen=True)
class Measured:
    """Fréchet distances of a shipped model for several samplers and numbers of steps, one for each seed.

    Parameters
    ----------
    sha256 : of the file of the model
    samples : images for each distance
    floor : distances of as many real images, drawn from the test set
    rows : sampler -> number of steps -> distances
    """

    sha256: str
    samples: int
    floor: tuple[float, ...]
    rows: dict[str, dict[int, tuple[float, ...]]]


def measured(dataset: str) -> Measured:
    """Return what ``book/tools/measure_samplers.py`` measured on a shipped model; ``ValueError`` names them."""
    stored = json.loads(choose("dataset", dataset, _STORED).read_text("utf-8"))
    rows = {
        sampler: {int(steps): tuple(values) for steps, values in row.items()}
        for sampler, row in stored["rows"].items()
    }
    floor = tuple(stored["floor"])
    return Measured(stored["sha256"], stored["samples"], floor, rows)


def likelihoods() -> dict[str, dict[str, Any]]:
    """Return what ``book/tools/measure_likelihood.py`` measured, in bits per dimension of all test images, by model.

    Each holds ``dataset``, the digest of its ``weights``, the ``steps`` of its chain; ``bits`` of the chain's bound and
    ``limit`` of infinitely many steps, each with the standard error of the estimate and that over images; what each
    term costs (``spent``); ``baselines``; and, where measured, the best ``variance`` and the probability ``flow``.
    """
    return json.loads(_LIKELIHOOD.read_text("utf-8"))


# name of a figure -> its mean over the classes, and the standard error
_Row = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class GuidanceFigures:
    """What a shipped conditional model draws for several guidance weights, class by class.

    Parameters
    ----------
    sha256 : of the file of the model
    each : images of a class
    real : figures of as many real training images of a class
    rows : weight -> 'accuracy', 'frechet', 'precision', 'recall', 'density', 'coverage', each with its error
    """

    sha256: str
    each: int
    real: _Row
    rows: dict[float, _Row]


def guidance_figures(name: str) -> GuidanceFigures:
    """Return what ``book/tools/measure_guidance.py`` measured on a shipped model; ``ValueError`` names them."""
    stored = json.loads(_GUIDANCE.read_text("utf-8"))
    found = choose("name", name, stored)

    def row(figures: dict[str, list[float]]) -> _Row:
        return {k: (mean, error) for k, (mean, error) in figures.items()}

    return GuidanceFigures(
        found["sha256"],
        found["each"],
        row(found["real"]),
        {float(w): row(figures) for w, figures in found["rows"].items()},
    )
