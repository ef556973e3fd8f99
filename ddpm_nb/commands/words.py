"""What the commands share: a parser whose errors are one line, and options with a meaning."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ddpm_nb.arguments import nearest
from ddpm_nb.recipe import Recipe, stored_settings

__all__ = [
    "PROGRAM",
    "CommandError",
    "Parser",
    "Stopped",
    "check_free",
    "command_line",
    "file_size",
    "recipe_in",
    "settings",
]

PROGRAM = "ddpm-nb"


class CommandError(ValueError):
    """The words were right, and the work failed."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """Ctrl-C ended the work in good order; the message says how to go on."""


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest right word, in one line, and shows every option's default.

    Parameters
    ----------
    prog : the words before the options
    description : for the help
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=functools.partial(  # as wide on every terminal
                argparse.RawDescriptionHelpFormatter,
                width=80,
                max_help_position=22,
            ),
        )
        self.commands: dict[str, Parser] = {}
        self._chosen: Any = None

    def command(
        self, name: str, short: str, about: str, example: str
    ) -> Parser:
        """Add a command and return its parser, with the option of all of them.

        Parameters
        ----------
        name : of the command
        short : one line for the list of commands
        about : what it does, for its help
        example : of its words, without the program
        """
        if self._chosen is None:
            self._chosen = self.add_subparsers(
                dest="command", metavar="COMMAND", parser_class=Parser
            )
        description = f"{about}\n\n  {PROGRAM} {example}"
        parser = self._chosen.add_parser(
            name,
            help=short,
            prog=f"{self.prog} {name}",
            description=description,
        )
        parser.option(
            "--extension",
            "",
            "a .py file, or a module, that registers schedules, networks and the like of your own",
            shown="none",
            metavar="FILE",
        )
        self.commands[name] = parser
        return parser

    def option(
        self,
        name: str,
        default: Any,
        meaning: str,
        choices: Iterable[str] | None = None,
        shown: str | None = None,
        **more: Any,
    ) -> None:
        """Add an option. Its help is the meaning, the choices and the default, or ``shown`` in the place of that.

        A default of True or False makes it two: --name and --no-name.
        """
        if isinstance(default, bool):
            more["action"] = argparse.BooleanOptionalAction
            shown = shown or ("yes" if default else "no")
        elif default is not None:
            more.setdefault("type", type(default))
        if choices is not None:
            meaning += f": {', '.join(choices)}"
            more.setdefault("metavar", "NAME")
        elif "action" not in more and "type" in more:
            letters = {int: "N", float: "X", str: "WORD", Path: "FILE"}
            more.setdefault("metavar", letters.get(more["type"], "WORD"))
        shown = str(default) if shown is None else shown
        text = f"{meaning} (default: {shown})".replace("%", "%%")
        self.add_argument(name, default=default, help=text, **more)

    def root(self) -> None:
        """Add the option that says where data files are."""
        self.option(
            "--root",
            None,
            "folder with the files of mnist or fashion_mnist",
            shown="$DDPM_NB_DATA, or a download",
            metavar="FOLDER",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse, after a look for words that nobody knows: the error for one names the nearest."""
        words = list(args or ())
        if self.commands:
            self._check_command(words)
        else:
            self._check_options(words)
        return super().parse_known_args(words, namespace)

    def _check_command(self, words: Sequence[str]) -> None:
        if not words:
            self.error(f"expected a command: {', '.join(self.commands)}")
        if not words[0].startswith("-") and words[0] not in self.commands:
            known = ", ".join(self.commands)
            self.error(
                f"no command {words[0]!r}{nearest(words[0], self.commands)}; expected one of {known}"
            )

    def _check_options(self, words: Sequence[str]) -> None:
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"no option {name}{nearest(name, known)}")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {line}; {self.prog} --help says more\n")


def command_line(recipe: Recipe, checkpoint: str | os.PathLike[str]) -> str:
    """Return the words that train by a recipe, or go on: only what is not the default is said."""
    words = [PROGRAM, "train"]
    for setting in fields(Recipe):
        value = getattr(recipe, setting.name)
        if value == setting.default:
            continue
        name = setting.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join([*words, "--checkpoint", os.fspath(checkpoint)])


def check_free(path: Path) -> None:
    """Raise ``CommandError`` for a folder that holds something."""
    if path.is_dir() and next(path.iterdir(), None) is not None:
        raise CommandError(
            f"out = {str(path)!r}: expected a new or an empty folder, this one holds something"
        )


def file_size(size: float) -> str:
    """Return a number of bytes in words: '1.4 MB'."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def settings(parser: Parser) -> None:
    """Add an option for every field of the recipe, with its meaning, choices and default."""
    for setting in fields(Recipe):
        choices = setting.metadata["choices"]
        parser.option(
            "--" + setting.name.replace("_", "-"),
            setting.default,
            setting.metadata["meaning"],
            choices,
        )


def recipe_in(saved: Mapping[str, Any], path: str | os.PathLike[str]) -> Recipe:
    """Return the recipe of a checkpoint that was read from ``path``; what is younger than that has its default.

    Raises ``CheckpointError`` if it holds none.
    """
    stored = stored_settings(saved, path)
    names = [setting.name for setting in fields(Recipe)]
    return Recipe(**{k: v for k, v in stored.items() if k in names})
