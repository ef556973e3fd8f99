"""What was measured: linear operators with their adjoints, and Y = A(X) + σ_y Z."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.precision import Copies

__all__ = [
    "Mask",
    "Matrix",
    "Measurement",
    "Operator",
    "Separable",
    "average_pool",
    "blur",
    "measure",
]


class Operator(ABC):
    """A linear A with its transpose, between tensors ``(batch, *event)`` and ``(batch, *measured)``."""

    @property
    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """Shape of x without its batch."""

    @property
    @abstractmethod
    def measured(self) -> tuple[int, ...]:
        """Shape of A x without its batch."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x, shape ``(batch, *measured)``."""
        return self._apply(_batched("x", x, self.event))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y, shape ``(batch, *event)``: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩. Book: [the adjoint](#eq-i8-adjoint)."""
        return self._adjoint(_batched("y", y, self.measured))

    def matrix(self) -> Tensor:
        """Return A as a float64 matrix ``(m, d)`` between flattened events."""
        d = math.prod(self.event)
        basis = torch.eye(d, dtype=torch.float64).reshape(d, *self.event)
        return self(basis).flatten(1).mT

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """Keep the entries where ``keep`` (bool, the event's shape) is true, as a flat vector: inpainting.

    With every entry kept it is the identity: denoising.
    """

    keep: Tensor

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or not bool(self.keep.any()):
            raise ValueError(
                f"keep of dtype {self.keep.dtype}: expected a bool tensor with at least one True"
            )

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of x without its batch."""
        return tuple(self.keep.shape)

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of A x without its batch."""
        return (len(self._places),)

    @cached_property
    def _places(self) -> Tensor:
        """Numbers of the kept entries: a mask as an index would make the host count it, on every device anew."""
        return self.keep.flatten().nonzero()[:, 0]

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self._places)

    def _apply(self, x: Tensor) -> Tensor:
        (places,) = self._copies.beside(x)
        return x.flatten(1).index_select(1, places)

    def _adjoint(self, y: Tensor) -> Tensor:
        (places,) = self._copies.beside(y)
        x = y.new_zeros(y.shape[0], self.keep.numel())
        return x.index_copy(1, places, y).reshape(-1, *self.event)


@dataclass(frozen=True, eq=False)
class Matrix(Operator):
    """A dense matrix ``(m, d)`` on flat events."""

    entries: Tensor

    def __post_init__(self) -> None:
        if self.entries.ndim != 2:
            raise ValueError(
                f"entries of shape {tuple(self.entries.shape)}: expected (m, d)"
            )

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of x without its batch."""
        return (self.entries.shape[1],)

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of A x without its batch."""
        return (self.entries.shape[0],)

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self.entries)

    def _apply(self, x: Tensor) -> Tensor:
        (entries,) = self._copies.beside(x)
        return x @ entries.mT

    def _adjoint(self, y: Tensor) -> Tensor:
        (entries,) = self._copies.beside(y)
        return y @ entries


@dataclass(frozen=True, eq=False)
class Separable(Operator):
    """Images ``(batch, 1, h, w)`` to L x Rᵀ, one matrix for the rows and one for the columns; its adjoint is Lᵀ y R."""

    rows: Tensor
    columns: Tensor

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of x without its batch."""
        return 1, self.rows.shape[1], self.columns.shape[1]

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of A x without its batch."""
        return 1, self.rows.shape[0], self.columns.shape[0]

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self.rows, self.columns)

    def _apply(self, x: Tensor) -> Tensor:
        rows, columns = self._copies.beside(x)
        return rows @ x @ columns.mT

    def _adjoint(self, y: Tensor) -> Tensor:
        rows, columns = self._copies.beside(y)
        return rows.mT @ y @ columns


def blur(side: int, width: float) -> Separable:
    """Gaussian blur of standard deviation ``width`` pixels; weights sum to 1 at every pixel, also near the edge."""
    if not width > 0:
        raise ValueError(
            f"width = {width}: expected a positive number of pixels"
        )
    side = whole_number("side", side, least=1)
    place = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    return Separable(weights, weights)


def average_pool(side: int, factor: int) -> Separable:
    """Average over blocks of ``factor × factor`` pixels: what super-resolution has to undo."""
    side = whole_number("side", side, least=1)
    factor = whole_number("factor", factor, least=1)
    if side % factor:
        raise ValueError(
            f"factor = {factor}: expected a divisor of side = {side}"
        )
    block = torch.eye(side // factor, dtype=torch.float64)
    weights = block.repeat_interleave(factor, dim=1) / factor
    return Separable(weights, weights)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Y = A(X) + σ_y Z, Z ~ N(0, I) (Li, inverse problem (1)). Book: [the measurement](#eq-i8-measurement).

    Parameters
    ----------
    operator : the linear A
    y : Tensor ``(batch, *measured)``, row by row for the samples of a walk, or ``(1, *measured)`` for all of them
    sigma_y : standard deviation of the noise, at least 0

    Raises
    ------
    ValueError
        If ``y`` has another shape than A's values, or ``sigma_y`` is negative.
    """

    operator: Operator
    y: Tensor
    sigma_y: float

    def __post_init__(self) -> None:
        standard_deviation(self.sigma_y)
        _batched("y", self.y, self.operator.measured)

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self.y)

    def residual(self, x: Tensor) -> Tensor:
        """Return y − A x, ``(batch, *measured)``."""
        (y,) = self._copies.beside(x)
        return y - self.operator(x)


def measure(
    operator: Operator,
    x: Tensor,
    sigma_y: float,
    generator: torch.Generator | None = None,
) -> Measurement:
    """Draw Y = A(x) + σ_y Z for every row of ``x`` ``(batch, *event)``. Book: [](#eq-i8-measurement)."""
    values = operator(x)
    law = Gaussian(values, float(standard_deviation(sigma_y) ** 2))
    return Measurement(operator, law.sample(generator), sigma_y)


def _batched(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) != shape or x.ndim != len(shape) + 1:
        expected = ", ".join(["batch", *map(str, shape)])
        raise ValueError(
            f"{name} of shape {tuple(x.shape)}: expected ({expected})"
        )
    return x


def standard_deviation(sigma_y: float) -> float:
    """Return ``sigma_y``; ``ValueError`` unless it can be a standard deviation."""
    if not 0 <= sigma_y < math.inf:
        raise ValueError(
            f"sigma_y = {sigma_y}: expected a standard deviation of at least 0"
        )
    return sigma_y
