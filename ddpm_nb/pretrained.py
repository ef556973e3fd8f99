"""Chapter 7. Trained models, shipped or the reader's own, and the features in which their samples are judged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_nb import belief  # noqa: F401  registers its parameterization
from ddpm_nb.arguments import choose
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ddpm_nb.denoiser import (
    PARAMETERIZATIONS,
    NetworkDenoiser,
    Parameterization,
)
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.metrics import Classifier, Moments, train_classifier
from ddpm_nb.nets import NETWORKS, built
from ddpm_nb.schedule import NoiseSchedule

__all__ = [
    "SHIPPED",
    "FeatureSpace",
    "Model",
    "export_features",
    "export_model",
    "feature_space",
    "load_features",
    "load_model",
    "model_state",
    "train_features",
]

Labelled = tuple[Tensor, Tensor]  # images and their labels

_WEIGHTS = Path(__file__).parent / "weights"
_SHIPPED = {path.stem: path for path in sorted(_WEIGHTS.glob("*.safetensors"))}
SHIPPED = tuple(_SHIPPED)
"""Names of the models that come with the package."""
_FEATURES = {
    path.stem: path
    for path in sorted((_WEIGHTS / "features").glob("*.safetensors"))
}


@dataclass(frozen=True, eq=False)
class Model:
    """A network, what it predicts, and the forward process it was trained with.

    Parameters
    ----------
    network : averaged weights, in eval mode, on the CPU
    parameterization : EPS, X0, V, EDM or SCORE
    q : the forward process
    event : shape of an image, ``(channels, side, side)``
    dataset : name of the training data
    step : optimization steps behind the weights
    classes : names of the labels 0, 1, .. that the network takes; none for a network ``(x_t, t) -> y``
    """

    network: nn.Module
    parameterization: Parameterization
    q: GaussianDiffusion
    event: tuple[int, ...]
    dataset: str
    step: int
    classes: tuple[str, ...] = ()

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The denoiser (x_t, t) → x̂_0 that samplers take."""
        return NetworkDenoiser(self.network, self.parameterization, self.q)

    def given(self, label: int | Tensor) -> NetworkDenoiser:
        """Return the denoiser (x_t, t) → x̂_0 of a class: one label for all, or int64 ``(batch,)``; -1 is none.

        Raises ``ValueError`` for a model without classes.
        """
        if not self.classes:
            raise ValueError(
                f"label = {label}: this model of {self.dataset} was trained without classes"
            )
        return replace(self.denoiser, label=label)


