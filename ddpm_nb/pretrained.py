"""Chapter 7. A trained model from a checkpoint: its network with averaged weights, and the process it belongs to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ddpm_nb.arguments import choose
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ddpm_nb.denoiser import NetworkDenoiser, Parameterization, parameterization
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import UNet
from ddpm_nb.schedule import SCHEDULES

__all__ = ["Model", "export_model", "load_model", "model_state"]

_SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "weights").glob("*.safetensors"))}


@dataclass(frozen=True, eq=False)
class Model:
    """A network, what it predicts, and the forward process it was trained with.

    Parameters
    ----------
    network : averaged weights, in eval mode, on the CPU
    parameterization : EPS, X0, V or SCORE
    q : the forward process
    dataset : name of the training data
    step : optimization steps behind the weights
    """

    network: nn.Module
    parameterization: Parameterization
    q: GaussianDiffusion
    dataset: str
    step: int

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The denoiser (x_t, t) → x̂_0 that samplers take."""
        return NetworkDenoiser(self.network, self.parameterization, self.q)


def model_state(network: UNet, schedule: str, T: int, target: Parameterization, dataset: str) -> dict[str, Any]:
    """Return the description of a model that a checkpoint must hold, beside the weights, for :func:`load_model`."""
    choose("schedule", schedule, SCHEDULES)
    return {
        "network": network.config,
        "schedule": schedule,
        "T": T,
        "parameterization": target.name,
        "dataset": dataset,
    }


def load_model(source: str | os.PathLike[str]) -> Model:
    """Return the model of a checkpoint file, or a shipped one by name ('digits'). Every byte is verified.

    The checkpoint holds ``model`` (see :func:`model_state`), ``ema`` (see ``Ema.state_dict``) and ``step``.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or describes no model.
    """
    path = _SHIPPED.get(str(source), Path(source))
    if path == Path(source) and not path.suffix:
        choose("source", str(source), _SHIPPED)
    state = load_checkpoint(path)
    missing = [key for key in ("model", "ema", "step") if key not in state]
    if missing:
        raise CheckpointError(f"{path}: a checkpoint, but not of a model; missing: {', '.join(missing)}")
    about = state["model"]
    network = UNet(**about["network"])
    network.load_state_dict(state["ema"]["network"])
    q = GaussianDiffusion(choose("schedule", about["schedule"], SCHEDULES)(about["T"]))
    target = parameterization(about["parameterization"])
    return Model(network.eval().requires_grad_(False), target, q, about["dataset"], state["step"])


def export_model(checkpoint: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write to ``path`` what :func:`load_model` needs from a training checkpoint, without the optimizer's state."""
    state = load_checkpoint(checkpoint)
    return save_checkpoint(path, {key: state[key] for key in ("model", "ema", "step")})
