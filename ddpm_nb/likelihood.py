"""Chapter 5. How likely are data: by the probability flow, whose density follows from a divergence, and by a bound.

Along the flow dx/du = F(x, u) the log density changes by −∇·F, so that one solution of an ODE from the data to the
prior gives the density of the model exactly. The bound of chapter 4 in the limit of many steps is an integral over the
log signal-to-noise ratio. Data with a few grey levels are compared in bits per dimension.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import torch
import torchdiffeq
from torch import Tensor

from ddpm_nb.bound import BoundTerms, Decoder, prior_term, reconstruction_term
from ddpm_nb.denoiser import EPS, Parameterization
from ddpm_nb.diffusion import GaussianDiffusion, weighted_sum
from ddpm_nb.exact import CorrelatedGaussian, GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.precision import drawn_on
from ddpm_nb.schedule import Time
from ddpm_nb.sde import VPSDE, Field, heun, observed, solve_ode

__all__ = [
    "adaptively",
    "by_heun",
    "continuous_bound",
    "dequantized",
    "divergence",
    "hutchinson",
    "network_eps",
    "ode_log_prob",
    "score_of_eps",
    "signs",
]

# (field, x, u) -> the divergence of the field at x, (batch,)
Trace = Callable[[Field, Tensor, float], Tensor]
# (field, x, times) -> x at the last of the times
Solve = Callable[[Field, Tensor, Tensor], Tensor]


def divergence(field: Field, x: Tensor, u: float) -> Tensor:
    """Σ_i ∂ field_i / ∂ x_i, the exact trace by d backward passes: ``(batch,)`` for x ``(batch, *event)``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        columns = field(x, u).flatten(1).sum(0)
        rows = [
            torch.autograd.grad(c, x, retain_graph=True)[0].flatten(1)[:, i]
            for i, c in enumerate(columns)
        ]
    return torch.stack(rows).sum(0)


def hutchinson(probe: Tensor) -> Trace:
    """Return (field, x, u) ↦ probeᵀ (∂ field/∂x) probe, the divergence on average, by one backward pass: ``(batch,)``.

    ``probe``, of the shape of x, needs E[probe probeᵀ] = I, see :func:`signs`. Kept fixed along a path it leaves an
    ODE an ODE. Source: Hutchinson 1989, Grathwohl et al. 2019. Book: [Hutchinson's estimate](#eq-s5-hutchinson).
    """

    def estimate(field: Field, x: Tensor, u: float) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(field(x, u), x, grad_outputs=probe)
        return (pulled * probe).flatten(1).sum(1)

    return estimate


