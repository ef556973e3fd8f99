"""A user's own schedule, sampler, data set, network and parameterization: one place each, known everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm_nb.__main__ import main
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint
from ddpm_nb.data import DATASETS
from ddpm_nb.denoiser import PARAMETERIZATIONS
from ddpm_nb.nets import NETWORKS
from ddpm_nb.pretrained import load_model
from ddpm_nb.schedule import SCHEDULES
from ddpm_nb.solvers import SAMPLERS

BOOK = Path(__file__).resolve().parents[1] / "book"
ADDITIONS = {
    "schedule": """
import torch
from ddpm_nb.schedule import SCHEDULES, NoiseSchedule

def even(T):
    log_snr = torch.linspace(9, -9, T, dtype=torch.float64)
    return NoiseSchedule(torch.cat([torch.zeros(1, dtype=torch.float64), torch.nn.functional.logsigmoid(log_snr)]))

SCHEDULES.register("even", even)
""",
    "sampler": """
from ddpm_nb.diffusion import weighted_sum
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.solvers import SAMPLERS

def renoised(q, denoise):
    def kernel(x_t, s, t):
        before, _ = q.schedule.levels(s, t)
        return Gaussian(before.signal * denoise(x_t, t), before.noise_var)
    return kernel

SAMPLERS.register("renoised", renoised)
""",
    "dataset": """
import torch
from ddpm_nb.data import DATASETS, Dataset

def load(split, root):
    generator = torch.Generator().manual_seed(int(split == "test"))
    labels = torch.randint(3, (400,), generator=generator)
    images = torch.rand(400, 3, 16, 16, generator=generator) - 1
    images[torch.arange(400), labels] += 1  # red, green or blue
    return images, labels

DATASETS.register("colours", Dataset(16, 3, 256, ("red", "green", "blue"), load))
""",
    "network": """
import torch
from ddpm_nb.nets import NETWORKS

class Flat(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)
    def forward(self, x_t, t):
        return self.layer(x_t)

NETWORKS.register("flat", lambda channels, side: Flat(channels))
""",
    "parameterization": """
from ddpm_nb.denoiser import PARAMETERIZATIONS, Parameterization

sum_of_both = Parameterization("sum", lambda level: (-level.noise_var, level.signal))
PARAMETERIZATIONS.register("sum", sum_of_both)
""",
}
CHOICES = {"dataset": "colours", "network": "flat", "schedule": "even", "parameterization": "sum"}


@pytest.fixture
def extension(tmp_path: Path):
    """A file with all five; what it registers in this process is taken out again."""
    path = tmp_path / "mine.py"
    path.write_text("\n".join(ADDITIONS.values()))
    yield path
    for registry, name in (
        (SCHEDULES, "even"),
        (SAMPLERS, "renoised"),
        (DATASETS, "colours"),
        (NETWORKS, "flat"),
        (PARAMETERIZATIONS, "sum"),
    ):
        if name in registry:
            registry.remove(name)
    sys.modules.pop("ddpm_nb_extension_mine", None)


def test_an_addition_takes_at_most_fifteen_lines():
    assert set(ADDITIONS) == {"schedule", "sampler", "dataset", "network", "parameterization"}
    assert all(len(source.strip().splitlines()) <= 15 for source in ADDITIONS.values())


def test_the_command_line_trains_with_all_of_them_and_samples(extension: Path, tmp_path: Path, capsys):
    path, out = tmp_path / "run.safetensors", tmp_path / "samples.png"
    chosen = [word for name, value in CHOICES.items() for word in (f"--{name}", value)]
    plan = ["--T", "60", "--steps", "30", "--batch-size", "16", "--warmup", "3", "--checkpoint", str(path)]
    main(["train", "--extension", str(extension), *chosen, *plan])
    model = load_model(path)
    assert (model.q.schedule.T, model.event, model.dataset) == (60, (3, 16, 16), "colours")
    assert torch.equal(model.q.schedule.log_alpha_bars, SCHEDULES["even"](60).log_alpha_bars)
    assert model.parameterization is PARAMETERIZATIONS["sum"]
    main(["sample", str(path), "--sampler", "renoised", "--steps", "10", "--images", "4", "--out", str(out)])
    assert "4 samples" in capsys.readouterr().out
    assert Image.open(out).mode == "RGB"


def test_sampling_refuses_wrong_numbers_before_any_work(tmp_path: Path):
    out = tmp_path / "new folder" / "samples.png"
    for words, message in (
        (["--images", "0"], "images = 0"),
        (["--steps", "2000"], "steps = 2000: expected at most T"),
    ):
        with pytest.raises(ValueError, match=message):
            main(["sample", "digits", *words, "--out", str(out)])
    assert not out.exists()


def test_a_checkpoint_of_an_unregistered_network_says_what_to_do(extension: Path, tmp_path: Path):
    path = tmp_path / "run.safetensors"
    options = ["--extension", str(extension), "--network", "flat", "--steps", "2", "--checkpoint", str(path)]
    main(options)  # options alone are those of train
    NETWORKS.remove("flat")
    with pytest.raises(CheckpointError, match=r"network = 'flat'.*register"):
        load_model(path)


def test_a_schedule_that_ends_with_signal_is_said_aloud(extension: Path, tmp_path: Path):
    SCHEDULES.register("even", lambda T: SCHEDULES["linear"](1000).from_betas([2 / T] * T))
    with pytest.warns(UserWarning, match=r"√ᾱ_T = 0\.36"):
        main(["--schedule", "even", "--T", "200", "--steps", "1", "--checkpoint", str(tmp_path / "run.safetensors")])


def papermill(notebook: str, folder: Path, **parameters: object) -> str:
    """Run a chapter and return what its cells printed."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--cwd", str(folder), "--no-progress-bar"]
    done = subprocess.run(
        [*command, str(BOOK / notebook), str(folder / notebook), *words, "--log-output"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_chapters_6_and_7_run_with_all_of_them(extension: Path, tmp_path: Path):
    trained = papermill(
        "06-training.ipynb", tmp_path, extension=extension, **CHOICES, T=200, steps=40, batch_size=16, warmup=4
    )
    assert "400 training images, 400 held out, 16 x 16 pixels" in trained
    state = load_checkpoint(tmp_path / "checkpoints" / "colours.safetensors")
    assert state["recipe"] | CHOICES == state["recipe"]
    drawn = papermill(
        "07-sampling.ipynb",
        tmp_path,
        extension=extension,
        dataset="colours",
        sampler="renoised",
        samples=100,
        ancestral_steps=20,
        ddim_steps=20,
        classifier_images=200,
        epochs=1,
    )
    assert "colours, 40 training steps, predicts SUM" in drawn
    assert "renoised, 20 steps" in drawn
