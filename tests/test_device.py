"""Nothing mixes devices and no loop waits for a GPU: every walk, loss, bound, likelihood, metric and law, pretended.

What a run waits for must not depend on its number of steps: each case runs with n and with 2n of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_cuda import DevicesMixError, NoFloat64Error, Pretended, network_on_cuda, on_cuda
from torch import Tensor

from ddpm_nb import inverse, metrics
from ddpm_nb.belief import Belief
from ddpm_nb.bound import bound_terms, discretized_decoder, gap_terms, ledger, simple_loss
from ddpm_nb.denoiser import PARAMETERIZATIONS, NetworkDenoiser, clipped, thresholded
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import CorrelatedGaussian, GaussianMixture, empirical
from ddpm_nb.gaussian import Gaussian, observe, product
from ddpm_nb.kernels import follow, grid, last, walk
from ddpm_nb.latents import encode, great_circle
from ddpm_nb.likelihood import by_heun, continuous_bound, dequantized, hutchinson, ode_log_prob, score_of_eps, signs
from ddpm_nb.nets import MLP, image_unet
from ddpm_nb.sampling import DDIM, Ancestral, variance_between
from ddpm_nb.schedule import SCHEDULES, added_var
from ddpm_nb.sde import (
    PredictorCorrector,
    chain_sde,
    euler_maruyama,
    euler_maruyama_kernel,
    exact_score,
    fokker_planck_residual,
    heun,
    solve_ode,
)
from ddpm_nb.solvers import SAMPLERS
from ddpm_nb.training import Ema, Learner, Objective, Plan, train
from ddpm_nb.weighting import STEP_DRAWS, WEIGHTINGS

Q = GaussianDiffusion(SCHEDULES["cosine"](64))
Case = Callable[[int], Any]


def points(n: int = 6, d: int = 4) -> Tensor:
    return on_cuda(torch.randn(n, d, generator=torch.Generator().manual_seed(1)))


def images(n: int = 3) -> Tensor:
    return on_cuda(torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    return 0.1 * x_t * t.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype) / 64


def denoiser(name: str = "eps") -> NetworkDenoiser:
    return NetworkDenoiser(network, PARAMETERIZATIONS[name], Q)


MIXTURE = GaussianMixture(torch.ones(3), torch.eye(3, 4), torch.tensor([0.1, 0.2, 0.3]))
UNEVEN = GaussianMixture(torch.ones(2), torch.eye(2, 4), torch.rand(2, 4) + 0.1)
CORRELATED = CorrelatedGaussian.of(torch.zeros(4), torch.eye(4) + 0.5)
SDE = chain_sde(Q.schedule)


def clock(n: int, start: float = 1.0, stop: float = 0.1) -> Tensor:
    return torch.linspace(start, stop, n + 1, dtype=torch.float64)


def measurement(sigma_y: float = 0.1) -> inverse.Measurement:
    return inverse.Measurement(inverse.Mask(torch.tensor([True, False, True, False])), points()[:, :2], sigma_y)


def likelihood() -> inverse.Likelihood:
    return inverse.Likelihood(MIXTURE.denoiser(Q), Q, measurement(), inverse.gaussian_spread())


def walks(make: Callable[[], Any]) -> Case:
    return lambda n: last(walk(make(), points(), grid(64, n))).x


def trained(n: int) -> Learner:
    net = network_on_cuda(MLP(4, 16, 1))
    learner = Learner(net, torch.optim.SGD(net.parameters()), Ema(MLP(4, 16, 1)))
    objective = Objective(Q, PARAMETERIZATIONS["v"], WEIGHTINGS["bound"], STEP_DRAWS["stratified"])
    for step in train(net, learner.optimizer, objective, points(20), Plan(n, 8, lambda step: 1e-3)):
        learner.losses.append(step.loss)
    learner.state_dict()
    return learner


ONE_OUTPUT = [name for name, target in PARAMETERIZATIONS.items() if target.outputs == 1]
CASES: dict[str, Case] = {
    **{f"sampler {name}": walks(lambda make=make: make(Q, denoiser())) for name, make in SAMPLERS.items()},
    **{f"clipped {name}": walks(lambda make=make: make(Q, clipped(denoiser()))) for name, make in SAMPLERS.items()},
    **{f"predicts {name}": walks(lambda name=name: DDIM(Q, denoiser(name), 0.5)) for name in ONE_OUTPUT},
    "thresholded": walks(lambda: DDIM(Q, thresholded(denoiser()))),
    "exact": walks(lambda: Ancestral(Q, MIXTURE.denoiser(Q), variance_between(0.5))),
    "exact, uneven": walks(lambda: Ancestral(Q, UNEVEN.denoiser(Q), added_var)),
    "exact, correlated": walks(lambda: Ancestral(Q, CORRELATED.denoiser(Q))),
    "known by heart": walks(lambda: DDIM(Q, empirical(points()).denoiser(Q))),
    "encode": lambda n: last(encode(Q, denoiser(), points(), grid(64, n)[1:], iterations=3)),
    "replacement": walks(lambda: inverse.Replacement(DDIM(Q, denoiser(), 1.0), Q, measurement())),
    "RePaint": walks(lambda: inverse.RePaint(inverse.Replacement(DDIM(Q, denoiser(), 1.0), Q, measurement()), Q, 2)),
    "DPS": walks(lambda: inverse.DPS(Ancestral(Q, denoiser()), denoiser(), measurement())),
    "PGDM": walks(lambda: inverse.PGDM(likelihood())),
    "guided": walks(lambda: DDIM(Q, inverse.guided(denoiser(), Q, measurement(), inverse.gaussian_spread()))),
    "twisted": lambda n: last(inverse.twisted_walk(likelihood(), points(6), grid(64, n), particles=6)).log_evidence,
    "Euler-Maruyama": lambda n: [*euler_maruyama(SDE.reverse(exact_score(SDE, MIXTURE)), points(), clock(n))],
    "corrected SDE": lambda n: [
        *follow(
            PredictorCorrector(
                euler_maruyama_kernel(SDE.reverse(exact_score(SDE, CORRELATED))),
                exact_score(SDE, CORRELATED),
                lambda u: 0.01,
            ),
            points(),
            clock(n).tolist(),
        )
    ],
    "flow": lambda n: [*solve_ode(heun, SDE.reverse(exact_score(SDE, MIXTURE), 0.0).drift, points(), clock(n))],
    "log density": lambda n: ode_log_prob(
        SDE, exact_score(SDE, MIXTURE), points(), clock(n, 0.1, 1.0), Gaussian(torch.zeros_like(points()), 1.0)
    ),
    "log density, estimated": lambda n: ode_log_prob(
        SDE, exact_score(SDE, UNEVEN), points(), clock(n, 0.1, 1.0), MIXTURE, hutchinson(signs(points())), by_heun
    ),
    "continuous bound": lambda n: continuous_bound(
        SDE, lambda x, u: 0.1 * x, images(), clock(n, 0.01, 1.0), discretized_decoder(256)
    ),
    "score of the noise": lambda n: [score_of_eps(SDE, lambda x, u: x)(points(), u) for u in clock(n).tolist()],
    "Fokker-Planck": lambda n: [
        fokker_planck_residual(
            SDE.forward(), lambda x, u: SDE.law(MIXTURE.to(x.device), u).log_prob(x).exp()[:, None], points(), u, 1e-2
        )
        for u in clock(n, 0.9, 0.1).tolist()
    ],
    "training": lambda n: trained(4 * n),
}


def bound_of(n: int, decoder: Any) -> Any:
    q = GaussianDiffusion(SCHEDULES["cosine"](n))
    return ledger(bound_terms(q, NetworkDenoiser(network, PARAMETERIZATIONS["eps"], q), images(), None, decoder))


def gaps_of(n: int, law: GaussianMixture) -> Any:
    q = GaussianDiffusion(SCHEDULES["cosine"](n))
    return gap_terms(law, q, law.denoiser(q), points(), None, posterior_var)


CASES |= {
    "bound": lambda n: bound_of(n, None),
    "bound of grey levels": lambda n: bound_of(n, discretized_decoder(256)),
    "gaps": lambda n: gaps_of(n, MIXTURE),
    "losses": lambda n: [
        weighting(Q.schedule, target, t) * simple_loss(Q, network, points(), t, points(), target)
        for target in (PARAMETERIZATIONS[name] for name in ONE_OUTPUT)
        for weighting in WEIGHTINGS.values()
        for t in [torch.arange(1, 7, device="cuda")] * n
    ],
    "laws": lambda n: [
        (
            Q.posterior(points(), points(), t - 1, t).kl(Q.posterior(points(), points(), t - 1, t + 2)),
            Q.transition(points(), t - 1, t).log_prob(points()),
            Q.marginal(points(), t).entropy(),
            product(Q.marginal(points(), t), Q.marginal(points(), t))[1],
            observe(Q.marginal(points(), t), 0.5, 0.1, points()).sample(),
            MIXTURE.score(Q, points(), t),
            CORRELATED.score(Q, points(), 5),
        )
        for t in [torch.arange(2, 8, device="cuda")] * n
    ],
    "great circle": lambda n: great_circle(points()[0], points()[1], [i / n for i in range(n)]),
    "dequantized": lambda n: [dequantized(images(), 256) for _ in range(n)],
    "belief": lambda n: [
        Belief().error(Q, images().repeat(1, 5, 1, 1), images(), images(), images(), t)
        for t in [torch.arange(1, 4, device="cuda")] * n
    ],
    "U-Net": lambda n: [
        network_on_cuda(image_unet(1, 8))(images(), torch.arange(3, device="cuda") + i) for i in range(n)
    ],
}


def counted(case: Case, n: int, kind: str = "cuda") -> tuple[Counter[Any], Counter[Any]]:
    with Pretended(kind) as seen:
        case(n)
    return seen.waits, seen.copies


@pytest.mark.parametrize("name", CASES)
def test_no_loop_waits_for_the_device_or_copies_to_it(name: str) -> None:
    counted(CASES[name], 4)  # what is copied once, to be kept, is there from now on
    (waits, copies), (twice_waits, twice_copies) = counted(CASES[name], 4), counted(CASES[name], 8)
    assert twice_waits == waits
    more = 2 * 4 * 4 if name == "training" else 0  # the host draws each batch and sends its rows and its steps
    assert sum(twice_copies.values()) == sum(copies.values()) + more, twice_copies - copies


METRICS: dict[str, Callable[[], Any]] = {
    "energy": lambda: metrics.energy_distance(points(), points(5)),
    "sliced": lambda: metrics.sliced_wasserstein(points(), points(), points(3)),
    "Fréchet": lambda: metrics.frechet_distance(points(9), points(8)),
    "precision": lambda: metrics.precision_recall(points(9), points(8)),
    "neighbours": lambda: metrics.nearest_neighbours(images(), images()),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_runs_on_one_device_and_waits_for_its_results_only(name: str) -> None:
    with Pretended() as seen:
        METRICS[name]()
    assert sum(seen.waits.values()) <= 4, seen.waits
    assert not seen.copies


@pytest.mark.parametrize("name", [*CASES, *METRICS])
def test_nothing_casts_to_float64_where_the_device_has_none(name: str) -> None:
    with Pretended("mps"):
        CASES[name](4) if name in CASES else METRICS[name]()


def test_the_stand_in_sees_what_it_is_for() -> None:
    with Pretended() as seen:
        x = points()
        with pytest.raises(DevicesMixError):
            x + torch.ones(4)
        with pytest.raises(DevicesMixError):
            torch.ones(4) * x
        assert (x + torch.ones(())).device.type == "cuda"
        float(x.sum())
        bool((x > 0).all())
        x[x > 0]
        x.cpu()
        torch.ones(3).to(x)
        torch.ones(3, device="cuda") + torch.zeros(3, device=x.device)
    assert sum(seen.waits.values()) == 4
    assert sum(seen.copies.values()) == 2
    with Pretended("mps"), pytest.raises(NoFloat64Error):
        points().double()
