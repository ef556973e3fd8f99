"""How far the samplers are from the schedulers of diffusers: the largest relative difference of a step, in float64.

    python tests/benchmarks/parity.py

The figures are those of the tests of parity themselves, which this runs: a network that depends on x and t, the same
noise for both, every step of a walk from the same state.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

TESTS = {
    "DDPMScheduler": ("test_sampling", "test_ancestral_steps_are_those_of_the_ddpm_scheduler"),
    "DDIMScheduler": ("test_sampling", "test_ddim_steps_are_those_of_the_ddim_scheduler"),
    "DPMSolverMultistepScheduler": ("test_solvers", "test_2m_is_the_multistep_scheduler"),
    "HeunDiscreteScheduler": ("test_solvers", "test_heun_is_the_heun_scheduler"),
}


class Deviations:
    """A pytest plugin that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, _, case = re.sub(r".*::", "", report.nodeid).rstrip("]").partition("[")
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "deviation":
                self.rows.append((test, case, value))


def main() -> int:
    """Run the tests and print a line for each; exit status 1 if one fails."""
    here, kept = Path(__file__).parents[1], Deviations()
    names = [f"{here / file}.py::{test}" for file, test in TESTS.values()]
    status = pytest.main(["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", *names], plugins=[kept])
    print(f"{'scheduler of diffusers':28s} {'case':44s} largest relative difference")
    for scheduler, (_, test) in TESTS.items():
        for case, value in [(case, value) for name, case, value in kept.rows if name == test]:
            print(f"{scheduler:28s} {case:44s} {value:.1e}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
