"""Chapter 7. What a sampler delivers: exactly for Gaussian data, and by Fréchet distance for images.

The measurements that take too long for a page are stored in the package, with the program that made them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ddpm_nb.arguments import choose
from ddpm_nb.metrics import Moments
from ddpm_nb.pretrained import FeatureSpace
from ddpm_nb.sampling import Kernel, Move, last, walk

__all__ = ["Measured", "delivered_variance", "frechet_after", "measured"]

_STORED = {path.stem: path for path in sorted((Path(__file__).parent / "weights" / "quality").glob("*.json"))}


def delivered_variance(kernel: Kernel, times: Sequence[int], d: int = 1) -> Tensor:
    """Variance of x_0 after a walk from N(0, I), for a kernel that is linear and odd in x: ``(d,)``, without sampling.

    With the denoiser of N(0, diag v) one step is x_s = c x_t + σ z in each coordinate, so that a variance V becomes
    c² V + σ². Book: [](#eq-m7-delivered).
    """
    one = torch.ones(1, d, dtype=torch.float64)
    var = one
    for t, s in pairwise(times):
        law = kernel(one, s, t)
        var = law.mean.square() * var + law.var
    return var[0]


def frechet_after(
    kernel: Move, x_T: Tensor, times: Sequence[int], space: FeatureSpace, generator: torch.Generator | None = None
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
    """Return what ``book/tools/quality.py`` measured on a shipped model; ``ValueError`` names those there are."""
    stored = json.loads(choose("dataset", dataset, _STORED).read_text("utf-8"))
    rows = {
        sampler: {int(steps): tuple(values) for steps, values in row.items()} for sampler, row in stored["rows"].items()
    }
    return Measured(stored["sha256"], stored["samples"], tuple(stored["floor"]), rows)