def model_state(
    network: str,
    event: tuple[int, ...],
    parameterization: str,
    q: GaussianDiffusion,
    dataset: str,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the description of a model that a checkpoint must hold, beside the weights, for :func:`load_model`.

    The noise schedule is stored as its table, so that nothing hangs on what a name means later.

    Parameters
    ----------
    network, parameterization : their names in ``NETWORKS`` and ``PARAMETERIZATIONS``; ``ValueError`` for others
    event : shape of an image, ``(channels, side, side)``
    q : the forward process
    dataset : name of the training data
    classes : names of the labels that the network takes
    """
    choose("network", network, NETWORKS)
    choose("parameterization", parameterization, PARAMETERIZATIONS)
    return {
        "network": network,
        "event": list(event),
        "log_alpha_bars": q.schedule.log_alpha_bars,
        "parameterization": parameterization,
        "dataset": dataset,
        "classes": list(classes),
    }


def load_model(source: str | os.PathLike[str]) -> Model:
    """Return the model of a checkpoint file, or a shipped one by name ('digits'). Every byte is verified.

    The checkpoint holds ``model`` (see :func:`model_state`), ``ema`` (see ``Ema.state_dict``) and ``step``.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or describes no model.
    """
    state = _state(source, _SHIPPED, "a model", ("model", "ema", "step"))
    about = state["model"]
    try:
        target = PARAMETERIZATIONS[about["parameterization"]]
        channels, side, _ = about["event"]
        classes = tuple(about.get("classes", ()))  # younger than some files
        network = built(
            about["network"],
            channels,
            side,
            target.outputs,
            classes=len(classes),
        )
    except ValueError as error:
        raise CheckpointError(
            f"{source}: {error}; register yours before loading, as ddpm_nb.registry says"
        ) from error
    network.load_state_dict(state["ema"]["network"])
    q = GaussianDiffusion(NoiseSchedule(about["log_alpha_bars"]))
    event = tuple(about["event"])
    return Model(
        network.eval().requires_grad_(False),
        target,
        q,
        event,
        about["dataset"],
        state["step"],
        classes,
    )


def export_model(
    checkpoint: str | os.PathLike[str], path: str | os.PathLike[str]
) -> Path:
    """Write to ``path`` what :func:`load_model` needs of a training checkpoint, the averaged weights as float16.

    Rounding changes a weight by at most 1 part in 2048, and halves the file.
    """
    state = load_checkpoint(checkpoint)
    averaged = state["ema"]["network"]
    network = {key: value.half() for key, value in averaged.items()}
    kept = {
        "model": state["model"],
        "step": state["step"],
        "ema": {"network": network},
    }
    return save_checkpoint(path, kept)


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A classifier's last hidden layer, and what the real images of its data set look like in it.

    Parameters
    ----------
    classifier : in eval mode, on the CPU
    train, test : moments of the features of the whole training and test set
    accuracy : share of the test set that the classifier gets right
    """

    classifier: Classifier
    train: Moments
    test: Moments
    accuracy: float

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features ``(n, f)`` of images ``(n, channels, side, side)`` in [−1, 1]."""
        with torch.no_grad():
            return self.classifier.features(images)


def export_features(space: FeatureSpace, path: str | os.PathLike[str]) -> Path:
    """Write what :func:`load_features` reads."""
    moments = {
        split: {"mean": of.mean, "cov": of.cov, "count": of.count}
        for split, of in (("train", space.train), ("test", space.test))
    }
    state = {
        "classifier": space.classifier.state_dict(),
        "accuracy": space.accuracy,
        **moments,
    }
    return save_checkpoint(path, state)


def train_features(
    train: Labelled,
    test: Labelled,
    epochs: int,
    seed: int,
    few: int | None = None,
) -> FeatureSpace:
    """Train a classifier, on the first ``few`` images if that is given, and measure the real images in its features.

    ``train`` and ``test`` are images ``(n, channels, side, side)`` in [−1, 1] with their labels ``(n,)``.
    """
    (images, labels), (held_out, truth) = train, test
    classifier = train_classifier(
        images[:few], labels[:few], epochs=epochs, seed=seed
    )
    with torch.no_grad():
        right = classifier(held_out).argmax(1) == truth
        real, other = (
            Moments.of(classifier.features(x)) for x in (images, held_out)
        )
    accuracy = right.double().mean().item()
    return FeatureSpace(classifier, real, other, accuracy)


def feature_space(
    dataset: str,
    train: Labelled,
    test: Labelled,
    epochs: int,
    seed: int,
    few: int,
) -> FeatureSpace:
    """Return the features shipped for a data set, or, where there are none, those of :func:`train_features`."""
    if dataset in _FEATURES:
        return load_features(dataset)
    return train_features(train, test, epochs, seed, few)


def load_features(source: str | os.PathLike[str]) -> FeatureSpace:
    """Return the features of a data set by name ('digits', 'fashion_mnist'), or of a file. Every byte is verified.

    With the moments of the real images inside, a Fréchet distance needs no data set.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds something else.
    """
    parts = ("classifier", "train", "test", "accuracy")
    state = _state(source, _FEATURES, "a feature space", parts)
    weights = state["classifier"]
    first, last = weights["body.0.weight"], weights["head.weight"]
    classifier = Classifier(channels=first.shape[1], classes=last.shape[0])
    classifier.load_state_dict(weights)
    classifier.eval().requires_grad_(False)
    return FeatureSpace(
        classifier,
        Moments(**state["train"]),
        Moments(**state["test"]),
        state["accuracy"],
    )


def _state(
    source: str | os.PathLike[str],
    shipped: dict[str, Path],
    what: str,
    keys: tuple[str, ...],
) -> dict[str, Any]:
    """Return what a shipped file, by its name, or the file ``source`` holds; a word that is neither is refused."""
    path = shipped.get(str(source), Path(source))
    if path == Path(source) and not path.suffix:
        try:
            choose("source", str(source), shipped)
        except ValueError as error:
            raise ValueError(
                f"{error}, or the path of a file; chapter 6 and ddpm-nb train make one"
            ) from None
    state = load_checkpoint(path)
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(
            f"{path}: a checkpoint, but not of {what}; missing: {', '.join(missing)}"
        )
    return state
