"""What a sampler's step costs beyond the network and the noise, beside the samplers of other libraries.

    python tests/benchmarks/sampling.py [--side 28] [--repeats 30]

The network answers at once with a fixed tensor, so that its time is nearly nothing; the cost of drawing the noise is
measured by itself and subtracted. Everything runs in turns in one process on one thread; printed is the smallest and
the median processor time of a step, which other programs disturb less than the clock. Peers are the schedulers of
``diffusers`` and, where it is installed, ``denoising-diffusion-pytorch`` (see ``peers.py``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from peers import require
from torch import Tensor, nn

from ddpm_nb.denoiser import EPS, NetworkDenoiser, clipped
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import linear_schedule
from ddpm_nb.solvers import DPMSolver2M, Heun

STEPS = 50
Task = Callable[[], object]


class Answer(nn.Module):
    """A network that answers with a fixed tensor, with the attributes that lucidrains' sampler reads."""

    channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 1, 1, False, False

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, x_t: Tensor, t: Tensor, *_: object) -> Tensor:
        return self.answer


def repeated(call: Task) -> Task:
    """The call once for each step, its result dropped at once as in a walk: memory that is kept costs time to get."""

    def task() -> None:
        for _ in range(STEPS):
            call()

    return task


def in_turns(tasks: dict[str, Task], repeats: int) -> dict[str, list[float]]:
    """Microseconds of processor time for a step of each task, measured in turns, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(repeats + 2):
        for name, task in tasks.items():
            began = time.process_time()
            task()
            if round_ >= 2:
                times[name].append((time.process_time() - began) / STEPS * 1e6)
    return times


def ours(x: Tensor, network: nn.Module, generator: torch.Generator) -> dict[str, Task]:
    """Whole walks of the package's samplers."""
    q = GaussianDiffusion(linear_schedule())
    denoise = NetworkDenoiser(network, EPS, q)
    kernels = {
        "ancestral": Ancestral(q, denoise),
        "ancestral, clipped": Ancestral(q, clipped(denoise)),
        "DDIM": DDIM(q, denoise),
        "DDIM, clipped": DDIM(q, clipped(denoise)),
        "2M": DPMSolver2M(q, denoise),
        "Heun (two calls)": Heun(q, denoise),
    }
    times = grid(q.schedule.T, STEPS)
    return {name: lambda kernel=kernel: last(walk(kernel, x, times, generator)) for name, kernel in kernels.items()}


def of_diffusers(x: Tensor, network: nn.Module, generator: torch.Generator) -> dict[str, Task]:
    """The same walks by the schedulers of diffusers, asking the network as ours do."""

    def walk_of(scheduler: DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler) -> Task:
        def task() -> None:
            scheduler.set_timesteps(STEPS)
            state = x
            for t in scheduler.timesteps:
                state = scheduler.step(network(state, t), t, state, generator=generator).prev_sample

        return task

    return {
        "diffusers DDPM": walk_of(DDPMScheduler(clip_sample=False)),
        "diffusers DDPM, clipped": walk_of(DDPMScheduler(clip_sample=True)),
        "diffusers DDIM": walk_of(DDIMScheduler(clip_sample=False)),
        "diffusers DDIM, clipped": walk_of(DDIMScheduler(clip_sample=True)),
        "diffusers 2M": walk_of(DPMSolverMultistepScheduler()),
    }


def of_lucidrains(x: Tensor, network: nn.Module, side: int) -> dict[str, Task]:
    """The same walks by denoising-diffusion-pytorch, which clips x̂_0 always and draws no noise at the last step."""
    process = require("denoising_diffusion_pytorch").GaussianDiffusion(network, image_size=side, auto_normalize=False)
    times = grid(1000, STEPS)

    def ancestral() -> None:
        state = x
        for t in times[:-1]:
            state, _ = process.p_sample(state, t - 1)

    @torch.inference_mode()
    def ddim() -> None:
        state = x
        for t, s in pairwise(times):  # the loop of their ddim_sample without its progress bar, η = 0
            batched = torch.full((len(x),), t - 1, dtype=torch.long)
            eps, x_0, *_ = process.model_predictions(state, batched, None, clip_x_start=True, rederive_pred_noise=True)
            if s > 0:
                alpha, alpha_next = process.alphas_cumprod[t - 1], process.alphas_cumprod[s - 1]
                sigma = 0.0 * ((1 - alpha / alpha_next) * (1 - alpha_next) / (1 - alpha)).sqrt()
                state = x_0 * alpha_next.sqrt() + (1 - alpha_next - sigma**2).sqrt() * eps

    return {"lucidrains ancestral, clipped": ancestral, "lucidrains DDIM, clipped": ddim}


def compare(batch: int, side: int, repeats: int) -> None:
    """Print the cost of a step beyond the network and the noise."""
    x = torch.randn(batch, 1, side, side)
    network, generator = Answer(torch.randn_like(x)), torch.Generator().manual_seed(0)
    tasks = {**ours(x, network, generator), **of_diffusers(x, network, generator)}
    try:
        tasks |= of_lucidrains(x, network, side)
    except SystemExit as missing:
        print(missing)
    noise = {"the noise": repeated(lambda: torch.randn(x.shape, generator=generator))}
    passes = {"two passes over the state": repeated(lambda: torch.add(0.5 * x, x, alpha=0.5))}
    with torch.no_grad():
        times = in_turns({**tasks, **noise, **passes}, repeats)
    drawn = min(times["the noise"]), statistics.median(times["the noise"])
    print(f"batch {batch}, {side} x {side}: µs of processor time for a step, smallest and median of {repeats}")
    cost = {}
    for name, values in times.items():
        noisy = "ancestral" in name or "DDPM" in name
        low, middle = min(values) - noisy * drawn[0], statistics.median(values) - noisy * drawn[1]
        cost[name] = low
        print(f"  {name:34s} {low:8.1f} {middle:8.1f}")
    for name, peers in {
        "ancestral": ("diffusers DDPM", "lucidrains ancestral, clipped"),
        "ancestral, clipped": ("diffusers DDPM, clipped", "lucidrains ancestral, clipped"),
        "DDIM": ("diffusers DDIM", "lucidrains DDIM, clipped"),
        "DDIM, clipped": ("diffusers DDIM, clipped", "lucidrains DDIM, clipped"),
        "2M": ("diffusers 2M",),
    }.items():
        best = min((peer for peer in peers if peer in cost), key=cost.__getitem__)
        print(f"  {name} / {best}, the best peer: {cost[name] / cost[best]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    for batch in (1, 16, 64):
        compare(batch, arguments.side, arguments.repeats)


if __name__ == "__main__":
    main()
