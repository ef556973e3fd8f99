"""What the tests share: seeded draws, the schedules they run over, and Hypothesis set to be repeatable."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from ddpm_nb.schedule import NoiseSchedule, cosine_schedule, linear_schedule

# Repeatable and without time limits: a shared machine is sometimes slow, never wrong.
settings.register_profile("ddpm_nb", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("ddpm_nb")

SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "coarse": lambda: linear_schedule(T=20, beta_1=0.02, beta_T=0.5),
    "uneven": lambda: NoiseSchedule.from_betas([1e-7, 0.9, 0.01, 0.5, 1e-4]),
}


@pytest.fixture(scope="session", params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]()


@pytest.fixture(scope="session")
def rng() -> Callable[[int], torch.Generator]:
    """A fresh generator with the given seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def draw() -> Callable[..., Tensor]:
    """Standard normal numbers that depend on shape and seed only."""

    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return draw
