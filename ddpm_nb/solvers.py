"""Chapter 7. Kernels that reach the data in fewer steps: Heun's method, DPM-Solver++(2M), Langevin corrections.

They are walked by :func:`ddpm_nb.kernels.walk` like any other kernel. The first two solve the probability flow, whose
first-order scheme is DDIM with η = 0; the third adds draws at a fixed noise level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ddpm_nb.denoiser import Denoiser, check_process, predicted_noise
from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import Kernel, Multistep
from ddpm_nb.registry import Registry
from ddpm_nb.sampling import DDIM, Ancestral
from ddpm_nb.schedule import added_var
from ddpm_nb.sde import PredictorCorrector

__all__ = ["SAMPLERS", "DPMSolver2M", "Heun", "corrected"]


@dataclass(frozen=True, eq=False)
class Heun:
    """x_s = √(ᾱ_s/ᾱ_t) x_t + √ᾱ_s (σ̃_s − σ̃_t) (ε̂_t + ε̂_s)/2 with σ̃ = √((1 − ᾱ)/ᾱ): order 2, two calls of the denoiser.

    ε̂_s is predicted where the step with ε̂_t alone, which is that of DDIM, arrives. At s = 0 there is no noise left to
    predict and the step is that of DDIM. So is a leap through noise, σ̃_t > 2.5 and σ̃_t > ``leap`` σ̃_s, such as
    the first step of the cosine schedule: there the look ahead multiplies a small difference of two slopes by a span as
    long as σ̃_t, and does harm even with an exact denoiser. Source: Karras et al. 2022, Algorithm 1 without churn. Book:
    [](#eq-m7-heun), [](#eq-m7-leap).

    Parameters
    ----------
    q : the forward process, that of the denoiser (``ValueError`` if it knows another)
    denoise : ``(x_t, t) -> x̂_0``
    leap : more than 1; infinity for the plain method. The default is about where, for N(0, 1), DDIM is the nearer
    """

    q: GaussianDiffusion
    denoise: Denoiser
    leap: float = 2.2

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)
        if not self.leap > 1:
            raise ValueError(
                f"leap = {self.leap}: expected a factor above 1, of the noise before and after a step"
            )

    def __call__(self, x_t: Tensor, s: int, t: int) -> Gaussian:
        """Return the point mass at x_s."""
        before, here = self.q.schedule.levels(s, t)
        keep = before.signal / here.signal
        push = before.noise - keep * here.noise  # √ᾱ_s (σ̃_s − σ̃_t)
        eps = predicted_noise(self.q, self.denoise, x_t, t)
        x_s = weighted_sum(keep, x_t, push, eps)
        leaps = here.sigma > 2.5 and here.sigma > self.leap * before.sigma
        if s > 0 and not leaps:
            eps = (eps + predicted_noise(self.q, self.denoise, x_s, s)) / 2
            x_s = weighted_sum(keep, x_t, push, eps)
        return Gaussian(x_s, 0.0)


@dataclass(frozen=True, eq=False)
class DPMSolver2M(Multistep):
    """x_s = √((1−ᾱ_s)/(1−ᾱ_t)) x_t + √ᾱ_s (1 − e^{−h}) D, h = λ_s − λ_t, λ = ½ log SNR: order 2, one call a step.

    D = x̂_0 + (h/2h′)(x̂_0 − x̂_0′) continues the line through this estimate and that of the step before, a distance h′ in
    λ away. At the first step there is none before, at s = 0 the distance is infinite; there D = x̂_0, which is DDIM.
    Source: Lu et al. 2022, DPM-Solver++(2M). Book: [](#eq-m7-2m).

    The memory is a value: :meth:`advance` leaves this kernel as it is and returns the one that knows the estimate.

    Parameters
    ----------
    q : the forward process
    denoise : ``(x_t, t) -> x̂_0``
    memory : the step that was left last and the estimate made there; ``None`` at the start of a walk
    """

    q: GaussianDiffusion
    denoise: Denoiser
    memory: tuple[int, Tensor] | None = None

    def __post_init__(self) -> None:
        check_process(self.q, self.denoise)

    def advance(
        self, x_t: Tensor, s: int, t: int
    ) -> tuple[Gaussian, DPMSolver2M]:
        """Return the point mass at x_s, and the kernel of the next step."""
        before, here = self.q.schedule.levels(s, t)
        x_0 = direction = self.denoise(x_t, t)
        if s > 0 and self.memory is not None:
            earlier, x_0_earlier = self.memory
            # Here h and h′ are steps of log SNR = 2λ. Their ratio is the same.
            h = before.log_snr - here.log_snr
            h_earlier = here.log_snr - self.q.schedule.level(earlier).log_snr
            r = h / h_earlier
            direction = weighted_sum(1 + r / 2, x_0, -r / 2, x_0_earlier)
        keep = before.noise / here.noise
        # This is √ᾱ_s (1 − e^{−h}), as e^{−h} = keep · √(ᾱ_t/ᾱ_s). It holds at
        # s = 0 too, where h is infinite.
        push = before.signal - keep * here.signal
        x_s = weighted_sum(keep, x_t, push, direction)
        return Gaussian(x_s, 0.0), replace(self, memory=(t, x_0))


def corrected(
    predictor: Kernel,
    q: GaussianDiffusion,
    denoise: Denoiser,
    ratio: float = 0.1,
    corrections: int = 1,
) -> PredictorCorrector:
    """Return a predictor's step from t to s, then Langevin steps at s, which draw x_s nearer to the law q_s.

    Each is N(x + ½ δ score, δ I) with the score −ε̂/√(1−ᾱ_s) and δ = ``ratio`` · (1 − ᾱ_s), a part of the noise that is
    there. Nothing is corrected at s = 0. Source: Song et al. 2021, Algorithm 1. Book: [](#eq-m7-corrector).

    Parameters
    ----------
    predictor : any kernel
    q, denoise : the forward process, and the denoiser that gives the score
    ratio : size of a Langevin step, positive
    corrections : Langevin steps after each step of the predictor
    """
    check_process(q, predictor, "predictor")
    check_process(q, denoise)
    if not ratio > 0:
        raise ValueError(f"ratio = {ratio}: expected a positive number")

    def score(x: Tensor, s: int) -> Tensor:
        factor = -1 / q.schedule.level(s).noise
        return predicted_noise(q, denoise, x, s) * factor

    def size(s: int) -> float:
        return ratio * q.schedule.level(s).noise_var

    return PredictorCorrector(predictor, score, size, corrections)


SAMPLERS: Registry[Callable[[GaussianDiffusion, Denoiser], Kernel]] = Registry(
    "sampler",
    {
        "ancestral": Ancestral,
        "ancestral_beta": lambda q, denoise: Ancestral(q, denoise, added_var),
        "ddim": DDIM,
        "heun": Heun,
        "dpm_solver_2m": DPMSolver2M,
        "corrected": lambda q, denoise: corrected(
            Ancestral(q, denoise), q, denoise
        ),
    },
)
"""(forward process, denoiser) ↦ kernel, by the names that notebooks and commands use."""
