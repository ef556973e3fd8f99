"""Other libraries' networks and samplers, for benchmarks beside them in one process; none of their code is here.

    pip install --no-deps smalldiffusion==0.5.0 denoising-diffusion-pytorch==2.3.4 ema-pytorch einops

``diffusers`` comes with the test dependencies. Two of the others import torchvision for data sets and pictures, which
no benchmark touches; where it is missing an empty stand-in takes its place.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType

from torch import Tensor, nn

INSTALL = "pip install --no-deps smalldiffusion==0.5.0 denoising-diffusion-pytorch==2.3.4 ema-pytorch einops"


class _Anything(ModuleType):
    """A module whose every function exists, takes anything and returns None."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


def stand_in_for_torchvision() -> None:
    """Let ``import torchvision`` succeed where it is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        module = _Anything(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]  # type: ignore[attr-defined]


def require(module: str) -> ModuleType:
    """Import a peer, or say how to install it."""
    stand_in_for_torchvision()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{module} is not installed ({error}): {INSTALL}") from error


class Diffusers(nn.Module):
    """UNet2DModel of diffusers, 1.6 million parameters, attention at 14 x 14."""

    def __init__(self) -> None:
        super().__init__()
        self.network = require("diffusers").UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            norm_num_groups=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t).sample


class SmallDiffusion(nn.Module):
    """Unet of smalldiffusion, 1.6 million parameters, attention at 14 x 14."""

    def __init__(self) -> None:
        super().__init__()
        self.network = require("smalldiffusion").Unet(28, 1, 1, ch=32, ch_mult=(1, 2, 2), attn_resolutions=(14,))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t.float() / 1000)


class Lucidrains(nn.Module):
    """Unet of denoising-diffusion-pytorch, 1.4 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.network = require("denoising_diffusion_pytorch").Unet(dim=32, dim_mults=(1, 2, 2), channels=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t)
