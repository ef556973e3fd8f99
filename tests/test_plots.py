import base64
import colorsys
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb, to_rgba_array
from PIL import Image

from ddpm_nb.book import plots
from ddpm_nb.book.night import GROUND, by_night


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: (data, metadata) of each call."""
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata=None: calls.append((data, metadata)))
    return calls


def grey(x: float) -> torch.Tensor:
    return torch.full((4, 1, 3, 3), x)


def test_an_animation_holds_every_frame_and_stops(shown):
    plots.animate([grey(-1.0), grey(0.0), grey(1.0)], columns=2, alt="from black to white", seconds=0.1, plays=2)
    ((data, metadata),) = shown
    assert data["text/plain"] == "Animation: from black to white"
    assert metadata["image/png"]["alt"] == "from black to white"
    image = Image.open(io.BytesIO(data["image/png"]))
    assert (image.n_frames, image.info["loop"]) == (3, 2)
    centres = []
    for i in range(3):
        image.seek(i)
        pixels = np.asarray(image.convert("L"))
        centres.append(int(pixels[pixels.shape[0] // 4, pixels.shape[1] // 4]))
        assert pixels[0, 0] == 255  # the line between images
    assert centres == [0, 128, 255]
    assert image.info["duration"] == 2000  # rests on the last


def test_a_choice_is_made_of_buttons_and_pictures_with_text(shown):
    plots.show_choices({"5": grey(-1.0), "<10>": grey(1.0)}, columns=2, name="steps", alt="Four squares.")
    page = shown[0][0]["text/html"]
    assert shown[0][0]["text/plain"] == "Pictures to choose from: Four squares."
    assert len(re.findall(r'<input type="radio" name="choose-steps"', page)) == 2
    assert page.count(" checked>") == 1
    for i, text in enumerate(("Four squares. steps: 5.", "Four squares. steps: &lt;10&gt;.")):
        assert f'id="choose-steps-{i}"' in page
        assert f'<label for="choose-steps-{i}">' in page
        assert f"#choose-steps-{i}:checked ~ .choose-steps-{i} {{display: block}}" in page
        assert f'class="choose-steps-{i}" alt="{text}"' in page
    assert not re.search(r"<script|https?://", page)
    dark, light = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in re.findall(r"base64,([^\"]+)", page)
    )
    assert dark.min() == 0
    assert light.min() == 255


@pytest.mark.parametrize(
    "fails",
    [
        lambda: plots.animate([grey(0.0)], 2, " "),
        lambda: plots.animate([], 2, "nothing"),
        lambda: plots.show_choices({"a": grey(0.0)}, 2, "steps", ""),
    ],
)
def test_no_picture_without_words(fails):
    with pytest.raises(ValueError, match=r"alt.*: expected"):
        fails()


def test_a_film_holds_every_frame_and_rests_on_the_last(shown):
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.set_axis_off()
    ground = axes.add_patch(plt.Rectangle((0, 0), 1, 1, color="black"))
    plots.film(figure, lambda i: ground.set_facecolor(["black", "white"][i]), 2, alt="from black to white", plays=3)
    ((data, metadata),) = shown
    assert data["text/plain"] == "Film: from black to white"
    assert metadata["image/png"] == {"alt": "from black to white", "width": 96}
    film = Image.open(io.BytesIO(data["image/png"]))
    assert (film.n_frames, film.info["loop"]) == (2, 3)
    centres = []
    for i in range(2):
        film.seek(i)
        centres.append(film.convert("L").getpixel((film.width // 2, film.height // 2)))
    assert centres[0] < 20 < 235 < centres[1]
    with pytest.raises(ValueError, match="alt: expected a sentence"):
        plots.film(figure, lambda i: None, 1, alt=" ")


def test_a_figure_carries_its_drawing_for_dark_pages_where_one_is_asked_for(shown, monkeypatch):
    def drawn():
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([0, 1], [0, 1], color=plots.COLORS[0])
        axes.set(title="a line", xlabel="x")
        plots.show(figure, alt="A line that rises.")
        return shown[-1][0]

    assert plots.NIGHT not in drawn()
    monkeypatch.setenv("DDPM_NB_NIGHT", "1")
    data = drawn()
    day = np.asarray(Image.open(io.BytesIO(data["image/png"])).convert("L"), dtype=float)
    night = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[plots.NIGHT]))).convert("L"), dtype=float)
    assert day[0, 0] > 250 and night[0, 0] < 40  # the ground
    assert day.min() < 60 and night.max() > 180  # the ink
    assert day.shape == night.shape


def test_colours_by_night_keep_their_hue_and_stand_out():
    """Contrast of at least 3 : 1 with the ground (WCAG 2.1, 1.4.11), greys in reverse order."""

    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    day = to_rgba_array([*plots.COLORS, "black"])
    night = by_night(day)
    ground = luminance(np.array(to_rgb(GROUND)))
    assert ((luminance(night[:, :3]) + 0.05) / (ground + 0.05)).min() > 3
    for before, after in zip(day[: len(plots.COLORS), :3], night[: len(plots.COLORS), :3], strict=True):
        assert colorsys.rgb_to_hls(*before)[0] == pytest.approx(colorsys.rgb_to_hls(*after)[0], abs=1e-6)
    greys = by_night(to_rgba_array(["black", "0.5", "white"]))
    assert greys[0, 0] > greys[1, 0] > greys[2, 0]
    np.testing.assert_allclose(greys[2, :3], to_rgb(GROUND), atol=1e-12)
