import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ddpm_nb.bound import eps_weight, reverse_step, step_term
from ddpm_nb.convergence import flow_map
from ddpm_nb.denoiser import EPS, SCORE, X0, NetworkDenoiser, V, clipped
from ddpm_nb.diffusion import GaussianDiffusion, posterior_var
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import GRIDS
from ddpm_nb.sampling import DDIM, Ancestral, State, grid, last, variance_between, walk
from ddpm_nb.schedule import NoiseSchedule, added_var, cosine_schedule, linear_schedule, log_snr_schedule
from ddpm_nb.sde import chain_sde
from ddpm_nb.solvers import Heun

BETA = added_var
KERNELS = {
    "ancestral": Ancestral,
    "ancestral, beta": lambda q, denoise: Ancestral(q, denoise, BETA),
    "ddim": DDIM,
    "ddim, eta 0.5": lambda q, denoise: DDIM(q, denoise, eta=0.5),
    "ddim, eta 1": lambda q, denoise: DDIM(q, denoise, eta=1.0),
}


def network(x: Tensor, t: Tensor) -> Tensor:
    """Depends on x and on t, differently in each coordinate, so that no slip of index or level goes unseen."""
    steps = t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    ramp = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return torch.tanh(1.3 * x + ramp) * torch.cos(0.37 * steps) + 0.5 * torch.sin(0.61 * steps + ramp)


# Parity with the schedulers of diffusers, whose timestep i is our step i + 1.

SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "coarse": lambda: linear_schedule(40, 0.01, 0.3)}
PREDICTIONS = {"epsilon": EPS, "sample": X0, "v_prediction": V}


def their(kind: str, schedule: NoiseSchedule, spacing: str, steps: int, **options):
    """A scheduler of diffusers that runs on our schedule in float64, its own tables being float32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, kind)(schedule.T, timestep_spacing=spacing, **options)
    t = torch.arange(1, schedule.T + 1)
    scheduler.betas, scheduler.alphas = schedule.beta(t), schedule.alpha(t)
    scheduler.alphas_cumprod, scheduler.one = schedule.alpha_bar(t), torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest entry, and below 1e-10: 1 − ᾱ by subtraction costs them some digits near t = 1."""
    assert ours.dtype == theirs.dtype == torch.float64
    relative = ((ours - theirs).abs().max() / (1 + theirs.abs().max())).item()
    assert relative < 1e-10
    return relative


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("name", "steps"), [("linear", 20), ("cosine", 50), ("coarse", 40)])
def test_ancestral_steps_are_those_of_the_ddpm_scheduler(
    draw, rng, record_property, name, steps, variance, clip, prediction
):
    schedule = SCHEDULES[name]()
    q = GaussianDiffusion(schedule)
    scheduler = their(
        "DDPMScheduler",
        schedule,
        "leading",
        steps,
        variance_type=variance,
        clip_sample=clip,
        prediction_type=prediction,
    )
    denoise = NetworkDenoiser(network, PREDICTIONS[prediction], q)
    kernel = Ancestral(
        q, clipped(denoise) if clip else denoise, BETA if variance == "fixed_large" else Ancestral.variance
    )
    times = [*(scheduler.timesteps + 1).tolist(), 0]
    x, ours, theirs, worst = draw(2, 1, 3, 3), rng(7), rng(7), 0.0
    for t, s in pairwise(times):
        y = network(x, torch.full((2,), t))
        expected = scheduler.step(y, t - 1, x, generator=theirs).prev_sample
        worst = max(worst, deviation(kernel(x, s, t).sample(ours), expected))
        x = expected
    record_property("deviation", worst)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("name", "spacing", "steps"),
    [("linear", "trailing", 20), ("linear", "leading", 50), ("cosine", "trailing", 10), ("coarse", "trailing", 40)],
)
def test_ddim_steps_are_those_of_the_ddim_scheduler(draw, record_property, name, spacing, steps, clip, eta):
    schedule = SCHEDULES[name]()
    q = GaussianDiffusion(schedule)
    scheduler = their("DDIMScheduler", schedule, spacing, steps, clip_sample=clip)
    denoise = NetworkDenoiser(network, EPS, q)
    kernel = DDIM(q, clipped(denoise) if clip else denoise, eta)
    times = [*(scheduler.timesteps + 1).tolist(), 0]
    assert spacing == "leading" or times == grid(schedule.T, steps)
    x, worst = draw(2, 1, 3, 3), 0.0
    for t, s in pairwise(times):
        noise = draw(2, 1, 3, 3, seed=t)
        y = network(x, torch.full((2,), t))
        # Their clipping leaves the predicted noise inconsistent with the clipped x̂_0 unless told otherwise.
        options = {"eta": eta, "use_clipped_model_output": clip, "variance_noise": noise if eta else None}
        expected = scheduler.step(y, t - 1, x, **options).prev_sample
        law = kernel(x, s, t)
        worst = max(worst, deviation(law.mean + law.var.sqrt() * noise, expected))
        x = expected
    record_property("deviation", worst)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_whole_walk_is_a_whole_run_of_the_scheduler(draw, rng, eta):
    schedule = SCHEDULES["coarse"]()
    q = GaussianDiffusion(schedule)
    scheduler = their("DDIMScheduler", schedule, "trailing", 10, clip_sample=False)
    x = x_T = draw(2, 1, 3, 3)
    theirs = rng(7)
    for i in scheduler.timesteps:
        x = scheduler.step(network(x, torch.full((2,), int(i) + 1)), int(i), x, eta=eta, generator=theirs).prev_sample
    ours = last(walk(DDIM(q, NetworkDenoiser(network, EPS, q), eta), x_T, grid(40, 10), rng(7))).x
    assert (ours - x).abs().max() < 1e-9 * (1 + x.abs().max())


