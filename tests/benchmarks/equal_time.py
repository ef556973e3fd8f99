"""Sample quality for equal processor time on Fashion-MNIST: this book's network and recipe beside others'.

    python tests/benchmarks/equal_time.py --minutes 10 [--root FOLDER] [--only ours ..]

Every contestant trains for the same processor time, one thread each, on the same images with batches of 64, and draws
the same number of samples, which one evaluator judges: the Fréchet distance to the whole test set in the features that
the package ships, for several sampling seeds. All get the same moving average of their weights. The others keep their
own schedule, loss, learning rate and sampler:

- smalldiffusion: its Unet at about as many parameters as ours, with the settings of its own example (log-linear
  schedule, learning rate 7e-4, 20 steps of its accelerated sampler).
- small: a network of the size that the experiment of Vilhes (section 7) uses: three levels of 10, 20 and 40 channels
  with batch norm, at full resolution, linear schedule, Adam at 3e-4, noise prediction; sampled as ours.
- ours, predicting noise; ours, AdamW; ours, preconditioned: the same as ours but for one choice, to see what that is
  worth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peers import SmallDiffusion, require
from torch import Tensor, nn

from ddpm_nb.data import load_dataset
from ddpm_nb.denoiser import EPS, NetworkDenoiser, Parameterization, V, clipped, preconditioned
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.hardware import emulated
from ddpm_nb.metrics import Moments
from ddpm_nb.nets import image_unet, time_embedding
from ddpm_nb.optimizers import OPTIMIZERS
from ddpm_nb.pretrained import load_features
from ddpm_nb.sampling import DDIM, grid, last, walk
from ddpm_nb.schedule import cosine_schedule, linear_schedule
from ddpm_nb.training import Ema, Objective, Plan, train
from ddpm_nb.weighting import stratified_steps

BATCH = 64
Sampler = Callable[[Tensor], Tensor]  # noise -> images


class Clock:
    """Processor time since it was made, as a share of what is allowed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.process_time()

    def share(self) -> float:
        return (time.process_time() - self.began) / self.seconds


def ours(
    images: Tensor, clock: Clock, target: Parameterization = V, optimizer: str = "muon", rate: float = 2e-3
) -> tuple[int, Sampler]:
    """Train by this book's recipe, in bfloat16 where that is fast; the half cosine of the rate follows the clock."""
    q, network = GaussianDiffusion(cosine_schedule()), image_unet(1, 28)
    ema = Ema(network, 0.9995)
    precision = "no" if emulated("bf16", torch.device("cpu")) else "bf16"
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    prepared, stepper = accelerator.prepare(network, OPTIMIZERS[optimizer](network))

    def rate_of(step: int) -> float:
        cosine = 0.5 * (1 + torch.cos(torch.tensor(min(1.0, clock.share())) * torch.pi).item())
        return rate * min(1.0, (step + 1) / 50) * cosine

    run = train(
        prepared,
        stepper,
        Objective(q, target, draw_steps=stratified_steps),
        images,
        Plan(steps=10**9, batch_size=BATCH, rate=rate_of),
        accelerator=accelerator,
    )
    done = 0
    for step in run:
        ema.update(network)
        done = step.number
        if clock.share() >= 1:
            break
    return done, by_ddim(q, ema.network, target)


def by_ddim(q: GaussianDiffusion, network: nn.Module, target: Parameterization) -> Sampler:
    denoise = clipped(NetworkDenoiser(network, target, q))
    return lambda noise: last(walk(DDIM(q, denoise), noise, grid(1000, 20))).x


