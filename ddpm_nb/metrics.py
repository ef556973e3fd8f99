"""Chapter 7. How good are samples? Distances to real data in the features of a small classifier, and copying.

The Fréchet distance here is between features of a classifier trained on the same small images. It ranks models of one
data set; its figures are not comparable with an Inception FID.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_nb.arguments import whole_number
from ddpm_nb.precision import widened

__all__ = [
    "Classifier",
    "Moments",
    "density_coverage",
    "energy_distance",
    "frechet_distance",
    "nearest_neighbours",
    "precision_recall",
    "sliced_wasserstein",
    "train_classifier",
]


class Classifier(nn.Module):
    """A small convolutional classifier whose last hidden layer gives the features, ``(batch, features)``."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        width: int = 32,
        features: int = 64,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer for images ``(batch, channels, h, w)``."""
        # In parts, so that the memory stays bounded.
        return torch.cat([self.body(part) for part in x.split(500)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)``."""
        return self.head(self.body(x))


def train_classifier(
    images: Tensor, labels: Tensor, epochs: int, seed: int, batch_size: int = 64
) -> Classifier:
    """Return a classifier trained with cross-entropy by AdamW under a one-cycle rate, in eval mode."""
    whole_number("epochs", epochs, least=1)
    channels, classes = images.shape[1], int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(channels, classes).to(images.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    batches = -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * batches
    )
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(batch_size):
            logits = model(images[rows])
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean ``(f,)`` and covariance ``(f, f)`` of ``count`` feature vectors, float64."""

    mean: Tensor
    cov: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of features ``(n, f)``; ``ValueError`` for fewer than two samples."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"features of shape {tuple(features.shape)}: expected (n, features) with at least two samples"
            )
        features = widened(features)
        # Of one feature torch.cov makes a 0-d tensor.
        cov = torch.atleast_2d(torch.cov(features.mT))
        return cls(features.mean(0), cov, len(features))

    def frechet_distance(self, other: Moments) -> float:
        """Squared 2-Wasserstein distance between the Gaussians with these moments.

        ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½). Book: [the Fréchet distance](#eq-frechet).
        """
        # tr((Σ_a Σ_b)^½) is the sum of the roots of the eigenvalues of S Σ_b S,
        # which is symmetric, with S = Σ_a^½.
        values, vectors = torch.linalg.eigh(self.cov)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
        squares = torch.linalg.eigvalsh(root @ other.cov @ root)
        cross = squares.clamp(min=0).sqrt().sum()
        shift = (self.mean - other.mean).square().sum()
        return float(shift + self.cov.trace() + other.cov.trace() - 2 * cross)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features, ``(n, f)`` and ``(m, f)``: see :meth:`Moments.frechet_distance`.

    Its bias falls with the number of samples: compare equal numbers only. Raises ``ValueError`` for fewer than two.
    """
    return Moments.of(a).frechet_distance(Moments.of(b))


def precision_recall(
    real: Tensor, drawn: Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """Share of ``drawn`` features within the law of ``real`` ones, and the reverse: (precision, recall).

    A point is within a set if it is nearer to one of its members than that member's ``neighbours``-th nearest other
    member (Kynkäänniemi et al. 2019). Features are ``(n, f)`` and ``(m, f)``; the radii, and so the figures, depend on
    n and m. ``ValueError`` for a set of no more than ``neighbours``. Book: [](#eq-m7-precision-recall).
    """
    between, radius = _balls(real, drawn, neighbours)
    precision = (between <= radius[0]).any(1).float().mean()
    recall = (between <= radius[1][:, None]).any(0).float().mean()
    return precision.item(), recall.item()


def density_coverage(
    real: Tensor, drawn: Tensor, neighbours: int = 5
) -> tuple[float, float]:
    """How dense ``drawn`` features lie where real ones do, and the share of real ones that are reached.

    Around every real feature is a ball that reaches to its ``neighbours``-th nearest other real one. Density is the
    number of balls that a drawn feature lies in, on average, over ``neighbours``: near 1 for the same law, and it can
    pass 1. Coverage is the share of balls with a drawn feature inside (Naeem et al. 2020). Both use balls around real
    features only: a wide cloud of samples cannot raise them, as it raises the recall of :func:`precision_recall`.
    ``ValueError`` for a set of no more than ``neighbours``. Book: [](#eq-m7-density-coverage).
    """
    between, (radius, _) = _balls(real, drawn, neighbours)
    inside = between <= radius
    density = inside.double().sum(1).mean().item() / neighbours
    return density, inside.any(0).double().mean().item()


def _balls(
    real: Tensor, drawn: Tensor, neighbours: int
) -> tuple[Tensor, list[Tensor]]:
    """Return distances ``(drawn, real)``, and for each member of either set that to its neighbour within the set."""
    whole_number("neighbours", neighbours, least=1)
    if min(len(real), len(drawn)) <= neighbours:
        raise ValueError(
            f"{len(real)} and {len(drawn)} features: expected more than neighbours = {neighbours} of each"
        )
    radius = [
        torch.cdist(widened(x), widened(x)).kthvalue(neighbours + 1).values
        for x in (real, drawn)
    ]
    return torch.cdist(widened(drawn), widened(real)), radius


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E‖A − B‖ − E‖A − A'‖ − E‖B − B'‖ ≥ 0 from samples ``(n, d)`` and ``(m, d)``; 0 for equal laws only.

    Unbiased: pairs of a sample with itself are left out. Book: [the energy distance](#eq-energy-distance).
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} samples: expected at least two of each")
    between = torch.cdist(widened(a), widened(b)).mean()
    within = [
        torch.cdist(widened(x), widened(x)).sum() / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    return float(2 * between - within[0] - within[1])


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Root of the mean over ``directions`` of W₂² between the projected samples, in the units of the samples.

    In one dimension the best transport joins equal ranks, W₂² = mean (a_(i) − b_(i))². Samples are ``(n, d)`` each,
    ``directions`` ``(k, d)`` of any length other than 0, for example normal draws. Two samples of one law have a
    positive distance, which falls with n: compare it with that floor. ``ValueError`` for other shapes.
    """
    if (
        a.ndim != 2
        or a.shape != b.shape
        or directions.ndim != 2
        or directions.shape[1] != a.shape[1]
    ):
        raise ValueError(
            f"samples of shape {tuple(a.shape)} and {tuple(b.shape)}, directions of shape {tuple(directions.shape)}: "
            "expected (n, d), the same (n, d) and (k, d)"
        )
    across = F.normalize(widened(directions), dim=1).mT
    ranked = [(widened(x) @ across).sort(dim=0).values for x in (a, b)]
    return float((ranked[0] - ranked[1]).square().mean().sqrt())


def nearest_neighbours(samples: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each sample the distance ‖sample − image‖ to the nearest of ``data``, and its row. ``(batch,)`` each.

    A copy of a training image shows as a distance near 0.
    """
    rows = torch.cdist(samples.flatten(1), data.flatten(1)).argmin(dim=1)
    # cdist expands the square, which leaves about 0.01 of a copy's distance 0 in
    # float32.
    return (samples - data[rows]).flatten(1).norm(dim=1), rows
