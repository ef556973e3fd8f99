"""Measure the Fréchet distance of a shipped model against the number of steps, for the figure of chapter 7.

    python book/tools/measure_samplers.py fashion_mnist [--samples 400] [--seeds 2]

About ten minutes on one core with the defaults. Writes ``ddpm_nb/weights/quality/DATASET.json`` after every
distance, so that a run that was stopped goes on where it was; another model, sample size or seed starts afresh.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch

import ddpm_nb
from ddpm_nb.data import DATASETS, load_dataset
from ddpm_nb.denoiser import clipped
from ddpm_nb.kernels import Kernel
from ddpm_nb.measured import frechet_after
from ddpm_nb.metrics import Moments
from ddpm_nb.pretrained import Model, load_features, load_model
from ddpm_nb.sampling import DDIM, Ancestral, grid
from ddpm_nb.schedule import added_var
from ddpm_nb.solvers import DPMSolver2M
from ddpm_nb.variance import BestVariance, fitted_errors

WEIGHTS = Path(ddpm_nb.__file__).parent / "weights"
COUNTS = (5, 10, 20, 40)


def samplers(model: Model) -> dict[str, Kernel]:
    """The kernels of the figure, each with a clipped estimate."""
    q, denoise = model.q, clipped(model.denoiser)
    errors = fitted_errors(q, denoise, load_dataset(model.dataset), generator=torch.Generator().manual_seed(0))
    return {
        "ancestral, β̃": Ancestral(q, denoise),
        "ancestral, β": Ancestral(q, denoise, added_var),
        "ancestral, best σ²": BestVariance(q, denoise, errors),
        "DDIM, η = 0": DDIM(q, denoise),
        "DPM-Solver++(2M)": DPMSolver2M(q, denoise),
    }


def floor(dataset: str, samples: int, seeds: int) -> list[float]:
    """Distances of real test images in the same number."""
    space, images = load_features(dataset), load_dataset(dataset, split="test")
    rows = [
        torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:samples] for seed in range(seeds)
    ]
    return [Moments.of(space(images[row])).frechet_distance(space.train) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    model, space = load_model(arguments.dataset), load_features(arguments.dataset)
    digest = hashlib.sha256((WEIGHTS / f"{arguments.dataset}.safetensors").read_bytes()).hexdigest()
    path = WEIGHTS / "quality" / f"{arguments.dataset}.json"
    head = {"sha256": digest, "samples": arguments.samples, "seeds": arguments.seeds}
    stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if {key: stored.get(key) for key in head} != head:
        stored = {**head, "floor": floor(arguments.dataset, arguments.samples, arguments.seeds), "rows": {}}
    side, kernels = DATASETS[arguments.dataset].side, samplers(model)
    for seed in range(arguments.seeds):
        for steps in COUNTS:
            for name, kernel in kernels.items():
                values = stored["rows"].setdefault(name, {}).setdefault(str(steps), [])
                if len(values) > seed:
                    continue
                generator = torch.Generator().manual_seed(seed)
                x_T = torch.randn(arguments.samples, 1, side, side, generator=generator)
                values.append(round(frechet_after(kernel, x_T, grid(model.q.schedule.T, steps), space, generator), 4))
                print(f"{name:18s} {steps:4d} steps, seed {seed}: {values[-1]:.3f}", flush=True)
                path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
