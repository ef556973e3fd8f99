"""Figures: one style, image grids, and a way to show a figure that always carries its alt text."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "draw_images", "show", "use_style"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, distinct to readers with any form of colour vision."""


def use_style() -> None:
    """Set matplotlib's defaults for this book: palette, sizes, white cards that stay legible on dark pages."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLORS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.figsize": (7.2, 3.0),
            "figure.facecolor": "white",
            "font.size": 10.0,
            "image.cmap": "gray",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        }
    )


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` as a PNG with its alternative text, and close it.

    The text also is the output's plain form, which is what a reader sees where images are not stored.
    Raises ``ValueError`` for an empty ``alt``.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not alt.strip():
        raise ValueError("alt: expected a sentence that says what the figure shows")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    plt.close(figure)
    width = round(figure.get_size_inches()[0] * 96)
    data = {"image/png": png.getvalue(), "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"alt": alt, "width": width}})


def draw_images(axes: Axes, images: Tensor, columns: int, low: float = -1.0, high: float = 1.0) -> None:
    """Draw images ``(n, 1, h, w)`` in a grid of ``columns`` columns; ``low`` is black, ``high`` white."""
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for i, image in enumerate(images[:, 0].float().cpu().numpy()):
        top, left = 1 + (i // columns) * (height + 1), 1 + (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    axes.imshow(canvas, vmin=low, vmax=high, interpolation="nearest")
    axes.set_axis_off()
