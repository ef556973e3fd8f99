"""``ddpm-nb export``: a model becomes a folder that the library diffusers loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddpm_nb.commands.words import Parser
from ddpm_nb.pretrained import load_model

__all__ = ["add"]


def add(parser: Parser) -> None:
    """Declare the command."""
    export = parser.command(
        "export",
        "write a model as a folder that the library diffusers loads",
        "Write a model as a folder that the library diffusers loads, without this\n"
        "package beside it.",
        "export checkpoints/photos.safetensors photos-diffusers",
    )
    export.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint, or the name of a shipped model, such as digits",
    )
    export.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a new or an empty folder to write",
    )
    export.set_defaults(do=_export)


def _export(given: argparse.Namespace) -> None:
    from ddpm_nb.export import export_diffusers

    model = load_model(given.model)
    folder = export_diffusers(model, given.folder)
    label = ", class_labels=0" if model.classes else ""
    print(
        f"{folder}: {given.model} for diffusers. To draw from it, in Python:\n\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"images = pipe(batch_size=4, num_inference_steps=20{label}).images"
    )
