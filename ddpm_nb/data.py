"""Real images: handwritten digits that need no network, and the two MNIST families as verified files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shlex
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddpm_nb.arguments import choose, nearest
from ddpm_nb.registry import Registry

__all__ = [
    "DATASETS",
    "PACKED_FORMAT",
    "DataError",
    "Dataset",
    "IDXFiles",
    "PackedFile",
    "card_of",
    "from_levels",
    "load_dataset",
    "load_labels",
    "load_pixels",
]


class DataError(ValueError):
    """A data file is missing, truncated, or not the file it should be."""


Root = str | os.PathLike[str] | None
# (split, root) -> images and labels, see load_dataset
Load = Callable[[str, Root], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Dataset:
    """What a run needs to know of a data set: the shape of its images for the network, its values for the decoder.

    Parameters
    ----------
    side : pixels along each side of an image
    channels : colours of a pixel
    levels : number of equally spaced values of a pixel
    classes : what the labels 0, 1, .. mean
    load : ``(split, root) -> (images, labels)`` with split 'train' or 'test': float32 ``(n, channels, side, side)`` in
        [−1, 1] or uint8, 0 to 255, and int64 ``(n,)``
    """

    side: int
    channels: int
    levels: int
    classes: tuple[str, ...]
    load: Load

    @property
    def event(self) -> tuple[int, int, int]:
        """The shape of one image."""
        return self.channels, self.side, self.side


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

_SPLITS = {"train": "train", "test": "t10k"}


def load_dataset(name: str, root: Root = None, split: str = "train") -> Tensor:
    """Return the images of one split as float32 ``(n, channels, side, side)`` in [−1, 1].

    Parameters
    ----------
    name : 'digits', 'fashion_mnist', 'mnist', an entry of your own in :data:`DATASETS`, or the path of a packed file
    root : folder that holds the four IDX files, gzipped or not, used as it is; without it the environment variable
        ``DDPM_NB_DATA``; without either the files are downloaded once to the user's cache
    split : 'train' or 'test'; of the digits a fifth of each class, drawn once, is the test split

    Raises
    ------
    DataError
        If a file is missing, truncated, or has another content than the published one; if images have another shape,
        dtype or range than the entry says.
    ValueError
        If a name is unknown; the message names the nearest.
    """
    card = card_of(name)
    images = card.load(split, root)[0]
    if images.dtype == torch.uint8:
        images = from_levels(images)
    if images.dtype != torch.float32 or images.shape[1:] != card.event:
        raise DataError(
            f"dataset {name!r}: images of shape {tuple(images.shape)} and dtype {images.dtype}; "
            f"expected float32 (n, {', '.join(map(str, card.event))})"
        )
    low, high = (value.item() for value in images.aminmax())
    if not -1 <= low <= high <= 1:
        raise DataError(
            f"dataset {name!r}: values from {low:.3g} to {high:.3g}; expected them in [−1, 1]"
        )
    return images


def load_labels(name: str, root: Root = None, split: str = "train") -> Tensor:
    """Return the labels of the images that :func:`load_dataset` returns for the same arguments: int64 ``(n,)``."""
    return card_of(name).load(split, root)[1]


def load_pixels(
    name: str, root: Root = None, split: str = "train"
) -> tuple[Tensor, Tensor]:
    """Return images and labels as training takes them: those of a packed file uint8 and mapped, not read, others float.

    Arguments and errors are those of :func:`load_dataset`.
    """
    if not _is_packed(name):
        return load_dataset(name, root, split), load_labels(name, root, split)
    return card_of(name).load(split, root)


def from_levels(levels: Tensor) -> Tensor:
    """Return the values 0 to 255 of pixels, uint8 of any shape, as float32 in [−1, 1]."""
    return levels.float().div_(127.5).sub_(1.0)


def card_of(name: str) -> Dataset:
    """Return the entry of a data set's name in :data:`DATASETS`, or what the packed file at that path says of itself.

    Raises
    ------
    DataError
        If the file is missing or is not a packed file.
    ValueError
        If a name is unknown; the message names the nearest.
    """
    if _is_packed(name):
        return _packed(Path(name))
    if Path(name).is_dir():
        raise DataError(
            f"dataset = {name!r}: a folder; pack it first: ddpm-nb pack {shlex.quote(name)} --side 32"
        )
    return DATASETS[name]


def _is_packed(name: str) -> bool:
    return name.endswith(".safetensors")


PACKED_FORMAT = "ddpm_nb images 1"
"""What a packed file says that it is, see :mod:`ddpm_nb.packing`."""


def _packed(path: Path) -> Dataset:
    """Return the entry of a packed file: its header is read, its images are read when they are asked for."""
    with _opened(path) as file:
        about = file.metadata()
        _, channels, side, _ = file.get_slice("train_images").get_shape()
    return Dataset(
        side,
        channels,
        256,
        tuple(json.loads(about["classes"])),
        PackedFile(path),
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.safetensors"))
        hint = nearest(path.name, there)
        raise DataError(f"dataset = {str(path)!r}: no such packed file{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != PACKED_FORMAT:
                raise DataError(
                    f"dataset = {str(path)!r}: a safetensors file, but not one written by ddpm-nb pack"
                )
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"dataset = {str(path)!r}: truncated or not a safetensors file ({error})"
        ) from error


@dataclass(frozen=True)
class PackedFile:
    """The loader of a file that :func:`ddpm_nb.packing.pack` wrote: uint8 images, mapped into memory.

    Every byte is verified by its SHA-256 when the file is first read by this process.

    Parameters
    ----------
    path : of the file
    """

    path: Path

    @property
    def sha256(self) -> str:
        """What the file says that its images and labels are."""
        return self.about["sha256"]

    @property
    def about(self) -> dict[str, str]:
        """What the file says of itself: ``sha256``, ``source``, ``attribution`` and its format."""
        with _opened(self.path) as file:
            return dict(file.metadata())

    def __call__(self, split: str, root: Root) -> tuple[Tensor, Tensor]:
        """Return images uint8 ``(n, channels, side, side)`` and labels int64 ``(n,)`` of a split."""
        choose("split", split, _SPLITS)
        state = self.path.stat()
        _verify_packed(self.path.resolve(), state.st_size, state.st_mtime_ns)
        with _opened(self.path) as file:
            return (
                file.get_tensor(f"{split}_images"),
                file.get_tensor(f"{split}_labels"),
            )


@cache
def _verify_packed(path: Path, size: int, changed: int) -> None:
    """Raise ``DataError`` unless a packed file's content is what it says; once for each state of the file."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        for name in (
            "train_images",
            "train_labels",
            "test_images",
            "test_labels",
        ):
            tensor = file.get_tensor(name)
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        said = file.metadata().get("sha256")
    if digest.hexdigest() != said:
        raise DataError(
            f"dataset = {str(path)!r}: the content does not match its SHA-256; the file was altered or damaged"
        )


