"""Measure what guidance of several weights gains and loses on a shipped conditional model, for chapter 9.

    python book/tools/measure_guidance.py fashion_mnist_classes --root FOLDER [--each 100] [--steps 20]

Every class is judged by itself, against the test images of that class, and as many real training images of it with the
same figures. Writes ``ddpm_nb/weights/quality/guidance.json`` after every weight, so that a run that was stopped goes on
where it was; another model or number starts afresh. About a minute for each weight on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import ddpm_nb
from ddpm_nb.commands.sample import drawn
from ddpm_nb.data import load_dataset, load_labels
from ddpm_nb.metrics import Moments, density_coverage, precision_recall
from ddpm_nb.pretrained import FeatureSpace, load_features, load_model

WEIGHTS = Path(ddpm_nb.__file__).parent / "weights"
STORED = WEIGHTS / "quality" / "guidance.json"
TESTED = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def judged(images: Tensor, label: int, space: FeatureSpace, test: Tensor) -> dict[str, float]:
    """Judge images of a class against the features of the test images of that class."""
    found, real = space(images), test[: len(images)]
    precision, recall = precision_recall(real, found)
    density, coverage = density_coverage(real, found)
    return {
        "accuracy": (space.classifier.head(found).argmax(1) == label).double().mean().item(),
        "frechet": Moments.of(found).frechet_distance(Moments.of(test)),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def over_classes(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean over the classes and its standard error, for each figure."""
    table = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    return {name: [x.mean().item(), x.std().item() / math.sqrt(len(x))] for name, x in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--root")
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    model = load_model(given.model)
    space = load_features(model.dataset)
    train, labels = load_dataset(model.dataset, given.root), load_labels(model.dataset, given.root)
    test, truth = (load(model.dataset, given.root, split="test") for load in (load_dataset, load_labels))
    sha256 = hashlib.sha256((WEIGHTS / f"{given.model}.safetensors").read_bytes()).hexdigest()
    about = {"sha256": sha256, "each": given.each, "steps": given.steps}
    stored: dict[str, Any] = json.loads(STORED.read_text()) if STORED.exists() else {}
    own = stored.get(given.model, {})
    if {name: own.get(name) for name in about} != about:
        own = {**about, "rows": {}}
    classes = range(len(model.classes))
    features = [space(test[truth == label]) for label in classes]
    real = [judged(train[labels == label][: given.each], label, space, features[label]) for label in classes]
    own["real"] = over_classes(real)
    for w in tqdm(TESTED, unit="weight"):
        if str(w) not in own["rows"]:
            # A class begins with the same noise for every weight.
            sets = [
                drawn(
                    model,
                    given.each,
                    steps=given.steps,
                    seed=label,
                    labels=torch.full((given.each,), label),
                    w=w,
                    quiet=True,
                )
                for label in classes
            ]
            rows = [judged(images, label, space, features[label]) for label, images in enumerate(sets)]
            own["rows"][str(w)] = over_classes(rows)
            STORED.write_text(json.dumps({**stored, given.model: own}, indent=1) + "\n")
            print(w, own["rows"][str(w)])
    print("real", own["real"])


if __name__ == "__main__":
    main()
