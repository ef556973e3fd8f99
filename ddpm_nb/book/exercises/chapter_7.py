"""Chapter 7: a sampler to repair, the spread of samples after few steps, DDIM with a corrector."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import Exercise
from ddpm_nb.book.exercises.compare import Slip, compare
from ddpm_nb.book.exercises.tensors import f64, normal
from ddpm_nb.denoiser import EPS
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import NoiseSchedule, Time, added_var

# 7.1: a sampler with three published slips


class _ExactNoise:
    """E[ε | x_t] for data N(0, var), as a network that takes the step as an int."""

    def __init__(self, betas: Tensor, var: float) -> None:
        self.q = GaussianDiffusion(NoiseSchedule.from_betas(betas))
        self.var = var

    def __call__(self, x: Tensor, t: int) -> Tensor:
        level = self.q.schedule.level(t)
        return level.noise / (level.alpha_bar * self.var + level.noise_var) * x

    def __repr__(self) -> str:
        return f"the exact noise for data N(0, {self.var:g})"


def _walked(
    x_T: Tensor, betas: Tensor, predict_eps: _ExactNoise, noise: Tensor
) -> Tensor:
    """The package's ancestral kernel, with the given noise in place of its own."""
    q, T = predict_eps.q, predict_eps.q.schedule.T

    def denoise(x: Tensor, t: Time) -> Tensor:
        return EPS.x_0(q, predict_eps(x, int(t)), x, t)

    # Here noise[0] is that of the last step.
    kernel = Ancestral(q, denoise, added_var)
    return last(walk(kernel, x_T, grid(T, T), noise=noise.flip(0))).x


def _loop(
    asked: int = 0,
    size: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda beta, a_s, a_t: (
        beta.sqrt()
    ),
    quiet: int = 1,
) -> Callable[..., Tensor]:
    """The printed loop, with the network asked at step t − asked, noise of a size, and none for t ≤ quiet."""

    def draw(
        x_T: Tensor, betas: Tensor, predict_eps: _ExactNoise, noise: Tensor
    ) -> Tensor:
        a = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])
        x = x_T
        for t in range(len(betas), 0, -1):
            beta, eps = betas[t - 1], predict_eps(x, t - asked)
            x = (x - beta / (1 - a[t]).sqrt() * eps) / (1 - beta).sqrt()
            if t > quiet:
                x = x + size(beta, a[t - 1], a[t]) * noise[t - 1]
        return x

    return draw


def _exercise_7_1(answer: Any) -> None:
    settings = [
        (f64([0.3]), 0.2),
        (f64([0.1, 0.4]), 1.0),
        (torch.linspace(1e-3, 0.4, 20, dtype=torch.float64), 0.3),
        (f64([0.5, 0.2, 0.05, 0.9]), 2.0),
    ]
    cases = [
        {
            "x_T": normal(3, seed=seed),
            "betas": betas,
            "predict_eps": _ExactNoise(betas, var),
            "noise": normal(len(betas), 3, seed=seed + 1),
        }
        for seed, (betas, var) in enumerate(settings)
    ]
    hints: dict[str, tuple[dict[str, Any], str]] = {
        "asked": (
            {"asked": 1},
            "The network is asked about another noise level than that of the state it is shown.",
        ),
        "size": (
            {"size": lambda beta, a_s, a_t: beta},
            "The noise is multiplied by a variance. What multiplies a standard normal to give it that variance?",
        ),
        "quiet": (
            {"quiet": 0},
            "Noise is added in the last step too: for which t of this loop is the condition false?",
        ),
    }
    slips = []
    for left in (1, 2, 3):
        for names in combinations(hints, left):
            changes: dict[str, Any] = {}
            for name in names:
                changes |= hints[name][0]
            count = ""
            if left > 1:
                number = ("Two", "Three")[left - 2]
                count = f"{number} slips are left, and this is one: "
            slips.append(Slip(_loop(**changes), count + hints[names[0]][1]))
    slips += [
        Slip(
            _loop(
                size=lambda beta, a_s, a_t: (
                    beta * (1 - a_s) / (1 - a_t)
                ).sqrt()
            ),
            "That is the smaller variance of the posterior. It is a sampler too, but the task asks for β_t.",
        ),
        Slip(
            _loop(quiet=2),
            "The step from 2 to 1 has its noise; only the one to 0 has none.",
        ),
        Slip(
            _loop(quiet=10**6),
            "You add no noise at all. The mean alone is not DDIM either: it is narrower than any law of x_s.",
        ),
        Slip(
            _loop(size=lambda beta, a_s, a_t: (beta / (1 - beta)).sqrt()),
            "You divide the noise by √α_t as well: it is added to the mean, after the division.",
        ),
    ]
    compare(answer, _walked, cases, slips, outputs=("x_0",))


