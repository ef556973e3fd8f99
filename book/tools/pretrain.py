"""Make what the package ships in ``ddpm_nb/weights``: features, models, and the cards that say how good they are.

    python book/tools/pretrain.py features fashion_mnist --root FOLDER
    python -m ddpm_nb train --dataset fashion_mnist .. --root FOLDER --checkpoint CHECKPOINT    # see the card
    python book/tools/pretrain.py export CHECKPOINT --name fashion_mnist --minutes 70
    python book/tools/pretrain.py card fashion_mnist --root FOLDER

A data set is a name, or a file that ``ddpm-nb pack`` wrote, in the folder where this runs.

Each step reads what the one before it wrote: ``export`` begins a card with the recipe of the run, ``card`` measures the
shipped file and adds how good it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from execute import hardware
from torch import Tensor
from tqdm import tqdm

from ddpm_nb import pretrained
from ddpm_nb.book import plots
from ddpm_nb.bound import fixed_variance
from ddpm_nb.checkpoint import load_checkpoint
from ddpm_nb.commands.sample import drawn
from ddpm_nb.data import card_of, load_dataset, load_labels
from ddpm_nb.denoiser import clipped
from ddpm_nb.evaluation import bits_of_images, weights_digest
from ddpm_nb.exact import CorrelatedGaussian
from ddpm_nb.metrics import Moments, nearest_neighbours, train_classifier
from ddpm_nb.nets import flops_per_image
from ddpm_nb.pretrained import FeatureSpace, Model, export_features, export_model, load_features, load_model
from ddpm_nb.quality import figures, told_apart
from ddpm_nb.recipe import Recipe

WEIGHTS = Path(pretrained.__file__).parent / "weights"
ROOT = Path(__file__).resolve().parents[2]


def make_features(dataset: str, root: str | None, epochs: int, seed: int) -> None:
    """Train the classifier, and store it with the moments of the real images in its features."""
    images, labels = load_dataset(dataset, root), load_labels(dataset, root)
    test, truth = load_dataset(dataset, root, split="test"), load_labels(dataset, root, split="test")
    classifier = train_classifier(images, labels, epochs=epochs, seed=seed)
    with torch.no_grad():
        found = {name: classifier.features(part) for name, part in (("train", images), ("test", test))}
        accuracy = classifier.head(found["test"]).argmax(1).eq(truth).double().mean().item()
    space = FeatureSpace(classifier, Moments.of(found["train"]), Moments.of(found["test"]), accuracy)
    path = export_features(space, WEIGHTS / "features" / f"{Path(dataset).stem}.safetensors")
    print(f"{path}: {accuracy:.1%} of the test set right")


def command(recipe: dict[str, Any]) -> str:
    """Return the words that train by a recipe: those of its settings that are not the default."""
    defaults = {setting.name: setting.default for setting in fields(Recipe)}
    chosen = {name: value for name, value in recipe.items() if name == "seed" or value != defaults[name]}
    return "python -m ddpm_nb train " + " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in chosen.items()
    )


def draw(model: Model, count: int, steps: int, seed: int) -> Tensor:
    """Draw ``count`` images by DDIM with clipped estimates, of all classes in turn where there are classes."""
    labels = torch.arange(count) % len(model.classes) if model.classes else None
    return drawn(model, count, steps=steps, seed=seed, labels=labels)


def sheet(model: Model) -> Tensor:
    """Draw rows of 16 images, one row for each class, or ten rows."""
    rows = len(model.classes) or 10
    labels = torch.arange(rows).repeat_interleave(16) if model.classes else None
    return drawn(model, 16 * rows, steps=50, seed=0, labels=labels)


def on_grey_levels(images: Tensor, levels: int) -> Tensor:
    """Round images in [−1, 1] to the values that the data have: else those alone would tell real from drawn."""
    return ((images.clamp(-1, 1) + 1) / 2 * (levels - 1)).round() * 2 / (levels - 1) - 1


def summary(values: list[float]) -> dict[str, float]:
    """Mean over the seeds and its standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": found.mean().item(), "error": found.std().item() / math.sqrt(len(values)), "runs": len(values)}


def judged(space: FeatureSpace, sets: Iterator[Tensor], test: Tensor, train: Tensor, near: float) -> dict[str, Any]:
    """Return how near to the test set, how believable, how varied and how new several sets of images are.

    ``near`` is the distance to the nearest training image that 1 % of the test images stay below.
    """
    real = space(test)
    rows = [asdict(figures(images, space, train, real, near)) for images in sets]
    return {name: summary([row[name] for row in rows]) for name in rows[0]}


def decoys(train: Tensor, count: int, seeds: int) -> dict[str, Iterator[Tensor]]:
    """Return sets of images that no model drew and nobody would take for real, to be judged like samples."""
    flat = train.flatten(1).double()
    law = CorrelatedGaussian.of(flat.mean(0), torch.cov(flat.mT) + 1e-6 * torch.eye(flat.shape[1]))

    def blends(seed: int) -> Tensor:
        rows = torch.randint(len(train), (2, count), generator=torch.Generator().manual_seed(seed))
        return (train[rows[0]] + train[rows[1]]) / 2

    def cloud(width: float, seed: int) -> Tensor:
        drawn = law.sample(count, torch.Generator().manual_seed(seed))
        return (law.mean + width * (drawn - law.mean)).float().reshape(count, *train.shape[1:])

    return {
        "blends of two training images": (blends(seed) for seed in range(seeds)),
        "a Gaussian with the images' mean and covariance": (cloud(1.0, seed) for seed in range(seeds)),
        "the same, twice as wide": (cloud(2.0, seed) for seed in range(seeds)),
    }


