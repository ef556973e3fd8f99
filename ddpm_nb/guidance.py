"""Chapter 9. Conditions and guidance: denoisers bent towards a class, and a world in which the truth is known.

Guidance of weight w asks for samples of the tilted law p(x) p(y | x)^w: w = 0 is the law of all data, w = 1 that of the
class y, and more than 1 favours what is typical of y. Source: Ho & Salimans (2022) write w for our w − 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.arguments import whole_number
from ddpm_nb.denoiser import Denoiser, check_process
from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.inverse.guidance import Guess
from ddpm_nb.schedule import Time

__all__ = [
    "ClassTwist",
    "ClassifierGuided",
    "Extrapolated",
    "LabelledMixture",
    "Limited",
    "autoguided",
    "classifier_free",
]


@dataclass(frozen=True, eq=False)
class Extrapolated:
    """The denoiser x̂ = x̂_away + w (x̂_toward − x̂_away) of two others: see :func:`classifier_free`."""

    toward: Denoiser
    away: Denoiser
    w: float

    def __post_init__(self) -> None:
        _check_weight(self.w)
        if self.q is not None:
            check_process(self.q, self.away, "second denoiser")

    @property
    def q(self) -> GaussianDiffusion | None:
        """The forward process of the first denoiser, where it knows it."""
        return getattr(self.toward, "q", None)

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``; at w = 1 and w = 0 only one of the two is asked."""
        if self.w == 1:
            return self.toward(x_t, t)
        away = self.away(x_t, t)
        if self.w == 0:
            return away
        return weighted_sum(self.w, self.toward(x_t, t), 1 - self.w, away)


def classifier_free(
    given: Denoiser, unconditional: Denoiser, w: float
) -> Extrapolated:
    """x̂ = x̂(x_t) + w (x̂(x_t, y) − x̂(x_t)): classifier-free guidance, which takes no classifier.

    Its score is (1 − w) ∇log q(x_t) + w ∇log q(x_t | y), that of q(x_t) q(y | x_t)^w. Source: Ho & Salimans (2022),
    eq. 6, whose weight is w − 1. Book: [](#eq-g9-classifier-free).

    Parameters
    ----------
    given : the denoiser that knows the class, such as ``model.given(label)``
    unconditional : the one that does not, such as ``model.given(-1)``
    w : 0 ignores the class, 1 is the conditional model, more exaggerates; ``ValueError`` if it is not finite
    """
    return Extrapolated(given, unconditional, w)


def autoguided(good: Denoiser, bad: Denoiser, w: float) -> Extrapolated:
    """x̂ = x̂_bad + w (x̂_good − x̂_bad): away from what a worse model of the *same* law gets wrong.

    Source: Karras et al. (2024). Book: [](#eq-g9-autoguidance).
    """
    return Extrapolated(good, bad, w)