# Identities.


def test_ancestral_is_the_posterior_at_the_estimate(schedule, draw):
    q, x_t = GaussianDiffusion(schedule), draw(3, 2)
    denoise = NetworkDenoiser(network, V, q)
    for s, t in ((0, 1), (1, 2), (1, schedule.T), (0, schedule.T)):
        law, expected = Ancestral(q, denoise)(x_t, s, t), q.posterior(denoise(x_t, t), x_t, s, t)
        # The kernel combines x_t and the network's answer at once, so the two round differently.
        assert_close(law.mean, expected.mean, rtol=1e-13, atol=1e-13)
        assert_close(law.var, expected.var, rtol=1e-14, atol=0.0)
        wide = Ancestral(q, denoise, BETA)(x_t, s, t)
        assert torch.equal(wide.mean, law.mean)
        assert wide.var == (added_var(*schedule.levels(s, t)) if s else 0)


@pytest.mark.parametrize("name", KERNELS)
def test_the_step_to_the_data_is_the_estimate_without_noise(schedule, draw, name):
    q, x_t = GaussianDiffusion(schedule), draw(3, 2)
    denoise = NetworkDenoiser(network, V, q)
    for t in (1, 2, schedule.T):
        law = KERNELS[name](q, denoise)(x_t, 0, t)
        assert torch.equal(law.mean, denoise(x_t, t))
        assert torch.equal(law.sample(), law.mean)


def test_ddim_with_eta_one_is_ancestral_sampling(schedule, draw):
    q, x_t = GaussianDiffusion(schedule), draw(3, 2)
    denoise = NetworkDenoiser(network, V, q)
    for s, t in ((1, 2), (1, schedule.T), (schedule.T - 1, schedule.T), (2, 3)):
        ddim, ancestral = DDIM(q, denoise, 1.0)(x_t, s, t), Ancestral(q, denoise)(x_t, s, t)
        # Both divide by 1 - ᾱ_t, once in the noise estimate and once in the posterior.
        assert_close(ddim.mean, ancestral.mean, rtol=1e-9, atol=1e-9)
        assert_close(ddim.var, ancestral.var, rtol=1e-14, atol=0.0)


