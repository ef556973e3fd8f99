"""Chapter 7. A trained model as a folder that the library diffusers loads, without this package beside it.

The network is not one of those that diffusers brings, so the folder holds its code too: the text of
:class:`~ddpm_nb.nets.UNet` and of what that uses, copied when the folder is written, and two short classes around it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ddpm_nb.aside import aside
from ddpm_nb.denoiser import EPS, X0, Parameterization, V
from ddpm_nb.nets import UNet
from ddpm_nb.pretrained import Model
from ddpm_nb.schedule import NoiseSchedule

__all__ = ["export_diffusers"]

_PREDICTIONS = ((EPS, "epsilon"), (X0, "sample"), (V, "v_prediction"))
_CODE = "ddpm_nb_pipeline"  # loaded files share one folder: no plain name


def export_diffusers(model: Model, folder: str | os.PathLike[str]) -> Path:
    """Write a model to a new folder that diffusers loads; it draws the images of this package. Returns the folder.

    The folder holds code, so that loading it asks for ``trust_remote_code=True``, and for nothing else::

        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        pipe(batch_size=4, num_inference_steps=20).images

    There, ``model_index.json`` names the pipeline's class and its file, ``unet/ddpm_nb_pipeline.py``: that needs torch
    and diffusers, not this package. ``custom_pipeline=`` is not needed; given the path of that file, it does the same.
    So it is in diffusers 0.42; those from 0.30 on load the folder too, early ones without asking for trust.

    The pipeline starts from ``torch.randn(batch, *event, generator=generator)`` and walks as
    ``DDIM(q, clipped(denoiser), eta)`` does down ``grid(T, steps)``, for numbers of steps that divide T. For others
    the scheduler of diffusers steps to times that it does not visit, and the images differ. It takes the noise levels
    in float64, since 1 − ᾱ would lose digits in float32, and counts the steps from 0: ours less one.
    In float32 the two agree to rounding, which the first step of a model that predicts ε divides by √ᾱ_T.

    Another scheduler of diffusers may take its place (``pipe.scheduler = ..``); one that does not clip suits a model
    that predicts v or x_0, since ε at the last step says next to nothing about x_0. A network with classes takes
    ``class_labels=``, one label or one for each image.

    A copy of the folder is a copy of the model; ``pipe.save_pretrained`` of diffusers leaves the code out.

    Parameters
    ----------
    model : a :class:`~ddpm_nb.nets.UNet` that predicts ε, x_0 or v
    folder : where to write; the bytes go to a folder beside it, which is renamed when it is whole

    Raises
    ------
    ValueError
        If the folder exists and is not empty, the network is another one, or diffusers has no prediction type for
        what it predicts.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise ValueError(
            f"folder = {str(folder)!r}: expected a new or an empty folder, this one holds something"
        )
    files = {
        "model_index.json": _json(
            {
                "_class_name": [f"unet/{_CODE}", "DenoisingPipeline"],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "unet": [_CODE, "DenoisingUNet"],
            }
        ),
        "scheduler/scheduler_config.json": _json(
            _scheduler(model.q.schedule, _prediction(model.parameterization))
        ),
        "unet/config.json": _json(_network(model.network)),
        f"unet/{_CODE}.py": _code(),
        "README.md": _card(model),
    }
    # Classes around the network put its name before those of the weights.
    weights = {
        f"network.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in model.network.state_dict().items()
    }
    with aside(folder) as beside:
        for name, text in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_text(text, "utf-8")
        save_file(
            weights,
            beside / "unet" / "diffusion_pytorch_model.safetensors",
            metadata={"format": "pt"},
        )
    return folder


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _prediction(parameterization: Parameterization) -> str:
    """Return the name that diffusers has for what a network predicts."""
    for known, name in _PREDICTIONS:
        if parameterization == known:
            return name
    names = ", ".join(repr(known.name) for known, _ in _PREDICTIONS)
    raise ValueError(
        f"parameterization = {parameterization.name!r}: diffusers has no prediction type for it; "
        f"expected one of {names}"
    )


