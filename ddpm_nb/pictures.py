"""Many images on one sheet, grey or in colour: for figures, and as files that the command line writes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["contact_sheet", "picture"]


def contact_sheet(images: Tensor, columns: int) -> np.ndarray:
    """Return images ``(n, 1 | 3, h, w)`` in a grid of ``columns`` columns, ``(rows, columns, 1 | 3)``, parted by NaN.

    Raises ``ValueError`` for images of another number of channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images of shape {tuple(images.shape)}: expected (n, 1 or 3, height, width)"
        )
    n, channels, height, width = images.shape
    rows = math.ceil(n / columns)
    canvas = np.full(
        (rows * (height + 1) + 1, columns * (width + 1) + 1, channels), np.nan
    )
    for i, image in enumerate(images.float().cpu().permute(0, 2, 3, 1).numpy()):
        top = 1 + (i // columns) * (height + 1)
        left = 1 + (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def picture(images: Tensor, columns: int, width: int = 640) -> Image:
    """Return images in [−1, 1] as one picture of about ``width`` pixels, the lines between them white."""
    from PIL import Image

    canvas = contact_sheet(images.clamp(-1, 1), columns)
    grey = np.nan_to_num((canvas + 1) / 2) * 255
    levels = np.where(np.isnan(canvas), 255, grey).round().astype(np.uint8)
    scale = max(width // levels.shape[1], 1)
    enlarged = levels.repeat(scale, 0).repeat(scale, 1)
    if enlarged.shape[2] == 1:
        enlarged = enlarged[:, :, 0]
    return Image.fromarray(enlarged)
