"""Checkpoints that lose nothing: one safetensors file, written aside and renamed, its hash verified when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_nb.aside import aside

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

_FORMAT = "ddpm_nb checkpoint 1"


class CheckpointError(ValueError):
    """A file is missing, truncated, altered, or not a checkpoint of this package."""


def save_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Any]
) -> Path:
    """Write a nested state of dicts, lists, tuples, tensors, numbers, strings and None to ``path``.

    The bytes go to a temporary file in the same folder, reach the disk, and are renamed over ``path``: whatever
    happens, ``path`` holds the old checkpoint or the new one. Returns the path.

    Raises
    ------
    TypeError
        If the state holds something else; the message names where.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    document = json.dumps(_encode(state, "", tensors))
    metadata = {
        "format": _FORMAT,
        "document": document,
        "sha256": _digest(document, tensors),
    }
    with aside(path) as beside:
        save_file(tensors, beside, metadata=metadata)
    return path


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, tensors on the CPU, after verifying every byte of it.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is truncated, altered, or something else.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.safetensors"))
        hint = f"; the folder holds {', '.join(there)}" if there else ""
        raise CheckpointError(f"{path}: no such checkpoint{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file ({error})"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint written by save_checkpoint"
        )
    document = metadata.get("document", "")
    if metadata.get("sha256") != _digest(document, tensors):
        raise CheckpointError(
            f"{path}: the content does not match its SHA-256; the file was altered or damaged"
        )
    return _decode(json.loads(document), tensors)


def _digest(document: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(document.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Turn ``value`` into JSON, moving tensors to ``tensors`` under the name of the place they stood at."""
    if torch.is_tensor(value):
        name = where
        # Keys "a/b" and "a" of "b", or 1 and "1", stand at places that read
        # alike.
        while name in tensors:
            name += "/"
        tensors[name] = value.detach().to("cpu").clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [
            [_key(k, where), _encode(v, f"{where}/{k}", tensors)]
            for k, v in value.items()
        ]
        return {"items": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        members = [
            _encode(v, f"{where}/{i}", tensors) for i, v in enumerate(value)
        ]
        return {kind: members}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"state{where.replace('/', '.')}: cannot save a {type(value).__name__}; expected a tensor or JSON"
    )


def _key(key: Any, where: str) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TypeError(
        f"state{where.replace('/', '.')}: key {key!r}: expected a string or a whole number"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {k: _decode(v, tensors) for k, v in content}
    decoded = [_decode(v, tensors) for v in content]
    return decoded if kind == "list" else tuple(decoded)