def _scheduler(schedule: NoiseSchedule, prediction: str) -> dict[str, Any]:
    """Return the configuration of a DDIMScheduler on the levels of a schedule, which ends at ᾱ_0 = 1."""
    t = torch.arange(1, schedule.T + 1)
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.T,
        "trained_betas": schedule.beta(t).tolist(),
        "prediction_type": prediction,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        # From T down, as grid does: the other spacings start below it.
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }


def _network(network: nn.Module) -> dict[str, Any]:
    """Return the configuration of a U-Net: its arguments, read off its layers."""
    if type(network) is not UNet:
        raise ValueError(
            f"network of type {type(network).__name__}: expected a UNet of ddpm_nb.nets, whose code the folder holds"
        )
    layers: Any = network
    channels, side, _ = layers.event
    found: dict[str, Any] = {
        "widths": [_first(level).norm_1.num_channels for level in layers.down],
        "blocks": len(list(layers.down[0].children())),
        "patch": layers.patch,
        "outputs": layers.outward.out_channels // layers.inward.in_channels,
    }
    # Of an argument that no layer tells, such as a share of dropout, the value
    # that the network keeps under its name, or the default.
    for name, parameter in inspect.signature(UNet).parameters.items():
        if name not in {"image_size", "channels", *found}:
            value = getattr(network, name, None)
            number = isinstance(value, int | float)
            found[name] = value if number else parameter.default
    with torch.device("meta"):  # draws nothing
        twin = UNet(side, channels, **found)
    shapes, wanted = (
        {name: tensor.shape for name, tensor in net.state_dict().items()}
        for net in (twin, network)
    )
    if shapes != wanted:
        raise ValueError(
            f"network: a UNet({side}, {channels}, **{found}) has other layers than it; "
            "expected one whose layers are those it was built with"
        )
    return {
        "_class_name": "DenoisingUNet",
        "sample_size": side,
        "in_channels": channels,
        "layers": found,  # not "network", which the module has
    }


def _first(modules: nn.Module) -> Any:
    return next(modules.children())


def _card(model: Model) -> str:
    """Return the text of the folder's README."""
    channels, side, _ = model.event
    T = model.q.schedule.T
    return f"""\
# Images of {model.dataset}, drawn by diffusion

A U-Net for images of {channels} x {side} x {side}, trained by ddpm_nb on `{model.dataset}` for {model.step} steps of
optimization to predict {model.parameterization.name}, on a chain of {T} steps of noise. DDIM draws, in any number of
steps; for those that divide {T} the images are those of ddpm_nb. Needs torch and diffusers; run this in the folder:

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)
images = pipe(batch_size=4, num_inference_steps=20).images
```
"""


@cache
def _code() -> str:
    """Return the text of the folder's one file of code."""
    imports, definitions = _needed(UNet)
    return _TEMPLATE.format(
        imports="\n".join(imports), definitions="\n\n\n".join(definitions)
    )


def _needed(root: type) -> tuple[list[str], list[str]]:
    """Return the imports and the definitions that a class of this package needs, itself last.

    They are copied from the modules' text: every name in a definition is followed to where a module of this package
    binds it, and so on. A definition comes after those that it needs.
    """
    imports: dict[str, None] = {}
    definitions: dict[tuple[str, str], str] = {}
    seen = set()

    def visit(module: str, name: str) -> None:
        if (module, name) in seen:
            return
        seen.add((module, name))
        text, bound = _bindings(module)
        statement = bound.get(name)
        if statement is None:
            return  # a local name, or a builtin one
        if isinstance(statement, ast.ImportFrom):
            home = str(statement.module)
            if home.startswith("ddpm_nb."):
                visit(home, name)
            else:
                imports[ast.unparse(statement)] = None
            return
        if isinstance(statement, ast.Import):
            imports[ast.unparse(statement)] = None
            return
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                visit(module, node.id)
        above = getattr(statement, "decorator_list", [])
        first = min(node.lineno for node in (*above, statement))
        lines = text.splitlines()[first - 1 : statement.end_lineno]
        definitions[module, name] = "\n".join(lines)

    visit(root.__module__, root.__name__)
    names = [name for _, name in definitions]
    assert len(names) == len(set(names)), names
    return sorted(imports, key=_place), list(definitions.values())