class SmallUNet(nn.Module):
    """Three levels of 10, 20 and 40 channels at 28, 14 and 7 pixels, three normalized convolutions each way."""

    def __init__(self, widths: tuple[int, ...] = (10, 20, 40)) -> None:
        super().__init__()

        def three(inside: int, outside: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for a, b in pairwise([inside, outside, outside, outside]):
                layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            return nn.Sequential(*layers)

        def time(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

        self.down = nn.ModuleList(three(a, b) for a, b in pairwise([1, *widths]))
        self.time_down = nn.ModuleList(time(a) for a in [1, *widths[:-1]])
        self.middle, self.time_middle = three(widths[-1], widths[-1]), time(widths[-1])
        self.up = nn.ModuleList(three(2 * b, a) for a, b in pairwise([widths[0], *widths]))
        self.time_up = nn.ModuleList(time(2 * width) for width in widths)
        self.outward = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        e, skips = time_embedding(t, 256), []
        for level, shift in zip(self.down, self.time_down, strict=True):
            x = F.avg_pool2d(x, 2) if skips else x
            x = level(x + shift(e)[:, :, None, None])
            skips.append(x)
        x = self.middle(x + self.time_middle(e)[:, :, None, None])
        for depth in (2, 1, 0):
            x = torch.cat([skips[depth], x], dim=1)
            x = self.up[depth](x + self.time_up[depth](e)[:, :, None, None])
            x = F.interpolate(x, scale_factor=2.0) if depth else x
        return self.outward(x)


def small(images: Tensor, clock: Clock) -> tuple[int, Sampler]:
    q, network = GaussianDiffusion(linear_schedule()), SmallUNet()
    ema = Ema(network, 0.9995)
    optimizer = torch.optim.Adam(network.parameters())
    done = 0
    plan = Plan(steps=10**9, batch_size=BATCH, rate=lambda step: 3e-4, max_grad_norm=1e9)
    for step in train(network, optimizer, Objective(q), images, plan):
        ema.update(network)
        done = step.number
        if clock.share() >= 1:
            break
    return done, by_ddim(q, ema.network, EPS)


def smalldiffusion(images: Tensor, clock: Clock) -> tuple[int, Sampler]:
    library = require("smalldiffusion")
    torch.manual_seed(0)
    model = library.Scaled(library.Unet)(28, 1, 1, ch=32, ch_mult=(1, 2, 2), attn_resolutions=(14,))
    schedule, ema, done = library.ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800), Ema(model, 0.9995), 0
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True)
    for _ in library.training_loop(loader, model, schedule, Accelerator(cpu=True), epochs=10**6, lr=7e-4):
        if done:  # the loop yields before its update
            ema.update(model)
        if clock.share() >= 1:
            break
        done += 1

    def sample(noise: Tensor) -> Tensor:
        sigmas = schedule.sample_sigmas(20)
        *_, x = library.samples(ema.network, sigmas, gam=1.6, xt=noise * sigmas[0], accelerator=Accelerator(cpu=True))
        return x.clamp(-1, 1)

    return done, sample


CONTESTANTS: dict[str, Callable[[Tensor, Clock], tuple[int, Sampler]]] = {
    "ours": ours,
    "ours, AdamW": partial(ours, optimizer="adamw", rate=1e-3),
    "ours, predicting noise": partial(ours, target=EPS),
    "ours, preconditioned": partial(ours, target=preconditioned(0.7)),
    "smalldiffusion": smalldiffusion,
    "small": small,
}


def judge(sample: Sampler, count: int, seeds: int) -> Iterator[float]:
    space = load_features("fashion_mnist")
    for seed in range(seeds):
        noise = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
        images = torch.cat([sample(part) for part in noise.split(250)])
        yield Moments.of(space(images.float())).frechet_distance(space.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time for each")
    parser.add_argument("--root", help="folder with the data files (DDPM_NB_DATA, or a download)")
    parser.add_argument("--count", type=int, default=1000, help="samples of each seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    SmallDiffusion()  # says now, not in an hour, if it is not installed
    images, space = load_dataset("fashion_mnist", given.root), load_features("fashion_mnist")
    parts = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))].split(given.count)
    real = [Moments.of(space(part)).frechet_distance(space.test) for part in parts[: given.seeds]]
    print(
        f"torch {torch.__version__}, {given.minutes:g} minutes of one thread for each, {given.count} samples of each of"
    )
    print(f"{given.seeds} seeds, Fréchet distance to the test set, mean ± standard error; not an Inception FID")
    print(f"{'real training images':26s} {summary(real)}", flush=True)
    found = {}
    for name in given.only:
        torch.manual_seed(0)
        began = time.perf_counter()
        steps, sample = CONTESTANTS[name](images, Clock(60 * given.minutes))
        wall = (time.perf_counter() - began) / 60
        values = list(judge(sample, given.count, given.seeds))
        found[name] = statistics.mean(values)
        print(f"{name:26s} {summary(values)}   {steps} steps, {wall:.1f} minutes on the wall", flush=True)
    others = [found[name] for name in ("smalldiffusion", "small") if name in found]
    if "ours" in found and others:
        print(f"ours / the best of the others: {found['ours'] / min(others):.2f}")


def summary(values: list[float]) -> str:
    return f"{statistics.mean(values):8.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
