"""The command line: pack a folder of images, train a network on them, draw from it, and judge what it draws.

    ddpm-nb pack photos --side 32
    ddpm-nb train --dataset photos.safetensors --steps 20000 --checkpoint photos-model.safetensors
    ddpm-nb sample photos-model.safetensors --out samples.png

One module for each command, or for a few. Each has ``add``, which declares its words, and a function that does what
they say.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ddpm_nb import __version__
from ddpm_nb.checkpoint import CheckpointError
from ddpm_nb.commands import (
    evaluate,
    export,
    extend,
    info,
    pack,
    sample,
    train,
)
from ddpm_nb.commands.words import PROGRAM, CommandError, Parser, Stopped
from ddpm_nb.data import DataError
from ddpm_nb.registry import load_extension

__all__ = ["main", "options", "script"]

_ABOUT = f"""\
Train a diffusion model on images of your own, draw from it and judge it.

  {PROGRAM} pack photos --side 32
  {PROGRAM} train --dataset photos.safetensors --steps 20000
  {PROGRAM} sample checkpoints/photos.safetensors --out samples.png

Killed and started again with the same words, a run goes on from its
checkpoint. Options without a command are those of train. {PROGRAM} COMMAND
--help says more; so does python -m ddpm_nb, which is the same program."""


def options() -> Parser:
    """Return a parser of all commands, by name in its ``commands``; ``do`` of what it parses does the work."""
    parser = Parser(prog=PROGRAM, description=_ABOUT)
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {__version__}"
    )
    for command in (pack, train, extend, sample, evaluate, info, export):
        command.add(parser)
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Do what the words of a command line say, those of this process if none are given.

    Raises
    ------
    SystemExit
        If they cannot be parsed, after one line that says why.
    ValueError, OSError, FloatingPointError
        If what they name is wrong, or the work fails.
    Stopped
        If Ctrl-C ended a training, whose checkpoint is written.
    """
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0].startswith("-") and words[0] not in _OWN:
        words = ["train", *words]  # options alone are those of train
    # First, so that the help knows the names that it registers.
    load_extension(_extension(words))
    given = options().parse_args(words)
    given.words = words
    given.do(given)


_OWN = ("-h", "--help", "--version")


def _extension(words: Sequence[str]) -> str:
    """Return the value of --extension; its other checks are the parser's."""
    parser = argparse.ArgumentParser(
        add_help=False, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--extension", default="")
    try:
        return parser.parse_known_args(words)[0].extension
    except argparse.ArgumentError:
        return ""


def script(words: Sequence[str] | None = None) -> int:
    """Do what the words say and return the exit status; what goes wrong is one line on stderr.

    0 : done. 2 : a wrong word, name or number. 1 : a file that is missing or damaged, or work that failed.
    130 : stopped by Ctrl-C.
    """
    words = list(sys.argv[1:] if words is None else words)
    command = words[0] if words else ""
    command = "train" if command.startswith("-") else command

    def say(message: object) -> None:
        line = " ".join(str(message).split())
        print(f"{PROGRAM} {command}: {line}", file=sys.stderr)

    def warn(message: Any, *about: Any, **more: Any) -> None:
        say(f"warning: {message}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Stopped as stop:
        say(stop)
        return 130
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:  # whoever read the output has gone
        sys.stderr.close()
        return 1
    except torch.OutOfMemoryError as error:
        say(f"out of memory; ask for less at a time ({error})")
        return 1
    except (
        CheckpointError,
        DataError,
        CommandError,
        FloatingPointError,
        OSError,
    ) as error:
        say(error)
        return 1
    except ValueError as error:
        say(error)
        return 2
    return 0
