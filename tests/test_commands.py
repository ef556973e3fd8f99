"""The command line: its help, its errors, a run that is stopped and goes on, and the way from a folder to samples."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ddpm_nb.__main__ import main, options, script
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ddpm_nb.commands import train as train_command
from ddpm_nb.commands.sample import chosen_labels, drawn, levels_of
from ddpm_nb.commands.words import command_line
from ddpm_nb.denoiser import clipped
from ddpm_nb.guidance import classifier_free
from ddpm_nb.hardware import step_memory
from ddpm_nb.kernels import grid, last, walk
from ddpm_nb.nets import image_unet
from ddpm_nb.packing import pack
from ddpm_nb.pretrained import load_model
from ddpm_nb.quality import images_from
from ddpm_nb.recipe import Recipe
from ddpm_nb.sampling import DDIM
from ddpm_nb.schedule import SCHEDULES, linear_schedule

BOOK = Path(__file__).resolve().parents[1] / "book"
COMMANDS = ("pack", "train", "extend", "sample", "evaluate", "bits", "judge", "info", "export")
SMALL = ["--steps", "6", "--batch-size", "8", "--warmup", "2", "--mixed-precision", "no", "--ema-decay", "0.5"]


def digest(path: Path) -> str:
    """The hash of everything a run has left: weights, average, optimizer, losses, settings."""
    load_checkpoint(path)
    with safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


def train(path: Path, *words: str) -> Path:
    main(["train", *SMALL, *words, "--checkpoint", str(path)])
    return path


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Path:
    """A tiny run of the digits that is told their classes."""
    path = tmp_path_factory.mktemp("conditional") / "digits.safetensors"
    words = ["--conditional", "--label-dropout", "0.3", "--learning-rate", "0.02"]
    return train(path, "--dataset", "digits", *words)


def photos(folder: Path, side: int = 20, seed: int = 0) -> Path:
    """Sixty colour pictures in three classes, in a folder whose name has a space and letters beyond ASCII."""
    chance = np.random.default_rng(seed)
    for colour, name in enumerate(("roße", "grüne", "blaue Dinge")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = chance.integers(0, 90, (side, side + 4, 3), dtype=np.uint8)
            pixels[..., colour] += 150
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


# --- help -----------------------------------------------------------------------------------------------------------


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_the_help_of_every_command_says_what_each_option_means_and_its_default():
    parser = options()
    assert tuple(parser.commands) == COMMANDS
    for name, command in parser.commands.items():
        text = command.format_help()
        assert f"\n  ddpm-nb {name}" in text, "an example"
        assert all(len(line) <= 80 for line in text.splitlines())
        for action in command._actions:
            assert action.help, (name, action.dest)
            assert squeezed(action.help.replace("%%", "%")) in squeezed(text)
            if action.option_strings and action.dest != "help":
                assert "(default: " in action.help or action.required, (name, action.dest)
    assert all(f"\n    {name} " in parser.format_help() for name in COMMANDS)


def test_the_help_of_train_is_the_recipe_and_knows_every_registered_name():
    text = squeezed(options().commands["train"].format_help())
    for setting in fields(Recipe):
        choices = setting.metadata["choices"]
        names = "" if choices is None else f": {', '.join(choices)}"
        default = {True: "yes", False: "no"}.get(setting.default) if type(setting.default) is bool else setting.default
        assert squeezed(f"{setting.metadata['meaning']}{names} (default: {default})") in text
        assert setting.name in Recipe.__doc__.partition("Parameters")[2]


def test_the_page_of_the_book_holds_the_help_of_every_command(monkeypatch):
    monkeypatch.syspath_prepend(str(BOOK / "tools"))
    from render import commands

    page = commands()
    for name, command in options().commands.items():
        assert f"## `ddpm-nb {name}`" in page
        assert command.format_help().strip() in page
    assert "_generated/commands.md" in (BOOK / "commands.md").read_text()
    assert "file: book/commands\n" in (BOOK.parent / "_toc.yml").read_text()


def test_the_help_of_an_extension_lists_its_names(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("from ddpm_nb.schedule import SCHEDULES\nSCHEDULES.register('mine', SCHEDULES['cosine'])\n")
    try:
        assert script(["train", f"--extension={mine}", "--help"]) == 0
        assert "log_snr, mine (default: cosine)" in " ".join(capsys.readouterr().out.split())
    finally:
        SCHEDULES.remove("mine")
        sys.modules.pop("ddpm_nb_extension_mine", None)


# --- errors ---------------------------------------------------------------------------------------------------------


def error(words: list[str], capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = script(words)
    captured = capsys.readouterr().err
    message = captured.splitlines()[-1]
    assert "Traceback" not in captured
    assert message.startswith("ddpm-nb")
    return code, message


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("", 2, "ddpm-nb: expected a command: pack, train"),
        ("trian", 2, "ddpm-nb: no command 'trian' (did you mean 'train'?)"),
        ("train --stpes 3", 2, "ddpm-nb train: no option --stpes (did you mean '--steps'?)"),
        ("--stpes 3", 2, "ddpm-nb train: no option --stpes (did you mean '--steps'?)"),
        ("train --steps three", 2, "ddpm-nb train: argument --steps: invalid int value: 'three'"),
        ("train --steps 0", 2, "ddpm-nb train: steps = 0: expected a whole number of at least 1"),
        ("train --network unett", 2, "ddpm-nb train: network = 'unett': expected one of 'unet', 'unet_fine'"),
        ("train --dataset digitz", 2, "(did you mean 'digits'?)"),
        ("train --dataset none.safetensors", 1, "dataset = 'none.safetensors': no such packed file"),
        ("train --dataset .", 1, "a folder; pack it first: ddpm-nb pack . --side 32"),
        ("train --restart 500", 2, "restart = 500: expected less than steps = 500"),
        ("train --log log.txt", 2, "log = 'log.txt': expected a file that ends in .csv or .jsonl"),
        ("train --log-with tensorbord", 2, "did you mean 'tensorboard'?"),
        ("train --sheet-every -1", 2, "sheet-every = -1: expected a whole number of at least 0"),
        ("train --extension none.py", 2, "extension = 'none.py': there is no such file"),
        ("train surplus", 2, "unrecognized arguments: surplus"),
        ("sample", 2, "ddpm-nb sample: the following arguments are required: MODEL"),
        ("sample digitz", 2, "ddpm-nb sample: source = 'digitz': expected one of 'digits'"),
        ("sample none.safetensors", 1, "ddpm-nb sample: none.safetensors: no such checkpoint"),
        ("sample damaged.safetensors", 1, "damaged.safetensors: truncated or not a safetensors file"),
        ("sample digits --sampler ddimm", 2, "sampler = 'ddimm': expected one of"),
        ("sample digits --grid tt", 2, "grid = 'tt': expected one of"),
        ("sample digits --images 0", 2, "images = 0: expected a whole number of at least 1"),
        ("sample digits --class 3", 2, "class = '3': this model of digits was trained without classes"),
        ("sample digits --guidance 2", 2, "guidance = 2: expected a --class to follow"),
        ("sample digits --out a.jpg", 2, "out = 'a.jpg': expected a .png or .npy file, or a folder"),
        ("sample digits --steps 2 --images 1 --out full", 1, "out = 'full': expected a new or an empty folder"),
        ("sample digits --steps 2 --images 1 --out damaged.safetensors/a.png", 1, "damaged.safetensors"),
        ("extend none.safetensors --steps 3", 1, "none.safetensors: no such checkpoint"),
        ("extend none.safetensors", 2, "the following arguments are required: --steps"),
        ("evaluate digits --images 2", 2, "images = 2: expected a whole number of at least 16"),
        ("evaluate digits --steps 0", 2, "steps = 0"),
        ("judge nowhere --dataset digits", 1, "images = 'nowhere': no such file or folder"),
        ("judge damaged.npz --dataset digits", 1, "ddpm-nb judge: "),
        ("info nothing", 2, "source = 'nothing': expected one of 'digits'"),
        ("info damaged.safetensors", 1, "truncated or not a safetensors file"),
        ("info 7", 2, "side = 7: expected 8 to 256 pixels"),
        ("export digits full", 2, "folder = 'full': expected a new or an empty folder"),
        ("pack nowhere --side 16", 1, "source = 'nowhere': there is no 'nowhere' in the folder"),
        ("pack full --side 16 --test-share 2", 1, "test_share = 2.0: expected a number above 0"),
    ],
)
def test_whatever_is_wrong_is_one_line(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors" * 20)
    (tmp_path / "damaged.npz").write_bytes(b"no arrays" * 20)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert error(words.split(), capsys)[0] == code
    assert message in error(words.split(), capsys)[1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_package_for_runs_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    code, message = error(["train", "--log-with", "tensorboard"], capsys)
    assert (code, "that package is not installed: pip install tensorboard" in message) == (1, True)


def test_an_altered_checkpoint_is_one_line_and_stays(tmp_path, capsys):
    path = train(tmp_path / "run.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    for words in (["train", *SMALL, "--checkpoint"], ["sample"], ["extend", "--steps", "2"], ["info"]):
        code, message = error([*words, str(path)], capsys)
        assert (code, "altered or damaged" in message) == (1, True)
    assert path.read_bytes() == content


def test_a_warning_is_one_line_too(tmp_path, capsys):
    SCHEDULES.register("short", lambda T: linear_schedule(T, 1e-4, 0.02))
    try:
        words = ["train", *SMALL, "--schedule", "short", "--T", "200", "--steps", "1"]
        assert script([*words, "--checkpoint", str(tmp_path / "a.safetensors")]) == 0
    finally:
        SCHEDULES.remove("short")
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "√ᾱ_T" in line]
    assert lines and all(line.startswith("ddpm-nb train: warning: schedule = 'short'") for line in lines)


# --- a run that is stopped ------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_ctrl_c_keeps_the_run_which_goes_on_to_the_same_bits(tmp_path):
    """The run that is stopped also draws sheets and keeps a log; the whole one does neither."""
    recipe = ["--steps", "160", "--batch-size", "8", "--mixed-precision", "no", "--conditional"]
    whole, path, log = (tmp_path / name for name in ("whole.safetensors", "stopped run.safetensors", "log.csv"))
    words = ["train", *recipe, "--checkpoint", str(path), "--log", str(log), "--sheet-every", "80"]
    command = [sys.executable, "-m", "ddpm_nb", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not (log.exists() and len(rows_of(log)) >= 40):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate()[1]
    assert process.returncode == 130, stderr
    step = load_checkpoint(path)["step"]
    assert 40 <= step < 160
    message = stderr.splitlines()[-1]
    assert f"stopped after step {step} of 160" in message
    again = shlex.split(message.partition("the same words go on: ")[2])
    assert again == ["ddpm-nb", *words]
    assert [int(row["step"]) for row in rows_of(log)] == list(range(1, step + 1))
    main(again[1:])
    main(["train", *recipe, "--checkpoint", str(whole)])
    assert digest(path) == digest(whole)
    rows = rows_of(log)
    assert [int(row["step"]) for row in rows] == list(range(1, 161))
    losses = load_checkpoint(path)["losses"].tolist()
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-6)
    rate = Recipe(steps=160, batch_size=8).rate
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([rate(i) for i in range(160)], rel=1e-5)
    sheets = sorted(p.name for p in tmp_path.glob("*.png"))
    assert sheets == ["stopped run-000080.png", "stopped run-000160.png"]
    with Image.open(tmp_path / sheets[0]) as image:  # ten rows of eight digits
        assert image.width / image.height == pytest.approx(8 / 10, abs=0.01)


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_log_has_each_step_once_whatever_was_in_the_file(tmp_path, name, capsys):
    path, log = tmp_path / "run.safetensors", tmp_path / name

    def read():
        if name.endswith("csv"):
            return [float(row["step"]) for row in rows_of(log)]
        return [json.loads(line)["step"] for line in log.read_text().splitlines()]

    train(path, "--log", str(log))
    assert read() == [1, 2, 3, 4, 5, 6]
    whole = log.read_text()
    lines = whole.splitlines(keepends=True)
    seventh = lines[-1].replace("6", "7", 1)
    cut = lines[-1][:9]
    for content in ("".join(lines[:-2]), whole + seventh, whole + seventh + cut):  # missing, too many, killed
        log.write_text(content)
        train(path, "--log", str(log))
        assert read() == [1, 2, 3, 4, 5, 6]
    loss = rows_of(log)[2]["loss"] if name.endswith("csv") else str(json.loads(lines[2])["loss"])
    log.write_text(whole.replace(loss, "9.5"))
    code, message = error(["train", *SMALL, "--checkpoint", str(path), "--log", str(log)], capsys)
    assert (code, "of another run: the loss of step 3 is 9.5" in message) == (1, True)
    log.write_text("dear diary\n")
    code, message = error(["train", *SMALL, "--checkpoint", str(path), "--log", str(log)], capsys)
    assert (code, "no log of a run" in message, log.read_text()) == (1, True, "dear diary\n")


def test_sheets_come_from_one_noise_and_change_nothing(tmp_path):
    plain = train(tmp_path / "plain.safetensors", "--flip", "--dropout", "0.2")
    drawn_along = train(tmp_path / "sheets.safetensors", "--flip", "--dropout", "0.2", "--sheet-every", "2")
    assert digest(plain) == digest(drawn_along)
    sheets = sorted(tmp_path.glob("sheets-*.png"))
    assert [path.stem for path in sheets] == ["sheets-000002", "sheets-000004", "sheets-000006"]
    recipe = Recipe(mixed_precision="no")
    learner = recipe.learner()
    path = tmp_path / "again.safetensors"
    twice = [train_command.sheet(recipe, learner, path).read_bytes() for _ in range(2)]
    assert twice[0] == twice[1]
    with torch.no_grad():
        learner.network.outward.bias.fill_(9)
    assert train_command.sheet(recipe, learner, path).read_bytes() == twice[0]
    with torch.no_grad():
        learner.ema.network.outward.bias.fill_(9)  # the averaged weights draw
    assert train_command.sheet(recipe, learner, path).read_bytes() != twice[0]


# --- extend ---------------------------------------------------------------------------------------------------------


def test_the_rate_of_an_extended_run_begins_anew_and_ends_at_zero():
    recipe = Recipe(steps=300, restart=100, warmup=20, learning_rate=0.01)
    before = Recipe(steps=100, warmup=20, learning_rate=0.01)
    assert [recipe.rate(i) for i in range(100)] == [before.rate(i) for i in range(100)]
    assert recipe.rate(100) == pytest.approx(0.01 / 20)
    assert recipe.rate(119) == pytest.approx(0.01) == recipe.rate(120)
    assert recipe.rate(210) == pytest.approx(0.005)  # half of the way from 120 to 300
    assert recipe.rate(299) == pytest.approx(0.005 * (1 + math.cos(math.pi * 179 / 180)))
    assert recipe.plan().rate(210) == recipe.rate(210)
    assert replace(recipe, restart=0, steps=100) == before


def test_an_extension_is_the_run_of_its_recipe_and_keeps_the_old_checkpoint(tmp_path, capsys):
    source = train(tmp_path / "run.safetensors", "--learning-rate", "0.01")
    before = digest(source)
    main(["extend", str(source), "--steps", "4"])
    out = capsys.readouterr().out
    sentence = "steps 7 to 10: the learning rate warms up again to 0.01 in 2 steps and falls as a half cosine to zero"
    assert sentence in out
    extended = tmp_path / "run-extended.safetensors"
    scratch = train(tmp_path / "scratch.safetensors", "--learning-rate", "0.01", "--steps", "10", "--restart", "6")
    assert digest(extended) == digest(scratch) != digest(source) == before
    assert load_model(extended).step == 10
    main(
        [
            "extend",
            str(source),
            "--steps",
            "3",
            "--learning-rate",
            "0.5",
            "--checkpoint",
            str(tmp_path / "b.safetensors"),
        ]
    )
    recipe = load_checkpoint(tmp_path / "b.safetensors")["recipe"]
    assert (recipe["steps"], recipe["restart"], recipe["learning_rate"]) == (9, 6, 0.5)
    with pytest.raises(CheckpointError, match="another recipe: steps is 10 there, 11 here"):
        main(["extend", str(source), "--steps", "5"])
    with pytest.raises(ValueError, match="--in-place and --checkpoint"):
        main(["extend", str(source), "--steps", "5", "--in-place", "--checkpoint", "a.safetensors"])


@pytest.mark.parametrize("place", [["--in-place"], []])
def test_a_killed_extension_goes_on_by_the_same_words(tmp_path, monkeypatch, place):
    source, twin = (train(tmp_path / f"{name}.safetensors") for name in ("run", "twin"))
    path = source if place else tmp_path / "run-extended.safetensors"
    main(["extend", str(twin), "--steps", "6", "--in-place"])
    words = ["extend", str(source), "--steps", "6", *place, "--save-every", "1", "--sheet-every", "9"]
    with monkeypatch.context() as patch:

        def killed(*about):
            raise OSError("killed")

        patch.setattr(train_command, "sheet", killed)
        with pytest.raises(OSError, match="killed"):
            main(words)
    assert load_checkpoint(path)["step"] == 8
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"8 of 12 steps are done; finish the run first: ddpm-nb train "
    ) as caught:
        main(["extend", str(path), "--steps", "7", "--checkpoint", str(tmp_path / "c.safetensors")])
    main(words)
    assert digest(path) == digest(twin)
    finish = shlex.split(str(caught.value).partition("first: ")[2])
    assert finish[-1] == str(path)
    main([*finish[1:-1], str(other)])  # those words finish it too
    assert digest(other) == digest(twin)
    main(["extend", str(path), "--steps", "6", "--in-place"])  # a finished one is extended again
    assert load_checkpoint(path)["recipe"]["restart"] == 12


def test_an_older_checkpoint_has_the_defaults_of_younger_settings(tmp_path):
    path = train(tmp_path / "run.safetensors")
    state = load_checkpoint(path)
    del state["recipe"]["restart"]
    save_checkpoint(path, state)
    main(["extend", str(path), "--steps", "2"])
    assert load_model(tmp_path / "run-extended.safetensors").step == 8


# --- the data of a run ----------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_images_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        pack(photos(tmp_path / name, seed=seed), f"{name}.safetensors", side=8)
    path = train(tmp_path / "run.safetensors", "--dataset", "a.safetensors")
    assert len(load_checkpoint(path)["data"]) == 64
    before = digest(path)
    (tmp_path / "a.safetensors").rename("moved.safetensors")
    words = ["train", *SMALL, "--checkpoint", str(path), "--dataset"]
    code, message = error([*words, "b.safetensors"], capsys)
    assert (code, "of a run on other images than those of 'b.safetensors'" in message) == (1, True)
    (tmp_path / "b.safetensors").rename("a.safetensors")
    assert "other images" in error([*words, "a.safetensors"], capsys)[1]
    assert "other images" in error(["extend", str(path), "--steps", "2"], capsys)[1]
    assert digest(path) == before
    main([*words, "moved.safetensors"])  # the same images at another place
    main(["extend", str(path), "--steps", "2", "--dataset", "moved.safetensors"])
    assert load_model("run-extended.safetensors").step == 8


# --- sample ---------------------------------------------------------------------------------------------------------


def test_classes_are_known_by_name_by_number_and_all_together(conditional):
    model = load_model(conditional)
    named = replace(model, classes=("cat", "dog", "2"))
    assert chosen_labels(named, ["dog", "0", "2"]) == [1, 0, 2]
    assert chosen_labels(named, ["all"]) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"class = 'dgo': expected one of 'cat', 'dog', '2'.*did you mean 'dog'"):
        chosen_labels(named, ["dgo"])
    with pytest.raises(ValueError, match="a number from 0 to 9"):
        chosen_labels(model, ["10"])


def test_guidance_bends_the_images_as_its_formula_says(conditional):
    model = load_model(conditional)
    label = torch.tensor([3, 3, 7])
    x_T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))

    def walked(denoise):
        return last(walk(DDIM(model.q, clipped(denoise)), x_T, grid(1000, 4))).x.clamp(-1, 1)

    found = {w: drawn(model, 3, steps=4, seed=5, labels=label, w=w, quiet=True) for w in (0.0, 1.0, 3.0)}
    assert torch.equal(found[1.0], walked(model.given(label)))
    assert torch.equal(found[0.0], walked(model.denoiser))
    assert torch.equal(found[3.0], walked(classifier_free(model.given(label), model.given(-1), 3.0)))
    assert not torch.equal(found[0.0], found[1.0])
    assert not torch.equal(found[3.0], found[1.0])


def test_many_images_are_drawn_in_parts_as_in_one(conditional, monkeypatch):
    from ddpm_nb.commands import sample

    model, labels = load_model(conditional), torch.arange(7)
    whole = drawn(model, 7, steps=2, labels=labels, quiet=True)
    monkeypatch.setattr(sample, "_AT_ONCE", 3)
    torch.testing.assert_close(drawn(model, 7, steps=2, labels=labels, quiet=True), whole)


def test_samples_are_a_sheet_an_array_or_files(conditional, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sample", str(conditional), "--steps", "2"]
    guided = [*words, "--class", "all", "--guidance", "2"]
    main(guided)
    assert "80 samples of" in capsys.readouterr().out
    with Image.open("samples.png") as image:  # ten rows of eight
        assert image.width / image.height == pytest.approx(8 / 10, abs=0.01)
    main([*guided, "--images", "20", "--out", "a.npy"])
    array = np.load("a.npy")
    assert (array.shape, array.dtype) == ((20, 8, 8), np.uint8)
    main([*guided, "--images", "20", "--out", "new folder/drawn/"])
    files = sorted(Path("new folder/drawn").rglob("*.png"))
    assert [str(path.relative_to("new folder/drawn")) for path in files[:3]] == [
        "0/00000.png",
        "0/00001.png",
        "1/00002.png",
    ]
    of_files = images_from(Path("new folder/drawn"), (1, 8, 8))
    assert torch.equal(of_files, images_from(Path("a.npy"), (1, 8, 8)))
    main([*words, "--class", "3", "--class", "7", "--images", "6", "--out", "b.npy"])
    main([*words, "--images", "5", "--out", "c"])
    assert len(list(Path("c").glob("*.png"))) == 5
    with pytest.raises(ValueError, match="images = 7: expected a multiple of the 2 classes, such as 8"):
        main([*words, "--class", "3", "--class", "7", "--images", "7"])
    assert not list(tmp_path.rglob(".*")), "nothing is left beside"


def test_colours_come_last_in_an_array():
    images = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(2, 3, 4, 4)
    assert levels_of(images).shape == (2, 4, 4, 3)
    assert levels_of(images)[0, 0, 0].tolist() == [0, 128, 255]
    assert levels_of(images[:, :1]).shape == (2, 4, 4)


# --- evaluate, info, export -----------------------------------------------------------------------------------------


def test_evaluate_prints_bits_and_every_figure_beside_real_images(conditional, capsys):
    main(["evaluate", str(conditional), "--images", "48", "--steps", "2"])
    bits, counted, space, _, names, images, real = capsys.readouterr().out.splitlines()
    assert "bits/dim on 48 test images of digits" in bits
    assert "standard error" in bits
    assert "48 samples by ddim in 2 steps" in counted
    assert "right on 9" in space
    assert names.split()[:2] == ["frechet", "precision"]
    assert images.count("±") == real.count("±") == 7
    assert float(images.split()[1]) > float(real.split()[1])


def test_of_one_class_only_bits_and_told_apart_are_said_and_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.save("noise.npy", levels)
    pack("noise.npy", "noise.safetensors", side=8)
    train(tmp_path / "run.safetensors", "--dataset", "noise.safetensors")
    main(["evaluate", "run.safetensors", "--images", "16", "--steps", "2"])
    bits, _, images, real, why = capsys.readouterr().out.splitlines()[-5:]
    assert "bits/dim on 8 test images" in bits
    assert "told apart" in images and "told apart" in real
    assert "one class only" in why
    code, message = error(["judge", "noise.npy", "--dataset", "noise.safetensors"], capsys)
    assert (code, "one class only" in message) == (2, True)


def test_info_says_what_is_in_a_checkpoint_and_the_words_that_made_it(conditional, capsys):
    main(["info", str(conditional)])
    lines = capsys.readouterr().out.splitlines()
    said = {line[:18].strip(): line[18:] for line in lines}
    assert said["steps done"] == "6 of 6"
    assert said["classes"].startswith("0, 1, 2")
    assert "cosine, T = 1000 steps, √ᾱ_T = 4.93e-05" in said["schedule"]
    assert len(said["SHA-256"]) == 64
    words = shlex.split(said["recipe"])
    assert words[:2] == ["ddpm-nb", "train"] and "--conditional" in words
    before = digest(conditional)
    main(words[1:])  # they go on from the checkpoint: nothing is left to do
    assert "all 6 steps are done" in capsys.readouterr().out
    assert digest(conditional) == before


def test_the_words_of_a_recipe_are_that_recipe():
    recipe = Recipe(steps=9, restart=3, flip=True, compiled=True, parameterization="v", learning_rate=3e-4)
    given = options().parse_args(shlex.split(command_line(recipe, "a b.safetensors"))[1:])
    assert Recipe(**{setting.name: getattr(given, setting.name) for setting in fields(Recipe)}) == recipe
    assert given.checkpoint == Path("a b.safetensors")
    assert not options().parse_args(["train", "--no-flip"]).flip


def test_info_of_a_size_counts_without_allocating(capsys):
    main(["info", "256", "--channels", "3"])
    lines = {line[:18].strip(): line[18:] for line in capsys.readouterr().out.splitlines()}
    network = image_unet(3, 256)
    count = sum(p.numel() for p in network.parameters())
    assert lines["network"] == f"unet, {count:,} parameters"
    assert "about 2,4" in lines["memory"]
    held = step_memory(image_unet(1, 8), (1, 8, 8), 4) - step_memory(image_unet(1, 8), (1, 8, 8), 2)
    assert held == step_memory(image_unet(1, 8), (1, 8, 8), 6) - step_memory(image_unet(1, 8), (1, 8, 8), 4) > 0
    main(["info"])
    listed = capsys.readouterr().out
    assert "fashion_mnist_likelihood" in listed and "28 x 28 pixels, grey, 10 classes: T-shirt" in listed
    main(["info", "digits"])
    assert "recipe" in capsys.readouterr().out


def test_export_says_how_to_load_the_folder(conditional, tmp_path, capsys):
    main(["export", str(conditional), str(tmp_path / "for diffusers")])
    out = capsys.readouterr().out
    assert f"from_pretrained({str(tmp_path / 'for diffusers')!r}, trust_remote_code=True)" in out
    assert "class_labels=0" in out
    assert (tmp_path / "for diffusers" / "model_index.json").is_file()


# --- the whole way --------------------------------------------------------------------------------------------------


def test_from_a_folder_of_pictures_to_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = photos(Path("meine Bilder ü"))
    for broken in ("roße/03.png", "blaue Dinge/07.png"):
        content = (folder / broken).read_bytes()
        (folder / broken).write_bytes(content[: len(content) // 2])
    code, message = error(["pack", str(folder), "--side", "8"], capsys)
    assert (code, "2 of 60 images are broken" in message, "--skip-broken" in message) == (1, True, True)
    assert not list(tmp_path.glob("*.safetensors"))
    assert script(["pack", str(folder), "--side", "8", "--skip-broken"]) == 0
    out = capsys.readouterr().out
    assert "58 images, 8 x 8 pixels, colour" in out
    assert "3 classes: blaue Dinge 19, grüne 20, roße 19" in out
    assert "blaue Dinge/07.png, roße/03.png" in out
    words = shlex.split(out.splitlines()[-1].partition("next: ddpm-nb ")[2])
    assert words == ["train", "--dataset", "meine Bilder ü.safetensors", "--conditional"]
    assert script([*words, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "52 images of meine Bilder ü.safetensors, 8 x 8 pixels, 3 channel(s), 3 classes (told to the network)" in out
    assert "cpu, 1 process(es), float32, not compiled" in out
    model = "checkpoints/meine Bilder ü.safetensors"
    assert script(["sample", model, "--class", "grüne", "--images", "4", "--guidance", "1.5", "--steps", "3"]) == 0
    assert "(grüne; guidance 1.5)" in capsys.readouterr().out
    with Image.open("samples.png") as image:
        assert image.mode == "RGB"
    code, message = error(["sample", model, "--class", "grune"], capsys)
    assert (code, "did you mean 'grüne'?" in message) == (2, True)
