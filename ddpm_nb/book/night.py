"""A figure drawn for a dark page: the same data and hues, light ink on a dark ground."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GROUND", "by_night", "to_night"]

GROUND = "#121212"
"""The ground of a figure on a dark page: that of the theme."""

SETTERS = (
    "color",
    "facecolor",
    "edgecolor",
    "markerfacecolor",
    "markeredgecolor",
)


def by_night(color: np.ndarray) -> np.ndarray:
    """Return colours ``(n, 4)``, RGBA in [0, 1], for a dark ground.

    Greys change places, white with the ground and black with near-white; a hue keeps its name and is lightened where
    it would sink into the ground.
    """
    from matplotlib.colors import to_rgb

    result = color.copy()
    ground = np.array(to_rgb(GROUND))
    for i, (red, green, blue, _) in enumerate(color):
        hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
        if max(red, green, blue) - min(red, green, blue) < 0.08:
            result[i, :3] = ground + (0.92 - ground) * (1 - light)
        else:
            light = 0.42 + 0.58 * light if light < 0.5 else light
            result[i, :3] = colorsys.hls_to_rgb(
                hue, min(light, 0.8), saturation
            )
    return result


def to_night(figure: Figure) -> None:
    """Recolour every artist of ``figure`` for a dark page, in place. Images and colours that stand for numbers stay."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import to_rgba_array

    for artist in {id(found): found for found in figure.findobj()}.values():
        if (
            isinstance(artist, ScalarMappable)
            and artist.get_array() is not None
        ):
            continue
        for name in SETTERS:
            get = getattr(artist, f"get_{name}", None)
            put = getattr(artist, f"set_{name}", None)
            if get is None or put is None or not _is_ink(artist, name):
                continue
            color = get()
            if _is_nothing(color):
                continue
            day = to_rgba_array(color)
            if day[:, 3].any():
                many = isinstance(color, np.ndarray) and color.ndim == 2
                put(by_night(day) if many else tuple(by_night(day)[0]))


def _is_nothing(color: Any) -> bool:
    if isinstance(color, str):
        return color.lower() in ("none", "auto")
    return color is None or len(color) == 0


def _is_ink(artist: Any, name: str) -> bool:
    """Say whether an attribute is looked up once: patches and collections have ``color`` as a short form of two."""
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.figure import FigureBase
    from matplotlib.image import AxesImage
    from matplotlib.patches import Patch

    if isinstance(artist, AxesImage | Axes | FigureBase):
        return False  # the ground of figure and axes is a patch of its own
    if isinstance(artist, Patch | Collection):
        return name in ("facecolor", "edgecolor")
    return True
