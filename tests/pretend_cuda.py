"""A GPU that nobody has: tensors on the CPU that say they are on "cuda", refuse to mix, and count the waits.

    with Pretended() as seen:
        x = on_cuda(torch.randn(4, 2))
        last(walk(kernel, x, times))
    seen.waits   # Counter of (operation, file:line of the package): the host would wait for the GPU there
    seen.copies  # Counter of (direction, shape, file:line): copies between host and GPU

An operation of a pretended tensor with one of the host that has an axis raises ``DevicesMixError``; a 0-d tensor of
the host mixes, as in CUDA. An Apple GPU has no float64: with ``Pretended("mps")`` such a tensor on the device raises
``NoFloat64Error``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

READS = {
    *("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "numpy", "__array__", "__contains__"),
    *("__format__", "__repr__", "equal", "allclose", "is_nonzero"),
}  # their answer is no tensor
WAITS = {
    *READS,
    *("nonzero", "argwhere", "unique", "_unique2", "unique_consecutive", "bincount", "masked_select"),
    *("repeat_interleave", "linalg_eigh", "eigh", "eigvalsh", "linalg_eigvalsh", "cholesky", "linalg_cholesky"),
    *("inv", "solve", "linalg_solve", "svd", "linalg_svd"),
}


class DevicesMixError(RuntimeError):
    """An operation takes tensors of the host and of the GPU."""


class NoFloat64Error(TypeError):
    """A float64 tensor on a device that has none."""


class OnDevice(Tensor):
    """A tensor that says it is on the pretended device."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class Pretended(AbstractContextManager["Pretended"]):
    """While it is entered, factories with ``device="cuda"`` make pretended tensors, and reads are counted."""

    active: Pretended | None = None

    def __init__(self, kind: str = "cuda") -> None:
        self.device = torch.device(kind, 0)
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, tuple[int, ...], str]] = Counter()
        self._mode = _Factories()

    def __enter__(self) -> Pretended:
        assert Pretended.active is None
        Pretended.active = self
        self._generator, torch.Generator = torch.Generator, _any_generator(torch.Generator)  # type: ignore[misc]
        self._mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._mode.__exit__(*error)
        torch.Generator = self._generator  # type: ignore[misc]
        Pretended.active = None


def on_cuda(tensor: Tensor) -> Tensor:
    """Return a tensor as if it were on the device."""
    return _tagged(tensor.detach())


