"""Measure the bits per pixel of a model on all test images of its data set, for the table of chapter 7.

    python book/tools/measure_likelihood.py MODEL --name NAME --root FOLDER

``MODEL`` is a shipped model or a checkpoint. Writes ``ddpm_nb/weights/quality/likelihood.json`` after every part, so
that a run that was stopped goes on where it was. A figure about other weights is measured anew. An hour on one core for
the model trained for likelihood, a quarter of that for the one trained for samples.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import ddpm_nb
from ddpm_nb.bound import (
    Reverse,
    bits_per_dim,
    bound_draw,
    bound_terms,
    discretized_decoder,
    fixed_variance,
    reconstruction_term,
)
from ddpm_nb.data import DATASETS, load_dataset
from ddpm_nb.denoiser import between_steps, clipped
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.evaluation import Bits, bits_of_images, weights_digest
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.likelihood import adaptively, hutchinson, network_eps, ode_log_prob, score_of_eps, signs
from ddpm_nb.pretrained import Model, load_model
from ddpm_nb.sde import log_snr_sde
from ddpm_nb.variance import BestVariance, fitted_errors

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(ddpm_nb.__file__).parent / "weights" / "quality" / "likelihood.json"
KEPT = ROOT / "checkpoints" / "bits"
FINER = 100


def table(
    model: Model, q: GaussianDiffusion, reverse: Reverse, test: Tensor, draws: int, name: str, **about: str
) -> Bits:
    """Bits of every test image, kept in a file of their own beside the others of the model."""
    KEPT.mkdir(parents=True, exist_ok=True)
    about = {"dataset": model.dataset, "split": "test", "weights": weights_digest(model.network), **about}
    levels = DATASETS[model.dataset].levels
    run = bits_of_images(q, reverse, test, levels, draws, KEPT / f"{name}.safetensors", about)
    *_, found = tqdm(run, desc=name, total=draws * -(-len(test) // 250) + 1, unit="batch")
    return found


def summary(bits: Bits) -> dict[str, float]:
    return {
        "mean": bits.mean,
        "error_of_estimate": bits.error_of_estimate,
        "error_over_images": bits.error_over_images,
        "draws": len(bits.table),
        "images": bits.table.shape[1],
    }


def in_the_limit(model: Model, test: Tensor, whole: Bits, draws: int, name: str) -> dict[str, float]:
    """The bound of a hundred times as many steps, as the bound of the chain and a difference on the same draws.

    Steps and noises of a draw are the same in both, up to the finer step, so that the difference has little variance.
    """
    fine = between_steps(model.denoiser, FINER)
    reverse = fixed_variance(fine.q, clipped(fine))
    bits = table(model, fine.q, reverse, test, draws, f"{name}-{FINER}", finer=str(FINER))
    gap = Bits(bits.table - whole.table[:draws])
    found = summary(whole)
    estimate = math.hypot(whole.error_of_estimate, gap.error_of_estimate)
    return {**found, "mean": whole.mean + gap.mean, "gap": gap.mean, "error_of_estimate": estimate, "gap_draws": draws}


def spent(model: Model, test: Tensor) -> dict[str, Any]:
    """What each term costs on average, in bits/dim: L_0, L_1, .., L_T, and the standard error of their sum."""
    levels, d = DATASETS[model.dataset].levels, test[0].numel()
    terms = bound_terms(
        model.q, clipped(model.denoiser), test, torch.Generator().manual_seed(0), discretized_decoder(levels)
    )
    rows = torch.cat([terms.reconstruction[None], terms.steps, terms.prior[None]]).double()
    total = bits_per_dim(terms.total.double(), d)
    values = [float(f"{value:.4g}") for value in bits_per_dim(rows.mean(1), d).tolist()]
    return {"terms": values, "images": len(test), "error": (total.std() / math.sqrt(len(test))).item()}


def by_variance(model: Model, train: Tensor, test: Tensor, draws: int, name: str) -> dict[str, Any]:
    """The bound with the best variance of each step, and of each step and range of the estimate."""
    found: dict[str, Any] = {}
    for ranges in (1, 13):
        generator = torch.Generator().manual_seed(0)
        errors = fitted_errors(model.q, clipped(model.denoiser), train, ranges, generator=generator)
        best = BestVariance(model.q, clipped(model.denoiser), errors)
        bits = table(model, model.q, best.reverse, test, draws, f"{name}-variance-{ranges}", variance=str(ranges))
        found[str(ranges)] = summary(bits)
    return found


def by_flow(model: Model, test: Tensor, tolerance: float, done: list[list[float]], save: Callable[[], None]) -> None:
    """Bits of test images by the probability flow, begun at x_1, and the bound in the limit of the same images.

    −log P(x_0) ≤ E[L_0 + log q(x_1 | x_0) − log p(x_1)] with the flow's own p(x_1): the first step's noise is what
    dequantizes.
    """
    sde, T, d = log_snr_sde(), model.q.schedule.T, test[0].numel()
    eps = network_eps(sde, model.network, model.parameterization, T)
    score = score_of_eps(sde, eps)
    decoder, clip = discretized_decoder(DATASETS[model.dataset].levels), clipped(model.denoiser)
    fine = between_steps(model.denoiser, FINER)
    prior = Gaussian(torch.zeros(1, *model.event), 1.0)
    for start in tqdm(range(len(done), len(test), 10), desc="flow"):
        x_0, generator = test[start : start + 10], torch.Generator().manual_seed(start)
        first = model.q.marginal(x_0, 1)
        x_1 = first.sample(generator)
        trace = hutchinson(signs(x_1, generator))
        times = torch.tensor([1 / T, 1.0], dtype=torch.float64)
        flow = ode_log_prob(sde, score, x_1, times, prior, trace, adaptively(tolerance))
        decoded = reconstruction_term(model.q, clip, x_0, x_1, decoder)
        nats = decoded + first.log_prob(x_1) - flow
        bound = [
            bits_of_draws(fine.q, fixed_variance(fine.q, clipped(fine)), x_0, decoder, 1000 * start + draw)
            for draw in range(20)
        ]
        rows = torch.stack([bits_per_dim(nats.double(), d), torch.stack(bound).mean(0)], 1)
        done.extend([round(a, 5), round(b, 5)] for a, b in rows.tolist())
        save()


def baselines(dataset: str, train: Tensor, test: Tensor) -> dict[str, float]:
    """Bits/dim of what knows nothing of diffusion: every pixel by its own histogram, and the files of PNG and WebP.

    A file holds its header, too; it is counted, for a model's weights are not.
    """
    levels = DATASETS[dataset].levels
    seen, unseen = (((x.flatten(1) + 1) / 2 * (levels - 1)).round().long() for x in (train, test))
    counts = torch.ones(seen.shape[1], levels, dtype=torch.float64)
    counts.scatter_add_(1, seen.mT, torch.ones_like(seen.mT, dtype=torch.float64))
    share = counts / counts.sum(1, keepdim=True)
    found = {"independent pixels": -share.mT.gather(0, unseen).log2().mean().item()}
    grey = ((test + 1) / 2 * 255).round().to(torch.uint8).squeeze(1).numpy()
    for kind, words in {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}.items():
        size = 0
        for image in tqdm(grey, desc=kind):
            file = io.BytesIO()
            Image.fromarray(image).save(file, kind, **words)
            size += len(file.getvalue())
        found[kind] = 8 * size / grey.size
    return found


def bits_of_draws(q: GaussianDiffusion, reverse: Reverse, x_0: Tensor, decoder: Any, seed: int) -> Tensor:
    terms = bound_draw(q, reverse, x_0, torch.Generator().manual_seed(seed), decoder)
    return bits_per_dim(terms.total.double(), x_0[0].numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", required=True, help="of the model in the table")
    parser.add_argument("--root")
    parser.add_argument("--draws", type=int, default=8, help="of step and noise for the bound of each image (8)")
    parser.add_argument("--limit-draws", type=int, default=2, help="for the difference to finer steps (2)")
    parser.add_argument("--parts", nargs="*", default=["baselines", "limit", "spent", "variance", "flow"])
    parser.add_argument("--flow-images", type=int, default=50)
    parser.add_argument("--spent-images", type=int, default=50)
    given = parser.parse_args()
    model = load_model(given.model)
    test = load_dataset(model.dataset, given.root, split="test")
    some = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
    head = {"dataset": model.dataset, "weights": weights_digest(model.network), "steps": model.q.schedule.T}

    def stored() -> dict[str, Any]:
        return json.loads(STORED.read_text("utf-8")) if STORED.is_file() else {}

    row = stored().get(given.name, {})
    if {key: row.get(key) for key in head} != head:
        row = {**head, "parameters": sum(p.numel() for p in model.network.parameters()), "minutes": {}}

    def save() -> None:
        STORED.write_text(json.dumps({**stored(), given.name: row}, indent=1, ensure_ascii=False) + "\n", "utf-8")

    reverse = fixed_variance(model.q, clipped(model.denoiser))
    whole = table(model, model.q, reverse, test, given.draws, given.name)
    row["bits"] = summary(whole)
    works: dict[str, Callable[[], Any]] = {
        "baselines": lambda: baselines(model.dataset, load_dataset(model.dataset, given.root), test),
        "limit": lambda: in_the_limit(model, test, whole, given.limit_draws, given.name),
        "spent": lambda: spent(model, some[: given.spent_images]),
        "variance": lambda: by_variance(
            model, load_dataset(model.dataset, given.root), test, given.draws // 2, given.name
        ),
    }
    for part, work in works.items():
        if part in given.parts and part not in row:
            begin = time.perf_counter()
            row[part] = work()
            row["minutes"][part] = round((time.perf_counter() - begin) / 60, 1)
            save()
    if "flow" in given.parts:
        flow = row.setdefault("flow", {"tolerance": 1e-4, "rows": []})
        by_flow(model, some[: given.flow_images], flow["tolerance"], flow["rows"], save)
    save()


if __name__ == "__main__":
    main()