@dataclass(frozen=True, eq=False)
class Limited:
    """The denoiser that is guided only at steps ``lowest`` to ``highest``, and plain elsewhere.

    Source: Kynkäänniemi et al. (2024). Book: [](#eq-g9-limited).

    Parameters
    ----------
    guided, plain : the two denoisers
    lowest, highest : the first and the last step with guidance, whole numbers; ``ValueError`` unless lowest ≤ highest
    """

    guided: Denoiser
    plain: Denoiser
    lowest: int
    highest: int

    def __post_init__(self) -> None:
        whole_number("lowest", self.lowest, least=1)
        whole_number("highest", self.highest, least=self.lowest)

    @property
    def q(self) -> GaussianDiffusion | None:
        """The forward process of the guided denoiser, where it knows it."""
        return getattr(self.guided, "q", None)

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``."""
        within = self.lowest <= t <= self.highest
        return (self.guided if within else self.plain)(x_t, t)


@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """The denoiser x̂_0 + w (1 − ᾱ)/√ᾱ ∇ log q(y | x_t), with the gradient of a classifier of noisy states.

    Its score is ∇log q(x_t) + w ∇log q(y | x_t). Source: Dhariwal & Nichol (2021), Algorithm 1 with scale w. Book:
    [](#eq-g9-classifier).

    Parameters
    ----------
    denoise : ``(x_t, t) -> x̂_0`` of all data
    q : the forward process
    log_class : ``(x_t, t) -> log q(y | x_t)``, ``(batch,)``, by operations that autograd follows
    w : weight of the gradient
    """

    denoise: Denoiser
    q: GaussianDiffusion
    log_class: Callable[[Tensor, int], Tensor]
    w: float

    def __post_init__(self) -> None:
        _check_weight(self.w)
        check_process(self.q, self.denoise)

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """Return x̂_0, of the shape of ``x_t``."""
        with torch.enable_grad():  # a walk runs without gradients
            x = x_t.detach().requires_grad_()
            total = self.log_class(x, t).sum()
            (gradient,) = torch.autograd.grad(total, x)
        level = self.q.schedule.level(t)
        push = self.w * level.noise_var / level.signal
        return weighted_sum(1.0, self.denoise(x_t, t), push, gradient)


@dataclass(frozen=True, eq=False)
class LabelledMixture:
    """A Gaussian mixture whose parts carry labels: p(x), p(x | y) and p(y | x) are all known. Book: [](#eq-g9-world).

    Parameters
    ----------
    law : p(x), of k parts
    labels : int64 ``(k,)``, the class of each part: 0, 1, ..; ``ValueError`` for another shape
    """

    law: GaussianMixture
    labels: Tensor

    def __post_init__(self) -> None:
        expected = self.law.weights.shape
        if self.labels.shape != expected or self.labels.is_floating_point():
            raise ValueError(
                f"labels {tuple(self.labels.shape)}: expected one whole number for each of the {expected[0]} parts"
            )

    def given(self, label: int) -> GaussianMixture:
        """Return p(x | y), the mixture of the parts of a class; ``ValueError`` for a class without parts."""
        chosen = self.labels == label
        if not bool(chosen.any()):
            raise ValueError(
                f"label = {label}: expected one of {sorted(set(self.labels.tolist()))}"
            )
        law = self.law
        return GaussianMixture(
            law.weights[chosen], law.means[chosen], law.variances[chosen]
        )

    def share(self, label: int) -> float:
        """Return p(y), the weight of a class."""
        return self.law.weights[self.labels == label].sum().item()

    def diffused(self, q: GaussianDiffusion, t: int) -> LabelledMixture:
        """Return the law of (x_t, y): noise leaves the labels as they are."""
        return LabelledMixture(self.law.diffused(q, t), self.labels)

    def log_class(self, label: int, x: Tensor) -> Tensor:
        """Log p(y | x) by Bayes' rule, ``(batch,)``."""
        prior = math.log(self.share(label))
        return prior + self.given(label).log_prob(x) - self.law.log_prob(x)

    def log_tilted(self, label: int, w: float, x: Tensor) -> Tensor:
        """Log p(x) + w log p(y | x), the tilted law up to a constant, ``(batch,)``. Book: [](#eq-g9-tilted)."""
        return self.law.log_prob(x) + w * self.log_class(label, x)

    def sample_tilted(
        self,
        n: int,
        label: int,
        w: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``(n, d)`` independent samples of p(x) p(y | x)^w/Z, exactly, by rejection. Book: [](#eq-g9-rejection).

        From w = 1 on, proposals are drawn from p(x | y) and kept with probability p(y | x)^(w − 1), below it from p(x)
        and p(y | x)^w. ``ValueError`` for a negative w.
        """
        _check_weight(w)
        if w < 0:
            raise ValueError(f"w = {w}: expected a number of at least 0")
        law, power = (self.law, w) if w < 1 else (self.given(label), w - 1)
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:
            x = law.sample(2 * n, generator)
            u = torch.rand(len(x), generator=generator, dtype=x.dtype)
            kept.append(x[u.log() <= power * self.log_class(label, x)])
        return torch.cat(kept)[:n]

    def guided(
        self, q: GaussianDiffusion, label: int, w: float
    ) -> Extrapolated:
        """Return classifier-free guidance with the two exact denoisers."""
        return classifier_free(
            self.given(label).denoiser(q), self.law.denoiser(q), w
        )


@dataclass(frozen=True, eq=False)
class ClassTwist:
    """The exact w log q(y | x_t) as what bends a walk of particles, which then draw from the tilted law.

    ``(x_t, t) -> Guess`` for :func:`~ddpm_nb.inverse.particles.twisted_walk`. Book: [](#eq-g9-particles).

    Parameters
    ----------
    world : p(x), p(x | y) and p(y | x)
    q : the forward process
    label, w : the class and the weight
    """

    world: LabelledMixture
    q: GaussianDiffusion
    label: int
    w: float

    def __call__(self, x_t: Tensor, t: Any) -> Guess:
        """Return x̂_0 of all data, w log q(y | x_t), and its gradient in x_t."""
        at, law = self.world.diffused(self.q, t), self.world.law
        given = at.given(self.label)
        pull = given.grad_log_prob(x_t) - at.law.grad_log_prob(x_t)
        x_0 = law.posterior_mean(self.q, x_t, t) if t else x_t
        log_prob = self.w * at.log_class(self.label, x_t)
        return Guess(x_0, log_prob, self.w * pull)


def _check_weight(w: float) -> None:
    if not abs(w) < float("inf"):
        raise ValueError(f"w = {w}: expected a finite weight")
