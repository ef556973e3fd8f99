"""The log of a run: one row for each step in a .csv or .jsonl file, none twice and none missing after a resume."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.aside import aside
from ddpm_nb.commands.words import CommandError

__all__ = ["Journal"]

_COLUMNS = ("step", "loss", "learning_rate", "images_per_second")


class Journal:
    """The file of a run's steps.

    What the checkpoint does not know of is taken out when a run goes on, and what the file lacks is filled in from the
    checkpoint's losses, without a speed.

    Parameters
    ----------
    path : of a new file, or of the log of the same run; .csv or .jsonl
    losses : of the steps that are done
    rate : step number (from 0) -> learning rate
    batch_size : images of a step

    Raises
    ------
    ValueError
        If the file has another ending.
    CommandError
        If it is something else than a log, or the log of another run.
    """

    def __init__(
        self,
        path: Path,
        losses: Iterable[Tensor],
        rate: Callable[[int], float],
        batch_size: int,
    ) -> None:
        self.path, self._rate, self._batch_size = path, rate, batch_size
        check_name(path)
        known = {row["step"]: row for row in _read(path)}
        rows = []
        for number, loss in enumerate(losses, start=1):
            row = self._row(number, loss.item(), None)
            there = known.get(number, row)
            if there["loss"] != row["loss"]:
                raise CommandError(
                    f"log = {str(path)!r}: of another run: the loss of step {number} is {there['loss']:g} there, "
                    f"{row['loss']:g} in the checkpoint"
                )
            rows.append(there)
        with aside(path) as beside:
            header = f"{','.join(_COLUMNS)}\n" if _is_csv(path) else ""
            beside.write_text(header + _text(path, rows), "utf-8")
        self._waiting: list[tuple[int, Tensor]] = []
        self._began = time.perf_counter()

    def add(self, number: int, loss: Tensor) -> None:
        """Take note of a step; it is written by :meth:`write`."""
        self._waiting.append((number, loss))

    def write(self) -> list[dict[str, Any]]:
        """Append the rows of the steps since the last call, and return them."""
        if not self._waiting:
            return []
        # One wait for a GPU; then the steps are done and the clock is true.
        losses = torch.stack([loss for _, loss in self._waiting]).tolist()
        now = time.perf_counter()
        pace = len(losses) * self._batch_size / (now - self._began)
        numbers = [number for number, _ in self._waiting]
        rows = [
            self._row(number, loss, pace)
            for number, loss in zip(numbers, losses, strict=True)
        ]
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_text(self.path, rows))
            file.flush()
            os.fsync(file.fileno())
        self._waiting.clear()
        self._began = now
        return rows

    def _row(
        self, number: int, loss: float, pace: float | None
    ) -> dict[str, Any]:
        rounded = None if pace is None else float(f"{pace:.4g}")
        values = (
            number,
            float(f"{loss:.7g}"),
            float(f"{self._rate(number - 1):.6g}"),
            rounded,
        )
        return dict(zip(_COLUMNS, values, strict=True))


def check_name(path: Path) -> None:
    """Raise ``ValueError`` for a file of another kind."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(
            f"log = {str(path)!r}: expected a file that ends in .csv or .jsonl"
        )


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _text(path: Path, rows: list[dict[str, Any]]) -> str:
    if not _is_csv(path):
        return "".join(json.dumps(row) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue()


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, none if there is no file; the last line may be cut."""
    if not path.exists():
        return []
    rows = []
    try:
        # What follows the last end of a line was cut by a kill.
        lines = path.read_text("utf-8").rpartition("\n")[0].splitlines()
        if _is_csv(path):
            if lines and lines[0] != ",".join(_COLUMNS):
                raise ValueError
            lines = lines[1:]
        for line in lines:
            if _is_csv(path):
                cells = dict(zip(_COLUMNS, line.split(","), strict=True))
                values = {k: float(v) if v else None for k, v in cells.items()}
            else:
                values = json.loads(line)
            if set(values) != set(_COLUMNS):
                raise ValueError
            rows.append({**values, "step": int(values["step"] or 0)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CommandError(
            f"log = {str(path)!r}: this file is no log of a run; expected one, or a new name"
        ) from error
    return rows
