"""Training images a second at equal parameters, this book's network beside others', and what our loop adds to it.

    python tests/benchmarks/training.py [--repeats 9] [--threads 2]

One process, everything in turns, so that a slow moment of the machine hits all alike; printed are medians with their
quartiles, and ratios. A step is forward, backward, clipping and AdamW on a batch of 64 images of 28 x 28 pixels. The
second part runs our loop (draws, weighting, average of the weights) beside the bare steps on the same network. Memory
is the growth of the process's peak while a step of each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from peers import Diffusers, Lucidrains, SmallDiffusion
from torch import nn

from ddpm_nb.nets import flops_per_image, image_unet
from ddpm_nb.recipe import Recipe

BATCH, SIDE = 64, 28
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "this book": lambda: image_unet(1, SIDE),
    "diffusers": Diffusers,
    "smalldiffusion": SmallDiffusion,
    "lucidrains": Lucidrains,
}


def bare_step(network: nn.Module, bf16: bool) -> Callable[[], None]:
    """One step and nothing else: no draw, no schedule, no average."""
    optimizer = torch.optim.AdamW(network.parameters())
    x, t = torch.randn(BATCH, 1, SIDE, SIDE), torch.randint(1, 1001, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            answer = network(x, t)
        (answer.float() - x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def interleaved(tasks: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each task, in turns, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(repeats + 2):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if round_ >= 2:
                times[name].append(time.perf_counter() - began)
    return times


def peak_mib() -> float:
    """Peak memory of this process. Linux's getrusage hands the parent's peak down to a child; /proc does not."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def growth(name: str, bf16: bool, answer: multiprocessing.Queue) -> None:
    """Put the MiB that one training step adds to a process that holds the network."""
    step = bare_step(NETWORKS[name](), bf16)
    before = peak_mib()
    step()
    answer.put(peak_mib() - before)


def memory(name: str, bf16: bool) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=growth, args=(name, bf16, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def beside_others(repeats: int) -> None:
    rows = [("this book", True), ("this book", False), *((name, False) for name in NETWORKS if name != "this book")]
    rows += [("diffusers", True), ("smalldiffusion", True)]
    networks = {name: make() for name, make in NETWORKS.items()}
    label = {row: f"{row[0]}, {'bfloat16' if row[1] else 'float32'}" for row in rows}
    seconds = interleaved({label[row]: bare_step(networks[row[0]], row[1]) for row in rows}, repeats)
    rate = {row: BATCH / statistics.median(seconds[label[row]]) for row in rows}
    print(f"batch {BATCH}, {SIDE} x {SIDE}: images/s (quartiles), parameters, operations forward, memory of a step")
    for row in rows:
        low, _, high = (BATCH / value for value in reversed(statistics.quantiles(seconds[label[row]], n=4)))
        network = networks[row[0]]
        size = sum(p.numel() for p in network.parameters())
        work = flops_per_image(network, (1, SIDE, SIDE)) / 1e6
        print(
            f"  {label[row]:24s} {rate[row]:7.0f}  ({low:.0f} to {high:.0f})  {size:>9,}  {work:5.0f} M  "
            f"{memory(*row):5.0f} MiB"
        )
    for ours in (True, False):
        best = max(rate[row] for row in rows if row[0] != "this book" and (ours or not row[1]))
        print(f"  {label['this book', ours]} / the best of the others: {rate['this book', ours] / best:.1f}")


def loop_overhead(repeats: int, steps: int = 8) -> None:
    """Our loop and the bare steps on one network, in turns; the ratio is the median of the ratios of neighbours."""
    recipe = Recipe(dataset="fashion_mnist", steps=10**6, learning_rate=1e-4, parameterization="v")
    learner = recipe.learner()
    images = torch.randn(2000, 1, SIDE, SIDE).clamp(-1, 1)
    run = recipe.run(learner, images, Accelerator(cpu=True))
    step = bare_step(learner.network, bf16=False)

    def ours() -> None:
        for _ in range(steps):
            next(run)

    def bare() -> None:
        for _ in range(steps):
            step()

    seconds = interleaved({"loop": ours, "bare": bare}, repeats)
    ratios = [a / b - 1 for a, b in zip(seconds["loop"], seconds["bare"], strict=True)]
    low, middle, high = (100 * value for value in statistics.quantiles(ratios, n=4))
    print(f"our loop over bare steps, float32: {middle:+.1f} % (quartiles {low:+.1f} to {high:+.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} thread(s)")
    beside_others(given.repeats)
    loop_overhead(2 * given.repeats)


if __name__ == "__main__":
    main()