def signs(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a probe for :func:`hutchinson`: independent −1 and 1, each as likely, of the shape and dtype of ``x``."""
    device = drawn_on(generator, x)
    coins = torch.randint(0, 2, x.shape, generator=generator, device=device)
    return 2.0 * coins.to(x) - 1.0


def by_heun(field: Field, x: Tensor, times: Tensor) -> Tensor:
    """Return x at the last of ``times``, one step of Heun's method between two of them."""
    return deque(solve_ode(heun, field, x, times), maxlen=1).pop()[1]


def adaptively(tolerance: float) -> Solve:
    """Return a solver that takes the first and last of ``times`` only and chooses its steps (Dormand–Prince, order 5).

    ``tolerance`` is allowed per step, relative and absolute. The method is that of ``torchdiffeq``.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance = {tolerance}: expected a positive number")

    def solve(field: Field, x: Tensor, times: Tensor) -> Tensor:
        def slope(u: Tensor, x: Tensor) -> Tensor:
            return field(x, float(u))

        ends = times[[0, -1]].to(x.dtype)
        with torch.no_grad():
            states = torchdiffeq.odeint(
                slope, x, ends, rtol=tolerance, atol=tolerance
            )
        return states[-1]

    return solve


def ode_log_prob(
    sde: VPSDE,
    score: Field,
    x: Tensor,
    times: Tensor,
    prior: GaussianMixture | CorrelatedGaussian | Gaussian,
    trace: Trace = divergence,
    solve: Solve = by_heun,
) -> Tensor:
    """Log density of the probability-flow model at x ``(batch, *event)``, in nats, ``(batch,)``.

    log p(x) = log prior(x at the last time) + ∫ div du along the flow; ``times`` rise from the data's time to the
    prior's. Book: [](#eq-s5-log-density).
    """
    flow = sde.reverse(score, noise=0.0).drift

    def with_divergence(state: Tensor, u: float) -> Tensor:
        here = state[:, :-1].reshape(x.shape)
        slope = flow(here, u).flatten(1)
        return torch.cat([slope, trace(flow, here, u)[:, None]], dim=1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    end = solve(with_divergence, start, times)
    return prior.log_prob(end[:, :-1].reshape(x.shape)) + end[:, -1]


def network_eps(
    sde: VPSDE,
    network: Callable[[Tensor, Tensor], Tensor],
    parameterization: Parameterization,
    T: int,
) -> Field:
    """Return (x, u) ↦ ε̂, a network trained on the steps 1..T asked at the step uT, which need not be whole.

    Its embedding of time is a smooth function of the step, so that between two steps it interpolates.
    """

    def eps(x: Tensor, u: float) -> Tensor:
        # The one step of this chain ends at the noise level of u.
        here = GaussianDiffusion(observed(sde, [u]))
        step = torch.full(x.shape[:1], u * T, dtype=x.dtype, device=x.device)
        return parameterization.eps(here, network(x, step), x, 1)

    return eps


def score_of_eps(sde: VPSDE, eps: Field) -> Field:
    """Return (x, u) ↦ −ε̂/√(1 − ᾱ(u)), u > 0. Book: [](#eq-s5-noise-score)."""
    return lambda x, u: -eps(x, u) / sde.level(u).noise


def continuous_bound(
    sde: VPSDE,
    eps: Field,
    x_0: Tensor,
    times: Tensor,
    decoder: Decoder,
    generator: torch.Generator | None = None,
) -> BoundTerms:
    """L_T + ½ ∫ E‖ε − ε̂‖² dγ + L_0 in nats, where γ(u) = −log SNR rises: the bound of infinitely many steps.

    One draw of x_u for each interval of ``times``, at its middle, is a row of ``steps``. The data are decoded at the
    first time, u > 0; the last is the prior's. Source: Kingma et al. 2021. Book: [](#eq-s5-vlb).
    """

    def noised(u: float) -> tuple[Tensor, Tensor]:
        level = sde.level(u)
        noise = Gaussian(torch.zeros_like(x_0), 1.0).sample(generator)
        return noise, weighted_sum(level.signal, x_0, level.noise, noise)

    start, stop = times[0].item(), times[-1].item()
    first = GaussianDiffusion(observed(sde, [start]))
    whole = GaussianDiffusion(observed(sde, [stop]))

    def denoise(x: Tensor, t: Time) -> Tensor:
        return EPS.x_0(first, eps(x, start), x, t)

    steps = []
    with torch.no_grad():
        for u, v in pairwise(times.tolist()):
            middle = (u + v) / 2
            noise, x = noised(middle)
            error = (noise - eps(x, middle)).square().flatten(1).sum(1)
            rise = sde.level(u).log_snr - sde.level(v).log_snr
            steps.append(0.5 * rise * error)
        _, x_1 = noised(start)
        decoded = reconstruction_term(first, denoise, x_0, x_1, decoder)
        return BoundTerms(prior_term(whole, x_0), torch.stack(steps), decoded)


def dequantized(
    x_0: Tensor, levels: int, generator: torch.Generator | None = None
) -> tuple[Tensor, float]:
    """Spread each of ``levels`` equally spaced values in [−1, 1] uniformly over its cell; also log of a cell's volume.

    −log P(x_0) ≤ −E[log p(spread)] − d log width, in nats, for the P that p gives the cells.
    Book: [dequantization](#eq-s5-dequantization).
    """
    if levels < 2:
        raise ValueError(f"levels = {levels}: expected at least 2")
    width = 2.0 / (levels - 1)
    device = drawn_on(generator, x_0)
    uniform = torch.rand(x_0.shape, generator=generator, device=device).to(x_0)
    return x_0 + width * (uniform - 0.5), x_0[0].numel() * math.log(width)