def network_on_cuda(network: nn.Module) -> nn.Module:
    """Move the parameters and buffers of a network to the device, in place."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = Tensor._make_subclass(OnDevice, parameter.data, parameter.requires_grad)
                module._parameters[name] = moved  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _tagged(buffer)
    return network


def _any_generator(real: Any) -> Any:
    """Return ``torch.Generator`` that takes a pretended device; drawing is on the host all the same."""

    class Generator(real):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            return real("cpu")

    return Generator


def _where() -> str:
    """The line of the package that is at work."""
    for frame, line in walk_stack(None):
        if "/ddpm_nb/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition('/ddpm_nb/')[2]}:{line}"
    return "caller"


def _by_torch_itself() -> bool:
    """Whether torch groups gradients by their true device, the host, which the pretence cannot hide from it."""
    return any(frame.f_code.co_filename.endswith("clip_grad.py") for frame, _ in walk_stack(None))


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _tagged(value: Any) -> Any:
    if isinstance(value, Tensor):
        if Pretended.active is not None and Pretended.active.device.type == "mps":
            with torch._C.DisableTorchFunctionSubclass():
                if value.dtype == torch.float64:
                    raise NoFloat64Error(f"a float64 tensor of shape {tuple(value.shape)} on the device, {_where()}")
        return value.as_subclass(OnDevice) if type(value) is Tensor else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_tagged(item) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_tagged(item) for item in value)
    if isinstance(value, tuple):  # torch's return types
        return type(value)([_tagged(item) for item in value])
    return value


def _waited(name: str) -> None:
    if Pretended.active is not None:
        Pretended.active.waits[name, _where()] += 1


def _moved(tensor: Tensor, to_device: bool) -> None:
    from_device = isinstance(tensor, OnDevice)
    if Pretended.active is None or from_device == to_device or _by_torch_itself():
        return
    direction = "to the GPU" if to_device else "to the host"
    Pretended.active.copies[direction, tuple(_plain(tensor).shape), _where()] += 1
    if from_device:
        _waited("copy to the host")


def _is_device(value: Any) -> bool:
    return torch.device(value).type != "cpu"


def _call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    if name == "__get__" and func == Tensor.device.__get__:  # type: ignore[attr-defined]
        return Pretended.active.device if Pretended.active else torch.device("cuda", 0)
    if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
        return _to(name, args, dict(kwargs))
    if name in WAITS:
        _waited(name)
    if name in ("__getitem__", "__setitem__"):
        _indexed(name, args)
    elif name != "copy_":
        _check_mix(name, args, kwargs)
    on_device = any(isinstance(tensor, OnDevice) for tensor in _flat((args, kwargs)))
    if name == "__getitem__":
        on_device = isinstance(args[0], OnDevice)
    if "device" in kwargs and kwargs["device"] is not None:
        on_device, kwargs = _is_device(kwargs["device"]), {**kwargs, "device": "cpu"}
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    if name in READS or (name == "__get__" and not isinstance(result, Tensor)):
        return result
    return _tagged(result) if on_device else result


def _indexed(name: str, args: tuple[Any, ...]) -> None:
    """Count what indexing costs: a mask must be counted by the host, and an index of the host is copied."""
    indices = list(_flat(args[1:2]))
    value_is_number = name == "__setitem__" and not isinstance(args[2], Tensor)
    for index in indices:
        if isinstance(args[0], OnDevice) and index.dtype == torch.bool and not value_is_number:
            _waited("a mask as an index")
        if isinstance(args[0], OnDevice):
            _moved(index, to_device=True)
        elif isinstance(index, OnDevice):
            raise DevicesMixError(f"{name}: a tensor of the host, indexed by one on the device, {_where()}")
    value = args[2] if name == "__setitem__" else None
    if isinstance(value, Tensor) and value.ndim and isinstance(args[0], OnDevice) != isinstance(value, OnDevice):
        raise DevicesMixError(f"__setitem__: values and target on two devices, {_where()}")


def _check_mix(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tensors = list(_flat((args, kwargs)))
    host = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim > 0]
    if host and len(host) < len(tensors) and any(isinstance(t, OnDevice) for t in tensors):
        device = [tuple(_plain(t).shape) for t in tensors if isinstance(t, OnDevice)]
        raise DevicesMixError(
            f"{name}: {device} on the device with {[tuple(t.shape) for t in host]} of the host, {_where()}"
        )


def _to(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, rest = args[0], []
    device = kwargs.pop("device", {"cpu": "cpu", "cuda": "cuda"}.get(name))
    for argument in args[1:]:
        if isinstance(argument, Tensor):
            device, kwargs["dtype"] = ("cuda" if isinstance(argument, OnDevice) else "cpu"), _plain(argument).dtype
        elif isinstance(argument, str | torch.device):
            device = argument
        else:
            rest.append(argument)
    to_device = isinstance(tensor, OnDevice) if device is None else _is_device(device)
    _moved(tensor, to_device)
    with torch._C.DisableTorchFunctionSubclass():
        plain = tensor.as_subclass(Tensor) if isinstance(tensor, OnDevice) else tensor
        result = plain.to(*rest, **kwargs) if rest or kwargs else plain
    return _tagged(result) if to_device else result


class _Factories(TorchFunctionMode):
    """Sees the calls in which no pretended tensor takes part: factories, and copies from the host."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if any(isinstance(tensor, OnDevice) for tensor in _flat((args, kwargs))):
            return func(*args, **kwargs)  # the tensor's own __torch_function__
        places = [a for a in [*args[1:], kwargs.get("device")] if isinstance(a, str | torch.device)]
        if getattr(func, "__name__", "") == "to" and isinstance(args[0], Tensor) and any(map(_is_device, places)):
            return _to("to", args, kwargs)
        if kwargs.get("device") is not None and _is_device(kwargs["device"]):
            if (
                args
                and isinstance(args[0], list | float | int)
                and getattr(func, "__name__", "") in ("tensor", "as_tensor")
            ):
                _moved(torch.empty(0), to_device=True)
            return _tagged(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)