# 7.2: the variance of DDIM's samples for Gaussian data


def _spread(v: Tensor, eta: Tensor, alpha_bars: Tensor) -> Tensor:
    """Walk two points through the package's kernel: for Gaussian data its mean is linear in x_t."""
    q = GaussianDiffusion(NoiseSchedule(alpha_bars.flip(0).log()))
    data = GaussianMixture(f64([1.0]), f64([[0.0]]), v.reshape(1))
    kernel = DDIM(q, data.denoiser(q), eta.item())
    var = f64(1.0)
    for t in range(q.schedule.T, 0, -1):
        law = kernel(f64([1.0])[None], t - 1, t)
        var = law.mean[0, 0].square() * var + law.var
    return var


def _recursion(
    start: Callable[[Tensor, Tensor], Tensor] = lambda v, a: torch.ones_like(v),
    fresh: Callable[[Tensor, Tensor], Tensor] = lambda eta, posterior: (
        eta**2 * posterior
    ),
    slope_square: Callable[[Tensor, Tensor], Tensor] = lambda one, other: (
        (one + other) ** 2
    ),
    guess_var: Callable[[Tensor], Tensor] = lambda v: v,
    add: float = 1.0,
) -> Callable[..., Tensor]:
    """The recursion with one of its parts replaced."""

    def variance(v: Tensor, eta: Tensor, alpha_bars: Tensor) -> Tensor:
        var = start(v, alpha_bars[0])
        for a_t, a_s in pairwise(alpha_bars):
            sigma = fresh(eta, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
            total = a_t * guess_var(v) + 1 - a_t
            one = a_s.sqrt() * a_t.sqrt() * guess_var(v) / total
            room = (1 - a_s - sigma).clamp(min=0)
            other = room.sqrt() * (1 - a_t).sqrt() / total
            var = slope_square(one, other) * var + add * sigma
        return var

    return variance


def _exercise_7_2(answer: Any) -> None:
    walks = [
        f64([1e-4, 1.0]),
        f64([0.01, 0.4, 1.0]),
        f64([0.3, 0.35, 0.8, 0.99, 1.0]),
        torch.linspace(1e-3, 1, 30).double(),
    ]
    cases = [
        {"v": f64(v), "eta": f64(eta), "alpha_bars": walk}
        for walk in walks
        for v, eta in ((0.25, 0.0), (0.25, 1.0), (1.0, 0.5), (4.0, 0.3))
    ]
    slips = [
        Slip(
            _recursion(start=lambda v, a: a * v + 1 - a),
            "You began with the variance that x_T has in training. A sampler does not know it: how does it begin?",
        ),
        Slip(
            _recursion(slope_square=lambda one, other: one**2 + other**2),
            "You added the variances of x̂_0 and of ε̂. Both are functions of the same x_t: add before squaring.",
        ),
        Slip(
            _recursion(fresh=lambda eta, posterior: eta * posterior),
            "η multiplies a standard deviation; it enters the variance in another power.",
        ),
        Slip(
            _recursion(fresh=lambda eta, posterior: (eta * posterior).sqrt()),
            "A standard deviation stands where the variance of the fresh noise belongs.",
        ),
        Slip(
            _recursion(add=0.0),
            "You left out the fresh noise: it makes room in the mean and comes back as variance.",
        ),
        Slip(
            _recursion(guess_var=lambda v: torch.ones_like(v)),
            "Your denoiser is that of data with variance 1. What is E[x_0 | x_t] for variance v?",
        ),
        Slip(
            lambda v, eta, alpha_bars: _spread(v, eta, alpha_bars).sqrt(),
            "That is the standard deviation; the variance was asked for.",
        ),
        Slip(
            lambda v, eta, alpha_bars: v,
            "That is the limit of many steps, from the right start. The steps here are few.",
        ),
    ]
    compare(answer, _spread, cases, slips, outputs=("the variance",))


# 7.3: DDIM is Euler's method; Heun's corrects it


class _TwoModes:
    """E[ε | x] at a level, for data of two equally likely Gaussians N(±1, var)."""

    def __init__(self, var: float) -> None:
        self.var = var

    def __call__(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        a = torch.as_tensor(alpha_bar, dtype=torch.float64)
        if not bool((a > 0) & (a < 1)):
            raise ValueError(
                f"predict_eps at alpha_bar = {a.item():g}: there is noise to predict only between 0 and 1"
            )
        total = a * self.var + 1 - a
        mode = torch.tanh(a.sqrt() * x / total)  # E[±1 | x]
        x_0 = (self.var * a.sqrt() * x + (1 - a) * mode) / total
        return (x - a.sqrt() * x_0) / (1 - a).sqrt()

    def __repr__(self) -> str:
        return f"the exact noise for two modes of variance {self.var:g}"


def _heun(
    x_t: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_s: Tensor,
    predict_eps: _TwoModes,
) -> Tensor:
    """The package's step, once with the first prediction and once with the mean of both."""
    levels = torch.stack([f64(1.0), alpha_bar_s, alpha_bar_t])
    # Where s is the clean data, its level stands twice.
    levels = levels[levels.diff(prepend=f64([2.0])) < 0]
    q = GaussianDiffusion(NoiseSchedule(levels.log()))
    t, s = q.schedule.T, q.schedule.T - 1

    def step(eps: Tensor) -> Tensor:
        return DDIM(q, lambda x, t: EPS.x_0(q, eps, x, t))(x_t, s, t).mean

    eps = predict_eps(x_t, alpha_bar_t)
    guess = step(eps)
    if s == 0:
        return guess
    return step(0.5 * (eps + predict_eps(guess, alpha_bar_s)))


def _corrected(
    second: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]
    ],
    mix: float = 0.5,
    scaled: bool = True,
) -> Callable[..., Tensor]:
    """Heun's step with another place or weight of the second prediction; Euler's to the clean data."""

    def step(
        x_t: Tensor,
        alpha_bar_t: Tensor,
        alpha_bar_s: Tensor,
        predict_eps: _TwoModes,
    ) -> Tensor:
        a_t, a_s = alpha_bar_t, alpha_bar_s
        noise_t, noise_s = ((1 - a).sqrt() for a in (a_t, a_s))
        eps = predict_eps(x_t, a_t)

        def move(eps: Tensor) -> Tensor:
            if not scaled:
                return x_t + (noise_s - noise_t) * eps
            signal = a_s.sqrt() * (x_t - noise_t * eps) / a_t.sqrt()
            return signal + noise_s * eps

        guess = move(eps)
        if a_s == 1 or mix == 0:
            return guess
        eps_s = predict_eps(*second(x_t, guess, a_t, a_s, eps))
        return move((1 - mix) * eps + mix * eps_s)

    return step


