import gzip
import hashlib
import http.server
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_nb import data
from ddpm_nb.data import DATASETS, DataError, Dataset, IDXFiles, load_dataset, load_labels
from ddpm_nb.metrics import frechet_distance

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
REAL = Path(os.environ.get("DDPM_NB_DATA") or Path(__file__).parents[2] / "shared" / "data" / "fashion-mnist")


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch):
    monkeypatch.delenv("DDPM_NB_DATA", raising=False)


def idx(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes: magic number, one big-endian length for each axis, the values."""
    head = [0x0800 + values.ndim, *values.shape]
    return np.array(head, dtype=">u4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Four small IDX files in the form of the MNIST families."""
    random = np.random.default_rng(0)
    return {
        FILES[0]: idx(random.integers(0, 256, (5, 28, 28))),
        FILES[1]: idx(np.array([3, 1, 4, 1, 5])),
        FILES[2]: idx(random.integers(0, 256, (2, 28, 28))),
        FILES[3]: idx(np.array([9, 2])),
    }


@pytest.fixture
def small(monkeypatch, contents) -> dict[str, str]:
    """'mnist' is the small set for the length of a test."""
    md5 = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in contents.items()}
    served_at(monkeypatch, "http://127.0.0.1:9/", md5)
    return md5


def served_at(monkeypatch, url: str, md5: dict[str, str]) -> None:
    """Let 'mnist' be the files with these sums at an address."""
    card = replace(DATASETS["mnist"], load=IDXFiles("mnist", url, md5))
    monkeypatch.setitem(DATASETS._entries, "mnist", card)


