import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_nb.book import plots


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
