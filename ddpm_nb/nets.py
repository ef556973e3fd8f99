"""Chapter 6. The networks: a U-Net for images, an MLP for points in the plane, and the embedding of time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_nb.arguments import whole_number
from ddpm_nb.registry import Registry

__all__ = [
    "MLP",
    "NETWORKS",
    "UNet",
    "built",
    "fine_unet",
    "flops_per_image",
    "image_unet",
    "time_embedding",
]


def time_embedding(t: Tensor, width: int) -> Tensor:
    """[sin(t ω_i), cos(t ω_i)] with ω_i = 10000^(−i/(width/2)), i = 0..width/2 − 1: ``(batch, width)``, float32.

    Source: Vaswani et al. (2017), as used in Vilhes 5.2. Book: [time embedding](#eq-time-embedding).
    """
    if width < 2 or width % 2:
        raise ValueError(
            f"width = {width}: expected an even number of at least 2"
        )
    i = torch.arange(width // 2, device=t.device)
    rates = torch.exp(-math.log(10_000) * i / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _zeroed(module: nn.Module) -> nn.Module:
    """Start a layer at zero, so that its branch begins as the identity (or its output as 0)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _Block(nn.Module):
    """Residual block: norm, SiLU, convolution, twice; time enters as a scale and shift of the second norm."""

    def __init__(
        self, width: int, time_width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_1 = nn.GroupNorm(8, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * width)
        self.norm_2 = nn.GroupNorm(8, width)
        self.conv_2 = _zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = F.silu(torch.addcmul(shift, self.norm_2(h), 1 + scale))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return x + self.conv_2(h)


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
        each, pixels = channels // self.heads, height * width
        qkv = self.qkv(self.norm(x))
        qkv = qkv.reshape(batch, 3, self.heads, each, pixels)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(2, 3).reshape(x.shape))


class _Up(nn.Module):
    """A residual block on the way up: a 1 × 1 convolution first mixes in what the way down had at this place.

    Mixing before the block costs a third less than a block of twice the channels, which is what the joined tensors
    would ask for.
    """

    def __init__(
        self, width: int, time_width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.merge = nn.Conv2d(2 * width, width, 1)
        self.block = _Block(width, time_width, dropout)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        return self.block(self.merge(torch.cat([x, skip], dim=1)), time)


class UNet(nn.Module):
    """Predict a target of the shape of x_t from (x_t, t), or from (x_t, t, label) with classes.

    Images are cut into ``patch`` x ``patch`` blocks that become channels, so that no layer works at full resolution;
    then come levels of residual blocks with halved resolution, attention at the lowest, and the way back up with skip
    connections.

    Parameters
    ----------
    image_size : side of the square images, a multiple of ``patch · 2^(levels − 1)``
    channels : colours of the images
    widths : channels of each level; multiples of 8
    blocks : residual blocks of a level, on the way down and on the way up
    patch : side of the blocks that become channels
    outputs : numbers that it answers for each pixel and channel
    classes : number of labels 0, 1, .. that it knows beside -1, which stands for none; 0 for a network without labels
    dropout : share of the numbers between the convolutions of a block that training leaves out

    Raises
    ------
    ValueError
        If the sizes do not fit, an input has another size than ``image_size``, or a label is none that it knows.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
        outputs: int = 1,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        whole_number("blocks", blocks, least=1)
        self.classes = whole_number("classes", classes, least=0)
        if not 0 <= dropout < 1:
            raise ValueError(
                f"dropout = {dropout}: expected a share from 0 up to but not including 1"
            )
        if not widths or any(width % 8 or width < 8 for width in widths):
            raise ValueError(
                f"widths = {widths!r}: expected multiples of 8, one for each level"
            )
        if image_size % (patch * 2 ** (len(widths) - 1)):
            raise ValueError(
                f"image_size = {image_size}: expected a multiple of {patch * 2 ** (len(widths) - 1)}, "
                f"for patches of {patch} and {len(widths)} levels"
            )
        self.event = (channels, image_size, image_size)
        self.patch = patch
        self.time_features = 64
        time_width = 4 * widths[0]
        self.time = nn.Sequential(
            nn.Linear(self.time_features, time_width),
            nn.SiLU(),
            nn.Linear(time_width, time_width),
        )
        self.inward = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList(
                _Block(width, time_width, dropout) for _ in range(blocks)
            )
            for width in widths
        )
        self.coarser = nn.ModuleList(
            nn.Conv2d(fine, coarse, 1) for fine, coarse in pairwise(widths)
        )
        self.attention = _Attention(widths[-1])
        self.middle = _Block(widths[-1], time_width, dropout)
        self.finer = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(
                _Up(width, time_width, dropout) for _ in range(blocks)
            )
            for width in widths
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.outward = _zeroed(
            nn.Conv2d(widths[0], outputs * channels * patch**2, 3, padding=1)
        )
        # Made last, so that the other weights are those of a network without.
        self.label = (
            _zeroed(nn.Embedding(classes + 1, time_width)) if classes else None
        )

    def forward(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Return the prediction for ``x_t`` ``(batch, channels, side, side)`` at integer steps ``t`` ``(batch,)``.

        ``label`` is int64 ``(batch,)`` with −1 for none; without it all are −1.
        """
        if x_t.shape[1:] != self.event:
            expected = ", ".join(map(str, self.event))
            raise ValueError(
                f"x_t of shape {tuple(x_t.shape)}: expected (batch, {expected})"
            )
        time = time_embedding(t, self.time_features)
        time = self.time(time.to(self.inward.weight.dtype))
        if self.label is not None:
            time = time + self.label(self._row(label, t))
        elif label is not None:
            raise ValueError(
                "label: this network was built without classes; expected none"
            )
        time = F.silu(time)
        # Mixed precision leaves the first and the last layer as they are: half
        # precision has no room for a grey level.
        with torch.autocast(x_t.device.type, enabled=False):
            h = self.inward(F.pixel_unshuffle(x_t, self.patch))
        skips = []
        for depth, blocks in enumerate(self.down):
            if depth:
                h = self.coarser[depth - 1](F.avg_pool2d(h, 2))
            for block in _members(blocks):
                h = block(h, time)
                skips.append(h)
        h = self.middle(self.attention(h), time)
        for depth in reversed(range(len(self.up))):
            for block in _members(self.up[depth]):
                h = block(h, skips.pop(), time)
            if depth:
                h = F.interpolate(self.finer[depth - 1](h), scale_factor=2.0)
        with torch.autocast(x_t.device.type, enabled=False):
            y = self.outward(F.silu(self.norm(h.to(x_t.dtype))))
        return F.pixel_shuffle(y, self.patch)

    def _row(self, label: Tensor | None, t: Tensor) -> Tensor:
        """Row of the embedding for each label; that of none, -1, is the last."""
        if label is None:
            return torch.full_like(t, self.classes, dtype=torch.long)
        if label.device.type == "cpu":  # a GPU would have to be waited for
            low, high = (int(value) for value in label.aminmax())
            if not -1 <= low <= high < self.classes:
                raise ValueError(
                    f"label: numbers from {low} to {high}; expected classes 0 to {self.classes - 1}, or -1 for none"
                )
        return label % (self.classes + 1)


def _members(modules: nn.Module) -> Iterator[nn.Module]:
    return modules.children()


def image_unet(channels: int, side: int, **options: Any) -> UNet:
    """Return the untrained U-Net of the book for images of 8 to 256 pixels: the larger they are, the deeper it is.

    Below 16 pixels it works on pixels; from there on blocks of 2 × 2 become channels, from 96 on blocks of 4 × 4. Then
    levels are added until the lowest has at most 16 × 16 places. Attention, whose cost grows with the square of the
    places, is only there. ``options`` are ``outputs``, ``classes`` and ``dropout`` of :class:`UNet`.

    Raises
    ------
    ValueError
        For a side that it cannot halve as often as it must: below 16 an even number, from there on a multiple of 4,
        from 33 on of 8, from 65 on of 16; or for one below 8 or above 256.
    """
    if not 8 <= side <= 256:
        raise ValueError(f"side = {side}: expected 8 to 256 pixels")
    if side < 16:
        widths: tuple[int, ...] = (32, 64)
    else:
        depth = 2 + (side > 32) + (side > 64)
        widths = (64, 128, 192, 256)[:depth]
    patch = 1 + (side >= 16) + 2 * (side >= 96)
    return UNet(side, channels, widths=widths, patch=patch, **options)


def fine_unet(channels: int, side: int, **options: Any) -> UNet:
    """Return an untrained U-Net with a level at full resolution, for likelihood: the last bits lie between neighbours.

    ``options`` are those of :func:`image_unet`. Raises ``ValueError`` for a side that is no multiple of 4.
    """
    return UNet(side, channels, widths=(64, 96, 128), **options)


NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "network", {"unet": image_unet, "unet_fine": fine_unet}
)
"""(channels, side of an image, ..) ↦ an untrained network ``(x_t, t) -> y`` with ``outputs · channels`` channels.

By the names in recipes and checkpoints. What else is asked of it comes as keywords, each only if it is not the default:
``outputs`` (1), ``classes`` (0; then it takes ``(x_t, t, label)`` too) and ``dropout`` (0).
"""


def built(
    network: str,
    channels: int,
    side: int,
    outputs: int = 1,
    classes: int = 0,
    dropout: float = 0.0,
) -> nn.Module:
    """Return the untrained network of a name: ``outputs`` as a parameterization asks, ``classes`` for labels.

    Raises
    ------
    ValueError
        If the network has no option for what is asked; it is named.
    """
    build = NETWORKS[network]
    asked = {
        "outputs": (outputs, 1),
        "classes": (classes, 0),
        "dropout": (dropout, 0.0),
    }
    options = {k: v for k, (v, default) in asked.items() if v != default}
    known = inspect.signature(build).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in options:
        if name not in known and not takes_any:
            raise ValueError(
                f"network = {network!r}: it takes no {name}; expected one that does, such as 'unet'"
            )
    return build(channels, side, **options)


def flops_per_image(network: nn.Module, event: tuple[int, ...]) -> int:
    """Return the floating-point operations of one prediction for one x_t of shape ``event``, as torch counts them.

    Products and sums of convolutions and matrix products, two for each multiply-add; a training step costs about
    three times as many.
    """
    parameter = next(network.parameters())
    x_t = parameter.new_zeros(1, *event)
    t = torch.ones(1, dtype=torch.long, device=parameter.device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(x_t, t)
    return counter.get_total_flops()


class MLP(nn.Module):
    """Predict a target of the shape of x_t ``(batch, d)`` from (x_t, t), for points in the plane and other vectors.

    ``depth`` hidden layers of ``width`` units; time enters every layer as a shift.
    """

    def __init__(self, d: int = 2, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        whole_number("depth", depth, least=1)
        self.d, self.width = d, width
        self.inward = nn.Linear(d, width)
        self.layers = nn.ModuleList(
            nn.Linear(width, width) for _ in range(depth)
        )
        self.times = nn.ModuleList(
            nn.Linear(width, width) for _ in range(depth)
        )
        self.outward = _zeroed(nn.Linear(width, d))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction for ``x_t`` ``(batch, d)`` at integer steps ``t`` ``(batch,)``."""
        if x_t.shape[1:] != (self.d,):
            raise ValueError(
                f"x_t of shape {tuple(x_t.shape)}: expected (batch, {self.d})"
            )
        time = time_embedding(t, self.width).to(self.inward.weight.dtype)
        h = self.inward(x_t)
        for layer, shift in zip(self.layers, self.times, strict=True):
            h = h + layer(F.silu(h + shift(time)))
        return self.outward(F.silu(h))
