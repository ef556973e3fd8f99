"""``ddpm-nb info``: what is in a checkpoint, what a network of some size costs, and what there is by name."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from torch import nn

from ddpm_nb import pretrained
from ddpm_nb.arguments import whole_number
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint
from ddpm_nb.commands.words import (
    Parser,
    command_line,
    file_size,
    recipe_in,
)
from ddpm_nb.data import DATASETS
from ddpm_nb.hardware import step_memory
from ddpm_nb.nets import NETWORKS, flops_per_image
from ddpm_nb.pretrained import SHIPPED, load_model
from ddpm_nb.recipe import Recipe

__all__ = ["add"]

_WEIGHTS = Path(pretrained.__file__).parent / "weights"


def add(parser: Parser) -> None:
    """Declare the command."""
    info = parser.command(
        "info",
        "say what is in a checkpoint, or what a size of image costs",
        "Say what is in a checkpoint, or what the network for a size of image would\n"
        "cost; without either, which models and data sets there are.",
        "info 64 --channels 3",
    )
    info.add_argument(
        "what",
        nargs="?",
        metavar="MODEL|SIDE",
        help="a checkpoint, the name of a shipped model, or the pixels along a side (default: list what there is)",
    )
    info.option("--channels", 1, "colours of a pixel, for a SIDE")
    info.option("--network", "unet", "the network, for a SIDE", NETWORKS)
    info.option(
        "--batch-size",
        64,
        "images of a training step, for a SIDE",
    )
    info.set_defaults(do=_info)


def _info(given: argparse.Namespace) -> None:
    if given.what is None:
        _list()
    elif given.what.isdecimal():
        _cost(given)
    else:
        _describe(given.what)


def _list() -> None:
    print("models that come with the package:")
    for name in SHIPPED:
        model = load_model(name)
        print(
            f"  {name:26s}{_shape(model.event)}, {_parameters(model.network):,} parameters"
        )
    print("data sets by name; pack makes a file of your own images:")
    for name, card in DATASETS.items():
        print(
            f"  {name:26s}{_shape(card.event)}, {len(card.classes)} classes: {', '.join(card.classes)}"
        )


def _shape(event: tuple[int, ...]) -> str:
    channels, side, _ = event
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    return f"{side} x {side} pixels, {colours}"


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _table(rows: dict[str, Any]) -> None:
    for name, value in rows.items():
        print(f"{name:18s}{value}")


def _describe(name: str) -> None:
    path = _WEIGHTS / f"{name}.safetensors" if name in SHIPPED else Path(name)
    model = load_model(name)
    saved = load_checkpoint(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about, schedule = saved["model"], model.q.schedule
    end = schedule.level(schedule.T)
    recipe, made, planned = None, _card(name).get("command", "not stored"), ""
    try:
        recipe = recipe_in(saved, path)
    except CheckpointError:
        pass  # a model that was stored without its run
    except ValueError as error:  # of other data, or of names of another's
        made = f"not for this machine: {error}"
    if recipe is not None:
        made = command_line(recipe, path)
        planned = f" of {recipe.steps}"
    operations = flops_per_image(model.network, model.event)
    rows = {
        "file": f"{path}, {file_size(path.stat().st_size)}",
        "SHA-256": digest,
        "images": f"{_shape(model.event)}, of {model.dataset}",
        "classes": ", ".join(model.classes) or "none",
        "steps done": f"{model.step:,}{planned}",
        "network": f"{about['network']}, {_parameters(model.network):,} parameters",
        "operations": f"{operations / 1e6:,.0f} million an image and step",
        "schedule": f"{_named(recipe)}T = {schedule.T} steps, √ᾱ_T = {end.signal:.3g}",
        "parameterization": about["parameterization"],
        "images' SHA-256": saved.get("data"),
        "recipe": made,
    }
    _table({key: value for key, value in rows.items() if value})


def _card(name: str) -> dict[str, Any]:
    """Return the card of a shipped model, nothing for others."""
    if name not in SHIPPED:
        return {}
    return json.loads((_WEIGHTS / f"{name}.json").read_text("utf-8"))


def _named(recipe: Recipe | None) -> str:
    return "" if recipe is None else f"{recipe.schedule}, "


def _cost(given: argparse.Namespace) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch = whole_number("batch-size", given.batch_size, least=1)
    channels = whole_number("channels", given.channels, least=1)
    event = (channels, int(given.what), int(given.what))
    with FakeTensorMode():  # shapes alone: nothing is allocated
        network = NETWORKS[given.network](*event[:2])
        operations = flops_per_image(network, event)
        memory = step_memory(network, event, batch)
    _table(
        {
            "images": _shape(event),
            "network": f"{given.network}, {_parameters(network):,} parameters",
            "operations": f"{operations / 1e6:,.0f} million an image and step; a training step costs "
            f"{3 * operations * batch / 1e9:,.0f} billion",
            "memory": f"about {math.ceil(memory / 2**20):,} MiB for a training step of {batch} images in float32",
        }
    )
