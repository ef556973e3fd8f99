"""Figures: one style, image grids, and a way to show a figure that always carries its alt text."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ddpm_nb.book.night import to_night
from ddpm_nb.pictures import contact_sheet, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "animate",
    "draw_images",
    "film",
    "show",
    "show_choices",
    "use_style",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, distinct to readers with any form of colour vision."""


NIGHT = "application/vnd.ddpm-nb.night"
"""Kind of the output that carries a figure's drawing for dark pages, where ``DDPM_NB_NIGHT`` asks for one."""


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

    Where the environment variable ``DDPM_NB_NIGHT`` is set, as it is when the book is built, the output also holds the
    figure redrawn for dark pages.
    The text also is the output's plain form, which is what a reader sees where images are not stored.
    Raises ``ValueError`` for an empty ``alt``.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not alt.strip():
        raise ValueError(
            "alt: expected a sentence that says what the figure shows"
        )
    data = {"image/png": _png(figure), "text/plain": f"Figure: {alt}"}
    if os.environ.get("DDPM_NB_NIGHT"):
        to_night(figure)
        data[NIGHT] = base64.b64encode(_png(figure)).decode()
    plt.close(figure)
    width = round(figure.get_size_inches()[0] * 96)
    display(
        data, raw=True, metadata={"image/png": {"alt": alt, "width": width}}
    )


def _png(figure: Figure) -> bytes:
    """Return a figure as a PNG of 256 colours, sharp on screens with two pixels to the point."""
    from PIL import Image

    drawn, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=192)
    image = Image.open(drawn).convert("RGB")
    few = image.quantize(256, dither=Image.Dither.NONE)
    few.save(png, format="PNG", optimize=True)
    return png.getvalue()


def animate(
    frames: Sequence[Tensor],
    columns: int,
    alt: str,
    seconds: float = 0.12,
    plays: int = 3,
) -> None:
    """Display frames of images ``(n, 1 | 3, h, w)`` in [−1, 1] one after the other, and rest on the last.

    The output is an animated PNG, which browsers play without a script or a network; where it does not play its first
    frame stands. It stops by itself after ``plays`` rounds. Raises ``ValueError`` for an empty ``alt`` or no frames.
    """
    from IPython.display import display

    if not alt.strip() or not frames:
        raise ValueError(
            "alt, frames: expected a sentence that says what the animation shows, and at least one frame"
        )
    first, *others = [picture(images, columns) for images in frames]
    durations = [round(1000 * seconds)] * len(others) + [2000]
    png = io.BytesIO()
    first.save(
        png,
        format="PNG",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=plays,
        optimize=True,
    )
    data = {"image/png": png.getvalue(), "text/plain": f"Animation: {alt}"}
    about = {"alt": alt, "width": first.width}
    display(data, raw=True, metadata={"image/png": about})


def film(
    figure: Figure,
    draw: Callable[[int], object],
    frames: int,
    alt: str,
    seconds: float = 0.1,
    plays: int = 2,
) -> None:
    """Display ``figure`` as a film: ``draw(i)`` changes its artists for frame i. Then close it.

    The output is an animated PNG that stops by itself after ``plays`` rounds and rests on the last frame. As for
    ``show``, it is drawn again for dark pages where that is asked for. Raises ``ValueError`` for an empty ``alt``.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not alt.strip():
        raise ValueError(
            "alt: expected a sentence that says what the film shows"
        )
    data = {
        "image/png": _film(figure, draw, frames, seconds, plays),
        "text/plain": f"Film: {alt}",
    }
    if os.environ.get("DDPM_NB_NIGHT"):
        to_night(figure)
        night = _film(figure, draw, frames, seconds, plays)
        data[NIGHT] = base64.b64encode(night).decode()
    plt.close(figure)
    width = round(figure.get_size_inches()[0] * 96)
    display(
        data, raw=True, metadata={"image/png": {"alt": alt, "width": width}}
    )


def _film(
    figure: Figure,
    draw: Callable[[int], object],
    frames: int,
    seconds: float,
    plays: int,
) -> bytes:
    from PIL import Image

    def drawn(i: int) -> Image.Image:
        draw(i)
        raw = io.BytesIO()
        figure.savefig(raw, format="png", dpi=120)
        return Image.open(raw).convert("RGB")

    first = drawn(frames - 1).quantize(
        64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    pictures = [
        drawn(i).quantize(palette=first, dither=Image.Dither.NONE)
        for i in range(frames)
    ]
    png = io.BytesIO()
    pictures[0].save(
        png,
        format="PNG",
        save_all=True,
        append_images=pictures[1:],
        duration=[round(1000 * seconds)] * (frames - 1) + [2500],
        loop=plays,
        optimize=True,
    )
    return png.getvalue()


def show_choices(
    pictures: Mapping[str, Tensor], columns: int, name: str, alt: str
) -> None:
    """Display a row of buttons, one for each label, and the images ``(n, 1 | 3, h, w)`` of the label that is chosen.

    All pictures are in the page, and the choice is made by the browser's own radio buttons: no kernel, no script.
    ``name`` says what is chosen and ``alt`` what a picture shows. Raises ``ValueError`` for an empty ``alt``.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError(
            "alt: expected a sentence that says what the pictures show"
        )
    group = "choose-" + "".join(c for c in name.lower() if c.isalnum())
    rules, buttons, images = [], [], []
    for i, (label, batch) in enumerate(pictures.items()):
        png = io.BytesIO()
        picture(batch, columns).save(png, format="PNG", optimize=True)
        source = base64.b64encode(png.getvalue()).decode()
        text = html.escape(f"{alt} {name}: {label}.", quote=True)
        checked = " checked" if i == len(pictures) - 1 else ""
        rules.append(f"#{group}-{i}:checked ~ .{group}-{i} {{display: block}}")
        buttons.append(
            f'<input type="radio" name="{group}" id="{group}-{i}"{checked}>'
            f'<label for="{group}-{i}"> {html.escape(label)}&ensp;</label>'
        )
        images.append(
            f'<img class="{group}-{i}" alt="{text}" src="data:image/png;base64,{source}">'
        )
    style = f".{group} img {{display: none; max-width: 100%; margin-top: 0.5em}} {' '.join(rules)}"
    parts = f"<style>{style}</style>{html.escape(name)}:&ensp;{''.join(buttons)}{''.join(images)}"
    data = {
        "text/html": f'<div class="{group}">{parts}</div>',
        "text/plain": f"Pictures to choose from: {alt}",
    }
    display(data, raw=True)


def draw_images(
    axes: Axes,
    images: Tensor,
    columns: int,
    low: float = -1.0,
    high: float = 1.0,
) -> None:
    """Draw images ``(n, 1 | 3, h, w)`` in a grid of ``columns`` columns; ``low`` is black, ``high`` white."""
    canvas = contact_sheet(images, columns)
    if canvas.shape[2] == 1:
        grey = canvas[:, :, 0]
        axes.imshow(grey, vmin=low, vmax=high, interpolation="nearest")
    else:
        colours = np.nan_to_num((canvas - low) / (high - low), nan=1.0)
        axes.imshow(colours.clip(0, 1), interpolation="nearest")
    axes.set_axis_off()