def trained_here() -> str:
    """Return a word for this machine."""
    here = hardware()
    return (
        f"{here['processor']}, {here['threads']} thread(s), accelerator: {here['accelerator']}, torch {here['torch']}"
    )


def export(checkpoint: Path, name: str, minutes: float, trained_on: str) -> Path:
    """Ship the averaged weights of a run under a name, and begin their card with how they were made."""
    recipe = load_checkpoint(checkpoint)["recipe"]
    made = {"command": command(recipe), "recipe": recipe, "minutes": minutes, "trained_on": trained_on}
    (WEIGHTS / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
    return export_model(checkpoint, WEIGHTS / f"{name}.safetensors")


def make_card(name: str, root: str | None, count: int, seeds: int, draws: int) -> None:
    """Measure a shipped model, and store its card and the sheet of samples."""
    made = json.loads((WEIGHTS / f"{name}.json").read_text())
    recipe = {**asdict(Recipe()), **made["recipe"]}
    dataset = recipe["dataset"]
    data = card_of(dataset)
    model, space, path = load_model(name), load_features(Path(dataset).stem), WEIGHTS / f"{name}.safetensors"
    train, test = load_dataset(dataset, root), load_dataset(dataset, root, split="test")
    near = nearest_neighbours(test, train)[0].quantile(0.01).item()
    kept = ROOT / "checkpoints" / "bits" / f"{name}.safetensors"
    kept.parent.mkdir(parents=True, exist_ok=True)
    about = {"dataset": dataset, "split": "test", "weights": weights_digest(model.network)}
    run = bits_of_images(
        model.q, fixed_variance(model.q, clipped(model.denoiser)), test, data.levels, draws, kept, about
    )
    *_, bits = tqdm(run, desc="bits", total=draws * -(-len(test) // 250) + 1, unit="batch")
    shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    sets_of = {steps: [draw(model, count, steps, seed) for seed in range(seeds)] for steps in (20, 50)}
    card = {
        "dataset": dataset,
        "event": list(model.event),
        "md5": getattr(data.load, "md5", {}),
        "packed": getattr(data.load, "about", {}),
        **{key: made[key] for key in ("command", "minutes", "trained_on")},
        "recipe": recipe,
        "hardware": hardware(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "flops": flops_per_image(model.network, tuple(test.shape[1:])),
        "bits_per_dim": {
            "mean": bits.mean,
            "error_of_estimate": bits.error_of_estimate,
            "error_over_images": bits.error_over_images,
            "images": len(test),
            "draws": draws,
        },
        "accuracy": space.accuracy,
        "count": count,
        "samples": {str(steps): judged(space, iter(sets), test, train, near) for steps, sets in sets_of.items()},
        "told_apart": {
            "model": told_apart(train, on_grey_levels(torch.cat(sets_of[50]), data.levels)),
            "real": told_apart(train, test[: seeds * count]),
            "images": seeds * count,
        },
        "decoys": {what: judged(space, sets, test, train, near) for what, sets in decoys(train, count, seeds).items()},
        "real": judged(space, iter(shuffled.split(count)[:seeds]), test, shuffled[seeds * count :], near),
    }
    (WEIGHTS / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n")
    plots.use_style()
    figure, axes = plt.subplots(figsize=(7.2, 0.45 * (len(model.classes) or 10)))
    plots.draw_images(axes, sheet(model), columns=16)
    figure.savefig(ROOT / "book" / "images" / f"{name}.png", dpi=120)


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    features = steps.add_parser("features")
    features.add_argument("dataset")
    features.add_argument("--root")
    features.add_argument("--epochs", type=int, default=6)
    features.add_argument("--seed", type=int, default=0)
    exporting = steps.add_parser("export")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("--name", required=True, help="of the shipped model")
    exporting.add_argument("--minutes", type=float, required=True, help="wall time of the run, from its last line")
    exporting.add_argument("--trained-on", default=trained_here(), help="the hardware of the run")
    card = steps.add_parser("card")
    card.add_argument("name", help="of the shipped model")
    card.add_argument("--root")
    card.add_argument("--count", type=int, default=2000, help="samples of each seed")
    card.add_argument("--seeds", type=int, default=3)
    card.add_argument("--draws", type=int, default=8, help="draws of step and noise for the bound of each test image")
    given = parser.parse_args()
    if given.step == "features":
        make_features(given.dataset, given.root, given.epochs, given.seed)
    elif given.step == "card":
        make_card(given.name, given.root, given.count, given.seeds, given.draws)
    else:
        print(export(given.checkpoint, given.name, given.minutes, given.trained_on))


if __name__ == "__main__":
    main()
