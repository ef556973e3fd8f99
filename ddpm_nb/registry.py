"""Named entries of one kind, such as schedules or samplers, open to a user's own.

    from ddpm_nb.schedule import SCHEDULES, NoiseSchedule

    SCHEDULES.register("constant", lambda T: NoiseSchedule.from_betas([12 / T] * T))

From then on the name is known wherever names are: in a recipe, in the notebooks' parameters, on the command line and
in checkpoints. A file with such calls is an extension; :func:`load_extension` runs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from ddpm_nb.arguments import choose

__all__ = ["Registry", "load_extension"]

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """A mapping from names to entries that grows by :meth:`register` alone.

    ``registry[name]`` raises ``ValueError`` for an unknown name; the error lists the known ones and the nearest.

    Parameters
    ----------
    kind : what an entry is, in the words of an error: 'schedule'
    entries : those that the package brings
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry and return it; ``ValueError`` for a name that is taken, so that none changes its meaning."""
        if name in self._entries and self._entries[name] is not entry:
            raise ValueError(
                f"{self.kind} = {name!r}: that name is taken; registered are {', '.join(self._entries)}"
            )
        self._entries[name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        choose(self.kind, name, self._entries)
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return choose(self.kind, name, self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def load_extension(source: str) -> None:
    """Run the user's own module that registers entries: a path to a ``.py`` file, or a module's name. '' is none.

    A file is run once in a process, however often it is named. ``ValueError`` if there is no such file or module.
    """
    if not source:
        return
    if not source.endswith(".py"):
        try:
            importlib.import_module(source)
        except ModuleNotFoundError as error:
            missing = source if error.name is None else error.name
            if not f"{source}.".startswith(f"{missing}."):
                raise  # the module is there, and what it imports is not
            raise ValueError(
                f"extension = {source!r}: expected a path to a .py file, or a module's name"
            ) from error
        return
    path = Path(source).resolve()
    name = f"ddpm_nb_extension_{path.stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return
    if not path.is_file():
        raise ValueError(f"extension = {source!r}: there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as of every .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