def _digits(split: str, root: Root) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # takes a second to import
    from sklearn.model_selection import train_test_split

    choose("split", split, _SPLITS)
    bunch = load_digits()
    # Of each class its share, drawn at random: the set is in an order of its
    # own, and every fifth image is another law.
    parts = train_test_split(
        bunch.images,
        bunch.target,
        test_size=0.2,
        stratify=bunch.target,
        random_state=0,
    )
    images, labels = parts[split == "test" :: 2]
    pixels = torch.from_numpy(images.astype(np.float32))[:, None]
    return pixels.div_(8.0).sub_(1.0), torch.from_numpy(labels)


@dataclass(frozen=True)
class IDXFiles:
    """The loader of a family of four IDX files of 28 × 28 pixels, as MNIST's.

    Parameters
    ----------
    name : of the data set, and of its folder in the cache of downloads
    url : the folder with the gzipped files, with a slash at its end
    md5 : of the *uncompressed* files, by name
    """

    name: str
    url: str
    md5: Mapping[str, str]

    def __call__(self, split: str, root: Root) -> tuple[Tensor, Tensor]:
        """Return the verified images and labels of a split, see :func:`load_dataset`."""
        images, labels = (
            f"{choose('split', split, _SPLITS)}-{kind}"
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        paths = self._paths(root)
        contents = {
            file: _verified(path, file, self.md5)
            for file, path in paths.items()
        }
        grey = np.frombuffer(contents[images], np.uint8, offset=16)
        numbers = np.frombuffer(contents[labels], np.uint8, offset=8)
        pixels = torch.from_numpy(grey.copy()).reshape(-1, 1, 28, 28)
        return from_levels(pixels), torch.from_numpy(numbers.astype(np.int64))

    def _paths(self, root: Root) -> dict[str, Path]:
        """Where the four files are, by name; without a folder they are downloaded."""
        if root is None:
            root = os.environ.get("DDPM_NB_DATA") or None
        if root is None:
            return _downloaded(self)
        return _local(self.name, Path(root), self.md5)


def _local(name: str, root: Path, files: Iterable[str]) -> dict[str, Path]:
    """Find the four files in ``root`` or ``root/name``, gzipped or not."""
    folder = root / name if (root / name).is_dir() else root
    candidates = {
        file: [folder / file, folder / f"{file}.gz"] for file in files
    }
    found = {
        file: next((p for p in paths if p.is_file()), None)
        for file, paths in candidates.items()
    }
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"root = {str(root)!r}: expected the four files of {name}, gzipped or not; missing: {', '.join(missing)}. "
            "Leave root and DDPM_NB_DATA unset to download them"
        )
    return {file: path for file, path in found.items() if path is not None}


