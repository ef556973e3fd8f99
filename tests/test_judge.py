import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_nb.__main__ import main
from ddpm_nb.data import load_dataset
from ddpm_nb.pretrained import load_features
from ddpm_nb.quality import images_from, judged, told_apart

EVENT = (1, 8, 8)


def grey(n: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8), dtype=np.uint8)


def test_a_folder_and_an_array_of_the_same_images_are_the_same(tmp_path):
    array = grey()
    (tmp_path / "png" / "0").mkdir(parents=True)
    for number, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / "png" / "0" / f"{number:03d}.png")
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array[..., None])
    np.savez(tmp_path / "c.npz", array[:, None])
    expected = torch.from_numpy(array[:, None].astype(np.float32)) / 127.5 - 1
    for source in ("png", "a.npy", "b.npy", "c.npz"):
        assert torch.equal(images_from(tmp_path / source, EVENT), expected)


def test_what_is_no_image_of_the_data_is_refused_and_named(tmp_path):
    np.save(tmp_path / "float.npy", grey().astype(np.float32))
    np.save(tmp_path / "large.npy", np.zeros((4, 9, 9), np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "mixed" / "a.png")
    for source, message in {
        "float.npy": r"float.npy: numbers of type float32; expected uint8",
        "large.npy": r"large.npy: images of shape \(9, 9\); expected \(1, 8, 8\)",
        "empty": "a folder without a .png file",
        "mixed": r"a.png: 9 x 8 pixels; expected 8 x 8",
        "a.txt": "expected a folder of PNG files",
    }.items():
        with pytest.raises(ValueError, match=message):
            images_from(tmp_path / source, EVENT)


def test_real_images_cannot_be_told_apart_and_blends_can():
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    share, error = told_apart(train, test)
    assert abs(share - 0.5) < 4 * error
    blends = (train[:360] + train[360:720]) / 2
    share, error = told_apart(train[720:], blends)
    assert share - 4 * error > 0.6
    with pytest.raises(ValueError, match="expected at least 8 of each"):
        told_apart(train[:7], test)


def test_the_verdict_sees_real_images_as_real_copies_as_copies_and_noise_as_noise():
    train, test, space = load_dataset("digits"), load_dataset("digits", split="test"), load_features("digits")

    def mean(found, name):
        return sum(getattr(part, name) for part in found) / len(found)

    held = judged(test, space, train, test, parts=2)
    assert mean(held.drawn, "frechet") < 2 * mean(held.real, "frechet")  # here the images are half of the test set
    assert mean(held.drawn, "copies") < 0.05
    copied = judged(train[:300], space, train, test, parts=2)
    assert mean(copied.drawn, "copies") == 1
    assert mean(copied.real, "copies") < 0.1  # real images are compared with the others
    noise = judged(torch.randn(300, *EVENT).clamp(-1, 1), space, train, test, parts=2)
    assert mean(noise.drawn, "frechet") > 10 * mean(noise.real, "frechet")
    assert mean(noise.drawn, "density") < 0.4 * mean(noise.real, "density")
    assert noise.drawn_apart[0] > 0.95 > noise.real_apart[0]
    assert judged(test, space, train, test, parts=3).each == 120
    with pytest.raises(
        ValueError, match="1437 images in parts = 2: expected at least 8 for each part, and at most 718"
    ):
        judged(train, space, train, test, parts=2)


def test_the_command_prints_every_figure_with_its_error(tmp_path, capsys):
    np.save(tmp_path / "noise.npy", grey(80))
    main(["judge", str(tmp_path / "noise.npy"), "--dataset", "digits", "--parts", "2"])
    head, names, images, real = capsys.readouterr().out.splitlines()
    assert "2 parts of 40 images each" in head
    assert names.split() == ["frechet", "precision", "recall", "density", "coverage", "copies", "told", "apart"]
    assert images.count("±") == real.count("±") == 7
    assert float(images.split()[1]) > 5 * float(real.split()[1])
