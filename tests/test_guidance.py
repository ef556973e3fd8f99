"""Chapter 9: guidance against a world in which the tilted law is known."""

import math

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.denoiser import EPS, X0, NetworkDenoiser, V, predicted_noise
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.guidance import (
    ClassifierGuided,
    ClassTwist,
    LabelledMixture,
    Limited,
    autoguided,
    classifier_free,
)
from ddpm_nb.inverse import twisted_walk
from ddpm_nb.kernels import grid, last, walk
from ddpm_nb.metrics import energy_distance
from ddpm_nb.nets import built
from ddpm_nb.sampling import DDIM
from ddpm_nb.schedule import cosine_schedule, linear_schedule

Q = GaussianDiffusion(cosine_schedule(1000))
LAW = GaussianMixture(
    torch.tensor([2.0, 1.0, 2.0, 1.0]),
    torch.tensor([[-0.9, 0.4], [0.9, 1.1], [0.2, -0.3], [-1.2, -1.0]]),
    torch.tensor([0.15, 0.05, 0.2, 0.1]),
)
WORLD = LabelledMixture(LAW, torch.tensor([0, 0, 1, 1]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x() -> torch.Tensor:
    return WORLD.law.sample(300, seeded())


def test_the_classes_of_a_labelled_mixture_make_up_the_law(x):
    log_joint = [math.log(WORLD.share(y)) + WORLD.given(y).log_prob(x) for y in (0, 1)]
    assert_close(torch.stack(log_joint).logsumexp(0), WORLD.law.log_prob(x), rtol=1e-12, atol=1e-12)
    assert_close(sum(WORLD.log_class(y, x).exp() for y in (0, 1)), torch.ones(300, dtype=x.dtype), rtol=1e-12, atol=0)
    assert (WORLD.share(0), WORLD.share(1)) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("t", [1, 50, 500, 950])
def test_the_denoiser_of_all_data_averages_those_of_the_classes(x, t):
    here = WORLD.diffused(Q, t)
    pooled = sum(here.log_class(y, x).exp()[:, None] * WORLD.given(y).denoiser(Q)(x, t) for y in (0, 1))
    assert_close(pooled, WORLD.law.denoiser(Q)(x, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [-1.0, 0.0, 1.0, 3.5])
@pytest.mark.parametrize("t", [1, 50, 500, 950])
def test_the_score_of_guidance_is_that_of_the_tilted_diffused_laws(x, t, w):
    """By automatic differentiation of log q(x_t) + w log q(y | x_t), which shares no line with the denoisers."""
    here, point = WORLD.diffused(Q, t), x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(here.log_tilted(0, w, point).sum(), point)
    level = Q.schedule.level(t)
    by_classifier = ClassifierGuided(LAW.denoiser(Q), Q, lambda x, t: WORLD.diffused(Q, t).log_class(0, x), w)
    for denoise in (WORLD.guided(Q, 0, w), by_classifier):
        score = (level.signal * denoise(x, t) - x) / level.noise_var
        assert_close(score, gradient, rtol=1e-9, atol=1e-9)


def test_the_weight_is_that_of_the_formula_of_others_for_the_noise(x):
    """Diffusers write ε_∅ + w (ε_y − ε_∅), Ho & Salimans (1 + w′) ε_y − w′ ε_∅ with w = 1 + w′."""
    given, none, t, w = WORLD.given(0).denoiser(Q), LAW.denoiser(Q), 400, 2.5
    eps = predicted_noise(Q, classifier_free(given, none, w), x, t)
    eps_y, eps_none = (predicted_noise(Q, part, x, t) for part in (given, none))
    assert_close(eps, eps_none + w * (eps_y - eps_none), rtol=1e-10, atol=1e-10)
    assert_close(eps, w * eps_y - (w - 1) * eps_none, rtol=1e-10, atol=1e-10)
    slip = (1 + w) * eps_y - w * eps_none
    assert (slip - eps).abs().max() > 0.1


@pytest.mark.parametrize("target", [EPS, X0, V])
def test_a_guided_step_is_that_of_diffusers(target):
    """One DDIM step from t = 500 with guidance by diffusers' scheduler, for every prediction type, in float64."""
    from diffusers import DDIMScheduler

    q = GaussianDiffusion(linear_schedule(1000))
    network = built("unet", 1, 8, classes=3).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(1), dtype=torch.float64))
    x_t, w, t, s = torch.randn(4, 1, 8, 8, generator=seeded(2), dtype=torch.float64), 3.0, 500, 480
    label = torch.tensor([0, 1, 2, 1])
    denoise = NetworkDenoiser(network, target, q)
    given, none = (NetworkDenoiser(network, target, q, y) for y in (label, -1))
    with torch.no_grad():
        ours = DDIM(q, classifier_free(given, none, w))(x_t, s, t).mean
        steps = torch.full((4,), t)
        out_none, out_given = network(x_t, steps, torch.full((4,), -1)), network(x_t, steps, label)
        out = out_none + w * (out_given - out_none)
        assert torch.equal(denoise(x_t, t), none(x_t, t))  # without a label all are "none"
    names = {EPS: "epsilon", X0: "sample", V: "v_prediction"}
    betas = q.schedule.beta(torch.arange(1, 1001)).numpy()
    scheduler = DDIMScheduler(
        trained_betas=betas, prediction_type=names[target], clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.alphas_cumprod = q.schedule.alpha_bar(torch.arange(1, 1001))
    scheduler.set_timesteps(50)
    theirs = scheduler.step(out, t - 1, x_t).prev_sample
    assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("w", [0.0, 0.4, 1.0, 2.0, 6.0])
def test_rejection_draws_from_the_tilted_law(w):
    """Mean and second moments against sums over a grid, within four standard errors."""
    x = WORLD.sample_tilted(20_000, 0, w, seeded(3))
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    density = WORLD.log_tilted(0, w, plane).exp()
    for found, on_grid in ((x, plane), (x**2, plane**2), (x.prod(1)[:, None], plane.prod(1)[:, None])):
        expected = (density[:, None] * on_grid).sum(0) / density.sum()
        error = found.std(0) / math.sqrt(len(x))
        assert bool(((found.mean(0) - expected).abs() < 4 * error).all())


def walked(denoise, n: int, seed: int, steps: int = 100) -> torch.Tensor:
    x_T = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    return last(walk(DDIM(Q, denoise), x_T, grid(1000, steps))).x


def test_guidance_draws_the_class_at_one_and_misses_the_tilted_law_above():
    distance = {
        w: energy_distance(walked(WORLD.guided(Q, 0, w), 2000, 4), WORLD.sample_tilted(2000, 0, w, seeded(5)))
        for w in (1.0, 3.0)
    }
    ignored = energy_distance(WORLD.given(0).sample(2000, seeded(6)), WORLD.sample_tilted(2000, 0, 3.0, seeded(5)))
    assert abs(distance[1.0]) < 0.005
    assert distance[3.0] > 0.06 > 5 * ignored, "ignoring the weight is nearer than guidance"


def test_guidance_at_low_noise_and_particles_come_near_the_tilted_law():
    truth, w = WORLD.sample_tilted(2000, 0, 3.0, seeded(5)), 3.0
    late = Limited(WORLD.guided(Q, 0, w), WORLD.given(0).denoiser(Q), 1, 300)
    assert energy_distance(walked(late, 2000, 4), truth) < 0.01
    x_T = torch.randn(2000, 2, generator=seeded(7), dtype=torch.float64)
    *_, end = twisted_walk(ClassTwist(WORLD, Q, 0, w), x_T, grid(1000, 100), 2000, seeded(8))
    assert energy_distance(end.draw(2000, seeded(9))[:, 0], truth) < 0.015
    *_, alone = twisted_walk(ClassTwist(WORLD, Q, 0, 0.0), x_T, grid(1000, 100), 2000, seeded(8))
    assert energy_distance(alone.draw(2000, seeded(9))[:, 0], WORLD.law.sample(2000, seeded(5))) < 0.01


def test_the_evidence_of_the_particles_is_the_normalizer_of_the_tilted_law():
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    normalizer = (WORLD.log_tilted(0, 2.0, plane).exp().sum() * (line[1] - line[0]) ** 2).item()
    estimates = []
    for seed in range(10):
        x_T = torch.randn(500, 2, generator=seeded(seed), dtype=torch.float64)
        *_, end = twisted_walk(ClassTwist(WORLD, Q, 0, 2.0), x_T, grid(1000, 100), 500, seeded(100 + seed))
        estimates.append(end.log_evidence.exp().item())
    found = torch.tensor(estimates)
    assert abs(found.mean().item() - normalizer) < 4 * found.std().item() / math.sqrt(10) + 0.005


def test_the_gradient_of_the_twist_is_that_of_its_value(x):
    for t in (0, 3, 300):
        point = x.clone().requires_grad_()
        at = WORLD.diffused(Q, t)
        (expected,) = torch.autograd.grad(1.7 * at.log_class(1, point).sum(), point)
        guess = ClassTwist(WORLD, Q, 1, 1.7)(x, t)
        assert_close(guess.gradient, expected, rtol=1e-9, atol=1e-9)
        assert_close(guess.log_prob, 1.7 * at.log_class(1, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(ClassTwist(WORLD, Q, 1, 1.7)(x, 0).x_0, x)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 5.0])
def test_guided_variance_and_mean_of_one_gaussian_are_those_of_the_formulas(w):
    tau, y = 0.8, 1.0
    v = tau**2 / (1 + tau**2)
    prior = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    given = GaussianMixture(torch.ones(1), torch.tensor([[y / (1 + tau**2)]]).double(), torch.tensor([v]).double())
    denoise = classifier_free(given.denoiser(Q), prior.denoiser(Q), w)
    zero, one = last(walk(DDIM(Q, denoise), torch.tensor([[0.0], [1.0]]).double(), grid(1000, 1000))).x[:, 0]
    rho = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    mean = w * y * tau**w * (1 + tau**2 - rho**2).pow(-1 - w / 2).mean()
    assert (one - zero).square().item() == pytest.approx(v**w, rel=0.03)
    assert zero.item() == pytest.approx(mean.item(), abs=0.01)


def test_moving_away_from_a_worse_model_can_help_and_w_one_is_the_good_model(x):
    def blurred(extra: float):
        given = WORLD.given(0)
        return GaussianMixture(given.weights, given.means, given.variances + extra).denoiser(Q)

    good, bad, truth = blurred(0.1), blurred(0.3), WORLD.given(0).sample(4000, seeded(5))
    assert torch.equal(autoguided(good, bad, 1.0)(x, 300), good(x, 300))
    assert torch.equal(autoguided(good, bad, 0.0)(x, 300), bad(x, 300))
    plain, away = (energy_distance(walked(autoguided(good, bad, w), 4000, 4), truth) for w in (1.0, 2.0))
    assert away < 0.6 * plain


def test_limited_guidance_is_guided_within_and_plain_elsewhere(x):
    guided, plain = WORLD.guided(Q, 0, 4.0), WORLD.given(0).denoiser(Q)
    limited = Limited(guided, plain, 100, 300)
    for t, expected in ((99, plain), (100, guided), (300, guided), (301, plain)):
        assert torch.equal(limited(x, t), expected(x, t))
    assert limited.q is Q


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WORLD.guided(Q, 2, 1.0), r"label = 2: expected one of \[0, 1\]"),
        (lambda: WORLD.guided(Q, 0, math.nan), "w = nan: expected a finite weight"),
        (lambda: WORLD.sample_tilted(5, 0, -1.0), "w = -1.0: expected a number of at least 0"),
        (lambda: LabelledMixture(LAW, torch.tensor([0, 1])), r"labels \(2,\): expected one whole number for each of"),
        (lambda: Limited(LAW.denoiser(Q), LAW.denoiser(Q), 5, 4), "highest = 4: expected a whole number of at least 5"),
        (
            lambda: classifier_free(LAW.denoiser(Q), LAW.denoiser(GaussianDiffusion(linear_schedule(50))), 2.0),
            "q: a schedule of T = 1000",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