def _place(line: str) -> tuple[bool, bool, str]:
    """Sort imports as usual: the standard library first, whole modules first."""
    words = line.split()
    known = words[1].partition(".")[0] in sys.stdlib_module_names
    return not known, words[0] == "from", line


@cache
def _bindings(module: str) -> tuple[str, dict[str, ast.stmt]]:
    """Return the text of a module, and its top-level statements by the names that they bind."""
    text = inspect.getsource(importlib.import_module(module))
    tree = ast.parse(text)
    return text, {
        name: node for part in tree.body for name, node in _bound(part)
    }


def _bound(statement: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name, statement
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            name = alias.asname or alias.name.partition(".")[0]
            yield name, ast.Import([alias])
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            one = ast.ImportFrom(statement.module, [alias], statement.level)
            yield alias.asname or alias.name, one
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield ast.unparse(target), statement
    elif isinstance(statement, ast.AnnAssign):
        yield ast.unparse(statement.target), statement


_TEMPLATE = '''\
"""A denoising diffusion model as a pipeline of diffusers. Needs torch and diffusers.

Written by ddpm_nb: the network is that of ddpm_nb.nets, copied from there.
License: MIT, that of ddpm_nb.
"""

from __future__ import annotations

import inspect
{imports}
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils.torch_utils import randn_tensor


{definitions}


class DenoisingUNet(ModelMixin, ConfigMixin):
    """The network as diffusers calls one: its timestep 0 is step 1 here."""

    @register_to_config
    def __init__(self, sample_size: int, in_channels: int, layers: dict):
        super().__init__()
        self.network = UNet(sample_size, in_channels, **layers)

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        """Predict from sample (batch, channels, side, side) at a timestep.

        The timestep is a number or a tensor (batch,); class_labels are a
        tensor (batch,) of int64, for a network that was trained with classes.
        """
        t = torch.as_tensor(timestep, device=sample.device) + 1
        t = t.reshape(-1).expand(len(sample))
        labels = () if class_labels is None else (class_labels,)
        y = self.network(sample, t, *labels)
        return UNet2DOutput(sample=y) if return_dict else (y,)


class DenoisingPipeline(DiffusionPipeline):
    """Draw images from noise, by DDIM or another scheduler of diffusers."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet, scheduler):  # older diffusers reads no strings
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        betas = scheduler.config.get("trained_betas")
        if isinstance(scheduler, DDIMScheduler) and betas is not None:
            # Its own table is in float32, in which 1 - alpha_bar loses digits.
            log_alphas = torch.log1p(-torch.tensor(betas, dtype=torch.float64))
            scheduler.alphas_cumprod = log_alphas.cumsum(0).exp()

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator=None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        class_labels=None,
        output_type: str = "pil",
        return_dict: bool = True,
    ):
        """Return an ImagePipelineOutput, or a tuple without return_dict.

        Parameters
        ----------
        batch_size : number of images
        generator : a torch.Generator, or a list of one for each image
        eta : 0 draws no noise after the first, 1 draws as DDPM does
        num_inference_steps : evaluations of the network
        class_labels : one label, or one for each image; -1 is no label
        output_type : 'pil', 'np' (batch, side, side, channels) or
            'pt' (batch, channels, side, side), both in [0, 1]
        """
        config, device = self.unet.config, self._execution_device
        side, channels = config["sample_size"], config["in_channels"]
        labels = None
        if class_labels is not None:
            if not config["layers"].get("classes"):
                raise ValueError("class_labels: this network has no classes")
            labels = torch.as_tensor(class_labels, device=device).long()
            labels = labels.reshape(-1).expand(batch_size)
        x = randn_tensor(
            (batch_size, channels, side, side),
            generator=generator,
            device=device,
            dtype=self.unet.dtype,
        )
        # A scheduler without noise of its own takes neither eta nor generator.
        # DDIM is told to keep the noise consistent with the clipped estimate.
        options = {{
            "eta": eta,
            "use_clipped_model_output": True,
            "generator": generator,
        }}
        known = inspect.signature(self.scheduler.step).parameters
        options = {{k: v for k, v in options.items() if k in known}}
        self.scheduler.set_timesteps(num_inference_steps)
        x = x * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, t)
            y = self.unet(scaled, t, labels).sample
            x = self.scheduler.step(y, t, x, **options).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)
'''
