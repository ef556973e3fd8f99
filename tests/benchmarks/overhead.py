"""What the package costs beyond the network: sampler steps and training steps, beside the bare calls.

    python tests/benchmarks/overhead.py [--side 28] [--repeats 15]

Everything runs interleaved in one process; printed are medians over repeats with their quartiles. A sampler's cost
is measured with a network that does nothing, so that it is not lost in the noise of the network's own time, less the
cost of drawing the noise. Peers are the schedulers of ``diffusers`` at the same state.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ddpm_nb.denoiser import EPS, NetworkDenoiser
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import UNet
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import linear_schedule
from ddpm_nb.training import constant_rate, train

STEPS = 50


def interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each task, measured in turns so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(repeats + 2):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if round_ >= 2:
                times[name].append(time.perf_counter() - began)
    return times


def line(name: str, seconds: list[float], unit: float, suffix: str) -> str:
    low, middle, high = (value * unit for value in statistics.quantiles(seconds, n=4))
    return f"  {name:34s} {middle:10.1f} {suffix}  (quartiles {low:.1f} to {high:.1f})"


def samplers(batch: int, side: int, repeats: int) -> None:
    """µs of one step beyond the network call and the noise draw."""
    q = GaussianDiffusion(linear_schedule())
    x = torch.randn(batch, 1, side, side)
    answer = torch.randn_like(x)
    times = grid(q.schedule.T, STEPS)
    generator = torch.Generator().manual_seed(0)
    denoise = NetworkDenoiser(lambda x_t, t: answer, EPS, q)
    ddpm, ddim = DDPMScheduler(clip_sample=False), DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    for scheduler in (ddpm, ddim):
        scheduler.set_timesteps(STEPS)

    def peer(scheduler: DDPMScheduler | DDIMScheduler) -> None:
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(answer, t, state, generator=generator).prev_sample

    with torch.no_grad():
        seconds = interleaved(
            {
                "ancestral": lambda: last(walk(Ancestral(q, denoise), x, times, generator)),
                "diffusers DDPM": lambda: peer(ddpm),
                "DDIM": lambda: last(walk(DDIM(q, denoise), x, times, generator)),
                "diffusers DDIM": lambda: peer(ddim),
                "noise alone": lambda: [torch.randn(x.shape, generator=generator) for _ in range(STEPS)],
                "two passes over the state": lambda: [torch.add(0.5 * x, answer, alpha=0.5) for _ in range(STEPS)],
            },
            repeats,
        )
    noise = statistics.median(seconds["noise alone"])
    for name in ("ancestral", "diffusers DDPM"):
        seconds[name] = [s - noise for s in seconds[name]]
    print(f"batch {batch}, {side} x {side}: µs for a step, beyond the network and the noise")
    for name, values in seconds.items():
        print(line(name, values, 1e6 / STEPS, "µs"))
    for ours, theirs in (("ancestral", "diffusers DDPM"), ("DDIM", "diffusers DDIM")):
        ratio = statistics.median(seconds[ours]) / statistics.median(seconds[theirs])
        print(f"  {ours} / {theirs}: {ratio:.2f}")


def training(side: int, batch: int, repeats: int) -> None:
    """Images/s of the training loop, and of forward, backward and optimizer step alone."""
    q = GaussianDiffusion(linear_schedule())
    sizes = {"widths": (32, 64), "patch": 1} if side == 8 else {"widths": (64, 96), "patch": 2}
    network = UNet(side, **sizes)
    optimizer = torch.optim.AdamW(network.parameters())
    data = torch.randn(1000, 1, side, side).clamp(-1, 1)
    x, t = data[:batch], torch.randint(1, 1001, (batch,))
    steps = 5

    def bare() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            (network(x, t) - x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    def ours() -> None:
        run = train(network, optimizer, q, data, steps=steps, batch_size=batch, seed=0, rate=constant_rate(1e-4))
        for _ in run:
            pass

    seconds = interleaved({"train": ours, "bare network and optimizer": bare}, repeats)
    print(f"training, batch {batch}, {side} x {side}, {sum(p.numel() for p in network.parameters()):,} parameters")
    for name, values in seconds.items():
        print(f"  {name:34s} {steps * batch / statistics.median(values):10.0f} images/s")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"  overhead of the loop: {100 * (ratio - 1):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, choices=[8, 28], default=28)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    for batch in (1, 16, 64):
        samplers(batch, arguments.side, arguments.repeats)
    training(8, 64, arguments.repeats)
    training(28, 64, arguments.repeats)


if __name__ == "__main__":
    main()
