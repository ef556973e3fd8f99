"""A folder that diffusers loads draws the images of this package, without this package beside it."""

import ast
import contextlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from ddpm_nb import nets
from ddpm_nb.denoiser import EPS, PARAMETERIZATIONS, SCORE, X0, Parameterization, V, clipped
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.export import export_diffusers
from ddpm_nb.pretrained import Model, load_model
from ddpm_nb.sampling import DDIM, grid, last, walk
from ddpm_nb.schedule import cosine_schedule, linear_schedule

diffusers = pytest.importorskip("diffusers")

NAMES = ("digits", "fashion_mnist")
CODE = "unet/ddpm_nb_pipeline.py"
CONDITIONAL = "classes" in inspect.signature(nets.UNet).parameters


@pytest.fixture(autouse=True)
def code_cache(tmp_path, monkeypatch):
    """A fresh folder for the code that diffusers copies before it runs it: none of it reaches the user's own."""
    monkeypatch.setattr(diffusers.utils.dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folders of the shipped models, by name."""
    home = tmp_path_factory.mktemp("exported")
    return {name: export_diffusers(load_model(name), home / name) for name in NAMES}


def small(parameterization=EPS, schedule=None, **options) -> Model:
    """A model of colour images that has every kind of layer more than once, and weights that are all at work."""
    network = nets.UNet(8, 3, **{"widths": (8, 16), "blocks": 2, "patch": 2} | options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    q = GaussianDiffusion(schedule or linear_schedule(40, 0.01, 0.3))
    return Model(network.eval().requires_grad_(False), parameterization, q, (3, 8, 8), "colours", 7)


def load(folder: Path, dtype: torch.dtype = torch.float32):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


def deviation(model: Model, pipe, steps=20, seed=1, batch=4, eta=0.0) -> float:
    """The largest difference between samples of both from the same noise, in units of the data, [−1, 1]."""
    dtype = pipe.unet.dtype
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(batch, *model.event, generator=generator, dtype=dtype)
    model.network.to(dtype)
    times = grid(model.q.schedule.T, steps)
    ours = last(walk(DDIM(model.q, clipped(model.denoiser), eta), x_T, times, generator)).x
    theirs = pipe(
        batch_size=batch,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        eta=eta,
        output_type="pt",
    ).images
    assert ours.dtype == theirs.dtype == dtype
    assert ours.std() > 0.1
    return (ours - (2 * theirs - 1)).abs().max().item()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_this_package(exported, record_property, name, eta):
    found = deviation(load_model(name), load(exported[name], torch.float64), eta=eta)
    record_property("deviation", found)
    assert found < 1e-10


# In float32 the first step divides a rounding error by √ᾱ_T = 5e-5. Where x̂_0 is clipped, nothing of it is left; where
# it is not, either side is about 1e-3 off there, and up to 5e-4 in the end. This seed has no such pixel.
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_this_package_in_single_precision(exported, record_property, name):
    found = deviation(load_model(name), load(exported[name]), seed=4)
    record_property("deviation", found)
    assert found < 1e-5


@pytest.mark.parametrize("steps", [1, 8, 40])
@pytest.mark.parametrize("parameterization", [EPS, X0, V], ids=repr)
def test_every_prediction_and_every_layer(tmp_path, parameterization, steps):
    model = small(parameterization)
    pipe = load(export_diffusers(model, tmp_path / "model"), torch.float64)
    assert deviation(model, pipe, steps, eta=0.5) < 1e-10
    assert [*(pipe.scheduler.timesteps + 1).tolist(), 0] == grid(40, steps)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        (CODE, "device=sample.device) + 1", "device=sample.device) + 2"),
        (CODE, '"use_clipped_model_output": True', '"use_clipped_model_output": False'),
        (CODE, "scheduler.alphas_cumprod =", "ignored ="),
        ("scheduler/scheduler_config.json", '"epsilon"', '"sample"'),
        ("scheduler/scheduler_config.json", '"epsilon"', '"v_prediction"'),
        ("scheduler/scheduler_config.json", '"trailing"', '"leading"'),
        ("scheduler/scheduler_config.json", '"clip_sample": true', '"clip_sample": false'),
        ("scheduler/scheduler_config.json", '"set_alpha_to_one": true', '"set_alpha_to_one": false'),
    ],
)
def test_a_slip_in_the_folder_is_seen(tmp_path, file, right, wrong):
    model = small(schedule=cosine_schedule(40))
    folder = export_diffusers(model, tmp_path / "model")
    text = (folder / file).read_text("utf-8")
    assert text.count(right) == 1
    (folder / file).write_text(text.replace(right, wrong), "utf-8")
    assert deviation(model, load(folder, torch.float64), steps=8) > 1e-8


BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ddpm_nb":
            raise ImportError("ddpm_nb is not here")

sys.meta_path.insert(0, Refuse())
try:
    import ddpm_nb
    raise SystemExit("ddpm_nb is there")
except ImportError:
    pass

{card}
import numpy
import torch

assert len(images) == 4 and images[0].mode == "L", images
generator = torch.Generator().manual_seed(1)
numpy.save({result!r}, pipe(batch_size=4, num_inference_steps=20, generator=generator, output_type="np").images)
assert not [name for name in sys.modules if name.partition(".")[0] == "ddpm_nb"]
"""


def test_the_card_works_where_this_package_is_not(exported, tmp_path):
    name = "fashion_mnist"
    card = (exported[name] / "README.md").read_text("utf-8")
    assert name in card
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    result = tmp_path / "images.npy"
    code = BLOCKED.format(card=block, result=str(result))
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "elsewhere")}
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=exported[name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = load_model(name)
    x_T = torch.randn(4, *model.event, generator=torch.Generator().manual_seed(1))
    ours = last(walk(DDIM(model.q, clipped(model.denoiser)), x_T, grid(1000, 20))).x
    theirs = torch.from_numpy(np.load(result)).permute(0, 3, 1, 2)
    assert_close(2 * theirs - 1, ours, atol=1e-5, rtol=0.0)


def test_the_pipeline_is_called_as_others_are(exported, tmp_path, rng):
    pipe = load(exported["digits"])
    drawn = pipe(batch_size=3, num_inference_steps=4, generator=rng(0), output_type="np").images
    assert drawn.shape == (3, 8, 8, 1)
    assert drawn.dtype == np.float32
    pictures = pipe(batch_size=3, num_inference_steps=4, generator=rng(0)).images
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    assert np.abs(np.stack([np.array(p) for p in pictures]) / 255 - drawn[..., 0]).max() < 0.51 / 255
    (tensors,) = pipe(batch_size=3, num_inference_steps=4, generator=rng(0), output_type="pt", return_dict=False)
    assert_close(tensors.permute(0, 2, 3, 1).numpy(), drawn)
    # A generator for each image draws it as it would be drawn alone.
    both = pipe(batch_size=2, num_inference_steps=4, generator=[rng(5), rng(6)], output_type="pt").images
    alone = pipe(num_inference_steps=4, generator=rng(6), output_type="pt").images
    assert_close(both[1:], alone, atol=1e-5, rtol=0.0)
    colours = load(export_diffusers(small(), tmp_path / "model"))
    assert colours(num_inference_steps=4).images[0].mode == "RGB"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
def test_another_scheduler_draws_too(exported, rng, kind):
    pipe = load(exported["fashion_mnist"])
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    ours = pipe(batch_size=8, num_inference_steps=20, generator=rng(0), output_type="pt").images
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    theirs = pipe(batch_size=8, num_inference_steps=20, generator=rng(0), output_type="pt").images
    assert abs(ours.mean() - theirs.mean()) < 0.1
    # Without noise of their own, they solve the same equation from the same start.
    assert kind == "DDPMScheduler" or (ours - theirs).abs().mean() < 0.05


def test_the_code_is_run_only_if_that_is_asked_for(exported):
    copy = diffusers.utils.dynamic_modules_utils.get_cached_module_file
    if "trust_remote_code" in inspect.signature(copy).parameters:  # an older diffusers does not ask
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            diffusers.DiffusionPipeline.from_pretrained(exported["digits"])
    file = str(exported["digits"] / CODE)
    pipe = diffusers.DiffusionPipeline.from_pretrained(exported["digits"], custom_pipeline=file, trust_remote_code=True)
    assert type(pipe).__name__ == "DenoisingPipeline"


def test_the_code_is_that_of_the_network_and_imports_nothing_of_this_package(exported):
    text = (exported["digits"] / CODE).read_text("utf-8")
    assert len(list(exported["digits"].rglob("*.py"))) == 1
    for part in (nets.UNet, nets.time_embedding):
        assert inspect.getsource(part) in text
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.partition(".")[0])
    assert {"torch", "diffusers"} <= modules
    assert modules - {"torch", "diffusers"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_whole(exported, name):
    weights = load_file(exported[name] / "unet" / "diffusion_pytorch_model.safetensors")
    ours = load_model(name).network.state_dict()
    assert {key.removeprefix("network.") for key in weights} == set(ours)
    for key, value in ours.items():
        assert weights[f"network.{key}"].dtype == torch.float32
        assert torch.equal(weights[f"network.{key}"], value)


@contextlib.contextmanager
def refused(folder: Path, match: str):
    with pytest.raises(ValueError, match=match):
        yield
    assert not list(folder.iterdir())  # nothing is left behind


def test_what_diffusers_has_no_name_for_is_refused(tmp_path):
    with refused(tmp_path, r"'score'.*expected one of 'eps', 'x_0', 'v'"):
        export_diffusers(small(SCORE), tmp_path / "model")
    model = load_model("fashion_mnist_likelihood")
    with refused(tmp_path, f"'{model.parameterization.name}'.*'eps', 'x_0', 'v'"):
        export_diffusers(model, tmp_path / "model")
    own = PARAMETERIZATIONS.register("halves", Parameterization("halves", lambda level: (0.5, 0.5)))
    try:
        with refused(tmp_path, "'halves'"):
            export_diffusers(small(own), tmp_path / "model")
    finally:
        PARAMETERIZATIONS.remove("halves")


def test_another_network_is_refused(tmp_path):
    class Own(nets.UNet):
        pass

    model = small()
    for network in (nets.MLP(), Own(8, 3)):
        other = Model(network, EPS, model.q, model.event, "colours", 7)
        with refused(tmp_path, f"network of type {type(network).__name__}: expected a UNet"):
            export_diffusers(other, tmp_path / "model")
    model.network.middle = nn.Identity()
    with refused(tmp_path, "has other layers"):
        export_diffusers(model, tmp_path / "model")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    model, folder = small(), tmp_path / "deep" / "model"
    folder.mkdir(parents=True)
    assert export_diffusers(model, str(folder)) == folder  # an empty one is filled
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert len(before) == 8
    with pytest.raises(ValueError, match="a new or an empty folder"):
        export_diffusers(model, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="a new or an empty folder"):
        export_diffusers(model, file)
    assert file.read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("ddpm_nb.export.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export_diffusers(small(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_export_draws_no_random_numbers(tmp_path):
    model = small()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    export_diffusers(model, tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_are_refused_by_a_network_without_classes(exported):
    pipe = load(exported["digits"])
    with pytest.raises(ValueError, match="this network has no classes"):
        pipe(num_inference_steps=2, class_labels=3)


@pytest.mark.skipif(not CONDITIONAL, reason="the network takes no labels")
def test_labels_reach_the_network(tmp_path):
    model = small(classes=5)
    folder = export_diffusers(model, tmp_path / "model")
    assert json.loads((folder / "unet/config.json").read_text())["layers"]["classes"] == 5
    pipe = load(folder, torch.float64)
    assert deviation(model, pipe, steps=8) < 1e-10  # without labels
    x_T = torch.randn(3, *model.event, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = {}
    for labels in ((0, 4, -1), (2, 2, 2)):
        tensor = torch.tensor(labels)
        own = Model(lambda x, t, to=tensor: model.network(x, t, to), EPS, model.q, model.event, "colours", 7)
        ours = last(walk(DDIM(model.q, clipped(own.denoiser)), x_T, grid(40, 8))).x
        given = 2 if labels == (2, 2, 2) else list(labels)
        generator = torch.Generator().manual_seed(1)
        options = {"num_inference_steps": 8, "generator": generator, "output_type": "pt"}
        theirs = pipe(batch_size=3, class_labels=given, **options).images
        assert (ours - (2 * theirs - 1)).abs().max() < 1e-10
        drawn[labels] = theirs
    assert (drawn[0, 4, -1] - drawn[2, 2, 2]).abs().max() > 1e-3