@pytest.fixture(params=["plain", "gzipped", "in a folder of the set's name"])
def folder(request, tmp_path, contents, small) -> Path:
    place = tmp_path / "mnist" if request.param.startswith("in") else tmp_path
    place.mkdir(exist_ok=True)
    for name, content in contents.items():
        if request.param == "gzipped":
            (place / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (place / name).write_bytes(content)
    return tmp_path


def test_images_and_labels_of_both_splits(folder, contents):
    for split, images, labels in (("train", *FILES[:2]), ("test", *FILES[2:])):
        pixels = np.frombuffer(contents[images][16:], np.uint8).reshape(-1, 1, 28, 28)
        loaded = load_dataset("mnist", folder, split)
        assert loaded.dtype == torch.float32
        assert np.allclose(loaded.numpy(), pixels / 127.5 - 1, rtol=0, atol=1.3e-7)
        assert load_labels("mnist", str(folder), split).tolist() == list(contents[labels][8:])


def test_the_environment_names_the_folder_and_root_overrides_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_NB_DATA", str(folder))
    assert load_labels("mnist").tolist() == [3, 1, 4, 1, 5]
    monkeypatch.setenv("DDPM_NB_DATA", str(tmp_path / "nowhere"))
    assert load_labels("mnist", folder).tolist() == [3, 1, 4, 1, 5]
    with pytest.raises(DataError, match="nowhere"):
        load_labels("mnist")


def found(folder: Path, name: str) -> Path:
    return next(path for path in folder.rglob("*") if path.name.startswith(name))


def test_a_missing_file_is_named(folder):
    found(folder, FILES[3]).unlink()
    with pytest.raises(DataError, match=rf"expected the four files of mnist.*missing: {FILES[3]}\. Leave root"):
        load_dataset("mnist", folder)


def test_a_truncated_file_is_named(folder):
    path = found(folder, FILES[2])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{path.name}: (is )?truncated or "):
        load_dataset("mnist", folder)  # verified with the set, though the train split does not use it


def test_a_changed_pixel_is_noticed(folder, contents):
    path = found(folder, FILES[0])
    changed = bytearray(contents[FILES[0]])
    changed[400] ^= 1
    path.write_bytes(gzip.compress(bytes(changed)) if path.suffix == ".gz" else bytes(changed))
    with pytest.raises(DataError, match=rf"{path.name}: is truncated or another file .*expected {FILES[0]} with md5"):
        load_dataset("mnist", folder)


def test_swapped_files_are_named(folder):
    a, b = found(folder, FILES[0]), found(folder, FILES[2])
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(DataError, match=rf"{a.name}: holds {FILES[2]}; expected {FILES[0]}"):
        load_dataset("mnist", folder)


def test_a_file_that_is_no_gzip_is_named(tmp_path, contents, small):
    for name in FILES:
        (tmp_path / f"{name}.gz").write_bytes(contents[name])
    with pytest.raises(DataError, match=rf"{FILES[0]}\.gz: truncated or not a gzip file"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fashion-mnist",), r"dataset = 'fashion-mnist': expected one of .*did you mean 'fashion_mnist'"),
        (("digit",), r"dataset = 'digit': .*did you mean 'digits'"),
        (("digits", None, "tests"), r"split = 'tests': expected one of 'train', 'test' \(did you mean 'test'\?\)"),
        (("mnist", None, "trian"), r"split = 'trian': .*did you mean 'train'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(arguments, message):
    for load in (load_dataset, load_labels):
        with pytest.raises(ValueError, match=message):
            load(*arguments)


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    labels = torch.cat([load_labels("digits"), load_labels("digits", None, "test")])
    greys = ((torch.cat([train, test])[:, 0] + 1) * 8).flatten(1)  # exact: multiples of 1/8
    found = sorted(zip(greys.tolist(), labels.tolist(), strict=True))
    assert found == sorted(zip(bunch.images.reshape(1797, -1).tolist(), bunch.target.tolist(), strict=True))
    assert train.dtype == test.dtype == torch.float32
    levels = torch.cat([train, test]).unique()
    assert len(levels) == DATASETS["digits"].levels
    assert torch.equal(levels, torch.linspace(-1, 1, 17))


def as_far_as_resplits(train, test, labels, resplits: int) -> tuple[float, float]:
    """How many deviations the distance of a split lies from that of random ones, and the χ² of its class counts."""
    pixels, n = torch.cat([train, test]).flatten(1).double(), len(train)
    pixels = (pixels - pixels.mean(0)) @ torch.linalg.svd(torch.cov(pixels.mT))[2][
        :10
    ].mT  # where the images differ most
    draws = [torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed)) for seed in range(resplits)]
    distance = torch.tensor(
        [frechet_distance(pixels[rows[:n]], pixels[rows[n:]]) for rows in [torch.arange(len(pixels)), *draws]]
    )
    counts = torch.stack([labels[:n].bincount(), labels[n:].bincount()]).double()
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    others = distance[1:].log()
    return float((distance[0].log() - others.mean()) / others.std()), float(((counts - expected) ** 2 / expected).sum())


def split_of(name: str, root: Path | None, part: int) -> tuple[float, float]:
    images = [load_dataset(name, root, split)[::part] for split in ("train", "test")]
    labels = [load_labels(name, root, split)[::part] for split in ("train", "test")]
    return as_far_as_resplits(*images, torch.cat(labels), resplits=100)


def test_the_digits_split_is_as_good_as_random_ones():
    deviations, chi_square = split_of("digits", None, 1)
    assert abs(deviations) < 3 and chi_square < 1  # drawn by class: far below the 9 of a random split
    images, labels = (torch.cat([load("digits"), load("digits", split="test")]) for load in (load_dataset, load_labels))
    order = torch.argsort(labels % 2, stable=True)  # the check can fail: even digits for training, odd ones to test
    deviations, chi_square = as_far_as_resplits(images[order][:900], images[order][900:], labels[order], 30)
    assert deviations > 10 and chi_square > 1000


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder with the real Fashion-MNIST files; name one by DDPM_NB_DATA")
def test_the_fashion_mnist_split_is_as_good_as_random_ones():
    deviations, chi_square = split_of("fashion_mnist", REAL, 6)
    assert abs(deviations) < 3 and chi_square < 28  # 0.1 % of the χ² of nine degrees of freedom lies beyond


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder with the real Fashion-MNIST files; name one by DDPM_NB_DATA")
def test_the_real_fashion_mnist():
    train, labels = load_dataset("fashion_mnist", REAL), load_labels("fashion_mnist", REAL, "test")
    assert len(train) == 60_000
    assert labels.bincount().tolist() == [1000] * 10  # published: each class equally often
    # The published mean and deviation of the pixels, 0.2860 and 0.3530, on [0, 1].
    pixels = (train + 1) / 2
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)
    assert (pixels * 255).round().long().flatten().bincount().gt(0).tolist() == [True] * 256


