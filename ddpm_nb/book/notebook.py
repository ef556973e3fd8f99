"""What every notebook of the book needs: strict parameters, and source shown beside its derivation."""

from __future__ import annotations

import ast
import inspect
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddpm_nb.arguments import nearest
from ddpm_nb.registry import Registry, load_extension

if TYPE_CHECKING:
    import torch

__all__ = [
    "Condition",
    "at_least",
    "between",
    "check_parameters",
    "describe_device",
    "named_in",
    "one_of",
    "provenance",
    "show_source",
]


@dataclass(frozen=True)
class Condition:
    """A condition on a parameter, and how an error describes it: in words, or by the names that are accepted."""

    holds: Callable[[Any], bool]
    words: str = ""
    names: Collection[str] = ()

    @property
    def expected(self) -> str:
        """What an error says was expected."""
        if self.names:
            return f"one of {', '.join(map(repr, self.names))}"
        return self.words


def at_least(least: float) -> Condition:
    """Accept numbers of at least ``least``."""
    return Condition(
        lambda value: value >= least, f"a number of at least {least}"
    )


def between(low: float, high: float) -> Condition:
    """Accept numbers from ``low`` to ``high``, both included."""
    return Condition(
        lambda value: low <= value <= high, f"a number from {low} to {high}"
    )


def one_of(*options: str) -> Condition:
    """Accept the given strings."""
    return Condition(lambda value: value in options, names=options)


def named_in(registry: Registry[Any]) -> Condition:
    """Accept the names of a registry, those that the notebook's extension adds included."""
    return Condition(lambda value: value in registry, names=registry)


def check_parameters(
    namespace: Mapping[str, Any], **conditions: Condition
) -> None:
    """Stop a notebook before any work if one of its parameters is unknown, of a wrong type, or out of range.

    Call it right after the ``parameters`` cell as ``check_parameters(globals(), steps=at_least(1))``. Types are
    those of that cell's annotations (``steps: int = 300``); an int is taken for a float. papermill itself accepts
    any name and any value. A parameter ``extension`` names a file that registers entries of the reader's own; it is run
    before the conditions are looked at.

    Raises
    ------
    ValueError
        For a name that the notebook does not declare (the nearest one is named), or a value out of range.
    TypeError
        For a value of another type than the annotation.
    """
    declared: dict[str, Any] = dict(namespace.get("__annotations__", {}))
    for name in _injected(namespace.get("In", [])):
        if name not in declared:
            raise ValueError(
                f"unknown parameter {name!r}{nearest(name, declared)}; known: {', '.join(declared)}"
            )
    for name, annotation in declared.items():
        kind = {"int": int, "float": float, "str": str, "bool": bool}.get(
            str(annotation), annotation
        )
        value = namespace[name]
        if not _is_a(value, kind):
            raise TypeError(
                f"{name} = {value!r}: expected {kind.__name__}, got {type(value).__name__}"
            )
    load_extension(namespace["extension"] if "extension" in declared else "")
    for name, condition in conditions.items():
        if name not in declared:
            raise ValueError(
                f"condition on an undeclared parameter {name!r}{nearest(name, declared)}"
            )
        if not condition.holds(namespace[name]):
            value = namespace[name]
            hint = ""
            if isinstance(value, str):
                hint = nearest(value, condition.names)
            raise ValueError(
                f"{name} = {value!r}: expected {condition.expected}{hint}"
            )


def _injected(cells: list[str]) -> list[str]:
    """Names assigned in papermill's injected cell, the one it begins with ``# Parameters``."""
    names: list[str] = []
    for cell in cells:
        if cell.startswith("# Parameters"):
            for node in ast.parse(cell).body:
                targets: list[Any] = [getattr(node, "target", None)]
                if isinstance(node, ast.Assign):
                    targets = node.targets
                names += [to.id for to in targets if isinstance(to, ast.Name)]
    return names


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def show_source(*objects: Callable[..., Any] | type) -> None:
    """Display the source of functions or classes of the package, without their docstrings, as this notebook runs it."""
    from IPython.display import Markdown, display

    blocks = [
        _without_docstrings(inspect.cleandoc("\n" + inspect.getsource(item)))
        for item in objects
    ]
    display(Markdown("```python\n" + "\n\n".join(blocks) + "\n```"))


def _without_docstrings(source: str) -> str:
    """Drop docstrings by line, so that comments and layout stay as written."""
    lines = source.splitlines()
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    for node in sorted(found, key=lambda n: -n.lineno):
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            first, last = node.body[0].lineno, node.body[0].end_lineno
            del lines[first - 1 : last]
            while first - 1 < len(lines) and not lines[first - 1].strip():
                del lines[first - 1]
    return "\n".join(lines)


def describe_device(device: torch.device) -> str:
    """Return what a run's speed depends on, in the words of the machine's owner."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"processor ({platform.machine()}), {threads} thread(s)"


def provenance() -> dict[str, str]:
    """Return the versions and the hardware that a run's numbers depend on."""
    import torch

    import ddpm_nb

    device = platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "ddpm_nb": ddpm_nb.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
