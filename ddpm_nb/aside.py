"""Files and folders that are whole or not there: written under another name beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["aside"]


@contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a path beside ``path``; the file or the folder that is there at the end takes its name.

    Its bytes reach the disk first. After an error, Ctrl-C too, ``path`` is what it was. A folder is replaced only if it
    is empty: ``OSError`` otherwise.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        written = beside.rglob("*") if beside.is_dir() else [beside]
        for file in written:
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if path.is_dir():
            path.rmdir()
        beside.replace(path)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
        raise