@given(
    st.lists(st.floats(1e-3, 0.95), min_size=3, max_size=8),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.data(),
    st.integers(0, 1000),
)
def test_knowing_the_data_every_kernel_maps_marginal_to_marginal(draw, betas, eta, data, seed):
    q = GaussianDiffusion(NoiseSchedule.from_betas(betas))
    s, t = sorted(data.draw(st.lists(st.integers(0, len(betas)), min_size=2, max_size=2, unique=True)))
    x_0 = draw(2, 3, seed=seed)
    centre, ahead = q.marginal(x_0, s), q.marginal(x_0, t)
    for kernel in (DDIM(q, lambda x_t, t: x_0, eta), Ancestral(q, lambda x_t, t: x_0)):
        law = kernel(ahead.mean, s, t)
        slope = kernel(ahead.mean + 1.0, s, t).mean - law.mean
        assert_close(law.mean, centre.mean, rtol=1e-11, atol=1e-11)
        assert_close(slope.square() * ahead.var + law.var, centre.var.expand(2, 3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_the_exact_denoiser_carries_the_mean_of_each_marginal_to_the_next(schedule, name):
    # An exact statement about the level: the denoiser of a neighbouring step would move the mean.
    law, q = GaussianMixture([1.0], [[0.7, -1.1]], [0.3]), GaussianDiffusion(schedule)
    kernel = KERNELS[name](q, law.denoiser(q))
    for s, t in ((0, 1), (1, 2), (0, schedule.T), (schedule.T // 2, schedule.T), (schedule.T - 1, schedule.T)):
        moved = kernel(schedule.alpha_bar(t).sqrt() * law.means, s, t).mean
        assert_close(moved, schedule.alpha_bar(s).sqrt() * law.means, rtol=1e-9, atol=1e-12)


def test_variances_between_are_even_in_the_logarithm(schedule):
    for s, t in ((1, 2), (1, schedule.T), (schedule.T - 1, schedule.T)):
        levels = schedule.levels(s, t)
        small, large = posterior_var(*levels), BETA(*levels)
        for share in (0.0, 0.25, 1.0):
            expected = (1 - share) * math.log(small) + share * math.log(large)
            assert math.log(variance_between(share)(*levels)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"share = 1\.5: expected a number from 0"):
        variance_between(1.5)


# Laws.


@pytest.mark.parametrize("name", KERNELS)
def test_the_variance_of_a_gaussian_law_converges_with_the_number_of_steps(name):
    # For a Gaussian law each kernel is affine: the law of the result is known without sampling, and its error
    # must halve when the steps are halved (order 1, slope measured from T = 200 to T = 800).
    def error(T: int) -> float:
        q = GaussianDiffusion(NoiseSchedule(linear_schedule(1600, 6e-5, 0.0125).log_alpha_bars[:: 1600 // T]))
        kernel = KERNELS[name](q, GaussianMixture([1.0], [[0.0]], [0.3]).denoiser(q))
        var = 1.0
        for t, s in pairwise(grid(T, T)):
            step = kernel(torch.ones(1, 1, dtype=torch.float64), s, t)
            var = step.mean.item() ** 2 * var + step.var.item()
        return abs(var - 0.3)

    coarse, fine = error(200), error(800)
    assert fine < 6e-3
    assert 0.9 < math.log(coarse / fine, 4) < 1.05


# Nearly two points, of which the last step must hit one: noise added there shows, and so do wrong probabilities.
# Twenty steps are so few that the denoiser of a neighbouring step is another one, and yet enough for these kernels;
# with β̃ the error of the discretization itself is seen at twenty, so those take a hundred.
POINTS = GaussianMixture([0.8, 0.2], [[-1.0], [1.0]], [1e-6, 1e-6])
N = 10_000
STEPS = {"ancestral": 100, "ancestral, beta": 20, "ddim": 20, "ddim, eta 0.5": 20, "ddim, eta 1": 100}


def energy(a: Tensor, b: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Energy distance of two samples on the line, and the second largest of 199 for random relabellings of them.

    On the line 2 E|A − B| − E|A − A'| − E|B − B'| = 2 ∫ (F_a − F_b)². If both samples have one law, the first number
    exceeds the second with probability 1/100.
    """
    pooled = torch.cat([a, b]).flatten()
    order = pooled.argsort()
    gaps = pooled[order].diff()
    sign = torch.cat([torch.full((len(a),), 1 / len(a)), torch.full((len(b),), -1 / len(b))]).double()

    def distance(sign: Tensor) -> float:
        return 2 * (sign[order].cumsum(0)[:-1].square() @ gaps).item()

    null = [distance(sign[torch.randperm(len(sign), generator=generator)]) for _ in range(199)]
    return distance(sign), sorted(null)[-2]


def strided(steps: int) -> GaussianDiffusion:
    """The noise of the usual thousand steps in fewer, larger ones."""
    return GaussianDiffusion(NoiseSchedule(linear_schedule().log_alpha_bars[:: 1000 // steps]))


def sampled(kernel, steps: int, rng) -> Tensor:
    x_T = torch.randn(N, 1, generator=rng(5), dtype=torch.float64)
    return last(walk(kernel, x_T, grid(steps, steps), rng(6))).x


@pytest.mark.parametrize("name", KERNELS)
def test_samplers_with_the_exact_denoiser_reproduce_the_law(rng, name):
    q = strided(STEPS[name])
    x = sampled(KERNELS[name](q, POINTS.denoiser(q)), STEPS[name], rng)
    found, threshold = energy(x, POINTS.sample(N, rng(2)), rng(3))
    assert found < threshold


def noise_at_the_last_step(q, denoise):
    def kernel(x_t, s, t):
        return Gaussian(q.posterior(denoise(x_t, t), x_t, s, t).mean, q.schedule.beta(t))

    return kernel


def asked_one_step_too_early(q, denoise):
    return Ancestral(q, lambda x_t, t: denoise(x_t, max(t - 1, 1)), BETA)


def asked_one_step_too_late(q, denoise):
    return Ancestral(q, lambda x_t, t: denoise(x_t, min(t + 1, q.schedule.T)), BETA)


def ddim_asked_one_step_too_early(q, denoise):
    return DDIM(q, lambda x_t, t: denoise(x_t, max(t - 1, 1)))


def ddim_asked_one_step_too_late(q, denoise):
    return DDIM(q, lambda x_t, t: denoise(x_t, min(t + 1, q.schedule.T)))


def deviation_for_variance(q, denoise):
    return Ancestral(q, denoise, lambda before, here: BETA(before, here) ** 0.5)


def variance_for_deviation(q, denoise):
    return Ancestral(q, denoise, lambda before, here: BETA(before, here) ** 2)


def marginal_variance(q, denoise):
    return Ancestral(q, denoise, lambda before, here: here.noise_var)


def uniform_noise(q, denoise):
    class Uniform(Gaussian):
        def sample(self, generator=None):
            return self.mean + self.var.sqrt() * torch.rand(self.mean.shape, generator=generator, dtype=torch.float64)

    def kernel(x_t, s, t):
        law = Ancestral(q, denoise, BETA)(x_t, s, t)
        return Uniform(law.mean, law.var)

    return kernel


@pytest.mark.parametrize(
    "wrong",
    [
        noise_at_the_last_step,
        asked_one_step_too_early,
        asked_one_step_too_late,
        ddim_asked_one_step_too_early,
        ddim_asked_one_step_too_late,
        deviation_for_variance,
        variance_for_deviation,
        marginal_variance,
        uniform_noise,
    ],
)
def test_the_same_statistic_rejects_wrong_samplers(rng, wrong):
    q = strided(20)
    found, threshold = energy(sampled(wrong(q, POINTS.denoiser(q)), 20, rng), POINTS.sample(N, rng(2)), rng(3))
    assert found > 2 * threshold


def test_strides_reproduce_the_law_from_the_same_denoiser(rng):
    q = GaussianDiffusion(linear_schedule())
    x_T = torch.randn(N, 1, generator=rng(5), dtype=torch.float64)
    for kernel in (Ancestral(q, POINTS.denoiser(q), BETA), DDIM(q, POINTS.denoiser(q))):
        x = last(walk(kernel, x_T, grid(1000, 50), rng(6))).x
        found, threshold = energy(x, POINTS.sample(N, rng(2)), rng(3))
        assert found < threshold


def test_a_score_network_samples_the_law_of_its_score(rng):
    q = strided(20)
    score = NetworkDenoiser(lambda x_t, t: POINTS.score(q, x_t, t), SCORE, q)
    by_score = sampled(DDIM(q, score, 0.5), 20, rng)
    assert_close(by_score, sampled(DDIM(q, POINTS.denoiser(q), 0.5), 20, rng), rtol=1e-9, atol=1e-9)


# Walks.


def test_a_walk_yields_the_state_after_each_step_without_gradients(draw, rng):
    q, asked = GaussianDiffusion(linear_schedule(10, 0.01, 0.3)), []

    def denoise(x_t, t):
        asked.append(t)
        assert not torch.is_grad_enabled()
        return network(x_t, torch.full((len(x_t),), t))

    x_T = draw(2, 3).requires_grad_()
    states = list(walk(Ancestral(q, denoise), x_T, [10, 7, 2, 0], rng(0)))
    assert asked == [10, 7, 2]
    assert [state.t for state in states] == [7, 2, 0]
    generator, x = rng(0), x_T.detach()
    for state, (t, s) in zip(states, pairwise([10, 7, 2, 0])):
        x = Ancestral(q, lambda x_t, t: network(x_t, torch.full((2,), t)))(x, s, t).sample(generator)
        assert torch.equal(state.x, x)
        assert not state.x.requires_grad
    assert torch.is_grad_enabled()


def test_a_walk_leaves_grad_mode_to_its_caller(draw):
    q = GaussianDiffusion(linear_schedule(10, 0.01, 0.3))
    for _ in walk(DDIM(q, lambda x_t, t: x_t), draw(2, 3), grid(10, 5)):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_walks_keep_the_dtype_and_follow_the_seed(draw, rng, dtype, name):
    q = GaussianDiffusion(linear_schedule(10, 0.01, 0.3))
    kernel = KERNELS[name](q, clipped(NetworkDenoiser(network, EPS, q)))
    runs = [last(walk(kernel, draw(2, 3, dtype=dtype), grid(10, 5), rng(seed))).x for seed in (1, 1, 2)]
    assert runs[0].dtype == dtype
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2]) == (name == "ddim")


@pytest.mark.parametrize("name", KERNELS)
def test_float32_steps_are_float64_steps_to_rounding(schedule, draw, name):
    # Ancestral samplers elsewhere give NaN in float32 at the clipped end of the cosine schedule.
    q, x = GaussianDiffusion(schedule), draw(4, 3)
    kernel = KERNELS[name](q, clipped(lambda x_t, t: network(x_t, torch.full((len(x_t),), t))))
    for t in {1, 2, 3, schedule.T // 2, schedule.T - 1, schedule.T} - {0}:
        single, double = kernel(x.float(), t - 1, t), kernel(x, t - 1, t)
        # The noise estimate of DDIM divides the rounding of x_t by √(1 − ᾱ_t) and multiplies it by √(1 − ᾱ_s).
        assert_close(single.mean.double(), double.mean, rtol=2e-6, atol=2e-6)
        assert_close(single.var.double(), double.var, rtol=2e-7, atol=0.0)


@given(st.integers(1, 1000), st.data())
def test_grids_fall_from_T_to_0_evenly(T, data):
    steps = data.draw(st.integers(1, T))
    times = grid(T, steps)
    assert times[0] == T
    assert times[-1] == 0
    assert len(times) == steps + 1
    strides = [t - s for t, s in pairwise(times)]
    assert min(strides) >= 1
    assert max(strides) - min(strides) <= 1
    assert all(abs(t - T * (steps - i) / steps) <= 0.5 for i, t in enumerate(times))


def test_a_chain_of_one_step(draw):
    q, x_1 = GaussianDiffusion(NoiseSchedule.from_betas([0.3])), draw(2, 3)
    for name in KERNELS:
        kernel = KERNELS[name](q, lambda x_t, t: x_t * t)
        assert torch.equal(last(walk(kernel, x_1, grid(1, 1))).x, x_1)


@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        (lambda k, x: walk(k, x, [5]), ValueError, r"times = \[5\]: expected at least two strictly decreasing steps"),
        (lambda k, x: walk(k, x, [5, 5, 0]), ValueError, r"times = \[5, 5, 0\]: expected at least two strictly"),
        (lambda k, x: walk(k, x, [0, 5]), ValueError, r"times = \[0, 5\]: expected at least two strictly decreasing"),
        (lambda k, x: walk(k, x, [5, -1]), ValueError, "times = -1: expected a whole number of at least 0"),
        (lambda k, x: walk(k, x, [5, 2.5, 0]), TypeError, "times = 2.5: expected a whole number, got float"),
        (lambda k, x: last(walk(k, x, [6, 0])), ValueError, "t = 6: expected a step from 0 to T = 5"),
        (lambda k, x: grid(5, 6), ValueError, "steps = 6: expected at most T = 5"),
        (lambda k, x: grid(5, 0), ValueError, "steps = 0: expected a whole number of at least 1"),
        (lambda k, x: grid(5.0, 2), TypeError, "T = 5.0: expected a whole number"),
        (lambda k, x: last(iter(())), ValueError, "states: expected at least one"),
        (lambda k, x: DDIM(k.q, k.denoise, 1.5), ValueError, "eta = 1.5: expected a number from 0"),
        (lambda k, x: DDIM(k.q, k.denoise, -0.1), ValueError, "eta = -0.1: expected a number from 0"),
        (lambda k, x: DDIM(k.q, k.denoise, math.nan), ValueError, "eta = nan: expected a number from 0"),
    ],
)
def test_errors_come_before_any_work_and_name_the_argument(draw, fails, kind, message):
    q = GaussianDiffusion(NoiseSchedule.from_betas([0.1] * 5))
    with pytest.raises(kind, match=message):
        fails(Ancestral(q, lambda x_t, t: x_t), draw(2, 3))


def test_last_keeps_the_last():
    states = [State(torch.zeros(1), t) for t in (2, 1, 0)]
    assert last(iter(states)) is states[-1]


# Given noise, and one protocol for the variance.


@pytest.mark.parametrize("name", KERNELS)
def test_a_walk_with_given_noise_is_the_walk_that_draws_it(draw, rng, name):
    q, x_T, times = GaussianDiffusion(linear_schedule(20, 0.02, 0.5)), draw(3, 2), grid(20, 5)
    kernel = KERNELS[name](q, lambda x_t, t: torch.tanh(x_t))
    generator = rng(4)
    noise = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(5)]
    given = [state.x for state in walk(kernel, x_T, times, noise=noise)]
    x = x_T
    for z, (t, s), found in zip(noise, pairwise(times), given, strict=True):
        law = kernel(x, s, t)
        x = law.mean + law.var.sqrt() * z
        assert_close(found, x, rtol=1e-14, atol=1e-14)


def test_given_noise_must_fit_the_walk_and_the_law(draw):
    kernel = Ancestral(GaussianDiffusion(linear_schedule(20, 0.02, 0.5)), lambda x_t, t: x_t)
    with pytest.raises(ValueError, match="noise of length 3: expected one for each of the 4 steps"):
        walk(kernel, draw(3, 2), grid(20, 4), noise=draw(3, 3, 2))
    mixture = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0])

    class Drawn:
        def sample(self, generator=None):
            return mixture.sample(3, generator)

    with pytest.raises(TypeError, match="noise: expected a kernel whose laws are Gaussian, this one gives a Drawn"):
        last(walk(lambda x, s, t: Drawn(), draw(3, 2), grid(20, 4), noise=draw(4, 3, 2)))
    with pytest.raises(TypeError, match=r"x_T of dtype torch\.int64: expected a floating-point tensor"):
        walk(kernel, torch.zeros(3, 2, dtype=torch.long), grid(20, 4))


def test_one_choice_of_the_variance_serves_samplers_and_bound(draw):
    """A function of two levels: floats in a walk, tensors in a weight, and the bound asks it too."""

    def choice(before, here):
        return (posterior_var(before, here) * added_var(before, here)) ** 0.5

    q, x = GaussianDiffusion(linear_schedule(20, 0.02, 0.5)), draw(3, 2)

    def denoise(x_t, t):
        return 0.5 * x_t

    expected = choice(*q.schedule.levels(6, 7))
    assert Ancestral(q, denoise, choice)(x, 6, 7).var.item() == pytest.approx(expected, rel=1e-15)
    assert reverse_step(q, denoise, x, 7, choice).var.item() == pytest.approx(expected, rel=1e-15)
    assert_close(
        step_term(q, denoise, draw(3, 2, seed=1), x, 7, choice),
        q.posterior(draw(3, 2, seed=1), x, 6, 7).kl(reverse_step(q, denoise, x, 7, choice)),
        rtol=0.0,
        atol=0.0,
    )
    each = torch.stack([eps_weight(q.schedule, t, choice) for t in (2, 7, 20)])
    assert_close(eps_weight(q.schedule, torch.tensor([2, 7, 20]), choice), each, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule, log_snr_schedule])
def test_a_grid_falls_from_the_last_step_to_the_data_as_evenly_as_its_name_says(name, make):
    measures = {"t": None, "log_snr": lambda level: level.log_snr, "sigma": lambda level: level.sigma ** (1 / 7)}
    schedule = make(1000)
    for steps in (1, 2, 7, 20, 999, 1000):
        times = GRIDS[name](schedule, steps)
        assert len(times) == steps + 1 and times[0] == 1000 and times[-1] == 0
        assert all(a > b for a, b in pairwise(times))
    if measures[name] is not None and (name, make) != ("sigma", cosine_schedule):  # its last steps are larger than even
        times = GRIDS[name](schedule, 20)[:-1]
        assert times[-1] == 1
        values = torch.tensor([measures[name](schedule.level(t)) for t in times], dtype=torch.float64)
        even = torch.linspace(values[0], values[-1], 20, dtype=torch.float64)
        around = [[measures[name](schedule.level(min(max(t + by, 1), 1000))) for by in (-1, 1)] for t in times]
        beside = torch.tensor(around, dtype=torch.float64).diff(dim=1)[:, 0].abs()
        # A time is the nearest whole one, unless its neighbours took that.
        assert bool(((values - even).abs() <= beside).float().mean() > 0.7)
    with pytest.raises(ValueError, match="steps = 1001: expected at most T = 1000"):
        GRIDS[name](schedule, 1001)


def test_grids_change_what_a_solver_delivers():
    q, law = GaussianDiffusion(linear_schedule()), GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.05, 0.05])
    starts = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    goal = flow_map(chain_sde(q.schedule), law, starts, 1.0, 0.0)
    error = {
        (name, steps): (last(walk(Heun(q, law.denoiser(q)), starts, make(q.schedule, steps))).x - goal).abs().mean()
        for name, make in GRIDS.items()
        for steps in (5, 80)
    }
    assert error["sigma", 80] < 0.5 * error["t", 80]
    assert error["sigma", 5] > 2 * error["t", 5]