def _verified(path: Path, file: str, md5: Mapping[str, str]) -> bytes:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path}: truncated or not a gzip file ({error})"
        ) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5[file]:
        names = {known: other for other, known in md5.items()}
        size = f"{len(content)} bytes, md5 {digest}"
        what = f"is truncated or another file ({size})"
        if digest in names:
            what = f"holds {names[digest]}"
        raise DataError(
            f"{path}: {what}; expected {file} with md5 {md5[file]} once uncompressed"
        )
    return content


def _downloaded(files: IDXFiles) -> dict[str, Path]:
    """Fetch what the cache lacks. pooch downloads aside, checks the md5, and only then moves a file into place."""
    import pooch

    registry = {file: f"md5:{digest}" for file, digest in files.md5.items()}
    urls = {file: f"{files.url}{file}.gz" for file in files.md5}
    cache = pooch.create(
        path=pooch.os_cache("ddpm_nb") / files.name,
        base_url=files.url,
        registry=registry,
        urls=urls,
        retry_if_failed=2,
    )
    try:
        return {
            file: Path(cache.fetch(file, downloader=_fetch_gzipped))
            for file in files.md5
        }
    except (OSError, ValueError) as error:
        raise DataError(
            f"could not download {files.name} from {files.url}: {error}. "
            "Put the four files in a folder and name it by root or DDPM_NB_DATA"
        ) from error


def _fetch_gzipped(url: str, output_file: str, pooch_: object) -> None:
    """Download a gzipped file and write it uncompressed, so that pooch verifies what is read later."""
    import pooch

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed.gz"
        download = pooch.HTTPDownloader(progressbar=True, timeout=60)
        download(url, str(packed), pooch_)
        try:
            Path(output_file).write_bytes(gzip.decompress(packed.read_bytes()))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{url}: truncated or not a gzip file ({error})"
            ) from error


DATASETS: Registry[Dataset] = Registry(
    "dataset",
    {
        "digits": Dataset(
            side=8, channels=1, levels=17, classes=_NUMERALS, load=_digits
        ),
        "fashion_mnist": Dataset(
            side=28,
            channels=1,
            levels=256,
            classes=_GARMENTS,
            load=IDXFiles(
                "fashion_mnist",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                {
                    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
                    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
                },
            ),
        ),
        "mnist": Dataset(
            side=28,
            channels=1,
            levels=256,
            classes=_NUMERALS,
            load=IDXFiles(
                "mnist",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                {
                    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
                    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
                    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
                    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
                },
            ),
        ),
    },
)
"""The data sets by name: 'digits' (scikit-learn's, 1797 images), 'fashion_mnist', 'mnist' (70,000 images each)."""