# Downloads, from a server on this machine.


class Server:
    """Serves ``files`` by name and counts what is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                server.asked.append(name)
                content = server.files.get(name)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch, contents, small):
    server = Server()
    server.files = {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    served_at(monkeypatch, server.url, small)
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of downloads, empty; waits between attempts are skipped."""
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "ddpm_nb" / "mnist"


def test_a_download_is_verified_and_cached(server, cache, contents):
    assert load_labels("mnist").tolist() == [3, 1, 4, 1, 5]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == contents
    assert sorted(server.asked) == sorted(server.files)
    server.files.clear()  # from now on nothing can be downloaded
    assert load_dataset("mnist", split="test").shape == (2, 1, 28, 28)
    assert len(server.asked) == 4


@pytest.mark.parametrize("how", ["other bytes", "truncated", "no gzip", "missing"])
def test_a_corrupted_download_is_refused_and_what_was_good_stays(server, cache, contents, how):
    good = server.files[f"{FILES[2]}.gz"]
    bad = {
        "other bytes": gzip.compress(contents[FILES[2]][:-1] + b"\0"),
        "truncated": good[:-30],
        "no gzip": b"<html>busy</html>",
        "missing": None,
    }[how]
    if bad is None:
        del server.files[f"{FILES[2]}.gz"]
    else:
        server.files[f"{FILES[2]}.gz"] = bad
    with pytest.raises(DataError, match=r"could not download mnist from http://127\.0\.0\.1.*root or DDPM_NB_DATA"):
        load_dataset("mnist")
    kept = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert kept == {name: contents[name] for name in FILES[:2]}  # whole files only, and no leftovers
    server.files[f"{FILES[2]}.gz"] = good
    server.asked.clear()
    assert load_dataset("mnist").shape == (5, 1, 28, 28)
    assert sorted(server.asked) == sorted(f"{name}.gz" for name in FILES[2:])


def test_a_damaged_file_in_the_cache_is_fetched_again(server, cache, contents):
    load_labels("mnist")
    (cache / FILES[1]).write_bytes(b"damaged")
    assert load_labels("mnist").tolist() == [3, 1, 4, 1, 5]
    assert (cache / FILES[1]).read_bytes() == contents[FILES[1]]


def test_a_damaged_file_in_the_cache_is_not_replaced_by_a_corrupted_download(server, cache):
    load_labels("mnist")
    (cache / FILES[1]).write_bytes(b"damaged")
    server.files[f"{FILES[1]}.gz"] = gzip.compress(b"also damaged")
    with pytest.raises(DataError, match="could not download mnist"):
        load_labels("mnist")


def test_without_a_server_the_error_says_what_to_do(small, cache):
    with pytest.raises(
        DataError, match=r"could not download mnist.*Put the four files in a folder and name it by root"
    ):
        load_dataset("mnist")


def test_digits_need_neither_network_nor_folder(monkeypatch):
    monkeypatch.setattr(data, "_downloaded", lambda *args: pytest.fail("downloads"))
    assert len(load_dataset("digits")) + len(load_dataset("digits", split="test")) == 1797


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 1, 8, 8), r"images of shape \(3, 1, 8, 8\) .*expected float32 \(n, 3, 4, 4\)"),
        (torch.zeros(3, 3, 4, 4, dtype=torch.int16), "dtype torch.int16; expected float32"),
        (torch.full((3, 3, 4, 4), 255.0), r"values from 255 to 255; expected them in \[−1, 1\]"),
        (torch.full((3, 3, 4, 4), torch.nan), "values from nan to nan"),
    ],
)
def test_an_entry_that_does_not_deliver_what_it_says_is_refused(images, message):
    DATASETS.register("own", Dataset(4, 3, 256, ("one",), lambda split, root: (images, torch.zeros(3))))
    try:
        with pytest.raises(DataError, match=message):
            load_dataset("own")
    finally:
        DATASETS.remove("own")
