"""Chapter 7. How many bits a model needs for each pixel of images that it has not seen, with two errors kept apart."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.random import SeedSequence
from torch import Tensor, nn

from ddpm_nb.arguments import whole_number
from ddpm_nb.bound import Reverse, bits_per_dim, bound_draw, discretized_decoder
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ddpm_nb.diffusion import GaussianDiffusion

__all__ = ["Bits", "bits_of_images", "weights_digest"]


@dataclass(frozen=True, eq=False)
class Bits:
    """Draws of the bound in bits per dimension: ``table`` is ``(draws, images)``, float64.

    Every draw has its own steps and noises for all images.
    """

    table: Tensor

    @property
    def mean(self) -> float:
        """Mean over draws and images."""
        return self.table.mean().item()

    @property
    def error_of_estimate(self) -> float:
        """Standard error from the draws of t and noise, the images given: over the means of the draws."""
        return (self.table.mean(1).std() / math.sqrt(len(self.table))).item()

    @property
    def error_over_images(self) -> float:
        """Standard error over the images, as a sample of all images; it contains that of the estimate."""
        images = self.table.shape[1]
        return (self.table.mean(0).std() / math.sqrt(images)).item()


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights, by which a stored table knows the model that it is about."""
    tensors = (
        value.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        for value in network.state_dict().values()
    )
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def bits_of_images(
    q: GaussianDiffusion,
    reverse: Reverse,
    images: Tensor,
    levels: int,
    draws: int,
    path: str | os.PathLike[str],
    about: dict[str, str],
    seed: int = 0,
    batch: int = 250,
) -> Iterator[Bits | None]:
    """Estimate the bound of every image ``draws`` times; yield None after each batch, and the result at the end.

    What is done is kept in ``path``, so that a run that was stopped goes on where it was and ends with the same table.

    Parameters
    ----------
    reverse : (x_t, t) -> p(x_{t−1} | x_t), such as :func:`~ddpm_nb.bound.fixed_variance`
    images : ``(n, *event)`` on ``levels`` equally spaced values in [−1, 1], where the denoiser is
    draws : at least 2, for an error of the estimate
    about : what the numbers are of, such as the hash of the model; a file about something else is refused

    Raises
    ------
    ValueError, TypeError
        If a number is out of range.
    CheckpointError
        If ``path`` holds the table of another evaluation.
    """
    whole_number("draws", draws, least=2)
    whole_number("batch", batch, least=2)
    if len(images) < 2:
        raise ValueError(
            f"{len(images)} images: expected at least two, a standard error needs them"
        )
    about = {
        **about,
        "images": str(len(images)),
        "levels": str(levels),
        "seed": str(seed),
        "batch": str(batch),
    }
    table = torch.full((draws, len(images)), math.nan, dtype=torch.float64)
    if Path(path).is_file():
        stored = load_checkpoint(path)
        if stored.get("about") != about:
            raise CheckpointError(
                f"{path}: about {stored.get('about')}, expected {about}; name another file"
            )
        # More draws than are asked for now are kept.
        done = stored["table"]
        table = torch.cat([done, table[len(done) :]])
    decoder, starts = discretized_decoder(levels), range(0, len(images), batch)
    for draw in range(draws):
        for start in starts:
            part = slice(start, min(start + batch, len(images)))
            if bool(table[draw, part].isnan().any()):
                (word,) = SeedSequence([seed, draw, start]).generate_state(1)
                generator = torch.Generator().manual_seed(int(word))
                terms = bound_draw(q, reverse, images[part], generator, decoder)
                nats = terms.total.double().cpu()
                table[draw, part] = bits_per_dim(nats, images[0].numel())
                save_checkpoint(path, {"about": about, "table": table})
            yield None
    yield Bits(table[:draws])
