"""Chapter 6. The networks: a U-Net for images, an MLP for points in the plane, and the embedding of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_nb.arguments import whole_number

__all__ = ["MLP", "UNet", "time_embedding"]


def time_embedding(t: Tensor, width: int) -> Tensor:
    """[sin(t ω_i), cos(t ω_i)] with ω_i = 10000^(−i/(width/2)), i = 0..width/2 − 1: ``(batch, width)``, float32.

    Source: Vaswani et al. (2017), as used in Vilhes 5.2. Book: [time embedding](#eq-time-embedding).
    """
    if width < 2 or width % 2:
        raise ValueError(f"width = {width}: expected an even number of at least 2")
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _zeroed(module: nn.Module) -> nn.Module:
    """Start a layer at zero, so that its branch begins as the identity (or its output as 0)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _Block(nn.Module):
    """Residual block: norm, SiLU, convolution, twice; time enters as a scale and shift of the second norm."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * out_channels)
        self.norm_2 = nn.GroupNorm(8, out_channels)
        self.conv_2 = _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        return self.skip(x) + self.conv_2(F.silu(h))


class _Attention(nn.Module):
    """Self-attention over the pixels, four heads, added to the input."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(2, 3).reshape(x.shape))


def _blocks(level: nn.Module) -> Iterator[nn.Module]:
    return level.children()


class UNet(nn.Module):
    """Predict a target of the shape of x_t from (x_t, t).

    Images are cut into ``patch`` x ``patch`` blocks that become channels, so most of the work happens at a lower
    resolution; then come levels of residual blocks with halved resolution, attention at the lowest, and the way back
    up with skip connections.

    Parameters
    ----------
    image_size : side of the square images, a multiple of ``patch · 2^(levels − 1)``
    channels : colours of the images
    widths : channels of each level; multiples of 8
    blocks : residual blocks of a level
    patch : side of the blocks that become channels

    Raises
    ------
    ValueError
        If the sizes do not fit, or an input has another size than ``image_size``.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
    ) -> None:
        super().__init__()
        whole_number("blocks", blocks, least=1)
        if not widths or any(width % 8 or width < 8 for width in widths):
            raise ValueError(f"widths = {widths!r}: expected multiples of 8, one for each level")
        if image_size % (patch * 2 ** (len(widths) - 1)):
            raise ValueError(
                f"image_size = {image_size}: expected a multiple of {patch * 2 ** (len(widths) - 1)}, "
                f"for patches of {patch} and {len(widths)} levels"
            )
        self.config = {
            "image_size": image_size,
            "channels": channels,
            "widths": list(widths),
            "blocks": blocks,
            "patch": patch,
        }
        self.event = (channels, image_size, image_size)
        self.patch = patch
        self.time_features = widths[0]
        time_width = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.inward = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)

        skips = [widths[0]]
        self.down = nn.ModuleList()
        for before, width in pairwise([widths[0], *widths]):
            self.down.append(
                nn.ModuleList(_Block(before if i == 0 else width, width, time_width) for i in range(blocks))
            )
            skips += [width] * blocks
        self.attention = _Attention(widths[-1])
        self.middle = _Block(widths[-1], widths[-1], time_width)
        self.up = nn.ModuleList()
        before = widths[-1]
        for depth, width in reversed(list(enumerate(widths))):
            level = nn.ModuleList()
            for _ in range(blocks + (depth == 0)):  # the last level also takes the skip from the first convolution
                level.append(_Block(before + skips.pop(), width, time_width))
                before = width
            self.up.append(level)
        self.norm = nn.GroupNorm(8, widths[0])
        self.outward = _zeroed(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction for ``x_t`` ``(batch, channels, side, side)`` at integer steps ``t`` ``(batch,)``."""
        if x_t.shape[1:] != self.event:
            raise ValueError(f"x_t of shape {tuple(x_t.shape)}: expected (batch, {', '.join(map(str, self.event))})")
        time = F.silu(self.time(time_embedding(t, self.time_features).to(self.inward.weight.dtype)))
        h = self.inward(F.pixel_unshuffle(x_t, self.patch))
        skips = [h]
        for depth, level in enumerate(self.down):
            h = F.avg_pool2d(h, 2) if depth else h
            for block in _blocks(level):
                h = block(h, time)
                skips.append(h)
        h = self.middle(self.attention(h), time)
        for depth, level in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0) if depth else h
            for block in _blocks(level):
                h = block(torch.cat([h, skips.pop()], dim=1), time)
        return F.pixel_shuffle(self.outward(F.silu(self.norm(h))), self.patch)


class MLP(nn.Module):
    """Predict a target of the shape of x_t ``(batch, d)`` from (x_t, t), for points in the plane and other vectors.

    ``depth`` hidden layers of ``width`` units; time enters every layer as a shift.
    """

    def __init__(self, d: int = 2, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.config = {"d": d, "width": width, "depth": whole_number("depth", depth, least=1)}
        self.d, self.width = d, width
        self.inward = nn.Linear(d, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outward = _zeroed(nn.Linear(width, d))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction for ``x_t`` ``(batch, d)`` at integer steps ``t`` ``(batch,)``."""
        if x_t.shape[1:] != (self.d,):
            raise ValueError(f"x_t of shape {tuple(x_t.shape)}: expected (batch, {self.d})")
        time = time_embedding(t, self.width).to(self.inward.weight.dtype)
        h = self.inward(x_t)
        for layer, shift in zip(self.layers, self.times, strict=True):
            h = h + layer(F.silu(h + shift(time)))
        return self.outward(F.silu(h))