def _exercise_7_3(answer: Any) -> None:
    x = f64([-1.5, 0.2, 0.9])
    cases = [
        {
            "x_t": x,
            "alpha_bar_t": f64(t),
            "alpha_bar_s": f64(s),
            "predict_eps": _TwoModes(var),
        }
        for t, s in ((0.5, 0.8), (0.02, 0.1), (0.9, 0.999), (0.7, 1.0))
        for var in (0.05, 0.5)
    ]

    def ordinary(
        x_t: Tensor, guess: Tensor, a_t: Tensor, a_s: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        return guess, a_s

    slips = [
        Slip(
            _corrected(ordinary, mix=0),
            "That is DDIM: one prediction. The corrector needs a second one, at the place where the first step led.",
        ),
        Slip(
            _corrected(ordinary, mix=1),
            "You used the second prediction alone. Heun's step takes both with equal weight.",
        ),
        Slip(
            _corrected(lambda x_t, guess, a_t, a_s, eps: (x_t, a_s)),
            "The second prediction is made from x_t; make it from the state at s that the first step proposes.",
        ),
        Slip(
            _corrected(lambda x_t, guess, a_t, a_s, eps: (guess, a_t)),
            "The proposed state has the noise of s, but the network is told that of t.",
        ),
        Slip(
            _corrected(
                lambda x_t, guess, a_t, a_s, eps: (guess / a_s.sqrt(), a_s)
            ),
            "The network is shown the state divided by its signal weight. It was trained on the state itself.",
        ),
        Slip(
            _corrected(ordinary, scaled=False),
            "The straight line is that of x/√ᾱ against √((1−ᾱ)/ᾱ); you drew it for x itself.",
        ),
        Slip(
            lambda x_t, alpha_bar_t, alpha_bar_s, predict_eps: (
                _heun(x_t, alpha_bar_t, alpha_bar_s, predict_eps)
                / alpha_bar_s.sqrt()
            ),
            "You return the state divided by its signal weight.",
        ),
    ]
    compare(answer, _heun, cases, slips, outputs=("x_s",))


EXERCISES: dict[str, Exercise] = {
    "7.1": _exercise_7_1,
    "7.2": _exercise_7_2,
    "7.3": _exercise_7_3,
}
