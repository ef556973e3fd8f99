"""Real images: handwritten digits that need no network, and the two MNIST families as verified files."""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_nb.arguments import choose

__all__ = ["DATASETS", "DataError", "DatasetCard", "load_dataset", "load_labels"]


class DataError(ValueError):
    """A data file is missing, truncated, or not the file it should be."""


@dataclass(frozen=True)
class DatasetCard:
    """What a notebook needs to know of a data set to size its network and its decoder.

    Parameters
    ----------
    side : pixels along each side of an image
    levels : number of equally spaced values of a pixel
    classes : what the labels 0, 1, .. mean
    url : the folder with the gzipped files; empty where none is needed
    md5 : of the *uncompressed* files, by name
    """

    side: int
    levels: int
    classes: tuple[str, ...]
    url: str = ""
    md5: dict[str, str] = field(default_factory=dict)


_NUMERALS = tuple("0123456789")
_GARMENTS = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

DATASETS: dict[str, DatasetCard] = {
    "digits": DatasetCard(side=8, levels=17, classes=_NUMERALS),
    "fashion_mnist": DatasetCard(
        side=28,
        levels=256,
        classes=_GARMENTS,
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5={
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
    ),
    "mnist": DatasetCard(
        side=28,
        levels=256,
        classes=_NUMERALS,
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
}
"""The data sets by name: 'digits' (scikit-learn's, 1797 images), 'fashion_mnist', 'mnist' (70,000 images each)."""

_SPLITS = {"train": "train", "test": "t10k"}


def load_dataset(name: str, root: str | os.PathLike[str] | None = None, split: str = "train") -> Tensor:
    """Return the images of one split as float32 ``(n, 1, side, side)`` in [−1, 1].

    Parameters
    ----------
    name : 'digits', 'fashion_mnist' or 'mnist'
    root : folder that holds the four IDX files, gzipped or not, used as it is; without it the environment variable
        ``DDPM_NB_DATA``; without either the files are downloaded once to the user's cache
    split : 'train' or 'test'; for digits every fifth image is the test split

    Raises
    ------
    DataError
        If a file is missing, truncated, or has another content than the published one.
    ValueError
        If a name is unknown; the message names the nearest.
    """
    if name == "digits":
        return _digits(split)[0]
    pixels = np.frombuffer(_read(name, root, split, "images-idx3-ubyte"), np.uint8, offset=16)
    side = DATASETS[name].side
    return torch.from_numpy(pixels.reshape(-1, 1, side, side).astype(np.float32)).div_(127.5).sub_(1.0)


def load_labels(name: str, root: str | os.PathLike[str] | None = None, split: str = "train") -> Tensor:
    """Return the labels of the images that :func:`load_dataset` returns for the same arguments: int64 ``(n,)``."""
    if name == "digits":
        return _digits(split)[1]
    labels = np.frombuffer(_read(name, root, split, "labels-idx1-ubyte"), np.uint8, offset=8)
    return torch.from_numpy(labels.astype(np.int64))


def _digits(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # a second to import, needed here only

    choose("split", split, _SPLITS)
    bunch = load_digits()
    held_out = np.arange(len(bunch.target)) % 5 == 4
    chosen = held_out if split == "test" else ~held_out
    images = torch.from_numpy(bunch.images[chosen].astype(np.float32))[:, None]
    return images.div_(8.0).sub_(1.0), torch.from_numpy(bunch.target[chosen].astype(np.int64))


def _read(name: str, root: str | os.PathLike[str] | None, split: str, kind: str) -> bytes:
    """Return the bytes of one verified file; the other three of the set are verified with it."""
    card = choose("dataset", name, DATASETS)
    wanted = f"{choose('split', split, _SPLITS)}-{kind}"
    root = root if root is not None else os.environ.get("DDPM_NB_DATA") or None
    paths = _local(name, Path(root), card.md5) if root is not None else _downloaded(name, card)
    contents = {file: _verified(path, file, card.md5) for file, path in paths.items()}
    return contents[wanted]


def _local(name: str, root: Path, files: Iterable[str]) -> dict[str, Path]:
    """Find the four files in ``root`` or ``root/name``, gzipped or not."""
    folder = root / name if (root / name).is_dir() else root
    candidates = {file: [folder / file, folder / f"{file}.gz"] for file in files}
    found = {file: next((p for p in paths if p.is_file()), None) for file, paths in candidates.items()}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"root = {str(root)!r}: expected the four files of {name}, gzipped or not; missing: {', '.join(missing)}. "
            "Leave root and DDPM_NB_DATA unset to download them"
        )
    return {file: path for file, path in found.items() if path is not None}


def _verified(path: Path, file: str, md5: dict[str, str]) -> bytes:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated or not a gzip file ({error})") from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5[file]:
        twin = next((other for other, known in md5.items() if known == digest), None)
        what = f"holds {twin}" if twin else f"is truncated or another file ({len(content)} bytes, md5 {digest})"
        raise DataError(f"{path}: {what}; expected {file} with md5 {md5[file]} once uncompressed")
    return content


def _downloaded(name: str, card: DatasetCard) -> dict[str, Path]:
    """Fetch what the cache lacks. pooch downloads aside, checks the md5, and only then moves a file into place."""
    import pooch

    registry = {file: f"md5:{digest}" for file, digest in card.md5.items()}
    urls = {file: f"{card.url}{file}.gz" for file in card.md5}
    cache = pooch.create(
        path=pooch.os_cache("ddpm_nb") / name, base_url=card.url, registry=registry, urls=urls, retry_if_failed=2
    )
    try:
        return {file: Path(cache.fetch(file, downloader=_fetch_gzipped)) for file in card.md5}
    except (OSError, ValueError) as error:
        raise DataError(
            f"could not download {name} from {card.url}: {error}. "
            "Put the four files in a folder and name it by root or DDPM_NB_DATA"
        ) from error


def _fetch_gzipped(url: str, output_file: str, pooch_: object) -> None:
    """Download a gzipped file and write it uncompressed, so that pooch verifies what is read later."""
    import pooch

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed.gz"
        pooch.HTTPDownloader(progressbar=True, timeout=60)(url, str(packed), pooch_)
        try:
            Path(output_file).write_bytes(gzip.decompress(packed.read_bytes()))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{url}: truncated or not a gzip file ({error})") from error
