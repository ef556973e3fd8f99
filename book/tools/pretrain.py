"""Make what the package ships in ``ddpm_nb/weights``: features, models, and the cards that say how good they are.

    python book/tools/pretrain.py features fashion_mnist --root FOLDER
    python -m ddpm_nb --dataset fashion_mnist .. --root FOLDER --checkpoint CHECKPOINT    # see the card
    python book/tools/pretrain.py export CHECKPOINT
    python book/tools/pretrain.py card fashion_mnist --root FOLDER

Each step reads what the one before it wrote. A card is made from the shipped file, not from the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ddpm_nb import pretrained
from ddpm_nb.checkpoint import load_checkpoint
from ddpm_nb.data import DATASETS, load_dataset, load_labels
from ddpm_nb.metrics import Moments, train_classifier
from ddpm_nb.pretrained import FeatureSpace, export_features, export_model

WEIGHTS = Path(pretrained.__file__).parent / "weights"


def make_features(dataset: str, root: str | None, epochs: int, seed: int) -> None:
    """Train the classifier, and store it with the moments of the real images in its features."""
    images, labels = load_dataset(dataset, root), load_labels(dataset, root)
    test, truth = load_dataset(dataset, root, split="test"), load_labels(dataset, root, split="test")
    classifier = train_classifier(images, labels, epochs=epochs, seed=seed)
    with torch.no_grad():
        found = {name: classifier.features(part) for name, part in (("train", images), ("test", test))}
        accuracy = classifier.head(found["test"]).argmax(1).eq(truth).double().mean().item()
    space = FeatureSpace(classifier, Moments.of(found["train"]), Moments.of(found["test"]), accuracy)
    path = export_features(space, WEIGHTS / "features" / f"{dataset}.safetensors")
    print(f"{path}: {accuracy:.1%} of the test set right")


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    features = steps.add_parser("features")
    features.add_argument("dataset", choices=DATASETS)
    features.add_argument("--root")
    features.add_argument("--epochs", type=int, default=6)
    features.add_argument("--seed", type=int, default=0)
    export = steps.add_parser("export")
    export.add_argument("checkpoint", type=Path)
    given = parser.parse_args()
    if given.step == "features":
        make_features(given.dataset, given.root, given.epochs, given.seed)
    else:
        name = load_checkpoint(given.checkpoint)["model"]["dataset"]
        print(export_model(given.checkpoint, WEIGHTS / f"{name}.safetensors"))


if __name__ == "__main__":
    main()
